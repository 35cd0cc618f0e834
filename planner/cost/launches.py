"""What it takes the host to launch a rank's work, and how long the device waits for that."""

import math
from collections.abc import Sequence

from ditplan.planner.cost.computing import Computing
from ditplan.planner.cost.roofline import overlapped_s
from ditplan.planner.cost.step import Step
from ditplan.planner.memo import Memo
from ditplan.profiles.cost_constants import CostConstants, ModeConstants
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec


class Launches:
    """Prices what hosts launch."""

    def __init__(self, spec: ModelSpec, computing: Computing, constants: CostConstants) -> None:
        self._spec, self._computing, self._constants = spec, computing, constants
        self._host_s: Memo[tuple[object, ...], float] = Memo()

    def waits_s(self, step: Step, host_s: float, device_s: float) -> float:
        """By how much launching work from the host outlasts what the device does of it.

        Measured blocks have waited for their launches already, and in a graph nothing waits.
        """
        return overlapped_s(host_s, device_s, self.exponent(step)) - device_s

    def exponent(self, step: Step) -> float:
        """How well launching and working off overlap; infinite where one hides the other."""
        mode, times = step.configuration.mode, self._computing.times_on(step.device)
        if "graph" in mode or times.has_blocks(step.workload.dtype, mode):
            return math.inf
        return self._constants.launch_exponent

    def host_s(self, step: Step, counts: Sequence[int], gathers: int) -> float:
        """Host time to launch so many blocks of each run, what is around them, and gatherings of
        the output: every kernel, or a graph as one.
        """
        c, mode, dtype = self._constants, step.configuration.mode, step.workload.dtype
        mesh = step.configuration.mesh
        if "graph" in mode:
            return c.replay_launches * c.launch_s
        key = (mode, dtype, step.device.name, *counts, gathers, mesh.ring, mesh.ulysses > 1)
        if key not in self._host_s:
            self._host_s[key] = self._launched_s(step, counts, gathers)
        return self._host_s[key]

    def _launched_s(self, step: Step, counts: Sequence[int], gathers: int) -> float:
        c, mode, dtype = self._constants, step.configuration.mode, step.workload.dtype
        times, mode_counts = self._computing.times_on(step.device), c.modes[mode]
        host_s = times.launch_s("outside", c.outside_kernels, dtype, mode)
        host_s += gathers * mode_counts.gather_launches * c.launch_s
        for run, count in zip(self._spec.blocks, counts, strict=True):
            attentions, kernels = (
                len(run.attentions),
                mode_counts.operation_launches * run.operations,
            )
            block_s = times.launch_s(run.kind, kernels, dtype, mode)
            exchange_s = _exchange_launches(mode_counts, step.configuration.mesh) * c.launch_s
            host_s += count * (block_s + exchange_s * attentions)
        return host_s


def _exchange_launches(mode: ModeConstants, mesh: Mesh) -> float:
    """Kernels that a mesh adds to each self-attention."""
    ring = mode.ring_step_launches * (mesh.ring - 1)
    return ring + (mode.exchange_launches if mesh.ulysses > 1 else 0.0)
