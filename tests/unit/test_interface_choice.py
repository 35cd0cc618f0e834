"""Which interface hosts talk over: against an enumeration of all, and this machine's own routes."""

import itertools
import re
import socket
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditplan.profiles.errors import ClusterError, InputError
from ditplan.runtime.ranks.interface_choice import (
    ChosenInterface,
    HostNetwork,
    Interface,
    addresses_to_reach,
    choose_interfaces,
)
from ditplan.runtime.ranks.reachability import addresses_of, interfaces, routes

LO = Interface("lo", ("127.0.0.1", "::1"), is_up=True, is_loopback=True)


def nic(name: str, *addresses: str, is_up: bool = True) -> Interface:
    """An interface that isn't loopback."""
    return Interface(name, addresses, is_up, is_loopback=False)


def route(host: HostNetwork, target: str, gateway: Interface | None) -> str | None:
    """What a kernel would say: itself, a neighbour in the same /24, or by the gateway."""
    own = [a for one in host.interfaces if one.is_up for a in one.addresses]
    if target in own:
        return target
    for address in own:
        if address.rpartition(".")[0] == target.rpartition(".")[0]:
            return address
    return gateway.addresses[0] if gateway and gateway.addresses else None


def with_routes(*hosts: HostNetwork) -> tuple[HostNetwork, ...]:
    """Hosts that know only the neighbours in their networks."""
    targets = addresses_to_reach(hosts)
    return tuple(
        replace(host, routes={target: route(host, target, None) for target in targets})
        for host in hosts
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[HostNetwork, ...]:
    """Hosts on a few networks, perhaps with a gateway; some share a namespace or an address."""
    hosts: list[HostNetwork] = []
    gateways: list[Interface | None] = []
    for number in range(draw(st.integers(2, 4))):
        if hosts and draw(st.integers(0, 5)) == 0:
            hosts.append(replace(hosts[-1], host=f"n{number}"))
            gateways.append(gateways[-1])
            continue
        cards = [
            nic(
                f"e{card}",
                *draw(
                    st.lists(
                        st.builds("10.0.{}.{}".format, st.integers(0, 2), st.integers(1, 4)),
                        max_size=2,
                        unique=True,
                    )
                ),
                is_up=draw(st.integers(0, 5)) > 0,
            )
            for card in range(draw(st.integers(0, 3)))
        ]
        reached = draw(st.sets(st.sampled_from([a for c in cards for a in c.addresses] or ["?"])))
        hosts.append(HostNetwork(f"n{number}", f"m{number}", (LO, *cards), frozenset(reached)))
        gateways.append(draw(st.sampled_from([None, *(c for c in cards if c.is_up)])))
    targets = addresses_to_reach(hosts)
    return tuple(
        replace(host, routes={target: route(host, target, gateway) for target in targets})
        for host, gateway in zip(hosts, gateways, strict=True)
    )


def holds(hosts: tuple[HostNetwork, ...], taken: tuple[Interface, ...]) -> bool:
    """Whether each host's packets to each other host's address leave by its own interface."""
    for (host, own), (other, target) in itertools.permutations(zip(hosts, taken, strict=True), 2):
        if host.namespace == other.namespace:
            if own.name != target.name:
                return False
            continue
        assert host.routes is not None
        source = host.routes[target.addresses[0]]
        if source == target.addresses[0] or source not in own.addresses:
            return False
    return True


@settings(max_examples=400)
@given(worlds())
def test_the_chosen_interfaces_are_the_best_of_all_that_lead_both_ways(
    hosts: tuple[HostNetwork, ...],
) -> None:
    if len({host.namespace for host in hosts}) == 1:
        found = choose_interfaces(hosts).interfaces
        assert found == (ChosenInterface("lo", "127.0.0.1"),) * len(hosts)
        return
    usable = [
        [one for one in host.interfaces if one != LO and one.is_up and one.addresses]
        for host in hosts
    ]
    # an address that two interfaces of a host have leaves open which of them is meant
    for host in hosts:
        own = [address for one in host.interfaces for address in one.addresses]
        if len({*own}) < len(own):
            return

    def named(taken: tuple[Interface, ...]) -> int:
        return sum(
            any(address in host.reached_at for address in one.addresses)
            for host, one in zip(hosts, taken, strict=True)
        )

    possible = [taken for taken in itertools.product(*usable) if holds(hosts, taken)]
    if not possible:
        with pytest.raises(ClusterError, match="no network interface by which all reach"):
            choose_interfaces(hosts)
        return
    best = max(map(named, possible))
    wanted = {
        tuple(ChosenInterface(one.name, one.addresses[0]) for one in taken)
        for taken in possible
        if named(taken) == best
    }
    assert choose_interfaces(hosts).interfaces in wanted


def test_a_name_that_leads_to_loopback_or_a_bridge_of_each_host_s_own_changes_nothing() -> None:
    bridge = nic("docker0", "172.17.0.1")
    hosts = with_routes(
        HostNetwork(
            "n1",
            "a",
            (LO, bridge, nic("eth0", "10.0.0.1")),
            frozenset({"127.0.1.1", "172.17.0.1"}),
        ),
        HostNetwork("n2", "b", (LO, bridge, nic("ens3", "10.0.0.2")), frozenset({"127.0.1.1"})),
    )
    assert choose_interfaces(hosts).interfaces == (
        ChosenInterface("eth0", "10.0.0.1"),
        ChosenInterface("ens3", "10.0.0.2"),
    )


def test_of_two_networks_the_one_is_taken_by_which_the_hosts_are_named() -> None:
    def host(number: int, reached: str) -> HostNetwork:
        cards = (nic("eth0", f"10.0.0.{number}"), nic("ib0", f"10.0.1.{number}"))
        return HostNetwork(f"n{number}", f"m{number}", (LO, *cards), frozenset({reached}))

    by_ib = with_routes(host(1, "10.0.1.1"), host(2, "10.0.1.2"))
    assert [one.name for one in choose_interfaces(by_ib).interfaces] == ["ib0", "ib0"]
    by_eth = with_routes(host(1, "10.0.0.1"), host(2, "10.0.0.2"))
    assert [one.name for one in choose_interfaces(by_eth).interfaces] == ["eth0", "eth0"]
    assert [one.address for one in choose_interfaces(by_eth, "ib0").interfaces] == [
        "10.0.1.1",
        "10.0.1.2",
    ]


def test_an_ipv6_network_serves_where_there_is_no_other_and_its_link_local_addresses_never() -> (
    None
):
    hosts = tuple(
        HostNetwork(
            f"n{number}",
            f"m{number}",
            (
                LO,
                nic("eth0", f"fd00::{number}", f"fe80::{number}%eth0"),
                nic("eth1", f"fe80::1:{number}%eth1"),
            ),
            routes={f"fd00::{3 - number}": f"fd00::{number}"},
        )
        for number in (1, 2)
    )
    assert addresses_to_reach(hosts) == ("fd00::1", "fd00::2")
    assert [one.address for one in choose_interfaces(hosts).interfaces] == ["fd00::1", "fd00::2"]


N1 = HostNetwork("n1", "a", (LO, nic("eth0", "10.0.0.1"), nic("eth1", "10.0.1.1")))
N2 = HostNetwork(
    "n2", "b", (LO, nic("eth0", "10.0.0.2"), nic("eth1", is_up=False), nic("eth2", "10.0.2.2"))
)


@pytest.mark.parametrize(
    ("hosts", "name", "said"),
    [
        (
            (N1, N2),
            "eth2",
            "interface=eth2: n1 has no such interface; it has lo (127.0.0.1, ::1), ",
        ),
        ((N1, N2), "eth1", "on n2 it is eth1 (down); it must be up and have an address"),
        ((N1, N2), "lo", "lo (127.0.0.1, ::1) of n1 is for itself alone"),
        (
            (N1, replace(N1, host="n2", namespace="b")),
            "eth0",
            "n1 has the same address to n2's eth0 (10.0.0.1); name another interface",
        ),
        (
            (N1, replace(N2, interfaces=(nic("eth0", "10.0.9.2"),))),
            "eth0",
            "n1 has no route to n2's eth0 (10.0.9.2); name another interface",
        ),
    ],
)
def test_a_named_interface_must_be_there_on_each_host_and_be_reached(
    hosts: tuple[HostNetwork, ...], name: str, said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        choose_interfaces(with_routes(*hosts), name)


def test_a_named_interface_that_packets_don_t_leave_by_is_warned_of() -> None:
    # two cards in one network: the kernel sends everything by the first
    hosts = with_routes(
        HostNetwork("n1", "a", (LO, nic("eth0", "10.0.0.1"), nic("eth1", "10.0.0.11"))),
        HostNetwork("n2", "b", (LO, nic("eth1", "10.0.0.2"))),
    )
    choice = choose_interfaces(hosts, "eth1")
    assert [one.address for one in choice.interfaces] == ["10.0.0.11", "10.0.0.2"]
    assert choice.warnings == ("what n1 sends to n2's eth1 (10.0.0.2) leaves by eth0, not by eth1",)


def test_hosts_without_a_common_network_are_told_which_way_is_missing() -> None:
    apart = replace(N2, interfaces=(nic("eth0", "10.0.9.2"),))
    with pytest.raises(ClusterError, match=r"n2 has no route to n1's eth0 \(10\.0\.0\.1\)"):
        choose_interfaces(with_routes(N1, apart))
    with pytest.raises(
        ClusterError, match="n1 has no interface that others could reach; it has lo"
    ):
        choose_interfaces(with_routes(replace(N1, interfaces=(LO,)), N2))


def test_this_machine_s_interfaces_and_routes_are_those_of_its_kernel() -> None:
    found = interfaces()
    assert {one.name for one in found} <= {name for _, name in socket.if_nameindex()}
    (loopback,) = (one for one in found if one.is_loopback)
    assert loopback.address == "127.0.0.1"
    here = HostNetwork("here", "m", found)
    own = addresses_to_reach([here])
    # whatever is its own it reaches from there
    assert routes(own) == {address: address for address in own}
    assert routes(["127.0.0.1"]) == {"127.0.0.1": "127.0.0.1"}
    # of a network that is kept for examples and a prefix that nobody is given
    for far in routes(["192.0.2.77", "2001:db8::77"]).values():
        assert far is None or here.interface_with(far) is not None
    assert (
        choose_interfaces([here, replace(here, host="again")]).interfaces
        == (ChosenInterface(loopback.name, "127.0.0.1"),) * 2
    )


def test_a_name_s_addresses_are_found_or_none() -> None:
    assert addresses_of("127.0.0.1", 5.0) == {"127.0.0.1"}
    assert "127.0.0.1" in addresses_of("localhost", 5.0)
    assert addresses_of("no-such-host.invalid", 30.0) == frozenset()
    assert addresses_of("x" * 300, 5.0) == frozenset()
