#!/usr/bin/env bash
# AdamW, the Muon hybrid and Muon everywhere, on both architectures: stage 1 gives each of the six its own grid of learning
# rates (seed 0), stage 2 trains each at its best one on 3 fresh seeds. Two runs at a time, one thread each; about 40
# minutes. Resumable: finished runs are skipped.
#   bash experiments/2026-11-21_optimizers/run.sh <edu_web.parquet> <books.parquet>
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$edu_web" "$books" --val_fraction 0.003 \
    --num_proc 2 --resume --out_dir "$out/data"

run() { # stage, architecture, optimizer, learning rate, seed
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1/$2_$3_lr$4_s$5 --arch $2 --optimizer $3 --learning_rate $4" \
        "--seed $5 --n_layer 6 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
        "--max_train_steps 80 --schedule trapezoid --warmup_iters 10 --warmdown_iters 24" \
        "--learning_rate_decay_frac 0.05 --eval_every 16 --eval_batch_size 8 --val_tokens 15000 --save_every 40" \
        "--keep_last 1 --log_every 0 --dtype ${DTYPE:-bfloat16} --results_csv $out/$1.csv --notes optimizers_$1"
}
grid() { # architecture, optimizer, learning rates
    for lr in "${@:3}"; do run grid "$1" "$2" "$lr" 0; done
}
{
    grid gpt2 adamw 0.001 0.002 0.004 0.008
    grid gpt2 muon 0.0025 0.005 0.01 0.02 0.04 0.08 0.16
    grid gpt2 muon_all 0.005 0.01 0.02 0.04
    grid speedrun adamw 0.001 0.002 0.004 0.008
    grid speedrun muon 0.0025 0.005 0.01 0.02
    grid speedrun muon_all 0.005 0.01 0.02 0.04
} > "$out/grid.txt"

export OMP_NUM_THREADS=1
echo "== grid"
sweep "$out/grid.txt"
cp "$out/grid.csv" "$here/grid.csv"

best="$("$PYTHON" "$here/table.py" --best "$here/grid.csv")" # the seeds that follow took no part in choosing
chosen=()
for seed in 1 2 3; do
    while read -r arch optimizer lr; do
        chosen+=("$out/best/${arch}_${optimizer}_lr${lr}_s$seed")
        run best "$arch" "$optimizer" "$lr" "$seed"
    done <<< "$best"
done > "$out/best.txt"

echo "== best"
sweep "$out/best.txt"
"$PYTHON" experiments/keep_results.py "${chosen[@]}" --out "$here/runs.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
