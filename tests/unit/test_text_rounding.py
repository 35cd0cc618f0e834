"""Rounded-up texts give what their own lengths do, by the real transformers, on one device."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.model import AttentionKernel, ModelSpec
from ditplan.runtime.sequence.hooks import apply_sequence_parallel
from ditplan.runtime.sequence.layout import Layout, SequenceGroups
from ditplan.runtime.sequence.ring import RingBuffers
from ditplan.runtime.sequence.text_rounding import round_texts
from ditplan.runtime.sequence.usp import SequenceAttention
from ditplan.runtime.takeover import names_arguments, replace_forward, sample_of
from tests.distributed.family_models import small
from tests.distributed.family_tasks import inputs_of, small_model

SIZES = (8, 32)
EXACT = 1e-5
ROUNDED = ("qwen-image", "hunyuan-video")


def predicted(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """A forward's prediction."""
    with torch.no_grad():
        found: torch.Tensor = sample_of(model(**inputs, return_dict=False))
    return found


def put_in_force(spec: ModelSpec, model: Any, kernel: AttentionKernel, undo: ExitStack) -> None:
    """What a plan of one device does to a model whose texts it rounds up."""
    family = family_of(spec.transformer_class)
    layout = Layout(SequenceGroups(None, None, None))
    answers = [
        SequenceAttention(declared, layout, kernel, None, None, RingBuffers())
        for declared in family.self_attentions
    ]
    apply_sequence_parallel(model, family, layout, answers, undo)
    round_texts(model, family, SIZES, undo)


@pytest.mark.parametrize("kernel", ["auto", "cpu"])
@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("masked", [0, 3])
def test_a_rounded_text_gives_what_its_own_length_does(
    name: str, masked: int, kernel: AttentionKernel
) -> None:
    spec = small(name)
    inputs, model = inputs_of(spec, masked=masked), small_model(spec)
    alone = predicted(model, inputs)
    with ExitStack() as undo:
        put_in_force(spec, model, kernel, undo)
        assert float((predicted(model, inputs) - alone).abs().max()) <= EXACT
    assert torch.equal(predicted(model, inputs), alone)


@pytest.mark.parametrize("name", ROUNDED)
def test_all_lengths_look_alike_to_what_is_compiled_or_captured(name: str) -> None:
    spec = small(name)
    model, named = small_model(spec), names_arguments(small_model(spec))
    seen: list[dict[str, Any]] = []

    def noted(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        seen.append(named(*args, **kwargs))
        return (torch.zeros(1),)

    family = family_of(spec.transformer_class)
    dims = {
        key: value.index("text_tokens")
        for key, value in family.inputs.items()
        if "text_tokens" in value
    }
    with ExitStack() as undo:
        replace_forward(model, noted, undo)
        round_texts(model, family, SIZES, undo)
        whole = inputs_of(spec)
        for length in (5, 7):
            predicted(
                model,
                {
                    key: value.narrow(dims[key], 0, length) if key in dims else value
                    for key, value in whole.items()
                },
            )
        with pytest.raises(InputError, match="the plan serves texts of up to 32"):
            text = next(key for key in dims if key != (family.text_mask and family.text_mask.input))
            predicted(model, whole | {text: whole[text].repeat_interleave(5, dims[text])})
    shapes = [{key: tuple(one[key].shape) for key in dims} for one in seen]
    assert shapes[0] == shapes[1]
    assert all(one[key].shape[dims[key]] == SIZES[0] for one in seen for key in dims)


def test_a_root_that_only_hands_its_mask_on_is_given_none() -> None:
    """Diffusers' makes a tensor of a number with it, which no graph can capture."""
    spec = small("qwen-image")
    model: Any = small_model(spec)
    own, seen = type(model).forward, []

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["encoder_hidden_states_mask"])
        return own(model, *args, **kwargs)

    with ExitStack() as undo:
        replace_forward(model, noted, undo)
        put_in_force(spec, model, "auto", undo)
        predicted(model, inputs_of(spec, masked=2))
    assert seen == [None]
