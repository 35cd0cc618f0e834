"""The same task has the same answer in every process, to the byte: texts hash otherwise in each."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAN = """
import json
from ditplan import plan
found = plan("{model}", "{cluster}")
answer = found.to_json()
del answer["search_s"]
print(json.dumps(answer), found.plan.model_dump_json(), found.found.to_plan(1).model_dump_json())
"""


def answer(model: str, cluster: str, seed: int) -> str:
    """The digest of all that planning says, in a process whose texts hash by a seed."""
    done = subprocess.run(
        [sys.executable, "-c", PLAN.format(model=model, cluster=cluster)],
        env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    return hashlib.sha256(done.stdout).hexdigest()


@pytest.mark.parametrize(
    ("model", "cluster"), [("flux-dev", "8xl20-pcie"), ("sd3", "2x8xl40-pcie-eth100")]
)
def test_hash_seeds_change_nothing(model: str, cluster: str) -> None:
    assert len({answer(model, cluster, seed) for seed in (0, 1)}) == 1
