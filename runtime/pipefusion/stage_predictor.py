"""PipeFusion: stages of blocks on different ranks, through which patches flow across steps.

Source: PipeFusion (arXiv 2405.14430). `patched_call.py` runs the pipeline's call for each patch,
this file predicts for it: in warm-up steps the whole sequence, then patch after patch, in the same
order on every stage.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils import _pytree as pytree

from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily
from ditplan.runtime.batch.batch_split import BatchSplit
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.pipefusion.folded_queue import FoldedQueue
from ditplan.runtime.pipefusion.patched_call import REMEDY
from ditplan.runtime.pipefusion.route import StageRoute
from ditplan.runtime.pipefusion.stage import Skips
from ditplan.runtime.pipefusion.token_locator import Located, TokenLocator
from ditplan.runtime.pipefusion.visit_runner import Graphed, VisitRunner
from ditplan.runtime.sequence.layout import Layout, Visiting
from ditplan.runtime.sequence.stale_kv import StaleKVCache


@dataclass(frozen=True)
class _Underway:
    """A call that has come by this stage and will come by again."""

    visiting: Visiting
    inputs: dict[str, Any]
    skips: Skips


class StagePredictor:
    """Predicts for a `PatchedCall`, with this rank's stage of the transformer and all others."""

    def __init__(
        self,
        model: nn.Module,
        family: ModelFamily,
        route: StageRoute,
        batch_group: AxisGroup | None,
        layout: Layout,
        cache: StaleKVCache,
        part: PipeFusion,
    ) -> None:
        """`layout` has patches, and `cache` is the one that the model's attentions renew."""
        self.patches, self.warmup_steps = part.patches, part.warmup_steps
        self._family, self._route, self._cache = family, route, cache
        self._batch = BatchSplit(family, batch_group)
        self._predicting = route.predicting_stage(part)
        self._locator = TokenLocator(model, family, layout, part.patches)
        self._runner = VisitRunner(model, family, layout, route.visits(part))
        self._queue = FoldedQueue[_Underway](route.stage, route.stages.size, part.patches)
        self._located: Located | None = None
        self._shapes: dict[int, list[torch.Size]] = {}
        self._whole: dict[int, torch.Tensor] = {}
        self._awaited: dict[int, tuple[Callable[[], torch.Tensor], int | None]] = {}
        self._finished: dict[int, torch.Tensor] = {}

    @property
    def owns_latents(self) -> bool:
        """Whether this rank is of the first stage, which has the patches' latents."""
        return self._route.is_first

    def apply(self, undo: ExitStack, graphed: Graphed | None, *, stays: bool = False) -> None:
        """Makes the model a stage; closing `undo` takes that away again.

        `graphed` has what a stage computes captured in CUDA graphs, transport between stages apart.
        With `stays` this is applied again later, with all that graphs read: keys, values and what
        is received.
        """
        self._locator.apply(undo)
        self._runner.apply(undo, graphed)
        # at once, though graphs and this refer to each other: the next plan wants their memory
        undo.callback(self._end_call if stays else self.forget)

    def numbers(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Which patch each number of a prediction belongs to: a prediction's shape, batch 1.

        Raises:
            InputError: there are fewer tokens than patches.
        """
        self._end_call()
        located = self._locator.locate(inputs, self._runner.pass_through)
        if self._located is None or self._located.lengths != located.lengths:
            # captured graphs go on where keys and values lay
            self.forget()
        self._located = located
        return located.numbers

    def whole(self, inputs: dict[str, Any], call: int) -> torch.Tensor:
        """The prediction for all tokens, on every rank."""
        shared, samples = self._batch.share(inputs)
        self._forget_other_shapes(shared, call)
        output = self._begin(Visiting(None, call), shared)
        for underway in self._queue.drain():
            output = self._finish(underway)
        if output is None:
            output = self._places.empty(self._batch_of(shared))
        stages = self._route.stages
        output = output.contiguous()
        dist.broadcast(output, stages.ranks[self._predicting], stages.group)
        self._whole[call] = self._batch.gather(output, samples)
        return self._whole[call].clone()

    def send(self, patch: int, inputs: dict[str, Any], call: int) -> None:
        """Has a patch's prediction begun: this stage's blocks, and what goes to the next.

        Raises:
            InputError: no warm-up step made this call.
        """
        if call not in self._whole:
            self.abandon()
            raise InputError(
                f"the transformer's call number {call + 1} in a step was not made in a warm-up "
                "step, so there are no keys to start from; use a plan with more warmup steps"
            )
        shared, samples = self._batch.share(inputs)
        visiting = Visiting(patch, call)
        if not self._runner.comes_back:
            self._send_home(visiting, shared, samples)
            return
        self._send_folded(visiting, shared)
        if self._route.is_first:
            self._awaited[patch] = (partial(self._computed, patch), samples)

    def receive(self, patch: int, call: int) -> torch.Tensor:
        """The prediction with the patch's values, waited for; older ones where latents aren't."""
        known = self._whole[call]
        if patch in self._awaited:
            arrive, samples = self._awaited.pop(patch)
            self._places.put(known, patch, self._batch.gather(arrive(), samples))
        return known.clone()

    def abandon(self) -> None:
        """Ends what is on its way, of a call that won't go on; all ranks do."""
        for underway in self._queue.drain():
            self._finish(underway)

    def agree(self, latents: torch.Tensor) -> torch.Tensor:
        """The final latents of the first stage, on every rank."""
        self.abandon()
        latents = latents.contiguous()
        dist.broadcast(latents, self._route.stages.ranks[0], self._route.stages.group)
        self._route.drain()
        return latents

    def _send_home(self, visiting: Visiting, inputs: dict[str, Any], samples: int | None) -> None:
        """A patch's only visit; with the linear schedule the last stage sends the first one what
        it predicts.
        """
        patch = visiting.patch
        assert patch is not None
        name = ("prediction", patch, visiting.call)
        output = self._begin(visiting, inputs)
        home = self._route.links.get((self._predicting, 0))
        if output is not None and home:
            home.send(name, self._places.taken(output, patch))
        if self._route.is_first and home:
            # not before the patch is on its way: what waits for the device (a kernel that is
            # loaded, an allocation) would wait for an answer to what was never sent
            shape = (self._batch_of(inputs), len(self._places.own[patch]))
            self._awaited[patch] = (home.begin(name, shape, self._places.dtype).wait, samples)

    def _send_folded(self, visiting: Visiting, inputs: dict[str, Any]) -> None:
        """A patch's first visit, and the second one of an earlier patch whose turn it then is.

        The first time a patch goes there and back before the next one comes: then the order is
        right even where a link or the device has the host wait for the other end.
        """
        is_new = not self._runner.is_known(1, visiting, self._batch_of(inputs))
        if is_new:
            self.abandon()
        self._begin(visiting, inputs)
        for underway in self._queue.drain() if is_new else self._queue.due():
            self._finish(underway)

    def _begin(self, visiting: Visiting, inputs: dict[str, Any]) -> torch.Tensor | None:
        """The first visit of a patch or all of the sequence; the prediction if it ends there."""
        output, skips = self._runner.run(0, visiting, inputs, {})
        if self._runner.comes_back:
            self._queue.add(_Underway(visiting, inputs, skips))
        return output

    def _finish(self, underway: _Underway) -> torch.Tensor | None:
        """The second visit of what came by first; the prediction if it ends there."""
        visiting = underway.visiting
        output, _ = self._runner.run(1, visiting, underway.inputs, underway.skips)
        if output is not None and visiting.patch is not None:
            self._finished[visiting.patch] = self._places.taken(output, visiting.patch)
        return output

    def _computed(self, patch: int) -> torch.Tensor:
        """A patch's own values of its prediction, which is made when it comes by again."""
        coming = self._queue.drain()
        while patch not in self._finished:
            self._finish(next(coming))
        return self._finished.pop(patch)

    def _end_call(self) -> None:
        self._whole.clear()
        self._queue.clear()
        self._awaited.clear()
        self._finished.clear()

    def forget(self) -> None:
        """Gives back graphs and all that they read; all ranks of the line do, between calls."""
        self._cache.clear()
        self._route.clear()
        self._shapes.clear()
        self._runner.clear()

    def _forget_other_shapes(self, inputs: dict[str, Any], call: int) -> None:
        """Forgets what was kept of a call whose text had another length."""
        shapes = [
            leaf.shape for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)
        ]
        if self._shapes.setdefault(call, shapes) != shapes:
            self._shapes[call] = shapes
            self._cache.forget(call)
            self._route.clear()
            self._runner.forget(call)

    def _batch_of(self, inputs: dict[str, Any]) -> int:
        """This rank's samples of a call."""
        return len(inputs[self._family.batched_inputs[0]])

    @property
    def _places(self) -> Located:
        located = self._located
        assert located is not None
        return located


def require_stages(part: PipeFusion, blocks: int, family: ModelFamily) -> None:
    """Refuses stages that don't make up the model, or a schedule that it can't have.

    Raises:
        InputError: says what is there.
    """
    if sum(part.blocks_per_stage) != blocks:
        raise InputError(
            f"the plan's stages have {' + '.join(map(str, part.blocks_per_stage))} blocks, the "
            f"model has {blocks}; tune this model, or {REMEDY}"
        )
    if family.long_skips and part.schedule != "folded":
        raise InputError(
            f"a {family.transformer_class} has long skips, which would lead from stage to stage "
            f"in a {part.schedule} schedule; set the plan's schedule to folded, or {REMEDY}"
        )
