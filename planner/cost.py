"""What a candidate should cost: the parts of a denoising step on the busiest rank, and what
comes before and after.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ditplan.planner.compute import DeviceTimes, Timed
from ditplan.planner.constants import CostConstants, MemoryConstants, ModeConstants
from ditplan.planner.memory import memory_of
from ditplan.planner.share import Share, share_of
from ditplan.planner.space import Candidate
from ditplan.planner.topology import Topology
from ditplan.profiles.cluster import PEER_OPERATIONS, ClusterProfile, Device, Operation
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Attention, AttentionKernel, ModelProfile, ModelSpec, Source
from ditplan.profiles.plan import Prediction, RingVariant
from ditplan.profiles.workload import Workload

SOURCES: tuple[Source, ...] = ("measured", "interpolated", "computed")


@dataclass
class Ledger:
    """Seconds by part and source, and bytes by kind of link, of one denoising step."""

    seconds: defaultdict[tuple[str, Source], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    link_bytes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, part: str, timed: Timed, times: float = 1.0) -> None:
        """Books a duration that occurs `times` times."""
        self.seconds[part, timed.source] += timed.seconds * times

    @property
    def total(self) -> float:
        """All seconds."""
        return math.fsum(self.seconds.values())


@dataclass(frozen=True)
class Step:
    """A denoising step that is being priced: who does it, the busiest rank's share, the costs."""

    candidate: Candidate
    workload: Workload
    share: Share
    device: Device
    ledger: Ledger = field(default_factory=Ledger)


class CostModel:
    """Prices candidates on a cluster for one model."""

    def __init__(
        self,
        topology: Topology | ClusterProfile,
        spec: ModelSpec,
        profile: ModelProfile | None = None,
        *,
        constants: CostConstants | None = None,
        memory_constants: MemoryConstants | None = None,
    ) -> None:
        """Takes what was measured of the model, if anything; else all compute times come from a
        roofline.

        Raises:
            InputError: the profile is of another model, or of a device that the cluster doesn't
                have.
        """
        self.topology = topology if isinstance(topology, Topology) else Topology(topology)
        self.spec = spec
        self.constants = constants or CostConstants()
        self.memory_constants = memory_constants or MemoryConstants()
        self._profile = profile
        self._all_devices = self.topology.cluster.devices
        self._times: dict[str, DeviceTimes] = {}
        if profile is not None:
            _check_profile(profile, spec, self.topology.cluster)

    def price(self, candidate: Candidate, workload: Workload) -> Prediction:
        """The denoising loop by cause, with interval, what surrounds it, and the busiest rank's
        memory.

        Raises:
            InputError: the cluster profile can't tell how long a collective of this mesh takes.
        """
        share = share_of(candidate.mesh, self.spec, workload)
        step = max(
            (self._step(candidate, workload, share, device) for device in self._devices(candidate)),
            key=lambda ledger: ledger.total,
        )
        parts: dict[str, float] = {}
        for (part, _), seconds in step.seconds.items():
            parts[part] = parts.get(part, 0.0) + seconds * workload.steps
        latency_s = math.fsum(parts.values())
        around_s = self._around(workload, self._all_devices[candidate.placement[0]])
        memory = memory_of(
            self.spec,
            workload,
            candidate,
            self._devices(candidate)[0],
            self.memory_constants,
        )
        return Prediction(
            latency_s=latency_s,
            interval_s=self._interval(step, latency_s, workload.steps),
            end_to_end_s=latency_s + around_s,
            setup_s=self._setup_s(candidate, workload),
            memory_bytes=memory.total_bytes,
            parts=parts,
            link_bytes={kind: count * workload.steps for kind, count in step.link_bytes.items()},
            source=_worst_source(step),
        )

    def attention_kernel(self, candidate: Candidate, workload: Workload) -> AttentionKernel:
        """What should compute self-attention: measured where it was, else torch's choice."""
        share = share_of(candidate.mesh, self.spec, workload)
        times = self._times_on(self._all_devices[candidate.placement[0]])
        return times.attention_kernel(share, workload.dtype)

    def ring_variant(self, candidate: Candidate) -> RingVariant:
        """Over NVLink keys and values are gathered at once, which costs less than merging by lse.

        Elsewhere they are passed on behind the attention, which hides a slow link.
        """
        groups = candidate.mesh.groups(candidate.placement, ("ring",))
        return "gather" if self.topology.slowest_kind(groups) == "nvlink" else "pass"

    def _devices(self, candidate: Candidate) -> list[Device]:
        """One of each kind of device that the candidate uses: each could be the slowest."""
        devices = self._all_devices
        return list({devices[rank].name: devices[rank] for rank in candidate.placement}.values())

    def _times_on(self, device: Device) -> DeviceTimes:
        if device.name not in self._times:
            profile = self._profile
            known = profile if profile and profile.device == device.name else None
            self._times[device.name] = DeviceTimes(self.spec, known, device, self.constants)
        return self._times[device.name]

    def _step(
        self, candidate: Candidate, workload: Workload, share: Share, device: Device
    ) -> Ledger:
        """One denoising step of the busiest rank, if it were this device."""
        step = Step(candidate, workload, share, device)
        times, dtype, mode = self._times_on(device), workload.dtype, candidate.mode
        for run in self.spec.blocks:
            block = times.block(run, share, dtype, mode)
            compute_s = block.seconds - block.attention_s
            step.ledger.add("blocks", Timed(compute_s, block.source), run.count)
            step.ledger.add("attention", Timed(block.attention_s, block.source), run.count)
            pairs = sum(share.pairs(attention) for attention in run.attentions)
            for attention in run.attentions:
                own_s = block.attention_s * share.pairs(attention) / max(pairs, 1.0)
                self._book_ulysses(step, attention, run.count)
                self._book_ring(step, attention, run.count, own_s)
        step.ledger.add("outside", times.outside(share, dtype, mode))
        self._book_gathers(step)
        self._book_launches(step, times)
        samples = workload.batch * self.spec.image_tokens(workload)
        scheduler = times.simple("scheduler_step", samples, self.constants.scheduler_step_s, dtype)
        step.ledger.add("scheduler", scheduler)
        return step.ledger

    def _book_ulysses(self, step: Step, attention: Attention, count: int) -> None:
        """One all_to_all of q, k and v together and one of the output, for each self-attention."""
        if step.candidate.mesh.ulysses == 1:
            return
        tokens = sum(step.share.tokens[segment] for segment in attention.segments)
        numbers = step.share.batch * tokens * attention.heads * attention.head_dim
        one_bytes = numbers * step.workload.dtype_bytes
        groups = step.candidate.mesh.groups(step.candidate.placement, ("ulysses",))
        operation = self._exchange("all_to_all", groups)
        if operation == "all_to_all":
            pushed = self.topology.slowest_kind(groups) == "nvlink"
            passes = self.constants.push_passes if pushed else self.constants.exchange_passes
            packing_s = self._passes_s(step.device, passes * one_bytes)
            step.ledger.add("ulysses", Timed(packing_s, "computed"), count)
        for tensors in (3, 1):
            self._book(step, "ulysses", operation, tensors * one_bytes, ("ulysses",), count)

    def _book_ring(self, step: Step, attention: Attention, count: int, attention_s: float) -> None:
        """K and V gathered from all, or passed on ring - 1 times behind the attention before.

        Then results merge by lse. On a CPU sending takes the cores that compute, so nothing is
        hidden.
        """
        ring = step.candidate.mesh.ring
        if ring == 1:
            return
        tokens = sum(step.share.queries[segment] for segment in attention.segments)
        heads = step.share.heads(attention)
        numbers = step.share.batch * tokens * heads * attention.head_dim
        sent_bytes = 2 * numbers * step.workload.dtype_bytes
        if self.ring_variant(step.candidate) == "gather":
            groups = step.candidate.mesh.groups(step.candidate.placement, ("ring",))
            operation = self._exchange("all_gather", groups)
            self._book(step, "ring", operation, sent_bytes, ("ring",), count)
            return
        hidden_s = attention_s / ring if step.device.kind == "cuda" else 0.0
        merge_s = self._passes_s(step.device, self.constants.merge_passes * numbers * 4)
        times = count * (ring - 1)
        self._book(step, "ring", "send_recv", sent_bytes, ("ring",), times, hidden_s)
        step.ledger.add("ring", Timed(merge_s, "computed"), times)

    def _exchange(self, collective: Operation, groups: Sequence[tuple[int, ...]]) -> Operation:
        """What the native runtime has in a collective's place: writes into peers' memory, which
        are measured where it can make them.
        """
        by_writes = PEER_OPERATIONS[collective]
        return by_writes if self.topology.is_measured(by_writes, groups) else collective

    def _passes_s(self, device: Device, moved_bytes: float) -> float:
        """Seconds to read and write so many bytes of the device's memory."""
        return moved_bytes / (device.memory_bytes_per_s * self.constants.bandwidth_efficiency)

    def _book_gathers(self, step: Step) -> None:
        """The output put together again: tokens over ring x ulysses, then passes over cfg."""
        mesh, share = step.candidate.mesh, step.share
        one_token_bytes = share.batch * values_per_token(self.spec) * step.workload.dtype_bytes
        if mesh.sequence_parallel > 1:
            piece_bytes = share.tokens["image"] * one_token_bytes
            self._book(step, "gather", "all_gather", piece_bytes, ("ring", "ulysses"), 1)
        if mesh.cfg > 1:
            whole_bytes = share.keys["image"] * one_token_bytes
            self._book(step, "cfg", "all_gather", whole_bytes, ("cfg",), 1)

    def _book_launches(self, step: Step, times: DeviceTimes) -> None:
        """The time by which launching a step from the host outlasts the device's work.

        Measured blocks have waited for their launches already, and in a graph nothing waits.
        """
        if step.device.kind == "cpu":
            return
        mode, device_s = step.candidate.mode, step.ledger.total
        host_s = self._host_s(step, times)
        if "graph" in mode or times.has_blocks(step.workload.dtype, mode):
            waits_s = max(0.0, host_s - device_s)
        else:
            waits_s = _overlapped_s(host_s, device_s, self.constants.launch_exponent) - device_s
        step.ledger.add("launch", Timed(waits_s, "computed"))

    def _host_s(self, step: Step, times: DeviceTimes) -> float:
        """Host time to launch a step: every kernel, or a graph as one."""
        c, mode, dtype = self.constants, step.candidate.mode, step.workload.dtype
        if "graph" in mode:
            return c.replay_launches * c.launch_s
        counts, mesh = c.modes[mode], step.candidate.mesh
        gathers = (mesh.sequence_parallel > 1) + (mesh.cfg > 1)
        host_s = times.launch_s("outside", c.outside_kernels, dtype, mode)
        host_s += gathers * counts.gather_launches * c.launch_s
        for run in self.spec.blocks:
            attentions = len(run.attentions)
            kernels = counts.attention_block_kernels * attentions
            block_s = times.launch_s(run.kind, kernels, dtype, mode)
            exchange_s = _exchange_launches(counts, mesh) * c.launch_s * attentions
            host_s += run.count * (block_s + exchange_s)
        return host_s

    def _book(
        self,
        step: Step,
        part: str,
        operation: Operation,
        rank_bytes: float,
        axes: tuple[str, ...],
        count: int,
        hidden_s: float = 0.0,
    ) -> None:
        """Books an exchange along axes, `hidden_s` of which happen behind computation."""
        groups = step.candidate.mesh.groups(step.candidate.placement, axes)
        found = self.topology.collective_s(operation, rank_bytes, groups)
        seen_s = max(0.0, found.seconds - hidden_s)
        step.ledger.add(part, Timed(seen_s, found.source), count)
        for kind, moved in self.topology.link_bytes(operation, rank_bytes, groups).items():
            step.ledger.link_bytes[kind] += moved * count

    def _around(self, workload: Workload, device: Device) -> float:
        """Seconds of text encoders and VAE on the first rank."""
        times, c, spec = self._times_on(device), self.constants, self.spec
        prompts = workload.batch * min(workload.passes, 2)
        tokens = prompts * workload.text_tokens
        single = workload.dtype == "float32"
        peak = device.single_flops_per_s if single else device.half_flops_per_s
        matmul, vae = c.matmul_efficiency, c.vae_efficiency
        if device.kind == "cpu":
            matmul = vae = c.cpu_efficiency
        weights_s = spec.encoder_parameters * workload.dtype_bytes / device.memory_bytes_per_s
        encode_s = max(2.0 * spec.encoder_parameters * tokens / (peak * matmul), weights_s)
        pixels = workload.batch * workload.frames * workload.height * workload.width
        decode_s = spec.vae_flops_per_pixel * pixels / (peak * vae)
        samples = workload.batch * spec.image_tokens(workload)
        encode = times.simple("text_encode", tokens, encode_s, workload.dtype)
        decode = times.simple("vae_decode", samples, decode_s, workload.dtype)
        return encode.seconds + decode.seconds

    def _setup_s(self, candidate: Candidate, workload: Workload) -> float:
        """Loading, and compiling or capturing where the mode does."""
        c, spec = self.constants, self.spec
        parameters = spec.transformer_parameters + spec.encoder_parameters + spec.vae_parameters
        load_s = parameters * workload.dtype_bytes / c.load_bytes_per_s
        kinds = len({run.kind for run in spec.blocks})
        compile_s = kinds * c.compile_s if "compile" in candidate.mode else 0.0
        return load_s + compile_s + (c.capture_s if "graph" in candidate.mode else 0.0)

    def _interval(self, step: Ledger, latency_s: float, steps: int) -> tuple[float, float]:
        """The 90% interval: each part as uncertain as its source, all erring in the same
        direction.
        """
        shares = self.constants.interval_share
        half_s = steps * math.fsum(s * shares[source] for (_, source), s in step.seconds.items())
        return (latency_s - half_s, latency_s + half_s)


def values_per_token(spec: ModelSpec) -> int:
    """Numbers that the transformer puts out for an image token: channels x patch area, 64 where
    unknown.
    """
    patch, channels = spec.config.get("patch_size"), spec.config.get("out_channels")
    channels = channels or spec.config.get("in_channels")
    if isinstance(patch, int) and isinstance(channels, int):
        return patch * patch * channels
    return 64


def _exchange_launches(mode: ModeConstants, mesh: Mesh) -> float:
    """Kernels that a mesh adds to each self-attention."""
    ring = mode.ring_step_launches * (mesh.ring - 1)
    return ring + (mode.exchange_launches if mesh.ulysses > 1 else 0.0)


def _overlapped_s(host_s: float, device_s: float, exponent: float) -> float:
    """Seconds of a step that is launched and worked off at the same time, more or less."""
    longer_s = max(host_s, device_s)
    shorter = min(host_s, device_s) / longer_s
    return float(longer_s * (1 + shorter**exponent) ** (1 / exponent))


def _worst_source(step: Ledger) -> Source:
    """The least certain source of a step, of those that make up more than a twentieth of it."""
    by_source: defaultdict[Source, float] = defaultdict(float)
    for (_, source), seconds in step.seconds.items():
        by_source[source] += seconds
    large = [source for source in SOURCES if by_source[source] > 0.05 * step.total]
    return large[-1] if large else "computed"


def _check_profile(profile: ModelProfile, spec: ModelSpec, cluster: ClusterProfile) -> None:
    if profile.config_hash != spec.config_hash:
        raise InputError(
            f"the model profile is of {profile.model} with config {profile.config_hash}, "
            f"{spec.name} has config {spec.config_hash}; "
            f"measure it with `ditplan profile --model {spec.name}`"
        )
    names = sorted({device.name for device in cluster.devices})
    if profile.device not in names:
        raise InputError(
            f"the model profile was measured on {profile.device}, cluster {cluster.name} has "
            f"{', '.join(names)}; measure it there with `ditplan profile --model {spec.name}`"
        )
