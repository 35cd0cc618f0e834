"""What a job imports and builds in order to read a plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ditplan.profiles.family import known_family, load_families

PLAN = Path(__file__).parent / "schema_2" / "plan.json"
SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
import ditplan
alone = set(sys.modules) - before
ditplan.load(sys.argv[1])
models = [
    one
    for name, module in sys.modules.items() if name.startswith("ditplan.")
    for one in vars(module).values() if hasattr(one, "__pydantic_complete__")
]
json.dump({
    "alone": sorted(alone),
    "read": sorted(set(sys.modules) - before - alone),
    "built": sorted({one.__name__ for one in models if one.__pydantic_complete__}),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def added() -> dict[str, list[str]]:
    """What a process that has imported torch has more of, by what it was added for."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, PLAN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_importing_ditplan_imports_nothing_else(added: dict[str, list[str]]) -> None:
    assert added["alone"] == ["ditplan"]


def test_reading_a_plan_imports_what_plans_consist_of_alone(added: dict[str, list[str]]) -> None:
    ours = {name for name in added["read"] if name.startswith("ditplan.")}
    parts = "bounds configuration errors evidence family files fingerprint limits locations mesh"
    parts += " model plan plan_schema_1 record splits workload"
    assert ours == {"ditplan.profiles", *(f"ditplan.profiles.{name}" for name in parts.split())}
    others = {name.partition(".")[0] for name in added["read"]} - {"ditplan"}
    installed = {
        name for name in others - sys.stdlib_module_names if not name.startswith("_sysconfigdata")
    }
    assert installed <= {
        "pydantic",
        "pydantic_core",
        "annotated_types",
        "typing_extensions",
        "typing_inspection",
    }


def test_reading_a_plan_builds_the_plan_and_the_one_family_it_is_of(
    added: dict[str, list[str]],
) -> None:
    assert added["built"] == ["ExecutionPlan", "ModelFamily"]


def test_each_family_is_found_by_the_class_it_describes() -> None:
    families = load_families()
    assert families
    for transformer_class, family in families.items():
        assert known_family(transformer_class) == family
    assert known_family("SD3Transformer") is None
