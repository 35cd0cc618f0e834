"""What somebody runs now: read strictly, as the engine itself would take it."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ditplan.cli import app
from ditplan.exporting.engine_words import EngineWords
from ditplan.exporting.export import export
from ditplan.importing.comparison import Comparison, import_config
from ditplan.importing.present import ENGINES, Present, Surroundings, present_of
from ditplan.importing.read import read_text_or_file
from ditplan.importing.understood import understand
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.errors import InputError
from ditplan.profiles.hub_ids import HUB_IDS, shipped_as
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from tests.unit.json_page import documented

LEAST_PLANS = 25
CLUSTER = "8xa100-nvlink"
FLUX = "--model black-forest-labs/FLUX.1-dev"


def read(text: str, engine: str, ranks: int | None = None, guides: bool | None = True) -> Present:
    """What an engine makes of a text or a file."""
    written = read_text_or_file(text, engine)
    said = understand(written, ENGINES[engine].words)
    return present_of(ENGINES[engine], said, Surroundings(written.ranks or ranks, guides))


def compared(text: str, engine: str, **asked: Any) -> Comparison:
    """What is said of it on eight A100."""
    return import_config(text, engine, lambda: find_cluster(CLUSTER), **asked)


def refused(text: str, engine: str, **asked: Any) -> str:
    """Why a configuration isn't taken."""
    with pytest.raises(InputError) as caught:
        compared(text, engine, **asked)
    return str(caught.value)


def plans(engine: str) -> list[ExecutionPlan]:
    """Plans that an engine has words for."""
    axes = ENGINES[engine].engine.axes
    found = []
    for name, cfg, ring, ulysses, dp, stages, mode in product(
        ("sd3", "flux-dev", "qwen-image"),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4),
        (1, 2),
        (1, 2),
        ("eager", "compile"),
    ):
        mesh = Mesh(dp=dp, cfg=cfg, pipefusion=stages, ring=ring, ulysses=ulysses)
        if any(getattr(mesh, axis) > 1 and axis not in axes for axis in Mesh.model_fields):
            continue
        spec = find_model(name)
        blocks = (spec.block_count - 5, 5)
        part = (
            PipeFusion(blocks_per_stage=blocks, patches=3, warmup_steps=2) if stages > 1 else None
        )
        planned, work = PlannedModel.of_spec(spec), spec.defaults
        found.append(bare_plan(planned, work, mesh, pipefusion=part, mode=mode))
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_exported_is_read_again(engine: str, tmp_path: Path) -> None:
    suffix = "sh" if ENGINES[engine].has_flags else "py"
    read_again = 0
    for number, plan in enumerate(plans(engine)):
        path = tmp_path / f"{number}.{suffix}"
        try:
            path.write_text(export(plan, engine, "plan.json").text)
        except InputError:
            # it splits no sequence of this model, or not so
            continue
        found, one = read(str(path), engine), plan.configuration
        assert (found.mesh, found.mode) == (one.mesh, one.mode)
        if one.pipefusion:
            part = one.pipefusion
            assert found.blocks_per_stage == part.blocks_per_stage
            assert (found.patches, found.warmup_steps) == (part.patches, part.warmup_steps)
        read_again += 1
    assert read_again >= LEAST_PLANS


@pytest.mark.parametrize(
    ("to", "engine", "model"),
    [("sglang-config", "sglang", "flux-dev"), ("vllm-omni-deploy", "vllm-omni", "wan2.1-14b")],
)
def test_exported_files_are_read_again(to: str, engine: str, model: str, tmp_path: Path) -> None:
    spec, count = find_model(model), 0
    for cfg, ring, ulysses in product(range(1, spec.defaults.passes + 1), (1, 2, 4), (1, 2, 4)):
        for mode in ("eager", "compile"):
            mesh = Mesh(cfg=cfg, ring=ring, ulysses=ulysses)
            plan = bare_plan(PlannedModel.of_spec(spec), spec.defaults, mesh, mode=mode)
            try:
                text = export(plan, to, "plan.json").text
            except InputError:
                continue
            found = read(written(tmp_path, "c.yaml", text), engine)
            assert (found.mesh, found.mode) == (mesh, mode)
            count += 1
    assert count >= 10


def test_a_deploy_file_that_vllm_omni_starts_without_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "c.yaml", "stages:\n- stage_id: 0\n  ulysses_degree: 4\n")
    message = refused(f"vllm serve Qwen/Qwen-Image --omni --deploy-config {path}", "vllm-omni")
    assert "without reading a deploy file" in message
    found = compared(path, "vllm-omni", model="wan2.1-14b")
    assert found.present.configuration.mesh == Mesh(ulysses=4)
    spec = find_model("qwen-image")
    plan = bare_plan(PlannedModel.of_spec(spec), spec.defaults, Mesh(ulysses=4))
    with pytest.raises(InputError, match="without reading a deploy file"):
        export(plan, "vllm-omni-deploy", "plan.json")


@pytest.mark.parametrize(
    ("engine", "text", "mesh"),
    [
        ("xdit", "--ulysses_degree 2 --ring-degree=4", Mesh(ulysses=2, ring=4)),
        ("xdit", "--use_cfg_parallel --pipefusion_parallel_degree 4", Mesh(cfg=2, pipefusion=4)),
        ("sglang", "--num-gpus 8", Mesh(cfg=2, ulysses=4)),
        ("sglang", "--num-gpus 8 --enable-cfg-parallel false", Mesh(ulysses=8)),
        ("sglang", "--num-gpus 4 --cfg-parallel-size 2", Mesh(cfg=2, ring=2)),
        ("sglang", "--num-gpus 8 --dp-size 2", Mesh(dp=2, cfg=2, ring=2)),
        ("sglang", "--num-gpus 4 --ulysses-degree 4", Mesh(ulysses=4)),
        ("vllm-omni", "--num-gpus 8 --usp 2", Mesh(dp=4, ulysses=2)),
        ("vllm-omni", "--cfg-parallel-size 2 --ring 2", Mesh(cfg=2, ring=2)),
        ("cache-dit", "torchrun --nproc_per_node=4 x.py --parallel-type ulysses", Mesh(ulysses=4)),
    ],
)
def test_what_is_not_said_is_what_the_engine_chooses(engine: str, text: str, mesh: Mesh) -> None:
    assert read(text, engine).mesh == mesh


@pytest.mark.parametrize("engine", ["sglang", "vllm-omni"])
def test_a_ring_that_gathers_is_read_again(engine: str, tmp_path: Path) -> None:
    spec = find_model("qwen-image")
    planned = PlannedModel.of_spec(spec)
    plan = bare_plan(planned, spec.defaults, Mesh(cfg=2, ring=4), ring="gather")
    path = tmp_path / "job.sh"
    path.write_text(export(plan, engine, "plan.json").text)
    found = read(str(path), engine)
    assert (found.mesh, found.gathers) == (plan.mesh, True)


def test_sglang_splits_guidance_for_models_that_use_it() -> None:
    assert read("--num-gpus 8", "sglang", guides=False).mesh == Mesh(ulysses=8)
    assert read("--num-gpus 2", "sglang", guides=False).gathers


@pytest.mark.parametrize(
    ("engine", "text", "words"),
    [
        ("xdit", f"torchrun --nproc_per_node=8 x.py {FLUX} --ulysses_degree 4", "8 are started"),
        ("xdit", f"x.py {FLUX} --ulysses_degre 4", "Did you mean ulysses_degree?"),
        ("xdit", f"x.py {FLUX} --ulysses_degree four", "a whole number from 1 to 65536"),
        ("xdit", f"x.py {FLUX} --ulysses_degree 99999", "a whole number from 1 to 65536"),
        ("xdit", f"torchrun --nproc_per_node=9999 --nnodes=9999 x.py {FLUX}", "at most 65536"),
        ("xdit", f"x.py {FLUX} --ulysses_degree 0", "a whole number from 1 to 65536"),
        ("xdit", f"x.py {FLUX} --ulysses_degree 2 --ulysses_degree 4", "said 2; leave one out"),
        ("xdit", f"x.py {FLUX} --use_cfg_parallel 2", "a switch"),
        ("xdit", f"x.py {FLUX} --tensor_parallel_degree 4", "tensor parallelism isn't priced"),
        ("xdit", f"x.py {FLUX} --use_cfg_parallel", "has 1 passes a step"),
        ("xdit", f"x.py {FLUX} --ulysses_degree 5", "doesn't divide the 24 heads of flux-dev"),
        (
            "xdit",
            f"x.py {FLUX} --pipefusion_parallel_degree 2 --attn_layer_num_for_pp 57 0",
            "xDiT accepts that",
        ),
        (
            "xdit",
            f"x.py {FLUX} --pipefusion_parallel_degree 2 --attn_layer_num_for_pp 10 10",
            "20 blocks in all, flux-dev has 57",
        ),
        (
            "xdit",
            f"x.py {FLUX} --pipefusion_parallel_degree 2 --warmup_steps 5 --num_inference_steps 1",
            "warm",
        ),
        (
            "sglang",
            f"{FLUX} --num-gpus 8 --sp-degree 4 --ulysses-degree 4",
            "SGLang accepts that, and the others do nothing",
        ),
        ("sglang", f"{FLUX} --num-gpus 8 --ulysses-degree 4", "SGLang refuses that"),
        ("sglang", f"{FLUX} --num-gpus 4 --tp-size 4", "tensor parallelism isn't priced"),
        ("sglang", "--num-gpus 4 --sp-degree 4", "which model this is for"),
        ("sglang", "--num-gpus 4 --model-path mine/own", "neither a model that is known here"),
        ("vllm-omni", f"{FLUX} --usp 3 --num-gpus 8", "don't divide 8"),
        ("vllm-omni", f"{FLUX} --sequence-parallel-size 4", "must be ulysses x ring"),
        ("cache-dit", f"{FLUX} --parallel-type ulysses", "nothing says how many"),
        (
            "cache-dit",
            f"torchrun --nproc-per-node 2 x {FLUX} --parallel tp",
            "isn't priced here",
        ),
        ("diffusers", "no_such_file.yaml", "no such file"),
        ("xdit", 'x.py --prompt "open', "close the quote"),
    ],
)
def test_what_is_wrong_is_said(engine: str, text: str, words: str) -> None:
    assert words in refused(text, engine)


def written(tmp_path: Path, name: str, text: str) -> str:
    """A file of a user's."""
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("engine", "name", "text", "mesh"),
    [
        ("sglang", "c.yaml", "num_gpus: 8\ncfg_parallel_degree: 2\n", Mesh(cfg=2, ulysses=4)),
        ("sglang", "c.json", '{"num_gpus": 4, "ulysses_degree": 4}', Mesh(ulysses=4)),
        ("xdit", "c.yml", "ulysses_degree: 4\nuse_cfg_parallel: true\n", Mesh(cfg=2, ulysses=4)),
        ("cache-dit", "c.yaml", "parallelism_config:\n  ulysses_size: 4\n", Mesh(ulysses=4)),
        (
            "vllm-omni",
            "c.yaml",
            "stages:\n- stage_id: 0\n  devices: '0,1,2,3'\n  parallel_config:\n"
            "    ulysses_degree: 2\n    cfg_parallel_size: 2\n",
            Mesh(cfg=2, ulysses=2),
        ),
        (
            "xdit",
            "run.sh",
            'set -x\nU=2\nR=2\nN=$((U*R))\nARGS="--ulysses_degree $U --ring_degree ${R}"\n'
            "# CFG=--use_cfg_parallel\n"
            "torchrun --nproc_per_node=$N ./x.py \\\n  $ARGS \\\n  $CFG\n",
            Mesh(ring=2, ulysses=2),
        ),
        (
            "diffusers",
            "job.py",
            "pipe.transformer.enable_parallelism(\n"
            "  config=ContextParallelConfig(ring_degree=2, ulysses_degree=4))\n",
            Mesh(ring=2, ulysses=4),
        ),
    ],
)
def test_files_are_read(tmp_path: Path, engine: str, name: str, text: str, mesh: Mesh) -> None:
    assert read(written(tmp_path, name, text), engine).mesh == mesh


def test_a_command_s_flags_stand_over_the_file_that_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, "c.yaml", "num_gpus: 8\nulysses_degree: 8\n")
    found = read(f"sglang serve --config {path} --num-gpus 4 --ulysses-degree 4", "sglang")
    assert found.mesh == Mesh(ulysses=4)
    with pytest.raises(InputError, match="no such file"):
        read("sglang serve --config nowhere.yaml", "sglang")


@pytest.mark.parametrize(
    ("engine", "name", "text", "words"),
    [
        ("sglang", "c.yaml", "cfg_parallel_size: 2\n", "there it is called cfg_parallel_degree"),
        ("sglang", "c.yaml", "a: 1\na: 2\n", "line 2: the key 'a' stands twice"),
        ("sglang", "c.yaml", "a: &x [1]\nb: *x\n", "an alias"),
        ("sglang", "c.yaml", "a: [1\n", "line 2"),
        ("sglang", "c.yaml", "- 1\n", "holds no fields"),
        ("sglang", "c.yaml", "num_gpus: 8.0\n", "field num_gpus: is '8.0'"),
        ("vllm-omni", "c.yaml", "stages: 3\n", "a list of stages"),
        ("vllm-omni", "c.yaml", "stages:\n- a: 1\n- b: 2\n", "0 of 2 stages"),
        ("diffusers", "job.py", "def f(:\n", "line 1: this isn't Python"),
        ("diffusers", "job.py", "x = 1\n", "neither ContextParallelConfig"),
        ("diffusers", "job.py", "ContextParallelConfig(ulysses_degree=n)", "'an expression'"),
        ("xdit", "run.sh", "echo hello\n", "no command with flags"),
    ],
)
def test_a_wrong_file_is_named_with_its_line_or_field(
    tmp_path: Path, engine: str, name: str, text: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, name, text), engine)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_what_takes_longer_is_told_from_what_is_best() -> None:
    slow = compared(
        "sglang serve --model-path Qwen/Qwen-Image --num-gpus 8 --sp-degree 8", "sglang"
    )
    assert slow.present.configuration.mesh == Mesh(ulysses=8)
    best = slow.found.best
    assert slow.slower == pytest.approx(
        slow.present.prediction.latency_s / best.prediction.latency_s - 1
    )
    assert f"{best.configuration.mesh}" in str(slow)
    assert "measure: `sglang serve" in str(slow)
    (alone,) = (note for note in slow.notes if "ulysses8 in mode compile is predicted" in note)
    compiled = compared(f"{SLOW[0]} --enable-torch-compile true", "sglang")
    assert alone.endswith(f" {compiled.present.prediction.latency_s:.4g} s")
    again = compared(str(slow.command), "sglang")
    assert again.present.configuration.mesh == best.configuration.mesh
    assert again.slower == 0
    assert "none is predicted to be more than 3% faster" in str(again)


def test_the_users_own_workload_stands_over_the_flags() -> None:
    text = f"x.py {FLUX} --ulysses_degree 8 --height 512 --width 512 --num_inference_steps 4"
    found = compared(text, "xdit", asked={"steps": 8, "height": None})
    workload = found.found.workload
    assert (workload.height, workload.steps, workload.text_tokens) == (512, 8, 512)


def test_replicas_of_a_server_are_priced_as_one() -> None:
    found = compared("--model Qwen/Qwen-Image --num-gpus 8 --usp 4", "vllm-omni")
    assert found.present.configuration.mesh == Mesh(ulysses=4)
    assert any("2 replicas" in note for note in found.notes)
    assert found.found.best.configuration.mesh.size <= 4


def test_what_is_not_priced_is_said_and_what_does_not_matter_is_not() -> None:
    text = f"sglang serve {FLUX} --num-gpus 4 --port 1 --cache-dit-config x --encoder-parallel auto"
    notes = compared(text, "sglang").notes
    assert any("not priced: --cache-dit-config x" in note for note in notes)
    assert not any("port" in note for note in notes)


@pytest.mark.parametrize("model", sorted(set(HUB_IDS.values())))
def test_hub_ids_name_shipped_models(model: str) -> None:
    assert find_model(model).name == model


def test_a_folder_called_as_on_the_hub_is_that_model() -> None:
    assert shipped_as("/models/flux.1-DEV/") == "flux-dev"
    assert shipped_as("sd3") is None


def test_tables_of_words_have_each_name_once() -> None:
    for engine in ENGINES.values():
        words: EngineWords = engine.words
        names = [name for word in words.words for name in word.names]
        assert len(names) == len(set(names)), engine.name


def run(*words: str) -> Any:
    """The command on eight A100."""
    return CliRunner().invoke(app, ["import-config", *words, "--cluster", CLUSTER])


SLOW = ("sglang serve --model-path Qwen/Qwen-Image --num-gpus 8 --sp-degree 8", "--from", "sglang")


def test_the_command_ends_with_1_where_it_is_slower_than_allowed() -> None:
    shown = run(*SLOW, "--json", "--fail-if-slower", "10%")
    assert shown.exit_code == 1
    found = json.loads(shown.stdout)
    assert found.keys() == documented("import-config")
    assert found["slower"] > 0.1
    assert run(*SLOW, "--fail-if-slower", "900%").exit_code == 0
    assert len(run(*SLOW).stdout.splitlines()) == 1


def test_a_share_that_is_no_percentage_is_refused() -> None:
    for wrong in ("10", "-1%", "x%", "1e9%"):
        assert isinstance(run(*SLOW, "--fail-if-slower", wrong).exception, InputError)
