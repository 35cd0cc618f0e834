"""A cluster: hosts, devices, the links between them, and what collectives were measured to take."""

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ditplan.profiles.bounds import (
    MOST_RANKS,
    Degree,
    DeviceNumber,
    FlopsPerSecond,
    LinkBytesPerSecond,
    LinkSeconds,
    MeasuredSeconds,
    MemoryBytes,
    MemoryBytesPerSecond,
    MessageBytes,
)
from ditplan.profiles.errors import Command, Setting, one_line
from ditplan.profiles.record import FrozenModel, Record, shortened

Operation = Literal[
    "all_to_all", "all_gather", "send_recv", "all_reduce", "peer_all_to_all", "peer_all_gather"
]
PEER_OPERATIONS: dict[Operation, Operation] = {
    "all_to_all": "peer_all_to_all",
    "all_gather": "peer_all_gather",
}
"""Collectives, and the exchange that does the same by writes into peers' memory, where and how the
reader wants it: there is nothing to pack or unpack around it."""
DeviceKind = Literal["cuda", "cpu"]
LinkKind = Literal["nvlink", "pcie", "socket", "ethernet", "infiniband", "memory"]


class Device(FrozenModel):
    """One accelerator, or one CPU rank.

    Rates are data-sheet peaks, or what a large product and a copy reach if they were `measured`.
    `half_flops_per_s` is dense bf16/fp16. `matmul_share` and `attention_share` are what large
    matrix products and large self-attentions reach of the peak, where that is known of the device.
    """

    name: str
    kind: DeviceKind
    memory_bytes: MemoryBytes
    half_flops_per_s: FlopsPerSecond
    single_flops_per_s: FlopsPerSecond
    memory_bytes_per_s: MemoryBytesPerSecond
    matmul_share: float | None = Field(default=None, gt=0, le=1)
    attention_share: float | None = Field(default=None, gt=0, le=1)
    measured: bool = False
    source: str


class Host(FrozenModel):
    """One machine and its devices; ranks number the devices of all hosts in order.

    `numbers` are those that the machine has for the devices, where these aren't all of them from 0
    on.
    """

    name: str
    devices: tuple[Device, ...] = Field(min_length=1)
    numbers: tuple[DeviceNumber, ...] | None = None

    @model_validator(mode="after")
    def _numbers_its_devices(self) -> Self:
        if self.numbers is not None and len(set(self.numbers)) != len(self.devices):
            raise ValueError(
                f"{len(self.devices)} devices need as many different numbers, there are "
                f"{shortened(list(self.numbers))}"
            )
        return self

    @model_serializer(mode="wrap")
    def _says_unusual_numbers_alone(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = fields(self)
        return {name: value for name, value in said.items() if name != "numbers" or value}

    @property
    def device_numbers(self) -> tuple[int, ...]:
        """What the machine calls each device."""
        return self.numbers or tuple(range(len(self.devices)))


class Link(FrozenModel):
    """A connection of two nodes of the topology that everything crossing it shares.

    Nodes are `host/N` (N-th device of the host) or any other name for a switch, a socket, a NIC,
    the network. The bandwidth is for each direction.
    """

    a: str
    b: str
    kind: LinkKind
    latency_s: LinkSeconds
    bytes_per_s: LinkBytesPerSecond
    source: str


class CollectivePoint(FrozenModel):
    """Duration of an operation.

    `bytes` is what one rank puts in, of all its tensors (all_gather: its own piece; send_recv: the
    message).
    """

    bytes: MessageBytes
    median_s: MeasuredSeconds
    p95_s: MeasuredSeconds


class CollectiveTable(FrozenModel):
    """An operation on groups of `size` ranks `stride` apart, `groups` of them measured at once."""

    operation: Operation
    size: int = Field(ge=2, le=MOST_RANKS)
    stride: Degree
    groups: Degree
    points: tuple[CollectivePoint, ...] = Field(min_length=1)
    source: str


class ClusterProfile(Record):
    """All the planner knows of a cluster. Tables, where there are any, are trusted before links."""

    kind: ClassVar[str] = "cluster profile"
    made_by: ClassVar[Command] = Command("profile", (Setting("hosts", "FILE"),))

    name: str
    hosts: tuple[Host, ...] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    collectives: tuple[CollectiveTable, ...] = ()
    software: dict[str, str] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    measured_on: str = ""
    source: str

    @model_validator(mode="after")
    def _hosts_are_told_apart(self) -> Self:
        names = [host.name for host in self.hosts]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two hosts are named {shortened(twice)}; give each its own name")
        if len(self.devices) > MOST_RANKS:
            raise ValueError(f"{len(self.devices)} devices; {MOST_RANKS} are the most there can be")
        return self

    @model_validator(mode="after")
    def _links_reach_every_device(self) -> Self:
        nodes = {node for link in self.links for node in (link.a, link.b)}
        missing = [node for node in self.device_nodes if node not in nodes]
        if len(self.device_nodes) > 1 and missing and not self.collectives:
            raise ValueError(
                f"no link names device {one_line(missing[0], 60)}, and no collective was measured"
            )
        return self

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices by rank."""
        return tuple(device for host in self.hosts for device in host.devices)

    @property
    def device_nodes(self) -> tuple[str, ...]:
        """The topology's node of each rank."""
        return tuple(f"{host.name}/{i}" for host in self.hosts for i in range(len(host.devices)))

    @property
    def link_kinds(self) -> tuple[str, ...]:
        """The kinds of link there are, sorted."""
        return tuple(sorted({link.kind for link in self.links}))
