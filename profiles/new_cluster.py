"""A cluster on paper, from data sheets: for planning before anybody has measured it."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ditplan.profiles.bounds import MOST_RANKS, MOST_SLOTS
from ditplan.profiles.cluster import ClusterProfile, Host, Link, LinkKind
from ditplan.profiles.data_sheets import DeviceSheet, NetworkSheet, data_sheets
from ditplan.profiles.errors import InputError, Sentence, Setting
from ditplan.profiles.record import shortened

SWITCH_GPUS = 2
"""GPUs on a PCIe switch, as in the recorded clusters with PCIe."""


class GpuCount(NamedTuple):
    """So many hosts with so many GPUs each."""

    hosts: int
    gpus: int


@dataclass(frozen=True)
class Network:
    """Between hosts: so many adapters a host."""

    name: str
    adapters: int
    sheet: NetworkSheet


def new_cluster(gpus: str, device: str, intra: str, inter: str | None) -> ClusterProfile:
    """A cluster of equal hosts from data sheets.

    Args:
        gpus: hosts and GPUs of each, such as `2x8`.
        device: a GPU's name in the data sheets, such as `h100-sxm`.
        intra: `nvlink` or `pcie`.
        inter: the network, such as `ib400`, one adapter a host, or `8xib400`; None for one host.

    Raises:
        InputError: what isn't known, or doesn't go together.
    """
    count, sheets = _count_of(gpus), data_sheets()
    if device not in sheets.devices:
        raise InputError(_unknown("device", device, sheets.devices))
    if intra not in sheets.intra:
        raise InputError(_unknown("intra", intra, sheets.intra))
    sheet, network = sheets.devices[device], _network(inter, count)
    if intra == "nvlink" and sheet.nvlink_bytes_per_s is None:
        raise InputError(
            Setting("intra", "nvlink"), f": {device} has no NVLink; use ", Setting("intra", "pcie")
        )
    names = [f"node{index}" for index in range(count.hosts)]
    name = f"{gpus}x{device}-{intra}{f'-{inter}' if inter else ''}"
    return ClusterProfile(
        name=name,
        hosts=tuple(Host(name=host, devices=(sheet.device,) * count.gpus) for host in names),
        links=tuple(
            link for host in names for link in _host_links(host, count.gpus, sheet, intra, network)
        ),
        source="data sheets; nothing was measured, and the wiring (2 sockets, PCIe switches of "
        f"{SWITCH_GPUS} GPUs) is assumed",
    )


def _count_of(text: str) -> GpuCount:
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise InputError(
            Setting("gpus", shortened(text, 40)),
            ": hosts and the GPUs of each are written as 2x8; for one host of 8: ",
            Setting("gpus", "1x8"),
        )
    count = GpuCount(int(match[1]), int(match[2]))
    if count.gpus > MOST_SLOTS or count.hosts * count.gpus > MOST_RANKS:
        raise InputError(
            Setting("gpus", text),
            f": at most {MOST_SLOTS} GPUs a host and {MOST_RANKS} in all can be planned for",
        )
    return count


def _network(inter: str | None, count: GpuCount) -> Network | None:
    """The network that is asked for; none with one host."""
    if inter is None:
        if count.hosts == 1:
            return None
        known = ", ".join(data_sheets().inter)
        raise InputError(
            f"{count.hosts} hosts need a network: give ", Setting("inter"), f", one of {known}"
        )
    match = re.fullmatch(r"(?:([1-9]\d{0,2})x)?([a-z]+\d+)", inter)
    name = match[2] if match else inter
    sheets = data_sheets().inter
    if match is None or name not in sheets:
        raise InputError(_unknown("inter", name, sheets), " (8xib400 is 8 adapters a host)")
    if count.hosts == 1:
        raise InputError(
            Setting("inter", inter),
            ": one host has nobody to talk to; leave it out, or give ",
            Setting("gpus", "2x8"),
        )
    adapters = int(match[1] or 1)
    if count.gpus % adapters:
        raise InputError(
            Setting("inter", inter),
            f": {count.gpus} GPUs can't share {adapters} adapters evenly; use a divisor",
        )
    return Network(inter, adapters, sheets[name])


def _host_links(
    host: str, gpus: int, sheet: DeviceSheet, intra: str, network: Network | None
) -> Iterator[Link]:
    """PCIe to switches, switches to sockets, sockets to each other; NVLink beside it; adapters.

    The shortest way decides, so that NVLink is taken where it joins two GPUs. What nobody can cross
    is left out: PCIe where NVLink joins all GPUs of the only host.
    """
    sheets = data_sheets()
    by_nvlink = intra == "nvlink"
    if by_nvlink:
        own = sheets.intra["nvlink"]
        for gpu in range(gpus):
            domain = gpu // sheet.nvlink_gpus
            rate = own.share * (sheet.nvlink_bytes_per_s or 0)
            node = f"{host}/nvlink{domain}"
            yield _link(f"{host}/{gpu}", node, "nvlink", own.latency_s, rate, own.source)
        if network is None and gpus <= sheet.nvlink_gpus:
            return
    pcie = sheets.intra["pcie"]
    rate = pcie.share * sheet.pcie_bytes_per_s
    raw = f"PCIe {sheet.pcie_generation}.0 x16 is {sheet.pcie_bytes_per_s / 1e9:.1f} GB/s raw"
    source = f"{raw}; {pcie.share:g} of it: {pcie.source}"
    switches = -(-gpus // SWITCH_GPUS)
    sockets = min(2, switches)
    for gpu in range(gpus):
        switch = f"{host}/switch{gpu // SWITCH_GPUS}"
        yield _link(f"{host}/{gpu}", switch, "pcie", pcie.latency_s, rate, source)
    for switch_index in range(switches):
        switch = f"{host}/switch{switch_index}"
        socket = f"{host}/socket{switch_index * sockets // switches}"
        yield _link(switch, socket, "memory", pcie.latency_s, rate, source)
    if sockets > 1:
        one = sheets.socket
        ends = f"{host}/socket0", f"{host}/socket1"
        yield _link(*ends, "socket", one.latency_s, one.bytes_per_s, one.source)
    if network is not None:
        yield from _adapters(host, gpus, network, sockets, pcie.latency_s)


def _adapters(
    host: str, gpus: int, network: Network, sockets: int, pcie_s: float
) -> Iterator[Link]:
    """Adapters of the network: beside the GPUs that use them where there is one for each switch at
    least, else on the sockets.
    """
    sheet, count = network.sheet, network.adapters
    source = "beside an adapter's own rate that of its lanes is no bottleneck; latency assumed"
    beside_gpus = count * SWITCH_GPUS >= gpus
    for adapter in range(count):
        nic = f"{host}/nic{adapter}"
        if beside_gpus:
            own = range(adapter * gpus // count, (adapter + 1) * gpus // count)
            # through their switch: two links
            ends, latency_s = [f"{host}/{gpu}" for gpu in own], 2 * pcie_s
        else:
            ends, latency_s = [f"{host}/socket{adapter * sockets // count}"], pcie_s
        for end in ends:
            yield _link(end, nic, "pcie", latency_s, sheet.bytes_per_s, source)
        yield _link(nic, "network", sheet.kind, sheet.latency_s, sheet.bytes_per_s, sheet.source)


def _link(a: str, b: str, kind: LinkKind, latency_s: float, rate: float, source: str) -> Link:
    return Link(a=a, b=b, kind=kind, latency_s=latency_s, bytes_per_s=rate, source=source)


def _unknown(setting: str, given: str, known: Iterable[str]) -> Sentence:
    names = list(known)
    near = difflib.get_close_matches(given.lower(), names, n=1)
    hint = f"did you mean {near[0]}? There" if near else "there"
    return Sentence(
        Setting(setting, shortened(given, 40)),
        f": no data sheet; {hint} are {', '.join(names)}",
    )
