"""A tune's real runs in a report: Optuna's trials in order."""

from itertools import accumulate
from statistics import median
from typing import Any

from ditplan.explaining.explanation import Explanation
from ditplan.planner.search.journal import RecordedRun, recorded_runs
from ditplan.reporting.figure import BLUE, GREY, ORANGE, RED, Figure, LeftOut, Table, seconds_text
from ditplan.study import study_in

HISTORY = "history"
COLOUR_OF = {"complete": BLUE, "pruned": ORANGE, "running": GREY, "fail": RED}


def history(found: Explanation) -> Figure | LeftOut:
    """The study's trials: the median of each, and the best so far."""
    title = "What was run"
    study = study_in(found.subject.path.with_suffix(".study"))
    trials = recorded_runs(study.journal)
    ran = [(number, trial) for number, trial in enumerate(trials, start=1) if trial.runs_s]
    if not ran:
        return LeftOut(HISTORY, title, "There is no study with runs beside the plan.")
    medians = [median(trial.runs_s) for _, trial in ran]
    data: list[dict[str, Any]] = [
        _runs(state, [(n, trial) for n, trial in ran if trial.state == state])
        for state in dict.fromkeys(trial.state for _, trial in ran)
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [number for number, _ in ran],
            "y": list(accumulate(medians, min)),
            "line": {"shape": "hv", "color": BLUE},
            "hoverinfo": "skip",
        }
    )
    rows = [
        (
            str(number),
            trial.plan,
            trial.state,
            str(len(trial.runs_s)),
            seconds_text(median(trial.runs_s) if trial.runs_s else None),
        )
        for number, trial in enumerate(trials, start=1)
    ]
    return Figure(
        HISTORY,
        title,
        f"Median seconds of {len(ran)} trials in the order in which they were begun",
        "The trials of the Optuna study beside the plan: medians, the range of the runs, and the "
        "best so far.",
        data,
        {
            "xaxis": {"title": {"text": "trial"}, "dtick": 1},
            "yaxis": {"title": {"text": "measured s"}},
        },
        Table(("trial", "plan", "state", "runs", "median s"), rows),
    )


def _runs(state: str, ran: list[tuple[int, RecordedRun]]) -> dict[str, Any]:
    medians = [median(trial.runs_s) for _, trial in ran]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": state,
        "x": [number for number, _ in ran],
        "y": medians,
        "text": [trial.plan for _, trial in ran],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [max(t.runs_s) - m for (_, t), m in zip(ran, medians, strict=True)],
            "arrayminus": [m - min(t.runs_s) for (_, t), m in zip(ran, medians, strict=True)],
            "color": GREY,
        },
        "marker": {"size": 10, "color": COLOUR_OF.get(state, GREY)},
        "hovertemplate": "%{text}: %{y:.4g} s<extra></extra>",
    }
