"""Whether a plan may run here: the ranks, devices and links must be those it was made for."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ditplan.profiles.book import PlanBook
from ditplan.profiles.cluster import DeviceKind, LinkKind
from ditplan.profiles.errors import InputError, PlanWarning
from ditplan.profiles.evidence import chosen_line
from ditplan.profiles.family import known_family, number_of, pixels_per_latent
from ditplan.profiles.fingerprint import RankFacts
from ditplan.profiles.limits import ModelLimits
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.agreement import disagreement
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.attach import attach_to_job, seated_in_job
from ditplan.runtime.ranks.devices import common_link_kind, host_name, link_kind
from ditplan.runtime.ranks.environment import environment
from ditplan.runtime.ranks.self_test import facts_of_rank

LOG = logging.getLogger("ditplan")


@dataclass(frozen=True)
class Attached:
    """A rank's place in a job: what to load the pipeline to, and the plan for the job's ranks,
    whose placement names them.
    """

    plan: ExecutionPlan
    rank: int
    world_size: int
    device: torch.device


def admitted(pipeline: Any, plan: Any) -> tuple[RankContext, ExecutionPlan]:
    """The context of a rank of a job that a launcher started, and the plan for the job's ranks, if
    all of them may put it in force.

    Raises:
        InputError: the same on every rank; says what was given and what is allowed.
    """
    refusal: InputError | None = None
    try:
        _require_pipeline_and_plan(pipeline, plan)
    except InputError as error:
        refusal = error
    context, here = _in_job(plan, refusal, lambda found: require_possible(pipeline, plan, found))
    require_fit(here, context)
    return context, here


def attached(plan: Any) -> Attached:
    """This process' place in a job that a launcher started, and the plan for the job's ranks.

    Raises:
        InputError: the same on every rank; says what was given and what is allowed.
    """
    refusal = None if isinstance(plan, ExecutionPlan) else InputError(_no_plan(plan, "attach()"))
    context, here = _in_job(plan, refusal, lambda _: None)
    return Attached(here, context.rank, context.world_size, context.device)


def _in_job(
    plan: Any, refusal: InputError | None, require: Callable[[RankContext], None]
) -> tuple[RankContext, ExecutionPlan]:
    """This rank's context and the plan for the job's ranks, unless a rank has a refusal, or
    `require` raises one there.

    Raises:
        InputError: the same on every rank.
    """
    try:
        context = attach_to_job()
    except InputError as error:
        raise refusal or error from None

    def check() -> None:
        if refusal is not None:
            raise refusal
        plan.require_ranks(context.world_size)
        require(context)

    require_alike(plan, context, check)
    return context, seated_in_job(plan, context)


def require_possible(pipeline: Any, plan: ExecutionPlan, context: RankContext) -> None:
    """Refuses a plan for a workload that the pipeline's model or the devices can't do.

    Raises:
        InputError: says what was given and what would be right.
    """
    device: DeviceKind = "cpu" if context.device.type == "cpu" else "cuda"
    limits = limits_of(pipeline, plan.model.name)
    if limits is not None:
        plan.require_workload(limits, device)


def limits_of(pipeline: Any, name: str) -> ModelLimits | None:
    """What bounds the workloads of a pipeline's model; None where no family describes it, as is
    said with what there is as soon as a plan is put in force.
    """
    model, vae = pipeline.transformer, getattr(pipeline, "vae", None)
    family = known_family(type(model).__name__)
    if family is None:
        return None
    unit = None
    if vae is not None:
        latents = number_of(family.latents_per_token, model.config)
        unit = pixels_per_latent(vae.config) * latents
    return ModelLimits.of_family(name, family, unit)


def _require_pipeline_and_plan(pipeline: Any, plan: Any) -> None:
    if not isinstance(plan, ExecutionPlan):
        raise InputError(_no_plan(plan, "parallelize()"))
    if isinstance(pipeline, nn.Module):
        raise InputError(
            f"parallelize() takes a diffusers pipeline, not its {type(pipeline).__name__}: give it "
            "the pipeline whose transformer this is"
        )
    if not isinstance(getattr(pipeline, "transformer", None), nn.Module):
        raise InputError(
            f"parallelize() takes a diffusers pipeline with a transformer, not {_named(pipeline)}"
        )


def _no_plan(given: object, function: str) -> str:
    """Why something that is no plan can't be put in force."""
    if isinstance(given, PlanBook):
        return (
            f"{function} takes a plan, this is a book of {len(given.entries)}: ask it with "
            "plan_for(workload) for the one to put in force"
        )
    return (
        f"{function} takes an ExecutionPlan, not {_named(given)}: load one from its file with "
        "ditplan.ExecutionPlan.load(path)"
    )


def _named(value: object) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def require_alike(plan: object, context: RankContext, check: Callable[[], object]) -> None:
    """Refuses what `check` refuses on any rank, and plans that aren't the same; all ranks call it.

    Groups that were broken off on any rank are made anew: this is where all of them meet.

    Raises:
        InputError: the same on every rank.
    """
    refusal = ""
    try:
        check()
    except InputError as error:
        refusal = str(error)
    text = plan.model_dump_json() if isinstance(plan, ExecutionPlan) else ""
    found: list[Any] = [(refusal, text.encode(), context.groups.are_broken)]
    if context.world_size > 1:
        mine = found[0]
        found = [None] * context.world_size
        dist.all_gather_object(found, mine)
    if any(are_broken for *_, are_broken in found):
        context.groups.break_off()
        context.groups.renew()
    refused = [(rank, text) for rank, (text, *_) in enumerate(found) if text]
    if refused:
        rank, text = refused[0]
        of_all = len({text for text, *_ in found}) == 1
        raise InputError(text if of_all else f"rank {rank}: {text}")
    if len({text for _, text, _ in found}) > 1:
        plans = [{"plan": text} for _, text, _ in found]
        raise disagreement(range(context.world_size), plans)


def require_fit(plan: ExecutionPlan, context: RankContext) -> None:
    """Refuses a plan that was made for other ranks, devices, links or software, or warns of it on
    the first rank, as the plan's policy says; every rank calls it.

    A plan that has the times of a self-test has that made again.

    Raises:
        InputError: the same on every rank; says which of them differs and what to do.
    """
    if context.world_size < plan.mesh.size:
        plan.require_ranks(context.world_size)
    timed = plan.fingerprint.self_test is not None
    facts, link = gathered_facts(context, plan.configuration.ranks, timed=timed)
    for mismatch in plan.require_place(facts, link):
        if context.rank == 0:
            warnings.warn(str(mismatch), PlanWarning, stacklevel=2)
    if context.rank == 0:
        LOG.info("%s", chosen_line(plan))


def gathered_facts(
    context: RankContext, ranks: Sequence[int], *, timed: bool
) -> tuple[Sequence[RankFacts], LinkKind | None]:
    """What some ranks find, and what connects those of a host, as `kind_within_hosts` has it; every
    rank calls it.
    """
    mine = (facts_of_rank(context, ranks, timed), (host_name(environment()), link_kind(context)))
    found: list[Any] = [mine]
    if context.world_size > 1:
        found = [None] * context.world_size
        dist.all_gather_object(found, mine)
    used = [found[rank] for rank in ranks]
    return [facts for facts, _ in used], kind_within_hosts([place for _, place in used])


def kind_within_hosts(places: Sequence[tuple[str, LinkKind | None]]) -> LinkKind | None:
    """What connects ranks of one host, by each rank's host and the kind that holds there; None if
    that isn't known, or each rank has a host to itself: what its GPU could do says nothing then.
    """
    ranks_on = Counter(host for host, _ in places)
    kinds = [kind for host, kind in places if ranks_on[host] > 1]
    return common_link_kind(kinds, environment()) if kinds else None
