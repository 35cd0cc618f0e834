"""Which hosts ranks can be started on. Imports nothing large, so that wrong ones are told at
once.
"""

import socket
from collections.abc import Sequence
from dataclasses import replace

from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host

LOOPBACK = "127.0.0.1"


def require_local(hosts: Sequence[Host]) -> None:
    """Refuses hosts other than this machine.

    Raises:
        InputError: names the first one.
    """
    here = socket.gethostname().lower()
    names = {"localhost", LOOPBACK, "::1", here, here.partition(".")[0]}
    for host in hosts:
        if host.name.lower() not in names or host.user is not None or host.port is not None:
            name = replace(host, slots=None)
            raise InputError(
                f"{name}: starting ranks on other hosts isn't available yet; use localhost, "
                f"{LOOPBACK} or {here} (without user and port)"
            )
