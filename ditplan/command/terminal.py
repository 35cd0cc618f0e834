"""What the command line says, where to, and how it ends."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ditplan.command.options import as_options
from ditplan.profiles.errors import DitplanError, InputError, PlanWarning, one_line
from ditplan.profiles.files import is_text
from ditplan.profiles.record import shortened

PIPE_COLUMNS = 120
"""A pipe has no width of its own, and a table of 80 columns folds."""

LEAST_COLUMNS = 20
LINES = 24
"""Nothing depends on how many there are; rich looks for the width anew where it isn't told."""

LAST_COLUMN = 16
"""What is left for a table's last column, which wraps, before it is shown as a list."""


DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""What a user can mend, wherever it shows: a full, broken or read-only disk."""


class NobodyReadsError(Exception):
    """Who read standard output has seen enough."""


class _Console(Console):
    """Leaves it to `run` what becomes of a pipe that nobody reads any more."""

    def on_broken_pipe(self) -> NoReturn:
        raise NobodyReadsError


class Terminal:
    """Where words go: progress to stderr; the result, as text or one JSON object, to stdout."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._err = _Console(stderr=True, highlight=False, width=PIPE_COLUMNS, height=LINES)
        self._out = _Console(highlight=False, width=_columns(), height=LINES)

    @property
    def columns(self) -> int:
        """How wide results are written."""
        return self._out.width

    def say(self, message: str) -> None:
        """Reports progress; where nobody can be told, work goes on."""
        try:
            self._err.print(escape(message), soft_wrap=True)
        except (NobodyReadsError, OSError):
            self._err.quiet = True

    def show(self, for_people: object) -> None:
        """Shows a result, unless JSON was asked for: a text, or a table, as a list where it is too
        wide.
        """
        if self.as_json:
            return
        if isinstance(for_people, Table) and width_of(for_people) > self._out.width:
            for_people = as_list(for_people)
        if isinstance(for_people, str):
            self._out.print(escape(for_people), soft_wrap=True)
        else:
            self._out.print(for_people)

    def finish(self, result: dict[str, Any]) -> None:
        """Prints the JSON object, if it was asked for."""
        if self.as_json:
            _print_json(result)


def width_of(table: Table) -> int:
    """The columns that a table needs whose last column wraps."""
    widths = [
        max(
            cell_len(line)
            for cell in [column.header, *column.cells]
            for line in str(cell).splitlines() or [""]
        )
        for column in table.columns
    ]
    widths[-1] = min(widths[-1], LAST_COLUMN)
    return sum(widths) + len(widths) + 1


def as_list(table: Table) -> Text:
    """A table as paragraphs, one a row: what each cell is called, and what it says; the last column
    is words, which need no name.
    """
    headings = [*(f"{column.header} " for column in table.columns[:-1]), ""]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    paragraphs = [Text.from_markup(str(table.title))] if table.title else []
    for row in rows:
        cells = (" ".join(str(cell).split()) for cell in row)
        said = (f"{name}{cell}" for name, cell in zip(headings, cells, strict=True) if cell)
        paragraphs.append(Text.from_markup(", ".join(said)))
    paragraphs += [Text.from_markup(str(table.caption))] if table.caption else []
    return Text("\n").join(paragraphs)


def run(app: typer.Typer, arguments: list[str]) -> NoReturn:
    """Runs a command and ends the process; a user's errors end it with one message and their exit
    code, in JSON as well where that was asked for.
    """
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    warnings.simplefilter("always", PlanWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a name that isn't text in the terminal's encoding is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_words(arguments)
        with _ended_by_signals():
            code = app(arguments or ["--help"], prog_name="ditplan", standalone_mode=False)
    except (DitplanError, typer.TyperException) as error:
        code = _fail(_message_of(error), error.exit_code, "--json" in arguments)
    except NobodyReadsError:
        _forget_stdout()
        code = 0
    except SystemExit as ended:
        # typer ends a help that nobody reads to its end with 1
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        _forget_stdout()
        code = 0
    except (ModuleNotFoundError, OSError) as error:
        message = _what_this_machine_lacks(error)
        code = _fail(message, InputError.exit_code, "--json" in arguments)
    sys.exit(code)


def _what_this_machine_lacks(error: ModuleNotFoundError | OSError) -> str:
    """A library or room on a disk; any other error is raised again, since it is no user's."""
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "ditplan").partition(".")[0] == "ditplan":
            raise error
        return f"this needs {error.name}, which isn't installed here; `pip install -e .` brings it"
    if error.errno not in DISK_FAULTS:
        raise error
    if error.filename is None:
        _forget_stdout()
    return f"{error.filename or 'standard output'} can't be written: {error.strerror}"


def _forget_stdout() -> None:
    """Lets what is still to be written go nowhere: the interpreter writes it when it ends."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Has SIGTERM and SIGHUP end the work as an interrupt does: ranks end, their folder goes."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP ignored
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # a second one must not keep the first from tidying up
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _fail(message: str, exit_code: int, as_json: bool) -> int:
    """Says why a command failed, on stderr and in JSON on stdout; returns the exit code."""
    console = _Console(stderr=True, highlight=False, width=PIPE_COLUMNS, height=LINES)
    with contextlib.suppress(NobodyReadsError, OSError):
        console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, emoji=False)
    if as_json:
        try:
            _print_json({"error": message, "exit_code": exit_code})
        except (NobodyReadsError, OSError):
            _forget_stdout()
    return exit_code


def _print_json(result: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise NobodyReadsError from None


def _check_words(words: Sequence[str]) -> None:
    """Refuses words that can be neither printed nor saved, nor be a file's name.

    Raises:
        InputError: there is one.
    """
    for word in words:
        if not is_text(word) or "\0" in word:
            raise InputError(f"{shortened(word)}: this is no UTF-8 text; write it otherwise")


def _message_of(error: DitplanError | typer.TyperException) -> str:
    """What an error says, in a line if it is the user's."""
    if isinstance(error, typer.TyperException):
        usage = error.format_message().replace("Value error, ", "")
        message = f"{usage.rstrip('.')}; see --help"
    else:
        message = error.sentence.worded(as_options)
    return one_line(message) if error.exit_code == InputError.exit_code else message


def _columns() -> int:
    """The width asked for by COLUMNS, else that of the terminal."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and len(asked) <= 5 and int(asked) > 0:
        return max(LEAST_COLUMNS, int(asked))
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_COLUMNS


def _show_warning(
    show: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """Shows what warns of a plan as progress is shown."""
    if issubclass(category, PlanWarning):
        Terminal(as_json=True).say(f"warning: {message}")
    else:
        show(message, category, *place)
