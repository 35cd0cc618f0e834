"""`explain` says why a plan: its parts, what lost, and what would change the choice."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ditplan import cli
from ditplan.explaining.explanation import Explanation, explain
from ditplan.explaining.rivals import predictions_overlap
from ditplan.planner.network.scaled_links import with_links_scaled
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.search import search
from ditplan.planner.task import TuneRequest
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import Measurement
from tests.unit.json_page import documented

CASES = {"exact": ("sd3", "4xa100-pcie"), "safe": ("flux-dev", "4xa100-pcie")}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plans on paper: an exact one, and one with stages."""
    folder, saved = tmp_path_factory.mktemp("plans"), {}
    for quality, (model, cluster) in CASES.items():
        spec = find_model(model)
        request = TuneRequest(spec, known=lambda workload: None, quality=quality)
        found = search(request.task(spec.defaults, find_cluster(cluster)))
        saved[quality] = found.to_plan().save(folder / f"{quality}.json")
    return saved


@pytest.fixture(scope="module")
def found(plans: dict[str, Path]) -> dict[str, Explanation]:
    """What is said of them."""
    return {name: explain(path) for name, path in plans.items()}


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def simulated(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[dict[str, Any]]:
    """What the commands of a check print, with their exit codes."""
    for command in line.split(" && "):
        words = shlex.split(command)
        assert words[0] == "ditplan"
        capsys.readouterr()
        code = run([*words, "--json"], monkeypatch)
        printed = json.loads(capsys.readouterr().out)
        if words[1] == "simulate":
            yield printed | {"exit": code}


@pytest.mark.parametrize("name", CASES)
def test_parts_sum_to_the_latency_on_every_rank(found: dict[str, Explanation], name: str) -> None:
    said = found[name]
    assert said.subject.plan.prediction is not None
    latency_s = said.subject.plan.prediction.latency_s
    assert sum(part.seconds for part in said.parts) == pytest.approx(latency_s, rel=0.01)
    ranks = [rank for row in said.ranks for rank in row.ranks]
    assert sorted(ranks) == list(range(said.subject.plan.mesh.size))
    for row in said.ranks:
        seconds = (row.computes_s, row.exchanges_s, row.host_s, row.waits_s)
        assert min(seconds) >= -1e-9
        assert sum(seconds) == pytest.approx(latency_s, rel=0.01)
    assert all(0 < link.busy_s <= latency_s for link in said.links)


def test_the_plans_are_of_both_kinds(found: dict[str, Explanation]) -> None:
    assert found["exact"].subject.plan.configuration.is_exact
    assert found["safe"].subject.plan.configuration.pipefusion is not None
    assert len(found["safe"].ranks) > 1


@pytest.mark.parametrize("name", CASES)
def test_every_crossover_is_confirmed_by_its_commands_on_both_sides(
    found: dict[str, Explanation],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    crossovers = found[name].crossovers.found
    assert len(crossovers) >= 3
    assert {"resolution", "bandwidth", "gpus"} <= {one.axis for one in crossovers}
    for one in crossovers:
        lost, kept = one.lost, one.kept
        before = [*simulated(one.check_before, monkeypatch, capsys)]
        assert kept.own_s is not None
        assert before[0]["latency_s"] == pytest.approx(kept.own_s)
        own_s = before[0]["latency_s"] * kept.own_lead
        rival_can_run = before[1]["exit"] == 0 and before[1]["fits"]
        assert not rival_can_run or own_s <= before[1]["latency_s"] * lost.rival_lead
        after = [*simulated(one.check, monkeypatch, capsys)]
        own_runs = after[0]["exit"] == 0 and after[0]["fits"] and one.axis != "gpus"
        assert after[1]["exit"] == 0
        assert after[1]["fits"]
        assert after[1]["latency_s"] == pytest.approx(lost.rival_s)
        if one.axis == "gpus":
            assert after[1]["gpus"] <= int(one.at)
        assert own_runs == (lost.own_s is not None)
        if own_runs:
            own_s = after[0]["latency_s"] * lost.own_lead
            assert own_s > after[1]["latency_s"] * lost.rival_lead


def test_there_are_crossovers_enough_to_confirm(found: dict[str, Explanation]) -> None:
    assert sum(len(said.crossovers.found) for said in found.values()) >= 5


def test_the_verdict_says_what_simulate_says(
    found: dict[str, Explanation],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = found["exact"]
    line = "ditplan simulate --model sd3 --cluster 4xa100-pcie"
    (one,) = simulated(line, monkeypatch, capsys)
    times = one["latency_s"] / said.subject.own.prediction.latency_s
    assert said.verdict.startswith(f"predicted {times:.3g} times as fast as one GPU, ")


def test_each_runner_up_says_in_which_part_it_lost(found: dict[str, Explanation]) -> None:
    for said in found.values():
        own = said.subject.own.prediction
        assert said.rivals
        assert [rival.place for rival in said.rivals] == [*range(2, 2 + len(said.rivals))]
        for rival in said.rivals:
            theirs = rival.ranked.prediction
            more = {part: s - own.parts.get(part, 0.0) for part, s in theirs.parts.items()}
            assert rival.lost_s == max(more.values()) == more[rival.lost_in]


def test_only_plans_that_predictions_can_tell_apart_are_sure(
    found: dict[str, Explanation],
) -> None:
    own = found["exact"].subject.own.prediction
    longer = {part: 1.5 * seconds for part, seconds in own.parts.items()}
    other = own.model_copy(update={"latency_s": 1.5 * own.latency_s, "parts": longer})
    assert not predictions_overlap(own, other)
    # as much longer in one part as shorter in another
    turned = {**own.parts, "blocks": 0.6 * own.parts["blocks"]}
    turned["attention"] = own.parts["attention"] + 0.4 * own.parts["blocks"] + 1e-3
    assert predictions_overlap(own, own.model_copy(update={"parts": turned}))


def test_a_call_takes_the_fixed_part_and_each_step(found: dict[str, Explanation]) -> None:
    for said in found.values():
        plan = said.subject.plan
        assert plan.prediction is not None
        call_s = said.fixed_s + plan.workload.steps * said.step_s
        assert call_s == pytest.approx(plan.prediction.end_to_end_s)


def test_what_was_measured_decides_who_is_within_the_error(
    plans: dict[str, Path], tmp_path: Path
) -> None:
    plan = explain(plans["exact"]).subject.plan
    runner_up = plan.runner_ups[0]
    for measured_s, is_near in ((1.02, True), (1.2, False)):
        measurement = Measurement(latency_s=1.0, runs_s=(1.0,), measured_on="today", devices="a")
        others = (runner_up.model_copy(update={"measured_s": measured_s}), *plan.runner_ups[1:])
        changes = {"measurement": measurement, "runner_ups": others}
        path = plan.model_copy(update=changes).save(tmp_path / "plan.json")
        said = explain(path)
        rivals = {rival.ranked.configuration: rival for rival in said.rivals}
        if runner_up.configuration in rivals:
            assert rivals[runner_up.configuration].is_within_error == is_near
            assert rivals[runner_up.configuration].measured_s == measured_s


def test_the_command_prints_what_is_documented(
    plans: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ditplan", "explain", "--plan", str(plans["exact"]), "--json"], monkeypatch) == 0
    printed = json.loads(capsys.readouterr().out)
    inner = [printed["parts"][0], printed["runners_up"][0], printed["crossovers"][0]]
    inner += [printed["ranks"][0], printed["links"][0], printed["binding"]]
    names = {name for one in [printed, *inner] for name in one}
    assert names | {"report"} == documented("explain")


def test_a_plan_whose_cluster_is_not_known_is_refused_with_the_option(
    plans: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = plans["exact"].read_text().replace("4xa100-pcie", "elsewhere")
    data = json.loads(text)
    del data["signature"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    assert run(["ditplan", "explain", "--plan", str(path)], monkeypatch) == 2
    assert "name its file: --cluster FILE" in capsys.readouterr().err
    few = ["ditplan", "explain", "--plan", str(path), "--cluster", "2xh100-nvlink"]
    assert run(few, monkeypatch) == 2
    assert "has 2 devices" in capsys.readouterr().err


@pytest.mark.parametrize("times", [0.25, 4.0])
def test_scaled_links_scale_what_measured_collectives_take_beyond_their_latency(
    times: float,
) -> None:
    cluster = find_cluster("2xh100-nvlink")
    scaled = with_links_scaled(cluster, "nvlink", times)
    for table in cluster.collectives:
        least_s = min(point.median_s for point in table.points)
        for point in table.points:
            after = Topology(scaled).collective_s(table.operation, point.bytes, [(0, 1)])
            assert after.seconds == pytest.approx(least_s + (point.median_s - least_s) / times)


@pytest.mark.parametrize("times", [0.25, 4.0])
def test_scaled_links_scale_what_is_computed_of_large_messages(times: float) -> None:
    cluster = find_cluster("8xa100-nvlink")
    assert not cluster.collectives
    scaled = with_links_scaled(cluster, "nvlink", times)
    before, after = (
        Topology(one).collective_s("all_to_all", 1e11, [(0, 1)]).seconds
        for one in (cluster, scaled)
    )
    assert after == pytest.approx(before / times, rel=0.01)


def test_a_kind_of_link_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="link=ethernet: 8xl20-pcie has links of: memory"):
        with_links_scaled(find_cluster("8xl20-pcie"), "ethernet", 2)
