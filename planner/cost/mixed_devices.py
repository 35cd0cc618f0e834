"""Ranks of unlike speed: who shares a sequence, and which part of it each of them has."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ditplan.planner.cost.share import RankShard, RankShards
from ditplan.planner.memo import KeyTuple, Memo
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.workload import Workload

PARTS_OF_SLOWEST = 100
"""Shares are whole numbers, of which the slowest rank has so many at most: nothing is known of a
rank's speed to better than a percent."""

ROUNDS = 3
"""How often shares are set by what they take: halves of the tokens don't take half the time."""


@dataclass(frozen=True)
class Load:
    """What a rank has to do, and with what."""

    share: RankShard
    device: Device

    def __hash__(self) -> int:
        # a device's name says which it is, and is hashed sooner
        return hash((self.share, self.device.name))


Loads = KeyTuple[Load]
"""Those of ranks that wait for each other."""

RankKind = tuple[int | None, str]
"""A rank's place in its sequence, ring first, None where all have equal parts; and the name of its
device.
"""

RankKinds = tuple[RankKind, ...]
"""Those of the ranks that wait for each other that differ."""


def rank_kinds_of(candidate: Configuration, devices: Iterable[Sequence[Device]]) -> RankKinds:
    """The ranks of some groups that share a sequence each, given by their devices in order."""
    # even ranks with equal shares may have unlike parts, as tokens and heads are whole ones
    has_equal_parts = candidate.token_shares is None
    kinds = (
        (None if has_equal_parts else place, device.name)
        for group in devices
        for place, device in enumerate(group)
    )
    return tuple(dict.fromkeys(kinds))


class RankLoads:
    """The loads of kinds of ranks on devices, by name, each found once."""

    def __init__(self, shares: RankShards, devices: Mapping[str, Device]) -> None:
        self._shares, self._devices = shares, devices
        self._found: Memo[tuple[object, ...], Loads] = Memo()

    def of(
        self,
        candidate: Configuration,
        workload: Workload,
        rank_kinds: RankKinds,
        patch: int | None = None,
    ) -> Loads:
        """What ranks of these kinds have to do for the whole sequence, or for a patch of it; what
        several of them have alike once.
        """
        mesh, shares, pipefusion = candidate.mesh, candidate.token_shares, candidate.pipefusion
        patches = pipefusion.patches if pipefusion and patch is not None else None
        key = (rank_kinds, mesh.degrees, shares, patches, patch, workload)
        if key not in self._found:
            loads = []
            for place, name in rank_kinds:
                if patches is None or patch is None:
                    share = self._shares.of(mesh, workload, shares, place)
                else:
                    share = self._shares.of_patches(mesh, workload, patches, shares, place)[patch]
                loads.append(Load(share, self._devices[name]))
            self._found[key] = Loads(dict.fromkeys(loads))
        return self._found[key]


def whole_shares(weights: Sequence[float]) -> tuple[int, ...] | None:
    """Weights as whole numbers in lowest terms; None where they are equal.

    >>> whole_shares((2.0, 1.0, 1.004))
    (2, 1, 1)
    """
    least = min(weights)
    rounded = [round(PARTS_OF_SLOWEST * weight / least) for weight in weights]
    common = math.gcd(*rounded)
    shares = tuple(number // common for number in rounded)
    return shares if len(set(shares)) > 1 else None
