"""What hosts have room for, and what would run where: asked of agents that start no rank."""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import ClusterError
from ditplan.profiles.host_choice import HostChoice
from ditplan.runtime.ranks.arrangement import (
    HostShare,
    arranged,
    devices_on,
    equipment_of,
    launches_on,
)
from ditplan.runtime.ranks.environment import (
    carried,
    environment,
    rank_fallbacks,
    rank_settings,
    search_path,
)
from ditplan.runtime.ranks.fleet import Fleet
from ditplan.runtime.ranks.interface_choice import ChosenInterface
from ditplan.runtime.ranks.seating import kind_of_devices

HELLO_S = 60.0
"""How long an agent may take to say hello: an interpreter starts, perhaps from a slow disk."""


@dataclass(frozen=True)
class Room:
    """What ranks on some hosts run on, and how many there is room for."""

    device: DeviceKind
    ranks: int


@dataclass(frozen=True)
class HostStart:
    """What would run on a host.

    `words` start its agent, typed here; `settings` is the environment that ranks are given beside
    the host's own, `fallbacks` what they are given where nobody has set it; `devices` is by rank.
    """

    host: str
    launcher: str
    words: str
    interface: ChosenInterface
    settings: Mapping[str, str]
    fallbacks: Mapping[str, str]
    devices: Mapping[int, str]


@dataclass(frozen=True)
class DryRun:
    """What would run where, and what is to be said about it."""

    hosts: tuple[HostStart, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*map(_paragraph, self.hosts), *(f"warning: {w}" for w in self.warnings)])

    def to_json(self) -> dict[str, Any]:
        """As `--json` says it."""
        hosts = [
            {
                "host": one.host,
                "launcher": one.launcher,
                "words": one.words,
                "interface": one.interface.name,
                "address": one.interface.address,
                "environment": dict(one.settings),
                "environment_where_unset": dict(one.fallbacks),
                "ranks": [{"rank": rank, "device": at} for rank, at in one.devices.items()],
            }
            for one in self.hosts
        ]
        return {"hosts": hosts, "warnings": list(self.warnings)}


def room_on(hosts: HostChoice) -> Room:
    """What ranks on the hosts run on, and how many there is room for.

    Raises:
        InputError: hosts that differ in kind, or haven't the devices that were asked for.
        ClusterError: a host can't be reached.
    """
    with _agents_on(hosts) as fleet:
        kind = kind_of_devices(equipment_of(fleet))
        return Room(kind, sum(map(len, devices_on(fleet, hosts, kind).values())))


def dry_run(hosts: HostChoice, ranks_in: Callable[[int], int]) -> DryRun:
    """What would run where; `ranks_in` says how many ranks there are in a room.

    Raises:
        InputError: as `room_on`; more ranks than room, or an interface that can't be used.
        ClusterError: a host can't be reached, or the hosts don't reach each other.
    """
    with _agents_on(hosts) as fleet:
        kind = kind_of_devices(equipment_of(fleet))
        devices = devices_on(fleet, hosts, kind)
        ranks = ranks_in(sum(map(len, devices.values())))
        found = arranged(fleet, devices, ranks, hosts)
    return DryRun(tuple(map(_start_of, found.shares)), found.warnings)


@contextlib.contextmanager
def _agents_on(hosts: HostChoice) -> Iterator[Fleet]:
    """Agents that have said hello; they end with the block."""
    own = environment()
    started = {**own, "PYTHONPATH": os.pathsep.join(search_path())}
    fleet = Fleet(launches_on(hosts, own), started)
    try:
        deadline = time.monotonic() + HELLO_S
        fleet.wait_for(lambda: all(one.facts or one.lost for one in fleet.links), deadline)
        if missing := [link for link in fleet.links if link.facts is None or link.lost]:
            late = f"said nothing within {HELLO_S:.0f} s"
            raise ClusterError("\n".join(f"{one.name}: {one.lost or late}" for one in missing))
        yield fleet
    finally:
        fleet.end(keeps_logs=False)


def _start_of(share: HostShare) -> HostStart:
    link, facts = share.link, share.link.facts
    assert facts is not None
    on_gpus = "cpu" not in share.devices.values()
    own = rank_settings(search_path(), share.interface.name, on_gpus=on_gpus)
    return HostStart(
        host=link.name,
        launcher=link.launch.launcher,
        words=str(link.launch),
        interface=share.interface,
        settings=carried(environment()) | own,
        fallbacks=rank_fallbacks(len(share.devices), facts.cores),
        devices=share.devices,
    )


def _typed(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())


def _paragraph(one: HostStart) -> str:
    ranks = ", ".join(f"{rank} on {device}" for rank, device in one.devices.items())
    settings, fallbacks = _typed(one.settings), _typed(one.fallbacks)
    return "\n".join(
        [
            f"{one.host}, by {one.launcher}: {one.words}",
            f"  interface {one.interface.name}, address {one.interface.address}",
            f"  ranks {ranks}",
            f"  environment {settings}",
            f"  and where it isn't set there {fallbacks}",
        ]
    )
