"""What calls by the plans of a book take, for whoever routes them: a fixed part, and N steps."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ditplan.models import model_named
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import cost_model_of, priced_as_is
from ditplan.planner.task import Task
from ditplan.profiles.backends import find_backend
from ditplan.profiles.book import PlanBook
from ditplan.profiles.catalog import cluster_names, find_cluster
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload

Figures = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Shape:
    """What a call makes."""

    height: int
    width: int
    frames: int
    batch: int

    def __str__(self) -> str:
        frames = f"x{self.frames}" if self.frames > 1 else ""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.width}x{self.height}{frames}{batch}"


@dataclass(frozen=True)
class TableRow:
    """A plan's call: N steps take `fixed_s` + N x `step_s` seconds, text encoders and VAE included.

    `latency_s` is the denoising loop of the plan's own number of steps.
    """

    gpus: int
    shape: Shape
    fixed_s: float
    step_s: float
    steps: int
    passes: int
    text_tokens: int
    latency_s: float
    figures: Figures
    mesh: str
    exact: bool


def cost_table(book: PlanBook, cluster: str | None = None) -> tuple[TableRow, ...]:
    """A row for each plan of a book. `cluster` is where plans hold whose steps don't all take the
    same, if it isn't a shipped one.

    Raises:
        InputError: a plan has no numbers, or nothing is known of its cluster.
    """
    return tuple(table_row(entry.plan, cluster) for entry in book.entries)


def table_row(plan: ExecutionPlan, cluster: str | None) -> TableRow:
    """What a call by a plan takes; `cluster` as in `cost_table`.

    Raises:
        InputError: as `cost_table`.
    """
    predicted, measured, workload = plan.prediction, plan.measurement, plan.workload
    latency_s = measured.latency_s if measured else predicted.latency_s if predicted else None
    if latency_s is None:
        raise InputError(f"the plan for {workload} has no numbers; tune again for it")
    around_s = predicted.end_to_end_s - predicted.latency_s if predicted else 0.0
    loop_s, step_s = _loop_of(plan, latency_s, cluster)
    return TableRow(
        gpus=plan.mesh.size,
        shape=Shape(workload.height, workload.width, workload.frames, workload.batch),
        fixed_s=loop_s + around_s,
        step_s=step_s,
        steps=workload.steps,
        passes=workload.passes,
        text_tokens=workload.text_tokens,
        latency_s=latency_s,
        figures="measured" if measured else "predicted",
        mesh=str(plan.mesh),
        exact=plan.quality.exact,
    )


def _loop_of(plan: ExecutionPlan, latency_s: float, cluster: str | None) -> tuple[float, float]:
    """The fixed part of a loop and what each step adds. All steps of an exact plan are alike; else
    twice the steps are priced as well, and both scaled to what is known of the plan's own.
    """
    steps, configuration = plan.workload.steps, plan.configuration
    if configuration.is_exact:
        return 0.0, latency_s / steps
    more = steps
    if cache := configuration.step_cache:
        # whole intervals, so that as many steps compute in each
        more = cache.interval * max(1, steps // cache.interval)
    one_s = _priced_s(plan, plan.workload, cluster)
    longer = plan.workload.model_copy(update={"steps": steps + more})
    step_s = (_priced_s(plan, longer, cluster) - one_s) / more
    scale = latency_s / one_s
    return scale * (one_s - steps * step_s), scale * step_s


def _priced_s(plan: ExecutionPlan, workload: Workload, cluster: str | None) -> float:
    name = plan.fingerprint.cluster if cluster is None else cluster
    if cluster is None and name not in cluster_names():
        raise InputError(
            f"not all steps of {plan.configuration.mesh} take the same, and {name} is no recorded "
            "cluster to price them on; name its file: ",
            Setting("cluster", "FILE"),
        )
    task = Task(
        model_named(plan.model.name).spec,
        workload,
        find_cluster(name),
        backend=find_backend(plan.backend),
    )
    model = cost_model_of(task, Topology(task.cluster))
    return priced_as_is(task, model, plan.configuration).prediction.latency_s


def table_json(rows: tuple[TableRow, ...]) -> dict[str, Any]:
    """What `table --json` prints."""
    return {"rows": [asdict(row) for row in rows]}


def shown_table(book: Path, rows: tuple[TableRow, ...]) -> Table:
    """The rows for people."""
    table = Table(title=f"{book}: seconds of a call of N steps", box=SIMPLE_HEAD, padding=0)
    for heading in ("shape", "GPUs", "mesh", "fixed s", "s a step", "known"):
        right = heading in ("GPUs", "fixed s", "s a step")
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        cells = (str(row.shape), str(row.gpus), row.mesh, f"{row.fixed_s:.4g}", f"{row.step_s:.4g}")
        table.add_row(*cells, f"{row.figures} at {row.steps} steps")
    return table
