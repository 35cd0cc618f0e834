"""Texts of any length under a compiled plan: rounded up to its sizes, with one device's latents."""

import pytest

from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.runtime.prepared import built_of
from ditplan.runtime.ranks.pool import RankPool
from ditplan.testing.on_ranks import latents_of_call
from tests.distributed.family_models import small
from tests.distributed.family_tasks import small_model
from tests.distributed.small_models import plan_for, workload

EXACT = 1e-4
SIZES = (8, 16)
LENGTHS = (5, 16, 8, 11, 6, 13, 7, 15, 12, 9)


def plan_of(spec: ModelSpec, mesh: Mesh) -> ExecutionPlan:
    """A plan that must compile, for texts of up to 16 tokens."""
    plan = plan_for(spec, mesh, workload(steps=2)).configured(mode="compile")
    return plan.model_copy(update={"fallback": "refuse", "text_sizes": SIZES})


def latents_by_length(
    context: RankContext, spec: ModelSpec, plan: ExecutionPlan
) -> tuple[list[float], list[int], str] | None:
    """How far latents are from one device's by length, graphs compiled after each call, and what is
    said of a text that is too long.
    """
    pipeline = load_pipeline(spec, None, context.device, "float32")
    pipeline.transformer = small_model(spec)
    works = [plan.workload.model_copy(update={"text_tokens": length}) for length in LENGTHS]
    alone = [latents_of_call(pipeline, spec, work) for work in works]
    built = built_of(pipeline.transformer, context)
    with parallelize(pipeline, plan, context):
        if context.rank not in plan.configuration.placement:
            return None
        far, compiled = [], []
        for work, right in zip(works, alone, strict=True):
            far.append(float((latents_of_call(pipeline, spec, work) - right).abs().max()))
            compiled.append(built.compilations)
        said = ""
        try:
            longer = plan.workload.model_copy(update={"text_tokens": 17})
            latents_of_call(pipeline, spec, longer)
        except InputError as error:
            said = str(error)
    return far, compiled, said


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(ulysses=2)])
def test_texts_are_compiled_for_the_sizes_alone_and_stay_exact(ranks: RankPool, mesh: Mesh) -> None:
    spec = small("qwen-image")
    for found in ranks.run(latents_by_length, spec, plan_of(spec, mesh), timeout_s=600):
        if found is None:
            continue
        far, compiled, said = found
        assert max(far) <= EXACT
        # the first length makes the size of 8, the second that of 16, no other makes any
        assert 0 < compiled[0] < compiled[1] == compiled[-1]
        assert "the text has 17 tokens, the plan serves texts of up to 16" in said
