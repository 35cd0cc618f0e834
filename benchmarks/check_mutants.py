"""Faults planted in the cost model, and changes that change nothing, for `check_mutations`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change of a source: `old`, which stands there once, becomes `new`."""

    kind: str
    what: str
    path: str
    old: str
    new: str


CONSTANTS = "profiles/cost_constants.py"
MEMORY_CONSTANTS = "planner/constants.py"
MEMORY = "planner/cost/memory.py"
RANK = "planner/cost/rank_activities.py"
SHARE = "planner/cost/share.py"
ROOFLINE = "planner/cost/roofline.py"
TOPOLOGY = "planner/network/topology.py"
TRAFFIC = "planner/network/traffic.py"
STAGES = "planner/pipefusion/price.py"
RANKING = "planner/search/ranking.py"

MUTANTS = (
    Mutant(
        "factor",
        "matrix products reach less",
        CONSTANTS,
        "matmul_efficiency: float = 0.66",
        "matmul_efficiency: float = 0.55",
    ),
    Mutant(
        "factor",
        "attention reaches more",
        CONSTANTS,
        "attention_efficiency: float = 0.58",
        "attention_efficiency: float = 0.7",
    ),
    Mutant(
        "factor",
        "memory is slower",
        CONSTANTS,
        "bandwidth_efficiency: float = 0.8",
        "bandwidth_efficiency: float = 0.6",
    ),
    Mutant(
        "factor",
        "launching takes half",
        CONSTANTS,
        "launch_s: float = 12e-6",
        "launch_s: float = 6e-6",
    ),
    Mutant(
        "factor",
        "merging takes a quarter",
        CONSTANTS,
        "merge_passes: float = 12.0",
        "merge_passes: float = 3.0",
    ),
    Mutant(
        "factor",
        "crossed links lose less",
        CONSTANTS,
        "crossing_exponent: float = 0.93",
        "crossing_exponent: float = 0.5",
    ),
    Mutant(
        "factor",
        "packing takes a tenth",
        CONSTANTS,
        "exchange_passes: float = 10.0",
        "exchange_passes: float = 1.0",
    ),
    Mutant(
        "factor",
        "unknown errors need no lead",
        RANKING,
        "PREDICTED_LEAD = 1.27",
        "PREDICTED_LEAD = 1.0",
    ),
    Mutant(
        "factor",
        "activations take half",
        MEMORY_CONSTANTS,
        "hidden_copies: float = 18.0",
        "hidden_copies: float = 9.0",
    ),
    Mutant(
        "unit",
        "links carry bits",
        TOPOLOGY,
        "return latency_s + traffic.s_per_byte * bytes_per_rank",
        "return latency_s + 8 * traffic.s_per_byte * bytes_per_rank",
    ),
    Mutant(
        "unit",
        "latencies in milliseconds",
        TOPOLOGY,
        "traffic.rounds * traffic.latency_s",
        "traffic.rounds * traffic.latency_s * 1e3",
    ),
    Mutant(
        "unit",
        "the context in kilobytes",
        MEMORY_CONSTANTS,
        "cuda_context_bytes: int = 700_000_000",
        "cuda_context_bytes: int = 700_000",
    ),
    Mutant(
        "unit",
        "weights are loaded in kilobytes",
        CONSTANTS,
        "load_bytes_per_s: float = 2e9",
        "load_bytes_per_s: float = 2e6",
    ),
    Mutant(
        "axes",
        "ring and ulysses swapped in a share",
        SHARE,
        "            ring=mesh.ring,\n            ulysses=ulysses,\n",
        "            ring=ulysses,\n            ulysses=mesh.ring,\n",
    ),
    Mutant(
        "axes",
        "ulysses exchanges along the ring",
        RANK,
        'tensors * tensor_bytes, ("ulysses",))',
        'tensors * tensor_bytes, ("ring",))',
    ),
    Mutant(
        "axes",
        "the output is gathered along ulysses alone",
        RANK,
        '"all_gather", piece_bytes, ("ring", "ulysses"))',
        '"all_gather", piece_bytes, ("ulysses",))',
    ),
    Mutant(
        "axes",
        "near and far axes swapped",
        "profiles/mesh.py",
        "for axis in reversed(order):",
        "for axis in order:",
    ),
    Mutant(
        "dropped",
        "text encoders have no weights",
        MEMORY,
        "spec.outside_parameters + spec.encoder_parameters + spec.vae_parameters",
        "spec.outside_parameters + spec.vae_parameters",
    ),
    Mutant(
        "dropped",
        "stages keep no keys",
        MEMORY,
        "kept = self.weights_bytes + self.cache_bytes + self.graph_bytes",
        "kept = self.weights_bytes + self.graph_bytes",
    ),
    Mutant(
        "dropped",
        "stages wait for nobody",
        STAGES,
        "Timed(max(0.0, bubbles_s), worst_source(ledger))",
        "Timed(0.0, worst_source(ledger))",
    ),
    Mutant(
        "dropped",
        "nothing is merged",
        RANK,
        'merge=Timed(merge_s, "computed")',
        'merge=Timed(0.0, "computed")',
    ),
    Mutant(
        "dropped",
        "blocks have no element-wise passes",
        ROOFLINE,
        "c.modes[self.mode].elementwise_passes * hidden_bytes",
        "0.0 * hidden_bytes",
    ),
    Mutant(
        "dropped",
        "a gathering takes one round",
        TRAFFIC,
        '{"all_gather": size - 1, "all_reduce"',
        '{"all_gather": 1, "all_reduce"',
    ),
    Mutant(
        "dropped",
        "passes of guidance are free",
        SHARE,
        "return math.ceil(workload.batch * workload.passes / mesh.batch_parallel)",
        "return math.ceil(workload.batch / mesh.batch_parallel)",
    ),
    Mutant(
        "stale memo",
        "memory by any number of graphs",
        MEMORY,
        "            _graphs(candidate),\n            device.kind,",
        "            device.kind,",
    ),
    Mutant(
        "stale memo",
        "blocks in any mode",
        "planner/cost/computing.py",
        "device.name, dtype, mode)",
        "device.name, dtype)",
    ),
    Mutant(
        "stale memo",
        "launches of any exchange",
        "planner/cost/launches.py",
        "*counts, gathers, mesh.ring, mesh.ulysses > 1)",
        "*counts, gathers, mesh.ring)",
    ),
    Mutant(
        "stale memo",
        "traffic of any operation",
        TOPOLOGY,
        "        key = (operation, groups)\n        if key not in self._traffic:",
        '        key = ("send_recv", groups)\n        if key not in self._traffic:',
    ),
    Mutant(
        "search",
        "lower bounds are too high",
        "planner/cost/lower_bounds.py",
        "ROUNDING = 1 - 1e-9",
        "ROUNDING = 1.3",
    ),
    Mutant(
        "search",
        "stages are divided anyhow",
        "planner/pipefusion/partition.py",
        "AS_FAST = 1.01",
        "AS_FAST = 1.5",
    ),
)

HARMLESS = (
    Mutant(
        "harmless",
        "a number written otherwise",
        CONSTANTS,
        "matmul_efficiency: float = 0.66",
        "matmul_efficiency: float = 66 / 100",
    ),
    Mutant(
        "harmless",
        "parts added from the last on",
        "planner/cost_model.py",
        "math.fsum(parts.values())",
        "math.fsum(reversed(parts.values()))",
    ),
    Mutant(
        "harmless",
        "memory added in another order",
        MEMORY,
        "return kept + self.context_bytes + peak",
        "return peak + self.context_bytes + kept",
    ),
    Mutant(
        "harmless",
        "a key's elements in another order",
        "planner/cost/computing.py",
        "device.name, dtype, mode)",
        "device.name, mode, dtype)",
    ),
    Mutant(
        "harmless",
        "nothing remembered of traffic",
        TOPOLOGY,
        "        if key not in self._traffic:",
        "        if True:",
    ),
    Mutant(
        "harmless",
        "a quotient computed in another order",
        ROOFLINE,
        "return flops / (self.peak_flops_per_s * efficiency) * (1 + half / max(1.0, size))",
        "return flops * (1 + half / max(1.0, size)) / self.peak_flops_per_s / efficiency",
    ),
    Mutant(
        "harmless",
        "logarithms to the base 2",
        "planner/network/tables.py",
        "share = math.log(bytes_per_rank / low.bytes) / math.log(high.bytes / low.bytes)",
        "share = math.log2(bytes_per_rank / low.bytes) / math.log2(high.bytes / low.bytes)",
    ),
    Mutant(
        "harmless",
        "a local name",
        TRAFFIC,
        "    latency_s = 0.0\n    for source, target, share in sent:",
        "    latency_s: float = 0.0\n    for source, target, share in list(sent):",
    ),
    Mutant(
        "harmless",
        "a reason in other words",
        RANKING,
        'f"does not fit: {loser.too_big}"',
        'f"it doesn\'t fit: {loser.too_big}"',
    ),
    Mutant(
        "harmless",
        "a largest one found by sorting",
        TRAFFIC,
        "rounds = max(rounds_of(operation, len(group)) for group in groups)",
        "rounds = sorted(rounds_of(operation, len(group)) for group in groups)[-1]",
    ),
)
