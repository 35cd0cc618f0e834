"""The file of a study: what is wrong with it ends in one line that names it and says what to do."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from ditplan.planner.search.trials import cut_torn_line
from ditplan.profiles.errors import InputError

LOCK_GRACE_S = 5
"""A process that was killed leaves a lock behind, which is taken over after so long."""

REMEDY = "delete the file, and its runs are made anew"
MISREAD = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What Optuna raises when lines that are JSON say what none of its own would."""


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
    cut_torn_line(path)
    return _storage(path)


def _storage(path: Path) -> JournalStorage:
    try:
        if path.exists():
            _check_lines(path)
        return JournalStorage(StudyJournal(path))
    except OSError as error:
        raise InputError(f"{path}: can't be used: {error.strerror}; {REMEDY}") from None
    except MISREAD as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no journal that Optuna can read; {REMEDY}") from None


def recorded_runs(path: Path) -> tuple[RecordedRun, ...]:
    """What the studies of a file have tried, in order; nothing if there is no file.

    The file stays as it is: a process may be writing to it.

    Raises:
        InputError: it can't be read, or a line isn't Optuna's.
    """
    if not path.exists():
        return ()
    storage = _storage(path)
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


def _check_lines(path: Path) -> None:
    """Refuses whole lines that no journal has."""
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict) or not isinstance(data.get("op_code"), int):
            raise InputError(
                f"{path}: line {number}: not a line of an Optuna journal; delete the line, or "
                f"{REMEDY}"
            )
