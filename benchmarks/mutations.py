"""Ways to damage an input: bytes, JSON and TOML values, lines, and things that are no files."""

import copy
import json
import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RAW = "raw value number "
"""Stands in data for text that `json.dumps` wouldn't write."""

RAW_VALUES = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 310,
    "-" + "9" * 310,
    "9" * 5000,
    "0." + "1" * 400,
    "[" * 100_000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "[" + "{}," * 200_000 + "{}]",
    "[" + "1," * 300_000 + "1]",
    '{"a": 1, "a": 2}',
    "1 2",
    "tru",
    "'one'",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    {},
    [],
    [[]],
    {"": {}},
    0,
    -1,
    1,
    2,
    22.7,
    1e-320,
    1e308,
    2**31,
    2**63,
    10**15,
    10**9,
    -(10**15),
    "",
    " ",
    "0",
    "inf",
    "nan",
    "9" * 310,
    "x" * 100_000,
    "a\x00b",
    "a\x1b[31mb\nc\u2028d",
    "\ud800",
    "\udcff.json",
    "../../etc/passwd",
    "QwenImageTransformer2DModel",
)
TOML_VALUES = (
    "9" * 310,
    "0x" + "f" * 5000,
    "nan",
    "inf",
    "1979-05-27T07:32:00Z",
    "[" * 5000,
    "{}",
    "[]",
    "[[1]]",
    '""',
    "true",
    "-1",
    "'\\ud800'",
    '"\\ud800"',
    '"\\U0011ffff"',
    '"""',
)


def damaged_json(rng: random.Random, text: str) -> bytes:
    """A JSON text with one to three of its values, or some of its bytes, changed."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, text.encode())
    try:
        data = json.loads(text)
    except ValueError:
        # a line of several, which was damaged before
        return damaged_bytes(rng, text.encode(errors="replace"))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _damaged_value(rng, data)
    written = json.dumps(data, ensure_ascii=rng.random() < 0.7)
    for number, raw in enumerate(RAW_VALUES):
        written = written.replace(f'"{RAW}{number}"', raw)
    return written.encode("utf-8", errors="surrogatepass")


def _damaged_value(rng: random.Random, data: Any) -> Any:
    places = list(_places(data))
    if not places:
        return _any_value(rng, data)
    owner, key = rng.choice(places)
    way = rng.random()
    if way < 0.2:
        del owner[key]
    elif way < 0.3 and isinstance(owner, list):
        owner[key:key] = [owner[key]] * rng.choice((1, 2, 50))
    elif way < 0.4 and isinstance(owner, dict):
        owner[rng.choice(("x" * 500, "\ud800", "a\nb", "", "name"))] = owner[key]
    else:
        owner[key] = _any_value(rng, owner[key])
    return data


def _any_value(rng: random.Random, old: Any) -> Any:
    if isinstance(old, int | float) and rng.random() < 0.3:
        return old * rng.choice((-1, 0, 0.5, 3, 1000, 10**6, 10**12, 1e-9))
    if rng.random() < 0.3:
        return f"{RAW}{rng.randrange(len(RAW_VALUES))}"
    return copy.deepcopy(rng.choice(VALUES))


def _places(data: Any) -> Any:
    """Every (container, key) in the data."""
    stack = [data]
    while stack:
        owner = stack.pop()
        keys = owner.keys() if isinstance(owner, dict) else range(len(owner))
        for key in keys:
            yield owner, key
            if isinstance(owner[key], dict | list):
                stack.append(owner[key])


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut off, doubled, taken out or put in."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 10))):
        place = rng.randrange(len(found) + 1)
        way = rng.randrange(5)
        if way == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            del found[place:]
        elif way == 2:
            del found[place : place + rng.choice((1, 5, 100))]
        elif way == 3:
            found[place:place] = found[max(0, place - 40) : place]
        else:
            found[place:place] = rng.choice((b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"}", b'"'))
    return bytes(found)


def damaged_lines(rng: random.Random, text: str, line: Callable[[str], bytes]) -> bytes:
    """A text some of whose lines are left out, doubled, exchanged or changed by `line`."""
    lines = [one.encode() for one in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        way = rng.randrange(5)
        if way == 0 and len(lines) > 1:
            del lines[place]
        elif way == 1:
            lines.insert(place, lines[place])
        elif way == 2:
            lines[place], lines[other] = lines[other], lines[place]
        else:
            lines[place] = line(lines[place].decode(errors="replace"))
    return b"\n".join(lines) + b"\n"


def damaged_toml(rng: random.Random, text: str) -> bytes:
    """A TOML text with lines or values changed."""

    def change(line: str) -> bytes:
        key, equals, _ = line.partition("=")
        if rng.random() < 0.3 or not equals:
            return damaged_bytes(rng, line.encode())
        return f"{key}= {rng.choice(TOML_VALUES)}".encode()

    return damaged_lines(rng, text, change)


def damaged_hosts(rng: random.Random, text: str) -> bytes:
    """A hosts file with lines or words changed."""

    def change(line: str) -> bytes:
        words = (
            "slots=99999999999999999999",
            "slots=" + "9" * 5000,
            "slots=-1",
            "slots=4096",
            "slots=²",
            "port=22",
            "a" * 400,
            "-oProxyCommand=x",
            "n[01-99999999]",
            "\x1b[2J",
            "x@y@z",
            ":4",
        )
        if rng.random() < 0.3:
            return damaged_bytes(rng, line.encode())
        if rng.random() < 0.1:
            return b"\n".join(b"n%d slots=4096" % i for i in range(20_000))
        return f"{line} {rng.choice(words)}".encode()

    return damaged_lines(rng, text, change)


NO_FILES = (
    "fifo",
    "socket",
    "folder",
    "zero",
    "random",
    "null",
    "sparse",
    "loop",
    "missing",
    "memory",
    "below",
)


def put_no_file(kind: str, path: Path) -> None:
    """Puts something at a path that isn't a small regular file."""
    targets = {"zero": "/dev/zero", "random": "/dev/urandom", "null": "/dev/null"}
    targets |= {"memory": "/proc/self/mem", "loop": str(path), "below": "/dev/null/x"}
    if kind in targets:
        path.symlink_to(targets[kind])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 3 * 2**30)


WORDS = (
    "",
    " ",
    "-1",
    "0",
    "1",
    "2",
    "7",
    "inf",
    "-inf",
    "nan",
    "1e400",
    "1e-400",
    "9" * 310,
    "9" * 5000,
    "100000000",
    "1000000000000000",
    "9223372036854775808",
    "18446744073709551616",
    "0x10",
    "1_000",
    "²",
    "x" * 256,
    "x" * 5000,
    "d/" * 3000 + "x",
    "a\x00b",
    "\udcff",
    "\udcff.json",
    "a\x1b[31mb",
    "a\nb",
    "[bold]x[/]",
    ":smile:",
    "\\",
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    ".",
    "..",
    "/",
    "~",
    "fifo",
    "--",
    "--help",
    "safe",
    "flux-dev",
    "8xh100-nvlink",
    "xdit",
    "float16",
)


def damaged_command(rng: random.Random, command: Sequence[str]) -> list[str]:
    """A command line with one to three of its words changed, left out, doubled or put in."""
    words = list(command)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(1, len(words))
        way = rng.random()
        if way < 0.75:
            values = [i for i in range(1, len(words)) if not words[i].startswith("--")]
            words[rng.choice(values or [place])] = rng.choice(WORDS)
        elif way < 0.85:
            words.insert(place, rng.choice(WORDS))
        elif way < 0.9 and len(words) > 2:
            del words[place]
        else:
            words.insert(place, words[place])
    return words
