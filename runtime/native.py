"""The native backend: in which order parallelisms and execution modes are applied to a pipeline."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ditplan.profiles.backends import find_backend, require_mode, require_runtime
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.mesh import AXES
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.splits import head_shares
from ditplan.runtime.admission.call_guard import CallGuard
from ditplan.runtime.admission.calls import Calls
from ditplan.runtime.admission.fit import require_alike
from ditplan.runtime.admission.guarding import put_in_force, require_no_other
from ditplan.runtime.admission.neighbours import require_neighbours, require_unwrapped
from ditplan.runtime.batch.batch_split import apply_cfg
from ditplan.runtime.batch.call_check import CallCheck
from ditplan.runtime.batch.call_split import apply_calls
from ditplan.runtime.blocks import block_paths
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.compilation.blocks import CompiledBlocks
from ditplan.runtime.compilation.cuda_graphs import GraphedForward
from ditplan.runtime.compilation.operators import AttentionOperator
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.models.inspection import config_digest, plain_config, usual_config
from ditplan.runtime.pipefusion.patched_call import REMEDY, apply_patches
from ditplan.runtime.pipefusion.route import StageRoute, make_route
from ditplan.runtime.pipefusion.stage_predictor import StagePredictor, require_stages
from ditplan.runtime.sequence.adapter_attention import AdapterAttention
from ditplan.runtime.sequence.hooks import answer_attentions, apply_sequence_parallel
from ditplan.runtime.sequence.kernels import attend
from ditplan.runtime.sequence.layout import Layout, Patches, SequenceGroups
from ditplan.runtime.sequence.linear_attention import RowOperators, apply_rows
from ditplan.runtime.sequence.peer_ulysses import PeerExchange
from ditplan.runtime.sequence.ring import BidirectionalTransfer, RingBuffers, RingTransfer
from ditplan.runtime.sequence.stale_kv import StaleKVCache
from ditplan.runtime.sequence.ulysses import CollectiveExchange, Exchange
from ditplan.runtime.sequence.usp import GatherKV, SequenceAttention
from ditplan.runtime.step_cache import apply_step_cache
from ditplan.runtime.takeover import inner_forward, replace_forward
from ditplan.runtime.transport.mailbox import can_write_to_peers
from ditplan.runtime.weights.sharded import ShardedWeights, shard, shards_of


@dataclass(frozen=True)
class Prepared:
    """What a process keeps of a plan while another one is in force: compiled code stays valid.

    `batch_group` are the ranks that share a call's samples, `cfg_group` those that share a step's
    calls, `weight_group` those that share out the weights of their blocks. `answers` are those to
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


def parallelize(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> ExitStack:
    """Puts a plan in force on a diffusers pipeline; closing the result takes it away again.

    Every rank of `context`'s world calls it, in the same order. Ranks beyond the plan's mesh take
    part in making the groups and are left alone. A plan that was in force before on the same
    transformer finds its compiled code again; graphs are captured anew.

    Raises:
        InputError: the plan doesn't fit the pipeline, the world or this backend.
    """
    models = transformers_of(pipeline)

    def check() -> None:
        require_no_other(models.values())
        for model in models.values():
            require_unwrapped(model)
        if plan.configuration.pipefusion and len(models) > 1:
            raise InputError(
                f"{plan.model.name} has {len(models)} transformers, and stages of pipefusion are "
                f"made of one; {REMEDY}"
            )
        for model in models.values():
            require_neighbours(model, plan, _checked_family(model, plan, context))

    closing = ExitStack()

    def apply(calls: Calls, undo: ExitStack) -> None:
        if isinstance(calls, CallGuard):
            _refuse_what_cannot_be(pipeline, plan, calls)
        for model in models.values():
            _parallelize(pipeline, model, plan, context, calls, undo, closing)

    if plan.mesh.size > 1:
        require_alike(plan, context, check)
    else:
        check()
    return put_in_force(pipeline, models, plan, context, apply, closing)


def transformers_of(pipeline: Any) -> dict[str, nn.Module]:
    """A pipeline's transformers by its names for them: Wan 2.2 has one for the first steps and one
    for the others.
    """
    found = {name: getattr(pipeline, name, None) for name in ("transformer", "transformer_2")}
    return {name: model for name, model in found.items() if model is not None}


def _parallelize(
    pipeline: Any,
    model: Any,
    plan: ExecutionPlan,
    context: RankContext,
    calls: Calls,
    undo: ExitStack,
    closing: ExitStack,
) -> None:
    """Puts a plan in force on one transformer, again where others have changed its modules.

    Closing `undo` takes it away; what stays from one time to the next goes with `closing`.
    """
    mode = plan.configuration.mode
    prepared = _prepared(model, plan, context)
    require_neighbours(model, plan, prepared.family)
    may_fall_back = plan.fallback == "eager"
    undo.callback(prepared.ring_buffers.clear)
    if prepared.layout or prepared.batch_group:
        sharing = prepared.batch_group.size if prepared.batch_group else 1
        CallCheck(model, prepared.family, sharing, bool(prepared.route)).apply(undo)
    _apply_sequence(model, prepared, undo)
    shards = _shards(model, plan, prepared, context, closing)
    if shards:
        calls.pieces.append(shards.holds)
    if "compile" in mode:
        prepared.blocks.apply(model, prepared.family, may_fall_back, undo)
    if shards:
        shards.apply(undo)
    if prepared.route:
        _apply_pipefusion(pipeline, plan, prepared, context, calls, undo)
    elif prepared.batch_group:
        apply_cfg(model, prepared.family, prepared.batch_group, undo)
    if "graph" in mode and not prepared.route:
        graphed = GraphedForward(inner_forward(model), context.device, may_fall_back)
        replace_forward(model, graphed, undo)
        calls.graphs.append(graphed.clear)
        undo.callback(graphed.clear)
    if plan.configuration.step_cache:
        apply_step_cache(pipeline, model, plan.configuration.step_cache, calls.around, undo)
    if prepared.cfg_group:
        apply_calls(pipeline, model, prepared.family, prepared.cfg_group, calls, undo)


def _refuse_what_cannot_be(pipeline: Any, plan: ExecutionPlan, guard: CallGuard) -> None:
    """Has the guard refuse calls that would be computed wrongly under the plan."""
    if plan.configuration.pipefusion or (plan.configuration.step_cache and callable(pipeline)):
        what = "pipefusion" if plan.configuration.pipefusion else "a step cache"
        guard.strays_refused = (
            f"the transformer is under a plan with {what} and was called outside of the pipeline "
            "that the plan was put in force on: call that pipeline, or put the plan in force on "
            "the other one"
        )

    def refuse_perturbed_attention() -> None:
        # its processors take the batch apart into passes themselves
        if getattr(pipeline, "do_perturbed_attention_guidance", False):
            raise InputError(
                "perturbed-attention guidance changes attention inside the blocks, which a plan "
                "over several ranks replaces: call the pipeline with pag_scale=0, or close the plan"
            )

    guard.checks[:] = [refuse_perturbed_attention]


def _apply_sequence(model: nn.Module, prepared: Prepared, undo: ExitStack) -> None:
    if prepared.layout and prepared.answers is not None:
        apply_sequence_parallel(
            model, prepared.family, prepared.layout, prepared.answers, undo, prepared.adapters
        )
        if prepared.rows:
            apply_rows(model, prepared.family, prepared.layout, prepared.rows, undo)
    elif prepared.answers:
        answer_attentions(model, prepared.family, prepared.answers, undo, prepared.adapters)


def weight_group_of(plan: ExecutionPlan, context: RankContext) -> AxisGroup | None:
    """The ranks among which the weights of this rank's blocks are shared out; None where they
    aren't. Every rank of the world asks.
    """
    if plan.configuration.weights == "replicated":
        return None
    axes = tuple(axis for axis in AXES if axis != "pipefusion")
    # a group of its own: what is gathered waits for no other exchange
    return context.groups.axis_group(plan.mesh, plan.configuration.placement, axes, "weights")


def _shards(
    model: nn.Module,
    plan: ExecutionPlan,
    prepared: Prepared,
    context: RankContext,
    undo: ExitStack,
) -> ShardedWeights | None:
    if prepared.weight_group is None:
        return None
    if (loaded := shards_of(model)) is not None:
        return loaded
    held = plan.blocks_of(context.rank)
    blocks = [
        model.get_submodule(path)
        for number, path in enumerate(block_paths(model, prepared.family))
        if held is None or number in held
    ]
    return shard(model, blocks, prepared.weight_group, context.device, undo)


def _prepared(model: nn.Module, plan: ExecutionPlan, context: RankContext) -> Prepared:
    family = _checked_family(model, plan, context)
    kept = context.kept.setdefault("prepared plans", WeakKeyDictionary())
    renewals, of_model = kept.get(model, (None, {}))
    if renewals != context.groups.renewals:
        # what others were made of has been broken off by a call that failed
        of_model = {}
        kept[model] = context.groups.renewals, of_model
    # a step cache is outside of all that is prepared
    key = replace(plan.configuration, step_cache=None)
    if key not in of_model:
        of_model[key] = _prepare(family, plan, context)
    found: Prepared = of_model[key]
    return found


def _prepare(family: ModelFamily, plan: ExecutionPlan, context: RankContext) -> Prepared:
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
    answers: tuple[AttentionOperator, ...] | None = None
    if sequence or route:
        groups_of_sequence = SequenceGroups(all=sequence, ring=ring, ulysses=ulysses)
        layout = Layout(groups_of_sequence, plan.configuration.token_shares, patches)
        shares = head_shares(plan.configuration.token_shares, mesh.ulysses)
        exchange = _exchange(ulysses, context, shares) if ulysses else None
        gather_kv, gather_masked, mask = None, None, family.text_mask
        # masks and filler are of all keys at once
        whole = (mask and mask.input) or (cache and family.needs_text)
        if ring and (plan.configuration.ring == "gather" or whole):
            gather_kv = _kv_gatherer(ring, context)
        elif ring and mask:
            gather_masked = _kv_gatherer(ring, context)
        kernel = plan.configuration.attention
        transfer = (
            BidirectionalTransfer if plan.configuration.ring == "bidirectional" else RingTransfer
        )
        answers = tuple(
            _distributed(
                SequenceAttention(
                    declared,
                    layout,
                    kernel,
                    exchange,
                    gather_kv,
                    ring_buffers,
                    cache,
                    number,
                    transfer,
                    gather_masked=gather_masked,
                )
            )
            for number, declared in enumerate(family.self_attentions)
        )
    elif plan.configuration.attention != "auto":
        kernel = plan.configuration.attention
        local = AttentionOperator(
            lambda query, key, value, scale: attend(query, key, value, scale, kernel),
            interleaved=False,
        )
        answers = (local,) * len(family.self_attentions)
    adapters = {
        name: AttentionOperator(
            AdapterAttention(segments, layout, plan.configuration.attention), interleaved=False
        )
        for name, segments in family.adapters.items()
    }
    weight_group = weight_group_of(plan, context)
    blocks = CompiledBlocks(answers or (), movable=weight_group is None)
    rows = RowOperators(sequence) if sequence and family.rows else None
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
    )


def _distributed(attention: SequenceAttention) -> AttentionOperator:
    exchanges = attention.exchange is not None
    halves = attention if exchanges else None
    return AttentionOperator(attention, interleaved=exchanges, halves=halves)


def _apply_pipefusion(
    pipeline: Any,
    plan: ExecutionPlan,
    prepared: Prepared,
    context: RankContext,
    calls: Calls,
    undo: ExitStack,
) -> None:
    if not (
        prepared.route and prepared.layout and prepared.cache and plan.configuration.pipefusion
    ):
        return
    predictor = StagePredictor(
        pipeline.transformer,
        prepared.family,
        prepared.route,
        prepared.batch_group,
        prepared.layout,
        prepared.cache,
        plan.configuration.pipefusion,
    )
    # the whole sequence and each patch, for the two calls a step that some pipelines make
    visits = len(plan.configuration.pipefusion.visits(prepared.route.stage))
    most = 2 * visits * (plan.configuration.pipefusion.patches + 1)

    def graphed(forward: Callable[..., Any]) -> GraphedForward:
        made = GraphedForward(forward, context.device, plan.fallback == "eager", most)
        calls.graphs.append(made.clear)
        return made

    predictor.apply(undo, graphed if "graph" in plan.configuration.mode else None)
    if isinstance(calls, CallGuard):
        apply_patches(pipeline, predictor, calls.admit, undo)


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


def _checked_family(model: nn.Module, plan: ExecutionPlan, context: RankContext) -> ModelFamily:
    backend = find_backend(plan.backend)
    require_runtime(backend)
    kind: DeviceKind = "cpu" if context.device.type == "cpu" else "cuda"
    require_mode(backend, plan.configuration.mode, kind)
    if context.world_size < plan.mesh.size:
        plan.require_ranks(context.world_size)
    name = type(model).__name__
    config: Any = model.config
    plan.require_model(name, config_digest(config), plain_config(config), usual_config(type(model)))
    family = family_of(name)
    if plan.configuration.pipefusion:
        if family.guidance == "calls" and plan.mesh.cfg > 1:
            raise InputError(
                f"{plan.model.name} makes a call for each pass, which can't be split over cfg "
                "together with pipefusion; use a plan with cfg 1 or with pipefusion 1"
            )
        if family.no_pipefusion:
            raise InputError(
                f"{plan.model.name} can't run with pipefusion: {family.no_pipefusion}; {REMEDY}"
            )
        blocks = len(block_paths(model, family))
        require_stages(plan.configuration.pipefusion, blocks, family)
    return family
