"""The fastest plan of each number of GPUs as bars of text."""

from ditplan.command.terminal import Terminal
from ditplan.planner.report import digits_after_point
from ditplan.planner.search.ranking import PricedCandidate, SearchResult

BAR = 32
"""Characters of the longest bar."""

MOST_ROWS = 12
"""Of more numbers of GPUs those are shown that save most."""


def show_pareto(found: SearchResult, terminal: Terminal) -> None:
    """Shows it where there are several numbers of GPUs, and room for the lines."""
    text = pareto_text(found)
    if text and max(map(len, text.splitlines())) <= terminal.columns:
        terminal.show(text)


def pareto_text(found: SearchResult) -> str:
    """A line for each number of GPUs that is faster than fewer: seconds, a bar as long, the mesh;
    empty where there is but one.
    """
    front = _shown(_front(found))
    if len(front) < 2:
        return ""
    longest_s = max(one.latency_s for one in front)
    lines = ["the fastest by GPUs:"]
    for one in front:
        digits = digits_after_point(one.latency_s)
        bar = "#" * max(1, round(BAR * one.latency_s / longest_s))
        known = " measured" if one.measurement else ""
        lines.append(
            f"{one.configuration.mesh.size:>5}  {one.latency_s:>8.{digits}f} s  {bar:<{BAR}}  "
            f"{one.configuration.mesh}{known}"
        )
    return "\n".join(lines)


def _front(found: SearchResult) -> list[PricedCandidate]:
    fits = [one for one in found.ranked if not one.too_big and not one.failure]
    best: dict[int, PricedCandidate] = {}
    for one in sorted(fits, key=lambda one: one.latency_s):
        best.setdefault(one.configuration.mesh.size, one)
    front: list[PricedCandidate] = []
    for size in sorted(best):
        if not front or best[size].latency_s < front[-1].latency_s:
            front.append(best[size])
    return front


def _shown(front: list[PricedCandidate]) -> list[PricedCandidate]:
    """The ends, and between them those that save most against the one before."""
    if len(front) <= MOST_ROWS:
        return front
    saved = {
        place: front[place - 1].latency_s / front[place].latency_s
        for place in range(1, len(front) - 1)
    }
    kept = sorted(saved, key=lambda place: -saved[place])[: MOST_ROWS - 2]
    return [front[place] for place in sorted([0, *kept, len(front) - 1])]
