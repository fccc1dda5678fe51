# Two commands do all their own set-up: `make demo` and `make test`.
.PHONY: setup demo test test-k3s bench lint format lock clean
.DEFAULT_GOAL := demo
JOBS ?= $(shell expr $$(nproc) + 1)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)

setup:            ## install apt packages that are missing and .venv from the lock file
	@bash .ci/setup

demo: setup       ## five nodes in three regions become a cluster, on this machine
	@$(SUDO) .venv/bin/kairos-p2p lab run

test:             ## every lane this machine can run; the others are skipped with the reason
	@bash .ci/setup test
	@$(SUDO) .venv/bin/python .ci/test $(JOBS)

test-k3s: setup   ## the contract suite of k3s, against the stand-in and a real binary (K3S_BIN) if there is one
	@$(SUDO) .venv/bin/python -m pytest tests/k3s

bench: setup      ## throughput beside the peers, start-up and repair beside one by hand; prints tables, asserts nothing
	@$(SUDO) .venv/bin/python tests/bench/bench_dataplane.py
	@$(SUDO) .venv/bin/python tests/bench/bench_startup.py
	@$(SUDO) .venv/bin/python tests/bench/bench_repair.py

lint: setup       ## style, types, import contracts
	@.venv/bin/python -m pytest -q tests/tidy

format: setup
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock:             ## pin every dependency with hashes (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --python-version 3.11 pyproject.toml --group dev -o requirements.lock \
	  --custom-compile-command "make lock"

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
