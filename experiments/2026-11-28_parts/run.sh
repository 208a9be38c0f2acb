#!/usr/bin/env bash
# GPT-2's network with one part replaced at a time by the speedrun's (or a usual one), and the speedrun's whole network:
# stage 1 gives each of the ten its own grid of learning rates (seed 0), stage 2 trains each at its best one on 5 fresh
# seeds. Two runs at a time, one thread each; about an hour beside other work. Resumable: finished runs are skipped.
#   bash experiments/2026-11-28_parts/run.sh <edu_web.parquet> <books.parquet>
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
texts=(--dataset "$edu_web" "$books" --val_fraction 0.003)
[ -e "$out/web_books_4k/tokenizer.json" ] || "$PYTHON" train_tokenizer.py "${texts[@]}" --vocab_size 4096 --out_dir "$out/web_books_4k"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py "${texts[@]}" --tokenizer "$out/web_books_4k" --num_proc 2 \
    --resume --out_dir "$out/data"

declare -A arms=(
    [gpt2]="" [rope]="--positions rope" [nope]="--positions none" [rmsnorm]="--norm rmsnorm" [qk_norm]="--qk_norm on"
    [relu2]="--mlp relu2" [swiglu]="--mlp swiglu" [no_bias]="--bias off" [init]="--weight_init speedrun"
    [speedrun]="--arch speedrun"
)
run() { # stage, arm, learning rate, seed
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1/$2_lr$3_s$4 ${arms[$2]} --learning_rate $3 --seed $4" \
        "--n_layer 4 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
        "--max_train_steps 300 --schedule trapezoid --warmup_iters 20 --warmdown_iters 80" \
        "--learning_rate_decay_frac 0.05 --eval_every 50 --eval_batch_size 8 --val_tokens 15000 --save_every 300" \
        "--keep_last 1 --log_every 0 --dtype ${DTYPE:-bfloat16} --results_csv $out/$1.csv --notes $2"
}
for arm in "${!arms[@]}"; do
    for lr in 0.001 0.002 0.004 0.008; do run grid "$arm" "$lr" 0; done
done | sort > "$out/grid.txt"

export OMP_NUM_THREADS=1
echo "== grid"
sweep "$out/grid.txt"
cp "$out/grid.csv" "$here/grid.csv"

best="$("$PYTHON" "$here/table.py" --best "$here/grid.csv")" # the seeds that follow took no part in choosing
chosen=()
for seed in 1 2 3 4 5; do
    while read -r arm lr; do
        chosen+=("$out/best/${arm}_lr${lr}_s$seed")
        run best "$arm" "$lr" "$seed"
    done <<< "$best"
done > "$out/best.txt"

echo "== best"
sweep "$out/best.txt"
"$PYTHON" experiments/keep_results.py "${chosen[@]}" --out "$here/runs.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
