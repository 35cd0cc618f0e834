"""What becomes of agents and of the ranks they started: left alone, killed, stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.folders import PREFIX
from ditplan.runtime.ranks.frames import NOBODY, Frame, Kind, Wire
from ditplan.runtime.ranks.pool import RankError, RankPool

# What the design promises between a failure and the end of all ranks.
END_S = 30.0


def wait_for_ever(context: RankContext) -> None:
    while True:
        time.sleep(0.1)


def use_up_memory(context: RankContext, group: str) -> None:
    """Fills a group of processes that has little memory, on the last rank."""
    if context.rank == context.world_size - 1:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
        bytearray(1 << 30)[:: 1 << 12] = b"x" * (1 << 18)
    dist.barrier()


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A group of processes that may have 64 MB of memory; its maker must be root."""
    root = Path("/sys/fs/cgroup/memory")
    name, limit = f"ditplan-test-{os.getpid()}", "memory.limit_in_bytes"
    if not root.is_dir():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
    group = root / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group of processes can be made: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("groups of processes have no limit of memory")
        (group / limit).write_text(str(64 << 20))
        yield group
    finally:
        group.rmdir()


class LoneAgent:
    """An agent, and this test in the command's place."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ditplan.runtime.ranks.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ) | {"TMPDIR": str(folder)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        incoming, outgoing = (
            os.dup(self.process.stdout.fileno()),
            os.dup(self.process.stdin.fileno()),
        )
        self.process.stdin.close()
        self.wire = Wire(incoming, outgoing, after_greeting=True)

    def hear(self, kind: Kind, *, beats: bool = True) -> Frame:
        """The next frame of a kind, while the command says that it is there, or doesn't."""
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            for frame in self.wire.receive():
                if frame.kind == kind:
                    return frame
            if beats:
                self.wire.send(Frame(Kind.BEAT, NOBODY))
            time.sleep(0.05)
        raise AssertionError(f"no {kind.name}")

    def set_up(self, interface: str, *, ends_by_silence: bool) -> None:
        """Has it start a rank, which waits for another one."""
        setup = {
            "devices": {"0": "cpu"},
            "world_size": 2,
            "are_forked": False,
            "path": sys.path,
            "folder": os.getcwd(),
            "interface": interface,
            "environment": {},
            "ends_by_silence": ends_by_silence,
        }
        self.wire.send(Frame(Kind.SETUP, NOBODY, json.dumps(setup).encode()))
        self.hear(Kind.STARTED)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[LoneAgent]:
    """An agent that has said hello."""
    lone = LoneAgent(tmp_path)
    with lone.process:
        lone.hear(Kind.HELLO)
        yield lone
        lone.process.kill()
        lone.wire.close()


def assert_gone(agent: LoneAgent, children: list[psutil.Process], folder: Path) -> None:
    agent.process.wait(END_S)
    assert psutil.wait_procs(children, timeout=END_S)[1] == []
    assert list(folder.glob(f"{PREFIX}*")) == []


@pytest.mark.parametrize("way", ["end of input", "no frame", "silence"])
def test_an_agent_ends_with_all_it_started_when_its_command_is_no_more(
    agent: LoneAgent, tmp_path: Path, way: str
) -> None:
    agent.set_up("lo", ends_by_silence=True)
    children = psutil.Process(agent.process.pid).children(recursive=True)
    assert len(children) == 2
    assert list(tmp_path.glob(f"{PREFIX}*"))
    if way == "end of input":
        os.close(agent.wire.outgoing)
        agent.wire.outgoing = os.dup(agent.wire.incoming)
    elif way == "no frame":
        agent.wire.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
    assert_gone(agent, children, tmp_path)


def test_an_agent_that_was_told_nothing_ends_by_silence_too(
    agent: LoneAgent, tmp_path: Path
) -> None:
    assert_gone(agent, [], tmp_path)


def test_an_interface_that_is_down_is_said(agent: LoneAgent) -> None:
    agent.set_up("none0", ends_by_silence=True)
    assert agent.hear(Kind.REFUSED).payload == b"its interface none0 is down"


def test_a_rank_that_the_kernel_ends_for_lack_of_memory_is_told_so(small_group: Path) -> None:
    with RankPool(None, 2, "cpu", start_timeout_s=600) as pool, pytest.raises(RankError) as caught:
        pool.run(use_up_memory, str(small_group), timeout_s=600)
    assert "rank 1 died of SIGKILL (its host has ended a process for lack of memory)" in str(
        caught.value
    )


def agent_of(pool: RankPool) -> psutil.Process:
    return psutil.Process(pool.processes()[0]).parents()[1]


def starter_of(pool: RankPool) -> psutil.Process:
    return psutil.Process(pool.processes()[0]).parents()[0]


@pytest.mark.parametrize(
    ("whose", "number", "words"),
    [
        (agent_of, signal.SIGKILL, "ranks 0, 1 lost: its agent died of SIGKILL"),
        (agent_of, signal.SIGSTOP, "ranks 0, 1 lost: its agent gave no sign of life for 1"),
        (starter_of, signal.SIGKILL, "lost: the process that starts ranks has ended"),
    ],
    ids=["agent killed", "agent stopped", "starter killed"],
)
def test_no_rank_outlives_its_agent_or_starter(
    whose: Callable[[RankPool], psutil.Process], number: signal.Signals, words: str
) -> None:
    with RankPool(None, 2, "cpu", start_timeout_s=600) as pool:
        agent = agent_of(pool)
        started = [agent, *agent.children(recursive=True)]
        assert len(started) == 4
        os.kill(whose(pool).pid, number)
        harmed = time.monotonic()
        with pytest.raises(RankError) as caught:
            pool.run(wait_for_ever, timeout_s=600)
        assert time.monotonic() - harmed < END_S
        assert words in str(caught.value)
        assert caught.value.ranks == (0, 1)
        assert caught.value.ranks_were_lost
        assert psutil.wait_procs(started, timeout=END_S)[1] == []
