"""What settings mean, by an engine's table of words: numbers and switches, checked strictly."""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ditplan.exporting.engine_words import EngineWords, Meaning, Word
from ditplan.importing.written import Setting, Written
from ditplan.profiles.bounds import MOST_RANKS
from ditplan.profiles.errors import InputError, one_line

Value = int | float | bool | str | tuple[int, ...]

PARALLEL = {"parallel", "parallelism", "degree", "ulysses", "ring", "usp", "tp", "dp", "sp", "cp"}
PARALLEL |= {"pp", "ep", "gpus", "nproc", "nnodes", "world", "shard", "hsdp", "fsdp", "replicas"}
"""Words in the name of a setting by which it says how a model is split."""

UNPRICED = {
    "cache",
    "teacache",
    "fbcache",
    "quant",
    "quantization",
    "quantize",
    "fp8",
    "fp4",
    "int8",
}
UNPRICED |= {"gemm", "offload", "residency", "sparse", "vsa", "taylorseer", "attn", "attention"}
"""Words by which a setting changes how long steps take, though not how they are split."""

FROM_0: tuple[Meaning, ...] = ("warmup_steps", "more_gpus", "denoiser_gpus", "aside")
MOST = 10**6
MOST_SHOWN = 8


@dataclass(frozen=True)
class Understood:
    """The values of a configuration by their meaning, where each was said, and notes.

    `others` are the settings that say nothing of how the model is split or compiled.
    """

    values: dict[Meaning, Value]
    places: dict[Meaning, str]
    others: tuple[Setting, ...]
    notes: tuple[str, ...]

    def count(self, meaning: Meaning) -> int | None:
        """A whole number, None if it wasn't said."""
        value = self.values.get(meaning)
        return value if isinstance(value, int) else None

    def counted(self, meaning: Meaning) -> int:
        """A degree, 1 if it wasn't said."""
        return self.count(meaning) or 1

    def place(self, meaning: Meaning) -> str:
        """Where it was said, such as `--ulysses-degree`."""
        return self.places[meaning]


CALL: tuple[Meaning, ...] = (
    "model", "height", "width", "frames", "steps", "scale", "batch", "text_tokens", "negative",
)  # fmt: skip


def understand(written: Written, words: EngineWords) -> Understood:
    """The meaning of all settings.

    Raises:
        InputError: a setting of parallelism that isn't known, two that contradict each other, or a
            value that a setting can't have.
    """
    values: dict[Meaning, Value] = {}
    places: dict[Meaning, str] = {}
    others: list[Setting] = []
    notes = list(written.notes)
    unpriced: list[str] = []
    for setting in written.settings:
        word = _word_of(setting, words)
        if word is None or word.means in ("aside", *CALL):
            others.append(setting)
        if word is None:
            _refuse_parallel(setting, words)
            if UNPRICED & set(_parts(setting.name)):
                unpriced.append(_shown(setting))
            continue
        value = _value(setting, word)
        if word.means == "aside":
            continue
        before = values.get(word.means)
        # of two ways to say the scale of guidance the first in the table is the pipeline's own
        if before is not None and before != value and word.means != "scale":
            raise InputError(
                f"{setting.where}: says {value}, {places[word.means]} said {before}; leave one out"
            )
        values[word.means], places[word.means] = value, setting.where
    if unpriced:
        notes.append(f"not priced: {_listed(unpriced)}: the prediction is without")
    return Understood(values, places, tuple(others), tuple(notes))


def _word_of(setting: Setting, words: EngineWords) -> Word | None:
    if setting.is_flag:
        return words.find(setting.name)
    found = words.find_field(setting.name) or words.find(setting.name)
    if found and found.field and setting.name != found.field:
        raise InputError(
            f"{setting.where}: is ignored in a file by the engine, without a word; there it is "
            f"called {found.field}"
        )
    return found


def _refuse_parallel(setting: Setting, words: EngineWords) -> None:
    """Refuses a setting by whose name a model is split in a way that isn't known here."""
    if not PARALLEL & set(_parts(setting.name)):
        return
    known = sorted(name for word in words.words for name in word.names)
    near = difflib.get_close_matches(setting.name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise InputError(
        f"{setting.where}: isn't known, and by its name it says how a model is split. {hint}"
        "Leave it out if it doesn't matter"
    )


def _value(setting: Setting, word: Word) -> Value:
    """A setting's value, of the kind that the table says.

    Raises:
        InputError: it isn't of that kind.
    """
    given = " ".join(setting.values)
    wrong = f"{setting.where}: is {one_line(repr(given), 40)}; it must be "
    if word.kind == "text":
        return given
    if word.kind in ("switch", "boolean"):
        return _switched(given, wrong, is_bare=word.kind == "switch" and setting.is_flag)
    if word.kind == "number":
        return _number(given, wrong)
    if word.kind == "rest" and given == "auto":
        return 0
    return _counted(setting, word, wrong)


def _switched(given: str, wrong: str, *, is_bare: bool) -> bool:
    if not given:
        return True
    if is_bare:
        raise InputError(f"{wrong}a switch, without {one_line(given, 30)} behind it")
    if given.lower() not in ("true", "false"):
        raise InputError(f"{wrong}true or false")
    return given.lower() == "true"


def _counted(setting: Setting, word: Word, wrong: str) -> int | tuple[int, ...]:
    counts = tuple(int(one) for one in setting.values if re.fullmatch(r"\d{1,7}", one, re.ASCII))
    least = 0 if word.means in FROM_0 else 1
    most = MOST if word.means in CALL else MOST_RANKS
    if len(counts) != len(setting.values) or not counts or max(counts) > most:
        raise InputError(f"{wrong}a whole number from {least} to {most}")
    if word.kind == "counts":
        return counts
    if len(counts) > 1 or counts[0] < least:
        raise InputError(f"{wrong}a whole number from {least} to {most}")
    return counts[0]


def _number(text: str, wrong: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{wrong}a number")
    return found


def _parts(name: str) -> list[str]:
    return re.split(r"[_.]+", name.lower())


def _shown(setting: Setting) -> str:
    if not setting.is_flag:
        return setting.name
    return one_line(" ".join([setting.where, *setting.values]), 60)


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return ", ".join(found[:MOST_SHOWN]) + more
