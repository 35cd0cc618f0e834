"""Whether a test notices each element of each key by which the planner remembers results.

    python -m benchmarks.memo_mutations

Keys are those of every `Memo` in planner/ and, in files with one, of what is put by `setdefault`
under a tuple and of functions whose names end in `_key`; what makes a remembered result invalid
counts too. Each element is taken out in a copy of the tree, where the memo's test then has to fail.
Functions with `functools.cache` are left out: their keys are all arguments.
"""

import argparse
import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from benchmarks.machine import described

ROOT = Path(__file__).parents[1]
TEST = "tests/unit/test_planner_memo.py"
COPIED = ("ditplan", "planner", "profiles", "tests", "cli.py", "pyproject.toml")
LIMIT_CPU_S, LIMIT_S = 60, 1800
"""A test that a mutant makes endless ends by its CPU seconds, however busy the machine is."""


@dataclass(frozen=True)
class Mutant:
    """An element that is taken out of a key: its file and function, and the changed source."""

    path: Path
    function: str
    element: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """Which test noticed a mutant and by which error; None where none did."""

    mutant: Mutant
    test: str | None
    error: str


Edit = tuple[ast.expr, str]
"""A node and what stands in its place."""


def mutants_of(folder: Path) -> Iterator[Mutant]:
    """All elements of all keys in the files of a folder."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}
    everywhere = {f".{name}" for tree in trees.values() for name in _memos_in(tree)}
    for path, tree in trees.items():
        if not any(_memos_in(tree)):
            continue
        functions = [(node, everywhere) for node in tree.body]
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                # what an object calls so itself is one only if it says so
                own = {f"self.{name}" for name in _memos_in(node)}
                functions += [(inner, everywhere | own) for inner in node.body]
        for function, memos in functions:
            if isinstance(function, ast.FunctionDef):
                for element, edits in _Keys(function, memos).taken_out():
                    text = _edited(path.read_text(), edits)
                    yield Mutant(path.relative_to(folder.parent), function.name, element, text)


def _memos_in(tree: ast.AST) -> Iterator[str]:
    """The attributes that are annotated as a `Memo`."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(ast.Attribute(_, name), ast.Subscript(ast.Name("Memo"))):
                yield name


class _Keys:
    """The keys in a function; `memos` are such as `self._found`, or `.booked` of other objects."""

    def __init__(self, function: ast.FunctionDef, memos: set[str]) -> None:
        self._function, self._memos = function, memos
        self._nodes = list(ast.walk(function))
        self._assigned: dict[str, ast.expr] = {}
        for node in self._nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._assigned.setdefault(node.targets[0].id, node.value)

    def taken_out(self) -> Iterator[tuple[str, list[Edit]]]:
        """Each element of each key, with the edits that take it out."""
        keys: dict[str, list[ast.expr]] = {}
        for key in filter(None, map(self._key_at, self._nodes)):
            keys.setdefault(ast.unparse(key), []).append(key)
        for uses in keys.values():
            value = self._value_of(uses[0])
            if isinstance(value, ast.Tuple):
                yield from _without_each([value] if value is not uses[0] else uses)
            else:
                yield ast.unparse(uses[0]), [(use, "None") for use in uses]
        for node in self._nodes:
            if isinstance(node, ast.BoolOp):
                yield from self._validity(node)

    def _key_at(self, node: ast.AST) -> ast.expr | None:
        """By which a memo is looked into or filled, or what a function for keys returns."""
        match node:
            case ast.Compare(left, [ast.In() | ast.NotIn()], [of]) if self._is_memo(of):
                return left
            case ast.Subscript(of, key) if self._is_memo(of):
                return key
            case ast.Call(ast.Attribute(of, "get"), [key, *_]) if self._is_memo(of):
                return key
            case ast.Call(ast.Attribute(of, "setdefault"), [ast.Tuple() as key, _]):
                return key
            case ast.Return(ast.Tuple() as key) if self._function.name.endswith("_key"):
                return key
        return None

    def _validity(self, node: ast.BoolOp) -> Iterator[tuple[str, list[Edit]]]:
        """Of `found is None or ...` what else makes what a memo has useless."""
        match node:
            case ast.BoolOp(
                ast.Or(), [ast.Compare(ast.Name() as found, [ast.Is()]) as first, condition]
            ):
                value = self._value_of(found)
                if isinstance(value, ast.Call) and self._key_at(value):
                    yield ast.unparse(condition), [(node, ast.unparse(first))]
                    for name in ast.walk(condition):
                        if isinstance(key := self._value_of(name), ast.Tuple):
                            yield from _without_each([key])

    def _value_of(self, node: ast.AST) -> ast.AST:
        """What a local name was given first."""
        return self._assigned.get(node.id, node) if isinstance(node, ast.Name) else node

    def _is_memo(self, node: ast.AST) -> bool:
        """Whether an expression is a memo or a local name for one."""
        text = ast.unparse(self._value_of(node))
        if text.startswith("self."):
            return text in self._memos
        return any(text.endswith(name) for name in self._memos)


def _without_each(keys: Sequence[ast.expr]) -> Iterator[tuple[str, list[Edit]]]:
    """Each element of a key, which is written down at several places."""
    tuples = [key for key in keys if isinstance(key, ast.Tuple)]
    for place, taken in enumerate(tuples[0].elts):
        edits: list[Edit] = []
        for key in tuples:
            left = [*key.elts[:place], *key.elts[place + 1 :]]
            edits.append((key, ast.unparse(ast.Tuple(left, ast.Load()))))
        yield ast.unparse(taken), edits


def _edited(text: str, edits: Iterable[Edit]) -> str:
    """A source with other text in the place of some nodes."""
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    source = b"".join(lines)

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    spans = []
    for node, new in edits:
        assert node.end_lineno is not None and node.end_col_offset is not None
        first = place(node.lineno, node.col_offset)
        spans.append((first, place(node.end_lineno, node.end_col_offset), new))
    for first, last, new in sorted(spans, reverse=True):
        source = source[:first] + new.encode() + source[last:]
    return source.decode()


def copied_to(folder: Path) -> Path:
    """A copy of what the test needs."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    return folder


def tested_in(folder: Path) -> tuple[str | None, str]:
    """The first test that fails there and its error; None where all pass, or don't end."""
    command = [sys.executable, "-m", "pytest", TEST, "-x", "-q", "--tb=line"]
    # a changed file of the same size and second would pass for the one that was compiled before
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "COLUMNS": "500",
    }
    limited = ["prlimit", f"--cpu={LIMIT_CPU_S}", *command, "-p", "no:cacheprovider"]
    done = subprocess.run(
        limited,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        start_new_session=True,
        check=False,
    )
    if done.returncode == 0:
        return None, ""
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return None, f"over {LIMIT_CPU_S} CPU s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    test, _, error = failed[0].partition(" - ")
    return test.split("::")[-1], error.split(":")[0]


def outcomes_of(mutants: Sequence[Mutant], jobs: int) -> Iterator[Outcome]:
    """Tries each mutant in one of so many copies."""
    with tempfile.TemporaryDirectory() as room, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            folder = Path(room) / str(number)
            folder.mkdir()
            copies.put(copied_to(folder))

        def tried(mutant: Mutant) -> Outcome:
            folder = copies.get()
            path = folder / mutant.path
            kept = path.read_text()
            path.write_text(mutant.text)
            try:
                return Outcome(mutant, *tested_in(folder))
            finally:
                path.write_text(kept)
                copies.put(folder)

        yield from pool.map(tried, mutants)


def _header(jobs: int) -> str:
    command = f"python -m benchmarks.memo_mutations --jobs {jobs}, {datetime.now(UTC):%Y-%m-%d}"
    return f"{command}\n{described('pydantic', 'networkx', 'pytest')}"


def main() -> int:
    """Prints the table; 1 where a mutant isn't noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="so many at once (2)")
    parser.add_argument("--only", default="", help="only elements whose line below has this text")
    args = parser.parse_args()
    began_s = time.monotonic()
    mutants = [
        mutant
        for mutant in mutants_of(ROOT / "planner")
        if args.only in f"{mutant.path} {mutant.function} {mutant.element}"
    ]
    with tempfile.TemporaryDirectory() as room:
        if failed := tested_in(copied_to(Path(room)))[0]:
            print(f"{failed} fails without any mutant")
            return 1
    print(f"{_header(args.jobs)}\n\n{len(mutants)} elements of keys; each one taken out:\n")
    unnoticed = 0
    for outcome in outcomes_of(mutants, args.jobs):
        mutant, unnoticed = outcome.mutant, unnoticed + (outcome.test is None)
        where = f"{mutant.path}  {mutant.function}"
        test = f"{outcome.test or 'NOT NOTICED'} ({outcome.error})"
        print(f"{where:<56} {mutant.element:<37} {test}", flush=True)
    seconds = time.monotonic() - began_s
    print(f"\n{len(mutants) - unnoticed} of {len(mutants)} noticed, in {seconds:.0f} s")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
