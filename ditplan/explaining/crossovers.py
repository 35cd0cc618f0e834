"""Where another plan would be chosen: at which resolution, steps, bandwidth and number of GPUs.

Along each axis the plan is compared with those that are fast here and at the axis's ends. The first
value at which another one is chosen is found by bisection, on both sides of the plan's own value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ditplan.explaining.checks import check_line
from ditplan.explaining.contenders import (
    Contender,
    Point,
    contender_of_plan,
    contenders_at,
    named,
)
from ditplan.explaining.subject import Subject
from ditplan.planner.network.scaled_links import with_links_scaled
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.limits import ModelLimits, workload_fault
from ditplan.profiles.workload import Workload

Axis = Literal["resolution", "steps", "bandwidth", "gpus"]

SMALLEST_EDGE, LARGEST_EDGE, EDGE_STEP = 256, 4096, 64
"""Pixels of the longer edge that are looked at."""

MOST_STEPS = 100
FACTORS = tuple(float(f"{2 ** (place / 16):.3g}") for place in range(-96, 97))
"""Times the bandwidth, from a 64th to 64 times, as many digits as a command has."""

HERE, AT_ENDS = 10, 5
"""So many meshes are compared of those that are fast here, and at each end of an axis."""


@dataclass(frozen=True)
class Compared:
    """The plan against its best rival at a value of an axis.

    `own_s` and `rival_s` are seconds of denoising, None where it can't run or doesn't fit;
    `own_lead` and `rival_lead` are how many times as long exact plans must take for it to be
    chosen. `why_not` says why the plan can't run.
    """

    value: float
    own_s: float | None
    own_lead: float
    rival: Contender | None
    rival_s: float | None
    rival_lead: float
    why_not: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the plan is chosen there."""
        if self.own_s is None:
            return False
        return self.rival_s is None or self.own_s * self.own_lead <= self.rival_s * self.rival_lead


@dataclass(frozen=True)
class Crossover:
    """A value of an axis at which another plan is chosen. `before` is the last one towards the
    plan's own at which the plan still is; `link` is the kind whose bandwidth it is.
    """

    axis: Axis
    link: str | None
    at: str
    before: str
    lost: Compared
    kept: Compared
    what: str
    check: str
    check_before: str

    def to_json(self) -> dict[str, object]:
        """What `explain` prints of it."""
        return {
            "what": self.what,
            "at": self.at,
            "check": self.check,
            "check_before": self.check_before,
            "axis": self.axis,
            "link": self.link,
            "before": self.before,
            "rival": str(self.lost.rival),
            "plan_s": self.lost.own_s,
            "rival_s": self.lost.rival_s,
            "plan_lead": self.lost.own_lead,
            "rival_lead": self.lost.rival_lead,
        }


@dataclass(frozen=True)
class Curve:
    """All values of an axis that were compared, in order; `own` is the plan's."""

    axis: Axis
    link: str | None
    own: float
    points: tuple[Compared, ...]


@dataclass(frozen=True)
class Crossovers:
    """What would change the choice, what was compared, and what couldn't be said."""

    found: tuple[Crossover, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...]


def crossovers_of(subject: Subject) -> Crossovers:
    """Where another plan than the subject's would be chosen, along each axis."""
    plan = contender_of_plan(subject)
    if plan is None:
        why = (
            "crossovers are left out: options of `ditplan simulate` can't say where this plan's "
            "ranks sit or what it leaves out, so no command could check them"
        )
        return Crossovers((), (), (why,))
    here = Point.of(replace(subject.task, gpus=None))
    lines = [_resolutions(subject, here), _steps(subject, here), *_bandwidths(subject)]
    found: list[Crossover] = []
    curves: list[Curve] = []
    notes: list[str] = []
    for line in lines:
        compared = _Along(subject, plan, line)
        if not compared.at(line.own).is_kept:
            rival = compared.at(line.own).rival
            return Crossovers((), (), (f"crossovers are left out: {rival} is ahead already",))
        ends = [*compared.crossings()]
        found += ends
        if not ends:
            notes.append(compared.why_none)
        curves.append(compared.curve)
    fewer, note = _fewer_gpus(subject, plan, here)
    found += fewer
    return Crossovers(tuple(found), tuple(curves), (*notes, *note))


@dataclass(frozen=True)
class Line:
    """An axis: its values, the plan's own among them, and where plans are compared at each."""

    axis: Axis
    link: str | None
    values: Sequence[float]
    own: float
    point_at: Callable[[float], Point | None]
    text_of: Callable[[float], str]

    @property
    def name(self) -> str:
        """The axis in words."""
        return f"{self.link} bandwidth" if self.link else self.axis


class _Along:
    """Compares a plan along an axis, each value once."""

    def __init__(self, subject: Subject, plan: Contender, line: Line) -> None:
        self._subject, self._plan, self._line = subject, plan, line
        self._compared: dict[float, Compared] = {}
        self._rivals = [one for one in self._contenders() if one != plan]

    def _contenders(self) -> list[Contender]:
        found = dict.fromkeys(named(self._subject.fitting, HERE))
        for end in (self._line.values[0], self._line.values[-1]):
            if point := self._line.point_at(end):
                found |= dict.fromkeys(contenders_at(self._subject, point, AT_ENDS))
        return list(found)

    def at(self, value: float) -> Compared:
        """The plan against its best rival at a value."""
        if value not in self._compared:
            point = self._line.point_at(value)
            self._compared[value] = (
                Compared(value, None, 1.0, None, None, 1.0)
                if point is None
                else compared_at(value, point, self._plan, self._rivals)
            )
        return self._compared[value]

    def crossings(self) -> Iterator[Crossover]:
        """The nearest crossing on each side of the plan's own value."""
        values = self._line.values
        own, last = values.index(self._line.own), len(values) - 1
        for side, end in ((-1, 0), (1, last)):
            kept, step = own, 1
            while kept != end:
                reached = min(max(own + side * step, 0), last)
                if not self.at(values[reached]).is_kept:
                    found = self._bisected(kept, reached)
                    if self.at(values[found]).rival is not None:
                        yield self._crossover(values[found - side], values[found])
                    break
                kept, step = reached, 2 * step

    def _bisected(self, kept: int, lost: int) -> int:
        """The place nearest to `kept` from which on another plan is chosen."""
        while abs(lost - kept) > 1:
            middle = (kept + lost) // 2
            if self.at(self._line.values[middle]).is_kept:
                kept = middle
            else:
                lost = middle
        return lost

    def _crossover(self, before: float, at: float) -> Crossover:
        line, lost = self._line, self.at(at)
        assert lost.rival is not None
        side = "from" if at > before else "down at"
        rest = "on" if at > before else "and below"
        reason = _ratio_text(lost) if lost.own_s is not None else f"the plan: {lost.why_not}"
        what = f"{line.name} {side} {line.text_of(at)} {rest}: {lost.rival} ({reason})"
        return Crossover(
            line.axis,
            line.link,
            line.text_of(at),
            line.text_of(before),
            lost,
            self.at(before),
            what,
            self._check(at, lost.rival),
            self._check(before, lost.rival),
        )

    def _check(self, value: float, rival: Contender) -> str:
        point = self._line.point_at(value)
        assert point is not None
        workload, link = point.task.workload, self._line.link
        return check_line(self._subject, workload, [self._plan, rival], link, value)

    @property
    def why_none(self) -> str:
        """That nothing between the ends of the axis changes the choice."""
        line, (first, *_, last) = self._line, self._line.values
        return f"{line.name}: no other choice from {line.text_of(first)} to {line.text_of(last)}"

    @property
    def curve(self) -> Curve:
        """What was compared, in order."""
        points = tuple(self._compared[value] for value in sorted(self._compared))
        return Curve(self._line.axis, self._line.link, self._line.own, points)


def compared_at(
    value: float, point: Point, plan: Contender, rivals: Sequence[Contender]
) -> Compared:
    """The plan against the one of its rivals that would be chosen."""
    own: PricedCandidate | None = None
    why_not = ""
    try:
        own = point.priced(plan)
    except InputError as error:
        why_not = str(error)
    priced = [found for rival in rivals if (found := point.fitting_in_a_mode(rival))]
    rival, best = min(
        priced, key=lambda pair: pair[1].prediction.latency_s * pair[1].lead, default=(None, None)
    )
    if own is not None and own.too_big:
        why_not = f"does not fit: {own.too_big}"
        own = None
    return Compared(value, *_seconds(own), rival, *_seconds(best), why_not)


def _seconds(found: PricedCandidate | None) -> tuple[float | None, float]:
    return (None, 1.0) if found is None else (found.prediction.latency_s, found.lead)


def _ratio_text(compared: Compared) -> str:
    assert compared.own_s is not None and compared.rival_s is not None
    ratio = compared.own_s / compared.rival_s
    words = f"{compared.rival_s:.4g} s against {compared.own_s:.4g} s"
    if ratio < 1:
        return f"{words}; the plan no longer leads by what one of unknown error must"
    if compared.rival_lead > compared.own_lead:
        return f"{words}, by more than one of unknown error must lead"
    return words


def _resolutions(subject: Subject, here: Point) -> Line:
    """Sizes of the workload's proportions, by pixels of the longer edge."""
    own = subject.plan.workload
    longer = max(own.height, own.width)
    values = sorted({longer, *range(SMALLEST_EDGE, LARGEST_EDGE + 1, EDGE_STEP)})

    def sized(edge: float) -> Workload:
        if edge == longer:
            return own
        height, width = (
            max(16, 16 * round(pixels * edge / longer / 16)) for pixels in (own.height, own.width)
        )
        return own.model_copy(update={"height": height, "width": width})

    def point_at(edge: float) -> Point | None:
        return _legal_point(subject, here, sized(edge))

    values = [edge for edge in values if point_at(edge) is not None]
    return Line(
        "resolution",
        None,
        values,
        longer,
        point_at,
        lambda edge: f"{sized(edge).width}x{sized(edge).height}",
    )


def _steps(subject: Subject, here: Point) -> Line:
    own = subject.plan.workload
    values = range(1, max(MOST_STEPS, 2 * own.steps) + 1)

    def point_at(steps: float) -> Point | None:
        return _legal_point(subject, here, own.model_copy(update={"steps": int(steps)}))

    return Line("steps", None, list(values), own.steps, point_at, lambda steps: f"{steps:.0f}")


def _legal_point(subject: Subject, here: Point, workload: Workload) -> Point | None:
    """Where plans for a workload are compared; None where the model can't do it."""
    spec = subject.task.spec
    limits = ModelLimits.of_spec(spec, family_of(spec.transformer_class))
    if workload_fault(limits, workload):
        return None
    return here.with_workload(replace(subject.task_at(workload), gpus=None))


def _bandwidths(subject: Subject) -> Iterator[Line]:
    cluster, workload = subject.task.cluster, subject.plan.workload
    for kind in cluster.link_kinds:
        points: dict[float, Point] = {}

        def point_at(
            times: float, kind: str = kind, points: dict[float, Point] = points
        ) -> Point | None:
            if times not in points:
                try:
                    scaled = with_links_scaled(cluster, kind, times)
                except (InputError, ValueError):
                    return None
                points[times] = Point.of(replace(subject.task_at(workload, scaled), gpus=None))
            return points[times]

        yield Line("bandwidth", kind, FACTORS, 1.0, point_at, lambda times: f"{times:g} times")


def _fewer_gpus(
    subject: Subject, plan: Contender, here: Point
) -> tuple[list[Crossover], tuple[str, ...]]:
    """What is chosen with one GPU less than the plan uses."""
    size = plan.mesh.size
    if size == 1:
        return [], ("gpus: one is the fewest",)
    smaller = [one for one in subject.fitting if one.configuration.mesh.size < size]
    rivals = named(smaller, HERE)
    kept = compared_at(size, here, plan, rivals)
    lost = replace(kept, value=size - 1, own_s=None)
    if kept.rival is None:
        return [], (f"gpus: no plan of fewer than {size} fits",)
    what = (
        f"gpus down at {size - 1} and below: {kept.rival} "
        f"({kept.rival_s:.4g} s; {kept.own_s:.4g} s with {size})"
    )
    workload = subject.plan.workload
    check = check_line(subject, workload, [plan, kept.rival], None, 1.0)
    found = Crossover("gpus", None, str(size - 1), str(size), lost, kept, what, check, check)
    return [found], ()
