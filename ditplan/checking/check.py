"""The check of a folder of recorded cases, as a function that returns its result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ditplan.checking.comparing import Bounds
from ditplan.checking.folder import (
    BaselineFile,
    CasesFile,
    files_in,
    loaded,
    merged,
    replan,
    verdicts,
)
from ditplan.checking.reports import CheckResult, changes_page
from ditplan.profiles.record import write_atomically

CHANGES = "CHANGES.md"
"""The page that an update leaves in the folder."""


def check(
    baseline: Path, bounds: Bounds, *, update: bool = False, say: Callable[[str], None]
) -> CheckResult:
    """Plans the recorded cases of a folder again and compares; with `update` today's answers are
    recorded, and what that changed is said on a page beside them.

    Raises:
        InputError: a file of the folder is wrong, or a question in it.
    """
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
