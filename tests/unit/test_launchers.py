"""What is started where: by the words, which a real shell and a real ssh take apart."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host
from ditplan.runtime.ranks.launchers import Launch, is_this_machine, launch_on, launcher_of

MODULE = "ditplan.runtime.ranks.agent"
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[01-03],login"}


def own_addresses() -> list[str]:
    """The IPv4 addresses of this machine."""
    return [
        one.address
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family == socket.AF_INET
    ]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", *own_addresses()])
def test_this_machine_is_known_by_its_names_and_addresses(name: str) -> None:
    assert is_this_machine(name)
    assert launch_on(Host(name), MODULE, JOB).launcher == "direct"
    assert launch_on(Host(name), MODULE, {}).words == (sys.executable, "-P", "-m", MODULE)


@pytest.mark.parametrize("name", ["n01", "192.0.2.1", "2001:db8::1", "localhost2", "127.0.0.1.x"])
def test_other_names_and_addresses_are_other_machines(name: str) -> None:
    assert not is_this_machine(name)
    assert launcher_of(Host(name), {}) == "ssh"


def test_a_user_or_a_port_is_a_matter_of_ssh() -> None:
    assert launcher_of(Host("localhost", user="me"), {}) == "ssh"
    assert launcher_of(Host("localhost", port=2222), {}) == "ssh"
    assert launcher_of(Host("n01", user="me"), JOB) == "ssh"


def test_nodes_of_the_slurm_job_are_reached_by_srun_and_others_by_ssh() -> None:
    launch = launch_on(Host("N02"), MODULE, JOB)
    assert launch.launcher == "srun"
    assert launch.words[0] == "srun"
    assert "--nodelist=N02" in launch.words
    assert launch.words[-4:] == (sys.executable, "-P", "-m", MODULE)
    assert launcher_of(Host("n04"), JOB) == "ssh"
    assert launcher_of(Host("n02"), {"SLURM_JOB_NODELIST": "n02"}) == "ssh"
    with pytest.raises(InputError, match="SLURM_JOB_NODELIST"):
        launcher_of(Host("n02"), JOB | {"SLURM_JOB_NODELIST": "n[1"})


def ssh_of(folder: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> list[str]:
    """What a shell on the other side makes of the last word that ssh is given."""
    monkeypatch.setattr(sys, "executable", python)
    words = launch_on(Host("n1"), MODULE, {}).words
    place = words.index("--")
    assert words[place + 1] == "n1"
    assert len(words) == place + 3
    show = folder / "show"
    show.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
    show.chmod(0o755)
    line = f"{shlex.quote(str(show))} {words[-1]}"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("python", ["/opt/my python/bin/python", "/x/$(id)`id`;'\"/python", "/p"])
def test_the_shell_of_the_other_host_sees_the_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    assert ssh_of(tmp_path, monkeypatch, python) == [python, "-P", "-m", MODULE]


@pytest.mark.skipif(not os.path.exists("/usr/bin/ssh"), reason="needs OpenSSH's client")
def test_ssh_reads_the_options_as_they_are_meant(tmp_path: Path) -> None:
    words = launch_on(Host("fe80::1%eth0", user="me", port=2222), MODULE, {}).words
    place = words.index("--")
    (tmp_path / "config").write_text("Host *\n LocalForward 8888 localhost:80\n ForwardAgent yes\n")
    asked = [words[0], "-G", "-F", str(tmp_path / "config"), *words[1:place], words[place + 1]]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert (said["hostname"], said["user"], said["port"]) == ("fe80::1%eth0", "me", "2222")
    assert (said["batchmode"], said["connecttimeout"]) == ("yes", "10")
    assert (said["serveraliveinterval"], said["serveralivecountmax"]) == ("5", "3")
    assert (said["forwardagent"], said["forwardx11"]) == ("no", "no")
    assert said["controlmaster"] in {"no", "false"}
    assert "localforward" not in said or said["clearallforwardings"] == "yes"


def test_a_launch_has_pipes_and_a_session_of_its_own() -> None:
    script = "import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read())"
    launch = Launch(Host("localhost"), "direct", (sys.executable, "-c", script))
    with launch.start(dict(os.environ), subprocess.DEVNULL) as process:
        said, _ = process.communicate(b"told", timeout=60)
    assert said.split() == [b"True", b"told"]
