"""A plan in another tool's words, with what these words leave out, and the evidence for it."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from ditplan.profiles.catalog import find_model, model_names
from ditplan.profiles.errors import one_line
from ditplan.profiles.family import family_of
from ditplan.profiles.plan import ExecutionPlan

WIDEST = 160
"""Of a line of evidence, in characters."""


def digest_of_plan(plan: ExecutionPlan) -> str:
    """What tells a plan from all others: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(plan.text().encode()).hexdigest()[:16]


def evidence(
    plan: ExecutionPlan, name: str, engine: str = "native", not_expressed: Iterable[str] = ()
) -> list[str]:
    """Why the plan was chosen, in lines for a comment: what it is, predicted and measured seconds
    of the denoising loop, the second best, what isn't expressed. `engine` is the backend that will
    run it.
    """
    whose = "" if plan.backend == engine else f" by backend {plan.backend}, not by this engine"
    lines = [
        f"Made of {name} (digest {digest_of_plan(plan)}) by `ditplan export`.",
        f"{plan.model.name}: {plan.workload}",
        f"{plan.mesh.size} x {plan.fingerprint.devices[0]}: {plan.configuration}",
    ]
    if plan.prediction:
        low, high = plan.prediction.interval_s
        lines.append(
            f"Predicted: {plan.prediction.latency_s:.4g} s of denoising "
            f"({low:.4g} to {high:.4g}){whose}."
        )
    if plan.measurement:
        lines.append(
            f"Measured: {plan.measurement.latency_s:.4g} s on {plan.measurement.devices}, "
            f"{plan.measurement.measured_on}{whose}."
        )
    else:
        lines.append("Not measured.")
    if plan.runner_ups:
        second = plan.runner_ups[0]
        lines.append(
            f"Second best: {second.configuration}: predicted {second.predicted_s:.4g} s; "
            f"{second.reason}"
        )
    lines += [f"Not expressed: {what}" for what in not_expressed]
    return [one_line(line, WIDEST) for line in lines]


def call_of_plan(plan: ExecutionPlan) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of a diffusers pipeline's call, for as many passes as the plan has, and what of
    them isn't known.
    """
    w, name = plan.workload, plan.model.name
    family = family_of(plan.model.transformers[0].transformer_class)
    found = family.call_arguments(1.0, w)
    # without a negative prompt some pipelines make one pass, whatever the scale
    negative = {"negative_prompt": ""} if w.guidance else {}
    if not (w.guidance or family.guidance == "embedded"):
        return found, ()
    if name not in model_names():
        del found[family.guidance_argument]
        return negative | found, (f"the guidance scale of {name}: give the one that you use",)
    return negative | family.call_arguments(find_model(name).guidance_scale, w), ()


def commented(lines: Iterable[str]) -> str:
    """Lines as a comment of a shell script, Python or YAML."""
    return "".join(f"# {line}\n" for line in lines)


def dns_label(text: str) -> str:
    """A name as Kubernetes takes it: lower-case letters, digits and dashes, at most 50."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-")
    return label if label[:1].isalpha() else f"plan-{label}".strip("-")
