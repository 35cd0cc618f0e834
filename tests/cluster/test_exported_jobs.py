"""What `export` writes for Slurm, by a Slurm: whether it would run the job."""

import pytest

from ditplan.exporting.export import export
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from tests.cluster.machines import HOSTS, Machines
from tests.cluster.slurm import ENVIRONMENT

pytestmark = pytest.mark.cluster

WAITING_S = 60


def plan_on(*hosts: str) -> ExecutionPlan:
    """A plan with one rank on a CPU of each host."""
    spec = find_model("sd3-tiny")
    work = spec.defaults.model_copy(update={"dtype": "float32"})
    plan = bare_plan(PlannedModel.of_spec(spec), work, Mesh(ulysses=len(hosts)))
    places = [{"rank": rank, "host": host, "device": 0} for rank, host in enumerate(hosts)]
    return ExecutionPlan.model_validate({**plan.model_dump(), "locations": places})


@pytest.mark.parametrize(
    ("hosts", "code"), [(tuple(HOSTS), 0), (("a", "b", "c", "d", "e", "f", "g", "h", "i"), 1)]
)
def test_slurm_would_run_an_exported_job_where_it_has_the_nodes(
    slurm_machines: Machines, hosts: tuple[str, ...], code: int
) -> None:
    controller = slurm_machines["n1"]
    text = export(plan_on(*hosts), "slurm", "plan.json").text
    controller.write("/tmp/job.sh", text)
    words = ["sbatch", "--test-only", "/tmp/job.sh"]
    asked = controller.start(words, environment=ENVIRONMENT).finished(WAITING_S)
    assert asked.returncode == code, asked.stderr
