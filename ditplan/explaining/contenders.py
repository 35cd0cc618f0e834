"""What a plan is compared with elsewhere: configurations that options of `simulate` say."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ditplan.explaining.rivals import best_of_meshes
from ditplan.explaining.subject import Subject
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, price_one
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.task import Task
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import Mode


@dataclass(frozen=True)
class Contender:
    """What options of `simulate` say of a configuration."""

    mesh: Mesh
    mode: Mode
    patches: int | None = None
    warmup_steps: int | None = None

    @classmethod
    def of(cls, configuration: Configuration) -> "Contender":
        """What options can say of a configuration."""
        part = configuration.pipefusion
        return cls(
            configuration.mesh,
            configuration.mode,
            part.patches if part else None,
            part.warmup_steps if part else None,
        )

    @property
    def options(self) -> str:
        """The options that say so."""
        degrees = zip(AXES, self.mesh.degrees, strict=True)
        words = [f"--{axis} {degree}" for axis, degree in degrees if degree > 1]
        words += [f"--patches {self.patches}"] if self.patches else []
        words += [f"--warmup {self.warmup_steps}"] if self.warmup_steps else []
        return " ".join([*words, f"--mode {self.mode}"])

    def __str__(self) -> str:
        patched = f", {self.patches} patches" if self.patches else ""
        return f"{self.mesh}, {self.mode}{patched}"


@dataclass(frozen=True)
class Point:
    """A workload on a cluster, where plans are compared."""

    task: Task
    model: CostModel

    @classmethod
    def of(cls, task: Task) -> "Point":
        """With prices that are remembered."""
        return cls(task, cost_model_of(task, Topology(task.cluster)))

    def with_workload(self, task: Task) -> "Point":
        """The same cluster with another workload, priced by the same model."""
        return Point(task, self.model)

    def priced(self, contender: Contender) -> PricedCandidate:
        """What a contender costs there.

        Raises:
            InputError: it isn't legal there.
        """
        return price_one(
            self.task,
            contender.mesh,
            contender.mode,
            patches=contender.patches,
            warmup_steps=contender.warmup_steps,
            model=self.model,
        )

    def fitting(self, contender: Contender) -> PricedCandidate | None:
        """What a contender costs there; None where it isn't legal or doesn't fit."""
        try:
            found = self.priced(contender)
        except InputError:
            return None
        return None if found.too_big else found

    def fitting_in_a_mode(self, contender: Contender) -> tuple[Contender, PricedCandidate] | None:
        """A contender in its mode, or where it doesn't fit in that in the fastest other one; None
        where it fits in none.
        """
        if found := self.fitting(contender):
            return contender, found
        others = (
            replace(contender, mode=mode)
            for mode in self.task.searched_modes
            if mode != contender.mode
        )
        priced = [(other, found) for other in others if (found := self.fitting(other))]
        return min(priced, key=lambda pair: pair[1].prediction.latency_s, default=None)


def contender_of_plan(subject: Subject) -> Contender | None:
    """The plan as options say it; None where they say something that costs otherwise: another
    placement, a step cache, unequal shares.
    """
    contender = Contender.of(subject.plan.configuration)
    task = subject.task_at(subject.plan.workload)
    found = Point.of(replace(task, gpus=None)).fitting(contender)
    if found is None:
        return None
    own_s = subject.own.prediction.latency_s
    return contender if abs(found.prediction.latency_s / own_s - 1) < 1e-6 else None


def contenders_at(subject: Subject, point: Point, most: int) -> list[Contender]:
    """The `most` fastest there of the plans that are the best of their mesh here."""
    here = named(subject.fitting, len(subject.fitting))
    priced = [found for one in here if (found := point.fitting_in_a_mode(one))]
    priced.sort(key=lambda pair: pair[1].prediction.latency_s * pair[1].lead)
    return [one for one, _ in priced[:most]]


def named(ranked: Iterable[PricedCandidate], most: int) -> list[Contender]:
    """The first of each mesh that options can say, so many of them."""
    usual = (one for one in ranked if is_usual(one.configuration))
    return [Contender.of(one.configuration) for one in best_of_meshes(usual)[:most]]


def is_usual(configuration: Configuration) -> bool:
    """Whether options of `simulate` say all of a configuration: it prices the first ranks in the
    usual order.
    """
    ranks = tuple(range(configuration.mesh.size))
    return (
        configuration.step_cache is None
        and configuration.token_shares is None
        and configuration.order == AXES
        and configuration.placement == ranks
    )
