"""What the cost model is worth: the planner's sampler against Optuna's over the same space.

    python -m benchmarks.sampler_comparison --seeds 10
    python -m benchmarks.sampler_comparison --seeds 0 --ranks 2

On paper the truth is made up from the cost model, wrong in its parts as in
`benchmarks.planner_search`. With --ranks sd3-tiny's plans are really run on this machine. Regret is
by how much the chosen plan is slower than the fastest of all (on paper) or of all that any sampler
ran (for real, by what they measured).
"""

import argparse
import math
import platform
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna

import ditplan
from benchmarks.planner_search import RUN_NOISE, WRONG, Wrongness, setting_of, task_of
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.pricing import cost_model_of, price_all
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.search import measured
from ditplan.planner.task import Task
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.plan import ExecutionPlan

PAIRS = (("sd3", "8xa100-nvlink"), ("flux-dev", "8xl20-pcie"))
SAMPLERS: tuple[SamplerName, ...] = ("planner", "tpe", "random")


@dataclass
class Truth:
    """What each plan of a task takes in a world where the cost model is wrong; plans that the
    planner left unpriced too.
    """

    task: Task
    wrong: Wrongness
    seed: int
    known: dict[str, float] = field(default_factory=dict)

    @cached_property
    def _model(self) -> CostModel:
        return cost_model_of(self.task, Topology(self.task.cluster))

    def seconds(self, candidate: Configuration) -> float:
        """One candidate's seconds without noise."""
        if candidate.key not in self.known:
            parts = self._model.price(candidate, self.task.workload).parts
            self.of_parts(candidate, parts)
        return self.known[candidate.key]

    def of_parts(self, candidate: Configuration, parts: dict[str, float]) -> float:
        """The same, for one whose prediction is known."""
        total_s = math.fsum(
            seconds
            * self._factor(part, self.wrong.part)
            * self._factor((part, setting_of(part, candidate)), self.wrong.setting)
            for part, seconds in parts.items()
        )
        own = self._factor(candidate.key, self.wrong.candidate)
        return self.known.setdefault(candidate.key, total_s * own)

    def _factor(self, of: object, deviation: float) -> float:
        """The same for the same thing, whoever asks and when."""
        draw = np.random.default_rng([self.seed, zlib.crc32(repr(of).encode())])
        return math.exp(draw.normal(0, deviation))


def on_paper(
    truth: Truth, found: Sequence[PricedCandidate], sampler: SamplerName, plans: int
) -> tuple[int, float]:
    """How many plans were run, and the regret."""
    noise = np.random.default_rng(truth.seed)

    def measure(plan: ExecutionPlan) -> RunResult:
        return RunResult(truth.seconds(plan.configuration) * math.exp(noise.normal(0, RUN_NOISE)))

    policy = MeasurementPolicy(measure, top=plans, sampler=sampler)
    results, _ = measured(truth.task, found, policy, say=lambda message: None)
    ran = [ranked for ranked in results if ranked.measurement]
    chosen = min(ran, key=lambda ranked: ranked.latency_s).configuration
    return len(ran), truth.seconds(chosen) / min(truth.known.values()) - 1


def for_real(ranks: int, plans: int, folder: Path) -> dict[SamplerName, tuple[int, float]]:
    """How many of sd3-tiny's plans each sampler ran on this machine, and the best one's seconds.

    All of them start from the same measured cluster and blocks.
    """
    results: dict[SamplerName, tuple[int, float]] = {}
    for sampler in SAMPLERS:
        found = ditplan.plan(
            "sd3-tiny",
            measure=plans,
            sampler=sampler,
            study=folder / "plan.study",
            progress=lambda message: print(f"  {message}", file=sys.stderr),
            gpus=ranks,
            steps=4,
        ).found
        ran = [ranked for ranked in found.ranked if ranked.measurement]
        results[sampler] = (len(ran), found.best.latency_s)
    return results


def print_on_paper(seeds: int, plans: int) -> None:
    """A line for each cluster, wrongness and sampler."""
    print(
        f"\nOn paper, {seeds} seeds, {plans} plans and the baseline at most, {RUN_NOISE:.0%} noise "
        f"a run\n{'model, cluster':26}{'wrong by':17}{'sampler':9}{'plans run':>9}"
        f"{'regret, mean':>15}{'95th percentile':>17}"
    )
    for model, cluster in PAIRS:
        task = task_of(model, cluster)
        found = [one for one in price_all(task, Topology(task.cluster))[0] if not one.too_big]
        for wrong in WRONG:
            for sampler in SAMPLERS:
                outcomes = []
                for seed in range(seeds):
                    truth = Truth(task, wrong, seed)
                    for ranked in found:
                        truth.of_parts(ranked.configuration, ranked.prediction.parts)
                    outcomes.append(on_paper(truth, found, sampler, plans))
                regret = [100 * lost for _, lost in outcomes]
                words = f"{wrong.part:.0%}/{wrong.setting:.0%}/{wrong.candidate:.0%}"
                print(
                    f"{f'{model}, {cluster}':26}{words:17}{sampler:9}"
                    f"{np.mean([ran for ran, _ in outcomes]):9.1f}{np.mean(regret):14.2f}%"
                    f"{np.percentile(regret, 95):16.2f}%",
                    flush=True,
                )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="on paper; 0 for none")
    parser.add_argument("--trials", type=int, default=12, help="plans run beside the baseline")
    parser.add_argument("--ranks", type=int, default=0, help="run sd3-tiny on so many CPU ranks")
    parser.add_argument("--real-trials", type=int, default=4)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        f"python -m benchmarks.sampler_comparison {' '.join(sys.argv[1:])}\n{platform.machine()}, "
        f"Python {platform.python_version()}, optuna {optuna.__version__}, "
        f"{datetime.now(UTC):%Y-%m-%d}"
    )
    if asked.seeds:
        print_on_paper(asked.seeds, asked.trials)
    if asked.ranks:
        print(
            f"\nsd3-tiny, 4 steps, {asked.ranks} CPU ranks, {asked.real_trials} plans and the "
            f"baseline at most\n{'sampler':9}{'plans run':>9}{'best':>12}{'regret':>9}"
        )
        with tempfile.TemporaryDirectory() as folder:
            results = for_real(asked.ranks, asked.real_trials, Path(folder))
        least_s = min(best_s for _, best_s in results.values())
        for sampler, (ran, best_s) in results.items():
            regret = f"{best_s / least_s - 1:.1%}"
            print(f"{sampler:9}{ran:9}{best_s:10.4f} s{regret:>9}")


if __name__ == "__main__":
    main()
