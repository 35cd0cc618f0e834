#!/usr/bin/env bash
# Expected: a tell that raises has stored nothing and may be repeated; or: a sampler that has tried all points
# says so at the next ask.
# Seen: with ask and tell, GridSampler and BruteForceSampler raise RuntimeError from the LAST tell (they call
# study.stop(), which is for optimize alone). The trial is stored as COMPLETE all the same, telling it again
# raises ValueError, and asking further repeats a point without a word.
# Version: optuna 5.0.0. Source: study/_tell.py (_tell_with_warning: after_trial in try, storing in finally),
# samplers/_grid.py and _brute_force.py (after_trial).
# Matters: a planner that measures plans by ask and tell loses its last plan if it takes this for a failed tell,
# and measures the same plans for ever if it swallows the error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0

cat > "$folder/show.py" <<'PYTHON'
"""Exhausts two samplers by ask and tell."""

import sys

import optuna
from optuna.trial import TrialState

optuna.logging.set_verbosity(optuna.logging.ERROR)
print("optuna", optuna.__version__)
for sampler in optuna.samplers.GridSampler({"x": [1, 2]}), optuna.samplers.BruteForceSampler():
    study = optuna.create_study(sampler=sampler)
    seen = []
    for _ in range(2):
        trial = study.ask()
        trial.suggest_int("x", 1, 2)
        try:
            study.tell(trial, 1.0)
            seen.append("told")
        except RuntimeError as error:
            seen.append(f"RuntimeError ({error})")
    try:
        study.tell(trial, 1.0)
        again = "told"
    except ValueError as error:
        again = f"ValueError ({error})"
    repeated = study.ask().suggest_int("x", 1, 2)
    states = [trial.state for trial in study.trials[:2]]
    print(type(sampler).__name__)
    print("  first tell:", seen[0])
    print("  last tell: ", seen[1], "- stored as", states[1].name)
    print("  once more: ", again)
    print("  next ask:  ", repeated)
    if seen[0] != "told" or not seen[1].startswith("RuntimeError") or not again.startswith("ValueError"):
        sys.exit("changed: another answer of tell")
    if states != [TrialState.COMPLETE] * 2 or repeated not in (1, 2):
        sys.exit("changed: the last trial isn't stored")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
