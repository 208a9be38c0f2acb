#!/usr/bin/env bash
# Gates on real text: stage 1 finds the learning rate, stage 2 screens 7 arms x 3 seeds, stage 3 trains two arms
# longer on 3 seeds. Two runs at a time, one thread each; about an hour. Resumable: finished runs are skipped.
#   bash experiments/2026-11-21_gating/run.sh <edu_web.parquet> <books.parquet>
# DTYPE=float32 for a CPU that has no native bfloat16 (half as fast as bfloat16 on one that has).
set -euo pipefail
edu_web="$(realpath "${1:?give the path of edu_web.parquet}")"
books="$(realpath "${2:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$edu_web" "$books" --val_fraction 0.003 \
    --num_proc 2 --resume --out_dir "$out/data"

arm() { # what it adds to the same model
    case "$1" in
        none) ;;
        wide_mlp) echo "--n_inner 576" ;; # 98,304 parameters more, as many as elementwise gates have
        headwise | elementwise | const) echo "--attn_gate $1" ;;
        elementwise_ns) echo "--attn_gate elementwise --gate_act ns_sigmoid" ;;
        elementwise_value) echo "--attn_gate elementwise --gate_pos value" ;;
    esac
}
run() { # stage, arm, seed, learning rate, steps, val tokens
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1/$2_lr$4_s$3 --seed $3 $(arm "$2") --arch speedrun" \
        "--n_layer 6 --n_head 4 --n_embd 128 --seq_len 256 --micro_batch_size 8 --total_batch_tokens 2048" \
        "--max_train_steps $5 --optimizer muon --learning_rate $4 --schedule trapezoid --warmup_iters 10" \
        "--warmdown_iters $(($5 * 3 / 10)) --learning_rate_decay_frac 0.05 --eval_every $(($5 / 5)) --eval_batch_size 8" \
        "--val_tokens $6 --save_every 50 --keep_last 1 --log_every 0 --dtype ${DTYPE:-bfloat16}" \
        "--results_csv $out/$1.csv --notes gating_$1"
}
for lr in 0.005 0.01 0.02 0.0025; do
    for a in none elementwise; do run lr "$a" 0 "$lr" 150 30000; done
done > "$out/lr.txt"

export OMP_NUM_THREADS=1
echo "== lr"
sweep "$out/lr.txt"
cp "$out/lr.csv" "$here/lr.csv"

# stage 1 found 0.005 for none and 0.01 for elementwise; the screen stands between. The seeds that follow took no part.
kept=()
for seed in 1 2 3; do
    for a in none headwise elementwise elementwise_ns elementwise_value const wide_mlp; do
        kept+=("$out/screen/${a}_lr0.007_s$seed")
        run screen "$a" "$seed" 0.007 120 15000
    done
done > "$out/screen.txt"
best="$("$PYTHON" "$here/table.py" --best "$here/lr.csv")" # lines of an arm and its best learning rate
for seed in 1 2 3; do
    while read -r a lr; do
        kept+=("$out/long/${a}_lr${lr}_s$seed")
        run long "$a" "$seed" "$lr" 200 15000
    done <<< "$best"
done > "$out/long.txt"

for stage in screen long; do
    echo "== $stage"
    sweep "$out/$stage.txt"
done
"$PYTHON" experiments/keep_results.py "${kept[@]}" --out "$here/runs.tar.xz"
write_whole table.md "$PYTHON" "$here/table.py"
