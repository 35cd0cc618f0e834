"""What a command does with ranks, without what only they need."""

import subprocess
import sys
from importlib import import_module

import pytest

from ditplan.runtime import workers
from ditplan.runtime.ranks.by_name import ByName

HEAVY = ("diffusers", "transformers", "peft", "torch._dynamo", "torch._inductor", "optuna")


def test_a_command_that_sends_work_to_ranks_imports_only_torch() -> None:
    asked = f"import sys, ditplan.runtime.workers; print(*({set(HEAVY)} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=300
    )
    assert found.stdout.split() == []


@pytest.mark.parametrize(
    "function", [value for value in vars(workers).values() if isinstance(value, ByName)], ids=str
)
def test_what_is_sent_by_name_is_there(function: ByName) -> None:
    found = getattr(import_module(function.module), function.name)
    assert callable(found)
    assert found.__module__ == function.module
