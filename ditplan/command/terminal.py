"""What the command line says, and how it ends."""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from ditplan.command.options import as_options
from ditplan.profiles.errors import DitplanError, InputError, PlanWarning, one_line
from ditplan.profiles.files import is_text
from ditplan.profiles.record import shortened

PIPE_COLUMNS = 120
"""A pipe has no width of its own, and a table of 80 columns folds."""


class Terminal:
    """Where words go: progress to stderr; the result, as text or one JSON object, to stdout."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._err = Console(stderr=True, highlight=False)
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)

    def say(self, message: str) -> None:
        """Reports progress."""
        self._err.print(escape(message), soft_wrap=True)

    def show(self, for_people: object) -> None:
        """Shows a result, unless JSON was asked for."""
        if not self.as_json:
            self._out.print(for_people, soft_wrap=isinstance(for_people, str))

    def finish(self, result: dict[str, Any]) -> None:
        """Prints the JSON object, if it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(result) + "\n")


def run(app: typer.Typer, arguments: list[str]) -> None:
    """Runs a command and ends the process; a user's errors end it with one message and their exit
    code.
    """
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    warnings.simplefilter("always", PlanWarning)
    try:
        _check_words(arguments)
        sys.exit(app(arguments or ["--help"], standalone_mode=False))
    except (DitplanError, typer.TyperException) as error:
        message = _message_of(error)
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, emoji=False)
        sys.exit(error.exit_code)


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
        message = error.sentence.worded(as_options) if isinstance(error, InputError) else str(error)
    return one_line(message) if error.exit_code == InputError.exit_code else message


def _show_warning(
    show: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """Shows what warns of a plan as progress is shown."""
    if issubclass(category, PlanWarning):
        Terminal(as_json=True).say(f"warning: {message}")
    else:
        show(message, category, *place)
