# `make help` lists the targets. Needs Python 3.11 or newer, and Go 1.25 or newer for the real Jaeger, Collector, Prometheus, Alertmanager and Helm.
# Downloads and builds are cached outside the work tree: ~/.cache/stagetrace, pip's and Go's own caches.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK := requirements-dev.txt
BUILD := collector-config/build/build.sh

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-heavy test-sample test-sanitizers check bench pythons compatibility backends backends-if-go wheels agent lock clean

# Tests mostly wait for processes that they have started, so there are more test processes than cores.
WORKERS ?= 3
# Each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do printf '%-22s %s\n' "$$target" "$$text"; done

demo: $(INSTALLED) ## a real service with real faults, what stagetrace reports about them, and the ten answers (two minutes)
	@$(BIN)/stagetrace demo

test: check ## check, all tests within one process, and one of each server, library and store (under 5 minutes)
	@echo "running the tests ..."
	@$(BIN)/python tests/run_again.py $(PYTEST) -m "smoke or not (service or thorough or backend or heavy)"

test-all: check backends-if-go pythons ## check, and all tests except the heavy ones, against a real Jaeger and a real Collector (about 35 minutes)
	@echo "running all tests ..."
	@$(BIN)/python tests/run_again.py $(PYTEST) --session-timeout 4400 -m "not heavy"

test-sample: $(INSTALLED) ## a short form of some heavy tests (under 10 minutes)
	@echo "running a sample of the heavy tests ..."
	@STAGETRACE_HEAVY=sample $(BIN)/python tests/run_again.py $(PYTEST) --timeout 600 -m sample

test-sanitizers: $(INSTALLED) ## the tests of native code, compiled with AddressSanitizer and UndefinedBehaviorSanitizer (under 3 minutes)
	@echo "compiling the C extension with sanitizers, and running its tests ..."
	@$(BIN)/python tests/native/sanitize.py

FUZZ_CASES ?= 1000000
test-heavy: $(INSTALLED) ## kill -9, outages, a million requests, $(FUZZ_CASES) fuzzed ones, the limits of the local store, torch, TensorFlow, Ray Serve: docs/proof.md
	@echo "running the heavy tests ..."
	@STAGETRACE_FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python tests/prove.py $(FILES)

check: $(INSTALLED) ## lint, format, types, import rules
	@echo "checking lint, format, types and import rules ..."
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED) ## measure what recording costs
	@$(BIN)/python benchmarks/run.py

pythons: $(INSTALLED) ## make the interpreters of tests/matrix that this machine has not, once
	@$(BIN)/python tests/matrix/pythons.py

compatibility: $(INSTALLED) ## run each cell of tests/matrix, and write docs/compatibility.md (4 minutes)
	@$(BIN)/python tests/matrix/page.py

backends: ## build Jaeger, the Collector, Prometheus, Alertmanager, Helm, Kustomize and kubeconform, once
	@$(BUILD)

# Without Go, the other tests can still run. CI cannot pass without the real processes.
backends-if-go:
	@if command -v go >/dev/null || [ -n "$$CI" ]; then $(BUILD); \
	else echo "note: Go is missing, so tests that need the real Jaeger, Collector, Prometheus, Alertmanager and Helm are skipped unless these are built already"; fi

# Zig's C compiler links against the glibc of manylinux, and against musl, whatever this machine has. Python 3.11 makes wheels for
# all versions (setup.py).
WHEELS := x86_64-linux-gnu.2.17:manylinux_2_17_x86_64 aarch64-linux-gnu.2.17:manylinux_2_17_aarch64 \
  x86_64-linux-musl:musllinux_1_2_x86_64 aarch64-linux-musl:musllinux_1_2_aarch64

wheels: $(INSTALLED) ## what a release consists of: wheels for manylinux and musllinux, the source archive, an SBOM, in dist/
	@rm -rf dist
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet ziglang auditwheel
	@$(BIN)/uv build --quiet --sdist
	@for one in $(WHEELS); do \
	  cc="$(CURDIR)/$(BIN)/python -m ziglang cc -target $${one%%:*}"; \
	  CC="$$cc" LDSHARED="$$cc -shared" $(BIN)/uv build --quiet --wheel --python 3.11 "-C--build-option=--plat-name=$${one##*:}" || exit; \
	done
	@$(BIN)/uv tool run --quiet twine check --strict dist/*.whl dist/*.tar.gz
	@$(BIN)/uv tool run --quiet abi3audit --strict dist/*.whl
	@for one in dist/*-manylinux_*.whl; do $(BIN)/python -m auditwheel show $$one || exit; done
	@# The SBOM: what the wheel with all extras installs, in the versions that the tests ran with.
	@$(BIN)/uv venv --quiet --clear dist/.sbom
	@$(BIN)/uv pip install --quiet --python dist/.sbom --constraints $(LOCK) "$$(ls dist/*-manylinux_*_$$(uname -m).whl)[backend,bench,clickhouse,demo,mcp]"
	@$(BIN)/uv tool run --quiet --from 'cyclonedx-bom>=7' cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
	  --output-reproducible --output-file dist/stagetrace.cdx.json dist/.sbom
	@rm -rf dist/.sbom

agent: $(INSTALLED) ## the folders of the agent's image for this machine's processor, in dist/agent/ (examples/kubernetes/Dockerfile.agent)
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet ziglang
	@rm -rf dist/.agent
	@for one in $$(echo $(WHEELS) | tr ' ' '\n' | grep "^$$(uname -m)-"); do \
	  cc="$(CURDIR)/$(BIN)/python -m ziglang cc -target $${one%%:*}"; \
	  CC="$$cc" LDSHARED="$$cc -shared" $(BIN)/uv build --quiet --wheel --python 3.11 "-C--build-option=--plat-name=$${one##*:}" -o dist/.agent || exit; \
	done
	@$(BIN)/python deploy/agent/build.py dist/agent dist/.agent/*-manylinux_* dist/.agent/*-musllinux_*
	@rm -rf dist/.agent

# Without pandas, which chDB alone names: scikit-learn and LightGBM would import it, a third of the start of each service of a test.
lock: $(INSTALLED) ## pin anew what the tests and checks are installed with
	@echo "pandas; python_version < '3'" | $(BIN)/uv pip compile --overrides - --quiet --upgrade pyproject.toml --extra backend --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --custom-compile-command "make lock" --output-file $(LOCK)

clean: ## remove the files of make from the work tree (the cache outside it stays)
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src -name "*.so" -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The activation files are copied and the extension in C is compiled at installation, so a change to them needs a new one; the
# rest is used in place.
# What CI installs is pinned in $(LOCK), by version and hash, whatever index is asked for it.
$(INSTALLED): pyproject.toml setup.py $(LOCK) $(wildcard src/stagetrace.*) $(wildcard native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "this needs Python 3.11 or newer (the recording side alone runs on 3.10); $(PYTHON) is $$($(PYTHON) --version 2>&1)."; echo "Name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "installing stagetrace and the dependencies of its tests into $(VENV), about a minute the first time ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\]$$/p' $(LOCK) | $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement /dev/stdin
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --no-deps --require-hashes --requirements $(LOCK)
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
