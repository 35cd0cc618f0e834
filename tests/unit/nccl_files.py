"""Files as nccl-tests write them, by src/util.cu of theirs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

H100 = "NVIDIA H100 80GB HBM3"
SIZES = tuple(2**power for power in range(12, 29, 2))


def nccl_text(
    program: str = "all_reduce_perf",
    *,
    version: int = 2,
    hosts: Sequence[str] = ("a",),
    processes_per_host: int = 1,
    ngpus: int = 8,
    group_of: Callable[[int], int] = lambda _: 0,
    gpu: str = H100,
    sizes: Sequence[int] = SIZES,
    time_us: Callable[[int], float] = lambda size: 20 + size / 3e5,
    **timing: Any,
) -> str:
    """The text of a file; `timing` stands in each result's timing, in place of what it has."""
    each = [(host, local) for host in hosts for local in range(processes_per_host)]
    devices = [
        {
            **{"rank": number * ngpus, "group": group_of(number), "pid": 4711 + number},
            **{"hostname": host, "device": local * ngpus, "device_hex": "0000:1b:00"},
            "device_info": gpu,
        }
        for number, (host, local) in enumerate(each)
    ]
    results = []
    for size in sizes:
        took = {"time": time_us(size), "alg_bw": 1.0, "bus_bw": 1.0, "nwrong": 0.0} | timing
        took = {key: value for key, value in took.items() if value is not ...}
        result: dict[str, Any] = {"size": size, "count": size // 4, "type": "float"}
        result |= {"redop": "sum", "root": "    -1", "out_of_place": took, "in_place": took}
        if version >= 2:
            us = 1.1 * time_us(size)
            per_iter = {"min_us": us, "max_us": us, "p50_us": us, "p95_us": 1.5 * us}
            result["out_of_place_per_iter"] = per_iter | {"times_us": [us] * 3}
        results.append(result | {"actual_iterations": 20, "experiment_name": ""})
    config: dict[str, Any] = {
        "nthreads": 1,
        "ngpus": ngpus,
        "minimum_bytes": sizes[0] if sizes else 0,
    }
    config |= {"step_factor": 4, "graph": 0, "blocking_collectives": "false", "devices": devices}
    return json.dumps(
        {
            **{"version": version, "start_time": "2026-11-29 10:00:00"},
            **{"args": [f"/opt/nccl-tests/build/{program}", "-J", "x.json"]},
            **{"env": ["HOME=/root", "TOKEN=s3cret"], "nccl_version": 22809, "config": config},
            **{"results": results, "out_of_bounds": {"count": 0, "okay": "true"}},
            **{"average_bus_bandwidth": {"bandwidth": 1.0, "okay": "unchecked"}, "errors": []},
            "end_time": "2026-11-29 10:01:00",
        }
    )


def nccl_file(folder: Path, name: str, *args: Any, **kwargs: Any) -> Path:
    """Writes `nccl_text` to a file."""
    path = folder / name
    path.write_text(nccl_text(*args, **kwargs))
    return path
