"""What kept graphs hold beside their calls is the same after a plan was away, or is noticed."""

from contextlib import ExitStack

import torch

from ditplan.profiles.family import family_of
from ditplan.runtime.compilation.cuda_graphs import _is_same
from ditplan.runtime.in_force import held_by_graphs
from ditplan.runtime.sequence.hooks import answer_attentions
from tests.distributed.family_models import small
from tests.distributed.family_tasks import small_model


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """An answer to attention; it is never asked."""
    return query


def test_a_plan_that_comes_back_holds_the_same_and_moved_weights_are_noticed() -> None:
    spec = small("qwen-image")
    model, family = small_model(spec), family_of(spec.transformer_class)

    def held() -> list[object]:
        with ExitStack() as undo:
            answer_attentions(model, family, [plain], undo)
            return held_by_graphs(model)

    before, again = held(), held()
    assert len(before) == len(again)
    assert all(map(_is_same, before, again))
    weight = model.proj_out.weight
    weight.data = weight.data.clone()
    assert not all(map(_is_same, before, held()))
