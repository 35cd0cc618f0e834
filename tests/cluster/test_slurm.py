"""Tuning and running inside an allocation of Slurm, without any hosts file."""

import pytest

from ditplan.profiles.plan import ExecutionPlan
from tests.cluster import jobs
from tests.cluster.jobs import FOLDER, PROMPT, ditplan
from tests.cluster.machines import Machines

pytestmark = pytest.mark.cluster

ALLOCATION = "salloc --quiet --nodes=2 --ntasks-per-node=2"


def test_hosts_of_a_job_are_reached_by_srun(slurm_machines: Machines) -> None:
    jobs.write_hosts(slurm_machines)
    arguments = ("preflight", "--hosts", "hosts.txt", "--json")
    found = ditplan(slurm_machines, *arguments, before=ALLOCATION).result()
    assert found.exit_code == 0, found.errors
    assert [host["launcher"] for host in found.json["hosts"]] == ["srun", "srun"]
    assert jobs.leftovers(slurm_machines) == []


@pytest.mark.thorough
def test_a_plan_is_tuned_and_run_on_the_nodes_of_a_job(slurm_machines: Machines) -> None:
    tune = ("tune", "--model", "sd3-tiny", "--measure", "1", "--out", "plan.json", "--json")
    mesh = ("--cfg", "2", "--ulysses", "2")
    tuned = ditplan(slurm_machines, *tune, *mesh, before=ALLOCATION).result(1200)
    assert tuned.exit_code == 0, tuned.errors
    plan = ExecutionPlan.load(slurm_machines["n1"].path(f"{FOLDER}/plan.json"))
    assert plan.measurement is not None
    run = ("run", "--plan", "plan.json", "--prompt", PROMPT, "--out", "picture.png", "--json")
    ran = ditplan(slurm_machines, *run, before=ALLOCATION).result()
    assert ran.exit_code == 0, ran.errors
    assert ran.json["ranks"] == 4
    jobs.wait_for_no_leftovers(slurm_machines)
