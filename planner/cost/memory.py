"""How many bytes the fullest rank needs, and why that may be too much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from ditplan.planner.constants import MemoryConstants
from ditplan.planner.cost.share import RankShard, RankShards
from ditplan.planner.cost.vae_decode import largest_share
from ditplan.planner.memo import Memo
from ditplan.planner.space.stage_blocks import runs_of_stages
from ditplan.profiles.cluster import Device, Host
from ditplan.profiles.configuration import Configuration, PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import BlockRun, ModelSpec
from ditplan.profiles.sharded_blocks import BLOCKS_WHOLE_AT_ONCE
from ditplan.profiles.workload import Workload

LEAST_SHOWN_BYTES = 50_000_000
"""Of what a plan that doesn't fit needs memory for: less isn't the reason."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by cause.

    `cache_bytes` are PipeFusion's keys and values, `graph_bytes` what captured graphs take beside
    activations, `context_bytes` those of driver and libraries.

    Denoising and VAE decoding follow each other, so the larger one counts.
    """

    weights_bytes: int
    activations_bytes: int
    buffers_bytes: int
    vae_bytes: int
    context_bytes: int
    cache_bytes: int = 0
    graph_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The peak: what is always there and the larger of denoising and decoding."""
        peak = max(self.activations_bytes + self.buffers_bytes, self.vae_bytes)
        kept = self.weights_bytes + self.cache_bytes + self.graph_bytes
        return kept + self.context_bytes + peak


def memory_of(
    spec: ModelSpec,
    workload: Workload,
    candidate: Configuration,
    device: Device,
    constants: MemoryConstants | None = None,
) -> Memory:
    """The peak of the rank that holds most: replicated weights, its tokens, exchange buffers,
    the picture's VAE; of PipeFusion's stages the one whose blocks need most.

    In PipeFusion's warm-up a stage sees the whole sequence.
    """
    return MemoryModel(RankShards(spec), spec, constants).of(candidate, workload, device)


class MemoryModel:
    """Counts candidates' memory, what several have in common once."""

    def __init__(
        self, shares: RankShards, spec: ModelSpec, constants: MemoryConstants | None = None
    ) -> None:
        self._shares, self._spec, self._constants = shares, spec, constants or MemoryConstants()
        self._found: Memo[tuple[object, ...], Memory] = Memo()
        self._beside: Memo[tuple[object, ...], int] = Memo()
        self._fullest: Memo[tuple[object, ...], tuple[int, ...]] = Memo()
        self._cached: Memo[tuple[object, ...], tuple[int, ...]] = Memo()
        self._stages: Memo[tuple[tuple[int, ...], str], tuple[tuple[int, ...], ...]] = Memo()

    def of(
        self, candidate: Configuration, workload: Workload, device: Device, stage: int | None = None
    ) -> Memory:
        """The peak of the rank that holds most, as `memory_of`, of all or of one stage."""
        part = candidate.pipefusion
        key = (
            candidate.mesh.degrees,
            part.blocks_per_stage if part else None,
            part.schedule if part else None,
            stage,
            candidate.token_shares,
            candidate.weights,
            candidate.vae_parallel,
            _graphs(candidate),
            device.kind,
            workload,
        )
        if key not in self._found:
            counts = self.fullest_stage(candidate, workload)
            if part is not None and stage is not None:
                counts = runs_of_stages(self._spec.blocks, part)[stage]
            self._found[key] = self._count(candidate, workload, device, counts)
        return self._found[key]

    def beside_blocks(self, candidate: Configuration, workload: Workload, device: Device) -> int:
        """Bytes of the rank that holds most beside its stage's blocks and what these keep."""
        if candidate.weights == "sharded":
            counts = self.fullest_stage(candidate, workload)
            held: int = sum(map(mul, counts, self.block_bytes(candidate, workload)))
            return self.of(candidate, workload, device).total_bytes - held
        # the same for all stages
        vae_parallel = candidate.vae_parallel
        key = (candidate.mesh.degrees, candidate.token_shares, vae_parallel, device.kind, workload)
        if key not in self._beside:
            none = (0,) * len(self._spec.blocks)
            shares = candidate.token_shares
            plain = Configuration(
                candidate.mesh, (), token_shares=shares, vae_parallel=vae_parallel
            )
            self._beside[key] = self._count(plain, workload, device, none).total_bytes
        return self._beside[key] + _graph_bytes(_graphs(candidate), self._constants)

    def room_for_blocks(
        self, candidate: Configuration, workload: Workload, devices: Sequence[Device]
    ) -> float:
        """Bytes that the smallest GPU has for a PipeFusion stage's blocks and their keys and
        values.

        CPUs can swap, so they have room for any.
        """
        gpus = [device for device in devices if device.kind != "cpu"]
        if not gpus:
            return math.inf
        device = min(gpus, key=lambda gpu: gpu.memory_bytes)
        return device.memory_bytes - self.beside_blocks(candidate, workload, device)

    def block_bytes(self, candidate: Configuration, workload: Workload) -> list[int]:
        """One block's weights and what it keeps on a rank from patch to patch, for each run."""
        kept, sharers = self._cached_bytes(candidate, workload), candidate.weight_group_size
        runs = zip(self._spec.blocks, kept, strict=True)
        return [
            math.ceil(run.parameters * workload.dtype_bytes / sharers) + cached
            for run, cached in runs
        ]

    def fullest_stage(self, candidate: Configuration, workload: Workload) -> tuple[int, ...]:
        """How many blocks of each run the rank that holds most has; all of them without
        PipeFusion.
        """
        part = candidate.pipefusion
        if part is None:
            return tuple(run.count for run in self._spec.blocks)
        key = (
            candidate.mesh.degrees,
            part.blocks_per_stage,
            part.schedule,
            candidate.token_shares,
            candidate.weights,
            workload,
        )
        if key not in self._fullest:
            sizes = self.block_bytes(candidate, workload)

            def held(counts: tuple[int, ...]) -> int:
                return sum(map(mul, counts, sizes))

            self._fullest[key] = max(self._stages_of(part), key=held)
        return self._fullest[key]

    def _stages_of(self, part: PipeFusion) -> tuple[tuple[int, ...], ...]:
        """The blocks of each run on stages, those of stages that have as many once."""
        key = (part.blocks_per_stage, part.schedule)
        if key not in self._stages:
            self._stages[key] = tuple(dict.fromkeys(runs_of_stages(self._spec.blocks, part)))
        return self._stages[key]

    def _count(
        self, candidate: Configuration, workload: Workload, device: Device, counts: Sequence[int]
    ) -> Memory:
        c, spec, mesh = self._constants, self._spec, candidate.mesh
        share = self._shares.of(mesh, workload, candidate.token_shares)
        hidden_bytes = share.rows * spec.width * workload.dtype_bytes
        kept = zip(counts, self._cached_bytes(candidate, workload), strict=True)
        return Memory(
            weights_bytes=_weights_bytes(spec, counts, workload, candidate.weight_group_size),
            activations_bytes=math.ceil(c.hidden_copies * hidden_bytes * c.allocator_slack),
            buffers_bytes=math.ceil(_buffers_bytes(mesh, share, hidden_bytes) * c.allocator_slack),
            vae_bytes=math.ceil(
                _vae_bytes(spec, workload, c, candidate.vae_parallel) * c.allocator_slack
            ),
            context_bytes=_context_bytes(mesh, device, c),
            cache_bytes=sum(count * cached for count, cached in kept),
            graph_bytes=_graph_bytes(_graphs(candidate), c),
        )

    def _cached_bytes(self, candidate: Configuration, workload: Workload) -> tuple[int, ...]:
        """The keys and values of the whole sequence that a block of each run keeps for PipeFusion:
        those of this rank's heads.
        """
        if candidate.pipefusion is None:
            return (0,) * len(self._spec.blocks)
        key = (candidate.mesh.degrees, candidate.token_shares, workload)
        if key not in self._cached:
            share = self._shares.of(candidate.mesh, workload, candidate.token_shares)
            self._cached[key] = tuple(
                cached_bytes(share, run, workload) for run in self._spec.blocks
            )
        return self._cached[key]


def cached_bytes(share: RankShard, run: BlockRun, workload: Workload) -> int:
    """The keys and values of the whole sequence for the heads of a rank with such a share."""
    numbers = sum(
        sum(share.keys[segment] for segment in attention.segments)
        * share.heads(attention)
        * attention.head_dim
        for attention in run.attentions
    )
    return 2 * share.batch * numbers * workload.dtype_bytes


def held_parameters(spec: ModelSpec, counts: Sequence[int]) -> int:
    """Parameters on a rank with so many blocks of each run; all else is on every rank."""
    blocks = sum(count * run.parameters for run, count in zip(spec.blocks, counts, strict=True))
    return blocks + spec.outside_parameters + spec.encoder_parameters + spec.vae_parameters


def _weights_bytes(spec: ModelSpec, counts: Sequence[int], workload: Workload, sharers: int) -> int:
    """Those of a rank; where blocks are shared out, its pieces and room for two of the largest."""
    held = held_parameters(spec, counts)
    if sharers > 1:
        runs = list(zip(spec.blocks, counts, strict=True))
        blocks = sum(count * run.parameters for run, count in runs)
        largest = max(run.parameters for run, count in runs if count)
        held += math.ceil(blocks / sharers) - blocks + BLOCKS_WHOLE_AT_ONCE * largest
    return held * workload.dtype_bytes


def why_too_big(memory: Memory, device: Device) -> str | None:
    """Why a rank's memory doesn't hold a plan, with the numbers; None if it does."""
    if memory.total_bytes <= device.memory_bytes:
        return None
    parts = (
        ("weights", memory.weights_bytes),
        ("activations", memory.activations_bytes),
        ("exchange buffers", memory.buffers_bytes),
        ("VAE decode", memory.vae_bytes),
        ("context", memory.context_bytes),
        *((("keys and values", memory.cache_bytes),) if memory.cache_bytes else ()),
        *((("graphs", memory.graph_bytes),) if memory.graph_bytes else ()),
    )
    shown = [(name, count / 1e9) for name, count in parts if count >= LEAST_SHOWN_BYTES]
    named = ", ".join(f"{name} {gigabytes:.1f}" for name, gigabytes in shown)
    return f"needs {memory.total_bytes / 1e9:.1f} GB of {device.memory_bytes / 1e9:.1f} GB: {named}"


def why_swapping(memory: Memory, ranks: int, host: Host) -> str | None:
    """By how much so many CPU ranks exceed the memory they share; None if they don't."""
    has_bytes = sum(device.memory_bytes for device in host.devices)
    if ranks * memory.total_bytes <= has_bytes:
        return None
    times = f" x {ranks} ranks" if ranks > 1 else ""
    return (
        f"needs {memory.total_bytes / 1e9:.1f} GB{times}, {host.name} has {has_bytes / 1e9:.1f} GB:"
        " it will swap"
    )


def _buffers_bytes(mesh: Mesh, share: RankShard, hidden_bytes: int) -> int:
    """Ulysses holds q, k, v and the output before and after its exchange.

    A ring two K/V blocks and fp32 results.
    """
    ulysses = 2 * 4 * hidden_bytes if mesh.ulysses > 1 else 0
    ring = (2 * 2 + 2 * 2) * hidden_bytes if mesh.ring > 1 else 0
    return ulysses + ring


def _vae_bytes(spec: ModelSpec, workload: Workload, c: MemoryConstants, ranks: int) -> int:
    """Feature maps at the decoder's last resolution, as wide as the stage before it, of the rank
    with most rows.

    Videos in slices of frames.
    """
    channels = spec.vae_config.get("block_out_channels")
    widest = 256
    if (
        isinstance(channels, list | tuple)
        and channels
        and all(isinstance(n, int) for n in channels)
    ):
        widest = int(sorted(channels[:2])[-1])
    frames = min(workload.frames, 2 * spec.frames_per_token)
    pixels = workload.batch * frames * workload.height * workload.width
    whole = c.vae_live_tensors * pixels * widest * workload.dtype_bytes
    return math.ceil(whole * largest_share(spec, workload, ranks))


def _graphs(candidate: Configuration) -> int:
    """How many CUDA graphs a rank has: of the whole sequence, and of each patch."""
    if "graph" not in candidate.mode:
        return 0
    return 1 + (candidate.pipefusion.patches if candidate.pipefusion else 0)


def _graph_bytes(graphs: int, c: MemoryConstants) -> int:
    """What captured graphs take beside the activations, which are their own and no second copy."""
    return c.graph_bytes + (graphs - 1) * c.patch_graph_bytes if graphs else 0


def _context_bytes(mesh: Mesh, device: Device, c: MemoryConstants) -> int:
    if device.kind == "cpu":
        return c.cpu_context_bytes
    communicators = sum(degree > 1 for degree in (mesh.size, *mesh.degrees))
    # to the next stage and from the one before
    communicators += 2 if mesh.pipefusion > 1 else 0
    return c.cuda_context_bytes + communicators * c.communicator_bytes
