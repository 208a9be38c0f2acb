#!/usr/bin/env bash
# Does it help to write products such as 7 * 9 = 63 as one token? Two arms x 3 seeds on edu_web mixed with synthetic
# arithmetic, scored in bits/byte and by the arithmetic probes. Two runs at a time, one thread each; about 15 minutes.
# Resumable: finished runs are skipped.
#   bash experiments/2026-11-21_mul_tokens/run.sh <edu_web.parquet>
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
source "$(dirname "$0")/../start.sh"
[ -e "$out/arithmetic.jsonl" ] || "$PYTHON" -m lab.synthetic --n 40000 --out "$out/arithmetic.jsonl"
for arm in baseline mul_tokens; do
    [ -e "$out/data_$arm/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$edu_web" "$out/arithmetic.jsonl" \
        --condition "$arm" --val_fraction 0.005 --num_proc 2 --resume --out_dir "$out/data_$arm"
done

for seed in 0 1 2; do
    for arm in baseline mul_tokens; do
        echo "train_gpt.py --data_dir $out/data_$arm --out_dir $out/${arm}_s$seed --seed $seed --arch speedrun --n_layer 6" \
            "--n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048 --max_train_steps 160" \
            "--optimizer muon --learning_rate 0.007 --schedule trapezoid --warmup_iters 10 --warmdown_iters 48" \
            "--learning_rate_decay_frac 0.05 --eval_every 80 --eval_batch_size 8 --val_tokens 30000 --save_every 50" \
            "--keep_last 1 --log_every 0 --dtype ${DTYPE:-bfloat16} --results_csv $out/results.csv --notes $arm"
    done
done > "$out/runs.txt"

export OMP_NUM_THREADS=1
sweep "$out/runs.txt"

# the probes need no problems to solve; the exam asks a few synthetic ones beside them. And the held-out documents of each
# source by itself: those that it holds out in the mixture
for arm in baseline mul_tokens; do
    for source in edu_web arithmetic; do
        from="$edu_web"; [ "$source" = edu_web ] || from="$out/arithmetic.jsonl"
        [ -e "$out/${source}_$arm/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$from" --condition "$arm" \
            --val_fraction 0.005 --num_proc 2 --resume --out_dir "$out/${source}_$arm"
    done
    for seed in 0 1 2; do
        run="$out/${arm}_s$seed"
        [ -e "$run/gsm8k_results.json" ] || "$PYTHON" eval_gsm8k.py --checkpoint "$run" --data synthetic:40 --max_new_tokens 64
        for source in edu_web arithmetic; do
            [ -e "$run/val_$source.json" ] || "$PYTHON" experiments/score_val.py --checkpoint "$run" \
                --data_dir "$out/${source}_$arm" --out "$run/val_$source.json"
        done
    done
done
"$PYTHON" experiments/keep_results.py "$out"/{baseline,mul_tokens}_s[012] --out "$here/runs.tar.xz" \
    --also val_edu_web.json val_arithmetic.json
write_whole table.md "$PYTHON" "$here/table.py"
