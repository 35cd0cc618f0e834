"""Files that earlier versions of ditplan wrote are read as what they said."""

import json
from pathlib import Path
from typing import Any

import pytest

from ditplan.profiles.book import PlanBook
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import placement_of
from ditplan.profiles.model import ModelProfile
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import NEEDS, Record
from ditplan.study import Study

HERE = Path(__file__).parent
SAVED = HERE / "schema_1"
KEPT: dict[str, type[Record]] = {
    "plan.json": ExecutionPlan,
    "book.json": PlanBook,
    "plan.study/cluster.json": ClusterProfile,
    "plan.study/wan2.1-1.3b-7f6002e1b8c57c34.json": ModelProfile,
}
"""Files of each schema that there was lie in a folder of its own."""

OF_EACH_SCHEMA = [
    (name, kind, schema)
    for name, kind in KEPT.items()
    for schema in range(1, kind.newest_schema + 1)
]
PLAN: dict[str, Any] = json.loads((SAVED / "plan.json").read_text())
BOOK: dict[str, Any] = json.loads((SAVED / "book.json").read_text())


@pytest.mark.parametrize(("name", "kind", "schema"), OF_EACH_SCHEMA)
def test_a_file_of_every_schema_is_kept_and_read(
    name: str, kind: type[Record], schema: int, tmp_path: Path
) -> None:
    path = HERE / f"schema_{schema}" / name
    assert json.loads(path.read_text())["schema_version"] == schema
    found = kind.load(path)
    assert kind.load(found.save(tmp_path / path.name)) == found


@pytest.mark.parametrize("name", KEPT)
def test_a_newer_schema_is_refused_with_the_version_that_reads_it(
    name: str, tmp_path: Path
) -> None:
    kind = KEPT[name]
    saved = json.loads((HERE / f"schema_{kind.newest_schema}" / name).read_text())
    newer = saved | {"schema_version": kind.newest_schema + 1, NEEDS: "0.9.0", "new": 1}
    path = tmp_path / Path(name).name
    path.write_text(json.dumps(newer))
    with pytest.raises(InputError, match=r"upgrade ditplan to 0\.9\.0 or later") as refused:
        kind.load(path)
    assert path.name in str(refused.value)


def test_a_study_of_schema_1_is_read() -> None:
    found = Study(SAVED / "plan.study").contents()
    assert found["cluster"]
    assert found["profiles"][0]["points"] > 0
    assert [run["state"] for run in found["runs"]].count("complete") > 0


def says_what(configuration: Configuration, saved: dict[str, Any]) -> bool:
    """Whether it has what schema 1 said of a plan or a runner-up."""
    mesh = configuration.mesh.model_dump() == saved["mesh"]
    placement = list(configuration.placement) == saved["placement"]
    part = configuration.pipefusion
    stages = (part.model_dump(mode="json") if part else None) == saved["pipefusion"]
    follows = configuration.placement == placement_of(configuration.mesh, configuration.order)
    return mesh and placement and stages and follows


def test_a_plan_of_schema_1_is_read() -> None:
    plan = ExecutionPlan.load(SAVED / "plan.json")
    assert says_what(plan.configuration, PLAN)
    execution = PLAN["execution"]
    found = plan.configuration
    assert [found.mode, found.attention, found.ring, found.weights] == [
        execution[name] for name in ("mode", "attention", "ring", "weights")
    ]
    assert plan.fallback == execution["fallback"]
    assert plan.prediction is not None
    assert plan.prediction.latency_s == PLAN["prediction"]["latency_s"]
    for other, saved in zip(plan.runner_ups, PLAN["runner_ups"], strict=True):
        assert says_what(other.configuration, saved)
        assert other.configuration.mode == saved["mode"]
        assert (other.predicted_s, other.reason) == (saved["predicted_s"], saved["reason"])


def test_it_is_saved_as_schema_2(tmp_path: Path) -> None:
    plan = ExecutionPlan.load(SAVED / "plan.json")
    again = plan.save(tmp_path / "plan.json")
    assert json.loads(again.read_text())["schema_version"] == 2
    assert ExecutionPlan.load(again) == plan


def test_a_book_of_schema_1_is_read() -> None:
    book = PlanBook.load(SAVED / "book.json")
    for entry, saved in zip(book.entries, BOOK["entries"], strict=True):
        assert says_what(entry.plan.configuration, saved["plan"])


def test_a_ring_both_ways_has_its_new_name() -> None:
    saved = PLAN | {"execution": PLAN["execution"] | {"ring": "bidirectional"}}
    plan = ExecutionPlan.from_json(json.dumps(saved), "plan.json")
    assert plan.configuration.ring == "bidirectional"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": {"ulysses": 0}}, "mesh"),
        ({"mesh": None}, "mesh"),
        ({"placement": [0, 1]}, "once each"),
        ({"placement": 7}, "placement"),
        ({"execution": {"mode": "fast"}}, "mode"),
        ({"execution": {"offload": "cpu"}}, "offload"),
        ({"execution": []}, "execution"),
        ({"runner_ups": [3]}, "runner_ups"),
        ({"schema_version": 3}, "schema 3"),
    ],
)
def test_what_is_wrong_in_schema_1_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ExecutionPlan.from_json(json.dumps(PLAN | changes), "plan.json")
