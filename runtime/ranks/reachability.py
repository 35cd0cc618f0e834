"""By which of its addresses a host reaches others: asked of its own routes, no packet is sent."""

import socket
import threading
from collections.abc import Iterable

import psutil

from ditplan.runtime.ranks.interface_choice import Interface

ANY_PORT = 9
"""A route is the same for all ports, and nothing is sent to this one."""


def interfaces() -> tuple[Interface, ...]:
    """The network interfaces of this machine, or of its network namespace."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        found.append(
            Interface(
                name,
                tuple(
                    one.address
                    for family in (socket.AF_INET, socket.AF_INET6)
                    for one in addresses
                    if one.family == family
                ),
                is_up=state is not None and state.isup,
                is_loopback=state is not None and "loopback" in state.flags.split(","),
            )
        )
    return tuple(found)


def routes(addresses: Iterable[str]) -> dict[str, str | None]:
    """By address, the own address from which it is reached; None where there is no route to it."""
    return {address: _source(address) for address in addresses}


def addresses_of(name: str, timeout_s: float) -> frozenset[str]:
    """The addresses to which a host's name leads here; none where it leads nowhere in time."""
    found: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            answers = []
        found.update(str(where[0]) for *_, where in answers)
        done.set()

    # a name server that is silent holds getaddrinfo for longer than anybody waits
    threading.Thread(target=ask, daemon=True).start()
    return frozenset(found) if done.wait(timeout_s) else frozenset()


def _source(address: str) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, ANY_PORT))
        except OSError:
            return None
        return str(probe.getsockname()[0])
