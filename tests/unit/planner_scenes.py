"""Models on clusters, with workloads and random candidates that differ in every knob."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ditplan.planner.space.enumerate import legal_meshes, patching_violation, why_illegal
from ditplan.planner.space.placement import seatings
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_model
from ditplan.profiles.cluster import ClusterProfile, CollectiveTable, Device
from ditplan.profiles.configuration import Configuration, PipeFusion, Schedule, TaylorSeer
from ditplan.profiles.mesh import AXES, Mesh, axis_orders, placement_of
from ditplan.profiles.model import Attention, Mode, ModelProfile, ModelSpec, TimePoint
from ditplan.profiles.workload import Workload
from tests.unit.planner_factories import a_cluster, a_device, a_link, a_table, sd3_like

MODES: tuple[Mode, ...] = ("eager", "compile", "graph", "compile+graph")
SCHEDULES: tuple[Schedule, ...] = ("linear", "folded")
NATIVE = find_backend("native")


@dataclass(frozen=True)
class Scene:
    """A model on a cluster, and what is asked of it: workloads, and a candidate that chance
    wouldn't draw.
    """

    name: str
    cluster: ClusterProfile
    spec: ModelSpec
    workloads: tuple[Workload, ...]
    profile: ModelProfile | None = None
    rare: Configuration | None = None

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
    even, uneven = two_runs(), _shortened(sd3_like(heads=6))
    skips, masked = _shortened(find_model("hunyuandit")), _shortened(find_model("qwen-image"))
    return (
        Scene("two runs", two_hosts, even, workloads_of(512)),
        Scene("measured", _measured_cluster(), even, workloads_of(512), _measured()),
        Scene("uneven heads", _unlike(devices=4), uneven, workloads_of(512), rare=_in_turns()),
        Scene("long skips", _unlike(devices=2), skips, workloads_of(512)),
        Scene("linear", two_hosts, linear(), workloads_of(1056)),
        Scene("text mask", _one_host(), masked, workloads_of(512)),
    )


def workloads_of(size: int) -> tuple[Workload, ...]:
    """One, and others that differ from it in one thing each."""
    plain = Workload(height=size, width=size, steps=3, passes=2, text_tokens=64, batch=2)
    changes: tuple[dict[str, object], ...] = (
        {"dtype": "float32"},
        {"batch": 4},
        {"steps": 4},
        {"height": 1024, "width": 1024},
        {"passes": 1},
        {"text_tokens": 200},
    )
    return (plain, *(plain.model_copy(update=change) for change in changes))


def two_runs() -> ModelSpec:
    """Blocks with large weights and few keys, then such with small ones and many keys: which stage
    holds most depends on everything.
    """
    (block,) = sd3_like(heads=8).blocks
    changes: dict[str, object] = {
        "kind": "single",
        "count": 12,
        "operations": 20,
        # a piece of such a block has as many bytes as the prediction of half the pictures
        "parameters": 2**19,
        "image_flops": 5e6,
        "text_flops": 5e6,
        "attentions": (Attention(heads=8, head_dim=128, segments=("image",)),),
    }
    first = block.model_copy(update={"count": 8, "parameters": 2_831_155})
    blocks = (first, block.model_copy(update=changes))
    return sd3_like(heads=8).model_copy(update={"blocks": blocks})


def linear() -> ModelSpec:
    """Linear attention: its state has as many bytes as two rows of a picture of 33 x 33 tokens, and
    these as many as half a prediction of one of 32 x 32.
    """
    spec = find_model("sana")
    (run,) = spec.blocks
    attention = run.attentions[0].model_copy(update={"heads": 8})
    changed = run.model_copy(update={"count": 4, "attentions": (attention,)})
    return spec.model_copy(update={"blocks": (changed,)})


def _shortened(spec: ModelSpec) -> ModelSpec:
    """The same with few blocks of each run."""
    blocks = tuple(run.model_copy(update={"count": min(run.count, 16)}) for run in spec.blocks)
    return spec.model_copy(update={"blocks": blocks})


def _one_host() -> ClusterProfile:
    """PCIe below two sockets."""
    plain = a_cluster(devices=4, inside_kind="pcie", name="one host")
    links = [a_link(f"h0/{i}", f"h0/socket{i // 2}", 20e9, "pcie") for i in range(4)]
    joined = a_link("h0/socket0", "h0/socket1", 10e9, "socket")
    return plain.model_copy(update={"links": (*links, joined)})


def _unlike(devices: int) -> ClusterProfile:
    """Two hosts, on which half of the devices are slow and have less memory."""
    fast = a_device(name="A100")
    slow = fast.model_copy(
        update={
            "name": "slow",
            "half_flops_per_s": 2e14,
            "memory_bytes_per_s": 1e12,
            "memory_bytes": 24_000_000_000,
        }
    )
    plain = a_cluster(hosts=2, devices=devices, name="unlike")
    there = (slow,) * (devices // 2) + (fast,) * (devices // 2)
    hosts = tuple(host.model_copy(update={"devices": there}) for host in plain.hosts)
    return plain.model_copy(update={"hosts": hosts})


def _in_turns() -> Configuration:
    """Stages whose slow rank has the larger or the smaller share of the tokens, in turns."""
    return Configuration(
        Mesh(pipefusion=4, ulysses=2),
        placement=(0, 2, 3, 1, 4, 6, 7, 5),
        pipefusion=PipeFusion(blocks_per_stage=(4, 4, 4, 4), patches=2, warmup_steps=1),
        token_shares=(2, 1),
    )


def _measured_cluster() -> ClusterProfile:
    """Two hosts of two kinds of devices with measured collectives."""
    fast = a_device(name="A100")
    slow = fast.model_copy(update={"name": "slow", "half_flops_per_s": 2e14})
    plain = a_cluster(hosts=2, inside_kind="pcie", collectives=_tables(), name="measured")
    hosts = tuple(host.model_copy(update={"devices": (fast, slow)}) for host in plain.hosts)
    return plain.model_copy(update={"hosts": hosts})


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
        seconds = (1 + number) * batch * (tokens / 1e8 + tokens * keys / 1e11)
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
        device="A100",
        dtype="bfloat16",
        software={},
        measured_on="2026-01-02",
        points=tuple(points),
    )


Pair = tuple[Configuration, Workload]


class Draws:
    """Random candidates for workloads of a scene, always the same ones for a seed."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene, self._random = scene, random.Random(seed)
        plain, ranks = scene.workloads[0], len(scene.cluster.devices)
        self._meshes, _ = legal_meshes(
            scene.spec, plain, ranks, NATIVE.capabilities, approximate=True
        )

    def family(self) -> tuple[Pair, list[Pair]]:
        """A legal candidate for a workload, and others that differ from it in one thing each."""
        # the more axes are split, the more there is to get wrong
        splits = [mesh.size * sum(n > 1 for n in mesh.degrees) for mesh in self._meshes]
        (mesh,) = self._random.choices(self._meshes, weights=splits)
        first = self._candidate(mesh)
        workload = self._random.choice(
            [w for w in self._scene.workloads[:4] if self._can(first, w)]
        )
        changed = [(first, other) for other in self._scene.workloads]
        changed += [(other, workload) for other in self._changed(first)]
        legal = [pair for pair in dict.fromkeys(changed) if self._can(*pair)]
        return (first, workload), legal

    def staged(self, count: int) -> list[Pair]:
        """So many candidates of a few divisions into two stages, which differ in all else."""
        meshes = [mesh for mesh in self._meshes if mesh.pipefusion == 2]
        found = []
        for _ in range(count):
            candidate = self._candidate(self._random.choice(meshes))
            blocks = self._random.choice(((8, 12), (10, 10)))
            part = candidate.pipefusion
            assert part is not None
            changed = part.model_copy(update={"blocks_per_stage": blocks})
            workload = self._random.choice(self._scene.workloads)
            found.append((replace(candidate, pipefusion=changed), workload))
        return found

    def _can(self, candidate: Configuration, workload: Workload) -> bool:
        return self._scene.is_legal(candidate, workload)

    def _changed(self, first: Configuration) -> Iterator[Configuration]:
        """The same with another mesh, place, mode, shares of the tokens, weights, or settings."""
        alike = [mesh for mesh in self._meshes if mesh.size == first.mesh.size]
        for mesh in self._random.sample(alike, min(5, len(alike))):
            yield self._on(mesh, first)
        yield from self._placed(first)
        yield from (replace(first, mode=mode) for mode in MODES)
        yield replace(first, token_shares=None)
        yield from (replace(first, token_shares=self._shares(first.mesh)) for _ in range(3))
        if first.can_share_weights:
            yield replace(first, weights="replicated")
            yield replace(first, weights="sharded")
        if first.pipefusion is None:
            yield replace(first, step_cache=TaylorSeer(interval=2))
        else:
            yield from self._patched_otherwise(first, first.pipefusion)

    def _patched_otherwise(self, first: Configuration, part: PipeFusion) -> Iterator[Configuration]:
        for _ in range(3):
            other = self._part(first.mesh)
            for field in ("patches", "warmup_steps", "blocks_per_stage"):
                change = {field: getattr(other, field)}
                yield replace(first, pipefusion=part.model_copy(update=change))
        for schedule in SCHEDULES:
            yield replace(first, pipefusion=part.model_copy(update={"schedule": schedule}))

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
        found = replace(
            like,
            mesh=mesh,
            placement=placement_of(mesh),
            order=AXES,
            pipefusion=part,
            token_shares=like.token_shares if is_alike else None,
            weights="replicated",
        )
        return replace(found, weights=like.weights) if found.can_share_weights else found

    def _placed(self, candidate: Configuration) -> Iterator[Configuration]:
        """Some other orders of the axes or seats of the devices."""
        mesh = candidate.mesh
        names = [device.name for device in self._scene.cluster.devices[: mesh.size]]
        seats = list(seatings(names)) if len(set(names)) > 1 else [tuple(range(mesh.size))]
        ways = list(itertools.product(axis_orders(mesh), seats))
        for order, seated in self._random.sample(ways, min(4, len(ways))):
            placement = tuple(seated[seat] for seat in placement_of(mesh, order))
            yield replace(candidate, order=order, placement=placement)

    def _shares(self, mesh: Mesh) -> tuple[int, ...] | None:
        """One rank with half the tokens of each other, or one or two parts for each: at random, or
        in turns, so that all rows and columns have as many.
        """
        places = mesh.sequence_parallel
        at_random = self._random.choices((1, 2), k=places)
        one = self._random.randrange(places)
        one_less = [2 - (place == one) for place in range(places)]
        turns = [1 + sum(divmod(place, mesh.ulysses)) % 2 for place in range(places)]
        shares = tuple(self._random.choice((at_random, one_less, turns)))
        return shares if len(set(shares)) > 1 else None

    def _part(self, mesh: Mesh) -> PipeFusion | None:
        if mesh.pipefusion == 1:
            return None
        half = self._scene.spec.block_count // 2
        cuts = sorted(self._random.sample(range(1, half), mesh.pipefusion - 1))
        counts = [2 * (last - first) for first, last in itertools.pairwise((0, *cuts, half))]
        return PipeFusion(
            blocks_per_stage=tuple(counts),
            patches=self._random.choice((1, 2, 3, 4)),
            warmup_steps=self._random.choice((1, 2)),
            schedule=self._random.choice(SCHEDULES),
        )


def a_cpu() -> Device:
    """A device on which other things are held."""
    return a_device(kind="cpu", name="CPU")
