"""Reads what NVIDIA's nccl-tests write with `-J FILE`: versions 1 to 3 of their JSON.

Source of the format: nccl-tests' src/util.cu, and src/*.cu for what an operation's size counts.
"""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from ditplan.profiles.bounds import MOST_RANKS, Slots
from ditplan.profiles.cluster import CollectivePoint, Operation
from ditplan.profiles.errors import InputError
from ditplan.profiles.files import parse_json, path_text, read_text
from ditplan.profiles.record import FrozenModel, shortened, validate

PROGRAMS: dict[str, Operation] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "alltoall": "all_to_all",
    "sendrecv": "send_recv",
}
"""Programs without `_perf`, and the operation of ours that each one times."""

NEWEST_VERSION = 3
LEAST_US, MOST_US = 1e-3, 1e12
REMEDY = "make it again with `-J FILE` of nccl-tests"
EXPECTED = "a file that nccl-tests wrote with -J"


class _Part(FrozenModel):
    """Fields that aren't named are left out unread."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Timing(_Part):
    """Microseconds of one call; `cpu_time` is that of the launch alone."""

    time: float | Literal["nan"] | None = None
    cpu_time: float | Literal["nan"] | None = None
    nwrong: float | None = None


class _Spread(_Part):
    p50_us: float = Field(ge=LEAST_US, le=MOST_US)
    p95_us: float = Field(ge=LEAST_US, le=MOST_US)


class _Result(_Part):
    size: int = Field(ge=0, le=10**15)
    out_of_place: _Timing | None = None
    out_of_place_per_iter: _Spread | None = None


class _Process(_Part):
    """The first device of a process: the others follow it."""

    rank: int = Field(ge=0, lt=MOST_RANKS)
    group: int = 0
    hostname: str = Field(min_length=1, max_length=1024)
    device: int = Field(ge=0, lt=4096)
    device_info: str = Field(min_length=1, max_length=1024)


class _Config(_Part):
    nthreads: Slots
    ngpus: Slots
    devices: tuple[_Process, ...] = Field(min_length=1, max_length=MOST_RANKS)


class _Bounds(_Part):
    count: int = 0


class _File(_Part):
    version: int
    args: tuple[str, ...] = Field(min_length=1)
    nccl_version: int | None = None
    config: _Config
    results: tuple[_Result, ...]
    out_of_bounds: _Bounds = _Bounds()


@dataclass(frozen=True)
class Place:
    """A GPU: its host's name, its number on it, and what its driver calls it."""

    host: str
    device: int
    name: str


@dataclass(frozen=True)
class NcclTest:
    """What one file says: the groups of GPUs that talked at once, and what the operation took.

    `operation` is None for one that no plan does; `program` is its name.
    """

    where: str
    program: str
    operation: Operation | None
    nccl: str | None
    groups: tuple[tuple[Place, ...], ...]
    points: tuple[CollectivePoint, ...]


def load_nccl_test(path: Path) -> NcclTest:
    """Reads a file of nccl-tests. Its `env`, which holds the whole environment with its secrets, is
    dropped unread.

    Raises:
        InputError: no such file, or it isn't what nccl-tests write, or says that values came out
            wrong.
    """
    where = path_text(path)
    data = parse_json(read_text(path, EXPECTED), where, "file of nccl-tests", REMEDY)
    if not isinstance(data, dict) or not isinstance(data.get("version"), int):
        raise InputError(f"{where}: this isn't {EXPECTED}: it has no version; {REMEDY}")
    data.pop("env", None)
    if not 1 <= data["version"] <= NEWEST_VERSION:
        raise InputError(
            f"{where}: field version: nccl-tests' format {shortened(data['version'])}, this "
            f"ditplan reads 1 to {NEWEST_VERSION}; upgrade ditplan"
        )
    file = validate(_File, data, where, REMEDY)
    match = re.search(r"(\w+?)_perf\w*$", file.args[0])
    program = match[1] if match else shortened(file.args[0], 40)
    operation = PROGRAMS.get(program)
    groups = _groups_of(file.config, where)
    points = () if operation is None else _points_of(file, operation, len(groups[0]), where)
    return NcclTest(where, program, operation, _version_text(file.nccl_version), groups, points)


def _version_text(number: int | None) -> str | None:
    """NCCL's version: 22304 is 2.23.4, and 2804, of before 2.9, is 2.8.4."""
    if number is None or number <= 0:
        return None
    major = 10_000 if number >= 10_000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _groups_of(config: _Config, where: str) -> tuple[tuple[Place, ...], ...]:
    """The GPUs of each group by rank: those of one process stand side by side."""
    each = config.nthreads * config.ngpus
    if each * len(config.devices) > MOST_RANKS:
        raise InputError(
            f"{where}: field config: {each * len(config.devices)} ranks; {MOST_RANKS} are the most "
            f"there can be; {REMEDY}"
        )
    groups: dict[int, list[Place]] = {}
    for process in sorted(config.devices, key=lambda one: one.rank):
        name = process.device_info.strip()
        places = (Place(process.hostname, process.device + i, name) for i in range(each))
        groups.setdefault(process.group, []).extend(places)
    everybody = [place for group in groups.values() for place in group]
    if len({(place.host, place.device) for place in everybody}) < len(everybody):
        raise InputError(f"{where}: field config.devices: a GPU stands there twice; {REMEDY}")
    sizes = {len(group) for group in groups.values()}
    if len(sizes) > 1 or min(sizes) < 2:
        raise InputError(
            f"{where}: field config.devices: groups of {min(sizes)} to {max(sizes)} GPUs; groups "
            "of one size, of 2 GPUs or more, can be read"
        )
    return tuple(tuple(group) for group in groups.values())


def _points_of(
    file: _File, operation: Operation, ranks: int, where: str
) -> tuple[CollectivePoint, ...]:
    if file.out_of_bounds.count:
        raise InputError(
            f"{where}: {file.out_of_bounds.count} values came out wrong: NCCL or a link is broken; "
            "mend it and measure again"
        )
    taken: dict[int, list[tuple[float, float]]] = {}
    for index, result in enumerate(file.results):
        # of an all_gather nccl-tests count what comes out, we what one rank puts in
        size = result.size // ranks if operation == "all_gather" else result.size
        if size > 0:
            taken.setdefault(size, []).append(_seconds(result, f"{where}: field results.{index}"))
    if not taken:
        raise InputError(f"{where}: field results: nothing was measured; {REMEDY}")
    return tuple(
        CollectivePoint(
            bytes=size,
            median_s=statistics.median(median for median, _ in seconds),
            p95_s=max(p95 for _, p95 in seconds),
        )
        for size, seconds in sorted(taken.items())
    )


def _seconds(result: _Result, field: str) -> tuple[float, float]:
    """Median and 95th percentile of a call; the mean for both where iterations weren't timed."""
    timing = result.out_of_place
    if timing is None or timing.time is None:
        if timing is not None and timing.cpu_time is not None:
            raise InputError(
                f"{field}: it has the time of launches (-C 1), not of transfers; leave out -C"
            )
        raise InputError(f"{field}.out_of_place: no time; measure out of place")
    if timing.nwrong:
        raise InputError(
            f"{field}: {timing.nwrong:g} values came out wrong: NCCL or a link is broken; mend it "
            "and measure again"
        )
    if timing.time == "nan" or not LEAST_US <= timing.time <= MOST_US:
        raise InputError(
            f"{field}.out_of_place.time: {shortened(timing.time)} isn't a duration in us; {REMEDY}"
        )
    spread = result.out_of_place_per_iter
    if spread is None:
        return timing.time * 1e-6, timing.time * 1e-6
    return spread.p50_us * 1e-6, max(spread.p50_us, spread.p95_us) * 1e-6
