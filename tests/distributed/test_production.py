"""A job under torchrun that loads a saved plan, as production does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.fit import require_fit
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.rank_tasks import latents
from tests.distributed.small_models import plan_for, small_sd3, workload

ROOT = Path(__file__).parents[2]


def name_here(context: RankContext) -> str:
    """This rank's device."""
    return device_name(context)


def made_for(plan: ExecutionPlan, where: dict[str, object]) -> ExecutionPlan:
    """The plan with another fingerprint."""
    fingerprint = plan.fingerprint.model_copy(update=where)
    return plan.model_copy(update={"fingerprint": fingerprint})


def torchrun(
    plan: Path, ranks: int, name: str = "production_job"
) -> subprocess.CompletedProcess[str]:
    """Runs a job on so many ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    job = ["-m", f"tests.distributed.{name}", str(plan)]
    return subprocess.run(
        [*launcher, "--standalone", *job],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_torchrun_job_gives_the_latents_of_one_device(ranks: RankPool, tmp_path: Path) -> None:
    spec, work = small_sd3(), workload()
    alone = ranks.run(latents, spec, plan_for(spec, Mesh(), work), timeout_s=600)[0]
    name = ranks.run(name_here, timeout_s=600)[0]
    plan = plan_for(spec, Mesh(ulysses=2), work)
    where: dict[str, object] = {"devices": (name, name), "link_kinds": ("memory",)}
    path = made_for(plan, where).save(tmp_path / "plan.json")
    job = torchrun(path, 2)
    assert job.returncode == 0, job.stderr
    for rank in range(2):
        found = torch.load(tmp_path / f"plan.{rank}.pt")
        assert alone is not None
        assert float((found - alone).abs().max()) <= 1e-4


def test_what_is_no_pipeline_or_no_plan_is_refused_on_all_ranks_in_a_line(
    ranks: RankPool, tmp_path: Path
) -> None:
    name = ranks.run(name_here, timeout_s=60)[0]
    plan = plan_for(small_sd3(), Mesh(cfg=2), workload())
    where: dict[str, object] = {"devices": (name, name), "link_kinds": ("memory",)}
    path = made_for(plan, where).save(tmp_path / "plan.json")
    job = torchrun(path, 2, "refusals_job")
    assert job.returncode == 0, job.stderr
    expected = [
        "not a PosixPath: load one from its file with ditplan.ExecutionPlan.load",
        "not a str: load one from its file",
        "not a dict: load one from its file",
        "not None: load one from its file",
        "this is a book of 1: ask it with plan_for(workload)",
        "not its SD3Transformer2DModel: give it the pipeline",
        "a diffusers pipeline with a transformer, not None",
        "is in force on this SD3Transformer2DModel already",
        "rank 1: parallelize() takes an ExecutionPlan, not a PosixPath",
    ]
    for rank in range(2):
        told = (tmp_path / f"plan.{rank}.txt").read_text().split("\n")
        assert len(told) == len(expected)
        for line, words in zip(told, expected, strict=True):
            assert words in line


def admitted(context: RankContext, plan: ExecutionPlan) -> None:
    """What a job does before anything else."""
    require_fit(plan, context)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"devices": ("NVIDIA L40",) * 4}, "made for NVIDIA L40 on rank 0, there is"),
        ({"link_kinds": ("nvlink",)}, "linked by nvlink, these are linked by memory"),
    ],
)
def test_a_plan_for_other_devices_or_links_is_refused(
    ranks: RankPool, where: dict[str, object], words: str
) -> None:
    name = ranks.run(name_here, timeout_s=600)[0]
    here: dict[str, object] = {"devices": (name,) * 4, "link_kinds": ("memory",)}
    plan = plan_for(small_sd3(), Mesh(ulysses=4), workload())
    ranks.run(admitted, made_for(plan, here), timeout_s=600)
    with pytest.raises(InputError, match=words):
        ranks.run(admitted, made_for(plan, here | where), timeout_s=600)
