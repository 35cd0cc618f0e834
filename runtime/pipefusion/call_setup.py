"""What a pipeline's call computes before its loop, for copies of it to take over."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ditplan.runtime.admission.randomness import RandomState
from ditplan.runtime.takeover import replaced

ONCE = ("encode_prompt", "prepare_latents")


class SetupReplay:
    """What a call computes before its loop, recorded once and replayed to the other patches."""

    def __init__(self, arguments: dict[str, Any], device: torch.device) -> None:
        self.random = RandomState.now(device)
        self._device = device
        self._generators = {
            name: found for name, value in arguments.items() if (found := _generators(value))
        }
        self._single = {n for n in self._generators if not isinstance(arguments[n], list)}
        self._at_start = {
            n: [one.get_state() for one in found] for n, found in self._generators.items()
        }
        self._kept: dict[str, list[tuple[Any, RandomState, list[torch.Tensor]]]] = {}

    @contextmanager
    def recorded(self, pipeline: Any) -> Iterator[None]:
        """Records what a pipeline's own methods give."""
        with ExitStack() as undo:
            for name in ONCE:
                if hasattr(pipeline, name):
                    method = self._recording(name, getattr(pipeline, name))
                    undo.enter_context(replaced(pipeline, name, method))
            yield

    def _recording(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        kept = self._kept.setdefault(name, [])

        def method(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            states = [one.get_state() for found in self._generators.values() for one in found]
            kept.append((result, RandomState.now(self._device), states))
            return result

        return method

    def replayed(self, pipeline: Any) -> dict[str, Any]:
        """Has a copy of the pipeline give the same; returns generators of its own."""
        own = {
            name: [_generator(one.device, state) for one, state in zip(found, states, strict=True)]
            for (name, found), states in zip(
                self._generators.items(), self._at_start.values(), strict=True
            )
        }
        flat = [one for found in own.values() for one in found]
        for name, kept in self._kept.items():
            vars(pipeline)[name] = _replaying(kept, flat)
        return {name: found[0] if name in self._single else found for name, found in own.items()}


def _replaying(
    kept: Sequence[tuple[Any, RandomState, list[torch.Tensor]]],
    generators: Sequence[torch.Generator],
) -> Callable[..., Any]:
    left = iter(list(kept))

    def method(*_args: Any, **_kwargs: Any) -> Any:
        result, random, states = next(left)
        random.restore()
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)
        return result

    return method


def _generators(value: Any) -> list[torch.Generator]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, torch.Generator)]


def _generator(device: torch.device, state: torch.Tensor) -> torch.Generator:
    made = torch.Generator(device)
    made.set_state(state)
    return made
