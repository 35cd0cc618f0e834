"""Runs the programs of NVIDIA's nccl-tests where they are installed: what they measure of the GPUs
of this machine stands in for our own sweep.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ditplan.profiles.cluster import CollectiveTable, Operation
from ditplan.profiles.errors import InputError, one_line
from ditplan.profiles.nccl_tests import PROGRAMS, load_nccl_test

TIMEOUT_S = 120.0


def tables_of_programs(
    gpus: int,
    sizes_of: Callable[[Operation], list[int]],
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> Iterator[CollectiveTable]:
    """Tables of the first 2, 4, 8 ... and of all GPUs, for each operation whose program is on PATH.

    A program that fails, is too old to write JSON, or takes more than `TIMEOUT_S` is said, and
    measured nothing. `sizes_of` gives the sizes of an operation, each twice the one before.
    """
    groups = [2**power for power in range(1, gpus.bit_length()) if 2**power < gpus]
    for program, operation in PROGRAMS.items():
        path = shutil.which(f"{program}_perf", path=environment.get("PATH"))
        if path is None or gpus < 2:
            continue
        for size in [*groups, gpus]:
            say(f"nccl-tests: {program}_perf on {size} GPUs")
            sizes = sizes_of(operation)
            table = _table_of(path, operation, size, (sizes[0], sizes[-1]), environment, say)
            if table is None:
                break
            yield table


def _table_of(
    program: str,
    operation: Operation,
    gpus: int,
    ends: tuple[int, int],
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> CollectiveTable | None:
    """What one run says, from the smaller to the larger size; None if it failed."""
    # of an all_gather nccl-tests count what comes out
    scale = gpus if operation == "all_gather" else 1
    first, last = (str(size * scale) for size in ends)
    with tempfile.TemporaryDirectory(prefix="ditplan-nccl-tests-") as folder:
        out = Path(folder) / "out.json"
        words = [program, "-g", str(gpus), "-b", first, "-e", last, "-f", "2", "-c", "0"]
        try:
            ended = subprocess.run(
                [*words, "-J", str(out)],
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            say(f"nccl-tests: {one_line(str(error), 120)}; measured without it")
            return None
        if ended.returncode or not out.exists():
            last_words = one_line((ended.stderr or ended.stdout)[-200:], 120)
            why = f"exit {ended.returncode}: {last_words}" if ended.returncode else "no -J"
            say(f"nccl-tests: {Path(program).name} failed ({why}); measured without it")
            return None
        try:
            test = load_nccl_test(out)
        except InputError as error:
            say(f"nccl-tests: {error}; measured without it")
            return None
    return CollectiveTable(
        operation=operation,
        size=gpus,
        stride=1,
        groups=1,
        points=test.points,
        source="measured: nccl-tests; means of calls, unless each was timed",
    )
