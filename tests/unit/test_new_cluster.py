"""Clusters from data sheets: what is known of them, and that they plan as recorded ones do."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan import cli
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.data_sheets import data_sheets, sheet_named
from ditplan.profiles.errors import InputError
from ditplan.profiles.new_cluster import new_cluster

SHEETS = data_sheets()


@pytest.mark.parametrize(
    ("recorded", "gpus", "device", "intra", "inter", "most"),
    [
        ("8xl20-pcie", "1x8", "l20", "pcie", None, 0.002),
        ("4xa100-pcie", "1x4", "a100-pcie-80gb", "pcie", None, 0.002),
        ("2x8xl40-pcie-eth100", "2x8", "l40", "pcie", "eth100", 0.002),
        ("8xa100-nvlink", "1x8", "a100-sxm-80gb", "nvlink", None, 0.05),
        ("8xh100-nvlink", "1x8", "h100-sxm", "nvlink", None, 0.05),
    ],
)
def test_a_cluster_on_paper_plans_as_the_recorded_one_that_it_describes(
    recorded: str, gpus: str, device: str, intra: str, inter: str | None, most: float
) -> None:
    spec = find_model("sd3")
    paper, known = new_cluster(gpus, device, intra, inter), find_cluster(recorded)
    on_paper, as_known = (
        search(Task(spec, spec.defaults, one)).to_plan() for one in (paper, known)
    )
    assert on_paper.configuration == as_known.configuration
    assert on_paper.prediction is not None
    assert as_known.prediction is not None
    assert on_paper.prediction.latency_s == pytest.approx(as_known.prediction.latency_s, rel=most)


@given(
    hosts=st.integers(1, 4),
    gpus=st.integers(1, 9),
    device=st.sampled_from(sorted(SHEETS.devices)),
    intra=st.sampled_from(sorted(SHEETS.intra)),
    network=st.sampled_from(sorted(SHEETS.inter)),
)
def test_every_gpu_reaches_every_other_over_the_network_only_between_hosts(
    hosts: int, gpus: int, device: str, intra: str, network: str
) -> None:
    if intra == "nvlink" and SHEETS.devices[device].nvlink_bytes_per_s is None:
        with pytest.raises(InputError, match="has no NVLink"):
            new_cluster(f"{hosts}x{gpus}", device, intra, network if hosts > 1 else None)
        return
    cluster = new_cluster(f"{hosts}x{gpus}", device, intra, network if hosts > 1 else None)
    assert ClusterProfile.from_json(cluster.text(), "c.json") == cluster
    topology = Topology(cluster)
    kind = SHEETS.inter[network].kind
    for a, b in pairwise(range(hosts * gpus)):
        path = topology.links.path(a, b)
        assert path is not None
        assert (kind in path.kinds) == (a // gpus != b // gpus)


def test_nvlink_bridges_join_pairs_and_pcie_the_rest() -> None:
    topology = Topology(new_cluster("1x4", "rtx-3090", "nvlink", None))
    kinds = {pair: topology.slowest_kind([pair]) for pair in ((0, 1), (2, 3), (1, 2))}
    assert kinds[0, 1] == kinds[2, 3] == "nvlink"
    assert kinds[1, 2] != "nvlink"


def test_adapters_of_their_own_let_gpus_leave_their_host_side_by_side() -> None:
    one, eight = (
        Topology(new_cluster("2x8", "h100-sxm", "nvlink", inter)) for inter in ("ib400", "8xib400")
    )
    across = [(gpu, gpu + 8) for gpu in range(8)]
    slow_s, fast_s = (
        topology.collective_s("send_recv", 2**26, across).seconds for topology in (one, eight)
    )
    assert slow_s / fast_s > 7.9


def test_at_least_twenty_gpus_have_sheets_with_a_source_and_a_name_of_their_own() -> None:
    sheets = SHEETS.devices
    assert len(sheets) >= 20
    assert len({sheet.name for sheet in sheets.values()}) == len(sheets)
    assert all("NVIDIA" in sheet.source for sheet in sheets.values())
    assert all((s.nvlink_bytes_per_s is None) == (s.nvlink_gpus == 1) for s in sheets.values())
    assert sheet_named("NVIDIA H200") == sheets["h200-sxm"]
    assert sheet_named("NVIDIA H2000") is None


@pytest.mark.parametrize("recorded", ["8xl20-pcie", "8xh100-nvlink", "8xa100-nvlink"])
def test_sheets_say_of_a_recorded_device_what_its_cluster_does(recorded: str) -> None:
    device = find_cluster(recorded).devices[0]
    sheet = sheet_named(device.name)
    assert sheet is not None
    assert sheet.device.model_copy(update={"source": ""}) == device.model_copy(
        update={"source": ""}
    )


WRONG = {
    "no such device": (("2x8", "h100-sxn", "nvlink", "ib400"), "did you mean h100-sxm"),
    "no such link": (("1x8", "h100-sxm", "nvlonk", None), "There are nvlink, pcie"),
    "no such network": (("2x8", "h100-sxm", "nvlink", "ib4"), "8xib400 is 8 adapters a host"),
    "no NVLink": (("1x8", "l4", "nvlink", None), "l4 has no NVLink; use intra=pcie"),
    "no network": (("2x8", "l4", "pcie", None), "2 hosts need a network: give inter"),
    "nobody to talk to": (("1x8", "l4", "pcie", "ib400"), "leave it out"),
    "uneven adapters": (("2x8", "l4", "pcie", "3xib400"), "can't share 3 adapters evenly"),
    "a bare number": (("8", "l4", "pcie", None), "for one host of 8: gpus=1x8"),
    "nothing": (("0x8", "l4", "pcie", None), "hosts and the GPUs of each"),
    "too many": (("9999x999", "l4", "pcie", "ib400"), "in all can be planned for"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_refused_in_a_line(case: str) -> None:
    asked, words = WRONG[case]
    with pytest.raises(InputError) as refused:
        new_cluster(*asked)
    assert words in str(refused.value)


def test_the_command_writes_the_cluster_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "c.json"
    asked = ["--gpus", "2x2", "--device", "l4", "--intra", "pcie", "--inter", "roce100"]
    words = ["ditplan", "cluster", "new", *asked, "--out", str(out), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(out)
    assert (found["hosts"], found["gpus"]) == (["node0", "node1"], 4)
    written = ClusterProfile.load(out)
    assert [link.model_dump() for link in written.links] == found["links"]
    assert written == new_cluster("2x2", "l4", "pcie", "roce100")
