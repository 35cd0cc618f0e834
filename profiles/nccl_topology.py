"""Reads what NCCL writes to NCCL_TOPO_DUMP_FILE: the tree of PCI devices of a host, as XML.

All of it are claims of sysfs, NVML, network plugins or of whoever gave NCCL a topology file. What
none of them knows is None here, never a number that stands for it: in virtual machines widths are
0, NUMA nodes -1 and far ends of NVLinks fffffff:ff:ff.0.

Source of the format: NCCL's src/graph/xml.cc and xml.h, format version 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from ditplan.profiles.bounds import MOST_RANKS
from ditplan.profiles.data_sheets import PCIE_LANE_BYTES_PER_S
from ditplan.profiles.errors import InputError, one_line

LARGEST_BYTES = 2**20
"""A host of 8 GPUs and 8 adapters has some 20 kB."""

MOST_ELEMENTS, DEEPEST, MOST_NUMBER = 10_000, 32, 10**9
GPUS_WITHOUT_END = "ff:ff.0"
"""How the address ends that NCCL writes for the far end of an NVLink that NVML doesn't tell."""

BYTES_PER_MBIT = 125_000
NVSWITCH = 0x068000
"""PCI's class of NVSwitches: bridges to something else."""

PARENTS = {
    "system": ("",),
    "cpu": ("system",),
    "pci": ("cpu", "pci"),
    "nic": ("cpu", "pci"),
    "net": ("nic",),
    "gpu": ("pci",),
    "nvlink": ("gpu",),
}
"""Where each element stands that says something; all others are left out, as NCCL does."""

ADDRESS = re.compile(r"[0-9a-f]{1,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
SPEED = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) GT/s")
NUMBER = re.compile(r"-?[0-9]{1,19}|0x[0-9a-f]{1,16}")
GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
MOST_LANES = 32
"""Of a PCIe link; Linux writes 255 for a width that it doesn't know."""


@dataclass(frozen=True)
class Spot:
    """Where a device hangs: the NUMA node of its processor, None where that isn't known, and the
    addresses of the PCI switches above it, the nearest to the processor first. `host` tells hosts
    apart, where a dump has several: those that NVLink joins.
    """

    numa_node: int | None
    switches: tuple[str, ...]
    host: str = ""


@dataclass(frozen=True)
class ClaimedGpu:
    """A GPU by its PCI address, and its rank in the communicator.

    `link_bytes_per_s` is the raw rate of its PCIe link at its best. `nvlinks` is how many active
    ones NCCL found in all, None where it found none: NCCL leaves out those that it can't ask about.
    `peers` are the GPUs at their far ends, and `has_switch` says that some end at a switch.
    """

    address: str
    spot: Spot
    link_bytes_per_s: float | None
    nvlinks: int | None
    peers: frozenset[str]
    has_switch: bool
    rank: int | None = None


@dataclass(frozen=True)
class ClaimedAdapter:
    """A port of a network adapter that NCCL would use; `bytes_per_s` is None where the rate isn't
    known, as of all that aren't RDMA: NCCL makes one up for those.
    """

    name: str
    spot: Spot
    has_rdma: bool
    bytes_per_s: float | None


@dataclass(frozen=True)
class NcclTopology:
    """The GPUs of a host that a communicator was made of, and adapters, in the dump's order."""

    gpus: tuple[ClaimedGpu, ...] = ()
    adapters: tuple[ClaimedAdapter, ...] = ()

    def of_host_of(self, rank: int) -> "NcclTopology":
        """What is on the host of a rank; all of it where no GPU is that rank's."""
        hosts = {gpu.spot.host for gpu in self.gpus if gpu.rank == rank}
        if not hosts:
            return self
        return NcclTopology(
            tuple(gpu for gpu in self.gpus if gpu.spot.host in hosts),
            tuple(adapter for adapter in self.adapters if adapter.spot.host in hosts),
        )


EXPECTED = "what NCCL writes to NCCL_TOPO_DUMP_FILE"


def read_nccl_topology(content: bytes, where: str) -> NcclTopology:
    """Reads a dump; `where` names it in messages.

    Raises:
        InputError: it is no such dump, or too large; names the line.
    """
    if len(content) > LARGEST_BYTES:
        raise InputError(
            f"{where}: is larger than {LARGEST_BYTES / 2**20:g} MiB; expected {EXPECTED}"
        )
    return _Reader(where).read(content)


@dataclass
class _Element:
    name: str
    fields: Mapping[str, str]
    line: int
    nvlinks: int = 0
    peers: set[str] = field(default_factory=set)
    has_switch: bool = False


class _Reader:
    """Follows the open elements of one file; entities and document types are refused unread."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[_Element] = []
        self._elements = 0
        self._gpus: dict[tuple[str, str], ClaimedGpu] = {}
        self._adapters: list[ClaimedAdapter] = []
        self._parser = expat.ParserCreate("utf-8")
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse_declaration
        self._parser.EntityDeclHandler = self._refuse_declaration

    def read(self, content: bytes) -> NcclTopology:
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            self._refuse(f"this isn't XML ({expat.ErrorString(error.code)})", error.lineno)
        return NcclTopology(tuple(self._gpus.values()), tuple(self._adapters))

    def _begin(self, name: str, fields: Mapping[str, str]) -> None:
        self._elements += 1
        if self._elements > MOST_ELEMENTS or len(self._open) >= DEEPEST:
            self._refuse(f"more than {MOST_ELEMENTS} elements, or {DEEPEST} within each other")
        parent = self._open[-1].name if self._open else ""
        element = _Element(name, fields, self._parser.CurrentLineNumber)
        if (not self._open and name != "system") or (
            name in PARENTS and parent in PARENTS and parent not in PARENTS[name]
        ):
            self._refuse(f"<{one_line(name, 40)}> {f'in <{parent}>' if parent else 'comes first'}")
        self._open.append(element)
        # what stands in elements that aren't known says nothing
        if any(one.name not in PARENTS for one in self._open):
            return
        if name == "system" and self._number(element, "version") != 1:
            self._refuse(f"field version: {self._shown(element, 'version')}; version 1 is read")
        elif name == "cpu":
            self._number(element, "numaid")
        elif name == "pci":
            self._address(element, "busid")
        elif name == "nvlink":
            self._add_nvlink(element)
        elif name == "net":
            self._adapters.append(self._adapter(element))

    def _end(self, name: str) -> None:
        element = self._open.pop()
        if name == "gpu" and all(one.name in PARENTS for one in self._open):
            gpu = self._gpu(element)
            key = gpu.spot.host, gpu.address
            if key in self._gpus or len(self._gpus) == MOST_RANKS:
                self._refuse(f"a second GPU at {gpu.address}, or too many", element.line)
            self._gpus[key] = gpu

    def _gpu(self, element: _Element) -> ClaimedGpu:
        device = self._open[-1]
        return ClaimedGpu(
            address=self._address(device, "busid"),
            spot=self._spot(self._open[:-1]),
            link_bytes_per_s=self._link_bytes_per_s(device),
            nvlinks=element.nvlinks or None,
            peers=frozenset(element.peers),
            has_switch=element.has_switch,
            rank=self._number(element, "rank") if element.fields.get("rank") else None,
        )

    def _adapter(self, element: _Element) -> ClaimedAdapter:
        # the open ones end with this element, its <nic> and the device that has it, if any
        above = self._open[:-2]
        spot = self._spot(above[:-1] if above[-1].name == "pci" else above)
        name = element.fields.get("name", "")
        if not name:
            self._refuse("<net> has no field name", element.line)
        # NCCL gives adapters that are no RDMA devices none, and 10 Gbit/s where they claim nothing
        has_rdma = self._number(element, "guid", default=0, largest=2**64) != 0
        mbit = self._number(element, "speed", default=0)
        rate = float(mbit * BYTES_PER_MBIT) if has_rdma and mbit > 0 else None
        return ClaimedAdapter(one_line(name, 60), spot, has_rdma, rate)

    def _add_nvlink(self, element: _Element) -> None:
        gpu, target = self._open[-2], self._address(element, "target")
        count = self._number(element, "count")
        if not 1 <= count <= MOST_RANKS:
            self._refuse(f"field count: {self._shown(element, 'count')} NVLinks", element.line)
        gpu.nvlinks += count
        kind = self._number(element, "tclass", default=0)
        if kind == NVSWITCH or target.endswith(GPUS_WITHOUT_END):
            gpu.has_switch = True
        else:
            gpu.peers.add(target)

    def _spot(self, above: list[_Element]) -> Spot:
        processor = next(one for one in above if one.name == "cpu")
        node = self._number(processor, "numaid")
        switches = tuple(self._address(one, "busid") for one in above if one.name == "pci")
        host = one_line(processor.fields.get("host_hash", ""), 40)
        return Spot(node if node >= 0 else None, switches, host)

    def _link_bytes_per_s(self, device: _Element) -> float | None:
        speed = SPEED.match(device.fields.get("link_speed", ""))
        generation = GENERATIONS.get(float(speed[1])) if speed else None
        lanes = self._number(device, "link_width", default=0)
        if generation is None or not 0 < lanes <= MOST_LANES:
            return None
        return lanes * PCIE_LANE_BYTES_PER_S[generation]

    def _address(self, element: _Element, name: str) -> str:
        """A PCI address as sysfs writes it: NVML writes eight digits, and large letters."""
        said = element.fields.get(name, "").lower()
        if not ADDRESS.fullmatch(said):
            self._refuse(
                f"field {name}: {self._shown(element, name)} isn't an address such as 0000:1b:00.0",
                element.line,
            )
        domain, _, rest = said.partition(":")
        return f"{domain.lstrip('0').zfill(4)}:{rest}"

    def _number(
        self, element: _Element, name: str, default: int | None = None, largest: int = MOST_NUMBER
    ) -> int:
        """A whole number, by the digits or after 0x; NCCL writes an empty one for none."""
        said = element.fields.get(name, "").lower()
        if not said and default is not None:
            return default
        number = int(said, 0 if "x" in said else 10) if NUMBER.fullmatch(said) else None
        if number is None or not -largest <= number <= largest:
            self._refuse(
                f"field {name}: {self._shown(element, name)} isn't a whole number, or too large",
                element.line,
            )
        return number

    def _shown(self, element: _Element, name: str) -> str:
        said = element.fields.get(name)
        return "missing" if said is None else one_line(repr(said), 40)

    def _refuse_declaration(self, *_: object) -> NoReturn:
        self._refuse("it declares a document type or an entity, which NCCL never does")

    def _refuse(self, fault: str, line: int | None = None) -> NoReturn:
        number = self._parser.CurrentLineNumber if line is None else line
        raise InputError(f"{self._where}: line {number}: {fault}; expected {EXPECTED}") from None
