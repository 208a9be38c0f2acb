#!/usr/bin/env bash
# Muon against AdamW at four lengths, 3 seeds: the long runs are trained, the shorter ones branch off them. Two runs at a
# time, one thread each; about 25 minutes. Resumable: finished runs are skipped.
#   bash experiments/2026-11-28_length/run.sh <edu_web.parquet> <books.parquet>
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$edu_web" "$books" --val_fraction 0.003 \
    --num_proc 2 --resume --out_dir "$out/data"

run() { # optimizer, its learning rate in ../2026-11-21_optimizers (80 steps), seed
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1_s$3 --optimizer $1 --learning_rate $2 --seed $3" \
        "--n_layer 6 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
        "--max_train_steps 480 --schedule trapezoid --warmup_iters 10 --warmdown_iters 96" \
        "--learning_rate_decay_frac 0.05 --eval_every 60 --eval_batch_size 8 --val_tokens 15000 --save_every 48" \
        "--keep_last 0 --log_every 0 --dtype ${DTYPE:-bfloat16} --results_csv $out/results.csv --notes length"
}
for seed in 4 5 6; do # fresh ones: 0 chose the learning rates, 1 to 3 tested them
    run adamw 0.002 $seed
    run muon 0.04 $seed
done > "$out/trunks.txt"

export OMP_NUM_THREADS=1
echo "== 480 steps"
sweep "$out/trunks.txt"
echo "== 60, 120 and 240 steps"
"$PYTHON" experiments/branch.py "$out/adamw_s*" "$out/muon_s*" --max_train_steps 60 120 240 > "$out/branches.txt"
sweep "$out/branches.txt"
"$PYTHON" experiments/keep_results.py "$out/adamw_*s[456]" "$out/muon_*s[456]" --out "$here/runs.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
