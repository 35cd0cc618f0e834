"""How hosts that can't be used are refused."""

import pytest

from ditplan.command.options import as_options
from ditplan.profiles.errors import ClusterError, InputError, Setting
from ditplan.runtime.ranks.preflight import Preflight
from ditplan.runtime.ranks.remedies import problem

REMEDY = ("no network leads to it: name one with ", Setting("interface", "NAME"))


def test_all_that_is_fatal_is_said_a_line_each_with_options_as_they_are_typed() -> None:
    found = Preflight((), (problem("n1", "cluster", *REMEDY), problem("n2", "cluster", "is full")))
    with pytest.raises(ClusterError) as caught:
        found.require()
    said = caught.value.sentence.worded(as_options)
    assert said == "n1: no network leads to it: name one with --interface NAME\nn2: is full"


def test_what_was_given_wrongly_is_said_in_one_line() -> None:
    found = Preflight((), (problem("n1", "input", *REMEDY), problem("n2", "input", "is full")))
    with pytest.raises(InputError) as caught:
        found.require()
    said = caught.value.sentence.worded(as_options)
    assert said == "n1: no network leads to it: name one with --interface NAME"


def test_what_is_only_odd_refuses_nothing() -> None:
    Preflight((), (problem("n1", "warning", *REMEDY),)).require()
