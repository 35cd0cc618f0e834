"""How long planning takes, and how much memory, on clusters of 8 to 1024 GPUs.

    python -m benchmarks.planner_speed
    python -m benchmarks.planner_speed --against CHECKOUT    # of another revision, in turns

Each search runs in a process of its own; seconds are CPU seconds of the search alone, and of the
whole process for the command line's cold start. Searches are repeated and the fastest one counts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import described
from ditplan.planner.search.search import search
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile, Host, Link, LinkKind

ROOT = Path(__file__).parents[1]
HOSTS = 128
CASES = (
    ("8xa100-nvlink", "sd3"),
    ("8xa100-nvlink", "flux-dev"),
    ("8xl20-pcie", "flux-dev"),
    ("2x8xl40-pcie-eth100", "sd3"),
    ("8 GPUs of 8 names", "sd3"),
    ("16 GPUs of 8 names", "sd3"),
    *(
        (cluster, model)
        for cluster in ("128x8 NIC a host", "128x8 NIC a GPU")
        for model in ("sd3", "flux-dev", "hunyuanvideo")
    ),
)
COLD_START = ("tune", "--model", "sd3", "--cluster", "2x8xl40-pcie-eth100")


def many_hosts(hosts: int, *, nic_per_gpu: bool) -> ClusterProfile:
    """Hosts of eight H100 on NVLink, with one 400 Gbit/s InfiniBand NIC or one for each GPU."""
    device = find_cluster("8xh100-nvlink").devices[0]
    links = []
    for number in range(hosts):
        host = f"h{number}"
        links += [_link(f"{host}/{i}", f"{host}/nvswitch", "nvlink", 360e9) for i in range(8)]
        nodes = [f"{host}/{i}" for i in range(8)] if nic_per_gpu else [f"{host}/nvswitch"]
        for i, node in enumerate(nodes):
            links.append(_link(node, f"{host}/nic{i}", "pcie", 50e9))
            links.append(_link(f"{host}/nic{i}", "spine", "infiniband", 48e9))
    return ClusterProfile(
        name=f"{hosts}x8",
        hosts=tuple(Host(name=f"h{number}", devices=(device,) * 8) for number in range(hosts)),
        links=tuple(links),
        source="made up of data-sheet numbers",
    )


def of_eight_names(hosts: int) -> ClusterProfile:
    """The same hosts, each of whose eight GPUs is slower and smaller than the one before."""
    alike = many_hosts(hosts, nic_per_gpu=False)
    fastest = alike.devices[0]
    unlike = tuple(
        fastest.model_copy(
            update={
                "name": f"GPU {number}",
                "half_flops_per_s": fastest.half_flops_per_s / (1 + 0.37 * number),
                "memory_bytes_per_s": fastest.memory_bytes_per_s / (1 + 0.2 * number),
                "memory_bytes": fastest.memory_bytes - number * 6_000_000_000,
            }
        )
        for number in range(8)
    )
    return alike.model_copy(
        update={"hosts": tuple(Host(name=host.name, devices=unlike) for host in alike.hosts)}
    )


def _link(a: str, b: str, kind: LinkKind, bytes_per_s: float) -> Link:
    return Link(a=a, b=b, kind=kind, latency_s=4e-6, bytes_per_s=bytes_per_s, source="data sheet")


def search_once(cluster_name: str, model: str) -> dict[str, object]:
    """One search in this process: what it found, its CPU seconds, the process' peak memory."""
    if cluster_name.startswith(f"{HOSTS}x8"):
        cluster = many_hosts(HOSTS, nic_per_gpu=cluster_name.endswith("GPU"))
    elif cluster_name.endswith("names"):
        cluster = of_eight_names(int(cluster_name.split()[0]) // 8)
    else:
        cluster = find_cluster(cluster_name)
    spec = find_model(model)
    task = Task(spec, spec.defaults, cluster, allowed=ApproximationPolicy())
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    found = search(task)
    return {
        "seconds": time.monotonic() - began_s,
        "cpu_s": time.process_time() - began_cpu_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "legal": len({ranked.configuration.mesh for ranked in found.ranked}),
        "left_out": sum(
            found.pruned.get(reason, 0)
            for reason in (
                "fills a host partly",
                "fills hosts unevenly",
                "can't be among the best",
            )
        ),
        "priced": len(found.ranked),
        "best": str(found.best.configuration.mesh),
        "latency_s": found.best.prediction.latency_s,
    }


def cold_start(checkout: Path) -> dict[str, float]:
    """The command line from nothing to its plan: seconds, CPU seconds and peak memory."""
    cli = checkout / "cli.py"
    with tempfile.TemporaryDirectory() as folder:
        began_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        plan = str(Path(folder) / "plan.json")
        command = [sys.executable, str(cli), *COLD_START, "--out", plan]
        subprocess.run(command, check=True, capture_output=True)
        seconds, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_s": cpu_s}


def _fastest(runs: Iterable[dict[str, object]]) -> dict[str, object]:
    return min(runs, key=lambda run: float(str(run["cpu_s"])))


def _in_a_process(checkout: Path, cluster: str, model: str) -> dict[str, object]:
    """A search by what is in a checkout."""
    command = [sys.executable, "-P", __file__, "--one", cluster, model]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _header() -> str:
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    return (
        f"python -m benchmarks.planner_speed, {datetime.now(UTC):%Y-%m-%d}\n"
        f"{described('pydantic', 'networkx', 'optuna')}; load before: {load}"
    )


def main() -> None:
    """Prints the table, or with --one a single search as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("CLUSTER", "MODEL"))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--against", type=Path, help="a checkout of another revision")
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(search_once(*args.one)))
        return
    say = sys.stdout.write
    say(f"{_header()}\n\nmeshes: priced / left out as large ones that fill hosts partly or ")
    say("unevenly, or provably no better")
    say(
        f"; of two lines the first is of the other revision, {args.against.name}\n"
        if args.against
        else "\n"
    )
    say(f"{'cluster':<22}{'model':<14}{'meshes':>14}{'priced':>8}{'CPU s':>8}{'s':>8}{'MB':>6}")
    say("  best\n")
    checkouts = [*([args.against] if args.against else []), ROOT]
    for cluster, model in CASES:
        turns = [[_in_a_process(c, cluster, model) for c in checkouts] for _ in range(args.repeats)]
        for runs in zip(*turns, strict=True):
            _say(_fastest(runs), cluster, model)
    starts = [[cold_start(checkout) for checkout in checkouts] for _ in range(args.repeats)]
    for tried in zip(*starts, strict=True):
        start = min(tried, key=lambda run: run["cpu_s"])
        say(f"\npython cli.py {' '.join(COLD_START)}, imports and output included: ")
        say(f"{start['cpu_s']:.2f} CPU s, {start['seconds']:.2f} s\n")


def _say(run: dict[str, object], cluster: str, model: str) -> None:
    """A line of the table."""
    meshes = f"{run['legal']} / {run['left_out']}"
    sys.stdout.write(
        f"{cluster:<22}{model:<14}{meshes:>14}{run['priced']:>8}{run['cpu_s']:>8.2f}"
        f"{run['seconds']:>8.2f}{run['peak_mb']:>6.0f}  {run['best']}: {run['latency_s']:.3g} s\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
