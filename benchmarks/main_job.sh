#!/usr/bin/env bash
# The main job on two GPUs: accuracy of every two-GPU mesh, tune sd3 at its true size with random
# weights, run the plan. Writes what it prints to benchmarks/results/. Usage: benchmarks/main_job.sh [python]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-python3}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
log=${RESULT:-benchmarks/results/main-job-$(date -u +%Y-%m-%d).txt}
printf 'localhost slots=2\n' > "$out/hosts.txt"

step() {
  echo "\$ $*" | sed "s#$out#OUT#g"
  "$@" 2>&1 | sed "s#$out#OUT#g"
  echo
}

{
  echo "date: $(date -u +%Y-%m-%dT%H:%MZ)"
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv
  "$python" -c 'import diffusers, optuna, torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, "NCCL", ".".join(map(str, torch.cuda.nccl.version())), "diffusers", diffusers.__version__, "optuna", optuna.__version__)'
  step "$python" -m pytest -q -s -m gpu tests/gpu
  step "$python" cli.py tune --model sd3 --steps 20 --hosts "$out/hosts.txt" --measure 4 --out "$out/plan.json"
  step "$python" cli.py run --plan "$out/plan.json" --hosts "$out/hosts.txt" --prompt "a red circle left of a blue square" --out "$out/picture.png"
  echo "the plan:"
  cat "$out/plan.json"
} | tee "$log"
