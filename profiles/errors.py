"""Errors that a user can cause or meet; each knows the exit code of the command line."""


class DitplanError(Exception):
    """Base of all errors that end a command with one message and no traceback."""

    exit_code = 1


class InputError(DitplanError, ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right."""

    exit_code = 2


class ClusterError(DitplanError, RuntimeError):
    """A host, a device or a rank failed, went silent or can't be reached."""

    exit_code = 3
