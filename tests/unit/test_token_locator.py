"""Where models put the tokens of patches, on the real classes in one process."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from ditplan.profiles.errors import InputError
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.runtime.models.inputs import InputShape, random_inputs
from ditplan.runtime.models.loading import random_model
from ditplan.runtime.pipefusion.stage import Stage
from ditplan.runtime.pipefusion.token_locator import Located, TokenLocator
from ditplan.runtime.sequence.hooks import apply_sequence_parallel
from ditplan.runtime.sequence.kernels import attend
from ditplan.runtime.sequence.layout import Layout, Patches, SequenceGroups, Visiting
from ditplan.runtime.takeover import sample_of
from tests.distributed.family_models import small

CPU = torch.device("cpu")
PATCHES, TEXT = 3, 7
SIZES = {"sd3": (16, 24, 23), "flux": (16, 24, 23), "pixart": (21, 21, 21)}
"""Image tokens of the patches of 63: where text goes with the first one it has fewer for it."""
ROWS, COLUMNS = 7, 9


@dataclass
class Applied:
    """A model in whose blocks nothing happens, made to put patches into the whole."""

    spec: ModelSpec
    model: Any
    layout: Layout
    stage: Stage
    locator: TokenLocator
    passes: int = 0

    def inputs(self, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, Any]:
        """Of two samples of so many image tokens."""
        family, config = family_of(self.spec.transformer_class), self.spec.config
        sizes = InputShape.of_tokens(family, config, 2, TEXT, (1, rows, columns))
        given: dict[str, Any] = random_inputs(
            family.inputs_of(config), sizes, config, CPU, torch.float32, family=family
        )
        return given

    def pass_through(self, inputs: dict[str, Any]) -> Any:
        """A forward of the whole sequence; counts them."""
        self.passes += 1
        return self.stage.pass_through(self.model.forward, inputs)

    def locate(self, inputs: dict[str, Any]) -> Located:
        """Asks the locator."""
        return self.locator.locate(inputs, self.pass_through)

    def of_patch(self, inputs: dict[str, Any], patch: int) -> torch.Tensor:
        """What the model makes of a patch's tokens alone."""
        behind_all = range(100, 101)
        output, _ = self.stage.run(self.model.forward, inputs, Visiting(patch), behind_all)
        prediction: torch.Tensor = sample_of(output)
        return prediction


def hooks_of(model: nn.Module) -> int:
    """How many forward hooks a model's modules have."""
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture(params=sorted(SIZES))
def applied(request: pytest.FixtureRequest) -> Iterator[Applied]:
    spec = small(request.param)
    family = family_of(spec.transformer_class)
    model = random_model(spec.transformer_class, spec.config, CPU, torch.float32)
    layout = Layout(SequenceGroups(None, None, None), patches=Patches("image"))
    stage = Stage(family, layout)
    with torch.no_grad(), ExitStack() as undo:
        answers = [attend] * len(family.self_attentions)
        apply_sequence_parallel(model, family, layout, answers, undo)
        locator = TokenLocator(model, family, layout, PATCHES)
        locator.apply(undo)
        stage.apply(model, undo)
        yield Applied(spec, model, layout, stage, locator)
    assert hooks_of(model) == 0


def expected_numbers(name: str, shape: torch.Size) -> torch.Tensor:
    """By rows of tokens; what FLUX predicts is tokens still, others predict latent pixels."""
    of_tokens = torch.tensor([patch for patch, size in enumerate(SIZES[name]) for _ in range(size)])
    if len(shape) == 3:
        return of_tokens[None, :, None].expand(shape)
    edge = shape[2] // ROWS
    picture = of_tokens.view(ROWS, COLUMNS)
    return picture.repeat_interleave(edge, 0).repeat_interleave(edge, 1).expand(shape)


def test_numbers_of_a_prediction_are_those_of_the_tokens_they_come_from(
    applied: Applied, request: pytest.FixtureRequest
) -> None:
    located = applied.locate(applied.inputs())
    name = request.node.callspec.params["applied"]
    expected = expected_numbers(name, located.numbers.shape)
    assert expected.shape[0] == 1
    assert torch.equal(located.numbers.long(), expected)
    for patch, own in enumerate(located.own):
        assert torch.equal(own, (expected.flatten() == patch).nonzero().flatten())
    assert located.empty(5).shape == (5, *located.numbers.shape[1:])


def test_patches_predicted_apart_and_put_together_are_the_whole(applied: Applied) -> None:
    inputs = applied.inputs()
    located = applied.locate(inputs)
    whole = sample_of(applied.pass_through(inputs))
    together = located.empty(2).fill_(torch.nan)
    for patch in range(PATCHES):
        own = located.taken(applied.of_patch(inputs, patch), patch)
        located.put(together, patch, own)
    torch.testing.assert_close(together, whole, rtol=0, atol=1e-6)


def test_calls_that_are_alike_are_located_once_and_no_hook_is_left_behind(
    applied: Applied,
) -> None:
    before = hooks_of(applied.model)
    first = applied.locate(applied.inputs())
    assert applied.locate(applied.inputs()) is first
    assert applied.passes == 1
    other = applied.locate(applied.inputs(rows=ROWS + 2))
    assert applied.passes == 2
    assert other.lengths != first.lengths
    assert applied.locate(applied.inputs()).lengths == first.lengths
    with pytest.raises(InputError, match="2 tokens can't be cut into 3 patches"):
        applied.locate(applied.inputs(rows=1, columns=2))
    assert hooks_of(applied.model) == before
