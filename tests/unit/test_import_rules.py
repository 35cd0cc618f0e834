"""Who may import whom, checked over the syntax tree of every file: nothing is imported or run."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from tests.distributed.small_models import plan_for, workload

ROOT = Path(__file__).parents[2]
FOLDERS = ("planner", "profiles", "runtime")
FRONT = {"backends", "checking", "command", "cost_table", "explaining", "exporting"}
FRONT |= {"importing", "lock", "measuring", "models", "outputs", "planning", "prompts"}
FRONT |= {"reporting", "revalidating", "running", "serving", "settings", "study", "testing"}
"""What lies in ditplan/ itself: with cli.py the one place where planner and runtime meet."""
MAY_IMPORT = {
    "cli": {"planner", "runtime", "profiles", "__version__", *FRONT},
    "ditplan": {"planner", "runtime", "profiles", "cli", *FRONT},
    "planner": {"planner", "profiles"},
    "runtime": {"runtime", "profiles"},
    "profiles": {"profiles"},
}
ORDER = {
    "planner": (
        ("constants", "memo", "objectives"),
        ("network",),
        ("space",),
        ("task",),
        ("cost",),
        ("pipefusion",),
        ("simulation",),
        ("cost_model",),
        ("search",),
        ("report",),
    ),
    "runtime": (
        ("groups", "takeover"),
        ("ranks", "weights", "blocks", "collectives", "step_cache"),
        ("in_force",),
        ("admission",),
        ("transport", "compilation", "batch"),
        ("sequence",),
        ("pipefusion", "vae"),
        ("models",),
        ("prepared",),
        ("native", "on_backend", "profiling"),
        ("context_parallel",),
        ("generation", "family_check"),
        ("workers",),
    ),
}
"""The rooms of a folder, its subfolders and the files beside them: a room imports from rooms in
lines above its own, and from itself."""
MOST_ROOMS = {"planner": 12, "runtime": 24}
OUTSIDE_PROFILES = {*sys.stdlib_module_names, "pydantic"}
DEVICE_LIBRARIES = {"torch", "diffusers", "transformers", "accelerate"}
ONE_DOOR = {
    "networkx": "planner/network/link_graph.py",
    "optuna": "planner/search/",
    "plotly": "ditplan/reporting/plotting.py",
    "triton": "runtime/transport/push_kernel.py",
}
ENVIRONMENT_DOOR = "runtime/ranks/environment.py"
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}
FILE_DOOR = "profiles/files.py"
READS_WHAT_NO_USER_GIVES = {
    "ditplan/command/terminal.py",  # opens /dev/null to write to
    "ditplan/lock.py",  # opens a lock of its own
    "ditplan/reporting/page.py",  # what ships with it; JSON that plotly has just written
    "runtime/admission/board.py",  # memory that ranks share
    "runtime/ranks/folders.py",  # what it has written itself
    "runtime/compilation/kept_code.py",  # what it has written itself
    "runtime/models/inspection.py",  # JSON that it has just written, in memory
    "runtime/ranks/agent.py",  # logs of ranks, and what command and agents say to each other
    "runtime/ranks/fleet.py",
    "runtime/ranks/host_facts.py",
    "runtime/ranks/pool.py",
    "runtime/ranks/rank_starter.py",
    "runtime/ranks/seat.py",
    "runtime/ranks/store_server.py",
    "runtime/ranks/devices.py",
    "runtime/ranks/host_probes.py",  # our own sources, and what a program of ours says
    "runtime/ranks/host_report.py",  # what the command and hosts say to each other
    "runtime/ranks/report_link.py",
    "runtime/ranks/gpu_inventory.py",  # sysfs
    "runtime/ranks/pci_tree.py",  # sysfs
    "runtime/ranks/rank_process.py",
    "runtime/transport/host_link.py",
}
READERS = {"json.load", "json.loads", "open", "os.open", "tomllib.load", "tomllib.loads"}
MUTATORS = {"append", "add", "clear", "discard", "extend", "insert"}
MUTATORS |= {"pop", "popitem", "remove", "setdefault", "update"}


def python_files(root: Path) -> Iterator[Path]:
    """The Python files of a checkout, each once: not those behind ditplan's symlinks."""
    for folder in ("benchmarks", "examples", "tests", *FOLDERS):
        yield from sorted((root / folder).rglob("*.py"))
    yield from sorted(root.glob("cli.py"))
    # a symlink leads to what was listed before
    own = (path for path in (root / "ditplan").rglob("*.py") if not path.is_symlink())
    yield from sorted(own)


def part_of(file: str) -> str:
    """Which part of the layout a file belongs to: a folder, `cli`, or `ditplan` for its init."""
    return Path(file).parts[0].removesuffix(".py")


def imported(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each import, wherever it stands, relative ones resolved.

    A name that is imported from a module counts as `module.name`, since it may be a module itself.
    """
    package = ["ditplan", *Path(file).parent.parts] if part_of(file) in FOLDERS else ["ditplan"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {
            "import_module",
            "__import__",
        }:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def import_faults(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Imports that break the layout's rules."""
    part = part_of(file)
    for line, name in imported(tree, file):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in {*FOLDERS, "cli"}:
            yield line, f"imports {top}, whose name is ditplan.{top}"
        if part not in MAY_IMPORT:
            continue
        if top == "ditplan" and target not in MAY_IMPORT[part]:
            yield line, f"{part} may not import {name}"
        if part == "profiles" and top not in {"ditplan", *OUTSIDE_PROFILES}:
            yield line, f"profiles may import the standard library and pydantic, not {top}"
        if part in {"planner", "profiles"} and top in DEVICE_LIBRARIES:
            yield line, f"{part} may not import {top}"
        if not file.startswith(ONE_DOOR.get(top, file)):
            yield line, f"only {ONE_DOOR[top]} may import {top}"
        if top == "flash_attn" and part != "runtime":
            yield line, "only the runtime may import flash_attn"


def room_faults(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Imports from a room of the same folder that doesn't lie below."""
    part, *rest = Path(file).with_suffix("").parts
    if part not in ORDER or rest[0] == "__init__":
        return
    level = {room: number for number, rooms in enumerate(ORDER[part]) for room in rooms}
    room = rest[0]
    if room not in level:
        yield 1, f"{room} has no place in the order of {part}'s rooms"
        return
    for line, name in imported(tree, file):
        if not name.startswith(f"ditplan.{part}."):
            continue
        other = name.split(".")[2]
        if other != room and level.get(other, len(level)) >= level[room]:
            yield line, f"{part}/{room} may not import {name}, which lies above it or beside it"


def environment_faults(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Uses of the process's environment in another file than the launcher."""
    if part_of(file) not in FOLDERS or file == ENVIRONMENT_DOOR:
        return
    os_names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = [f"os.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in os_names:
            names = [f"os.{node.attr}"]
        else:
            continue
        for name in names:
            if name in ENVIRONMENT:
                yield node.lineno, f"only {ENVIRONMENT_DOOR} may use {name}"


def file_faults(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Files opened, or text parsed, past the door for what users give."""
    if part_of(file) not in MAY_IMPORT or file in {FILE_DOOR, *READS_WHAT_NO_USER_GIVES}:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if called in READERS or method in {"read_text", "read_bytes"}:
                yield node.lineno, f"only {FILE_DOOR} may read files: {called}"


def state_faults(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """Functions that change a name of their module: `global`, `X[...] = ...`, `X.append()`."""
    if part_of(file) not in MAY_IMPORT:
        return
    shared = {
        target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in (
            statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        )
        if isinstance(target, ast.Name)
    }
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        nodes = list(ast.walk(function))
        own = {node.arg for node in nodes if isinstance(node, ast.arg)} | {
            node.id
            for node in nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        for node in nodes:
            changed: ast.expr | None = None
            if isinstance(node, ast.Global):
                yield node.lineno, f"module-level state: global {', '.join(node.names)}"
            elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(
                node.ctx, ast.Load
            ):
                changed = node.value
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in MUTATORS
            ):
                changed = node.func.value
            if isinstance(changed, ast.Name) and changed.id in shared - own:
                yield changed.lineno, f"module-level state: changes {changed.id}"


def violations(root: Path) -> list[str]:
    """All broken rules of a checkout, as `file:line: what`."""
    found = []
    flash_files = set()
    for path in python_files(root):
        file = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"), file)
        for check in (import_faults, room_faults, environment_faults, file_faults, state_faults):
            found += [f"{file}:{line}: {fault}" for line, fault in check(tree, file)]
        if any(name.partition(".")[0] == "flash_attn" for _, name in imported(tree, file)):
            flash_files.add(file)
    flash_files = {file for file in flash_files if part_of(file) == "runtime"}
    if len(flash_files) > 1:
        found.append(f"flash_attn is imported in several files: {', '.join(sorted(flash_files))}")
    return sorted(set(found))


def test_repository_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_every_part_of_the_layout_is_checked() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in python_files(ROOT)}
    assert {"cli.py", "ditplan/__init__.py", "tests/unit/test_import_rules.py"} <= files
    own = {Path(file).parts[1].removesuffix(".py") for file in files if part_of(file) == "ditplan"}
    assert own == {"__init__", "__main__", *FRONT}
    assert not any("ditplan/planner" in file for file in files)
    assert {part_of(file) for file in files} >= {"cli", "ditplan", "tests", *FOLDERS}


def test_every_room_exists_and_there_are_few() -> None:
    for part, order in ORDER.items():
        rooms = [room for line in order for room in line]
        entries = {path.stem for path in (ROOT / part).iterdir() if not path.name.startswith("_")}
        assert set(rooms) == entries
        assert len(rooms) <= MOST_ROOMS[part]


PLANTED = [
    ("planner/cost/step.py", "from ditplan.planner.search import search", "lies above it"),
    ("planner/space/legality.py", "from ditplan.planner.task import Task", "lies above it"),
    ("planner/network/tables.py", "def f():\n    from ..cost import step", "lies above it"),
    ("runtime/weights/loading.py", "import ditplan.runtime.ranks.pool", "or beside it"),
    ("runtime/heap.py", "import math", "no place in the order"),
    ("planner/search/search.py", "import ditplan.runtime.ranks.pool", "planner may not import"),
    ("planner/search/search.py", "from ditplan.runtime import ranks", "planner may not import"),
    ("planner/search/search.py", "from ditplan import runtime", "planner may not import"),
    ("planner/search/search.py", "from ditplan import load_plan", "planner may not import"),
    ("planner/search/search.py", "import ditplan", "planner may not import"),
    ("planner/search/search.py", "from ... import runtime", "planner may not import"),
    ("planner/search/search.py", "from ...runtime.groups import f", "planner may not import"),
    ("planner/search/search.py", "def f():\n    import ditplan.cli", "planner may not import"),
    ("planner/cost/step.py", "from ...runtime import mesh", "planner may not import"),
    (
        "planner/cost_model.py",
        "import importlib\nimportlib.import_module('torch')",
        "not import torch",
    ),
    ("planner/cost_model.py", "import torch.nn", "planner may not import torch"),
    ("planner/cost_model.py", "try:\n    import diffusers\nexcept ImportError: pass", "diffusers"),
    ("planner/cost_model.py", "from networkx import Graph", "only planner/network/link_graph.py"),
    (
        "planner/cost_model.py",
        "import optuna.samplers as samplers",
        "only planner/search/ may",
    ),
    ("planner/cost_model.py", "import flash_attn", "only the runtime"),
    ("runtime/native.py", "from ditplan.planner.cost_model import price", "runtime may not import"),
    ("runtime/native.py", "from ditplan.cli import main", "runtime may not import"),
    ("runtime/native.py", "import optuna", "only planner/search/ may"),
    ("profiles/plan.py", "from ditplan.planner import cost", "profiles may not import"),
    ("profiles/plan.py", "import numpy", "standard library and pydantic"),
    ("profiles/plan.py", "from torch import Tensor", "profiles may not import torch"),
    ("planner/search/search.py", "from ditplan.planning import plan", "planner may not import"),
    ("runtime/native.py", "from ditplan.study import Study", "runtime may not import"),
    ("ditplan/planning.py", "import optuna", "only planner/search/ may"),
    ("ditplan/planning.py", "X = {}\ndef f(k):\n    X[k] = 1", "changes X"),
    ("cli.py", "import networkx", "only planner/network/link_graph.py"),
    ("cli.py", "from planner import search", "ditplan.planner"),
    ("tests/unit/test_x.py", "from profiles.plan import ExecutionPlan", "ditplan.profiles"),
    ("examples/x.py", "import runtime.native", "ditplan.runtime"),
    ("runtime/native.py", "import os\nx = os.environ['RANK']", "only runtime/ranks/environment.py"),
    (
        "runtime/native.py",
        "import os as o\nx = o.getenv('RANK')",
        "only runtime/ranks/environment.py",
    ),
    ("planner/cost_model.py", "from os import environ", "only runtime/ranks/environment.py"),
    ("profiles/plan.py", "import json\njson.loads(text)", "only profiles/files.py may read files"),
    ("planner/search/mix.py", "path.read_text()", "only profiles/files.py may read files"),
    ("ditplan/study.py", "with open(path) as file: pass", "only profiles/files.py may read"),
    ("runtime/weights/loading.py", "Path(name).read_bytes()", "only profiles/files.py may read"),
    ("runtime/groups.py", "X = None\ndef f():\n    global X\n    X = 1", "global X"),
    ("runtime/groups.py", "X = {}\ndef f(k):\n    X[k] = 1", "changes X"),
    ("runtime/groups.py", "X: list[int] = []\ndef f(k):\n    X.append(k)", "changes X"),
    ("runtime/groups.py", "X = Y()\ndef f(k):\n    X.group = k", "changes X"),
]


@pytest.mark.parametrize(("file", "text", "message"), PLANTED)
def test_planted_violation_is_found(tmp_path: Path, file: str, text: str, message: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    found = violations(tmp_path)
    assert any(message in fault and fault.startswith(f"{file}:") for fault in found), found


def test_a_second_flash_attn_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "runtime/sequence").mkdir(parents=True)
    (tmp_path / "runtime/sequence/kernels.py").write_text("import flash_attn")
    assert violations(tmp_path) == []
    (tmp_path / "runtime/sequence/ring.py").write_text("from flash_attn import flash_attn_func")
    assert violations(tmp_path) == [
        "flash_attn is imported in several files: "
        "runtime/sequence/kernels.py, runtime/sequence/ring.py"
    ]


ALLOWED = [
    ("cli.py", "from ditplan.planner import search\nfrom ditplan.runtime import ranks"),
    ("ditplan/__init__.py", "from ditplan.runtime.native import parallelize"),
    (
        "ditplan/planning.py",
        "from ditplan.planner import search\nfrom ditplan.runtime import ranks",
    ),
    (
        "planner/network/link_graph.py",
        "import networkx as nx\nfrom ditplan.profiles.cluster import Link",
    ),
    (
        "planner/search/sampler.py",
        "import optuna\nfrom ditplan.planner.network.topology import graph",
    ),
    ("runtime/ranks/environment.py", "import os\nos.environ['RANK'] = '0'"),
    (
        "runtime/native.py",
        "import os\nimport torch\nfrom .sequence import groups\nos.replace('a', 'b')",
    ),
    ("profiles/plan.py", "import json\nfrom pydantic import Field\nX = {}\nX['a'] = 1"),
    ("profiles/files.py", "import json, os\nos.open(path, 0)\njson.loads(text)"),
    ("profiles/hosts.py", "from ditplan.profiles.files import read_text\nread_text(path, 'x')"),
    ("benchmarks/x.py", "open('x').read()"),
    ("runtime/groups.py", "X = []\ndef f(X):\n    X.append(1)"),
    ("tests/unit/test_x.py", "import torch, optuna\nfrom ditplan.planner import cost"),
]


@pytest.mark.parametrize(("file", "text"), ALLOWED)
def test_legal_code_is_not_blamed(tmp_path: Path, file: str, text: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("folder", ["planner", "profiles"])
def test_importing_every_module_loads_no_torch(folder: str) -> None:
    modules = [
        "ditplan." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    script = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(sorted({DEVICE_LIBRARIES} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_who_runs_a_plan_imports_nothing_of_the_planner(tmp_path: Path) -> None:
    plan = plan_for(find_model("sd3-tiny"), Mesh(cfg=2), workload()).save(tmp_path / "plan.json")
    script = (
        f"import sys, ditplan\nditplan.load({str(plan)!r})\n"
        "large = {'networkx', 'optuna', 'rich', 'scipy', 'torch', 'typer'}\n"
        "print([name for name in sys.modules if name in large or '.planner' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
