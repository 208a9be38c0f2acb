#!/usr/bin/env bash
# Does it last? GPT-2's tokens against the 16,384 of run.sh, which comes first, at 400, 800 and 1,600 steps: the long runs
# are trained, the shorter ones branch off them. Two runs at a time, one thread each; about 35 minutes. Resumable.
#   bash experiments/2026-11-28_tokenizer/longer.sh
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
source "$(dirname "$0")/../start.sh"
[ -e "$out/data_16384/meta.json" ] && [ -e "$out/data_gpt2/meta.json" ] || { echo "run run.sh first" >&2; exit 1; }

for seed in 3 4 5; do # fresh ones
    for data in gpt2 16384; do
        echo "train_gpt.py --data_dir $out/data_$data --out_dir $out/long_${data}_s$seed --seed $seed --learning_rate 0.002" \
            "--n_layer 6 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
            "--max_train_steps 1600 --schedule trapezoid --warmup_iters 10 --warmdown_iters 320" \
            "--learning_rate_decay_frac 0.05 --eval_every 80 --eval_batch_size 8 --val_tokens 15000 --save_every 320" \
            "--keep_last 0 --log_every 0 --dtype ${DTYPE:-bfloat16} --results_csv $out/longer.csv --notes longer"
    done
done > "$out/trunks.txt"

export OMP_NUM_THREADS=1
echo "== 1,600 steps"
sweep "$out/trunks.txt"
echo "== 400 and 800 steps"
"$PYTHON" experiments/branch.py "$out/long_gpt2_s[345]" "$out/long_16384_s[345]" --max_train_steps 400 800 > "$out/branches.txt"
sweep "$out/branches.txt"
"$PYTHON" experiments/keep_results.py "$out/long_*" --out "$here/longer.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
