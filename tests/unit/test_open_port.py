"""Whether a host's port can be reached is tried between real sockets."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ditplan.runtime.ranks.open_port import PROOF_BYTES, Target, listen, reach

GREETING, REPLY = "g" * PROOF_BYTES, "r" * PROOF_BYTES


def target(address: str = "127.0.0.1") -> Target:
    """A port that is open for this test."""
    return Target("n1", address, listen(address, GREETING, REPLY), GREETING, REPLY)


@pytest.fixture
def dumb() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_port_is_reached_at_its_own_address() -> None:
    assert reach([target()]) == {"n1": ""}


def test_a_port_is_open_on_its_address_alone() -> None:
    other = replace(target("127.0.0.2"), address="127.0.0.1")
    assert reach([other]) == {"n1": "connection refused"}


def test_somebody_who_does_not_know_the_greeting_learns_nothing() -> None:
    with socket.create_connection(("127.0.0.1", target().port), 5) as stranger:
        stranger.sendall(b"x" * PROOF_BYTES)
        assert stranger.recv(100) == b""


def test_somebody_else_at_the_port_is_told() -> None:
    impostor = replace(target(), reply="other" * 8)
    assert reach([impostor]) == {"n1": "somebody else answers there"}


def test_a_port_that_says_nothing_holds_up_no_other(dumb: int) -> None:
    silent = [Target(f"n{n}", "127.0.0.1", dumb, GREETING, REPLY) for n in range(2, 8)]
    found = reach([*silent, target()])
    assert found.pop("n1") == ""
    assert {*found.values()} == {"no answer within 3 s"}
    assert len(found) == 6


def test_a_stranger_who_stalls_holds_up_nobody() -> None:
    asked = target()
    stalled = [socket.create_connection(("127.0.0.1", asked.port), 5) for _ in range(20)]
    assert reach([asked]) == {"n1": ""}
    for connection in stalled:
        connection.close()


def test_an_address_that_is_not_ours_opens_no_port() -> None:
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.77", GREETING, REPLY)


def test_many_may_try_a_port_at_once() -> None:
    asked, found = target(), list[dict[str, str]]()
    threads = [threading.Thread(target=lambda: found.append(reach([asked]))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [{"n1": ""}] * 40
