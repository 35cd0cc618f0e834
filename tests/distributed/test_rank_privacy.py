"""What other users of the machine can reach of ranks: nothing that they could write into."""

import os
import stat
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.pool import RankPool


def sum_over_new_groups(context: RankContext, purpose: str) -> float:
    """Makes groups, and makes them anew: all that writes into the ranks' store."""
    everyone = list(range(context.world_size))
    total = torch.tensor(float(context.rank + 1))
    for name in (purpose, f"{purpose}, too"):
        dist.all_reduce(total, group=context.groups.group(everyone, name))
    context.groups.break_off()
    context.groups.renew()
    dist.all_reduce(total, group=context.groups.group(everyone, purpose))
    return float(total)


def rank_folder(context: RankContext) -> str:
    """Where this rank's log lies."""
    return str(Path(f"/proc/{os.getpid()}/fd/1").readlink().parent)


def listening(processes: list[int]) -> set[str]:
    """The addresses on which processes take connections."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in psutil.Process(process).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_ranks_take_connections_on_the_loopback_interface_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # what a user has set for jobs over several hosts doesn't count on one
    others = [name for name in psutil.net_if_addrs() if name != "lo"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", ",".join(others) or "eth0")
    with RankPool(None, 2, "cpu", start_timeout_s=600) as pool:
        assert pool.run(sum_over_new_groups, "a", timeout_s=600) == [12.0, 12.0]
        assert listening(pool.processes()) == {"127.0.0.1"}
        starter, agent, command = psutil.Process(pool.processes()[0]).parents()[:3]
        assert command.pid == os.getpid()
        assert listening([starter.pid, agent.pid, command.pid]) == set()


def test_logs_of_ranks_are_open_to_their_user_only(pair: RankPool) -> None:
    (folder,) = set(pair.run(rank_folder, timeout_s=600))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert os.stat(folder).st_uid == os.getuid()


def test_no_secret_stands_where_other_users_can_read_it(
    pair: RankPool,
) -> None:
    starter, agent = psutil.Process(pair.processes()[0]).parents()[:2]
    words = ["-P", "-m", "ditplan.runtime.ranks.rank_starter"]
    for process in (*map(psutil.Process, pair.processes()), starter):
        assert process.cmdline()[1:] == words
    assert agent.cmdline()[1:] == [*words[:2], "ditplan.runtime.ranks.agent"]


def test_groups_are_made_and_made_anew_after_a_failure(pair: RankPool) -> None:
    assert pair.run(sum_over_new_groups, "b", timeout_s=600) == [12.0, 12.0]
    assert pair.run(sum_over_new_groups, "b", timeout_s=600) == [12.0, 12.0]
