"""The commands `cluster new` and `cluster scale`."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.options import ExactCluster, Json
from ditplan.command.terminal import Terminal
from ditplan.outputs import require_folder
from ditplan.profiles.data_sheets import data_sheets

cluster_app = typer.Typer(
    help="Make a file of a cluster without measuring it.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _networks() -> list[str]:
    return list(data_sheets().inter)


@cluster_app.command(
    name="new",
    epilog="Example: `ditplan cluster new --gpus 2x8 --device h100-sxm --intra nvlink "
    "--inter ib400 --out c.json`",
)
def new_command(
    gpus: Annotated[str, typer.Option(metavar="HxG", help="Hosts and the GPUs of each: 2x8.")],
    device: Annotated[
        str,
        typer.Option(
            help="The GPUs, such as h100-sxm or rtx-4090.",
            autocompletion=lambda: list(data_sheets().devices),
        ),
    ],
    intra: Annotated[str, typer.Option(help="What joins GPUs of a host: nvlink or pcie.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    inter: Annotated[
        str | None,
        typer.Option(
            help="What joins hosts, such as eth100 or ib400: one adapter a host, 8xib400 is 8.",
            autocompletion=_networks,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a cluster file from data sheets, to plan on paper for a cluster of one's own."""
    from ditplan.profiles.new_cluster import new_cluster

    terminal = Terminal(as_json)
    require_folder(out)
    cluster = new_cluster(gpus, device, intra, inter)
    cluster.save(out)
    kinds = ", ".join(cluster.link_kinds)
    terminal.show(f"{out}: {len(cluster.devices)} x {cluster.devices[0].name}; {kinds}")
    terminal.finish(
        {
            "out": str(out),
            "hosts": [host.name for host in cluster.hosts],
            "gpus": len(cluster.devices),
            "links": [link.model_dump() for link in cluster.links],
        }
    )


@cluster_app.command(
    name="scale",
    epilog="Example: `ditplan cluster scale --cluster 8xl20-pcie --link pcie --times 0.5 "
    "--out slower.json`",
)
def scale_command(
    cluster: ExactCluster,
    link: Annotated[str, typer.Option(help="The kind of the links, such as pcie or ethernet.")],
    times: Annotated[
        float, typer.Option(min=1e-3, max=1e3, help="So many times the bandwidth that they have.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    as_json: Json = False,
) -> None:
    """Write a cluster file with other bandwidth on all links of a kind, to ask what if."""
    from ditplan.planner.network.scaled_links import with_links_scaled
    from ditplan.profiles.catalog import find_cluster

    terminal = Terminal(as_json)
    require_folder(out)
    scaled = with_links_scaled(find_cluster(cluster), link, times)
    scaled.save(out)
    terminal.show(f"{out}: {scaled.source}")
    terminal.finish({"out": str(out), "links": [one.model_dump() for one in scaled.links]})
