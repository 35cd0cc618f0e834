"""The door for files that users give: all that may be wrong with one ends in one line."""

import math
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.errors import LONGEST_MESSAGE, InputError, Setting, one_line
from ditplan.profiles.family import FAMILIES, load_family
from ditplan.profiles.files import MOST_VALUES, parse_json, parse_toml, path_text, read_text
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.factories import a_plan


def said(call: Callable[[], object]) -> str:
    """The line with which a call refuses its input."""
    with pytest.raises(InputError) as refused:
        call()
    message = str(refused.value)
    assert len(message) <= LONGEST_MESSAGE
    assert message.isprintable()
    return message


def parsed(text: str) -> object:
    """What a JSON text holds."""
    return parse_json(text, "x.json", "thing", "mend it")


def put_three_gigabytes(path: Path) -> None:
    """A file of nothing, which takes no room."""
    path.touch()
    os.truncate(path, 3 << 30)


def put_socket(path: Path) -> None:
    """A socket, as servers leave them behind."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "no such file; expected a plan"),
    "folder": (lambda path: path.mkdir(), "this is a folder; expected a plan"),
    "fifo": (os.mkfifo, "this is no regular file; expected a plan"),
    "socket": (put_socket, "can't be read as a plan"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "this is no regular file"),
    "loop": (lambda path: path.symlink_to(path), "can't be read as a plan"),
    "below a file": (lambda path: path.symlink_to("/dev/null/x"), "can't be read as a plan"),
    "3 GB": (put_three_gigabytes, "is larger than 8 MiB"),
    "Latin-1": (lambda path: path.write_bytes(b"caf\xe9"), "byte 3 isn't UTF-8 text"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_only_regular_files_of_text_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.json"
    put, words = NO_FILES[kind]
    put(path)
    message = said(lambda: read_text(path, "a plan"))
    assert message.startswith(f"{path}: ")
    assert words in message


@pytest.mark.parametrize("name", ["a\0b", "x" * 256, "d/" * 3000])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    assert "can't be read as a plan made with" in said(lambda: ExecutionPlan.load(name))


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("ä€𝄞\n" * 1000, encoding="utf-8")
    (tmp_path / "link").symlink_to("text")
    assert read_text(tmp_path / "link", "a text") == "ä€𝄞\n" * 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": {"b": [1, %s]}}' % ("9" * 5000), "field a.b.1: Input should be a finite number"),
        ('{"a": %s}' % ("9" * 310), "field a: Input should be a finite number"),
        ('{"a": -1000000000000000000}', "field a: Input should be a number of at most 18 digits"),
        ('{"a": 1e999}', "field a: Input should be a finite number"),
        ('{"a": NaN}', "field a: Input should be a finite number"),
        ('[{"a": "x\\ud800"}]', "field 0.a: isn't Unicode text"),
        ('{"b": {"\\udcff": 1}}', "field b: has a key that isn't Unicode text"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice in one object"),
        ("[" * 100_000, "this thing is nested more than 50 deep"),
        ("[" * 60 + "]" * 60, "this thing is nested more than 50 deep"),
        ("[" + "1," * MOST_VALUES + "1,1]", "values; at most"),
        ("[" + "{}," * 60_000 + "{}]", "objects and some"),
        ("[1,", "line 1, column 4: this thing is not JSON"),
    ],
)
def test_json_that_would_fail_later_is_refused_where_it_is_read(text: str, words: str) -> None:
    message = said(lambda: parsed(text))
    assert words in message
    assert message.startswith("x.json: ")
    assert message.endswith("; mend it")


def test_numbers_that_fit_are_read_as_they_are() -> None:
    numbers = [10**18 - 1, -(10**18) + 1, 1e308, -5e-324, 0]
    assert parsed(str(numbers)) == numbers


def test_infinite_numbers_are_let_through_where_they_mean_something() -> None:
    found = parse_json("[-Infinity]", "x", "config", "mend it", finite=False)
    assert found == [-math.inf]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = ", "f.toml: this family is not TOML (Invalid value (at end of document)); see X"),
        ("a = 1\na = 2", "this family is not TOML"),
        (f"a = {'[' * 5000}", "f.toml: this family is nested more than 50 deep; see X"),
        (f"a = {'9' * 5000}", "this family is not TOML"),
        (f"a = {'9' * 310}", "field a: Input should be a number of at most 18 digits"),
        ("a = nan", "field a: Input should be a finite number"),
    ],
)
def test_toml_names_its_file(text: str, words: str) -> None:
    assert words in said(lambda: parse_toml(text, "f.toml", "family", "see X"))


def test_a_damaged_family_names_its_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "sd3.toml"
    path.write_text((FAMILIES / "sd3.toml").read_text(encoding="utf-8") + "name = \n")
    message = said(lambda: load_family(path))
    assert message.startswith(f"{path}: this family is not TOML (")
    assert "at line " in message


@given(st.text(min_size=0, max_size=2000))
def test_a_message_is_one_printable_line_whatever_it_quotes(text: str) -> None:
    error = InputError("a file: ", Setting("height", text), "; mend it")
    message = str(error)
    assert len(message) <= LONGEST_MESSAGE
    assert message.isprintable()
    assert message.startswith("a file: height")
    assert message.endswith("; mend it")


@given(st.text(max_size=5000), st.integers(10, 400))
def test_what_is_too_long_loses_its_middle(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert one_line(line, limit) == line


def test_a_short_path_is_shown_whole_and_a_long_one_by_its_ends() -> None:
    assert path_text("plans/a.json") == "plans/a.json"
    long = path_text(f"/start/{'d/' * 2000}end.json")
    assert long.startswith("/start/d/")
    assert long.endswith("/end.json")
    assert len(long) == 120


def test_a_record_with_half_a_surrogate_pair_is_refused_when_it_is_loaded() -> None:
    text = a_plan().model_dump_json().replace('"sd3"', '"sd3\\ud83d"')
    assert "field model.name: isn't Unicode text" in said(
        lambda: ExecutionPlan.from_json(text, "plan.json")
    )
