"""The shipped model is trained: its pictures show what unseen captions say."""

import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "sd3_tiny"
CAPTIONS = 6


def test_pictures_show_unseen_captions_and_the_checker_refuses_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
    import checker
    import evaluate
    import scenes

    captions = scenes.held_out_captions()[:CAPTIONS]
    others = scenes.held_out_captions()[CAPTIONS : 2 * CAPTIONS]
    pipeline = evaluate.load(evaluate.WEIGHTS, "cpu")
    pictures = evaluate.generate(pipeline, captions, guidance=3.0, steps=6, batch=CAPTIONS)
    assert evaluate.count_right(pictures, captions) >= CAPTIONS - 1
    assert not any(checker.shows(p, c) for p, c in zip(pictures, others, strict=True))
