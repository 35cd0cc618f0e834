"""Checks a family against the diffusers class it describes: what it forgets, and one device = two.

`python -m ditplan.runtime.family_check NAME CONFIG` takes the name of a file in
`profiles/families/` and a small config of the class (JSON): a few blocks, few heads.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import FAMILIES, ModelFamily, load_families
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.batch.call_check import defaults_of, described, given_values
from ditplan.runtime.batch.call_split import PASSES
from ditplan.runtime.groups import RankContext
from ditplan.runtime.models.folder import read_json
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.models.inspection import config_digest, diffusers_class, plain_config
from ditplan.runtime.models.loading import random_model
from ditplan.runtime.native import parallelize
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.sequence.hooks import apply_splits
from ditplan.runtime.takeover import matching_modules, names_arguments, sample_of, submodule

EXACT = 1e-4
SAMPLES, TEXT_TOKENS, FRAMES, ROWS, COLUMNS = 3, 11, 2, 7, 9
"""No two of the lengths that follow are equal: a tensor's dim says what it runs along."""

MORE_ROWS = 10

SECONDS = 300.0


def check_family(family: ModelFamily, config: Mapping[str, Any]) -> list[str]:
    """What is missing in a family, a sentence each, by a transformer of this small config."""
    model = _model(family, config)
    wrong = list(_unknown_names(model, family))
    if not wrong:
        wrong = [
            *_unreached(model, family),
            *_unnamed(model, family),
            *_counting(model, family),
            *_uncut(model, family),
        ]
    return wrong or _differing(family, config)


def _model(family: ModelFamily, config: Mapping[str, Any]) -> Any:
    model_class = diffusers_class(family.transformer_class)
    with torch.device("meta"):
        whole = plain_config(model_class.from_config(dict(config)).config)
    return random_model(family.transformer_class, whole, torch.device("cpu"), torch.float32)


def _inputs(model: Any, family: ModelFamily, seed: int = 0, rows: int = ROWS) -> dict[str, Any]:
    frames = FRAMES if family.frames_per_latent > 1 else 1
    size = (frames, rows, COLUMNS)
    sizes = InputShape.of_tokens(family, model.config, SAMPLES, TEXT_TOKENS, size)
    shapes = family.inputs_of(model.config)
    device = torch.device("cpu")
    return random_inputs(shapes, sizes, model.config, device, torch.float32, seed, family)


def _unknown_names(model: nn.Module, family: ModelFamily) -> Iterator[str]:
    taken = set(signature(type(model).forward).parameters)
    paths = [(split.name, "splits") for split in family.splits if split.place == "output"]
    paths += [(gather.name, "gathers") for gather in family.gathers]
    paths += [(path, "blocks") for path in family.blocks]
    for path, where in paths:
        try:
            submodule(model, path)
        except InputError:
            yield f"{where}: {type(model).__name__} has no module {path}"
    for attention in family.self_attentions:
        if not matching_modules(model, attention.modules):
            yield f"self_attentions: no module matches {attention.modules}"
    attended = {segment for one in family.self_attentions for segment in one.segments}
    for segment in sorted(attended - {split.segment for split in family.splits}):
        yield f"splits: self-attention is over {segment}, which none of them cuts"
    names = {(name.partition(".")[0], "batched_inputs") for name in family.batched_inputs}
    names |= {(name.partition(".")[0], "whole_inputs") for name in family.whole_inputs}
    names |= {(name, "refused_inputs") for name in family.refused_inputs}
    names |= {(name.partition(".")[0], "inputs") for name in family.inputs}
    names |= {(split.name, "splits") for split in family.splits if split.place == "input"}
    for name, where in sorted(names):
        if name not in taken:
            yield f"{where}: the forward of {type(model).__name__} takes no {name}"


def _unreached(model: Any, family: ModelFamily) -> Iterator[str]:
    """Blocks that a forward doesn't call, and inputs with a batch that aren't declared so."""
    blocks = [
        (f"{path}.{name}", block)
        for path in family.blocks
        for name, block in submodule(model, path).named_children()
    ]
    called: set[str] = set()
    inputs = _inputs(model, family)
    with ExitStack() as undo:
        for name, block in blocks:

            def note(_module: nn.Module, _args: Any, name: str = name) -> None:
                called.add(name)

            undo.callback(block.register_forward_pre_hook(note).remove)
        with torch.no_grad():
            model(**inputs)
    for name, _ in blocks:
        if name not in called:
            yield f"blocks: a forward doesn't call {name}"
    for name, value in given_values(inputs, family.named_inputs, {}):
        of_samples = isinstance(value, torch.Tensor) and value.ndim > 0
        of_samples = of_samples or isinstance(value, list)
        if of_samples and len(value) == SAMPLES and name not in family.batched_inputs:
            yield f"batched_inputs: {name} has a batch dim and isn't among them"


def unnamed_inputs(model_class: type[nn.Module], family: ModelFamily) -> list[str]:
    """The arguments of a transformer's forward of which the family doesn't say what ranks get."""
    names = {name.partition(".")[0] for name in family.named_inputs | set(family.refused_inputs)}
    return [
        name for name in list(signature(model_class.forward).parameters)[1:] if name not in names
    ]


def _unnamed(model: Any, family: ModelFamily) -> Iterator[str]:
    """Arguments, of the root and of blocks, of which the family doesn't say what ranks get."""
    for name in unnamed_inputs(type(model), family):
        yield (
            f"whole_inputs: {name} of the forward is neither among them nor among batched_inputs, "
            "splits and refused_inputs"
        )
    for (path, name), value in _block_arguments(model, family, ROWS).items():
        if name not in family.named_arguments:
            yield (
                f"block_arguments: {name} of {path} ({described(value)}) is neither among them nor "
                "among carried, splits and counts"
            )


def _counting(model: Any, family: ModelFamily) -> Iterator[str]:
    """Numbers that blocks are given and that go by how many tokens there are."""
    cut = {count.name for count in family.counts} | {family.rows.argument if family.rows else ""}
    more = _block_arguments(model, family, MORE_ROWS)
    for (path, name), value in _block_arguments(model, family, ROWS).items():
        other = more.get((path, name))
        if isinstance(value, int) and other != value and name not in cut:
            yield f"counts: {name} of {path} goes by the number of tokens ({value}, {other})"


def _block_arguments(model: Any, family: ModelFamily, rows: int) -> dict[tuple[str, str], Any]:
    """What the blocks of each list are given in a forward, the last that isn't None."""
    found: dict[tuple[str, str], Any] = {}
    with ExitStack() as undo:
        for path in family.blocks:
            for block in submodule(model, path).children():

                def note(
                    block: nn.Module,
                    args: Any,
                    kwargs: dict[str, Any],
                    path: str = path,
                ) -> None:
                    given = names_arguments(block)(*args, **kwargs)
                    values = given_values(given, frozenset(given), defaults_of(block))
                    found.update({(path, name): value for name, value in values})

                undo.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        with torch.no_grad():
            model(**_inputs(model, family, rows=rows))
    return found


def _uncut(model: Any, family: ModelFamily) -> Iterator[str]:
    """Arguments of blocks that still run along the whole sequence after it was cut."""
    inputs = _inputs(model, family)
    lengths: dict[int, str] = {}

    def cut(split: Any, tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.shape[split.dim]
        lengths[whole] = split.segment
        return tensor.narrow(split.dim, 0, whole // 2)

    if family.rows:
        return
    found: dict[str, None] = {}
    with ExitStack() as undo:
        apply_splits(model, family, cut, undo)
        for path in family.blocks:
            for block in submodule(model, path).children():
                hook = partial(_look, family, path, lengths, found, names_arguments(block))
                undo.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        # attention may meet lengths that don't fit, after its block was seen
        with torch.no_grad(), suppress(RuntimeError, ValueError, IndexError):
            model(**inputs)
    if not lengths:
        yield "splits: none of them cuts anything in a forward"
    yield from found


def _look(
    family: ModelFamily,
    path: str,
    lengths: dict[int, str],
    found: dict[str, None],
    named: Callable[..., dict[str, Any]],
    _block: nn.Module,
    args: Any,
    kwargs: dict[str, Any],
) -> None:
    """Notes the arguments of a block that have the length of a whole segment."""
    mask = family.text_mask.argument if family.text_mask else None
    for argument, value in named(*args, **kwargs).items():
        for one in _tensors(value):
            along = [lengths[n] for n in one.shape[:-1] if n in lengths]
            if along and argument != mask:
                found[
                    f"splits: {argument} of {path} still runs along the whole {along[0]}: "
                    f"{tuple(one.shape)}"
                ] = None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _differing(family: ModelFamily, config: Mapping[str, Any]) -> list[str]:
    """Meshes of two ranks that don't give what one device gives."""
    alone = outputs(_model(family, config), family)
    meshes = [Mesh(ulysses=2), Mesh(ring=2), Mesh(dp=2), Mesh(cfg=2)]
    if family.guidance == "embedded":
        meshes.pop()
    wrong = []
    with RankPool(None, 2, "cpu") as pool:
        for mesh in meshes:
            found = pool.run(outputs_on, family, dict(config), mesh, timeout_s=SECONDS)
            furthest = max(float((one - alone).abs().max()) for one in found)
            if furthest > EXACT * max(1.0, float(alone.std())):
                wrong.append(f"{mesh}: {furthest:.2g} away from one device")
    return wrong


def outputs(model: Any, family: ModelFamily) -> torch.Tensor:
    """The predictions of a step, one call after the other."""
    by_calls = family.guidance == "calls"
    found = []
    with torch.no_grad():
        for seed, name in enumerate(PASSES if by_calls else PASSES[:1]):
            with model.cache_context(name) if by_calls else nullcontext():
                sample = sample_of(model(**_inputs(model, family, seed), return_dict=False))
            found.append(torch.stack(sample) if isinstance(sample, list) else sample)
    return torch.stack(found)


def outputs_on(
    context: RankContext, family: ModelFamily, config: dict[str, Any], mesh: Mesh
) -> torch.Tensor:
    """The predictions of the second of two steps, on a mesh."""
    model = _model(family, config)
    pipeline = SimpleNamespace(transformer=model, scheduler=SimpleNamespace(step=lambda: None))
    planned = PlannedModel.of(
        family.name, family.pipeline_class, family.transformer_class, config_digest(model.config)
    )
    work = Workload(
        height=1,
        width=1,
        steps=1,
        passes=1 if family.guidance == "embedded" else 2,
        text_tokens=TEXT_TOKENS,
        dtype="float32",
    )
    plan = bare_plan(planned, work, mesh)
    with parallelize(pipeline, plan, context):
        outputs(model, family)
        return outputs(model, family)


def main(arguments: list[str]) -> int:
    """0 if a family is whole, 1 if something is missing, 2 for wrong arguments."""
    if len(arguments) != 2:
        sys.stderr.write(f"{__doc__}")
        return 2
    name, config = arguments
    families = {family.name: family for family in load_families().values()}
    if name not in families:
        sys.stderr.write(f"{name}: no such file in {FAMILIES}; there are {', '.join(families)}\n")
        return 2
    expected = families[name].transformer_class
    try:
        given = read_json(Path(config), f"a small config of {expected}")
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if given.get("_class_name", expected) != expected:
        sys.stderr.write(f"{config}: is of a {given['_class_name']}, {name} of {expected}\n")
        return 2
    wrong = check_family(families[name], given)
    for sentence in wrong:
        sys.stdout.write(f"{sentence}\n")
    if not wrong:
        sys.stdout.write(f"{name}: complete; 2 ranks give what one device gives\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    # ranks find functions by the module that is imported, not the one that is run
    from ditplan.runtime import family_check

    sys.exit(family_check.main(sys.argv[1:]))
