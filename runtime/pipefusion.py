"""PipeFusion: stages of blocks on different ranks, through which patches flow across steps.

Source: PipeFusion (arXiv 2405.14430). `patches.py` runs the pipeline's call for each patch, this
file runs the transformer for it: warm-up steps on the whole sequence, then patch after patch, in
the same order on every stage.
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

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import Gather, ModelFamily
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PipeFusion
from ditplan.profiles.splits import patch_bounds
from ditplan.runtime.cfg import BatchSplit
from ditplan.runtime.graphs import GraphedForward
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.layout import Layout, Patches
from ditplan.runtime.links import Arriving, CollectiveLink, Link
from ditplan.runtime.modules import sample_of
from ditplan.runtime.patches import REMEDY
from ditplan.runtime.peer_links import PeerLink
from ditplan.runtime.peer_memory import can_write_to_peers
from ditplan.runtime.sequence import submodule
from ditplan.runtime.stages import Carried, Stage
from ditplan.runtime.stale import KeyCache

Graphed = Callable[[Callable[..., Any]], GraphedForward]


@dataclass(frozen=True)
class Pipe:
    """This rank's line of stages: all ranks of it, and the links to and from it.

    `onward` leads to the next stage, from the last one to the first.
    """

    stages: AxisGroup
    onward: Link
    incoming: Link

    @property
    def stage(self) -> int:
        """Which stage this rank is."""
        return self.stages.index

    @property
    def is_first(self) -> bool:
        """Whether this rank owns latents."""
        return self.stages.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank has predictions."""
        return self.stages.index == self.stages.size - 1

    def clear(self) -> None:
        """Gives the memory of what is sent back; all ranks of the line call it, between calls."""
        self.onward.clear()
        self.incoming.clear()


def make_pipe(context: RankContext, mesh: Mesh, placement: tuple[int, ...]) -> Pipe | None:
    """This rank's pipe; None outside of the mesh. Every rank of the world calls it.

    Each link has a process group of its own: NCCL carries out a group's transfers one after the
    other, and those to and from a stage don't wait for each other.
    """
    stages = context.groups.axis_group(mesh, placement, ("pipefusion",))
    links: dict[tuple[int, int], Link] = {}
    for line in mesh.groups(placement, ("pipefusion",)):
        for source, target in zip(line, (*line[1:], line[0]), strict=True):
            group = context.groups.group((source, target), f"to {target}")
            if group is not None:
                links[source, target] = _open_link(context, group, source, target)
    if stages is None:
        return None
    me, ranks = stages.index, stages.ranks
    after, before = ranks[(me + 1) % len(ranks)], ranks[me - 1]
    return Pipe(stages, links[ranks[me], after], links[before, ranks[me]])


def _open_link(context: RankContext, group: dist.ProcessGroup, source: int, target: int) -> Link:
    """A link that is connected; both ends call it."""
    ends = tuple(sorted((source, target)))
    if can_write_to_peers(AxisGroup(ends, group, ends.index(context.rank)), context):
        return PeerLink(group, source, target, context.device)
    link = CollectiveLink(group, source, target, context.device)
    link.connect(context.rank)
    return link


class StagePredictor:
    """Runs this rank's stage of the transformer for a `PatchedCall`."""

    def __init__(
        self,
        model: nn.Module,
        family: ModelFamily,
        pipe: Pipe,
        sharers: AxisGroup | None,
        layout: Layout,
        cache: KeyCache,
        blocks_per_stage: tuple[int, ...],
        warmup_steps: int,
    ) -> None:
        """`layout` has patches, and `cache` is the one that the model's attentions renew."""
        self.patches, self.warmup_steps = cache.patches, warmup_steps
        self._model, self._family, self._pipe = model, family, pipe
        self._batch, self._layout, self._cache = BatchSplit(family, sharers), layout, cache
        first = sum(blocks_per_stage[: pipe.stage])
        self._stage = Stage(family, first, first + blocks_per_stage[pipe.stage], cache)
        self._forward: Callable[..., Any] = model.forward
        self._graphs: GraphedForward | None = None
        self._entered: dict[tuple[int | None, int, int], list[torch.Tensor]] = {}
        self._locating = False
        self._lengths: tuple[Any, ...] = ()
        self._shapes: dict[int, list[torch.Size]] = {}
        self._whole: dict[int, torch.Tensor] = {}
        self._own: dict[int, torch.Tensor] = {}
        self._awaited: dict[int, tuple[Arriving, int | None]] = {}

    @property
    def owns_latents(self) -> bool:
        """Whether this rank is of the first stage, which has the patches' latents."""
        return self._pipe.is_first

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

    def numbers(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Which patch each number of a prediction belongs to: a prediction's shape, batch 1.

        The model's own way from tokens to latents is asked, with the numbers in place of tokens.

        Raises:
            InputError: there are fewer tokens than patches.
        """
        self._whole.clear()
        self._patches.current = None
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
            self._cache.clear()
            self._pipe.clear()
            self._entered.clear()
            self._shapes.clear()
            if self._graphs is not None:
                self._graphs.clear()
            self._lengths = lengths
        return numbers

    def whole(self, inputs: dict[str, Any], call: int) -> torch.Tensor:
        """The prediction for all tokens, on every rank."""
        shared, samples = self._batch.share(inputs)
        self._make_room(shared, call)
        output = self._run(shared, None, call)
        if output is None:
            batch = shared[self._family.batched_inputs[0]].shape[0]
            output = torch.empty(batch, *self._shape, dtype=self._dtype, device=self._device)
        stages = self._pipe.stages
        output = output.contiguous()
        dist.broadcast(output, stages.ranks[-1], stages.group)
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
            self._pipe.clear()
            self._entered = {key: kept for key, kept in self._entered.items() if key[1] != call}
            if self._graphs is not None:
                self._graphs.clear()

    def send(self, patch: int, inputs: dict[str, Any], call: int) -> None:
        """Has a patch's prediction begun: this stage's blocks, and what goes to the next.

        Raises:
            InputError: no warm-up step made this call.
        """
        if call not in self._whole:
            raise InputError(
                f"the transformer's call number {call + 1} in a step was not made in a warm-up "
                "step, so there are no keys to start from; use a plan with more warmup steps"
            )
        shared, samples = self._batch.share(inputs)
        own = self._own[patch]
        output = self._run(shared, patch, call)
        if output is not None:
            chosen = output.flatten(1).index_select(1, own)
            self._pipe.onward.send(("prediction", patch, call), chosen)
        if self._pipe.is_first:
            # not before the patch is on its way: what waits for the device (a kernel that is
            # loaded, an allocation) would wait for an answer to what was never sent
            batch = shared[self._family.batched_inputs[0]].shape[0]
            name = ("prediction", patch, call)
            arriving = self._pipe.incoming.begin(name, (batch, len(own)), self._dtype)
            self._awaited[patch] = (arriving, samples)

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
        latents = latents.contiguous()
        dist.broadcast(latents, self._pipe.stages.ranks[0], self._pipe.stages.group)
        self._pipe.onward.drain()
        return latents

    @property
    def _patches(self) -> Patches:
        patches = self._layout.patches
        assert patches is not None
        return patches

    def _run(self, inputs: dict[str, Any], patch: int | None, call: int) -> torch.Tensor | None:
        """The last stage's output; the others send theirs on."""
        received = None if self._pipe.is_first else self._receive(inputs, patch, call)
        compute = self._graphs or self._compute
        output: Carried = compute(inputs, patch, call, received)
        if self._pipe.is_last:
            return output[0]
        for number, tensor in enumerate(output):
            if tensor.numel():
                self._pipe.onward.send((number, patch, call), tensor)
        return None

    def _compute(
        self,
        inputs: dict[str, Any],
        patch: int | None,
        call: int,
        received: Carried | None,
    ) -> Carried:
        """What this rank computes for a patch or all of the sequence, between transports."""
        self._patches.current, self._cache.call = patch, call
        output = self._stage.run(self._forward, inputs, received)
        return (sample_of(output),) if self._pipe.is_last else output

    def _receive(self, inputs: dict[str, Any], patch: int | None, call: int) -> Carried:
        """What the stage before sends for this, of shapes that are known without being told."""
        key = (patch, call, inputs[self._family.batched_inputs[0]].shape[0])
        if key not in self._entered:
            self._patches.current = patch
            alike = self._stage.entered(self._forward, inputs)
            self._entered[key] = [torch.empty_like(one, device="meta") for one in alike]
        link, device = self._pipe.incoming, self._device
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


def require_stages(part: PipeFusion, blocks: int) -> None:
    """Refuses stages that don't make up the model, or a schedule that there isn't.

    Raises:
        InputError: says what is there.
    """
    if sum(part.blocks_per_stage) != blocks:
        raise InputError(
            f"the plan's stages have {' + '.join(map(str, part.blocks_per_stage))} blocks, the "
            f"model has {blocks}; tune this model, or {REMEDY}"
        )
    if part.schedule != "linear":
        raise InputError(
            f"pipefusion has no {part.schedule} schedule yet; set the plan's schedule to linear"
        )
