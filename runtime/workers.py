"""Ranks at work for one command: started when first needed, and anew after one has failed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ditplan.profiles.cluster import ClusterProfile, DeviceKind, LinkKind
from ditplan.profiles.errors import ClusterError
from ditplan.profiles.fingerprint import RankFacts
from ditplan.profiles.host_choice import HostChoice
from ditplan.profiles.model import ModelProfile, ModelSpec, PointRequest
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import RankRun
from ditplan.profiles.workload import Workload
from ditplan.runtime.profiling.slowest_points import slowest_of_ranks
from ditplan.runtime.ranks.by_name import ByName
from ditplan.runtime.ranks.environment import cores, environment
from ditplan.runtime.ranks.gpu_count import gpus_here
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.ranks.survey import Room

# the ranks alone import torch and diffusers for these
GENERATE = ByName("ditplan.runtime.generation", "generate")
MEASURE_PLAN = ByName("ditplan.runtime.generation", "measure_plan")
GATHER_FACTS = ByName("ditplan.runtime.admission.fit", "gathered_facts")
PROFILE_MODEL = ByName("ditplan.runtime.profiling.model_profiler", "profile_model")

FACTS_TIMEOUT_S = 60.0
PROFILE_TIMEOUT_S = 1800.0
SLOWER_THAN_PREDICTED = 50
LOADING_TIMEOUT_S = 900.0


def room_here() -> Room:
    """What ranks of this machine run on, and how many it has room for: one a GPU, or a core."""
    gpus = gpus_here(environment())
    return Room("cuda", gpus) if gpus else Room("cpu", cores())


def device_kind() -> DeviceKind:
    """What ranks of this machine run on: GPUs if there are any."""
    return room_here().device


class Workers:
    """`ranks` ranks on the given hosts (this machine if None); a context manager.

    `say` is told which ranks each host has, and over which interface they talk.
    """

    def __init__(
        self,
        hosts: HostChoice | None,
        ranks: int,
        device: DeviceKind,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._hosts = hosts
        self._say = say
        self.device: DeviceKind = device
        self._pool: RankPool | None = None
        self.ranks = ranks

    def pool(self) -> RankPool:
        """Ranks that work.

        Raises:
            InputError: the hosts have no room for them.
            ClusterError: they can't be started.
        """
        if self._pool is None or not self._pool.is_open:
            self._pool = RankPool(self._hosts, self.ranks, self.device)
            if self._say is not None and len(self._pool.arrangement.shares) > 1:
                self._say(f"hosts: {self._pool.arrangement}")
        return self._pool

    def hosts(self) -> dict[str, int]:
        """How many ranks each host has, in the order of the ranks."""
        return {one.link.name: len(one.devices) for one in self.pool().arrangement.shares}

    def facts(
        self, ranks: Sequence[int], *, timed: bool
    ) -> tuple[Sequence[RankFacts], LinkKind | None]:
        """What some ranks find, and what connects their devices; `timed` with a
        self-test, on GPUs: CPU ranks share their cores with whatever else runs.
        """
        timed = timed and self.device == "cuda"
        found = self.pool().run(GATHER_FACTS, ranks, timed=timed, timeout_s=FACTS_TIMEOUT_S)
        facts: tuple[Sequence[RankFacts], LinkKind | None] = found[0]
        return facts

    def profile_cluster(
        self, say: Callable[[str], None], budget_s: float | None = None
    ) -> ClusterProfile:
        """Measures devices, links and collectives, for about so long if that is given."""
        # it brings torch, which a tune of a known cluster and runs of plans do without
        from ditplan.runtime.profiling.cluster_profiler import profile_cluster

        name = f"{self.ranks}x{self.device}"
        return profile_cluster(self.pool(), name, hosts=self.hosts(), budget_s=budget_s, say=say)

    def profile_model(
        self,
        spec: ModelSpec,
        workload: Workload,
        requests: Sequence[PointRequest],
        cluster: ClusterProfile,
    ) -> ModelProfile:
        """Measures the model's parts on all ranks at once; the slowest rank's times count."""
        results = self.pool().run(
            PROFILE_MODEL, spec, workload, tuple(requests), timeout_s=PROFILE_TIMEOUT_S
        )
        return ModelProfile(
            model=spec.name,
            config_hash=spec.config_hash,
            device=cluster.devices[0].name,
            dtype=workload.dtype,
            software=cluster.software,
            measured_on=cluster.measured_on,
            points=slowest_of_ranks(results),
        )

    def measure(self, spec: ModelSpec, weights: Path | None, plan: ExecutionPlan) -> RankRun:
        """One run of the plan's denoising loop; the slowest rank counts.

        Raises:
            ClusterError: a rank failed or is far slower than predicted; new ranks do the next run.
        """
        runs = self.pool().run(MEASURE_PLAN, spec, weights, plan, timeout_s=_patience_s(plan))
        return _slowest(runs)

    def generate(
        self,
        spec: ModelSpec,
        weights: Path | None,
        plan: ExecutionPlan,
        prompt: str,
        seed: int,
        suffix: str,
        records: bool = False,
    ) -> tuple[RankRun, list[bytes]]:
        """Makes a picture, or as many as the plan's batch, and gives what files of such a suffix
        hold; the slowest rank's times and the largest memory count. With `records`, the phases of
        all ranks are those of another run after it.

        Raises:
            ClusterError: a rank failed.
        """
        made = self.pool().run(
            GENERATE,
            spec,
            weights,
            plan,
            prompt,
            seed,
            suffix,
            records,
            timeout_s=_patience_s(plan),
        )
        files = [file for of_rank in made if of_rank for file in of_rank[1]]
        return _slowest([of_rank and of_rank[0] for of_rank in made]), files

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()


def _patience_s(plan: ExecutionPlan) -> float:
    predicted = plan.prediction.end_to_end_s if plan.prediction else math.inf
    return LOADING_TIMEOUT_S + min(SLOWER_THAN_PREDICTED * predicted, 24 * 3600)


def _slowest(runs: Sequence[RankRun | None]) -> RankRun:
    took_part = [run for run in runs if run is not None]
    if not took_part:
        raise ClusterError("no rank ran the plan")
    return RankRun(
        latency_s=max(run.latency_s for run in took_part),
        end_to_end_s=max(run.end_to_end_s for run in took_part),
        memory_bytes=max(run.memory_bytes for run in took_part),
        phases=tuple(phase for run in took_part for phase in run.phases),
    )
