#!/usr/bin/env bash
# All tests: makes .venv when needed, then ruff and pytest. Arguments go to pytest: bash tests/run.sh -k muon
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../experiments/venv.sh" test
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
