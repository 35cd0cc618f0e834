"""The Optuna study of a task: its name, its journal, and the trials that a killed search left."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import Trial, TrialState

from ditplan.planner.search.journal import open_journal
from ditplan.planner.search.ranking import fingerprint_of
from ditplan.planner.search.sampler_names import SamplerName
from ditplan.planner.search.trials import check_trial, refusing_strange_journals
from ditplan.planner.space.approximations import ApproximationPolicy
from ditplan.planner.task import Task
from ditplan.profiles.evidence import evidence_of
from ditplan.profiles.plan import ExecutionPlan


def task_name(task: Task) -> str:
    """What is measured of a task goes by this name: the same for the same model, workload, cluster
    and choices.
    """
    cluster = fingerprint_of(task.cluster, range(len(task.cluster.devices)))
    allowed = task.allowed
    identity = {
        "model": task.spec.config_hash,
        "workload": task.workload.model_dump(),
        "cluster": cluster.model_dump(include={"cluster", "devices", "link_kinds", "software"}),
        "gpus": task.gpus,
        "pins": dict(sorted(task.pins.items())),
        **({"vae_parallel": task.vae_parallel} if task.vae_parallel > 1 else {}),
        "modes": task.searched_modes,
        "backend": task.backend.name,
        "allowed": None if allowed is None else _measured_alike(allowed),
    }
    text = json.dumps(identity, sort_keys=True)
    return f"{task.spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _measured_alike(allowed: ApproximationPolicy) -> dict[str, Any]:
    """What of a policy decides what is measured: not which of it is preferred."""
    kept = asdict(replace(allowed, known=None))
    del kept["prefers_exact"]
    return kept


def study_name(
    task: Task, sampler: SamplerName = "planner", resume: ExecutionPlan | None = None
) -> str:
    """The study of a task: each sampler has one of its own, with which the same task goes on, and
    so has each plan that is resumed.
    """
    of_plan = f"-{evidence_of(resume)}" if resume is not None else ""
    return f"{task_name(task)}-{sampler}{of_plan}"


def open_storage(journal: Path | None) -> BaseStorage:
    """What holds studies: a journal file, or memory.

    Raises:
        InputError: as `open_journal`.
    """
    return InMemoryStorage() if journal is None else open_journal(journal)


def open_study(
    task: Task,
    sampler: SamplerName,
    storage: BaseStorage,
    pruner: optuna.pruners.BasePruner,
    journal: Path | None,
    resume: ExecutionPlan | None = None,
) -> optuna.Study:
    """The task's study, as it was left or new; `journal` is the file that `storage` writes.

    Raises:
        InputError: what it was left as is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with refusing_strange_journals(journal):
        study = optuna.create_study(
            storage=storage,
            study_name=study_name(task, sampler, resume),
            direction="minimize",
            pruner=pruner,
            load_if_exists=True,
        )
        for trial in study.get_trials(deepcopy=False):
            check_trial(trial.user_attrs, trial.intermediate_values)
    return study


def open_trials(study: optuna.Study, storage: BaseStorage) -> list[Trial]:
    """The trials that were begun and not ended, to go on with: `storage` holds the study."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return [
        Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    ]
