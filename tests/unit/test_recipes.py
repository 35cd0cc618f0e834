"""Published recipes are read as their engines take them, and the docs say what the program says."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipes import recipes, said_of
from ditplan.profiles.errors import InputError

ROOT = Path(__file__).parents[2]
LEAST_RECIPES = 10


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
