"""What a study keeps of a candidate, and how its measurements are read."""

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ditplan.planner.search.acquisition import OUT_OF_MEMORY
from ditplan.profiles.bounds import MOST_SECONDS
from ditplan.profiles.cluster import Device
from ditplan.profiles.errors import DitplanError, InputError, one_line
from ditplan.profiles.files import parse_json, path_text, read_bytes
from ditplan.profiles.plan import Measurement
from ditplan.profiles.record import shortened

MOST_JOURNAL_BYTES = 64 * 2**20
BEGUN_BY = {"study": 0, "trial": 4}
"""The operations of Optuna's journal that begin what later lines name by its number, from 0 on."""

DELETE = "delete it to measure anew"


def measurement_of(
    runs_s: Mapping[int, float],
    memory_bytes: int | None,
    ended: datetime | None,
    devices: Iterable[Device],
) -> Measurement:
    """What a trial's runs, by round, say of a plan; `ended` is None if it goes on."""
    names = [device.name for device in devices]
    when = (ended or datetime.now()).astimezone(UTC)
    return Measurement(
        latency_s=statistics.median(runs_s.values()),
        runs_s=tuple(runs_s[number] for number in sorted(runs_s)),
        memory_bytes=memory_bytes,
        measured_on=when.isoformat(timespec="seconds"),
        devices=", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
    )


def cause_in(message: str) -> str:
    """The line of an error's message that names the cause: that memory is short, or the first."""
    lines = message.splitlines()
    return next((line.strip() for line in lines if OUT_OF_MEMORY in line.lower()), lines[0])


def mend_journal(journal: Path) -> None:
    """Cuts off what a process that was killed while it wrote left of a line.

    Raises:
        InputError: the journal's folder doesn't exist, or as `check_journal`.
    """
    if not journal.parent.is_dir():
        raise InputError(f"{journal}: the folder {journal.parent} doesn't exist; make it first")
    if os.path.lexists(journal) and (whole := check_journal(journal)) < os.path.getsize(journal):
        os.truncate(journal, whole)


def check_journal(journal: Path) -> int:
    """How many bytes of a journal are whole lines.

    Raises:
        InputError: it isn't a file of JSON objects; says which line.
    """
    content = read_bytes(journal, "the journal of a study", MOST_JOURNAL_BYTES)
    whole = content.rfind(b"\n") + 1
    begun = dict.fromkeys(BEGUN_BY, 0)
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        where = f"{path_text(journal)}: line {number}"
        text = line.decode("utf-8", errors="replace")
        entry = parse_json(text, where, "entry of a study", DELETE)
        if not isinstance(entry, dict):
            raise InputError(f"{where}: this is no entry of a study; {DELETE}")
        # Optuna passes over what belongs to nothing, and the study would look empty
        for kind, operation in BEGUN_BY.items():
            if isinstance(of := entry.get(f"{kind}_id"), int) and of >= begun[kind]:
                raise InputError(
                    f"{where}: this is of a {kind} that no line before it begins, so lines are "
                    f"lost; {DELETE}"
                )
            begun[kind] += entry.get("op_code") == operation
    return whole


def check_trial(attributes: Mapping[str, object], runs_s: Mapping[int, object]) -> None:
    """Refuses a trial of a study whose runs and notes aren't such as a search writes.

    Raises:
        ValueError: says what is wrong.
    """
    for name, least in (("start", 0), ("memory_bytes", 1)):
        number = attributes.get(name, least)
        if not isinstance(number, int) or number < least:
            raise ValueError(f"{name} is {shortened(number)}")
    for number, seconds in runs_s.items():
        if not (isinstance(seconds, float | int) and 0 < seconds <= MOST_SECONDS and number >= 0):
            raise ValueError(f"round {number} took {shortened(seconds)} s")


@contextmanager
def refusing_strange_journals(journal: Path | None) -> Iterator[None]:
    """Turns all that Optuna raises for entries that it didn't write into an InputError.

    Raises:
        InputError: names the journal and says to delete it.
    """
    try:
        yield
    except DitplanError:
        raise
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        if journal is None:
            raise
        raise InputError(
            f"{path_text(journal)}: this is no study of ditplan's ({type(error).__name__}: "
            f"{one_line(str(error), 80)}); {DELETE}"
        ) from error
