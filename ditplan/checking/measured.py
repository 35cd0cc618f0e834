"""Plans that were run for real, predicted again: errors, the order of plans, memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ditplan.checking.comparing import MOVED, Bounds, Status, Verdict
from ditplan.checking.ordering import in_order
from ditplan.models import model_named
from ditplan.planner.cost.memory import memory_of
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.baseline import Forecast, MeasuredBaseline, RecordedForecasts, rounded
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.measured_plans import MeasuredPlan, MeasuredPlans

APART = 0.03
"""Plans whose measured latencies differ by more than this share have an order."""

MORE_ERROR = 0.01
"""By how much the mean error of a record's plans may grow."""


def measured_task(record: MeasuredPlans) -> Task:
    """What was planned when a record was measured.

    Raises:
        InputError: its model isn't known.
    """
    return Task(
        model_named(record.model).spec,
        record.workload,
        record.cluster,
        modes=record.modes,
        profile=record.profile,
        allowed=ApproximationPolicy(),
    )


def loop_bytes(task: Task, configuration: Configuration) -> int:
    """What of the predicted memory a run without text encoders and VAE's decoding holds in the
    allocator.
    """
    memory = memory_of(task.spec, task.workload, configuration, task.cluster.devices[0])
    encoders = task.spec.encoder_parameters * task.workload.dtype_bytes
    denoising = memory.activations_bytes + memory.buffers_bytes
    decoding = max(0, memory.vae_bytes - denoising)
    # a memory model that forgets something may have less in all than what is taken off
    return max(1, memory.total_bytes - memory.context_bytes - encoders - decoding)


def forecasts(record: MeasuredPlans) -> tuple[Forecast, ...]:
    """What is predicted today of each plan of a record, with the model's blocks measured and
    without.
    """
    task, topology = measured_task(record), Topology(record.cluster)
    found = []
    for run in record.runs:
        # a model for each, so that no price depends on another
        bare = replace(task, profile=None)
        known, computed = (
            priced_as_is(one, cost_model_of(one, topology), run.configuration)
            for one in (task, bare)
        )
        found.append(
            Forecast(
                plan=run.candidate,
                predicted_s=rounded(known.prediction.latency_s),
                computed_s=rounded(computed.prediction.latency_s),
                loop_bytes=loop_bytes(task, run.configuration),
                fits=not known.too_big,
            )
        )
    return tuple(found)


def record_of(entry: RecordedForecasts, path: Path) -> MeasuredPlans:
    """The record that an entry of the file at `path` names.

    Raises:
        InputError: it isn't there, or is damaged.
    """
    return MeasuredPlans.load(path.parent / entry.file)


def verdict_on_record(
    entry: RecordedForecasts, record: MeasuredPlans, now: tuple[Forecast, ...], bounds: Bounds
) -> Verdict:
    """Holds old and new predictions against what was measured."""
    name, runs = f"measured: {Path(entry.file).stem}", record.runs
    if not entry.forecasts:
        return Verdict(name, "new", new=_summary(now, runs))
    by_name = {one.plan: one for one in entry.forecasts}
    paired = [(by_name[one.plan], one, run) for one, run in zip(now, runs, strict=True)]
    old = tuple(one for one, _, _ in paired)
    faults = [*_worse(old, now, runs, bounds)]
    moves = [abs(one.predicted_s / was.predicted_s - 1) for was, one, _ in paired]
    moves += [abs(one.computed_s / was.computed_s - 1) for was, one, _ in paired]
    drift = max(moves)
    status: Status = "drifted" if drift > MOVED or old != now else "same"
    notes = [f"{_summary(old, runs)} -> {_summary(now, runs)}"] if status == "drifted" else []
    return Verdict(
        name,
        "failed" if faults else status,
        tuple(faults),
        tuple(notes),
        _summary(old, runs),
        _summary(now, runs),
        regret=regret(now, runs),
        drift=drift,
    )


def _worse(
    old: Sequence[Forecast],
    now: Sequence[Forecast],
    runs: Sequence[MeasuredPlan],
    bounds: Bounds,
) -> Iterator[str]:
    for was, one in zip(old, now, strict=True):
        if was.fits and not one.fits:
            yield f"lost: {one.plan} ran, and doesn't fit now"
    for what, seconds in SECONDS.items():
        before, after = (mean_error(list(map(seconds, some)), runs) for some in (old, now))
        if after > before + MORE_ERROR:
            yield f"error: {what} {_percent(before)} off in the mean, now {_percent(after)}"
        before_right, after_right = (
            order(list(map(seconds, some)), runs)[0] for some in (old, now)
        )
        pairs = order(list(map(seconds, now)), runs)[1]
        if after_right < before_right:
            yield f"order: {what} {before_right} of {pairs} pairs in order, now {after_right}"
    before, after = memory_error(old, runs), memory_error(now, runs)
    if after > before + MORE_ERROR:
        yield f"memory: {_percent(before)} off in the mean, now {_percent(after)}"
    before, after = regret(old, runs), regret(now, runs)
    best_s = min(run.median_s for run in runs)
    if after > before and bounds.are_exceeded((1 + after) * best_s, (1 + before) * best_s):
        yield (
            f"regret: the first choice was {_percent(before)} slower than the best that was "
            f"measured, now {_percent(after)}"
        )


SECONDS: dict[str, Callable[[Forecast], float]] = {
    "with blocks measured": lambda one: one.predicted_s,
    "with none measured": lambda one: one.computed_s,
}


def mean_error(seconds: Sequence[float], runs: Sequence[MeasuredPlan]) -> float:
    """How far predictions are off, as a share: twice and half as much are the same."""
    errors = (abs(math.log(s / run.median_s)) for s, run in zip(seconds, runs, strict=True))
    return math.fsum(errors) / len(runs)


def memory_error(found: Sequence[Forecast], runs: Sequence[MeasuredPlan]) -> float:
    """The same of memory, over the plans of which it was measured; 0 if of none."""
    errors = [
        abs(math.log(one.loop_bytes / run.memory_bytes))
        for one, run in zip(found, runs, strict=True)
        if run.memory_bytes
    ]
    return math.fsum(errors) / len(errors) if errors else 0.0


def order(seconds: Sequence[float], runs: Sequence[MeasuredPlan]) -> tuple[int, int]:
    """Of the pairs of plans that were measured apart, how many are predicted in order, and all."""
    return in_order([(run.median_s, s) for s, run in zip(seconds, runs, strict=True)], APART)


def regret(found: Sequence[Forecast], runs: Sequence[MeasuredPlan]) -> float:
    """By how much the plan that is predicted fastest was measured slower than the best one."""
    chosen = min(zip(found, runs, strict=True), key=lambda pair: pair[0].predicted_s)[1]
    return chosen.median_s / min(run.median_s for run in runs) - 1


def _summary(found: Sequence[Forecast], runs: Sequence[MeasuredPlan]) -> str:
    predicted = [one.predicted_s for one in found]
    right, pairs = order(predicted, runs)
    return (
        f"{_percent(mean_error(predicted, runs))} off, {right} of {pairs} pairs in order, memory "
        f"{_percent(memory_error(found, runs))} off"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def merged_records(
    baseline: MeasuredBaseline, found: Sequence[tuple[Forecast, ...]]
) -> MeasuredBaseline:
    """A file with today's predictions."""
    entries = zip(baseline.records, found, strict=True)
    records = tuple(entry.model_copy(update={"forecasts": now}) for entry, now in entries)
    return baseline.model_copy(update={"records": records})


def require_forecasts(entry: RecordedForecasts, record: MeasuredPlans, path: Path) -> None:
    """Refuses predictions of other plans than those that were measured.

    Raises:
        InputError: says which is missing.
    """
    known = {one.plan for one in entry.forecasts}
    for run in record.runs:
        if known and run.candidate not in known:
            raise InputError(
                f"{path}: {entry.file}: nothing is recorded of {run.candidate}; delete the "
                "entry's forecasts and record them anew with `",
                MeasuredBaseline.made_by,
                "`",
            )
