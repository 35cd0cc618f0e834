"""hosts.txt: what is understood, and what is refused with its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.errors import InputError
from ditplan.profiles.hosts import HostLine, load_hosts, parse_hosts

ROOT = Path(__file__).parents[2]
names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True)
users = st.none() | st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,8}", fullmatch=True)
entries = st.lists(
    st.builds(HostLine, host=names, user=users, slots=st.none() | st.integers(1, 4096)),
    min_size=1,
    max_size=8,
    unique_by=lambda entry: entry.host,
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, tuple[HostLine, ...]]:
    """A hosts file in any mixture of its forms, and what it says."""
    wanted = draw(entries)
    lines = []
    for entry in wanted:
        lines += draw(st.lists(st.sampled_from(["", "  ", "# a comment", "\t# x slots=0"])))
        word = f"{entry.user}@{entry.host}" if entry.user else entry.host
        if entry.slots is not None:
            word += draw(st.sampled_from([f" slots={entry.slots}", f":{entry.slots}"]))
        lines.append(
            draw(st.sampled_from(["{}", "  {}", "{}\t", "{} # rack 4", "{}#"])).format(word)
        )
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines), tuple(wanted)


@given(files())
def test_every_form_is_understood_in_file_order(case: tuple[str, tuple[HostLine, ...]]) -> None:
    text, wanted = case
    assert parse_hosts(text, "hosts.txt") == wanted


@given(st.text())
def test_any_text_is_understood_or_refused_in_one_line(text: str) -> None:
    try:
        hosts = parse_hosts(text, "hosts.txt")
    except InputError as error:
        assert str(error).startswith("hosts.txt: ")
        assert "\n" not in str(error)
    else:
        assert len({entry.host for entry in hosts}) == len(hosts) > 0


REFUSED = [
    ("a slots=0", 1, "slots is '0'; it must be a whole number from 1 to 4096"),
    ("a\nb slots=-1", 2, "slots is '-1'"),
    ("a\n\n# x\nb slots=4097", 4, "slots is '4097'"),
    ("a slots=two", 1, "slots is 'two'"),
    ("a slots=1.5", 1, "slots is '1.5'"),
    ("a slots=", 1, "slots is ''"),
    ("a slots=" + "9" * 5000, 1, "it must be a whole number"),
    ("a slots=\N{ARABIC-INDIC DIGIT FOUR}", 1, "it must be a whole number"),
    ("a:", 1, "slots is ''"),
    ("a:x", 1, "slots is 'x'"),
    ("a:4 slots=4", 1, "number of slots is given twice"),
    ("a slots=4 slots=4", 1, "number of slots is given twice"),
    ("a gpus=4", 1, "unknown key 'gpus=4'; the only one is slots=N"),
    ("a 4", 1, "unknown key '4'"),
    ("a slots 4", 1, "unknown key 'slots'"),
    ("a\nb\na slots=2", 3, "a stands in line 1 already"),
    ("me@a\nyou@a:2", 2, "a stands in line 1 already"),
    ("node\nb\nNode", 3, "Node stands in line 1 already"),
    ("a, b", 1, "'a,' is not a host"),
    ("@a", 1, "'@a' is not a host"),
    ("me@", 1, "'me@' is not a host"),
    ("-oProxyCommand=x", 1, "is not a host"),
    ("-l@a", 1, "is not a host"),
    ("a;reboot", 1, "is not a host"),
]


@pytest.mark.parametrize(("text", "line", "message"), REFUSED)
def test_a_wrong_line_is_refused_with_its_number(text: str, line: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_hosts(text, "my/hosts.txt")
    assert str(caught.value).startswith(f"my/hosts.txt: line {line}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_a_file_without_a_host_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="names no host; write one a line"):
        parse_hosts(text, "hosts.txt")


def test_a_missing_file_is_named_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"none.txt: no such file; expected a hosts file, one host"
    ):
        load_hosts(tmp_path / "none.txt")


def test_the_example_is_two_local_ranks() -> None:
    assert load_hosts(ROOT / "examples/localhost.txt") == (HostLine(host="localhost", slots=2),)
