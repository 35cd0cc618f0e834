"""How a workload is put into words."""

import pytest

from ditplan.profiles.catalog import find_model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("sd3", "1024x1024, 28 steps, guidance, batch 1, bfloat16"),
        ("flux-dev", "1024x1024, 28 steps, batch 1, bfloat16"),
    ],
)
def test_only_guidance_that_takes_passes_is_spoken_of(model: str, words: str) -> None:
    assert str(find_model(model).defaults) == words
