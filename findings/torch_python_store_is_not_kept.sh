#!/usr/bin/env bash
# Expected: init_process_group(store=...) keeps the store that it is given: its own reference is as good as the caller's.
# Seen: of a store written in Python, a subclass of torch.distributed.Store, only the part in C++ is kept. Once the caller's
# last reference is gone, the next new_group() raises RuntimeError about an internal assert, "Not implemented": calls fall
# through to the base class. While the caller keeps a reference all works.
# Version: torch 2.13.0. Source: torch/csrc/distributed/c10d/init.cpp (PythonStore overrides what the Python object has; the
# group holds no reference to that).
# Matters: a store made in a function works for the first group and fails for the next one, as soon as the function returned.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Makes a group by a store written in Python, with and without a reference to it."""

import gc
import sys

import torch
import torch.distributed as dist


class Kept(dist.Store):
    """A store that keeps its values in a dictionary."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def set(self, key, value):
        self.values[key] = value if isinstance(value, bytes) else value.encode()

    def get(self, key):
        return self.values[key]

    def add(self, key, value):
        total = int(self.values.get(key, b"0")) + value
        self.values[key] = str(total).encode()
        return total

    def check(self, keys):
        return all(key in self.values for key in keys)

    def wait(self, keys, timeout=None):
        assert self.check(keys)

    def delete_key(self, key):
        return self.values.pop(key, None) is not None


def outcome(keep):
    store = Kept()
    held = store if keep else None
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    del store
    gc.collect()
    try:
        dist.new_group([0])
        return "a group"
    except (RuntimeError, ValueError, NotImplementedError) as error:
        text = str(error).splitlines()[0]
        return f"{type(error).__name__}: {text[:60]}"
    finally:
        dist.destroy_process_group()
        del held


print("torch", torch.__version__)
with_reference, without = outcome(True), outcome(False)
print("the caller keeps the store:", with_reference)
print("the caller lets it go:     ", without)
if with_reference != "a group" or without == "a group":
    sys.exit("changed: a process group keeps a store written in Python alive")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
