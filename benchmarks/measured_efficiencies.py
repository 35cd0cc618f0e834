"""What kernels of recorded runs reach: where constants of `profiles/cost_constants.py` come from.

    python -m benchmarks.measured_efficiencies

Of the data sheet's rates of an H100, from the model profiles in `benchmarks/measured/two-h100`.
"""

from collections import defaultdict

from benchmarks.planner_predictions import MEASURED
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.measured_plans import MeasuredPlans

LARGE_TOKENS = 4000
"""Sequences of so many tokens are long enough for what attention reaches at most."""


def main() -> None:
    """Prints attention by kernel and head, the VAEs' decoders, and plain products and copies."""
    sheet = find_cluster("2xh100-nvlink").devices[0]
    attention: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    decoding: defaultdict[str, list[float]] = defaultdict(list)
    products, copies = [], []
    for path in sorted((MEASURED / "two-h100").glob("*.json")):
        runs = MeasuredPlans.load(path)
        spec, work, device = find_model(runs.model), runs.workload, runs.cluster.devices[0]
        products.append(device.half_flops_per_s / sheet.half_flops_per_s)
        copies.append(device.memory_bytes_per_s / sheet.memory_bytes_per_s)
        one = spec.blocks[0].attentions[0]
        for point in runs.profile.points:
            tokens = point.image_tokens + point.text_tokens
            if point.part == "attention" and point.kernel and tokens >= LARGE_TOKENS:
                flops = 4 * one.heads * one.head_dim * point.batch * tokens * point.key_tokens
                reached = flops / point.median_s / sheet.half_flops_per_s
                attention[point.kernel, one.head_dim].append(reached)
            if point.part == "vae_decode":
                flops = spec.vae_flops_per_pixel * work.frames * work.height * work.width
                carried = sheet.memory_bytes_per_s * point.median_s
                decoding[runs.model].append(flops / carried)
    for (kernel, head_dim), shares in sorted(attention.items()):
        print(f"attention, {kernel}, heads of {head_dim}: {_range(shares)} of the peak")
    for model, rates in sorted(decoding.items()):
        print(f"decoding, {model}: {_range(rates)} FLOPs for each byte of the bandwidth")
    print(f"a plain product: {_range(products)} of the peak")
    print(f"a copy: {_range(copies)} of the bandwidth")


def _range(numbers: list[float]) -> str:
    return f"{min(numbers):.3g} to {max(numbers):.3g}"


if __name__ == "__main__":
    main()
