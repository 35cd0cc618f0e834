"""The cost model against published latencies of xDiT: error, order of plans, choices.

    python -m benchmarks.planner_published [--rows] [--fit]

`published/latencies.csv` says of each row how it was read, whether the source timed the denoising
loop or the whole call of the pipeline, and whether the constants were fitted to it (`fit`) or it
was kept for this check. A `choice` is the best plan that the source found, without saying which.
`--fit` fits the constants anew.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ditplan.checking.ordering import in_order
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import price_one, space_of
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.model import Mode
from ditplan.profiles.workload import Workload

PUBLISHED = Path(__file__).parent / "published" / "latencies.csv"
OUT_OF_LINE = ("2x8xl40-pcie-eth100", 2048, 16)
"""27.99 s for FLUX 2048px on 16 L40 is out of line with its neighbours at 1024 and 4096px."""


@dataclass(frozen=True)
class Row:
    """A published latency; without a mesh it is that of the best plan that the source found."""

    cluster: str
    model: str
    workload: Workload
    gpus: int
    mesh: Mesh | None
    warmup: int | None
    mode: Mode
    whole_call: bool
    latency_s: float
    use: str

    @property
    def setting(self) -> tuple[object, ...]:
        """What rows must share to be compared with each other."""
        return (self.cluster, self.model, self.workload, self.mode)

    def __str__(self) -> str:
        size = f"{self.workload.width}x{self.workload.height}"
        return f"{self.cluster:<20} {self.model:<13} {size:>9} {self.mesh!s:<32} {self.mode:<8}"


def published_rows() -> list[Row]:
    """All rows of the table."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [_row(cells) for cells in csv.DictReader(file)]


def _row(cells: dict[str, str]) -> Row:
    asked = {name: int(cells[name]) for name in ("height", "width", "frames", "steps")}
    degrees = {axis: cells[axis] for axis in ("cfg", "pipefusion", "ring", "ulysses")}
    known = all(degrees.values())
    mode: Mode = "compile" if cells["mode"] == "compile" else "eager"
    return Row(
        cluster=cells["cluster"],
        model=cells["model"],
        workload=find_model(cells["model"]).defaults.model_copy(update=asked),
        gpus=int(cells["gpus"]),
        mesh=Mesh(**{axis: int(text) for axis, text in degrees.items()}) if known else None,
        warmup=int(cells["warmup"]) if cells["warmup"] else None,
        mode=mode,
        whole_call=cells["timed"] == "call",
        latency_s=float(cells["latency_s"]),
        use=cells["use"],
    )


def task_of(row: Row) -> Task:
    """What a row's GPUs were asked to do."""
    return Task(
        find_model(row.model),
        row.workload,
        find_cluster(row.cluster),
        gpus=row.gpus,
        modes=(row.mode,),
        backend=find_backend("xdit"),
        allowed=ApproximationPolicy(),
    )


def predicted_s(row: Row, ranked: PricedCandidate) -> float:
    """The prediction of what the source timed."""
    prediction = ranked.prediction
    return prediction.end_to_end_s if row.whole_call else prediction.latency_s


def price(row: Row) -> float:
    """Seconds predicted for a row whose mesh is known."""
    assert row.mesh is not None
    return predicted_s(row, price_one(task_of(row), row.mesh, row.mode, warmup_steps=row.warmup))


def ordered_right(found: dict[Row, float], share: float = 0.1) -> tuple[int, int]:
    """Of the pairs of rows of one setting that are more than a share apart, those in the right
    order, and all.
    """
    settings: defaultdict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for row, seconds in found.items():
        settings[row.setting].append((row.latency_s, seconds))
    counts = [in_order(rows, share) for rows in settings.values()]
    right, pairs = (sum(numbers) for numbers in zip(*counts, strict=True))
    return right, pairs


def best_plans(row: Row) -> list[PricedCandidate]:
    """All plans on exactly a row's number of GPUs, fastest first.

    Whether they fit is left out: the source ran 4096px on 48 GB, decoding in tiles.
    """
    task = task_of(row)
    plans = []
    for candidate in space_of(task, Topology(task.cluster)).candidates:
        if candidate.mesh.size == row.gpus and candidate.order == AXES:
            part = candidate.pipefusion
            patches = part.patches if part else None
            plans.append(price_one(task, candidate.mesh, row.mode, patches=patches))
    return sorted(plans, key=lambda one: predicted_s(row, one))


def show_choices(rows: list[Row]) -> None:
    """What the planner would choose where the source says how fast the best plan was."""
    print("\nchoices: the best plan on all of so many GPUs")
    for row in rows:
        if (row.cluster, row.workload.height, row.gpus) == OUT_OF_LINE:
            continue
        if row.mesh is not None and not (row.gpus == 16 and row.mesh.pipefusion > 1):
            continue
        plans = best_plans(row)
        best_s = predicted_s(row, plans[0])
        line = f"{row.cluster:<20} {row.workload.width:>5}px {row.gpus:>2} GPUs"
        line += f"  published {row.latency_s:7.2f} s"
        line += f"  best {plans[0].configuration.mesh!s:<30} {best_s:7.2f} s"
        if row.mesh is not None:
            theirs = next(one for one in plans if one.configuration.mesh == row.mesh)
            line += f"; {row.mesh} {100 * (predicted_s(row, theirs) / best_s - 1):+.0f}%"
        print(line)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", action="store_true", help="show every row")
    parser.add_argument("--fit", action="store_true", help="fit the constants anew and show them")
    arguments = parser.parse_args()
    rows = published_rows()
    if arguments.fit:
        from benchmarks.planner_fit import show_fit

        show_fit([row for row in rows if row.use == "fit"])
        return
    found = {row: price(row) for row in rows if row.mesh is not None}
    if arguments.rows:
        for row, seconds in found.items():
            error = 100 * (seconds / row.latency_s - 1)
            print(f"{row.use:<5} {row} {row.latency_s:8.2f} s {seconds:8.2f} s {error:+4.0f}%")
    for use in ("fit", "check"):
        own = {row: seconds for row, seconds in found.items() if row.use == use}
        errors = [abs(seconds / row.latency_s - 1) for row, seconds in own.items()]
        right, pairs = ordered_right(own)
        print(
            f"{use:<5} {len(own)} rows: median error {100 * statistics.median(errors):.1f}%, mean "
            f"{100 * statistics.mean(errors):.1f}%; {right} of {pairs} pairs more than 10% apart "
            f"in the right order ({100 * right / pairs:.0f}%)"
        )
    right, pairs = ordered_right(found)
    print(f"all   {len(found)} rows: {right} of {pairs} pairs ({100 * right / pairs:.0f}%)")
    show_choices(rows)


if __name__ == "__main__":
    main()
