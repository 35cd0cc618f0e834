"""How often what was measured lies in the 90% interval of its prediction, and by how much the
intervals of each source would have to be wider or narrower.

    python -m benchmarks.interval_coverage [--data DIR]

A prediction's *reach* is how far the measurement is from it, in half widths of its interval: 1 is
an end of the interval. The 90% quantile of a group's reaches is 1 where its share in
`profiles/cost_constants.py` is right. For the coverage kept out that quantile is taken from all
clusters (or models, where all rows come from one machine) but one, and the intervals of
the one are made as wide as it says. Of `published/latencies.csv` only rows count
that no constant was fitted to.

`--data` is a folder with `published_2026_11.csv`, more published latencies: those of whole models
on a recorded cluster that this planner can price are shown beside, and none of the shares was
taken from them.
"""

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.planner_on_paper import CLUSTER, MODE
from benchmarks.planner_on_paper import rows as family_rows
from benchmarks.planner_predictions import MEASURED
from benchmarks.planner_published import Row, published_rows, task_of
from ditplan.checking.measured import measured_task
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import price_all, price_one
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.measured_plans import MeasuredPlans
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import Prediction

COVERED = 0.9
MOST_SLOWER = 0.95
"""Share of pairs in which an approximate plan kept enough of its predicted lead over an exact
one."""


@dataclass(frozen=True)
class Seen:
    """A measured plan: `apart` is what rows kept out together share, `setting` what pairs of plans
    share that are compared.
    """

    group: str
    apart: str
    setting: tuple[object, ...]
    mesh: Mesh
    measured_s: float
    predicted_s: float
    half_s: float

    @property
    def reach(self) -> float:
        """How far the measurement is from the prediction, in half widths of the interval."""
        return abs(self.measured_s - self.predicted_s) / self.half_s

    @property
    def log_ratio(self) -> float:
        """Measured over predicted, as a logarithm."""
        return math.log(self.measured_s / self.predicted_s)


def seen(
    group: str,
    apart: str,
    setting: tuple[object, ...],
    mesh: Mesh,
    measured_s: float,
    prediction: Prediction,
    timed_s: float | None = None,
) -> Seen:
    """A measured plan beside its prediction; `timed_s` is what is predicted of what the source
    timed, the denoising loop if None.
    """
    low_s, high_s = prediction.interval_s
    predicted_s = prediction.latency_s if timed_s is None else timed_s
    half_s = (high_s - low_s) / 2 * predicted_s / prediction.latency_s
    return Seen(group, apart, setting, mesh, measured_s, predicted_s, half_s)


def by_data_sheet(cluster: ClusterProfile) -> ClusterProfile:
    """A cluster whose devices have nothing but what their data sheets say."""
    unknown = {"matmul_share": None, "attention_share": None}
    hosts = tuple(
        host.model_copy(
            update={"devices": tuple(one.model_copy(update=unknown) for one in host.devices)}
        )
        for host in cluster.hosts
    )
    return cluster.model_copy(update={"hosts": hosts})


def published() -> Iterator[Seen]:
    """Published rows that were kept from all fits, on the recorded cluster and on one of which only
    the data sheet is known.
    """
    for row in published_rows():
        if row.mesh is None or row.use != "check":
            continue
        task = task_of(row)
        sheet = by_data_sheet(task.cluster)
        if sheet != task.cluster:
            yield _published("recorded shares", row, task)
        yield _published("data sheet", row, replace(task, cluster=sheet))


def _published(group: str, row: Row, task: Task) -> Seen:
    assert row.mesh is not None
    prediction = price_one(task, row.mesh, row.mode, warmup_steps=row.warmup).prediction
    timed_s = prediction.end_to_end_s if row.whole_call else prediction.latency_s
    setting = (*row.setting, row.gpus)
    return seen(group, row.cluster, setting, row.mesh, row.latency_s, prediction, timed_s)


def families() -> Iterator[Seen]:
    """A step of five models on two H100, of which only the data sheet is given."""
    for row in family_rows():
        spec = find_model(row.model)
        task = Task(
            spec, spec.defaults, find_cluster(CLUSTER), modes=(MODE,), allowed=ApproximationPolicy()
        )
        prediction = price_one(task, row.mesh, MODE).prediction
        measured_s = row.measured_s * spec.defaults.steps
        yield seen("data sheet", CLUSTER, (row.model,), row.mesh, measured_s, prediction)


def recorded() -> Iterator[Seen]:
    """Plans run on two H100 whose rates and links were measured, with the model's blocks measured
    as well and without.
    """
    for path in sorted(MEASURED.glob("*/*.json")):
        runs = MeasuredPlans.load(path)
        for group, task in (
            ("measured rates", replace(measured_task(runs), profile=None)),
            ("measured blocks", measured_task(runs)),
        ):
            priced, _ = price_all(task, Topology(task.cluster))
            by_name = {str(one.configuration): one for one in priced}
            for run in runs.runs:
                if found := by_name.get(run.candidate):
                    one = found.configuration
                    is_graph = "graph" in one.mode
                    measured_s = statistics.median(run.latency_s)
                    yield seen(
                        group if is_graph else f"{group}, launched",
                        runs.model,
                        (path.stem, one.mode, one.mesh.size),
                        one.mesh,
                        measured_s,
                        found.prediction,
                    )


def further(folder: Path) -> Iterator[Seen]:
    """Rows of `published_2026_11.csv` on L20 whose plan this planner can price."""
    meshes = {
        "single": Mesh(),
        "ulysses4": Mesh(ulysses=4),
        "ulysses2 ring2": Mesh(ulysses=2, ring=2),
    }
    cluster = find_cluster("8xl20-pcie")
    with (folder / "published_2026_11.csv").open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            mesh = meshes.get(cells["strategy"])
            if cells["gpu"] != "L20" or mesh is None:
                continue
            spec = find_model(cells["model"])
            size = {name: int(cells[name]) for name in ("height", "width", "frames", "steps")}
            task = Task(
                spec,
                spec.defaults.model_copy(update=size),
                cluster,
                backend=find_backend("diffusers"),
            )
            prediction = price_one(task, mesh, "eager").prediction
            whole = cells["what"] == "end-to-end"
            timed_s = prediction.end_to_end_s if whole else prediction.latency_s
            measured_s = float(cells["latency_s"])
            yield seen("further", cluster.name, (spec.name,), mesh, measured_s, prediction, timed_s)


def quantile(numbers: Iterable[float], share: float) -> float:
    """The number that a further one is below with this probability, as far as so few can tell: the
    conformal quantile, the largest one where they are too few.
    """
    found = sorted(numbers)
    return found[min(len(found), math.ceil((len(found) + 1) * share)) - 1]


def coverage(rows: Sequence[Seen], reach: float = 1.0) -> float:
    """The share of rows within so many half widths."""
    return statistics.fmean(row.reach <= reach for row in rows)


def kept_out(rows: Sequence[Seen]) -> dict[str, float]:
    """The coverage of each cluster's (or model's) rows by the quantile of all others."""
    apart = dict.fromkeys(row.apart for row in rows)
    found = {}
    for name in apart if len(apart) > 1 else ():
        others = quantile((row.reach for row in rows if row.apart != name), COVERED)
        found[name] = coverage([row for row in rows if row.apart == name], others)
    return found


def leads(rows: Iterable[Seen]) -> Iterator[tuple[str, float]]:
    """For each pair of a plan with PipeFusion and an exact one of as many GPUs, otherwise alike, by
    how much the first is slower against the other than predicted, as a logarithm; by cluster.
    """
    settings: defaultdict[tuple[object, ...], list[Seen]] = defaultdict(list)
    for row in rows:
        settings[row.group, *row.setting].append(row)
    for alike in settings.values():
        exact = [row for row in alike if row.mesh.pipefusion == 1 and row.mesh.size > 1]
        for row in alike:
            if row.mesh.pipefusion > 1:
                yield from ((row.apart, row.log_ratio - other.log_ratio) for other in exact)


def show_group(name: str, rows: Sequence[Seen]) -> None:
    """A group's coverage, in all and kept out."""
    factor = quantile((row.reach for row in rows), COVERED)
    half = statistics.median(row.half_s / row.predicted_s for row in rows)
    print(
        f"{name:<27} {len(rows):3} rows: {100 * coverage(rows):3.0f}% in intervals of +-"
        f"{100 * half:.0f}%; 90% are within {factor:.2f} half widths"
    )
    for apart, share in kept_out(rows).items():
        count = sum(row.apart == apart for row in rows)
        print(f"    {apart:<23} {count:3} rows, by the others' quantile: {100 * share:.0f}%")


def show_leads(name: str, rows: Sequence[Seen]) -> None:
    """By how much a predicted lead of PipeFusion can be lost."""
    found = list(leads(rows))
    if not found:
        return
    lost = quantile((log for _, log in found), MOST_SLOWER)
    print(f"{name:<27} {len(found):3} pairs: 95% lose less than {100 * math.expm1(lost):.0f}%")
    for apart in dict.fromkeys(name for name, _ in found) if name == "all" else ():
        own = [log for name, log in found if name == apart]
        others = quantile((log for name, log in found if name != apart), MOST_SLOWER)
        share = statistics.fmean(log <= others for log in own)
        print(f"    {apart:<23} {len(own):3} pairs, by the others' quantile: {100 * share:.0f}%")


def main() -> None:
    """Prints the coverage of each group, and how predicted leads hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, metavar="DIR", help="further published latencies")
    asked = parser.parse_args()
    groups: defaultdict[str, list[Seen]] = defaultdict(list)
    for row in (*published(), *families(), *recorded()):
        groups[row.group].append(row)
    for name, rows in groups.items():
        show_group(name, rows)
    if asked.data:
        show_group("further, published", list(further(asked.data)))
    print("\nPipeFusion's lead over exact plans of as many GPUs: measured against predicted")
    for name, rows in groups.items():
        show_leads(name, rows)
    show_leads("all", [row for rows in groups.values() for row in rows])


if __name__ == "__main__":
    main()
