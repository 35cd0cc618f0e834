"""Records: frozen models, saved whole or not at all, whose loading errors name the field."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ditplan.profiles.bounds import unit_of
from ditplan.profiles.errors import LONGEST_MESSAGE, Command, InputError, Sentence
from ditplan.profiles.files import field_text, parse_json, path_text, read_text


class FrozenModel(BaseModel):
    """A value: immutable, and unknown fields are errors.

    What validates it is built when it is first used: a process uses few of all the records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values in some fields.

        Raises:
            TypeError: there is no such field, which pydantic's own wouldn't say.
        """
        if unknown := set(update or ()) - set(type(self).model_fields):
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return super().model_copy(update=update, deep=deep)


NEEDS = "needs_ditplan"
"""The key of a record's file that says which ditplan reads it, for those that can't."""


class Record(FrozenModel):
    """A noun with a file of its own: JSON with a `schema_version`.

    `since` is the first version of ditplan that reads the newest schema. A file says it, so that an
    earlier one can say what it lacks.
    """

    kind: ClassVar[str]
    made_by: ClassVar[Command | str]
    newest_schema: ClassVar[int] = 1
    since: ClassVar[str] = "0.1.0"

    schema_version: int = 1

    def save(self, path: Path | str) -> Path:
        """Writes the record's text, through a temporary file and a rename.

        Raises:
            InputError: the folder doesn't exist or can't be written to.
        """
        return write_atomically(Path(path), self.text())

    def text(self) -> str:
        """What stands in the record's file: indented JSON."""
        text = self.model_dump_json(indent=1) + "\n"
        version = f'"schema_version": {self.schema_version},'
        return text.replace(version, f'{version}\n "{NEEDS}": "{self.since}",', 1)

    @classmethod
    def load(cls, path: Path | str, *, remedy: str | None = None) -> Self:
        """Reads a record; `remedy` is what a message says to do about a wrong file.

        Raises:
            InputError: no such file, not a regular one or too large, not JSON (truncated), a newer
                schema, or a wrong field; it is named.
        """
        text = read_text(Path(path), Sentence(f"a {cls.kind} made with `", cls.made_by, "`"))
        return cls.from_json(text, path_text(path), remedy=remedy)

    @classmethod
    def from_json(cls, text: str, where: str, *, remedy: str | None = None) -> Self:
        """Parses a record; `where` names the text's origin in error messages."""
        remedy = remedy or Sentence("make it again with `", cls.made_by, "`")
        correct = Sentence("correct it or ", remedy)
        data = parse_json(text, where, cls.kind, correct, broken=remedy)
        if not isinstance(data, dict):
            raise InputError(
                f"{where}: a {cls.kind} is a JSON object, this is a {type(data).__name__}; ", remedy
            )
        version, needed = data.get("schema_version", 1), data.pop(NEEDS, None)
        if not isinstance(version, int) or version < 1 or version > cls.newest_schema:
            named = isinstance(needed, str) and is_version(needed)
            raise InputError(
                f"{where}: field schema_version: this {cls.kind} has schema {shortened(version)}, "
                f"this ditplan reads up to {cls.newest_schema}; "
                f"upgrade ditplan{f' to {needed} or later' if named else ''} or ",
                remedy,
            )
        return validate(cls, data, where, correct)


def is_version(text: str) -> bool:
    """Whether a text is a version such as `0.10.2`."""
    return re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", text) is not None


N = TypeVar("N", bound=FrozenModel)


def validate(cls: type[N], data: Any, where: str, remedy: str = "") -> N:
    """Builds a noun from plain data; `remedy` is what the error message says to do.

    Raises:
        InputError: one line that names `where`, the first wrong field, what was given and what is
            allowed.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        then = Sentence("; ", remedy) if remedy else ""
        # what is wrong gets the room that the place and the remedy leave of a message
        room = LONGEST_MESSAGE - len(where) - len(then) - 2
        raise InputError(f"{where}: {_faults_of(error, room)}", then) from None


def _faults_of(error: ValidationError, room: int) -> str:
    """All fields that are missing, and the first that is wrong with what was given."""
    faults = error.errors(include_url=False)
    missing = [fault["loc"] for fault in faults if fault["type"] == "missing"]
    # a list whose items are wrong is said to be too short as well
    owners = {fault["loc"][:depth] for fault in faults for depth in range(1, len(fault["loc"]))}
    wrong = [
        fault
        for fault in faults
        if fault["type"] != "missing"
        and not (fault["type"] == "too_short" and fault["loc"] in owners)
    ]
    texts = []
    if wrong:
        fault = wrong[0]
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"].startswith(("greater_than", "less_than")):
            message += f" {unit_of(str(fault['loc'][-1]))}".rstrip()
        given = f" (given: {shortened(fault['input'])})" if fault["loc"] else ""
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        texts.append(f"{field_text(fault['loc'])}{message}{given}{more}")
    if missing:
        texts.insert(0, _missing_text(missing, room - sum(map(len, texts)) - 30))
    return "; ".join(texts)


def _missing_text(places: list[tuple[int | str, ...]], room: int) -> str:
    """Such as `fields hosts.0.name, .devices, links.0.kind: Field required`.

    A dot stands for the owner that the field before it has. What is missing in several items of a
    list is named once.
    """
    first = dict[tuple[object, ...], tuple[int | str, ...]]()
    for place in places:
        first.setdefault(tuple("*" if isinstance(p, int) else p for p in place), place)
    names, owner = list[str](), tuple[int | str, ...]()
    for place in first.values():
        name = ".".join(map(str, place))
        names.append(f".{place[-1]}" if place[:-1] == owner and owner else name)
        owner = place[:-1]
    shown = len(names)
    while shown > 1 and len(", ".join(names[:shown])) > room:
        shown -= 1
    more = f" and {len(places) - shown} more" if len(places) > shown else ""
    plural = "s" if len(places) > 1 else ""
    return f"field{plural} {', '.join(names[:shown])}{more}: Field required"


def shortened(value: Any, limit: int = 80) -> str:
    """A value for an error message: its repr, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def write_atomically(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all.

    Raises:
        InputError: the folder doesn't exist or can't be written to.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, of its kind, that takes its place unless an error occurs.

    Raises:
        InputError: the folder doesn't exist or can't be written to.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: can't be written: it exists and is not a regular file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} doesn't exist; make it first")
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
        )
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
