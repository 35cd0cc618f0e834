"""hosts.txt: what is understood, and what is refused with its line."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditplan.profiles.errors import LONGEST_MESSAGE, InputError
from ditplan.profiles.host import Host
from ditplan.profiles.hosts import load_hosts, parse_host_list, parse_hosts
from ditplan.profiles.hosts_formats import FORMATS, HostsFormat

ROOT = Path(__file__).parents[2]
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True)
addresses = names | st.ip_addresses(v=6).map(str)
users = st.none() | st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,8}", fullmatch=True)
entries = st.lists(
    st.builds(
        Host,
        name=addresses,
        user=users,
        port=st.none() | st.integers(1, 65_535),
        slots=st.none() | st.integers(1, 4096),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda entry: entry.key,
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, tuple[Host, ...]]:
    """A hosts file in any mixture of its forms, and what it says."""
    wanted = draw(entries)
    lines = []
    for entry in wanted:
        lines += draw(st.lists(st.sampled_from(["", "  ", "# a comment", "\t# x slots=0"])))
        name = f"[{entry.name}]" if ":" in entry.name else entry.name
        word = f"{entry.user}@{name}" if entry.user else name
        if entry.port is not None:
            word = f"ssh://{word}:{entry.port}{draw(st.sampled_from(['', '/']))}"
        if entry.slots is not None:
            forms = [f" slots={entry.slots}", f"\t slots={entry.slots}", f":{entry.slots}"]
            word += draw(st.sampled_from(forms[: 2 if entry.port else 3]))
        lines.append(
            draw(st.sampled_from(["{}", "  {}", "{}\t", "{} # rack 4", "{}#"])).format(word)
        )
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines), tuple(wanted)


@given(files())
def test_every_form_is_understood_in_file_order(case: tuple[str, tuple[Host, ...]]) -> None:
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
        assert len({entry.key for entry in hosts}) == len(hosts) > 0
        again = "\n".join(map(str, hosts))
        assert parse_hosts(again, "hosts.txt") == hosts


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
    ("::1", 1, r"'::1' is not a host; .* an IPv6 address stands in brackets, as \[::1\]:4"),
    ("[::1", 1, "is not a host"),
    ("[::g]", 1, "is not a host"),
    ("[fe80::1%;reboot]", 1, "is not a host"),
    ("ssh://a:0", 1, "port is '0'; it must be a whole number from 1 to 65535"),
    ("ssh://a:65536", 1, "port is '65536'"),
    ("ssh://a:", 1, "port is ''"),
    ("ssh://a/b", 1, "is not a host"),
    ("ssh://a:22:4", 1, "is not a host"),
    ("ssh://-oProxyCommand=x@a", 1, "is not a host"),
    ("http://a", 1, "is not a host"),
    ("n[1-2", 1, r"the brackets of 'n\[1-2' don't match"),
    ("n]1[", 1, "don't match"),
    ("n[[1]]", 1, "don't match"),
    ("n[1, 2]", 1, "don't match; .* without spaces inside"),
    ("n[]", 1, "is no list of numbers"),
    ("n[1-]", 1, "is no list of numbers"),
    ("n[a-c]", 1, "is no list of numbers"),
    ("n[1-2-3]", 1, "is no list of numbers"),
    ("n[4-1]", 1, "4-1 descends"),
    ("n[9-010]", 1, "leading zeros"),
    ("n[5,01-4]", 1, "01-4 goes from leading zeros to a number of another length"),
    ("n[2,1,2]", 1, "n2 stands in line 1 already"),
    ("n[1-3]\nn2", 2, "n2 stands in line 1 already"),
    ("n[1-65537]", 1, "stands for 65537 hosts; 65536 are the most"),
    ("n[1-999999999][1-999999999]", 1, "are the most"),
    ("-n[1-2]", 1, "is not a host"),
    ("n[1-2];x", 1, "is not a host"),
    ("$(x)[1-2]", 1, "is not a host"),
    ("a,b", 1, "is not a host"),
    ("a\rb", 1, r"'a\\rb' is not a host"),
    ("a\N{NO-BREAK SPACE}slots=2", 1, "is not a host"),
    ("a\0", 1, "is not a host"),
    ("b\na slots = 2", 2, r"unknown key 'slots'.*\(as others read it: Open MPI: a slots=2; say"),
    (
        "a max_slots=4",
        1,
        r"unknown key.*Open MPI: a slots=4; say whose file this is by hosts_format",
    ),
    ("a slots=4abc", 1, "slots is '4abc'"),
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
    start = "my/hosts.txt: " if "are the most" in message else f"my/hosts.txt: line {line}: "
    assert str(caught.value).startswith(start)
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
    assert load_hosts(ROOT / "examples/localhost.txt") == (Host(name="localhost", slots=2),)


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("n[01-04,7]", "n01 n02 n03 n04 n7"),
        ("n[1,01]", "n1 n01"),
        ("n[01-03,07]", "n01 n02 n03 n07"),
        ("n[9-11]", "n9 n10 n11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[0-10]", "n0 n1 n2 n3 n4 n5 n6 n7 n8 n9 n10"),
        ("n[3,1,2]", "n3 n1 n2"),
        ("b[1-2]-ib", "b1-ib b2-ib"),
        ("r[1-2]n[01-02].x", "r1n01.x r1n02.x r2n01.x r2n02.x"),
        ("[1-2]", "1 2"),
        ("n7", "n7"),
    ],
)
def test_brackets_stand_for_hosts_in_their_order(word: str, names: str) -> None:
    assert [host.name for host in parse_hosts(word, "x")] == names.split()
    assert parse_hosts(f"me@{word}:2\nlast", "x") == (
        *(Host(name, "me", slots=2) for name in names.split()),
        Host("last"),
    )
    assert parse_hosts(f"ssh://me@{word}:22 slots=2", "x") == tuple(
        Host(name, "me", 22, 2) for name in names.split()
    )


@given(st.integers(0, 99_999), st.integers(0, 300), st.integers(0, 6))
def test_a_range_counts_and_keeps_its_zeros(first: int, more: int, digits: int) -> None:
    last = first + more
    width = max(digits, len(str(last))) if digits else 0
    low, high = str(first).zfill(width), str(last).zfill(width)
    names = [host.name for host in parse_hosts(f"n[{low}-{high}]", "x")]
    assert names == [f"n{str(number).zfill(width)}" for number in range(first, last + 1)]


def test_two_ports_of_a_machine_are_two_hosts() -> None:
    assert len(parse_hosts("ssh://a:2201\nssh://a:2202\na", "x")) == 3
    with pytest.raises(InputError, match="line 2: a stands in line 1 already"):
        parse_hosts("ssh://a:22\nssh://me@a:22", "x")
    with pytest.raises(InputError, match="line 2: 0:0::1 stands in line 1 already"):
        parse_hosts("[::1]\n[0:0::1]", "x")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("localhost:2", (Host("localhost", slots=2),)),
        ("n[1-2]:8,me@m1", (Host("n1", slots=8), Host("n2", slots=8), Host("m1", "me"))),
        ("a, b", (Host("a"), Host("b"))),
        ("ssh://me@a:22", (Host("a", "me", 22),)),
        ("[::1]:4,[fe80::1%eth0]", (Host("::1", slots=4), Host("fe80::1%eth0"))),
        ("n[01-02,7] slots=8", tuple(Host(name, slots=8) for name in ("n01", "n02", "n7"))),
        ("a slots=2", (Host("a", slots=2),)),
        (
            " me@a\tslots=2 , b,ssh://c:22 slots=1",
            (Host("a", "me", slots=2), Host("b"), Host("c", None, 22, 1)),
        ),
        (",".join(f"node{i}" for i in range(200)), tuple(Host(f"node{i}") for i in range(200))),
    ],
)
def test_a_list_of_hosts_stands_for_a_file(text: str, hosts: tuple[Host, ...]) -> None:
    assert load_hosts(text) == hosts


def test_a_file_goes_before_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b").write_text("c")
    assert load_hosts("a,b") == (Host("c"),)
    with pytest.raises(InputError, match=r"no such file"):
        load_hosts("hosts.txt")
    with pytest.raises(InputError, match=r"no such file"):
        load_hosts("jobs/[1].txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,,b", "hosts: host 2: '' is not a host"),
        ("a,b;c", "hosts: host 2: 'b;c' is not a host"),
        ("a,a", "hosts: host 2: a stands in host 1 already; name each host once"),
        ("a,n[1-2", "hosts: the brackets of"),
        ("a:0,b", "hosts: host 1: slots is '0'"),
        ("a,b gpus=2", "hosts: host 2: unknown key 'gpus=2'"),
    ],
)
def test_a_wrong_list_is_refused_with_the_place_in_it(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_host_list(text, "hosts")
    assert str(caught.value).startswith(message)


# What each tool was seen to make of its file: Open MPI 5.0.11, MPICH 5.0.2, DeepSpeed 0.19.8.
READ: list[tuple[HostsFormat, str, tuple[Host, ...]]] = [
    ("openmpi", "a\na", (Host("a", slots=2),)),
    ("openmpi", "a slots=2\na", (Host("a", slots=3),)),
    ("openmpi", "a\nb slots=1", (Host("a"), Host("b", slots=1))),
    ("openmpi", "a max_slots=4", (Host("a", slots=4),)),
    ("openmpi", "a slots=2 max-slots=4 # x", (Host("a", slots=2),)),
    ("openmpi", "a slots = 2\n# text\nme@b cpu=2", (Host("a", slots=2), Host("b", "me", slots=2))),
    ("openmpi", "10.0.0.1\n10.0.0.2", (Host("10.0.0.1"), Host("10.0.0.2"))),
    ("openmpi", "a\nb\na", (Host("a", slots=2), Host("b"))),
    ("mpich", "# x\na:2\nb:1\n", (Host("a", slots=2), Host("b", slots=1))),
    ("mpich", "a:2\na:1\nb", (Host("a", slots=3), Host("b", slots=1))),
    (
        "deepspeed",
        "# x\na\tslots=4 # fast\r\n\nb slots=2",
        (Host("a", slots=4), Host("b", slots=2)),
    ),
    ("pbs", "a\na\nb\na\n", (Host("a", slots=3), Host("b", slots=1))),
    ("lsf", "a\na\nb\n", (Host("a", slots=2), Host("b", slots=1))),
]


@pytest.mark.parametrize(("form", "text", "hosts"), READ)
def test_files_of_other_tools_mean_what_they_mean_there(
    form: HostsFormat, text: str, hosts: tuple[Host, ...]
) -> None:
    assert parse_hosts(text, "h", form) == hosts


REFUSED_BY_FORMAT: list[tuple[HostsFormat, str, str]] = [
    ("openmpi", "a slots=2\na slots=3", "line 2: a stands above already, and Open MPI takes"),
    ("openmpi", "a\na slots=3", "line 2: a stands above already"),
    ("openmpi", "a.x\na.y", "line 2: a.x and a.y are one host to Open MPI"),
    ("openmpi", "b\na:2", "line 2: Open MPI takes 'a:2' for a host's name"),
    ("openmpi", "[::1]", r"line 1: Open MPI takes '\[::1\]' for a host's name"),
    ("openmpi", "a slots=auto", "line 1: slots is 'auto'"),
    ("openmpi", "a slots=2\r\n", "line 1: the line ends in CR LF, as on Windows, which Open MPI"),
    ("openmpi", "a slots=3 max_slots=2", "line 1: slots=3 is more than max_slots=2"),
    ("openmpi", "a gpus=2", "line 1: unknown key 'gpus=2'"),
    ("openmpi", "\n".join(["a"] * 4097), "line 4097: slots is '4097'"),
    ("mpich", "a:2\nb:1\na:1", "line 3: MPICH goes back to a after other hosts' ranks"),
    ("mpich", "a:", "line 1: slots is ''"),
    ("mpich", "a:0", "line 1: slots is '0'"),
    ("mpich", "a slots=2", "line 1: 'slots=2' stands behind a host"),
    ("mpich", "a:2 # x", "line 1: '#' stands behind a host"),
    ("mpich", "a:2\r\n", "line 1: the line ends in CR LF"),
    ("mpich", "n[1-2]", "line 1: MPICH takes"),
    ("deepspeed", "a slots = 4", "line 1: 'a slots = 4' is not `host slots=N`"),
    ("deepspeed", "a", "line 1: 'a' is not `host slots=N`"),
    ("deepspeed", "a slots=4\na slots=4", "line 2: a stands in line 1 already"),
    ("deepspeed", "a slots=4abc", "line 1: DeepSpeed reads slots=4 and leaves out 'abc'"),
    ("deepspeed", "a:2 slots=4", "line 1: DeepSpeed takes 'a:2' for a host's name"),
    ("pbs", "a 2", "line 1: '2' stands behind a host; PBS writes a host a line"),
    ("pbs", "# a", "line 1: 'a' stands behind a host"),
    ("pbs", "", "names no host"),
    ("lsf", "-oProxyCommand=x", "line 1: '-oProxyCommand=x' is not a host's name"),
]


@pytest.mark.parametrize(("form", "text", "message"), REFUSED_BY_FORMAT)
def test_what_a_tool_refuses_or_reads_otherwise_is_refused_with_the_line(
    form: HostsFormat, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^h: {message}") as caught:
        parse_hosts(text, "h", form)
    assert "\n" not in str(caught.value)


SEEDS = [text for _, text, _ in READ] + [text for _, text, _ in REFUSED_BY_FORMAT]
SEEDS += [text for text, _, _ in REFUSED]
PIECES = [
    *" \t\r\n\0#:@[]=,-.%/'\"$;\\",
    "slots=",
    "9" * 30,
    "ssh://",
    "[::1]",
    "n[1-3]",
    "\u2028",
    "\ufeff",
]


def test_mutated_files_are_hosts_or_a_line_that_says_why() -> None:
    chance = random.Random(7)
    read = 0
    for _ in range(1000):
        text = list(chance.choice(SEEDS)[:200])
        for _ in range(chance.randint(0, 4)):
            at = chance.randint(0, len(text))
            text[at : at + chance.randint(0, 3)] = chance.choice(PIECES)
        forms: list[HostsFormat] = ["ditplan", *FORMATS]
        for form in forms:
            try:
                hosts = parse_hosts("".join(text), "h", form)
            except InputError as error:
                assert str(error).startswith("h: ")
                assert str(error).isprintable()
                assert len(str(error)) <= LONGEST_MESSAGE
                continue
            read += 1
            assert len({host.key for host in hosts}) == len(hosts) > 0
            for host in hosts:
                assert re.fullmatch(r"[A-Za-z0-9_.:%-]+", host.name)
                assert not host.name.startswith("-")
                assert host.slots is None or 1 <= host.slots <= 4096
    assert read > 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "-a"}, "'-a' is not a host's name"),
        ({"name": "a b"}, "is not a host's name"),
        ({"name": "a\n"}, "is not a host's name"),
        ({"name": "a", "user": "-x"}, "is not a user's name"),
        ({"name": "a", "user": "x\n"}, "is not a user's name"),
        ({"name": "a", "port": 0}, "port is 0"),
        ({"name": "a", "slots": 0}, "slots is 0"),
        ({"name": "a", "slots": True}, "slots is True"),
        ({"name": "a", "slots": 2.0}, "slots is 2.0"),
    ],
)
def test_a_host_is_checked_from_python_too(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Host(**wrong)
