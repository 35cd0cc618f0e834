"""Numbers of records have bounds, all missing fields are named at once, units are said."""

import json
from typing import Any

import pytest

from ditplan.profiles.bounds import unit_of
from ditplan.profiles.catalog import cluster_names, find_cluster
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import TaylorSeer
from ditplan.profiles.errors import LONGEST_MESSAGE, InputError
from ditplan.profiles.hosts import parse_hosts
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import Record
from tests.unit.factories import a_cluster, a_model_profile, a_model_spec, a_plan


def refusal(record: Record, change: dict[str, Any]) -> str:
    """The message with which a record with other values at dotted places is refused; `...` leaves
    the field out.
    """
    data = json.loads(record.model_dump_json())
    for place, value in change.items():
        target = data
        *parents, last = place.split(".")
        for parent in parents:
            target = target[int(parent) if isinstance(target, list) else parent]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    with pytest.raises(InputError) as refused:
        type(record).from_json(json.dumps(data), "file.json")
    message = str(refused.value)
    assert len(message) <= LONGEST_MESSAGE
    return message


DEVICE, LINK, TABLE = "hosts.0.devices.0", "links.0", "collectives.0"
STAGES = {"blocks_per_stage": [1, 10**9], "patches": 4, "warmup_steps": 1}
OUT_OF_BOUNDS = [
    (a_cluster(), f"{LINK}.bytes_per_s", 22.7, "or equal to 1000000 bytes/s (given: 22.7)"),
    (a_cluster(), f"{LINK}.bytes_per_s", 1e14, "bytes/s (given: 100000000000000.0)"),
    (a_cluster(), f"{LINK}.latency_s", 11, "less than or equal to 10 seconds (given: 11)"),
    (a_cluster(), f"{LINK}.latency_s", -1e-9, "greater than or equal to 0 seconds"),
    (a_cluster(), f"{DEVICE}.memory_bytes", 80, "or equal to 1000000 bytes (given: 80)"),
    (a_cluster(), f"{DEVICE}.half_flops_per_s", 989, "or equal to 100000000 FLOP/s (given: 989)"),
    (a_cluster(), f"{DEVICE}.single_flops_per_s", 1e19, "FLOP/s (given: 1e+19)"),
    (a_cluster(), f"{DEVICE}.memory_bytes_per_s", 3350, "or equal to 10000000 bytes/s"),
    (a_cluster(), f"{TABLE}.size", 10**12, "less than or equal to 65536"),
    (a_cluster(), f"{TABLE}.groups", 10**12, "less than or equal to 65536"),
    (a_plan(), "workload.height", 10**15, "less than or equal to 1048576 pixels"),
    (a_plan(), "workload.steps", 10**8, "less than or equal to 100000 (given: 100000000)"),
    (a_plan(), "workload.frames", 10**9, "less than or equal to 100000"),
    (a_plan(), "workload.batch", 10**9, "less than or equal to 65536"),
    (a_plan(), "workload.passes", 10**9, "less than or equal to 16"),
    (a_plan(), "configuration.mesh.ring", 10**9, "less than or equal to 65536"),
    (
        a_plan(),
        "configuration.pipefusion",
        STAGES,
        "pipefusion.blocks_per_stage.1: Input should be less than",
    ),
    (a_plan(), "configuration.step_cache", {"interval": 10**9}, "less than or equal to 100000"),
    (a_model_spec(), "blocks.0.count", 10**9, "less than or equal to 1024"),
    (a_model_spec(), "blocks.0.image_flops", 1e300, "FLOP (given: 1e+300)"),
    (a_model_spec(), "blocks.0.attentions.0.heads", 10**9, "less than or equal to 65536"),
    (a_model_spec(), "blocks.0.attentions.0.segments", ["sound"], "segments.0: String should"),
    (a_model_spec(), "outside_parameters", 10**17, "less than or equal to 100000000000000"),
    (a_model_profile(), "points.0.median_s", 1e300, "less than or equal to 1000000 seconds"),
]


@pytest.mark.parametrize(("record", "field", "value", "words"), OUT_OF_BOUNDS)
def test_numbers_that_nothing_has_are_refused_with_bound_and_unit(
    record: Record, field: str, value: object, words: str
) -> None:
    message = refusal(record, {field: value})
    assert f"file.json: field {field}" in message
    assert words in message


def test_bounds_hold_all_that_is_shipped_and_a_slow_network() -> None:
    for name in cluster_names():
        find_cluster(name)
    data = json.loads(a_cluster().model_dump_json())
    data["links"][0] |= {"latency_s": 0.3, "bytes_per_s": 1.25e6}
    assert ClusterProfile.model_validate(data).links[0].bytes_per_s == 1.25e6


def test_all_missing_fields_of_a_cluster_are_named_at_once() -> None:
    message = refusal(
        a_cluster(),
        {
            f"{DEVICE}.half_flops_per_s": ...,
            f"{DEVICE}.source": ...,
            f"{LINK}.kind": ...,
            "name": ...,
        },
    )
    assert message == (
        f"file.json: fields name, {DEVICE}.half_flops_per_s, .source, {LINK}.kind: Field required; "
        "correct it or make it again with `ditplan profile`"
    )


def test_what_every_item_of_a_list_lacks_is_named_once() -> None:
    message = refusal(a_cluster(), {f"hosts.0.devices.{i}.memory_bytes": ... for i in (0, 1)})
    assert f"fields {DEVICE}.memory_bytes and 1 more: Field required" in message


def test_fields_that_are_missing_and_one_that_is_wrong_are_named_together() -> None:
    message = refusal(a_cluster(), {f"{LINK}.latency_s": ..., f"{LINK}.bytes_per_s": "fast"})
    assert f"field {LINK}.latency_s: Field required; field {LINK}.bytes_per_s: Input" in message
    assert "(given: 'fast')" in message


def test_a_message_about_very_many_faults_is_short_and_keeps_its_remedy() -> None:
    device: dict[str, object] = {"x" * 100: 1}
    data = {"hosts": [{"name": "h", "devices": [device] * 100}], "links": [{}] * 100}
    with pytest.raises(InputError) as refused:
        ClusterProfile.from_json(json.dumps(data), "c.json")
    message = str(refused.value)
    assert len(message) <= LONGEST_MESSAGE
    assert message.startswith("c.json: fields name, ")
    assert message.endswith("or make it again with `ditplan profile`")


def test_two_hosts_of_one_name_are_refused() -> None:
    hosts = json.loads(a_cluster().model_dump_json())["hosts"]
    message = refusal(a_cluster(), {"hosts": hosts * 2})
    assert "two hosts are named 'node'; give each its own name" in message


def test_a_hosts_file_names_no_more_slots_than_a_cluster_has() -> None:
    lines = "\n".join(f"n{i} slots=4096" for i in range(17))
    with pytest.raises(InputError, match="names 69632 slots; 65536 are the most there can be"):
        parse_hosts(lines, "hosts.txt")
    assert len(parse_hosts(lines.rpartition("\n")[0], "hosts.txt")) == 16


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("full_steps", [1, 3, 10])
def test_steps_that_a_cache_computes_are_counted_without_going_through_them(
    interval: int, full_steps: int
) -> None:
    cache = TaylorSeer(interval=interval, full_steps=full_steps)
    for steps in range(60):
        assert cache.computed_steps(steps) == sum(cache.computes(step) for step in range(steps))


def test_units_follow_from_names() -> None:
    fields = ("half_flops_per_s", "bytes_per_s", "memory_bytes", "latency_s", "text_flops", "steps")
    assert list(map(unit_of, fields)) == ["FLOP/s", "bytes/s", "bytes", "seconds", "FLOP", ""]


def test_a_plan_of_the_largest_numbers_costs_little(tmp_path: Any) -> None:
    plan = a_plan()
    steps = plan.workload.model_copy(update={"steps": 100_000})
    again = ExecutionPlan.load(
        plan.model_copy(update={"workload": steps}).save(tmp_path / "p.json")
    )
    assert again.workload.steps == 100_000
