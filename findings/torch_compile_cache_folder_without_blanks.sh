#!/usr/bin/env bash
# Expected: TORCHINDUCTOR_CACHE_DIR may be any folder that can be written to.
# Seen: with a blank in its path torch.compile raises CppCompileError on a CPU, for every function: the compiler's
# command is put together as one text without quotes, and split at blanks.
# Version: torch 2.13.0. Source: _inductor/cpp_builder.py, get_command_line, whose text is split by shlex.
# Matters: whoever keeps compiled code in a user's or a job's folder (`/home/Jane Doe/.cache`, `run 1/`), or falls back to
# eager on compile errors: nothing is compiled then, and the message speaks of C++.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy

cat > "$folder/show.py" <<'PYTHON'
"""Compiles a function for the CPU; says how that ended."""

import torch


def function(x):
    return (x.sin() + 1).cos() * 2


try:
    torch.compile(function)(torch.ones(100))
    print("compiled")
except torch._inductor.exc.InductorError as error:
    print(str(error).partition(":")[0])
PYTHON

seen() {
    mkdir -p "$1"
    TORCHINDUCTOR_CACHE_DIR="$1" "$folder/venv/bin/python" "$folder/show.py"
}

plain=$(seen "$folder/one_cache")
blank=$(seen "$folder/one cache")
echo "torch 2.13.0: in a folder without a blank: $plain; in one with a blank: $blank"
if [[ $plain != compiled || $blank != CppCompileError ]]; then
    echo "changed: the folder's name makes no difference"
    exit 1
fi
