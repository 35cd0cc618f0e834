"""The files of a folder that diffusers saved a pipeline in, as far as nobody vouches for them."""

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ditplan.profiles.bounds import MOST_PARAMETERS
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.files import LARGEST_BYTES, opened, parse_json, path_text, read_text
from ditplan.profiles.record import shortened

ENCODER = re.compile(r"text_encoder(_[0-9]+)?")
LARGEST_SETTING = 2**24
"""Of whole numbers in a config: above the largest vocabularies and wavelengths."""

MOST_TENSORS = 10_000
"""Of a model: the largest ones have some 2,000 parameters."""

STRANGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What constructors and forwards of diffusers raise for a config that they weren't written for."""


def read_json(
    path: Path, expected: str = "the folder of a diffusers pipeline", *, finite: bool = True
) -> dict[str, Any]:
    """A JSON object in a file, whose numbers are `finite`.

    Raises:
        InputError: it can't be read; says what was expected.
    """
    where, remedy = path_text(path), f"expected {expected}"
    content = parse_json(read_text(path, expected), where, "config", remedy, finite=finite)
    if not isinstance(content, dict):
        raise InputError(f"{where}: is no JSON object; {remedy}")
    return content


def is_encoder(name: str, component: object) -> bool:
    """Whether an entry of a pipeline's index, such as `["transformers", "T5"]`, is a text encoder
    that there is.
    """
    is_there = isinstance(component, list) and len(component) == 2 and None not in component
    return is_there and ENCODER.fullmatch(name) is not None


def config_of(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """The config of a component, with the name of its class; schedulers' numbers may be infinite.

    Raises:
        InputError: it can't be read, names no class, or has numbers that no model has.
    """
    config = read_json(path, finite=finite)
    if not isinstance(config.get("_class_name"), str):
        raise InputError(f"{path_text(path)}: names no class; `_class_name` must be one's name")
    for key, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > LARGEST_SETTING:
                raise InputError(
                    f"{path_text(path)}: field {one_line(key, 80)}: must be a number up to "
                    f"{LARGEST_SETTING} (given: {shortened(number)})"
                )
    return config


@contextmanager
def refusing_strange_configs(where: str, class_name: str) -> Iterator[None]:
    """Turns all that classes of diffusers raise for configs that nobody tried into an InputError.

    Raises:
        InputError: names `where` the config is, and the class of the transformer.
    """
    try:
        yield
    except InputError as error:
        if str(error).startswith(where):
            raise
        raise InputError(f"{where}: ", error.sentence) from None
    except STRANGE as error:
        raise InputError(
            f"{where}: a {one_line(class_name, 60)} of this config can't be made or run as its "
            f"family says ({type(error).__name__}: {one_line(str(error), 120)}); CONTRIBUTING.md "
            "says how to describe a model"
        ) from error


@contextmanager
def bounded_parameters() -> Iterator[None]:
    """Ends the making of a model that has more parameters than any, before it fills the memory.

    Raises:
        InputError: it does.
    """
    made = itertools.count(1)

    def count(_module: nn.Module, name: str, _parameter: object) -> None:
        if next(made) > MOST_TENSORS:
            raise InputError(
                f"a config asks for more than {MOST_TENSORS} parameters ({name}, ...), as no model "
                "has; correct its number of layers"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def stored_parameters(folder: Path) -> int:
    """Parameters of a component, read from the headers of its safetensors files."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with opened(path, "weights") as file:
            # no more than that is ever read: the length may be anything
            size = min(int.from_bytes(file.read(8), "little"), LARGEST_BYTES)
            header = file.read(size)
        what, remedy = "header of weights", "copy the weights anew"
        text = header.decode("utf-8", errors="replace")
        tensors = parse_json(text, path_text(path), what, remedy)
        for key, tensor in tensors.items() if isinstance(tensors, dict) else [("", None)]:
            if key != "__metadata__":
                total += _size_of(tensor, path_text(path))
    return total


def _size_of(tensor: object, where: str) -> int:
    """How many numbers a tensor of a safetensors header has.

    Raises:
        InputError: it says nothing, or nothing that can be.
    """
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    if isinstance(shape, list) and all(isinstance(dim, int) and dim >= 0 for dim in shape):
        size = math.prod(shape)
        if size <= MOST_PARAMETERS:
            return size
    raise InputError(
        f"{where}: is damaged: a tensor can't have the shape {shortened(shape)}; copy the weights "
        "anew"
    )
