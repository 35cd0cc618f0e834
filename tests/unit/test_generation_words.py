"""What `run` gives a pipeline to read."""

import inspect

import diffusers
import pytest
import torch

from ditplan.profiles.catalog import find_model, model_names, shipped_weights
from ditplan.profiles.family import family_of
from ditplan.runtime.generation import words_of_prompt
from ditplan.runtime.models.loading import call_arguments, load_pipeline

GUIDED = [
    name
    for name in model_names()
    if family_of(find_model(name).transformer_class).guidance != "embedded"
]


@pytest.mark.parametrize("name", GUIDED)
def test_guided_pipelines_are_given_a_prompt_to_be_guided_away_from(name: str) -> None:
    spec = find_model(name)
    work = spec.defaults.model_copy(update={"passes": 2, "batch": 3})
    words = words_of_prompt("a", work)
    assert words == {"prompt": ["a"] * 3, "negative_prompt": [""] * 3}
    accepted = inspect.signature(getattr(diffusers, spec.pipeline_class).__call__).parameters
    assert words.keys() <= accepted.keys()


def test_a_pipeline_that_has_an_empty_one_by_default_makes_the_same_of_it() -> None:
    spec = find_model("sd3-tiny")
    pipeline = load_pipeline(spec, shipped_weights("sd3-tiny"), torch.device("cpu"), "float32")
    work = spec.defaults.model_copy(update={"steps": 2, "dtype": "float32"})
    words = words_of_prompt("a red circle", work)
    with torch.no_grad():
        one, other = (
            pipeline(
                **given,
                **call_arguments(spec, work),
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images
            for given in (words, {"prompt": words["prompt"]})
        )
    assert torch.equal(one, other)


def test_without_guidance_there_is_nothing_to_be_guided_away_from() -> None:
    work = find_model("sd3").defaults.model_copy(update={"passes": 1})
    assert words_of_prompt("a", work) == {"prompt": ["a"]}
