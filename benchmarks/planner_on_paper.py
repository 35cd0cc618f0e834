"""Predictions without any measurement of the model against what `families` measured on two H100.

    python -m benchmarks.planner_on_paper

Models at their usual sizes on the recorded cluster `2xh100-nvlink`, whose links were measured. The
constants were set with SD3's plans, and with attention and decoders of SD3, FLUX and Wan alone.
"""

import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ditplan.checking.ordering import in_order
from ditplan.planner.search.pricing import price_one
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode

MEASURED = Path(__file__).parent / "results" / "families-two-h100-2026-11-27.txt"
CLUSTER = "2xh100-nvlink"
MODE: Mode = "compile+graph"
MESHES = {str(mesh): mesh for mesh in (Mesh(), Mesh(ulysses=2), Mesh(cfg=2))}
ROW = re.compile(rf"^(\S+) +({'|'.join(MESHES)}) +{re.escape(MODE)} +([0-9.]+) ms a step", re.M)


@dataclass(frozen=True)
class Row:
    """A model's mesh: measured and predicted seconds of a step."""

    model: str
    mesh: Mesh
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


def rows() -> list[Row]:
    """All rows of the table."""
    found = ROW.findall(MEASURED.read_text(encoding="utf-8"))
    return [_row(model, MESHES[mesh], float(step_ms) / 1000) for model, mesh, step_ms in found]


def _row(model: str, mesh: Mesh, measured_s: float) -> Row:
    spec = find_model(model)
    task = Task(
        spec, spec.defaults, find_cluster(CLUSTER), modes=(MODE,), allowed=ApproximationPolicy()
    )
    loop_s = price_one(task, mesh, MODE).prediction.latency_s
    return Row(model, mesh, measured_s, loop_s / spec.defaults.steps)


def ordered_right(found: list[Row]) -> tuple[int, int]:
    """Of the pairs of a model's meshes those in the right order, and all."""
    models: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in found:
        models[row.model].append((row.measured_s, row.predicted_s))
    right, pairs = (sum(numbers) for numbers in zip(*map(in_order, models.values()), strict=True))
    return right, pairs


def main() -> None:
    """Prints the comparison."""
    found = rows()
    for row in found:
        print(
            f"{row.model:<14} {row.mesh!s:<12} measured {1000 * row.measured_s:7.1f} ms a step"
            f"  predicted {1000 * row.predicted_s:7.1f} ({100 * row.error:+.0f}%)"
        )
    median = statistics.median(abs(row.error) for row in found)
    right, pairs = ordered_right(found)
    print(f"median error {100 * median:.0f}%, {right} of {pairs} pairs of meshes in order")


if __name__ == "__main__":
    main()
