"""Where what was measured of links is less than what hosts claim, or than other hosts have."""

import itertools
import statistics
from collections.abc import Iterator, Mapping

from ditplan.profiles.data_sheets import sheet_named
from ditplan.runtime.profiling.measured_links import HostClaims, HostSpeeds, kind_within
from ditplan.runtime.ranks.gpu_inventory import ANCESTORS, Ancestor

SLOW = 0.7
"""A host with less than so much of the median of all is slow: alike ones differ by some percent."""

CLAIM_KEPT = 0.5
"""An interface of which less than so much was measured may not be what it claims to be."""

NAMES: dict[Ancestor, str] = {
    "pcie-switch": "PCIe switch",
    "pcie-switches": "tree of PCIe switches",
    "host-bridge": "host bridge",
}


def link_warnings(
    claims: Mapping[str, HostClaims], speeds: Mapping[str, HostSpeeds]
) -> Iterator[str]:
    """What to look at, a line each, by host."""
    for host, claim in claims.items():
        yield from _gpu_warnings(host, claim, speeds[host])
        if len(claims) > 1:
            yield from _network_warnings(host, claim, speeds[host])
    yield from _slow_hosts(claims, speeds)


def _gpu_warnings(host: str, claim: HostClaims, speed: HostSpeeds) -> Iterator[str]:
    if claim.strangers:
        yield (
            f"{host}: {claim.strangers} pair{'s' * (claim.strangers > 1)} of GPUs can't read each "
            "other's memory (NVML): peer-to-peer is off, they talk through host memory; look at "
            "the driver's settings, and at ACS and IOMMU in the firmware"
        )
    if claim.device == "cpu" or not speed.inside:
        return
    rate = max(one.bytes_per_s for one in speed.inside.values())
    if kind_within(claim, speed.inside) == "nvlink":
        return
    yield from _wiring_warnings(host, claim, speed)
    sheet = sheet_named(claim.gpu or "")
    if claim.nvlinks:
        yield (
            f"{host}: {claim.nvlinks} NVLinks a GPU are said to be active, {rate / 1e9:.3g} GB/s "
            "were measured, as over PCIe; is NCCL kept from using them?"
        )
    elif claim.nvlinks == 0 and sheet is not None and sheet.nvlink_gpus > 2:
        yield (
            f"{host}: no NVLink is active, which {sheet.name} has; look at `nvidia-smi nvlink -s` "
            "and the fabric manager"
        )


def _wiring_warnings(host: str, claim: HostClaims, speed: HostSpeeds) -> Iterator[str]:
    """Of a near pair of GPUs that is slower than a far one: PCIe is wired otherwise, or a link on
    the way is at fault.
    """
    order = tuple(ANCESTORS.values())
    known = [
        (claim.ancestors[pair], one.bytes_per_s, pair)
        for pair, one in speed.inside.items()
        if pair in claim.ancestors and pair not in claim.bridged
    ]
    for (near, slow, pair), (far, rate, other) in itertools.permutations(known, 2):
        is_nearer = order.index(near) < order.index(far)
        if near in NAMES and is_nearer and slow < SLOW * rate:
            yield (
                f"{host}: GPUs {pair[0]} and {pair[1]} are said to share a {NAMES[near]}, but "
                f"exchange {_gbit(slow)}; {other[0]} and {other[1]}, which don't, have "
                f"{_gbit(rate)}; look at ACS in the firmware"
            )
            return


def _network_warnings(host: str, claim: HostClaims, speed: HostSpeeds) -> Iterator[str]:
    rates = [speed.host_bytes_per_s or 0.0, speed.flow.bytes_per_s if speed.flow else 0.0]
    if claim.has_rdma:
        together, claimed = speed.host_bytes_per_s, claim.adapters_bytes_per_s
        if together and claimed and together < CLAIM_KEPT * claimed:
            yield (
                f"{host}: its adapters claim {_gbit(claimed)} together, {_gbit(together)} were "
                "measured; look at the links of its adapters, and at GPUDirect RDMA"
            )
        return
    if not (rate := max(rates)):
        return
    claimed = claim.interface_bytes_per_s
    if claimed is not None and rate < CLAIM_KEPT * claimed:
        yield (
            f"{host}: interface {claim.interface} claims {_gbit(claimed)}, {_gbit(rate)} were "
            "measured"
        )
    if claim.faster is not None and claim.faster[1] > max(claimed or 0.0, rate) / CLAIM_KEPT:
        name, other = claim.faster
        yield (
            f"{host}: ranks talk over {claim.interface} ({_gbit(rate)} measured), {name} claims "
            f"{_gbit(other)}; if all hosts have it, choose that interface"
        )


def _slow_hosts(
    claims: Mapping[str, HostClaims], speeds: Mapping[str, HostSpeeds]
) -> Iterator[str]:
    """Hosts that are slow among those with the same devices."""
    kinds = {(claim.device, claim.gpu) for claim in claims.values()}
    for kind in sorted(kinds, key=str):
        alike = [name for name, claim in claims.items() if (claim.device, claim.gpu) == kind]
        inside = {
            name: statistics.median(one.bytes_per_s for one in speeds[name].inside.values())
            for name in alike
            if speeds[name].inside
        }
        network = {
            name: max(flow.bytes_per_s, speeds[name].host_bytes_per_s or 0.0)
            for name in alike
            if (flow := speeds[name].flow) is not None
        }
        for what, rates in (("inside it", inside), ("to other hosts", network)):
            yield from _outliers(what, rates)


def _outliers(what: str, rates: Mapping[str, float]) -> Iterator[str]:
    # of two hosts neither is the usual one
    if len(rates) < 3:
        return
    middle = statistics.median(rates.values())
    for name, rate in rates.items():
        if rate < SLOW * middle:
            yield (
                f"{name} is slow: {_gbit(rate)} {what}, {_gbit(middle)} is usual here; "
                "exclude it, or mend it"
            )


def _gbit(bytes_per_s: float) -> str:
    return f"{float(f'{8 * bytes_per_s / 1e9:.3g}'):g} Gbit/s"
