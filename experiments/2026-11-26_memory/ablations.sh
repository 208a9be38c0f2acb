#!/usr/bin/env bash
# Document 004's ablations, after run.sh: one knob at a time, 3 seeds each, against the arm that it changes. Two runs at a
# time, one thread each, in bfloat16; an hour to an hour and a half, and again half an hour for a write after every token,
# which is why these runs have a smaller model and T 128. Resumable: finished runs are skipped.
#   bash experiments/2026-11-26_memory/ablations.sh
set -euo pipefail
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1
best="$("$PYTHON" "$here/table.py" --best "$here/grid.csv")"
rate_of() { grep "^$1 " <<< "$best" | cut -d' ' -f2; }
stop="$(rate_of stop)" hope="$(rate_of hope)"
threshold="$("$PYTHON" "$here/ablations.py" --mean_teach_norm "$out")"

cms="--memory hope_attention --write stop --memory_layers 2"
titan="--memory hope --memory_layers 2 --cms_periods 128,0 --titan_period 128 --titan_width 32"
# document 004's schedule of 140,000 steps (warmup 2,000, decay from 120,000 in 20,000), in 160
schedule="--teach_warmup_iters 2 --teach_decay_start 137 --teach_decay_iters 23"
arm() { # what it adds to the same model
    case "$1" in
        teach_*_decay) echo "$cms --cms_periods 128,0 --teach_scale ${1//[!0-9.]/} $schedule" ;;
        teach_*) echo "$cms --cms_periods 128,0 --teach_scale ${1//[!0-9.]/} --teach_warmup_iters 2" ;;
        cms_full) echo "$cms --cms_periods 128,512,0" ;;
        cms_sparse) echo "$cms --cms_periods 512,0" ;;
        every_*) echo "--memory hope_attention --write stop --memory_layers 1 --cms_periods ${1#*_},0" ;;
        modifier_*) echo "$titan --self_modifier ${1#*_}" ;;
        surprise) echo "$cms --cms_periods 128,0 --surprise_threshold $threshold" ;;
        stop | adamw | muon_all) echo "$cms --cms_periods 128,0" ;;
        hope) echo "$titan --self_modifier on" ;;
    esac
}
run() { # stage, arm, learning rate, seed, optimizer
    local eval_every=160 # the beginning and the end
    [ "$1" = ablations ] || eval_every=40
    local shape="--n_layer 4 --n_head 3 --n_embd 96 --seq_len 1024 --micro_batch_size 2 --eval_batch_size 2 --dtype bfloat16"
    [[ "$2" != every_* ]] ||
        shape="--n_layer 2 --n_head 2 --n_embd 64 --seq_len 128 --micro_batch_size 16 --eval_batch_size 16 --dtype float32"
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1/$2_lr$3_s$4 --seed $4 $(arm "$2") --arch speedrun" \
        "$shape --total_batch_tokens 2048" \
        "--max_train_steps 160 --optimizer ${5:-muon} --learning_rate $3 --schedule trapezoid --warmup_iters 10" \
        "--warmdown_iters 48 --learning_rate_decay_frac 0.05 --eval_every $eval_every" \
        "--val_tokens 16000 --save_every 80 --keep_last 1 --log_every 0 --results_csv $out/$1.csv --notes memory_$1"
}
for lr in 0.002 0.004 0.008 0.016; do run optimizers adamw "$lr" 0 adamw; done > "$out/optimizers.txt"
for lr in 0.01 0.02 0.04 0.08; do run optimizers muon_all "$lr" 0 muon_all; done >> "$out/optimizers.txt"
echo "== optimizers"
sweep "$out/optimizers.txt"
cp "$out/optimizers.csv" "$here/optimizers.csv"
own="$("$PYTHON" "$here/ablations.py" --best "$here/optimizers.csv")" # lines of an optimizer and its best learning rate

for seed in 1 2 3; do
    for a in stop teach_0.05_decay teach_0.1_decay teach_0.15_decay teach_0.1 cms_full cms_sparse surprise every_1 every_8 every_32; do
        run ablations "$a" "$stop" "$seed"
    done
    for a in hope modifier_off modifier_frozen; do run ablations "$a" "$hope" "$seed"; done
    while read -r optimizer lr; do run ablations "$optimizer" "$lr" "$seed" "$optimizer"; done <<< "$own"
done > "$out/ablations.txt"
echo "== ablations"
sweep "$out/ablations.txt"
"$PYTHON" experiments/keep_results.py "$out"/ablations/*_s[123] --out "$here/ablations.tar.xz"
write_whole ablations.md "$PYTHON" "$here/ablations.py"
