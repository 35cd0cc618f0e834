"""Errors that a user can cause or meet, each with the command line's exit code, and warnings."""

LONGEST_MESSAGE = 300


class DitplanError(Exception):
    """Base of all errors that end a command with one message and no traceback."""

    exit_code = 1


class InputError(DitplanError, ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right.

    Whatever was given, the message is one line of at most `LONGEST_MESSAGE` printable characters.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class PlanWarning(UserWarning):
    """Something is done otherwise than the plan says, or not at all; the message says why."""


class ClusterError(DitplanError, RuntimeError):
    """A host, a device or a rank failed, went silent or can't be reached."""

    exit_code = 3


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
