"""Files of nccl-tests: what they measured becomes a cluster, and nothing else of them is kept."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ditplan import cli
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.nccl_cluster import cluster_of_tests
from ditplan.profiles.nccl_tests import load_nccl_test
from tests.unit.nccl_files import SIZES, nccl_file, nccl_text


def the_cluster(folder: Path, **files: dict[str, Any]) -> ClusterProfile:
    """The cluster of files with these arguments."""
    paths = [nccl_file(folder, f"{name}.json", **given) for name, given in files.items()]
    return cluster_of_tests(paths, "here")


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    ("program", "operation", "per_byte"),
    [
        ("all_reduce_perf", "all_reduce", 1),
        ("all_gather_perf", "all_gather", 8),
        ("alltoall_perf_mpi", "all_to_all", 1),
        ("sendrecv_perf", "send_recv", 1),
    ],
)
def test_a_size_counts_what_one_rank_puts_in(
    tmp_path: Path, version: int, program: str, operation: str, per_byte: int
) -> None:
    test = load_nccl_test(nccl_file(tmp_path, "t.json", program, version=version))
    assert test.operation == operation
    assert [point.bytes * per_byte for point in test.points] == list(SIZES)
    # one mean in version 1; later ones have the spread of calls
    factor = 1.0 if version == 1 else 1.1
    seconds = [1e-6 * factor * (20 + size / 3e5) for size in SIZES]
    assert [point.median_s for point in test.points] == pytest.approx(seconds)
    assert test.points[0].p95_s == pytest.approx(seconds[0] * (1.0 if version == 1 else 1.5))
    assert test.nccl == "2.28.9"


def test_a_process_that_drives_several_gpus_names_only_the_first(tmp_path: Path) -> None:
    path = nccl_file(tmp_path, "t.json", hosts=("a", "b"), processes_per_host=2, ngpus=4)
    (group,) = load_nccl_test(path).groups
    assert [(place.host, place.device) for place in group] == [
        (host, device) for host in "ab" for device in range(8)
    ]


def test_the_environment_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = nccl_file(tmp_path, "t.json"), tmp_path / "c.json"
    words = ["profile", "--from-nccl-tests", str(path), "--out", str(out), "--json"]
    monkeypatch.setattr(sys, "argv", ["ditplan", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert not ended.value.code
    assert json.loads(said.out)["gpus"] == 8
    assert "s3cret" not in out.read_text() + said.out + said.err
    wrong = nccl_text().replace('"TOKEN=s3cret"', "17").replace("[", "{", 1)
    path.write_text(wrong)
    with pytest.raises(InputError) as refused:
        load_nccl_test(path)
    assert "s3cret" not in str(refused.value)


def test_measured_operations_are_priced_as_they_were_measured(tmp_path: Path) -> None:
    cluster = the_cluster(
        tmp_path,
        eight={"program": "alltoall_perf", "version": 1},
        two={"program": "sendrecv_perf", "version": 1, "ngpus": 2},
    )
    topology = Topology(cluster)
    eight, two = [tuple(range(8))], [(0, 1)]
    for operation, group in (("all_to_all", eight), ("send_recv", two)):
        found = topology.collective_s(operation, 2**20, group)  # type: ignore[arg-type]
        assert found.source == "measured"
        assert found.seconds == pytest.approx(1e-6 * (20 + 2**20 / 3e5))
    # what nobody measured follows from links
    assert topology.collective_s("all_gather", 2**20, [(0, 1, 2, 3)]).seconds > 0


def fast(size: int) -> float:
    return 10 + size / 250e3


def slow(size: int) -> float:
    return 10 + size / 25e3


@pytest.mark.parametrize(("time_us", "kind"), [(fast, "nvlink"), (slow, "pcie")])
def test_bandwidth_tells_nvlink_from_pcie_and_warns_where_the_data_sheet_has_it(
    tmp_path: Path, time_us: Any, kind: str
) -> None:
    asked = {"program": "sendrecv_perf", "version": 1, "time_us": time_us}
    cluster = the_cluster(tmp_path, one=asked)
    assert {link.kind for link in cluster.links} == {kind}
    assert [("can have NVLink" in text) for text in cluster.warnings] == [True] * (kind == "pcie")


@pytest.mark.parametrize(("rate", "kind"), [(1.2e9, "ethernet"), (40e9, "infiniband")])
def test_hosts_are_joined_by_what_left_them(tmp_path: Path, rate: float, kind: str) -> None:
    inside = {"program": "sendrecv_perf", "version": 1, "ngpus": 4, "time_us": fast}
    # one rank of each host: its first GPU
    across = {"program": "sendrecv_perf", "version": 1, "hosts": ("a", "b"), "ngpus": 1}
    across["time_us"] = lambda size: 30 + size / (rate / 1e6)
    cluster = the_cluster(tmp_path, inside=inside, other=inside | {"hosts": ("b",)}, across=across)
    assert [(host.name, len(host.devices)) for host in cluster.hosts] == [("a", 4), ("b", 4)]
    strides = {(table.size, table.stride) for table in cluster.collectives}
    assert strides == {(4, 1), (2, 4)}
    (network,) = {link.kind for link in cluster.links if link.b == "network"}
    assert network == kind
    topology = Topology(cluster)
    seconds = topology.collective_s("send_recv", 2**28, [(0, 4)]).seconds
    assert 2**28 / seconds == pytest.approx(rate, rel=0.01)
    # another pair of the same hosts is priced alike, by the table and its links
    other = topology.collective_s("send_recv", 2**28, [(1, 5)]).seconds
    assert other == pytest.approx(seconds, rel=0.01)


def test_groups_of_a_split_are_those_of_an_axis(tmp_path: Path) -> None:
    asked = {"program": "alltoall_perf", "version": 1, "hosts": ("a", "b"), "ngpus": 1}
    cluster = the_cluster(
        tmp_path,
        whole=asked | {"processes_per_host": 4},
        columns=asked | {"processes_per_host": 4, "group_of": lambda number: number % 4},
        rows=asked | {"processes_per_host": 4, "group_of": lambda number: number // 4},
    )
    found = {(table.size, table.stride, table.groups) for table in cluster.collectives}
    assert found == {(8, 1, 1), (2, 4, 4), (4, 1, 2)}


def test_what_no_plan_does_is_left_out_with_a_word(tmp_path: Path) -> None:
    cluster = the_cluster(tmp_path, one={}, two={"program": "reduce_scatter_perf"})
    assert [table.operation for table in cluster.collectives] == ["all_reduce"]
    assert any("reduce_scatter is left out" in text for text in cluster.warnings)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "newer format": ({"version": 4}, "format 4, this ditplan reads 1 to 3"),
    "launches alone": ({"time": ..., "cpu_time": 3.0}, "leave out -C"),
    "wrong values": ({"nwrong": 4.0}, "4 values came out wrong"),
    "no duration": ({"time": "nan"}, "'nan' isn't a duration"),
    "no time": ({"version": 1, "time": 0.0}, "0.0 isn't a duration"),
    "nothing measured": ({"sizes": ()}, "nothing was measured"),
    "no plan does it": ({"program": "broadcast_perf"}, "'broadcast' is no operation of a plan"),
    "unknown GPU": ({"gpu": "NVIDIA X1"}, "there is no data sheet of such a GPU"),
    "one GPU": ({"ngpus": 1}, "of 2 GPUs or more"),
    "a GPU twice": ({"hosts": ("a", "a")}, "a GPU stands there twice"),
    "too many": ({"ngpus": 4000, "hosts": tuple(map(str, range(17)))}, "are the most there can"),
    "unlike groups": (
        {"hosts": ("a", "b", "c"), "group_of": lambda number: number % 2},
        "groups of 8 to 16 GPUs",
    ),
    "scattered": (
        {
            **{"hosts": ("a", "b"), "processes_per_host": 4, "ngpus": 1},
            "group_of": lambda number: (0, 1, 1, 0, 0, 1, 1, 0)[number],
        },
        "aren't ranks evenly apart",
    ),
    "faster than any link": ({"version": 1, "time_us": lambda _: 1e-3}, "less than or equal to"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_refused_in_a_line(tmp_path: Path, case: str) -> None:
    given, words = WRONG[case]
    with pytest.raises(InputError) as refused:
        the_cluster(tmp_path, t=given)
    assert words in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "2"}', '{"version": 2, "args": ['])
def test_another_file_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"other\.json: "):
        load_nccl_test(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["t.json", "--gpus", "2"], "measures nothing; leave out --gpus"),
        (["t.json", "--hosts", "localhost"], "measures nothing; leave out --hosts"),
        (["t.json", "--model", "sd3"], "measures nothing; leave out --model"),
    ],
)
def test_reading_files_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, said: str
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["ditplan", "profile", "--out", "c.json", "--from-nccl-tests", *words]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_several_files_can_follow_the_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    nccl_file(tmp_path, "a.json")
    nccl_file(tmp_path, "b.json", "alltoall_perf")
    words = ["profile", "--from-nccl-tests", "a.json", "b.json", "--out", "c.json"]
    monkeypatch.setattr(sys, "argv", ["ditplan", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert len(ClusterProfile.load("c.json").collectives) == 2
    monkeypatch.setattr(sys, "argv", ["ditplan", "profile", "a.json", "--out", "c.json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--from-nccl-tests a.json" in capsys.readouterr().err
