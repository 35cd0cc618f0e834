"""Times Ulysses' exchanges and the attention kernels on two GPUs, at the shapes of SD3 and FLUX.

python -m benchmarks.exchange
"""

import sys

import torch

from benchmarks.rank_measurements import attention_us, exchange_us
from ditplan.runtime.ranks.pool import RankPool

SHAPES = {
    "SD3 1024px, guidance": (2, 24, 4429, 64),
    "SD3 2048px, guidance": (2, 24, 16717, 64),
    "FLUX 1024px": (1, 24, 4608, 128),
    "FLUX 2048px": (1, 24, 16896, 128),
}
TIMEOUT_S = 120.0


def main() -> None:
    """Prints one line for each shape and way."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    sys.stdout.write(f"2 x {name}, torch {torch.__version__}, us, q, k, v (B, H, S, D) in bf16\n")
    with RankPool(None, 2, "cuda") as pool:
        for label, shape in SHAPES.items():
            batch, heads, tokens, width = shape
            for which, share in (("all", heads), ("half", heads // 2)):
                part = (batch, share, tokens, width)
                found = pool.run(attention_us, part, tokens, timeout_s=TIMEOUT_S)[0]
                flops = 4 * batch * share * tokens**2 * width
                rates = {
                    name: f"{us:.0f} ({flops / us / 1e6:.0f} TFLOP/s)" for name, us in found.items()
                }
                show(label, shape, f"attention, {which} the heads", rates)
            found = pool.run(exchange_us, shape, timeout_s=TIMEOUT_S)[0]
            show(label, shape, "exchange", {name: f"{us:.0f}" for name, us in found.items()})


def show(label: str, shape: tuple[int, ...], what: str, times: dict[str, str]) -> None:
    """Prints one line."""
    found = ", ".join(f"{name} {time}" for name, time in times.items())
    sys.stdout.write(f"{label} {shape}: {what}: {found}\n")


if __name__ == "__main__":
    main()
