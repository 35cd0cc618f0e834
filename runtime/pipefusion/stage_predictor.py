"""PipeFusion: stages of blocks on different ranks, through which patches flow across steps.

Source: PipeFusion (arXiv 2405.14430). `patches.py` runs the pipeline's call for each patch, this
file runs the transformer for it: warm-up steps on the whole sequence, then patch after patch, in
the same order on every stage.

Folded, a stage takes a patch on its way there and an earlier one on its way back in turns. With S
stages, stage k lets S - k patches be underway behind it (no more than there are), which is how many
fit in there while it has something to do. As that number falls along the stages, whatever a stage
waits for comes earlier in the order of the stage that sends it, and no link ever has more than two
visits' tensors on their way.
"""

from collections import deque
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils import _pytree as pytree

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import Gather, ModelFamily
from ditplan.profiles.plan import PipeFusion
from ditplan.profiles.splits import patch_bounds
from ditplan.runtime.batch.batch_split import BatchSplit
from ditplan.runtime.compilation.cuda_graphs import GraphedForward
from ditplan.runtime.groups import AxisGroup
from ditplan.runtime.pipefusion.patched_call import REMEDY
from ditplan.runtime.pipefusion.route import StageRoute, Visit
from ditplan.runtime.pipefusion.stage import Carried, Skips, Stage
from ditplan.runtime.sequence.layout import Layout, Patches
from ditplan.runtime.sequence.stale_kv import StaleKVCache
from ditplan.runtime.takeover import sample_of, signature_of, submodule
from ditplan.runtime.transport.collective_link import Arriving

Graphed = Callable[[Callable[..., Any]], GraphedForward]


@dataclass(frozen=True)
class _Underway:
    """A call for a patch that has come by this stage and will come by again."""

    inputs: dict[str, Any]
    patch: int | None
    call: int
    skips: Skips


@dataclass(frozen=True)
class _Computed:
    """A prediction that this rank makes when it comes by again."""

    predictor: "StagePredictor"
    patch: int

    def wait(self) -> torch.Tensor:
        """As `Arriving`."""
        return self.predictor.finished(self.patch)


class StagePredictor:
    """Runs this rank's stage of the transformer for a `PatchedCall`."""

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
        self._model, self._family, self._route = model, family, route
        self._batch, self._layout, self._cache = BatchSplit(family, batch_group), layout, cache
        self._stage = Stage(family, cache)
        self._there, *self._back = route.visits(part)
        self._predicting = route.predicting_stage(part)
        # with one more, patches would wait for the stages after this one to have done with them
        self._most_underway = min(route.stages.size - route.stage, part.patches)
        self._underway: deque[_Underway] = deque()
        self._finished: dict[int, torch.Tensor] = {}
        self._forward: Callable[..., Any] = model.forward
        self._graphs: GraphedForward | None = None
        self._entered: dict[tuple[int, int | None, int, int], list[torch.Tensor]] = {}
        self._locating = False
        self._located: tuple[Hashable, torch.Tensor] | None = None
        self._lengths: tuple[Any, ...] = ()
        self._shapes: dict[int, list[torch.Size]] = {}
        self._whole: dict[int, torch.Tensor] = {}
        self._own: dict[int, torch.Tensor] = {}
        self._awaited: dict[int, tuple[Arriving, int | None]] = {}

    @property
    def owns_latents(self) -> bool:
        """Whether this rank is of the first stage, which has the patches' latents."""
        return self._route.is_first

    def apply(self, undo: ExitStack, graphed: Graphed | None) -> None:
        """Makes the model a stage; closing `undo` takes that away again.

        `graphed` has what a stage computes captured in CUDA graphs, transport between stages apart.
        """
        for gather in self._family.gathers:
            module = submodule(self._model, gather.name)
            whole = partial(self._in_whole, gather)
            undo.callback(module.register_forward_hook(whole).remove)
        name = self._family.projection or self._family.gathers[0].name
        projection = submodule(self._model, name)
        undo.callback(projection.register_forward_hook(self._numbered).remove)
        self._stage.apply(self._model, undo)
        self._forward = self._model.forward
        if graphed is not None:
            self._graphs = graphed(self._compute)
        # at once, though graphs and this refer to each other: the next plan wants their memory
        undo.callback(self._forget_captured)

    def numbers(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Which patch each number of a prediction belongs to: a prediction's shape, batch 1.

        The model's own way from tokens to latents is asked, with the numbers in place of tokens;
        once for calls that are alike, as the device is waited for.

        Raises:
            InputError: there are fewer tokens than patches.
        """
        self._whole.clear()
        self._underway.clear()
        self._awaited.clear()
        self._finished.clear()
        self._patches.current = None
        signature = signature_of(inputs)
        if self._located is None or self._located[0] != signature:
            self._located = signature, self._locate(inputs)
        return self._located[1]

    def _forget_captured(self) -> None:
        self._cache.clear()
        self._route.clear()
        self._entered.clear()
        self._shapes.clear()
        if self._graphs is not None:
            self._graphs.clear()

    def _locate(self, inputs: dict[str, Any]) -> torch.Tensor:
        self._locating = True
        try:
            output = sample_of(self._stage.pass_through(self._forward, inputs))
        finally:
            self._locating = False
        numbers: torch.Tensor = output[:1].contiguous()
        self._own = {
            patch: (numbers.flatten() == patch).nonzero().flatten() for patch in range(self.patches)
        }
        self._shape, self._dtype, self._device = numbers.shape[1:], output.dtype, output.device
        lengths = (tuple(self._layout.lengths.items()), output.shape)
        if self._lengths != lengths:
            # captured graphs go on where keys and values lay
            self._forget_captured()
            self._lengths = lengths
        return numbers

    def whole(self, inputs: dict[str, Any], call: int) -> torch.Tensor:
        """The prediction for all tokens, on every rank."""
        shared, samples = self._batch.share(inputs)
        self._make_room(shared, call)
        output = self._begin(shared, None, call)
        while self._underway:
            output = self._finish()
        if output is None:
            batch = shared[self._family.batched_inputs[0]].shape[0]
            output = torch.empty(batch, *self._shape, dtype=self._dtype, device=self._device)
        stages = self._route.stages
        output = output.contiguous()
        dist.broadcast(output, stages.ranks[self._predicting], stages.group)
        self._whole[call] = self._batch.gather(output, samples)
        return self._whole[call].clone()

    def _make_room(self, inputs: dict[str, Any], call: int) -> None:
        """Forgets what was kept of a call whose text had another length."""
        shapes = [
            leaf.shape for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)
        ]
        if self._shapes.setdefault(call, shapes) != shapes:
            self._shapes[call] = shapes
            self._cache.forget(call)
            self._route.clear()
            self._entered = {key: kept for key, kept in self._entered.items() if key[2] != call}
            if self._graphs is not None:
                self._graphs.clear()

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
        batch = shared[self._family.batched_inputs[0]].shape[0]
        if self._back:
            self._send_on(shared, patch, call, batch)
            if self._route.is_first:
                self._awaited[patch] = (_Computed(self, patch), samples)
            return
        own, name = self._own[patch], ("prediction", patch, call)
        output = self._begin(shared, patch, call)
        home = self._route.links.get((self._predicting, 0))
        if output is not None and home:
            home.send(name, output.flatten(1).index_select(1, own))
        if self._route.is_first and home:
            # not before the patch is on its way: what waits for the device (a kernel that is
            # loaded, an allocation) would wait for an answer to what was never sent
            arriving = home.begin(name, (batch, len(own)), self._dtype)
            self._awaited[patch] = (arriving, samples)

    def _send_on(self, inputs: dict[str, Any], patch: int, call: int, batch: int) -> None:
        """A patch's first visit, and the second one of an earlier patch whose turn it then is.

        The first time a patch goes there and back before the next one comes: then the order is
        right even where a link or the device has the host wait for the other end.
        """
        is_new = (self._back[0].number, patch, call, batch) not in self._entered
        if is_new:
            self._finish_all()
        self._begin(inputs, patch, call)
        if is_new:
            self._finish_all()
        elif len(self._underway) >= self._most_underway:
            self._finish()

    def finished(self, patch: int) -> torch.Tensor:
        """This patch's own values of its prediction, on the stage where it ends."""
        while patch not in self._finished:
            self._finish()
        return self._finished.pop(patch)

    def abandon(self) -> None:
        """Ends what is on its way, of a call that won't go on; all ranks do."""
        self._finish_all()

    def receive(self, patch: int, call: int) -> torch.Tensor:
        """The prediction with the patch's values, waited for; older ones where latents aren't."""
        known = self._whole[call]
        if patch in self._awaited:
            arriving, samples = self._awaited.pop(patch)
            fresh = self._batch.gather(arriving.wait(), samples)
            known.view(known.shape[0], -1).index_copy_(1, self._own[patch], fresh)
        return known.clone()

    def agree(self, latents: torch.Tensor) -> torch.Tensor:
        """The final latents of the first stage, on every rank."""
        self._finish_all()
        latents = latents.contiguous()
        dist.broadcast(latents, self._route.stages.ranks[0], self._route.stages.group)
        self._route.drain()
        return latents

    @property
    def _patches(self) -> Patches:
        patches = self._layout.patches
        assert patches is not None
        return patches

    def _begin(self, inputs: dict[str, Any], patch: int | None, call: int) -> torch.Tensor | None:
        """The first visit of a patch or all of the sequence; the prediction if it ends there."""
        output, skips = self._visit(self._there, inputs, patch, call, {})
        if self._back:
            self._underway.append(_Underway(inputs, patch, call, skips))
        return output

    def _finish(self) -> torch.Tensor | None:
        """The second visit of what came by first; the prediction if it ends there."""
        of = self._underway.popleft()
        output, _ = self._visit(self._back[0], of.inputs, of.patch, of.call, of.skips)
        if output is not None and of.patch is not None:
            chosen = output.flatten(1).index_select(1, self._own[of.patch])
            self._finished[of.patch] = chosen
        return output

    def _finish_all(self) -> None:
        while self._underway:
            self._finish()

    def _visit(
        self, visit: Visit, inputs: dict[str, Any], patch: int | None, call: int, skips: Skips
    ) -> tuple[torch.Tensor | None, Skips]:
        received = self._receive(visit, inputs, patch, call) if visit.source else None
        compute = self._graphs or self._compute
        output, skips = compute(inputs, patch, call, received, visit.number, skips)
        if visit.target is None:
            return output[0], skips
        for number, tensor in enumerate(output):
            if tensor.numel():
                visit.target.send((number, patch, call), tensor)
        return None, skips

    def _compute(
        self,
        inputs: dict[str, Any],
        patch: int | None,
        call: int,
        received: Carried | None,
        number: int,
        skips: Skips,
    ) -> tuple[Carried, Skips]:
        """What this rank computes for a patch or all of the sequence, between transports."""
        self._patches.current, self._cache.call = patch, call
        visit = (self._there, *self._back)[number]
        output, made = self._stage.run(self._forward, inputs, visit.blocks, received, skips)
        # the one visit of the last stage, and the second one of others, have no use for them
        kept = made if self._back and number == 0 else {}
        return (output if visit.target else (sample_of(output),)), kept

    def _receive(
        self, visit: Visit, inputs: dict[str, Any], patch: int | None, call: int
    ) -> Carried:
        """What the stage before sends for this, of shapes that are known without being told."""
        link, device = visit.source, self._device
        assert link is not None
        key = (visit.number, patch, call, inputs[self._family.batched_inputs[0]].shape[0])
        if key not in self._entered:
            self._patches.current = patch
            alike = self._stage.entered(self._forward, inputs, visit.blocks)
            self._entered[key] = [torch.empty_like(one, device="meta") for one in alike]
        arriving = [
            link.begin((number, patch, call), tuple(one.shape), one.dtype) if one.numel() else None
            for number, one in enumerate(self._entered[key])
        ]
        return tuple(
            torch.empty_like(one, device=device) if there is None else there.wait()
            for one, there in zip(self._entered[key], arriving, strict=True)
        )

    def _numbered(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        """Each image token's patch in place of the prediction (B, tokens, C), while locating."""
        if not self._locating:
            return output
        patches, lengths, ranks = self._patches, self._layout.lengths, self._layout.groups.size
        try:
            patches.bounds = patch_bounds(
                lengths[patches.segment], lengths.get("text", 0), self.patches
            )
        except ValueError as error:
            raise InputError(f"{error}; use a plan with fewer patches") from error
        sizes = [end - start for start, end in patches.bounds]
        if min(sizes) < ranks:
            raise InputError(
                f"a patch of {min(sizes)} tokens can't be split over {ranks} ranks; use a plan "
                f"with ring x ulysses of at most {min(sizes)} or with fewer patches than "
                f"{self.patches}"
            )
        numbers = torch.arange(self.patches, device=output.device, dtype=output.dtype)
        numbers = numbers.repeat_interleave(torch.tensor(sizes, device=output.device))
        return numbers[None, :, None].expand_as(output)

    def _in_whole(
        self, gather: Gather, _module: nn.Module, _args: Any, output: torch.Tensor
    ) -> torch.Tensor:
        """A patch's tokens at their place in a sequence that has nothing else."""
        patch, layout = self._patches.current, self._layout
        if patch is None:
            return output
        shape = list(output.shape)
        shape[gather.dim] = sum(layout.lengths[segment] for segment in gather.segments)
        sequence = output.new_zeros(shape)
        before = taken = 0
        for segment in gather.segments:
            start, end = layout.range_of(segment, patch)
            own = output.narrow(gather.dim, taken, end - start)
            sequence.narrow(gather.dim, before + start, end - start).copy_(own)
            before, taken = before + layout.lengths[segment], taken + end - start
        return sequence


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
