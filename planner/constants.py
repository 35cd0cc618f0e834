"""The numbers of the cost and memory models that hold whatever the backend, and where they come
from.
"""

from dataclasses import dataclass

COUNT_ON_ALL = ("H100", "H200", "H800", "H20", "GH200")
"""In the names of GPUs (Hopper) whose matrix products and attention count on having all
multiprocessors."""

NETWORKS = ("ethernet", "infiniband")
"""Links over which patches travel by kernels; within a host copy engines carry them."""


def counts_on_all(device: str) -> bool:
    """Whether a device's kernels take longer beside others that hold multiprocessors."""
    return any(name in device for name in COUNT_ON_ALL)


def minds_transfers(device: str, kinds: frozenset[str]) -> bool:
    """Whether a device's products take longer while patches travel over such kinds of links."""
    return not kinds.isdisjoint(NETWORKS) and counts_on_all(device)


@dataclass(frozen=True)
class MemoryConstants:
    """What a rank's memory holds beside weights and tensors that can be counted."""

    cuda_context_bytes: int = 700_000_000
    """CUDA context with the kernels of PyTorch, cuBLAS and cuDNN on recent cards: 0.5 to 0.8 GB."""

    cpu_context_bytes: int = 600_000_000
    """A Python process with torch and diffusers imported."""

    communicator_bytes: int = 250_000_000
    """NCCL's channels and buffers for one group at its defaults: 4 MB a channel and peer, up to
    32 channels."""

    hidden_copies: float = 18.0
    """Live tensors of tokens x width at a block's peak: residuals, q, k, v, joint copies, the 4
    times wider MLP twice."""

    vae_live_tensors: float = 3.0
    """Full-size feature maps alive at the decoder's peak: input, output and a copy of one
    convolution."""

    graph_bytes: int = 400_000_000
    """A CUDA graph's nodes and its pool's fragments: SD3 takes 0.2 to 0.5 GB more so than eagerly
    (two H100, 1024px)."""

    patch_graph_bytes: int = 150_000_000
    """The same of each further graph, of which PipeFusion has one for each patch: SD3 and Wan with
    stages hold 0.4 to 1.1 GB more than one graph's (two H100, 2 to 4 patches)."""

    allocator_slack: float = 1.05
    """Fragmentation of the caching allocator, on what is not weights."""
