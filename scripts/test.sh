#!/usr/bin/env bash
# Creates .venv, installs the project with what tests need, then: ruff, mypy, import contracts, pytest with doctests.
# The tests run in parallel: a process of one thread for each usable core, at most four. `-n 0` runs them in one process.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
.venv/bin/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ." >&2; exit 1; }
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary
.venv/bin/lint-imports >/tmp/vlformer-contracts-$$.txt || { cat /tmp/vlformer-contracts-$$.txt; exit 1; }
rm -f /tmp/vlformer-contracts-$$.txt
processes=$(($(nproc) < 4 ? $(nproc) : 4))
exec .venv/bin/python -m pytest -m "not slow" -n "$processes" --dist worksteal "$@"
