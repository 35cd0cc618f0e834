"""What the planner answers for every shipped model on every recorded cluster, to hold against the
answers of another revision: a change that moves code about must not change a byte of them.

    python -m benchmarks.planner_answers --save before.json      # in a checkout of the old revision
    python -m benchmarks.planner_answers --against before.json   # in the new one

It asks by the command line, whose JSON outlives what is behind it.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from ditplan.cli import app
from ditplan.profiles.catalog import cluster_names, model_names

TIMES = ("search_s", "plan")
"""Fields that differ from run to run."""


def questions() -> Iterator[tuple[str, ...]]:
    """Command lines, without what they write: all models x clusters, and some that pin knobs."""
    for cluster in cluster_names():
        for model in model_names():
            yield ("tune", "--model", model, "--cluster", cluster, "--quality", "any")
    for cluster in cluster_names():
        for model in ("sd3", "flux-dev", "hunyuandit", "wan2.1-1.3b"):
            where = ("--model", model, "--cluster", cluster)
            yield ("tune", *where, "--quality", "exact", "--height", "1040", "--batch", "3")
            yield ("tune", *where, "--objective", "throughput", "--mode", "eager")
            yield ("simulate", *where, "--ulysses", "2", "--pipefusion", "2", "--patches", "3")
            yield (
                "simulate",
                *where,
                "--ring",
                "2",
                "--dp",
                "2",
                "--batch",
                "2",
                "--mode",
                "compile",
            )
    for backend in ("xdit", "diffusers"):
        yield ("tune", "--model", "flux-dev", "--cluster", "8xl20-pcie", "--backend", backend)


def answer(question: tuple[str, ...], folder: Path) -> str:
    """What the command answers, as JSON without times."""
    written = ("--out", str(folder / "plan.json")) if question[0] == "tune" else ()
    done = CliRunner().invoke(app, [*question, *written, "--json"])
    try:
        found = json.loads(done.stdout)
    except json.JSONDecodeError:
        found = {"failed": str(done.exception)}
    kept = {name: value for name, value in found.items() if name not in TIMES}
    return json.dumps(kept, sort_keys=True)


def main() -> None:
    """Asks everything; saves the answers, or compares them with saved ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    answers: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for question in questions():
            answers[" ".join(question)] = answer(question, Path(folder))
    digest = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()
    print(f"{len(answers)} answers, sha256 {digest}")
    if options.save:
        options.save.write_text(json.dumps(answers, indent=0, sort_keys=True))
    if options.against:
        before = json.loads(options.against.read_text())
        changed = [q for q in sorted(answers | before) if answers.get(q) != before.get(q)]
        print(f"{len(changed)} of {len(answers | before)} answers differ")
        for question in changed:
            print(f"  {question}")
        sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
