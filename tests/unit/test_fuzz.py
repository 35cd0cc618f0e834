"""A thousand damaged inputs and sixty damaged command lines: each ends as it may."""

import random

import pytest

from benchmarks.fuzz import SECONDS, Outcome, fault_of, outcomes, report
from benchmarks.fuzz_cases import WEIGHTS
from benchmarks.mutations import damaged_json, damaged_toml

CASES, COMMANDS = 1000, 60
HANGS_AFTER_S = 60.0
"""Kills what waits for a FIFO; how fast machines are decides nothing."""


def test_damaged_inputs_load_or_are_refused_in_one_line() -> None:
    found = list(outcomes(CASES, COMMANDS, seed=11, hang_s=HANGS_AFTER_S))
    assert len(found) == CASES + COMMANDS
    wrong = [one for one in found if one.end == "fault" or one.megabytes > 1024]
    assert not wrong, report(wrong, "these")
    # a mutator that leaves all as it was, or breaks all, shows nothing
    assert {one.end for one in found} == {"loaded", "refused"}
    assert {one.kind for one in found} == {*WEIGHTS, "command"}


@pytest.mark.parametrize("number", range(3))
def test_a_case_follows_from_its_number_alone(number: int) -> None:
    def made(damage: object, text: str) -> bytes:
        assert callable(damage)
        result = damage(random.Random(f"1 {number}"), text)
        assert isinstance(result, bytes)
        return result

    json_text, toml_text = '{"a": [1, 2, {"b": "c"}]}', 'a = 1\nb = "c"\n'
    assert made(damaged_json, json_text) == made(damaged_json, json_text)
    assert made(damaged_toml, toml_text) == made(damaged_toml, toml_text)


@pytest.mark.parametrize(
    ("message", "words"),
    [("", "says nothing"), ("x" * 301, "301 characters"), ("a\nb", "holds"), ("\udcff", "holds")],
)
def test_a_message_that_no_user_should_see_is_a_fault(message: str, words: str) -> None:
    assert words in fault_of(message)
    assert fault_of("plan.json: no such file") == ""


def test_what_takes_too_long_or_too_much_is_told() -> None:
    assert Outcome(1, "plan", "loaded", "", SECONDS, 1024).is_within_limits
    assert not Outcome(1, "plan", "loaded", "", SECONDS + 0.1, 0).is_within_limits
    text = report([Outcome(7, "plan", "fault", "KeyError in x.py:f", 0.1, 2000)], "command")
    assert "7 plan: 0.1 s, 2000 MB" in text
    assert "1 x plan: KeyError in x.py:f (such as 7)" in text
