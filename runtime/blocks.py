"""A transformer's blocks in order of execution."""

from typing import Any

from torch import nn

from ditplan.profiles.family import ModelFamily
from ditplan.runtime.takeover import submodule


def block_runs(model: nn.Module, family: ModelFamily) -> list[tuple[str, list[str]]]:
    """The model's blocks in order of execution as runs of equal structure: (kind, module paths).

    A kind is the block's class name, numbered from the second structure of one class on.
    """
    kinds: dict[tuple[str, tuple[Any, ...]], str] = {}
    runs: list[tuple[str, list[str]]] = []
    for path in family.blocks:
        for index, block in enumerate(submodule(model, path).children()):
            name = type(block).__name__
            structure = tuple((key, tuple(value.shape)) for key, value in block.named_parameters())
            alike = sum(1 for class_name, _ in kinds if class_name == name)
            kind = kinds.setdefault((name, structure), f"{name}-{alike + 1}" if alike else name)
            if runs and runs[-1][0] == kind:
                runs[-1][1].append(f"{path}.{index}")
            else:
                runs.append((kind, [f"{path}.{index}"]))
    return runs


def block_paths(model: nn.Module, family: ModelFamily) -> list[str]:
    """The module paths of the model's blocks in order of execution."""
    return [path for _, of_a_kind in block_runs(model, family) for path in of_a_kind]
