"""What a candidate should cost: the parts of the denoising loop on the busiest rank, and what comes
before and after.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from ditplan.planner.constants import MemoryConstants
from ditplan.planner.cost.breakdown import CostBreakdown, worst_source
from ditplan.planner.cost.lower_bounds import LowerBounds
from ditplan.planner.cost.memory import Memory, MemoryModel, held_parameters
from ditplan.planner.cost.mixed_devices import ROUNDS, Load, RankKinds, rank_kinds_of, whole_shares
from ditplan.planner.cost.rank_work import RankWork
from ditplan.planner.cost.roofline import Roofline
from ditplan.planner.cost.step import Step
from ditplan.planner.cost.vae_decode import exchanges_s, largest_share
from ditplan.planner.memo import Memo
from ditplan.planner.network.groups import listed
from ditplan.planner.network.topology import Topology
from ditplan.planner.pipefusion.price import PipeFusionCost
from ditplan.planner.simulation.pipefusion_timeline import staged_timeline
from ditplan.planner.simulation.timeline import Timeline, exact_timeline
from ditplan.planner.space.candidate import groups_of
from ditplan.profiles.cluster import ClusterProfile, Device
from ditplan.profiles.configuration import Configuration, RingVariant
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.model import AttentionKernel, ModelProfile, ModelSpec
from ditplan.profiles.plan import Prediction
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
        self._work = RankWork(self.topology, spec, profile, self.constants)
        self._all_devices = self._work.devices
        self._are_all_alike = len(set(self._all_devices)) == 1
        self._one_kind: RankKinds = ((None, self._all_devices[0].name),)
        self._memory = MemoryModel(self._work.shares, spec, self.memory_constants)
        self._around_s: Memo[tuple[str, Workload, tuple[int, ...]], float] = Memo()
        self._token_shares: Memo[tuple[object, ...], tuple[int, ...] | None] = Memo()
        self._pipefusion_costs: Memo[tuple[int, ...], tuple[object, PipeFusionCost]] = Memo()
        if profile is not None:
            _check_profile(profile, spec, self.topology.cluster)

    def price(self, candidate: Configuration, workload: Workload) -> Prediction:
        """The denoising loop by cause, with interval, what surrounds it, and the busiest rank's
        memory.

        Raises:
            InputError: the cluster profile can't tell how long a collective of this mesh takes.
        """
        step = self._ledger(candidate, workload)
        computed = 1 if candidate.pipefusion else workload.steps
        if candidate.step_cache:
            computed = candidate.step_cache.computed_steps(workload.steps)
        ledger = CostBreakdown()
        ledger.include_all(step, computed)
        if candidate.step_cache:
            ledger.include_part("scheduler", step, workload.steps - computed)
        parts: dict[str, float] = {}
        for (part, _), seconds in ledger.seconds.items():
            parts[part] = parts.get(part, 0.0) + seconds
        latency_s = math.fsum(parts.values())
        around_s = self._around(candidate, workload)
        memory = self.memory(candidate, workload, self.devices_of(candidate)[0])
        return Prediction(
            latency_s=latency_s,
            interval_s=self._interval(ledger, latency_s),
            end_to_end_s=latency_s + around_s,
            setup_s=self._setup_s(candidate, workload),
            memory_bytes=memory.total_bytes,
            parts=parts,
            link_bytes=dict(ledger.link_bytes),
            source=worst_source(ledger),
        )

    def timeline(self, candidate: Configuration, workload: Workload) -> Timeline:
        """The loop that `price` adds up, as tasks on ranks and links.

        Raises:
            InputError: as `price`.
        """
        if part := candidate.pipefusion:
            times = self._pipefusion_cost(candidate, workload).times(part)
            lines = listed(groups_of(candidate, ("pipefusion",)))
            passes = listed(groups_of(candidate, ("dp", "cfg")))
            return staged_timeline(self.topology, lines, passes, times)
        return exact_timeline(self._work, self._slowest_step(candidate, workload))

    def lower_bounds(self, workload: Workload) -> LowerBounds:
        """What candidates cost at least."""
        return LowerBounds(self._work, self._memory, workload)

    def memory(
        self, candidate: Configuration, workload: Workload, device: Device, stage: int | None = None
    ) -> Memory:
        """What the rank that holds most, of all or of one stage, has in its memory, if it were this
        device.
        """
        return self._memory.of(candidate, workload, device, stage)

    def balanced(self, candidate: Configuration, workload: Workload) -> Configuration:
        """The candidate with stages that take equally long, as far as blocks and memory allow.

        One without PipeFusion stays as it is.
        """
        part = candidate.pipefusion
        if part is None:
            return candidate
        found = self.devices_of_stages(candidate)
        distinct = {_names(devices): devices for devices in found}
        room_of = {
            names: self._memory.room_for_blocks(candidate, workload, devices)
            for names, devices in distinct.items()
        }
        rooms = [room_of[_names(devices)] for devices in found]
        sizes = self._memory.block_bytes(candidate, workload)
        stages = self._pipefusion_cost(candidate, workload).balanced(sizes, rooms)
        changed = part.model_copy(update={"blocks_per_stage": stages})
        return replace(candidate, pipefusion=changed)

    def shared_by_speed(self, candidate: Configuration, workload: Workload) -> Configuration:
        """The candidate with shares of the tokens in proportion to the speeds of their ranks: for
        each place in a sequence that of its slowest rank in any of the sequences, and stages.

        As it is where these are equal. Places with the same devices have the same share.
        """
        places = candidate.mesh.sequence_parallel
        if self._are_all_alike or places == 1 or len(self.devices_of(candidate)) == 1:
            return candidate
        # whatever the patches are
        mode = self._work.computing.like_mode(candidate.mode)
        key = (candidate.mesh.degrees, candidate.placement, mode, workload)
        if key not in self._token_shares:
            self._token_shares[key] = self._shares_by_speed(candidate, workload)
        weights = self._token_shares[key]
        return candidate if weights is None else replace(candidate, token_shares=weights)

    def _shares_by_speed(
        self, candidate: Configuration, workload: Workload
    ) -> tuple[int, ...] | None:
        places = candidate.mesh.sequence_parallel
        at_place = list(zip(*self._sequences(candidate), strict=True))
        kinds = [frozenset(device.name for device in devices) for devices in at_place]
        weights: tuple[int, ...] | None = None
        for _ in range(ROUNDS):
            shared = replace(candidate, token_shares=weights)
            taken_s: defaultdict[frozenset[str], float] = defaultdict(float)
            for place, (kind, devices) in enumerate(zip(kinds, at_place, strict=True)):
                seconds = (self._blocks_s(shared, workload, place, one) for one in set(devices))
                taken_s[kind] = max(taken_s[kind], *seconds)
            known = weights or (1,) * places
            weights = whole_shares([w / taken_s[k] for w, k in zip(known, kinds, strict=True)])
            if weights is None:
                return None
        return weights

    def _blocks_s(
        self, candidate: Configuration, workload: Workload, place: int, device: Device
    ) -> float:
        shares = candidate.token_shares
        of_place = None if shares is None else place
        share = self._work.shares.of(candidate.mesh, workload, shares, of_place)
        return self._work.computing.blocks_s(Load(share, device), candidate.mode, workload.dtype)

    def attention_kernel(self, candidate: Configuration, workload: Workload) -> AttentionKernel:
        """What should compute self-attention: measured where it was, else torch's choice."""
        share = self._work.shares.of(candidate.mesh, workload)
        if part := candidate.pipefusion:
            share = self._work.shares.of_patches(candidate.mesh, workload, part.patches)[-1]
        times = self._work.computing.times_on(self._all_devices[candidate.placement[0]])
        return times.attention_kernel(share, workload.dtype)

    def ring_variant(self, candidate: Configuration) -> RingVariant:
        """How a ring's keys and values get about."""
        return self._work.activities.ring_variant(self._work.place(candidate))

    def _ledger(self, candidate: Configuration, workload: Workload) -> CostBreakdown:
        """A step of the slowest ranks that share a sequence; with PipeFusion the whole loop."""
        if candidate.pipefusion:
            return self._pipefusion_cost(candidate, workload).loop(candidate.pipefusion)
        steps = (
            self._step(candidate, workload, rank_kinds)
            for rank_kinds in self._kinds_of_sequences(candidate)
        )
        return max(map(self._work.step, steps), key=lambda found: found.total)

    def _slowest_step(self, candidate: Configuration, workload: Workload) -> Step:
        steps = (
            self._step(candidate, workload, rank_kinds)
            for rank_kinds in self._kinds_of_sequences(candidate)
        )
        return max(steps, key=lambda step: self._work.step(step).total)

    def _step(self, candidate: Configuration, workload: Workload, rank_kinds: RankKinds) -> Step:
        share = self._work.shares.of(candidate.mesh, workload, candidate.token_shares)
        return self._work.step_of(candidate, workload, rank_kinds, share)

    def _kinds_of_sequences(self, candidate: Configuration) -> list[RankKinds]:
        """The ranks of each sequence of an exact candidate, as far as sequences differ."""
        if self._are_all_alike and candidate.token_shares is None:
            return [self._one_kind]
        kinds_of_stages = (
            rank_kinds_of(candidate, [group]) for group in self._sequences(candidate)
        )
        return list(dict.fromkeys(kinds_of_stages))

    def _kinds_of_stages(self, candidate: Configuration) -> tuple[RankKinds, ...]:
        """The ranks of each stage, of all sequences."""
        stages = candidate.mesh.pipefusion
        if self._are_all_alike and candidate.token_shares is None:
            return (self._one_kind,) * stages
        groups = self._sequences(candidate)
        return tuple(rank_kinds_of(candidate, groups[stage::stages]) for stage in range(stages))

    def _sequences(self, candidate: Configuration) -> list[list[Device]]:
        """The devices that share a sequence, or a stage's part of its blocks: dp, cfg, stages."""
        size, ranks = candidate.mesh.sequence_parallel, candidate.placement
        devices = [self._all_devices[rank] for rank in ranks]
        return [devices[first : first + size] for first in range(0, len(ranks), size)]

    def _pipefusion_cost(self, candidate: Configuration, workload: Workload) -> PipeFusionCost:
        """The candidate's pipeline; of those with such a mesh the one asked for last is kept."""
        part = candidate.pipefusion
        assert part is not None
        key = (
            candidate.placement,
            candidate.mode,
            candidate.token_shares,
            part.patches,
            part.warmup_steps,
            part.schedule,
            candidate.weights,
            workload,
        )
        kept = self._pipefusion_costs.get(candidate.mesh.degrees)
        if kept is None or kept[0] != key:
            kinds_of_stages = self._kinds_of_stages(candidate)
            kept = (key, PipeFusionCost(self._work, candidate, workload, kinds_of_stages))
            self._pipefusion_costs[candidate.mesh.degrees] = kept
        return kept[1]

    def devices_of_stages(self, candidate: Configuration) -> list[list[Device]]:
        """The different devices of each stage."""
        stages = candidate.mesh.pipefusion
        if self._are_all_alike:
            return [[self._all_devices[0]]] * stages
        groups = self._sequences(candidate)
        return [
            list(dict.fromkeys(itertools.chain(*groups[stage::stages]))) for stage in range(stages)
        ]

    def devices_of(self, candidate: Configuration) -> list[Device]:
        """The different devices that the candidate uses: each could be the slowest, or the
        smallest.
        """
        devices = self._all_devices
        if self._are_all_alike:
            return [devices[0]]
        return list(dict.fromkeys(devices[rank] for rank in candidate.placement))

    def _around(self, candidate: Configuration, workload: Workload) -> float:
        """Seconds of text encoders on the first rank and of the VAE on the slowest that decodes."""
        decoding = candidate.vae_ranks[: candidate.vae_parallel]
        first = self._all_devices[candidate.placement[0]]
        key = (first.name, workload, decoding if len(decoding) > 1 else ())
        if key not in self._around_s:
            encode_s, decode_s = self._find_around(workload, first)
            if len(decoding) > 1:
                devices = {self._all_devices[rank] for rank in decoding}
                slowest_s = max(self._find_around(workload, one)[1] for one in devices)
                decode_s = slowest_s * largest_share(self.spec, workload, len(decoding))
                decode_s += exchanges_s(
                    self.topology, self.spec, workload, decoding, self.constants
                )
            self._around_s[key] = encode_s + decode_s
        return self._around_s[key]

    def _find_around(self, workload: Workload, device: Device) -> tuple[float, float]:
        """Seconds of text encoders and of the VAE's decoder, all rows, on a device."""
        times, c, spec = self._work.computing.times_on(device), self.constants, self.spec
        roofline = Roofline(device, workload.dtype, "eager", c)
        prompts = workload.batch * min(workload.passes, 2)
        flops = 2.0 * spec.encoder_parameters * prompts * workload.text_tokens
        weights_s = spec.encoder_parameters * workload.dtype_bytes / device.memory_bytes_per_s
        encode_s = max(roofline.flops_s(flops, c.matmul_efficiency), weights_s)
        pixels = workload.batch * workload.frames * workload.height * workload.width
        flops = spec.vae_flops_per_pixel * pixels
        carried = flops / c.vae_flops_per_byte * workload.dtype_bytes / 2
        carried_s = carried / device.memory_bytes_per_s
        decode_s = max(roofline.flops_s(flops, c.matmul_efficiency), carried_s)
        samples = workload.batch * spec.image_tokens(workload)
        encode = times.simple(
            "text_encode", prompts * workload.text_tokens, encode_s, workload.dtype
        )
        decode = times.simple("vae_decode", samples, decode_s, workload.dtype)
        return encode.seconds, decode.seconds

    def _setup_s(self, candidate: Configuration, workload: Workload) -> float:
        """Loading, and compiling or capturing where the mode does."""
        c, spec = self.constants, self.spec
        parameters = held_parameters(spec, self._memory.fullest_stage(candidate, workload))
        load_s = parameters * workload.dtype_bytes / c.load_bytes_per_s
        kinds = len({run.kind for run in spec.blocks})
        shapes = 1
        if part := candidate.pipefusion:
            patches = self._work.shares.of_patches(candidate.mesh, workload, part.patches)
            shapes += len(set(patches))
        compile_s = kinds * shapes * c.compile_s if "compile" in candidate.mode else 0.0
        return load_s + compile_s + (c.capture_s if "graph" in candidate.mode else 0.0)

    @cached_property
    def _computed_share(self) -> float:
        """How uncertain is what is computed for the device of which least is known."""
        unmeasured = [device for device in self._all_devices if not device.measured]
        if not unmeasured:
            return self.constants.interval_share["computed"]
        if all(device.matmul_share and device.attention_share for device in unmeasured):
            return self.constants.fitted_share
        return self.constants.data_sheet_share

    def _interval(self, ledger: CostBreakdown, latency_s: float) -> tuple[float, float]:
        """The 90% interval: each part as uncertain as its source, all erring in the same
        direction.
        """
        shares = self.constants.interval_share | {"computed": self._computed_share}
        half_s = math.fsum(s * shares[source] for (_, source), s in ledger.seconds.items())
        return (latency_s - half_s, latency_s + half_s)


def _names(devices: Sequence[Device]) -> tuple[str, ...]:
    return tuple(device.name for device in devices)


def _check_profile(profile: ModelProfile, spec: ModelSpec, cluster: ClusterProfile) -> None:
    if profile.config_hash != spec.config_hash:
        raise InputError(
            f"the model profile is of {profile.model} with config {profile.config_hash}, "
            f"{spec.name} has config {spec.config_hash}; measure it with `",
            Command("profile", (Setting("model", spec.name),)),
            "`",
        )
    names = sorted({device.name for device in cluster.devices})
    if profile.device not in names:
        raise InputError(
            f"the model profile was measured on {profile.device}, cluster {cluster.name} has "
            f"{', '.join(names)}; measure it there with `",
            Command("profile", (Setting("model", spec.name),)),
            "`",
        )
