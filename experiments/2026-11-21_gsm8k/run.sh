#!/usr/bin/env bash
# Pretrain on edu_web, fine-tune on GSM8K's train split, examine on 200 problems of its test split after three passes and
# after six: baseline and mul_tokens side by side, one core each, about 35 minutes. Resumable. DTYPE=float32 for a CPU
# that has no native bfloat16.
#   bash experiments/2026-11-21_gsm8k/run.sh <edu_web.parquet> <folder with GSM8K's train.jsonl and test.jsonl>
set -euo pipefail
parquet="$(realpath "${1:?give the path of edu_web.parquet}")"
gsm8k="$(realpath "${2:?give the folder that holds train.jsonl and test.jsonl of GSM8K}")"
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1

finished() { # an interrupted run has saved itself and exits 0: the next step must not start from it
    [ -e "$1/summary.json" ] || { echo "$1 is not finished: run this again to continue." >&2; exit 1; }
}
sft() { # condition, start, run, seed: three passes over GSM8K's train split
    "$PYTHON" sft.py --stage gsm8k --init "$out/$2" --condition "$1" --data "$gsm8k/train.jsonl" --out_dir "$out/$3" \
        --resume auto --seed "$4" --optimizer muon --learning_rate 7e-3 --schedule trapezoid --micro_batch_size 8 \
        --total_batch_conversations 16 --epochs 3 --warmup_iters 20 --warmdown_iters 700 \
        --learning_rate_decay_frac 0.05 --eval_every 350 --val_max_conversations 60 --save_every 100 \
        --dtype "${DTYPE:-bfloat16}"
    finished "$out/$3"
}
exam() { # run: after three passes, and after three more
    "$PYTHON" eval_gsm8k.py --checkpoint "$out/$1" --data "$gsm8k/test.jsonl" --max_examples 200 --show 2
}
one_arm() { # the same for both but for --condition
    [ -e "$out/data_$1/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$parquet" --condition "$1" \
        --decontaminate gsm8k="$gsm8k/test.jsonl" --out_dir "$out/data_$1" --resume
    "$PYTHON" train_gpt.py --data_dir "$out/data_$1" --out_dir "$out/pretrain_$1" --resume auto --seed 0 \
        --n_layer 4 --n_head 4 --n_embd 128 --seq_len 384 --micro_batch_size 4 --total_batch_tokens 4608 \
        --max_train_steps 150 --optimizer muon --learning_rate 1e-2 --schedule trapezoid --warmup_iters 15 \
        --warmdown_iters 60 --learning_rate_decay_frac 0.05 --eval_every 150 --val_tokens 30000 --eval_batch_size 8 \
        --save_every 50 --dtype float32 --results_csv "$out/results.csv"
    finished "$out/pretrain_$1"
    sft "$1" "pretrain_$1" "sft_$1" 0
    exam "sft_$1"
    sft "$1" "sft_$1" "sft2_$1" 1
    exam "sft2_$1"
}
one_arm mul_tokens > "$out/mul_tokens.out" 2>&1 &
one_arm baseline
wait $! || { cat "$out/mul_tokens.out"; exit 1; }
"$PYTHON" experiments/keep_results.py "$out"/{pretrain,sft,sft2}_{baseline,mul_tokens} --out "$here/runs.tar.xz" \
    --also gsm8k_completions.jsonl
write_whole table.md "$PYTHON" "$here/table.py"
