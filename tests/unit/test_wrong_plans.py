"""Wrong numbers of a workload or a plan are refused in the same words by every door, before any
rank is started.
"""

import json
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

import ditplan
from ditplan import cli
from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.fingerprint import Fingerprint
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.admission.fit import require_possible
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.models.loading import load_pipeline
from tests.distributed.small_models import plan_for, small_flux, small_sd3, workload

TINY = find_model("sd3-tiny")
STAGES = PipeFusion(patches=2, warmup_steps=100, blocks_per_stage=(3, 3))
EXACT = plan_for(TINY, Mesh(), workload(height=32, width=40))
STAGED = plan_for(
    TINY,
    Mesh(pipefusion=2),
    workload(height=32, width=40),
    pipefusion=STAGES.model_copy(update={"warmup_steps": 1}),
)

IN_PLANS: dict[str, tuple[ExecutionPlan, dict[str, Any], str]] = {
    "warm-up": (
        STAGED,
        {"configuration.pipefusion.warmup_steps": 100},
        "warmup_steps=100: there are 3 steps; use 1 to 3",
    ),
    "frames": (EXACT, {"workload.frames": 3}, "frames=3: sd3-tiny makes pictures; leave it out"),
    "passes": (
        EXACT,
        {"workload.passes": 3},
        "passes=3: sd3-tiny makes at most 2 passes a step; use 1 or 2",
    ),
    "no text": (
        EXACT,
        {"workload.text_tokens": 0},
        "text_tokens=0: sd3-tiny attends to a text; use 1 or more",
    ),
    "endless text": (
        EXACT,
        {"workload.text_tokens": 10**6},
        "workload.text_tokens: Input should be less than or equal to 65536",
    ),
    "fingerprint": (
        STAGED,
        {"fingerprint.devices": ["any"]},
        "the fingerprint names the devices of 1 ranks, mesh pipefusion2 has 2; name one for each",
    ),
    "steps": (
        EXACT,
        {"workload.steps": 10**9},
        "workload.steps: Input should be less than or equal to 100000",
    ),
    "pixels": (
        EXACT,
        {"workload.height": 10**15},
        "workload.height: Input should be less than or equal to 1048576",
    ),
}
"""What no reader of a plan takes, whatever is known of the model."""

OF_THE_MODEL: dict[str, tuple[dict[str, Any], str]] = {
    "height": ({"height": 129}, "height=129: sd3-tiny needs a multiple of 8; the nearest is 128"),
    "dtype": ({"dtype": "float16"}, "dtype=float16: on CPUs the dtype is float32"),
}
"""What only a model with its VAE, or devices, can tell."""


def changed(plan: ExecutionPlan, changes: dict[str, Any]) -> dict[str, Any]:
    """What the plan's file holds, with the values at these dotted places."""
    data: dict[str, Any] = json.loads(plan.model_dump_json())
    for place, value in changes.items():
        *parents, last = place.split(".")
        reduce(lambda part, name: part[name], parents, data)[last] = value
    return data


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Runs a command, which must refuse with one line; returns the line."""

    def refused(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["ditplan", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert said.err.count("\n") == 1
        return said.err

    return refused


def run_arguments(path: Path) -> tuple[str, ...]:
    """What runs a plan's file."""
    return ("run", "--plan", str(path), "--prompt", "x", "--out", "x.png")


@pytest.mark.parametrize("case", IN_PLANS)
def test_a_wrong_plan_is_refused_alike_by_load_run_and_show(
    tmp_path: Path, run: Callable[..., str], case: str
) -> None:
    plan, changes, words = IN_PLANS[case]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(changed(plan, changes)))
    with pytest.raises(InputError) as refused:
        ditplan.load(path)
    assert words in str(refused.value)
    assert words in run(*run_arguments(path))
    assert words in run("show", str(path))
    book = tmp_path / "book.json"
    entry = {"weight": 1.0, "plan": changed(plan, changes)}
    book.write_text(json.dumps({"schema_version": 2, "entries": [entry]}))
    with pytest.raises(InputError) as refused:
        ditplan.PlanBook.load(book)
    assert words.removeprefix("workload.") in str(refused.value)


@pytest.mark.parametrize("case", OF_THE_MODEL)
def test_what_the_model_or_its_devices_cannot_do_is_refused_by_run(
    tmp_path: Path, run: Callable[..., str], case: str
) -> None:
    changes, words = OF_THE_MODEL[case]
    plan = plan_for(TINY, Mesh(), EXACT.workload.model_copy(update=changes))
    # a command says its options
    typed = "--" + words.replace("=", " ", 1)
    assert typed in run(*run_arguments(plan.save(tmp_path / "plan.json")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 33}, "height=33: small-sd3 needs a multiple of 4; the nearest is 32"),
        ({"dtype": "float16"}, "dtype=float16: on CPUs the dtype is float32"),
        ({"frames": 3}, "frames=3: small-sd3 makes pictures; leave it out"),
        ({"passes": 3}, "passes=3: small-sd3 makes at most 2 passes a step; use 1 or 2"),
        ({"text_tokens": 0}, "text_tokens=0: small-sd3 attends to a text; use 1 or more"),
    ],
)
def test_parallelize_refuses_a_workload_that_the_pipeline_cannot_do(
    changes: dict[str, Any], words: str
) -> None:
    spec = small_sd3()
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    context = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    plan = plan_for(spec, Mesh(), workload())
    require_possible(pipeline, plan, context)
    # a copy isn't checked when it is made
    wrong = plan.model_copy(update={"workload": plan.workload.model_copy(update=changes)})
    with pytest.raises(InputError) as refused:
        require_possible(pipeline, wrong, context)
    assert str(refused.value) == words


def test_parallelize_refuses_what_a_copied_plan_has_wrong() -> None:
    spec = small_flux()
    pipeline = load_pipeline(spec, None, torch.device("cpu"), "float32")
    context = RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1))
    plan = plan_for(spec, Mesh(), workload(passes=1))
    fingerprint = Fingerprint(cluster="any", devices=("a", "b"), link_kinds=(), software={})
    for changes, words in (
        ({"workload": workload(passes=2)}, "passes=2: small-flux makes one pass a step"),
        ({"fingerprint": fingerprint}, "names the devices of 2 ranks"),
    ):
        with pytest.raises(InputError, match=words):
            require_possible(pipeline, plan.model_copy(update=changes), context)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--warmup", "100", "--steps", "3"), "--warmup 100: there are 3 steps; use 1 to 3"),
        (("--frames", "3"), "--frames 3: sd3-tiny makes pictures; leave it out"),
        (("--height", "129"), "--height 129: sd3-tiny needs a multiple of 8; the nearest is 128"),
        (("--dtype", "float16"), "--dtype float16: on CPUs the dtype is float32"),
        (("--steps", str(10**9)), "less than or equal to 100000"),
        (("--steps", str(10**15)), "less than or equal to 100000"),
        (("--height", str(10**15)), "less than or equal to 1048576"),
        (("--batch", str(10**15)), "less than or equal to 65536"),
    ],
)
@pytest.mark.parametrize("door", ["tune", "simulate"])
def test_tune_and_simulate_refuse_the_same_numbers(
    tmp_path: Path, run: Callable[..., str], door: str, asked: tuple[str, ...], words: str
) -> None:
    from tests.unit.planner_factories import a_cluster, a_device

    a_cluster(device=a_device(kind="cpu")).save(tmp_path / "cpus.json")
    stages = ("--pipefusion", "2") if "--warmup" in asked else ()
    assert words in run(door, "--model", "sd3-tiny", "--cluster", "cpus.json", *asked, *stages)


def test_guidance_that_the_model_lacks_is_refused(run: Callable[..., str]) -> None:
    words = "flux-dev makes one pass a step with or without guidance"
    for door in ("tune", "simulate"):
        arguments = ("--model", "flux-dev", "--cluster", "2xh100-nvlink", "--guidance")
        assert words in run(door, *arguments)
