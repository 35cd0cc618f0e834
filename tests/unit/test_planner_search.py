"""The search: what is measured and how, failures, budget, resuming after a kill, and its report."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from ditplan.planner.report import ranking_table, simulate_json, tune_json
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.racing import MOST_ROUNDS
from ditplan.planner.search.ranking import SearchResult
from ditplan.planner.search.search import search
from ditplan.planner.search.storage import study_name
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.catalog import cluster_names, find_cluster
from ditplan.profiles.errors import ClusterError, InputError
from ditplan.profiles.mesh import AXES, Mesh
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, sd3_like

ROOT = Path(__file__).parents[2]
TASK = Task(sd3_like(), WORKLOAD, a_cluster(devices=4), modes=("eager",))


class Machine:
    """Stands for the hardware: latencies by mesh, and a log of what was run."""

    def __init__(self, **failing: str) -> None:
        self.failing = failing
        self.ran: list[str] = []

    def __call__(self, plan: ExecutionPlan) -> RunResult:
        """Twice as slow with guidance split, so that the model is wrong; fails where told to."""
        self.ran.append(str(plan.mesh))
        if reason := self.failing.get(str(plan.mesh).replace(" x ", "_")):
            raise ClusterError(reason)
        return RunResult(1.0 / plan.mesh.size + plan.mesh.cfg, memory_bytes=1000 + len(self.ran))


def trials_in(journal: Path) -> list[FrozenTrial]:
    """The trials of the journal's study, read as another program would."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name=study_name(TASK), storage=storage).trials


def test_without_measuring_the_order_is_that_of_exhaustive_pricing() -> None:
    found = search(TASK)
    predicted = [ranked.prediction.latency_s for ranked in found.ranked]
    assert predicted == pytest.approx(sorted(predicted), rel=1e-5)
    assert found.legal == len(found.ranked)
    assert found.best.reason == ""
    assert all(ranked.reason for ranked in found.alternatives)
    assert found.pruned == {"cfg > passes": 2}


@pytest.mark.parametrize("top", [1, 2, 3])
def test_top_and_baseline_are_measured_interleaved(top: int) -> None:
    ran: list[str] = []

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.append(str(plan.mesh))
        return RunResult(1.0)

    found = search(TASK, MeasurementPolicy(measure, top=top, rounds=3))
    first_round = ran[: len(ran) // 3]
    assert ran == first_round * 3
    assert len(set(first_round)) == len(first_round)
    baseline = next(ranked for ranked in found.ranked if ranked.is_baseline)
    assert baseline.measurement is not None
    assert str(baseline.configuration.mesh) in first_round
    predicted = [str(ranked.configuration.mesh) for ranked in search(TASK).ranked]
    assert set(first_round) == {*predicted[:top], str(baseline.configuration.mesh)}


def test_measured_latency_decides() -> None:
    found = search(TASK, MeasurementPolicy(Machine(), top=6, rounds=3))
    measured = [r.measurement.latency_s for r in found.ranked if r.measurement]
    assert measured == sorted(measured)
    assert found.best.measurement is not None
    assert found.best.measurement.latency_s == min(measured)
    assert found.ranked[1].reason.startswith("measured ")


def test_measurement_is_the_median_with_the_largest_memory() -> None:
    latencies = iter([3.0, 1.0, 2.0])
    task = replace(TASK, gpus=1)
    found = search(
        task,
        MeasurementPolicy(lambda plan: RunResult(next(latencies), memory_bytes=5), top=1, rounds=3),
    )
    assert found.best.measurement is not None
    assert found.best.measurement.latency_s == 2.0
    assert found.best.measurement.runs_s == (3.0, 1.0, 2.0)
    assert found.best.measurement.memory_bytes == 5
    assert found.best.measurement.devices == "1 x H100"


def test_failing_candidates_are_told_fail_and_the_others_go_on(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    best = str(search(TASK).best.configuration.mesh)
    machine = Machine(**{best.replace(" x ", "_"): "rank 1 ran out of memory"})
    found = search(TASK, MeasurementPolicy(machine, top=3, rounds=2, journal=journal))
    assert machine.ran.count(best) == 1
    failed = next(ranked for ranked in found.ranked if str(ranked.configuration.mesh) == best)
    assert failed.reason == "failed when it was run: rank 1 ran out of memory"
    assert found.best.measurement is not None
    states = {trial.user_attrs["mesh"].partition(",")[0]: trial for trial in trials_in(journal)}
    assert states[best].state == TrialState.FAIL
    assert states[best].user_attrs["reason"] == "rank 1 ran out of memory"
    others = [trial.state for mesh, trial in states.items() if mesh != best]
    assert others == [TrialState.COMPLETE] * len(others)


def test_a_clearly_slower_plan_is_run_less_and_its_measurement_is_kept(tmp_path: Path) -> None:
    journal, ran = tmp_path / "study.log", list[str]()
    slow = str(search(TASK).ranked[1].configuration.mesh)

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.append(str(plan.mesh))
        return RunResult((1.5 if str(plan.mesh) == slow else 1.0) + 0.001 * len(ran))

    found = search(TASK, MeasurementPolicy(measure, top=3, rounds=4, journal=journal))
    counts = Counter(ran)
    assert counts.pop(slow) == 2
    assert set(counts.values()) == {4}
    pruned = [trial for trial in trials_in(journal) if trial.state == TrialState.PRUNED]
    assert [trial.user_attrs["mesh"].partition(",")[0] for trial in pruned] == [slow]
    assert "slower than the fastest" in pruned[0].user_attrs["reason"]
    loser = next(ranked for ranked in found.ranked if str(ranked.configuration.mesh) == slow)
    assert loser.measurement is not None
    assert loser.reason.startswith("measured 5")
    ran.clear()
    again = search(TASK, MeasurementPolicy(measure, top=3, rounds=4, journal=journal))
    assert ran == []
    assert loser.measurement in [ranked.measurement for ranked in again.ranked]


def test_what_noise_hides_gets_more_rounds() -> None:
    noise = random.Random(1)
    found = search(
        TASK, MeasurementPolicy(lambda plan: RunResult(noise.uniform(0.9, 1.1)), top=3, rounds=3)
    )
    runs = [len(ranked.measurement.runs_s) for ranked in found.ranked if ranked.measurement]
    assert 3 < max(runs) <= MOST_ROUNDS


def test_measuring_ends_when_no_other_plan_can_win() -> None:
    ran, said = set[str](), list[str]()
    predicted = {str(r.configuration.mesh): r.prediction.latency_s for r in search(TASK).ranked}
    # three meshes far ahead of what the others can be
    ahead = {mesh: 0.3 * latency_s for mesh, latency_s in predicted.items()}

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.add(str(plan.mesh))
        return RunResult(ahead[str(plan.mesh)])

    found = search(TASK, MeasurementPolicy(measure, top=len(predicted), rounds=2), said.append)
    assert len(ran) < len(predicted)
    assert found.ended == "no unmeasured plan can be more than 3% faster"
    assert any(found.ended in message for message in said)
    assert next(ranked for ranked in found.ranked if ranked.is_baseline).measurement
    assert found.ended in " ".join(table_text(found, width=200).split())
    unmeasured = [ranked for ranked in found.ranked if not ranked.measurement]
    assert all(ranked.corrected_s for ranked in unmeasured)
    assert all(ranked.latency_s > 0.97 * found.best.latency_s for ranked in unmeasured)


def test_the_fastest_so_far_is_run_beside_later_batches() -> None:
    ran: list[str] = []

    def measure(plan: ExecutionPlan) -> RunResult:
        ran.append(str(plan.mesh))
        return RunResult(1.0 + 0.01 * list(dict.fromkeys(ran)).index(ran[-1]))

    search(TASK, MeasurementPolicy(measure, top=5, rounds=2))
    fastest, *_, last = dict.fromkeys(ran)
    assert fastest in ran[ran.index(last) :]


class LosesRanks(Machine):
    """Loses its ranks in some of the runs of one plan, counted from one."""

    def __init__(self, mesh: str, *lost: int) -> None:
        super().__init__()
        self.mesh, self.lost = mesh, lost

    def __call__(self, plan: ExecutionPlan) -> RunResult:
        """As any machine, where its ranks live."""
        result = super().__call__(plan)
        if str(plan.mesh) == self.mesh and self.ran.count(self.mesh) in self.lost:
            error = ClusterError("rank 1 died of SIGKILL\nits log")
            error.ranks_were_lost = True
            raise error
        return result


def test_a_plan_that_loses_its_ranks_once_keeps_its_runs_and_gets_all_others() -> None:
    best = str(search(TASK).best.configuration.mesh)
    machine, said = LosesRanks(best, 2), list[str]()
    found = search(TASK, MeasurementPolicy(machine, top=1, rounds=3), said.append)
    undisturbed = search(TASK, MeasurementPolicy(Machine(), top=1, rounds=3))
    runs = {str(r.configuration.mesh): r.measurement.runs_s for r in found.ranked if r.measurement}
    assert runs == {
        str(r.configuration.mesh): r.measurement.runs_s for r in undisturbed.ranked if r.measurement
    }
    assert machine.ran.count(best) == len(runs[best]) + 1
    assert f"{best}, eager: rank 1 died of SIGKILL; it is run once more, on new ranks" in said


@pytest.mark.parametrize("lost", [(1, 2), (2, 3)])
def test_a_plan_that_loses_its_ranks_again_fails_and_the_others_go_on(
    lost: tuple[int, ...], tmp_path: Path
) -> None:
    best, journal = str(search(TASK).best.configuration.mesh), tmp_path / "study.log"
    machine = LosesRanks(best, *lost)
    found = search(TASK, MeasurementPolicy(machine, top=2, rounds=3, journal=journal))
    assert machine.ran.count(best) == lost[-1]
    failed = next(ranked for ranked in found.ranked if str(ranked.configuration.mesh) == best)
    assert failed.failure == "rank 1 died of SIGKILL"
    assert failed.measurement is None
    states = {t.user_attrs["mesh"]: t.state for t in trials_in(journal)}
    assert states[f"{best}, eager"] == TrialState.FAIL
    measured = [ranked.measurement for ranked in found.ranked if ranked.measurement]
    assert measured
    assert all(len(one.runs_s) >= 2 for one in measured)


def test_when_all_fail_the_reasons_are_given() -> None:
    def measure(plan: ExecutionPlan) -> RunResult:
        raise ClusterError("no NCCL")

    with pytest.raises(ClusterError, match=r"all \d plans that were tried failed.*no NCCL"):
        search(TASK, MeasurementPolicy(measure, top=2))


def test_budget_stops_after_the_first_run_and_says_so() -> None:
    machine, said = Machine(), list[str]()
    found = search(TASK, MeasurementPolicy(machine, top=3, rounds=3, budget_s=0), said.append)
    assert len(machine.ran) == 1
    assert found.best.measurement is not None
    assert "budget of 0 s is spent" in said


def test_complete_trials_are_not_measured_again(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    first, second = Machine(), Machine()
    before = search(TASK, MeasurementPolicy(first, top=3, rounds=2, journal=journal))
    after = search(TASK, MeasurementPolicy(second, top=3, rounds=2, journal=journal))
    assert second.ran == []
    assert after.best.measurement == before.best.measurement
    third = Machine()
    search(TASK, MeasurementPolicy(third, top=4, rounds=2, journal=journal))
    assert set(third.ran).isdisjoint(first.ran)


def test_another_task_has_another_study() -> None:
    tasks = [
        TASK,
        replace(TASK, pins={"cfg": 1}),
        replace(TASK, gpus=2),
        replace(TASK, workload=WORKLOAD.model_copy(update={"height": 512})),
        replace(TASK, cluster=a_cluster(devices=4, name="other")),
    ]
    assert len({study_name(task) for task in tasks}) == len(tasks)


def start_search(journal: Path, runs: Path, most: int) -> subprocess.Popen[bytes]:
    """Starts the search of `planner_killed_search`, in a process of its own that hangs after `most`
    runs.
    """
    command = [sys.executable, "-m", "tests.unit.planner_killed_search"]
    return subprocess.Popen([*command, str(journal), str(runs), str(most)], cwd=ROOT)


def wait_for_lines(path: Path, count: int) -> None:
    """Waits until a file has so many lines."""
    deadline = time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "the search did not get that far"
        time.sleep(0.01)


def test_a_search_killed_with_kill_9_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal, runs = tmp_path / "study.log", tmp_path / "runs"
    process = start_search(journal, runs, 6)
    try:
        wait_for_lines(runs, 6)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    reported = sum(len(trial.intermediate_values) for trial in trials_in(journal))
    ran_before = len(runs.read_text().splitlines())
    assert ran_before - 1 <= reported <= ran_before
    resumed = start_search(journal, runs, 100)
    assert resumed.wait(timeout=600) == 0
    trials = trials_in(journal)
    wanted = {trial.user_attrs["candidate"] for trial in trials}
    assert len(trials) == len(wanted), "a trial was lost or measured twice"
    assert len(trials) == 4, "the baseline is among the four that were asked for"
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * len(trials)
    rounds = [set(trial.intermediate_values) for trial in trials]
    assert rounds[0] == {*range(6)}, "the fastest is run beside the last one, in new rounds"
    assert rounds[1:] == [{0, 1, 2}, {0, 1, 2}, {3, 4, 5}]
    ran_after = len(runs.read_text().splitlines())
    assert ran_after == ran_before + 15 - reported


def test_half_a_line_at_the_journal_s_end_is_cut_off(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    before = search(TASK, MeasurementPolicy(Machine(), top=2, rounds=2, journal=journal))
    with journal.open("a") as file:
        file.write('{"op_code":6,"worker_id":"x","tri')
    machine = Machine()
    after = search(TASK, MeasurementPolicy(machine, top=2, rounds=2, journal=journal))
    assert machine.ran == []
    assert after.best.measurement == before.best.measurement
    search(TASK, MeasurementPolicy(machine, top=3, rounds=2, journal=journal))
    assert all(trial.state == TrialState.COMPLETE for trial in trials_in(journal))


def test_journal_in_a_missing_folder_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make it first"):
        search(TASK, MeasurementPolicy(Machine(), journal=tmp_path / "missing" / "study.log"))


def test_trials_carry_their_degrees_as_parameters(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    found = search(TASK, MeasurementPolicy(Machine(), top=3, rounds=1, journal=journal))
    by_key = {ranked.configuration.key: ranked for ranked in found.ranked}
    for trial in trials_in(journal):
        mesh = by_key[trial.user_attrs["candidate"]].configuration.mesh
        assert {a: trial.params[a] for a in ("cfg", "ring", "ulysses")} == {
            a: getattr(mesh, a) for a in ("cfg", "ring", "ulysses")
        }


def test_what_does_not_fit_is_dropped_with_the_numbers() -> None:
    large = WORKLOAD.model_copy(update={"height": 4096, "width": 4096})
    device = a_device(memory_bytes=42_000_000_000)
    task = replace(TASK, workload=large, cluster=a_cluster(devices=4, device=device))
    found = search(task)
    assert found.pruned["does not fit in memory"] > 0
    assert found.legal + found.pruned["does not fit in memory"] == len(found.ranked)
    assert found.ranked[-1].reason.startswith("does not fit: needs ")
    assert not found.best.too_big
    assert sum(ranked.is_baseline for ranked in found.ranked[: found.legal]) == 1


def test_a_model_that_fits_nowhere_is_wrong_input() -> None:
    tiny = a_cluster(devices=2, device=a_device(memory_bytes=4_000_000_000))
    with pytest.raises(InputError, match=r"sd3-like fits on no device of test.*needs"):
        search(replace(TASK, cluster=tiny))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": 9}, "9 GPUs were asked for, cluster test has 4"),
        ({"pins": {"ulysses": 8}}, "ulysses8, need 8 GPUs and there are 4"),
        ({"pins": {"cfg": 3}}, "cfg is 3, but sd3-like has 2 passes"),
        ({"pins": {"pipefusion": 2}}, "pipefusion2 gives another result than one device"),
        (
            {"pins": {"pipefusion": 2}, "allowed": ApproximationPolicy(patches=5000)},
            "patches=5000: sd3-like's 4096 image tokens",
        ),
    ],
)
def test_impossible_wishes_are_wrong_input(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        search(replace(TASK, **change))  # type: ignore[arg-type]


def test_the_plan_holds_the_best_candidate_and_its_runner_ups() -> None:
    found = search(TASK, MeasurementPolicy(Machine(), top=2, rounds=1))
    plan = found.to_plan()
    assert ExecutionPlan.from_json(plan.model_dump_json(), "plan") == plan
    assert plan.mesh == found.best.configuration.mesh
    assert plan.measurement == found.best.measurement
    assert [r.reason for r in plan.runner_ups] == [r.reason for r in found.ranked[1:9]]
    assert plan.fingerprint.devices == ("H100",) * plan.mesh.size
    assert found.to_plan(1).mesh == found.ranked[1].configuration.mesh


def test_tune_json_holds_what_the_command_line_promises() -> None:
    found = tune_json(search(TASK))
    assert set(found) >= {"best", "alternatives", "legal", "pruned", "search_s"}
    best = found["best"]
    assert isinstance(best, dict)
    promised = {"gpus", *AXES, "patches", "warmup", "mode", "backend", "latency_s", "interval_s"}
    promised |= {"end_to_end_s", "setup_s", "memory_bytes", "exact", "quality"}
    assert promised <= set(best)


def test_simulate_json_holds_what_the_command_line_promises() -> None:
    found = simulate_json(TASK, search(TASK).best)
    assert {"latency_s", "interval_s", "memory_bytes", "breakdown", "link_bytes"} <= set(found)


def table_text(ranking: SearchResult, width: int, rows: int = 12) -> str:
    """The ranking's table as a terminal of that width shows it."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(ranking_table(ranking, rows))
    return console.export_text()


def test_table_shows_measured_and_predicted() -> None:
    text = table_text(search(TASK, MeasurementPolicy(Machine(), top=2, rounds=1)), width=100)
    assert "* rule of thumb" in text
    assert "measured" in text
    assert "best" in text
    assert "slower" in text


def test_table_has_columns_only_for_what_differs() -> None:
    text = table_text(search(TASK), width=100)
    assert "mode" not in text
    assert "measured" not in text
    both = table_text(search(replace(TASK, modes=("eager", "graph"))), width=100)
    assert "mode" in both
    assert "graph" in both


@pytest.mark.parametrize("width", [80, 100, 140])
def test_table_cuts_nothing_off_and_names_orders(width: int) -> None:
    found = search(Task(sd3_like(), WORKLOAD, find_cluster("2x8xl40-pcie-eth100")))
    text = table_text(found, width)
    assert "\u2026" not in text
    for ranked in found.ranked[:12]:
        assert str(ranked.configuration.mesh) in text
        if ranked.configuration.order != AXES:
            assert f"({ranked.configuration.order_text})" in text


def test_table_shows_the_rule_of_thumb_wherever_it_stands() -> None:
    found = search(TASK)
    place = next(i for i, ranked in enumerate(found.ranked, start=1) if ranked.is_baseline)
    text = table_text(found, width=100, rows=place - 1)
    assert f"{place} {found.ranked[place - 1].configuration.mesh} *" in text
    assert f"{len(found.ranked) - place} more not shown" in text


def test_table_shows_words_in_brackets_as_they_are() -> None:
    best = str(search(TASK).best.configuration.mesh).replace(" x ", "_")
    machine = Machine(**{best: "[rank 1] died"})
    assert "[rank 1] died" in table_text(
        search(TASK, MeasurementPolicy(machine, top=3, rounds=1)), width=140
    )


@pytest.mark.parametrize("name", cluster_names())
def test_all_recorded_clusters_are_searched(name: str) -> None:
    found = search(Task(sd3_like(), WORKLOAD, find_cluster(name)))
    assert found.best.configuration.mesh.cfg == 2


def test_searching_loads_no_torch() -> None:
    script = "import sys, ditplan.planner.search.search; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_fewer_gpus_are_plans_too() -> None:
    sizes = {ranked.configuration.mesh.size for ranked in search(TASK).ranked}
    assert sizes == {1, 2, 3, 4}
    assert Mesh() in {ranked.configuration.mesh for ranked in search(TASK).ranked}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [*lines, b"hello"], "is not JSON"),
        (lambda lines: [*lines, b"[1]"], "this is no entry of a study"),
        (lambda lines: [*lines, b"{}"], "this is no study of ditplan's (KeyError: 'op_code')"),
        (lambda lines: [*lines, b'{"op_code": 99}'], "this is no study of ditplan's"),
        (lambda lines: [*lines, b'{"a": NaN}'], "Input should be a finite number"),
        (lambda lines: [b"\xff\xfe", *lines], "line 1: line 1, column 1"),
        (lambda lines: [re.sub(rb"(?<!\d)0\.5\d*", b"-1", line) for line in lines], "took -1"),
        (lambda lines: [line.replace(b"1000", b'"x"') for line in lines], "memory_bytes is 'x'"),
    ],
)
def test_a_damaged_journal_is_refused_with_its_name_and_what_to_do(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    journal = tmp_path / "study.log"
    policy = MeasurementPolicy(lambda _plan: RunResult(0.5, 1000), top=1, rounds=1, journal=journal)
    search(TASK, policy)
    lines = damage(journal.read_bytes().splitlines())
    journal.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(InputError) as refused:
        search(TASK, policy)
    message = str(refused.value)
    assert message.startswith(f"{journal}: ")
    assert words in message
    assert message.endswith("; delete it to measure anew")


def test_a_journal_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "study.log")
    policy = MeasurementPolicy(lambda _plan: RunResult(0.5), top=1, journal=tmp_path / "study.log")
    with pytest.raises(InputError, match=r"study.log: this is no regular file; expected the journ"):
        search(TASK, policy)
