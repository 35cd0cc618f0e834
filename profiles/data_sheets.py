"""What data sheets say of GPUs and links, for clusters that nobody has measured."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ditplan.profiles.bounds import (
    FlopsPerSecond,
    LinkBytesPerSecond,
    LinkSeconds,
    MemoryBytes,
    MemoryBytesPerSecond,
)
from ditplan.profiles.cluster import Device
from ditplan.profiles.files import parse_toml, read_text
from ditplan.profiles.record import FrozenModel, validate

FILE = Path(__file__).parent / "data_sheets.toml"

PCIE_LANES = 16
PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Raw rate of a lane each way by PCI Express generation, less its line code (PCI-SIG)."""

Share = Annotated[float, Field(gt=0, le=1)]


class DeviceSheet(FrozenModel):
    """A GPU's data sheet; fields as in `Device`.

    `nvlink_bytes_per_s` is each way, of all its links; None where it has none. A switch or a bridge
    joins at most `nvlink_gpus`.
    """

    name: str
    memory_bytes: MemoryBytes
    half_flops_per_s: FlopsPerSecond
    single_flops_per_s: FlopsPerSecond
    memory_bytes_per_s: MemoryBytesPerSecond
    matmul_share: Share | None = None
    attention_share: Share | None = None
    pcie_generation: int = Field(ge=1, le=6)
    nvlink_bytes_per_s: LinkBytesPerSecond | None = None
    nvlink_gpus: int = Field(default=1, ge=1)
    source: str

    @property
    def device(self) -> Device:
        """The device as clusters have it."""
        others = {"pcie_generation", "nvlink_bytes_per_s", "nvlink_gpus"}
        return Device(kind="cuda", **self.model_dump(exclude=others))

    @property
    def pcie_bytes_per_s(self) -> float:
        """Raw rate of its PCIe link of 16 lanes, each way."""
        return PCIE_LANES * PCIE_LANE_BYTES_PER_S[self.pcie_generation]


class IntraSheet(FrozenModel):
    """A kind of link within a host; `share` is what GPUs reach of its raw rate."""

    share: Share
    latency_s: LinkSeconds
    source: str


class NetworkSheet(FrozenModel):
    """A network's adapter, and what one message reaches."""

    kind: Literal["ethernet", "infiniband"]
    bytes_per_s: LinkBytesPerSecond
    latency_s: LinkSeconds
    source: str


class SocketSheet(FrozenModel):
    """What joins the sockets of a host."""

    bytes_per_s: LinkBytesPerSecond
    latency_s: LinkSeconds
    source: str


class DataSheets(FrozenModel):
    """All sheets, by the names that `ditplan cluster new` takes."""

    devices: dict[str, DeviceSheet]
    intra: dict[Literal["nvlink", "pcie"], IntraSheet]
    inter: dict[str, NetworkSheet]
    socket: SocketSheet


@cache
def data_sheets() -> DataSheets:
    """The sheets that are shipped."""
    where = FILE.name
    data = parse_toml(read_text(FILE, "data sheets"), where, "table of data sheets", "reinstall")
    return validate(DataSheets, data, where)


def sheet_named(name: str) -> DeviceSheet | None:
    """The sheet of a GPU by the name that its driver gives it; None where there is none."""
    return next((sheet for sheet in data_sheets().devices.values() if sheet.name == name), None)
