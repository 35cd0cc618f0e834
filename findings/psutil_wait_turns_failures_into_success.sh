#!/usr/bin/env bash
# Expected: whoever waits for a child gets its exit status; or the second one to wait is told that it is gone.
# Seen: after psutil.wait_procs (or Process.wait) has seen a child end with 3, subprocess.Popen.wait() and poll()
# say 0 for the same child: success.
# Version: psutil 7.2.2, Python 3.11. Source: psutil/_psposix.py (wait_pid calls waitpid and so reaps the child)
# and Python's subprocess.py, Popen._try_wait: a child that is gone counts as 0.
# Matters: launchers start ranks by subprocess and watch them by psutil; a failed rank is then reported as a
# success. Hand psutil.Popen objects to wait_procs instead.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet psutil==7.2.2

cat > "$folder/show.py" <<'PYTHON'
"""Waits for failing children by psutil and by subprocess, in both orders."""

import subprocess
import sys

import psutil

FAILING = [sys.executable, "-c", "import sys; sys.exit(3)"]

print("psutil", psutil.__version__, "Python", sys.version.split()[0])
child = subprocess.Popen(FAILING)
gone, _ = psutil.wait_procs([psutil.Process(child.pid)], timeout=60)
psutil_first = gone[0].returncode, child.wait()
print(f"psutil first: psutil says {psutil_first[0]}, then subprocess says {psutil_first[1]}")
child = subprocess.Popen(FAILING)
process = psutil.Process(child.pid)
subprocess_first = child.wait(), process.wait(timeout=60)
print(f"subprocess first: subprocess says {subprocess_first[0]}, then psutil says {subprocess_first[1]}")
child = psutil.Popen(FAILING)
psutil.wait_procs([child], timeout=60)
print("psutil.Popen handed to wait_procs: says", child.wait())
if psutil_first != (3, 0) or subprocess_first[0] != 3 or child.wait() != 3:
    sys.exit("changed: the failure is told to both")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
