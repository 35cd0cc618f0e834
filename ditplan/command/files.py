"""What there is, for `list`, and what a file or a study's folder says, for `show`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ditplan.profiles.backends import backend_names
from ditplan.profiles.baseline import Baseline, MeasuredBaseline
from ditplan.profiles.book import PlanBook
from ditplan.profiles.catalog import cluster_names, model_names
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import InputError
from ditplan.profiles.evidence import SIGNATURE, evidence_of, signature_of
from ditplan.profiles.family import family_names
from ditplan.profiles.files import parse_json, path_text, read_text
from ditplan.profiles.locations import places_of
from ditplan.profiles.measured_plans import MeasuredPlans
from ditplan.profiles.model import ModelProfile, ModelSpec
from ditplan.profiles.plan import ExecutionPlan, Quality
from ditplan.profiles.quality import MeasuredQuality
from ditplan.profiles.record import Record

KINDS: tuple[tuple[type[Record], frozenset[str]], ...] = (
    (ExecutionPlan, frozenset({"runner_ups", "fingerprint"})),
    (PlanBook, frozenset({"entries"})),
    (ClusterProfile, frozenset({"hosts"})),
    (ModelProfile, frozenset({"device", "points"})),
    (MeasuredQuality, frozenset({"points", "measured_with"})),
    (ModelSpec, frozenset({"transformer_class", "blocks"})),
    (Baseline, frozenset({"cluster", "cases"})),
    (MeasuredBaseline, frozenset({"records"})),
    (MeasuredPlans, frozenset({"links", "runs"})),
)
"""Records, and fields by which one of the kind is told from the others."""


Named = Literal["models", "clusters", "families", "backends"]


def names_of(what: Named) -> list[str]:
    """What there is of a kind, by name."""
    if what == "models":
        return model_names()
    if what == "clusters":
        return cluster_names()
    if what == "families":
        return list(family_names())
    return list(backend_names())


@dataclass(frozen=True)
class Shown:
    """What there is to say: in lines, and in full."""

    text: str
    fields: dict[str, Any]


def shown_file(path: Path) -> Shown:
    """What a plan, a book, a cluster, another record or a study says.

    Raises:
        InputError: it is none of these, or damaged.
    """
    if path.is_dir():
        # it brings optuna
        from ditplan.study import study_in

        study = study_in(path)
        if not study.exists():
            raise InputError(f"{path}: no study of a tune; name a folder such as plan.study")
        fields = study.contents()
        return Shown(study_text(fields), fields)
    text = read_text(path, "a plan, book, cluster or other file of ditplan")
    kind = kind_of(text, path)
    record = kind.from_json(text, path_text(path))
    fields = record.model_dump(mode="json")
    if isinstance(record, ExecutionPlan):
        fields[SIGNATURE] = signature_of(record)
    return Shown(text_of(record), fields)


def kind_of(text: str, path: Path) -> type[Record]:
    """Which record a text holds.

    Raises:
        InputError: it isn't one that is known.
    """
    data = parse_json(text, path_text(path), "file", "name one that ditplan has written")
    for kind, names in KINDS:
        if isinstance(data, dict) and names <= data.keys():
            return kind
    known = ", ".join(kind.kind for kind, _ in KINDS)
    raise InputError(f"{path_text(path)}: this is none of what ditplan writes ({known})")


def text_of(record: Record) -> str:
    """What a record says, in a few lines."""
    if isinstance(record, ExecutionPlan):
        return plan_text(record)
    if isinstance(record, PlanBook):
        plans = (
            f"weight {entry.weight:g}: {entry.workload}\n  {entry.plan.mesh}, "
            f"{entry.plan.configuration.mode}{_seconds(entry.plan)}{_texts(entry.plan)}"
            for entry in record.entries
        )
        otherwise = {"refuse": "refused", "larger": "served by the nearest larger plan"}
        title = f"book of {len(record.entries)} plans; other requests are "
        return "\n".join([title + otherwise[record.otherwise], *plans])
    if isinstance(record, ClusterProfile):
        return cluster_text(record)
    if isinstance(record, ModelProfile):
        return (
            f"model profile: {len(record.points)} points of {record.model} on {record.device}, "
            f"{record.dtype}, measured on {record.measured_on}"
        )
    if isinstance(record, ModelSpec):
        return (
            f"model {record.name}: {record.pipeline_class}, {record.block_count} blocks, "
            f"{record.transformer_parameters / 1e9:.2f} billion parameters\n"
            f"usual: {record.defaults}"
        )
    if isinstance(record, Baseline):
        return f"baseline of {record.cluster}: {len(record.cases)} cases"
    if isinstance(record, MeasuredBaseline):
        return f"baseline of measured plans: {len(record.records)} records"
    if isinstance(record, MeasuredPlans):
        devices = f"{len(record.cluster.devices)} x {record.cluster.devices[0].name}"
        runs = (f"  {run.candidate}: {run.median_s:.4g} s" for run in record.runs)
        return "\n".join([f"{record.model} on {devices}: {record.workload}", *runs])
    assert isinstance(record, MeasuredQuality)
    return f"measured quality of {record.model} at {record.workload}: {len(record.points)} settings"


def plan_text(plan: ExecutionPlan) -> str:
    """What a plan does, what it costs, where it holds and what lost against it."""
    devices = plan.fingerprint.devices
    names = ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))
    configuration = plan.configuration
    settings = [str(part) for part in (configuration.pipefusion, configuration.step_cache) if part]
    if configuration.weights == "sharded":
        settings.append("weights in pieces")
    lines = [
        f"plan for {plan.model.name}: {plan.workload}",
        ", ".join([str(plan.mesh), configuration.mode, *settings]),
        quality_text(plan.quality),
        f"for {names} ({plan.fingerprint.cluster}), backend {plan.backend}; elsewhere: "
        f"{plan.on_mismatch}",
        *(f"on {place}" for place in places_of(plan.locations)),
    ]
    if plan.text_sizes:
        lines.append(_texts(plan).removeprefix("; "))
    if (predicted := plan.prediction) is not None:
        low_s, high_s = predicted.interval_s
        lines.append(
            f"predicted {predicted.latency_s:.4g} s ({low_s:.3g} to {high_s:.3g} s), "
            f"{predicted.memory_bytes / 1e9:.1f} GB a GPU"
        )
    if (measured := plan.measurement) is not None:
        lines.append(
            f"measured {measured.latency_s:.4g} s in {len(measured.runs_s)} runs on "
            f"{measured.devices}, {measured.measured_on}"
        )
    lines.append(f"evidence {evidence_of(plan)}, signature {signature_of(plan)}")
    lines += [
        f"  not {other.configuration.mesh}, {other.configuration.mode}: {other.reason}"
        for other in plan.runner_ups
    ]
    return "\n".join(lines)


def quality_text(quality: Quality) -> str:
    """How far the result is from one device's."""
    if quality.exact:
        return "exact: the result is one device's up to rounding"
    if quality.relative_l2 is None:
        return "approximate, error not measured"
    return f"approximate, error {quality.relative_l2:.3g} ({quality.measured_with})"


def cluster_text(cluster: ClusterProfile) -> str:
    """Hosts with their devices, kinds of links, tables, and what warns."""
    lines = [f"cluster {cluster.name}: {len(cluster.devices)} devices, {cluster.source}"]
    for host in cluster.hosts:
        names = [device.name for device in host.devices]
        kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        lines.append(f"  {host.name}: {kinds}")
    links = ", ".join(cluster.link_kinds) or "none"
    lines.append(f"links: {links}; {len(cluster.collectives)} tables of measured collectives")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in cluster.warnings)])


def study_text(fields: dict[str, Any]) -> str:
    """What a study has measured."""
    lines = [f"study {fields['folder']}: cluster {fields['cluster'] or 'not measured yet'}"]
    lines += [
        f"  {profile['model']} on {profile['device']}: {profile['points']} points"
        for profile in fields["profiles"]
    ]
    for run in fields["runs"]:
        seconds = ", ".join(f"{run_s:.4g}" for run_s in run["runs_s"])
        lines.append(f"  {run['plan']}: {run['state']}{f', {seconds} s' if seconds else ''}")
    return "\n".join(lines)


def _texts(plan: ExecutionPlan) -> str:
    """Which texts a plan serves; nothing where they are all of one length."""
    if not plan.text_sizes:
        return ""
    sizes = ", ".join(map(str, plan.text_sizes))
    return f"; texts of up to {plan.text_sizes[-1]} tokens, rounded up to {sizes}"


def _seconds(plan: ExecutionPlan) -> str:
    return f", predicted {plan.prediction.latency_s:.4g} s" if plan.prediction else ""
