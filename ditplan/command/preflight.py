"""The command `preflight`."""

import os

import typer

from ditplan.command.options import Format, Hosts, Json, as_options
from ditplan.command.terminal import Terminal
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import choose_hosts


def preflight_command(
    hosts: Hosts = None, hosts_format: Format = "ditplan", as_json: Json = False
) -> None:
    """Say what hosts are, what differs and what is wrong with them, within 15 seconds.

    It ends with 3 where ranks can't be started on them, with 2 where they don't fit what was given.
    """
    from ditplan.command.host_table import host_table, hosts_json
    from ditplan.measuring import named_hosts
    from ditplan.runtime.ranks.preflight import preflight

    terminal = Terminal(as_json)
    chosen = choose_hosts(named_hosts(hosts, hosts_format) or (Host("localhost"),))
    found = preflight(chosen, dict(os.environ))
    terminal.show(host_table(found.hosts))
    for one in found.problems:
        terminal.show(
            f"{'error' if one.is_fatal else 'warning'}: {one.sentence.worded(as_options)}"
        )
    terminal.finish(
        {
            "hosts": hosts_json(found.hosts),
            "problems": [
                {
                    "host": one.host,
                    "severity": one.severity,
                    "what": one.what.worded(as_options),
                }
                for one in found.problems
            ],
        }
    )
    raise typer.Exit(found.exit_code)
