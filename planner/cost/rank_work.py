"""What one rank does in a call of the transformer: its blocks, their exchanges, what is around."""

from collections.abc import Iterable
from functools import partial

from ditplan.planner.cost.activities import Activity, CollectiveCost, RingAttention
from ditplan.planner.cost.breakdown import CostBreakdown
from ditplan.planner.cost.computing import Computing
from ditplan.planner.cost.launches import Launches
from ditplan.planner.cost.mixed_devices import Loads, RankKinds, RankLoads
from ditplan.planner.cost.rank_activities import RankActivities
from ditplan.planner.cost.roofline import Timed, at_data_sheets
from ditplan.planner.cost.share import RankShard, RankShards, calls_of
from ditplan.planner.cost.step import Booked, Place, Step
from ditplan.planner.memo import Memo
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.candidate import groups_of
from ditplan.profiles.cluster import Device
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.model import Mode, ModelProfile, ModelSpec
from ditplan.profiles.workload import Dtype, Workload


class RankWork:
    """Prices what a rank does, by what was measured of the model and of the cluster: its
    activities, and the launches that they wait for.
    """

    def __init__(
        self,
        topology: Topology,
        spec: ModelSpec,
        profile: ModelProfile | None,
        constants: CostConstants,
    ) -> None:
        self.topology, self.spec, self.constants = topology, spec, constants
        self.profile = profile
        self.devices = at_data_sheets(topology.cluster.devices, constants)
        self.computing = Computing(spec, profile, constants)
        self.launches = Launches(spec, self.computing, constants)
        self.activities = RankActivities(topology, spec, self.computing, constants)
        self.shares = RankShards(spec, repeat_text=constants.text_with_every_patch)
        self._named = {device.name: device for device in self.devices}
        self._loads = RankLoads(self.shares, self._named)
        self._slowest: Memo[tuple[Loads, Mode, Dtype], Device] = Memo()
        self._places: Memo[tuple[tuple[int, ...], ...], Place] = Memo()

    def place(self, candidate: Configuration) -> Place:
        """Where the candidate's axes lie: the same one for all that differ in something else."""
        key = (candidate.mesh.degrees, candidate.placement)
        if key not in self._places:
            self._places[key] = Place(partial(groups_of, candidate))
        return self._places[key]

    def step_of(
        self,
        candidate: Configuration,
        workload: Workload,
        rank_kinds: RankKinds,
        share: RankShard,
        patch: int | None = None,
    ) -> Step:
        """A step of some ranks that wait for each other, on the whole sequence or a patch of it, of
        which none has more than `share`.
        """
        place = self.place(candidate)
        if len(rank_kinds) == 1 and candidate.token_shares is None:
            return Step(candidate, workload, share, self._named[rank_kinds[0][1]], place)
        loads = self._loads.of(candidate, workload, rank_kinds, patch)
        slowest = self._slowest_of(loads, candidate.mode, workload.dtype)
        return Step(candidate, workload, share, slowest, place, loads=loads)

    def _slowest_of(self, loads: Loads, mode: Mode, dtype: Dtype) -> Device:
        """The device that takes longest for its load."""
        key = (loads, self.computing.like_mode(mode), dtype)
        if key not in self._slowest:
            found = max(loads, key=lambda load: self.computing.blocks_s(load, mode, dtype))
            self._slowest[key] = found.device
        return self._slowest[key]

    def step(self, step: Step) -> CostBreakdown:
        """One denoising step of the busiest rank, with all blocks."""
        calls = calls_of(step.configuration.mesh, self.spec, step.workload)
        ledger = CostBreakdown()
        ledger.include_all(self._call(step), calls)
        ledger.add("scheduler", self.computing.scheduler(step.workload, step.device))
        return ledger

    def _call(self, step: Step) -> CostBreakdown:
        ledger, mesh = CostBreakdown(), step.configuration.mesh
        booked = self.booked(step)
        for run, block in zip(self.spec.blocks, booked.blocks, strict=True):
            ledger.include_all(block, run.count)
        for what in (booked.outside, booked.gather, booked.passes):
            ledger.include_all(what)
        gathers = (mesh.sequence_parallel > 1) + (mesh.batch_parallel > 1)
        host_s = self.launches.host_s(step, [run.count for run in self.spec.blocks], gathers)
        if step.device.kind != "cpu":
            waits_s = self.launches.waits_s(step, host_s, ledger.total)
            ledger.add("launch", Timed(waits_s, "computed"))
        return ledger

    def booked(self, step: Step) -> Booked:
        """What a call of the transformer takes, found once for such a step at its place."""
        of, dtype = step.configuration, step.workload.dtype
        mode = self.computing.like_mode(of.mode)
        found = step.place.booked
        key = (step.share, step.loads, step.device.name, mode, of.weights, dtype)
        if key not in found:
            activities = self.activities
            gather, passes = self._outputs(step)
            found[key] = Booked(
                blocks=tuple(
                    self._ledger(activities.of_block(step, run)) for run in self.spec.blocks
                ),
                outside=self._ledger(activities.outside(step)),
                gather=gather,
                passes=passes,
            )
        return found[key]

    def _outputs(self, step: Step) -> tuple[CostBreakdown, CostBreakdown]:
        """Putting the output's tokens together and exchanging the samples' outputs, which takes as
        long whoever computes them.
        """
        found = step.place.outputs
        key = (step.share, step.workload.dtype)
        if key not in found:
            activities = self.activities
            found[key] = self._ledger(activities.gather(step)), self._ledger(activities.cfg(step))
        return found[key]

    def _ledger(self, activities: Iterable[Activity]) -> CostBreakdown:
        ledger = CostBreakdown()
        for activity in activities:
            self._book(ledger, activity)
        return ledger

    def _book(self, ledger: CostBreakdown, activity: Activity) -> None:
        """Books what an activity takes of the rank's time."""
        if isinstance(activity, RingAttention):
            sent, passes = activity.sent, activity.blocks - 1
            ledger.add("attention", activity.attend, activity.blocks)
            ledger.add("attention", activity.stale)
            ledger.add("ring", activity.merge, activity.merges)
            ledger.add("ring", Timed(activity.first_sent_s, sent.timed.source))
            ledger.add("ring", Timed(activity.later_sent_s, sent.timed.source), passes - 1)
            self._book_bytes(ledger, sent, passes)
            return
        ledger.add(activity.part, activity.timed)
        if isinstance(activity, CollectiveCost):
            self._book_bytes(ledger, activity, 1)

    def _book_bytes(self, ledger: CostBreakdown, exchange: CollectiveCost, times: int) -> None:
        moved = self.topology.link_bytes(exchange.operation, exchange.rank_bytes, exchange.groups)
        for kind, count in moved.items():
            ledger.link_bytes[kind] += count * times
