"""Decodes with a VAE on one and on more ranks: time and peak memory by size and degree.

python -m benchmarks.vae_decode --device cuda
python -m benchmarks.vae_decode --device cpu --sizes 256 --degrees 1 2

On GPUs it needs as many as the largest degree, and first compares one rank under the hooks with
diffusers' own decode. Weights are random: time and memory don't depend on them. A picture is
compared with one device's where that is decoded beside it (`--compare`, small sizes).
"""

import argparse
import datetime
import sys

import torch

from benchmarks.machine import described
from benchmarks.vae_decode_tasks import Decoded, decode, hooks_of_one
from ditplan.profiles.errors import ClusterError
from ditplan.runtime.ranks.pool import RankPool

TIMEOUT_S = 540.0
SIZES = {"cuda": (1024, 2048, 4096, 8192), "cpu": (256,)}


def main() -> None:
    """Prints one line for each size and degree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--model", default="sd3", help="whose VAE")
    parser.add_argument("--sizes", type=int, nargs="+", help="edges of the picture in pixels")
    parser.add_argument("--degrees", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--compare", action="store_true", help="with one device's picture")
    asked = parser.parse_args()
    on_gpus = asked.device == "cuda"
    dtype = "bfloat16" if on_gpus else "float32"
    device = torch.cuda.get_device_name(0) if on_gpus else described("torch", "diffusers")
    date = datetime.datetime.now(datetime.UTC).date()
    sys.stdout.write(
        f"VAE of {asked.model}, {dtype}, {device}, torch {torch.__version__}, {date}\n"
    )
    sys.stdout.write(f"python -m benchmarks.vae_decode {' '.join(sys.argv[1:])}\n")
    if on_gpus:
        show_hooks(asked.model, dtype)
    for pixels in asked.sizes or SIZES[asked.device]:
        for degree in asked.degrees:
            show(asked, pixels, degree, dtype)


def show_hooks(model: str, dtype: str) -> None:
    """Prints what the hooks cost where one rank has all rows."""
    with RankPool(None, 1, "cuda") as pool:
        own_s, hooked_s = pool.run(hooks_of_one, model, 1024, dtype, timeout_s=TIMEOUT_S)[0]
    sys.stdout.write(
        f"1024 px, one rank: diffusers {1e3 * own_s:.1f} ms (a plan of degree 1 leaves it as it "
        f"is), under the hooks {1e3 * hooked_s:.1f} ms ({100 * (hooked_s / own_s - 1):+.1f}%)\n"
    )


def show(asked: argparse.Namespace, pixels: int, degree: int, dtype: str) -> None:
    """Prints a size on so many ranks, which are new ones: peaks are of this decode alone."""
    args = (asked.model, pixels, dtype, degree, asked.compare)
    try:
        with RankPool(None, degree, asked.device) as pool:
            found = pool.run(decode, *args, timeout_s=TIMEOUT_S)
    except ClusterError as error:
        if "OutOfMemory" not in str(error):
            raise
        found = ["out of memory"]
    done = [one for one in found if isinstance(one, Decoded)]
    if not done:
        sys.stdout.write(f"{pixels} px, degree {degree}: out of memory\n")
        return
    away = [one.difference for one in done if one.difference is not None]
    compared = f", furthest from one device {max(away):.1e}" if away else ""
    sys.stdout.write(
        f"{pixels} px, degree {degree}: {1e3 * max(one.seconds for one in done):.1f} ms, peak "
        f"{max(one.peak_bytes for one in done) / 2**30:.2f} GiB a rank beside weights{compared}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
