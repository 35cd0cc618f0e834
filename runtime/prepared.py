"""What a process keeps of a plan for a transformer while other plans are in force."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ditplan.profiles.family import ModelFamily
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.splits import head_shares
from ditplan.profiles.workload import Workload
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.compilation.blocks import CompiledBlocks
from ditplan.runtime.compilation.built import Built
from ditplan.runtime.compilation.cuda_graphs import GraphedForward
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.pipefusion.route import StageRoute, make_route
from ditplan.runtime.pipefusion.stage_predictor import StagePredictor
from ditplan.runtime.sequence.adapter_attention import AdapterAttention
from ditplan.runtime.sequence.kernels import attend
from ditplan.runtime.sequence.layout import Layout, Patches, SequenceGroups
from ditplan.runtime.sequence.linear_attention import RowOperators
from ditplan.runtime.sequence.peer_ulysses import PeerExchange
from ditplan.runtime.sequence.ring import BidirectionalTransfer, RingBuffers, RingTransfer
from ditplan.runtime.sequence.stale_kv import StaleKVCache
from ditplan.runtime.sequence.ulysses import CollectiveExchange, Exchange
from ditplan.runtime.sequence.usp import GatherKV, SequenceAttention
from ditplan.runtime.transport.mailbox import can_write_to_peers

BUILT = "ditplan_built"
"""Attribute of a transformer under a plan: its `Built`."""


@dataclass(frozen=True)
class Prepared:
    """What a process keeps of a plan while another one is in force: compiled code stays valid.

    `batch_group` are the ranks that share a call's samples, `cfg_group` those that share a step's
    calls, `weight_group` those that share out the weights of their blocks. `graphs` is the forward
    that was captured, where it is kept, and `predictors` the one that has the keys and values which
    it reads. `answers` are those to
    the family's self-attentions, None where they are left to the model, `adapters` those to its
    adapters.
    """

    family: ModelFamily
    batch_group: AxisGroup | None
    cfg_group: AxisGroup | None
    weight_group: AxisGroup | None
    layout: Layout | None
    answers: tuple[AttentionOperator, ...] | None
    adapters: dict[str, AttentionOperator]
    rows: RowOperators | None
    blocks: CompiledBlocks
    ring_buffers: RingBuffers
    route: StageRoute | None
    cache: StaleKVCache | None
    graphs: list[GraphedForward]
    predictors: list[StagePredictor]

    def forget_graphs(self) -> None:
        """Gives back what kept graphs hold."""
        for graphed in self.graphs:
            graphed.clear()
        for predictor in self.predictors:
            predictor.forget()
        self.graphs.clear()
        self.predictors.clear()
        self.ring_buffers.clear()


def sizes_of_texts(family: ModelFamily, plan: ExecutionPlan) -> tuple[int, ...]:
    """To which sizes a plan has texts rounded up; none where no length is compiled or captured."""
    rounds = family.rounds_text and plan.configuration.mode != "eager"
    return plan.text_sizes if rounds else ()


def built_of(model: nn.Module, context: RankContext) -> Built:
    """What this process has compiled and captured for a transformer."""
    of_models = context.kept.setdefault("built", WeakKeyDictionary())
    found: Built = of_models.setdefault(model, Built())
    return found


def forget_graphs(model: nn.Module, context: RankContext) -> None:
    """Gives back what kept graphs of a transformer hold, those of all plans."""
    _, of_model = context.kept.get("prepared plans", {}).get(model, (None, {}))
    for prepared in of_model.values():
        prepared.forget_graphs()


def weight_group_of(plan: ExecutionPlan, context: RankContext) -> AxisGroup | None:
    """The ranks among which the weights of this rank's blocks are shared out; None where they
    aren't. Every rank of the world asks.
    """
    if plan.configuration.weights == "replicated":
        return None
    axes = tuple(axis for axis in AXES if axis != "pipefusion")
    # a group of its own: what is gathered waits for no other exchange
    return context.groups.axis_group(plan.mesh, plan.configuration.placement, axes, "weights")


def prepared_for(
    model: nn.Module, family: ModelFamily, plan: ExecutionPlan, context: RankContext
) -> Prepared:
    """What there is for a plan on a transformer of the family, made when it is first asked for.

    Every rank of the world asks, in the same order.
    """
    kept = context.kept.setdefault("prepared plans", WeakKeyDictionary())
    renewals, of_model = kept.get(model, (None, {}))
    if renewals != context.groups.renewals:
        # what others were made of has been broken off by a call that failed
        for broken in of_model.values():
            broken.forget_graphs()
        of_model = {}
        kept[model] = context.groups.renewals, of_model
    # a step cache is outside of all that is prepared
    key = (
        replace(plan.configuration, step_cache=None),
        plan.text_sizes,
        _size_of_graphs(plan, context),
    )
    if key not in of_model:
        of_model[key] = _prepare(family, plan, context, built_of(model, context))
    found: Prepared = of_model[key]
    return found


def _size_of_graphs(plan: ExecutionPlan, context: RankContext) -> Workload | None:
    """For which size graphs are kept that read keys and values of a fixed length; None where none
    are.
    """
    part, mode = plan.configuration.pipefusion, plan.configuration.mode
    return plan.workload if part and "graph" in mode and context.keeps_graphs else None


def _prepare(
    family: ModelFamily, plan: ExecutionPlan, context: RankContext, built: Built
) -> Prepared:
    mesh, groups = plan.mesh, context.groups
    by_calls = family.guidance == "calls"
    shared = ("dp",) if by_calls else ("dp", "cfg")
    batch_group = groups.axis_group(mesh, plan.configuration.placement, shared)
    cfg_group = (
        groups.axis_group(mesh, plan.configuration.placement, ("cfg",)) if by_calls else None
    )
    ring = groups.axis_group(mesh, plan.configuration.placement, ("ring",))
    ulysses = groups.axis_group(mesh, plan.configuration.placement, ("ulysses",))
    sequence = groups.axis_group(mesh, plan.configuration.placement, ("ring", "ulysses"))
    part = plan.configuration.pipefusion
    route = make_route(context, mesh, plan.configuration.placement, part) if part else None
    patches, cache = None, None
    if route and plan.configuration.pipefusion:
        patches = Patches("image", has_filler=family.needs_text)
        cache = StaleKVCache(plan.configuration.pipefusion.patches)
    layout, ring_buffers = None, RingBuffers()
    scope = hashlib.sha256(plan.configuration.key.encode()).hexdigest()[:12]
    answers: tuple[AttentionOperator, ...] | None = None
    if sequence or route or sizes_of_texts(family, plan):
        groups_of_sequence = SequenceGroups(all=sequence, ring=ring, ulysses=ulysses)
        layout = Layout(groups_of_sequence, plan.configuration.token_shares, patches)
        answers = _answers(family, plan, context, layout, ring_buffers, cache, scope)
    elif plan.configuration.attention != "auto":
        kernel = plan.configuration.attention
        local = AttentionOperator(
            lambda query, key, value, scale: attend(query, key, value, scale, kernel),
            interleaved=False,
            scope=scope,
        )
        answers = (local,) * len(family.self_attentions)
    adapters = {
        name: AttentionOperator(
            AdapterAttention(segments, layout, plan.configuration.attention),
            interleaved=False,
            scope=scope,
        )
        for name, segments in family.adapters.items()
    }
    weight_group = weight_group_of(plan, context)
    blocks = CompiledBlocks(answers or (), movable=weight_group is None, built=built)
    rows = RowOperators(sequence, scope) if sequence and family.rows else None
    return Prepared(
        family,
        batch_group,
        cfg_group,
        weight_group,
        layout,
        answers,
        adapters,
        rows,
        blocks,
        ring_buffers,
        route,
        cache,
        graphs=[],
        predictors=[],
    )


def _answers(
    family: ModelFamily,
    plan: ExecutionPlan,
    context: RankContext,
    layout: Layout,
    ring_buffers: RingBuffers,
    cache: StaleKVCache | None,
    scope: str,
) -> tuple[AttentionOperator, ...]:
    """What is asked in place of the family's self-attentions where sequences lie as in `layout`."""
    one, ring, ulysses = plan.configuration, layout.groups.ring, layout.groups.ulysses
    exchange = None
    if ulysses:
        exchange = _exchange(ulysses, context, head_shares(one.token_shares, one.mesh.ulysses))
    gather_kv, gather_masked, mask = None, None, family.text_mask
    # masks and filler are of all keys at once
    whole = (mask and mask.input) or (cache and family.needs_text)
    if ring and (one.ring == "gather" or whole):
        gather_kv = _kv_gatherer(ring, context)
    elif ring and mask:
        gather_masked = _kv_gatherer(ring, context)
    transfer = BidirectionalTransfer if one.ring == "bidirectional" else RingTransfer
    return tuple(
        _distributed(
            SequenceAttention(
                declared,
                layout,
                one.attention,
                exchange,
                gather_kv,
                ring_buffers,
                cache,
                number,
                transfer,
                gather_masked=gather_masked,
            ),
            scope,
        )
        for number, declared in enumerate(family.self_attentions)
    )


def _distributed(attention: SequenceAttention, scope: str) -> AttentionOperator:
    exchanges = attention.exchange is not None
    halves = attention if exchanges else None
    return AttentionOperator(attention, interleaved=exchanges, halves=halves, scope=scope)


def _exchange(
    group: AxisGroup, context: RankContext, head_shares: tuple[int, ...] | None
) -> Exchange:
    if can_write_to_peers(group, context):
        return PeerExchange(group, context.device, head_shares)
    return CollectiveExchange(group, head_shares)


def _kv_gatherer(group: AxisGroup, context: RankContext) -> GatherKV:
    if can_write_to_peers(group, context):
        return PeerExchange(group, context.device).gather_kv

    def gather(key: Any, value: Any, sizes: Any) -> Any:
        return (
            all_gather_uneven(key, 2, sizes, group),
            all_gather_uneven(value, 2, sizes, group),
        )

    return gather
