"""What a candidate should cost: the parts of the denoising loop on the busiest rank, and what comes
before and after.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from ditplan.planner.constants import CostConstants, MemoryConstants
from ditplan.planner.floors import Floors
from ditplan.planner.groups import listed
from ditplan.planner.memory import Memory, MemoryModel, held_parameters
from ditplan.planner.pipeline import Pipeline
from ditplan.planner.space import Candidate
from ditplan.planner.staged_timeline import staged_timeline
from ditplan.planner.timeline import Timeline, exact_timeline
from ditplan.planner.topology import Topology
from ditplan.planner.work import Ledger, RankWork, Step, worst_source
from ditplan.profiles.cluster import ClusterProfile, Device
from ditplan.profiles.errors import InputError
from ditplan.profiles.model import AttentionKernel, Mode, ModelProfile, ModelSpec
from ditplan.profiles.plan import Prediction, RingVariant
from ditplan.profiles.workload import Workload


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
        self._all_devices = self.topology.cluster.devices
        self._are_all_alike = len(set(self._all_devices)) == 1
        self._work = RankWork(self.topology, spec, profile, self.constants)
        self._memory = MemoryModel(self._work.shares, spec, self.memory_constants)
        self._around_s: dict[tuple[str, Workload], float] = {}
        self._pipelines: dict[str, tuple[object, Pipeline]] = {}
        if profile is not None:
            _check_profile(profile, spec, self.topology.cluster)

    def price(self, candidate: Candidate, workload: Workload) -> Prediction:
        """The denoising loop by cause, with interval, what surrounds it, and the busiest rank's
        memory.

        Raises:
            InputError: the cluster profile can't tell how long a collective of this mesh takes.
        """
        devices = self.devices_of(candidate)
        ledgers = [self._ledger(candidate, workload, device) for device in devices]
        ledger = max(ledgers, key=lambda found: found.total)
        times = 1 if candidate.pipefusion else workload.steps
        parts: dict[str, float] = {}
        for (part, _), seconds in ledger.seconds.items():
            parts[part] = parts.get(part, 0.0) + seconds * times
        latency_s = math.fsum(parts.values())
        around_s = self._around(workload, self._all_devices[candidate.placement[0]])
        memory = self.memory(candidate, workload, devices[0])
        return Prediction(
            latency_s=latency_s,
            interval_s=self._interval(ledger, latency_s, times),
            end_to_end_s=latency_s + around_s,
            setup_s=self._setup_s(candidate, workload),
            memory_bytes=memory.total_bytes,
            parts=parts,
            link_bytes={kind: count * times for kind, count in ledger.link_bytes.items()},
            source=worst_source(ledger),
        )

    def timeline(self, candidate: Candidate, workload: Workload) -> Timeline:
        """The loop that `price` adds up, as tasks on ranks and links.

        Raises:
            InputError: as `price`.
        """
        devices = self.devices_of(candidate)
        slowest = max(devices, key=lambda one: self._ledger(candidate, workload, one).total)
        if part := candidate.pipefusion:
            times = self._pipeline(candidate, workload, slowest).times(part)
            lines = listed(candidate.groups(("pipefusion",)))
            passes = listed(candidate.groups(("dp", "cfg")))
            return staged_timeline(self.topology, lines, passes, times)
        share = self._work.shares.of(candidate.mesh, workload)
        place = self._work.place(candidate)
        return exact_timeline(self._work, Step(candidate, workload, share, slowest, place))

    def floors(self, workload: Workload, modes: Sequence[Mode]) -> Floors:
        """What candidates cost at least in one of these modes."""
        return Floors(self._work, self._memory, workload, modes)

    def memory(self, candidate: Candidate, workload: Workload, device: Device) -> Memory:
        """What the rank that holds most has in its memory, if it were this device."""
        return self._memory.of(candidate, workload, device)

    def balanced(self, candidate: Candidate, workload: Workload) -> Candidate:
        """The candidate with stages that take equally long, as far as blocks and memory allow.

        One without PipeFusion stays as it is.
        """
        part = candidate.pipefusion
        if part is None:
            return candidate
        devices = self.devices_of(candidate)
        room = self._memory.room_for_blocks(candidate, workload, devices)
        sizes = self._memory.block_bytes(candidate, workload)
        stages = self._pipeline(candidate, workload, devices[0]).balanced(sizes, room)
        changed = part.model_copy(update={"blocks_per_stage": stages})
        return replace(candidate, pipefusion=changed)

    def attention_kernel(self, candidate: Candidate, workload: Workload) -> AttentionKernel:
        """What should compute self-attention: measured where it was, else torch's choice."""
        share = self._work.shares.of(candidate.mesh, workload)
        if part := candidate.pipefusion:
            share = self._work.shares.of_patches(candidate.mesh, workload, part.patches)[-1]
        times = self._work.times_on(self._all_devices[candidate.placement[0]])
        return times.attention_kernel(share, workload.dtype)

    def ring_variant(self, candidate: Candidate) -> RingVariant:
        """How a ring's keys and values get about."""
        return self._work.ring_variant(candidate)

    def _ledger(self, candidate: Candidate, workload: Workload, device: Device) -> Ledger:
        """A step of the busiest rank, if it were this device; with PipeFusion the whole loop."""
        if candidate.pipefusion:
            pipeline = self._pipeline(candidate, workload, device)
            return pipeline.loop(candidate.pipefusion)
        share = self._work.shares.of(candidate.mesh, workload)
        return self._work.step(candidate, workload, share, device)

    def _pipeline(self, candidate: Candidate, workload: Workload, device: Device) -> Pipeline:
        """The candidate's pipeline on a device; the one asked for last is kept."""
        part = candidate.pipefusion
        assert part is not None
        place = (candidate.mesh, candidate.placement, candidate.mode)
        key = (*place, part.patches, part.warmup_steps, workload)
        kept = self._pipelines.get(device.name)
        if kept is None or kept[0] != key:
            kept = (key, Pipeline(self._work, candidate, workload, device))
            self._pipelines[device.name] = kept
        return kept[1]

    def devices_of(self, candidate: Candidate) -> list[Device]:
        """The different devices that the candidate uses: each could be the slowest, or the
        smallest.
        """
        devices = self._all_devices
        if self._are_all_alike:
            return [devices[0]]
        return list(dict.fromkeys(devices[rank] for rank in candidate.placement))

    def _around(self, workload: Workload, device: Device) -> float:
        """Seconds of text encoders and VAE on the first rank."""
        key = (device.name, workload)
        if key not in self._around_s:
            self._around_s[key] = self._find_around(workload, device)
        return self._around_s[key]

    def _find_around(self, workload: Workload, device: Device) -> float:
        times, c, spec = self._work.times_on(device), self.constants, self.spec
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
        parameters = held_parameters(spec, self._memory.fullest_stage(candidate, workload))
        load_s = parameters * workload.dtype_bytes / c.load_bytes_per_s
        kinds = len({run.kind for run in spec.blocks})
        shapes = 1
        if part := candidate.pipefusion:
            patches = self._work.shares.of_patches(candidate.mesh, workload, part.patches)
            shapes += len({id(share) for share in patches})
        compile_s = kinds * shapes * c.compile_s if "compile" in candidate.mode else 0.0
        return load_s + compile_s + (c.capture_s if "graph" in candidate.mode else 0.0)

    def _interval(self, ledger: Ledger, latency_s: float, times: int) -> tuple[float, float]:
        """The 90% interval: each part as uncertain as its source, all erring in the same
        direction.
        """
        shares = self.constants.interval_share
        half_s = times * math.fsum(s * shares[source] for (_, source), s in ledger.seconds.items())
        return (latency_s - half_s, latency_s + half_s)


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
