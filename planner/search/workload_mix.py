"""A mix of workloads of one model: served by a book of plans, one for each, or by one mesh."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.search.ranking import PricedCandidate, SearchResult
from ditplan.planner.search.search import search
from ditplan.planner.task import Task, TuneRequest, workload_for
from ditplan.profiles.book import BookEntry, Otherwise, PlanBook
from ditplan.profiles.bounds import Batch, Frames, Pixels, Steps, TextSize, Weight
from ditplan.profiles.cluster import ClusterProfile, DeviceKind
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.files import parse_json, path_text, read_text
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.record import FrozenModel, validate
from ditplan.profiles.workload import Dtype, Workload

Kept = tuple[object, ...]

OWN_DIVISION_SLACK = 1.02
"""A workload's own division into stages may be this much slower than another: of those that are
about as fast, the planner takes the one that needs least memory."""


class MixLine(FrozenModel, strict=True):
    """A workload as a user writes it: its weight, and what differs from the model's usual one."""

    weight: Weight
    height: Pixels | None = None
    width: Pixels | None = None
    frames: Frames | None = None
    steps: Steps | None = None
    text_tokens: TextSize | None = None
    guidance: bool | None = None
    batch: Batch | None = None
    dtype: Dtype | None = None


@dataclass(frozen=True)
class Weighted:
    """A workload and how often it comes, compared with the others."""

    workload: Workload
    weight: float


@dataclass(frozen=True)
class OneMesh:
    """A configuration that serves all workloads, with what it costs for each of them."""

    costs: tuple[PricedCandidate, ...]
    mean_s: float


@dataclass(frozen=True)
class Mixed:
    """What a mix costs with a plan for each workload, and with one mesh for all, if one can serve
    all.
    """

    mix: tuple[Weighted, ...]
    rankings: tuple[SearchResult, ...]
    one_mesh: OneMesh | None
    otherwise: Otherwise = "refuse"

    @property
    def mean_s(self) -> float:
        """The weighted mean latency with the book."""
        return _mean_s(self.mix, [ranking.best for ranking in self.rankings])

    @property
    def gain(self) -> float | None:
        """By which share the book's mean is less than one mesh's."""
        return None if self.one_mesh is None else 1 - self.mean_s / self.one_mesh.mean_s

    def to_book(self) -> PlanBook:
        """The best plan of each workload."""
        return PlanBook(
            entries=tuple(
                BookEntry(weight=weighted.weight, plan=ranking.to_plan())
                for weighted, ranking in zip(self.mix, self.rankings, strict=True)
            ),
            otherwise=self.otherwise,
        )


def load_mix(path: Path, spec: ModelSpec, device: DeviceKind) -> tuple[Weighted, ...]:
    """Reads a mix: a JSON list of objects with a weight and what differs from the usual workload.

    Raises:
        InputError: names the file, the number of the wrong entry and what is wrong with it.
    """
    where = path_text(path)
    lines = parse_mix(read_text(path, "a mix of workloads, a JSON list"), where)
    seen: dict[Workload, int] = {}
    for number, line in enumerate(lines, start=1):
        entry = f"{where}: entry {number}"
        try:
            workload = workload_for(spec, device, **line.model_dump(exclude={"weight"}))
        except InputError as error:
            raise InputError(f"{entry}: {error}") from None
        if workload in seen:
            raise InputError(
                f"{entry}: the same workload as entry {seen[workload]}; leave one out and add up "
                "their weights"
            )
        seen[workload] = number
    return tuple(
        Weighted(workload, line.weight) for workload, line in zip(seen, lines, strict=True)
    )


def parse_mix(text: str, where: str) -> tuple[MixLine, ...]:
    """Parses the text of a mix.

    Raises:
        InputError: as `load_mix`.
    """
    remedy = 'write a list such as [{"weight": 3, "height": 1024}, {"weight": 1, "height": 512}]'
    data = parse_json(text, where, "mix of workloads", remedy, finite=False)
    if not isinstance(data, list) or not data:
        raise InputError(f"{where}: not a list of workloads; {remedy}")
    return tuple(
        validate(MixLine, entry, f"{where}: entry {number}", "an entry has " + _keys())
        for number, entry in enumerate(data, start=1)
    )


def plan_mix(
    wishes: TuneRequest,
    mix: Sequence[Weighted],
    cluster: ClusterProfile,
    progress: Callable[[str], None] | None = None,
    otherwise: Otherwise = "refuse",
) -> Mixed:
    """The best plan of each workload on paper, and the one mesh with the least mean latency.
    `otherwise` is the book's.

    Raises:
        InputError: a workload that can't be planned; as `search`.
    """
    say = progress or (lambda message: None)
    tasks = [wishes.task(weighted.workload, cluster) for weighted in mix]

    def ranking_of(task: Task) -> SearchResult:
        return search(task, progress=lambda message: say(f"{task.workload}: {message}"))

    rankings = tuple(map(ranking_of, tasks))
    return Mixed(tuple(mix), rankings, one_mesh_for_all(tasks, mix, rankings), otherwise)


def one_mesh_for_all(
    tasks: Sequence[Task], mix: Sequence[Weighted], rankings: Sequence[SearchResult]
) -> OneMesh | None:
    """The configuration with the least weighted mean latency of those that are legal and fit for
    all workloads; None if there is none.

    A stage holds the same blocks for all workloads: they are divided as is best for one of them,
    tried for each. With its own division no workload is much slower than with another's, so that
    mean tells where to stop.
    """
    models = [cost_model_of(task, Topology(task.cluster)) for task in tasks]
    found = [
        {kept_by_a_job(one): one for one in ranking.ranked if not one.too_big}
        for ranking in rankings
    ]
    common = [key for key in found[0] if all(key in others for others in found)]
    served = {key: [one[key] for one in found] for key in common}
    best: OneMesh | None = None
    least_s = math.inf
    for own in sorted(served.values(), key=lambda own: _weighed_s(mix, own)):
        if _weighed_s(mix, own) >= least_s * OWN_DIVISION_SLACK:
            break
        for part in dict.fromkeys(one.configuration.pipefusion for one in own):
            costs = _with_part(tasks, models, own, part)
            if any(one.too_big for one in costs):
                continue
            if _weighed_s(mix, costs) < least_s:
                best, least_s = OneMesh(tuple(costs), _mean_s(mix, costs)), _weighed_s(mix, costs)
    return best


def kept_by_a_job(ranked: PricedCandidate) -> Kept:
    """What stays the same when a job goes from workload to workload, but for the blocks of
    stages.
    """
    candidate = ranked.configuration
    part = candidate.pipefusion
    patching = (part.patches, part.warmup_steps) if part else ()
    held = (candidate.weights, candidate.step_cache)
    return (candidate.mesh.degrees, candidate.placement, candidate.mode, patching, held)


def _with_part(
    tasks: Sequence[Task],
    models: Sequence[CostModel],
    own: Sequence[PricedCandidate],
    part: PipeFusion | None,
) -> list[PricedCandidate]:
    """The workloads' prices with the same blocks on each stage."""
    return [
        one
        if one.configuration.pipefusion == part
        else priced_as_is(task, model, replace(one.configuration, pipefusion=part))
        for task, model, one in zip(tasks, models, own, strict=True)
    ]


def _mean_s(mix: Sequence[Weighted], costs: Sequence[PricedCandidate]) -> float:
    weights = [weighted.weight for weighted in mix]
    return statistics.fmean((one.prediction.latency_s for one in costs), weights)


def _weighed_s(mix: Sequence[Weighted], costs: Sequence[PricedCandidate]) -> float:
    """The same by what each is chosen by."""
    weights = [weighted.weight for weighted in mix]
    return statistics.fmean((one.prediction.latency_s * one.lead for one in costs), weights)


def _keys() -> str:
    return ", ".join(MixLine.model_fields)
