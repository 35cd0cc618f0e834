"""Records on disk: saved whole or not at all, and refused in one line that says what to do."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ditplan.profiles import family, mesh, workload
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.model import ModelProfile, ModelSpec
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import Record, shortened, write_atomically
from ditplan.profiles.workload import Workload
from tests.unit.factories import a_cluster, a_plan, all_records

RECORDS: list[type[Record]] = [ExecutionPlan, ClusterProfile, ModelSpec, ModelProfile]
each_record = pytest.mark.parametrize("record", all_records(), ids=lambda record: record.kind)


def refusal(kind: type[Record], path: Path) -> str:
    """The message with which loading is refused: of one line, beginning with the file."""
    with pytest.raises(InputError) as caught:
        kind.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def plan_with(tmp_path: Path, change: dict[str, Any]) -> Path:
    """A plan file in which the fields at the dotted places have been replaced."""
    data = json.loads(a_plan().model_dump_json())
    for place, value in change.items():
        target = data
        *parents, last = place.split(".")
        for parent in parents:
            target = target[int(parent) if isinstance(target, list) else parent]
        target[int(last) if isinstance(target, list) else last] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return path


@each_record
def test_a_saved_record_loads_as_itself(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert record.save(path) == path
    assert type(record).load(path) == record
    assert type(record).load(str(path)) == record


@given(
    st.builds(
        Workload,
        height=st.integers(1, 1 << 20),
        width=st.integers(1, 1 << 20),
        steps=st.integers(1, 1000),
        passes=st.integers(1, 2),
        text_tokens=st.integers(1, 4096),
        condition_tokens=st.integers(0, 4096),
        batch=st.integers(1, 64),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    ),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(min_value=5e-324, allow_infinity=False),
)
def test_values_survive_the_trip_through_json(shape: Workload, text: str, number: float) -> None:
    plan = a_plan()
    assert plan.measurement is not None
    measurement = plan.measurement.model_copy(update={"latency_s": number, "devices": text})
    plan = plan.model_copy(update={"workload": shape, "measurement": measurement})
    assert ExecutionPlan.from_json(plan.model_dump_json(indent=1), "plan.json") == plan


@each_record
def test_a_saved_record_is_readable_json_with_its_schema_version(
    record: Record, tmp_path: Path
) -> None:
    text = record.save(tmp_path / "record.json").read_text()
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 10
    assert json.loads(text)["schema_version"] == type(record).newest_schema
    assert json.loads(text)["needs_ditplan"] == type(record).since


@each_record
def test_a_record_can_not_be_changed(record: Record) -> None:
    with pytest.raises(ValidationError):
        record.schema_version = 2


@pytest.mark.parametrize("noun", [*RECORDS, family.ModelFamily, mesh.Mesh, workload.Workload])
def test_a_json_schema_describes_every_field(noun: type[Record]) -> None:
    schema = noun.model_json_schema()
    json.dumps(schema)
    assert schema["properties"].keys() == noun.model_fields.keys()
    assert schema["additionalProperties"] is False


def test_saving_replaces_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    a_cluster().save(path)
    assert ClusterProfile.load(path) == a_cluster()
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_saved_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = a_plan().save(tmp_path / "plan.json")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "x" * 100_000 + "\udcff")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "plan.json"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"plan.json: can't be written: File too large"):
            write_atomically(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(InputError, match=r"plan.json: can't be written: .* not a regular file"):
        a_plan().save(tmp_path / "plan.json")
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_device_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        a_plan().save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written: File name too long"):
        a_plan().save(tmp_path / ("x" * 300 + ".json"))
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the folder {tmp_path}/none doesn't exist; make it"):
        a_plan().save(tmp_path / "none/plan.json")


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.kind)
def test_a_missing_file_is_refused_with_what_makes_one(kind: type[Record], tmp_path: Path) -> None:
    message = refusal(kind, tmp_path / "none.json")
    assert f"no such file; expected a {kind.kind} made with `{kind.made_by}`" in message


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "this is a folder; expected a plan" in refusal(ExecutionPlan, tmp_path)


def test_a_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "can't be read as a plan" in refusal(ExecutionPlan, tmp_path / "file/plan.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe{}")
    assert "can't be read as a plan" in refusal(ExecutionPlan, tmp_path / "plan.json")


@each_record
def test_a_record_cut_off_anywhere_is_refused_as_cut_off(record: Record) -> None:
    text = record.model_dump_json(indent=1)
    for end in range(len(text)):
        with pytest.raises(InputError) as caught:
            type(record).from_json(text[:end], "r.json")
        message = str(caught.value)
        assert message.startswith("r.json: line "), (end, message)
        assert f"this {record.kind} is cut off (" in message, (end, message)
        assert message.endswith(f"; make it again with `{record.made_by}`"), (end, message)
        assert "\n" not in message


@pytest.mark.parametrize("text", ["hello", "{'mesh': 1}", '{"a": 1 "b": 2}', "{}{}", "---\na: 1\n"])
def test_other_text_is_refused_as_no_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    message = refusal(ExecutionPlan, path)
    assert "this plan is not JSON" in message
    assert "line 1, column " in message
    assert message.endswith("make it again with `ditplan tune`")


@pytest.mark.parametrize(("text", "what"), [("[]", "list"), ("1", "int"), ("null", "NoneType")])
def test_json_that_is_no_object_is_refused(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert f"a plan is a JSON object, this is a {what}" in refusal(ExecutionPlan, path)


@pytest.mark.parametrize("version", [3, 99, 0, -1, "1", 1.5, None, [1], "1\n2"])
def test_another_schema_is_refused_with_both_versions(version: object, tmp_path: Path) -> None:
    message = refusal(ExecutionPlan, plan_with(tmp_path, {"schema_version": version}))
    assert f"field schema_version: this plan has schema {version!r}, this ditplan" in message
    assert "reads up to 2; upgrade ditplan or make it again with `ditplan tune`" in message


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        ("0.12.0", "upgrade ditplan to 0.12.0 or later or"),
        (None, "upgrade ditplan or"),
        ("soon", "upgrade ditplan or"),
        (3, "upgrade ditplan or"),
    ],
)
def test_a_newer_schema_says_which_version_it_needs(
    needed: object, words: str, tmp_path: Path
) -> None:
    path = plan_with(tmp_path, {"schema_version": 3, "needs_ditplan": needed})
    assert words in refusal(ExecutionPlan, path)


def test_a_newer_schema_is_told_before_the_fields_it_brought(tmp_path: Path) -> None:
    path = plan_with(tmp_path, {"schema_version": 3, "brand_new": 1, "mesh": "other"})
    assert "has schema 3" in refusal(ExecutionPlan, path)


WRONG = [
    ({"brand_new": 1}, "brand_new", "Extra inputs are not permitted (given: 1)"),
    (
        {"configuration.mesh.tp": 2},
        "configuration.mesh.tp",
        "Extra inputs are not permitted (given: 2)",
    ),
    ({"workload.height": "tall"}, "workload.height", "valid integer"),
    ({"workload.height": 0}, "workload.height", "greater than 0 pixels (given: 0)"),
    ({"workload.dtype": "int4"}, "workload.dtype", "'float32', 'bfloat16' or 'float16'"),
    ({"model.transformers": []}, "model.transformers", "at least 1 item"),
    ({"model.transformers.0.config_hash": 7}, "model.transformers.0.config_hash", "valid string"),
    ({"configuration.placement": "0123"}, "configuration.placement", "valid tuple"),
    ({"configuration.placement.1": -1}, "configuration.placement.1", "greater than or equal to 0"),
    ({"configuration.mode": "fast"}, "configuration.mode", "(given: 'fast')"),
    ({"quality": None}, "quality", "(given: None)"),
    ({"prediction.latency_s": 0}, "prediction.latency_s", "greater than 0"),
    ({"prediction.interval_s": [1]}, "prediction.interval_s.1", "required"),
    ({"prediction.parts.blocks": float("nan")}, "prediction.parts.blocks", "finite number"),
    ({"runner_ups.0.reason": ["a"] * 99}, "runner_ups.0.reason", "...)"),
]


@pytest.mark.parametrize(("change", "field", "fault"), WRONG)
def test_a_wrong_field_is_named_with_what_is_allowed(
    change: dict[str, Any], field: str, fault: str, tmp_path: Path
) -> None:
    message = refusal(ExecutionPlan, plan_with(tmp_path, change))
    assert f": field {field}: " in message
    assert fault in message
    assert message.endswith("; correct it or make it again with `ditplan tune`")


@each_record
def test_each_missing_field_is_named(record: Record, tmp_path: Path) -> None:
    needed = [name for name, field in type(record).model_fields.items() if field.is_required()]
    path = tmp_path / "record.json"
    for name in needed:
        data = json.loads(record.model_dump_json())
        del data[name]
        path.write_text(json.dumps(data))
        assert f": field {name}: Field required; correct it or make it again with" in refusal(
            type(record), path
        )


def test_several_wrong_fields_are_counted(tmp_path: Path) -> None:
    path = plan_with(tmp_path, {"configuration.mesh.tp": 2, "backend": 1, "x": 1})
    assert "; and 2 more; correct it" in refusal(ExecutionPlan, path)


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner, max_size=5)))
def test_a_value_in_a_message_is_short_and_on_one_line(value: object) -> None:
    assert len(shortened(value)) <= 80
    assert "\n" not in shortened(value)
