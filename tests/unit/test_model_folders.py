"""Folders of models that nobody knew, or that are damaged: one line that names the file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditplan.profiles.catalog import find_model, shipped_weights
from ditplan.profiles.errors import InputError
from ditplan.runtime.models.inspection import inspect_folder
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.family_models import TRANSFORMERS, small

TRANSFORMER, VAE = "transformer/config.json", "vae/config.json"
SCHEDULER, ENCODER = "scheduler/scheduler_config.json", "text_encoder/model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configs of a small Qwen-Image as diffusers saves them, and weights of an encoder."""
    spec = small("qwen-image")
    config = TRANSFORMERS["qwen-image"]
    files = {
        "model_index.json": {
            "_class_name": spec.pipeline_class,
            "transformer": ["diffusers", spec.transformer_class],
            "vae": ["diffusers", spec.vae_class],
            "text_encoder": ["transformers", "T5EncoderModel"],
        },
        TRANSFORMER: {"_class_name": spec.transformer_class, **config},
        VAE: {"_class_name": spec.vae_class, **spec.vae_config},
        SCHEDULER: {"_class_name": spec.scheduler_class, **spec.scheduler_config},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    put_header(tmp_path, {"a": {"shape": [3, 4]}, "b": {"shape": []}, "__metadata__": {}})
    return tmp_path


def put_header(folder: Path, header: object, size: int | None = None) -> None:
    """Weights of the encoder that are a header alone."""
    text = json.dumps(header).encode()
    (folder / ENCODER).parent.mkdir(exist_ok=True)
    length = len(text) if size is None else size
    (folder / ENCODER).write_bytes(length.to_bytes(8, "little") + text)


def put_endless_header(folder: Path) -> None:
    """A file of 8 GiB that says its header is longer still."""
    (folder / ENCODER).write_bytes(b"\xff" * 16)
    os.truncate(folder / ENCODER, 2**33)


def change(name: str, **values: object) -> Callable[[Path], None]:
    """Changes keys of a JSON file."""

    def make(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(data | values))

    return make


def put(name: str, content: object) -> Callable[[Path], None]:
    """Puts something else into a JSON file."""

    def make(folder: Path) -> None:
        (folder / name).write_text(json.dumps(content))

    return make


def refused(call: Callable[[], object]) -> str:
    """The line with which it is refused."""
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_whole_folder_is_inspected_and_its_encoders_are_counted(folder: Path) -> None:
    change(SCHEDULER, lambda_min_clipped=float("-inf"))(folder)
    change("model_index.json", text_encoder_2=None, safety_checker=[None, None])(folder)
    spec = inspect_folder(folder, "x")
    assert spec.config_hash == small("qwen-image").config_hash
    assert spec.encoder_parameters == 13
    assert spec.scheduler_config["lambda_min_clipped"] == float("-inf")


LAYERED: dict[str, Any] = {"use_additional_t_cond": True, "use_layer3d_rope": True}
DAMAGED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "index is a list": (put("model_index.json", []), "model_index.json", "is no JSON object"),
    "index is empty": (put("model_index.json", {}), "", ": model_index.json names no transformer"),
    "index is null": (put("model_index.json", None), "model_index.json", "is no JSON object"),
    "config is empty": (put(TRANSFORMER, {}), TRANSFORMER, "names no class"),
    "class is null": (change(VAE, _class_name=None), VAE, "names no class"),
    "class is a list": (change(SCHEDULER, _class_name=["a"]), SCHEDULER, "names no class"),
    "class isn't in diffusers": (change(VAE, _class_name="Vae9"), "", "has no class 'Vae9'"),
    "class has no config": (change(VAE, _class_name="logging"), "", "has no class 'logging'"),
    "class has no family": (change(TRANSFORMER, _class_name="X"), "", "X: no family describes"),
    "pipeline is a number": (change("model_index.json", _class_name=7), "", "names no pipeline: 7"),
    "layers are no number": (change(TRANSFORMER, num_layers=None), "", "TypeError"),
    "heads are no number": (change(TRANSFORMER, num_attention_heads="x"), "", "can't be made or"),
    "heads are none": (change(TRANSFORMER, num_attention_heads=0), "", "ZeroDivisionError"),
    "layers without end": (change(TRANSFORMER, num_layers=10**7), "", "more than 10000 param"),
    "layers beyond numbers": (change(TRANSFORMER, num_layers=10**9), TRANSFORMER, "num_layers"),
    "number is infinite": (change(VAE, base_dim=float("inf")), VAE, "base_dim: Input should be"),
    "channels without end": (change(VAE, dim_mult=[1, 10**15]), VAE, "dim_mult: must be a number"),
    "header is a list": (lambda folder: put_header(folder, [1]), ENCODER, "is damaged"),
    "shape is text": (
        lambda folder: put_header(folder, {"a": {"shape": "3x4"}}),
        ENCODER,
        "is damaged: a tensor can't have the shape '3x4'",
    ),
    "shape is too large": (
        lambda folder: put_header(folder, {"a": {"shape": [10**9, 10**9]}}),
        ENCODER,
        "is damaged: a tensor can't have the shape [1000000000, 1000000000]",
    ),
    "header is cut off": (lambda folder: put_header(folder, {"a": 1}, 4), ENCODER, "cut off"),
    "header is endless": (put_endless_header, ENCODER, "copy the weights anew"),
}


def test_a_layered_folder_is_planned_for(folder: Path) -> None:
    change(TRANSFORMER, **LAYERED)(folder)
    assert inspect_folder(folder, "x").config["use_layer3d_rope"]


@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_nobody_knew_is_refused_in_one_line(folder: Path, case: str) -> None:
    damage, name, words = DAMAGED[case]
    damage(folder)
    message = refused(lambda: inspect_folder(folder, "x"))
    assert message.startswith(f"{folder / name}"), message
    assert words in message


@pytest.mark.parametrize("name", ["model_index.json", TRANSFORMER, VAE, SCHEDULER, ENCODER])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    message = refused(lambda: inspect_folder(folder, "x"))
    assert message.startswith(f"{folder / name}: this is no regular file")


def test_a_folder_whose_name_is_no_text_is_refused(folder: Path) -> None:
    assert "its name isn't Unicode text" in refused(lambda: inspect_folder(folder, "x\udcff"))


def load(folder: Path) -> object:
    """Loads a copy of sd3-tiny as a stage does."""
    return load_pipeline(find_model("sd3-tiny"), folder, torch.device("cpu"), "float32", (0, 1))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Links to the files of sd3-tiny."""
    weights = shipped_weights("sd3-tiny")
    assert weights is not None
    for path in weights.rglob("*"):
        if path.is_file():
            link = tmp_path / path.relative_to(weights)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", b"x" * 100, "SafetensorError"),
        ("tokenizer/tokenizer.json", b"[]", "can't be loaded as a StableDiffusion3Pipeline"),
        ("scheduler/scheduler_config.json", b"\xff", "can't be loaded as a"),
        (
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            b'{"weight_map": [1]}',
            "has no `weight_map` of names to files",
        ),
    ],
)
def test_damaged_weights_are_refused_in_one_line(
    tiny: Path, name: str, content: bytes, words: str
) -> None:
    (tiny / name).unlink(missing_ok=True)
    (tiny / name).write_bytes(content)
    message = refused(lambda: load(tiny))
    assert message.startswith(str(tiny))
    assert words in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "(OSError: "),
        ("vae/diffusion_pytorch_model.safetensors", "(OSError: "),
        ("text_encoder/model.safetensors", "(SafetensorError: "),
        ("tokenizer_3/tokenizer.json", "(Exception: "),
    ],
)
def test_what_is_damaged_of_a_whole_pipeline_is_refused_in_one_line(
    tiny: Path, name: str, words: str
) -> None:
    (tiny / name).unlink()
    (tiny / name).write_bytes(b'{"model": {"type": "X"}, "added_tokens": []}' + b" " * 100)
    spec = find_model("sd3-tiny")
    message = refused(lambda: load_pipeline(spec, tiny, torch.device("cpu"), "float32"))
    assert message.startswith(str(tiny))
    assert words in message


def test_an_error_of_our_own_is_not_taken_for_damaged_weights(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> object:
        raise TypeError("ours")

    monkeypatch.setattr("ditplan.runtime.models.loading.fill_from_folder", broken)
    with pytest.raises(TypeError, match="ours"):
        load(tiny)


def test_a_pipe_among_weights_is_not_waited_for(tiny: Path) -> None:
    os.mkfifo(tiny / "tokenizer/added_tokens.json")
    message = refused(lambda: load(tiny))
    assert message == f"{tiny}/tokenizer/added_tokens.json: this is no regular file; remove it"


def rewrite(path: Path, tensors: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Puts other tensors in place of those that a file of weights holds."""
    held = load_file(path)
    path.unlink()
    save_file(tensors(held), path, metadata={"format": "pt"})


def test_an_encoder_whose_file_lacks_a_tensor_gets_no_random_one(tiny: Path) -> None:
    name = "text_model.final_layer_norm.bias"
    rewrite(
        tiny / "text_encoder/model.safetensors",
        lambda held: {key: tensor for key, tensor in held.items() if key != name},
    )
    message = refused(lambda: load(tiny))
    assert message.startswith(f"{tiny}/text_encoder: its files hold no {name} as its config.json")


def test_an_encoder_whose_config_asks_for_more_is_refused_before_memory_is_taken(
    tiny: Path,
) -> None:
    config = tiny / "text_encoder_3/config.json"
    content = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps(content | {"vocab_size": 10**9}))
    message = refused(lambda: load(tiny))
    assert message.startswith(f"{tiny}/text_encoder_3: its config.json asks for ")
    assert "parameters, its files hold " in message


def test_a_config_of_the_wrong_kind_is_refused_in_one_line(tiny: Path) -> None:
    config = tiny / "text_encoder/config.json"
    content = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps(content | {"eos_token_id": " "}))
    assert "StrictDataclassFieldValidationError" in refused(lambda: load(tiny))


def test_a_config_of_gigabytes_is_not_read(tiny: Path) -> None:
    config = tiny / "text_encoder/config.json"
    config.unlink()
    with config.open("wb") as file:
        file.truncate(6 * 2**30)
    message = refused(lambda: load(tiny))
    assert message.startswith(f"{config}: is damaged: no model's JSON file has 6,442,450,944 bytes")
