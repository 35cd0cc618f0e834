"""What a check found: as text, as JSON, as JUnit's XML, and as a page of what an update changed."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from ditplan.checking.comparing import Status, Verdict
from ditplan.profiles.baseline import rounded

SHOWN_FAULTS = 3
SHOWN_DRIFTS = 5


@dataclass(frozen=True)
class CheckResult:
    """All verdicts, in the order of the files and their cases, and what is to be known of files."""

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """What fails the check."""
        return self._with("failed")

    @property
    def passed(self) -> int:
        """How many cases didn't fail."""
        return len(self.verdicts) - len(self.failed)

    def _with(self, status: Status) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.status == status)

    def to_json(self) -> dict[str, Any]:
        """What `check --json` prints."""
        return {
            "passed": self.passed,
            "failed": len(self.failed),
            "cases": [_case_json(verdict) for verdict in self.verdicts],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        counts = Counter(verdict.status for verdict in self.verdicts)
        lines = list(self.notes)
        for verdict in self.failed:
            lines.append(f"FAILED {verdict.name}")
            lines += [f"  {line}" for line in (*_first(verdict.faults), *_first(verdict.notes))]
        for verdict in self._with("changed"):
            lines.append(f"changed {verdict.name}: {verdict.old} -> {verdict.new}")
            lines += [f"  {line}" for line in _first(verdict.notes)]
        lines += _drift_lines(self._with("drifted"))
        for verdict in self._with("same"):
            lines += [f"note {verdict.name}: {note}" for note in verdict.notes]
        words = [f"{counts[status]} {status}" for status in ORDER if counts[status]]
        number = len(self.verdicts)
        lines.append(f"{number} case{'s' if number != 1 else ''}: {', '.join(words)}")
        return "\n".join(lines)


ORDER: tuple[Status, ...] = ("failed", "changed", "drifted", "new", "same")


def _case_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.name,
        "status": verdict.status,
        "old_s": verdict.old_s,
        "new_s": verdict.new_s,
        "regret": None if verdict.regret is None else rounded(verdict.regret),
        "old": verdict.old,
        "new": verdict.new,
        "drift": rounded(verdict.drift),
        "faults": list(verdict.faults),
        "notes": list(verdict.notes),
    }


def _first(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN_FAULTS
    return [*lines[:SHOWN_FAULTS], *([f"and {more} more"] if more > 0 else [])]


def _drift_lines(drifted: Sequence[Verdict]) -> Iterator[str]:
    """The cases that moved most, and how many others did."""
    by_size = sorted(drifted, key=lambda verdict: -verdict.drift)
    for verdict in by_size[:SHOWN_DRIFTS]:
        yield f"drifted {verdict.name}: {'; '.join(_first(verdict.notes))}"
    if (more := len(by_size) - SHOWN_DRIFTS) > 0:
        yield f"and {more} more drifted, by at most {100 * by_size[SHOWN_DRIFTS].drift:.3g}%"


def junit(result: CheckResult) -> str:
    """The result as CI systems read it: a test case for each case, without any time."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    counts = f'tests="{len(result.verdicts)}" failures="{len(result.failed)}"'
    lines.append(f"<testsuites {counts}>")
    suites: dict[str, list[Verdict]] = {}
    for verdict in result.verdicts:
        suites.setdefault(verdict.name.partition(": ")[0], []).append(verdict)
    for suite, verdicts in suites.items():
        failures = sum(verdict.status == "failed" for verdict in verdicts)
        name = quoteattr(_xml_text(suite))
        lines.append(f' <testsuite name={name} tests="{len(verdicts)}" failures="{failures}">')
        for verdict in verdicts:
            lines += _test_case(suite, verdict)
        lines.append(" </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _test_case(suite: str, verdict: Verdict) -> Iterator[str]:
    case = quoteattr(_xml_text(verdict.name.partition(": ")[2]))
    opening = f"  <testcase classname={quoteattr(_xml_text(suite))} name={case}"
    if not (verdict.faults or verdict.notes):
        yield f"{opening}/>"
        return
    yield f"{opening}>"
    if verdict.faults:
        message = quoteattr(_xml_text(verdict.faults[0]))
        body = escape(_xml_text("\n".join(verdict.faults)))
        yield f"   <failure message={message}>{body}</failure>"
    if verdict.notes:
        notes = escape(_xml_text("\n".join(verdict.notes)))
        yield f"   <system-out>{verdict.status}: {notes}</system-out>"
    yield "  </testcase>"


def _xml_text(text: str) -> str:
    """A text without what XML can't hold."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def changes_page(result: CheckResult) -> str:
    """What an update changed and why, for whoever reviews it; empty where nothing did."""
    moved = [verdict for verdict in result.verdicts if verdict.status != "same"]
    if not moved and not result.notes:
        return ""
    counts = Counter(verdict.status for verdict in moved)
    words = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    lines = ["# What the last update changed", ""]
    lines.append(f"Of {len(result.verdicts)} cases: {words or 'none changed'}.")
    lines += ["", *(f"- {note}" for note in result.notes)] if result.notes else []
    for status in ORDER[:2] + ORDER[3:4]:
        chosen = [verdict for verdict in moved if verdict.status == status]
        if chosen:
            lines += ["", f"## {HEADINGS[status]}", ""]
            lines += [line for verdict in chosen for line in _change_lines(verdict)]
    drifted = [verdict for verdict in moved if verdict.status == "drifted"]
    if drifted:
        lines += ["", f"## {HEADINGS['drifted']}", ""]
        lines += [f"- {verdict.name}: {'; '.join(verdict.notes)}" for verdict in drifted]
    return "\n".join([*lines, ""])


HEADINGS: dict[Status, str] = {
    "failed": "Would have failed",
    "changed": "Another choice, no worse",
    "new": "Answered for the first time",
    "drifted": "The same choice, other numbers",
}


def _change_lines(verdict: Verdict) -> Iterator[str]:
    before = f"{verdict.old}{_seconds(verdict.old_s)} -> " if verdict.old else ""
    yield f"- {verdict.name}: {before}{verdict.new}{_seconds(verdict.new_s)}"
    yield from (f"  - {line}" for line in (*verdict.faults, *verdict.notes))


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f" ({seconds:.4g} s)"
