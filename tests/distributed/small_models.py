"""Real diffusers classes with small configs, and plans for them."""

from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.models.inspection import inspect_configs

VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "shift_factor": 0.0,
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def small_sd3(**changes: object) -> ModelSpec:
    """Three blocks of five heads, so that nothing divides by 2, 3 or 4."""
    config = {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 5,
        "joint_attention_dim": 24,
        "caption_projection_dim": 80,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 32,
    }
    return inspect_configs("small-sd3", config | changes, VAE, SCHEDULER, 0)


def small_flux(**changes: object) -> ModelSpec:
    """Two double and two single blocks of five heads, with guidance as an input."""
    config = {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 5,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 12,
        "guidance_embeds": True,
        "axes_dims_rope": [4, 6, 6],
    }
    scheduler = SCHEDULER | {"use_dynamic_shifting": True}
    return inspect_configs("small-flux", config | changes, VAE, scheduler, 0)


def workload(**changes: object) -> Workload:
    """63 image tokens and 7 text tokens of `small_sd3` or `small_flux`, with guidance."""
    fields = {
        "height": 28,
        "width": 36,
        "steps": 3,
        "passes": 2,
        "text_tokens": 7,
        "dtype": "float32",
    }
    return Workload.model_validate(fields | changes)


def plan_for(
    spec: ModelSpec,
    mesh: Mesh,
    work: Workload,
    placement: tuple[int, ...] | None = None,
    pipefusion: PipeFusion | None = None,
    token_shares: tuple[int, ...] | None = None,
    step_cache: TaylorSeer | None = None,
) -> ExecutionPlan:
    """A plan as `tune` writes it, without numbers."""
    return bare_plan(
        PlannedModel.of_spec(spec),
        work,
        mesh,
        placement=placement,
        pipefusion=pipefusion,
        token_shares=token_shares,
        step_cache=step_cache,
    )
