"""What works on a transformer already may stand beside a plan, or is refused with what to do."""

import re
from pathlib import Path

import pytest

from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.neighbours import require_neighbours
from tests.distributed.family_models import small
from tests.distributed.neighbour_tasks import ACTIONS, CACHES, lively_pipeline
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

ROOT = Path(__file__).parents[2]


def plan_of(
    spec: ModelSpec, mesh: Mesh, mode: str = "eager", cached: bool = False
) -> ExecutionPlan:
    """A plan of two devices or one."""
    warm = PipeFusion(blocks_per_stage=(2, 1), patches=2, warmup_steps=1)
    part = warm if mesh.pipefusion > 1 else None
    cache = TaylorSeer(interval=2) if cached else None
    work = workload(passes=1 if spec.transformer_class.startswith("Flux") else 2)
    plan = plan_for(spec, mesh, work, None, part, step_cache=cache)
    return plan.configured(mode=mode)


def beside(spec: ModelSpec, plan: ExecutionPlan, neighbour: str) -> None:
    """Has a plan's checks look at a transformer beside something else."""
    pipeline = lively_pipeline(spec)
    ACTIONS[neighbour](pipeline)
    require_neighbours(pipeline.transformer, plan, family_of(spec.transformer_class))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("mesh", [Mesh(ulysses=2), Mesh(ring=2), Mesh(pipefusion=2)], ids=str)
def test_no_cache_of_diffusers_is_beside_a_plan_that_exchanges_in_blocks(
    mesh: Mesh, cache: str
) -> None:
    for spec, what in ((small_flux(), "has a step cache enabled"), (small_sd3(), "has hooks of")):
        words = rf"{what}.*, by which a rank may decide .* with ring, ulysses and pipefusion of 1"
        with pytest.raises(InputError, match=words):
            beside(spec, plan_of(spec, mesh), cache)


def test_no_cache_of_diffusers_is_beside_a_plan_s_own() -> None:
    for spec in (small_flux(), small_sd3()):
        plan = plan_of(spec, Mesh(), cached=True)
        with pytest.raises(InputError, match=r"the plan has its own .* or use a plan without one"):
            beside(spec, plan, "taylor cache")


def test_every_test_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "beside_a_plan.md").read_text()
    named = set(re.findall(r"\btest_\w+", page))
    tests = list((ROOT / "tests").rglob("test_*.py"))
    there = {found for file in tests for found in re.findall(r"def (test_\w+)", file.read_text())}
    assert len(named) > 25
    assert named - there - {file.stem for file in tests} == set()


SHARED = r"goes by all samples and calls of a step.* use a plan with dp and cfg of 1"


@pytest.mark.parametrize(
    ("spec", "mesh", "refused"),
    [
        (small_sd3(), Mesh(cfg=2), {"first-block cache", "faster cache"}),
        (small("cogvideox"), Mesh(cfg=2), {"first-block cache", "faster cache"}),
        (small_flux(), Mesh(dp=2), {"first-block cache", "faster cache"}),
        (small("qwen-image"), Mesh(cfg=2), {"pyramid cache", "faster cache"}),
    ],
    ids=["cfg", "cfg, enabled by the model", "dp", "cfg by calls"],
)
def test_a_cache_that_goes_by_what_ranks_share_out_is_refused(
    spec: ModelSpec, mesh: Mesh, refused: set[str]
) -> None:
    for cache in CACHES:
        if cache in refused:
            with pytest.raises(InputError, match=SHARED):
                beside(spec, plan_of(spec, mesh), cache)
        else:
            beside(spec, plan_of(spec, mesh), cache)


@pytest.mark.parametrize("neighbour", ["model offload", "group offload"])
def test_offloading_is_refused_beside_captured_graphs(neighbour: str) -> None:
    spec = small_flux()
    with pytest.raises(InputError, match=r"lie elsewhere .* use a plan with mode eager or compile"):
        beside(spec, plan_of(spec, Mesh(ulysses=2), "graph"), neighbour)
    beside(spec, plan_of(spec, Mesh(ulysses=2), "compile"), neighbour)
