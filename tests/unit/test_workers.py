"""What a command has ranks do."""

from importlib import import_module

import pytest

from ditplan.runtime import workers
from ditplan.runtime.ranks.by_name import ByName


@pytest.mark.parametrize(
    "function", [value for value in vars(workers).values() if isinstance(value, ByName)], ids=str
)
def test_what_is_sent_by_name_is_there(function: ByName) -> None:
    found = getattr(import_module(function.module), function.name)
    assert callable(found)
    assert found.__module__ == function.module
