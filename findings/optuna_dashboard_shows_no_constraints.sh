#!/usr/bin/env bash
# Expected: the dashboard shows a trial's constraints, and which trials are infeasible.
# Seen: constraints set with Optuna 5's Trial.set_constraint never reach it: its API answers [] for a trial with a
# violated constraint, so it is drawn as feasible, while optuna itself leaves it out of best_trial.
# Version: optuna-dashboard 0.21.0 with optuna 5.0.0 (pip takes the two together). Source: optuna_dashboard/
# _serializer.py reads the system attribute "constraints"; Optuna 5 stores "constraints:NAME", one for each.
# Matters: plans that don't fit into memory stand at the top of the dashboard's list as the best ones.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0 optuna-dashboard==0.21.0

cat > "$folder/show.py" <<'PYTHON'
"""Stores a trial that violates a constraint and asks the dashboard's API about it."""

import importlib.metadata
import io
import json
import sys
from wsgiref.util import setup_testing_defaults

import optuna
from optuna_dashboard import wsgi

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = optuna.storages.InMemoryStorage()
study = optuna.create_study(storage=storage)
for value, excess in (1.0, 3.5), (2.0, -1.0):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_constraint("memory", excess)
    study.tell(trial, value)

environment = {"PATH_INFO": f"/api/studies/{study._study_id}", "CONTENT_TYPE": "application/json"}
setup_testing_defaults(environment)
environment["wsgi.input"] = io.BytesIO()
statuses = []
body = b"".join(wsgi(storage)(environment, lambda status, headers, *_: statuses.append(status)))
shown = [trial["constraints"] for trial in json.loads(body)["trials"]]
print("optuna", optuna.__version__, "optuna-dashboard", importlib.metadata.version("optuna-dashboard"))
print("optuna's best trial:", study.best_trial.number, "- stored:", study.trials[0].system_attrs)
print("the dashboard's answer:", statuses[0], "constraints", shown)
if study.best_trial.number != 1 or shown != [[], []]:
    sys.exit("changed: the dashboard knows the constraints")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
