"""Which compiled code is kept for whom, and what isn't taken."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ditplan.profiles.errors import PlanWarning
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.compilation import kept_code as keeping
from ditplan.runtime.compilation.kept_code import kept_code, key_of
from ditplan.runtime.groups import GroupCache, RankContext
from tests.distributed.small_models import plan_for, small_sd3, workload

CONTEXT = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
CODE = b"what torch made"


def the_plan(mode: Any = "compile", **changes: object) -> ExecutionPlan:
    """A plan of one rank."""
    return plan_for(small_sd3(), Mesh(), workload(**changes)).configured(mode=mode)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the plan's code is kept; torch makes `CODE` of anything, and takes no other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (CODE, None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda code: code == CODE or None)
    return tmp_path / "ditplan" / "compiled" / f"{key_of(the_plan(), CONTEXT)}.code"


def is_taken() -> bool:
    """Whether kept code is taken: then nothing is written again."""
    written: list[Path] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keeping, "_save", lambda path, _key: written.append(path))
        with kept_code(the_plan(), CONTEXT):
            pass
    return not written


def test_code_is_kept_for_the_same_plan_again(file: Path) -> None:
    assert not is_taken()
    with kept_code(the_plan(), CONTEXT):
        assert not file.exists()
    assert file.exists()
    assert is_taken()


def test_a_plan_that_compiles_nothing_keeps_nothing(file: Path) -> None:
    with kept_code(the_plan("eager"), CONTEXT):
        pass
    assert not file.parent.exists()


def test_code_is_kept_for_a_plan_a_rank_a_device_and_a_software_and_any_number_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = key_of(the_plan(), CONTEXT)
    assert key_of(the_plan(steps=1), CONTEXT) == known
    other_rank = RankContext(1, 2, torch.device("cpu"), GroupCache(1, 2))
    others = [
        key_of(the_plan("compile+graph"), CONTEXT),
        key_of(the_plan(height=64), CONTEXT),
        key_of(the_plan(), other_rank),
    ]
    monkeypatch.setattr(keeping, "device_name", lambda _context: "another")
    others.append(key_of(the_plan(), CONTEXT))
    monkeypatch.setattr(keeping, "software_versions", lambda _context: {"torch": "1.0"})
    others.append(key_of(the_plan(), CONTEXT))
    assert len({known, *others}) == len(others) + 1


@pytest.mark.parametrize("damage", [b"", CODE, b"ditplan code 1 x y\n" + CODE])
def test_a_damaged_file_is_named_not_taken_and_written_anew(file: Path, damage: bytes) -> None:
    with kept_code(the_plan(), CONTEXT):
        pass
    file.write_bytes(damage)
    with (
        pytest.warns(PlanWarning, match=f"{file.name}: is damaged"),
        kept_code(the_plan(), CONTEXT),
    ):
        pass
    assert is_taken()


def test_code_of_another_plan_under_the_name_of_this_one_is_not_taken(file: Path) -> None:
    with kept_code(the_plan(height=64), CONTEXT):
        pass
    (other,) = file.parent.iterdir()
    other.rename(file)
    with pytest.warns(PlanWarning, match="is damaged"):
        assert not is_taken()


def test_code_that_others_may_write_is_not_taken(file: Path) -> None:
    with kept_code(the_plan(), CONTEXT):
        pass
    file.parent.chmod(0o777)
    with pytest.warns(PlanWarning, match="isn't this user's alone"):
        assert not is_taken()


def test_a_folder_that_cannot_be_made_is_named(file: Path) -> None:
    file.parents[1].write_text("no folder")
    with (
        pytest.warns(PlanWarning, match=r"can't be (kept|read)"),
        kept_code(the_plan(), CONTEXT),
    ):
        pass


def test_the_files_that_were_used_least_lately_go(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST_FILES", 2)
    file.parent.mkdir(parents=True, mode=0o700)
    for number, name in enumerate(("old", "older", "oldest")):
        made = file.parent / f"{name}.code"
        made.write_bytes(CODE)
        os.utime(made, (1000 - number, 1000 - number))
    with kept_code(the_plan(), CONTEXT):
        pass
    assert {one.stem for one in file.parent.iterdir()} == {"old", file.stem}
