#!/usr/bin/env bash
# The real chain, on a CPU and without any claim: a small model of edu_web learns to answer GSM8K's train problems with their
# last line alone (so that it stops), then three GRPO steps on them and an exam on problems held out. About 5 CPU-minutes.
#   bash experiments/2026-11-26_grpo/run_gsm8k.sh <edu_web.parquet> <folder with GSM8K's train.jsonl>
set -euo pipefail
parquet="$(realpath "${1:?give the path of edu_web.parquet}")"
gsm8k="$(realpath "${2:?give the folder that holds train.jsonl of GSM8K}")"
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1
[ -e "$out/data_web/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$parquet" --max_docs 600 \
    --out_dir "$out/data_web" --resume
"$PYTHON" train_gpt.py --data_dir "$out/data_web" --out_dir "$out/web" --resume auto --n_layer 4 --n_head 4 --n_embd 128 \
    --seq_len 384 --micro_batch_size 3 --total_batch_tokens 1152 --max_train_steps 60 --optimizer muon \
    --learning_rate 1e-2 --eval_every 0 --save_every 0 --results_csv ""
[ -e "$out/last_lines.jsonl" ] || "$PYTHON" - "$gsm8k/train.jsonl" "$out/last_lines.jsonl" <<'PY'
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")][:2000]
with open(sys.argv[2], "w", encoding="utf-8") as f:
    for row in rows:
        row["answer"] = row["answer"].rpartition("\n")[2]
        f.write(json.dumps(row) + "\n")
PY
"$PYTHON" sft.py --stage gsm8k --init "$out/web" --data "$out/last_lines.jsonl" --out_dir "$out/web_sft" --resume auto \
    --optimizer muon --learning_rate 5e-3 --total_batch_conversations 32 --max_train_steps 60 --eval_every 0 --save_every 0 \
    --val_fraction 0
"$PYTHON" grpo.py --init "$out/web_sft" --data "$gsm8k/train.jsonl" --out_dir "$out/web_grpo" --resume auto \
    --max_train_steps 3 --problems_per_step 8 --max_new_tokens 64 --optimizer muon --learning_rate 1e-3 --eval_every 3 \
    --exam_problems 64 --exam_samples 2 --sample_every 1 --rollout_batch_size 32
