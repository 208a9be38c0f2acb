#!/usr/bin/env bash
# RoPE, and the speedrun's whole network, against GPT-2's at three sizes, 3 seeds, each size on 1.5 tokens per parameter.
# Two runs at a time, one thread each; about 25 minutes. Resumable: finished runs are skipped.
#   bash experiments/2026-11-28_sizes/run.sh <edu_web.parquet> <books.parquet>
# DTYPE=bfloat16 for a CPU that has native bfloat16.
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
texts=(--dataset "$edu_web" "$books" --val_fraction 0.003)
[ -e "$out/web_books_4k/tokenizer.json" ] || "$PYTHON" train_tokenizer.py "${texts[@]}" --vocab_size 4096 --out_dir "$out/web_books_4k"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py "${texts[@]}" --tokenizer "$out/web_books_4k" --num_proc 2 \
    --resume --out_dir "$out/data"

arm() { # name, its best learning rate in ../2026-11-28_parts (4 layers, 128 wide, 300 steps), its flags, seed
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1_s$4 --learning_rate $2 $3 --seed $4" \
        "--n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
        "--max_train_steps 300 --schedule trapezoid --warmup_iters 20 --warmdown_iters 80" \
        "--learning_rate_decay_frac 0.05 --eval_every 1000 --eval_batch_size 8 --val_tokens 15000 --save_every 300" \
        "--keep_last 1 --log_every 0 --dtype ${DTYPE:-float32} --results_csv $out/results.csv --notes $1"
}
for seed in 11 12 13; do # fresh ones
    arm gpt2 0.002 "" $seed
    arm rope 0.002 "--positions rope" $seed
    arm speedrun 0.004 "--arch speedrun" $seed
done > "$out/arms.txt"
"$PYTHON" experiments/ladder.py "$out/arms.txt" --depths 2 3 4 --width_per_layer 32 --head_dim 32 \
    --tokens_per_parameter 1.5 > "$out/ladder.txt"

export OMP_NUM_THREADS=1
sweep "$out/ladder.txt"
"$PYTHON" experiments/keep_results.py "$out/*_d[234]_s1[123]" --out "$here/runs.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
