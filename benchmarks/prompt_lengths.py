"""Prompts of many lengths on one GPU under one compiled and captured plan, against one length.

Qwen-Image at its true size with random weights, its own pipeline from prompt embeddings to latents.
After the warm-up each request has another number of text tokens. It takes turns with a request of
the lengths' median under the same plan without rounding, for which that one length was compiled and
captured: it needs no mask.

    python -m benchmarks.prompt_lengths             # one GPU, about 6 minutes
    python -m benchmarks.prompt_lengths --small     # CPU: a small model, compiled only, to try it
"""

import argparse
import statistics
import sys
from datetime import UTC, datetime

import torch

from benchmarks.length_tasks import Found, measure
from benchmarks.machine import described
from ditplan.planner.search.text_sizes import text_sizes_of
from ditplan.profiles.backends import find_backend
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import DeviceKind
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.model import Mode, ModelSpec
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a small model on a CPU")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--lengths", type=int, default=20)
    asked = parser.parse_args()
    spec = small("qwen-image") if asked.small else find_model("qwen-image")
    size = {"height": 28, "width": 36, "dtype": "float32"} if asked.small else {}
    size = size or {"height": asked.pixels, "width": asked.pixels}
    longest = 64 if asked.small else spec.defaults.text_tokens
    fields = size | {"steps": asked.steps, "text_tokens": longest}
    work = Workload.model_validate(spec.defaults.model_dump() | fields)
    mode: Mode = "compile" if asked.small else "compile+graph"
    fixed = bare_plan(PlannedModel.of_spec(spec), work, Mesh(), mode=mode)
    fixed = fixed.model_copy(update={"fallback": "refuse"})
    cluster = find_cluster("2xh200-nvlink")
    sizes = text_sizes_of(fixed.configuration, spec, work, cluster, find_backend("native"), {})
    rounding = fixed.model_copy(update={"text_sizes": sizes})
    # all over the range, in an order that says nothing
    lengths = [1 + (7919 * number) % longest for number in range(1, asked.lengths + 1)]
    kind: DeviceKind = "cpu" if asked.small else "cuda"
    with RankPool(None, 1, kind) as pool:
        found = pool.run(measure, spec, [rounding, fixed], lengths, timeout_s=1500)[0]
    show(found, spec, work, sizes, kind)


def show(
    found: Found, spec: ModelSpec, work: Workload, sizes: tuple[int, ...], kind: DeviceKind
) -> None:
    """Prints what was measured."""
    device = torch.cuda.get_device_name() if kind == "cuda" else described("torch", "diffusers")
    lines = [
        f"{device}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}",
        f"$ python -m benchmarks.prompt_lengths {' '.join(sys.argv[1:])}",
        f"{spec.name}: {work}; texts rounded up to {', '.join(map(str, sizes))}",
        f"warm-up {found.warm_up_s:.1f} s: {found.warm.compilations} compilations, "
        f"{found.warm.captures} captures",
        "tokens  seconds  the median's length, alone  ratio",
    ]
    for length, rounded_s, fixed_s in found.requests:
        lines.append(f"{length:6} {rounded_s:8.4f} {fixed_s:8.4f} {rounded_s / fixed_s:26.3f}")
    mean_s, fixed_s = (statistics.fmean(one[i] for one in found.requests) for i in (1, 2))
    before, after = found.memory_bytes
    lines += [
        f"mean of {len(found.requests)} lengths {mean_s:.4f} s, of one length {fixed_s:.4f} s: "
        f"{mean_s / fixed_s:.3f} times",
        f"after the warm-up {found.after.compilations} compilations, {found.after.captures} "
        f"captures; memory {before / 1e9:.2f} to {after / 1e9:.2f} GB",
        f"relative L2 distance from eager, unrounded, of {work.dtype}: {found.off:.2e}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
