"""Which rank sits on which device of which host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost, choose_hosts
from ditplan.runtime.ranks.seating import Equipment, devices_of, kind_of_devices, seated

GPUS = Equipment(gpus=4, cores=64)
NONE = Equipment(gpus=0, cores=3)


@pytest.mark.parametrize(
    ("host", "equipment", "kind", "devices"),
    [
        (ChosenHost(Host("n")), GPUS, "cuda", "cuda:0 cuda:1 cuda:2 cuda:3"),
        (ChosenHost(Host("n", slots=2)), GPUS, "cuda", "cuda:0 cuda:1"),
        (ChosenHost(Host("n", slots=2), (1, 3)), GPUS, "cuda", "cuda:1 cuda:3"),
        (ChosenHost(Host("n")), NONE, "cpu", "cpu cpu cpu"),
        (ChosenHost(Host("n", slots=5)), NONE, "cpu", "cpu cpu cpu cpu cpu"),
        (ChosenHost(Host("n", slots=1), (7,)), NONE, "cpu", "cpu"),
    ],
)
def test_a_host_s_devices_are_the_chosen_ones_else_its_slots_else_all(
    host: ChosenHost, equipment: Equipment, kind: DeviceKind, devices: str
) -> None:
    assert devices_of(host, "n", equipment, kind) == tuple(devices.split())


def test_more_slots_than_gpus_and_gpus_that_there_aren_t_are_refused() -> None:
    with pytest.raises(InputError, match="n: slots=8 are more than the 4 GPUs that CUDA may see"):
        devices_of(ChosenHost(Host("n", slots=8)), "n", GPUS, "cuda")
    with pytest.raises(InputError, match="n: has no GPU 4; those that CUDA may see there are 0 to"):
        devices_of(ChosenHost(Host("n", slots=1), (4,)), "n", GPUS, "cuda")


def test_hosts_are_all_with_gpus_or_all_without() -> None:
    assert kind_of_devices({"a": GPUS, "b": GPUS}) == "cuda"
    assert kind_of_devices({"a": NONE, "b": NONE}) == "cpu"
    with pytest.raises(InputError, match="b has GPUs and a has none that CUDA may see"):
        kind_of_devices({"a": NONE, "b": GPUS})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_ranks_fill_hosts_in_their_order(slots: list[int], data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, sum(slots)))
    devices = {f"n{h}": [f"cuda:{i}" for i in range(count)] for h, count in enumerate(slots)}
    all_of_them = [(host, device) for host, own in devices.items() for device in own]
    found = seated(devices, ranks)
    assert list(found) == list(devices)
    where = {rank: (host, device) for host, own in found.items() for rank, device in own.items()}
    assert [where[rank] for rank in range(ranks)] == all_of_them[:ranks]
    assert len(where) == ranks


def test_too_many_ranks_and_none_are_refused() -> None:
    hosts = choose_hosts([Host("a", slots=2), Host("b", slots=4)], include="a@b:1")
    devices = {one.host.name: devices_of(one, one.host.name, GPUS, "cuda") for one in hosts}
    assert seated(devices, 3) == {"a": {0: "cuda:0", 1: "cuda:1"}, "b": {2: "cuda:1"}}
    with pytest.raises(
        InputError, match=r"4 ranks don't fit the 3 slots of the hosts \(a slots=2, b slots=1\)"
    ):
        seated(devices, 4)
    with pytest.raises(InputError, match="0 ranks can't be started"):
        seated(devices, 0)
