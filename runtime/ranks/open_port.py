"""Whether a port that one host opens can be reached from another: tried, for as long as a host is
looked at.

Who connects and who listens prove to each other that they are the two that were meant: by a number
that each of them was given over its own connection to the command, never over this one.
"""

import errno
import hmac
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

PROOF_BYTES = 32
TALK_S = 3.0
"""How long a connection may take."""


@dataclass(frozen=True)
class Target:
    """A port that another host opened, and what the two say: random text of `PROOF_BYTES`."""

    host: str
    address: str
    port: int
    greeting: str
    reply: str


def listen(address: str, greeting: str, reply: str) -> int:
    """Opens a port on one address alone, until this process ends; returns its number.

    Raises:
        OSError: the address isn't this host's, or no port is left.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family, backlog=socket.SOMAXCONN)
    threading.Thread(target=_serve, args=(server, greeting, reply), daemon=True).start()
    return int(server.getsockname()[1])


def _serve(server: socket.socket, greeting: str, reply: str) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EMFILE):
                continue
            return
        talk = (connection, greeting.encode(), reply.encode())
        threading.Thread(target=_reply, args=talk, daemon=True).start()


def _reply(connection: socket.socket, greeting: bytes, reply: bytes) -> None:
    with connection:
        connection.settimeout(TALK_S)
        try:
            if hmac.compare_digest(_read(connection), greeting):
                connection.sendall(reply)
        except OSError:
            return


def reach(targets: Sequence[Target]) -> dict[str, str]:
    """By host, why its port isn't reached from here; empty where it is. Takes `TALK_S` at most,
    however many there are.
    """
    found = {target.host: f"no answer within {TALK_S:g} s" for target in targets}

    def try_one(target: Target) -> None:
        found[target.host] = _fault(target)

    threads = [threading.Thread(target=try_one, args=(each,), daemon=True) for each in targets]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TALK_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def _fault(target: Target) -> str:
    try:
        with socket.create_connection((target.address, target.port), TALK_S) as connection:
            connection.sendall(target.greeting.encode())
            is_right = hmac.compare_digest(_read(connection), target.reply.encode())
            return "" if is_right else "somebody else answers there"
    except TimeoutError:
        return f"no answer within {TALK_S:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _read(connection: socket.socket) -> bytes:
    """What the other says, as far as it belongs here."""
    text = b""
    while len(text) < PROOF_BYTES and (more := connection.recv(PROOF_BYTES - len(text))):
        text += more
    return text
