"""Whether transformers have the same weights on all ranks: once a plan, and when they change.

A change is seen by where parameters lie, how often they were written to, which modules there are,
by the settings of LoRA layers, which are no tensors, and by a sample of each parameter's numbers:
what is written by way of `.data`, as merging LoRA does, counts nowhere.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from ditplan.runtime.admission.digests import Leaf, digests_of
from ditplan.runtime.admission.readback import Readback
from ditplan.runtime.weights.pieces import PieceParameter

LORA_SETTINGS = ("scaling", "_active_adapter", "_disable_adapters", "merged_adapters")
"""Attributes of peft's layers that decide what they compute."""

ELSEWHERE = b""

SAMPLE = 8
"""Numbers of each parameter that are looked at, evenly spread."""


class WeightsWatch:
    """The weights of some transformers as they were when last compared."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        is_shared_out: Callable[[torch.Tensor], bool],
        device: torch.device,
    ) -> None:
        """`is_shared_out` says which tensors lie where blocks in pieces are put together, `device`
        is the plan's.
        """
        self._models, self._is_shared_out, self._device = models, is_shared_out, device
        self._seen: Hashable = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._marks: dict[torch.device, torch.cuda.Event] = {}
        self.look()

    def mark(self) -> None:
        """Notes what devices have to do by now: `has_changed` waits for that, not for what comes
        after.
        """
        self._marks = {
            device: torch.cuda.current_stream(device).record_event() for device in self._streams
        }

    def has_changed(self) -> bool:
        """Whether they have since they were last looked at."""
        before = self._seen
        if self._state() != before:
            self.look()
        return bool(self._seen != before)

    def digests(self) -> dict[str, bytes]:
        """A digest of each parameter and buffer by name, `ELSEWHERE` of those that this rank
        doesn't have whole.
        """
        self.look()
        leaves: list[tuple[str, Leaf]] = []
        elsewhere: dict[str, bytes] = {}
        for number, model in enumerate(self._models):
            prefix = f"weights of transformer{f'_{number + 1}' if number else ''}."
            for name, tensor in chain(model.named_parameters(), model.named_buffers()):
                for part, inner in _plain(prefix + name, tensor):
                    if inner.is_meta or self._is_in_pieces(inner):
                        elsewhere[part] = ELSEWHERE
                    else:
                        leaves += [(part, f"{inner.dtype} {tuple(inner.shape)}"), (part, inner)]
            leaves += [
                (prefix + name, _settings_of(module))
                for name, module in model.named_modules()
                if "scaling" in vars(module)
            ]
        return digests_of(leaves, self._device) | elsewhere

    def look(self) -> None:
        """Takes the weights as they are."""
        modules = [module for model in self._models for module in model.modules()]
        self._holders = [
            held
            for module in modules
            for held in (module._modules, module._parameters, module._buffers)
            if held
        ]
        self._tensors = [
            inner
            for module in modules
            for tensor in chain(module._parameters.values(), module._buffers.values())
            if tensor is not None
            for _, inner in _plain("", tensor)
            if not self._is_in_pieces(inner)
        ]
        self._tracked = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._tuned = [module for module in modules if "scaling" in vars(module)]
        self._samples = _samples_of(self._tensors)
        devices = {views[0].device for views in self._samples if views[0].is_cuda}
        for device in devices - self._streams.keys():
            self._streams[device] = torch.cuda.Stream(device)
        self._seen = self._state()

    def _is_in_pieces(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, PieceParameter) or self._is_shared_out(tensor)

    def _identities(self) -> tuple[int, ...]:
        return tuple(map(id, chain.from_iterable(held.values() for held in self._holders)))

    def _state(self) -> Hashable:
        if not self._marks:
            self.mark()
        with ExitStack() as beside:
            for device, mark in self._marks.items():
                stream = self._streams[device]
                stream.wait_event(mark)
                beside.enter_context(torch.cuda.stream(stream))
            coming = Readback([torch.cat(list(views)) for views in self._samples])
        self._marks = {}
        return (
            self._identities(),
            tuple(map(torch.Tensor.data_ptr, self._tensors)),
            tuple(map(_version, self._tracked)),
            tuple(map(_settings_of, self._tuned)),
            *(one.view(torch.uint8).numpy().tobytes() for one in coming.tensors()),
        )


def _samples_of(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views of some numbers of each tensor, those together that can be read at once."""
    found: dict[Hashable, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.is_contiguous() and tensor.numel() and not tensor.is_meta:
            step = -(-tensor.numel() // SAMPLE)
            view = tensor.detach().view(-1)[step // 2 :: step]
            found.setdefault((tensor.dtype, tensor.device), []).append(view)
    return list(found.values())


def with_known(found: Sequence[dict[str, bytes]]) -> list[dict[str, bytes]]:
    """Digests of all ranks, with another rank's for what a rank doesn't have itself."""
    known = {name: one for of_rank in found for name, one in of_rank.items() if one != ELSEWHERE}
    return [
        {name: known.get(name, one) if one == ELSEWHERE else one for name, one in of_rank.items()}
        for of_rank in found
    ]


_version = attrgetter("_version")


def _settings_of(module: nn.Module) -> str:
    found = vars(module)
    return str([(name, found[name]) for name in LORA_SETTINGS if name in found])


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The ordinary tensors that one is made of: quantized weights are made of several."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    names, _ = flatten()
    for one in names:
        yield from _plain(f"{name}.{one}", getattr(tensor, one))
