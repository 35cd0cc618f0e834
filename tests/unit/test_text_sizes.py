"""Sizes that texts are rounded up to: chosen as an exhaustive search would."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ditplan.models import NamedModel
from ditplan.planner.task import workload_for
from ditplan.planning import plan
from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.text_sizes import GRAIN, MOST_LONGER, MOST_SIZES, choose_sizes, size_for
from ditplan.prompts import text_lengths

LENGTHS = st.dictionaries(st.integers(1, 6 * GRAIN), st.floats(0.1, 10), min_size=1, max_size=12)


def taken_s(
    lengths: dict[int, float], sizes: tuple[int, ...], step_s: Callable[[int], float]
) -> float:
    """What all texts take, each at its size."""
    return math.fsum(
        weight * step_s(next(size for size in sizes if size >= length))
        for length, weight in lengths.items()
    )


@given(LENGTHS, st.floats(0.001, 3))
def test_sizes_are_the_fewest_that_cost_little_and_of_these_the_cheapest(
    lengths: dict[int, float], steepness: float
) -> None:
    def step_s(tokens: int) -> float:
        return 1 + steepness * math.pow(tokens / 100, 1.5)

    chosen = choose_sizes(lengths, step_s)
    longest = -(-max(lengths) // GRAIN) * GRAIN
    grid = range(GRAIN, longest + 1, GRAIN)
    bound_s = (1 + MOST_LONGER) * taken_s(lengths, tuple(grid), step_s)
    assert chosen[-1] == longest
    assert taken_s(lengths, chosen, step_s) <= bound_s + 1e-9 or len(chosen) == MOST_SIZES
    for count in range(1, len(chosen) + 1):
        best_s = min(
            taken_s(lengths, (*some, longest), step_s)
            for some in itertools.combinations(grid[:-1], count - 1)
        )
        if count < len(chosen):
            assert best_s > bound_s - 1e-9
        else:
            assert taken_s(lengths, chosen, step_s) == pytest.approx(best_s)


def test_a_text_gets_the_next_size_and_one_that_is_too_long_is_refused() -> None:
    assert [size_for((64, 128), tokens) for tokens in (1, 64, 65, 128)] == [64, 64, 128, 128]
    with pytest.raises(InputError, match="has 129 tokens, the plan serves texts of up to 128"):
        size_for((64, 128), 129)


def test_plans_of_texts_of_any_length_say_which_sizes_they_serve(tmp_path: Path) -> None:
    found = plan("qwen-image", "2xh100-nvlink", text_tokens=300).plan
    assert found.workload.text_tokens == 300
    assert found.text_sizes[-1] == 320
    assert len(found.text_sizes) > 1
    assert ExecutionPlan.load(found.save(tmp_path / "plan.json")) == found
    # the same text for small pictures is a larger part of what is computed
    small = plan("qwen-image", "2xh100-nvlink", text_tokens=300, height=256, width=256).plan
    assert len(small.text_sizes) > len(found.text_sizes)


@pytest.mark.parametrize("asked", [{"mode": "eager"}, {"mode": "eager", "text_tokens": 64}])
def test_a_plan_that_compiles_nothing_rounds_nothing(asked: dict[str, Any]) -> None:
    assert plan("qwen-image", "2xh100-nvlink", **asked).plan.text_sizes == ()


def test_texts_that_are_padded_anyway_have_no_sizes_and_no_other_length() -> None:
    assert plan("sd3", "2xh100-nvlink").plan.text_sizes == ()
    with pytest.raises(InputError, match="makes every text 333 tokens long"):
        workload_for(find_model("sd3"), "cuda", text_tokens=100)


def test_sizes_that_do_not_ascend_are_refused() -> None:
    found = plan("qwen-image", "2xh100-nvlink").plan
    text = found.text().replace(f"{found.text_sizes[0]},", "999,", 1)
    with pytest.raises(InputError, match="don't ascend"):
        ExecutionPlan.from_json(text, "plan.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer that has a token for each word."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "tokenizer")
    index = '{"tokenizer": ["transformers", "PreTrainedTokenizerFast"]}'
    (tmp_path / "model_index.json").write_text(index)
    return tmp_path


def test_lengths_come_from_a_file_of_prompts_counted_by_the_model_s_tokenizer(
    folder: Path,
) -> None:
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\n\n  a blue square \na lighthouse\n")
    named = NamedModel(find_model("qwen-image"), folder, False)
    # five more are what Qwen-Image's template puts around a prompt
    assert text_lengths(named, {"prompt_file": prompts}) == {8: 2, 7: 1}


@pytest.mark.parametrize(
    ("model", "text", "more", "words"),
    [
        ("qwen-image", "a cat", {}, "give its folder: weights=DIR"),
        ("qwen-image", "\n \n", {}, "no prompt in it"),
        ("qwen-image", "a cat", {"text_tokens": 5}, "leave out text_tokens"),
        ("sd3", "a cat", {}, "all texts of sd3 are made equally long"),
    ],
)
def test_prompts_that_say_nothing_are_refused_in_a_line(
    tmp_path: Path, model: str, text: str, more: dict[str, Any], words: str
) -> None:
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        plan(model, "2xh100-nvlink", prompt_file=tmp_path / "prompts.txt", **more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
