"""What PipeFusion costs in quality on sd3-tiny: unseen captions, against one device.

    python -m benchmarks.pipefusion_quality --captions 64

For each number of patches and warm-up steps: how many pictures show what their captions say, and
how far latents and pictures are from those of one device with the same noise. Stages only say where
blocks run: results don't depend on how many there are, which `--stages 2 4` shows.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch

from benchmarks.engines import bare_plan
from benchmarks.rank_measurements import Drawn, draw
from ditplan.profiles.catalog import find_model
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan, PipeFusion
from ditplan.runtime.launch import RankPool

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


def main() -> None:
    """Prints one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--stages", type=int, nargs="+", default=[2])
    parser.add_argument("--patches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--warmup", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    from checker import shows  # type: ignore[import-not-found]
    from scenes import held_out_captions  # type: ignore[import-not-found]

    captions = list(held_out_captions()[: asked.captions])
    spec = find_model("sd3-tiny")
    work = spec.defaults.model_copy(update={"steps": asked.steps, "dtype": "float32"})
    blocks = spec.block_count

    def right(drawn: Drawn) -> int:
        pictures = (drawn.pictures * 255).round().to(torch.uint8).numpy()
        return sum(shows(p, caption) for p, caption in zip(pictures, captions, strict=True))

    def line(*cells: object) -> None:
        sys.stdout.write("".join(f"{cell!s:>12}" for cell in cells) + "\n")
        sys.stdout.flush()

    sys.stdout.write(
        f"sd3-tiny, {len(captions)} unseen captions, {asked.steps} steps, guidance "
        f"{asked.guidance:g}, float32 on {asked.device}, torch {torch.__version__}\n"
    )
    line("stages", "patches", "warm-up", "right", "relative L2", "PSNR dB", "s")
    with RankPool(None, max(asked.stages), asked.device) as pool:

        def drawn_by(plan: ExecutionPlan) -> tuple[Drawn, float]:
            begin = time.perf_counter()
            found = pool.run(
                draw, plan, captions, asked.guidance, asked.batch, timeout_s=TIMEOUT_S
            )[0]
            if found is None:
                raise SystemExit("rank 0 took no part")
            return found, time.perf_counter() - begin

        alone, seconds = drawn_by(bare_plan(spec, work, Mesh()))
        line(1, "-", "-", right(alone), 0, "-", f"{seconds:.0f}")
        for stages in asked.stages:
            size, more = divmod(blocks, stages)
            per_stage = (size + 1,) * more + (size,) * (stages - more)
            for patches in asked.patches:
                for warmup in asked.warmup:
                    part = PipeFusion(
                        blocks_per_stage=per_stage, patches=patches, warmup_steps=warmup
                    )
                    plan = bare_plan(spec, work, Mesh(pipefusion=stages), pipefusion=part)
                    drawn, seconds = drawn_by(plan)
                    line(
                        stages,
                        patches,
                        warmup,
                        right(drawn),
                        f"{relative_l2(drawn.latents, alone.latents):.4f}",
                        f"{psnr(drawn.pictures, alone.pictures):.1f}",
                        f"{seconds:.0f}",
                    )


if __name__ == "__main__":
    main()
