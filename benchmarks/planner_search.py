"""How good the planner's choice is where the truth is known: by enumerating everything, and with a
cost model that is wrong.

    python -m benchmarks.planner_search --seeds 50

First the planner's own choice is compared with the fastest of all candidates, enumerated here in
another way. Then the truth is made up from the cost model: each part of a prediction times random
factors, and each candidate times one of its own. Regret is by how much the chosen candidate is
slower than the fastest of all.
"""

import argparse
import itertools
import math
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import optuna
from numpy.typing import NDArray

from ditplan.planner.cost.memory import memory_of, why_too_big
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.parameters import parameters_of
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.search.search import measured, search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.enumerate import evenly_staged
from ditplan.planner.space.legality import schedule_of
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import AXES, Mesh, placement_of
from ditplan.profiles.plan import ExecutionPlan

ENUMERATED = (
    ("sd3", "8xa100-nvlink", 8),
    ("sd3", "2x8xl40-pcie-eth100", 16),
    ("flux-dev", "8xl20-pcie", 8),
    ("flux-dev", "2x8xl40-pcie-eth100", 16),
)
SIMULATED = (
    ("sd3", "8xa100-nvlink"),
    ("sd3", "2x8xl40-pcie-eth100"),
    ("flux-dev", "8xl20-pcie"),
    ("flux-dev", "2x8xl40-pcie-eth100"),
)
RUN_NOISE = 0.01
"""By how much a run differs from the next one, in logs."""


@dataclass(frozen=True)
class Wrongness:
    """How wrong the cost model is: standard deviations of the logs of a part's factor, of its
    factor at one degree or mode, and of a candidate's own.
    """

    part: float
    setting: float
    candidate: float


WRONG = (Wrongness(0.2, 0.0, 0.03), Wrongness(0.2, 0.1, 0.03), Wrongness(0.2, 0.2, 0.03))


def task_of(model: str, cluster: str, gpus: int | None = None) -> Task:
    """A model's usual workload on a recorded cluster, PipeFusion allowed."""
    spec = find_model(model)
    return Task(
        spec, spec.defaults, find_cluster(cluster), gpus=gpus, allowed=ApproximationPolicy()
    )


def everything(task: Task) -> Iterator[Configuration]:
    """All candidates, straight from the rules: every product of degrees, every order of the axes,
    every number of patches, every mode.
    """
    spec, workload = task.spec, task.workload
    gpus = task.gpus or len(task.cluster.devices)
    image, text = spec.image_tokens(workload), spec.text_tokens(workload)
    family = family_of(spec.transformer_class)
    schedule = schedule_of(spec, task.backend.capabilities)
    blocks = math.ceil(spec.block_count / 2) if schedule == "folded" else spec.block_count
    for degrees in itertools.product(range(1, gpus + 1), repeat=len(AXES)):
        if math.prod(degrees) > gpus:
            continue
        mesh = Mesh(**dict(zip(AXES, degrees, strict=True)))
        if (
            mesh.dp > workload.batch
            or mesh.cfg > workload.passes
            or mesh.ulysses > spec.heads
            or mesh.pipefusion > (1 if family.no_pipefusion else blocks)
            or mesh.ring * mesh.ulysses > min(image, text or image)
        ):
            continue
        stages = mesh.pipefusion
        counts = {stages + 1, stages, 2 * stages, 4 * stages} if stages > 1 else {1}
        orders = {placement_of(mesh, order): order for order in itertools.permutations(AXES)}
        for (placement, order), patches in itertools.product(orders.items(), counts):
            first = max(1, (image + text) // patches - text) if patches > 1 else image
            others = (image - first) // (patches - 1) if patches > 1 else image
            if min(first, others) < mesh.ring * mesh.ulysses:
                continue
            part = evenly_staged(mesh, spec, patches, 1, schedule)
            for mode in task.searched_modes:
                yield Configuration(mesh, placement, mode, order, part)


def fastest_s(task: Task) -> tuple[float, int]:
    """The least predicted latency of everything that fits, and how many candidates were priced."""
    model = CostModel(Topology(task.cluster), task.spec, task.profile)
    device, best_s, count = task.cluster.devices[0], math.inf, 0
    for candidate in everything(task):
        staged = model.balanced(candidate, task.workload)
        count += 1
        if not why_too_big(memory_of(task.spec, task.workload, staged, device), device):
            best_s = min(best_s, model.price(staged, task.workload).latency_s)
    return best_s, count


def true_seconds(
    found: Sequence[PricedCandidate], wrong: Wrongness, seed: int
) -> NDArray[np.float64]:
    """What each candidate really takes, in a world where the cost model is wrong."""
    random = np.random.default_rng(seed)
    factors: dict[object, float] = {}

    def factor(key: object, deviation: float) -> float:
        return factors.setdefault(key, math.exp(random.normal(0, deviation)))

    def part_s(part: str, seconds: float, candidate: Configuration) -> float:
        setting = factor((part, setting_of(part, candidate)), wrong.setting)
        return seconds * factor(part, wrong.part) * setting

    return np.array(
        [
            math.fsum(
                part_s(p, s, ranked.configuration) for p, s in ranked.prediction.parts.items()
            )
            * math.exp(random.normal(0, wrong.candidate))
            for ranked in found
        ]
    )


def setting_of(part: str, candidate: Configuration) -> object:
    """The degree of the axis that a part's exchanges run along, or mode and share of what is
    computed.
    """
    mesh = candidate.mesh
    degrees = {
        "ulysses": mesh.ulysses,
        "ring": mesh.ring,
        "gather": mesh.sequence_parallel,
        "cfg": mesh.batch_parallel,
        "sends": mesh.pipefusion,
        "bubbles": mesh.pipefusion,
    }
    patches = candidate.pipefusion.patches if candidate.pipefusion else 1
    return degrees.get(part, (candidate.mode, mesh.sequence_parallel * patches))


Strategy = Callable[["World", int], Sequence[int]]
"""Which candidates are run: the world and how many beside the baseline."""


@dataclass(frozen=True)
class World:
    """A task with all its candidates, and what each of them really takes."""

    task: Task
    found: Sequence[PricedCandidate]
    true_s: NDArray[np.float64]
    seed: int

    @property
    def baseline(self) -> int:
        """The rule of thumb."""
        return next(row for row, ranked in enumerate(self.found) if ranked.is_baseline)

    def run(self, row: int, random: np.random.Generator) -> float:
        """One run of a candidate."""
        return float(self.true_s[row] * math.exp(random.normal(0, RUN_NOISE)))


def ours(world: World, trials: int) -> list[int]:
    """The planner's search."""
    ran: list[int] = []
    rows = {ranked.configuration: row for row, ranked in enumerate(world.found)}
    random = np.random.default_rng(world.seed)

    def measure(plan: ExecutionPlan) -> RunResult:
        row = rows[plan.configuration]
        ran.append(row)
        return RunResult(world.run(row, random))

    results, _ = measured(
        world.task, world.found, MeasurementPolicy(measure, top=trials), say=lambda message: None
    )
    tried = {row: r.measurement for row, r in enumerate(results) if r.measurement}
    return sorted(tried, key=lambda row: tried[row].latency_s)


def by_runs(world: World, rows: Sequence[int]) -> list[int]:
    """These and the baseline, fastest first by the median of three runs."""
    random = np.random.default_rng(world.seed)
    tried = dict.fromkeys([*rows, world.baseline])
    medians = {row: np.median([world.run(row, random) for _ in range(3)]) for row in tried}
    return sorted(tried, key=lambda row: medians[row])


def top(world: World, trials: int) -> list[int]:
    """Those predicted fastest, and nothing learnt from any of them."""
    return by_runs(world, range(min(trials, len(world.found))))


def at_random(world: World, trials: int) -> list[int]:
    """Any."""
    random = np.random.default_rng(world.seed)
    return by_runs(world, list(random.choice(len(world.found), trials, replace=False)))


def tpe(world: World, trials: int, told: int = 0) -> list[int]:
    """Optuna's TPE after the planner's first batch; it may be told the fastest predictions first.

    What it asks for is replaced by the nearest candidate that wasn't run.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes = world.task.backend.capabilities.axes
    known = [parameters_of(r.configuration, axes) | {"patches": patches_of(r)} for r in world.found]
    distributions = distributions_of(known)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=world.seed, n_startup_trials=4)
    )
    parameters = [{name: params[name] for name in distributions} for params in known]

    def tell(row: int, seconds: float) -> None:
        study.add_trial(
            optuna.trial.create_trial(
                params=parameters[row], distributions=distributions, value=seconds
            )
        )

    for row in range(min(told, len(world.found))):
        tell(row, world.found[row].prediction.latency_s)
    random = np.random.default_rng(world.seed)
    counts = [
        [*(getattr(r.configuration.mesh, axis) for axis in axes), patches_of(r)]
        for r in world.found
    ]
    numbers = np.log2(np.array(counts, dtype=float))
    ran = [0, 1, 2, world.baseline]
    for row in ran:
        tell(row, world.run(row, random))
    while len(set(ran)) < trials + 1:
        trial = study.ask(distributions)
        asked = trial.params
        wanted = [math.log2(asked[axis]) for axis in (*axes, "patches")]
        distance = ((numbers - wanted) ** 2).sum(axis=1)
        for name in ("order", "mode"):
            distance += np.array([p[name] != asked[name] for p in parameters])
        distance[ran] = math.inf
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        row = int(np.argmin(distance))
        ran.append(row)
        tell(row, world.run(row, random))
    return by_runs(world, ran)


def patches_of(ranked: PricedCandidate) -> int:
    """Patches, 1 without PipeFusion."""
    part = ranked.configuration.pipefusion
    return part.patches if part else 1


def distributions_of(
    known: Sequence[dict[str, object]],
) -> dict[str, optuna.distributions.BaseDistribution]:
    """What TPE draws from: degrees and patches in logs, orders and modes that occur."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in known[0]:
        values = {params[name] for params in known if name in params}
        if name in ("order", "mode"):
            found[name] = optuna.distributions.CategoricalDistribution(sorted(map(str, values)))
        elif name != "warmup":
            most = max(int(str(value)) for value in values)
            found[name] = optuna.distributions.IntDistribution(1, max(2, most), log=True)
    return found


def tpe_told(world: World, trials: int) -> list[int]:
    """TPE that was told the 100 fastest predictions."""
    return tpe(world, trials, told=100)


STRATEGIES: dict[str, Strategy] = {
    "planner": ours,
    "top K": top,
    "TPE": tpe,
    "TPE, told": tpe_told,
    "random": at_random,
}


def regrets(
    job: tuple[str, str, int, int],
) -> dict[tuple[Wrongness, str], list[tuple[float, int]]]:
    """Regret and number of plans really run, by wrongness and strategy, for each seed."""
    model, cluster, seeds, trials = job
    task = task_of(model, cluster)
    priced, _ = price_all(task, Topology(task.cluster))
    found = [ranked for ranked in priced if not ranked.too_big]
    results: dict[tuple[Wrongness, str], list[tuple[float, int]]] = {}
    for wrong, seed in itertools.product(WRONG, range(seeds)):
        world = World(task, found, true_seconds(found, wrong, seed), seed)
        for name, strategy in STRATEGIES.items():
            rows = strategy(world, trials)
            regret = float(world.true_s[rows[0]] / world.true_s.min() - 1)
            results.setdefault((wrong, name), []).append((regret, len(rows)))
    return results


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=12, help="plans run beside the baseline")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    print(
        f"python -m benchmarks.planner_search {' '.join(sys.argv[1:])}\n{platform.machine()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, optuna {optuna.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}\n"
    )
    print("The planner's choice against everything, enumerated in another way")
    for model, cluster, gpus in ENUMERATED:
        task = task_of(model, cluster, gpus)
        best_s, count = fastest_s(task)
        found = search(task)
        regret = found.best.prediction.latency_s / best_s - 1
        print(
            f"{model:9} {cluster:20} {count:5} candidates; planner: {len(found.ranked):5} priced "
            f"in {found.search_s:4.1f} s; regret {regret:+.4%}",
            flush=True,
        )
    print(
        f"\nA cost model that is wrong, {asked.seeds} seeds, {asked.trials} plans and the "
        f"baseline, 3 runs each, {RUN_NOISE:.0%} noise a run.\nWrong by: a part's factor / its "
        "factor at a degree or mode / a candidate's own, standard deviations of their logs.\n"
        "Regret in percent, mean and 95th percentile, and how many plans were run."
    )
    jobs = [(*pair, asked.seeds, asked.trials) for pair in SIMULATED]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        for (model, cluster, *_), results in zip(jobs, pool.imap(regrets, jobs), strict=True):
            print(f"\n{model} on {cluster}\n{'wrong by':21}", end="")
            print("".join(f"{name:>19}" for name in STRATEGIES))
            for wrong in WRONG:
                words = f"{wrong.part:.0%} / {wrong.setting:.0%} / {wrong.candidate:.0%}"
                cells = "".join(f"{cell(results[wrong, name]):>19}" for name in STRATEGIES)
                print(f"{words:21}{cells}", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")


def cell(found: Sequence[tuple[float, int]]) -> str:
    """Mean and 95th percentile of regret in percent, and the mean number of plans run."""
    percent = [100 * regret for regret, _ in found]
    plans = np.mean([count for _, count in found])
    return f"{np.mean(percent):.2f} {np.percentile(percent, 95):5.2f} {plans:5.1f}"


if __name__ == "__main__":
    main()
