"""Errors that a user can cause or meet, each with the command line's exit code, and warnings."""


class DitplanError(Exception):
    """Base of all errors that end a command with one message and no traceback."""

    exit_code = 1


class InputError(DitplanError, ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right."""

    exit_code = 2


class PlanWarning(UserWarning):
    """Something is done otherwise than the plan says, or not at all; the message says why."""


class ClusterError(DitplanError, RuntimeError):
    """A host, a device or a rank failed, went silent or can't be reached."""

    exit_code = 3
