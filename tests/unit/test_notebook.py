"""The notebook in examples/ runs, cell after cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_cells_of_the_notebook_run_in_order(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "planning.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 8
    assert not any(cell["outputs"] for cell in notebook["cells"] if "outputs" in cell)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1024x1024, 28 steps, guidance, batch 1, bfloat16 -> " in done.stdout
    assert (tmp_path / "plan.json").exists()
