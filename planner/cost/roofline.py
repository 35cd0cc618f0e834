"""How long one device computes: by measured points where there are any, else by a roofline."""

import bisect
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ditplan.planner.cost.share import (
    RankShard,
    attention_flops,
    linear_flops,
    point_share,
    width_of,
)
from ditplan.planner.memo import Memo
from ditplan.profiles.cluster import Device
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.model import (
    AttentionKernel,
    BlockRun,
    Mode,
    ModelProfile,
    ModelSpec,
    Source,
    TimePoint,
)
from ditplan.profiles.workload import DTYPE_BYTES, Dtype

SIBLINGS: dict[Mode, tuple[Mode, ...]] = {
    "eager": ("graph", "compile", "compile+graph"),
    "compile": ("compile+graph", "graph", "eager"),
    "graph": ("eager", "compile+graph", "compile"),
    "compile+graph": ("compile", "graph", "eager"),
}
"""Modes whose measured efficiency stands in for one that wasn't measured, most alike first."""

SAME_SIZE = 0.02
"""Logarithms of sizes nearer than this count as one size: uneven splits round to one token more
or less."""


def at_data_sheets(devices: Sequence[Device], constants: CostConstants) -> tuple[Device, ...]:
    """The devices, GPUs whose rates were measured with those that their data sheets would have."""
    products, copies = constants.product_share, constants.copy_share
    known = {
        device: device.model_copy(
            update={
                "half_flops_per_s": device.half_flops_per_s / products,
                "single_flops_per_s": device.single_flops_per_s / products,
                "memory_bytes_per_s": device.memory_bytes_per_s / copies,
            }
        )
        for device in set(devices)
        if device.measured and device.kind != "cpu"
    }
    return tuple(known.get(device, device) for device in devices)


@dataclass(frozen=True)
class Roofline:
    """A device's rates for one dtype and mode."""

    device: Device
    dtype: Dtype
    mode: Mode
    constants: CostConstants

    @property
    def peak_flops_per_s(self) -> float:
        """The device's peak for the dtype."""
        single = self.dtype == "float32"
        return self.device.single_flops_per_s if single else self.device.half_flops_per_s

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one number."""
        return DTYPE_BYTES[self.dtype]

    @property
    def matmul_share(self) -> float:
        """What large matrix products reach of the peak."""
        known = self.device.matmul_share
        return self.constants.matmul_efficiency if known is None else known

    def bytes_s(self, count: float) -> float:
        """Seconds to read or write so many bytes of the device's memory."""
        return count / (self.device.memory_bytes_per_s * self.constants.bandwidth_efficiency)

    def flops_s(
        self, flops: float, efficiency: float, size: float = 1.0, half: float = 0.0
    ) -> float:
        """Seconds for FLOPs at an efficiency that is reached for large `size` and halved at
        `half`.
        """
        if self.device.kind == "cpu":
            efficiency, half = self.constants.cpu_efficiency, 0.0
        return flops / (self.peak_flops_per_s * efficiency) * (1 + half / max(1.0, size))

    def linear_s(self, run: BlockRun, share: RankShard) -> float:
        """A block without self-attention: products, at least the reading of its weights, and
        element-wise passes.
        """
        c = self.constants
        products_s = self.flops_s(
            linear_flops(run, share), self.matmul_share, share.rows, c.matmul_half_rows
        )
        weights_s = self.bytes_s(run.parameters * self.dtype_bytes)
        hidden_bytes = share.rows * width_of(run) * self.dtype_bytes
        return max(products_s, weights_s) + self.bytes_s(
            c.modes[self.mode].elementwise_passes * hidden_bytes
        )

    def attention_s(self, run: BlockRun, share: RankShard) -> float:
        """The self-attentions of a block."""
        c, queries = self.constants, share.batch * sum(share.queries.values())
        efficiency = self.device.attention_share
        if efficiency is None:
            # the softmax takes as long with small heads
            head_dim = run.attentions[0].head_dim
            softmax = c.softmax_head_dim
            efficiency = c.attention_efficiency * (1 + softmax / 128) / (1 + softmax / head_dim)
        return self.flops_s(
            attention_flops(run, share), efficiency, queries, c.attention_half_queries
        )

    def outside_s(self, spec: ModelSpec, share: RankShard) -> float:
        """Everything in the transformer that is not a block."""
        c = self.constants
        flops = share.batch * (
            spec.outside_image_flops * share.tokens["image"]
            + spec.outside_text_flops * share.tokens["text"]
        )
        weights_s = self.bytes_s(spec.outside_parameters * self.dtype_bytes)
        return max(
            self.flops_s(flops, self.matmul_share, share.rows, c.matmul_half_rows), weights_s
        )


class Timed(NamedTuple):
    """Seconds of a part and where they come from; a tuple, as very many are made.

    `attention_s` is the share of self-attention in them.
    """

    seconds: float
    source: Source
    attention_s: float = 0.0


@dataclass
class Lines:
    """Measured over predicted time, as logarithms, by rows and then by query-key pairs (both as
    logarithms).
    """

    ratios: dict[float, list[tuple[float, float]]] = field(default_factory=dict)

    def ratio_at(self, rows: float, pairs: float) -> tuple[float, Source]:
        """The factor by which to correct a roofline at a size; 1 where there is no measurement at
        all.

        Straight lines in log-log over the pairs of each measured number of rows, then over rows;
        the nearest measured factor outside the grid.
        """
        if not self.ratios:
            return 1.0, "computed"
        x, y = math.log(max(rows, 1.0)), math.log(max(pairs, 1.0))
        xs = sorted(self.ratios)
        i = bisect.bisect_left(xs, x - 1e-9)
        near = xs[i : i + 1] if i < len(xs) and abs(xs[i] - x) < 1e-9 else xs[max(0, i - 1) : i + 1]
        values = [line_at(self.ratios[known], y) for known in near]
        points = list(zip(near, (value for value, _ in values), strict=True))
        ratio, inside = line_at(points, x)
        hit = (
            len(near) == 1
            and inside
            and any(abs(p - y) < SAME_SIZE for p, _ in self.ratios[near[0]])
        )
        if hit:
            return math.exp(ratio), "measured"
        within = inside and all(known_inside for _, known_inside in values)
        return math.exp(ratio), "interpolated" if within else "computed"


def line_at(points: Sequence[tuple[float, float]], x: float) -> tuple[float, bool]:
    """The value of a piecewise straight line through sorted points, and whether x lies between
    its ends.
    """
    if x <= points[0][0]:
        return points[0][1], x >= points[0][0] - SAME_SIZE
    if x >= points[-1][0]:
        return points[-1][1], x <= points[-1][0] + SAME_SIZE
    i = bisect.bisect_left(points, (x, -math.inf))
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0), True


def lines_through(triples: Sequence[tuple[float, float, float]]) -> Lines:
    """Lines through (rows, pairs, measured / predicted).

    Points of the same size count by their mean.
    """
    grid: defaultdict[float, defaultdict[float, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for rows, pairs, ratio in triples:
        grid[math.log(max(rows, 1.0))][math.log(max(pairs, 1.0))].append(math.log(ratio))
    return Lines(
        {
            rows: sorted((pairs, sum(logs) / len(logs)) for pairs, logs in line.items())
            for rows, line in grid.items()
        }
    )


def block_size(run: BlockRun, share: RankShard) -> tuple[float, float]:
    """A block's place on the grid: rows, and the pairs of its widest self-attention."""
    return share.rows, max(share.pairs(attention) for attention in run.attentions)


def shape_of(point: TimePoint) -> tuple[int, int, int, int]:
    """What a point was measured at, as `point_share` takes it."""
    return point.batch, point.image_tokens, point.text_tokens, point.key_tokens


class DeviceTimes:
    """Durations of a model's parts on one device.

    Remembers what it derived from the measured points.
    """

    def __init__(
        self,
        spec: ModelSpec,
        profile: ModelProfile | None,
        device: Device,
        constants: CostConstants,
    ) -> None:
        """`profile` must be of this model and device."""
        self.spec, self.profile, self.device, self.constants = spec, profile, device, constants
        self._known: Memo[tuple[str, Mode], list[TimePoint]] = Memo()
        self._lines: Memo[tuple[str, Mode], Lines] = Memo()

    def block(self, run: BlockRun, share: RankShard, dtype: Dtype, mode: Mode) -> Timed:
        """One block of a run, on the device's clock (without waiting for launches unless
        measured so).
        """
        roofline = self._roofline(dtype, mode)
        attention_s = roofline.attention_s(run, share)
        guess_s = roofline.linear_s(run, share) + attention_s
        if self.profile is None:
            return Timed(guess_s, "computed", attention_s)
        size = block_size(run, share)

        def ratio_in(known: Mode) -> tuple[float, Source]:
            return self._block_lines(run, dtype, known).ratio_at(*size)

        ratio, source = self._correction(run.kind, dtype, mode, ratio_in)
        return Timed(guess_s * ratio, source, attention_s * ratio)

    def launch_s(self, part: str, kernels: float, dtype: Dtype, mode: Mode) -> float:
        """Host time to launch a part, whatever its size: measured, else that of so many kernels."""
        measured = [p.host_s for p in self._points(part, mode, dtype) if p.host_s is not None]
        return statistics.median(measured) if measured else kernels * self.constants.launch_s

    def attention_kernel(self, share: RankShard, dtype: Dtype) -> AttentionKernel:
        """The kernel that was fastest at the measured attention most like this rank's."""
        points = self._points("attention", "eager", dtype)
        if not points:
            return "auto"
        rows, keys = share.rows, sum(share.keys.values())

        def distance(point: TimePoint) -> float:
            own = point.batch * (point.image_tokens + point.text_tokens)
            return abs(math.log(own / rows)) + abs(math.log(point.key_tokens / keys))

        # two shapes can be equally far, and kernels are compared at one
        nearest = shape_of(min(points, key=distance))
        alike = [point for point in points if shape_of(point) == nearest]
        return min(alike, key=lambda point: point.median_s).kernel

    def has_blocks(self, dtype: Dtype, mode: Mode) -> bool:
        """Whether every kind of block was measured."""
        return all(self._points(run.kind, mode, dtype) for run in self.spec.blocks)

    def outside(self, share: RankShard, dtype: Dtype, mode: Mode) -> Timed:
        """The transformer without its blocks."""
        guess_s = max(self._roofline(dtype, mode).outside_s(self.spec, share), 1e-9)

        def guess_at(point: TimePoint) -> float:
            at = point_share(*shape_of(point))
            return max(self._roofline(dtype, mode).outside_s(self.spec, at), 1e-9)

        def ratio_in(known: Mode) -> tuple[float, Source]:
            return lines_through(
                [
                    (p.batch * (p.image_tokens + p.text_tokens), 1.0, p.median_s / guess_at(p))
                    for p in self._points("outside", known, dtype)
                ]
            ).ratio_at(share.rows, 1.0)

        ratio, source = self._correction("outside", dtype, mode, ratio_in)
        return Timed(guess_s * ratio, source)

    def simple(self, part: str, size: float, guess_s: float, dtype: Dtype) -> Timed:
        """A part whose time goes by one size (batch x image tokens, or text tokens) at large sizes.

        `guess_s` is the roofline at `size`; measured points correct it in proportion to their own
        size.
        """
        points = sorted(
            (math.log(max(1, p.batch * (p.image_tokens or p.text_tokens))), math.log(p.median_s))
            for p in self._points(part, "eager", dtype)
        )
        if not points:
            return Timed(guess_s, "computed")
        x = math.log(max(1.0, size))
        seconds, inside = line_at(points, x)
        if inside:
            return Timed(math.exp(seconds), "interpolated" if len(points) > 1 else "measured")
        grown = max(0.0, x - points[-1][0])
        return Timed(math.exp(seconds + grown), "computed")

    def _roofline(self, dtype: Dtype, mode: Mode) -> Roofline:
        return Roofline(self.device, dtype, mode, self.constants)

    def _points(self, part: str, mode: Mode, dtype: Dtype) -> list[TimePoint]:
        if self.profile is None or self.profile.dtype != dtype:
            return []
        if (part, mode) not in self._known:
            points = self.profile.points
            self._known[part, mode] = [p for p in points if p.part == part and p.mode == mode]
        return self._known[part, mode]

    def _correction(
        self,
        part: str,
        dtype: Dtype,
        mode: Mode,
        ratio_in: Callable[[Mode], tuple[float, Source]],
    ) -> tuple[float, Source]:
        """The factor on the roofline of a mode: its own, or one of other modes.

        What was measured uncaptured may hold time that the device waited for launches. A graph
        doesn't wait, so of the other modes' factors the least is nearest to its own.
        """
        if self._points(part, mode, dtype):
            return ratio_in(mode)
        others = [known for known in SIBLINGS[mode] if self._points(part, known, dtype)]
        if not others:
            return 1.0, "computed"
        found = [ratio_in(known) for known in others]
        ratio, source = min(found) if "graph" in mode else found[0]
        return ratio, "interpolated" if source == "measured" else source

    def _block_lines(self, run: BlockRun, dtype: Dtype, mode: Mode) -> Lines:
        """A block's measured over predicted time in a mode, for the only dtype with points."""
        key = (run.kind, mode)
        if key not in self._lines:
            roofline = self._roofline(dtype, mode)
            triples = []
            for point in self._points(run.kind, mode, dtype):
                share = point_share(*shape_of(point))
                guess_s = roofline.linear_s(run, share) + roofline.attention_s(run, share)
                triples.append((*block_size(run, share), point.median_s / guess_s))
            self._lines[key] = lines_through(triples)
        return self._lines[key]


def overlapped_s(host_s: float, device_s: float, exponent: float) -> float:
    """Seconds of a step that is launched and worked off at the same time, more or less."""
    longer_s = max(host_s, device_s)
    if math.isinf(exponent):
        return longer_s
    shorter = min(host_s, device_s) / longer_s
    return float(longer_s * (1 + shorter**exponent) ** (1 / exponent))
