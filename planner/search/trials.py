"""What a study keeps of a candidate, and how its measurements are read."""

import statistics
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from ditplan.planner.search.acquisition import OUT_OF_MEMORY
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import Measurement


def parameters_of(candidate: Configuration, axes: Iterable[str]) -> dict[str, object]:
    """A candidate as a trial's parameters, with PipeFusion's settings where it has them."""
    degrees = {axis: getattr(candidate.mesh, axis) for axis in axes}
    settings = {"order": ">".join(candidate.order), "mode": candidate.mode}
    return {**degrees, **settings, **patching_of(candidate)}


def patching_of(candidate: Configuration) -> dict[str, int]:
    """PipeFusion's settings as parameters of a trial."""
    part = candidate.pipefusion
    return {"patches": part.patches, "warmup": part.warmup_steps} if part else {}


def measurement_of(
    runs_s: Mapping[int, float],
    memory_bytes: int | None,
    ended: datetime | None,
    devices: Iterable[Device],
) -> Measurement:
    """What a trial's runs, by round, say of a plan; `ended` is None if it goes on."""
    names = [device.name for device in devices]
    when = (ended or datetime.now()).astimezone(UTC)
    return Measurement(
        latency_s=statistics.median(runs_s.values()),
        runs_s=tuple(runs_s[number] for number in sorted(runs_s)),
        memory_bytes=memory_bytes,
        measured_on=when.isoformat(timespec="seconds"),
        devices=", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
    )


def cause_in(message: str) -> str:
    """The line of an error's message that names the cause: that memory is short, or the first."""
    lines = message.splitlines()
    return next((line.strip() for line in lines if OUT_OF_MEMORY in line.lower()), lines[0])


def cut_torn_line(journal: Path) -> None:
    """Cuts off what a process that was killed while it wrote left of a line.

    Raises:
        InputError: the journal's folder doesn't exist.
    """
    if not journal.parent.is_dir():
        raise InputError(f"{journal}: the folder {journal.parent} doesn't exist; make it first")
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)
