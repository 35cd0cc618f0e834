"""What the planner makes of families: calls, text that is only cross-attended to, rows, stages."""

import pytest

from ditplan.planner.cost.share import calls_of, samples_of, share_of
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import price_all
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.space.legality import violation
from ditplan.planner.task import Task
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.mesh import Mesh
from tests.unit.planner_factories import ranks

WAN, SANA, PIXART = (find_model(name) for name in ("wan2.1-1.3b", "sana", "pixart-sigma"))


def step_s(name: str, mesh: Mesh) -> float:
    """Predicted seconds of a model's usual loop on NVLink."""
    spec = find_model(name)
    model = CostModel(find_cluster("8xh100-nvlink"), spec)
    return model.price(Configuration(mesh, ranks(mesh), "compile+graph"), spec.defaults).latency_s


def why_not(name: str, mesh: Mesh) -> str:
    """Why a mesh can't run a model."""
    spec = find_model(name)
    found = violation(
        mesh, spec, spec.defaults, find_backend("native").capabilities, approximate=True
    )
    return found.sentence if found else ""


def test_calls_of_a_step_are_made_one_after_the_other_or_by_two_ranks() -> None:
    alone, split = Mesh(), Mesh(cfg=2)
    assert [calls_of(mesh, WAN, WAN.defaults) for mesh in (alone, split)] == [2, 1]
    assert [samples_of(mesh, WAN, WAN.defaults) for mesh in (alone, split)] == [1, 1]
    assert step_s("wan2.1-1.3b", alone) == pytest.approx(2 * step_s("wan2.1-1.3b", split), rel=0.02)


def test_stages_take_both_calls_of_a_step_as_one() -> None:
    mesh = Mesh(pipefusion=2)
    assert calls_of(mesh, WAN, WAN.defaults) == 1
    assert samples_of(mesh, WAN, WAN.defaults) == 2
    assert "can't be split over cfg together" in why_not("wan2.1-1.3b", Mesh(cfg=2, pipefusion=2))


def test_text_that_is_only_cross_attended_to_is_no_part_of_the_sequence() -> None:
    share = share_of(Mesh(ulysses=2), PIXART, PIXART.defaults)
    assert share.tokens == {"image": 2048, "text": 0}
    assert share_of(Mesh(ulysses=2), find_model("sd3"), find_model("sd3").defaults).tokens["text"]


def test_rows_limit_how_far_a_picture_is_split() -> None:
    assert "rows of image tokens" in why_not("sana", Mesh(ring=33))
    assert not why_not("sana", Mesh(ring=32))


def test_linear_attention_sends_the_same_by_ring_and_ulysses_and_little() -> None:
    ring, ulysses = (step_s("sana", mesh) for mesh in (Mesh(ring=4), Mesh(ulysses=4)))
    assert ring == pytest.approx(ulysses)
    assert ring < step_s("sana", Mesh())


@pytest.mark.parametrize("name", ["sana", "z-image"])
def test_models_without_stages_say_why(name: str) -> None:
    assert "can't run with pipefusion: " in why_not(name, Mesh(pipefusion=2))


def test_long_skips_are_folded_unless_the_backend_sends_them() -> None:
    spec = find_model("hunyuandit")
    for backend, schedule in (("native", "folded"), ("xdit", "linear")):
        task = Task(
            spec,
            spec.defaults,
            find_cluster("8xl20-pcie"),
            backend=find_backend(backend),
            modes=("eager",),
            allowed=ApproximationPolicy(),
        )
        found = price_all(task, Topology(task.cluster))[0]
        parts = [one.configuration.pipefusion for one in found if one.configuration.pipefusion]
        assert {part.schedule for part in parts} == {schedule}
        assert all(sum(part.blocks_per_stage) == 40 for part in parts)
    assert not why_not("hunyuandit", Mesh(pipefusion=20))
    assert "has 20 blocks with mirrors: use at most 20" in why_not(
        "hunyuandit", Mesh(pipefusion=21)
    )


@pytest.mark.parametrize("name", ["hunyuanvideo", "qwen-image", "cogvideox-5b", "flux2-dev"])
def test_models_with_text_beside_the_image_have_stages(name: str) -> None:
    assert not why_not(name, Mesh(pipefusion=2, ulysses=2))
