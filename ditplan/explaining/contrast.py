"""Two plans, clusters, studies or records, part by part: what differs, and what may be noise."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ditplan.command.files import kind_of
from ditplan.explaining.rivals import words_for
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.files import path_text, read_text
from ditplan.profiles.measured_plans import MeasuredPlans
from ditplan.profiles.model import ModelProfile
from ditplan.profiles.plan import ExecutionPlan, Prediction
from ditplan.profiles.record import Record
from ditplan.study import study_in

NEAR = 0.03
"""Single numbers that are nearer than this share may be noise: medians of a few runs differ so."""

Range = tuple[float, float]
Compared = Mapping[str, "Value"]


@dataclass(frozen=True)
class Value:
    """A number with what it may be as well, or a text."""

    value: float | str | None
    unit: str = ""
    within: Range | None = None


@dataclass(frozen=True)
class Difference:
    """One part of both: `change` is by which share the second's is more, None for texts and for
    what one of them lacks. `is_noise` says that what both may be overlaps.
    """

    part: str
    a: float | str | None
    b: float | str | None
    unit: str
    change: float | None
    is_noise: bool

    def to_json(self) -> dict[str, object]:
        """What `compare` prints of it."""
        found = asdict(self)
        noise = found.pop("is_noise")
        return {**found, "noise": noise}


@dataclass(frozen=True)
class Contrast:
    """What `compare` says of two files or folders."""

    a: str
    b: str
    kind: str
    parts: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """What `compare --json` prints."""
        parts = [part.to_json() for part in self.parts]
        return {"a": self.a, "b": self.b, "kind": self.kind, "parts": parts}

    def __str__(self) -> str:
        apart = [part for part in self.parts if not part.is_noise]
        noise = [part for part in self.parts if part.is_noise and part.a != part.b]
        same = len(self.parts) - len(apart) - len(noise)
        lines = [f"{self.kind}s: A is {self.a}, B is {self.b}"]
        lines += ["what differs:", *map(_line, apart)] if apart else ["nothing differs"]
        lines += ["within intervals, so it may be noise:", *map(_line, noise)] if noise else []
        return "\n".join([*lines, f"the same: {same} part(s)"])


def _line(part: Difference) -> str:
    change = "" if part.change is None else f"  {100 * part.change:+.1f}%"
    return f"  {part.part}: {_shown(part.a, part.unit)} | {_shown(part.b, part.unit)}{change}"


def _shown(value: float | str | None, unit: str) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value:.4g} {unit}".rstrip()


def contrast(a: Path, b: Path) -> Contrast:
    """Compares two of a kind: files, or folders of studies.

    Raises:
        InputError: one can't be read, they are of two kinds, or of one that isn't compared.
    """
    if a.is_dir() and b.is_dir():
        return Contrast(str(a), str(b), "study", _differences(_of_study(a), _of_study(b)))
    first, second = _loaded(a), _loaded(b)
    if type(first) is not type(second):
        raise InputError(
            f"{path_text(a)} is a {first.kind}, {path_text(b)} a {second.kind}; compare two of one "
            "kind"
        )
    describe = DESCRIBED.get(type(first))
    if describe is None:
        kinds = ", ".join(f"{kind.kind}s" for kind in DESCRIBED)
        raise InputError(f"{path_text(a)}: a {first.kind} isn't compared; studies, {kinds} are")
    parts = _differences(describe(first), describe(second))
    return Contrast(str(a), str(b), first.kind, parts)


def _loaded(path: Path) -> Record:
    if path.is_dir():
        raise InputError(f"{path_text(path)}: this is a folder; compare it with a study's folder")
    text = read_text(path, "a plan, cluster, study or record")
    return kind_of(text, path).from_json(text, path_text(path))


def _differences(a: Compared, b: Compared) -> tuple[Difference, ...]:
    return tuple(_difference(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]))


def _difference(name: str, a: Value | None, b: Value | None) -> Difference:
    one = a or Value(None)
    other = b or Value(None)
    unit, change = one.unit or other.unit, None
    is_noise = one.value == other.value
    if isinstance(one.value, float) and isinstance(other.value, float):
        change = other.value / one.value - 1 if one.value else None
        is_noise = is_noise or _overlap(one, other)
    return Difference(name, one.value, other.value, unit, change, is_noise)


def _overlap(a: Value, b: Value) -> bool:
    """Whether what two numbers may be overlaps; those that came alone may be off by a little."""
    (a_low, a_high), (b_low, b_high) = _range(a), _range(b)
    return a_low <= b_high and b_low <= a_high


def _range(one: Value) -> Range:
    assert isinstance(one.value, float)
    if one.within is not None:
        return one.within
    half = NEAR / 2 * abs(one.value)
    return one.value - half, one.value + half


def _of_plan(plan: ExecutionPlan) -> dict[str, Value]:
    configuration, devices = plan.configuration, plan.fingerprint.devices
    found = {
        "model": Value(plan.model.name),
        "workload": Value(str(plan.workload)),
        "cluster": Value(plan.fingerprint.cluster),
        "devices": Value(_counted(list(devices))),
        "backend": Value(plan.backend),
        "configuration": Value(str(configuration)),
        "GPUs": Value(str(plan.mesh.size)),
    }
    if predicted := plan.prediction:
        found["predicted latency"] = Value(predicted.latency_s, "s", predicted.interval_s)
        found["predicted end to end"] = _as_sure(predicted, predicted.end_to_end_s)
        found["setup"] = _as_sure(predicted, predicted.setup_s)
        found["memory"] = Value(predicted.memory_bytes / 1e9, "GB")
        for part, seconds in predicted.parts.items():
            found[f"part {words_for(part)}"] = _as_sure(predicted, seconds)
        for kind, count in predicted.link_bytes.items():
            # counted, not estimated
            found[f"bytes over {kind}"] = Value(count / 1e9, "GB", (count / 1e9, count / 1e9))
    if measured := plan.measurement:
        found["measured latency"] = _of_runs(measured.runs_s)
    return found


def _as_sure(prediction: Prediction, seconds: float) -> Value:
    """A part of a prediction, as uncertain as the whole is."""
    low_s, high_s = prediction.interval_s
    share = (high_s - low_s) / 2 / prediction.latency_s
    return Value(seconds, "s", (seconds * (1 - share), seconds * (1 + share)))


def _of_runs(runs_s: tuple[float, ...]) -> Value:
    """The median, and the range of the runs; a single run may be off by a little."""
    within = (min(runs_s), max(runs_s)) if len(runs_s) > 1 else None
    return Value(median(runs_s), "s", within)


def _of_cluster(cluster: ClusterProfile) -> dict[str, Value]:
    found = {
        "devices": Value(_counted([device.name for device in cluster.devices])),
        "hosts": Value(_counted([f"of {len(host.devices)}" for host in cluster.hosts])),
    }
    for name, version in cluster.software.items():
        found[f"software {name}"] = Value(version)
    for kind in cluster.link_kinds:
        links = [link for link in cluster.links if link.kind == kind]
        rates = [link.bytes_per_s / 1e9 for link in links]
        found[f"{kind} links"] = Value(str(len(links)))
        found[f"{kind} bandwidth, median"] = Value(median(rates), "GB/s")
        found[f"{kind} bandwidth, least"] = Value(min(rates), "GB/s")
        found[f"{kind} latency"] = Value(median(link.latency_s for link in links) * 1e6, "us")
    for table in cluster.collectives:
        for point in table.points:
            name = f"{table.operation} of {table.size} ranks {table.stride} apart"
            spread_s = max(0.0, point.p95_s - point.median_s)
            within = (point.median_s - spread_s, point.p95_s)
            found[f"{name}, {table.groups} at once, {point.bytes} bytes"] = Value(
                point.median_s, "s", within
            )
    return found


def _of_blocks(profile: ModelProfile) -> dict[str, Value]:
    found = {"model": Value(profile.model), "device": Value(profile.device)}
    for point in profile.points:
        tokens = f"{point.image_tokens}+{point.text_tokens} of {point.key_tokens} tokens"
        name = f"{point.part}, {point.mode}, {point.kernel}, {point.batch} x {tokens}"
        spread_s = max(0.0, point.p95_s - point.median_s)
        found[name] = Value(point.median_s, "s", (point.median_s - spread_s, point.p95_s))
    return found


def _of_measured(record: MeasuredPlans) -> dict[str, Value]:
    found = {"model": Value(record.model), "workload": Value(str(record.workload))}
    found |= {f"cluster: {name}": value for name, value in _of_cluster(record.cluster).items()}
    return found | {f"plan {run.candidate}": _of_runs(run.latency_s) for run in record.runs}


def _of_study(folder: Path) -> dict[str, Value]:
    study = study_in(folder)
    if not study.exists():
        raise InputError(f"{folder}: no study of a tune; name a folder such as plan.study")
    return dict(_runs_in(study.contents()))


def _runs_in(contents: dict[str, Any]) -> Iterator[tuple[str, Value]]:
    yield "cluster", Value(contents["cluster"] or "not measured")
    yield "devices", Value(_counted(contents["devices"]))
    runs: dict[str, tuple[float, ...]] = {}
    for run in contents["runs"]:
        runs[run["plan"]] = (*runs.get(run["plan"], ()), *run["runs_s"])
    for plan, runs_s in runs.items():
        yield f"plan {plan}", _of_runs(runs_s) if runs_s else Value("failed")


def _counted(names: list[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


DESCRIBED: dict[type[Record], Callable[[Any], dict[str, Value]]] = {
    ExecutionPlan: _of_plan,
    ClusterProfile: _of_cluster,
    ModelProfile: _of_blocks,
    MeasuredPlans: _of_measured,
}
"""What each kind of record is compared by."""
