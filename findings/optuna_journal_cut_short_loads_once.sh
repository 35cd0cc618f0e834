#!/usr/bin/env bash
# Expected: a journal whose last line was cut short (its writer was killed) is either refused, or repaired and
# goes on working.
# Seen: it loads without a word, and the next write succeeds too; but that write is glued to the cut line and
# lost, and from the write after it nobody can read the journal again (JSONDecodeError in every process).
# Version: optuna 5.0.0. Source: storages/journal/_file.py: read_logs passes over a last line that doesn't end
# with a newline, append_logs appends without looking at how the file ends.
# Matters: a search of hours dies some trials AFTER the accident, with the accident long forgotten. Check that
# the file ends with a newline before it is opened.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0

cat > "$folder/show.py" <<'PYTHON'
"""Cuts the last line of a journal, resumes the study, and loads it after each of two more trials."""

import json
import sys
import tempfile
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "journal.log")


def load():
    return optuna.load_study(study_name="plans", storage=JournalStorage(JournalFileBackend(str(path))))


def outcome(action):
    try:
        return action()
    except (AttributeError, json.JSONDecodeError) as error:
        return f"{type(error).__name__}: {error}"


print("optuna", optuna.__version__)
study = optuna.create_study(study_name="plans", storage=JournalStorage(JournalFileBackend(str(path))))
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
path.write_bytes(path.read_bytes()[:-20])
steps = {}
steps["load"] = outcome(lambda: f"{len(load().trials)} trials")
study = load()
for number in 1, 2:
    steps[f"ask {number}"] = outcome(lambda: f"trial {study.ask().number}")
    steps[f"load after ask {number}"] = outcome(lambda: f"{len(load().trials)} trials")
for step, result in steps.items():
    print(f"  {step}: {result}")
if steps["load"] != "3 trials" or "JSONDecodeError" not in steps["load after ask 2"]:
    sys.exit("changed: a journal cut short is refused or repaired")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
