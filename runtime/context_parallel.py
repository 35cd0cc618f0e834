"""diffusers' own context parallelism as a runtime of plans (`ContextParallelConfig`, 0.42.1).

diffusers does the parallel work: its hooks cut and gather sequences, its attention exchanges them.
Ours is what a plan promises beside that: the groups of the plan's ranks, calls that all ranks agree
on, a refusal in words of what diffusers would compute wrongly, and a pipeline that is as it was
when the plan is closed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelOutput, ParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ditplan.profiles.context_parallel import (
    image_tokens,
    is_uneven,
    masks_go_wrong,
    tensor_split_sizes,
    why_not_split,
)
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import ModelFamily, family_of
from ditplan.profiles.model import AttentionKernel
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.calls import Calls, Watch
from ditplan.runtime.admission.fit import require_alike
from ditplan.runtime.admission.guarding import put_in_force, require_no_other
from ditplan.runtime.admission.neighbours import (
    hooks_of_others,
    require_neighbours,
    require_unwrapped,
)
from ditplan.runtime.batch.call_check import defaults_of, given_values
from ditplan.runtime.collectives import all_gather_uneven
from ditplan.runtime.groups import AxisGroup, RankContext
from ditplan.runtime.models.inspection import config_digest, plain_config, usual_config
from ditplan.runtime.native import transformers_of
from ditplan.runtime.takeover import (
    inner_forward,
    leave_forward,
    names_arguments,
    replace_forward,
    replaced,
)

HOOKS = "_diffusers_hook"
"""Attribute in which diffusers keeps a module's hooks."""

COMPILED = "_compiled_call_impl"
"""Attribute in which torch keeps what `compile()` made of a module's call."""

VIDEO = ("batch", "channels", "frames", "rows", "columns")
"""The dims of latents that a transformer divides into patches itself."""

KERNELS: dict[AttentionKernel, str] = {"flash": "_native_flash", "cudnn": "_native_cudnn"}
"""diffusers' names of those kernels that its context parallelism has and torch brings along."""


class GroupedConfig(ContextParallelConfig):
    """A config over process groups that are there: the mesh that diffusers makes itself takes all
    ranks of the world.
    """

    def over(
        self, kind: str, sequence: AxisGroup, ring: AxisGroup | None, ulysses: AxisGroup | None
    ) -> Any:
        """This config, for a rank's groups on a kind of device; None where it is alone along an
        axis.
        """
        self._of_ring, self._of_ulysses = (
            group and DeviceMesh.from_group(group.group, kind) for group in (ring, ulysses)
        )
        # anything but None keeps diffusers from making a mesh
        self.mesh = DeviceMesh.from_group(sequence.group, kind)
        return self

    def setup(self, rank: int, world_size: int, device: torch.device, mesh: DeviceMesh) -> None:
        """Called by diffusers; takes the groups for the parts of its mesh."""
        self._rank, self._world_size, self._device = rank, world_size, device
        self._mesh = self._flattened_mesh = mesh
        self._ring_mesh, self._ulysses_mesh = self._of_ring, self._of_ulysses
        self._ring_local_rank = self._of_ring.get_local_rank() if self._of_ring else 0
        self._ulysses_local_rank = self._of_ulysses.get_local_rank() if self._of_ulysses else 0


def context_parallelize(
    pipeline: Any, plan: ExecutionPlan, context: RankContext, watch: Watch | None = None
) -> ExitStack:
    """Puts a plan in force on a diffusers pipeline by diffusers' own means; closing the result
    takes it away again.

    Every rank of `context`'s world calls it, in the same order. Ranks beyond the plan's mesh take
    part in making the groups and are left alone. A plan of one rank that changes nothing is
    checked, and the pipeline left as it is. Each call is made within what `watch` gives for its
    kind.

    Raises:
        InputError: the plan doesn't fit the pipeline, the world or diffusers' context parallelism.
    """
    models = transformers_of(pipeline)
    check = partial(_require_possible, models, plan, context)
    if plan.changes_nothing:
        check()
        return ExitStack()
    if plan.mesh.size > 1:
        require_alike(plan, context, check)
    else:
        check()

    def apply(calls: Calls, undo: ExitStack) -> None:
        for model in models.values():
            _require_splittable(model, plan, context.device)
            _split(model, plan, context, undo)
            if "compile" in plan.configuration.mode:
                _compile(model, undo)
        if watch is not None:
            calls.watches.append(watch)

    return put_in_force(pipeline, models, plan, context, apply, ExitStack())


def _require_possible(
    models: Mapping[str, nn.Module], plan: ExecutionPlan, context: RankContext
) -> None:
    """Refuses transformers that can't have the plan.

    Raises:
        InputError: says why.
    """
    require_no_other(models.values())
    if context.world_size < plan.mesh.size:
        plan.require_ranks(context.world_size)
    for model in models.values():
        require_unwrapped(model)
        name, config = type(model).__name__, getattr(model, "config", {})
        plan.require_model(
            name, config_digest(config), plain_config(config), usual_config(type(model))
        )
        require_neighbours(model, plan, family_of(name))
        _require_splittable(model, plan, context.device)


def _require_splittable(model: nn.Module, plan: ExecutionPlan, device: torch.device) -> None:
    """Refuses what diffusers' context parallelism doesn't have for a transformer.

    Raises:
        InputError: says why.
    """
    if plan.mesh.size == 1:
        return
    name, one = type(model).__name__, plan.configuration
    if getattr(model, "_cp_plan", None) is None:
        raise InputError(
            f"{name} has no `_cp_plan`, so diffusers can't split it over ranks; tune with backend "
            "native"
        )
    if hooks := hooks_of_others(model):
        raise InputError(
            f"{name} has hooks for {min(hooks)} on {hooks[min(hooks)]}, which can't be beside "
            "diffusers' context parallelism; take them off, or tune with backend native"
        )
    if one.mesh.ring > 1 and device.type == "cpu":
        raise InputError(
            "diffusers' ring attention needs the log-sum-exp of GPU kernels, and these ranks are "
            "CPUs; use a plan with ring 1"
        )
    if one.attention not in ("auto", "cpu", *KERNELS):
        raise InputError(
            f"diffusers' context parallelism has no attention kernel {one.attention} of this "
            f"machine; use a plan with {', '.join(KERNELS)} or auto"
        )


def _split(model: Any, plan: ExecutionPlan, context: RankContext, undo: ExitStack) -> None:
    """Has diffusers split a transformer's sequences; closing `undo` takes that away.

    Every rank of the world calls it.
    """
    mesh, place = plan.mesh, plan.configuration.placement
    ring, ulysses, sequence = (
        context.groups.axis_group(mesh, place, axes)
        for axes in (("ring",), ("ulysses",), ("ring", "ulysses"))
    )
    if sequence is None:
        return
    made: Any = GroupedConfig
    config = made(ring_degree=mesh.ring, ulysses_degree=mesh.ulysses).over(
        context.device.type, sequence, ring, ulysses
    )
    parallel = ParallelConfig(context_parallel_config=config)
    _take_processors(model, parallel, _kernel(plan), undo)
    cuts, gathers = _cuts_and_gathers(model)
    lengths: dict[str, int] = {}
    if context.device.type == "cpu":
        for name, dim in gathers.items():
            _gather_output(model.get_submodule(name), dim, sequence, lengths, undo)
    else:
        cuts = model._cp_plan
    hooked = _hooked_by_diffusers(model, parallel, cuts, undo)
    for module, forward in hooked.items():
        if module is not model:
            vars(module)["forward"] = forward
            undo.callback(leave_forward, module, forward)
    cut = hooked.get(model) or inner_forward(model)
    family, named = family_of(type(model).__name__), names_arguments(model)

    def fitted(*args: Any, **kwargs: Any) -> Any:
        lengths.update(_fit_call(model, family, config, named(*args, **kwargs)))
        return cut(*args, **kwargs)

    # outside of diffusers' hook on the model, which cuts arguments: ranks agree on whole ones
    replace_forward(model, fitted, undo)


def _cuts_and_gathers(model: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """Where diffusers cuts sequences, and the modules after which it gathers them, with the dim."""
    plan = model._cp_plan
    gathers = {
        name: found.gather_dim
        for name, found in plan.items()
        if isinstance(found, ContextParallelOutput)
    }
    return {name: found for name, found in plan.items() if name not in gathers}, gathers


def _gather_output(
    module: nn.Module, dim: int, group: AxisGroup, lengths: Mapping[str, int], undo: ExitStack
) -> None:
    """Puts a module's output together from ranks that may have unequal pieces of it, which gloo's
    `all_gather`, by which diffusers does it, can't.
    """
    ranks = tuple(sorted(group.ranks))
    ascending = AxisGroup(ranks, group.handle, ranks.index(group.ranks[group.index]))

    def gather(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        sizes = tensor_split_sizes(lengths["image"], ascending.size)
        return all_gather_uneven(output, dim, sizes, ascending)

    undo.callback(module.register_forward_hook(gather).remove)


def _take_processors(model: nn.Module, parallel: Any, kernel: str | None, undo: ExitStack) -> None:
    """Notes what `enable_parallelism` will set on attention processors, and sets their kernel."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        if not hasattr(processor, "_parallel_config"):
            continue
        undo.enter_context(replaced(processor, "_parallel_config", parallel))
        if kernel is not None:
            # not by `set_attention_backend`, which changes the default of all other models
            name = AttentionBackendName(kernel)
            undo.enter_context(replaced(processor, "_attention_backend", name))


def _kernel(plan: ExecutionPlan) -> str | None:
    """diffusers' name of a plan's kernel; None for its own choice."""
    if plan.mesh.ring > 1 and plan.configuration.attention == "auto":
        # its own choice has no log-sum-exp
        return KERNELS["cudnn"]
    return KERNELS.get(plan.configuration.attention)


def _hooked_by_diffusers(
    model: Any, parallel: ParallelConfig, plan: Mapping[str, Any], undo: ExitStack
) -> dict[nn.Module, Callable[..., Any]]:
    """The forwards, with diffusers' hooks, of the modules that it cuts or gathers at; the modules
    themselves are left as they were.

    Raises:
        InputError: diffusers refuses the transformer.
    """
    before = {
        module: (vars(module).pop(HOOKS, None), vars(module).get("forward"))
        for module in model.modules()
    }
    undo.callback(vars(model).pop, "_parallel_config", None)
    hooked = {}
    try:
        with _counting_devices():
            model.enable_parallelism(config=parallel, cp_plan=plan)
    except ValueError as error:
        raise InputError(f"diffusers can't split {type(model).__name__}: {error}") from None
    finally:
        for module, (registry, forward) in before.items():
            own = vars(module)
            if own.pop(HOOKS, None) is not None:
                hooked[module] = own.pop("forward")
                if forward is not None:
                    own["forward"] = forward
            if registry is not None:
                own[HOOKS] = registry
    return hooked


@contextmanager
def _counting_devices() -> Iterator[None]:
    """Has torch count one accelerator where there is none: `enable_parallelism` takes a rank's
    number modulo their count, and divides by zero on CPUs.
    """
    if torch.accelerator.device_count():
        yield
        return
    with replaced(torch.accelerator, "device_count", lambda: 1):
        yield


def _fit_call(
    model: Any, family: ModelFamily, config: Any, inputs: Mapping[str, Any]
) -> dict[str, int]:
    """Has diffusers split a call's sizes, as it would have to be told by its user; gives the tokens
    of each sequence that is cut.

    Raises:
        InputError: it can't, or would give another result than one device.
    """
    name = type(model).__name__
    for given, value in given_values(inputs, family.named_inputs, defaults_of(model)):
        if given not in family.inputs and not isinstance(value, bool | float | str):
            raise InputError(
                f"{name} is given {given}, which diffusers' context parallelism hands on whole "
                "beside sequences that are cut; leave it out, or tune with backend native"
            )
    root = {key: cut for key, cut in model._cp_plan.get("", {}).items() if isinstance(key, str)}
    for key, cut in root.items():
        value = inputs.get(key)
        if value is not None and 1 < value.ndim != cut.expected_dims:
            raise InputError(
                f"{name} is given {key} of {value.ndim} dims, and diffusers' context parallelism "
                f"cuts it with {cut.expected_dims} alone"
            )
    lengths = _lengths(model, inputs)
    heads, ring, ulysses = (
        model.config.num_attention_heads,
        config.ring_degree,
        config.ulysses_degree,
    )
    if why := why_not_split(heads, lengths, ring, ulysses):
        raise InputError(f"diffusers can't split this call of {name}: {why}")
    uneven = is_uneven(heads, lengths, ring, ulysses)
    config.ulysses_anything, config.ring_anything = uneven and ring == 1, uneven and ulysses == 1
    mask = family.text_mask.input if family.text_mask else None
    is_masked = mask is not None and inputs.get(mask) is not None
    if is_masked and (ring > 1 or uneven) and masks_go_wrong(lengths, ring, ulysses):
        raise InputError(
            f"diffusers would mask other keys than those of the padded text in this call of {name} "
            f"over ring{ring} x ulysses{ulysses}; give it texts of one length, or sizes that "
            "divide and ring 1"
        )
    return lengths


def _lengths(model: Any, inputs: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of each sequence of a call that is cut."""
    hidden = inputs["hidden_states"]
    image = hidden.shape[1]
    if hidden.ndim == len(VIDEO):
        image = image_tokens(hidden.shape[2:], model.config.patch_size)
    found = {"image": image}
    parts = (part for part in model._cp_plan.values() if isinstance(part, dict))
    if any("encoder_hidden_states" in part for part in parts):
        found["text"] = inputs["encoder_hidden_states"].shape[1]
    return found


def _compile(model: Any, undo: ExitStack) -> None:
    """Compiles the blocks as diffusers does; closing `undo` takes that away."""
    before = [(vars(module), vars(module).get(COMPILED)) for module in model.modules()]
    model.compile_repeated_blocks()
    for own, compiled in before:
        if own.get(COMPILED) is compiled:
            continue
        if compiled is None:
            undo.callback(own.pop, COMPILED, None)
        else:
            undo.callback(own.__setitem__, COMPILED, compiled)
