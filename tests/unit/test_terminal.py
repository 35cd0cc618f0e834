"""Terminals, pipes and full disks: what a command shows where, and no traceback anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from ditplan import __version__, cli
from ditplan.command.terminal import as_list, width_of

ROOT = Path(__file__).parents[2]
SIMULATE = ["simulate", "--model", "sd3", "--cluster", "4xa100-pcie", "--mode", "eager"]
TUNE = ["tune", "--model", "sd3", "--cluster", "4xa100-pcie", "--mode", "eager"]


def run_command(
    folder: Path,
    *arguments: str,
    out: str | None = None,
    err: str | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs the program, with its output to files where these are named."""
    said = open(out, "w") if out else subprocess.PIPE  # noqa: SIM115
    told = open(err, "w") if err else subprocess.PIPE  # noqa: SIM115
    return subprocess.run(
        [sys.executable, "-m", "ditplan", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=said,
        stderr=told,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [["list", "models"], ["--help"], ["--version"], [*SIMULATE, "--json"], TUNE],
    ids=["list", "help", "version", "json", "table"],
)
def test_a_full_disk_behind_standard_output_is_one_line(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = run_command(tmp_path, *arguments, out="/dev/full")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("priced")]
    assert lines == ["error: standard output can't be written: No space left on device"]


def test_progress_that_cannot_be_told_does_not_end_the_work(tmp_path: Path) -> None:
    done = run_command(tmp_path, *TUNE, err="/dev/full")
    assert done.returncode == 0
    assert "plan.json" in done.stdout
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, more: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ditplan", *TUNE, *more],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0
    assert all(line.startswith("priced") for line in done.stderr.splitlines())
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    "words", [["--help"], ["tune", "--help"], ["--version"], ["list", "models"]]
)
def test_a_help_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ditplan", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("columns", [20, 40, 79, 200])
def test_columns_says_how_wide_to_write(tmp_path: Path, columns: int) -> None:
    done = run_command(tmp_path, *TUNE, COLUMNS=str(columns))
    table = done.stdout[: done.stdout.index("plan.json")]
    assert max(len(line) for line in table.splitlines()) <= columns
    assert "…" not in table
    assert "ulysses" in table
    assert ("───" in table) == (columns >= 79)


@pytest.mark.parametrize("columns", ["0", "-3", "wide", "9" * 5000])
def test_columns_that_are_no_width_are_taken_as_none(tmp_path: Path, columns: str) -> None:
    done = run_command(tmp_path, *TUNE, COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) > 100


def test_a_table_that_is_too_wide_is_a_list() -> None:
    table = Table(title="all", caption="that's it")
    for heading in ("#", "mesh", "why not"):
        table.add_column(heading)
    table.add_row("1", "cfg2\n2p 1w", "the best of them by far and wide")
    assert width_of(table) == 1 + 5 + 16 + 4
    assert as_list(table).plain == (
        "all\n# 1, mesh cfg2 2p 1w, the best of them by far and wide\nthat's it"
    )


def test_an_environment_that_is_not_installed_is_told_how_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "cli.py"), "list", "models"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "`make demo`" in done.stderr
    assert "`pip install -e .`" in done.stderr


def test_the_package_runs_as_a_program_and_says_its_version(tmp_path: Path) -> None:
    done = run_command(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"ditplan {__version__}\n")


def test_short_help_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for option in ("-h", "--help"):
        monkeypatch.setattr(sys, "argv", ["ditplan", "tune", option])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "--cluster" in texts[0]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ditplan si", "simulate"),
        ("ditplan tune --model sd3.5", "sd3.5-large"),
        ("ditplan simulate --cluster 8xl", "8xl20-pcie"),
        ("ditplan list fam", "families"),
    ],
)
def test_shells_complete_commands_and_names(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    offered: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["ditplan"])
    monkeypatch.setenv("_DITPLAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        cli.main()
    assert offered in capsys.readouterr().out.split()


def test_what_needs_no_planner_starts_without_it(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("elsewhere.example\n")
    script = (
        "import sys; from ditplan import cli\n"
        "sys.argv = ['ditplan', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "large = {'diffusers', 'networkx', 'optuna', 'scipy', 'torch'} & sys.modules.keys()\n"
        "sys.stderr.write(f'{sorted(large)}')\n"
    )
    refused = ["tune", "--model", "sd3", "--hosts", "hosts.txt"]
    for arguments, allowed in (
        (["list", "models"], "[]"),
        (["tune", "--help"], "[]"),
        (refused, "['networkx', 'optuna']"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr.endswith(allowed), (arguments, done.stderr)


def test_a_library_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    script = (
        "import sys; from ditplan import cli\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['ditplan', 'tune', '--model', 'sd3-tiny']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: this needs torch, which isn't installed here; `pip install -e .` brings it\n"
    )
    assert list(tmp_path.iterdir()) == []
