"""`run`: executes a plan."""

from pathlib import Path
from typing import Annotated

import typer

from ditplan.command.backends import shown_instead
from ditplan.command.hosts import asked_hosts, show_what_would_run
from ditplan.command.options import DryRun, HostOptions, Json, Weights, with_options
from ditplan.command.terminal import Terminal
from ditplan.models import model_of_plan
from ditplan.outputs import require_folder, require_picture
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.plan import ExecutionPlan

NOTHING_RAN = dict.fromkeys(
    ("out", "latency_s", "predicted_s", "measured_s", "end_to_end_s", "peak_memory_bytes")
)
"""What is said of a plan whose backend runs nothing."""


def decoding_on(plan: ExecutionPlan, ranks: int | None) -> ExecutionPlan:
    """The plan with so many ranks that decode; as it is for None.

    Raises:
        InputError: it has fewer ranks.
    """
    if ranks is None:
        return plan
    if ranks > plan.mesh.size:
        raise InputError(
            Setting("vae_parallel", ranks), f": the plan has {plan.mesh.size}; use that or less"
        )
    return plan.configured(vae_parallel=ranks)


@with_options
def run_command(
    plan: Annotated[Path, typer.Option(help="A plan written by `tune`.")],
    prompt: Annotated[str, typer.Option(help="What the picture shows.")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, .jpg or .webp.")],
    hosts: HostOptions,
    weights: Weights = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise.")] = 0,
    revalidate: Annotated[
        bool,
        typer.Option(
            "--revalidate",
            help="Measure the plan here first: if it is as fast as where it was made, its file "
            "says from then on that it holds here.",
        ),
    ] = False,
    vae_parallel: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many ranks decode the picture together; the plan's if left out."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run once more and write when each rank does what, for ui.perfetto.dev and "
            "`explain --trace`; ranks on CPUs only.",
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Execute a plan: make a picture, and compare the time with what was predicted and measured."""
    from ditplan.running import run_plan

    terminal = Terminal(as_json)
    loaded = decoding_on(ExecutionPlan.load(plan), vae_parallel)
    require_picture(out, loaded.workload)
    if trace is not None:
        require_folder(trace)
    if (text := shown_instead(loaded, plan)) is not None:
        terminal.show(text)
        terminal.finish({**NOTHING_RAN, "ranks": loaded.mesh.size, "would_run": text})
        return
    model = model_of_plan(loaded, plan, weights)
    entries = asked_hosts(hosts, terminal.say)
    if dry_run:
        show_what_would_run(terminal, entries, needed=loaded)
        return
    result, ran = run_plan(
        loaded,
        model,
        prompt,
        out,
        hosts=entries,
        seed=seed,
        say=terminal.say,
        revalidate=plan if revalidate else None,
        trace=trace,
    )
    predicted_s = ran.prediction.latency_s if ran.prediction else None
    measured_s = ran.measurement.latency_s if ran.measurement else None
    compared = "".join(
        f", {how} {seconds:.4g} s ({100 * (result.latency_s / seconds - 1):+.0f}%)"
        for how, seconds in (("predicted", predicted_s), ("measured by tune", measured_s))
        if seconds
    )
    terminal.show(f"{out}: {ran.mesh}, denoised in {result.latency_s:.4g} s{compared}")
    if trace is not None:
        terminal.show(f"{trace}: open it in https://ui.perfetto.dev, or give it to `explain`")
    terminal.finish(
        {
            **({} if trace is None else {"trace": str(trace)}),
            "out": str(out),
            "latency_s": result.latency_s,
            "predicted_s": predicted_s,
            "measured_s": measured_s,
            "end_to_end_s": result.end_to_end_s,
            "ranks": ran.mesh.size,
            "peak_memory_bytes": result.memory_bytes,
        }
    )
