"""What the tests of serving ask of ranks."""

from typing import Any

import torch

from ditplan.profiles.book import PlanBook
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.serving import BookServer, Counters, PipelineUnderPlan, counters, warm_up
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_tasks import small_model
from tests.distributed.rank_tasks import ATTRIBUTES_OF_CALLS

Size = tuple[int, int]


def lively(context: RankContext, spec: ModelSpec) -> Any:
    """A pipeline with weights that let attention matter."""
    pipeline = load_pipeline(spec, None, context.device, "float32")
    pipeline.transformer = small_model(spec).to(context.device)
    return pipeline


def far_apart(pipeline: Any, spec: ModelSpec, work: Workload, alone: torch.Tensor) -> float:
    """The largest difference of a call's latents from one device's."""
    return float((latents_of_call(pipeline, spec, work) - alone).abs().max())


def state_of(pipeline: Any) -> dict[str, Any]:
    """All by which a pipeline could differ from what it was: classes, attributes, hooks, and where
    each weight lies.
    """
    found: dict[str, Any] = {
        name: value for name, value in vars(pipeline).items() if name not in ATTRIBUTES_OF_CALLS
    }
    found["class"] = type(pipeline)
    for name, module in pipeline.transformer.named_modules():
        kept = {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in vars(module).items()
        }
        found[f"module {name}"] = (type(module), kept)
    for name, tensor in pipeline.transformer.state_dict(keep_vars=True).items():
        found[f"weight {name}"] = (id(tensor), tensor.detach().clone())
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what isn't the same, bit for bit."""
    changed = sorted(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        if name.startswith("weight "):
            same = one[0] == other[0] and torch.equal(one[1], other[1])
        else:
            same = one == other
        if not same:
            changed.append(name)
    return changed


def requests_after_a_warm_up(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan, sizes: list[Size], texts: list[int]
) -> tuple[int, list[int], list[float], list[str]] | None:
    """Compilations of the warm-up and of each request after it, how far these are from one
    device's latents, and what of the pipeline isn't as it was once the plan is closed.
    """
    pipeline = lively(context, spec)
    works = [
        plan.workload.model_copy(update={"height": height, "width": width, "text_tokens": tokens})
        for height, width in sizes
        for tokens in texts
    ]
    alone = [latents_of_call(pipeline, spec, work) for work in works]
    before = state_of(pipeline)
    under = PipelineUnderPlan(pipeline, parallelize(pipeline, plan, context))
    if context.rank not in plan.configuration.placement:
        under.close()
        return None
    warm = warm_up(under, plan, sizes)
    compiled, far = [], []
    for work, right in zip(works, alone, strict=True):
        at = counters(under)
        far.append(far_apart(under, spec, work, right))
        compiled.append((counters(under) - at).compilations)
    under.close()
    return warm.compilations, compiled, far, differences(before, state_of(pipeline))


def served_by_a_book(
    context: RankContext, spec: ModelSpec, book: PlanBook, asked: list[Workload]
) -> tuple[list[Counters], list[float]]:
    """What each request to a book compiles and captures, and how far it is from one device's
    latents.
    """
    pipeline = lively(context, spec)
    alone = [latents_of_call(pipeline, spec, work) for work in asked]
    made, far = [], []
    with BookServer(pipeline, book, context) as server:
        for work, right in zip(asked, alone, strict=True):
            under = server.request(height=work.height, width=work.width, steps=work.steps)
            at = counters(under)
            far.append(far_apart(under, spec, work, right))
            made.append(counters(under) - at)
    return made, far


def patches_by_a_book(
    context: RankContext, spec: ModelSpec, book: PlanBook, rounds: int
) -> tuple[list[Counters], list[float]]:
    """What the requests of each round through a book's plans compile and capture, and how far each
    is from what its plan gives eagerly and alone.
    """
    pipeline = lively(context, spec)
    works = [entry.workload for entry in book.entries]
    alone = []
    for entry in book.entries:
        with parallelize(pipeline, entry.plan.configured(mode="eager"), context):
            alone.append(latents_of_call(pipeline, spec, entry.workload))
    made, far = [], []
    with BookServer(pipeline, book, context) as server:
        for _ in range(rounds):
            at = Counters(0, 0)
            for work, right in zip(works, alone, strict=True):
                under = server.request(height=work.height, width=work.width, steps=work.steps)
                before = counters(under)
                far.append(far_apart(under, spec, work, right))
                at += counters(under) - before
            made.append(at)
    return made, far
