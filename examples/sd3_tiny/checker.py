"""Says what a picture of `scenes` shows, and whether it shows what a caption asks for.

No learned part: coloured patches are found by their distance from the background, named
by the nearest colour and by the shape whose outline covers them best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scenes import BACKGROUND, COLOUR_NAMES, COLOURS, SHAPES, Thing, holds, parse
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from PIL import Image

UNCLEAR = "unclear"
"""Colour or shape of a patch that is like none of the known ones."""

_SPECK = 24  # Pixels; a smaller patch is noise and counts as nothing.
_SMALLEST = 120  # Pixels; drawn things have at least about twice as many.
_FROM_GROUND = 45.0  # Least distance in sRGB from the background.
_COLOUR_REACH = 110.0
_COLOUR_CLEAR = 0.75
_PURE = 0.85
_OVERLAP = 0.75
_ASPECT_REACH = 1.4

_PALETTE = np.array(list(COLOURS.values()), dtype=np.float64)
_GROUND = np.array(BACKGROUND, dtype=np.float64)
# Width over height of each shape as drawn.
_ASPECT = {"circle": 1.0, "square": 1.0, "triangle": 2.0 / 1.8, "diamond": 1.0, "cross": 1.0}

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """One patch of a picture: `colour` and `shape` are names, or "unclear".

    `centre` is the middle of its box as (x, y) in pixels, `box` is (left, top, right,
    bottom) in pixels, `area` counts pixels, and `overlap` says how well the best shape
    covers it (intersection over union, 0 to 1).
    """

    colour: str
    shape: str
    centre: tuple[float, float]
    box: tuple[int, int, int, int]
    area: int
    overlap: float

    def is_a(self, thing: Thing) -> bool:
        """Whether this is the thing."""
        return self.colour == thing.colour and self.shape == thing.shape


def _name_colour(inner: Pixels) -> str:
    """The colour of pixels (count, 3), if they agree on one."""
    middle = np.median(inner, axis=0)
    distances = np.linalg.norm(_PALETTE - middle, axis=1)
    nearest, next_nearest = np.argsort(distances)[:2]
    if distances[nearest] > _COLOUR_REACH:
        return UNCLEAR
    if distances[nearest] > _COLOUR_CLEAR * distances[next_nearest]:
        return UNCLEAR
    each = np.linalg.norm(inner[:, None] - _PALETTE[None], axis=2).argmin(axis=1)
    if float((each == nearest).mean()) < _PURE:
        return UNCLEAR
    return COLOUR_NAMES[int(nearest)]


@cache
def _outlines(height: int, width: int) -> dict[str, Mask]:
    """Each shape filling a box of height x width pixels."""
    v = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None]
    u = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :]
    bar = 0.32 / 0.95
    return {
        "circle": u**2 + v**2 <= 1,
        "square": np.ones((height, width), dtype=np.bool_),
        "triangle": np.abs(u) <= (v + 1) / 2,
        "diamond": np.abs(u) + np.abs(v) <= 1,
        "cross": (np.abs(u) <= bar) | (np.abs(v) <= bar),
    }


def _name_shape(mask: Mask) -> tuple[str, float]:
    """The shape that fills the box `mask` best, and its overlap."""
    height, width = mask.shape
    outlines = _outlines(height, width)
    overlaps = {
        name: float((mask & outlines[name]).sum() / (mask | outlines[name]).sum())
        for name in SHAPES
    }
    best = max(SHAPES, key=lambda name: overlaps[name])
    aspect = width / height / _ASPECT[best]
    clear = (
        overlaps[best] >= _OVERLAP
        and mask.sum() >= _SMALLEST
        and 1 / _ASPECT_REACH <= aspect <= _ASPECT_REACH
    )
    return (best if clear else UNCLEAR), overlaps[best]


def _look(pixels: Pixels, away: Pixels, patch: Mask) -> Seen:
    """Name one patch. `away` holds each pixel's distance from the background."""
    # Edge pixels are a mixture with the background, so the patch ends halfway to its colour.
    full = float(np.percentile(away[patch], 75))
    mask = patch & (away > 0.5 * full)
    inner = ndimage.binary_erosion(mask)
    colour = _name_colour(pixels[inner if inner.any() else mask])
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    shape, overlap = _name_shape(mask[top:bottom, left:right])
    return Seen(
        colour=colour,
        shape=shape,
        centre=((left + right) / 2, (top + bottom) / 2),
        box=(left, top, right, bottom),
        area=int(mask.sum()),
        overlap=overlap,
    )


def describe(picture: Image.Image | Pixels) -> list[Seen]:
    """What `picture` shows, largest first.

    `picture` is a PIL image or a uint8 array of shape (height, width, 3).
    """
    if not isinstance(picture, np.ndarray):
        picture = np.asarray(picture.convert("RGB"))
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"expected uint8 of shape (height, width, 3), got {picture.dtype} {picture.shape}"
        )
    pixels = picture.astype(np.float64)
    away = np.linalg.norm(pixels - _GROUND, axis=2)
    labels, count = ndimage.label(away > _FROM_GROUND)
    seen = []
    for label in range(1, count + 1):
        patch = labels == label
        if int(patch.sum()) >= _SPECK:
            seen.append(_look(pixels, away, patch))
    return sorted(seen, key=lambda one: -one.area)


def shows(picture: Image.Image | Pixels, caption: str) -> bool:
    """Whether `picture` shows exactly what `caption` asks for, and nothing besides.

    Takes what `describe` takes; ValueError if the caption isn't in the language.
    """
    scene = parse(caption)
    seen = describe(picture)
    if len(seen) != len(scene.things):
        return False
    if scene.relation is None:
        return seen[0].is_a(scene.things[0])
    # Two equal things can stand for each other, so both orders are tried.
    return any(
        first.is_a(scene.things[0])
        and second.is_a(scene.things[1])
        and holds(scene.relation, first.centre, second.centre)
        for first, second in (seen, seen[::-1])
    )
