#!/usr/bin/env bash
# Expected: right after pip install, with no site configuration, the group @all is unknown or empty.
# Seen: NodeSet("@all") is 131 hosts named example4 to example159: the package installs its sample groups file as a
# live one below the environment's etc folder, and reads it from there.
# Version: ClusterShell 1.10.1. Source: etc/clustershell/groups.d/local.cfg among the wheel's data files,
# Defaults.py, config_paths (sys.prefix/etc/clustershell).
# Matters: a launcher that accepts node sets takes "@all" for real hosts and waits for ssh to each of 131 names;
# python-hostlist keeps the text as a name.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ClusterShell==1.10.1

cat > "$folder/show.py" <<'PYTHON'
"""Resolves the group of all nodes where nobody configured any."""

import importlib.metadata
import sys
from pathlib import Path

from ClusterShell.Defaults import config_paths
from ClusterShell.NodeSet import NodeSet

print("ClusterShell", importlib.metadata.version("ClusterShell"))
nodes = NodeSet("@all")
folders = [Path(path).parent for path in config_paths("groups.conf")]
groups = [str(file.relative_to(sys.prefix)) for folder in folders for file in folder.glob("groups.d/*.cfg")
          if file.is_relative_to(sys.prefix)]
print("@all:", len(nodes), "nodes:", nodes)
print("from the environment's", *groups)
if len(nodes) != 131 or nodes[0] != "example4" or not groups:
    sys.exit("changed: no hosts are known without configuration")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
