"""nccl-tests' programs on PATH are run and read; what fails is said and measured otherwise."""

import stat
import sys
from pathlib import Path

import pytest

from ditplan.profiles.cluster import CollectiveTable, Operation
from ditplan.runtime.profiling.nccl_programs import tables_of_programs

ROOT = Path(__file__).parents[2]
WRITES = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.unit.nccl_files import nccl_text
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
sizes, size = [], int(asked["-b"])
while size <= int(asked["-e"]):
    sizes.append(size)
    size *= int(asked["-f"])
text = nccl_text(sys.argv[0], ngpus=int(asked["-g"]), sizes=sizes, version=1)
open(asked["-J"], "x").write(text)
"""


def installed(folder: Path, **programs: str) -> dict[str, str]:
    """An environment with these programs on PATH."""
    for name, text in programs.items():
        path = folder / f"{name}_perf"
        path.write_text(text.format(python=sys.executable, root=str(ROOT)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(folder), "NCCL_DEBUG": "WARN"}


def sizes_of(operation: Operation) -> list[int]:
    return [4096, 8192, 16384] if operation == "all_gather" else [4096, 8192]


def measured(gpus: int, environment: dict[str, str]) -> tuple[list[CollectiveTable], list[str]]:
    said: list[str] = []
    return list(tables_of_programs(gpus, sizes_of, environment, said.append)), said


@pytest.mark.parametrize(("gpus", "groups"), [(2, [2]), (4, [2, 4]), (6, [2, 4, 6]), (1, [])])
def test_the_first_gpus_are_measured_in_powers_of_two_and_all(
    tmp_path: Path, gpus: int, groups: list[int]
) -> None:
    tables, _ = measured(gpus, installed(tmp_path, all_gather=WRITES, sendrecv=WRITES))
    found = [(table.operation, table.size, table.stride, table.groups) for table in tables]
    operations = ("all_gather", "send_recv")
    assert found == [(operation, size, 1, 1) for operation in operations for size in groups]
    for table in tables:
        # what one rank puts in, whatever nccl-tests count
        assert [point.bytes for point in table.points] == sizes_of(table.operation)


def test_without_programs_nothing_is_run(tmp_path: Path) -> None:
    assert measured(8, {"PATH": str(tmp_path)}) == ([], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\necho no GPU >&2; exit 3\n", "exit 3: no GPU"),
        ("#!/bin/sh\nexit 0\n", "no -J"),
        ("#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done; echo {{ > $1\n", "is cut off"),
        ("#!/no/such/shell\n", "No such file"),
    ],
)
def test_a_program_that_fails_is_said_and_others_go_on(
    tmp_path: Path, text: str, words: str
) -> None:
    tables, said = measured(2, installed(tmp_path, all_reduce=text, sendrecv=WRITES))
    assert [table.operation for table in tables] == ["send_recv"]
    (failed,) = [line for line in said if "measured without it" in line]
    assert words in failed
