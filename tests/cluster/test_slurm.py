"""Tuning and running inside an allocation of Slurm, without any hosts file."""

import pytest

from ditplan.profiles.plan import ExecutionPlan
from tests.cluster import jobs
from tests.cluster.jobs import FOLDER, PROMPT, ditplan
from tests.cluster.machines import Machines

pytestmark = [pytest.mark.cluster, pytest.mark.thorough]

ALLOCATION = "salloc --quiet --nodes=2 --ntasks-per-node=2"


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
