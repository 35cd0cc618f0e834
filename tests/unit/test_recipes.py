"""Published recipes are read as their engines take them, and the docs say what the program says."""

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipes import recipes, said_of
from ditplan.profiles.errors import InputError

ROOT = Path(__file__).parents[2]
LEAST_RECIPES = 10
DAMAGED = 250
"""Of each seed."""

WORDS = (
    *("--ulysses_degree", "--num-gpus", "--cfg-parallel-size", "--height", "--batch_size"),
    *("--guidance_scale", "--warmup_steps", "--attn_layer_num_for_pp", "--max_sequence_length"),
    *("8", "0", "-1", "1e9", "99999", "1000000000", "nan", "inf", "true", "/", "", "\x00", "sd3"),
)
CHARACTERS = ("", '"', "'", "\n", ":", "$", "{", "[", "-", " ", "=", "#", "\\", "*", "&")


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe["name"])
def test_a_recipe_is_read_as_its_engine_takes_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    if "refused" in recipe:
        with pytest.raises(InputError) as caught:
            said_of(recipe, tmp_path)
        assert recipe["refused"] in str(caught.value)
        return
    found = said_of(recipe, tmp_path)
    assert str(found.present.configuration.mesh) == recipe["mesh"]
    best = found.found.best
    assert best.configuration.mesh.size <= found.present.configuration.mesh.size
    assert best.prediction.latency_s <= found.present.prediction.latency_s * 1.03


def test_each_recipe_has_a_row_in_the_docs() -> None:
    page = (ROOT / "docs" / "import_config.md").read_text()
    assert len(recipes()) >= LEAST_RECIPES
    for recipe in recipes():
        assert f"| {recipe['name']} | {recipe['engine']} |" in page


def damaged(text: str, rng: random.Random) -> str:
    """A text with a few characters or words put in, taken out or replaced."""
    for _ in range(rng.randint(1, 3)):
        at, words = rng.randrange(len(text) + 1), text.split(" ")
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(CHARACTERS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 12) :]
        elif kind == 2:
            text = " ".join([*words, rng.choice(WORDS), rng.choice(WORDS)])
        else:
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            text = " ".join(words)
    return text


@pytest.mark.parametrize("seed", range(4))
def test_damaged_recipes_are_compared_or_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    rng, compared = random.Random(seed), 0
    for _ in range(DAMAGED):
        recipe = rng.choice(recipes())
        try:
            found = said_of(recipe | {"text": damaged(recipe["text"], rng)}, tmp_path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            continue
        assert found.to_json()["latency_s"] > 0
        compared += 1
    assert compared
