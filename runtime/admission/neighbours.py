"""What works on a transformer already when a plan is put in force, or has come on it meanwhile.

Of hooks of accelerate and diffusers it matters what they are for. Offloading moves weights. Step
caches and guidance change what modules compute; `enable_cache()`, functions such as
`apply_first_block_cache()` and guiders register them, so it is their names that tell. Which of them
give one device's result under a plan follows from what they go by: a step's number, the samples of
a call, or its tokens.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily
from ditplan.profiles.plan import ExecutionPlan

OFFLOADING = "accelerate's offloading"
OF_DIFFUSERS = "diffusers' "

MOVING = frozenset(
    {
        "group_offloading",
        "layer_execution_tracker",
        "lazy_prefetch_group_offloading",
        "lazy_leafs",
        "layerwise_casting",
        "peft_autocast_disable",
    }
)
"""Hooks of diffusers that move or cast weights: what modules compute stays."""

BY_STEP = frozenset(
    {"layer_skip_hook", "mag_cache_block_hook", "mag_cache_leader_block_hook", "taylorseer_cache"}
)
"""Those that go by the number of a step, for each of its calls apart."""

BY_CALL = BY_STEP | {"pyramid_attention_broadcast"}
"""Those that go by how often the transformer was called."""

BY_SAMPLES_OF_A_CALL = BY_STEP | {"fbc_block_hook", "fbc_leader_block_hook"}
"""Those that go by all samples of a call, for each of a step's calls apart."""


def require_unwrapped(model: nn.Module) -> None:
    """Refuses what torch.compile has made of a transformer, in place of it.

    Raises:
        InputError: says what to give instead.
    """
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise InputError(
            "the pipeline's transformer is wrapped by torch.compile, which would compile across "
            "what ranks exchange; give the pipeline the module itself (`._orig_mod`) and use a "
            "plan with mode compile"
        )


def require_neighbours(model: nn.Module, plan: ExecutionPlan, family: ModelFamily) -> None:
    """Refuses what works on a transformer already and can't stand beside a plan.

    Raises:
        InputError: says what it is, and how to take it off.
    """
    name = type(model).__name__
    if getattr(model, "_parallel_config", None) is not None:
        raise InputError(
            f"{name} is parallel already by diffusers' enable_parallelism, which can't be beside a "
            "plan; load it anew, or run it without a plan"
        )
    hooks = hooks_of_others(model)
    _require_same_steps(model, plan, family, hooks)
    sharded, graphs = plan.configuration.weights == "sharded", "graph" in plan.configuration.mode
    moving = [hook for hook in hooks if "offloading" in hook]
    if sharded and hooks:
        raise InputError(
            f"{name} has hooks for {min(hooks)} on {hooks[min(hooks)]}, which move or leave out "
            "weights that the plan has spread over ranks; take them off, or use a plan with "
            "replicated weights"
        )
    if graphs and moving:
        raise InputError(
            f"{name} has hooks for {moving[0]} on {hooks[moving[0]]}, by which weights lie "
            "elsewhere in each call than in the captured one; take them off, or use a plan with "
            "mode eager or compile"
        )


def hooks_of_others(model: nn.Module) -> dict[str, str]:
    """What there is on a model's modules, and where: of each kind one place."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        own, where = vars(module), path or "all of it"
        if "_hf_hook" in own:
            found.setdefault(OFFLOADING, where)
        for name in getattr(own.get("_diffusers_hook"), "hooks", ()):
            found.setdefault(f"{OF_DIFFUSERS}{name}", where)
    return found


def _require_same_steps(
    model: Any, plan: ExecutionPlan, family: ModelFamily, hooks: Mapping[str, str]
) -> None:
    """Refuses hooks that would have ranks of a plan do other than one device.

    Raises:
        InputError: says what it is, and what to do.
    """
    changing = {
        name: where
        for hook, where in hooks.items()
        if hook.startswith(OF_DIFFUSERS) and (name := hook.removeprefix(OF_DIFFUSERS)) not in MOVING
    }
    is_cached = bool(getattr(model, "is_cache_enabled", False))
    if not (changing or is_cached):
        return
    kind = type(model).__name__
    what = f"{kind} has a step cache enabled"
    if not is_cached:
        name = min(changing)
        what = f"{kind} has hooks of diffusers for {name} on {changing[name]}"
    off = "call disable_cache()" if is_cached else "take them off, or load it anew,"
    if cache := plan.configuration.step_cache:
        raise InputError(
            f"{what} and the plan has its own ({cache}): {off} or use a plan without one"
        )
    mesh = plan.mesh
    if mesh.sequence_parallel * mesh.pipefusion > 1:
        raise InputError(
            f"{what}, by which a rank may decide for itself what to leave out while others wait "
            f"for it: {off} or use a plan with ring, ulysses and pipefusion of 1"
        )
    splits_calls = family.guidance == "calls" and mesh.cfg > 1
    splits_samples = mesh.dp * mesh.cfg > (mesh.cfg if splits_calls else 1)
    wrong = changing.keys() - (BY_CALL if splits_samples else changing.keys())
    wrong |= changing.keys() - (BY_SAMPLES_OF_A_CALL if splits_calls else changing.keys())
    if wrong:
        raise InputError(
            f"{what} ({min(wrong)}) that goes by all samples and calls of a step, of which each "
            f"rank has a share: {off} or use a plan with dp and cfg of 1"
        )
