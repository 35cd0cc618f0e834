"""Who takes part in the two-GPU benchmark, and what they are asked to do."""

import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Contestant, Variant
from ditplan.profiles.catalog import find_model
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload

MODELS = {"sd3": "sd3", "flux": "flux-dev"}
EXACT_MESHES = ("one", "cfg2", "ulysses2", "ring2")
MESHES = (*EXACT_MESHES, "pipefusion2")
MODES = ("eager", "compile", "graph", "compile+graph")
ENGINES = ("ours", "diffusers", "diffusers-cp", "xdit")
ATTENTION = ("auto", "cudnn", "flash", "flash-attn-4")
XDIT_ATTENTION = {"auto": None, "cudnn": "cudnn", "flash-attn-4": "flash_4"}
"""Kernels of ours that xDiT knows, by its names."""

COMPILED_APART = {"TORCHINDUCTOR_AUTOGRAD_CACHE": "0", "HF_HUB_OFFLINE": "1"}
"""The cache's key leaves out which attention kernels are allowed, and there is nothing to fetch."""


@dataclass(frozen=True)
class Job:
    """What all ranks of a contestant are started with."""

    engine: str
    model: str
    pixels: int
    steps: int
    variants: tuple[Variant, ...]

    def to_json(self) -> str:
        """As an argument for the contestant's command."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The inverse of `to_json`."""
        found = json.loads(text)
        variants = tuple(Variant(**variant) for variant in found.pop("variants"))
        return cls(variants=variants, **found)

    @property
    def spec(self) -> ModelSpec:
        """The model's facts."""
        return find_model(MODELS[self.model])

    @property
    def workload(self) -> Workload:
        """What is asked of the model."""
        asked = {"height": self.pixels, "width": self.pixels, "steps": self.steps}
        return self.spec.defaults.model_copy(update=asked | {"dtype": "bfloat16"})

    @property
    def memory_bytes(self) -> int:
        """A guess, on the safe side, at what one rank occupies of a GPU."""
        weights = 2 * (self.spec.transformer_parameters + self.spec.vae_parameters)
        return math.ceil(1.1 * weights + 3 * 2**30 + 2 * 2**30 * (self.pixels / 1024) ** 2)


@dataclass(frozen=True)
class Wanted:
    """What the command line selects."""

    engines: Sequence[str]
    meshes: Sequence[str]
    modes: Sequence[str]
    attention: Sequence[str]
    apart: bool


def with_patches(meshes: Iterable[str], patches: Sequence[int]) -> list[str]:
    """The meshes with PipeFusion once for each number of patches: `pipefusion2x3` has 3."""
    return [
        name
        for mesh in meshes
        for name in ([f"{mesh}x{n}" for n in patches] if mesh.startswith("pipefusion") else [mesh])
    ]


def patches_of(mesh: str) -> int | None:
    """How many patches a mesh has; None without PipeFusion."""
    return int(mesh.partition("x")[2]) if mesh.startswith("pipefusion") else None


def reference(model: str, pixels: int, steps: int, wanted: Wanted) -> Contestant | None:
    """Ours, with all plans on one set of weights; None where it isn't wanted."""
    meshes = [mesh for mesh in wanted.meshes if mesh != "cfg2" or model == "sd3"]
    variants = [
        Variant(mesh, mode, attention)
        for mesh in meshes
        for mode in wanted.modes
        for attention in wanted.attention
    ]
    if "ours" not in wanted.engines or not variants:
        return None
    return _contestant("ours", Job("ours", model, pixels, steps, tuple(variants)))


def peers(model: str, pixels: int, steps: int, wanted: Wanted) -> list[Contestant]:
    """The other libraries in all their wanted configurations, those of one process together."""
    found = []
    for engine, variants in _configurations(model, wanted.attention, wanted.meshes):
        family = "xdit" if engine == "xdit-runner" else engine
        chosen = [
            variant
            for variant in variants
            if variant.mesh in wanted.meshes and variant.mode in wanted.modes
        ]
        if family not in wanted.engines or not chosen:
            continue
        for together in [[one] for one in chosen] if wanted.apart else [chosen]:
            job = Job(engine, model, pixels, steps, tuple(together))
            found.append(_contestant(_name(engine, together, wanted.apart), job))
    return found


def _configurations(
    model: str, kernels: Sequence[str], meshes: Sequence[str]
) -> Iterator[tuple[str, list[Variant]]]:
    """Engines and variants that can share a process; xDiT takes the same kernels as ours.

    Where the attention kernel is chosen by torch's own switch, each choice has a process of its
    own: compiled code remembers the choice, and doesn't look at the switch again.
    """
    if model == "sd3":
        for engine, mesh in (("diffusers", "one"), ("xdit", "cfg2")):
            for attention in ("default", "cudnn"):
                yield engine, _variants(mesh, ("eager", "compile"), (attention,))
    else:
        for engine, mesh in (
            ("diffusers", "one"),
            ("diffusers-cp", "ulysses2"),
            ("diffusers-cp", "ring2"),
        ):
            yield engine, _variants(mesh, ("eager", "compile"), ("default", "cudnn"))
    for mesh in ("ulysses2", "ring2"):
        for attention in (kernel for kernel in kernels if kernel in XDIT_ATTENTION):
            if model == "flux":
                yield "xdit-runner", _variants(mesh, ("compile+graph",), (attention,))
            yield "xdit", _variants(mesh, ("eager", "compile"), (attention,))
    # xDiT's PipeFusion as it comes, too
    with_default = [
        kernel for kernel in dict.fromkeys(("auto", *kernels)) if kernel in XDIT_ATTENTION
    ]
    for mesh, attention in itertools.product(filter(patches_of, meshes), with_default):
        yield "xdit", _variants(mesh, ("eager",), (attention,))


def _variants(mesh: str, modes: Iterable[str], attentions: Iterable[str]) -> list[Variant]:
    return [Variant(mesh, mode, attention) for attention in attentions for mode in modes]


def _name(engine: str, variants: Sequence[Variant], apart: bool) -> str:
    """Unique among the contestants of a case."""
    parts = [engine, variants[0].mesh]
    if len({variant.attention for variant in variants}) == 1:
        parts.append(variants[0].attention)
    if apart:
        parts.append(variants[0].mode)
    return "-".join(parts)


def _contestant(name: str, job: Job) -> Contestant:
    environment = dict(COMPILED_APART)
    if job.engine != "ours" and all(one.attention != "flash-attn-4" for one in job.variants):
        environment["PYTHONPATH"] = _path_without_flash_attn()
    return Contestant(
        name=name,
        command=(sys.executable, "-m", "benchmarks.contestants", "--job", job.to_json()),
        ranks=max(variant.gpus for variant in job.variants),
        variants=job.variants,
        memory_bytes=job.memory_bytes,
        environment=environment,
    )


def _path_without_flash_attn() -> str:
    """For peers that take another kernel: xDiT can't compile with flash-attn 4 beside it.

    It must be in a folder of its own on PYTHONPATH.
    """
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(one for one in folders if not (Path(one) / "flash_attn").is_dir())
