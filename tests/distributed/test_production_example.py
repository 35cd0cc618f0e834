"""The production example, in a job of two CPU ranks with a wheel in place of the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ditplan.profiles.catalog import find_model, shipped_weights
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.workload import Workload
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.small_models import plan_for
from tests.distributed.test_production import made_for, name_here
from tests.unit.test_wheel import ROOT, unpacked

__all__ = ["unpacked"]
PROMPTS = ("a red circle left of a blue square", "a green square")


def test_the_example_runs_from_a_wheel_and_its_pictures_are_one_device_s(
    ranks: RankPool, unpacked: Path, tmp_path: Path
) -> None:
    example = ROOT / "examples" / "production.py"
    assert len(example.read_text().splitlines()) <= 15
    spec, name = find_model("sd3-tiny"), ranks.run(name_here, timeout_s=60)[0]
    fields = {"height": 128, "width": 128, "steps": 4, "dtype": "float32"}
    work = Workload.model_validate(spec.defaults.model_dump() | fields)
    where: dict[str, object] = {"devices": (name, name), "link_kinds": ("memory",)}
    made_for(plan_for(spec, Mesh(ulysses=2), work), where).save(tmp_path / "plan.json")
    weights = shipped_weights("sd3-tiny")
    assert weights is not None
    (tmp_path / "model").symlink_to(weights)
    shutil.copy(example, tmp_path)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    job = subprocess.run(
        [*launcher, "--standalone", "production.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    alone: Any = DiffusionPipeline.from_pretrained(str(weights))
    alone.set_progress_bar_config(disable=True)
    for seed, prompt in enumerate(PROMPTS):
        noise = torch.Generator().manual_seed(seed)
        size = {"height": 128, "width": 128}
        wanted = alone(prompt, num_inference_steps=4, generator=noise, **size).images[0]
        found = Image.open(tmp_path / f"{seed}.png")
        off = np.abs(np.asarray(found, dtype=int) - np.asarray(wanted, dtype=int)).max()
        # a value between two whole numbers may be rounded either way
        assert off <= 1
