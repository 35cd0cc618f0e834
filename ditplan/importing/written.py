"""A configuration as somebody has written it: settings by name, not yet understood."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setting:
    """One setting: its name with underscores, what it is given, and where it stands, for messages.

    `is_flag` tells a flag of a command from a field of a file.
    """

    name: str
    values: tuple[str, ...]
    where: str
    is_flag: bool = True


@dataclass(frozen=True)
class Written:
    """All that was written.

    `command` are the words of a command in front of its flags, empty where it is none. `ranks` is
    how many processes its launcher starts, where it has one. `notes` are sentences on what was not
    understood, or taken for something.
    """

    settings: tuple[Setting, ...]
    command: tuple[str, ...] = ()
    ranks: int | None = None
    notes: tuple[str, ...] = field(default=())
