#!/usr/bin/env bash
# Trains a 12M-parameter GPT-2 for 300 steps on edu_web and draws its curve; about 25 minutes on one core. Resumable.
#   bash experiments/2026-11-21_edu_web/run.sh <edu_web.parquet> [nanoGPT checkout]
set -euo pipefail
parquet="$(realpath "${1:?give the path of edu_web.parquet}")"
peer="${2:+$(realpath "$2")}"
source "$(dirname "$0")/../start.sh"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$parquet" --out_dir "$out/data" --num_proc 2 --resume
"$PYTHON" train_gpt.py --data_dir "$out/data" --out_dir "$out/gpt2_12m_s0" --resume auto \
    --n_layer 6 --n_head 6 --n_embd 192 --seq_len 256 --micro_batch_size 4 --total_batch_tokens 4096 --max_train_steps 300 \
    --learning_rate 2e-3 --warmup_iters 40 --eval_every 100 --val_tokens 30000 --eval_batch_size 8 --save_every 100 \
    --sample_every 300 --dtype float32 --notes "edu_web, 12M" --results_csv "$out/results.csv"
cp "$out/gpt2_12m_s0/summary.json" "$here/summary.json"
grep -h '"type": "val"' "$out/gpt2_12m_s0/scalars.jsonl" > "$here/val.jsonl"
grep -h sample "$out/gpt2_12m_s0/log.txt" > "$here/samples.txt"
if [ -n "$peer" ]; then
    "$PYTHON" "$here/nanogpt_parity.py" --nanogpt "$peer" --data_dir "$out/data" --json "$here/nanogpt_parity.json"
fi
write_whole table.md "$PYTHON" "$here/table.py"
