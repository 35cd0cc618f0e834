"""The native backend: in which order parallelisms and execution modes are applied to a pipeline."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ditplan.profiles.backends import find_backend, require_mode
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, SelfAttention, family_of
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.attention import attend
from ditplan.runtime.cfg import apply_cfg
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.compiling import CompiledBlocks
from ditplan.runtime.exchange import CollectiveExchange, Exchange
from ditplan.runtime.graphs import GraphedForward
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.inspection import config_digest
from ditplan.runtime.modules import replace_forward
from ditplan.runtime.operators import AttentionOperator
from ditplan.runtime.peer_memory import PeerExchange, can_write_to_peers
from ditplan.runtime.sequence import (
    GatherKeys,
    Layout,
    SequenceAttention,
    SequenceGroups,
    answer_attentions,
    apply_sequence_parallel,
)


@dataclass(frozen=True)
class Prepared:
    """What a process keeps of a plan while another one is in force: compiled code stays valid.

    `answers` are those to the family's self-attentions, None where they are left to the model.
    """

    family: ModelFamily
    cfg: AxisGroup | None
    layout: Layout | None
    answers: tuple[AttentionOperator, ...] | None
    blocks: CompiledBlocks


def parallelize(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> ExitStack:
    """Puts a plan in force on a diffusers pipeline; closing the result takes it away again.

    Every rank of `context`'s world calls it, in the same order. Ranks beyond the plan's mesh take
    part in making the groups and are left alone. A plan that was in force before on the same
    transformer finds its compiled code again; graphs are captured anew.

    Raises:
        InputError: the plan doesn't fit the pipeline, the world or this backend.
    """
    model, execution = pipeline.transformer, plan.execution
    prepared = _prepared(model, plan, context)
    may_fall_back = execution.fallback == "eager"
    with ExitStack() as undo:
        if prepared.layout and prepared.answers:
            apply_sequence_parallel(model, prepared.family, prepared.layout, prepared.answers, undo)
        elif prepared.answers:
            answer_attentions(model, prepared.family, prepared.answers, undo)
        if "compile" in execution.mode:
            prepared.blocks.apply(model, prepared.family, may_fall_back, undo)
        if prepared.cfg:
            apply_cfg(model, prepared.family, prepared.cfg, undo)
        if "graph" in execution.mode:
            graphed = GraphedForward(model.forward, context.device, may_fall_back)
            replace_forward(model, graphed, undo)
        return undo.pop_all()


def _prepared(model: nn.Module, plan: ExecutionPlan, context: RankContext) -> Prepared:
    family = _checked_family(model, plan, context)
    kept = context.kept.setdefault("prepared plans", WeakKeyDictionary()).setdefault(model, {})
    key = (plan.mesh, plan.placement, plan.execution)
    if key not in kept:
        kept[key] = _prepare(family, plan, context)
    found: Prepared = kept[key]
    return found


def _prepare(family: ModelFamily, plan: ExecutionPlan, context: RankContext) -> Prepared:
    mesh, groups = plan.mesh, context.groups
    cfg = groups.axis_group(mesh, plan.placement, ("cfg",))
    ring = groups.axis_group(mesh, plan.placement, ("ring",))
    ulysses = groups.axis_group(mesh, plan.placement, ("ulysses",))
    sequence = groups.axis_group(mesh, plan.placement, ("ring", "ulysses"))
    layout = None
    answers: tuple[AttentionOperator, ...] | None = None
    if sequence:
        layout = Layout(SequenceGroups(all=sequence, ring=ring, ulysses=ulysses))
        exchange = _exchange(ulysses, context) if ulysses else None
        gather_keys = None
        if ring and plan.execution.ring == "gather":
            gather_keys = _key_gatherer(ring, context)
        answers = tuple(
            _distributed(declared, layout, plan, exchange, gather_keys)
            for declared in family.self_attentions
        )
    elif plan.execution.attention != "auto":
        kernel = plan.execution.attention
        local = AttentionOperator(
            lambda query, key, value, scale: attend(query, key, value, scale, kernel),
            interleaved=False,
        )
        answers = (local,) * len(family.self_attentions)
    return Prepared(family, cfg, layout, answers, CompiledBlocks(answers or ()))


def _distributed(
    declared: SelfAttention,
    layout: Layout,
    plan: ExecutionPlan,
    exchange: Exchange | None,
    gather_keys: GatherKeys | None,
) -> AttentionOperator:
    attention = SequenceAttention(declared, layout, plan.execution.attention, exchange, gather_keys)
    halves = attention if exchange is not None else None
    return AttentionOperator(attention, interleaved=exchange is not None, halves=halves)


def _exchange(group: AxisGroup, context: RankContext) -> Exchange:
    if can_write_to_peers(group, context):
        return PeerExchange(group, context.device)
    return CollectiveExchange(group)


def _key_gatherer(group: AxisGroup, context: RankContext) -> GatherKeys:
    if can_write_to_peers(group, context):
        return PeerExchange(group, context.device).gather_keys

    def gather(key: Any, value: Any, sizes: Any) -> Any:
        return (
            all_gather_uneven(key, 2, sizes, group),
            all_gather_uneven(value, 2, sizes, group),
        )

    return gather


def _checked_family(model: nn.Module, plan: ExecutionPlan, context: RankContext) -> ModelFamily:
    backend = find_backend(plan.backend)
    for axis, degree in zip(AXES, plan.mesh.degrees, strict=True):
        if degree > 1 and axis not in backend.axes:
            raise InputError(
                f"backend {backend.name} can't run {axis}{degree}; its axes are "
                f"{', '.join(backend.axes)}"
            )
    kind: DeviceKind = "cpu" if context.device.type == "cpu" else "cuda"
    require_mode(backend, plan.execution.mode, kind)
    if context.world_size < plan.mesh.size:
        plan.require_ranks(context.world_size)
    name = type(model).__name__
    config: Any = model.config
    plan.require_model(name, config_digest(config))
    return family_of(name)
