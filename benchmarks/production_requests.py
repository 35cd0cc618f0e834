"""200 requests of 5 sizes and 40 prompt lengths under one plan of two ranks, after a warm-up.

Counted: what is compiled and captured in them, how far each is from one device's latents, and how
the process grows. A small Qwen-Image on CPUs, compiled; its texts are of any length. torchrun
starts the job, `benchmarks/production_job.py`, in a folder of its own with a built wheel in place
of the checkout.

    python -m benchmarks.production_requests
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import described
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.workload import Workload
from ditplan.runtime.groups import GroupCache, RankContext
from ditplan.runtime.ranks.devices import device_name
from tests.distributed.family_models import small
from tests.distributed.small_models import workload
from tests.unit.test_wheel import unpacked_wheel

SIZES = ((28, 36), (36, 28), (20, 20), (48, 32), (32, 64))
LENGTHS = tuple(range(5, 45))
TEXT_SIZES = (16, 32, 48)
REQUESTS, RANKS = 200, 2
JOB = Path(__file__).with_name("production_job.py")
SETTINGS = {"OMP_NUM_THREADS": "1", "DIFFUSERS_VERBOSITY": "error"}
MOST_OFF = 1e-5
"""How far rounding may take the latents, which are of the order of 1."""

MOST_GROWTH = 1.02
"""How much larger the process may be at the end than after a quarter of the requests."""


def requests() -> list[Workload]:
    """Every length five times and every size forty times, in an order that mixes both."""
    base, found = workload(steps=2).model_dump(), []
    for number in range(REQUESTS):
        height, width = SIZES[number % len(SIZES)]
        tokens = LENGTHS[(7 * number + number // len(LENGTHS)) % len(LENGTHS)]
        asked = {"height": height, "width": width, "text_tokens": tokens}
        found.append(Workload.model_validate(base | asked))
    return found


def plan_here(work: Workload) -> ExecutionPlan:
    """A compiled plan of two ranks for this machine."""
    plan = bare_plan(
        PlannedModel.of_spec(small("qwen-image")), work, Mesh(ulysses=RANKS), mode="compile"
    )
    device = device_name(RankContext(0, 1, torch.device("cpu"), GroupCache(0, 1)))
    where = {"devices": (device,) * RANKS, "link_kinds": ("memory",)}
    fingerprint = plan.fingerprint.model_copy(update=where)
    return plan.model_copy(
        update={"fallback": "refuse", "text_sizes": TEXT_SIZES, "fingerprint": fingerprint}
    )


def serve(works: list[Workload], folder: Path) -> list[dict[str, Any]]:
    """Has a job make all requests in a folder; gives what each rank counted."""
    wheel = folder / "wheel"
    wheel.mkdir()
    package = unpacked_wheel(wheel)
    plan_here(works[0]).save(folder / "plan.json")
    small("qwen-image").save(folder / "model.json")
    (folder / "requests.json").write_text(json.dumps([work.model_dump() for work in works]))
    shutil.copy(JOB, folder)
    launcher = (sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}")
    subprocess.run(
        [*launcher, "--standalone", JOB.name],
        cwd=folder,
        env=os.environ | SETTINGS | {"PYTHONPATH": str(package)},
        timeout=3000,
        check=True,
    )
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    for one in found:
        if not Path(one["package"]).is_relative_to(package):
            raise RuntimeError(f"the job used {one['package']}, not the wheel")
    return found


def show(ranks: list[dict[str, Any]], works: list[Workload]) -> bool:
    """Prints a line for each rank and fact; gives whether nothing was compiled, no picture differs
    and no process grew.
    """
    sizes = len({(work.height, work.width) for work in works})
    lengths = len({work.text_tokens for work in works})
    lines = [
        f"{described('torch', 'diffusers')}, {datetime.now(UTC):%Y-%m-%d}",
        "$ python -m benchmarks.production_requests",
        f"{len(works)} requests, {sizes} sizes, {lengths} prompt lengths, ulysses2, compile; "
        f"texts rounded up to {', '.join(map(str, TEXT_SIZES))}; torchrun, from a wheel",
    ]
    is_sound = True
    for rank, found in enumerate(ranks):
        quarter, end = (found["memory_bytes"][at] for at in (len(works) // 4, -1))
        compilations, captures = found["after"]
        is_sound &= found["after"] == [0, 0] and max(found["off"]) <= MOST_OFF
        is_sound &= end <= MOST_GROWTH * quarter
        lines += [
            f"rank {rank}: warm-up {found['warm_up_s']:.1f} s, {found['warm'][0]} compilations",
            f"  after it {compilations} compilations, {captures} captures",
            f"  largest difference from one device's latents {max(found['off']):.1e}",
            f"  request {statistics.median(found['seconds']):.3f} s in the median, "
            f"{max(found['seconds']):.3f} s at most",
            f"  memory after {len(works) // 4} requests {quarter / 1e6:.0f} MB, after all "
            f"{end / 1e6:.0f} MB",
        ]
    sys.stdout.write("\n".join([*lines, "holds" if is_sound else "DOESN'T HOLD"]) + "\n")
    return is_sound


def main() -> int:
    """Serves them and prints what was counted; 1 where something doesn't hold."""
    works = requests()
    with tempfile.TemporaryDirectory() as folder:
        return int(not show(serve(works, Path(folder)), works))


if __name__ == "__main__":
    sys.exit(main())
