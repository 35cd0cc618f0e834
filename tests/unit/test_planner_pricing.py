"""One configuration or all of them: what is legal, what fits, and what only swaps."""

from dataclasses import replace

import pytest

from ditplan.planner.network.topology import Topology
from ditplan.planner.search.pricing import price_all, price_one
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode
from tests.unit.planner_factories import WORKLOAD, a_cluster, a_device, sd3_like

TASK = Task(sd3_like(), WORKLOAD, a_cluster(devices=4))
ON_CPU = WORKLOAD.model_copy(update={"dtype": "float32"})


def cpus(gigabytes: int, devices: int = 2) -> ClusterProfile:
    """A host whose CPU ranks share so much memory evenly."""
    device = a_device(gigabytes * 1_000_000_000 // devices, kind="cpu")
    return a_cluster(devices=devices, device=device)


@pytest.mark.parametrize("gpus", [None, 4])
def test_one_mesh_costs_what_it_costs_among_all(gpus: int | None) -> None:
    one = price_one(replace(TASK, gpus=gpus), Mesh(cfg=2, ulysses=2), "eager")
    ranked, _ = price_all(TASK, Topology(TASK.cluster))
    same = next(other for other in ranked if other.configuration == one.configuration)
    assert one.prediction == same.prediction
    assert one.too_big is None


@pytest.mark.parametrize(
    ("mesh", "mode", "gpus", "words"),
    [
        (Mesh(cfg=2), "eager", 4, "must multiply to 4, such as cfg=2 ulysses=2"),
        (Mesh(cfg=3), "eager", None, "cfg is 3, but sd3-like has 2 passes a step"),
        (Mesh(dp=2), "eager", None, "dp is 2, but sd3-like has 1 pictures a batch"),
        (Mesh(ulysses=8), "eager", None, "ulysses8 needs 8 GPUs, cluster test has 4"),
        (Mesh(ulysses=8), "eager", 8, "8 GPUs were asked for, cluster test has 4"),
    ],
)
def test_one_mesh_that_cannot_run_says_what_would_be_right(
    mesh: Mesh, mode: Mode, gpus: int | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        price_one(replace(TASK, gpus=gpus), mesh, mode)


def test_a_mode_that_the_backend_lacks_is_refused() -> None:
    eager = TASK.backend.capabilities.model_copy(update={"modes": ("eager",)})
    backend = replace(TASK.backend, capabilities=eager)
    with pytest.raises(
        InputError, match="backend native can't run mode graph on GPUs; there it has eager"
    ):
        price_one(replace(TASK, backend=backend), Mesh(), "graph")


def test_one_mesh_that_does_not_fit_is_priced_all_the_same() -> None:
    tiny = a_cluster(devices=2, device=a_device(memory_bytes=4_000_000_000))
    found = price_one(replace(TASK, cluster=tiny), Mesh(cfg=2), "eager")
    assert found.too_big is not None
    assert found.too_big.startswith("needs ")
    assert found.prediction.latency_s > 0


def test_cpus_never_lose_a_plan_to_memory_but_say_what_is_missing() -> None:
    """A full-size SD3 in float32 on a small machine ends in a plan."""
    said: list[str] = []
    task = Task(find_model("sd3"), ON_CPU, cpus(12))
    found = search(task, progress=said.append)
    assert found.legal == 4
    assert "does not fit in memory" not in found.pruned
    assert found.best.configuration.mesh == Mesh(cfg=2)
    needed = f"{found.best.prediction.memory_bytes / 1e9:.1f} GB x 2 ranks, h0 has 12.0 GB"
    assert found.best.warning == f"needs {needed}: it will swap"
    assert f"cfg2, eager: {found.best.warning}" in next(s for s in said if "warning" in s)
    assert found.to_plan().mesh == Mesh(cfg=2)


def test_cpu_ranks_share_their_host_s_memory() -> None:
    one_bytes = price_one(Task(sd3_like(), ON_CPU, cpus(100)), Mesh(), "eager").prediction
    room_for_one = cpus(round(1.5 * one_bytes.memory_bytes / 1e9))
    task = Task(sd3_like(), ON_CPU, room_for_one)
    assert price_one(task, Mesh(), "eager").warning is None
    assert price_one(task, Mesh(cfg=2), "eager").warning is not None
    apart = a_cluster(
        hosts=2,
        devices=1,
        device=room_for_one.devices[0].model_copy(
            update={"memory_bytes": 2 * room_for_one.devices[0].memory_bytes}
        ),
    )
    assert price_one(replace(task, cluster=apart), Mesh(cfg=2), "eager").warning is None


def test_enough_memory_gives_no_warning() -> None:
    said: list[str] = []
    found = search(Task(sd3_like(), ON_CPU, cpus(500)), progress=said.append)
    assert not any(ranked.warning for ranked in found.ranked)
    assert not any("warning" in message for message in said)


def test_gpus_are_pruned_and_not_warned_of() -> None:
    large = WORKLOAD.model_copy(update={"height": 4096, "width": 4096})
    cluster = a_cluster(devices=4, device=a_device(memory_bytes=43_400_000_000))
    ranked, dropped = price_all(replace(TASK, workload=large, cluster=cluster), Topology(cluster))
    assert dropped["does not fit in memory"] == sum(bool(r.too_big) for r in ranked) > 0
    assert not any(r.warning for r in ranked)
