"""What PipeFusion and step caches cost in quality on sd3-tiny, against one device without.

    python -m benchmarks.pipefusion_quality --captions 64

For each number of patches and warm-up steps: how many pictures of unseen captions show what these
say, and how far latents and pictures are from those of one device with the same noise. Stages only
say where blocks run: results don't depend on how many there are, which `--stages 2 4` shows.
`--cache 2 3 --order 0 1` shows step caches of these intervals and orders instead.
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path

import torch

from benchmarks.rank_measurements import Drawn, draw
from ditplan.profiles.catalog import find_model
from ditplan.profiles.configuration import PipeFusion, TaylorSeer
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PlannedModel, bare_plan
from ditplan.profiles.splits import split_sizes
from ditplan.runtime.ranks.pool import RankPool

EXAMPLE = Path(__file__).parents[1] / "examples" / "sd3_tiny"
TIMEOUT_S = 3600.0


def relative_l2(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over samples of the L2 distance of `one` to `other`, over the norm of `other`."""
    distance = (one - other).flatten(1).norm(dim=1)
    return float((distance / other.flatten(1).norm(dim=1)).mean())


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures from 0 to 1, by their mean squared error."""
    error = float((one - other).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


class Drawing:
    """Draws the captions with one plan after another, and shows how that compares."""

    def __init__(self, pool: RankPool, asked: argparse.Namespace) -> None:
        # the example's modules are scripts beside each other
        sys.path.insert(0, str(EXAMPLE))
        from checker import shows  # type: ignore[import-not-found]
        from scenes import held_out_captions  # type: ignore[import-not-found]

        self._pool, self._asked, self._shows = pool, asked, shows
        self._captions: list[str] = list(held_out_captions()[: asked.captions])
        self._spec = find_model("sd3-tiny")
        self._planned = PlannedModel.of_spec(self._spec)
        self._work = self._spec.defaults.model_copy(
            update={"steps": asked.steps, "dtype": "float32"}
        )
        sys.stdout.write(
            f"sd3-tiny, {len(self._captions)} unseen captions, {asked.steps} steps, guidance "
            f"{asked.guidance:g}, float32 on {asked.device}, torch {torch.__version__}\n"
        )
        say("stages", "patches", "warm-up", "right", "relative L2", "PSNR dB", "s")
        self._alone, seconds = self._draw(bare_plan(self._planned, self._work, Mesh()))
        say(1, "-", "-", self._right(self._alone), 0, "-", f"{seconds:.0f}")

    def compare(self, stages: int, patches: int, warmup: int) -> None:
        """Prints the line of one setting."""
        part = PipeFusion(
            blocks_per_stage=split_sizes(self._spec.block_count, stages),
            patches=patches,
            warmup_steps=warmup,
        )
        mesh = Mesh(pipefusion=stages)
        plan = bare_plan(self._planned, self._work, mesh, pipefusion=part)
        self._show(plan, stages, patches, warmup)

    def compare_cache(self, cache: TaylorSeer) -> None:
        """Prints the line of a step cache, on one device."""
        plan = bare_plan(self._planned, self._work, Mesh(), step_cache=cache)
        computed = f"{cache.computed_steps(self._asked.steps)} computed"
        self._show(plan, f"interval {cache.interval}", f"order {cache.order}", computed)

    def _show(self, plan: ExecutionPlan, *setting: object) -> None:
        drawn, seconds = self._draw(plan)
        distance = relative_l2(drawn.latents, self._alone.latents)
        ratio = psnr(drawn.pictures, self._alone.pictures)
        numbers = (f"{distance:.4f}", f"{ratio:.1f}", f"{seconds:.0f}")
        say(*setting, self._right(drawn), *numbers)

    def _draw(self, plan: ExecutionPlan) -> tuple[Drawn, float]:
        asked, begin = self._asked, time.perf_counter()
        found = self._pool.run(
            draw, plan, self._captions, asked.guidance, asked.batch, timeout_s=TIMEOUT_S
        )[0]
        if found is None:
            raise SystemExit("rank 0 took no part")
        return found, time.perf_counter() - begin

    def _right(self, drawn: Drawn) -> int:
        pictures = (drawn.pictures * 255).round().to(torch.uint8).numpy()
        pairs = zip(pictures, self._captions, strict=True)
        return sum(self._shows(picture, caption) for picture, caption in pairs)


def say(*cells: object) -> None:
    """Prints a line of a table."""
    sys.stdout.write("".join(f"{cell!s:>12}" for cell in cells) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Prints one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--stages", type=int, nargs="+", default=[2])
    parser.add_argument("--patches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--warmup", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--cache", type=int, nargs="+", help="intervals of step caches")
    parser.add_argument("--order", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked = parser.parse_args()
    with RankPool(None, 1 if asked.cache else max(asked.stages), asked.device) as pool:
        drawing = Drawing(pool, asked)
        if asked.cache:
            for interval, order in itertools.product(asked.cache, asked.order):
                drawing.compare_cache(TaylorSeer(interval=interval, order=order))
            return
        for setting in itertools.product(asked.stages, asked.patches, asked.warmup):
            drawing.compare(*setting)


if __name__ == "__main__":
    main()
