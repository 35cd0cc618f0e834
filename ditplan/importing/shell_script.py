"""The command in a shell script: its variables and lines that go on are put together as the shell
does it; nothing is run.
"""

import math
import re
from collections.abc import Mapping

from ditplan.importing.command_words import read_words, split_words
from ditplan.importing.written import Written
from ditplan.profiles.errors import InputError, one_line

ASSIGNED = re.compile(r"^\s*(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)=(.*)$")
VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::?([-?+=])([^}]*))?\}|([A-Za-z_]\w*))")
COMMANDS = re.compile(r"\b(torchrun|torch\.distributed\.run|sglang|vllm|vllm-omni|mpirun|srun)\b")
PRODUCT = re.compile(r"\$\(\(([^()]*)\)\)")
LONGEST = 256 * 1024
"""Of a line with its variables put in, in characters."""


def read_script(text: str, where: str) -> Written:
    """The one command of a script that has flags and starts an engine.

    Raises:
        InputError: there is none, or more than one.
    """
    variables: dict[str, str] = {}
    unknown: set[str] = set()
    found: list[str] = []
    for line in _whole_lines(text):
        assigned = ASSIGNED.match(line)
        if assigned and not COMMANDS.search(line):
            name, value = assigned.groups()
            variables[name] = " ".join(
                split_words(_expanded(value, variables, unknown, where), where)
            )
        elif re.search(r"(^|\s)--?[A-Za-z]", line) or "ARGS" in line:
            found.append(line)
    commands = [line for line in found if COMMANDS.search(line)] or found
    if len(commands) != 1:
        what = "no command with flags" if not commands else f"{len(commands)} commands"
        raise InputError(
            f'{where}: there is {what} in it; give one command in quotes: "torchrun ..."'
        )
    unknown.clear()
    written = read_words(
        split_words(_expanded(commands[0], variables, unknown, where), where), where
    )
    notes = tuple(
        f"${one_line(name, 40)} isn't set in {where}: taken as empty" for name in sorted(unknown)
    )
    return Written(written.settings, written.command, written.ranks, notes)


def _whole_lines(text: str) -> list[str]:
    """Lines without comments, those that go on joined, several commands of a line apart."""
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in lines if line.strip()]


def _expanded(text: str, variables: Mapping[str, str], unknown: set[str], where: str) -> str:
    """A line with its variables and products put in; variables that aren't set are noted and left
    out.

    Raises:
        InputError: it becomes too long.
    """
    length = len(text)

    def put_in(found: re.Match[str]) -> str:
        nonlocal length
        name = found.group(1) or found.group(4)
        if name in variables:
            length += len(variables[name])
            if length > LONGEST:
                raise InputError(f"{where}: its variables make a line too long; give the command")
            return variables[name]
        if found.group(2) == "-":
            return str(found.group(3))
        # what must be set before the script runs, as MODEL and SCRIPT in exported ones
        if found.group(2) == "?":
            return f"${name}"
        unknown.add(name)
        return ""

    text = PRODUCT.sub(lambda found: _product(found.group(1), variables), text)
    return VARIABLE.sub(put_in, text).replace("$@", "").replace("$*", "")


def _product(text: str, variables: Mapping[str, str]) -> str:
    """What `$((A * B))` gives; as it stands where it is anything else."""
    names = [name.strip().lstrip("$").strip("{}") for name in text.split("*")]
    factors = [variables.get(name, name) for name in names]
    if not all(factor.isascii() and factor.isdecimal() and len(factor) < 7 for factor in factors):
        return f"$(({text}))"
    return str(math.prod(map(int, factors)))
