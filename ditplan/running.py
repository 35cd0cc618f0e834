"""Running a plan on real hosts, and starting ranks there. Imports neither planner nor torch: ranks
load what they need, and planning on paper starts none.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditplan.models import NamedModel
from ditplan.outputs import save_files
from ditplan.profiles.backends import find_backend, require_supported
from ditplan.profiles.capabilities import require_ranks_to_run_in
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.evidence import chosen_line
from ditplan.profiles.family import family_of
from ditplan.profiles.host import Host
from ditplan.profiles.host_choice import HostChoice
from ditplan.profiles.hosts import load_hosts
from ditplan.profiles.job_seats import on_hosts, on_its_own
from ditplan.profiles.limits import ModelLimits
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import RankRun
from ditplan.profiles.record import write_atomically
from ditplan.profiles.trace_events import recorded_trace
from ditplan.revalidating import revalidated
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.ranks.preflight import require_usable
from ditplan.runtime.ranks.survey import DryRun, dry_run, room_on

if TYPE_CHECKING:
    from ditplan.runtime.workers import Workers

Hosts = Path | str | Sequence[Host] | HostChoice | None
"""A hosts file, a list of hosts as in `n[1-4]:8,m1:4`, what they say, or a choice among them; None
is this machine."""
Say = Callable[[str], None]


def choice_of(hosts: Hosts) -> HostChoice | None:
    """The hosts that a file, a list or what they say names; None is this machine.

    Raises:
        InputError: a wrong line or host.
    """
    if hosts is None or isinstance(hosts, HostChoice):
        return hosts
    return HostChoice.of(load_hosts(hosts) if isinstance(hosts, str | Path) else hosts)


def start_workers(
    hosts: Hosts, gpus: int | None, needed: ExecutionPlan | None = None, say: Say | None = None
) -> "Workers":
    """Ranks on the hosts: as many as a plan needs, else `gpus`, else all there is room for.

    Raises:
        InputError: hosts that can't be used, or too few slots. ClusterError: a host that can't be
            reached, or that differs from the others in what must be the same.
    """
    from ditplan.runtime.workers import Workers, room_here

    choice = choice_of(hosts)
    if choice is not None:
        require_usable(choice, environment(), say or (lambda _: None))
    room = None if choice is None else room_on(choice)
    room = room or room_here()
    return Workers(choice, ranks_in(room.ranks, gpus, needed), room.device, say)


def ranks_in(room: int, gpus: int | None, needed: ExecutionPlan | None) -> int:
    """How many ranks are started where there is room for so many.

    Raises:
        InputError: more are asked for.
    """
    if needed is not None:
        if room < needed.mesh.size:
            needed.require_ranks(room)
        return needed.mesh.size
    if gpus is not None and gpus > room:
        raise InputError(
            Setting("gpus", gpus), f": there is room for {room} rank(s); use at most {room}"
        )
    return gpus or room


def what_would_run(hosts: Hosts, gpus: int | None, needed: ExecutionPlan | None = None) -> DryRun:
    """What `start_workers` would start where, without any rank.

    Raises:
        InputError: as `start_workers`, or an interface that can't be used. ClusterError: hosts that
            can't be reached, or don't reach each other.
    """
    choice = choice_of(hosts) or HostChoice.of([Host("localhost")])
    return dry_run(choice, lambda room: ranks_in(room, gpus, needed))


def run_plan(
    plan: ExecutionPlan,
    model: NamedModel,
    prompt: str,
    out: Path,
    *,
    hosts: Hosts = None,
    seed: int = 0,
    say: Say,
    revalidate: Path | None = None,
    trace: Path | None = None,
) -> tuple[RankRun, ExecutionPlan]:
    """Makes the prompt's picture with the plan; gives the plan that ran as well: with `revalidate`,
    its file, it is measured here first and saved there. What ranks do is recorded in `trace`.

    Raises:
        InputError: a backend that doesn't run it here; hosts, devices or software that the plan
            isn't for, or a workload that the model or the devices can't do; or `out` can't be
            written. ClusterError: a rank failed.
    """
    backend = find_backend(plan.backend)
    require_ranks_to_run_in(backend.capabilities)
    require_supported(backend, plan.configuration, model.spec, plan.workload)
    plan, choice = _on_its_devices(plan, choice_of(hosts))
    with start_workers(choice, None, needed=plan, say=say) as workers:
        limits = ModelLimits.of_spec(model.spec, family_of(model.spec.transformer_class))
        plan.require_workload(limits, workers.device)
        workers.pool()
        noise = "" if model.weights else f"; no weights for {model.spec.name}: it will be noise"
        say(f"{plan.mesh}, {plan.workload}: running on {workers.ranks} rank(s){noise}")
        if revalidate is not None:
            plan = revalidated(plan, revalidate, model, workers, say)
        say(chosen_line(plan))
        ran, files = workers.generate(
            model.spec, model.weights, plan, prompt, seed, out.suffix, records=trace is not None
        )
        save_files(files, out)
        if trace is not None:
            title = f"{model.spec.name}: {plan.workload}, {plan.mesh}, recorded"
            text = recorded_trace(plan.configuration, ran.phases, ran.latency_s, title)
            write_atomically(trace, text)
        return ran, plan


def _on_its_devices(
    plan: ExecutionPlan, hosts: HostChoice | None
) -> tuple[ExecutionPlan, HostChoice | None]:
    """A plan for a job of its ranks alone, and where to start them: on the devices that it names,
    of this machine if no hosts are given.
    """
    if hosts is None:
        from ditplan.runtime.workers import room_here

        # ranks on CPUs have no devices to tell apart
        if room_here().device == "cpu":
            return on_its_own(plan), None
        hosts = HostChoice.of([Host("localhost")])
    return on_hosts(plan, hosts)
