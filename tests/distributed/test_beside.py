"""What may stand beside a plan, by axis: one device's result, or refused on all ranks in a line."""

from dataclasses import dataclass, field

import pytest

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.neighbour_tasks import offloaded_on_one, require_told, stories_told
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

EXACT = 1e-4
SD3, FLUX, QWEN = small_sd3(), small_flux(), small("qwen-image")
TIMEOUT_S = 600
PIECES = "weights of a transformer that a plan has spread over ranks"
HOOKS = "which move or leave out weights that the plan has spread over ranks"
OF_STEPS = "callback_on_step_end expects the latents of one step"
STRAY = "called outside of the pipeline"


@dataclass(frozen=True)
class Axis:
    """A plan of two ranks along one axis."""

    spec: ModelSpec
    mesh: Mesh
    parts: dict[str, str] = field(default_factory=dict)


AXES = {
    "cfg": Axis(SD3, Mesh(cfg=2)),
    "cfg by calls": Axis(QWEN, Mesh(cfg=2)),
    "ulysses": Axis(SD3, Mesh(ulysses=2)),
    "ring": Axis(SD3, Mesh(ring=2)),
    "pipefusion": Axis(SD3, Mesh(pipefusion=2)),
    "sharded": Axis(SD3, Mesh(ulysses=2), {"weights": "sharded"}),
}
WHOLE = [name for name in AXES if name != "sharded"]


def require_stories(
    pair: RankPool, axis: Axis, stories: dict[str, str], work: Workload | None = None
) -> None:
    """Each story is as `require_told` says on both ranks; its words are those of refusals."""
    work = work or workload(steps=2, passes=1 if axis.spec is FLUX else 2)
    warm = PipeFusion(blocks_per_stage=(2, 1), patches=2, warmup_steps=work.steps)
    plan = plan_for(axis.spec, axis.mesh, work, None, warm if axis.mesh.pipefusion > 1 else None)
    steps = [story.split(", ") for story in stories]
    bare = [[step.rstrip("!") for step in one] for one in steps]
    results = pair.run(
        stories_told, axis.spec, plan.configured(**axis.parts), bare, timeout_s=TIMEOUT_S
    )
    for of_rank in results:
        for story, words, found in zip(steps, stories.values(), of_rank, strict=True):
            assert found is not None
            require_told(found, story, words, EXACT)


@pytest.mark.parametrize("axis", WHOLE)
def test_adapters_come_are_fused_and_go(pair: RankPool, axis: str) -> None:
    stories = {
        "lora one, plan, call, no lora one, call, lora two, call, close, call": "",
        "plan, lora one, call, fuse, call, unfuse, call, close, call": "",
    }
    require_stories(pair, AXES[axis], stories)


@pytest.mark.parametrize("axis", WHOLE)
def test_offloading_and_casting_before_a_plan_and_under_it(pair: RankPool, axis: str) -> None:
    stories = {
        "model offload, plan, call, call, close, call": "",
        "plan, call, model offload, call, no offload, call, close, call": "",
        "group offload, plan, call, call, close, call": "",
        "plan, call, group offload, call, close, call": "",
        "layerwise casting, plan, call, close, call": "",
    }
    require_stories(pair, AXES[axis], stories)


@pytest.mark.filterwarnings("ignore:what compile")
@pytest.mark.parametrize("axis", WHOLE)
def test_a_transformer_that_its_user_compiles(pair: RankPool, axis: str) -> None:
    stories = {
        "compile, plan, call, close, call": "",
        "plan, call, compile, call, close, call": "",
        "wrapped, plan!, unwrapped, plan, call": "wrapped by torch.compile",
    }
    require_stories(pair, AXES[axis], stories)


def test_weights_in_pieces_refuse_what_would_need_them_whole(pair: RankPool) -> None:
    require_stories(
        pair,
        AXES["sharded"],
        {
            "lora one, plan, call, no lora one, call, lora two, call, close, call": "",
            "lora one, plan, call, fuse!, call, close, call": PIECES,
            "model offload, plan!, no offload, plan, call": HOOKS,
            "group offload, plan!, call": HOOKS,
            "layerwise casting, plan!, call": HOOKS,
            "first-block cache, plan!": "has hooks of diffusers for fbc_block_hook",
        },
    )


@pytest.mark.filterwarnings("ignore:a call with 1 sample")
@pytest.mark.parametrize("axis", AXES)
def test_calls_that_are_steered_and_what_is_around_them(pair: RankPool, axis: str) -> None:
    stories = {
        "plan, call with a callback, call that is interrupted, call, close, call": "",
        "plan, call of a second pipeline, call, close, call": "",
        "plan, call, other scheduler, call, close, call": "",
        "plan, plan!, call, close, call": "close what parallelize() returned",
    }
    if axis == "pipefusion":
        stories = {
            "plan, call with a callback!, call that is interrupted!, call": OF_STEPS,
            "plan, call of a second pipeline!, call, close, call": STRAY,
            "plan, call, other scheduler, call, close, call": "",
            "plan, plan!, call, close, call": "close what parallelize() returned",
        }
    if AXES[axis].spec is SD3:
        stories["plan, call without a layer, call, close, call"] = ""
    require_stories(pair, AXES[axis], stories)


@pytest.mark.parametrize(
    ("axis", "caches"),
    [
        (Axis(small("cogvideox"), Mesh(cfg=2)), ("mag cache", "taylor cache", "pyramid cache")),
        (Axis(FLUX, Mesh(dp=2)), ("mag cache", "taylor cache", "pyramid cache")),
        (AXES["cfg by calls"], ("mag cache", "taylor cache", "first-block cache")),
    ],
    ids=["cfg", "dp", "cfg by calls"],
)
def test_caches_that_go_by_nothing_that_ranks_share(
    pair: RankPool, axis: Axis, caches: tuple[str, ...]
) -> None:
    work = workload(height=32, width=48, steps=6, batch=axis.mesh.dp, passes=1 + axis.mesh.cfg // 2)
    if axis.spec.name == "small-cogvideox":
        work = work.model_copy(update={"frames": 5})
    stories = {f"{cache}, plan, call, call, close, call": "" for cache in caches}
    require_stories(pair, axis, stories, work)


@pytest.mark.parametrize("mesh", [Mesh(ulysses=2), Mesh(ring=2)], ids=str)
def test_a_second_pass_of_a_model_whose_guidance_is_an_input(pair: RankPool, mesh: Mesh) -> None:
    require_stories(pair, Axis(FLUX, mesh), {"plan, call with two passes, call, close, call": ""})


def test_what_one_rank_alone_refuses_is_refused_on_both(pair: RankPool) -> None:
    plan = plan_for(SD3, Mesh(ulysses=2), workload()).configured(weights="sharded")
    with pytest.raises(InputError, match=r"^rank 1: .* take them off, or use a plan"):
        pair.run(offloaded_on_one, SD3, plan, timeout_s=60)
