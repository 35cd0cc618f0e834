"""Wrong configurations that an engine's own classes accept, and that are refused here before
anything is launched: `make engines-test`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ditplan
from ditplan.exporting.export import export
from ditplan.planner.space.enumerate import evenly_staged
from ditplan.profiles.catalog import find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from tests.engines.source_classes import (
    accept_cache_dit,
    accept_diffusers,
    accept_sglang,
    accept_vllm_omni,
    accept_xdit,
)

ENGINES: Mapping[str, Callable[..., Any]] = {
    "xdit": accept_xdit,
    "sglang": accept_sglang,
    "vllm-omni": accept_vllm_omni,
    "cache-dit": accept_cache_dit,
    "diffusers": accept_diffusers,
}
CLUSTER = "8xa100-nvlink"
LEAST_WRONG = 20

pytestmark = pytest.mark.engines


@dataclass(frozen=True)
class Wrong:
    """A configuration in an engine's `words`, the same in `ours`, and part of what is `said`."""

    engine: str
    what: str
    words: Mapping[str, Any]
    ours: Mapping[str, Any]
    said: str
    model: str = "flux-dev"
    stages: tuple[int, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.engine}: {self.what}"


TABLE = [
    Wrong("xdit", "heads that don't divide", {"world": 5, "ulysses": 5}, {"ulysses": 5}, "use 4"),
    Wrong(
        "xdit",
        "guidance shared out where there is one pass",
        {"world": 2, "cfg": True},
        {"cfg": 2},
        "cfg is 2, but flux-dev has 1",
    ),
    Wrong(
        "xdit",
        "more warm-up steps than steps",
        {"world": 2, "stages": 2, "warmup_steps": 50},
        {"pipefusion": 2, "warmup_steps": 50},
        "28 steps",
    ),
    Wrong(
        "xdit",
        "less than no warm-up",
        {"world": 2, "stages": 2, "warmup_steps": -1},
        {"pipefusion": 2, "warmup_steps": -1},
        "warmup_steps=-1",
    ),
    Wrong(
        "xdit",
        "no patches",
        {"world": 2, "stages": 2, "patches": 0},
        {"pipefusion": 2, "patches": 0},
        "patches=0",
    ),
    Wrong(
        "xdit",
        "more patches than tokens",
        {"world": 2, "stages": 2, "patches": 100_000},
        {"pipefusion": 2, "patches": 100_000},
        "use fewer patches",
    ),
    Wrong(
        "xdit",
        "a stage of no blocks",
        {"world": 2, "stages": 2, "division": [0, 57]},
        {"pipefusion": 2},
        "greater than 0",
        stages=(0, 57),
    ),
    Wrong(
        "xdit",
        "stages of fewer blocks than the model has",
        {"world": 2, "stages": 2, "division": [1, 1]},
        {"pipefusion": 2},
        "1 + 1 blocks, and flux-dev has 57",
        stages=(1, 1),
    ),
    Wrong(
        "xdit",
        "more stages than blocks",
        {"world": 100, "stages": 100},
        {"pipefusion": 100},
        "pipefusion is 100, but flux-dev has 57 blocks",
    ),
    Wrong(
        "xdit",
        "a batch shared out that isn't there",
        {"world": 2, "dp": 2},
        {"dp": 2},
        "dp is 2, but flux-dev has 1 pictures",
    ),
    Wrong(
        "sglang",
        "a product below the number of GPUs",
        {"num_gpus": 8, "sp_degree": 2, "ulysses_degree": 2},
        {"gpus": 8, "ulysses": 2},
        "must multiply to 8",
    ),
    Wrong(
        "sglang",
        "heads that don't divide",
        {"num_gpus": 5, "sp_degree": 5, "ulysses_degree": 5},
        {"ulysses": 5},
        "use 4",
    ),
    Wrong(
        "sglang",
        "guidance shared out where there is one pass",
        {"num_gpus": 2, "cfg_parallel_degree": 2, "guided": False},
        {"cfg": 2},
        "cfg is 2, but flux-dev has 1",
    ),
    Wrong(
        "sglang",
        "more ranks for guidance than passes",
        {"num_gpus": 4, "cfg_parallel_degree": 4},
        {"cfg": 4},
        "cfg is 4, but qwen-image has 2",
        "qwen-image",
    ),
    Wrong(
        "sglang",
        "degrees below zero",
        {"num_gpus": 4, "sp_degree": -4, "ring_degree": -2, "ulysses_degree": 2},
        {"ring": -2, "ulysses": 2},
        "ring=-2",
    ),
    Wrong(
        "sglang",
        "a sequence split that the model doesn't have: each rank computes all of it",
        {"num_gpus": 4, "sp_degree": 4, "ulysses_degree": 4},
        {"ulysses": 4},
        "sd3 can't run with ulysses on backend sglang",
        "sd3",
    ),
    Wrong(
        "vllm-omni",
        "a sequence split that the model doesn't have: it warns and splits nothing",
        {"num_gpus": 2, "ulysses_degree": 2},
        {"ulysses": 2},
        "flux-dev can't run with ulysses on backend vllm-omni",
    ),
    Wrong(
        "vllm-omni",
        "GPUs that no degree names: they become copies",
        {"num_gpus": 8, "ulysses_degree": 2},
        {"gpus": 8, "ulysses": 2},
        "must multiply to 8",
        "qwen-image",
    ),
    Wrong(
        "vllm-omni",
        "more ranks for guidance than passes",
        {"num_gpus": 5, "cfg_parallel_size": 5},
        {"cfg": 5},
        "cfg is 5, but qwen-image has 2",
        "qwen-image",
    ),
    Wrong(
        "vllm-omni",
        "guidance shared out where there is one pass",
        {"num_gpus": 2, "cfg_parallel_size": 2},
        {"cfg": 2},
        "cfg is 2, but flux2-dev has 1",
        "flux2-dev",
    ),
    Wrong(
        "vllm-omni",
        "stages",
        {"num_gpus": 7, "pipeline_parallel_size": 7},
        {"pipefusion": 7},
        "backend vllm-omni can't run pipefusion7",
        "qwen-image",
    ),
    Wrong("cache-dit", "half a rank", {"ulysses_size": 2.5}, {"ulysses": 2.5}, "ulysses=2.5"),
    Wrong(
        "cache-dit",
        "degrees below zero",
        {"ulysses_size": -3, "ring_size": 2},
        {"ulysses": -3, "ring": 2},
        "ulysses=-3",
    ),
    Wrong(
        "cache-dit",
        "more ranks than there are",
        {"ulysses_size": 24},
        {"ulysses": 24},
        "needs 24 GPUs",
    ),
    Wrong(
        "cache-dit",
        "a ring of unequal pieces",
        {"ring_size": 3},
        {"ring": 3},
        "equally where there is a ring",
    ),
    Wrong(
        "cache-dit",
        "more heads added than a rank has",
        {"ulysses_size": 7, "ulysses_anything": True},
        {"ulysses": 7},
        "pads 24 heads by 4",
    ),
    Wrong("diffusers", "half a rank", {"ulysses_degree": 2.5}, {"ulysses": 2.5}, "ulysses=2.5"),
    Wrong(
        "diffusers",
        "heads that don't divide beside a ring",
        {"ring_degree": 2, "ulysses_degree": 5},
        {"ring": 2, "ulysses": 5},
        "heads by ulysses equally alone",
    ),
    Wrong(
        "diffusers",
        "tokens that don't divide beside a ring",
        {"ring_degree": 2, "ulysses_degree": 3},
        {"ring": 2, "ulysses": 3},
        "equally alone",
    ),
    Wrong(
        "diffusers",
        "more heads added than a rank has",
        {"ulysses_degree": 7, "ulysses_anything": True},
        {"ulysses": 7},
        "pads 24 heads by 4",
    ),
    Wrong(
        "diffusers",
        "a ring whose kernel gives no log-sum-exp",
        {"ring_degree": 2},
        {"ring": 2, "dtype": "float32"},
        "log-sum-exp",
    ),
]


def refuse(wrong: Wrong) -> None:
    """Asks for what is wrong as a user does: by degrees, or by a plan's file."""
    if not wrong.stages:
        ditplan.simulate(wrong.model, CLUSTER, backend=wrong.engine, **wrong.ours)
        return
    spec, mesh = find_model(wrong.model), Mesh(pipefusion=len(wrong.stages))
    part = evenly_staged(mesh, spec, 2, 1, "linear")
    plan = bare_plan(PlannedModel.of_spec(spec), spec.defaults, mesh, pipefusion=part)
    content = plan.model_dump(mode="json")
    content["configuration"]["pipefusion"]["blocks_per_stage"] = wrong.stages
    export(ExecutionPlan.from_json(json.dumps(content), "plan.json"), wrong.engine, "plan.json")


@pytest.mark.parametrize("wrong", TABLE, ids=str)
def test_what_is_wrong_is_accepted_by_the_engine_and_refused_here(wrong: Wrong) -> None:
    assert ENGINES[wrong.engine](**wrong.words) is not None
    with pytest.raises(InputError) as caught:
        refuse(wrong)
    assert wrong.said in str(caught.value)


def test_each_engine_forgets_something_and_they_forget_enough() -> None:
    assert {wrong.engine for wrong in TABLE} == {*ENGINES}
    assert len({str(wrong) for wrong in TABLE}) == len(TABLE) >= LEAST_WRONG


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("gpus", range(1, 17))
def test_sglang_takes_what_is_priced_as_its_own_choice(gpus: int, *, guided: bool) -> None:
    from ditplan.backends.sglang import choice

    spec = find_model("qwen-image" if guided else "flux-dev")
    own = accept_sglang(num_gpus=gpus, guided=guided)
    gathered = own.kv_gather_degree
    ring, ulysses = (gathered, 1) if gathered > 1 else (own.ring_degree, own.ulysses_degree)
    taken = Mesh(cfg=own.cfg_parallel_degree, ring=ring, ulysses=ulysses)
    assert choice(spec, spec.defaults, gpus) == taken


def test_the_docs_have_a_row_for_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    assert all(f"| {wrong.engine} | {wrong.what} |" in page for wrong in TABLE)
