"""Errors that a user can cause or meet, each with the command line's exit code, and warnings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Setting:
    """Something that can be asked for, by its name in Python, with a value where one is meant.

    Reads as `height=1000`; the command line says `--height 1000`.
    """

    name: str
    value: object = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"


@dataclass(frozen=True)
class Command:
    """A command that helps, with the settings that it takes then.

    Reads as `ditplan profile`; the command line says `ditplan profile --hosts FILE`.
    """

    name: str
    settings: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        return f"ditplan {self.name}"


Part = str | Setting | Command


class Sentence(str):
    """A text that remembers which of its words are settings and commands."""

    parts: tuple[Part, ...]

    def __new__(cls, *parts: Part) -> Self:
        """Joins parts, which may be sentences themselves."""
        flat: list[Part] = []
        for part in parts:
            flat += part.parts if isinstance(part, Sentence) else [part]
        self = super().__new__(cls, "".join(map(str, flat)))
        self.parts = tuple(flat)
        return self

    def worded(self, word: Callable[[Setting | Command], str]) -> str:
        """The text with its settings and commands as `word` says them."""
        return "".join(part if isinstance(part, str) else word(part) for part in self.parts)


class DitplanError(Exception):
    """Base of all errors that end a command with one message and no traceback; its `sentence`
    remembers which words are settings and commands.
    """

    exit_code = 1

    def __init__(self, *parts: Part) -> None:
        """Joins the parts to a message."""
        self.sentence = Sentence(*parts)
        super().__init__(str(self.sentence))


class InputError(DitplanError, ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right.

    Whatever was given, the message is one line of at most `LONGEST_MESSAGE` printable characters.
    """

    exit_code = 2

    def __init__(self, *parts: Part) -> None:
        """Joins the parts to one `sentence`, of which `str` gives a line."""
        super().__init__(*parts)
        self.args = (one_line(self.sentence),)


class PlanWarning(UserWarning):
    """Something is done otherwise than the plan says, or not at all; the message says why."""


class ClusterError(DitplanError, RuntimeError):
    """A host, a device or a rank failed, went silent or can't be reached.

    `ranks_were_lost` says that ranks died or went silent: the same may go well on new ones.
    """

    exit_code = 3
    ranks_were_lost = False


def one_line(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """A text as one line without control characters; what is too long lacks some of its middle.

    >>> one_line("a\\nb\\x00", 8)
    'a b\\\\x00'
    >>> one_line("0123456789", 8)
    '0123...9'
    """
    if len(text) > 8 * limit:
        text = f"{text[: 4 * limit]} {text[-4 * limit :]}"
    words = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    if len(line) <= limit:
        return line
    end = (limit - 3) // 3
    return f"{line[: limit - 3 - end]}...{line[len(line) - end :]}"
