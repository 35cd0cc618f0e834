# `make demo` and `make test` need a checkout by git, make, a C++ compiler (for torch.compile) and Python 3.11 or 3.12. The rest they
# install into .venv. Another interpreter: `make test PYTHON=/path/to/python3.12`; .venv is made anew when it changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
INSTALLED := $(VENV)/installed$(addprefix -,$(subst /,-,$(PYTHON)))
# Files of tests are shared out to two processes, long ones first: much of what they do is waiting.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
TESTS ?= not gpu and not cluster and not engines
CLUSTER_TESTS ?= cluster
PROMPT := a red circle left of a blue square

.PHONY: demo unit test cluster-test check engines-test lint clean

demo: $(INSTALLED)
	mkdir -p out
	$(VENV)/bin/python cli.py tune --model sd3-tiny --hosts examples/localhost.txt --out out/plan.json
	$(VENV)/bin/python cli.py run --plan out/plan.json --hosts examples/localhost.txt --prompt "$(PROMPT)" --out out/picture.png
	$(VENV)/bin/python examples/sd3_tiny/check_picture.py out/picture.png "$(PROMPT)"

# What needs no ranks.
unit: $(INSTALLED)
	$(PYTEST) tests/unit

# All that needs neither GPUs nor other machines. Without what takes longest: TESTS="not gpu and not cluster and not engines and not thorough".
test: $(INSTALLED)
	$(PYTEST) -m "$(TESTS)"

# What needs several machines: network namespaces, as root, with iproute2 and sshd; with slurm-wlm and munge a Slurm too. Where that isn't
# there, the tests say so and are skipped. Without those that take minutes: `make cluster-test CLUSTER_TESTS="cluster and not thorough"`.
cluster-test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m "$(CLUSTER_TESTS)" tests/cluster

# Plans of recorded cases are as good as they were.
check: $(INSTALLED)
	$(VENV)/bin/python cli.py check --baseline benchmarks/baseline

# The engines' own parsers take what `export` writes; their wheels without what those need, in a folder of their own.
ENGINES := cache-dit==1.5.3 sglang==0.5.23 vllm-omni==0.30.0 xfuser==0.7.0
# Kubernetes' own schemas, for another process.
KUBERNETES := kubernetes-validate==1.37.0
engines-test: $(INSTALLED)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target .engines $(ENGINES)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade --target .engines/kubernetes $(KUBERNETES)
	$(PYTEST) -m engines tests/engines

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .engines out build dist ditplan.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The mark is made last, inside an environment that is always made anew: a half-made one never looks finished.
$(INSTALLED): pyproject.toml constraints.txt
	@for python in "$(PYTHON)" python3.11 python3.12 python3 python; do \
	  if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	    found=$$python; break; \
	  fi; \
	  if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "ditplan needs Python 3.11 or 3.12, but $(or $(PYTHON),each of python3.11 python3.12 python3 python) is missing or another version;" \
	    "install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$found"; \
	"$$found" -m venv --clear $(VENV)
	@echo "installing what pyproject.toml lists into $(VENV): some minutes, a gigabyte or more"
	$(VENV)/bin/python -m pip install --disable-pip-version-check -e ".[dev]" -c constraints.txt
	touch $@
