"""A patch, or the whole sequence, coming by a stage: received, computed, sent on."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditplan.profiles.family import ModelFamily
from ditplan.runtime.compilation.cuda_graphs import GraphedForward
from ditplan.runtime.pipefusion.route import Visit
from ditplan.runtime.pipefusion.stage import Carried, Skips, Stage
from ditplan.runtime.sequence.layout import Layout, Visiting
from ditplan.runtime.takeover import inner_forward, sample_of

Graphed = Callable[[Callable[..., Any]], GraphedForward]


class VisitRunner:
    """Runs the visits of this rank's stage, on what the stages before it have sent.

    What a stage computes can be captured in CUDA graphs, transport between stages apart.
    """

    def __init__(
        self, model: nn.Module, family: ModelFamily, layout: Layout, visits: tuple[Visit, ...]
    ) -> None:
        """`visits` are those of each patch, in their order."""
        self._model, self._family, self._visits = model, family, visits
        self._stage = Stage(family, layout)
        self._forward: Callable[..., Any] = inner_forward(model)
        self._graphs: GraphedForward | None = None
        self._entered: dict[tuple[int, Visiting, int], list[torch.Tensor]] = {}

    @property
    def comes_back(self) -> bool:
        """Whether patches come by a second time."""
        return len(self._visits) > 1

    def apply(self, undo: ExitStack, graphed: Graphed | None) -> None:
        """Makes the model a stage; closing `undo` takes that away again."""
        self._stage.apply(self._model, undo)
        self._forward = inner_forward(self._model)
        if graphed is not None:
            self._graphs = graphed(self._compute)

    def pass_through(self, inputs: dict[str, Any]) -> Any:
        """The model's forward of the whole sequence, in which no block computes anything."""
        return self._stage.pass_through(self._forward, inputs)

    def is_known(self, number: int, visiting: Visiting, batch: int) -> bool:
        """Whether such a visit, one that receives something, has been made before."""
        return (number, visiting, batch) in self._entered

    def run(
        self, number: int, visiting: Visiting, inputs: dict[str, Any], skips: Skips
    ) -> tuple[torch.Tensor | None, Skips]:
        """Makes a visit; gives the prediction if it ends there, and what the patch's next visit
        takes as `skips`.
        """
        visit = self._visits[number]
        received = self._receive(visit, visiting, inputs) if visit.source else None
        compute = self._graphs or self._compute
        output, made = compute(inputs, visiting, number, received, skips)
        if visit.target is None:
            return output[0], made
        for place, tensor in enumerate(output):
            if tensor.numel():
                visit.target.send((place, visiting.patch, visiting.call), tensor)
        return None, made

    def forget(self, call: int) -> None:
        """Forgets the shapes of a call, and all graphs."""
        self._entered = {key: kept for key, kept in self._entered.items() if key[1].call != call}
        self._forget_graphs()

    def clear(self) -> None:
        """Forgets all shapes and graphs."""
        self._entered.clear()
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _compute(
        self,
        inputs: dict[str, Any],
        visiting: Visiting,
        number: int,
        received: Carried | None,
        skips: Skips,
    ) -> tuple[Carried, Skips]:
        """What this rank computes for a patch or all of the sequence, between transports."""
        visit = self._visits[number]
        output, made = self._stage.run(
            self._forward, inputs, visiting, visit.blocks, received, skips
        )
        # the one visit of the last stage, and the second one of others, have no use for them
        kept = made if self.comes_back and number == 0 else {}
        return (output if visit.target else (sample_of(output),)), kept

    def _receive(self, visit: Visit, visiting: Visiting, inputs: dict[str, Any]) -> Carried:
        """What the stage before sends for this, of shapes that are known without being told."""
        link, first = visit.source, inputs[self._family.batched_inputs[0]]
        assert link is not None
        key = (visit.number, visiting, first.shape[0])
        if key not in self._entered:
            alike = self._stage.entered(self._forward, inputs, visiting, visit.blocks)
            self._entered[key] = [torch.empty_like(one, device="meta") for one in alike]
        arriving = [
            link.begin((place, visiting.patch, visiting.call), tuple(one.shape), one.dtype)
            if one.numel()
            else None
            for place, one in enumerate(self._entered[key])
        ]
        return tuple(
            torch.empty_like(one, device=first.device) if there is None else there.wait()
            for one, there in zip(self._entered[key], arriving, strict=True)
        )
