#!/usr/bin/env bash
# Creates .venv, installs the project with what tests need, then: ruff, mypy, import contracts, docs, pytest with doctests.
# The tests run in parallel: a process of one thread for each usable core, at most four. `-n 0` runs them in one process.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev
cores=$(env -u OMP_NUM_THREADS nproc) # nproc prints OMP_NUM_THREADS where it is set
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
.venv/bin/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ." >&2; exit 1; }
.venv/bin/ruff check --quiet .
.venv/bin/mypy --no-error-summary
.venv/bin/lint-imports >/tmp/vlformer-contracts-$$.txt || { cat /tmp/vlformer-contracts-$$.txt; exit 1; }
rm -f /tmp/vlformer-contracts-$$.txt
site=$(mktemp -d) # without --quiet, under which --strict finds nothing
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --site-dir "$site/docs" >"$site/log" 2>&1 || { cat "$site/log"; exit 1; }
rm -r "$site"
exec .venv/bin/python -m pytest -m "not slow" -n "$((cores < 4 ? cores : 4))" --dist worksteal "$@"
