"""What a backend's runtime costs: the numbers of the cost model that no profile of a device or a
model holds, each with where it comes from.

A backend states its own beside its capabilities, so that a plan is priced as what will run it.
"""

from dataclasses import dataclass, field

from ditplan.profiles.model import Mode, Source


@dataclass(frozen=True)
class ModeConstants:
    """What an execution mode costs beside its FLOPs.

    `operation_launches` is the host's time for one tensor operation of a block's modules,
    `exchange_launches` what ulysses adds to a self-attention, `ring_step_launches` what each
    further block of a ring does, `gather_launches` what putting the output together along an axis
    does in a step, all in launches of a plain kernel; `elementwise_passes` is how often a block
    reads or writes its hidden states outside matrix products and attention.
    """

    operation_launches: float
    exchange_launches: float
    ring_step_launches: float
    gather_launches: float
    elementwise_passes: float


@dataclass(frozen=True)
class CostConstants:
    """Efficiencies and fixed costs of a device.

    Few physical parameters, no curve through points. Fitted by hand to SD3-medium on one H100 (at
    1024px 1.05 s as a graph, 0.83 s compiled as well) and to its CFG-2 and Ulysses-2 rows, which
    are in benchmarks/results/rewrites-2026-11-23.txt. docs/accuracy.md says how far predictions are
    off.
    """

    matmul_efficiency: float = 0.66
    """Of the peak, for many rows. 780 TFLOP/s of 989 is what a large plain product reaches there
    (python -m benchmarks.measured_efficiencies); blocks reach less."""

    matmul_half_rows: float = 256.0
    """Rows at which a product reaches half its efficiency: two tiles of 128 rows."""

    attention_efficiency: float = 0.58
    """Of the peak, with heads of 128: cuDNN's kernel reaches 0.56 to 0.59 on an H100, 0.38 to 0.41
    with heads of 64, PyTorch's flash 0.32 to 0.36 and 0.25 to 0.29 (measured_efficiencies, as
    above)."""

    softmax_head_dim: float = 72.0
    """How large heads are whose softmax takes as long as their products: so that both kernels do
    what they do with heads of 64 and of 128."""

    attention_half_queries: float = 256.0
    """Queries at which attention reaches half its efficiency: two tiles of 128 queries."""

    vae_flops_per_byte: float = 36.0
    """FLOPs of the VAE's decoder, in half precision, for each byte that the memory's data-sheet
    bandwidth could carry meanwhile: convolutions with few channels are bound by memory. An H100
    does 32 for SD3's and FLUX's at 1024px, 47 for Wan's (measured_efficiencies, as above)."""

    vae_convolutions: int = 33
    """Convolutions of a decoder that read rows beside a rank's own, and so ask its neighbours:
    those of SD3's and FLUX's, counted."""

    vae_norms: int = 30
    """Group normalizations of a decoder, counted in SD3's and FLUX's: each has statistics of the
    whole picture."""

    vae_halo_channels: float = 128.0
    """Numbers of a row of a decoder's feature maps for each pixel of the picture's width: SD3's
    and FLUX's have 64 to 256, most 128."""

    vae_middle_channels: float = 512.0
    """Channels of keys and values of the attention in a decoder's middle."""

    product_share: float = 0.79
    """Of the data sheet's peak, for which these efficiencies are meant, what a plain product
    reaches: where a GPU's peak was measured it is that (measured_efficiencies, as above)."""

    copy_share: float = 0.89
    """The same of a copy and the memory's bandwidth."""

    bandwidth_efficiency: float = 0.8
    """Of the memory's data-sheet bandwidth: what streaming kernels reach on A100 and H100."""

    launch_s: float = 12e-6
    """Host time of one kernel from eager diffusers code: SD3 with CFG-2 and 1024px takes 0.59 to
    0.73 s eagerly, 0.54 s as a graph (main-job-2026-11-22.txt and rewrites-2026-11-23.txt in
    benchmarks/results)."""

    launch_exponent: float = 4.0
    """Host and device overlap imperfectly: a step of h seconds of launching and d of work takes
    (h^4 + d^4)^(1/4). With it one H100 takes 1.05 s eagerly for 1.00 s of work (measured: 1.06)."""

    exchange_passes: float = 10.0
    """Reads and writes of one of q, k, v and output around the two all_to_alls of an attention: q,
    k and v are packed, the output is packed and unpacked. A count of what the runtime does."""

    push_passes: float = 2.0
    """The same where GPUs write into each other's memory over NVLink and that wasn't measured: the
    output is copied out of where it arrived; nothing else moves twice."""

    merge_passes: float = 12.0
    """Reads and writes of the fp32 output to merge a ring's next block by lse: six element-wise
    kernels that each read and write once. A count of the formula's operations, not measured."""

    sends_together: bool = True
    """Whether q, k and v travel in one all_to_all."""

    pushes: bool = True
    """Whether GPUs of one host write into each other's memory over NVLink, and rings gather keys
    first there."""

    gathers_keys: bool = False
    """Whether rings gather keys first whatever the link."""

    sends_fresh_keys: bool = True
    """Whether a ring with PipeFusion passes on a patch's keys alone and attends to the others
    meanwhile."""

    exchange_start_s: float = 0.0
    """What each exchange waits for beside the transfer: a backend that synchronizes."""

    stages_wait_to_send: bool = False
    """Whether a stage of PipeFusion waits until what it sends has arrived."""

    products_beside_transfers: float = 1.3
    """What PipeFusion's matrix products take beside a collective library's kernels, which hold
    multiprocessors while they wait, on GPUs whose kernels count on all of them. SD3's take 1.3, 1.5
    and 1.9 times as long (benchmarks/results/transport-2026-11-23.txt), with it loops over
    sockets come out 21% too fast to 12% too slow (planner_predictions, no-p2p-shm)."""

    attends_beside_transfers: bool = False
    """Whether attention goes on beside a collective library's kernels on such GPUs. cuDNN's and
    they wait for each other: a ring of two H100 over host memory takes as long as attention and
    transfers one after the other (planner_predictions, no-p2p), and an all_to_all beside a product
    as both together (benchmarks/results/overlap-2026-11-23.txt)."""

    text_with_every_patch: bool = False
    """Whether the text is computed again with each patch."""

    crossing_exponent: float = 0.93
    """A link through host memory or between sockets that n messages cross at once carries
    n ** -0.93 of its bandwidth. Fitted to published xDiT latencies, as below; an L40S node whose
    all_to_all reaches 22, 4.5 and 2.0 GB/s on 2, 4 and 8 GPUs loses somewhat less.
    """

    collective_launch_s: float = 35e-6
    """Start of one collective on the device; a 64 KB all_to_all over NVLink takes 43 us
    (profiles/clusters/2xh100-nvlink.json)."""

    outside_kernels: float = 60.0
    """Launches per transformer call outside the blocks: embedders, final norm and projection,
    time embedding."""

    replay_launches: float = 8.0
    """Launches of a step as a graph: four to seven arguments copied in, the graph, the result
    copied out. A count of what the runtime does."""

    scheduler_step_s: float = 2e-4
    """A flow-matching Euler step: about 20 small kernels launched from Python."""

    patch_switch_s: float = 4e-5
    """Host time to go from one patch's call of the pipeline to another's, on PipeFusion's first
    stage: 13 to 66 us (docs/experiments.md)."""

    patch_setup_s: float = 0.02
    """Once in a loop devices wait for the host to prepare the patches' calls: 0.018 to 0.028 s in
    FLUX's with two patches (benchmarks/results/where-time-goes-flux-pipefusion-2026-11-27.txt)."""

    cpu_efficiency: float = 0.5
    """Of a CPU's peak, where nothing was measured. A guess."""

    load_bytes_per_s: float = 2e9
    """Weights from a local NVMe disk to the device."""

    compile_s: float = 6.0
    """torch.compile of one kind of block: SD3 and FLUX, with two kinds each, take 9 to 14 s on a
    host with 32 cores, 28 s the first time in a process."""

    capture_s: float = 1.0
    """Warm-up and capture of one step as a CUDA graph: SD3, 1024px, two H100."""

    modes: dict[Mode, ModeConstants] = field(
        default_factory=lambda: {
            "eager": ModeConstants(2.4, 18.0, 20.0, 5.0, 70.0),
            "compile": ModeConstants(1.1, 40.0, 20.0, 5.0, 28.0),
            "graph": ModeConstants(0.0, 0.0, 0.0, 0.0, 70.0),
            "compile+graph": ModeConstants(0.0, 0.0, 0.0, 0.0, 28.0),
        }
    )
    """Launches for an operation and an exchange: so that SD3's CFG-2 and Ulysses-2 at 1024px on two
    H200 take the measured 0.66 and 0.76 s eagerly, 0.44 and 0.62 s compiled
    (benchmarks/results/two-gpu-sd3-1024-2026-11-23.txt). Ring steps: so that FLUX 1024px over
    Ring-8 on A100 is 2.5 s behind Ulysses-8 (published: 11172 ring steps). To gather: cut out, pad,
    make contiguous, send, put together; a count. Passes: so that one H100 takes 1.04 s as a graph,
    0.79 s compiled."""

    interval_share: dict[Source, float] = field(
        default_factory=lambda: {"measured": 0.09, "interpolated": 0.12, "computed": 0.19}
    )
    """Half width of the 90% interval as a share of a part's seconds; parts are taken to err
    together. What is computed is so from devices' measured rates. With these shares 90% of the
    plans lie in their intervals that were run on two H100 as graphs, with the model's blocks
    measured and without (`python -m benchmarks.interval_coverage`); of what is interpolated there
    is too little to tell."""

    fitted_share: float = 0.38
    """The same of what is computed for devices of which only the data sheet is known, and what
    products and attention reach of its peak: of published latencies."""

    data_sheet_share: float = 0.47
    """The same where nothing but the data sheet is known."""
