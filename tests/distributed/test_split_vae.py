"""A VAE over several ranks gives one device's picture, and one device's own tiles."""

import pytest
import torch

from ditplan.profiles.mesh import Mesh
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.small_models import plan_for, small_sd3, workload
from tests.distributed.vae_tasks import (
    SMALL,
    decoded_both_ways,
    decoded_by_one_alone,
    encoded_both_ways,
    outputs_of_ranks,
    refusal_of,
    tiles_are_equal,
)

EXACT = 1e-4
TIMEOUT_S = 300
CUT_INTO_TILES = sorted(SMALL)


def furthest(results: list[list[float] | None]) -> float:
    return max(one for of_rank in results if of_rank is not None for one in of_rank)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_rows_over_ranks_give_the_picture_of_one(ranks: RankPool, name: str, degree: int) -> None:
    whole = tuple(range(degree))
    heights = [8, 9, 11]
    results = ranks.run(decoded_both_ways, name, heights, whole, degree, timeout_s=TIMEOUT_S)
    assert [one is not None for one in results] == [rank < degree for rank in range(4)]
    assert furthest(results) <= EXACT


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLCogVideoX"])
def test_ranks_that_compute_nothing_get_the_picture_too(ranks: RankPool, name: str) -> None:
    results = ranks.run(decoded_both_ways, name, [7], (2, 0, 3, 1), 3, timeout_s=TIMEOUT_S)
    assert all(of_rank is not None for of_rank in results)
    assert furthest(results) <= EXACT


@pytest.mark.filterwarnings("ignore:a VAE's:ditplan.profiles.errors.PlanWarning")
def test_a_row_for_each_rank_is_enough_and_fewer_are_computed_by_each(ranks: RankPool) -> None:
    for rows in (4, 3):
        results = ranks.run(
            decoded_both_ways, "AutoencoderKL", [rows], (0, 1, 2, 3), 4, timeout_s=TIMEOUT_S
        )
        assert furthest(results) <= EXACT


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("degree", [2, 3])
def test_rows_over_ranks_give_the_latent_of_one(ranks: RankPool, name: str, degree: int) -> None:
    whole = tuple(range(degree))
    results = ranks.run(encoded_both_ways, name, [6, 7], whole, degree, timeout_s=TIMEOUT_S)
    assert furthest(results) <= EXACT


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("AutoencoderKL", "no halo"),
        ("AutoencoderKL", "no sum"),
        ("AutoencoderKL", "attention to own rows"),
        ("AutoencoderDC", "state of own rows"),
        ("AutoencoderKLWan", "no halo"),
        ("AutoencoderKLWan", "attention to own rows"),
        ("AutoencoderKLCogVideoX", "no sum"),
        ("AutoencoderKLHunyuanVideo", "no halo"),
    ],
)
def test_the_comparison_notices(ranks: RankPool, name: str, fault: str) -> None:
    results = ranks.run(decoded_both_ways, name, [8], (0, 1), 2, fault, timeout_s=TIMEOUT_S)
    assert furthest(results) > 10 * EXACT


@pytest.mark.parametrize("name", CUT_INTO_TILES)
def test_tiles_over_ranks_are_those_of_one_bit_for_bit(ranks: RankPool, name: str) -> None:
    results = ranks.run(tiles_are_equal, name, (0, 1, 2, 3), 3, timeout_s=TIMEOUT_S)
    found = [of_rank for of_rank in results if of_rank is not None]
    assert all(equal for _, equal in found)
    calls = [calls for calls, _ in found]
    # the fourth rank gets what the first three compute
    assert calls[3] == 0 < min(calls[:3]) <= max(calls[:3]) <= 2 * min(calls[:3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("class", "a VAE of class AutoencoderTiny can't be split over ranks"),
        ("convolution", "conv_in pads by 'circular'"),
        ("processor", "an attention processor goes around it"),
    ],
)
def test_what_cannot_be_split_is_refused(ranks: RankPool, change: str, said: str) -> None:
    first, second, *others = ranks.run(refusal_of, change, timeout_s=TIMEOUT_S)
    assert first is not None and said in first
    assert first == second
    assert others == [None, None]


def test_a_plan_decodes_together_and_every_rank_has_the_picture(ranks: RankPool) -> None:
    spec, outputs = small_sd3(), ["pt"] * 4
    one = plan_for(spec, Mesh(), workload())
    alone = ranks.run(outputs_of_ranks, spec, one, outputs, timeout_s=TIMEOUT_S)[0]
    assert isinstance(alone, torch.Tensor)
    split = plan_for(spec, Mesh(cfg=2, ulysses=2), workload(), placement=(1, 0, 3, 2))
    for degree in (2, 3, 4):
        plan = split.configured(vae_parallel=degree)
        for picture in ranks.run(outputs_of_ranks, spec, plan, outputs, timeout_s=TIMEOUT_S):
            assert isinstance(picture, torch.Tensor)
            assert float((picture - alone).abs().max()) <= EXACT


def test_ranks_that_ask_for_unlike_outputs_are_refused_before_any_waits(ranks: RankPool) -> None:
    spec = small_sd3()
    plan = plan_for(spec, Mesh(ulysses=2), workload()).configured(vae_parallel=2)
    outputs = ["pt", "latent", "", ""]
    said = ranks.run(outputs_of_ranks, spec, plan, outputs, timeout_s=TIMEOUT_S)
    assert all("output_type" in str(one) for one in said[:2])
    assert said[2:] == [None, None]


@pytest.mark.parametrize("tiled", [False, True])
def test_a_rank_that_decodes_outside_of_the_pipeline_s_calls_waits_for_no_other(
    ranks: RankPool, tiled: bool
) -> None:
    spec = small_sd3()
    plan = plan_for(spec, Mesh(ulysses=2), workload()).configured(vae_parallel=2)
    found = ranks.run(decoded_by_one_alone, spec, plan, tiled, timeout_s=60)
    assert found == [0.0, None, None, None]
