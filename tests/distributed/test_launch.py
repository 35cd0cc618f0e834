"""What becomes of ranks that work, raise, die, hang and are left alone: real processes."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from ditplan.profiles.errors import ClusterError, InputError
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import HostChoice
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.conversation import STOPPED_SILENCE_S
from ditplan.runtime.ranks.pool import RankError, RankPool

# What the design promises between a failure and the end of all ranks.
END_S = 30.0


def sum_of_ranks(context: RankContext, more: float = 0.0) -> float:
    total = torch.tensor(float(context.rank) + more)
    dist.all_reduce(total)
    return float(total)


def raise_on(context: RankContext, rank: int, message: str) -> None:
    if context.rank == rank:
        raise KeyError(message)
    dist.barrier()


def refuse(context: RankContext, only: int | None = None) -> None:
    if only is None or context.rank == only:
        raise InputError("17 steps are too many")


def exit_on(context: RankContext, rank: int) -> None:
    if context.rank == rank:
        sys.stderr.write("the last words\n")
        os._exit(7)
    dist.barrier()


def crash_on(context: RankContext, rank: int) -> None:
    if context.rank == rank:
        ctypes.string_at(0)
    dist.barrier()


def stop_on(context: RankContext, rank: int) -> None:
    if context.rank == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()


def wait_forever_somewhere(context: RankContext, rank: int) -> None:
    if context.rank == rank:
        while True:
            time.sleep(0.1)


def start_a_child(context: RankContext) -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


def write_to_stdout(context: RankContext) -> None:
    sys.stdout.write(f"rank {context.rank} was here\n")
    os.write(1, b"and below Python\n")


def echo(context: RankContext, value: torch.Tensor) -> torch.Tensor:
    return value * context.rank


@pytest.fixture
def pair() -> Iterator[RankPool]:
    """Two ranks that have imported this file, so that a task's failure is all that takes time."""
    with RankPool(None, 2, "cpu", start_timeout_s=600) as pool:
        pool.run(sum_of_ranks, timeout_s=600)
        yield pool


def assert_all_ended(pool: RankPool, processes: list[int], began: float) -> None:
    assert time.monotonic() - began < END_S
    assert not [process for process in processes if psutil.pid_exists(process)]
    assert not pool.is_open
    with pytest.raises(ClusterError, match="start a new"):
        pool.run(sum_of_ranks, timeout_s=5)


def failure_of(
    pool: RankPool, function: object, *args: object, timeout_s: float = 600.0
) -> RankError:
    processes, began = pool.processes(), time.monotonic()
    with pytest.raises(RankError) as caught:
        pool.run(function, *args, timeout_s=timeout_s)  # type: ignore[arg-type]
    assert_all_ended(pool, processes, began)
    assert caught.value.exit_code == 3
    logs = Path(str(caught.value).rpartition("Their logs: ")[2])
    assert len(list(logs.glob("rank-*.log"))) == pool.size
    shutil.rmtree(logs)
    return caught.value


def test_results_come_back_by_rank_task_after_task(ranks: RankPool) -> None:
    assert ranks.run(sum_of_ranks, timeout_s=600) == [6.0] * 4
    assert ranks.run(sum_of_ranks, more=1.0, timeout_s=600) == [10.0] * 4
    big = torch.arange(1_000_000.0)
    for rank, value in enumerate(ranks.run(echo, big, timeout_s=600)):
        torch.testing.assert_close(value, big * rank)


def test_stdout_of_ranks_goes_to_their_logs_only(
    ranks: RankPool, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks.run(write_to_stdout, timeout_s=600)
    assert capfd.readouterr().out == ""
    for rank, log in enumerate(ranks.logs()):
        assert f"rank {rank} was here" in log
        assert "and below Python" in log


def test_input_error_on_all_ranks_is_an_input_error_and_breaks_nothing(ranks: RankPool) -> None:
    with pytest.raises(InputError, match=r"^17 steps are too many$"):
        ranks.run(refuse, timeout_s=600)
    assert ranks.run(sum_of_ranks, timeout_s=600) == [6.0] * 4


def test_a_function_that_cannot_be_sent_is_refused_before_anything_runs(ranks: RankPool) -> None:
    with pytest.raises(ValueError, match="top level of a module"):
        ranks.run(lambda context: None, timeout_s=5)
    with pytest.raises(ValueError, match="can't be run on ranks"):
        ranks.run(echo, lambda: None, timeout_s=5)
    assert ranks.is_open


def test_exception_of_one_rank_arrives_with_its_traceback(pair: RankPool) -> None:
    error = failure_of(pair, raise_on, 1, "no such block")
    assert error.ranks == (1,)
    assert str(error).startswith("raise_on: rank 1 raised KeyError: 'no such block'")
    assert "raise KeyError(message)" in str(error)


def test_input_error_of_one_rank_only_is_a_failure_of_that_rank(pair: RankPool) -> None:
    error = failure_of(pair, refuse, 0)
    assert error.ranks == (0,)
    assert "17 steps" in str(error)


def test_a_rank_that_exits_is_the_cause_not_those_that_lose_their_connection(
    pair: RankPool,
) -> None:
    error = failure_of(pair, exit_on, 1)
    assert error.ranks == (1,)
    assert str(error).startswith("exit_on: rank 1 exited with code 7")
    assert "the last words" in str(error)


def test_a_crash_is_named_by_its_signal_with_the_end_of_the_log(pair: RankPool) -> None:
    error = failure_of(pair, crash_on, 0)
    assert str(error).startswith("crash_on: rank 0 died of SIGSEGV")
    assert "crash_on" in str(error).partition("\n")[2]


def test_a_stopped_rank_is_noticed_by_its_silence(pair: RankPool) -> None:
    error = failure_of(pair, stop_on, 1)
    assert error.ranks == (1,)
    silence = re.search(r"rank 1 gave no sign of life for (\d+) s \(its process", str(error))
    assert silence is not None
    assert STOPPED_SILENCE_S <= int(silence[1]) < END_S
    assert "It gave no stack; its process's state is stopped" in str(error)


def test_a_stopped_rank_is_to_blame_when_time_is_up_before_its_silence_shows(
    pair: RankPool,
) -> None:
    os.kill(pair.processes()[0], signal.SIGSTOP)
    error = failure_of(pair, sum_of_ranks, timeout_s=1.0)
    assert error.ranks == (0,)
    assert "rank 0 did not finish in time (its process is stopped)" in str(error)
    assert "in consequence rank 1 did not finish" in str(error)


def test_a_task_out_of_time_names_unfinished_ranks_and_shows_where_they_are(
    pair: RankPool,
) -> None:
    error = failure_of(pair, wait_forever_somewhere, 1, timeout_s=4.0)
    assert error.ranks == (1,)
    assert "rank 1 did not finish in time; finished: rank 0" in str(error)
    assert "in wait_forever_somewhere" in str(error)


def test_a_rank_dead_between_tasks_fails_the_next_and_children_of_ranks_end(
    pair: RankPool,
) -> None:
    children = pair.run(start_a_child, timeout_s=600)
    os.kill(pair.processes()[0], signal.SIGKILL)
    wait_until_ended(pair.processes()[:1])
    error = failure_of(pair, sum_of_ranks)
    assert "rank 0 died of SIGKILL" in str(error)
    assert not [child for child in children if psutil.pid_exists(child) and not is_zombie(child)]


def is_zombie(process: int) -> bool:
    return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)


PARENT = """
import sys
from ditplan.runtime.ranks.pool import RankPool
from tests_of_launch import wait_forever_somewhere
with RankPool(None, 2, "cpu") as pool:
    print(*pool.processes(), flush=True)
    if sys.argv[1] == "busy":
        pool.run(wait_forever_somewhere, 1, timeout_s=100)
    sys.stdin.read()
"""


def start_parent(folder: Path, state: str) -> tuple[subprocess.Popen[str], list[int]]:
    (folder / "tests_of_launch.py").write_text(Path(__file__).read_text())
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        "PATH": os.environ["PATH"],
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert parent.stdout is not None
    processes = [int(word) for word in parent.stdout.readline().split()]
    assert len(processes) == 2
    return parent, processes


def wait_until_ended(processes: list[int]) -> None:
    deadline = time.monotonic() + END_S
    while left := [p for p in processes if psutil.pid_exists(p) and not is_zombie(p)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["busy SIGKILL", "idle SIGKILL", "busy SIGINT"])
def test_ranks_end_when_the_program_that_started_them_does(tmp_path: Path, how: str) -> None:
    state, name = how.split()
    parent, processes = start_parent(tmp_path, state)
    with parent:
        time.sleep(0.5)
        parent.send_signal(signal.Signals[name])
        wait_until_ended(processes)
        parent.wait(END_S)


@pytest.mark.parametrize(
    ("hosts", "ranks", "message"),
    [
        ((Host(name="localhost", slots=2),), 3, "3 ranks don't fit the 2 slots"),
        (None, 0, "at least 1"),
    ],
)
def test_hosts_that_cannot_be_used_are_refused(
    hosts: tuple[Host, ...] | None, ranks: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        RankPool(None if hosts is None else HostChoice.of(hosts), ranks, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_more_ranks_than_gpus_are_refused() -> None:
    with pytest.raises(InputError, match="2 ranks need a GPU each, this machine has 0"):
        RankPool(None, 2, "cuda")
