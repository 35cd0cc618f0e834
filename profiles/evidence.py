"""What a plan is for and what speaks for it, as digests and as a line for a log."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditplan.profiles.plan import ExecutionPlan

SIGNATURE = "signature"
"""The key of a plan's file that says what the plan is for, as a digest."""


MEASURED_SLACK = 1.1
"""By how many times a later run may differ from those that were measured."""


def signature_of(plan: "ExecutionPlan") -> str:
    """A digest of what a plan is for: model, workload, backend, and the devices of its ranks."""
    workload = plan.workload.model_dump(exclude_defaults=True)
    of = (plan.model.key, workload, plan.backend, plan.fingerprint.devices)
    return digest_of(of)


def evidence_of(plan: "ExecutionPlan") -> str:
    """A digest of what speaks for a plan: predictions, measurements, and where they were made."""
    names = {"configuration", "quality", "prediction", "measurement", "runner_ups", "fingerprint"}
    return digest_of(plan.model_dump(mode="json", include=names))


def interval_of(plan: "ExecutionPlan") -> tuple[float, float] | None:
    """Within which seconds the denoising loop stays where the plan holds: those of its runs and a
    tenth, which clocks and temperatures make, else what was predicted; None where nothing is known.
    """
    if plan.measurement is not None:
        runs_s = plan.measurement.runs_s
        return min(runs_s) / MEASURED_SLACK, max(runs_s) * MEASURED_SLACK
    return plan.prediction.interval_s if plan.prediction is not None else None


def digest_of(value: object) -> str:
    """A short digest of plain values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chosen_line(plan: "ExecutionPlan") -> str:
    """One line for a log: the plan, why it was chosen, what lost against it, and its evidence."""
    seconds = []
    if plan.measurement:
        seconds.append(f"measured {plan.measurement.latency_s:.4g} s on {plan.measurement.devices}")
    if plan.prediction:
        seconds.append(f"predicted {plan.prediction.latency_s:.4g} s ({plan.prediction.source})")
    lost = [f"{one.configuration} ({one.reason})" for one in plan.runner_ups[:1]]
    return (
        f"plan {plan.configuration} for {plan.model.name}, {plan.workload}: "
        f"{', '.join(seconds) or 'chosen by hand'}; second best {', '.join(lost) or 'none'}; "
        f"evidence {evidence_of(plan)}, signature {signature_of(plan)}"
    )
