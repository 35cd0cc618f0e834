"""A job under torchrun that loads a saved plan, as production does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditplan.models import NamedModel
from ditplan.profiles.errors import InputError
from ditplan.profiles.fingerprint import CODE, Fingerprint, RankSpeed, SelfTest
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, Measurement
from ditplan.revalidating import revalidated
from ditplan.runtime.admission.fit import gathered_facts, require_fit
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize
from ditplan.runtime.ranks.devices import device_name
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.workers import Workers
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


INJECTED: dict[str, tuple[dict[str, object], str]] = {
    "GPU model": ({"devices": ("NVIDIA L40",) * 4}, "made for NVIDIA L40 on rank 0, there is"),
    "GPU memory": ({"memory_bytes": (10**15,) * 4}, "where the plan was made with 1e+06 GB: what"),
    "GPU count": ({}, "the plan needs 5 ranks (ulysses5), there are 4"),
    "links": ({"link_kinds": ("nvlink",)}, "linked by nvlink, these are linked by memory"),
    "torch": ({"torch": "2.1.0"}, "made with torch 2.1.0, rank 0 has 2"),
    "NCCL": ({"nccl": "2.18.1"}, "made with nccl 2.18.1, rank 0 has none"),
    "diffusers": ({"diffusers": "0.30.0"}, "made with diffusers 0.30.0, rank 0 has 0"),
    "driver": ({"driver": "550.1"}, "made with driver 550.1, rank 0 has none"),
    "launch rate": ({"launch_s": 1e-12}, "launching a kernel takes rank 0"),
    "block": ({"block_s": 1e-12}, "the self-test's block takes rank 0"),
    "collective": ({"collective_s": 1e-12}, "the self-test's collective takes"),
    "model config": ({"num_layers": 4}, "num_layers is 3, the plan has 4"),
}
"""What isn't so here, by what of a plan says it, and what is said of it."""


def injected(plan: ExecutionPlan, changes: dict[str, object]) -> ExecutionPlan:
    """A plan that was made here, but for the changes."""
    where = plan.fingerprint
    assert where.self_test is not None
    software = {name: changes.get(name, "") for name in CODE}
    speed = {"launch_s": 1.0, "block_s": 1.0} | changes
    test = SelfTest(
        ranks=(RankSpeed.model_validate({n: speed[n] for n in ("launch_s", "block_s")}),) * 4,
        collective_s=float(str(changes.get("collective_s", 1.0))),
    )
    found = where.model_copy(
        update={
            "software": where.software | {n: v for n, v in software.items() if v},
            "self_test": test,
            **{name: value for name, value in changes.items() if name in Fingerprint.model_fields},
        }
    )
    return plan.model_copy(update={"fingerprint": found})


def refusals(context: RankContext, plans: dict[str, ExecutionPlan]) -> dict[str, str]:
    """What a job is told that puts each plan in force; nothing where it may."""
    pipeline = load_pipeline(small_sd3(), None, context.device, "float32")
    told = {}
    for name, plan in plans.items():
        try:
            require_fit(plan, context)
            parallelize(pipeline, plan, context).close()
            told[name] = ""
        except InputError as error:
            told[name] = str(error)
    return told


def test_twelve_mismatches_are_caught_at_load(ranks: RankPool) -> None:
    spec, work = small_sd3(), workload()
    plan = plan_for(spec, Mesh(ulysses=4), work)
    facts, link = ranks.run(gathered_facts, range(4), timed=True, timeout_s=600)[0]
    run = Measurement(latency_s=1.0, runs_s=(1.0,), measured_on="2026-01-02", devices="4 x CPU")
    assert link == "memory"
    where = plan.fingerprint.as_found(facts, (link,))
    here = plan.model_copy(update={"measurement": run, "fingerprint": where})
    plans = {"nothing": injected(here, {})}
    for name, (changes, _) in INJECTED.items():
        made = here
        if name == "model config":
            made = plan_for(small_sd3(num_layers=4), Mesh(ulysses=4), work).model_copy(
                update={"measurement": run, "fingerprint": where}
            )
        plans[name] = injected(made, changes)
    five = plan_for(spec, Mesh(ulysses=5), work)
    plans["GPU count"] = five
    told = ranks.run(refusals, plans, timeout_s=600)
    assert told == [told[0]] * 4
    assert told[0].pop("nothing") == ""
    assert len(told[0]) == len(INJECTED) == 12
    for name, (_, words) in INJECTED.items():
        assert words in told[0][name], name


def test_a_plan_is_measured_anew_where_it_is_to_run_and_holds_there(
    ranks: RankPool, tmp_path: Path
) -> None:
    workers = Workers(None, 4, "cpu")
    workers._pool = ranks
    model = NamedModel(small_sd3(), None, is_shipped=False)
    elsewhere: dict[str, object] = {"devices": ("NVIDIA L40",) * 2, "link_kinds": ("pcie",)}
    plan = made_for(plan_for(model.spec, Mesh(ulysses=2), workload()), elsewhere)
    path = plan.save(tmp_path / "plan.json")
    said: list[str] = []
    found = revalidated(plan, path, model, workers, said.append)
    name = ranks.run(name_here, timeout_s=60)[0]
    assert ExecutionPlan.load(path) == found
    assert found.fingerprint.devices == (name, name)
    assert found.fingerprint.link_kinds == ("memory",)
    assert found.measurement is not None
    assert len(found.measurement.runs_s) == 3
    assert any("holds here" in line for line in said)
    was = Measurement(latency_s=1e-6, runs_s=(1e-6,), measured_on="2026-01-02", devices="2 x L40")
    faster = plan.model_copy(update={"measurement": was})
    with pytest.raises(InputError, match=r"at most 1\.1e-06 s where it was made, so another plan"):
        revalidated(faster, path, model, workers, said.append)
