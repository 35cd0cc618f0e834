"""Lists of nodes as schedulers write them: `n[01-04,7]-ib,m3` stands for n01-ib and so on.

What tools for such lists differ in is refused: a range between numbers of unlike lengths of which
one has leading zeros (`[9-010]`), a range that descends, and a node that is named twice. Numbers
stand as they are written, `[01,7]` for 01 and 7. Of several pairs of brackets the last one counts
fastest.

Seen with scontrol of Slurm 22.05, ClusterShell 1.10 (which sorts) and python-hostlist 2.3.
"""

import itertools
import math
import re
from collections.abc import Iterator

from ditplan.profiles.bounds import MOST_RANKS
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import quoted

BRACKETS = re.compile(r"\[([^\[\]]*)\]")
RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
EXAMPLE = "write such as n[01-04,7]"


def split_list(text: str) -> list[str]:
    """The words of a list between its commas, not those in brackets.

    Raises:
        InputError: brackets that don't match.
    """
    parts, depth, word = [], 0, ""
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth not in (0, 1):
            break
        if character == "," and depth == 0:
            parts.append(word)
            word = ""
        else:
            word += character
    if depth != 0:
        raise InputError(f"the brackets of {quoted(text)} don't match; {EXAMPLE}")
    return [*parts, word]


def expand(word: str) -> list[str]:
    """The names that a word with brackets stands for, in its order; one without is itself.

    Raises:
        InputError: brackets that don't match, or hold what isn't clearly a list of numbers; or more
            names than any cluster has ranks.
    """
    pieces = BRACKETS.split(word)
    if any("[" in piece or "]" in piece for piece in pieces[::2]):
        raise InputError(
            f"the brackets of {quoted(word)} don't match; {EXAMPLE}, without spaces inside"
        )
    groups = [_ranges(group, word) for group in pieces[1::2]]
    count = math.prod(sum(len(numbers) for numbers, _ in group) for group in groups)
    if count > MOST_RANKS:
        raise InputError(
            f"{quoted(word)} stands for {count} hosts; {MOST_RANKS} are the most there can be"
        )
    names = [pieces[0]]
    for group, literal in zip(groups, pieces[2::2], strict=True):
        names = [
            f"{name}{number}{literal}"
            for name, number in itertools.product(names, list(_numbers(group)))
        ]
    return names


def _numbers(group: list[tuple[range, int]]) -> Iterator[str]:
    for numbers, width in group:
        yield from (f"{number:0{width}}" for number in numbers)


def _ranges(group: str, word: str) -> list[tuple[range, int]]:
    """The ranges in a pair of brackets, each with the least number of digits."""
    found = [RANGE.fullmatch(item) for item in group.split(",")]
    if not all(found):
        raise InputError(
            f"{quoted(f'[{group}]')} in {quoted(word)} is no list of numbers; {EXAMPLE}"
        )
    ends = [(match[1], match[2] or match[1]) for match in found if match]
    for first, last in ends:
        has_zeros = any(len(text) > 1 and text[0] == "0" for text in (first, last))
        if has_zeros and len(first) != len(last):
            raise InputError(
                f"{quoted(f'[{group}]')} in {quoted(word)}: {first}-{last} goes from leading zeros "
                "to a number of another length, which tools read differently; write both with as "
                "many digits"
            )
        if int(first) > int(last):
            raise InputError(
                f"{quoted(f'[{group}]')} in {quoted(word)}: {first}-{last} descends; "
                "write the smaller number first"
            )
    return [(range(int(first), int(last) + 1), len(first)) for first, last in ends]
