"""The folder of a study: one process at a time, and any damage is one line with its remedy."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditplan.lock import held
from ditplan.planner.search.journal import open_journal, recorded_runs
from ditplan.profiles.errors import InputError
from ditplan.study import Study, study_in

ROOT = Path(__file__).parents[2]
HOLDER = (
    "import sys, time; from pathlib import Path; from ditplan.lock import held\n"
    "with held(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "plan.study"
    with holder(folder) as other:
        with pytest.raises(InputError) as refused, held(folder):
            pass
        assert f"process {other.pid} on " in str(refused.value)
        assert "plan.study" in str(refused.value)
        other.communicate()
    with held(folder):
        assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not folder.exists()


def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "plan.study"
    with holder(folder) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert f"process {other.pid}" in (folder / "lock").read_text()
    with held(folder):
        assert f"process {os.getpid()}" in (folder / "lock").read_text()


def test_what_was_put_into_the_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "plan.study"
    with held(folder):
        (folder / "cluster.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["cluster.json"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be locked"), held(tmp_path / "no" / "plan.study"):
        pass


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.study").write_text("mine")
    with pytest.raises(InputError, match="measurements go to a folder of this name"):
        study_in(tmp_path / "plan.study")


def a_journal(folder: Path) -> Path:
    """A journal with a trial that was run once."""
    import optuna

    path = folder / "journal.log"
    study = optuna.create_study(storage=open_journal(path), study_name="s")
    trial = study.ask()
    trial.report(1.0, 0)
    return path


DAMAGE = {
    "a foreign line at the end": (b"hello\n", "journal.log: line "),
    "an object that isn't Optuna's": (b'{"a": 1}\n', "journal.log: this is no study of ditplan's"),
    "no text": (b"\xff\xfe\x00\n", "journal.log: line "),
    "a line of an unknown kind": (
        b'{"op_code": 99, "worker_id": "w"}\n',
        "journal.log: this is no study of ditplan's",
    ),
    "a trial of no study": (
        b'{"op_code": 4, "worker_id": "w"}\n',
        "journal.log: this is no study of ditplan's",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_journal_is_named_with_its_remedy(tmp_path: Path, case: str) -> None:
    added, words = DAMAGE[case]
    journal = a_journal(tmp_path)
    with journal.open("ab") as file:
        file.write(added)
    for use in (open_journal, recorded_runs):
        with pytest.raises(InputError) as refused:
            use(journal)
        assert words in str(refused.value)
        assert "delete it" in str(refused.value)


def test_a_foreign_line_in_the_middle_is_named_by_its_number(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([first, b"x\n", *rest]))
    with pytest.raises(InputError, match=r"journal\.log: line 2: "):
        open_journal(journal)


def test_a_journal_whose_first_lines_are_lost_is_not_read_as_empty(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    lines = journal.read_bytes().splitlines(keepends=True)
    begins_trial = next(i for i, line in enumerate(lines) if b'"op_code":4,' in line)
    for lost, of in ((0, "study"), (begins_trial, "trial")):
        journal.write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
        for use in (open_journal, recorded_runs):
            with pytest.raises(InputError) as refused:
                use(journal)
            assert f"this is of a {of} that no line before it begins" in str(refused.value)
            assert str(refused.value).startswith(f"{journal}: line ")
            assert "delete it to measure anew" in str(refused.value)


def test_half_a_line_at_the_end_is_cut_off_by_who_writes_alone(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "tri')
    assert recorded_runs(journal)[0].runs_s == (1.0,)
    assert journal.read_bytes() != whole
    open_journal(journal)
    assert journal.read_bytes() == whole


def test_a_full_disk_is_named_and_what_was_measured_stays(tmp_path: Path) -> None:
    import optuna

    journal = a_journal(tmp_path)
    study = optuna.load_study(storage=open_journal(journal), study_name="s")
    size = journal.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(InputError, match=r"journal\.log: can't be written: .*make room"):
            study.ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal.stat().st_size == size
    assert recorded_runs(journal)[0].runs_s == (1.0,)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hosts": []}', "words"])
def test_a_damaged_cluster_is_to_be_deleted_and_not_profiled(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(InputError) as refused:
        Study(tmp_path).contents()
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "cluster.json"))
    assert "delete it, and tune again" in message
    assert "ditplan profile" not in message
