"""A plan as a Python script of a library that is called, not started: diffusers, cache-dit."""

from dataclasses import replace

from ditplan.exporting.engine_words import CACHE_DIT_WORDS, DIFFUSERS_WORDS
from ditplan.exporting.engines import Engine
from ditplan.exporting.exported import call_of_plan, commented, evidence
from ditplan.profiles.backend import Exported
from ditplan.profiles.catalog import find_model, model_names
from ditplan.profiles.context_parallel import is_uneven
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import quoted
from ditplan.profiles.plan import ExecutionPlan

DIFFUSERS = Engine(
    name="diffusers",
    version="0.42.1",
    axes=("ring", "ulysses"),
    modes=("eager", "compile"),
    words=DIFFUSERS_WORDS,
)
CACHE_DIT = replace(DIFFUSERS, name="cache-dit", version="1.5.3", words=CACHE_DIT_WORDS)

SCRIPT = """\
import os
import sys

import torch
import torch.distributed as dist
{imports}

model, prompt, out = sys.argv[1:4]
dist.init_process_group("nccl")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
if dist.get_world_size() != {ranks}:
    raise SystemExit(f"this plan is for {ranks} ranks, there are {{dist.get_world_size()}}")
pipe = {pipeline}.from_pretrained(model, torch_dtype=torch.{dtype}).to(device)
{parallel}{compiled}
result = pipe(
    prompt=prompt,
{arguments}
    generator=torch.Generator(device).manual_seed(0),
)
if dist.get_rank() == 0:
    {save}
dist.destroy_process_group()
"""


def export_diffusers(plan: ExecutionPlan, name: str) -> Exported:
    """A script that torchrun starts: diffusers' own context parallelism."""
    one, parallel = plan.configuration, ""
    if one.mesh.size > 1:
        parallel = (
            "pipe.transformer.enable_parallelism(\n"
            f"    config=ContextParallelConfig({_degrees(DIFFUSERS, plan)})\n)\n"
        )
    imports = f"from diffusers import ContextParallelConfig, {plan.model.pipeline_class}"
    return _script(DIFFUSERS, plan, name, imports, parallel)


def export_cache_dit(plan: ExecutionPlan, name: str) -> Exported:
    """A script that torchrun starts: cache-dit's context parallelism, without its caches."""
    one, parallel = plan.configuration, ""
    if one.mesh.size > 1:
        parallel = (
            "cache_dit.enable_cache(\n"
            "    pipe,\n"
            "    cache_config=None,\n"
            f"    parallelism_config=cache_dit.ParallelismConfig({_degrees(CACHE_DIT, plan)}),\n)\n"
        )
    imports = f"import cache_dit\nfrom diffusers import {plan.model.pipeline_class}"
    return _script(CACHE_DIT, plan, name, imports, parallel)


def require_pipeline_class(plan: ExecutionPlan, name: str) -> None:
    """Refuses a plan of a pipeline whose name could be anything to Python.

    Raises:
        InputError: names the field.
    """
    if not plan.model.pipeline_class.isidentifier():
        raise InputError(
            f"{name}: model.pipeline_class is {quoted(plan.model.pipeline_class)}; it must be the "
            "name of a class of diffusers"
        )


def saving(plan: ExecutionPlan) -> tuple[str, str]:
    """A line to import, and one that saves what the pipeline gave to `out`."""
    if plan.workload.frames > 1:
        called = "export_to_video(result.frames[0], out)"
        return "\nfrom diffusers.utils import export_to_video", called
    return "", "result.images[0].save(out)"


def _degrees(engine: Engine, plan: ExecutionPlan) -> str:
    """Arguments for the axes that are split, and for sizes of a known model that don't divide; a
    degree of 1 is left to the library.
    """
    mesh = plan.mesh
    words = [f"{word.in_file}={value}" for word, value in engine.words.said(plan.configuration)]
    if plan.model.name in model_names():
        model, work = find_model(plan.model.name), plan.workload
        lengths = {"image": model.image_tokens(work), "text": model.text_tokens(work)}
        if is_uneven(model.heads, lengths, mesh.ring, mesh.ulysses):
            split = [axis for axis in ("ring", "ulysses") if getattr(mesh, axis) > 1]
            words += [f"{axis}_anything=True" for axis in split]
    return ", ".join(words)


def _script(
    engine: Engine, plan: ExecutionPlan, name: str, imports: str, parallel: str
) -> Exported:
    engine.require_axes(plan)
    require_pipeline_class(plan, name)
    w = plan.workload
    arguments, unknown = call_of_plan(plan)
    left = engine.not_expressed(plan) + unknown
    if w.batch > 1:
        left += (f"batch {w.batch}: give so many prompts",)
    is_compiled = "compile" in plan.configuration.mode
    lines = [
        f"For {engine.name} {engine.version}; start it as",
        f"  torchrun --nproc-per-node={plan.mesh.size} FILE MODEL PROMPT OUT",
        *evidence(plan, name, engine.name, left),
    ]
    more, save = saving(plan)
    body = SCRIPT.format(
        imports=imports + more,
        ranks=plan.mesh.size,
        pipeline=plan.model.pipeline_class,
        dtype=w.dtype,
        parallel=parallel,
        compiled="pipe.transformer.compile_repeated_blocks()\n" if is_compiled else "",
        arguments="\n".join(f"    {key}={value!r}," for key, value in arguments.items()),
        save=save,
    )
    return Exported(engine.name, commented(lines) + body, left)
