#!/usr/bin/env bash
# The whole lab in a few minutes on two cores: synthetic documents -> shards in two conditions -> 2 arms x 2 seeds of a
# tiny GPT-2 -> table, samples, loss plot. No network beyond the package index. A second run keeps what is finished.
#   bash experiments/quickstart.sh            results: experiments/runs/quickstart/
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" ""
out=experiments/runs/quickstart
mkdir -p "$out"

for condition in baseline mul_tokens; do
    if [ ! -e "$out/data_$condition/meta.json" ]; then
        echo; echo "== $condition shards of the synthetic corpus"
        "$PYTHON" prepare_fineweb.py --dataset synthetic --max_docs 4000 --condition "$condition" --val_fraction 0.03 \
            --out_dir "$out/data_$condition" --resume
    fi
done

# the same model, optimizer and seeds for both arms; only the tokens differ
train() { # condition seed
    "$PYTHON" train_gpt.py --data_dir "$out/data_$1" --condition "$1" --out_dir "$out/$1_s$2" --resume auto \
        --n_layer 2 --n_head 4 --n_embd 64 --seq_len 64 --micro_batch_size 8 --total_batch_tokens 512 \
        --max_train_steps 440 --optimizer muon --learning_rate 0.01 --schedule trapezoid --warmup_iters 20 \
        --warmdown_iters 220 --learning_rate_decay_frac 0.05 --eval_every 110 --eval_batch_size 32 --val_tokens 20000 \
        --save_every 110 --log_every 40 --sample_every 440 --sample_tokens 60 --seed "$2" --results_csv "$out/results.csv"
}
export OMP_NUM_THREADS=1 # two runs side by side on one thread each finish sooner than one after the other on two
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
for seed in 0 1; do
    echo; echo "== train both arms with seed $seed (shown: baseline)"
    train mul_tokens "$seed" > "$out/mul_tokens_s$seed.out" 2>&1 &
    train baseline "$seed"
    wait $! || { cat "$out/mul_tokens_s$seed.out"; exit 1; }
    tail -n 1 "$out/mul_tokens_s$seed.out"
done

echo; echo "== losses (mean ± sd over seeds)"
"$PYTHON" experiments/loss_table.py "$out"/baseline_s0 "$out"/baseline_s1 "$out"/mul_tokens_s0 "$out"/mul_tokens_s1 \
    --plot "$out/losses.png" | tee "$out/table.md"
echo; echo "== samples"
grep -h sample "$out"/baseline_s0/log.txt "$out"/mul_tokens_s0/log.txt
