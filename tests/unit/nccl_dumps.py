"""Topologies as NCCL writes them to NCCL_TOPO_DUMP_FILE, by its src/graph/xml.cc; made up."""

from collections.abc import Sequence

SWITCHLESS = "fffffff:ff:ff.0"
GPU, SWITCH, NIC = "0x030200", "0x060400", "0x020000"


def element(tag: str, /, *inside: str, **fields: object) -> str:
    """An element as NCCL writes it; `class_` is its field `class`."""
    said = "".join(f' {key.rstrip("_")}="{value}"' for key, value in fields.items())
    return f"<{tag}{said}>\n{''.join(inside)}</{tag}>\n" if inside else f"<{tag}{said}/>\n"


def system(*processors: str, version: object = 1) -> str:
    """The text of a dump."""
    return element("system", *processors, version=version)


def processor(numa: object, *inside: str, host: str = "0x1f2e3d4c5b6a7988") -> str:
    """A NUMA node with its devices."""
    known = {} if numa == -1 else {"affinity": "00000000,00ffffff"}
    usual = {"arch": "x86_64", "vendor": "GenuineIntel", "familyid": 6, "modelid": 143}
    return element("cpu", *inside, host_hash=host, numaid=numa, **known, **usual)


def pci(
    address: str, *inside: str, kind: str, speed: str = "32.0 GT/s PCIe", width: object = 16
) -> str:
    """A PCI device, or the upstream port of a switch."""
    ids = {"vendor": "0x10de", "device": "0x2330"}
    ids |= {"subsystem_vendor": "0x10de", "subsystem_device": "0x16c1"}
    return element(
        "pci", *inside, busid=address, class_=kind, **ids, link_speed=speed, link_width=width
    )


def gpu(
    address: str,
    rank: int,
    nvlinks: Sequence[tuple[str, object, str]] = (),
    *,
    speed: str = "32.0 GT/s PCIe",
    width: object = 16,
) -> str:
    """A GPU with NVLinks: the far end, how many, and the class of what is there."""
    links = (element("nvlink", target=t, count=n, tclass=c) for t, n, c in nvlinks)
    inside = element("gpu", *links, dev=rank, sm=90, rank=rank, gdr=1)
    return pci(address, inside, kind=GPU, speed=speed, width=width)


def net(name: str, place: int, mbit: object, guid: str) -> str:
    """A network adapter, as NCCL's plugin for InfiniBand or sockets tells of it."""
    fields = {"name": name, "dev": place, "latency": "0.000000", "speed": mbit, "port": 1}
    return element(
        "nic", element("net", **fields, guid=guid, maxconn=131072, gdr=int(guid != "0x0"))
    )


NVSWITCHES = tuple((f"0000:0{number}:00.0", 4 + number % 2, "0x068000") for number in range(5, 9))


def two_sockets() -> str:
    """Two sockets of two PCIe switches, each with a GPU of 18 NVLinks and an adapter of 400 Gbit/s;
    and one for the host's own network.
    """
    nodes = []
    for node in range(2):
        inside = []
        for place in (2 * node, 2 * node + 1):
            bus = 0x18 + 0x10 * place
            nic = net(f"mlx5_{place}", place, 400_000, f"0xa87cb10003e1a2{place:02x}")
            inside.append(
                pci(
                    f"0000:{bus:02x}:00.0",
                    gpu(f"0000:{bus + 2:02x}:00.0", place, NVSWITCHES),
                    pci(f"0000:{bus + 3:02x}:00.0", nic, kind=NIC),
                    kind=SWITCH,
                )
            )
        nodes.append(processor(node, *inside))
    return system(*nodes)


def virtual_machine(gpus: int = 2) -> str:
    """GPUs of 18 NVLinks passed through: nobody knows widths, NUMA nodes and far ends."""
    devices = [
        gpu(f"0000:0{place + 5}:00.0", place, [(SWITCHLESS, 18, "0x068000")], width=0)
        for place in range(gpus)
    ]
    virtio = pci("0000:01:00.0", net("eth0", 0, 10_000, "0x0"), kind=NIC, speed="", width="")
    return system(processor(-1, virtio, *devices))


def on_pcie(sockets: int = 2, switches: int = 2, each: int = 2, bridged: bool = False) -> str:
    """Sockets of PCIe switches with GPUs each, whose pairs NVLink may join by bridges."""
    nodes = []
    rank = 0
    for node in range(sockets):
        inside = []
        for switch in range(switches):
            devices = []
            for _ in range(each):
                peer = (f"0000:{0x10 + (rank ^ 1):02x}:00.0", 4, GPU)
                devices.append(gpu(f"0000:{0x10 + rank:02x}:00.0", rank, [peer] * bridged))
                rank += 1
            inside.append(pci(f"0000:{0x80 + 8 * node + switch:02x}:00.0", *devices, kind=SWITCH))
        nodes.append(processor(node, *inside))
    return system(*nodes)
