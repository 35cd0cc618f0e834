"""The native backend: in which order parallelisms and execution modes are applied to a pipeline."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from ditplan.profiles.backends import find_backend
from ditplan.profiles.capabilities import require_mode, require_ranks_to_run_in
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.call_guard import CallGuard
from ditplan.runtime.admission.calls import Calls, Watch
from ditplan.runtime.admission.fit import require_alike
from ditplan.runtime.admission.guarding import put_in_force, require_no_other
from ditplan.runtime.admission.neighbours import require_neighbours, require_unwrapped
from ditplan.runtime.batch.batch_split import apply_cfg
from ditplan.runtime.batch.call_check import CallCheck
from ditplan.runtime.batch.call_split import apply_calls
from ditplan.runtime.blocks import block_paths
from ditplan.runtime.compilation.cuda_graphs import MOST_GRAPHS, GraphedForward
from ditplan.runtime.groups import RankContext
from ditplan.runtime.in_force import held_by_graphs
from ditplan.runtime.models.inspection import config_digest, plain_config, usual_config
from ditplan.runtime.pipefusion.patched_call import REMEDY, apply_patches
from ditplan.runtime.pipefusion.stage_predictor import StagePredictor, require_stages
from ditplan.runtime.pipefusion.visit_runner import Graphed
from ditplan.runtime.prepared import BUILT, Prepared, built_of, prepared_for, sizes_of_texts
from ditplan.runtime.sequence.hooks import answer_attentions, apply_sequence_parallel
from ditplan.runtime.sequence.linear_attention import apply_rows
from ditplan.runtime.sequence.text_rounding import round_texts
from ditplan.runtime.step_cache import apply_step_cache
from ditplan.runtime.takeover import inner_forward, replace_forward
from ditplan.runtime.vae.split_vae import VaeGroups, apply_vae, require_splittable
from ditplan.runtime.weights.sharded import ShardedWeights, shard, shards_of


def parallelize(
    pipeline: Any, plan: ExecutionPlan, context: RankContext, watch: Watch | None = None
) -> ExitStack:
    """Puts a plan in force on a diffusers pipeline; closing the result takes it away again.

    Every rank of `context`'s world calls it, in the same order. Ranks beyond the plan's mesh take
    part in making the groups and are left alone. A plan that was in force before on the same
    transformer finds its compiled code again. Graphs are captured anew, as they hold memory; where
    the context `keeps_graphs` they are found again too, until `forget_graphs`, with the keys and
    values that those of PipeFusion's stages read. A plan of one rank that changes nothing is
    checked, and the pipeline left as it is. Each call is made within what `watch` gives for its
    kind.

    Raises:
        InputError: the plan doesn't fit the pipeline, the world or this backend.
    """
    models = transformers_of(pipeline)

    vae = getattr(pipeline, "vae", None)
    check = partial(_require_possible, models, vae, plan, context)
    if plan.changes_nothing:
        check()
        return ExitStack()
    closing = ExitStack()

    def apply(calls: Calls, undo: ExitStack) -> None:
        if isinstance(calls, CallGuard):
            _refuse_what_cannot_be(pipeline, plan, calls)
        for model in models.values():
            _parallelize(pipeline, model, plan, context, calls, undo, closing)
        vae_groups = groups_for_vae(plan, context)
        if vae is not None and vae_groups is not None:
            apply_vae(vae, vae_groups, undo, lambda: calls.is_in_call)
        if watch is not None:
            calls.watches.append(watch)

    if plan.mesh.size > 1:
        require_alike(plan, context, check)
    else:
        check()
    return put_in_force(pipeline, models, plan, context, apply, closing)


def _require_possible(
    models: dict[str, nn.Module], vae: Any, plan: ExecutionPlan, context: RankContext
) -> None:
    """Refuses transformers, and a VAE, that can't have the plan.

    Raises:
        InputError: says why.
    """
    require_no_other(models.values())
    for model in models.values():
        require_unwrapped(model)
    if plan.configuration.pipefusion and len(models) > 1:
        raise InputError(
            f"{plan.model.name} has {len(models)} transformers, and stages of pipefusion are made "
            f"of one; {REMEDY}"
        )
    for model in models.values():
        require_neighbours(model, plan, _checked_family(model, plan, context))
    if plan.configuration.vae_parallel > 1 and vae is not None:
        require_splittable(type(vae).__name__)


def groups_for_vae(plan: ExecutionPlan, context: RankContext) -> VaeGroups | None:
    """The ranks that decode together, and those that want the picture; None where each decodes by
    itself. Every rank of the world asks.
    """
    degree = plan.configuration.vae_parallel
    return VaeGroups.of(context, plan.configuration.vae_ranks, degree) if degree > 1 else None


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
    family = _checked_family(model, plan, context)
    prepared = prepared_for(model, family, plan, context)
    built = built_of(model, context)
    built.at_least(MOST_GRAPHS + len(plan.text_sizes))
    vars(model)[BUILT] = built
    built.watchers.append(calls.weights_moved)
    undo.callback(built.watchers.remove, calls.weights_moved)
    undo.callback(vars(model).pop, BUILT)
    require_neighbours(model, plan, family)
    may_fall_back = plan.fallback == "eager"
    if not context.keeps_graphs:
        undo.callback(prepared.ring_buffers.clear)
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
        graphed = _graphed(model, prepared, may_fall_back, context, calls, undo)
        replace_forward(model, graphed(inner_forward(model)), undo)
    round_texts(model, family, sizes_of_texts(family, plan), undo)
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
    guard.decodes_together = plan.configuration.vae_parallel > 1


def _graphed(
    model: nn.Module,
    prepared: Prepared,
    may_fall_back: bool,
    context: RankContext,
    calls: Calls,
    undo: ExitStack,
    most: int = MOST_GRAPHS,
) -> Graphed:
    """What has a forward captured, once: by the graphs that were kept, or by new ones."""

    def graphed(forward: Callable[..., Any]) -> GraphedForward:
        if context.keeps_graphs and prepared.graphs:
            made = prepared.graphs[0]
        else:
            built = built_of(model, context)
            made = GraphedForward(forward, context.device, may_fall_back, most, built)
        if context.keeps_graphs:
            prepared.graphs[:] = [made]
            made.resume(forward, partial(held_by_graphs, model))
        else:
            undo.callback(made.clear)
        calls.graphs.append(made.clear)
        return made

    return graphed


def _apply_sequence(model: nn.Module, prepared: Prepared, undo: ExitStack) -> None:
    if prepared.layout or prepared.batch_group:
        sharing = prepared.batch_group.size if prepared.batch_group else 1
        CallCheck(model, prepared.family, sharing, bool(prepared.route)).apply(undo)
    if prepared.layout and prepared.answers is not None:
        apply_sequence_parallel(
            model, prepared.family, prepared.layout, prepared.answers, undo, prepared.adapters
        )
        if prepared.rows:
            apply_rows(model, prepared.family, prepared.layout, prepared.rows, undo)
    elif prepared.answers:
        answer_attentions(model, prepared.family, prepared.answers, undo, prepared.adapters)


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
    model, part = pipeline.transformer, plan.configuration.pipefusion
    if context.keeps_graphs and prepared.predictors:
        predictor = prepared.predictors[0]
    else:
        predictor = StagePredictor(
            model,
            prepared.family,
            prepared.route,
            prepared.batch_group,
            prepared.layout,
            prepared.cache,
            part,
        )
    if context.keeps_graphs:
        prepared.predictors[:] = [predictor]
    graphed = None
    if "graph" in plan.configuration.mode:
        # the whole sequence and each patch, for the two calls a step that some pipelines make
        most = 2 * len(part.visits(prepared.route.stage)) * (part.patches + 1)
        may_fall_back = plan.fallback == "eager"
        graphed = _graphed(model, prepared, may_fall_back, context, calls, undo, most)
    # keys and values take memory: only where graphs read them
    predictor.apply(undo, graphed, stays=context.keeps_graphs and graphed is not None)
    if isinstance(calls, CallGuard):
        apply_patches(pipeline, predictor, calls.admit, undo)


def _checked_family(model: nn.Module, plan: ExecutionPlan, context: RankContext) -> ModelFamily:
    capabilities = find_backend(plan.backend).capabilities
    require_ranks_to_run_in(capabilities)
    kind: DeviceKind = "cpu" if context.device.type == "cpu" else "cuda"
    require_mode(capabilities, plan.configuration.mode, kind)
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
