#!/usr/bin/env bash
# All tests: makes .venv when needed, then ruff and pytest. Arguments go to pytest: bash tests/run.sh -k muon
# Two processes of one thread each: one process with two threads takes nearly twice as long.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../experiments/venv.sh" test
"$PYTHON" -m ruff check .
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
