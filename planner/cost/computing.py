"""What computing takes on devices, by what was measured of the model."""

from ditplan.planner.constants import CostConstants
from ditplan.planner.cost.breakdown import SOURCES
from ditplan.planner.cost.mixed_devices import Load
from ditplan.planner.cost.roofline import DeviceTimes, Timed
from ditplan.planner.cost.share import RankShard
from ditplan.planner.cost.step import Step
from ditplan.planner.memo import Memo
from ditplan.profiles.cluster import Device
from ditplan.profiles.model import BlockRun, Mode, ModelProfile, ModelSpec
from ditplan.profiles.workload import Dtype, Workload


class Computing:
    """Prices what ranks compute. A device is known by its name, a run of blocks by its kind."""

    def __init__(
        self, spec: ModelSpec, profile: ModelProfile | None, constants: CostConstants
    ) -> None:
        self._spec, self._profile, self._constants = spec, profile, constants
        self._times: Memo[str, DeviceTimes] = Memo()
        self._computed: Memo[tuple[object, ...], Timed] = Memo()

    def times_on(self, device: Device) -> DeviceTimes:
        """The durations of the model's parts on a device."""
        if device.name not in self._times:
            profile = self._profile
            if profile is not None and profile.device != device.name:
                profile = None
            self._times[device.name] = DeviceTimes(self._spec, profile, device, self._constants)
        return self._times[device.name]

    def blocks_s(self, load: Load, mode: Mode, dtype: Dtype) -> float:
        """Seconds that computing all blocks takes."""
        runs = self._spec.blocks
        return sum(
            run.count * self._computed_by(load.share, load.device, run, mode, dtype).seconds
            for run in runs
        )

    def computed(self, step: Step, run: BlockRun | None) -> Timed:
        """What a block of a run computes, or what is in no block (None), wherever its rank is.

        Of unlike loads the slowest counts, in attention and in what is beside it, as ranks meet
        before and after each attention.
        """
        how = (run, step.configuration.mode, step.workload.dtype)
        if not step.loads:
            return self._computed_by(step.share, step.device, *how)
        blocks = [self._computed_by(load.share, load.device, *how) for load in step.loads]
        attention_s = max(block.attention_s for block in blocks)
        beside_s = max(block.seconds - block.attention_s for block in blocks)
        source = max((block.source for block in blocks), key=SOURCES.index)
        return Timed(beside_s + attention_s, source, attention_s)

    def _computed_by(
        self, share: RankShard, device: Device, run: BlockRun | None, mode: Mode, dtype: Dtype
    ) -> Timed:
        times = self.times_on(device)
        mode = times.like_mode(mode)
        key = (share, run.kind if run else None, device.name, dtype, mode)
        if key not in self._computed:
            self._computed[key] = (
                times.block(run, share, dtype, mode) if run else times.outside(share, dtype, mode)
            )
        return self._computed[key]

    def scheduler(self, workload: Workload, device: Device) -> Timed:
        """A step of the scheduler, on latents of full size."""
        samples = workload.batch * self._spec.image_tokens(workload)
        guess_s = self._constants.scheduler_step_s
        return self.times_on(device).simple("scheduler_step", samples, guess_s, workload.dtype)
