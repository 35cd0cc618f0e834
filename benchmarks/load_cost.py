"""What a job pays for reading a plan: CPU time and modules that `import ditplan` and
`ditplan.load` add to a process that has imported torch.

    python -m benchmarks.load_cost

Each figure is the median of fresh processes. pydantic is imported first, with a model of one field,
so that its own share is told apart. The last row is pydantic's with Python's collection of garbage,
which its import happens to set off: that looks at all that torch has made.
"""

import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import described

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "tests" / "unit" / "schema_2" / "plan.json"
PROCESSES = 15
SCRIPT = """
import gc, json, sys, time
import torch
if sys.argv[2] == "uncollected":
    gc.disable()
modules, times = [set(sys.modules)], [time.process_time()]
def passed():
    times.append(time.process_time())
    modules.append(set(sys.modules))
import pydantic
class Model(pydantic.BaseModel):
    field: int
passed()
import ditplan
passed()
ditplan.load(sys.argv[1])
passed()
json.dump({
    "ms": [1e3 * (after - before) for before, after in zip(times, times[1:])],
    "modules": [len(after - before) for before, after in zip(modules, modules[1:])],
}, sys.stdout)
"""


def measured(how: str) -> tuple[list[float], list[int]]:
    """Milliseconds of CPU and modules of pydantic, of `import ditplan` and of `ditplan.load`."""
    found = []
    # the first one writes what Python keeps of compiled modules
    for _ in range(PROCESSES + 1):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(PLAN), how],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout))
    columns = zip(*(one["ms"] for one in found[1:]), strict=True)
    return [statistics.median(column) for column in columns], found[-1]["modules"]


def main() -> None:
    """Prints a row for each part."""
    times, modules = measured("uncollected")
    collected, _ = measured("collected")
    print(f"{described('torch', 'pydantic')}, {datetime.now(UTC):%Y-%m-%d}")
    print(f"$ python -m benchmarks.load_cost, the median of {PROCESSES} processes\n")
    print(f"{'after import torch':<40}{'CPU, ms':>8}{'modules':>9}")
    rows = ("pydantic and a model of one field", "import ditplan", "ditplan.load, with its imports")
    for name, spent, count in zip(rows, times, modules, strict=True):
        print(f"{name:<40}{spent:>8.1f}{count:>9}")
    print(f"{'all':<40}{sum(times):>8.1f}{sum(modules):>9}")
    print(f"{'a collection of garbage, in pydantic':<40}{collected[0] - times[0]:>8.1f}")


if __name__ == "__main__":
    main()
