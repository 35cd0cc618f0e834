"""A plan as a configuration file of a server, in place of its flags."""

from collections.abc import Sequence

from ditplan.exporting.engine_words import Word
from ditplan.exporting.engines import SGLANG, VLLM_OMNI, Engine
from ditplan.exporting.exported import commented, evidence
from ditplan.profiles.backend import Exported
from ditplan.profiles.errors import Command, InputError, Setting
from ditplan.profiles.plan import ExecutionPlan

WITH_DEPLOY_FILES = ("WanPipeline",)
"""Pipelines of diffusers that vLLM-Omni has registered (0.30.0, `model_executor/models/`): for all
others it starts without looking at a deploy file that names no pipeline."""


def why_no_deploy_file(pipeline_class: str) -> str | None:
    """Why vLLM-Omni wouldn't read a deploy file for a pipeline; None if it does."""
    if pipeline_class in WITH_DEPLOY_FILES:
        return None
    return (
        f"vLLM-Omni starts a {pipeline_class} without reading a deploy file, and says nothing of it"
    )


def export_sglang_config(plan: ExecutionPlan, name: str) -> Exported:
    """The file for `sglang serve --config FILE`."""
    how = "Start it as `sglang serve --model-path MODEL --config FILE`."
    lines = _fields(SGLANG.settings(plan))
    return _file(SGLANG, "sglang-config", plan, name, how, lines)


def export_vllm_deploy(plan: ExecutionPlan, name: str) -> Exported:
    """The file for `vllm serve MODEL --omni --deploy-config FILE`: one stage with all GPUs.

    Raises:
        InputError: vLLM-Omni wouldn't read it.
    """
    if why := why_no_deploy_file(plan.model.pipeline_class):
        flags = Command("export", (Setting("plan", name), Setting("to", "vllm-omni")))
        raise InputError(f"{name}: {why}; take its flags: `", flags, "`")
    how = "Start it as `vllm serve MODEL --omni --deploy-config FILE`."
    settings = VLLM_OMNI.settings(plan)
    stage = [(word, value) for word, value in settings if word.means not in ("gpus", "dp")]
    whole = [(word, value) for word, value in settings if word.means == "dp"]
    devices = ",".join(map(str, range(plan.mesh.size)))
    lines = [
        "async_chunk: false",
        *_fields(whole),
        "stages:",
        "  - stage_id: 0",
        f'    devices: "{devices}"',
        *(f"    {line}" for line in _fields(stage)),
    ]
    return _file(VLLM_OMNI, "vllm-omni-deploy", plan, name, how, lines)


def _fields(settings: Sequence[tuple[Word, str | int | bool | tuple[int, ...]]]) -> list[str]:
    """Lines of YAML; all values are numbers, switches or single words."""
    return [
        f"{word.in_file}: {str(value).lower() if isinstance(value, bool) else value}"
        for word, value in settings
    ]


def _file(
    engine: Engine, to: str, plan: ExecutionPlan, name: str, how: str, lines: Sequence[str]
) -> Exported:
    left = engine.not_expressed(plan)
    notes = [
        f"For {engine.name} {engine.version}. {how}",
        *evidence(plan, name, engine.name.lower(), left),
    ]
    return Exported(to, commented(notes) + "".join(f"{line}\n" for line in lines), left)
