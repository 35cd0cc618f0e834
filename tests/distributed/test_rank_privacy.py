"""What other users of the machine can reach of ranks: nothing that they could write into."""

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
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
        mine = {os.getpid(), *pool.processes()}
        assert listening(list(mine)) == {"127.0.0.1"}


def test_what_ranks_meet_in_is_open_to_their_user_only(pair: RankPool) -> None:
    (folder,) = set(pair.run(rank_folder, timeout_s=600))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert os.stat(folder).st_uid == os.getuid()
    assert (Path(folder) / "store").is_file()


def test_no_secret_stands_where_other_users_can_read_it(pair: RankPool) -> None:
    for process in pair.processes():
        words = psutil.Process(process).cmdline()
        assert words[1:] == ["-P", "-m", "ditplan.runtime.ranks.rank_process"]


def test_groups_are_made_and_made_anew_after_a_failure(pair: RankPool) -> None:
    assert pair.run(sum_over_new_groups, "b", timeout_s=600) == [12.0, 12.0]
    assert pair.run(sum_over_new_groups, "b", timeout_s=600) == [12.0, 12.0]


@contextlib.contextmanager
def strangers() -> Iterator[list[socket.socket]]:
    """Connects to each port that this process opens meanwhile, and says nothing, or nonsense."""
    sayings = (b"", b"GET / HTTP/1.1\r\n\r\n" * 100, struct.pack("!iQ", -1, 2**63 - 1), b"")
    stop, met = threading.Event(), list[socket.socket]()
    known = {c.laddr for c in psutil.Process().net_connections(kind="inet")}

    def meddle() -> None:
        while not stop.wait(0.005):
            for one in psutil.Process().net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN and one.laddr not in known:
                    known.add(one.laddr)
                    for saying in sayings:
                        met.append(socket.create_connection(one.laddr))
                        met[-1].sendall(saying)

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        yield met
    finally:
        stop.set()
        thread.join()
        for one in met:
            one.close()


def test_ranks_start_while_strangers_hold_connections_to_their_pool() -> None:
    with strangers() as met, RankPool(None, 2, "cpu", start_timeout_s=600) as pool:
        assert len(met) == 4
        assert pool.run(sum_over_new_groups, "c", timeout_s=600) == [12.0, 12.0]
