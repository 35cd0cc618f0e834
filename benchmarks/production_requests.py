"""200 requests of 5 sizes and 40 prompt lengths under one plan of two ranks, after a warm-up.

Counted: what is compiled in them, how far each is from one device's latents, and how the process
grows. A small Qwen-Image on CPUs, compiled; its texts are of any length.

    python -m benchmarks.production_requests
"""

import statistics
import sys
from datetime import UTC, datetime

from benchmarks.length_tasks import Served, serve
from benchmarks.machine import described
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.small_models import workload

SIZES = ((28, 36), (36, 28), (20, 20), (48, 32), (32, 64))
LENGTHS = tuple(range(5, 45))
TEXT_SIZES = (16, 32, 48)
REQUESTS = 200


def requests() -> list[Workload]:
    """Every length five times and every size forty times, in an order that mixes both."""
    base, found = workload(steps=2).model_dump(), []
    for number in range(REQUESTS):
        height, width = SIZES[number % len(SIZES)]
        tokens = LENGTHS[(7 * number + number // len(LENGTHS)) % len(LENGTHS)]
        asked = {"height": height, "width": width, "text_tokens": tokens}
        found.append(Workload.model_validate(base | asked))
    return found


def main() -> None:
    """Serves them and prints what was counted."""
    spec, works = small("qwen-image"), requests()
    plan = bare_plan(PlannedModel.of_spec(spec), works[0], Mesh(ulysses=2), mode="compile")
    plan = plan.model_copy(update={"fallback": "refuse", "text_sizes": TEXT_SIZES})
    with RankPool(None, 2, "cpu") as pool:
        ranks = pool.run(serve, spec, plan, works, timeout_s=3000)
    show([found for found in ranks if found is not None], works)


def show(ranks: list[Served], works: list[Workload]) -> None:
    """Prints a line for each rank and fact."""
    sizes = len({(work.height, work.width) for work in works})
    lengths = len({work.text_tokens for work in works})
    lines = [
        f"{described('torch', 'diffusers')}, {datetime.now(UTC):%Y-%m-%d}",
        "$ python -m benchmarks.production_requests",
        f"{len(works)} requests, {sizes} sizes, {lengths} prompt lengths, ulysses2, compile; "
        f"texts rounded up to {', '.join(map(str, TEXT_SIZES))}",
    ]
    for rank, found in enumerate(ranks):
        warmed = found.memory_bytes[len(works) // 4]
        lines += [
            f"rank {rank}: warm-up {found.warm_up_s:.1f} s, {found.warm.compilations} compilations",
            f"  after it {found.after.compilations} compilations, {found.after.captures} captures",
            f"  largest difference from one device's latents {max(found.off):.1e}",
            f"  request {statistics.median(found.seconds):.3f} s in the median, "
            f"{max(found.seconds):.3f} s at most",
            f"  memory after {len(works) // 4} requests {warmed / 1e6:.0f} MB, after all "
            f"{found.memory_bytes[-1] / 1e6:.0f} MB",
        ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
