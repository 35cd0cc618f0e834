"""What a book answers to a request: the plan for just it, the nearest larger one, or a refusal."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.book import BookEntry, Otherwise, PlanBook
from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from tests.distributed.small_models import plan_for, workload

SIZES = (512, 768, 1024)


def book_of(works: list[tuple[int, int, int, int]], otherwise: Otherwise) -> PlanBook:
    """A book with a plan for each height, width, steps and batch."""
    spec = find_model("sd3-tiny")
    plans = (
        plan_for(spec, Mesh(cfg=2), workload(height=h, width=w, steps=steps, batch=batch))
        for h, w, steps, batch in works
    )
    entries = tuple(BookEntry(weight=1, plan=plan) for plan in plans)
    return PlanBook(entries=entries, otherwise=otherwise)


REQUESTS = st.tuples(
    st.sampled_from(SIZES), st.sampled_from(SIZES), st.integers(1, 3), st.integers(1, 2)
)


@given(st.lists(REQUESTS, min_size=1, max_size=4, unique=True), REQUESTS)
def test_a_request_gets_its_plan_else_the_smallest_that_is_larger_in_all(
    works: list[tuple[int, int, int, int]], asked: tuple[int, int, int, int]
) -> None:
    height, width, steps, batch = asked
    for otherwise in ("refuse", "larger"):
        book = book_of(works, otherwise)
        larger = [work for work in works if all(map(int.__ge__, work, asked))]
        served = asked in works or (otherwise == "larger" and larger)
        if not served:
            with pytest.raises(InputError, match="the book has no plan for height"):
                book.plan_of_request(height=height, width=width, steps=steps, batch=batch)
            continue
        found = book.plan_of_request(height=height, width=width, steps=steps, batch=batch).workload
        answer = (found.height, found.width, found.steps, found.batch)
        if asked in works:
            assert answer == asked
        else:
            volume = [one[0] * one[1] * one[2] * one[3] for one in larger]
            assert answer in larger
            assert answer[0] * answer[1] * answer[2] * answer[3] == min(volume)


def test_another_batch_or_number_of_steps_doesn_t_get_a_plan_that_isn_t_for_it() -> None:
    book = book_of([(1024, 1024, 20, 1)], "refuse")
    own = book.plan_of_request(height=1024, width=1024, steps=20)
    assert own is book.entries[0].plan
    for steps, batch in itertools.product((20, 19, 21), (1, 2)):
        if (steps, batch) != (20, 1):
            with pytest.raises(InputError, match='"otherwise": "refuse"'):
                book.plan_of_request(height=1024, width=1024, steps=steps, batch=batch)


def test_a_book_s_policy_is_in_its_file_and_books_without_one_refuse(tmp_path: Path) -> None:
    book = book_of([(1024, 1024, 20, 1)], "larger")
    path = book.save(tmp_path / "book.json")
    assert PlanBook.load(path) == book
    fields = json.loads(path.read_text())
    del fields["otherwise"]
    path.write_text(json.dumps(fields))
    assert PlanBook.load(path).otherwise == "refuse"
    path.write_text(json.dumps(fields | {"otherwise": "any"}))
    with pytest.raises(InputError, match="field otherwise"):
        PlanBook.load(path)
