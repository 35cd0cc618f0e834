"""What stands beside a plan, or is given to one, against one device: small models, two CPU ranks.

    python -m benchmarks.beside_a_plan

LoRA in its states, odd sizes, masks of padded text, quantized weights (where torchao, bitsandbytes
are installed), pipelines with two transformers, PipeFusion with six schedulers. All of PipeFusion's
steps are warm-up steps, which are exact.
Each row is the largest difference of any rank's result to one device's. Models and what is asked of
ranks are those of the tests. The exit code is 1 where a difference is larger than `EXACT`.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from benchmarks.beside_tasks import latents_of_works
from benchmarks.machine import described
from ditplan.profiles.configuration import PipeFusion
from ditplan.profiles.family import family_of
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.workload import Workload
from ditplan.runtime.ranks.pool import RankPool
from tests.distributed.family_models import small
from tests.distributed.family_tasks import (
    inputs_of,
    latents_of_pipeline,
    step_alone,
    step_outputs,
)
from tests.distributed.neighbour_tasks import stories_told
from tests.distributed.rank_tasks import furthest
from tests.distributed.small_models import plan_for, small_sd3, workload

EXACT = 1e-4
TIMEOUT_S = 300.0
SD3 = small_sd3()
MESHES = {
    "cfg": Mesh(cfg=2),
    "ulysses": Mesh(ulysses=2),
    "ring": Mesh(ring=2),
    "pipefusion": Mesh(pipefusion=2),
}
LORA = {
    "one": "lora one",
    "at half its strength": "lora one, half of lora one",
    "the second of two": "lora one, lora two, only lora two",
    "on embedders and the last layer too": "lora on sd3",
    "fused": "lora one, fuse",
}
SIZES = ((4, 12), (12, 12), (12, 20), (20, 20), (28, 36), (36, 36), (44, 12), (52, 28), (60, 20))
MASKED = ("auraflow", "hunyuan-dit", "hunyuan-video", "pixart", "qwen-image", "z-image")
RINGS = ("pass", "gather", "bidirectional")
QUANTIZED = {"torchao": "int8", "bitsandbytes": "nf4"}
"""Packages, and what weights they make."""
SCHEDULERS = ("euler", "dpm", "unipc", "sde", "stochastic", "deis")


@dataclass(frozen=True)
class Row:
    """Cases of one kind along one axis, and the largest difference of any of them."""

    what: str
    axis: str
    cases: int
    furthest: float


def plan_along(axis: str, work: Workload, sharded: bool = False) -> ExecutionPlan:
    """A plan of SD3; where it has stages, all its steps are warm-up steps, which are exact."""
    mesh = MESHES[axis]
    warm = PipeFusion(blocks_per_stage=(2, 1), patches=2, warmup_steps=work.steps)
    plan = plan_for(SD3, mesh, work, None, warm if mesh.pipefusion > 1 else None)
    return plan.configured(weights="sharded") if sharded else plan


def lora_rows(pool: RankPool) -> Iterator[Row]:
    """States of LoRA, under each axis and beside weights in pieces."""
    work = workload(steps=2)
    for axis in MESHES:
        yield _of_stories(pool, axis, plan_along(axis, work), list(LORA.values()))
    sharded = plan_along("ulysses", work, sharded=True)
    yield _of_stories(pool, "ulysses, sharded", sharded, list(LORA.values())[:2])


def _of_stories(pool: RankPool, axis: str, plan: ExecutionPlan, states: list[str]) -> Row:
    stories = [["plan", *state.split(", "), "call"] for state in states]
    results = pool.run(stories_told, SD3, plan, stories, timeout_s=TIMEOUT_S)
    found = [far for of_rank in results for told in of_rank for _, far in told or ()]
    assert len(found) == 2 * len(states)
    # a refusal is text, and is no result here
    return Row("LoRA", axis, len(states), _largest([float(far) for far in found]))


def _of_works(
    pool: RankPool, what: str, axis: str, plans: list[ExecutionPlan], change: str = ""
) -> Row:
    single = [plan_for(SD3, Mesh(), plan.workload) for plan in plans]
    alone = pool.run(latents_of_works, SD3, single, change, timeout_s=TIMEOUT_S)[0]
    results = pool.run(latents_of_works, SD3, plans, change, timeout_s=TIMEOUT_S)
    by_plan = zip(*results, strict=True)
    found = [furthest(one, list(of)) for one, of in zip(alone, by_plan, strict=True)]
    return Row(what, axis, len(plans), _largest(found))


def _largest(found: Sequence[float]) -> float:
    """The largest, or NaN if any is."""
    return float(torch.tensor(found).max())


def size_rows(pool: RankPool) -> Iterator[Row]:
    """Sizes whose tokens nothing divides, with text of 5 to 13 tokens."""
    works = [
        workload(height=height, width=width, steps=2, text_tokens=5 + number)
        for number, (height, width) in enumerate(SIZES)
    ]
    for axis in MESHES:
        yield _of_works(pool, "sizes", axis, [plan_along(axis, work) for work in works])
    sharded = [plan_along("ulysses", work, sharded=True) for work in works]
    yield _of_works(pool, "sizes", "ulysses, sharded", sharded)


def mask_rows(pool: RankPool) -> Iterator[Row]:
    """Models whose text is padded and masked, a step of each."""
    for axis, mesh in (("ulysses", Mesh(ulysses=2)), *((ring, Mesh(ring=2)) for ring in RINGS)):
        found = []
        for name in MASKED:
            spec = small(name)
            family = family_of(spec.transformer_class)
            frames = 3 if name == "hunyuan-video" else 1
            calls = 2 if family.guidance == "calls" else 1
            inputs = [inputs_of(spec, frames=frames, masked=3, seed=seed) for seed in range(calls)]
            plan = plan_for(spec, mesh, workload(passes=1 if family.guidance == "embedded" else 2))
            plan = plan.configured(ring=axis) if mesh.ring > 1 else plan
            results = pool.run(step_outputs, spec, [plan], inputs, timeout_s=TIMEOUT_S)
            found.append(furthest(step_alone(spec, inputs), [one[0] for one in results]))
        yield Row(
            "masks", axis if mesh.ulysses > 1 else f"ring, {axis}", len(MASKED), _largest(found)
        )


def quantized_rows(pool: RankPool) -> Iterator[Row]:
    """Weights of 8 bits by torchao, of 4 bits by bitsandbytes."""
    for package, kind in QUANTIZED.items():
        if importlib.util.find_spec(package) is None:
            sys.stdout.write(f"{kind}: left out, {package} isn't installed\n")
            continue
        for axis in MESHES:
            yield _of_works(pool, kind, axis, [plan_along(axis, workload(steps=2))], kind)


def two_transformer_rows(pool: RankPool) -> Iterator[Row]:
    """Wan 2.2 as its A14B is: one transformer for the first steps, another one for the others."""
    spec, work = small("wan"), workload(height=48, width=80, frames=5)
    plans = {axis: plan_for(spec, MESHES[axis], work) for axis in ("cfg", "ulysses", "ring")}
    plans["ulysses, sharded"] = plans["ulysses"].configured(weights="sharded")
    single = plan_for(spec, Mesh(), work)
    alone = pool.run(latents_of_pipeline, spec, single, True, timeout_s=TIMEOUT_S)[0]
    for axis, plan in plans.items():
        found = pool.run(latents_of_pipeline, spec, plan, True, timeout_s=TIMEOUT_S)
        yield Row("two transformers", axis, 1, furthest(alone, found))


def scheduler_rows(pool: RankPool) -> Iterator[Row]:
    """PipeFusion with schedulers of one step and of several, with noise and without."""
    plan = plan_along("pipefusion", workload(steps=4))
    for name in SCHEDULERS:
        yield _of_works(pool, f"scheduler {name}", "pipefusion", [plan], name)


GROUPS: dict[str, Callable[[RankPool], Iterator[Row]]] = {
    "lora": lora_rows,
    "sizes": size_rows,
    "masks": mask_rows,
    "quantized": quantized_rows,
    "two-transformers": two_transformer_rows,
    "schedulers": scheduler_rows,
}


def main() -> int:
    """0 where all results are one device's, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    asked = parser.parse_args()
    packages = ["torch", "diffusers", "peft"]
    packages += [one for one in QUANTIZED if importlib.util.find_spec(one)]
    command = " ".join(["python -m benchmarks.beside_a_plan", *sys.argv[1:]])
    sys.stdout.write(f"{command}, {datetime.now(UTC):%Y-%m-%d}\n{described(*packages)}; gloo\n\n")
    sys.stdout.write(f"{'what':<22}{'axis':<22}{'cases':>6}{'furthest':>11}\n")
    started, rows = time.monotonic(), []
    with RankPool(None, 2, "cpu") as pool:
        for group in asked.groups:
            for row in GROUPS[group](pool):
                verdict = "" if row.furthest <= EXACT else "  NOT ONE DEVICE'S"
                sys.stdout.write(
                    f"{row.what:<22}{row.axis:<22}{row.cases:>6}{row.furthest:>11.2g}{verdict}\n"
                )
                sys.stdout.flush()
                rows.append(row)
    cases = sum(row.cases for row in rows)
    sys.stdout.write(f"\n{cases} cases in {time.monotonic() - started:.0f} s\n")
    return int(not all(row.furthest <= EXACT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
