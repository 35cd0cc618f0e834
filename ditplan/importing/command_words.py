"""A command in words: what starts the ranks, and the flags behind it."""

import shlex
from collections.abc import Sequence

from ditplan.importing.written import Setting, Written
from ditplan.profiles.bounds import MOST_RANKS
from ditplan.profiles.errors import InputError, one_line

TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
ALONE = ("standalone", "no_python", "m", "module", "run_path", "use_env", "help")
"""Flags of torchrun that nothing stands behind."""

WITH_VALUE = {"nnodes", "nproc_per_node", "node_rank", "rdzv_backend", "rdzv_endpoint", "rdzv_id"}
WITH_VALUE |= {"rdzv_conf", "max_restarts", "monitor_interval", "start_method", "role", "log_dir"}
WITH_VALUE |= {"r", "redirects", "t", "tee", "local_ranks_filter", "master_addr", "master_port"}
WITH_VALUE |= {"local_addr", "logs_specs", "event_log_handler", "numa_binding", "signals_to_handle"}

MPI = ("mpirun", "mpiexec", "mpiexec.hydra", "srun")
MPI_RANKS = ("-n", "-np", "--np", "--ntasks")
SERVERS = ("vllm", "vllm-omni", "sglang")
LONGEST = 64 * 1024


def split_words(text: str, where: str) -> list[str]:
    """The words of a command, as a shell takes them apart; `where` it stands is for messages.

    Raises:
        InputError: a quote that isn't closed, or a text that is no command.
    """
    if len(text) > LONGEST:
        raise InputError(f"{where}: more than {LONGEST // 1024} KiB; give one command")
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise InputError(
            f"{where}: can't be taken apart as a shell does it ({str(error).lower()}); close the "
            "quote"
        ) from None
    return [word for word in words if word.strip()]


def read_words(words: Sequence[str], where: str) -> Written:
    """A command's flags, and how many ranks its launcher starts.

    Raises:
        InputError: there is no flag, or a launcher's number is none.
    """
    rest, environment = list(words), []
    while rest and _is_assignment(rest[0]):
        environment.append(rest.pop(0))
    head, rest, ranks = _launched(rest, where)
    while rest and not _is_flag(rest[0]):
        head.append(rest.pop(0))
    settings = flags_in(rest)
    if not settings and not head:
        raise InputError(
            f"{where}: there is no flag in it; give a command line such as `--ulysses_degree 8`"
        )
    if served := _served_model(head):
        settings = [Setting("model", (served,), where, is_flag=False), *settings]
    return Written(tuple(settings), (*environment, *head), ranks)


def flags_in(words: Sequence[str]) -> list[Setting]:
    """Flags with what stands behind each, up to the next one."""
    found: list[tuple[str, str, list[str]]] = []
    for word in words:
        if _is_flag(word):
            typed, is_joined, value = word.partition("=")
            name = typed.lstrip("-").replace("-", "_")
            found.append((name, typed, [value] if is_joined else []))
        elif found:
            found[-1][2].append(word)
    return [Setting(name, tuple(values), one_line(typed, 60)) for name, typed, values in found]


def _launched(words: list[str], where: str) -> tuple[list[str], list[str], int | None]:
    """The words of a launcher and what it starts, the words behind, and its number of ranks."""
    for place, word in enumerate(words):
        if _is_flag(word) and not word.startswith("-m"):
            break
        name = word.rpartition("/")[2]
        if name in TORCHRUN:
            return _by_torchrun(words, place + 1, where)
        if name in MPI:
            return _by_mpi(words, place + 1, where)
    return [], words, None


def _by_torchrun(
    words: list[str], place: int, where: str
) -> tuple[list[str], list[str], int | None]:
    counts = {"nproc_per_node": 1, "nnodes": 1}
    while place < len(words) and words[place].startswith("-"):
        typed, is_joined, value = words[place].partition("=")
        name = typed.lstrip("-").replace("-", "_")
        if name not in WITH_VALUE and name not in ALONE:
            break
        place += 1
        if not is_joined and name in WITH_VALUE:
            value = words[place] if place < len(words) else ""
            place += 1
        if name in counts:
            counts[name] = _count(value, typed, where)
    ranks = counts["nproc_per_node"] * counts["nnodes"]
    if ranks > MOST_RANKS:
        raise InputError(f"{where}: starts {ranks} ranks; at most {MOST_RANKS} are compared")
    # what it starts, unless a flag of that one's stands there already
    is_named = place < len(words) and not words[place].startswith("-")
    end = place + 1 if is_named else place
    return words[:end], words[end:], ranks


def _by_mpi(words: list[str], place: int, where: str) -> tuple[list[str], list[str], int | None]:
    ranks = None
    for at in range(place, len(words)):
        typed, _, value = words[at].partition("=")
        if typed in MPI_RANKS:
            value = value or (words[at + 1] if at + 1 < len(words) else "")
            ranks = _count(value, typed, where)
        if words[at].endswith(".py"):
            return words[: at + 1], words[at + 1 :], ranks
    return words, [], ranks


def _count(text: str, flag: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 6 and int(text) > 0):
        raise InputError(
            f"{where}: {flag} is {one_line(repr(text), 40)}; it must be a whole number from 1 on"
        )
    return int(text)


def _served_model(head: Sequence[str]) -> str | None:
    """What is behind `serve`, which may be no flag."""
    for at, word in enumerate(head[:-1]):
        if word == "serve" and at and head[at - 1].rpartition("/")[2] in SERVERS:
            return head[at + 1]
    return None


def _is_flag(word: str) -> bool:
    is_number = word[1:].replace(".", "", 1).isdigit()
    return word.startswith("-") and len(word) > 1 and not is_number


def _is_assignment(word: str) -> bool:
    name, is_assigned, _ = word.partition("=")
    return bool(is_assigned) and name.isidentifier()
