"""Why a plan: what it is worth, where its time goes, who lost in what, what would change it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditplan.cost_table import table_row
from ditplan.explaining.crossovers import Crossovers, crossovers_of
from ditplan.explaining.parts import (
    Binding,
    LinkTime,
    Part,
    RankTime,
    binding_of,
    links_of,
    parts_of,
    ranks_of,
)
from ditplan.explaining.rivals import Rival, rivals_of, words_for
from ditplan.explaining.subject import Subject, subject_of
from ditplan.explaining.verdict import verdict_on

MOVED = 0.01
"""A price of today that differs by more than this share from the plan's is said."""


@dataclass(frozen=True)
class Explanation:
    """What `explain` says of a plan. `fixed_s` + N x `step_s` is a call of N steps, text encoders
    and VAE included.
    """

    subject: Subject
    verdict: str
    parts: tuple[Part, ...]
    ranks: tuple[RankTime, ...]
    links: tuple[LinkTime, ...]
    binding: Binding
    fixed_s: float
    step_s: float
    rivals: tuple[Rival, ...]
    crossovers: Crossovers
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `explain --json` prints."""
        plan, own = self.subject.plan, self.subject.own
        return {
            "verdict": self.verdict,
            "model": plan.model.name,
            "cluster": self.subject.task.cluster.name,
            "workload": plan.workload.model_dump(),
            "configuration": str(plan.configuration),
            "latency_s": own.prediction.latency_s,
            "interval_s": list(own.prediction.interval_s),
            "measured_s": plan.measurement.latency_s if plan.measurement else None,
            "parts": [asdict(part) for part in self.parts],
            "ranks": [asdict(rank) for rank in self.ranks],
            "links": [asdict(link) for link in self.links],
            "link_bytes": own.prediction.link_bytes,
            "binding": asdict(self.binding),
            "fixed_s": self.fixed_s,
            "step_s": self.step_s,
            "runners_up": [rival.to_json() for rival in self.rivals],
            "crossovers": [found.to_json() for found in self.crossovers.found],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        plan, own = self.subject.plan, self.subject.own.prediction
        measured = f", measured {plan.measurement.latency_s:.4g} s" if plan.measurement else ""
        low_s, high_s = own.interval_s
        lines = [
            self.verdict,
            f"{plan.model.name}: {plan.workload}, on {self.subject.task.cluster.name}",
            f"{plan.configuration}: predicted {own.latency_s:.4g} s ({low_s:.3g} to {high_s:.3g} s)"
            f"{measured}; {self.binding}",
            "",
            "where the busiest rank's time goes:",
            *(
                f"  {part.what:<36} {part.seconds:9.4f} s {100 * part.share:5.1f}%"
                f"{f'  over {part.link}' if part.link else ''}"
                for part in self.parts
                if part.share >= 0.001
            ),
            *self._shared_lines(),
            f"a call of N steps: {self.fixed_s:.4g} s + N x {self.step_s:.4g} s",
            "",
            "what lost, and where:",
            *(
                f"  {rival.place}. {rival.ranked.configuration.mesh}, "
                f"{rival.ranked.configuration.mode}: {_why(rival)}"
                for rival in self.rivals
            ),
            "",
            "what would change the choice:",
        ]
        for found in self.crossovers.found:
            lines += [f"  {found.what}", f"    {found.check}"]
        lines += [f"  {note}" for note in self.crossovers.notes]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _shared_lines(self) -> list[str]:
        """Ranks where they do different things, and links that are busy."""
        lines = []
        if len(self.ranks) > 1:
            lines.append("by rank: computing, exchanging, host, waiting")
            for rank in self.ranks:
                seconds = (rank.computes_s, rank.exchanges_s, rank.host_s, rank.waits_s)
                shown = " ".join(f"{one:8.4f}" for one in seconds)
                lines.append(f"  {_ranks_text(rank.ranks):<36} {shown} s")
        busy = [link for link in self.links if link.share >= 0.001]
        if busy:
            lines.append("links, busy for:")
            lines += [
                f"  {link.link:<36} {link.busy_s:9.4f} s {100 * link.share:5.1f}%" for link in busy
            ]
        return lines


def _why(rival: Rival) -> str:
    doubt = "; within the error" if rival.is_within_error else ""
    measured = "" if rival.measured_s is None else f", measured {rival.measured_s:.4g} s"
    lost = f", {rival.lost_s:.3g} s more for {words_for(rival.lost_in)}" if rival.lost_s > 0 else ""
    return f"{rival.ranked.prediction.latency_s:.4g} s{measured}{lost} ({rival.why}){doubt}"


def _ranks_text(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 1 and ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def explain(
    path: Path,
    *,
    cluster: str | None = None,
    gpus: int | None = None,
    weights: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Explanation:
    """Explains a saved plan by pricing it, and all others, once more.

    The arguments are those of `subject_of`; `say` is told what is being done.

    Raises:
        InputError: the plan or its cluster can't be read, or it can't be priced there.
    """
    say("pricing all plans")
    subject = subject_of(path, cluster=cluster, gpus=gpus, weights=weights)
    parts, rivals = parts_of(subject, subject.own), rivals_of(subject)
    say("searching for what would change the choice")
    row = table_row(subject.plan, subject.cluster)
    return Explanation(
        subject=subject,
        verdict=verdict_on(subject, rivals),
        parts=parts,
        ranks=ranks_of(subject, subject.own),
        links=links_of(subject, subject.own),
        binding=binding_of(parts),
        fixed_s=row.fixed_s,
        step_s=row.step_s,
        rivals=rivals,
        crossovers=crossovers_of(subject),
        notes=tuple(_notes(subject)),
    )


def _notes(subject: Subject) -> list[str]:
    """What today's prices don't have from the plan."""
    then, now = subject.plan.prediction, subject.own.prediction
    notes = []
    if then is not None and abs(now.latency_s / then.latency_s - 1) > MOVED:
        notes.append(
            f"the plan was predicted at {then.latency_s:.4g} s and is priced at "
            f"{now.latency_s:.4g} s today: parts and rivals are today's"
        )
    if subject.profile is not None:
        notes.append(f"priced with the blocks measured in {subject.profile}")
    return notes
