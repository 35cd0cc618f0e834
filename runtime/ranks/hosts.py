"""Which hosts ranks can be started on. Imports nothing large, so that wrong ones are told at
once.
"""

import socket
from collections.abc import Sequence

from ditplan.profiles.errors import InputError
from ditplan.profiles.hosts import HostLine

LOOPBACK = "127.0.0.1"


def require_local(hosts: Sequence[HostLine]) -> None:
    """Refuses hosts other than this machine.

    Raises:
        InputError: names the first one.
    """
    here = socket.gethostname().lower()
    names = {"localhost", LOOPBACK, "::1", here, here.partition(".")[0]}
    for host in hosts:
        if host.host.lower() not in names or host.user is not None:
            name = f"{host.user}@{host.host}" if host.user else host.host
            raise InputError(
                f"{name}: starting ranks on other hosts isn't available yet; use localhost, "
                f"{LOOPBACK} or {here} (without user@)"
            )
