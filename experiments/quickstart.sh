#!/usr/bin/env bash
# The whole lab in a few minutes on two cores: synthetic documents -> shards -> 3 arms x 3 seeds of a tiny GPT-2, scored
# on HellaSwag- and EWoK-shaped items -> two A/B reports with a verdict. No network beyond the package index. A second
# run keeps what is finished.
#   bash experiments/quickstart.sh            results: experiments/runs/quickstart/
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" ""
out=experiments/runs/quickstart
mkdir -p "$out"

# one synthetic world, one held-out set, three ways to present it: a stream, a stream with products as single tokens,
# and rows that each start at a document's beginning
documents=(--dataset synthetic --max_docs 4000 --val_fraction 0.03 --resume)
prepare() { # arm, then the script and its flags
    if [ ! -e "$out/data_$1/meta.json" ]; then
        echo; echo "== shards: $1"
        "$PYTHON" "${@:2}" "${documents[@]}" --out_dir "$out/data_$1"
    fi
}
prepare baseline prepare_fineweb.py
prepare mul_tokens prepare_fineweb.py --condition mul_tokens
prepare bos_rows prepare_bos_rows.py --seq_len 64 --overflow requeue

# the same model, optimizer and seeds for every arm; only the tokens differ
train() { # arm seed
    "$PYTHON" train_gpt.py --data_dir "$out/data_$1" --out_dir "$out/$1_s$2" --resume auto --seed "$2" \
        --n_layer 2 --n_head 4 --n_embd 64 --seq_len 64 --micro_batch_size 8 --total_batch_tokens 512 \
        --max_train_steps 300 --optimizer muon --learning_rate 0.01 --schedule trapezoid --warmup_iters 20 \
        --warmdown_iters 150 --learning_rate_decay_frac 0.05 --eval_every 150 --eval_batch_size 32 --val_tokens 12000 \
        --save_every 150 --log_every 40 \
        --hellaswag_every 300 --hellaswag_data synthetic:200 --ewok_every 300 --ewok_data synthetic:220 \
        --sample_every 300 --sample_tokens 60 --results_csv "$out/results.csv"
}
export OMP_NUM_THREADS=1 # two runs side by side on one thread each finish sooner than one after the other on two
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'echo "stopped: run this again to continue." >&2; exit 130' INT
pairs=("baseline 0 mul_tokens 0" "bos_rows 0 baseline 1" "mul_tokens 1 bos_rows 1" "baseline 2 mul_tokens 2" "bos_rows 2")
for pair in "${pairs[@]}"; do
    set -- $pair
    echo; echo "== train $1 seed $2 (shown)${3:+ and $3 seed $4}"
    [ -z "${3:-}" ] || train "$3" "$4" > "$out/$3_s$4.out" 2>&1 &
    train "$1" "$2"
    wait $! || { cat "$out/$3_s$4.out"; exit 1; }
    for run in "$1_s$2" ${3:+"$3_s$4"}; do # an interrupted run has saved itself and exits 0: it must not be compared
        [ -e "$out/$run/summary.json" ] || { echo "$run is not finished: run this again to continue." >&2; exit 1; }
    done
    [ -z "${3:-}" ] || tail -n 1 "$out/$3_s$4.out"
done

echo; echo "== samples"
grep -h sample "$out"/baseline_s0/log.txt "$out"/mul_tokens_s0/log.txt "$out"/bos_rows_s0/log.txt
echo; echo "== scores of the last step against chance, in standard errors"
"$PYTHON" - "$out" <<'PY'
import glob
import json
import sys

worst = 99.0
for name, score, chance in (("hellaswag", "accuracy_norm", 0.25), ("ewok", "eval_official_sum", 0.5)):
    for path in sorted(glob.glob(f"{sys.argv[1]}/*_s[012]/{name}_metrics.jsonl")):
        last = json.loads(open(path).read().splitlines()[-1])
        above = (last[score] - chance) / last[f"{score}_stderr"]
        worst = min(worst, above)
        print(f"{path.split('/')[-2]:<14} {name:<10} {score:<18} {last[score]:.4f} +- {last[f'{score}_stderr']:.4f}   "
              f"{above:5.1f} above chance {chance}")
sys.exit(0 if worst > 4 else "quickstart.sh: a score is not 4 standard errors above chance")
PY
echo; echo "== the two verdicts (a report is a page for your browser; report.md beside it is the same as text)"
for arm in mul_tokens bos_rows; do
    echo
    "$PYTHON" compare_runs.py --a "$out/baseline_s[012]" --b "$out/${arm}_s[012]" --out "$out/report_$arm"
done
