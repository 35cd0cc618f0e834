"""What is wrong with a host that can't be reached is told from what ssh and others said."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.host import Host
from ditplan.runtime.ranks.remedies import ssh_command, why_not_started

HOST = Host("n2", "me", 2222)

# as OpenSSH 9.2, bash, dash, Python 3.11 and Slurm 22.05 said it, with the code of each
SEEN = {
    "unknown key": (
        255,
        "No ED25519 host key is known for n2 and you have requested strict checking.\r\n"
        "Host key verification failed.\r\n",
        "its host key isn't known here; run `ssh -p 2222 me@n2` once",
    ),
    "changed key": (
        255,
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n"
        "Offending ED25519 key in /home/me/.ssh/known_hosts:1\r\n  remove with:\r\n"
        '  ssh-keygen -f "/home/me/.ssh/known_hosts" -R "[n2]:2222"\r\n'
        "Host key verification failed.\r\n",
        'forget the old key by `ssh-keygen -f "/home/me/.ssh/known_hosts" -R "[n2]:2222"`',
    ),
    "no key": (
        255,
        "me@n2: Permission denied (publickey,password,keyboard-interactive).\r\n",
        "keys that there are (publickey,password,keyboard-interactive); load one by `ssh-add`, or "
        "put one there by `ssh-copy-id -p 2222 me@n2`",
    ),
    "refused": (
        255,
        "ssh: connect to host n2 port 2222: Connection refused\r\n",
        "nothing listens at port 2222 of n2; start sshd there",
    ),
    "no such host": (
        255,
        "ssh: Could not resolve hostname n2: Name or service not known\r\n",
        "finds no address for n2; correct the name",
    ),
    "no route": (
        255,
        "ssh: connect to host n2 port 22: No route to host\r\n",
        "no way to it (no route to host)",
    ),
    "timed out": (
        255,
        "ssh: connect to host n2 port 22: Connection timed out\r\n",
        "its sshd doesn't answer in time",
    ),
    "banner": (
        255,
        "Connection timed out during banner exchange\r\nConnection to n2 port 22 timed out\r\n",
        "its sshd doesn't answer in time",
    ),
    "closed": (
        255,
        "kex_exchange_identification: Connection closed by remote host\r\n"
        "Connection closed by 10.0.0.2 port 22\r\n",
        "closes the connection before anything is said",
    ),
    "no python": (
        127,
        "bash: line 1: /venv/bin/python: No such file or directory\n",
        "it has no /venv/bin/python; Python and ditplan must lie at the same path on every host",
    ),
    "no python by dash": (
        127,
        "sh: 1: /venv/bin/python: not found\n",
        "it has no /venv/bin/python;",
    ),
    "python of somebody else": (
        126,
        "bash: /venv/bin/python: Permission denied\n",
        "/venv/bin/python can't be executed there",
    ),
    "no ditplan": (
        1,
        "/venv/bin/python: Error while finding module specification for "
        "'ditplan.runtime.ranks.host_report' (ModuleNotFoundError: No module named 'ditplan')\n",
        "its Python doesn't find ditplan, at the same path as here,",
    ),
    "no library": (
        1,
        "Traceback (most recent call last):\n  File ...\n"
        "ModuleNotFoundError: No module named 'psutil'\n",
        "its Python doesn't find psutil; install there what is installed here",
    ),
    "old python": (2, "unknown option -P\nusage: python ...\n", "its Python is too old"),
    "configuration": (
        255,
        "/home/me/.ssh/config: line 3: Bad configuration option: foo\r\n",
        "ssh's own configuration is wrong: Bad configuration option",
    ),
    "srun": (
        1,
        "srun: error: Unable to create step for job 7: Requested node configuration is not "
        "available\n",
        "srun can't start anything there: Unable to create step for job 7",
    ),
    "killed": (None, "", "no answer in time; check that it is up"),
    "anything": (9, "out of cheese\n\n", "ended with 9: out of cheese; try `ssh -p 2222 me@n2`"),
}


@pytest.mark.parametrize("case", SEEN)
def test_each_reason_is_told_with_its_remedy(case: str) -> None:
    code, said, words = SEEN[case]
    assert words in why_not_started(HOST, code, said)


def test_reasons_are_told_apart() -> None:
    lines = {case: why_not_started(HOST, code, said) for case, (code, said, _) in SEEN.items()}
    same = [("timed out", "banner"), ("no python", "no python by dash")]
    for one, other in same:
        assert lines.pop(one) == lines[other]
    assert len({*lines.values()}) == len(lines)


@given(st.integers(0, 255) | st.none(), st.text())
def test_whatever_was_said_the_reason_is_one_line(code: int | None, said: str) -> None:
    line = why_not_started(HOST, code, said)
    assert line.isprintable()
    assert len(line) < 600


def test_what_a_host_says_cannot_write_to_the_terminal() -> None:
    assert "\x1b" not in why_not_started(HOST, 127, "sh: 1: /a\x1b[2Jb: not found\n")


def test_a_host_cannot_put_a_command_into_the_remedy() -> None:
    said = 'HOST IDENTIFICATION HAS CHANGED\n ssh-keygen -f "$(rm -rf ~)" -R "n2"\n'
    assert "rm" not in why_not_started(HOST, 255, said)


@pytest.mark.parametrize(
    ("host", "typed"),
    [
        (Host("n1"), "ssh n1"),
        (Host("fe80::1", "me"), "ssh me@fe80::1"),
        (Host("n1", port=22), "ssh -p 22 n1"),
    ],
)
def test_ssh_is_named_as_one_types_it(host: Host, typed: str) -> None:
    assert ssh_command(host) == typed
    assert re.fullmatch(r"[\w .@:-]+", ssh_command(host))
