"""Finds the best plan: prices every candidate, and really runs the most promising ones as an
Optuna study.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ditplan.planner.network.topology import Topology
from ditplan.planner.search.acquisition import corrected
from ditplan.planner.search.ask_tell import AskTell
from ditplan.planner.search.policy import MeasurementPolicy
from ditplan.planner.search.pricing import price_all
from ditplan.planner.search.ranking import (
    SAME_SPEED,
    PricedCandidate,
    SearchResult,
    in_order,
    to_measure,
)
from ditplan.planner.search.replicas import with_replicas
from ditplan.planner.task import Task
from ditplan.profiles.device_kinds import fastest_first
from ditplan.profiles.errors import ClusterError, InputError


def search(
    task: Task,
    trials: MeasurementPolicy | None = None,
    progress: Callable[[str], None] | None = None,
) -> SearchResult:
    """Ranks all candidates by the objective with predicted latency and, with `trials`, the first
    ones with measured latency.

    Raises:
        InputError: no mesh is legal with these pins, none fits into memory, none is as fast as the
            objective demands, or the cluster profile lacks something. ClusterError: every candidate
            that was tried failed.
    """
    started = time.monotonic()
    say = progress or (lambda message: None)
    topology = Topology(task.cluster)
    priced, pruned = price_all(task, topology)
    if task.objective.name == "throughput":
        priced = with_replicas(task, topology, priced)
    fitting = [ranked for ranked in priced if not ranked.too_big]
    too_big = [ranked for ranked in priced if ranked.too_big]
    say(f"priced {len(priced)} candidates, {len(fitting)} fit")
    swapping = [ranked for ranked in fitting if ranked.warning]
    if swapping:
        say(
            f"warning: {len(swapping)} of them need more memory than there is; "
            f"{swapping[0].configuration}: {swapping[0].warning}"
        )
    ended = ""
    if trials and trials.top > 0:
        fitting = to_measure(fitting, task.objective, task.workload.batch)
        fitting, ended = measured(task, fitting, trials, say)
    ranked = in_order([*fitting, *too_big], topology, task.objective, task.workload.batch)
    return SearchResult(
        ranked=ranked,
        legal=len(fitting),
        pruned=pruned,
        search_s=time.monotonic() - started,
        spec=task.spec,
        workload=task.workload,
        cluster=task.cluster,
        backend=task.backend,
        objective=task.objective,
        text_lengths=task.text_lengths,
        resumed=trials.resume if trials else None,
        ended=ended,
        better_order=better_order(task, topology, ranked[0]),
        own_choice=task.own_choice,
    )


def better_order(task: Task, topology: Topology, best: PricedCandidate) -> PricedCandidate | None:
    """The best plan on paper with fast devices listed before slow ones, if it is faster than what
    is predicted of `best`: plans of fewer ranks use the first.
    """
    if not topology.has_different_devices:
        return None
    cluster = fastest_first(task.cluster)
    if cluster.devices == task.cluster.devices:
        return None
    other = replace(task, cluster=cluster)
    priced = [one for one in price_all(other, Topology(cluster))[0] if not one.too_big]
    found = min(priced, key=lambda one: one.weighed_s)
    is_faster = found.weighed_s * SAME_SPEED < best.prediction.latency_s * best.lead
    return found if is_faster else None


def measured(
    task: Task,
    fitting: Sequence[PricedCandidate],
    trials: MeasurementPolicy,
    say: Callable[[str], None],
) -> tuple[list[PricedCandidate], str]:
    """The candidates, those that were tried with their measurement or failure and the others
    corrected by it; and why no more were tried, if the model says so.

    `fitting` are fastest first.

    Raises:
        InputError: all of them failed, one or more for something that the user gave.
        ClusterError: all of them failed for other reasons.
    """
    study = AskTell(task, fitting, trials, say)
    results = study.run()
    failed = [ranked for ranked in results if ranked.failure]
    if failed and not any(ranked.measurement for ranked in results):
        if study.refusals:
            raise InputError(study.refusals[0])
        raise ClusterError(
            f"all {len(failed)} plans that were tried failed; "
            f"{failed[0].configuration}: {failed[0].failure}"
        )
    return corrected(results), study.ended
