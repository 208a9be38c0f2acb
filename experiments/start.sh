# Sourced by the run.sh of an experiment, after it has made its paths absolute, because this leaves us in the repo's root.
# Sets $PYTHON (see venv.sh), $here (the experiment's folder) and $out (the folder of its runs, which is not in git), and
# has two functions: sweep and write_whole.
unset CDPATH  # cd means the folders beside this file
experiment="$(basename "$(cd "$(dirname "$0")" && pwd)")"
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" ""  # the argument names extras; without one it would see those of run.sh
here="experiments/$experiment"
out="experiments/runs/${experiment#*_}"  # without the date
mkdir -p "$out"

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
sweep() { # a list of commands, two at a time; in the background, so that a signal to run.sh alone reaches it by the trap
    "$PYTHON" experiments/sweep.py "$1" --jobs 2 &
    wait $!
}
write_whole() { # a file of the experiment, a command: what it prints, once it has printed all of it
    "${@:2}" > "$out/$1"
    mv "$out/$1" "$here/$1"
    cat "$here/$1"
}
