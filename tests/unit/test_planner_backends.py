"""Runtimes that are only priced: what diffusers' context parallelism can do, and what it costs."""

from dataclasses import replace

import pytest

from ditplan.planner.network.topology import Topology
from ditplan.planner.report import notes_on, ranking_table
from ditplan.planner.search.pricing import price_all, price_one
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.backends import backend_names, find_backend
from ditplan.profiles.capabilities import require_ranks_to_run_in
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode

FLUX = find_model("flux-dev")
WORKLOAD = FLUX.defaults.model_copy(update={"steps": 20})
NODE = find_cluster("2xh100-nvlink")
DIFFUSERS, DRY_RUN, NATIVE = map(find_backend, ("diffusers", "dry-run", "native"))


def seconds(task: Task, mesh: Mesh, mode: Mode) -> float:
    return price_one(task, mesh, mode).prediction.latency_s


@pytest.mark.parametrize(("mode", "measured_s"), [("eager", 3.83), ("compile", 1.73)])
def test_diffusers_exchanges_cost_what_they_were_measured_to(mode: Mode, measured_s: float) -> None:
    """Two H100, torch's default attention: constants for the recorded cluster are up to 20% off."""
    native = Task(FLUX, WORKLOAD, NODE)
    found_s = seconds(replace(native, backend=DIFFUSERS), Mesh(ulysses=2), mode)
    assert found_s == pytest.approx(measured_s, rel=0.2)
    assert found_s > seconds(native, Mesh(ulysses=2), mode)


@pytest.mark.parametrize("backend", backend_names())
def test_each_backend_has_constants_and_only_our_runtime_writes_into_memory_of_peers(
    backend: str,
) -> None:
    assert find_backend(backend).costs.pushes == (backend in {"native", "dry-run"})


def test_diffusers_has_rings_and_ulysses_alone_and_not_of_every_model() -> None:
    task = Task(FLUX, WORKLOAD, find_cluster("8xh100-nvlink"), gpus=4, backend=DIFFUSERS)
    ranked, _ = price_all(task, Topology(task.cluster))
    assert {one.configuration.mesh.sequence_parallel for one in ranked} == {1, 2, 3, 4}
    assert all(
        one.configuration.mesh.size == one.configuration.mesh.sequence_parallel for one in ranked
    )
    assert {one.configuration.mode for one in ranked} == {"eager", "compile"}
    sd3 = replace(task, spec=find_model("sd3"), workload=find_model("sd3").defaults)
    with pytest.raises(InputError, match="sd3 can't run with ulysses on backend diffusers"):
        price_one(sd3, Mesh(ulysses=4), "eager")
    with pytest.raises(InputError, match=r"can't run cfg2: it has ring, ulysses"):
        price_one(sd3, Mesh(cfg=2, ulysses=2), "eager")


def test_diffusers_rings_gather_keys_and_hide_no_slow_link() -> None:
    node = find_cluster("8xl20-pcie")
    native = Task(FLUX, WORKLOAD.model_copy(update={"height": 4096, "width": 4096}), node)
    gathered = price_one(replace(native, backend=DIFFUSERS), Mesh(ring=8), "compile").prediction
    passed = price_one(native, Mesh(ring=8), "compile").prediction
    assert gathered.parts["ring"] > 2 * passed.parts.get("ring", 0.0)


def test_a_dry_run_costs_what_native_does_and_runs_nothing() -> None:
    task = Task(FLUX, WORKLOAD, NODE)
    mesh = Mesh(pipefusion=2)
    assert seconds(replace(task, backend=DRY_RUN), mesh, "graph") == seconds(task, mesh, "graph")
    require_ranks_to_run_in(NATIVE.capabilities)
    with pytest.raises(InputError, match="are priced here and not run"):
        require_ranks_to_run_in(DRY_RUN.capabilities)


@pytest.mark.parametrize(
    ("backend", "model", "gpus", "mesh", "star"),
    [
        ("sglang", "qwen-image", 8, Mesh(cfg=2, ulysses=4), "what sglang takes by itself"),
        ("sglang", "qwen-image", 4, Mesh(cfg=2, ring=2), "what sglang takes by itself"),
        ("sglang", "flux-dev", 8, Mesh(ulysses=8), "what sglang takes by itself"),
        ("vllm-omni", "flux-dev", 8, Mesh(), "what vllm-omni takes by itself"),
        # which doesn't divide its 30 heads
        ("sglang", "z-image", 8, Mesh(cfg=2, ulysses=4), "rule of thumb"),
        ("xdit", "qwen-image", 8, None, "rule of thumb"),
    ],
)
def test_the_baseline_is_what_the_engine_takes_by_itself(
    backend: str, model: str, gpus: int, mesh: Mesh | None, star: str
) -> None:
    spec, cluster = find_model(model), find_cluster("8xh100-nvlink")
    found = search(Task(spec, spec.defaults, cluster, gpus=gpus, backend=find_backend(backend)))
    assert found.own_choice == mesh
    (baseline,) = (one for one in found.ranked if one.is_baseline)
    is_own = "by itself" in star
    assert (baseline.configuration.mesh == mesh) == is_own
    assert f"* {star}" in str(ranking_table(found, rows=99).caption)
    said = [note for note in notes_on(found) if "by itself" in note]
    assert bool(said) == (mesh is not None and not is_own)
