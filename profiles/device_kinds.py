"""Kinds of device: told by what they can do, since two of one name needn't be equally fast."""

import math
import statistics
from collections.abc import Mapping, Sequence

from ditplan.profiles.cluster import ClusterProfile, Device, DeviceKind

SAME_RATE: dict[DeviceKind, float] = {"cuda": 1.1, "cpu": 2.0}
"""Devices of one name whose rates and memory differ by no more than so many times are alike: clocks
and measurements of GPUs vary by some percent, those of CPU ranks, which share a machine, by more.
"""

ON_ONE_HOST: dict[DeviceKind, float] = SAME_RATE | {"cpu": math.inf}
"""As `SAME_RATE`, of devices of one host: its CPU ranks run on the same processors, whatever share
each got while it was measured.
"""

RATES = ("half_flops_per_s", "single_flops_per_s", "memory_bytes_per_s", "memory_bytes")


def speed_of(device: Device) -> tuple[float, ...]:
    """Sorts devices, slow ones first."""
    return tuple(getattr(device, rate) for rate in RATES)


def kinds_of(
    devices: Sequence[Device], same: Mapping[DeviceKind, float] = SAME_RATE
) -> tuple[int, ...]:
    """The kind of each device, numbered among those of its name from the slowest on: the same
    wherever it stands. `same` says by how many times rates of one kind may differ.
    """
    kinds = [0] * len(devices)
    for name in dict.fromkeys(device.name for device in devices):
        own = [place for place, device in enumerate(devices) if device.name == name]
        slowest: list[Device] = []
        for place in sorted(own, key=lambda place: speed_of(devices[place])):
            device = devices[place]
            number = next(
                (n for n, one in enumerate(slowest) if _are_alike(one, device, same)), None
            )
            if number is None:
                number = len(slowest)
                slowest.append(device)
            kinds[place] = number
    return tuple(kinds)


def with_rates_of_kinds(
    devices: Sequence[Device], same: Mapping[DeviceKind, float] = SAME_RATE
) -> tuple[Device, ...]:
    """The devices, those of one kind with its median rates: what differs between them is noise."""
    of_kinds: dict[tuple[str, int], list[Device]] = {}
    kinds = kinds_of(devices, same)
    keys = [(one.name, kind) for one, kind in zip(devices, kinds, strict=True)]
    for device, key in zip(devices, keys, strict=True):
        of_kinds.setdefault(key, []).append(device)
    medians = {
        key: {
            rate: statistics.median([getattr(one, rate) for one in own])
            for rate in RATES
            if rate != "memory_bytes"
        }
        | {"memory_bytes": min(one.memory_bytes for one in own)}
        for key, own in of_kinds.items()
    }
    return tuple(
        one.model_copy(update=medians[key]) for one, key in zip(devices, keys, strict=True)
    )


def with_kinds_named(cluster: ClusterProfile) -> ClusterProfile:
    """The cluster with a name for each kind of device and the same rates for all of a kind, so that
    names tell all there is to tell: the slowest of a name keep it, as what was measured of a model
    on all of them is theirs.
    """
    kinds, alike = iter(kinds_of(cluster.devices)), iter(with_rates_of_kinds(cluster.devices))
    hosts = tuple(
        host.model_copy(
            update={"devices": tuple(_named(next(alike), next(kinds)) for _ in host.devices)}
        )
        for host in cluster.hosts
    )
    return cluster.model_copy(update={"hosts": hosts}) if hosts != cluster.hosts else cluster


def fastest_first(cluster: ClusterProfile) -> ClusterProfile:
    """The cluster with fast devices before slow ones on each host, and fast hosts before slow ones,
    as far as they differ in kind; its links go along.
    """
    devices, kinds = cluster.devices, kinds_of(cluster.devices)
    least: dict[tuple[str, int], tuple[float, ...]] = {}
    for device, kind in zip(devices, kinds, strict=True):
        key, speed = (device.name, kind), speed_of(device)
        least[key] = min(least.get(key, speed), speed)
    speeds = iter([least[device.name, kind] for device, kind in zip(devices, kinds, strict=True)])
    hosts, moved = [], dict[str, str]()
    for host in cluster.hosts:
        own = [next(speeds) for _ in host.devices]
        order = sorted(range(len(own)), key=lambda place: own[place], reverse=True)
        moved |= {f"{host.name}/{was}": f"{host.name}/{now}" for now, was in enumerate(order)}
        sorted_devices = tuple(host.devices[place] for place in order)
        hosts.append(([own[place] for place in order], host, sorted_devices))
    hosts.sort(key=lambda found: found[0], reverse=True)
    links = tuple(
        link.model_copy(update={"a": moved.get(link.a, link.a), "b": moved.get(link.b, link.b)})
        for link in cluster.links
    )
    changed = tuple(host.model_copy(update={"devices": own}) for _, host, own in hosts)
    return cluster.model_copy(update={"hosts": changed, "links": links})


def _are_alike(slow: Device, device: Device, same: Mapping[DeviceKind, float]) -> bool:
    most = same[device.kind]
    return all(
        1 / most <= getattr(device, rate) / getattr(slow, rate) <= most for rate in RATES
    ) and (slow.kind, slow.matmul_share, slow.attention_share) == (
        device.kind,
        device.matmul_share,
        device.attention_share,
    )


def _named(device: Device, kind: int) -> Device:
    return device.model_copy(update={"name": f"{device.name} #{kind + 1}"}) if kind else device
