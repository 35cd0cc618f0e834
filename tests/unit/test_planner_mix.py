"""Mixes of workloads: the file, the book, and the one mesh for all against every configuration."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.report import mix_text
from ditplan.planner.search.pricing import price_all, priced_as_is
from ditplan.planner.search.ranking import PricedCandidate
from ditplan.planner.search.workload_mix import (
    OneMesh,
    Weighted,
    kept_by_a_job,
    load_mix,
    one_mesh_for_all,
    parse_mix,
    plan_mix,
)
from ditplan.planner.task import TuneRequest
from ditplan.profiles.book import BookEntry, PlanBook
from ditplan.profiles.catalog import find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, sd3_like

SMALL = WORKLOAD.model_copy(update={"height": 256, "width": 256})
PAIR = WORKLOAD.model_copy(update={"batch": 2, "steps": 4})
MIX = (Weighted(WORKLOAD, 1.0), Weighted(SMALL, 30.0), Weighted(PAIR, 0.5))
SLOW_LINKS = a_cluster(hosts=2, devices=2, inside_bytes_per_s=10e9, inside_kind="pcie")
WISHES = TuneRequest(sd3_like(), known=lambda workload: None, mode="eager")


STAGED = replace(WISHES, spec=find_model("flux-dev"), pins={"pipefusion": 4})
SIZES = tuple(
    Weighted(STAGED.spec.defaults.model_copy(update={"height": size, "width": size}), 1.0)
    for size in (512, 2048)
)


def cheapest_of_all(
    wishes: TuneRequest, mix: tuple[Weighted, ...], cluster: ClusterProfile
) -> float:
    """The least mean of one configuration for all workloads, each with every division into stages
    that is best for one of them.
    """
    tasks = [wishes.task(weighted.workload, cluster) for weighted in mix]
    priced = [price_all(task, Topology(cluster))[0] for task in tasks]
    models = [CostModel(Topology(cluster), task.spec) for task in tasks]
    means = []
    for key in set.intersection(*({kept_by_a_job(one) for one in found} for found in priced)):
        own = [next(one for one in found if kept_by_a_job(one) == key) for found in priced]
        for part in {one.configuration.pipefusion for one in own}:
            costs = [
                priced_as_is(task, model, replace(one.configuration, pipefusion=part))
                for task, model, one in zip(tasks, models, own, strict=True)
            ]
            if not any(one.too_big for one in costs):
                latencies = [one.prediction.latency_s for one in costs]
                means.append(statistics.fmean(latencies, [one.weight for one in mix]))
    return min(means)


@pytest.mark.parametrize(
    ("wishes", "mix"),
    [
        (WISHES, MIX),
        (replace(WISHES, quality="exact"), MIX),
        (WISHES, MIX[:1]),
        (STAGED, SIZES),
    ],
)
def test_one_mesh_is_the_cheapest_of_all_configurations(
    wishes: TuneRequest, mix: tuple[Weighted, ...]
) -> None:
    mixed = plan_mix(wishes, mix, SLOW_LINKS)
    assert mixed.one_mesh is not None
    assert mixed.one_mesh.mean_s == pytest.approx(
        cheapest_of_all(wishes, mix, SLOW_LINKS), rel=1e-9
    )
    assert len({kept_by_a_job(one) for one in mixed.one_mesh.costs}) == 1


def test_stages_of_one_mesh_hold_the_same_blocks_for_all_workloads() -> None:
    """FLUX's double blocks take longer than its single ones in large pictures, in small ones all
    take as long as their launches.
    """
    mixed = plan_mix(STAGED, SIZES, SLOW_LINKS)
    own = {ranking.best.configuration.pipefusion for ranking in mixed.rankings}
    assert mixed.one_mesh is not None
    assert len(own) == 2
    assert len({one.configuration.pipefusion for one in mixed.one_mesh.costs}) == 1


def test_stages_of_one_mesh_fit_for_all_workloads() -> None:
    """The stages that are best for the small pictures, which come most, need more for large ones
    than theirs do.
    """
    mix = (Weighted(SIZES[0].workload, 1000.0), SIZES[1])

    def planned(memory_bytes: int) -> OneMesh:
        cluster = a_cluster(devices=4, device=a_device(memory_bytes=memory_bytes))
        found = plan_mix(replace(STAGED, patches=4), mix, cluster).one_mesh
        assert found is not None
        assert not any(one.too_big for one in found.costs)
        return found

    roomy = planned(80_000_000_000)
    tight = planned(roomy.costs[1].prediction.memory_bytes - 1)
    assert tight.costs[0].configuration.pipefusion != roomy.costs[0].configuration.pipefusion
    assert tight.mean_s > roomy.mean_s


def test_a_mesh_that_is_fast_only_with_stages_of_each_workload_s_own_does_not_win() -> None:
    mixed = plan_mix(STAGED, SIZES, SLOW_LINKS)
    fast = kept_by_a_job(mixed.rankings[0].best)

    def doctored(one: PricedCandidate, blocks: tuple[int, ...]) -> PricedCandidate:
        part = one.configuration.pipefusion
        assert part is not None
        part = part.model_copy(update={"blocks_per_stage": blocks})
        less_s = {"latency_s": 0.9 * one.prediction.latency_s}
        return replace(
            one,
            configuration=replace(one.configuration, pipefusion=part),
            prediction=one.prediction.model_copy(update=less_s),
        )

    with_it, without = [], []
    for ranking, blocks in zip(mixed.rankings, ((54, 1, 1, 1), (1, 1, 1, 54)), strict=True):
        first = next(one for one in ranking.ranked if kept_by_a_job(one) == fast)
        others = tuple(one for one in ranking.ranked if one is not first)
        with_it.append(replace(ranking, ranked=(doctored(first, blocks), *others)))
        without.append(replace(ranking, ranked=others))
    tasks = [STAGED.task(weighted.workload, SLOW_LINKS) for weighted in SIZES]
    found = one_mesh_for_all(tasks, SIZES, with_it)
    assert found is not None
    assert found == one_mesh_for_all(tasks, SIZES, without)


def test_the_book_holds_each_workload_s_best_plan_and_gains_by_it() -> None:
    mixed = plan_mix(WISHES, MIX, SLOW_LINKS)
    best = [ranking.best.prediction.latency_s for ranking in mixed.rankings]
    assert mixed.mean_s == pytest.approx((best[0] + 30 * best[1] + 0.5 * best[2]) / 31.5)
    assert mixed.one_mesh is not None
    assert mixed.gain == pytest.approx(1 - mixed.mean_s / mixed.one_mesh.mean_s)
    assert mixed.mean_s < mixed.one_mesh.mean_s
    book = mixed.to_book()
    assert [entry.workload for entry in book.entries] == [WORKLOAD, SMALL, PAIR]
    assert [entry.weight for entry in book.entries] == [1.0, 30.0, 0.5]
    for entry, ranking in zip(book.entries, mixed.rankings, strict=True):
        assert entry.plan == ranking.to_plan()


def test_what_is_not_legal_for_all_serves_none() -> None:
    """cfg 2 needs guidance, which the second workload doesn't have."""
    plain = WORKLOAD.model_copy(update={"passes": 1})
    mixed = plan_mix(WISHES, (Weighted(WORKLOAD, 1), Weighted(plain, 1)), SLOW_LINKS)
    assert mixed.rankings[0].best.configuration.mesh.cfg == 2
    assert mixed.one_mesh is not None
    assert {one.configuration.mesh.cfg for one in mixed.one_mesh.costs} == {1}
    alone = replace(WISHES, pins={"dp": 2})
    with pytest.raises(InputError, match="1 pictures a batch"):
        plan_mix(alone, MIX, SLOW_LINKS)


def test_without_a_common_configuration_there_is_no_one_mesh() -> None:
    mixed = plan_mix(WISHES, MIX[:2], SLOW_LINKS)
    apart = [
        replace(ranking, ranked=(ranking.ranked[place],))
        for ranking, place in zip(mixed.rankings, (0, -1), strict=True)
    ]
    tasks = [WISHES.task(weighted.workload, SLOW_LINKS) for weighted in MIX[:2]]
    assert one_mesh_for_all(tasks, MIX[:2], apart) is None
    alone = replace(mixed, one_mesh=None)
    assert alone.gain is None
    assert mix_text(alone).endswith("no one mesh can serve all of them")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "line 1, column 3: this mix of workloads is not JSON"),
        ("{}", "not a list of workloads; write a list such as"),
        ("[]", "not a list of workloads"),
        ("[3]", "mix.json: entry 1: Input should be a valid dictionary"),
        ("[{}]", "entry 1: field weight: Field required"),
        ('[{"weight": 1}, {"weight": 0}]', "entry 2: field weight: Input should be greater than 0"),
        ('[{"weight": -2}]', "entry 1: field weight: Input should be greater than 0"),
        ('[{"weight": NaN}]', "entry 1: field weight: Input should be a finite number"),
        ('[{"weight": true}]', "entry 1: field weight: Input should be a valid number"),
        ('[{"weight": "3"}]', "entry 1: field weight: Input should be a valid number"),
        ('[{"weight": 1, "hight": 512}]', "entry 1: field hight: Extra inputs are not permitted"),
        ('[{"weight": 1, "height": 512.5}]', "entry 1: field height: Input should be a valid int"),
        ('[{"weight": 1, "guidance": 1}]', "entry 1: field guidance: Input should be a valid bool"),
        ('[{"weight": 1, "dtype": "int3"}]', "entry 1: field dtype: Input should be 'float32'"),
    ],
)
def test_a_wrong_mix_is_refused_with_the_number_of_the_entry(text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_mix(text, "mix.json")
    assert words in str(refused.value)
    assert str(refused.value).startswith("mix.json: ")


def test_a_mix_s_entries_start_from_the_model_s_usual_workload(tmp_path: Path) -> None:
    spec = find_model("sd3")
    entries = [{"weight": 3}, {"weight": 1, "height": 512, "steps": 7, "guidance": False}]
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(entries))
    usual, other = load_mix(path, spec, "cuda")
    assert usual == Weighted(spec.defaults, 3)
    changes = {"height": 512, "steps": 7, "passes": 1}
    assert other == Weighted(spec.defaults.model_copy(update=changes), 1)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"height": 1000}, "entry 2: height=1000"),
        ({"height": 1024}, "entry 2: the same workload as entry 1"),
        ({"frames": 3}, "entry 2: frames=3: sd3 makes pictures"),
    ],
)
def test_an_entry_that_the_model_cannot_make_is_named(
    tmp_path: Path, second: dict[str, int], words: str
) -> None:
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([{"weight": 1}, {"weight": 2, **second}]))
    with pytest.raises(InputError, match=words):
        load_mix(path, find_model("sd3"), "cuda")


def a_book(*workloads: Workload, model: str = "m") -> PlanBook:
    planned = PlannedModel.of(model, "Pipeline", "Transformer", "c0ffee")
    plans = [bare_plan(planned, workload, Mesh(ulysses=2)) for workload in workloads]
    return PlanBook(entries=tuple(BookEntry(weight=1, plan=plan) for plan in plans))


def test_a_book_finds_the_plan_of_just_the_workload_asked_for(tmp_path: Path) -> None:
    book = PlanBook.load(a_book(WORKLOAD, SMALL).save(tmp_path / "book.json"))
    assert book == a_book(WORKLOAD, SMALL)
    assert book.plan_for(SMALL).workload == SMALL
    with pytest.raises(InputError, match=r"no plan for 1024x1024, 4 steps.*; 256x256, 20 steps"):
        book.plan_for(PAIR)


def test_a_book_is_of_one_model_and_has_a_plan_once() -> None:
    with pytest.raises(ValueError, match="two plans are for the same workload"):
        a_book(WORKLOAD, WORKLOAD)
    one, other = a_book(WORKLOAD), a_book(SMALL, model="other")
    with pytest.raises(ValueError, match="different models"):
        PlanBook(entries=(*one.entries, *other.entries))
