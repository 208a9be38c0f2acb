#!/usr/bin/env bash
# Pretrain, fine-tune on 600 problems, then GRPO on a pool of 2,000, and its controls: one process on one core, in bfloat16, for
# CPUs that multiply it natively. Resumable: each run is skipped when it is finished. The parts after `main` that start from its
# runs may run beside each other.
#   bash experiments/2026-11-26_grpo/run.sh [part ...]      parts, all by default: main sft mul random grid zero table
set -euo pipefail
parts="${*:-main sft mul random grid zero table}"
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1
STEPS=60
RATE=2e-3

finished() { # an interrupted run has saved itself and exits 0: the next step must not start from it
    [ -e "$1/summary.json" ] || { echo "$1 is not finished: run this again to continue." >&2; exit 1; }
}
recipe=(--optimizer muon --schedule trapezoid --resume auto --save_every 0 --dtype bfloat16)
pretrain() { # condition, seed: on the synthetic corpus
    [ -e "$out/data_$1/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset synthetic --max_docs 6000 \
        --val_fraction 0.03 --condition "$1" --out_dir "$out/data_$1" --resume
    "$PYTHON" train_gpt.py --data_dir "$out/data_$1" --out_dir "$out/pretrain_$1_s$2" --seed "$2" "${recipe[@]}" \
        --n_layer 6 --n_head 4 --n_embd 128 --seq_len 128 --micro_batch_size 8 --total_batch_tokens 1024 \
        --learning_rate 0.01 --max_train_steps 300 --warmup_iters 20 --warmdown_iters 100 \
        --learning_rate_decay_frac 0.05 --eval_every 0 --eval_batch_size 32 --val_tokens 12000 --log_every 50 \
        --results_csv ""
    finished "$out/pretrain_$1_s$2"
}
sft() { # condition, seed, start, run, problems with solutions, updates, conversations per update
    "$PYTHON" sft.py --stage gsm8k --init "$out/$3_$1_s$2" --condition "$1" --data "$5" --out_dir "$out/$4_$1_s$2" \
        --seed "$2" "${recipe[@]}" --micro_batch_size 16 --total_batch_conversations "$7" --max_train_steps "$6" \
        --learning_rate 0.01 --warmup_iters 5 --warmdown_iters $(($6 / 2)) --learning_rate_decay_frac 0.05 \
        --eval_every 0 --val_fraction 0 --log_every 50
    finished "$out/$4_$1_s$2"
    exam "$out/$4_$1_s$2"
}
grpo() { # condition, seed, run, learning rate, reward
    "$PYTHON" grpo.py --init "$out/sft_$1_s$2" --data synthetic:2000 --out_dir "$out/$3_$1_s$2" --seed "$2" \
        "${recipe[@]}" --problems_per_step 32 --group_size 8 --max_new_tokens 40 --max_train_steps "$STEPS" \
        --learning_rate "$4" --warmup_iters 2 --warmdown_iters 30 --learning_rate_decay_frac 0.05 --reward "$5" --kl_coef 0.05 \
        --micro_batch_size 64 --rollout_batch_size 256 --eval_batch_size 128 --log_every 5 --sample_every "$STEPS" \
        --eval_every "$STEPS" --exam_data synthetic:1000 --exam_samples 0
    finished "$out/$3_$1_s$2"
    exam "$out/$3_$1_s$2"
}
exam() { # run: greedy on 1,000 held-out problems, and eight samples of each of 200 of them
    "$PYTHON" "$here/exam.py" "$1"
}
for part in $parts; do
    case "$part" in
    main) for seed in 0 1 2; do # the start, and GRPO
        pretrain baseline $seed
        sft baseline $seed pretrain sft synthetic:600 60 16
        grpo baseline $seed grpo $RATE exact
    done ;;
    sft) for seed in 0 1 2; do # as many more updates, of 64 solutions each: the same 600 problems, and the pool
        sft baseline $seed sft more synthetic:600 $STEPS 64
        sft baseline $seed sft upper synthetic:2000 $STEPS 64
    done ;;
    mul) for seed in 0 1 2; do # the other arm
        pretrain mul_tokens $seed
        sft mul_tokens $seed pretrain sft synthetic:600 60 16
        grpo mul_tokens $seed grpo $RATE exact
    done ;;
    random) for seed in 0 1 2; do grpo baseline $seed random $RATE random; done ;;
    grid) for rate in 6e-4 6e-3; do grpo baseline 0 "grpo_$rate" $rate exact; done ;;
    zero) for seed in 0 1 2; do grpo baseline $seed zero $RATE zero; done ;;
    table) "$PYTHON" experiments/keep_results.py "$out"/*_s[0-2] --out "$here/runs.tar.xz" --also exam.json scalars.jsonl
        write_whole table.md "$PYTHON" "$here/table.py"
        write_whole rounding.md "$PYTHON" "$here/rounding.py" "$out"/{sft,grpo}_baseline_s[0-2] ;;
    *) echo "$part is no part: name some of main sft mul random grid zero table." >&2; exit 2 ;;
    esac
done
