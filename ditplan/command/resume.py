"""`tune --resume --plan`: what there is to go on from."""

from pathlib import Path
from typing import Any

from ditplan.command.options import WorkloadOptions, given
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.plan import ExecutionPlan


def plan_to_resume(
    is_asked: bool, plan: Path | None, workload: WorkloadOptions, others: dict[str, Any]
) -> ExecutionPlan | None:
    """The plan that a tune goes on from; None where none is to be. `others` are options that have
    no meaning beside it.

    Raises:
        InputError: one option without the other, or something that the plan says itself.
    """
    if is_asked and plan is None:
        raise InputError(Setting("resume", True), " goes on from a plan: give ", Setting("plan"))
    if plan is None:
        return None
    if not is_asked:
        raise InputError(
            Setting("plan", plan), " is what to go on from: give ", Setting("resume", True)
        )
    for name, value in (given(workload) | others).items():
        if value is not None:
            raise InputError(
                Setting(name, value),
                ": a plan that is resumed is run again as it is; leave it out",
            )
    return ExecutionPlan.load(plan)


def named_model(model: str | None, resumed: ExecutionPlan | None) -> str:
    """What is tuned: what was named, else the resumed plan's model.

    Raises:
        InputError: neither is there.
    """
    if model is None and resumed is None:
        raise InputError("Missing option '", Setting("model"), "'; see --help")
    return model or (resumed.model.name if resumed else "")
