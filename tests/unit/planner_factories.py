"""Clusters and models that the planner's tests start from."""

from ditplan.profiles.cluster import (
    ClusterProfile,
    CollectivePoint,
    CollectiveTable,
    Device,
    Host,
    Link,
    Operation,
)
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Attention, BlockRun, ModelProfile, ModelSpec, TimePoint
from ditplan.profiles.workload import Workload

WORKLOAD = Workload(height=1024, width=1024, steps=20, passes=2, text_tokens=333)


def a_device(memory_bytes: int = 80_000_000_000, kind: str = "cuda", name: str = "H100") -> Device:
    """A device with the rates of an H100."""
    return Device.model_validate(
        {
            "name": name,
            "kind": kind,
            "memory_bytes": memory_bytes,
            "half_flops_per_s": 989e12,
            "single_flops_per_s": 67e12,
            "memory_bytes_per_s": 3.35e12,
            "source": "a test",
        }
    )


def a_cluster(
    hosts: int = 1,
    devices: int = 2,
    inside_bytes_per_s: float = 200e9,
    between_bytes_per_s: float = 2e9,
    device: Device | None = None,
    collectives: tuple[CollectiveTable, ...] = (),
    name: str = "test",
    inside_kind: str = "nvlink",
) -> ClusterProfile:
    """Hosts with a switch each, joined by a network."""
    links = []
    for host in range(hosts):
        links += [
            a_link(f"h{host}/{i}", f"h{host}/switch", inside_bytes_per_s, inside_kind)
            for i in range(devices)
        ]
        if hosts > 1:
            links.append(a_link(f"h{host}/switch", "network", between_bytes_per_s, "ethernet"))
    return ClusterProfile(
        name=name,
        hosts=tuple(
            Host(name=f"h{host}", devices=(device or a_device(),) * devices)
            for host in range(hosts)
        ),
        links=tuple(links),
        collectives=collectives,
        source="a test",
    )


def a_link(a: str, b: str, bytes_per_s: float, kind: str = "nvlink") -> Link:
    """A link of 4 us, or 20 us for Ethernet."""
    return Link.model_validate(
        {
            "a": a,
            "b": b,
            "kind": kind,
            "latency_s": 2e-5 if kind == "ethernet" else 4e-6,
            "bytes_per_s": bytes_per_s,
            "source": "a test",
        }
    )


def a_table(
    operation: Operation, seconds: dict[int, float], size: int = 2, stride: int = 1, groups: int = 1
) -> CollectiveTable:
    """A measured table from seconds by bytes."""
    return CollectiveTable(
        operation=operation,
        size=size,
        stride=stride,
        groups=groups,
        points=tuple(
            CollectivePoint(bytes=count, median_s=duration, p95_s=duration)
            for count, duration in seconds.items()
        ),
        source="a test",
    )


def sd3_like(heads: int = 24) -> ModelSpec:
    """SD3-medium's shape: 24 joint blocks, 24 heads of 64."""
    width = 64 * heads
    square = width * width
    block = BlockRun(
        kind="joint",
        count=24,
        parameters=36 * square,
        image_flops=24 * square,
        text_flops=24 * square,
        fixed_flops=24 * square,
        operations=46,
        attentions=(Attention(heads=heads, head_dim=64, segments=("image", "text")),),
    )
    return ModelSpec(
        name="sd3-like",
        family="sd3",
        pipeline_class="StableDiffusion3Pipeline",
        transformer_class="SD3Transformer2DModel",
        config={"patch_size": 2, "out_channels": 16},
        config_hash="c0ffee",
        vae_class="AutoencoderKL",
        vae_config={"block_out_channels": [128, 256, 512, 512]},
        scheduler_class="FlowMatchEulerDiscreteScheduler",
        scheduler_config={},
        defaults=WORKLOAD,
        guidance_scale=7.0,
        pixels_per_token=16,
        blocks=(block,),
        outside_parameters=20_000_000,
        outside_image_flops=4e5,
        outside_text_flops=1.3e7,
        encoder_parameters=5_600_000_000,
        vae_parameters=84_000_000,
        vae_flops_per_pixel=9.5e6,
    )


def a_profile(points: dict[tuple[int, int, int], float], part: str = "joint") -> ModelProfile:
    """Measured seconds by (batch, image tokens, key tokens), without text."""
    return ModelProfile(
        model="sd3-like",
        config_hash="c0ffee",
        device="H100",
        dtype="bfloat16",
        software={},
        measured_on="2026-01-02",
        points=tuple(
            TimePoint(
                part=part,
                batch=batch,
                image_tokens=tokens,
                text_tokens=0,
                key_tokens=keys,
                median_s=seconds,
                p95_s=seconds,
                runs=5,
            )
            for (batch, tokens, keys), seconds in points.items()
        ),
    )


def ranks(mesh: Mesh) -> tuple[int, ...]:
    """The usual placement."""
    return tuple(range(mesh.size))
