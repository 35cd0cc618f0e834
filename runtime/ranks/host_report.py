"""What a host says of itself before ranks are started on it.

`runtime/ranks/preflight.py` starts `python -m ditplan.runtime.ranks.host_report` on each host. Each
line on standard input is a question as JSON, each line that begins with `MARK` on standard output
its answer; what a login's own scripts print stands between. It ends with its standard input, and by
itself after `LIFE_S`. Imports neither torch nor diffusers.
"""

import json
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import time
from typing import Any

import psutil
from pydantic import TypeAdapter

from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.ranks.gpu_inventory import Gpu, gpu_inventory
from ditplan.runtime.ranks.host_probes import (
    GpuProduct,
    disk,
    gpu_products,
    namespace,
    product_rate,
    versions,
    within,
)
from ditplan.runtime.ranks.interface_choice import Interface
from ditplan.runtime.ranks.left_set import left_set, visible_gpus
from ditplan.runtime.ranks.open_port import Target, listen, reach
from ditplan.runtime.ranks.reachability import addresses_of, interfaces, routes

MARK = "ditplan-host-report "
LIFE_S = 30

ENDING_S = 0.3
"""What a program of a host's has less than the host itself."""

NAMES_S = 4.0


@dataclass(frozen=True)
class HostFacts:
    """What a host says of itself; None, and a name in `late`, for what it couldn't say in time.

    `versions` are of packages, None for what isn't installed. `gpus` are those that
    CUDA_VISIBLE_DEVICES leaves, of `gpus_in_all`; `gpu_fault` says why NVML knows none;
    `gpu_products` is how fast they multiply, `product_rate` are multiplications/s of one processor.
    `names` are the other hosts' names, each with the addresses found.
    """

    hostname: str
    namespace: str
    machine: str
    python: str
    cores: int
    memory_free_bytes: int
    ssh_connection: str | None
    environment: dict[str, str]
    interfaces: tuple[Interface, ...]
    versions: dict[str, str | None] | None = None
    gpus: tuple[Gpu, ...] | None = None
    gpus_in_all: int | None = None
    driver: str | None = None
    gpu_products: tuple[GpuProduct, ...] | None = None
    gpu_fault: str = ""
    product_rate: float | None = None
    disk_folder: str | None = None
    disk_free_bytes: int | None = None
    disk_fault: str = ""
    names: dict[str, tuple[str, ...]] | None = None
    late: tuple[str, ...] = ()


FACTS: TypeAdapter[HostFacts] = TypeAdapter(HostFacts)


def facts(environment: Mapping[str, str], names: Sequence[str], limit_s: float) -> HostFacts:
    """What this host says of itself, in so many seconds or little more."""
    rate = product_rate()
    probes: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "gpus": gpu_inventory,
        "gpu products": partial(gpu_products, limit_s - ENDING_S),
        "disk": disk,
        "names": partial(_found, names),
    }
    found = within(limit_s, probes)
    inventory, room = found.get("gpus"), found.get("disk", {})
    return HostFacts(
        hostname=socket.gethostname(),
        namespace=namespace(),
        machine=platform.machine(),
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
        memory_free_bytes=psutil.virtual_memory().available,
        ssh_connection=environment.get("SSH_CONNECTION"),
        environment=left_set(environment),
        interfaces=interfaces(),
        versions=found.get("versions"),
        gpus=visible_gpus(inventory.gpus, environment) if inventory else None,
        gpus_in_all=len(inventory.gpus) if inventory else None,
        driver=inventory.driver if inventory else None,
        gpu_products=found.get("gpu products"),
        gpu_fault=inventory.fault if inventory else "",
        product_rate=rate,
        disk_folder=room.get("folder"),
        disk_free_bytes=room.get("free_bytes"),
        disk_fault=room.get("fault", ""),
        names=found.get("names"),
        late=tuple(name for name in probes if name not in found),
    )


def _found(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    asked = within(NAMES_S, {name: partial(addresses_of, name, NAMES_S) for name in names})
    return {name: tuple(sorted(asked.get(name, ()))) for name in names}


def answer(environment: Mapping[str, str], question: dict[str, Any]) -> Any:
    """The answer to a question, as plain data."""
    match question["ask"]:
        case "clock":
            return time()
        case "facts":
            found = facts(environment, question["names"], question["within_s"])
            return FACTS.dump_python(found, mode="json")
        case "routes":
            return routes(question["addresses"])
        case "listen":
            try:
                return listen(question["address"], question["greeting"], question["reply"])
            except OSError as error:
                return error.strerror or str(error)
        case "reach":
            return reach([Target(**target) for target in question["targets"]])
    raise ValueError(f"there is no question {question['ask']!r}")


def main() -> None:
    """Answers questions until there are no more."""
    # nobody waits for this process for longer, whatever holds it
    signal.alarm(LIFE_S)
    own = environment()
    for line in sys.stdin:
        sys.stdout.write(f"\n{MARK}{json.dumps(answer(own, json.loads(line)))}\n")
        sys.stdout.flush()
    # threads that wait for a name server are waited for by nobody
    os._exit(0)


if __name__ == "__main__":
    main()
