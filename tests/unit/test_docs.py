"""What pages of the docs name is there: links, files, modules, commands, and code that runs."""

import importlib.util
import re
from pathlib import Path

import pytest
from typer.main import get_command

from ditplan.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
)
FOLDERS = (
    "benchmarks",
    "docs",
    "ditplan",
    "examples",
    "planner",
    "profiles",
    "runtime",
    "tests",
    ".ci",
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[^`\s]*|cli\.py)`")
MODULE = re.compile(r"python -m ((?:benchmarks|ditplan)[\w.]*)")
COMMAND = re.compile(r"^(?:    |`)?python cli\.py ([\w-]+)([^\n`#]*)", re.MULTILINE)
SOURCE = re.compile(r"\b(?:docs|benchmarks/results)/[\w.-]+\.(?:md|txt|json)\b")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors_of(page: Path) -> set[str]:
    """What a link may name behind `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in LINK.findall(text_of(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    for name in NAMED.findall(text_of(page)):
        # capitals stand for a name of the reader's
        pattern = re.sub(r"\b[A-Z]{4}\b", "*", name)
        assert any(ROOT.glob(pattern.rstrip("/"))), name


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_runs_exists(page: str) -> None:
    for name in MODULE.findall(text_of(page)):
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_has_the_options_that_it_is_given(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in COMMAND.findall(text_of(page)):
        assert name in commands, name
        command = commands[name]
        if below := getattr(command, "commands", None):
            command = below[rest.split()[0]]
        known = {option for each in command.params for option in each.opts}
        known |= {option for each in command.params for option in each.secondary_opts}
        # what stands in quotes is another program's
        own = re.sub(r'"[^"]*"', "", rest)
        assert set(re.findall(r"(?<=\s)--[a-z-]+", own)) <= known, (name, rest)


@pytest.mark.parametrize("job", sorted(ROOT.glob("examples/ci/*.yml")), ids=lambda path: path.stem)
def test_a_ci_job_to_copy_calls_commands_with_options_that_there_are(job: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    called = re.findall(r"\bditplan (\w+) (--.*)$", job.read_text(), re.MULTILINE)
    assert called
    for name, rest in called:
        known = {option for each in commands[name].params for option in each.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known


def test_every_page_and_output_that_code_cites_exists() -> None:
    for folder in ("planner", "profiles", "runtime", "ditplan", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in SOURCE.findall(path.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{path.relative_to(ROOT)}: {name}"


def test_the_code_that_plans_on_paper_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Piece after piece, as a reader would: what a piece prints begins as the page says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    page = text_of("docs/python.md")
    pieces = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL)
    assert len(pieces) >= 5
    names: dict[str, object] = {}
    for code, shown in pieces:
        exec(compile(code, "docs/python.md", "exec"), names)
        printed = capsys.readouterr().out
        assert printed.split()[:1] == shown.split()[:1], code
