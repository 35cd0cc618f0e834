"""A stage's weights: those of its blocks and of what isn't in blocks, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ditplan.profiles.catalog import find_model, shipped_weights
from ditplan.profiles.errors import InputError
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.small_models import small_flux, small_sd3

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of sd3-tiny."""
    weights = shipped_weights("sd3-tiny")
    assert weights is not None
    return Path(shutil.copytree(weights, tmp_path / "sd3-tiny"))


def transformer(weights: Path | None, blocks: range | None, dtype: str = "float32") -> Any:
    return load_pipeline(find_model("sd3-tiny"), weights, CPU, dtype, blocks).transformer


def held(model: nn.Module) -> int:
    """Numbers in the parameters that have memory."""
    return sum(p.numel() for p in model.parameters() if not p.is_meta)


def test_a_stage_has_the_saved_weights_of_its_blocks_and_of_what_is_in_none(folder: Path) -> None:
    whole, part = transformer(folder, None), transformer(folder, range(2, 5))
    expected = dict(whole.named_parameters())
    for name, parameter in part.named_parameters():
        parts = name.split(".")
        elsewhere = parts[0] == "transformer_blocks" and int(parts[1]) not in range(2, 5)
        assert parameter.is_meta == elsewhere, name
        assert elsewhere or torch.equal(parameter, expected[name]), name
    for name, buffer in part.named_buffers():
        assert torch.equal(buffer, whole.get_buffer(name))


@pytest.mark.parametrize("stages", [2, 4])
def test_stages_hold_their_blocks_and_what_is_outside(folder: Path, stages: int) -> None:
    whole = transformer(folder, None)
    of_block = [held(block) for block in whole.transformer_blocks]
    outside = held(whole) - sum(of_block)
    size = len(of_block) // stages
    for stage in range(stages):
        blocks = range(stage * size, (stage + 1) * size)
        expected = outside + sum(of_block[i] for i in blocks)
        assert held(transformer(folder, blocks)) == expected


def test_other_stages_weights_need_not_even_be_there(folder: Path) -> None:
    path = folder / "transformer" / FILE
    tensors = {
        name: tensor
        for name, tensor in load_file(path).items()
        if not name.startswith("transformer_blocks.7.")
    }
    half = {n: t for i, (n, t) in enumerate(tensors.items()) if i % 2}
    path.unlink()
    save_file(half, path.with_name("a.safetensors"))
    save_file({n: t for n, t in tensors.items() if n not in half}, path.with_name("b.safetensors"))
    index = {n: "a.safetensors" if n in half else "b.safetensors" for n in tensors}
    path.with_name(f"{FILE}.index.json").write_text(json.dumps({"weight_map": index}))
    assert held(transformer(folder, range(7)))
    with pytest.raises(InputError, match=r"has no transformer_blocks\.7\..* nor \d+ other"):
        transformer(folder, range(6, 8))


def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "transformer" / FILE).unlink()
    with pytest.raises(InputError, match="save the model as safetensors"):
        transformer(folder, range(2))


def test_saved_weights_take_the_dtype_asked_for(folder: Path) -> None:
    model = transformer(folder, range(1), "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("spec", [small_sd3(), small_flux()], ids=lambda spec: spec.name)
def test_random_weights_depend_on_nothing_but_their_names(spec: Any) -> None:
    whole = load_pipeline(spec, None, CPU, "float32").transformer
    part = load_pipeline(spec, None, CPU, "float32", range(1, 3)).transformer
    assert 0 < held(part) < held(whole)
    for name, parameter in part.named_parameters():
        assert parameter.is_meta or torch.equal(parameter, whole.get_parameter(name))
    assert all(parameter.isfinite().all() for parameter in whole.parameters())
