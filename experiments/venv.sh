# Sourced by the quickstarts, start.sh and tests/run.sh: makes .venv when needed and installs the project into it.
# Sets $PYTHON. Nothing is reinstalled while pyproject.toml stays the same.
unset CDPATH  # cd means the folder beside this file
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="$PWD/.venv/bin/python"
extras="${1:-}"
stamp=".venv/installed-$(cksum < pyproject.toml | cut -d' ' -f1)-${extras:-base}"
[ -x "$PYTHON" ] || rm -rf .venv # its Python may have been removed since
if [ ! -e "$stamp" ]; then
    base=""
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then base="$candidate"; break; fi
    done
    if [ -z "$base" ]; then echo "No Python >= 3.10 was found: install one and run this again." >&2; exit 1; fi
    if [ ! -x "$PYTHON" ]; then
        echo "Making .venv with $("$base" --version) ..."
        "$base" -m venv .venv 2>/dev/null || { rm -rf .venv; "$base" -m pip install -q --user virtualenv && "$base" -m virtualenv -q .venv; } ||
            { echo "$base can make no virtual environment: install its venv package and run this again." >&2; exit 1; }
    fi
    "$PYTHON" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m ensurepip -q # as uv makes it, it has none
    echo "Installing the project (about a minute) ..."
    # Without byte code, which Python writes when it first imports a module: most of torch's are never imported. Where it
    # may write none, pip does.
    bytecode="--no-compile"
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || bytecode="--compile"
    # gigatoken (the extra "fast") has no wheel for some platforms; without it tiktoken does the work
    "$PYTHON" -m pip install -q "$bytecode" --disable-pip-version-check -e ".[fast${extras:+,$extras}]" ||
        "$PYTHON" -m pip install -q "$bytecode" --disable-pip-version-check -e ".${extras:+[$extras]}" ||
        { echo "pip could not install the project: see its message above, then run this again." >&2; exit 1; }
    rm -f .venv/installed-*-"${extras:-base}"
    touch "$stamp"
fi
