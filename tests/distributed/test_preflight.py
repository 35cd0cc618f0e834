"""Preflight with real programs on this machine: what hosts say, and each way not to answer."""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditplan import cli
from ditplan.profiles.errors import ClusterError, InputError
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import ChosenHost
from ditplan.runtime.ranks.host_probes import sources_digest
from ditplan.runtime.ranks.preflight import LONGEST_S, Preflight, preflight
from tests.unit.json_page import documented

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's client")


def looked_at(*hosts: Host, interface: str | None = None, **environment: str) -> Preflight:
    return preflight([ChosenHost(host) for host in hosts], os.environ | environment, interface)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_this_machine_says_what_it_is() -> None:
    found = looked_at(Host("localhost"), NCCL_ALGO="Ring", SECRET="s3cret")
    assert (found.problems, found.exit_code) == ((), 0)
    [view] = found.hosts
    facts, clock = view.facts, view.clock
    assert facts is not None and facts.versions is not None and clock is not None
    assert facts.hostname == socket.gethostname()
    assert facts.python == platform.python_version()
    assert facts.versions["torch"] == importlib.metadata.version("torch")
    assert facts.versions["ditplan"] == sources_digest()
    assert {name: facts.environment.get(name) for name in ("NCCL_ALGO", "SECRET")} == {
        "NCCL_ALGO": "Ring",
        "SECRET": None,
    }
    assert facts.late == ()
    # one machine has one clock
    assert abs(clock.ahead_s) <= clock.within_s + 1e-3
    found.require()


def test_hosts_that_are_one_machine_reach_each_other_over_loopback() -> None:
    found = looked_at(Host("localhost", slots=1), Host("127.0.0.1", slots=1))
    assert found.exit_code == 0
    assert [view.unreached for view in found.hosts] == [{}, {}]
    assert {view.address.address for view in found.hosts if view.address} == {"127.0.0.1"}
    assert [problem.host for problem in found.problems] == ["localhost, 127.0.0.1"]


def test_an_interface_that_is_not_there_is_the_users_mistake() -> None:
    found = looked_at(Host("localhost"), Host("127.0.0.1"), interface="nope0")
    assert found.exit_code == 2
    with pytest.raises(InputError, match="interface=nope0: localhost has no such interface"):
        found.require()


@needs_ssh
def test_hosts_that_do_not_answer_are_named_in_time_and_hold_up_nobody(silent_port: int) -> None:
    began = time.monotonic()
    found = looked_at(
        Host("localhost", slots=1),
        Host("127.0.0.1", port=silent_port),
        Host("127.0.0.1", port=1),
        Host("no-such-host.invalid"),
    )
    assert time.monotonic() - began < LONGEST_S
    assert found.exit_code == 3
    silent, refused, unknown = (view.fault for view in found.hosts[1:])
    assert "no answer in time" in str(silent)
    assert "nothing listens at port 1 of 127.0.0.1" in str(refused)
    assert "finds no address for no-such-host.invalid" in str(unknown)
    assert found.hosts[0].facts is not None
    with pytest.raises(ClusterError) as raised:
        found.require()
    named = [line.partition(": ")[0] for line in str(raised.value).splitlines()]
    assert named == [f"127.0.0.1:{silent_port}", "127.0.0.1:1", "no-such-host.invalid"]


def test_the_command_prints_what_is_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ditplan", "preflight", "--hosts", "localhost:1", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"hosts", "problems"}
    [host] = found["hosts"]
    parts = [found, host, host["facts"], host["clock"], host["facts"]["interfaces"][0]]
    of_problems = {"severity", "what"}
    assert {name for part in parts for name in part} | of_problems == documented("preflight")


@needs_ssh
def test_the_command_ends_with_3_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "argv", ["ditplan", "preflight", "--hosts", "ssh://127.0.0.1:1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    shown = capsys.readouterr().out
    assert "error: 127.0.0.1:1: nothing listens at port 1 of 127.0.0.1; start sshd there" in shown


@needs_ssh
def test_hosts_are_looked_at_before_ranks_are_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["profile", "--hosts", "localhost:1,ssh.invalid:1", "--out", "c.json"]
    monkeypatch.setattr(sys, "argv", ["ditplan", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "error: ssh.invalid: no such host: this machine finds no address" in said
    assert not (tmp_path / "c.json").exists()
