"""PipeFusion on one device for any family: a whole forward for each patch, of which little counts.

A patch's forward computes all tokens, attends to what is kept of other patches' keys, renews its
own, and only its tokens of the output are taken: tokens meet in self-attention alone. Independent
of the runtime's patches, stages, splits and stale keys.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.splits import patch_bounds
from ditplan.profiles.workload import Workload
from ditplan.runtime.takeover import replace_forward, submodule
from ditplan.testing.on_ranks import latents_of_call

Kept = dict[int, tuple[torch.Tensor, torch.Tensor]]


class KeptKeys(TorchFunctionMode):
    """Answers self-attentions with kept keys; `fresh` says by their number which are renewed."""

    def __init__(self, kept: Kept, fresh: dict[int, list[int]]) -> None:
        super().__init__()
        self._kept, self._fresh, self._count = kept, fresh, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function of torch."""
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (
            args[number] if number < len(args) else kwargs.pop(name)
            for number, name in enumerate(("query", "key", "value"))
        )
        fresh = self._fresh.get(key.shape[2])
        if fresh is not None:
            number, self._count = self._count, self._count + 1
            if len(fresh) == key.shape[2]:
                self._kept[number] = (key.clone(), value.clone())
            for whole, new in zip(self._kept[number], (key, value), strict=True):
                whole[:, :, fresh] = new[:, :, fresh]
            key, value = self._kept[number]
        return func(query, key, value, *args[3:], **kwargs)


def by_full_forwards(
    pipeline: Any, spec: ModelSpec, work: Workload, part: PipeFusion, **more: Any
) -> torch.Tensor:
    """What `rank_tasks.latents_of_call` should give with the plan's patches and warm-up steps."""
    family, model = family_of(spec.transformer_class), pipeline.transformer
    calls = 2 if family.guidance == "calls" else 1
    image = spec.image_tokens(work)
    registers = getattr(model, "register_tokens", None)
    text = work.text_tokens if family.splits_text else 0
    text += 0 if registers is None else registers.shape[1]
    (gather,) = family.gathers
    beside = text if "text" in gather.segments else 0
    text_first = family.self_attentions[0].segments[0] == "text"
    kept: list[Kept] = [{} for _ in range(calls)]
    made, pieces, own = 0, dict[int, torch.Tensor](), model.forward
    current = -1

    def note(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if current < 0:
            return output
        start, end = patch_bounds(image, text, part.patches)[current]
        pieces[current] = output[:, beside + start : beside + end]
        if current < part.patches - 1:
            return output
        found = [pieces[patch] for patch in range(part.patches)]
        return torch.cat([output[:, :beside], *found], 1)

    def fresh_of(start: int, end: int) -> dict[int, list[int]]:
        """Of attentions over image and text, and of those over the image alone."""
        of_image = list(range(start, end))
        if text_first:
            joint = [*range(text if start == 0 else 0), *(text + token for token in of_image)]
        else:
            joint = [*of_image, *range(image, image + text if start == 0 else image)]
        return {image + text: joint, image: of_image}

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal made, current
        step, call = divmod(made, calls)
        made += 1
        if step < part.warmup_steps:
            with KeptKeys(kept[call], fresh_of(0, image)):
                return own(*args, **kwargs)
        for patch, bounds in enumerate(patch_bounds(image, text, part.patches)):
            current = patch
            with KeptKeys(kept[call], fresh_of(*bounds)):
                output = own(*args, **kwargs)
        current = -1
        return output

    with ExitStack() as undo:
        undo.callback(submodule(model, gather.name).register_forward_hook(note).remove)
        replace_forward(model, forward, undo)
        return latents_of_call(pipeline, spec, work, **more)
