"""The command `profile`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.hosts import asked_hosts, refuse_hosts, show_what_would_run
from ditplan.command.options import (
    DryRun,
    Gpus,
    HostOptions,
    Json,
    Refresh,
    WorkloadOptions,
    given,
    with_options,
)
from ditplan.command.terminal import Terminal
from ditplan.outputs import require_folder
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.files import path_text
from ditplan.profiles.nccl_cluster import cluster_of_tests


@with_options
def profile_command(
    out: Annotated[Path, typer.Option(help="The file to write.")],
    workload: WorkloadOptions,
    hosts: HostOptions,
    from_nccl_tests: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Measure nothing: read what nccl-tests wrote elsewhere with -J, one file or more.",
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="More files of nccl-tests.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Measure this model's blocks instead.")] = None,
    gpus: Gpus = None,
    dry_run: DryRun = False,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds for links and collectives of a cluster, about; what there is no time for "
            "is inferred from what is like it, and marked.",
        ),
    ] = None,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Measure a cluster (devices, links, collectives), or with --model a model's blocks here."""
    from ditplan.measuring import measured_blocks, measured_cluster

    terminal = Terminal(as_json)
    require_folder(out)
    read = _files_of(from_nccl_tests, files)
    others = {"gpus": gpus, "model": model, "dry_run": dry_run}
    if read:
        refuse_hosts(hosts, Setting("from_nccl_tests"), " measures nothing")
    if read and (wrong := next((name for name, given in others.items() if given), None)):
        raise InputError(
            Setting("from_nccl_tests"), " measures nothing; leave out ", Setting(wrong)
        )
    if model is not None:
        refuse_hosts(hosts, Setting("model"), " measures on this machine's devices")
        if dry_run:
            show_what_would_run(terminal, None, gpus or 1)
            return
        measured = measured_blocks(model, gpus, given(workload), terminal.say)
        measured.save(out)
        points, device = len(measured.points), measured.device
        terminal.show(f"{out}: {points} points of {measured.model} on {device}")
        terminal.finish({"out": str(out), "points": points, "device": device})
        return
    chosen = None if read else asked_hosts(hosts, terminal.say)
    if dry_run:
        show_what_would_run(terminal, chosen, gpus)
        return
    cluster = (
        cluster_of_tests(read, out.stem)
        if read
        else measured_cluster(
            chosen,
            gpus,
            terminal.say,
            budget_s=budget,
            kept=None if refresh else out,
        )
    )
    cluster.save(out)
    for warning in cluster.warnings:
        terminal.say(f"warning: {warning}")
    tables = len(cluster.collectives)
    terminal.show(f"{out}: {len(cluster.devices)} x {cluster.devices[0].name}, {tables} tables")
    terminal.finish(
        {
            "out": str(out),
            "hosts": [host.name for host in cluster.hosts],
            "gpus": len(cluster.devices),
            "links": [link.model_dump() for link in cluster.links],
            "collectives": tables,
            "warnings": list(cluster.warnings),
        }
    )


def _files_of(named: list[Path] | None, more: list[Path] | None) -> list[Path]:
    """The files of nccl-tests, those behind the option's own too, as a shell's `*.json` gives them.

    Raises:
        InputError: files without the option.
    """
    if more and not named:
        raise InputError(
            f"{path_text(more[0])}: what is this file? If nccl-tests wrote it: ",
            Setting("from_nccl_tests", path_text(more[0])),
        )
    return [*(named or ()), *(more or ())]
