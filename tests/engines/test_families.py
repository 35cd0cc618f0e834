"""Which of our families an engine has, and splits sequences of, by its own source."""

import re
from collections.abc import Callable

import diffusers
import pytest

from ditplan.profiles.backends import find_backend
from ditplan.profiles.family import ModelFamily, load_families
from tests.engines.source_classes import ENGINES

pytestmark = pytest.mark.engines

SGLANG = ENGINES / "sglang/multimodal_gen/runtime"
SGLANG_TRANSFORMERS = {
    "flux": "flux",
    "flux2": "flux_2",
    "hunyuan-video": "hunyuanvideo",
    "qwen-image": "qwen_image",
    "sana": "sana",
    "sd3": "stablediffusion3",
    "wan": "wanvideo",
    "z-image": "zimage",
}
VLLM = ENGINES / "vllm_omni/diffusion"
VLLM_TRANSFORMERS = {
    "flux": "flux/flux_transformer",
    "flux2": "flux2/flux2_transformer",
    "qwen-image": "qwen_image/qwen_image_transformer",
    "sd3": "sd3/sd3_transformer",
    "wan": "wan2_2/wan2_2_transformer",
    "z-image": "z_image/z_image_transformer",
}
PLANNER = re.compile(r'ContextParallelismPlannerRegister\.register\("(\w+)"\)')


def in_sglang(family: ModelFamily) -> bool:
    """A pipeline of the same name."""
    files = (SGLANG / "pipelines").glob("*.py")
    wanted = f'pipeline_name = "{family.pipeline_class}"'
    return any(wanted in path.read_text(encoding="utf-8") for path in files)


def split_by_sglang(family: ModelFamily) -> bool:
    """A transformer with its attention over split sequences."""
    path = SGLANG / f"models/dits/{SGLANG_TRANSFORMERS[family.name]}.py"
    return "USPAttention" in path.read_text(encoding="utf-8")


def in_vllm_omni(family: ModelFamily) -> bool:
    """An entry of its registry."""
    text = (VLLM / "registry.py").read_text(encoding="utf-8")
    return f'    "{family.pipeline_class}": (' in text


def split_by_vllm_omni(family: ModelFamily) -> bool:
    """A transformer with a plan of how it is split."""
    path = VLLM / f"models/{VLLM_TRANSFORMERS[family.name]}.py"
    return "_sp_plan" in path.read_text(encoding="utf-8")


def split_by_cache_dit(family: ModelFamily) -> bool:
    """A planner, found by the start of the transformer's name."""
    found: set[str] = set()
    for path in (ENGINES / "cache_dit/distributed/transformers").glob("*.py"):
        found |= set(PLANNER.findall(path.read_text(encoding="utf-8")))
    return family.transformer_class.startswith(tuple(found))


def split_by_diffusers(family: ModelFamily) -> bool:
    """A transformer with a plan of how it is split."""
    return getattr(getattr(diffusers, family.transformer_class), "_cp_plan", None) is not None


@pytest.mark.parametrize(("backend", "has"), [("sglang", in_sglang), ("vllm-omni", in_vllm_omni)])
def test_the_families_of_a_backend_are_those_of_the_engine(
    backend: str, has: Callable[[ModelFamily], bool]
) -> None:
    families = {family.name: family for family in load_families().values()}
    found = {name for name, family in families.items() if has(family)}
    assert found == set(find_backend(backend).capabilities.families or ())


@pytest.mark.parametrize(
    ("backend", "splits"),
    [
        ("sglang", split_by_sglang),
        ("vllm-omni", split_by_vllm_omni),
        ("cache-dit", split_by_cache_dit),
        ("diffusers", split_by_diffusers),
    ],
)
def test_sequences_are_split_of_the_families_that_the_engine_splits(
    backend: str, splits: Callable[[ModelFamily], bool]
) -> None:
    can = find_backend(backend).capabilities
    families = {family.name: family for family in load_families().values()}
    found = {name for name in can.families or families if splits(families[name])}
    assert found == set(can.split_families or ())
