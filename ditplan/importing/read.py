"""What a user names, a file or a command line, as settings."""

import os
from pathlib import Path

from ditplan.importing.command_words import read_words, split_words
from ditplan.importing.documents import LARGEST_BYTES, read_document
from ditplan.importing.python_script import read_python
from ditplan.importing.shell_script import read_script
from ditplan.importing.written import Written
from ditplan.profiles.errors import InputError
from ditplan.profiles.files import path_text, read_text

DOCUMENTS = (".yaml", ".yml", ".json")
FILES_IN_COMMANDS = {
    "sglang": ("config",),
    "vllm-omni": ("deploy_config",),
    "cache-dit": ("config_path", "config"),
}
"""The flags by which an engine is given a configuration file."""


def read_text_or_file(given: str, engine: str) -> Written:
    """The settings of a configuration: a file's, or a command line's with those of the file that it
    names, over which its flags stand.

    Raises:
        InputError: it can't be read as one of the engine's.
    """
    if os.path.isfile(given) or _looks_like_a_file(given):
        return _of_file(Path(given), engine)
    written = read_words(split_words(given, "the command"), "the command")
    naming = FILES_IN_COMMANDS.get(engine, ())
    named = [one for one in written.settings if one.name in naming and one.values]
    if not named:
        return written
    file = _of_file(Path(named[0].values[0]), engine)
    flags = [one for one in written.settings if one.name not in naming]
    said = {one.name for one in flags}
    below = [one for one in file.settings if one.name not in said]
    return Written((*below, *flags), written.command, written.ranks, file.notes)


def _looks_like_a_file(given: str) -> bool:
    """Whether a text that is no file there is can only be meant as one."""
    suffixes = (*DOCUMENTS, ".sh", ".py")
    return len(given.split()) == 1 and not given.startswith("-") and given.endswith(suffixes)


def _of_file(path: Path, engine: str) -> Written:
    what = f"a configuration of {engine}"
    text, where = read_text(path, what, LARGEST_BYTES), path_text(path)
    if path.suffix.lower() in DOCUMENTS:
        return read_document(text, engine, where)
    if path.suffix.lower() == ".py" or text.startswith(("import ", "from ")):
        return read_python(text, engine, where)
    if not text.strip():
        raise InputError(f"{where}: is empty; expected {what}")
    return read_script(text, where)
