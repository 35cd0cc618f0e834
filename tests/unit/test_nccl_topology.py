"""NCCL's topology dump: what is read of it, what stays unknown, and what is refused."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.mutations import damaged_bytes, damaged_lines
from ditplan.profiles.errors import InputError
from ditplan.profiles.nccl_topology import LARGEST_BYTES, NcclTopology, Spot, read_nccl_topology
from ditplan.runtime.profiling.measured_links import HostClaims
from ditplan.runtime.profiling.topology_claims import with_topology
from ditplan.runtime.profiling.topology_dump import TopologyDump
from tests.unit import nccl_dumps
from tests.unit.nccl_dumps import GPU, element, gpu, net, pci, processor, system


def read(text: str) -> NcclTopology:
    return read_nccl_topology(text.encode(), "dump.xml")


def test_gpus_switches_sockets_and_adapters_are_read() -> None:
    topology = read(nccl_dumps.two_sockets())
    first, *_, last = topology.gpus
    assert len(topology.gpus) == 4
    assert first.address == "0000:1a:00.0"
    assert first.spot == Spot(0, ("0000:18:00.0",), "0x1f2e3d4c5b6a7988")
    assert first.link_bytes_per_s == pytest.approx(63e9, rel=0.01)
    assert (first.nvlinks, first.peers, first.has_switch) == (18, frozenset(), True)
    assert (last.spot.numa_node, last.spot.switches) == (1, ("0000:48:00.0",))
    assert [one.rank for one in topology.gpus] == [0, 1, 2, 3]
    nic = topology.adapters[1]
    assert (nic.name, nic.has_rdma, nic.bytes_per_s) == ("mlx5_1", True, 50e9)
    assert nic.spot == topology.gpus[1].spot


def test_what_a_virtual_machine_makes_up_is_unknown() -> None:
    topology = read(nccl_dumps.virtual_machine())
    for one in topology.gpus:
        assert (one.spot.numa_node, one.spot.switches) == (None, ())
        assert one.link_bytes_per_s is None
        assert (one.nvlinks, one.peers, one.has_switch) == (18, frozenset(), True)
    (nic,) = topology.adapters
    assert (nic.has_rdma, nic.bytes_per_s) == (False, None)


@pytest.mark.parametrize(
    ("speed", "width"),
    [
        ("", 16),
        ("Unknown", 16),
        ("99 GT/s PCIe", 16),
        *(("16.0 GT/s PCIe", no) for no in (0, "", 255)),
    ],
)
def test_a_link_without_a_known_rate_has_none(speed: str, width: object) -> None:
    topology = read(system(processor(0, gpu("0000:1a:00.0", 0, speed=speed, width=width))))
    assert topology.gpus[0].link_bytes_per_s is None


def test_a_gpu_for_which_no_nvlink_was_found_may_have_some() -> None:
    assert read(nccl_dumps.on_pcie()).gpus[0].nvlinks is None


def test_addresses_are_those_of_sysfs() -> None:
    text = system(processor(0, gpu("00000000:1A:00.0", 0, [("0000:1B:00.0", 4, GPU)])))
    (one,) = read(text).gpus
    assert (one.address, one.peers) == ("0000:1a:00.0", frozenset({"0000:1b:00.0"}))


def test_elements_of_newer_versions_are_left_out_with_all_within() -> None:
    newer = element("gadget", processor(9, gpu("0000:99:00.0", 9)), x=1)
    c2c = element("c2c", bw=44712, count=5)
    chip = pci("0000:1a:00.0", element("gpu", c2c, dev=0), newer, kind=GPU)
    text = system(newer, processor(0, chip))
    assert [one.address for one in read(text).gpus] == ["0000:1a:00.0"]


def test_of_hosts_that_nvlink_joins_that_of_a_rank_is_taken() -> None:
    # their GPUs have the same addresses
    hosts = [
        processor(0, gpu("0000:1a:00.0", rank), net(f"mlx5_{rank}", 0, 400_000, "0x1"), host=host)
        for rank, host in enumerate(("0xa", "0xb"))
    ]
    topology = read(system(*hosts))
    assert len(topology.gpus) == 2
    own = topology.of_host_of(1)
    assert [one.rank for one in own.gpus] == [1]
    assert [one.name for one in own.adapters] == ["mlx5_1"]
    assert topology.of_host_of(7) == topology


BOMB = '<!DOCTYPE system [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>\n'
EXTERNAL = '<!DOCTYPE system SYSTEM "file:///etc/passwd">\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "isn't XML (no element found)"),
        ("text", 1, "isn't XML"),
        (BOMB + system(), 1, "declares a document type"),
        (EXTERNAL + system(), 1, "declares a document type"),
        ('<system version="1">&b;</system>', 1, "undefined entity"),
        (system()[:-4] + ">", 1, "isn't XML"),
        (element("graphs", version=1), 1, "<graphs> comes first"),
        (system(version=2), 1, "field version: '2'; version 1 is read"),
        (system(processor("one")), 2, "field numaid: 'one' isn't a whole number"),
        (system(element("cpu")), 2, "field numaid: missing"),
        (system(processor(0, pci("1a", kind=GPU))), 3, "field busid: '1a' isn't an address"),
        (system(pci("0000:1a:00.0", kind=GPU)), 2, "<pci> in <system>"),
        (system(processor(0, element("gpu"))), 3, "<gpu> in <cpu>"),
        (system(processor(0, element("nic", element("net")))), 4, "<net> has no field name"),
        (system(processor(0, net("a", 0, "fast", "0x1"))), 4, "field speed: 'fast'"),
        (system(processor(0, net("a", 0, 1, "0x" + "f" * 17))), 4, "field guid"),
        (system(processor(0, gpu("0:1a:00.0", 0, [("0:1b:00.0", 0, GPU)]))), 5, "field count: '0'"),
        (system(processor(0, *[gpu("0:1a:00.0", 0)] * 2)), 7, "a second GPU at 0000:1a:00.0"),
        (system(processor(0, "<pci " * 40)), 3, "isn't XML"),
        (system(processor(0, '<pci busid="0:1a:00.0">' * 40)), 3, "within each other"),
        (system(*[element("cpu", numaid=0)] * 10_001), 10_001, "more than 10000 elements"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read(text)
    message = str(refused.value)
    assert message.startswith(f"dump.xml: line {line}: ")
    assert said in message
    assert "\n" not in message


def test_more_than_a_mebibyte_is_not_read() -> None:
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read(" " * (LARGEST_BYTES + 1))


@given(
    st.binary(max_size=200)
    | st.text(alphabet='<>/="& systemcpuigv01x.:\n', max_size=200).map(str.encode),
    st.integers(0, 3000),
)
def test_damage_ends_in_one_line_or_a_topology(noise: bytes, place: int) -> None:
    text = nccl_dumps.two_sockets().encode()
    for content in (noise, text[:place] + noise + text[place:], text[:place]):
        try:
            found = read_nccl_topology(content, "dump.xml")
        except InputError as refused:
            assert str(refused).startswith("dump.xml: line ")
            assert "\n" not in str(refused)
        else:
            assert len(found.gpus) <= 4


VALUES = (
    "",
    "-1",
    "0",
    "0x",
    "9" * 30,
    "1e9",
    "nan",
    "\u0663",
    "&#0;",
    "&a;",
    "<",
    " 1",
    "a" * 999,
)
SAMPLES = (
    nccl_dumps.two_sockets(),
    nccl_dumps.virtual_machine(),
    nccl_dumps.on_pcie(bridged=True),
)


def damaged(rng: random.Random) -> bytes:
    """A dump with some values, elements or bytes changed."""

    def line(text: str) -> bytes:
        if rng.random() < 0.2:
            return damaged_bytes(rng, text.encode())
        if rng.random() < 0.2:
            return re.sub(r"\w+", rng.choice(("gpu", "cpu", "nic", "x")), text, count=1).encode()
        fields = re.findall(r'"[^"]*"', text) or [text]
        value = rng.choice((*VALUES, rng.choice(fields).strip('"')))
        return text.replace(rng.choice(fields), f'"{value}"', 1).encode()

    return damaged_lines(rng, rng.choice(SAMPLES), line)


def test_a_thousand_damaged_dumps_are_claims_or_refused_in_one_line() -> None:
    ends = []
    for number in range(1000):
        content = damaged(random.Random(number))
        try:
            found = read_nccl_topology(content, "dump.xml")
        except InputError as refused:
            message = str(refused)
            assert re.match(r"dump\.xml: line \d+: .", message), content
            assert message.isprintable() and len(message) < 300, content
            end = "refused"
        else:
            end = "read"
            addresses = [one.address for one in found.gpus]
            claims = with_topology(
                HostClaims("cuda", {}), TopologyDump(found), addresses, is_virtual=False
            )
            assert claims.pcie_bytes_per_s is None or 0 < claims.pcie_bytes_per_s < 1e12
            assert claims.nvlinks is None or claims.nvlinks > 0
        ends.append(end)
    # a mutator that breaks all, or nothing, shows nothing
    assert 100 < ends.count("read") < 900
