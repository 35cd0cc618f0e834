"""A folder of recorded cases: its files, planned again by as many processes as there are cores."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from ditplan.checking.comparing import Bounds, Verdict, verdict_on
from ditplan.checking.measured import (
    forecasts,
    merged_records,
    record_of,
    require_forecasts,
    verdict_on_record,
)
from ditplan.checking.replanning import Replanned, digest, replanned
from ditplan.profiles.baseline import Baseline, Forecast, MeasuredBaseline
from ditplan.profiles.catalog import find_cluster
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import ClusterError, InputError
from ditplan.profiles.files import parse_json, path_text, read_text
from ditplan.profiles.measured_plans import MeasuredPlans

T = TypeVar("T")
R = TypeVar("R")
FEW = 8
"""So many tasks are done before other processes would have started."""


@dataclass(frozen=True)
class CasesFile:
    """A file of recorded cases, and the cluster as it is today."""

    path: Path
    baseline: Baseline
    cluster: ClusterProfile

    @property
    def has_other_cluster(self) -> bool:
        """Whether the cluster isn't what the cases were recorded for."""
        return bool(self.baseline.given) and self.baseline.given != digest(self.cluster)

    @property
    def tasks(self) -> list[Callable[[], Replanned]]:
        """What planning each case again takes."""
        return [partial(replanned, case, self.cluster) for case in self.baseline.cases]


@dataclass(frozen=True)
class MeasuredFile:
    """A file of what was predicted of measured plans, and the records of these."""

    path: Path
    baseline: MeasuredBaseline
    records: tuple[MeasuredPlans, ...]

    @property
    def tasks(self) -> list[Callable[[], tuple[Forecast, ...]]]:
        """What predicting each record's plans again takes."""
        return [partial(forecasts, record) for record in self.records]


BaselineFile = CasesFile | MeasuredFile


def files_in(folder: Path, what: str) -> list[Path]:
    """The JSON files of a folder, by name.

    Raises:
        InputError: there is none.
    """
    # unlike pathlib's, os.path's answer for a name that no folder can have is no
    if not os.path.isdir(folder):
        raise InputError(f"{path_text(folder)}: no such folder; name one with {what}")
    found = sorted(path for path in folder.glob("*.json") if path.is_file())
    if not found:
        raise InputError(f"{path_text(folder)}: holds no .json; name a folder with {what}")
    return found


def loaded(path: Path) -> BaselineFile:
    """A file of a baseline.

    Raises:
        InputError: it is none, or names a cluster or a record that there isn't.
    """
    where = path_text(path)
    text = read_text(path, "a baseline of recorded cases or of measured plans")
    data = parse_json(text, where, "file", "name a folder of baselines")
    if isinstance(data, dict) and "records" in data:
        measured = MeasuredBaseline.from_json(text, where)
        records = tuple(record_of(entry, path) for entry in measured.records)
        for entry, record in zip(measured.records, records, strict=True):
            require_forecasts(entry, record, path)
        return MeasuredFile(path, measured, records)
    baseline = Baseline.from_json(text, where)
    name = baseline.cluster
    beside = path.parent / name
    try:
        cluster = find_cluster(str(beside) if name.endswith(".json") else name)
    except InputError as error:
        raise InputError(f"{where}: field cluster: ", str(error)) from None
    return CasesFile(path, baseline, cluster)


def replan(files: Sequence[BaselineFile], say: Callable[[str], None]) -> list[list[Any]]:
    """What each file's cases, or records, give today, in their order.

    Raises:
        InputError: a question is wrong. ClusterError: a process was ended.
    """
    tasks: list[Callable[[], Any]] = [task for file in files for task in file.tasks]
    found: list[Any] = []
    for number, one in enumerate(in_processes(_done, tasks), start=1):
        found.append(one)
        if number % 50 == 0 or number == len(tasks):
            say(f"{number} of {len(tasks)} cases planned again")
    rest = iter(found)
    return [[next(rest) for _ in file.tasks] for file in files]


def _done(task: Callable[[], Any]) -> Any:
    return task()


def in_processes(work: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """The results of tasks, in their order, by a process for each core; few tasks are done here.

    Raises:
        ClusterError: a process was ended.
    """
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(tasks) <= FEW:
        yield from map(work, tasks)
        return
    with _processes(min(cores, len(tasks))) as pool:
        try:
            yield from pool.map(work, tasks)
        except BrokenProcessPool:
            raise ClusterError("a process of the check was ended; has it memory?") from None


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    # what forked processes inherit of threads may never end
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def verdicts(file: BaselineFile, found: Sequence[Any], bounds: Bounds) -> Iterator[Verdict]:
    """What became of a file's cases, or records."""
    if isinstance(file, MeasuredFile):
        for entry, record, now in zip(file.baseline.records, file.records, found, strict=True):
            yield verdict_on_record(entry, record, now, bounds)
        return
    for case, one in zip(file.baseline.cases, found, strict=True):
        yield verdict_on(case, one, bounds, file.path.stem)


def merged(file: BaselineFile, found: Sequence[Any]) -> Baseline | MeasuredBaseline:
    """A file with today's answers."""
    if isinstance(file, MeasuredFile):
        return merged_records(file.baseline, found)
    cases = zip(file.baseline.cases, found, strict=True)
    changes: dict[str, Any] = {
        "given": digest(file.cluster),
        "cases": tuple(case.model_copy(update={"answer": one.answer}) for case, one in cases),
    }
    return file.baseline.model_copy(update=changes)
