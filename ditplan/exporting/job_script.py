"""A plan as the script that launchers start: what calls `ditplan.parallelize`."""

from ditplan.exporting.exported import call_of_plan, commented, evidence
from ditplan.exporting.scripts import require_pipeline_class, saving
from ditplan.profiles.backend import Exported
from ditplan.profiles.plan import ExecutionPlan

SCRIPT = """\
import sys

import torch
import torch.distributed as dist
{imports}

import ditplan

plan_file, model, prompt, out = sys.argv[1:5]
plan = ditplan.load(plan_file)
here = ditplan.attach(plan)
pipe = {pipeline}.from_pretrained(model, torch_dtype=torch.{dtype}).to(here.device)
with ditplan.parallelize(pipe, plan):
    result = pipe(
        prompt={prompt},
{arguments}
        generator=torch.Generator("cpu").manual_seed(0),
    )
if here.rank == here.plan.configuration.placement[0]:
    {save}
dist.destroy_process_group()
"""


def export_native(plan: ExecutionPlan, name: str) -> Exported:
    """A script for what `export --to torchrun`, mpirun, slurm or kubernetes writes."""
    require_pipeline_class(plan, name)
    work = plan.workload
    arguments, unknown = call_of_plan(plan)
    lines = [
        "Started by a launcher, such as what `ditplan export --to torchrun` writes, as",
        "  FILE PLAN MODEL PROMPT OUT",
        *evidence(plan, name, not_expressed=unknown),
    ]
    more, save = saving(plan)
    body = SCRIPT.format(
        imports=f"from diffusers import {plan.model.pipeline_class}{more}",
        pipeline=plan.model.pipeline_class,
        dtype=work.dtype,
        prompt="prompt" if work.batch == 1 else f"[prompt] * {work.batch}",
        arguments="\n".join(f"        {key}={value!r}," for key, value in arguments.items()),
        save=save,
    )
    return Exported("native", commented(lines) + body, unknown)
