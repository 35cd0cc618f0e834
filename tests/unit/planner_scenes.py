"""Models on clusters, with workloads and random candidates that differ in every knob."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ditplan.planner.space.enumerate import legal_meshes, patching_violation, why_illegal
from ditplan.planner.space.placement import seatings
from ditplan.profiles.backends import BACKENDS
from ditplan.profiles.catalog import find_model
from ditplan.profiles.cluster import ClusterProfile, CollectiveTable, Device
from ditplan.profiles.configuration import Configuration, PipeFusion, Schedule, TaylorSeer
from ditplan.profiles.mesh import Mesh, axis_orders, placement_of
from ditplan.profiles.model import Mode, ModelProfile, ModelSpec, TimePoint
from ditplan.profiles.workload import Workload
from tests.unit.planner_factories import a_cluster, a_device, a_link, a_table, sd3_like

MODES: tuple[Mode, ...] = ("eager", "compile", "graph", "compile+graph")
NATIVE = BACKENDS["native"]


@dataclass(frozen=True)
class Scene:
    """A model on a cluster, and what is asked of it."""

    name: str
    cluster: ClusterProfile
    spec: ModelSpec
    workloads: tuple[Workload, ...]
    profile: ModelProfile | None = None

    def is_legal(self, candidate: Configuration, workload: Workload) -> bool:
        """Whether the native backend can run a candidate."""
        mesh, part = candidate.mesh, candidate.pipefusion
        if why_illegal(mesh, self.spec, workload, None, NATIVE, approximate=True):
            return False
        if part is None:
            return True
        return not patching_violation(mesh, self.spec, workload, part.patches, part.warmup_steps)


def scenes() -> tuple[Scene, ...]:
    """Small clusters of several kinds, each with a model that is unlike the others."""
    two_hosts = a_cluster(hosts=2, devices=4, name="two hosts")
    return (
        Scene("two runs, two hosts", two_hosts, two_runs(), workloads_of(two_runs())),
        Scene("measured", _measured_cluster(), two_runs(), workloads_of(two_runs()), _measured()),
        Scene("uneven heads", _unlike(), sd3_like(heads=6), workloads_of(sd3_like())),
        Scene("long skips", _unlike(), _small("hunyuandit"), workloads_of(_small("hunyuandit"))),
        Scene("linear", two_hosts, linear(), workloads_of(linear(), 1056)),
        Scene("text mask", _one_host(), _small("qwen-image"), workloads_of(_small("qwen-image"))),
    )


def workloads_of(spec: ModelSpec, size: int = 512) -> tuple[Workload, ...]:
    """One, and others that differ from it in one thing each."""
    plain = Workload(height=size, width=size, steps=6, passes=2, text_tokens=64, batch=2)
    changes: tuple[dict[str, object], ...] = (
        {"dtype": "float32"},
        {"batch": 4},
        {"steps": 9},
        {"height": 2 * size},
        {"passes": 1},
        {"text_tokens": 200},
    )
    return (plain, *(plain.model_copy(update=change) for change in changes))


def two_runs() -> ModelSpec:
    """Blocks with large weights and few keys, then such with small ones and many keys: which stage
    holds most depends on everything.
    """
    spec = sd3_like(heads=8)
    (block,) = spec.blocks
    changes: dict[str, object] = {"kind": "single", "count": 12, "operations": 20}
    # a gathered piece of such a block has as many bytes as a picture's prediction
    changes |= {"parameters": 2**18, "image_flops": 5e6, "text_flops": 5e6}
    second = block.model_copy(update=changes)
    first = block.model_copy(update={"count": 8})
    return spec.model_copy(update={"blocks": (first, second)})


def linear() -> ModelSpec:
    """Linear attention whose state has as many bytes as two rows of a picture of 33 tokens."""
    spec = find_model("sana")
    (block,) = spec.blocks
    return spec.model_copy(update={"blocks": (block.model_copy(update={"count": 4}),)})


def _small(name: str) -> ModelSpec:
    """A model of the catalogue with few blocks of each run."""
    spec = find_model(name)
    blocks = tuple(run.model_copy(update={"count": min(run.count, 6)}) for run in spec.blocks)
    return spec.model_copy(update={"blocks": blocks})


def _one_host() -> ClusterProfile:
    """PCIe below two sockets."""
    plain = a_cluster(devices=4, inside_kind="pcie", name="one host")
    links = [a_link(f"h0/{i}", f"h0/socket{i // 2}", 20e9, "pcie") for i in range(4)]
    joined = a_link("h0/socket0", "h0/socket1", 10e9, "socket")
    return plain.model_copy(update={"links": (*links, joined)})


def _unlike() -> ClusterProfile:
    """Two hosts with a fast device and a slow one each, of unlike memory."""
    fast = a_device()
    slow = fast.model_copy(
        update={
            "name": "slow",
            "half_flops_per_s": 2e14,
            "memory_bytes_per_s": 1e12,
            "memory_bytes": 24_000_000_000,
        }
    )
    plain = a_cluster(hosts=2, devices=2, name="unlike")
    hosts = tuple(host.model_copy(update={"devices": (fast, slow)}) for host in plain.hosts)
    return plain.model_copy(update={"hosts": hosts})


def _measured_cluster() -> ClusterProfile:
    """One host of two kinds of devices with measured collectives."""
    slow = a_device(name="slow").model_copy(update={"half_flops_per_s": 2e14})
    plain = a_cluster(devices=4, inside_kind="nvlink", collectives=_tables(), name="measured")
    host = plain.hosts[0].model_copy(update={"devices": (*plain.hosts[0].devices[:2], slow, slow)})
    return plain.model_copy(update={"hosts": (host,)})


def _tables() -> tuple[CollectiveTable, ...]:
    return (
        a_table("all_to_all", {2**16: 5e-5, 2**26: 4e-3}, size=2, groups=2),
        a_table("peer_all_to_all", {2**16: 2e-5, 2**26: 3e-3}, size=2, groups=2),
        a_table("all_gather", {2**16: 6e-5, 2**26: 5e-3}, size=2, groups=2),
        a_table("send_recv", {2**16: 3e-5, 2**26: 6e-3}, size=2, stride=2, groups=2),
        a_table("send_recv", {2**16: 4e-5, 2**26: 9e-3}, size=2, groups=2),
    )


def _measured() -> ModelProfile:
    """Both kinds of blocks, eagerly and compiled, with the host's time; on one of the devices."""
    spec, points = two_runs(), []
    kinds = [run.kind for run in spec.blocks]
    parts = (*kinds, "outside", "attention", "scheduler_step", "vae_decode", "text_encode")
    sizes = ((1, 512, 1024), (2, 1024, 1088), (4, 256, 1088))
    shapes = itertools.product(enumerate(parts), ("eager", "compile"), sizes)
    for (number, part), mode, (batch, tokens, keys) in shapes:
        seconds = (1 + number) * batch * (tokens / 1e6 + tokens * keys / 1e9)
        seconds *= 0.8 if mode == "compile" else 1.0
        point = {
            "part": part,
            "mode": mode,
            "kernel": "cudnn" if batch > 1 else "flash",
            "batch": batch,
            "image_tokens": tokens,
            "text_tokens": 64,
            "key_tokens": keys,
            "median_s": seconds,
            "p95_s": seconds,
            "host_s": seconds / 3,
            "runs": 5,
        }
        points.append(TimePoint.model_validate(point))
    return ModelProfile(
        model=spec.name,
        config_hash=spec.config_hash,
        device="H100",
        dtype="bfloat16",
        software={},
        measured_on="2026-01-02",
        points=tuple(points),
    )


class Draws:
    """Random candidates of a scene, always the same ones for a seed."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene, self._random = scene, random.Random(seed)
        plain = scene.workloads[0]
        ranks = len(scene.cluster.devices)
        self._meshes, _ = legal_meshes(scene.spec, plain, ranks, NATIVE, approximate=True)

    def family(self) -> Iterator[Configuration]:
        """A random candidate, and others that differ from it in one knob each."""
        first = self._candidate(self._random.choice(self._meshes))
        yield first
        for mesh in self._random.sample(self._meshes, min(3, len(self._meshes))):
            yield self._on(mesh, first)
        yield from self._placed(first)
        yield replace(first, mode=self._random.choice(MODES))
        yield replace(first, token_shares=self._shares(first.mesh))
        yield replace(first, token_shares=None)
        for weights in ("replicated", "sharded"):
            if first.can_share_weights:
                yield replace(first, weights=weights)
        if first.pipefusion is None:
            yield replace(first, step_cache=TaylorSeer(interval=2))
            return
        for _ in range(3):
            yield replace(first, pipefusion=self._part(first.mesh))
        other = self._part(first.mesh)
        fields = ("patches", "warmup_steps", "blocks_per_stage", "schedule")
        for field in fields:
            changed = first.pipefusion.model_copy(update={field: getattr(other, field)})
            yield replace(first, pipefusion=_legal_part(changed))

    def mixed(self, items: Sequence[object]) -> list[object]:
        """The same in a random order."""
        return self._random.sample(list(items), len(items))

    def _candidate(self, mesh: Mesh) -> Configuration:
        mode = self._random.choice(MODES)
        plain = Configuration(mesh, placement_of(mesh), mode, pipefusion=self._part(mesh))
        if self._random.random() < 0.5:
            plain = replace(plain, token_shares=self._shares(mesh))
        if plain.can_share_weights and self._random.random() < 0.5:
            plain = replace(plain, weights="sharded")
        return self._random.choice([plain, *self._placed(plain)])

    def _on(self, mesh: Mesh, like: Configuration) -> Configuration:
        """As much as possible of a candidate on another mesh."""
        part = like.pipefusion if mesh.pipefusion == like.mesh.pipefusion else self._part(mesh)
        is_alike = mesh.sequence_parallel == like.mesh.sequence_parallel
        shares = like.token_shares if is_alike else None
        found = Configuration(mesh, placement_of(mesh), like.mode, pipefusion=part)
        weights = like.weights if found.can_share_weights else "replicated"
        return replace(found, token_shares=shares, weights=weights)

    def _placed(self, candidate: Configuration) -> Iterator[Configuration]:
        """Two other orders of the axes or seats of the devices."""
        mesh = candidate.mesh
        names = [device.name for device in self._scene.cluster.devices[: mesh.size]]
        seats = list(seatings(names)) if len(set(names)) > 1 else [tuple(range(mesh.size))]
        ways = list(itertools.product(axis_orders(mesh), seats))
        for order, seated in self._random.sample(ways, min(2, len(ways))):
            placement = tuple(seated[seat] for seat in placement_of(mesh, order))
            yield replace(candidate, order=order, placement=placement)

    def _shares(self, mesh: Mesh) -> tuple[int, ...] | None:
        shares = tuple(self._random.randint(1, 3) for _ in range(mesh.sequence_parallel))
        return shares if len(set(shares)) > 1 else None

    def _part(self, mesh: Mesh) -> PipeFusion | None:
        if mesh.pipefusion == 1:
            return None
        blocks = self._scene.spec.block_count
        cuts = sorted(self._random.sample(range(1, blocks // 2), mesh.pipefusion - 1))
        bounds = zip((0, *cuts), (*cuts, blocks / 2), strict=True)
        counts = [int(2 * (last - first)) for first, last in bounds]
        schedule: Schedule = self._random.choice(("linear", "folded"))
        return PipeFusion(
            blocks_per_stage=tuple(counts),
            patches=self._random.choice((1, 2, 3, 4)),
            warmup_steps=self._random.choice((1, 2)),
            schedule=schedule,
        )


def _legal_part(part: PipeFusion) -> PipeFusion:
    return PipeFusion.model_validate(part.model_dump())


def a_cpu() -> Device:
    """A device on which other things are held."""
    return a_device(kind="cpu", name="CPU")
