"""A model's weights on this rank: all, or only those of some blocks and of what isn't in blocks.

What isn't wanted has its shape and no memory (torch's meta device), and is never read.
"""

import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import SafetensorError, safe_open
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.files import opened, parse_json, path_text, read_text

INDEX = "diffusion_pytorch_model.safetensors.index.json"
ONE_FILE = "diffusion_pytorch_model.safetensors"

Wanted = Callable[[str], bool]
"""Whether a parameter or buffer, by its name, is held."""


Put = Callable[[str, torch.Tensor], bool]
"""Takes a parameter in, by its name; says whether it did, else it is the model's own."""


def only_blocks(blocks: Sequence[str], held: Collection[int]) -> Wanted:
    """Holds those blocks of these paths whose numbers are `held`, and all that isn't one."""
    others = tuple(f"{path}." for number, path in enumerate(blocks) if number not in held)
    return lambda name: not name.startswith(others)


def everything(_name: str) -> bool:
    """Holds all there is."""
    return True


def empty_model(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """A model of a config whose parameters have no memory; its buffers have, on the CPU."""
    with init_empty_weights(include_buffers=False):
        model = model_class.from_config(config)
    # diffusers' own `to` advises against casting weights that were loaded; there are none yet
    return nn.Module.to(model, dtype=dtype).eval()


def nothing_put(_name: str, _value: torch.Tensor) -> bool:
    """Leaves all to the model."""
    return False


def fill_with_random(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    wanted: Wanted,
    put: Put = nothing_put,
) -> None:
    """Gives the wanted parameters random values, which depend on nothing but their names.

    They are spread as those of torch's linear layers; scales of norms are 1.
    """
    for name, parameter in list(model.named_parameters()):
        if wanted(name):
            value = _random(name, parameter.shape, device, dtype)
            if not put(name, value):
                set_module_tensor_to_device(model, name, device, value=value)
    _move_buffers(model, device)


def dtypes_of(model: nn.Module, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of a parameter by its name: some have to stay in float32."""
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return lambda name: dtype if exact.isdisjoint(name.split(".")) else torch.float32


def fill_from_folder(
    model: nn.Module,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    wanted: Wanted,
    put: Put = nothing_put,
) -> None:
    """Reads the wanted parameters and buffers of a model that diffusers saved in a folder.

    Raises:
        InputError: the folder has no safetensors, or damaged ones, or lacks a parameter.
    """
    dtype_of = dtypes_of(model, dtype)
    kinds = dict(model.named_parameters()) | dict(model.named_buffers())
    missing = {name for name, _ in model.named_parameters() if wanted(name)}
    for file in _files(folder):
        with _tensors_in(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it isn't a mapping)
                if name in kinds and wanted(name):
                    value = tensors.get_tensor(name)
                    kind = dtype_of(name) if value.is_floating_point() else value.dtype
                    if not put(name, value):
                        set_module_tensor_to_device(model, name, device, value=value, dtype=kind)
                    missing.discard(name)
    if missing:
        raise InputError(
            f"{folder}: has no {min(missing)}, nor {len(missing) - 1} other parameters of a "
            f"{type(model).__name__}"
        )
    _move_buffers(model, device)


@contextmanager
def _tensors_in(file: Path) -> Iterator[Any]:
    """A file of safetensors, open.

    Raises:
        InputError: it is none, or damaged.
    """
    try:
        with opened(file, "weights"), safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(
            f"{path_text(file)}: these are no weights (SafetensorError: {error}); copy the file "
            "anew"
        ) from None


def _files(folder: Path) -> list[Path]:
    """The files of weights in a folder.

    Raises:
        InputError: there are none.
    """
    if (folder / INDEX).is_file():
        where, expected = path_text(folder / INDEX), "an index of weights"
        text = read_text(folder / INDEX, expected)
        index = parse_json(text, where, "index of weights", "copy the weights anew")
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
            raise InputError(f"{where}: has no `weight_map` of names to files; copy it anew")
        return [folder / name for name in sorted(set(files.values()))]
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    raise InputError(f"{folder}: has neither {ONE_FILE} nor {INDEX}; save the model as safetensors")


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for name, buffer in list(model.named_buffers()):
        set_module_tensor_to_device(model, name, device, value=buffer)


def _random(name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if len(shape) < 2 and name.endswith("weight"):
        return torch.ones(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    inputs = shape[1:].numel() if len(shape) > 1 else 1024
    made = torch.empty(shape, device=device).uniform_(-1, 1, generator=generator)
    return made.div_(inputs**0.5).to(dtype)
