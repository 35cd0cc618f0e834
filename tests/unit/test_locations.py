"""Where a plan's ranks sit, and which of a job's ranks they are."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ditplan.profiles.cluster import Host
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host as Machine
from ditplan.profiles.host_choice import HostChoice
from ditplan.profiles.job_seats import on_hosts, seated, seats_in_job
from ditplan.profiles.locations import Location, locations_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.factories import a_plan
from tests.unit.planner_factories import a_cluster, a_device

PLACES = [("n1", 0), ("n1", 3), ("n2", 1), ("n2", 2)]


def at(places: Sequence[tuple[str, int]]) -> tuple[Location, ...]:
    """Ranks on these devices of these hosts, in order."""
    return tuple(
        Location(rank=rank, host=host, device=device) for rank, (host, device) in enumerate(places)
    )


def on_four_of_eight() -> ExecutionPlan:
    """A plan of four ranks of a cluster of two hosts with four devices each."""
    ranks = (0, 6, 3, 5)
    plan = a_plan()
    return plan.model_copy(
        update={
            "configuration": replace(plan.configuration, placement=ranks),
            "locations": locations_of(a_cluster(hosts=2, devices=4), ranks),
        }
    )


@given(st.permutations(PLACES), st.permutations(PLACES))
def test_each_rank_of_a_plan_finds_its_device_whatever_the_order(
    planned: list[tuple[str, int]], started: list[tuple[str, int]]
) -> None:
    seats = seats_in_job(at(planned), at(started), by_number=True)
    assert [started[seats[rank]] for rank in range(4)] == planned


@given(st.permutations(PLACES))
def test_names_of_hosts_go_with_and_without_their_domains(started: list[tuple[str, int]]) -> None:
    full = [(f"{host.upper()}.cluster.example", device) for host, device in started]
    seats = seats_in_job(at(PLACES), at(full), by_number=True)
    assert [started[seats[rank]] for rank in range(4)] == PLACES


@given(st.permutations(PLACES))
def test_hosts_of_other_names_stand_in_by_their_devices(started: list[tuple[str, int]]) -> None:
    renamed = [(f"pod-{host}-x", device) for host, device in started]
    seats = seats_in_job(at(PLACES), at(renamed), by_number=True)
    assert [started[seats[rank]] for rank in range(4)] == PLACES


def test_a_host_that_is_there_by_name_is_not_given_to_another() -> None:
    planned = [("old", 0), ("n1", 0)]
    started = [("n1", 0), ("new", 0)]
    assert seats_in_job(at(planned), at(started), by_number=True) == {0: 1, 1: 0}


def test_cpu_ranks_of_a_host_are_taken_in_turn() -> None:
    planned, started = [("n1", 1), ("n1", 3), ("n2", 0)], [("n2", 5), ("n1", 0), ("n1", 1)]
    assert seats_in_job(at(planned), at(started), by_number=False) == {0: 1, 1: 2, 2: 0}


@pytest.mark.parametrize(
    ("started", "words"),
    [
        (
            [("n1", 0), ("n1", 1), ("n2", 1), ("n2", 2)],
            "2 rank(s) on n1, devices 0, 3; this job has on devices 0, 1 of n1: start as many "
            "there, with CUDA_VISIBLE_DEVICES=0,3",
        ),
        ([("n1", 0), ("n1", 3), ("n1", 1), ("n1", 2)], "this job has on devices 0, 1, 2, 3 of n1"),
        ([("n1", 0), ("n1", 3), ("n2", 1), ("n2", 1)], "this job has on devices 1, 1 of n2"),
        ([("n1", 0), ("n1", 3), ("n2", 1), ("n3", 2)], "this job has on devices 1 of n2"),
    ],
)
def test_a_job_on_other_devices_is_refused_with_both(
    started: list[tuple[str, int]], words: str
) -> None:
    with pytest.raises(InputError) as refused:
        seats_in_job(at(PLACES), at(started), by_number=True)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_clusters_ranks_have_the_numbers_of_its_devices() -> None:
    hosts = (
        Host(name="a", devices=(a_device(),) * 2, numbers=(5, 2)),
        Host(name="b", devices=(a_device(),) * 2),
    )
    cluster = a_cluster(hosts=2, devices=2).model_copy(update={"hosts": hosts})
    found = [(one.rank, one.host, one.device) for one in locations_of(cluster, (3, 0, 1))]
    assert found == [(0, "a", 5), (1, "a", 2), (3, "b", 1)]


def test_numbers_are_kept_in_a_clusters_file_where_there_are_some() -> None:
    cluster = a_cluster(hosts=2, devices=2)
    assert '"numbers"' not in cluster.text()
    host = Host(name="h0", devices=(a_device(),) * 2, numbers=(5, 2))
    numbered = cluster.model_copy(update={"hosts": (host, cluster.hosts[1])})
    assert type(cluster).from_json(numbered.text(), "c.json") == numbered


@pytest.mark.parametrize("numbers", [(0,), (1, 1), (0, 1, 2)])
def test_a_hosts_numbers_are_one_for_each_device(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="2 devices need as many different numbers"):
        Host(name="a", devices=(a_device(),) * 2, numbers=numbers)


def test_a_plan_of_some_ranks_is_saved_and_loaded() -> None:
    plan = on_four_of_eight()
    assert ExecutionPlan.from_json(plan.text(), "plan.json") == plan
    assert "ranks 0+3+5+6" in str(plan.configuration)
    assert plan.configuration.key != a_plan().configuration.key


def test_ranks_beyond_the_mesh_must_be_located() -> None:
    data: dict[str, Any] = json.loads(on_four_of_eight().text())
    with pytest.raises(InputError, match=r"once each, it is .* other ranks need `locations`"):
        ExecutionPlan.from_json(json.dumps(data | {"locations": []}), "plan.json")
    with pytest.raises(InputError, match=r"must name the ranks 0, 3, 5, 6 .* name 0, 3, 5"):
        ExecutionPlan.from_json(
            json.dumps(data | {"locations": data["locations"][:3]}), "plan.json"
        )
    twice = [one | {"host": "h0", "device": 0} for one in data["locations"]]
    with pytest.raises(InputError, match="4 ranks are located on device 0 of h0; one can be"):
        ExecutionPlan.from_json(json.dumps(data | {"locations": twice}), "plan.json")


def test_a_seated_plan_has_each_coordinate_on_the_same_device() -> None:
    plan = on_four_of_eight()
    names = tuple(f"GPU {rank}" for rank in plan.configuration.ranks)
    fingerprint = plan.fingerprint.model_copy(update={"devices": names})
    plan = plan.model_copy(update={"fingerprint": fingerprint})
    found = seated(plan, {0: 2, 3: 0, 5: 3, 6: 1})
    assert found.configuration.placement == (2, 1, 0, 3)
    assert found.fingerprint.devices == ("GPU 3", "GPU 6", "GPU 0", "GPU 5")
    before = {one.rank: (one.host, one.device) for one in plan.locations}
    after = {one.rank: (one.host, one.device) for one in found.locations}
    for old, new in zip(plan.configuration.placement, found.configuration.placement, strict=True):
        assert before[old] == after[new]
    assert found.why_unsound() is None


def test_a_configuration_names_each_rank_once() -> None:
    wrong = Configuration(Mesh(ulysses=3), (4, 9, 4))
    assert "3 ranks for mesh ulysses3 once each" in str(wrong.why_unsound())
    assert Configuration(Mesh(ulysses=3), (4, 9, 2)).why_unsound() is None


def test_a_plan_is_started_on_its_own_devices_of_the_hosts_that_are_given() -> None:
    plan = on_four_of_eight()
    hosts = HostChoice.of([Machine("h1", user="me"), Machine("h0", slots=4), Machine("other")])
    found, chosen = on_hosts(plan, hosts)
    assert [(str(one.host), one.devices) for one in chosen.hosts] == [
        ("h0 slots=2", (0, 3)),
        ("me@h1 slots=2", (1, 2)),
    ]
    # ranks 0, 3, 5, 6 of the cluster are started as 0, 1, 2, 3
    assert plan.configuration.placement == (0, 6, 3, 5)
    assert found.configuration.placement == (0, 3, 1, 2)
    assert found.why_unsound() is None


def test_a_plan_for_more_than_hosts_give_takes_their_devices_in_order() -> None:
    plan = on_four_of_eight()
    for hosts in (
        HostChoice.of([Machine("localhost")]),
        HostChoice.of([Machine("h0", slots=2), Machine("h1", slots=2)]),
    ):
        found, chosen = on_hosts(plan, hosts)
        assert chosen == hosts
        assert found.configuration.placement == (0, 3, 1, 2)
