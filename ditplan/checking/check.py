"""The check of a folder of recorded cases, as a function that returns its result."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ditplan.checking.comparing import Bounds
from ditplan.checking.folder import (
    BaselineFile,
    CasesFile,
    files_in,
    in_processes,
    loaded,
    merged,
    replan,
    verdicts,
)
from ditplan.checking.reports import CheckResult, changes_page
from ditplan.checking.saved_plans import saved_plans, verdict_on_plan
from ditplan.profiles.errors import InputError, Setting
from ditplan.profiles.files import path_text
from ditplan.profiles.record import write_atomically

CHANGES = "CHANGES.md"
"""The page that an update leaves in the folder."""


def check(
    baseline: Path | None,
    plans: Path | None,
    bounds: Bounds,
    *,
    update: bool = False,
    say: Callable[[str], None],
) -> CheckResult:
    """Plans the recorded cases of a folder again and compares, and holds the plans of another
    against the best of today; with `update` today's answers to the cases are recorded, and what
    that changed is said on a page beside them.

    Raises:
        InputError: there is nothing to check, a file of the folder is wrong, or a question in it.
    """
    if baseline is None and (plans is None or update):
        raise InputError(
            Setting("baseline", "DIR"),
            ": name a folder of recorded cases",
            *(() if update else (", or of plans with ", Setting("plans", "DIR"))),
        )
    results = []
    if baseline is not None:
        results.append(_check_cases(baseline, bounds, update=update, say=say))
    if plans is not None:
        results.append(_check_plans(plans, bounds))
    return CheckResult(
        tuple(verdict for result in results for verdict in result.verdicts),
        tuple(note for result in results for note in result.notes),
    )


def _check_plans(folder: Path, bounds: Bounds) -> CheckResult:
    paths = files_in(folder, "plans")
    saved = [one for path in paths for one in saved_plans(path)]
    if not saved:
        raise InputError(f"{path_text(folder)}: none of its .json is a plan or a book of plans")
    return CheckResult(tuple(in_processes(partial(verdict_on_plan, bounds=bounds), saved)))


def _check_cases(
    baseline: Path, bounds: Bounds, *, update: bool, say: Callable[[str], None]
) -> CheckResult:
    files = [loaded(path) for path in files_in(baseline, "recorded cases")]
    found = replan(files, say)
    result = compared(files, found, bounds)
    if update:
        for file, answers in zip(files, found, strict=True):
            new = merged(file, answers)
            if new != file.baseline:
                new.save(file.path)
        if page := changes_page(result):
            write_atomically(baseline / CHANGES, page)
    return result


def compared(
    files: Sequence[BaselineFile], found: Sequence[Sequence[Any]], bounds: Bounds
) -> CheckResult:
    """The verdicts on all cases of all files."""
    notes = tuple(
        f"{file.path.stem}: cluster {file.cluster.name} isn't what its cases were recorded for"
        for file in files
        if isinstance(file, CasesFile) and file.has_other_cluster
    )
    both = zip(files, found, strict=True)
    return CheckResult(
        tuple(verdict for file, now in both for verdict in verdicts(file, now, bounds)), notes
    )
