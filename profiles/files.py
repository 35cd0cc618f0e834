"""The one door for files that users give: what is opened, how much of it, and what it may hold.

Everything that can be wrong with a file ends as one `InputError` that names it: it is no regular
file, too large, no UTF-8, not JSON or TOML, or holds what can't be saved again or costs far more
memory than its own size.
"""

import json
import math
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ditplan.profiles.errors import InputError, one_line

LARGEST_BYTES = 8 * 2**20
"""Of a file that is read whole: a cluster of 8192 GPUs has some 4 MB."""

MOST_OBJECTS, MOST_VALUES = 50_000, 250_000
"""Of a JSON or TOML file: a wrong one costs a kilobyte of messages."""

DEEPEST = 50
MOST_DIGITS = 18
"""Of a whole number; more don't fit into 64 bits, and nothing that is counted here needs them."""


def path_text(path: Path | str) -> str:
    """A path for a message: one line, the middle left out where it is very long."""
    return one_line(str(path), 120)


@contextmanager
def opened(path: Path, expected: str) -> Iterator[BinaryIO]:
    """A regular file to read from; nothing else is waited for, or read.

    Raises:
        InputError: there is none, it is something else, or it can't be read; says what was
            `expected`, such as "a plan".
    """
    name = path_text(path)
    # a FIFO would be waited for, a terminal become this process's own
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; expected ", expected) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: can't be read as ", expected, f": {_reason(error)}") from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: this is a folder; expected ", expected)
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: this is no regular file; expected ", expected)
        with open(handle, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise InputError(f"{name}: can't be read as ", expected, f": {_reason(error)}") from None
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """Why a file can't be opened or read, without its name."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def read_bytes(path: Path, expected: str, limit: int = LARGEST_BYTES) -> bytes:
    """All of a regular file.

    Raises:
        InputError: as `opened`, or it has more than `limit` bytes.
    """
    with opened(path, expected) as file:
        content = file.read(limit + 1) or b""
    if len(content) > limit:
        raise InputError(
            f"{path_text(path)}: is larger than {limit / 2**20:g} MiB; expected ", expected
        )
    return content


def read_text(path: Path, expected: str, limit: int = LARGEST_BYTES) -> str:
    """The text of a regular file.

    Raises:
        InputError: as `read_bytes`, or it isn't UTF-8.
    """
    content = read_bytes(path, expected, limit)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path_text(path)}: can't be read as ",
            expected,
            f": byte {error.start} isn't UTF-8 text",
        ) from None


def parse_json(
    text: str, where: str, what: str, remedy: str, *, broken: str = "", finite: bool = True
) -> Any:
    """Plain data from JSON: `what` it is and the `remedy` are for messages.

    `broken` is the remedy for what is no JSON at all, where that is another one. Numbers are
    `finite`, unless infinite ones have a meaning or are refused later.

    Raises:
        InputError: it is no JSON, or as `check_plain`; names `where` and the line or the field.
    """
    _check_size(text, text.count("{"), where, what, remedy)
    try:
        data = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        fault = "is cut off" if _is_cut_off(text, error) else "is not JSON"
        raise InputError(
            f"{where}: line {error.lineno}, column {error.colno}: this {what} {fault} "
            f"({error.msg}); ",
            broken or remedy,
        ) from None
    except _DuplicateKeyError as error:
        key = one_line(repr(str(error)), 60)
        raise InputError(f"{where}: the key {key} stands twice in one object; ", remedy) from None
    except RecursionError:
        _refuse_depth(where, what, remedy)
    check_plain(data, where, what, remedy, finite=finite)
    return data


def parse_toml(text: str, where: str, what: str, remedy: str) -> dict[str, Any]:
    """Plain data from TOML.

    Raises:
        InputError: as `parse_json`.
    """
    _check_size(text, text.count("{") + text.count("["), where, what, remedy)
    try:
        data = tomllib.loads(text)
    except RecursionError:
        _refuse_depth(where, what, remedy)
    except ValueError as error:
        raise InputError(f"{where}: this {what} is not TOML ({error}); ", remedy) from None
    check_plain(data, where, what, remedy)
    return data


def check_plain(data: Any, where: str, what: str, remedy: str, *, finite: bool = True) -> None:
    """Refuses data that is too deep, or has numbers or text that can't be computed with or saved.

    Raises:
        InputError: names the field.
    """
    stack: list[tuple[Any, tuple[object, ...]]] = [(data, ())]
    while stack:
        value, place = stack.pop()
        fault = ""
        if isinstance(value, str):
            fault = "" if is_text(value) else "isn't Unicode text (it has half a surrogate pair)"
        elif isinstance(value, float):
            if finite and not math.isfinite(value):
                fault = f"Input should be a finite number, of at most {MOST_DIGITS} digits"
        elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
            fault = f"Input should be a number of at most {MOST_DIGITS} digits"
        elif isinstance(value, dict):
            fault = "" if all(map(is_text, value)) else "has a key that isn't Unicode text"
            stack += [(item, (*place, key)) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [(item, (*place, index)) for index, item in enumerate(value)]
        if len(place) > DEEPEST:
            _refuse_depth(where, what, remedy)
        if fault:
            raise InputError(f"{where}: {field_text(place)}{fault}; ", remedy)


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: whether it has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def field_text(place: tuple[object, ...]) -> str:
    """Such as `field hosts.0.name: `, for a message; nothing for no place."""
    return f"field {one_line('.'.join(map(str, place)), 80)}: " if place else ""


class _DuplicateKeyError(Exception):
    """The key stands twice in an object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return found


def _integer(text: str) -> int | float:
    """A whole number; one that is far too long to be one is infinite, and is refused later."""
    return int(text) if len(text) <= MOST_DIGITS + 2 else math.inf


def _check_size(text: str, objects: int, where: str, what: str, remedy: str) -> None:
    values = text.count(",")
    if objects > MOST_OBJECTS or values > MOST_VALUES:
        raise InputError(
            f"{where}: this {what} has {objects} objects and some {values} values; at most "
            f"{MOST_OBJECTS} and {MOST_VALUES} are read; ",
            remedy,
        )


def _refuse_depth(where: str, what: str, remedy: str) -> NoReturn:
    raise InputError(f"{where}: this {what} is nested more than {DEEPEST} deep; ", remedy) from None


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Whether JSON that can't be parsed looks like the start of an object that was whole once."""
    if not text.lstrip().startswith("{"):
        return not text.strip()
    text = text.rstrip()
    at_the_end = error.pos >= len(text) or error.msg.startswith("Unterminated string")
    return at_the_end or not text.endswith("}")
