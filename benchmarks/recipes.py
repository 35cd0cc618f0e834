"""What `import-config` says of published recipes, on eight A100 with NVLink: a table for the docs.

python -m benchmarks.recipes
"""

import tempfile
import tomllib
from pathlib import Path
from typing import Any

from ditplan.importing.comparison import PREDICTIONS_TELL, Comparison, import_config
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.errors import InputError

RECIPES = Path(__file__).parent / "published" / "recipes.toml"
CLUSTER = "8xa100-nvlink"


def recipes() -> list[dict[str, Any]]:
    """The published recipes, each with a name, an engine and a text."""
    found: list[dict[str, Any]] = tomllib.loads(RECIPES.read_text(encoding="utf-8"))["recipe"]
    return found


def said_of(recipe: dict[str, Any], folder: Path) -> Comparison:
    """What is said of a recipe; one that is a file is written into a folder first.

    Raises:
        InputError: it can't be compared.
    """
    given = recipe["text"]
    if "file" in recipe:
        (folder / recipe["file"]).write_text(given, encoding="utf-8")
        given = str(folder / recipe["file"])
    return import_config(
        given,
        recipe["engine"],
        lambda: find_cluster(CLUSTER),
        recipe.get("model"),
        recipe.get("gpus"),
    )


def row_of(recipe: dict[str, Any], folder: Path) -> str:
    """A recipe as a row of a table: its engine, what it runs, the best, how much faster that is."""
    try:
        found = said_of(recipe, folder)
    except InputError as error:
        return f"| {recipe['name']} | {recipe['engine']} | refused: {error} | | |"
    now, best = found.present, found.found.best
    cells = [
        recipe["name"],
        recipe["engine"],
        f"{now.configuration.mesh}, {now.configuration.mode}: {now.prediction.latency_s:.3g} s",
        f"{best.configuration.mesh}, {best.configuration.mode}: {best.prediction.latency_s:.3g} s",
        "as good" if found.slower < PREDICTIONS_TELL else f"{1 + found.slower:.3g} x",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    print(f"python -m benchmarks.recipes: on paper, {CLUSTER}\n")
    print("| recipe | engine | runs, predicted | best on as many GPUs | faster by |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes():
            print(row_of(recipe, Path(folder)))


if __name__ == "__main__":
    main()
