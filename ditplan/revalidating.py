"""Measuring a plan anew where it is to run, so that it holds there."""

import datetime
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ditplan.models import NamedModel
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.evidence import interval_of
from ditplan.profiles.plan import ExecutionPlan, Measurement

if TYPE_CHECKING:
    from ditplan.runtime.workers import Workers

RUNS = 3


def revalidated(
    plan: ExecutionPlan,
    path: Path,
    model: NamedModel,
    workers: "Workers",
    say: Callable[[str], None],
) -> ExecutionPlan:
    """The plan with what it takes here and what is here as its evidence, saved in its file.

    Raises:
        InputError: it takes longer than it did where it was made, so another plan may be the best.
        ClusterError: a rank failed.
    """
    runs = []
    for number in range(1, RUNS + 1):
        runs.append(workers.measure(model.spec, model.weights, plan))
        say(f"revalidating, run {number}: {runs[-1].latency_s:.4g} s")
    latency_s = statistics.median(run.latency_s for run in runs)
    interval_s = interval_of(plan)
    if interval_s is not None and latency_s > interval_s[1]:
        raise InputError(
            f"{path}: takes {latency_s:.4g} s here, at most {interval_s[1]:.4g} s where it was "
            "made, so another plan may be faster here: `",
            Command("tune", (Setting("resume", True), Setting("plan", path))),
            "`",
        )
    facts, link = workers.facts(plan.configuration.ranks, timed=True)
    planned = plan.fingerprint.link_kinds
    kinds = planned if link is None or link in planned else (link,)
    names = [one.device for one in facts]
    measurement = Measurement(
        latency_s=latency_s,
        runs_s=tuple(run.latency_s for run in runs),
        memory_bytes=max(run.memory_bytes for run in runs),
        measured_on=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        devices=", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
    )
    fingerprint = plan.fingerprint.as_found(facts, kinds)
    found = plan.model_copy(update={"measurement": measurement, "fingerprint": fingerprint})
    found.save(path)
    say(f"{path}: holds here: {latency_s:.4g} s; its evidence is now of this machine")
    return found
