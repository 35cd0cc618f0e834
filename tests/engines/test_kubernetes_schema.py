"""What `export` writes for Kubernetes, against its own schema: `make engines-test`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ditplan.exporting.export import export
from ditplan.profiles.mesh import Mesh
from tests.unit.test_export import located, planned

LIBRARY = Path(__file__).parents[2] / ".engines" / "kubernetes"
VERSION = "1.37"
CHECK = f"""
import json, sys
sys.path.insert(0, {str(LIBRARY)!r})
import kubernetes_validate
for document in json.load(sys.stdin):
    kubernetes_validate.validate(document, {VERSION!r}, strict=True)
"""

pytestmark = pytest.mark.engines


def checked(documents: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """What the strict schema says of documents; the library is for another process alone."""
    return subprocess.run(
        [sys.executable, "-I", "-c", CHECK],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=False,
    )


def documents_of(to: str) -> list[dict[str, Any]]:
    """A plan on two hosts in documents that Kubernetes itself knows: of a JobSet its Jobs."""
    plan = located(planned(Mesh(ulysses=4)), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    found = [json.loads(part) for part in export(plan, to, "p").text.split("---\n")[1:]]
    if to == "kubernetes":
        return found
    jobs = found[0]["spec"]["replicatedJobs"]
    return [{"apiVersion": "batch/v1", "kind": "Job", **job["template"]} for job in jobs]


@pytest.mark.parametrize("to", ["kubernetes", "jobset"])
def test_the_schema_takes_what_is_exported(to: str) -> None:
    done = checked(documents_of(to))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_field_that_there_is_not_is_noticed() -> None:
    documents = documents_of("kubernetes")
    documents[1]["spec"]["completion"] = 2
    done = checked(documents)
    assert done.returncode != 0
    assert "completion" in done.stderr
