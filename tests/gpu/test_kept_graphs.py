"""On one GPU: graphs of a book's plans are kept while others are in force, and stay right."""

import pytest

from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.serving_tasks import served_by_a_book
from tests.distributed.small_models import plan_for, workload

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
