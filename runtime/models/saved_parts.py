"""What a folder of weights holds of the library transformers: tokenizers and text encoders."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors import safe_open

from ditplan.profiles.errors import InputError
from ditplan.profiles.files import path_text
from ditplan.runtime.models.folder import read_json

ROUNDING = 1.01
"""A model may have this many times the numbers its files hold: buffers aren't always saved."""


class Refusing(Protocol):
    """Turns exceptions of these kinds into an InputError."""

    def __call__(self, *kinds: type[Exception]) -> AbstractContextManager[None]: ...


def load_parts(
    weights: Path, dtype: torch.dtype, refusing: Refusing, damaged: tuple[type[Exception], ...]
) -> dict[str, Any]:
    """The tokenizers and models of transformers that a folder's index names, for a pipeline's
    `from_pretrained`. By itself that would give tensors that no file holds random values.

    Raises:
        InputError: one can't be loaded, or its files don't hold all of it.
    """
    found = load_tokenizers(weights, refusing)
    for name, kind in _kinds_in(weights):
        if issubclass(kind, transformers.PreTrainedModel):
            with refusing(*damaged):
                found[name] = _load_model(kind, weights / name, dtype)
    return found


def load_tokenizers(weights: Path, refusing: Refusing) -> dict[str, Any]:
    """The tokenizers that a folder's index names.

    Raises:
        InputError: one can't be loaded.
    """
    found: dict[str, Any] = {}
    for name, kind in _kinds_in(weights):
        if issubclass(kind, transformers.PreTrainedTokenizerBase):
            # the library tokenizers raises plain Exceptions
            with refusing(Exception):
                found[name] = kind.from_pretrained(str(weights / name), local_files_only=True)
    return found


def _kinds_in(weights: Path) -> Iterator[tuple[str, Any]]:
    """The parts that a folder's index names, and their classes in transformers."""
    for name, component in read_json(weights / "model_index.json").items():
        if isinstance(component, list) and component[:1] == ["transformers"]:
            kind = getattr(transformers, str(component[-1]), None)
            if isinstance(kind, type):
                yield name, kind


def _load_model(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model with every tensor from its files.

    Raises:
        InputError: names what isn't there.
    """
    _require_weights_for(kind, folder)
    model, said = kind.from_pretrained(
        str(folder), dtype=dtype, local_files_only=True, output_loading_info=True
    )
    absent = sorted({*said["missing_keys"], *(str(key[0]) for key in said["mismatched_keys"])})
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"{path_text(folder)}: its files hold no {absent[0]}{more} as its config.json asks "
            "for; take both from the same model"
        )
    return model


def _require_weights_for(kind: Any, folder: Path) -> None:
    """Refuses a config that asks for more than the files hold, before any memory is taken.

    Raises:
        InputError: says how much is there.
    """
    held = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            held += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    if held:
        config = kind.config_class.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            asked = sum(parameter.numel() for parameter in kind(config).parameters())
        if asked > ROUNDING * held:
            raise InputError(
                f"{path_text(folder)}: its config.json asks for {asked:,} parameters, its files "
                f"hold {held:,}; take both from the same model"
            )
