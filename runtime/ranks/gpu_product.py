"""How fast the GPUs of this host multiply, and at which clock; a program of its own, since it
imports torch and holds the GPUs: `python -m ditplan.runtime.ranks.gpu_product` prints JSON.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch

from ditplan.runtime.ranks.gpu_inventory import clock_of
from ditplan.runtime.ranks.host_probes import GpuProduct

SIZE = 4096
CALLS = 20
PRODUCTS_S = 0.25


def gpu_product(number: int) -> GpuProduct:
    """Multiplies on a GPU, as CUDA numbers them, for `PRODUCTS_S`."""
    device = torch.device("cuda", number)
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    a, b = (torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = a @ b
    torch.cuda.synchronize(device)
    best, end = float("inf"), time.monotonic() + PRODUCTS_S
    while time.monotonic() < end:
        began = time.perf_counter()
        for _ in range(CALLS):
            torch.matmul(a, b, out=product)
        torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - began) / CALLS)
    for _ in range(CALLS):
        torch.matmul(a, b, out=product)
    # asked while it multiplies: an idle GPU lowers its clock
    clock = clock_of(uuid)
    torch.cuda.synchronize(device)
    return GpuProduct(uuid, 2.0 * SIZE**3 / best, *clock)


def main() -> None:
    """Prints what all GPUs do, at once."""
    count = torch.cuda.device_count()
    with ThreadPoolExecutor(max(1, count)) as threads:
        found = [asdict(one) for one in threads.map(gpu_product, range(count))]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
