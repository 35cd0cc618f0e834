"""Messages name settings as Python has them; the command line alone knows its options."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ditplan.cli import app
from ditplan.command.options import as_options
from ditplan.profiles.book import PlanBook
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.errors import Command, InputError, Sentence, Setting
from ditplan.profiles.model import ModelProfile
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.record import Record

ROOT = Path(__file__).parents[2]


def options_of(program: typer.Typer) -> set[str]:
    """All options of all commands."""
    group = typer.main.get_command(program)
    context = typer.Context(group)
    commands = [getattr(group, "commands", {})[name] for name in group.list_commands(context)]  # type: ignore[attr-defined]
    return {
        option
        for command in commands
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
        if option.startswith("--")
    }


def texts_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of the string literals that aren't docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.lineno, node.value


def named_options(folder: Path, options: set[str]) -> list[str]:
    """Where texts of a folder's files name options, as `file:line: text`."""
    return [
        f"{path.relative_to(folder).as_posix()}:{line}: {text}"
        for path in sorted(folder.rglob("*.py"))
        for line, text in texts_in(ast.parse(path.read_text(encoding="utf-8")))
        if options & set(re.findall(r"--[a-z][a-z-]*", text))
    ]


@pytest.mark.parametrize("folder", ["planner", "profiles", "runtime"])
def test_no_option_of_the_command_line_stands_below_it(folder: str) -> None:
    assert named_options(ROOT / folder, options_of(app)) == []


def test_an_option_in_a_message_is_found_and_one_in_a_docstring_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""See --height."""\nX = f"use --height {1}"\nY = "--nproc"\n')
    assert named_options(tmp_path, options_of(app)) == ["a.py:2: use --height "]


@pytest.mark.parametrize(
    ("part", "in_python", "typed"),
    [
        (Setting("height", 1000), "height=1000", "--height 1000"),
        (Setting("warmup_steps"), "warmup_steps", "--warmup"),
        (Setting("max_latency_s", "S"), "max_latency_s=S", "--max-latency S"),
        (Setting("guidance", False), "guidance=False", "--no-guidance"),
        (Setting("guidance", True), "guidance=True", "--guidance"),
        (
            Command("profile", (Setting("hosts", "FILE"), Setting("out", "c.json"))),
            "ditplan profile",
            "ditplan profile --hosts FILE --out c.json",
        ),
    ],
)
def test_settings_are_worded_for_python_and_for_the_command_line(
    part: Setting | Command, in_python: str, typed: str
) -> None:
    assert str(part) == in_python
    assert as_options(part) == typed


def test_sentences_and_errors_of_sentences_keep_their_settings() -> None:
    inner = Sentence("use ", Setting("gpus", 2), " or less")
    error = InputError("entry 2: ", inner, ", or ", Setting("cluster"))
    assert str(error) == "entry 2: use gpus=2 or less, or cluster"
    assert error.sentence.worded(as_options) == "entry 2: use --gpus 2 or less, or --cluster"


def test_every_setting_is_an_option() -> None:
    from ditplan.settings import PlanSettings, SimulateSettings

    names = {*PlanSettings.__annotations__, *SimulateSettings.__annotations__}
    assert {as_options(Setting(name)) for name in names} <= options_of(app)


@pytest.mark.parametrize(
    ("record", "typed"),
    [
        (ClusterProfile, "`ditplan profile --hosts FILE`"),
        (ModelProfile, "`ditplan profile --model M`"),
        (PlanBook, "`ditplan tune --workloads FILE`"),
        (ExecutionPlan, "`ditplan tune`"),
    ],
)
@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"schema_version": 9}', '{"a": 1, "a": 2}'])
def test_a_wrong_file_is_told_with_the_command_that_makes_it(
    record: type[Record], typed: str, text: str
) -> None:
    with pytest.raises(InputError) as refused:
        record.from_json(text, "x.json")
    assert "--" not in str(refused.value)
    assert refused.value.sentence.worded(as_options).endswith(f"make it again with {typed}")


def test_a_file_that_is_not_there_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        ClusterProfile.load(tmp_path / "no.json")
    worded = refused.value.sentence.worded(as_options)
    assert worded.endswith("a cluster profile made with `ditplan profile --hosts FILE`")
