"""What a study keeps of a candidate, and how its measurements are read."""

import statistics
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from ditplan.planner.search.acquisition import OUT_OF_MEMORY
from ditplan.profiles.cluster import Device
from ditplan.profiles.plan import Measurement


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
