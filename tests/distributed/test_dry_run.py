"""What a dry run says would run is what runs."""

import shlex

import psutil

from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost, HostChoice
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.ranks.reachability import interfaces
from ditplan.runtime.ranks.survey import Room, dry_run, room_on


def test_a_dry_run_says_what_runs_and_starts_no_rank() -> None:
    # one that isn't taken by itself on one machine, where there is one
    usable = [one for one in interfaces() if one.address is not None]
    interface = next((one for one in usable if not one.is_loopback), usable[0])
    hosts = HostChoice((ChosenHost(Host("localhost", slots=2), (0, 2)),), interface.name)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert room_on(hosts) == Room("cpu", 2)
    (planned,) = dry_run(hosts, lambda room: room).hosts
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before
    assert (planned.interface.name, planned.interface.address) == (
        interface.name,
        interface.address,
    )
    assert planned.devices == {0: "cpu", 1: "cpu"}

    with RankPool(hosts, 2, "cpu", start_timeout_s=600) as pool:
        ranks = [psutil.Process(number) for number in pool.processes()]
        agent = ranks[0].parents()[1]
        assert agent.cmdline() == shlex.split(planned.words)
        own = agent.environ()
        for rank in ranks:
            given = {**planned.fallbacks, **own, **planned.settings}
            assert rank.environ() | given == rank.environ()
            listening = {
                one.laddr.ip
                for one in rank.net_connections(kind="inet")
                if one.status == psutil.CONN_LISTEN
            }
            assert listening == {interface.address}
