#!/usr/bin/env bash
# The A/B of stream, crop, split and requeue rows: 4 arms x 3 seeds at equal steps, then the tables. Resumable: finished
# runs are skipped, killed ones go on. Two runs side by side on one thread each; STEPS and SEEDS may be set from outside.
#   bash experiments/2026-11-21_bos_rows/run.sh <edu_web.parquet> <books.parquet>
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/../venv.sh" ""
out=experiments/runs/bos_rows
steps="${STEPS:-150}"
seeds="${SEEDS:-0 1 2}"
mkdir -p "$out"

"$PYTHON" "$here/packing_report.py" "$edu_web" "$books"

# one source and one held-out set for all: only the train shards differ
source_flags=(--dataset "$edu_web" "$books" --val_fraction 0.003 --num_proc 2 --resume)
[ -e "$out/data_stream/meta.json" ] || "$PYTHON" prepare_fineweb.py "${source_flags[@]}" --out_dir "$out/data_stream"
for overflow in crop split requeue; do
    [ -e "$out/data_$overflow/meta.json" ] || "$PYTHON" prepare_bos_rows.py "${source_flags[@]}" \
        --out_dir "$out/data_$overflow" --seq_len 256 --buffer_docs 1000 --overflow "$overflow"
done

train() { # arm seed
    "$PYTHON" train_gpt.py --data_dir "$out/data_$1" --out_dir "$out/$1_s$2" --resume auto --seed "$2" \
        --n_layer 4 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048 \
        --max_train_steps "$steps" --learning_rate 2e-3 --warmup_iters 20 --eval_every "$steps" --eval_batch_size 8 \
        --val_tokens 1000000000 --save_every 50 --keep_last 1 --notes "bos rows: $1" --results_csv "$out/results.csv" \
        > "$out/$1_s$2.out" 2>&1 || { tail -n 5 "$out/$1_s$2.out"; return 1; }
    echo "$1, seed $2: $(tail -n 1 "$out/$1_s$2.out")"
}
export OMP_NUM_THREADS=1
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
for seed in $seeds; do
    for pair in "stream crop" "split requeue"; do
        set -- $pair
        train "$1" "$seed" &
        first=$!
        train "$2" "$seed" &
        wait "$first"
        wait $!
    done
done

"$PYTHON" "$here/ab_table.py" "$out" --json "$here/ab_results.json"
"$PYTHON" "$here/table.py" | tee "$here/table.md"
