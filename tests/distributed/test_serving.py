"""Serving: warm-ups after which no request compiles, books, a pipeline given back as it was."""

from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.inspection import inspect_configs
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import TRANSFORMERS, VIDEO_VAE
from tests.distributed.serving_tasks import (
    patches_by_a_book,
    requests_after_a_warm_up,
    served_by_a_book,
)
from tests.distributed.small_models import SCHEDULER, plan_for, small_sd3, workload

EXACT = 1e-4


def one_block() -> ModelSpec:
    """Qwen-Image with one block: its texts are of any length."""
    config = TRANSFORMERS["qwen-image"] | {"num_layers": 1}
    return inspect_configs("small-qwen-image", config, VIDEO_VAE, SCHEDULER, 0)


def compiling(spec: ModelSpec, mesh: Mesh, work: Workload, sizes: tuple[int, ...]) -> ExecutionPlan:
    """A plan that must compile."""
    plan = plan_for(spec, mesh, work).configured(mode="compile")
    return plan.model_copy(update={"fallback": "refuse", "text_sizes": sizes})


def test_after_a_warm_up_no_request_compiles_and_a_closed_plan_leaves_nothing(
    ranks: RankPool,
) -> None:
    spec = one_block()
    plan = compiling(spec, Mesh(ulysses=2), workload(steps=2), (8, 16))
    sizes, texts = [(28, 36), (36, 20)], [5, 13, 8, 11]
    results = ranks.run(requests_after_a_warm_up, spec, plan, sizes, texts, timeout_s=600)
    for warm, compiled, far, changed in filter(None, results):
        assert warm == len(sizes) * len(plan.text_sizes)
        assert not any(compiled)
        assert max(far) <= EXACT
        assert changed == []


def test_a_book_serves_by_plan_after_plan_and_compiles_each_once(ranks: RankPool) -> None:
    spec, small, large = one_block(), workload(steps=2), workload(steps=2, height=36)
    plans = [
        compiling(spec, Mesh(ulysses=4), small, (8,)),
        compiling(spec, Mesh(ring=2, ulysses=2), large, (8,)),
    ]
    book = PlanBook(entries=tuple(BookEntry(weight=1, plan=plan) for plan in plans))
    for made, far in ranks.run(
        served_by_a_book, spec, book, [small, large, small, large], timeout_s=600
    ):
        assert all(one.compilations for one in made[:2])
        assert not any(one.compilations for one in made[2:])
        assert max(far) <= EXACT


def test_plans_with_pipefusion_give_the_same_again_after_others(pair: RankPool) -> None:
    spec = small_sd3(num_layers=4)
    part = PipeFusion(blocks_per_stage=(2, 2), patches=2, warmup_steps=1)
    plans = [
        plan_for(spec, Mesh(pipefusion=2), work, None, part)
        for work in (workload(steps=4), workload(steps=4, height=36))
    ]
    book = PlanBook(entries=tuple(BookEntry(weight=1, plan=plan) for plan in plans))
    for _, far in pair.run(patches_by_a_book, spec, book, 2, timeout_s=600):
        assert max(far) <= 1e-5
