"""Which cases the project's own baseline has: every shipped model on every recorded cluster as it
is usually asked for, and every one of them once with something else.

    python -m benchmarks.baseline_questions
    python cli.py check --baseline benchmarks/baseline --update

Writes the questions to `benchmarks/baseline`, with the answers that are there; the second command
answers those that are new.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ditplan.profiles.baseline import Baseline, RecordedCase
from ditplan.profiles.catalog import cluster_names, find_cluster, find_model, model_names
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.model import ModelSpec

BASELINE = Path(__file__).parent / "baseline"
SEVERAL_HOSTS = ("sd3", "flux-dev", "hunyuandit", "qwen-image", "sana", "wan2.1-1.3b")
"""Models that are planned on all GPUs of several hosts, which takes seconds each."""

FEW_GPUS = 4
BACKENDS = ("xdit", "diffusers")


def questions_on(cluster: ClusterProfile) -> Iterator[RecordedCase]:
    """All questions about a cluster."""
    gpus = len(cluster.devices)
    for place, name in enumerate(model_names()):
        spec = find_model(name)
        is_large = gpus > 8 and name not in SEVERAL_HOSTS
        yield RecordedCase(model=name, asked={"gpus": FEW_GPUS} if is_large else {})
        if len(cluster.hosts) == 1:
            yield RecordedCase(model=name, asked=_otherwise(spec, place + gpus, gpus))
    if len(cluster.hosts) == 1 and gpus > 2:
        for backend in BACKENDS:
            yield RecordedCase(model="flux-dev", asked={"backend": backend, "gpus": FEW_GPUS})
        yield RecordedCase(model="sd3", asked={"objective": "gpus", "max_latency_s": 2})


def _otherwise(spec: ModelSpec, turn: int, gpus: int) -> dict[str, Any]:
    """Something else than the usual: which of them goes by turns."""
    usual = spec.defaults
    half, double = usual.height // 2 // 64 * 64, usual.height * 2
    fewer = max(2, gpus // 2)
    ways: tuple[dict[str, Any], ...] = (
        {"quality": "exact", "gpus": fewer},
        {"height": half, "width": half, "quality": "any"},
        {"objective": "throughput"},
        {"height": double, "width": double, "steps": 8},
        {"batch": 3, "quality": "exact"},
        {"gpus": 1},
        {"mode": "eager", **({"height": 1056, "width": 1056} if usual.frames == 1 else {})},
    )
    return ways[turn % len(ways)]


def main() -> None:
    """Writes a file for each cluster, or for those named."""
    for name in sys.argv[1:] or cluster_names():
        path = BASELINE / f"{name}.json"
        known = {case.name: case for case in Baseline.load(path).cases} if path.exists() else {}
        cases = tuple(known.get(case.name, case) for case in questions_on(find_cluster(name)))
        Baseline(cluster=name, cases=cases).save(path)
        print(f"{path}: {len(cases)} cases")


if __name__ == "__main__":
    main()
