#!/usr/bin/env bash
# Expected: a pruned trial tells a sampler something: its last reported value, as TPE takes it.
# Seen: GPSampler doesn't look at pruned trials at all. Twenty of them, with values, change neither the end of its
# startup nor the point it proposes next, to the last digit; nothing in its documentation says so.
# Version: optuna 5.0.0. Source: samplers/_gp/sampler.py, sample_relative takes COMPLETE (and RUNNING) trials
# only; samplers/_tpe/sampler.py takes PRUNED ones too.
# Matters: a search with a pruner that moves from TPE to GP forgets all that was cut short, proposes the same
# bad plans again, and stays random for longer. Tell what was cut short as COMPLETE with an estimate.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 optuna==5.0.0 scipy==1.17.1

cat > "$folder/show.py" <<'PYTHON'
"""Asks two samplers for the next point, with and without pruned trials in the study."""

import sys
import warnings

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = {"x": FloatDistribution(0, 1)}


def next_point(sampler_class, complete, pruned):
    study = optuna.create_study(sampler=sampler_class(seed=0, n_startup_trials=5))
    for index in range(complete):
        x = index / complete
        study.add_trial(create_trial(params={"x": x}, distributions=SPACE, value=(x - 0.3) ** 2))
    for index in range(pruned):
        x = index / pruned
        reported = {0: 100 * (x - 0.9) ** 2}
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED, params={"x": x}, distributions=SPACE, intermediate_values=reported
            )
        )
    return study.ask(SPACE).params["x"]


print("optuna", optuna.__version__)
changes = {}
for sampler_class in optuna.samplers.TPESampler, optuna.samplers.GPSampler:
    for complete in 0, 8:
        without = next_point(sampler_class, complete, 0)
        beside = next_point(sampler_class, complete, 20)
        changes[sampler_class.__name__, complete] = without != beside
        print(
            f"{sampler_class.__name__}, {complete} complete: next {without:.6f}, "
            f"with 20 pruned beside them {beside:.6f}"
        )
if changes != {(name, n): name == "TPESampler" for name in ("TPESampler", "GPSampler") for n in (0, 8)}:
    sys.exit("changed: GPSampler learns from pruned trials, or TPE doesn't")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
