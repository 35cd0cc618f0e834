"""What an agent says of its host in its hello: enough to start ranks there. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

from ditplan.runtime.ranks.environment import cores
from ditplan.runtime.ranks.gpu_inventory import gpu_inventory
from ditplan.runtime.ranks.host_probes import namespace
from ditplan.runtime.ranks.interface_choice import HostNetwork, Interface
from ditplan.runtime.ranks.left_set import visible_gpus
from ditplan.runtime.ranks.reachability import interfaces


@dataclass(frozen=True)
class HostFacts:
    """A host as its agent sees it.

    `namespace` is what hosts have in common that are one machine and network namespace;
    `reached_at` the address by which ssh came in. `gpus` are those that CUDA_VISIBLE_DEVICES
    leaves.
    """

    namespace: str
    interfaces: tuple[Interface, ...]
    reached_at: str | None
    cores: int
    gpus: int

    def to_json(self) -> bytes:
        """As an agent says it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """What `to_json` wrote."""
        fields = json.loads(text)
        found = tuple(
            replace(Interface(**one), addresses=tuple(one["addresses"]))
            for one in fields["interfaces"]
        )
        return cls(**fields | {"interfaces": found})

    def network(self, host: str, routes: Mapping[str, str | None]) -> HostNetwork:
        """What interfaces are chosen by, under the name that messages have for the host."""
        reached = frozenset({self.reached_at} if self.reached_at else ())
        return HostNetwork(host, self.namespace, self.interfaces, reached, routes)


def host_facts(environment: Mapping[str, str]) -> HostFacts:
    """The facts of this host, in whose environment this process runs."""
    way = environment.get("SSH_CONNECTION", "").split()
    return HostFacts(
        namespace=namespace(),
        interfaces=interfaces(),
        reached_at=way[2] if len(way) == 4 else None,
        cores=cores(),
        gpus=len(visible_gpus(gpu_inventory().gpus, environment)),
    )
