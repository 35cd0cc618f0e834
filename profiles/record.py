"""Records: frozen models, saved whole or not at all, whose loading errors name the field."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ditplan.profiles.errors import InputError


class FrozenModel(BaseModel):
    """A value: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values in some fields.

        Raises:
            TypeError: there is no such field, which pydantic's own wouldn't say.
        """
        if unknown := set(update or ()) - set(type(self).model_fields):
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return super().model_copy(update=update, deep=deep)


class Record(FrozenModel):
    """A noun with a file of its own: JSON with a `schema_version`."""

    kind: ClassVar[str]
    made_by: ClassVar[str]
    newest_schema: ClassVar[int] = 1

    schema_version: int = 1

    def save(self, path: Path | str) -> Path:
        """Writes the record as indented JSON, through a temporary file and a rename.

        Raises:
            InputError: the folder doesn't exist or can't be written to.
        """
        return write_atomically(Path(path), self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str, *, remedy: str | None = None) -> Self:
        """Reads a record; `remedy` is what a message says to do about a wrong file.

        Raises:
            InputError: no such file, not JSON (truncated), a newer schema, or a wrong field; it is
                named.
        """
        path = Path(path)
        text = read_text(path, f"{cls.kind} made with `{cls.made_by}`")
        return cls.from_json(text, str(path), remedy=remedy)

    @classmethod
    def from_json(cls, text: str, where: str, *, remedy: str | None = None) -> Self:
        """Parses a record; `where` names the text's origin in error messages."""
        remedy = remedy or f"make it again with `{cls.made_by}`"
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            fault = "is cut off" if _is_cut_off(text, error) else "is not JSON"
            raise InputError(
                f"{where}: line {error.lineno}, column {error.colno}: this {cls.kind} {fault} "
                f"({error.msg}); {remedy}"
            ) from None
        if not isinstance(data, dict):
            raise InputError(
                f"{where}: a {cls.kind} is a JSON object, this is a {type(data).__name__}; {remedy}"
            )
        version = data.get("schema_version", 1)
        if not isinstance(version, int) or version < 1 or version > cls.newest_schema:
            raise InputError(
                f"{where}: field schema_version: this {cls.kind} has schema {shortened(version)}, "
                f"this ditplan reads up to {cls.newest_schema}; upgrade ditplan or {remedy}"
            )
        return validate(cls, data, where, f"correct it or {remedy}")


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Whether JSON that can't be parsed looks like the start of an object that was whole once."""
    if not text.lstrip().startswith("{"):
        return not text.strip()
    text = text.rstrip()
    at_the_end = error.pos >= len(text) or error.msg.startswith("Unterminated string")
    return at_the_end or not text.endswith("}")


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
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        at = f"{where}: field {field}" if field else where
        says_input = field and first["type"] != "missing"
        given = f" (given: {shortened(first['input'])})" if says_input else ""
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        fault = first["msg"].removeprefix("Value error, ")
        then = f"; {remedy}" if remedy else ""
        raise InputError(f"{at}: {fault}{given}{more}{then}") from None


def shortened(value: Any, limit: int = 80) -> str:
    """A value for an error message: its repr, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_text(path: Path, kind: str) -> str:
    """The text of a file the user named.

    Raises:
        InputError: it doesn't exist, is a folder, can't be read or isn't UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a {kind}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder; expected a {kind} file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a {kind}: {error}") from None


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
