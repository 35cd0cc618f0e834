"""Plans in the words of launchers and engines."""

import ast
import inspect
import json
import subprocess
from pathlib import Path
from typing import Any

import diffusers
import pytest
from typer.testing import CliRunner

from ditplan.cli import app
from ditplan.exporting.export import export, targets
from ditplan.planner.search.search import search
from ditplan.planner.task import Task
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.errors import InputError
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from tests.unit.json_page import documented

# no engine reads a deploy file for the model of these tests
TARGETS = tuple(to for to in targets() if to not in ("dry-run", "vllm-omni-deploy"))
SHELL = ("torchrun", "mpirun", "slurm", "xdit", "sglang", "vllm-omni")
STAGES = PipeFusion(blocks_per_stage=(10, 9, 19, 19), patches=8, warmup_steps=2)


def planned(mesh: Mesh, model: str = "flux-dev", **parts: Any) -> ExecutionPlan:
    """A plan of a model's usual work, without evidence."""
    spec = find_model(model)
    return bare_plan(PlannedModel.of_spec(spec), spec.defaults, mesh, **parts)


def located(plan: ExecutionPlan, *places: tuple[str, int]) -> ExecutionPlan:
    """The plan with its ranks on these devices of these hosts."""
    locations = [
        {"rank": rank, "host": host, "device": device} for rank, (host, device) in enumerate(places)
    ]
    return ExecutionPlan.model_validate({**plan.model_dump(), "locations": locations})


def refused(plan: ExecutionPlan, to: str) -> str:
    """What is said of a plan that can't be exported."""
    with pytest.raises(InputError) as caught:
        export(plan, to, "plan.json")
    return str(caught.value)


def flags_of(text: str) -> dict[str, str]:
    """The flags of an exported command and their values."""
    lines = [line.strip().removesuffix(" \\") for line in text.splitlines()]
    return dict(line.partition(" ")[::2] for line in lines if line.startswith("--"))


@pytest.mark.parametrize("to", SHELL)
def test_what_is_exported_as_a_shell_script_is_one(to: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    plan = planned(Mesh(ring=2, ulysses=2), "qwen-image")
    plan = located(plan, ("a", 1), ("a", 3), ("b", 0), ("b", 1))
    script.write_text(export(plan, to, "plan.json").text)
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("to", TARGETS)
def test_the_evidence_stands_above(to: str) -> None:
    spec = find_model("flux-dev")
    # vLLM-Omni splits no sequence of this model
    gpus = 1 if to == "vllm-omni" else None
    task = Task(spec, spec.defaults, find_cluster("8xa100-nvlink"), gpus=gpus)
    plan = search(task).to_plan()
    assert plan.prediction
    if plan.mesh.pipefusion > 1 or plan.mesh.cfg > 1:
        pytest.fail("this model's best plan was one that all engines have")
    text = export(plan, to, "plan.json").text
    notes = [line for line in text.splitlines() if line.startswith("# ")]
    said = "\n".join(notes)
    assert f"Predicted: {plan.prediction.latency_s:.4g} s" in said
    assert "Second best: " in said
    assert "Not measured" in said
    assert f"flux-dev: {plan.workload}" in said


def test_all_degrees_reach_engines_that_have_them() -> None:
    mesh = Mesh(dp=2, cfg=2, pipefusion=4, ring=2, ulysses=2)
    spec = find_model("sd3")
    work = spec.defaults.model_copy(update={"batch": 2})
    stages = PipeFusion(blocks_per_stage=(6, 6, 6, 6), patches=4, warmup_steps=2)
    plan = bare_plan(PlannedModel.of_spec(spec), work, mesh, pipefusion=stages, mode="compile")
    flags = flags_of(export(plan, "xdit", "plan.json").text)
    assert flags | {"--model": ""} == {
        "--model": "",
        "--data_parallel_degree": "2",
        "--ulysses_degree": "2",
        "--ring_degree": "2",
        "--pipefusion_parallel_degree": "4",
        "--use_cfg_parallel": "",
        "--num_pipeline_patch": "4",
        "--warmup_steps": "2",
        "--attn_layer_num_for_pp": "6 6 6 6",
        "--use_torch_compile": "",
        "--height": "1024",
        "--width": "1024",
        "--num_inference_steps": str(work.steps),
        "--guidance_scale": str(spec.guidance_scale),
    }


@pytest.mark.parametrize("to", ["sglang", "vllm-omni"])
def test_servers_get_every_degree_even_where_it_is_their_default(to: str) -> None:
    plan = planned(Mesh(cfg=2, ulysses=2), "qwen-image")
    flags = flags_of(export(plan, to, "plan.json").text)
    assert flags["--num-gpus"] == "4"
    assert (flags["--ulysses-degree"], flags["--ring-degree"]) == ("2", "1")
    assert flags["--cfg-parallel-size"] == "2"


@pytest.mark.parametrize(
    ("mesh", "parts", "to", "words"),
    [
        (Mesh(cfg=2), {}, "diffusers", "diffusers has no cfg"),
        (Mesh(dp=2), {}, "cache-dit", "cache-dit has no dp"),
        (Mesh(pipefusion=4), {"pipefusion": STAGES}, "sglang", "SGLang has no pipefusion"),
        (Mesh(pipefusion=4), {"pipefusion": STAGES}, "vllm-omni", "has no pipefusion"),
        (Mesh(cfg=3), {}, "xdit", "shares guidance out to 2 ranks"),
        (Mesh(ulysses=5), {}, "sglang", "divides the 24 heads of flux-dev"),
        (Mesh(ulysses=5), {}, "xdit", "divides the 24 heads of flux-dev"),
        (Mesh(ulysses=2), {}, "vllm-omni", "can't run with ulysses on backend vllm-omni"),
        (Mesh(ring=2, ulysses=5), {}, "diffusers", "divides heads by ulysses equally alone"),
        (Mesh(ring=5), {}, "cache-dit", "equally where there is a ring"),
    ],
)
def test_a_mesh_that_an_engine_does_not_have_is_refused(
    mesh: Mesh, parts: dict[str, Any], to: str, words: str
) -> None:
    message = refused(planned(mesh, **parts), to)
    assert words in message
    assert "`ditplan tune`" in message


@pytest.mark.parametrize(
    ("to", "flag"), [("sglang", "--kv-gather-degree"), ("vllm-omni", "--allgather-degree")]
)
def test_a_ring_that_gathers_its_keys_is_said_as_such(to: str, flag: str) -> None:
    found = export(planned(Mesh(cfg=2, ring=2), "qwen-image", ring="gather"), to, "plan.json")
    flags = flags_of(found.text)
    assert (flags[flag], flags["--ring-degree"], flags["--ulysses-degree"]) == ("2", "1", "1")
    assert not any("ring variant" in left for left in found.not_expressed)
    passing = export(planned(Mesh(cfg=2, ring=2), "qwen-image"), to, "plan.json")
    assert flags_of(passing.text)["--ring-degree"] == "2"
    assert flag not in flags_of(passing.text)
    # beside ulysses neither has it
    both = export(planned(Mesh(ring=2, ulysses=2), "qwen-image", ring="gather"), to, "plan.json")
    assert flag not in flags_of(both.text)
    assert any("ring variant" in left for left in both.not_expressed)


def test_uneven_heads_are_said_to_the_engine_that_has_them() -> None:
    plan = planned(Mesh(ulysses=5), "qwen-image")
    flags = flags_of(export(plan, "vllm-omni", "plan.json").text)
    assert flags["--ulysses-mode"] == "advanced_uaa"
    for to, words in (
        ("diffusers", "ulysses_degree=5, ulysses_anything=True"),
        ("cache-dit", "ulysses_size=5, ulysses_anything=True"),
    ):
        assert words in export(plan, to, "plan.json").text
        even = planned(Mesh(ulysses=4), "qwen-image")
        assert "anything" not in export(even, to, "plan.json").text


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"mode": "compile+graph"}, "mode compile+graph: SGLang runs compile instead"),
        ({"mode": "graph"}, "mode graph: SGLang runs eager instead"),
        ({"order": ("dp", "cfg", "pipefusion", "ulysses", "ring")}, "the order ulysses > ring"),
        ({"placement": (3, 1, 2, 0)}, "the placement (3, 1, 2, 0)"),
        ({"token_shares": (3, 2, 1, 1)}, "shares tokens out equally"),
        ({"step_cache": TaylorSeer(interval=2)}, "every step is computed"),
        ({"ring": "bidirectional"}, "ring variant bidirectional"),
        ({"attention": "flash-attn-3"}, "attention kernel flash-attn-3"),
    ],
)
def test_what_an_engine_can_not_do_is_said(parts: dict[str, Any], words: str) -> None:
    found = export(planned(Mesh(ring=2, ulysses=2), **parts), "sglang", "plan.json")
    assert any(words in one for one in found.not_expressed)
    assert f"# Not expressed: {found.not_expressed[0]}"[:100] in found.text


def test_weights_in_pieces_are_said_where_an_engine_has_them_and_named_where_not() -> None:
    plan = planned(Mesh(ulysses=4), weights="sharded")
    assert "--use-fsdp-inference" in flags_of(export(plan, "sglang", "plan.json").text)
    left = export(plan, "diffusers", "plan.json").not_expressed
    assert any("weights in pieces" in one for one in left)


def test_the_script_for_diffusers_calls_what_diffusers_has() -> None:
    text = export(planned(Mesh(ring=2, ulysses=2)), "diffusers", "plan.json").text
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    config = next(call for call in calls if ast.unparse(call.func) == "ContextParallelConfig")
    given = {word.arg: ast.literal_eval(word.value) for word in config.keywords if word.arg}
    made: Any = diffusers.ContextParallelConfig(**given)
    assert (made.ring_degree, made.ulysses_degree) == (2, 2)
    assert hasattr(diffusers, "FluxPipeline")
    names = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
    assert {"enable_parallelism", "from_pretrained"} <= names
    assert hasattr(diffusers.FluxTransformer2DModel, "enable_parallelism")
    assert hasattr(diffusers.FluxTransformer2DModel, "compile_repeated_blocks")


@pytest.mark.parametrize("to", ["diffusers", "cache-dit"])
@pytest.mark.parametrize("model", ["flux-dev", "wan2.1-1.3b"])
def test_scripts_are_python(to: str, model: str) -> None:
    spec = find_model(model)
    work = spec.defaults.model_copy(update={"passes": 1})
    plan = bare_plan(PlannedModel.of_spec(spec), work, Mesh(ulysses=2), mode="compile")
    text = export(plan, to, "plan.json").text
    ast.parse(text)
    assert "compile_repeated_blocks" in text
    assert ("num_frames" in text) == (work.frames > 1)


def test_a_host_that_could_be_anything_to_a_shell_is_refused() -> None:
    plan = located(planned(Mesh(ulysses=2)), ("$(touch x)", 0), ("$(touch x)", 1))
    for to in ("torchrun", "mpirun", "slurm", "kubernetes"):
        assert "is not a host's name" in refused(plan, to)


def test_a_pipeline_that_could_be_anything_to_python_is_refused() -> None:
    plan = planned(Mesh(ulysses=2))
    model = plan.model.model_copy(update={"pipeline_class": "X\nimport os"})
    message = refused(plan.model_copy(update={"model": model}), "diffusers")
    assert "it must be the name of a class of diffusers" in message


def test_a_name_of_several_lines_stays_in_the_comment() -> None:
    plan = planned(Mesh(ulysses=2))
    model = plan.model.model_copy(update={"name": "x\ntouch y"})
    text = export(plan.model_copy(update={"model": model}), "torchrun", "plan\n.json").text
    assert not [line for line in text.splitlines() if line.startswith(("touch", ".json"))]


def test_each_host_is_shown_the_devices_of_the_plan() -> None:
    plan = located(planned(Mesh(ulysses=4)), ("a.b", 2), ("a.b", 5), ("c", 0), ("c", 1))
    text = export(plan, "torchrun", "plan.json").text
    assert "a) export CUDA_VISIBLE_DEVICES=2,5 ;;" in text
    assert "--nnodes=2" in text
    assert "--nproc-per-node=2" in text
    one = export(located(planned(Mesh(ulysses=2)), ("a", 0), ("a", 1)), "torchrun", "p").text
    assert "CUDA_VISIBLE_DEVICES" not in one
    assert "--standalone" in one


def test_unlike_hosts_are_for_mpirun_alone() -> None:
    plan = located(planned(Mesh(ulysses=3)), ("a", 0), ("a", 1), ("b", 0))
    assert "--host a:2,b:1" in export(plan, "mpirun", "plan.json").text
    for to in ("torchrun", "slurm", "kubernetes"):
        assert "the plan has a: 2, b: 1" in refused(plan, to)


def test_the_command_prints_the_text_and_says_the_rest_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    planned(Mesh(ulysses=2), mode="graph").save(path)
    words = ["export", "--plan", str(path), "--to", "sglang"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("#!/usr/bin/env bash\n")
    assert "not expressed: mode graph" in shown.stderr
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found.keys() == documented("export")
    assert found["to"] == "sglang"
    assert found["text"].rstrip() == shown.stdout.rstrip()
    assert found["not_expressed"]


def call_in(text: str) -> dict[str, Any]:
    """The arguments of a script's call of the pipeline that are written out."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    call = next(one for one in calls if ast.unparse(one.func) == "pipe")
    written = (word for word in call.keywords if isinstance(word.value, ast.Constant))
    return {str(word.arg): ast.literal_eval(word.value) for word in written}


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        ("flux-dev", 1),
        *((model, passes) for model in ("sd3", "qwen-image", "wan2.1-1.3b") for passes in (1, 2)),
    ],
)
def test_a_script_asks_for_as_many_passes_as_the_plan(model: str, passes: int) -> None:
    spec = find_model(model)
    work = spec.defaults.model_copy(update={"passes": passes})
    # diffusers has no `_cp_plan` of SD3
    mesh = Mesh() if model == "sd3" else Mesh(ulysses=2)
    plan = bare_plan(PlannedModel.of_spec(spec), work, mesh)
    given = call_in(export(plan, "diffusers", "plan.json").text)
    guided = passes > 1 or model == "flux-dev"
    scale = given["true_cfg_scale" if model == "qwen-image" else "guidance_scale"]
    assert scale == (spec.guidance_scale if guided else 1.0)
    assert ("negative_prompt" in given) == (passes > 1)
    accepted = inspect.signature(getattr(diffusers, spec.pipeline_class).__call__).parameters
    assert given.keys() <= accepted.keys()


def test_the_scale_of_a_model_nobody_knows_is_left_to_its_owner() -> None:
    plan = planned(Mesh(ulysses=2), "sd3")
    model = plan.model.model_copy(update={"name": "mine"})
    found = export(plan.model_copy(update={"model": model}), "diffusers", "plan.json")
    assert "guidance_scale" not in call_in(found.text)
    assert found.not_expressed == ("the guidance scale of mine: give the one that you use",)
