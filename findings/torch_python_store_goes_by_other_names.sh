#!/usr/bin/env bash
# Expected: of a store written in Python, a subclass of torch.distributed.Store, what overrides a method of the base class is
# called: delete_key() and num_keys(), as all stores have them.
# Seen: called through another store, as by a PrefixStore, set, get and add reach the Python methods of these names; delete_key
# reaches one named deleteKey, and num_keys one named getNumKeys. Without those they raise RuntimeError about a call of a pure
# virtual function.
# Version: torch 2.13.0. Source: torch/csrc/distributed/c10d/init.cpp (PythonStore names some overrides as C++ does).
# Matters: whatever tidies up keys in such a store, or counts them, fails in a class that overrides all documented methods.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6

cat > "$folder/show.py" <<'PYTHON'
"""Which methods of a store written in Python a PrefixStore around it calls."""

import sys

import torch
import torch.distributed as dist

called = []


class Told(dist.Store):
    """A store that keeps its values in a dictionary, and notes what was called."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def set(self, key, value):
        called.append("set")
        self.values[key] = value if isinstance(value, bytes) else value.encode()

    def delete_key(self, key):
        called.append("delete_key")
        return self.values.pop(key, None) is not None

    def num_keys(self):
        called.append("num_keys")
        return len(self.values)


class Both(Told):
    """The same with the names of C++ as well."""

    def deleteKey(self, key):
        called.append("deleteKey")
        return self.values.pop(key, None) is not None

    def getNumKeys(self):
        called.append("getNumKeys")
        return len(self.values)


def through(store):
    """What is called, and what comes of deleting and counting."""
    called.clear()
    outer, ends = dist.PrefixStore("p", store), []
    outer.set("a", "1")
    for act in (lambda: outer.delete_key("a"), outer.num_keys):
        try:
            ends.append(repr(act()))
        except (RuntimeError, NotImplementedError) as error:
            ends.append(f"{type(error).__name__}: {str(error).splitlines()[0][:40]}")
    return list(called), ends


print("torch", torch.__version__)
documented, both = through(Told()), through(Both())
print("with delete_key and num_keys alone:", *documented)
print("with deleteKey and getNumKeys too: ", *both)
if documented[0] != ["set"] or both[0] != ["set", "deleteKey", "getNumKeys"]:
    sys.exit("changed: delete_key and num_keys of a store written in Python are called")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
