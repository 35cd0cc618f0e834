"""The faults that benchmarks plant still have a place in the code."""

from pathlib import Path

import pytest

from benchmarks.check_mutants import HARMLESS, MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", [*MUTANTS, *HARMLESS], ids=lambda mutant: mutant.what)
def test_a_planted_fault_changes_one_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old


def test_there_are_thirty_faults_and_ten_harmless_changes() -> None:
    assert (len(MUTANTS), len(HARMLESS)) == (30, 10)
