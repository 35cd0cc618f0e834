"""The file of a study: what is wrong with it ends in one line that names it and says what to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from ditplan.planner.search.trials import check_journal, mend_journal, refusing_strange_journals
from ditplan.profiles.errors import InputError

LOCK_GRACE_S = 5
"""A process that was killed leaves a lock behind, which is taken over after so long."""


class StudyJournal(JournalFileBackend):
    """Optuna's journal file; that it can't be written is an error of the user's."""

    def __init__(self, path: Path) -> None:
        """Takes a file that has been checked."""
        lock = JournalFileOpenLock(str(path), grace_period=LOCK_GRACE_S)
        super().__init__(str(path), lock_obj=lock)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds lines.

        Raises:
            InputError: the disk is full, or the file can't be written to for another reason.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise InputError(
                f"{self._path}: can't be written: {error.strerror}; make room, and tune again: "
                "what was measured is kept"
            ) from None


@dataclass(frozen=True)
class RecordedRun:
    """A plan that a study has tried, how that ended, and the seconds of its runs."""

    study: str
    plan: str
    state: str
    runs_s: tuple[float, ...]


def open_journal(path: Path) -> JournalStorage:
    """The storage of a study's file, which needn't exist.

    Half a line at the end, left by a process that was killed while it wrote, is cut off, since what
    it said was never acted on.

    Raises:
        InputError: there is no folder, the file can't be read or written, or a line isn't Optuna's.
    """
    mend_journal(path)
    with refusing_strange_journals(path):
        return JournalStorage(StudyJournal(path))


def recorded_runs(path: Path) -> tuple[RecordedRun, ...]:
    """What the studies of a file have tried, in order; nothing if there is no file.

    The file stays as it is: a process may be writing to it.

    Raises:
        InputError: it can't be read, or a line isn't Optuna's.
    """
    if not path.exists():
        return ()
    check_journal(path)
    with refusing_strange_journals(path):
        storage = JournalStorage(StudyJournal(path))
    return tuple(
        RecordedRun(
            study=name,
            plan=str(trial.user_attrs.get("mesh", trial.params)),
            state=trial.state.name.lower(),
            runs_s=tuple(trial.intermediate_values.values()),
        )
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    )
