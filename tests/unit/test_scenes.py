"""The scenes of sd3-tiny and their checker agree, and the checker isn't fooled."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "sd3_tiny"))

import checker
import scenes
from scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing

Pictures = npt.NDArray[np.uint8]


def drawn(captions: list[str], seed: int = 0, blur: bool = False, noise: float = 0.0) -> Pictures:
    """Pictures of captions as bytes, if asked a little spoilt as by a VAE."""
    pictures = scenes.draw_captions(captions, seed)
    if blur:
        padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
        pictures = torch.nn.functional.avg_pool2d(padded, 3, 1)
    generator = torch.Generator().manual_seed(seed)
    pictures = pictures + noise * torch.randn(pictures.shape, generator=generator)
    made: Pictures = scenes.to_bytes(pictures).numpy()
    return made


def some_captions(count: int) -> list[str]:
    """Every single thing, and random pairs."""
    known = scenes.training_captions() + scenes.held_out_captions()
    return [str(thing) for thing in scenes.things()] + random.Random(0).sample(known, count)


@pytest.mark.parametrize(("blur", "noise"), [(False, 0.0), (True, 0.0), (True, 0.03)])
def test_checker_accepts_every_drawn_picture(blur: bool, noise: float) -> None:
    captions = some_captions(170)
    pictures = drawn(captions, blur=blur, noise=noise)
    wrong = [
        caption
        for picture, caption in zip(pictures, captions, strict=True)
        if not checker.shows(picture, caption)
    ]
    assert wrong == []


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_checker_accepts_each_relation_and_refuses_the_others(relation: str, shape: str) -> None:
    first, second = Thing("red", shape), Thing("white", "circle")
    picture = drawn([Scene((first, second), relation).caption()], seed=3)[0]
    for other in RELATIONS:
        caption = Scene((first, second), other).caption()
        assert checker.shows(picture, caption) == (other == relation)


def test_checker_refuses_every_other_colour_and_shape() -> None:
    picture = drawn(["a red circle left of a blue square"])[0]
    for colour in COLOURS:
        for shape in SHAPES:
            caption = f"a {colour} {shape} left of a blue square"
            assert checker.shows(picture, caption) == (
                caption == "a red circle left of a blue square"
            )


@pytest.mark.parametrize(
    "caption",
    [
        "a blue square left of a red circle",
        "a red square left of a blue circle",
        "a blue circle left of a red square",
        "a red circle right of a blue square",
        "a red circle",
        "a blue square",
    ],
)
def test_checker_refuses_swaps_and_what_names_too_little(caption: str) -> None:
    assert not checker.shows(drawn(["a red circle left of a blue square"])[0], caption)


def test_checker_accepts_the_same_place_in_other_words() -> None:
    picture = drawn(["a red circle left of a blue square"])[0]
    assert checker.shows(picture, "a blue square right of a red circle")


def test_checker_refuses_a_missing_and_an_extra_thing() -> None:
    one = drawn(["a red circle"])[0]
    assert not checker.shows(one, "a red circle left of a blue square")
    extra = one.copy()
    extra[2:14, 2:14] = COLOURS["green"]
    assert not checker.shows(extra, "a red circle")
    assert [(seen.colour, seen.shape) for seen in checker.describe(one)] == [("red", "circle")]


def test_checker_refuses_a_thing_of_two_colours() -> None:
    picture = drawn(["a red square"])[0]
    (seen,) = checker.describe(picture)
    left, top, right, bottom = seen.box
    picture[top:bottom, (left + right) // 2 : right] = COLOURS["blue"]
    assert checker.describe(picture)[0].colour == checker.UNCLEAR
    assert not checker.shows(picture, "a red square")


def test_checker_sees_nothing_in_the_background_and_no_shape_in_noise() -> None:
    empty = np.full((128, 128, 3), scenes.BACKGROUND, dtype=np.uint8)
    assert checker.describe(empty) == []
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    for shape in SHAPES:
        assert not any(checker.shows(noise, f"a {colour} {shape}") for colour in COLOURS)


def test_checker_refuses_other_kinds_of_arrays() -> None:
    with pytest.raises(ValueError, match="uint8"):
        checker.describe(np.zeros((128, 128, 3)))
    with pytest.raises(ValueError, match="uint8"):
        checker.describe(np.zeros((3, 128, 128), dtype=np.uint8))


def test_two_equal_things_can_stand_for_each_other() -> None:
    caption = "a green cross above a green cross"
    picture = drawn([caption])[0]
    assert checker.shows(picture, caption)
    assert checker.shows(picture, "a green cross below a green cross")
    assert not checker.shows(picture, "a green cross left of a green cross")
    assert not checker.shows(picture, "a green cross")


def test_parse_and_caption_are_inverse() -> None:
    for caption in some_captions(300):
        assert scenes.parse(caption).caption() == caption


@pytest.mark.parametrize(
    ("caption", "word"),
    [
        ("a pink circle", "pink"),
        ("a red hexagon", "hexagon"),
        ("a red circle behind a blue square", "behind"),
        ("a red circle left of a blue", "left"),
        ("the red circle", "the"),
        ("", "a COLOUR SHAPE"),
    ],
)
def test_parse_names_what_it_does_not_know(caption: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        scenes.parse(caption)


def test_held_out_pairs_are_never_trained_on_in_any_wording() -> None:
    def pairs(captions: tuple[str, ...]) -> set[frozenset[str]]:
        parsed = [scenes.parse(caption) for caption in captions]
        return {frozenset(map(str, scene.things)) for scene in parsed}

    training, held_out = scenes.training_captions(), scenes.held_out_captions()
    assert len(held_out) >= 300
    assert not pairs(training) & pairs(held_out)
    words = {word for caption in training for word in caption.split()}
    assert {word for caption in held_out for word in caption.split()} <= words


def test_the_split_stays_as_the_weights_were_trained() -> None:
    assert scenes.held_out_captions()[0] == "a purple cross right of a green cross"
    assert (len(scenes.training_captions()), len(scenes.held_out_captions())) == (3270, 360)


def test_drawing_depends_on_the_seed_alone() -> None:
    captions = ["a red circle left of a blue square", "a white cross"]
    assert np.array_equal(drawn(captions, seed=5), drawn(captions, seed=5))
    assert not np.array_equal(drawn(captions, seed=5), drawn(captions, seed=6))
    assert scenes.draw_captions(captions, 0).shape == (2, 3, 128, 128)
