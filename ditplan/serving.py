"""Pipelines under a plan, and under the plans of a book, in a job that serves requests."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from ditplan.profiles.book import PlanBook
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.admission.fit import admitted, limits_of, require_fit, require_possible
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.warm_up import Size, warm_up_calls, workloads_of
from ditplan.runtime.native import transformers_of
from ditplan.runtime.on_backend import prepare
from ditplan.runtime.prepared import BUILT, forget_graphs
from ditplan.runtime.profiling.live_steps import (
    LiveSteps,
    OnDrift,
    keep_live_steps,
    live_steps_of,
)
from ditplan.runtime.ranks.attach import seated_in_job


@dataclass(frozen=True)
class Counters:
    """How many graphs of code were compiled and how many CUDA graphs captured."""

    compilations: int
    captures: int

    def __sub__(self, earlier: Self) -> "Counters":
        return Counters(self.compilations - earlier.compilations, self.captures - earlier.captures)

    def __add__(self, more: Self) -> "Counters":
        return Counters(self.compilations + more.compilations, self.captures + more.captures)


class PipelineUnderPlan:
    """A diffusers pipeline under a plan: it is called like the pipeline and has its attributes.

    `close()`, or the end of a `with`, gives the pipeline back as it was.
    """

    _own = ("_pipeline", "_undo")

    def __init__(self, pipeline: Any, undo: ExitStack) -> None:
        self._pipeline, self._undo = pipeline, undo

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline's own call gives."""
        return self._pipeline(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            super().__setattr__(name, value)
        else:
            setattr(self._pipeline, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the plan away; the pipeline is what it was."""
        self._undo.close()


def under_plan(pipeline: Any, plan: ExecutionPlan, on_drift: OnDrift | None) -> PipelineUnderPlan:
    """As `ditplan.parallelize`."""
    context, plan = admitted(pipeline, plan)
    with ExitStack() as undo:
        undo.callback(context.groups.close)
        live = LiveSteps(pipeline, plan, context, on_drift)
        called = _put_in_force(pipeline, plan, context, live, undo)
        return PipelineUnderPlan(called, undo.pop_all())


def _put_in_force(
    pipeline: Any, plan: ExecutionPlan, context: RankContext, live: LiveSteps, undo: ExitStack
) -> Any:
    """Puts a plan in force whose calls are watched, and gives the pipeline to call; closing `undo`
    takes it away again.
    """
    prepared = prepare(pipeline, plan, replace(context, watch=live.watching))
    undo.callback(prepared.close)
    if not plan.changes_nothing:
        keep_live_steps(live, pipeline.transformer, undo)
    return prepared.pipeline


def counters(pipeline: Any) -> Counters:
    """As `ditplan.counters`."""
    found = (vars(model).get(BUILT) for model in transformers_of(pipeline).values())
    built = [one for one in found if one is not None]
    return Counters(sum(one.compilations for one in built), sum(one.captures for one in built))


def warm_up(pipeline: Any, plan: ExecutionPlan, sizes: Sequence[Size] | None = None) -> Counters:
    """As `ditplan.warm_up`."""
    works = _works_of(pipeline, plan, sizes)
    if not works:
        return Counters(0, 0)
    before, part = counters(pipeline), plan.configuration.pipefusion
    # the whole sequence and each patch, of two visits and two calls a step
    each = 4 * (part.patches + 1) if part else 1
    for model in transformers_of(pipeline).values():
        if BUILT in vars(model):
            vars(model)[BUILT].add_shapes(each * len(works))
        # other backends count what they compile themselves
        elif live_steps_of(pipeline) is None:
            raise InputError(
                "no plan is in force on this pipeline: put it in force with ditplan.parallelize() "
                "before it is warmed up"
            )
    warm_up_calls(pipeline, works)
    return counters(pipeline) - before


def _works_of(
    pipeline: Any, plan: ExecutionPlan, sizes: Sequence[Size] | None = None
) -> list[Workload]:
    """What a plan is warmed up for, at each size of text; nothing where nothing is built."""
    limits, work = limits_of(pipeline, plan.model.name), plan.workload
    if limits is None or plan.changes_nothing:
        return []
    return list(workloads_of(plan, sizes or [(work.height, work.width, work.frames)], limits))


class BookServer:
    """A pipeline that goes from plan to plan of a book, as requests ask; what was compiled and
    captured for one stays while others are in force.

    `close()`, or the end of a `with`, gives the pipeline back as it was.
    """

    def __init__(self, pipeline: Any, book: PlanBook, context: RankContext) -> None:
        self._pipeline, self._book = pipeline, book
        self._context = replace(context, keeps_graphs=True)
        self._plan: ExecutionPlan | None = None
        self._called = pipeline
        self._live: dict[int, LiveSteps] = {}
        self._in_force = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def request(
        self, *, height: int, width: int, steps: int, frames: int = 1, batch: int = 1
    ) -> Any:
        """The pipeline under the book's plan for a request (`PlanBook.plan_of_request`), to be
        called before the next one. Every rank asks for the same.

        Raises:
            InputError: the book has no plan for it.
        """
        plan = self._book.plan_of_request(
            height=height, width=width, steps=steps, frames=frames, batch=batch
        )
        return self._under(plan)

    def warm_up(self) -> Counters:
        """Has all compiled and captured that requests for the book's own workloads will ask for."""
        made, plans = Counters(0, 0), [entry.plan for entry in self._book.entries]
        for plan in plans:
            made += warm_up(self._under(plan), plan)
        # compiling for one plan can move weights that graphs of those before it read
        for plan in plans[:-1]:
            pipeline = self._under(plan)
            before = counters(pipeline)
            warm_up_calls(pipeline, _works_of(pipeline, plan))
            made += counters(pipeline) - before
        return made

    def _under(self, plan: ExecutionPlan) -> Any:
        if self._plan is not plan:
            self._plan = None
            self._in_force.close()
            number = [entry.plan for entry in self._book.entries].index(plan)
            if number not in self._live:
                self._live[number] = LiveSteps(self._pipeline, plan, self._context)
            live = self._live[number]
            self._called = _put_in_force(self._pipeline, plan, self._context, live, self._in_force)
            self._plan = plan
        return self._called

    def close(self) -> None:
        """Takes the plan away, and gives back what was kept of the others."""
        self._plan = None
        self._in_force.close()
        for model in transformers_of(self._pipeline).values():
            forget_graphs(model, self._context)
        self._context.groups.close()


def served(pipeline: Any, book: PlanBook) -> BookServer:
    """As `ditplan.serve`."""
    if not isinstance(book, PlanBook):
        raise InputError(
            f"serve() takes a book of plans, not {type(book).__name__}: read one with "
            "ditplan.PlanBook.load(path), or use parallelize() for a single plan"
        )
    first, *others = (entry.plan for entry in book.entries)
    context, first = admitted(pipeline, first)
    plans = [first]
    for plan in others:
        plan.require_ranks(context.world_size)
        require_possible(pipeline, plan, context)
        plans.append(seated_in_job(plan, context))
        require_fit(plans[-1], context)
    entries = (
        entry.model_copy(update={"plan": plan})
        for entry, plan in zip(book.entries, plans, strict=True)
    )
    return BookServer(pipeline, book.model_copy(update={"entries": tuple(entries)}), context)
