"""The Optuna study of a task: its name, its journal, and the trials that a killed search left."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import Trial, TrialState

from ditplan.planner.search.ranking import fingerprint_of
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.task import Task
from ditplan.profiles.errors import InputError

LOCK_GRACE_S = 5


def task_name(task: Task) -> str:
    """What is measured of a task goes by this name: the same for the same model, workload, cluster
    and choices.
    """
    cluster = fingerprint_of(task.cluster, len(task.cluster.devices))
    allowed = task.allowed
    identity = {
        "model": task.spec.config_hash,
        "workload": task.workload.model_dump(),
        "cluster": cluster.model_dump(),
        "gpus": task.gpus,
        "pins": dict(sorted(task.pins.items())),
        "modes": task.searched_modes,
        "backend": task.backend.name,
        "allowed": None if allowed is None else asdict(replace(allowed, known=None)),
    }
    text = json.dumps(identity, sort_keys=True)
    return f"{task.spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def study_name(task: Task, sampler: SamplerName = "planner") -> str:
    """The study of a task: each sampler has one of its own, with which the same task goes on."""
    return f"{task_name(task)}-{sampler}"


def open_storage(journal: Path | None) -> BaseStorage:
    """What holds studies: a journal file, or memory.

    A process that was killed while it wrote leaves half a line and a lock behind: the line is cut
    off, since what it said was never acted on, and the lock is taken over after some seconds.

    Raises:
        InputError: the journal's folder doesn't exist.
    """
    if journal is None:
        return InMemoryStorage()
    _cut_torn_line(journal)
    lock = JournalFileOpenLock(str(journal), grace_period=LOCK_GRACE_S)
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


def open_study(
    task: Task, sampler: SamplerName, storage: BaseStorage, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The task's study, as it was left or new."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=storage,
        study_name=study_name(task, sampler),
        direction="minimize",
        pruner=pruner,
        load_if_exists=True,
    )


def open_trials(study: optuna.Study, storage: BaseStorage) -> list[Trial]:
    """The trials that were begun and not ended, to go on with: `storage` holds the study."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return [
        Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    ]


def _cut_torn_line(journal: Path) -> None:
    """Cuts off what a process that was killed while it wrote left of a line."""
    if not journal.parent.is_dir():
        raise InputError(f"{journal}: the folder {journal.parent} doesn't exist; make it first")
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)
