"""On GPUs: graphs of a book's plans are kept while others are in force, and stay right."""

from typing import Literal

import pytest

from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.serving_tasks import patches_by_a_book, served_by_a_book
from tests.distributed.small_models import plan_for, small_sd3, workload

pytestmark = pytest.mark.gpu
EXACT = 1e-3
"""Of float32 whose products GPUs round their own way."""


def test_a_book_captures_each_size_once_and_replays_it_after_another_plan() -> None:
    spec = small("qwen-image")
    works = [workload(steps=2), workload(steps=2, height=36)]
    plans = [
        plan_for(spec, Mesh(), work)
        .configured(mode="compile+graph")
        .model_copy(update={"fallback": "refuse", "text_sizes": (8, 16)})
        for work in works
    ]
    book = PlanBook(entries=tuple(BookEntry(weight=1, plan=plan) for plan in plans))
    texts = (5, 13, 5, 13, 8, 11)
    asked = [
        works[number % 2].model_copy(update={"text_tokens": tokens})
        for number, tokens in enumerate(texts)
    ]
    with RankPool(None, 1, "cuda") as pool:
        made, far = pool.run(served_by_a_book, spec, book, asked, timeout_s=600)[0]
    assert [one.captures for one in made] == [1, 1, 0, 0, 0, 0]
    assert max(far) <= EXACT


@pytest.mark.parametrize("schedule", ["linear", "folded"])
@pytest.mark.parametrize("mode", ["graph", "compile+graph"])
def test_a_book_captures_stages_of_pipefusion_once_and_replays_them_after_another_plan(
    schedule: Literal["linear", "folded"], mode: Mode
) -> None:
    spec = small_sd3(num_layers=4)
    part = PipeFusion(blocks_per_stage=(2, 2), patches=2, warmup_steps=2, schedule=schedule)
    plans = [
        plan_for(spec, Mesh(pipefusion=2), work, None, part)
        .configured(mode=mode)
        .model_copy(update={"fallback": "refuse"})
        for work in (workload(steps=6), workload(steps=6, height=36))
    ]
    book = PlanBook(entries=tuple(BookEntry(weight=1, plan=plan) for plan in plans))
    with RankPool(None, 2, "cuda") as pool:
        found = pool.run(patches_by_a_book, spec, book, 4, timeout_s=600)
    for made, far in found:
        # in the second round where compiling for one plan has moved weights
        assert made[0].captures > 0
        assert [one.captures for one in made[2:]] == [0, 0]
        assert max(far) <= EXACT
