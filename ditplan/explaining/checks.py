"""The commands that check a crossover: what `simulate` says of the plan and of its rival there."""

import shlex
from collections.abc import Sequence

from ditplan.explaining.contenders import Contender
from ditplan.explaining.subject import Subject
from ditplan.profiles.workload import Workload

SCALED = "scaled.json"
"""The cluster file that a check writes."""


def check_line(
    subject: Subject,
    workload: Workload,
    contenders: Sequence[Contender],
    link: str | None,
    times: float,
) -> str:
    """Commands for a shell, joined by `&&`: one that prices each contender for a workload, on the
    plan's cluster or, where `link` names a kind, with `times` its bandwidth.
    """
    cluster, commands = subject.cluster, []
    if link is not None:
        words = ["ditplan", "cluster", "scale", "--cluster", cluster, "--link", link]
        commands.append(shlex.join([*words, "--times", f"{times:g}", "--out", SCALED]))
        cluster = SCALED
    for contender in contenders:
        commands.append(simulate_line(subject, workload, contender, cluster))
    return " && ".join(commands)


def simulate_line(subject: Subject, workload: Workload, contender: Contender, cluster: str) -> str:
    """The command that prices a contender."""
    words = ["ditplan", "simulate", "--cluster", cluster, "--model", subject.model_name]
    words += workload_options(subject, workload)
    if subject.profile is not None:
        words += ["--profile", subject.profile]
    if subject.plan.backend != "native":
        words += ["--backend", subject.plan.backend]
    return f"{shlex.join(words)} {contender.options}"


def workload_options(subject: Subject, workload: Workload) -> list[str]:
    """The options that ask for a workload, size and steps in any case."""
    usual = subject.task.spec.defaults
    words = ["--height", workload.height, "--width", workload.width, "--steps", workload.steps]
    if workload.frames != usual.frames:
        words += ["--frames", workload.frames]
    if workload.text_tokens != usual.text_tokens:
        words += ["--text-tokens", workload.text_tokens]
    if workload.batch != usual.batch:
        words += ["--batch", workload.batch]
    if workload.passes != usual.passes:
        words += ["--guidance" if workload.guidance else "--no-guidance"]
    if workload.dtype != usual.dtype and subject.task.device_kind != "cpu":
        words += ["--dtype", workload.dtype]
    return [str(word) for word in words]
