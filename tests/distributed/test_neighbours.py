"""Others may change a transformer before a plan, under it, after: right, or refused in a line."""

import pytest

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.neighbour_tasks import require_told, told
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4
FLUX, SD3 = small_flux(), small_sd3()
WARM = PipeFusion(blocks_per_stage=(2, 2), patches=2, warmup_steps=workload().steps)
"""All steps are warm-up steps, which are exact."""

TWO_BLOCKS = small_flux(num_layers=1, num_single_layers=1)
SHARDED = "weights of a transformer that a plan has spread over ranks"
COMPILED = {"mode": "compile"}


def as_told(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh, story: str, words: str = "", **parts: str
) -> None:
    """A story is as `require_told` says, on every rank of a plan."""
    work = workload(passes=2 if spec is SD3 else 1)
    plan = plan_for(spec, mesh, work, None, WARM if mesh.pipefusion > 1 else None)
    plan = plan.model_copy(update={"fallback": parts.pop("fallback", "refuse")})
    steps = story.split(", ")
    results = ranks.run(
        told, spec, plan.configured(**parts), [step.rstrip("!") for step in steps], timeout_s=600
    )
    outcomes = [found for found in results if found is not None]
    assert len(outcomes) == mesh.size
    for found in outcomes:
        require_told(found, steps, words, EXACT)


@pytest.mark.parametrize(
    "story",
    [
        "model offload, plan, call, call, close, call, no offload, call",
        "plan, call, model offload, call, call, close, call, no offload, call",
        "plan, model offload, call, no offload, call, close, call",
        "aligned, plan, call, call, close, call, not aligned, call",
        "plan, call, aligned, call, close, call, not aligned, call",
        "plan, aligned, call, not aligned, call, close, call",
        "group offload, plan, call, call, close, call",
        "plan, call, group offload, call, close, call",
    ],
)
@pytest.mark.parametrize(("spec", "mesh"), [(FLUX, Mesh(ulysses=2)), (SD3, Mesh(cfg=2))])
def test_a_transformer_may_be_offloaded_before_a_plan_and_under_it(
    ranks: RankPool, spec: ModelSpec, mesh: Mesh, story: str
) -> None:
    as_told(ranks, spec, mesh, story)


@pytest.mark.parametrize(
    "story",
    [
        "model offload, plan, call, call, close, call",
        "plan, call, lora around, call, no lora one, call, close, call",
        "plan, hooked, call, own forward, call, close, call",
    ],
)
def test_stages_follow_what_is_changed_between_calls(ranks: RankPool, story: str) -> None:
    as_told(ranks, FLUX, Mesh(pipefusion=2), story)


def test_offloading_is_refused_where_weights_are_in_pieces(ranks: RankPool) -> None:
    mesh, words = Mesh(ulysses=2), "hooks for accelerate's offloading on all of it"
    as_told(ranks, FLUX, mesh, "model offload, plan!, call", words, weights="sharded")
    story = "plan, call, model offload!, call, no offload, call, close, call"
    as_told(ranks, FLUX, mesh, story, SHARDED, weights="sharded")


@pytest.mark.filterwarnings("ignore:what compile")
@pytest.mark.parametrize(
    ("story", "weights"),
    [
        ("compile, plan, call, close, call", "replicated"),
        ("plan, compile, call, close, call", "replicated"),
        ("compile blocks, plan, call, close, call", "replicated"),
        ("compile blocks, plan, call, close, call", "sharded"),
        ("plan, call, compile blocks, call, close, call", "sharded"),
    ],
)
def test_a_user_may_compile_a_transformer_or_its_blocks(
    ranks: RankPool, story: str, weights: str
) -> None:
    as_told(ranks, FLUX, Mesh(ulysses=2), story, weights=weights)


def test_a_transformer_that_is_exchanged_or_wrapped_is_refused(ranks: RankPool) -> None:
    another = "transformer is another one than when the plan was put in force"
    mesh = Mesh(ulysses=2)
    story = "plan, call, other transformer, call!, first transformer, call, other vae, call"
    as_told(ranks, FLUX, mesh, story, another)
    as_told(ranks, FLUX, mesh, "plan, wrapped, call!, unwrapped, call, close, call", another)
    as_told(ranks, FLUX, mesh, "wrapped, plan!, unwrapped, plan, call", "wrapped by torch.compile")
    as_told(ranks, FLUX, mesh, "plan, copy!, call, close, copy, call", "can't be copied")


@pytest.mark.parametrize(
    "story",
    [
        "plan, call, lora around, call, half of lora one, call, lora off, call, no lora one, call",
        "lora around, plan, call, no lora one, call, lora two, call, close, call",
        "plan, lora one, lora two, call, only lora two, call, no lora one, call, close, call",
        "plan, call, lora one, call, fuse, call, unfuse, call, close, call",
        "lora one, plan, call, fuse, call, close, call, unfuse, call",
    ],
)
@pytest.mark.parametrize("mesh", [Mesh(ulysses=2), Mesh(ring=2)], ids=str)
def test_adapters_may_come_and_go(ranks: RankPool, mesh: Mesh, story: str) -> None:
    as_told(ranks, FLUX, mesh, story)


@pytest.mark.parametrize(
    "story",
    [
        "plan, call, lora one, call, half of lora one, call, close, call, plan, call",
        "lora one, plan, call, lora two, only lora two, call, no lora one, call, close, call",
        "lora one, plan, call, fuse!, call, close, call, fuse, call, plan, call",
        "plan, call, save!, call, close, save, call",
        "plan, call, fuse qkv!, call, close, fuse qkv, call, plan, call, unfuse qkv, call",
        "plan, call, other dtype!, call, close, other dtype, call",
    ],
)
def test_weights_in_pieces_follow_adapters_or_say_that_they_cannot(
    ranks: RankPool, story: str
) -> None:
    as_told(ranks, FLUX, Mesh(ulysses=2), story, SHARDED, weights="sharded")


@pytest.mark.parametrize("weights", ["replicated", "sharded"])
@pytest.mark.parametrize(
    "story",
    [
        "plan, call, other weights, call, close, call",
        "plan, call, assigned weights, call, close, call",
        "plan, call, other parameter, call, close, call",
        "plan, call, other block, call, close, call",
        "plan, call, hooked, call, close, call, plan, call",
        "own forward, plan, call, close, call",
        "plan, own forward, call, close, call, plan, call",
        "plan, own forward of a block, call, close, call, plan, call",
        "plan, call, math backend, call, native backend, call, close, call",
    ],
)
def test_weights_modules_hooks_and_forwards_may_be_exchanged(
    ranks: RankPool, story: str, weights: str
) -> None:
    as_told(ranks, FLUX, Mesh(ulysses=2), story, weights=weights)


@pytest.mark.parametrize(
    "story",
    [
        "plan, call, fuse qkv, call, unfuse qkv, call, close, call",
        "fuse qkv, plan, call, close, call",
        "plan, call, other dtype, call, close, call",
        "model offload, own forward, plan, call, call, close, call",
    ],
)
def test_projections_and_dtypes_may_be_exchanged(ranks: RankPool, story: str) -> None:
    as_told(ranks, FLUX, Mesh(ulysses=2), story)


@pytest.mark.parametrize(
    ("story", "words"),
    [
        ("cache, plan!, no cache, plan, call, cache, call!, no cache, call", "disable_cache()"),
        ("parallel, plan!, not parallel, plan, call, parallel, call!", "enable_parallelism"),
    ],
)
def test_caches_and_parallelism_of_diffusers_are_refused(
    ranks: RankPool, story: str, words: str
) -> None:
    as_told(ranks, FLUX, Mesh(ulysses=2), story, words)


@pytest.mark.parametrize(
    "story",
    [
        "plan, call, lora one, call, half of lora one, call, no lora one, lora two, call, call",
        "lora one, plan, call, fuse, call, unfuse, call, close, call",
        "plan, call, hooked, call, close, call, plan, call",
        "plan, other weights, call, other parameter, call, fuse qkv, call, close, call",
        "model offload, plan, call, call, close, call",
        "plan, group offload, call, close, call",
    ],
)
def test_compiled_blocks_follow_what_is_changed(ranks: RankPool, story: str) -> None:
    as_told(ranks, TWO_BLOCKS, Mesh(ulysses=2), story, **COMPILED)


@pytest.mark.parametrize("step", ["own forward of a block", "aligned"])
def test_blocks_that_others_have_wrapped_are_not_compiled(ranks: RankPool, step: str) -> None:
    mesh, words = Mesh(ulysses=2), "can't be compiled"
    as_told(ranks, TWO_BLOCKS, mesh, f"plan, {step}, call!, close, call", words, **COMPILED)
    with pytest.warns(UserWarning, match="run eagerly, they can't be compiled"):
        story = f"plan, {step}, call, close, call"
        as_told(ranks, TWO_BLOCKS, mesh, story, **COMPILED, fallback="eager")
