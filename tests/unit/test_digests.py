"""Digests, sketches and the watch over weights by which ranks see that they have the same."""

import hashlib
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ditplan.runtime.admission.agreement import Report, disagreement, is_dirty, origin, out_of_step
from ditplan.runtime.admission.channel import Message, Point
from ditplan.runtime.admission.digests import (
    ROW,
    HashesByRows,
    arguments_of,
    digests_of,
    hash_of,
    leaves_of,
    state_of,
)
from ditplan.runtime.admission.sketches import drifted, sketch_of
from ditplan.runtime.admission.weights import ELSEWHERE, WeightsWatch, with_known

CPU, GPU = torch.device("cpu"), torch.device("cuda")
"""Devices of plans; the tensors of these tests lie in the host's memory."""


def hashes_of(tensors: list[torch.Tensor], device: torch.device) -> list[bytes]:
    """By the hash of a plan on such devices."""
    return list(map(hash_of, tensors)) if device == CPU else HashesByRows(tensors).hashes()


def digest(value: Any, device: torch.device = CPU) -> dict[str, bytes]:
    """Of one argument."""
    return digests_of(list(leaves_of("value", value)), device)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3 * ROW), st.sampled_from([CPU, GPU]), st.data())
def test_any_number_that_changes_and_any_two_that_trade_places_change_a_hash(
    size: int, device: torch.device, data: st.DataObject
) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(torch.bfloat16)
    first, second = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    changed, traded = tensor.clone(), tensor.clone()
    changed.view(torch.int16)[first] ^= 1
    traded[[first, second]] = tensor[[second, first]]
    same, before, one, two = hashes_of([tensor.clone(), tensor, changed, traded], device)
    assert same == before
    assert one != before
    assert (two == before) == (tensor[first] == tensor[second])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([True, False, True]),
        torch.zeros(0),
        torch.tensor(3.0),
        torch.tensor(3.0).expand(1),
        torch.randn(3, 5, dtype=torch.complex64),
        torch.randn(4, 6).t(),
        torch.randn(9)[1:].to(torch.float8_e4m3fn),
        torch.arange(5 * ROW),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_tensors_of_any_kind_are_hashed_by_their_values(
    tensor: torch.Tensor, device: torch.device
) -> None:
    contiguous = tensor.clone(memory_format=torch.contiguous_format)
    assert digest(tensor, device) == digest(contiguous, device)
    if tensor.numel():
        assert digest(tensor, device) != digest(torch.zeros_like(tensor), device)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_rows_that_trade_places_change_a_hash(device: torch.device) -> None:
    rows = torch.randn(3, ROW)
    assert hashes_of([rows], device) != hashes_of([rows[[1, 0, 2]]], device)


def test_a_hash_on_cpus_is_that_of_the_bytes_alone() -> None:
    numbers = torch.arange(12, dtype=torch.int16).view(3, 4)
    wanted = hashlib.blake2b(numbers.t().contiguous().numpy().tobytes()).digest()
    assert hash_of(numbers.t()) == wanted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red circle", "a red  circle"),
        (3, 3.0),
        (1, True),
        (None, "None"),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
        ({"scale": 0.5}, {"scale": 0.6}),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        (np.zeros(3), np.ones(3)),
        (torch.float16, torch.bfloat16),
    ],
)
def test_unlike_arguments_have_unlike_digests(one: Any, other: Any) -> None:
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    "name",
    [
        *("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"),
        *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "PNDMScheduler"),
        *("FlowMatchLCMScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
        *("LCMScheduler", "SASolverScheduler", "DDIMScheduler"),
    ],
)
def test_a_call_that_one_rank_alone_has_made_is_no_difference_of_schedulers(name: str) -> None:
    used, fresh, other = (getattr(diffusers, name)() for _ in range(3))
    sample = torch.ones(1, 4, 8, 8)
    used.set_timesteps(5)
    for time in used.timesteps[:4]:
        sample = used.step(sample, time, sample, return_dict=False)[0]
    for scheduler, steps in ((used, 5), (fresh, 5), (other, 6)):
        scheduler.set_timesteps(steps)
    mine, right, wrong = (digests_of(list(state_of(one)), CPU) for one in (used, fresh, other))
    assert mine == right != wrong


def test_what_ranks_may_have_of_their_own_is_left_out() -> None:
    given_here = {"prompt": "x", "output_type": "pil", "callback_on_step_end": print}
    assert list(arguments_of(given_here)) == list(arguments_of({"prompt": "x"}))


def test_a_disagreement_names_what_was_given_before_what_comes_of_it() -> None:
    found = [{"generator": b"1", "height": b"1", "same": b"1"} for _ in range(3)]
    found[2] |= {"generator": b"2", "height": b"2"}
    assert str(disagreement([0, 2, 5], found)) == (
        "the ranks weren't given the same: rank 5 differs in height, generator: give every rank "
        "the same height"
    )


def test_what_one_rank_alone_has_is_a_disagreement() -> None:
    said = str(disagreement([0, 1], [{}, {"weights of lora": b"1"}]))
    assert "rank 1 differs in weights of lora: load the same weights" in said


def test_ranks_out_of_step_are_told_where_each_is() -> None:
    messages = [Message(Point.STEP, 3), Message(Point.END, 2), Message(Point.STEP, 3)]
    said = str(out_of_step([0, 1, 2], messages))
    assert "ranks 0, 2 makes" not in said
    assert "ranks 0, 2 make call number 3 of the transformer" in said
    assert "rank 1 has ended its call after 2 calls" in said


def test_a_message_is_what_was_sent() -> None:
    message = Message(Point.GIVEN, 70_000, bytes(range(16)), True)
    assert Message.from_tensor(message.to_tensor()) == message


def test_the_error_that_counts_is_no_echo_of_another() -> None:
    gone = Report.of(RuntimeError("[gloo/pair.cc] closed"), broke=True, inside=True, calls=1)
    first = Report.of(ZeroDivisionError("x"), broke=True, inside=True, calls=1)
    assert origin([Report(), gone, first]) == 2
    assert origin([gone, gone]) == 0
    assert str(first.error(2)) == "x"
    assert isinstance(first.error(2), ZeroDivisionError)


def test_transfers_are_unfinished_where_one_rank_left_them() -> None:
    inside = Report.of(ValueError("x"), broke=False, inside=True, calls=2)
    between = Report.of(ValueError("x"), broke=False, inside=False, calls=2)
    assert is_dirty([inside, Report()])
    assert not is_dirty([inside, inside])
    assert not is_dirty([between, Report()])


class Own(Exception):
    """An error that can't be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize("error", [Own("a", "b"), SystemExit(0)])
def test_an_error_that_cannot_be_raised_elsewhere_is_told(error: BaseException) -> None:
    said = str(Report.of(error, broke=False, inside=False, calls=0).error(3))
    assert said == f"rank 3 failed: {type(error).__name__}: {error}"


def test_sketches_of_about_the_same_agree_and_of_others_do_not() -> None:
    latents = torch.randn(2, 16, 64, 64)
    rounded = latents + 1e-5 * torch.randn_like(latents)
    other = latents.clone()
    other[0, 0, :8] += 0.5
    steps = [torch.stack([sketch_of(latents), sketch_of(one)]) for one in (latents, rounded, other)]
    assert drifted(steps[:2]) is None
    assert drifted(steps) == (1, [2])
    assert drifted([steps[0] * torch.nan] * 2) is None


class Layers(nn.Module):
    """Two layers and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.register_buffer("table", torch.arange(9.0))


def _written(model: Layers) -> None:
    with torch.no_grad():
        model.second.bias.add_(1)


def _written_by_data(model: Layers) -> None:
    model.first.weight.data.mul_(2)


def _replaced(model: Layers) -> None:
    model.first = nn.Linear(5, 7)


def _moved(model: Layers) -> None:
    model.first.weight.data = model.first.weight.data.clone()


def _rescaled(model: Layers) -> None:
    vars(model.second)["scaling"]["default"] = 2.0


@pytest.mark.parametrize("change", [_written, _written_by_data, _replaced, _moved, _rescaled])
def test_a_change_of_weights_is_seen_once(change: Any) -> None:
    model = Layers()
    vars(model.second)["scaling"] = {"default": 1.0}
    watch = WeightsWatch([model], lambda _: False, CPU)
    assert not watch.has_changed()
    change(model)
    assert watch.has_changed()
    assert not watch.has_changed()


def test_weights_that_a_rank_has_not_whole_are_compared_among_others() -> None:
    model = Layers()
    whole = WeightsWatch([model], lambda _: False, CPU).digests()
    pieces = WeightsWatch([model], lambda one: one is model.first.weight, CPU).digests()
    assert pieces["weights of transformer.first.weight"] == ELSEWHERE
    known = with_known([whole, pieces])
    assert known[0] == known[1] == whole
