"""Small valid records that tests start from."""

from ditplan.profiles.cluster import (
    ClusterProfile,
    CollectivePoint,
    CollectiveTable,
    Device,
    Host,
    Link,
)
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.fingerprint import Fingerprint
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Attention, BlockRun, ModelProfile, ModelSpec, TimePoint
from ditplan.profiles.plan import (
    ExecutionPlan,
    Measurement,
    PlannedModel,
    PlannedTransformer,
    Prediction,
    Quality,
    RunnerUp,
)
from ditplan.profiles.quality import MeasuredQuality, QualityPoint
from ditplan.profiles.record import Record
from ditplan.profiles.workload import Workload

WORKLOAD = Workload(height=1024, width=768, steps=20, passes=2, text_tokens=333)


def a_plan() -> ExecutionPlan:
    """An exact plan of four ranks, measured, with one runner-up."""
    return ExecutionPlan(
        model=PlannedModel(
            name="sd3",
            pipeline_class="StableDiffusion3Pipeline",
            transformers=(
                PlannedTransformer(
                    component="transformer",
                    transformer_class="SD3Transformer2DModel",
                    config_hash="c0ffee",
                ),
            ),
        ),
        workload=WORKLOAD,
        backend="native",
        configuration=Configuration(
            Mesh(cfg=2, ulysses=2),
            (0, 2, 1, 3),
            order=("dp", "ulysses", "pipefusion", "ring", "cfg"),
        ),
        quality=Quality(exact=True),
        prediction=Prediction(
            latency_s=1.5,
            interval_s=(1.25, 2.0),
            end_to_end_s=2.0,
            setup_s=10.0,
            memory_bytes=8_000_000_000,
            parts={"blocks": 1.0, "all_to_all": 0.5},
            link_bytes={"nvlink": 1e9},
            source="computed",
        ),
        measurement=Measurement(
            latency_s=1.4,
            runs_s=(1.4, 1.5),
            measured_on="2026-01-02",
            devices="4 x A100",
        ),
        runner_ups=(
            RunnerUp(
                configuration=Configuration(Mesh(ulysses=4), (0, 1, 2, 3)),
                predicted_s=1.75,
                measured_s=None,
                memory_bytes=8_000_000_000,
                reason="more bytes to exchange",
            ),
        ),
        fingerprint=Fingerprint(
            cluster="4xa100",
            devices=("A100",) * 4,
            link_kinds=("nvlink",),
            software={"torch": "2.9.0"},
        ),
    )


def a_cluster() -> ClusterProfile:
    """Two devices on one host, a link and a measured collective."""
    device = Device(
        name="A100",
        kind="cuda",
        memory_bytes=80_000_000_000,
        half_flops_per_s=3.12e14,
        single_flops_per_s=1.95e13,
        memory_bytes_per_s=2e12,
        source="data sheet",
    )
    return ClusterProfile(
        name="two",
        hosts=(Host(name="node", devices=(device, device)),),
        links=(
            Link(
                a="node/0",
                b="node/1",
                kind="nvlink",
                latency_s=2e-6,
                bytes_per_s=3e11,
                source="data sheet",
            ),
        ),
        collectives=(
            CollectiveTable(
                operation="all_to_all",
                size=2,
                stride=1,
                groups=1,
                points=(CollectivePoint(bytes=4096, median_s=1e-5, p95_s=2e-5),),
                source="measured",
            ),
        ),
        software={"nccl": "2.28"},
        source="a test",
    )


def a_model_spec() -> ModelSpec:
    """A model of two kinds of blocks, with images of 16 pixels a token and videos of 4 frames."""
    block = BlockRun(
        kind="joint",
        count=3,
        parameters=1000,
        image_flops=2e6,
        text_flops=1e6,
        fixed_flops=5e5,
        operations=46,
        attentions=(Attention(heads=6, head_dim=64, segments=("image", "text")),),
    )
    last = block.model_copy(
        update={
            "kind": "image",
            "count": 1,
            "parameters": 500,
            "attentions": (Attention(heads=5, head_dim=128, segments=("image",)),),
        }
    )
    return ModelSpec(
        name="small",
        family="sd3",
        pipeline_class="StableDiffusion3Pipeline",
        transformer_class="SD3Transformer2DModel",
        config={"num_layers": 4, "qk_norm": None},
        config_hash="c0ffee",
        vae_class="AutoencoderKL",
        vae_config={"scaling_factor": 1.5},
        scheduler_class="FlowMatchEulerDiscreteScheduler",
        scheduler_config={"shift": 3.0},
        guidance_scale=7.0,
        defaults=WORKLOAD,
        pixels_per_token=16,
        frames_per_token=4,
        blocks=(block, last),
        outside_parameters=100,
        outside_image_flops=1e5,
        outside_text_flops=1e5,
        encoder_parameters=10_000,
        vae_parameters=1000,
        vae_flops_per_pixel=1e4,
    )


def a_model_profile() -> ModelProfile:
    """One measured point."""
    return ModelProfile(
        model="small",
        config_hash="c0ffee",
        device="A100",
        dtype="bfloat16",
        software={"torch": "2.9.0"},
        measured_on="2026-01-02",
        points=(
            TimePoint(
                part="joint",
                batch=2,
                image_tokens=4096,
                text_tokens=333,
                key_tokens=4429,
                median_s=1e-3,
                p95_s=2e-3,
                runs=10,
            ),
        ),
    )


def a_measured_quality() -> MeasuredQuality:
    """One measured setting."""
    return MeasuredQuality(
        model="small",
        config_hash="c0ffee",
        workload=WORKLOAD,
        points=(QualityPoint(patches=4, warmup_steps=1, relative_l2=0.1),),
        measured_with="a test",
    )


def all_records() -> list[Record]:
    """One of each record."""
    return [a_plan(), a_cluster(), a_model_spec(), a_model_profile(), a_measured_quality()]
