"""Which ranks run where, and how they reach each other: settled with the hosts' agents, before any
rank is started.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import ClusterError
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import HostChoice
from ditplan.runtime.ranks.agent_link import AgentLink
from ditplan.runtime.ranks.fleet import Fleet
from ditplan.runtime.ranks.interface_choice import (
    ChosenInterface,
    HostNetwork,
    addresses_to_reach,
    choose_interfaces,
)
from ditplan.runtime.ranks.launchers import Launch, launch_on
from ditplan.runtime.ranks.reachability import addresses_of
from ditplan.runtime.ranks.seating import Equipment, devices_of, seated

AGENT = "ditplan.runtime.ranks.agent"
NAMES_S = 3.0
"""How long the names of all hosts may take to lead somewhere."""


@dataclass(frozen=True)
class HostShare:
    """A host's share of a job: its ranks with the device of each, and where they listen."""

    link: AgentLink
    devices: Mapping[int, str]
    interface: ChosenInterface


@dataclass(frozen=True)
class Arrangement:
    """The hosts that have ranks, in their order, and what is to be said about them."""

    shares: tuple[HostShare, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        texts = [
            f"{one.link.name} ({len(one.devices)} ranks, {one.interface.name} "
            f"{one.interface.address})"
            for one in self.shares
        ]
        more = f" and {len(texts) - 8} more" if len(texts) > 8 else ""
        return ", ".join(texts[:8]) + more


def name_of(host: Host) -> str:
    """What messages call a host."""
    return host.name if host.port is None else f"{host.name}:{host.port}"


def launches_on(choice: HostChoice, environment: Mapping[str, str]) -> dict[str, Launch]:
    """How the agent of each host is started, by what messages call the host.

    Raises:
        InputError: the list of nodes of the Slurm job that this runs in can't be understood.
    """
    return {name_of(one.host): launch_on(one.host, AGENT, environment) for one in choice.hosts}


def devices_on(fleet: Fleet, choice: HostChoice, kind: DeviceKind) -> dict[str, tuple[str, ...]]:
    """The devices that ranks may have on each host, whose agents have said hello.

    Raises:
        InputError: a host has fewer GPUs than slots, or not those that were chosen.
    """
    pairs = zip(fleet.links, choice.hosts, strict=True)
    equipment = equipment_of(fleet)
    return {
        link.name: devices_of(one, link.name, equipment[link.name], kind) for link, one in pairs
    }


def equipment_of(fleet: Fleet) -> dict[str, Equipment]:
    """What the hosts have whose agents have said hello."""
    facts = {link.name: link.facts for link in fleet.links if link.facts is not None}
    return {name: Equipment(one.gpus, one.cores) for name, one in facts.items()}


def arranged(
    fleet: Fleet, devices: Mapping[str, Sequence[str]], ranks: int, choice: HostChoice
) -> Arrangement:
    """Gives ranks to hosts in their order, whose agents have said hello, and chooses interfaces.

    Args:
        fleet: the agents of the hosts.
        devices: those that ranks may have, by what messages call the host.
        ranks: how many there are.
        choice: the hosts as they were named, and the interface that is wanted.

    Raises:
        InputError: more ranks than there is room for, or an interface that can't be used.
        ClusterError: a host doesn't answer, or the hosts don't reach each other.
    """
    seats = seated(devices, ranks)
    taking = [link for link in fleet.links if seats[link.name]]
    hosts = {link.name: one.host for link, one in zip(fleet.links, choice.hosts, strict=True)}
    chosen = choose_interfaces(_networks(fleet, taking, hosts), choice.interface)
    pairs = zip(taking, chosen.interfaces, strict=True)
    shares = tuple(HostShare(link, seats[link.name], interface) for link, interface in pairs)
    return Arrangement(shares, chosen.warnings)


def _networks(
    fleet: Fleet, links: Sequence[AgentLink], hosts: Mapping[str, Host]
) -> list[HostNetwork]:
    """What the hosts that have ranks say of their networks, with their routes to each other."""
    networks = [link.facts.network(link.name, {}) for link in links if link.facts is not None]
    if len({network.namespace for network in networks}) == 1:
        return networks
    asked = addresses_to_reach(networks)
    routes = dict(zip((link.name for link in fleet.links), fleet.routes(asked), strict=True))
    deadline = time.monotonic() + NAMES_S
    found = []
    for network in networks:
        if asked and not routes[network.host]:
            raise ClusterError(f"{network.host}: doesn't say by which routes it reaches the others")
        name = hosts[network.host].name
        led_to = addresses_of(name, max(0.0, deadline - time.monotonic()))
        reached = network.reached_at | led_to
        found.append(replace(network, routes=routes[network.host], reached_at=reached))
    return found
