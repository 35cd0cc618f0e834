#!/usr/bin/env bash
# Expected: TPE samples at random until n_startup_trials trials have given it something to learn from.
# Seen: trials pruned without any reported value count as well. After five of them, and with no value known,
# TPE builds its densities from trials that are all equally unknown, and no longer samples at random.
# Version: optuna 5.0.0. Source: samplers/_tpe/sampler.py, sample_relative and sample_independent count
# COMPLETE and PRUNED alike against _n_startup_trials.
# Matters: a planner that prunes what doesn't fit into memory before it runs has its startup used up by these
# trials; set n_startup_trials higher, or tell such trials as FAIL.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0

cat > "$folder/show.py" <<'PYTHON'
"""Compares TPE's next point with the random one after N trials that were pruned without a value."""

import sys

import optuna
from optuna.trial import TrialState

optuna.logging.set_verbosity(optuna.logging.ERROR)


def points(sampler, state, told):
    """The points that a sampler asks for when each of the first ones is told only its state."""
    study = optuna.create_study(sampler=sampler)
    asked = []
    for _ in range(told):
        trial = study.ask()
        asked.append(trial.suggest_float("x", 0, 1))
        study.tell(trial, state=state)
    return [*asked, study.ask().suggest_float("x", 0, 1)]


print("optuna", optuna.__version__)
random_next = {}
for state in TrialState.FAIL, TrialState.PRUNED:
    for told in 4, 5, 20:
        tpe = points(optuna.samplers.TPESampler(n_startup_trials=5, seed=0), state, told)
        uniform = points(optuna.samplers.RandomSampler(seed=0), state, told)
        random_next[state.name, told] = tpe[-1] == uniform[-1]
        print(f"{told:2} trials {state.name} without a value: the next is random: {tpe[-1] == uniform[-1]}")
expected = {(state, told): state == "FAIL" or told < 5 for state in ("FAIL", "PRUNED") for told in (4, 5, 20)}
if random_next != expected:
    sys.exit("changed: pruned trials without a value count differently")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
