"""How each library runs a model: its pipeline, with one of its variants in force at a time."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.jobs import XDIT_ATTENTION, Job, patches_of
from benchmarks.processes import Variant
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.splits import split_sizes
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.models.loading import load_pipeline
from ditplan.runtime.native import parallelize

Pipeline = Callable[..., Any]

WARMUP_STEPS = 1
"""Of PipeFusion, ours and xDiT's."""


@dataclass(frozen=True)
class Place:
    """Which rank this is, of how many, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> "Place":
        """The place that the launcher gave this process."""
        rank = int(os.environ["RANK"])
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        return cls(rank, int(os.environ["WORLD_SIZE"]), device)


class Engine(Protocol):
    """A library that runs a diffusers pipeline in several variants."""

    def in_force(self, variant: Variant) -> AbstractContextManager[Pipeline | None]:
        """The pipeline with the variant in force; None on ranks that have no part in it."""


class Ours:
    """This project's runtime: every plan on one set of weights."""

    def __init__(self, job: Job, place: Place) -> None:
        # device_id has NCCL set up at once, before anything is timed
        dist.init_process_group("nccl", device_id=place.device)
        self._job = job
        groups = GroupCache(place.rank, place.world_size)
        self._context = RankContext(place.rank, place.world_size, place.device, groups)
        self._pipeline = random_pipeline(job, place)

    @contextmanager
    def in_force(self, variant: Variant) -> Iterator[Pipeline | None]:
        """Puts the variant's plan in force; graphs are captured anew."""
        plan = plan_of(self._job.spec, self._job.workload, variant)
        with parallelize(self._pipeline, plan, self._context):
            yield self._pipeline if self._context.rank in plan.configuration.placement else None


class Diffusers:
    """diffusers on one GPU, or with its context parallelism on two."""

    def __init__(self, job: Job, place: Place) -> None:
        self._pipeline = random_pipeline(job, place)
        self._model = self._pipeline.transformer
        self._compiled: dict[str, dict[nn.Module, Any]] = {}
        mesh = job.variants[0].mesh
        # context parallelism exchanges inside of blocks, where a break in the graph is allowed
        self._fullgraph = mesh == "one"
        if mesh == "one":
            return
        from diffusers import ContextParallelConfig

        dist.init_process_group("nccl", device_id=place.device)
        ulysses, ring = (2, 1) if mesh == "ulysses2" else (1, 2)
        self._model.enable_parallelism(
            config=ContextParallelConfig(ulysses_degree=ulysses, ring_degree=ring)
        )

    @contextmanager
    def in_force(self, variant: Variant) -> Iterator[Pipeline | None]:
        """Sets the attention backend and whether blocks run compiled."""
        blocks = repeated_blocks(self._model)
        with ExitStack() as undo:
            if attention_is_dispatched(self._model):
                chosen = "_native_cudnn" if variant.attention == "cudnn" else "native"
                self._model.set_attention_backend(chosen)
            elif variant.attention == "cudnn":
                undo.enter_context(sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
            if variant.mode == "compile":
                if variant.attention not in self._compiled:
                    self._compile(blocks)
                    self._compiled[variant.attention] = {
                        block: block._compiled_call_impl for block in blocks
                    }
                for block, compiled in self._compiled[variant.attention].items():
                    block._compiled_call_impl = compiled
            else:
                for block in blocks:
                    block._compiled_call_impl = None
            yield self._pipeline

    def _compile(self, blocks: list[Any]) -> None:
        """Regional compilation, by diffusers itself where it knows the model's blocks."""
        if getattr(self._model, "_repeated_blocks", None):
            self._model.compile_repeated_blocks(fullgraph=self._fullgraph)
            return
        for block in blocks:
            block.compile(fullgraph=self._fullgraph)


class XDiT:
    """xDiT's pipeline wrappers, eager or with its option for torch.compile."""

    def __init__(self, job: Job, place: Place) -> None:
        config = xdit_config(job, compiled=any(v.mode == "compile" for v in job.variants))
        pipeline = random_pipeline(job, place)
        wrapper = getattr(import_module("xfuser"), f"xFuser{type(pipeline).__name__}")
        self._pipeline = wrapper(pipeline, config)
        self._model = self._pipeline.module.transformer
        # with its option for torch.compile, xDiT leaves the compiled forward in the instance
        self._compiled_forward = vars(self._model).get("forward")

    @contextmanager
    def in_force(self, variant: Variant) -> Iterator[Pipeline | None]:
        """Has the transformer's forward run compiled or not."""
        with ExitStack() as undo:
            if variant.mode == "compile":
                self._model.forward = self._compiled_forward
            else:
                vars(self._model).pop("forward", None)
            # its wrappers compute self-attention themselves only where the sequence is split
            if variant.mesh == "cfg2" and variant.attention == "cudnn":
                undo.enter_context(sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
            yield self._pipeline


class XDiTRunner:
    """FLUX as xDiT's own runner sets it up: a diffusers pipeline with xDiT's transformer, which is
    compiled as a whole with CUDA graphs.
    """

    def __init__(self, job: Job, place: Place) -> None:
        config = xdit_config(job, compiled=True)
        state = import_module("xfuser.core.distributed.runtime_state")
        flux = import_module("xfuser.model_executor.models.transformers.transformer_flux")
        self._pipeline = random_pipeline(job, place)
        # the wrapper is the same model with another class and other attention processors
        with torch.device("meta"):
            model = flux.xFuserFlux1Transformer2DWrapper.from_config(job.spec.config)
        model.load_state_dict(self._pipeline.transformer.state_dict(), assign=True)
        model.pos_embed = self._pipeline.transformer.pos_embed
        self._pipeline.transformer = model.eval()
        state.initialize_runtime_state(self._pipeline, config)
        state.get_runtime_state().set_input_parameters(
            batch_size=job.workload.batch,
            num_inference_steps=job.steps,
            max_condition_sequence_length=job.workload.text_tokens,
            split_text_embed_in_sp=True,
        )
        torch._inductor.config.reorder_for_compute_comm_overlap = True
        torch._inductor.config.reorder_for_compute_comm_overlap_passes = [
            "reorder_compute_for_overlap",
            "sink_waits",
            "raise_comms",
        ]
        self._pipeline.transformer = torch.compile(model, mode="reduce-overhead")

    @contextmanager
    def in_force(self, _variant: Variant) -> Iterator[Pipeline | None]:
        """Its one variant is always in force."""
        yield self._pipeline


ENGINES: dict[str, Callable[[Job, Place], Engine]] = {
    "ours": Ours,
    "diffusers": Diffusers,
    "diffusers-cp": Diffusers,
    "xdit": XDiT,
    "xdit-runner": XDiTRunner,
}


def random_pipeline(job: Job, place: Place) -> Any:
    """The model's pipeline with random weights."""
    return load_pipeline(job.spec, None, place.device, "bfloat16")


def plan_of(spec: ModelSpec, workload: Workload, variant: Variant) -> ExecutionPlan:
    """Our plan for a variant, which runs as said or not at all."""
    axis, patches = variant.mesh.partition("2")[0], patches_of(variant.mesh)
    mesh = Mesh() if axis == "one" else Mesh(**{axis: 2})
    part = None
    if patches:
        # the first stage has the embeddings besides
        stages = split_sizes(spec.block_count, mesh.pipefusion)[::-1]
        part = PipeFusion(blocks_per_stage=stages, patches=patches, warmup_steps=WARMUP_STEPS)
    plan = bare_plan(
        PlannedModel.of_spec(spec),
        workload,
        mesh,
        mode=variant.mode,
        attention=variant.attention,
        ring="gather",
        pipefusion=part,
    )
    return plan.model_copy(update={"fallback": "refuse"})


def xdit_config(job: Job, compiled: bool) -> Any:
    """xDiT's engine config for the job's mesh; this also joins its process groups."""
    mesh, attention = job.variants[0].mesh, job.variants[0].attention
    if attention == "flash-attn-4":
        give_flash_attn_a_version()
    arguments = import_module("xfuser").xFuserArgs(
        model=job.model,
        use_cfg_parallel=mesh == "cfg2",
        ulysses_degree=2 if mesh == "ulysses2" else 1,
        ring_degree=2 if mesh == "ring2" else 1,
        pipefusion_parallel_degree=2 if patches_of(mesh) else 1,
        num_pipeline_patch=patches_of(mesh),
        warmup_steps=WARMUP_STEPS,
        height=job.pixels,
        width=job.pixels,
        num_inference_steps=job.steps,
        max_sequence_length=job.workload.text_tokens,
        use_torch_compile=compiled,
        attention_backend=XDIT_ATTENTION.get(attention),
        output_type="latent",
    )
    config, _ = arguments.create_config()
    config.runtime_config.dtype = torch.bfloat16
    return config


def give_flash_attn_a_version() -> None:
    """xDiT asks flash-attn for one, which flash-attn 4 alone doesn't have."""
    flash_attn = import_module("flash_attn")
    flash_attn.__version__ = getattr(flash_attn, "__version__", "2.7.0")


def attention_is_dispatched(model: nn.Module) -> bool:
    """Whether diffusers' attention backends have an effect on this model."""
    return any(
        hasattr(getattr(module, "processor", None), "_attention_backend")
        for module in model.modules()
    )


def repeated_blocks(model: nn.Module) -> list[Any]:
    """What regional compilation compiles: diffusers' repeated blocks, or all transformer blocks."""
    names = getattr(model, "_repeated_blocks", None)
    if names:
        return [module for module in model.modules() if type(module).__name__ in names]
    return list(model.get_submodule("transformer_blocks").children())
