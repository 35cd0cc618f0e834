"""The command `preflight`."""

import typer

from ditplan.command.hosts import asked_hosts
from ditplan.command.options import HostOptions, Json, as_options, with_options
from ditplan.command.terminal import Terminal
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import HostChoice


@with_options
def preflight_command(hosts: HostOptions, as_json: Json = False) -> None:
    """Say what hosts are, what differs and what is wrong with them, within 15 seconds.

    It ends with 3 where ranks can't be started on them, with 2 where they don't fit what was given.
    """
    from ditplan.command.host_table import host_table, hosts_json
    from ditplan.runtime.ranks.environment import environment
    from ditplan.runtime.ranks.preflight import preflight

    terminal = Terminal(as_json)
    chosen = asked_hosts(hosts, terminal.say) or HostChoice.of([Host("localhost")])
    found = preflight(chosen.hosts, environment(), chosen.interface)
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
