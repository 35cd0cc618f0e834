#!/usr/bin/env bash
# Expected: with shift=3 a schedule of N steps runs from the scheduler's sigma_max to its sigma_min, both shifted
# once; the same unshifted sigmas given by hand yield the same schedule.
# Seen: set_timesteps(N) starts from sigmas that were shifted when the scheduler was made, and shifts them again:
# the last of 4 sigmas is 0.0089, three times sigma_min (0.0030).
# Version: diffusers 0.42.1. Source: schedulers/scheduling_flow_match_euler_discrete.py, __init__ (sigma_min from
# shifted sigmas) and set_timesteps (linspace between both, then shift).
# Matters: two engines with the same config and step count disagree by a factor of 3 in the last step.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 diffusers==0.42.1

cat > "$folder/show.py" <<'PYTHON'
"""Compares the schedule by number of steps with the one from the same sigmas given by hand."""

import sys

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler


def shifted(sigma):
    return 3 * sigma / (1 + 2 * sigma)


print("diffusers", diffusers.__version__)
scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
smallest = scheduler.sigma_min
scheduler.set_timesteps(4)
by_number = scheduler.sigmas[:-1]
scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 1000, 4).tolist())
by_hand = scheduler.sigmas[:-1]
print("sigma_min:   ", round(smallest, 5), "= 1/1000 shifted once:", round(shifted(1 / 1000), 5))
print("by number:   ", [round(sigma, 5) for sigma in by_number.tolist()])
print("by hand:     ", [round(sigma, 5) for sigma in by_hand.tolist()])
twice = shifted(shifted(1 / 1000))
print("shifted twice:", round(twice, 5))
if abs(by_number[-1].item() - twice) > 1e-5 or abs(by_hand[-1].item() - smallest) > 1e-5:
    sys.exit("changed: both ways give the same last sigma")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
