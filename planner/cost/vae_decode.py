"""What a VAE's decoding takes when ranks share the rows of its picture."""

import math

from ditplan.planner.memo import KeyTuple
from ditplan.planner.network.topology import Topology
from ditplan.profiles.cost_constants import CostConstants
from ditplan.profiles.family import pixels_per_latent
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.workload import Workload


def latent_rows(spec: ModelSpec, workload: Workload) -> int:
    """Rows of what the VAE decodes: what ranks share out."""
    return max(1, workload.height // pixels_per_latent(spec.vae_config))


def largest_share(spec: ModelSpec, workload: Workload, ranks: int) -> float:
    """The part of a picture's rows that the rank with most of them has; all where there are fewer
    rows than ranks, since each rank computes the whole picture then.
    """
    rows = latent_rows(spec, workload)
    return 1.0 if rows < ranks else math.ceil(rows / ranks) / rows


def exchanges_s(
    topology: Topology,
    spec: ModelSpec,
    workload: Workload,
    ranks: tuple[int, ...],
    c: CostConstants,
) -> float:
    """Seconds for which ranks that share a picture's rows talk: rows beside their own before each
    convolution, statistics for each normalization, keys and values of the middle block's attention,
    and at last the picture.
    """
    degree = len(ranks)
    if degree == 1 or latent_rows(spec, workload) < degree:
        return 0.0
    groups = KeyTuple([ranks])
    edge = pixels_per_latent(spec.vae_config)
    calls = math.ceil(workload.frames / spec.frames_per_token) if workload.frames > 1 else 1
    frames = workload.batch * workload.frames / calls
    row_bytes = frames * workload.width * c.vae_halo_channels * workload.dtype_bytes
    hop = topology.collective_s("send_recv", row_bytes, groups).seconds
    # count, mean and squares in float32, for 32 groups
    statistics_bytes = 3 * 32 * 4 * workload.batch
    gather = topology.collective_s("all_gather", statistics_bytes, groups).seconds
    tokens = workload.batch * (workload.height // edge) * (workload.width // edge)
    keys_bytes = 2 * tokens * c.vae_middle_channels * workload.dtype_bytes / degree
    keys = topology.collective_s("all_gather", keys_bytes, groups).seconds
    picture_bytes = 3 * frames * workload.height * workload.width * workload.dtype_bytes / degree
    picture = topology.collective_s("all_gather", picture_bytes, groups).seconds
    return calls * (c.vae_convolutions * hop + c.vae_norms * gather + keys + picture)
