#!/usr/bin/env bash
# The A/B of stream, crop, split and requeue rows: 4 arms x 3 seeds at equal steps, then the tables. Two runs at a
# time, one thread each. Resumable: finished runs are skipped. STEPS and SEEDS may be set from outside.
#   bash experiments/2026-11-21_bos_rows/run.sh <edu_web.parquet> <books.parquet>
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
steps="${STEPS:-150}"
seeds="${SEEDS:-0 1 2}"

"$PYTHON" "$here/packing_report.py" "$edu_web" "$books"

# one source and one held-out set for all: only the train shards differ
source_flags=(--dataset "$edu_web" "$books" --val_fraction 0.003 --num_proc 2 --resume)
[ -e "$out/data_stream/meta.json" ] || "$PYTHON" prepare_fineweb.py "${source_flags[@]}" --out_dir "$out/data_stream"
for overflow in crop split requeue; do
    [ -e "$out/data_$overflow/meta.json" ] || "$PYTHON" prepare_bos_rows.py "${source_flags[@]}" \
        --out_dir "$out/data_$overflow" --seq_len 256 --buffer_docs 1000 --overflow "$overflow"
done

for seed in $seeds; do
    for arm in stream crop split requeue; do
        echo "train_gpt.py --data_dir $out/data_$arm --out_dir $out/${arm}_s$seed --seed $seed --n_layer 4 --n_head 4" \
            "--n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048 --max_train_steps $steps" \
            "--learning_rate 2e-3 --warmup_iters 20 --eval_every $steps --eval_batch_size 8 --val_tokens 1000000000" \
            "--save_every 50 --keep_last 1 --dtype float32 --notes 'bos rows: $arm' --results_csv $out/results.csv"
    done
done > "$out/runs.txt"

export OMP_NUM_THREADS=1
sweep "$out/runs.txt"
"$PYTHON" "$here/ab_table.py" "$out" --json "$here/ab_results.json"
write_whole table.md "$PYTHON" "$here/table.py"
