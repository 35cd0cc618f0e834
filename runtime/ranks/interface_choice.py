"""Over which network interface the ranks of several hosts talk to each other.

It is the one by which the hosts' own routes lead to each other, both ways. Names decide only
between several such: a name can lead to 127.0.1.1, to a network for administrators or to another
machine. A process group listens on the first IPv4 address of its interface, or on its first IPv6
address where it has none (gloo's `lookupAddrForIface`), so that one must be reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ditplan.profiles.errors import ClusterError, InputError, Setting, one_line

IPV6_LINK_LOCAL = "fe80:"


@dataclass(frozen=True)
class Interface:
    """A network interface as its host says; addresses in the kernel's order, IPv4 before IPv6."""

    name: str
    addresses: tuple[str, ...]
    is_up: bool
    is_loopback: bool

    @property
    def address(self) -> str | None:
        """Where a process group listens on it; None if others couldn't reach that."""
        if not self.is_up or not self.addresses:
            return None
        # which link such an address is of only the host itself knows
        return None if self.addresses[0].startswith(IPV6_LINK_LOCAL) else self.addresses[0]

    def __str__(self) -> str:
        state = ", ".join(self.addresses[:2]) or "no address"
        return f"{self.name} ({state if self.is_up else 'down'})"


@dataclass(frozen=True)
class HostNetwork:
    """What is known of a host's networks.

    Attributes:
        host: its name in messages.
        namespace: what the hosts have in common that are one machine and network namespace.
        interfaces: all of them.
        reached_at: addresses by which it was reached, or to which its name leads.
        routes: by address of another host, its own address from which it reaches that one, or None
            where it has no route.
    """

    host: str
    namespace: str
    interfaces: tuple[Interface, ...]
    reached_at: frozenset[str] = frozenset()
    routes: Mapping[str, str | None] | None = None

    def route(self, address: str) -> str | None:
        """Its own address from which it reaches another host's; None if it doesn't reach it.

        An address that is its own as well leads to itself, never to the other host.
        """
        source = (self.routes or {}).get(address)
        return None if source == address else source

    def interface_with(self, address: str | None) -> Interface | None:
        """The interface that has an address."""
        return next((one for one in self.interfaces if address in one.addresses), None)


@dataclass(frozen=True)
class ChosenInterface:
    """The interface that a host's ranks use, and the address on which they listen."""

    name: str
    address: str


@dataclass(frozen=True)
class InterfaceChoice:
    """An interface for each host, in their order, and what is to be said about them."""

    interfaces: tuple[ChosenInterface, ...]
    warnings: tuple[str, ...] = ()


def addresses_to_reach(hosts: Sequence[HostNetwork]) -> tuple[str, ...]:
    """To which addresses each of the hosts is to say its route, before one is chosen."""
    found = (one.address for host in hosts for one in host.interfaces if not one.is_loopback)
    return tuple(dict.fromkeys(address for address in found if address is not None))


def choose_interfaces(hosts: Sequence[HostNetwork], wanted: str | None = None) -> InterfaceChoice:
    """The interfaces by which hosts reach each other: by their routes, or the one that is `wanted`.

    Loopback is taken where all are one machine and network namespace, and only there.

    Raises:
        InputError: the wanted interface isn't there on each host, or can't be reached by others.
        ClusterError: there is no interface by which all hosts reach each other.
    """
    if wanted is not None:
        return _wanted(hosts, wanted)
    if len({host.namespace for host in hosts}) == 1:
        loopback = next(
            (one for one in hosts[0].interfaces if one.is_loopback and one.address), None
        )
        if loopback is None:
            raise ClusterError(
                f"{hosts[0].host}: has no loopback interface that is up; bring it up"
            )
        return InterfaceChoice((_chosen(loopback),) * len(hosts))
    reasons: list[str] = []
    best: tuple[Interface, ...] = ()
    for seed in hosts[0].interfaces:
        if seed.is_loopback or seed.address is None:
            continue
        taken = _leading_back(hosts, seed)
        if isinstance(taken, str):
            reasons.append(taken)
        elif not best or _named(hosts, taken) > _named(hosts, best):
            best = taken
    if not best:
        raise ClusterError(_no_way(hosts, reasons))
    return InterfaceChoice(tuple(map(_chosen, best)))


def _leading_back(hosts: Sequence[HostNetwork], seed: Interface) -> tuple[Interface, ...] | str:
    """The interfaces by which all reach the first host's `seed`, or why these don't do."""
    taken = [seed]
    for host in hosts[1:]:
        if host.namespace == hosts[0].namespace:
            taken.append(seed)
            continue
        back = host.interface_with(host.route(str(seed.address)))
        if back is None or back.is_loopback or back.address is None:
            return f"{host.host} has no route to {hosts[0].host}'s {seed}"
        taken.append(back)
    return next(iter(_strays(hosts, taken)), None) or tuple(taken)


def _strays(hosts: Sequence[HostNetwork], taken: Sequence[Interface]) -> list[str]:
    """What leaves a host otherwise than by its interface, a line for each pair of hosts."""
    lines = []
    for host, own in zip(hosts, taken, strict=True):
        for other, target in zip(hosts, taken, strict=True):
            if other.namespace == host.namespace:
                continue
            by = host.interface_with(host.route(str(target.address)))
            if by is None or by.name != own.name:
                way = f"leaves by {by.name}" if by else "has no route"
                lines.append(
                    f"what {host.host} sends to {other.host}'s {target} {way}, not by {own.name}"
                )
    return lines


def _named(hosts: Sequence[HostNetwork], taken: Sequence[Interface]) -> int:
    """How many hosts were reached at the interface that is taken."""
    pairs = zip(hosts, taken, strict=True)
    return sum(not host.reached_at.isdisjoint(one.addresses) for host, one in pairs)


def _wanted(hosts: Sequence[HostNetwork], name: str) -> InterfaceChoice:
    setting = Setting("interface", name)
    taken: list[Interface] = []
    is_one_machine = len({host.namespace for host in hosts}) == 1
    for host in hosts:
        found = next((one for one in host.interfaces if one.name == name), None)
        if found is None:
            there = ", ".join(map(str, host.interfaces))
            raise InputError(setting, f": {host.host} has no such interface; it has {there}")
        if found.address is None:
            raise InputError(
                setting, f": on {host.host} it is {found}; it must be up and have an address"
            )
        if found.is_loopback and not is_one_machine:
            raise InputError(
                setting, f": {found} of {host.host} is for itself alone; name one that others reach"
            )
        taken.append(found)
    for host, own in zip(hosts, taken, strict=True):
        for other, target in zip(hosts, taken, strict=True):
            if other.namespace != host.namespace and host.route(str(target.address)) is None:
                same = "has the same address" if own.address == target.address else "has no route"
                raise InputError(
                    setting,
                    f": {host.host} {same} to {other.host}'s {target}; name another interface",
                )
    return InterfaceChoice(tuple(map(_chosen, taken)), tuple(_strays(hosts, taken)))


def _chosen(interface: Interface) -> ChosenInterface:
    return ChosenInterface(interface.name, str(interface.address))


def _no_way(hosts: Sequence[HostNetwork], reasons: Sequence[str]) -> str:
    first = hosts[0]
    there = ", ".join(map(str, first.interfaces)) or "none"
    why = reasons or [f"{first.host} has no interface that others could reach; it has {there}"]
    said = "; ".join(why)
    return one_line(
        "the hosts have no network interface by which all reach each other both ways: "
        f"{said}; connect them, or name an interface that each of them has",
        800,
    )
