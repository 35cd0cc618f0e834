"""A job that gives `parallelize` what it doesn't take, and writes down what it is told."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ditplan
from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.errors import InputError
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.small_models import small_sd3


def told(act: Callable[[], object]) -> str:
    """The refusal; empty if there is none."""
    try:
        act()
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    """Saves each rank's refusals beside the plan, a line each."""
    path = Path(sys.argv[1])
    plan = ditplan.ExecutionPlan.load(path)
    pipeline = load_pipeline(small_sd3(), None, torch.device("cpu"), "float32")
    wrong: list[Any] = [
        path,
        str(path),
        plan.model_dump(),
        None,
        PlanBook.model_validate({"entries": [BookEntry(weight=1.0, plan=plan)]}),
    ]
    lines = [told(partial(ditplan.parallelize, pipeline, given)) for given in wrong]
    lines.append(told(lambda: ditplan.parallelize(pipeline.transformer, plan)))
    lines.append(told(lambda: ditplan.parallelize(None, plan)))
    with ditplan.parallelize(pipeline, plan):
        lines.append(told(lambda: ditplan.parallelize(pipeline, plan)))
        given: Any = path if dist.get_rank() else plan
        other = load_pipeline(small_sd3(), None, torch.device("cpu"), "float32")
        lines.append(told(lambda: ditplan.parallelize(other, given)))
    path.with_suffix(f".{dist.get_rank()}.txt").write_text("\n".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
