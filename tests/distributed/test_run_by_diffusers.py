"""Backend diffusers as a user runs it on two CPU ranks: measured by tune, and native's picture."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel

from ditplan.profiles.catalog import shipped_weights
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.runtime.models.inspection import inspect_folder
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.family_tasks import small_model
from tests.distributed.small_models import small_flux

LIMIT_S = 300
PROMPT = "a red circle left of a blue square"
WORKLOAD = {"height": 32, "width": 32, "steps": 4, "text_tokens": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FLUX of five heads as diffusers saves it, that reads prompts as sd3-tiny does."""
    folder, tiny = tmp_path_factory.mktemp("small-flux"), shipped_weights("sd3-tiny")
    assert tiny is not None
    spec = small_flux(joint_attention_dim=160, pooled_projection_dim=64)
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    pipeline.transformer = small_model(spec)
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    for ours, theirs in (("tokenizer", "tokenizer"), ("tokenizer_2", "tokenizer_3")):
        shutil.copytree(tiny / theirs, folder / ours)
    shutil.copytree(tiny / "text_encoder_3", folder / "text_encoder_2")
    encoder: Any = CLIPTextModel.from_pretrained(tiny / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder")
    index |= {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def ditplan(at: Path, *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "ditplan", *arguments, "--json"],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plan_of(folder: Path, backend: str, mesh: Mesh, at: Path) -> str:
    """A plan's file."""
    spec = inspect_folder(folder, folder.name)
    work = spec.defaults.model_copy(update=WORKLOAD | {"dtype": "float32"})
    plan = bare_plan(PlannedModel.of_spec(spec), work, mesh)
    # it was made for no device in particular
    plan = plan.model_copy(update={"backend": backend, "on_mismatch": "warn"})
    path = at / f"{backend}-{mesh.size}.json"
    plan.save(path)
    return path.name


def test_a_plan_of_diffusers_gives_the_picture_of_native(folder: Path, tmp_path: Path) -> None:
    pictures = {}
    for backend, mesh in (
        ("native", Mesh()),
        ("native", Mesh(ulysses=2)),
        ("diffusers", Mesh(ulysses=2)),
    ):
        plan = plan_of(folder, backend, mesh, tmp_path)
        out = f"{plan}.png"
        words = ("--weights", str(folder), "--hosts", "localhost:2", "--prompt", PROMPT)
        said = ditplan(tmp_path, "run", "--plan", plan, "--out", out, *words)
        assert said["ranks"] == mesh.size
        pictures[plan] = np.asarray(Image.open(tmp_path / out)).astype(int)
    alone, *others = pictures.values()
    assert alone.std() > 1
    # whole levels of 255: rounding of 1e-4 can move a pixel by one
    assert all(np.abs(picture - alone).max() <= 1 for picture in others)


@pytest.mark.thorough
def test_tune_measures_what_diffusers_takes(folder: Path, tmp_path: Path) -> None:
    sizes = ("--height", "32", "--width", "32", "--steps", "2", "--text-tokens", "16")
    found = ditplan(
        tmp_path,
        *("tune", "--model", str(folder), "--backend", "diffusers", "--hosts", "localhost:2"),
        *("--gpus", "2", "--measure", "3", "--out", "plan.json", *sizes),
    )
    plan = ExecutionPlan.load(tmp_path / "plan.json")
    assert plan.backend == found["best"]["backend"] == "diffusers"
    assert plan.measurement is not None
    tried = {one["mesh"] for one in [found["best"], *found["alternatives"]] if one["measured_s"]}
    assert tried == {"one device", "ulysses2"}
