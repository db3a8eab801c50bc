# Sourced by the other scripts: makes .venv and installs the project there, unless that was done for this pyproject.toml.
# Usage: source scripts/setup.sh [extra]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${1:-}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "vlformer needs Python 3.10 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3" >&2
  exit 1
}
stamp=".venv/.installed-${extra:-base}"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  # without pip it was not finished, as where Debian's python3-venv is lacking, or another tool made it: that one is kept
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null 2>&1 ||
    "$python" -m venv --clear .venv
  echo "installing into .venv (torch is large: the first time takes some minutes)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}"
  touch "$stamp"
fi
