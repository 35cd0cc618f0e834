"""Where a plan holds, and what of that is otherwise where it is to run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field

from ditplan.profiles.bounds import MeasuredSeconds, MemoryBytes
from ditplan.profiles.record import FrozenModel, shortened

MUCH_SLOWER = 1.5
"""A self-test that takes so many times as long as it did speaks of another machine: its best of
several rounds varies by some percent, and one GPU on another host took 1.8 times as long."""

LESS_MEMORY = 0.95
"""Devices of one name differ by what their drivers keep; less than this share is another device."""

CODE = {
    "torch": "its kernels, and what launching them takes, may be others",
    "nccl": "exchanges may take another time",
    "diffusers": "the model may compute another thing, or the same otherwise",
    "driver": "clocks, and what launching kernels takes, may be others",
    "ditplan": "what it was measured with may not be what runs",
}
"""The software that a measured plan was measured with, and what another version of it means."""

Aspect = Literal["device", "memory", "links", "software", "speed"]
Policy = Literal["refuse", "warn"]


class RankSpeed(FrozenModel):
    """What a self-test took on one rank: the host's seconds to launch a kernel, and those of a
    block that is the same for all models.
    """

    launch_s: MeasuredSeconds
    block_s: MeasuredSeconds


class SelfTest(FrozenModel):
    """What a self-test took: on each rank, and a collective of all of them (None for one rank)."""

    ranks: tuple[RankSpeed, ...] = Field(min_length=1)
    collective_s: MeasuredSeconds | None = None


@dataclass(frozen=True)
class RankFacts:
    """What a rank finds where it is. The speeds are None where no self-test was made."""

    device: str
    memory_bytes: int
    software: Mapping[str, str] = field(default_factory=dict)
    speed: RankSpeed | None = None
    collective_s: float | None = None


@dataclass(frozen=True)
class Mismatch:
    """One thing that is otherwise than where a plan was made, in a sentence that says what that
    means; `name` is the thing alone.
    """

    aspect: Aspect
    name: str
    text: str

    def __str__(self) -> str:
        return self.text


class Fingerprint(FrozenModel):
    """Where the plan holds: cluster, device names by ascending rank, kinds of link, software.

    Of a plan that was measured also the devices' memory and, on GPUs, what a self-test took.
    """

    cluster: str
    devices: tuple[str, ...] = Field(min_length=1)
    link_kinds: tuple[str, ...]
    software: dict[str, str]
    memory_bytes: tuple[MemoryBytes, ...] = ()
    self_test: SelfTest | None = None

    def as_found(self, facts: Sequence[RankFacts], link_kinds: Sequence[str]) -> Self:
        """The fingerprint of what the ranks of a plan have found, in rank order."""
        speeds = [one.speed for one in facts if one.speed is not None]
        slowest = max((one.collective_s for one in facts if one.collective_s), default=None)
        timed = SelfTest(ranks=tuple(speeds), collective_s=slowest) if speeds else None
        return self.model_copy(
            update={
                "devices": tuple(one.device for one in facts),
                "link_kinds": tuple(link_kinds),
                "software": dict(facts[0].software),
                "memory_bytes": tuple(one.memory_bytes for one in facts) if timed else (),
                "self_test": timed,
            }
        )

    def in_order(self, places: Sequence[int]) -> Self:
        """The fingerprint with its ranks in another order, by their places in this one."""
        timed = self.self_test
        if timed is not None:
            timed = timed.model_copy(update={"ranks": tuple(timed.ranks[p] for p in places)})
        memory = self.memory_bytes and tuple(self.memory_bytes[place] for place in places)
        return self.model_copy(
            update={
                "devices": tuple(self.devices[place] for place in places),
                "memory_bytes": memory,
                "self_test": timed,
            }
        )

    def mismatches(self, facts: Sequence[RankFacts], link_kind: str | None) -> tuple[Mismatch, ...]:
        """What the ranks of a plan, in rank order, have found to be otherwise; `link_kind` is what
        connects their devices by what their driver claims, None where it doesn't say.
        """
        found = [*self._devices(facts), *self._memory(facts)]
        # NVLinks over which no more goes than over PCIe were measured as such
        is_as_claimed = link_kind in (*self.link_kinds, None) or (
            link_kind == "nvlink" and "pcie" in self.link_kinds
        )
        if len(facts) > 1 and self.link_kinds and not is_as_claimed:
            found.append(
                Mismatch(
                    "links",
                    f"links {link_kind}",
                    f"the plan was made for devices linked by {' and '.join(self.link_kinds)}, "
                    f"these are linked by {link_kind}",
                )
            )
        return (*found, *self._software(facts), *self._speeds(facts))

    def _devices(self, facts: Sequence[RankFacts]) -> list[Mismatch]:
        return [
            Mismatch(
                "device",
                f"rank {rank}: {one.device}",
                f"the plan was made for {planned} on rank {rank}, there is {one.device}",
            )
            for rank, (planned, one) in enumerate(zip(self.devices, facts, strict=False))
            if planned != one.device
        ]

    def _memory(self, facts: Sequence[RankFacts]) -> list[Mismatch]:
        return [
            Mismatch(
                "memory",
                f"rank {rank}: memory",
                f"the device of rank {rank} has {one.memory_bytes / 1e9:.4g} GB where the plan was "
                f"made with {planned / 1e9:.4g} GB: what the plan keeps may not fit",
            )
            for rank, (planned, one) in enumerate(zip(self.memory_bytes, facts, strict=False))
            if one.memory_bytes < LESS_MEMORY * planned
        ]

    def _software(self, facts: Sequence[RankFacts]) -> list[Mismatch]:
        found = []
        for name, meaning in CODE.items():
            planned = self.software.get(name)
            others = {one.software.get(name, "none") for one in facts} - {planned}
            if planned is not None and others:
                rank = next(n for n, one in enumerate(facts) if one.software.get(name) != planned)
                here = facts[rank].software.get(name, "none")
                found.append(
                    Mismatch(
                        "software",
                        f"{name} {here}",
                        f"the plan was made with {name} {planned}, rank {rank} has {here}: "
                        f"{meaning}",
                    )
                )
        return found

    def _speeds(self, facts: Sequence[RankFacts]) -> list[Mismatch]:
        if self.self_test is None:
            return []
        found = []
        for rank, (planned, one) in enumerate(zip(self.self_test.ranks, facts, strict=False)):
            if (speed := one.speed) is None:
                continue
            found += _if_slower(
                f"rank {rank}: launch rate",
                f"launching a kernel takes rank {rank} {speed.launch_s * 1e6:.3g} us",
                speed.launch_s / planned.launch_s,
                "its host is slower, or busy with other work",
            )
            found += _if_slower(
                f"rank {rank}: block",
                f"the self-test's block takes rank {rank} {speed.block_s * 1e3:.3g} ms",
                speed.block_s / planned.block_s,
                "its device is throttled, or shared with other work",
            )
        took_s = max((one.collective_s for one in facts if one.collective_s), default=None)
        if took_s is not None and self.self_test.collective_s is not None:
            found += _if_slower(
                "collective",
                f"the self-test's collective takes {took_s * 1e3:.3g} ms",
                took_s / self.self_test.collective_s,
                "the links are of another class, or shared with other work",
            )
        return found


def _if_slower(name: str, what: str, times: float, meaning: str) -> list[Mismatch]:
    if times <= MUCH_SLOWER:
        return []
    text = f"{what}, {times:.3g} times as long as where the plan was made: {meaning}"
    return [Mismatch("speed", name, text)]


def is_same_code(software: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Whether what was measured with some software would be measured alike now."""
    return all(found.get(name) == version for name, version in software.items() if name in CODE)


def config_changes(
    recorded: Mapping[str, Any], found: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[str, ...]:
    """How a model's config isn't the recorded one, a phrase for each key; empty if it is.

    A key that only the found one has is nothing where it has the `usual` value: that which the
    model's class takes for configs from before there was the key.
    """
    changes = []
    for key in sorted({*recorded, *found}):
        if key not in recorded:
            if key not in usual or usual[key] != found[key]:
                changes.append(f"{key} is {shortened(found[key], 40)}, the plan knows none")
        elif key not in found:
            changes.append(f"{key} is missing, the plan has {shortened(recorded[key], 40)}")
        elif recorded[key] != found[key]:
            theirs = shortened(recorded[key], 40)
            changes.append(f"{key} is {shortened(found[key], 40)}, the plan has {theirs}")
    return tuple(changes)
