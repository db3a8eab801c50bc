#!/usr/bin/env bash
# Creates .venv, installs the project and segments an example picture, offline once installed.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" demo
export HF_HUB_OFFLINE=1
.venv/bin/python scripts/demo.py "$@"
