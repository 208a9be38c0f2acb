#!/usr/bin/env bash
# Muon against AdamW at three sizes, 3 seeds, each size on 1.5 tokens per parameter. Two runs at a time, one thread each;
# about 25 minutes. Resumable: finished runs are skipped.
#   bash experiments/2026-11-28_sizes/run.sh <edu_web.parquet> <books.parquet>
# A vocabulary of 2,048 ids learned from the data keeps the head, whose cost no size changes, small.
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
texts=(--dataset "$edu_web" "$books" --val_fraction 0.003)
[ -e "$out/own_2k/tokenizer.json" ] || "$PYTHON" train_tokenizer.py "${texts[@]}" --vocab_size 2048 --out_dir "$out/own_2k"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py "${texts[@]}" --tokenizer "$out/own_2k" --num_proc 2 \
    --resume --out_dir "$out/data"

arm() { # optimizer, its learning rate in ../2026-11-21_optimizers (128 wide, 80 steps), seed
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1_s$3 --optimizer $1 --learning_rate 0.002 $2 --seed $3" \
        "--n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
        "--max_train_steps 100 --schedule trapezoid --warmup_iters 10 --warmdown_iters 20" \
        "--learning_rate_decay_frac 0.05 --eval_every 0 --eval_batch_size 8 --val_tokens 15000 --save_every 200" \
        "--keep_last 1 --log_every 0 --dtype float32 --results_csv $out/results.csv --notes sizes"
}
for seed in 7 8 9; do # fresh ones
    arm adamw "" $seed
    arm muon "--muon_lr 0.04" $seed
done > "$out/arms.txt"
"$PYTHON" experiments/ladder.py "$out/arms.txt" --depths 2 3 4 --width_per_layer 32 --head_dim 32 \
    --tokens_per_parameter 1.5 > "$out/ladder.txt"

export OMP_NUM_THREADS=1
sweep "$out/ladder.txt"
"$PYTHON" experiments/keep_results.py "$out/adamw_d*_s[789]" "$out/muon_d*_s[789]" --out "$here/runs.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
