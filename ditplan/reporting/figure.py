"""What a report shows of one thing: a figure with the same in a table, or why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BLUE, ORANGE, GREEN, RED, PURPLE, CYAN, GREY, BROWN, PINK = (
    *("#3b82f6", "#e58a00", "#10a37f", "#dc4c4c", "#8b6cf0", "#0aa5c2", "#8a919e"),
    *("#a9744f", "#d6489b"),
)
"""Colours that are told apart on light and on dark ground."""

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, CYAN, GREY)

COLOUR_OF_PART = {
    "blocks": BLUE,
    "compute": BLUE,
    "attention": ORANGE,
    "ulysses": GREEN,
    "ring": CYAN,
    "sends": PINK,
    "bubbles": PURPLE,
    "cfg": RED,
    "gather": RED,
    "weights": RED,
    "outside": BROWN,
    "launch": GREY,
    "scheduler": GREY,
}
"""A part has one colour in all figures; others are red."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text, below headings."""

    headings: Row
    rows: Sequence[Row]


@dataclass(frozen=True)
class Figure:
    """A figure of plotly's `data` and `layout`; `label` says what it shows to who can't see it,
    `text` what to see in it. `table` has the same numbers. `height` is pixels.
    """

    key: str
    title: str
    label: str
    text: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    table: Table
    height: int = 360
    code: tuple[tuple[str, str], ...] = field(default=())


@dataclass(frozen=True)
class LeftOut:
    """A figure for which there are no data, and a sentence that says why."""

    key: str
    title: str
    why: str


def seconds_text(seconds: float | None) -> str:
    """Seconds as a table's cell; a dash for none."""
    return "-" if seconds is None else f"{seconds:.4g}"
