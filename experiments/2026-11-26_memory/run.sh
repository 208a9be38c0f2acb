#!/usr/bin/env bash
# Fast weights on real text: `planted.py`; a grid of learning rates for each arm (seed 0); each at its best one on 3 fresh
# seeds; books that were held out whole, read with and without writes. Two runs at a time, one thread each, in bfloat16,
# for CPUs that multiply it natively; about an hour and a half. Resumable: finished runs and exams are skipped.
#   bash experiments/2026-11-26_memory/run.sh <books.parquet>
set -euo pipefail
books="$(realpath "${1:?give the path of books.parquet}")"
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1
fraction=0.15
[ -e "$out/data/meta.json" ] || "$PYTHON" prepare_fineweb.py --dataset "$books" --holdout_by origin \
    --val_fraction "$fraction" --resume --out_dir "$out/data"
[ -e "$out/test.parquet" ] || "$PYTHON" "$here/split.py" "$books" "$fraction" "$out"
[ -e "$here/planted.md" ] || { "$PYTHON" "$here/planted.py" > "$out/planted.md" && cp "$out/planted.md" "$here"; }

arm() { # what it adds to the same model; all have its number of parameters
    local cms="--memory_layers 2 --cms_periods 128,0"
    case "$1" in
        transformer) ;;
        off | stop | through) echo "--memory hope_attention --write $1 $cms" ;;
        original) echo "--memory original $cms" ;;
        titan) echo "--memory titan --memory_layers 2 --titan_period 128" ;;
        hope) echo "--memory hope --self_modifier on $cms --titan_period 128 --titan_width 32" ;;
    esac
}
run() { # stage, arm, learning rate, seed
    echo "train_gpt.py --data_dir $out/data --out_dir $out/$1/$2_lr$3_s$4 --seed $4 $(arm "$2") --arch speedrun" \
        "--n_layer 4 --n_head 3 --n_embd 96 --seq_len 1024 --micro_batch_size 2 --total_batch_tokens 2048" \
        "--max_train_steps 160 --optimizer muon --learning_rate $3 --schedule trapezoid --warmup_iters 10" \
        "--warmdown_iters 48 --learning_rate_decay_frac 0.05 --eval_every 40 --eval_batch_size 2" \
        "--val_tokens 16000 --dtype bfloat16 --save_every 80 --keep_last 1 --log_every 0 --results_csv $out/$1.csv --notes memory_$1"
}
for lr in 0.01 0.005 0.02; do
    for a in transformer off stop through titan hope; do run grid "$a" "$lr" 0; done
done > "$out/grid.txt"
echo "== grid"
sweep "$out/grid.txt"
cp "$out/grid.csv" "$here/grid.csv"

best="$("$PYTHON" "$here/table.py" --best "$here/grid.csv")" # lines of an arm and its best learning rate
for seed in 1 2 3; do
    while read -r a lr; do run best "$a" "$lr" "$seed"; done <<< "$best"
done > "$out/best.txt"
run best original "$(grep '^off ' <<< "$best" | cut -d' ' -f2)" 1 >> "$out/best.txt"
echo "== best"
sweep "$out/best.txt"

exam() { # run, name, further flags: prints the command, unless it has been done
    [ -e "$1/eval/$2.json" ] || echo "long_context.py ppl $1 --data $out/test.parquet --one_per origin" \
        "--max_documents 16 --tokens_per_document 4096 --batch_size 4 --dtype bfloat16" \
        "--out $1/eval/$2.json" ${*:3} # without quotes: xargs -L takes a blank at a line's end for "goes on"
}
read_books() { # two at a time, like the runs
    xargs -r -P 2 -L 1 "$PYTHON"
}
chosen() { # run: the multiplier of its inner learning rate
    "$PYTHON" -c "import json, sys; print(json.load(open(sys.argv[1]))['inner_lr_multiplier'])" "$1/eval/dev.json"
}
echo "== dev books: each arm's rate of writing" # on the grid's run; off is written at test time: dynamic evaluation
while read -r a lr; do
    case "$a" in
        transformer) continue ;;
        off) choose="--write stop --choose_inner_lr 0.1,0.3,1,3" ;;
        *) choose="--choose_inner_lr 0.3,1,3" ;;
    esac
    exam "$out/grid/${a}_lr${lr}_s0" dev "$choose" --dev_data "$out/dev.parquet" --controls adapt \
        --max_documents 8 --tokens_per_document 2048
done <<< "$best" | read_books
echo "== test books"
for seed in 1 2 3; do
    while read -r a lr; do
        of="$out/best/${a}_lr${lr}_s$seed" writes=""
        if [ "$a" = off ]; then
            writes="--write stop"
            # document 004's rate, on the same weights as its own training gives
            exam "$of" original "$writes" --inner_lr_multiplier 3.75e-6 --controls adapt --dtype float32
        fi
        [ "$a" = transformer ] || writes="$writes --inner_lr_multiplier $(chosen "$out/grid/${a}_lr${lr}_s0")"
        exam "$of" books "$writes"
    done <<< "$best"
done | read_books
exam "$out"/best/original_*_s1 original --write stop --controls adapt --dtype float32 | read_books # the preset, trained as itself
"$PYTHON" experiments/keep_results.py "$out"/best/*_s[123] --out "$here/runs.tar.xz" \
    --also 'eval/*.json' 'eval/*_documents.jsonl'
write_whole table.md "$PYTHON" "$here/table.py"
