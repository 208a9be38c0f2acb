#!/usr/bin/env bash
# Pretrain, fine-tune on 200 problems, then GRPO on a pool of 2,000, with its controls: one process on one core, about an
# hour. Resumable: each run is skipped when it is finished.      bash experiments/2026-11-26_grpo/run.sh
set -euo pipefail
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1
STEPS=30

finished() { # an interrupted run has saved itself and exits 0: the next step must not start from it
    [ -e "$1/summary.json" ] || { echo "$1 is not finished: run this again to continue." >&2; exit 1; }
}
recipe=(--optimizer muon --schedule trapezoid --resume auto --save_every 0)
base() { # condition, seed: pretraining on the synthetic corpus, then the start, fine-tuned on 200 problems
    [ -e "$out/data_$1/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset synthetic --max_docs 3000 \
        --val_fraction 0.03 --condition "$1" --out_dir "$out/data_$1" --resume
    "$PYTHON" train_gpt.py --data_dir "$out/data_$1" --out_dir "$out/pretrain_$1_s$2" --seed "$2" "${recipe[@]}" \
        --n_layer 4 --n_head 4 --n_embd 64 --seq_len 128 --micro_batch_size 8 --total_batch_tokens 1024 \
        --learning_rate 0.01 --max_train_steps 150 --warmup_iters 15 --warmdown_iters 75 \
        --learning_rate_decay_frac 0.05 --eval_every 0 --log_every 50 --results_csv ""
    finished "$out/pretrain_$1_s$2"
    sft "$1" "$2" pretrain sft synthetic:200 150 16
}
sft() { # condition, seed, start, run, problems with solutions, updates, conversations per update
    "$PYTHON" sft.py --stage gsm8k --init "$out/$3_$1_s$2" --condition "$1" --data "$5" --out_dir "$out/$4_$1_s$2" \
        --seed "$2" "${recipe[@]}" --micro_batch_size 32 --total_batch_conversations "$7" --max_train_steps "$6" \
        --learning_rate 0.01 --warmup_iters $(($6 / 15)) --warmdown_iters $(($6 / 2)) --learning_rate_decay_frac 0.05 \
        --eval_every 0 --log_every 50
    finished "$out/$4_$1_s$2"
}
grpo() { # condition, seed, run, more flags
    "$PYTHON" grpo.py --init "$out/sft_$1_s$2" --data synthetic:2000 --out_dir "$out/$3_$1_s$2" --seed "$2" \
        "${recipe[@]}" --problems_per_step 16 --group_size 8 --max_new_tokens 48 --max_train_steps "$STEPS" \
        --warmup_iters 2 --warmdown_iters 10 --learning_rate_decay_frac 0.1 --micro_batch_size 32 \
        --rollout_batch_size 128 --eval_batch_size 128 --exam_data synthetic:1000 --exam_samples 0 --log_every 10 \
        --learning_rate "$LR" "${@:4}"
    finished "$out/$3_$1_s$2"
}
exam() { # run: greedy on 1,000 held-out problems, and eight samples of each of 250
    [ -e "$1/gsm8k_results.json" ] || "$PYTHON" eval_gsm8k.py --checkpoint "$1" --data synthetic:1000 --probes off \
        --max_new_tokens 48 --batch_size 128
    [ -e "$1/samples/gsm8k_results.json" ] || "$PYTHON" eval_gsm8k.py --checkpoint "$1" --data synthetic:1000 \
        --max_examples 250 --samples 8 --probes off --max_new_tokens 48 --batch_size 128 --out "$1/samples"
}
one() { # a function, condition, seed, run, more: the run, and its exams
    "$1" "$2" "$3" "${@:4}"
}
LR=3e-3
for seed in 0 1 2; do
    base baseline $seed
    grpo baseline $seed grpo --eval_every $STEPS --sample_every $STEPS
    exam "$out/sft_baseline_s$seed"
    exam "$out/grpo_baseline_s$seed"
done
