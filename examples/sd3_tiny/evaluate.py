"""Draws held-out captions with a saved pipeline and counts the pictures that are right.

python examples/sd3_tiny/evaluate.py --weights DIR --captions 200
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checker import describe, shows
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from scenes import held_out_captions

WEIGHTS = Path(__file__).parents[2] / "profiles" / "models" / "sd3-tiny"


def load(folder: Path, device: str) -> Any:
    """The saved pipeline in float32 on `device`."""
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(str(folder), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def generate(
    pipe: Any,
    captions: Sequence[str],
    guidance: float,
    steps: int,
    batch: int,
) -> list[Image.Image]:
    """A picture for each caption; the noise of each depends on its place alone."""
    pictures: list[Image.Image] = []
    for start in range(0, len(captions), batch):
        some = list(captions[start : start + batch])
        noise = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(some))]
        pictures += pipe(
            some, guidance_scale=guidance, num_inference_steps=steps, generator=noise
        ).images
    return pictures


def count_right(pictures: Sequence[Image.Image], captions: Sequence[str]) -> int:
    """How many pictures show what their captions say."""
    return sum(shows(picture, caption) for picture, caption in zip(pictures, captions, strict=True))


def why_wrong(pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[str]:
    """For each picture that is wrong, its caption and what it shows instead."""
    lines = []
    for picture, caption in zip(pictures, captions, strict=True):
        if not shows(picture, caption):
            seen = [f"{one.colour} {one.shape} at {one.centre}" for one in describe(picture)]
            lines.append(f"{caption}: {'; '.join(seen) or 'nothing'}")
    return lines


def save_grid(pictures: Sequence[Image.Image], _captions: Sequence[str], path: Path) -> None:
    """The first 16 pictures, four in a row, as one."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (4 * width, 4 * height))
    for place, picture in enumerate(pictures[:16]):
        whole.paste(picture, (place % 4 * width, place // 4 * height))
    whole.save(path)


def table(rows: Sequence[tuple[str, float, int, int]]) -> str:
    """The counts as lines: captions, guidance, right pictures, share."""
    head = f"{'captions':<10} {'guidance':>8} {'right':>5} {'of':>4} {'share':>6}"
    lines = [
        f"{name:<10} {guidance:>8g} {right:>5} {count:>4} {right / count:>6.1%}"
        for name, guidance, right, count in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Print the count."""
    parser = argparse.ArgumentParser(description="Scores a saved sd3-tiny on unseen captions.")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=3.0, help="1 is without guidance")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    captions = held_out_captions()[: options.captions]
    pipe = load(options.weights, options.device)
    pictures = generate(pipe, captions, options.guidance, options.steps, options.batch)
    for line in why_wrong(pictures, captions):
        print(f"wrong: {line}")
    right = count_right(pictures, captions)
    print(table([("held-out", options.guidance, right, len(captions))]))


if __name__ == "__main__":
    main()
