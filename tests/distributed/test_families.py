"""Every family's transformer: whatever the mesh, one device's result; and nothing left out."""

import itertools
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch

from ditplan.planner.cost.profile_points import wanted_points
from ditplan.profiles.errors import InputError
from ditplan.profiles.family import FAMILIES, Split, family_of, load_families
from ditplan.profiles.mesh import Mesh
from ditplan.runtime.profiling.model_profiler import measure_blocks
from ditplan.runtime.ranks.pool import RankPool
from ditplan.runtime.sequence.hooks import apply_splits
from tests.distributed.family_models import NAMES, VIDEOS, small
from tests.distributed.family_tasks import (
    inputs_of,
    outputs_after_a_refusal,
    outputs_of,
    outputs_with_step_cache,
    small_model,
    step_alone,
    step_outputs,
)
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, workload

EXACT = 1e-4
MESHES = [
    Mesh(cfg=cfg, ring=ring, ulysses=ulysses)
    for cfg, ring, ulysses in itertools.product((1, 2), (1, 2, 3, 4), (1, 2, 3, 4))
    if 2 <= cfg * ring * ulysses <= 4
]


def inputs_for(name: str, **changes: Any) -> list[dict[str, Any]]:
    """A step's inputs: of one call with two samples, or of two calls."""
    spec = small(name)
    frames = 3 if name in VIDEOS and name != "qwen-image" else 1
    masked = 3 if family_of(spec.transformer_class).text_mask else 2
    calls = 2 if family_of(spec.transformer_class).guidance == "calls" else 1
    return [
        inputs_of(spec, **({"frames": frames, "masked": masked, "seed": seed} | changes))
        for seed in range(calls)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_mesh_gives_the_prediction_of_one_device(ranks: RankPool, name: str) -> None:
    spec, inputs = small(name), inputs_for(name)
    alone = step_alone(spec, inputs)
    assert alone.std() > 1e-3
    embedded = family_of(spec.transformer_class).guidance == "embedded"
    # where there is one pass, the pictures of a batch take the place of passes
    changes = {"dp": 2, "cfg": 1}
    legal = (mesh for mesh in MESHES if mesh.ulysses <= spec.heads)
    meshes = [m.model_copy(update=changes) if embedded and m.cfg == 2 else m for m in legal]
    work = workload(passes=1 if embedded else 2)
    plans = [plan_for(spec, mesh, work) for mesh in meshes]
    meshes.append(Mesh(ring=2, ulysses=2))
    # ulysses groups that number their ranks differently
    plans.append(plan_for(spec, meshes[-1], work, (0, 1, 3, 2), token_shares=(4, 2, 1, 3)))
    results = ranks.run(step_outputs, spec, plans, inputs, timeout_s=600)
    for number, mesh in enumerate(meshes):
        of_mesh = [of_rank[number] for of_rank in results]
        assert sum(result is not None for result in of_mesh) == mesh.size, mesh
        assert furthest(alone, of_mesh) <= EXACT, mesh


@pytest.mark.parametrize("name", NAMES)
def test_the_prediction_depends_on_all_that_a_family_splits(name: str) -> None:
    spec, inputs = small(name), inputs_for(name)
    family, model = family_of(spec.transformer_class), small_model(spec)
    alone = torch.stack(outputs_of(model, spec, inputs))
    seen: list[Split] = []
    for split in family.splits:
        part = family.model_copy(update={"splits": (split,)})
        with ExitStack() as undo:
            apply_splits(model, part, partial(half_of, seen), undo)
            broken = torch.stack(outputs_of(model, spec, inputs))
        if split in seen:
            assert float((broken - alone).abs().max()) > 100 * EXACT, split
    assert {split.segment for split in seen} == {split.segment for split in family.splits}


def half_of(seen: list[Split], split: Split, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which the second half of the tokens is lost."""
    seen.append(split)
    kept = tensor.clone()
    kept.narrow(split.dim, tensor.shape[split.dim] // 2, tensor.shape[split.dim] // 2).zero_()
    return kept


@pytest.mark.parametrize("name", ["pixart", "hunyuan-dit", "hunyuan-video", "qwen-image"])
def test_a_mask_leaves_out_text(name: str) -> None:
    spec = small(name)
    alone, whole = (step_alone(spec, inputs_for(name, masked=n)) for n in (3, 0))
    assert float((alone - whole)[:, -1].abs().max()) > 100 * EXACT
    assert torch.equal(alone[:, 0], whole[:, 0])


def test_long_skips_reach_the_second_half() -> None:
    spec, inputs = small("hunyuan-dit"), inputs_for("hunyuan-dit")
    model = small_model(spec)
    alone = torch.stack(outputs_of(model, spec, inputs))
    model.blocks[-1].skip_linear.weight.data[:, 80:] = 0
    assert float((torch.stack(outputs_of(model, spec, inputs)) - alone).abs().max()) > 100 * EXACT


def test_a_step_after_a_refused_one_has_both_passes(ranks: RankPool) -> None:
    spec, inputs = small("wan"), inputs_for("wan")
    alone, plan = step_alone(spec, inputs), plan_for(spec, Mesh(cfg=2, ulysses=2), workload())
    results = ranks.run(outputs_after_a_refusal, spec, plan, inputs, timeout_s=600)
    assert all("one pass a step" in said for said, _ in results)
    assert furthest(alone, [found for _, found in results]) <= EXACT


@pytest.mark.parametrize("row", [0, 2])
def test_convolutions_reach_the_rows_beside(row: int) -> None:
    spec, inputs = small("sana"), inputs_for("sana")
    model = small_model(spec)
    alone = torch.stack(outputs_of(model, spec, inputs))
    for block in model.transformer_blocks:
        block.ff.conv_depth.weight.data[:, :, row] = 0
    assert float((torch.stack(outputs_of(model, spec, inputs)) - alone).abs().max()) > 100 * EXACT


def test_fewer_rows_than_ranks_is_an_error_that_says_the_limit(ranks: RankPool) -> None:
    spec, plan = small("sana"), plan_for(small("sana"), Mesh(ring=4), workload())
    flat = inputs_for("sana")[0]
    flat["hidden_states"] = flat["hidden_states"][:, :, :6]
    with pytest.raises(InputError, match=r"3 image rows of 9 tokens can't be split .* at most 3"):
        ranks.run(step_outputs, spec, [plan], [flat], timeout_s=600)


@pytest.mark.parametrize("name", ["wan", "qwen-image"])
def test_a_step_without_the_second_pass_is_refused_where_cfg_splits_calls(
    ranks: RankPool, name: str
) -> None:
    spec, inputs = small(name), inputs_for(name)[:1]
    plan = plan_for(spec, Mesh(cfg=2, ulysses=2), workload())
    with pytest.raises(InputError, match=r"one pass a step; give it a negative prompt .* cfg 1"):
        ranks.run(step_outputs, spec, [plan], inputs, timeout_s=600)


def test_a_step_cache_is_refused_where_ranks_would_wait_for_each_other(ranks: RankPool) -> None:
    spec, inputs = small("cogvideox"), inputs_for("cogvideox")
    plan = plan_for(spec, Mesh(ring=2, ulysses=2), workload())
    with pytest.raises(InputError, match=r"step cache enabled.*disable_cache\(\)"):
        ranks.run(outputs_with_step_cache, spec, plan, inputs, timeout_s=600)


@pytest.mark.parametrize("name", ["hunyuan-dit", "hunyuan-video", "qwen-image", "sana", "z-image"])
def test_a_familys_blocks_are_measured_as_on_one_of_two_ranks(name: str) -> None:
    spec = small(name)
    embedded = family_of(spec.transformer_class).guidance == "embedded"
    work = workload(passes=1 if embedded else 2, frames=9 if name in VIDEOS else 1)
    requests = wanted_points(spec, work, [Mesh(ulysses=2)], ("eager",))
    with torch.no_grad():
        points = measure_blocks(torch.device("cpu"), spec, "float32", requests)
    kinds = {run.kind for run in spec.blocks}
    assert {point.part for point in points} == kinds | {"outside"}


def test_families_are_short_and_their_names_are_their_files() -> None:
    for path in sorted(FAMILIES.glob("*.toml")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path
    assert {family.name for family in load_families().values()} == {
        path.stem for path in FAMILIES.glob("*.toml")
    }
