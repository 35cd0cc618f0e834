"""Which modules a command's process has loaded when it ends."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RANKS_OWN = {"accelerate", "diffusers", "pandas", "peft", "sklearn", "torch", "transformers"}
"""Libraries for ranks alone."""

PLANNERS_OWN = {"networkx", "numpy", "optuna"}


def imported_by(words: Sequence[object], folder: Path) -> set[str]:
    """The modules loaded by `ditplan` with these words, run in a folder; it has to end with 0."""
    seen = folder / "modules.json"
    script = (
        "import atexit, json, pathlib, sys\n"
        f"seen = pathlib.Path({str(seen)!r})\n"
        "atexit.register(lambda: seen.write_text(json.dumps(sorted(sys.modules))))\n"
        "from ditplan.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(seen.read_text()))


def libraries(modules: set[str]) -> set[str]:
    """The top names of modules."""
    return {name.partition(".")[0] for name in modules}
