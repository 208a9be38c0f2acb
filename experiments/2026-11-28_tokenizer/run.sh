#!/usr/bin/env bash
# GPT-2's tokens against two vocabularies learned from the data itself, 16,384 and 4,096 ids, 3 seeds. Two runs at a time,
# one thread each; about 12 minutes. Resumable: finished runs are skipped.
#   bash experiments/2026-11-28_tokenizer/run.sh <edu_web.parquet> <books.parquet>
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
texts=(--dataset "$edu_web" "$books" --val_fraction 0.003)
for ids in 16384 4096; do
    name=web_books_$((ids / 1024))k
    [ -e "$out/$name/tokenizer.json" ] || "$PYTHON" train_tokenizer.py "${texts[@]}" --vocab_size $ids --out_dir "$out/$name"
    [ -e "$out/data_$ids/meta.json" ] || "$PYTHON" prepare_fineweb.py "${texts[@]}" --tokenizer "$out/$name" --num_proc 2 \
        --resume --out_dir "$out/data_$ids"
done
[ -e "$out/data_gpt2/meta.json" ] || "$PYTHON" prepare_fineweb.py "${texts[@]}" --num_proc 2 --resume --out_dir "$out/data_gpt2"

for seed in 0 1 2; do
    for data in gpt2 16384 4096; do
        echo "train_gpt.py --data_dir $out/data_$data --out_dir $out/${data}_s$seed --seed $seed --learning_rate 0.002" \
            "--n_layer 6 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
            "--max_train_steps 400 --schedule trapezoid --warmup_iters 10 --warmdown_iters 80" \
            "--learning_rate_decay_frac 0.05 --eval_every 20 --eval_batch_size 8 --val_tokens 15000 --save_every 200" \
            "--keep_last 1 --log_every 0 --dtype ${DTYPE:-bfloat16} --results_csv $out/results.csv --notes tokenizer"
    done
done > "$out/runs.txt"

export OMP_NUM_THREADS=1
sweep "$out/runs.txt"
"$PYTHON" experiments/keep_results.py "$out/*_s[012]" --out "$here/runs.tar.xz"
for name in web_books_16k web_books_4k; do cp "$out/$name/training.json" "$here/$name.json"; done
write_whole table.md "$PYTHON" "$here/table.py"
