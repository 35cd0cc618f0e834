"""Examples in docstrings say what is so."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules_with_examples() -> list[str]:
    """The modules of the package that show what a call gives."""
    files = [
        path for part in ("planner", "profiles", "runtime") for path in (ROOT / part).rglob("*.py")
    ]
    with_examples = [path for path in files if ">>> " in path.read_text()]
    return sorted(
        ".".join(("ditplan", *path.relative_to(ROOT).with_suffix("").parts))
        for path in with_examples
    )


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_give_what_they_show(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0
