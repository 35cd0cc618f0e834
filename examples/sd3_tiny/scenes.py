"""A small language of scenes, and the drawing of them.

A caption names one thing ("a red circle") or two things and where the first lies
("a red circle left of a blue square"). Pictures are drawn from signed distance
functions in batches of tensors, so the same code draws on a CPU and on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

PICTURE_SIZE = 128
"""Height and width of a picture, in pixels."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 50),
    "purple": (170, 50, 190),
    "white": (245, 245, 245),
}
"""Colour names and their sRGB values, 0 to 255."""
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND = (40, 42, 48)
RELATIONS = ("left of", "right of", "above", "below")

NEAREST_APART = 20.0
"""Least distance, in pixels along the relation's axis, at which a relation holds."""
STEEPEST = 0.6
"""Most distance across the relation's axis, as a share of the distance along it."""

_RADIUS_ALONE = (16.0, 28.0)
_RADIUS_PAIR = (14.0, 22.0)
_GAP = (8.0, 22.0)
_MARGIN = 6.0
_ACROSS = 4.0
_HELD_OUT_OF = 10


@dataclass(frozen=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing, or two things and the place of the first."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def caption(self) -> str:
        """The caption that parses to this scene."""
        if self.relation is None:
            return str(self.things[0])
        return f"{self.things[0]} {self.relation} {self.things[1]}"


def _parse_thing(words: Sequence[str], caption: str) -> Thing:
    if len(words) != 3 or words[0] != "a":
        raise ValueError(f"expected 'a COLOUR SHAPE' in {caption!r}, got {' '.join(words)!r}")
    _, colour, shape = words
    if colour not in COLOURS:
        raise ValueError(f"unknown colour {colour!r} in {caption!r}; known: {', '.join(COLOURS)}")
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r} in {caption!r}; known: {', '.join(SHAPES)}")
    return Thing(colour, shape)


def parse(caption: str) -> Scene:
    """The scene that `caption` names; ValueError if it isn't in the language."""
    words = caption.split()
    if len(words) <= 3:
        return Scene((_parse_thing(words, caption),))
    middle = " ".join(words[3:-3])
    if middle not in RELATIONS:
        raise ValueError(
            f"unknown relation {middle!r} in {caption!r}; known: {', '.join(RELATIONS)}"
        )
    first, second = _parse_thing(words[:3], caption), _parse_thing(words[-3:], caption)
    return Scene((first, second), middle)


def holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether `first` lies in `relation` to `second`.

    Both are centres as (x, y) in pixels, y growing downwards. Drawn pictures keep well
    inside the margins used here, so that a slightly moved thing is still where it should be.
    """
    index = RELATIONS.index(relation)
    axis = index // 2
    along = second[axis] - first[axis]
    if index % 2 == 1:
        along = -along
    across = abs(second[1 - axis] - first[1 - axis])
    return along >= NEAREST_APART and across <= STEEPEST * along


def things() -> list[Thing]:
    """All coloured shapes."""
    return [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this scene's two things together.

    The choice depends on the two things alone, neither on their order nor on the relation,
    so no rewording of a held-out scene is among the training captions. A single thing and
    two equal things are always for training.
    """
    names = sorted({str(thing) for thing in scene.things})
    return len(names) == 2 and _hash(" and ".join(names)) % _HELD_OUT_OF == 0


@cache
def _captions() -> tuple[tuple[str, ...], tuple[str, ...]]:
    singles = [Scene((thing,)) for thing in things()]
    pairs = [
        Scene((first, second), relation)
        for first in things()
        for second in things()
        for relation in RELATIONS
    ]
    training = [scene.caption() for scene in singles + pairs if not is_held_out(scene)]
    held_out = [scene.caption() for scene in pairs if is_held_out(scene)]
    return tuple(training), tuple(sorted(held_out, key=_hash))


def training_captions() -> tuple[str, ...]:
    """Captions for training: first the single things, then the pairs."""
    return _captions()[0]


def held_out_captions() -> tuple[str, ...]:
    """Captions never trained on, in a fixed mixed order (any first part is a fair sample)."""
    return _captions()[1]


def encode(captions: Sequence[str]) -> Tensor:
    """Captions as numbers for `draw`: int64 of shape (captions, 5).

    Columns: shape and colour of the first thing, shape and colour of the second, relation;
    the last three are -1 for a single thing.
    """
    rows = []
    for caption in captions:
        scene = parse(caption)
        row = [-1] * 5
        for place, thing in enumerate(scene.things):
            row[2 * place] = SHAPES.index(thing.shape)
            row[2 * place + 1] = COLOUR_NAMES.index(thing.colour)
        if scene.relation is not None:
            row[4] = RELATIONS.index(scene.relation)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Signed distances to each shape of radius about 1 at the origin, stacked in front."""
    ax, ay = x.abs(), y.abs()
    circle = torch.hypot(x, y) - 0.95
    square = torch.maximum(ax, ay) - 0.85
    # A side runs from the tip (0, -0.95) to a corner (1, 0.85).
    side = (1.8 * ax - (y + 0.95)) / (1.8**2 + 1.0) ** 0.5
    triangle = torch.maximum(side, y - 0.85)
    diamond = (ax + ay - 1.05) / 2.0**0.5
    wide = torch.maximum(ax - 0.95, ay - 0.32)
    tall = torch.maximum(ax - 0.32, ay - 0.95)
    return torch.stack([circle, square, triangle, diamond, torch.minimum(wide, tall)])


def _place(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random centres (batch, 2 things, xy) and radii (batch, 2), in pixels."""
    count, device = codes.shape[0], codes.device

    def uniform(low: Tensor | float, high: Tensor | float) -> Tensor:
        return low + (high - low) * torch.rand(count, device=device, generator=generator)

    first, second, gap = uniform(*_RADIUS_PAIR), uniform(*_RADIUS_PAIR), uniform(*_GAP)
    length = 2 * (first + second) + gap
    start = uniform(_MARGIN + 0 * length, PICTURE_SIZE - _MARGIN - length)
    near, far = start + first, start + length - second
    edge = _MARGIN + _RADIUS_PAIR[1] + _ACROSS
    middle, slant = uniform(edge, PICTURE_SIZE - edge), uniform(-_ACROSS, _ACROSS)
    alone = uniform(*_RADIUS_ALONE)
    alone_x = uniform(_MARGIN + alone, PICTURE_SIZE - _MARGIN - alone)
    alone_y = uniform(_MARGIN + alone, PICTURE_SIZE - _MARGIN - alone)

    relation = codes[:, 4]
    reverse, upright, single = relation % 2 == 1, relation >= 2, relation < 0
    radii = torch.stack(
        [torch.where(reverse, second, first), torch.where(reverse, first, second)], dim=1
    )
    along = torch.stack([torch.where(reverse, far, near), torch.where(reverse, near, far)], dim=1)
    across = torch.stack([middle + slant, middle - slant], dim=1)
    x = torch.where(upright[:, None], across, along)
    y = torch.where(upright[:, None], along, across)
    centres = torch.stack([x, y], dim=2)
    alone_centre = torch.stack([alone_x, alone_y], dim=1)[:, None].expand(-1, 2, -1)
    centres = torch.where(single[:, None, None], alone_centre, centres)
    return centres, torch.where(single[:, None], alone[:, None], radii)


def draw(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures of the scenes `codes` (see `encode`), on the device of `codes`.

    Sizes and places are random, from `generator` (of the same device). Returns float32 of
    shape (batch, 3, 128, 128) with values from 0 to 1.
    """
    device = codes.device
    centres, radii = _place(codes, generator)
    palette = torch.tensor(list(COLOURS.values()), device=device, dtype=torch.float32) / 255
    ground = torch.tensor(BACKGROUND, device=device, dtype=torch.float32) / 255
    grid = torch.arange(PICTURE_SIZE, device=device, dtype=torch.float32) + 0.5
    picture = ground[None, :, None, None].expand(codes.shape[0], 3, PICTURE_SIZE, PICTURE_SIZE)
    for place in range(2):
        shape, colour = codes[:, 2 * place], codes[:, 2 * place + 1]
        radius = radii[:, place, None, None]
        x = (grid[None, None, :] - centres[:, place, 0, None, None]) / radius
        y = (grid[None, :, None] - centres[:, place, 1, None, None]) / radius
        wanted = shape.clamp(min=0)[None, :, None, None]
        distances = _distances(*torch.broadcast_tensors(x, y))
        distance = distances.gather(0, wanted.expand(1, *distances.shape[1:]))[0]
        cover = (0.5 - distance * radius).clamp(0, 1)
        cover = torch.where((shape >= 0)[:, None, None], cover, 0.0)[:, None]
        paint = palette[colour.clamp(min=0)][:, :, None, None]
        picture = picture * (1 - cover) + paint * cover
    return picture


def draw_captions(captions: Sequence[str], seed: int, device: str = "cpu") -> Tensor:
    """Pictures of `captions`, as `draw` makes them, from a seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return draw(encode(captions).to(device), generator)


def to_bytes(pictures: Tensor) -> Tensor:
    """Float pictures (batch, 3, height, width) as uint8 (batch, height, width, 3), on the CPU."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
