"""What computing takes on devices, by what was measured of the model."""

from collections.abc import Iterable

from ditplan.planner.cost.breakdown import SOURCES
from ditplan.planner.cost.mixed_devices import Load
from ditplan.planner.cost.roofline import DeviceTimes, Timed
from ditplan.planner.cost.share import RankShard
from ditplan.planner.cost.step import Step
from ditplan.planner.memo import Memo
from ditplan.profiles.cluster import Device
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.model import BlockRun, Mode, ModelProfile, ModelSpec
from ditplan.profiles.workload import Dtype, Workload


class Computing:
    """Prices what ranks compute. A device is known by its name, a run of blocks by its kind."""

    def __init__(
        self, spec: ModelSpec, profile: ModelProfile | None, constants: CostConstants
    ) -> None:
        self._spec, self._profile, self._constants = spec, profile, constants
        first_of: dict[float, Mode] = {}
        self._like: dict[Mode, Mode] = {
            mode: mode if profile else first_of.setdefault(of_mode.elementwise_passes, mode)
            for mode, of_mode in constants.modes.items()
        }
        kinds = [*(run.kind for run in spec.blocks), None]
        self._places = {kind: place for place, kind in enumerate(kinds)}
        self._of_loads: Memo[tuple[object, ...], tuple[Timed, ...]] = Memo()
        self._times: Memo[str, DeviceTimes] = Memo()
        self._computed: Memo[tuple[object, ...], tuple[Timed, ...]] = Memo()

    def times_on(self, device: Device) -> DeviceTimes:
        """The durations of the model's parts on a device."""
        if device.name not in self._times:
            profile = self._profile
            if profile is not None and profile.device != device.name:
                profile = None
            self._times[device.name] = DeviceTimes(self._spec, profile, device, self._constants)
        return self._times[device.name]

    def like_mode(self, mode: Mode) -> Mode:
        """The first mode in which devices compute just as long as in this one: where nothing was
        measured modes differ in their passes over memory alone.
        """
        return self._like[mode]

    def blocks_s(self, load: Load, mode: Mode, dtype: Dtype) -> float:
        """Seconds that computing all blocks takes."""
        *blocks, _ = self._parts(load.share, load.device, self._like[mode], dtype)
        return sum(
            run.count * block.seconds for run, block in zip(self._spec.blocks, blocks, strict=True)
        )

    def computed(self, step: Step, run: BlockRun | None) -> Timed:
        """What a block of a run computes, or what is in no block (None), wherever its rank is.

        Of unlike loads the slowest counts, in attention and in what is beside it, as ranks meet
        before and after each attention.
        """
        mode, dtype = self._like[step.configuration.mode], step.workload.dtype
        place = self._places[run.kind if run else None]
        if not step.loads:
            return self._parts(step.share, step.device, mode, dtype)[place]
        key = (step.loads, mode, dtype)
        if key not in self._of_loads:
            parts = [self._parts(one.share, one.device, mode, dtype) for one in step.loads]
            self._of_loads[key] = tuple(map(_slowest, zip(*parts, strict=True)))
        return self._of_loads[key][place]

    def _parts(
        self, share: RankShard, device: Device, mode: Mode, dtype: Dtype
    ) -> tuple[Timed, ...]:
        """A block of each run, and what is in none."""
        key = (share, device.name, dtype, mode)
        if key not in self._computed:
            times = self.times_on(device)
            blocks = (times.block(run, share, dtype, mode) for run in self._spec.blocks)
            self._computed[key] = (*blocks, times.outside(share, dtype, mode))
        return self._computed[key]

    def scheduler(self, workload: Workload, device: Device) -> Timed:
        """A step of the scheduler, on latents of full size."""
        samples = workload.batch * self._spec.image_tokens(workload)
        guess_s = self._constants.scheduler_step_s
        return self.times_on(device).simple("scheduler_step", samples, guess_s, workload.dtype)


def _slowest(of_loads: Iterable[Timed]) -> Timed:
    """One part for all loads, by who takes longest."""
    found = tuple(of_loads)
    attention_s = max(one.attention_s for one in found)
    beside_s = max(one.seconds - one.attention_s for one in found)
    source = max((one.source for one in found), key=SOURCES.index)
    return Timed(beside_s + attention_s, source, attention_s)
