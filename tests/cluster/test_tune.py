"""Tuning and running over two hosts with two ranks each, linked at a known rate."""

import signal
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.mesh import Mesh, placement_of
from ditplan.profiles.plan import ExecutionPlan
from tests.cluster import jobs
from tests.cluster.jobs import FOLDER, PROMPT, Result, ditplan
from tests.cluster.machines import HOSTS, ROOT, Machines

pytestmark = [pytest.mark.cluster, pytest.mark.thorough]

PAYLOAD = 1448 / 1514
"""Of a full Ethernet frame, what isn't TCP, IP or Ethernet."""
MESH = ("--cfg", "2", "--ulysses", "2")
"""Two ways to place it: Ulysses, which exchanges much more, inside the hosts or across them."""
TRANSPOSED = ("dp", "pipefusion", "ring", "ulysses", "cfg")
"""The order of axes in which Ulysses lies across the hosts."""
ROUNDS = 3
"""Of runs to compare, in turns."""


@dataclass(frozen=True)
class Tuned:
    """What a tune on n1 found."""

    machines: Machines
    result: Result
    plan: ExecutionPlan
    cluster: ClusterProfile


def tuned(machines: Machines, rate: str, name: str, *more: str) -> Tuned:
    """Tunes with all that hosts send at most at a rate."""
    jobs.write_hosts(machines)
    for host in HOSTS:
        machines[host].limit(rate)
    result = ditplan(machines, *jobs.tune(f"{name}.json", *more)).result(1200)
    assert result.exit_code == 0, result.errors
    plan = ExecutionPlan.load(machines["n1"].path(f"{FOLDER}/{name}.json"))
    cluster = ClusterProfile.load(machines["n1"].path(f"{FOLDER}/{name}.study/cluster.json"))
    return Tuned(machines, result, plan, cluster)


def ran(machines: Machines, name: str) -> tuple[float, np.ndarray]:
    """Seconds of denoising of a plan's run on the hosts, and the picture."""
    done = ditplan(machines, *jobs.run(f"{name}.json", f"{name}.png")).result()
    assert done.exit_code == 0, done.errors
    with Image.open(machines["n1"].path(f"{FOLDER}/{name}.png")) as picture:
        return done.json["latency_s"], np.asarray(picture, dtype=np.int16)


def transpose(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan with Ulysses across the hosts."""
    one = plan.configuration
    placed = replace(one, order=TRANSPOSED, placement=placement_of(one.mesh, TRANSPOSED))
    return plan.model_copy(update={"configuration": placed})


def hosts_of(plan: ExecutionPlan) -> set[str]:
    """Where its ranks are."""
    return {location.host for location in plan.locations}


@pytest.fixture(scope="module")
def at_1_gbit(machines: Machines) -> Tuned:
    """A mesh of which the search chooses only how it lies over the hosts."""
    return tuned(machines, "1gbit", "fast", *MESH, "--measure", "1")


def test_the_link_is_found_as_fast_as_it_is(at_1_gbit: Tuned) -> None:
    links = [link for link in at_1_gbit.cluster.links if link.kind == "ethernet"]
    assert links
    for link in links:
        assert link.bytes_per_s == pytest.approx(1e9 / 8 * PAYLOAD, rel=0.2)


def test_the_graph_is_that_of_the_hosts_file(at_1_gbit: Tuned) -> None:
    cluster = at_1_gbit.cluster
    assert [host.name for host in cluster.hosts] == list(HOSTS)
    assert [len(host.devices) for host in cluster.hosts] == [2, 2]
    inside = {(link.a, link.b) for link in cluster.links if link.kind == "memory"}
    assert inside == {(f"{host}/{n}", f"{host}/memory") for host in HOSTS for n in (0, 1)}
    across = {link.a for link in cluster.links if link.kind == "ethernet"}
    assert across == {f"{host}/memory" for host in HOSTS}


def test_what_exchanges_most_stays_inside_the_hosts(at_1_gbit: Tuned) -> None:
    assert at_1_gbit.plan.configuration.order_text == "cfg > ulysses"


def test_plan_and_transpose_run_in_the_predicted_order(at_1_gbit: Tuned) -> None:
    machines, found = at_1_gbit.machines, at_1_gbit.result.json
    (other,) = (one for one in found["alternatives"] if one["order"].index("cfg") == 4)
    assert found["best"]["latency_s"] < other["latency_s"]
    transpose(at_1_gbit.plan).save(machines["n1"].path(f"{FOLDER}/transposed.json"))
    rounds = [[ran(machines, name)[0] for name in ("fast", "transposed")] for _ in range(ROUNDS)]
    # other work on the machine makes a run slower, never faster
    fast, transposed = map(min, zip(*rounds, strict=True))
    assert fast < transposed


def test_the_picture_is_that_of_one_device(
    at_1_gbit: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = at_1_gbit.machines
    jobs.write_plan(machines, "alone.json", steps=20, mesh=Mesh())
    on_both, alone = (ran(machines, name)[1] for name in ("fast", "alone"))
    assert np.abs(on_both - alone).max() <= 1
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples" / "sd3_tiny"), *sys.path])
    import checker

    assert checker.shows(Image.fromarray(on_both.astype(np.uint8)), PROMPT)


def test_a_killed_tune_goes_on_from_what_it_had_measured(at_1_gbit: Tuned) -> None:
    machines, arguments = at_1_gbit.machines, jobs.tune("again.json", *MESH, "--measure", "1")
    job = ditplan(machines, *arguments)
    job.said(", run 1")
    job.command.process.kill()
    assert job.result().exit_code == -signal.SIGKILL
    jobs.wait_for_no_leftovers(machines)
    done = ditplan(machines, *arguments).result(1200)
    assert done.exit_code == 0, done.errors
    assert ", run 2: " in done.errors
    assert ", run 1: " not in done.errors
    assert "collectives" not in done.errors


def test_a_slow_link_is_not_crossed_by_a_sequence(machines: Machines) -> None:
    """Without guidance only a sequence can be shared out: at 100 Mbit/s two ranks are faster."""
    more = ("--no-guidance", "--quality", "exact", "--measure", "0")
    fast = tuned(machines, "1gbit", "wide", *more)
    slow = tuned(machines, "100mbit", "narrow", *more)
    assert hosts_of(fast.plan) == set(HOSTS)
    assert len(hosts_of(slow.plan)) == 1
    assert slow.plan.mesh.size == 2
