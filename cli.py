"""The command line: what each command takes and shows. What it does lies in `ditplan.planning`,
`ditplan.measuring` and `ditplan.running`, for Python as well; a command imports it when it runs,
for the sake of others.
"""

import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
except ModuleNotFoundError:
    sys.stderr.write(
        "error: what ditplan needs isn't installed for this Python: `make demo` makes an "
        "environment, then it is `.venv/bin/python cli.py`; or `pip install -e .`\n"
    )
    sys.exit(2)

from ditplan import __version__
from ditplan.command.backends import show_backends
from ditplan.command.check import check_command
from ditplan.command.cluster import cluster_app
from ditplan.command.compare import compare_command
from ditplan.command.explain import explain_command
from ditplan.command.export import export_command
from ditplan.command.files import Named, names_of, shown_file
from ditplan.command.hosts import asked_hosts, refuse_hosts, refuse_measuring, show_what_would_run
from ditplan.command.import_config import import_config_command
from ditplan.command.options import (
    BackendName,
    Cluster,
    DryRun,
    Gpus,
    HostOptions,
    Json,
    MeshOptions,
    OptionalModel,
    Refresh,
    Report,
    Weights,
    WorkloadOptions,
    given,
    with_options,
)
from ditplan.command.preflight import preflight_command
from ditplan.command.profile import profile_command
from ditplan.command.report import prepare_report, report_on
from ditplan.command.resume import named_model, plan_to_resume
from ditplan.command.run import run_command
from ditplan.command.simulate import simulate_command
from ditplan.command.table import table_command
from ditplan.command.terminal import Terminal, run
from ditplan.models import model_named
from ditplan.outputs import measured_plans, refuse_to_replace, require_folder
from ditplan.planner.objectives import ObjectiveName
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.profiles.book import Otherwise
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.host_choice import HostChoice
from ditplan.runtime.ranks.launchers import launcher_of
from ditplan.settings import PlanSettings, checked

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def show_version(is_asked: bool) -> None:
    """Prints the version and ends the command."""
    if is_asked:
        typer.echo(f"ditplan {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """Finds and runs the fastest parallel plan for a diffusion transformer on your GPUs."""


app.command(
    name="profile",
    epilog="Examples: `ditplan profile --hosts hosts.txt --out cluster.json`, "
    "`ditplan profile --model sd3 --out model.json`",
)(profile_command)


@app.command(
    name="tune",
    epilog="Examples: `ditplan tune --model sd3 --hosts hosts.txt`, "
    "`ditplan tune --model sd3 --cluster 8xa100-nvlink --json`",
)
@with_options
def tune_command(
    workload: WorkloadOptions,
    mesh: MeshOptions,
    hosts: HostOptions,
    model: OptionalModel = None,
    cluster: Cluster = None,
    gpus: Gpus = None,
    backend: BackendName = "native",
    objective: Annotated[
        ObjectiveName,
        typer.Option(
            help="What to make best: latency; throughput, of as many copies of a plan as there is "
            "room for; or gpus, the fewest that keep --max-latency.",
        ),
    ] = "latency",
    max_latency: Annotated[
        float | None,
        typer.Option(min=0, help="The most seconds of denoising a call may take, copies running."),
    ] = None,
    workloads: Annotated[
        Path | None,
        typer.Option(
            help='A mix to plan for on paper, such as [{"weight": 3, "height": 1024}, ...]: a plan '
            "for each workload, and what one mesh for all would cost.",
        ),
    ] = None,
    otherwise: Annotated[
        Otherwise,
        typer.Option(
            help="What a book (--workloads) does with a request that is for none of its workloads: "
            "refuse it, or serve it by the plan for the nearest larger one.",
        ),
    ] = "refuse",
    quality: Annotated[
        str,
        typer.Option(
            help="safe (an exact plan, unless one with PipeFusion and a warm-up step is faster by "
            "more than predictions can miss), exact, any (the fastest, step caches too), or the "
            "largest relative L2 distance of the final latents from one device's.",
        ),
    ] = "safe",
    measure: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Run so many of the best plans for real, and the rule of thumb beside them; fewer "
            "when no other can be more than 3% faster. Default with hosts: 3; 0 for a full-size "
            "model on CPUs.",
        ),
    ] = None,
    sampler: Annotated[
        SamplerName,
        typer.Option(
            help="Who chooses what is run: planner, which knows what plans should cost; or one of "
            "Optuna's, which only know what was run (gp needs torch).",
        ),
    ] = "planner",
    weights: Weights = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts, one a line: plan for texts of their lengths. Needs the model's "
            "tokenizer, in --weights or the folder that --model names.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds after which no new run is started."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write: plan.json, or book.json with --workloads."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Run the plan of --plan again, and beside it only what could now be faster.",
        ),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(help="The plan to go on from, with --resume; replaced unless --out is given."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace a plan that was measured by one on paper, or for another model or "
            "workload.",
        ),
    ] = False,
    report: Report = None,
    dry_run: DryRun = False,
    refresh: Refresh = False,
    as_json: Json = False,
) -> None:
    """Find a model's fastest plan: price all of them, run the best ones for real, write it down.

    With --hosts what is missing is measured first. Measurements lie beside the plan in OUT.study; a
    tune that was ended goes on from there.
    """
    from ditplan.command.pareto import show_pareto
    from ditplan.planning import plan as plan_model
    from ditplan.planning import plan_book

    terminal = Terminal(as_json)
    others = {"cluster": cluster, "workloads": workloads, "prompt_file": prompt_file}
    resumed = plan_to_resume(resume, plan, workload, others)
    model = named_model(model, resumed)
    out = out or plan or Path("plan.json" if workloads is None else "book.json")
    require_folder(out)
    if out.suffix == ".study":
        raise InputError(f"{out}: measurements go to a folder of this name; name another file")
    prepare_report(report, workloads)
    asked = {
        "gpus": gpus,
        "backend": backend,
        "objective": objective,
        "max_latency_s": max_latency,
        "quality": quality,
        "weights": weights,
        "prompt_file": prompt_file,
        **given(workload),
        **given(mesh),
    }
    settings = checked(PlanSettings, asked)
    paper = "workloads" if workloads is not None else "cluster" if cluster is not None else None
    if workloads is not None:
        refuse_hosts(hosts, Setting("workloads"), " plans on paper")
    chosen = asked_hosts(hosts, terminal.say, is_on_paper=paper is not None)
    if dry_run:
        if paper is not None:
            wrong = Setting("dry_run")
            raise InputError(Setting(paper), ": nothing runs on paper; leave out ", wrong)
        show_what_would_run(terminal, chosen, gpus)
        return
    if not force and resumed is None:
        on_paper = paper is not None or measure == 0
        protect_measured(out, model, settings, chosen, on_paper=on_paper)
    if workloads is not None:
        refuse_measuring(Setting("workloads"), measure=measure, sampler=sampler, refresh=refresh)
        book = plan_book(
            model, cluster, workloads, otherwise=otherwise, progress=terminal.say, **settings
        )
        book.plan.save(out)
        terminal.show(book.table())
        terminal.show(f"{out}: {book}")
        terminal.finish({"plan": str(out)} | book.to_json())
        return
    found = plan_model(
        model,
        cluster,
        hosts=chosen,
        measure=measure,
        sampler=sampler,
        budget_s=budget,
        study=out.with_suffix(".study"),
        resume=resumed,
        refresh=refresh,
        progress=terminal.say,
        **settings,
    )
    if not force:
        is_measured = found.plan.measurement is not None
        refuse_to_replace(out, found.found.spec, found.plan.workload, is_measured=is_measured)
    found.plan.save(out)
    terminal.show(found.table())
    show_pareto(found.found, terminal)
    terminal.show(f"{out}: {found}")
    written = report_on(report, out, cluster, model, terminal)
    terminal.finish({"plan": str(out)} | found.to_json() | written)


app.command(
    name="simulate",
    epilog="Examples: `ditplan simulate --cluster 8xa100-nvlink --model sd3 --cfg 2 --ulysses 4`, "
    "`ditplan simulate --cluster 8xl20-pcie --model flux-dev --pipefusion 8 --trace trace.json`",
)(simulate_command)


app.command(
    name="run",
    epilog='Example: `ditplan run --plan plan.json --prompt "a red circle" --out image.png`',
)(run_command)


app.command(
    name="preflight",
    epilog="Examples: `ditplan preflight --hosts hosts.txt`, "
    "`ditplan preflight --hosts n[01-04] --json`",
)(preflight_command)


app.command(
    name="check",
    epilog="Examples: `ditplan check --baseline plans/baseline`, "
    "`ditplan check --baseline plans/baseline --update`",
)(check_command)


app.command(
    name="explain",
    epilog="Examples: `ditplan explain --plan plan.json`, "
    "`ditplan explain --plan plan.json --cluster cluster.json --json`",
)(explain_command)


app.command(
    name="compare",
    epilog="Examples: `ditplan compare old.json new.json`, "
    "`ditplan compare old.study new.study --json`",
)(compare_command)


app.command(
    name="table",
    epilog="Examples: `ditplan table --book book.json`, `ditplan table --book book.json --json`",
)(table_command)


app.command(
    name="export",
    epilog="Examples: `ditplan export --plan plan.json --to slurm > job.sh`, "
    "`ditplan export --plan plan.json --to sglang`",
)(export_command)


app.command(
    name="import-config",
    epilog='Example: `ditplan import-config "torchrun --nproc_per_node=8 flux_example.py '
    '--model black-forest-labs/FLUX.1-dev --ulysses_degree 8" --from xdit '
    "--cluster 8xa100-nvlink`",
)(import_config_command)


app.add_typer(cluster_app, name="cluster")


@app.command(name="list", epilog="Examples: `ditplan list models`, `ditplan list backends --json`")
def list_command(
    what: Annotated[Named, typer.Argument(help="Of what.")],
    as_json: Json = False,
) -> None:
    """Name what there is: one name a line; of backends, what each can do and where it is from."""
    terminal = Terminal(as_json)
    if what == "backends":
        show_backends(terminal)
        return
    names = names_of(what)
    terminal.show("\n".join(names))
    terminal.finish({"names": names})


@app.command(
    name="show", epilog="Examples: `ditplan show plan.json`, `ditplan show plan.study --json`"
)
def show_command(
    file: Annotated[
        Path, typer.Argument(help="A plan, a book, a cluster, or the folder of a study.")
    ],
    as_json: Json = False,
) -> None:
    """Say what a file of ditplan's holds."""
    terminal = Terminal(as_json)
    shown = shown_file(file)
    terminal.show(shown.text)
    terminal.finish(shown.fields)


def protect_measured(
    out: Path, model: str, settings: PlanSettings, hosts: HostChoice | None, *, on_paper: bool
) -> None:
    """Refuses to tune for what may not replace a measured plan, before it takes long.

    Raises:
        InputError: says what is there.
    """
    if measured_plans(out):
        from ditplan.measuring import local_workload

        spec = model_named(model).spec
        # what other machines have for devices isn't known yet
        is_here = hosts is None or all(launcher_of(one.host, {}) == "direct" for one in hosts.hosts)
        workload = local_workload(spec, settings) if is_here and not on_paper else None
        refuse_to_replace(out, spec, workload, is_measured=not on_paper)


def main() -> None:
    """Runs the command line."""
    run(app, sys.argv[1:])


if __name__ == "__main__":
    main()
