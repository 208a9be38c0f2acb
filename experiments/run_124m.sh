#!/usr/bin/env bash
# A whole experiment in one command, on however many GPUs there are: prepare both arms, train GPT-2 124M on each with three
# seeds, score, export for Hugging Face, compare. What it will cost is printed before it begins.
#   bash experiments/run_124m.sh [part ...]      parts, all by default: cost prepare train evals export report
#   SMALL=1 bash experiments/run_124m.sh         the same with a tiny shape and corpus, on two CPU cores in three minutes
# Results: $OUT/$ARMS/report/report.html. It can be stopped at any point: the same command goes on, and does nothing when
# all is there. Several nodes: run_124m.sbatch. Not run on a GPU yet.
#
#   ARMS                rows (stream, BOS rows), tokens (plain, products as one token), vocabulary (GPT-2's, VOCAB_SIZE
#                       tokens learned from the corpus), gates (none, elementwise; shape and learning rate of document
#                       003), optimizers (AdamW at GPT-2's learning rate, Muon at the speedrun's) or change (GPT-2, and
#                       the same with CHANGE) (rows)
#   CHANGE              of ARMS=change: flags of train_gpt.py for the second arm, such as "--positions rope"
#   VOCAB_SIZE          of ARMS=vocabulary (32768)
#   SEEDS               of each arm; fewer than three get no verdict ("0 1 2")
#   TOKENS              that each run reads, such as 300M (9.83B, gates 2.67B)
#   DATASET             prepare_fineweb.py --dataset: a name on the hub, or files (HuggingFaceFW/fineweb-edu)
#   DECONTAMINATE       prepare_fineweb.py --decontaminate: benchmarks whose texts no document may hold, by absolute
#                       paths ('' = off)
#   OVERFLOW            of the BOS rows: crop, split or requeue (requeue). crop discards much: see MAX_EPOCHS
#   MAX_EPOCHS          how often a run may read its data (1.05)
#   HELLASWAG_DATA, EWOK_DATA, ZEROSHOT_DATA, GSM8K_DATA    files; EWoK and zero-shot are off without one, GSM8K is for
#                       tokens alone ('' = the official items of HellaSwag and GSM8K, downloaded)
#   TRAIN_FLAGS         more flags of train_gpt.py for all runs, such as "--micro_batch_size 30"
#   LAUNCHER            command that starts train_gpt.py (torchrun on all GPUs of this machine, if it has several); a path
#                       with a space stands in quotation marks inside it
#   DEVICE              cpu, to do all this without a GPU
#   OUT                 folder of data and runs (experiments/runs/124m, or 124m_small)
#   PYTHON              an interpreter with the project's packages ('' = .venv, made when needed)
set -euo pipefail
unset CDPATH # cd means the folder beside this file
fail() { echo "run_124m.sh: $1" >&2; exit 1; }

arms="${ARMS:-rows}" small="${SMALL:-}" preset=gpt2 batch=491520 seq_len=1024
case "$arms" in
    rows) a=stream b=bos_rows ;;
    tokens) a=baseline b=mul_tokens ;;
    vocabulary) a=gpt2 b=own ;;
    gates) a=none b=elementwise preset=speedrun batch=524288 ;;
    optimizers) a=adamw b=muon ;;
    change) a=gpt2 b=changed ;;
    *) fail "ARMS=$arms is unknown: use rows, tokens, vocabulary, gates, optimizers or change." ;;
esac
change="${CHANGE:-}" named="" # its flags, their names
if [ "$arms" = change ]; then
    [[ "$change" =~ ^--[A-Za-z0-9_.,\ -]+$ ]] ||
        fail "CHANGE='$change' names no flags: give those of the second arm, as in CHANGE='--positions rope'."
    for word in $change; do [[ "$word" != --* ]] || named+="${named:+,}${word#--}"; done
elif [ -n "$change" ]; then
    fail "CHANGE is of ARMS=change alone: give both, or neither."
fi
parts="${*:-cost prepare train evals export report}"
for part in $parts; do
    [[ " cost prepare train evals export report " == *" $part "* ]] ||
        fail "$part is no part: use cost, prepare, train, evals, export and report."
done
read -ra seeds <<< "${SEEDS:-0 1 2}"
[ "${#seeds[@]}" -gt 0 ] || fail "SEEDS is empty: give whole numbers, as in SEEDS='0 1 2'."
for seed in "${seeds[@]}"; do
    [[ "$seed" =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
        fail "SEEDS has $seed: give whole numbers below a billion, as in SEEDS='0 1 2'."
done
twice="$(printf '%s\n' "${seeds[@]}" | sort | uniq -d | head -n 1)"
[ -z "$twice" ] || fail "SEEDS has $twice twice: give each seed once, as in SEEDS='0 1 2'."
vocab="${VOCAB_SIZE:-32768}"
[[ "$vocab" =~ ^[1-9][0-9]{2,4}$ ]] || fail "VOCAB_SIZE=$vocab is no vocabulary: give 257 to 65536."
overflow="${OVERFLOW:-requeue}" max_epochs="${MAX_EPOCHS:-1.05}" launcher=() words=""
[[ "$overflow" =~ ^(crop|split|requeue)$ ]] || fail "OVERFLOW=$overflow is unknown: use crop, split or requeue."
[[ "$max_epochs" =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "MAX_EPOCHS=$max_epochs is no number: write 1.05 or 3."
if [[ "${LAUNCHER:-}" = *[![:space:]]* ]]; then # xargs knows a shell's quotation marks
    words="$(xargs printf '%s\n' <<< "$LAUNCHER" 2> /dev/null)" ||
        fail "LAUNCHER=$LAUNCHER has a quotation mark that is not closed: close it."
    while IFS= read -r word; do launcher+=("$word"); done <<< "$words"
fi
for command in "${PYTHON:-}" "${launcher[0]:-}"; do
    [ -z "$command" ] || command -v "$command" > /dev/null ||
        fail "there is no command $command: correct PYTHON or LAUNCHER (where a path with a space needs quotation marks)."
done
datasets=()
for one in ${DATASET:-}; do # paths are the caller's
    [ ! -e "$one" ] || one="$(realpath "$one")"
    datasets+=("$one")
done
for name in HELLASWAG_DATA EWOK_DATA ZEROSHOT_DATA GSM8K_DATA; do
    value="${!name:-}"
    if [ -e "$value" ]; then
        value="$(realpath "$value")"
        printf -v "$name" %s "$value"
    fi
    [[ -z "$value" || -e "$value" || "$value" = synthetic* ]] || fail "$name=$value does not exist: name a file."
    [[ "$name" = GSM8K_DATA || "$value" != *[[:space:]\'\"\\]* ]] || # which a list of runs cannot hold
        fail "$name=$value has a space or a quotation mark in it: put the file elsewhere."
done
root="${OUT:-}"
[ -z "$root" ] || [ "${root:0:1}" = / ] || root="$PWD/$root"
[[ "$root" != *[[:space:]]* ]] || fail "OUT=$root has a space in it: name another folder."
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${root:=experiments/runs/124m${small:+_small}}"
[ -n "${PYTHON:-}" ] || source experiments/venv.sh hf

# ----------------------------------------------------------------------------------------------------------------------
# what each run is: the same flags but for the arm's own

rates=(6e-4 3.6e-3 0.00468) # AdamW, Muon; of the gates
shape=(--preset "$preset") machine=(--device "${DEVICE:-auto}")
scores=(--val_tokens 10485760) evals_of_run=10 vals_of_run=40 saves_of_run=20
tokens="${TOKENS:-}" jobs=1
if [ -n "$small" ]; then
    batch=512 seq_len=64 tokens="${tokens:-51200}" jobs=2 machine=(--device "${DEVICE:-cpu}") rates=(6e-3 1e-2 1e-2)
    shape+=(--n_layer 2 --n_head 4 --n_embd 64 --seq_len 64 --micro_batch_size 8 --total_batch_tokens 512)
    scores=(--val_tokens 12000 --eval_batch_size 32) evals_of_run=1 vals_of_run=2 saves_of_run=4
    [ "${#datasets[@]}" -gt 0 ] || datasets=(synthetic)
    export OMP_NUM_THREADS=1 # two runs side by side on one thread each finish sooner than one after the other on two
fi
case "$tokens" in
    "") steps=20000; [ "$preset" = gpt2 ] || steps=5100 ;;
    *) number="$tokens"
        for unit in K:000 M:000000 B:000000000; do number="${number/%${unit%:*}/${unit#*:}}"; done
        [[ "$number" =~ ^0*[0-9]{1,15}$ ]] || fail "TOKENS=$tokens is no number, or too large: write 300M or 300000000."
        steps=$((10#$number / batch))
        [ "$steps" -gt 0 ] || fail "TOKENS=$tokens is less than one step: give $batch or more." ;;
esac
need=$((steps * batch))
every() { echo $((steps / $1 > 0 ? steps / $1 : 1)); } # steps between so many of a run

out="$root/$arms"
[ -z "$change" ] || out+="_$(echo "$change" | tr -s -- '- ' _ | sed 's/^_//')" # each change has runs of its own
mkdir -p "$out" || fail "OUT=$root cannot be made: name a folder that you may write to."
case "$arms-$tokens" in
    # gates, or TOKENS given: a part of the sample; 3 % to spare, as packing and products change the count
    gates-* | *-?*) suffix="_$need" target="--target_tokens $((need + need / 33))" ;;
    *) suffix="" target="" ;; # the whole sample
esac
held_out="--val_fraction 0.01"
[ -z "$small" ] || held_out="--val_fraction 0.1" target="--target_tokens $((need + need / 2))"
data_of() { # arm: its dataset's folder
    case "$1" in
        bos_rows) echo "$root/data_$overflow$suffix" ;;
        mul_tokens) echo "$root/data_mul_tokens$suffix" ;;
        own) echo "$root/data_own_$vocab$suffix" ;;
        *) echo "$root/data_stream$suffix" ;;
    esac
}
arm_flags() { # arm: what it adds to the same run
    case "$1" in
        none) echo "--learning_rate ${rates[2]}" ;;
        elementwise) echo "--learning_rate ${rates[2]} --attn_gate elementwise" ;;
        muon) echo "--learning_rate ${rates[1]} --optimizer muon" ;;
        changed) echo "--learning_rate ${rates[0]} $change" ;;
        *) echo "--learning_rate ${rates[0]}" ;;
    esac
}
train_flags=("${shape[@]}" "${machine[@]}" --max_train_steps "$steps"
    --max_epochs "$max_epochs")
[ "$preset" = gpt2 ] || train_flags+=(--warmdown_iters $((steps * 1450 / 5100)))
score_flags=(--eval_every "$(every "$vals_of_run")" "${scores[@]}" --hellaswag_every "$(every "$evals_of_run")")
[ -z "${HELLASWAG_DATA:-}" ] || score_flags+=(--hellaswag_data "$HELLASWAG_DATA")
[ -z "$small" ] || score_flags+=(--hellaswag_max_examples 200 --skip_long)
[ -z "${EWOK_DATA:-}" ] || score_flags+=(--ewok_every "$(every "$evals_of_run")" --ewok_data "$EWOK_DATA")
[ -z "${ZEROSHOT_DATA:-}" ] || score_flags+=(--zeroshot_every "$steps" --zeroshot_data "$ZEROSHOT_DATA")
score_flags+=(--save_every "$(every "$saves_of_run")" --keep_last 1 --results_csv "$out/results.csv")

if [ -z "$small$words" ] && [ "${DEVICE:-}" != cpu ]; then
    gpus="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
    [ "$gpus" -gt 0 ] || fail "no GPU is here: SMALL=1 does the same in small on a CPU; DEVICE=cpu does this for weeks."
    [ "$gpus" -lt 2 ] || launcher=("$PYTHON" -m torch.distributed.run --standalone "--nproc_per_node=$gpus")
fi
[ "${#launcher[@]}" -gt 0 ] || launcher=("$PYTHON")

# each command runs in the background: bash then handles a signal at once, and the trap passes it on
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
run() { "$@" & wait $!; }
same_as_before() { # file, settings, products ...: refuses others than those that the products which are there were made with
    file="$1" settings="$2" made=""
    shift 2
    for product in "$@"; do [ ! -e "$product" ] || made="$product"; done
    before="$(cat "$file" 2> /dev/null || echo "$settings")"
    [ -z "$made" ] || [ "$before" = "$settings" ] ||
        fail "$made was made with other settings ($before; now $settings): repeat those, or choose another OUT."
    [ -e "$file" ] && [ "$before" = "$settings" ] || echo "$settings" > "$file"
}

# ----------------------------------------------------------------------------------------------------------------------
# the parts

probe() { # made-up documents, to measure and to check with
    run "$PYTHON" prepare_fineweb.py --dataset synthetic --max_docs 300 --val_fraction 0.1 --resume \
        --out_dir "$root/probe" > "$root/probe.out"
}

cost() { # time of a run of the first arm, measured on made-up documents; disk of all that is not there yet
    settings="${train_flags[*]} ${TRAIN_FLAGS:-} ${launcher[*]}, ${#seeds[@]} seeds"
    [ ! -e "$out/cost.txt" ] || [ "$(cat "$out/cost_of.txt" 2> /dev/null)" != "$settings" ] || return 0
    [ -e "$root/probe/meta.json" ] || probe
    # shellcheck disable=SC2046,SC2086  # lists
    run "${launcher[@]}" train_gpt.py "${train_flags[@]}" $(arm_flags "$a") ${TRAIN_FLAGS:-} --data_dir "$root/probe" \
        --max_epochs 1e9 --verify_data sizes --eval_every 0 --save_every 0 --results_csv "" --dry_run \
        --out_dir "$out/${a}_cost" > "$out/cost.out"
    n_data=2
    [ "$(data_of "$a")" != "$(data_of "$b")" ] || n_data=1
    made="$(printf '%s\n' "$(data_of "$a")" "$(data_of "$b")" | sort -u)"
    for folder in $(runs_of "$a") $(runs_of "$b"); do made+=" $folder $out/hf/$(basename "$folder")"; done
    # shellcheck disable=SC2086  # a list
    there="$({ du -skc $made 2> /dev/null || true; } | tail -n 1 | cut -f 1)"
    "$PYTHON" - "$out" "$need" "$n_data" "${#seeds[@]}" "${there:-0}" "${train_flags[@]}" \
        --data_dir "$root/probe" <<'PY' > "$out/cost.tmp"
import sys

import torch

sys.path.insert(0, ".")
import train_gpt
from lab import estimate, tokenizer, units

out, tokens, n_data, n_seeds, there = sys.argv[1], *map(int, sys.argv[2:6])
args = train_gpt.parse_args(sys.argv[6:])
tokenizer.use_data(args)
with torch.device("meta"):
    model, _ = train_gpt.build_model(args, None, torch.device("meta"))
size = 4 * model.num_params()["total"]
# two bytes a token; two moments beside the weights; a checkpoint and its follower while it trains
parts = {"tokens": 2.2 * tokens * n_data, "checkpoints": 3 * size * (2 * n_seeds + 1), "exports": size * 2 * n_seeds}
free, needed = estimate.free_bytes(out), sum(parts.values())
listed = ", ".join(f"{units.size(count)} of {name}" for name, count in parts.items())
print(f"{2 * n_seeds} runs x {tokens:,} tokens; disk about {units.size(needed)} ({listed}), {units.size(free)} free")
for line in open(f"{out}/cost.out"):
    print("each run, without evaluations:", line.partition(" | disk")[0].rstrip())
missing = needed - 1024 * there - free
if missing > 0:
    sys.exit(f"run_124m.sh: the disk is too small: free {units.size(missing)}, or lower TOKENS or SEEDS.")
PY
    rm -f "$out/cost_of.txt"
    mv "$out/cost.tmp" "$out/cost.txt"
    echo "$settings" > "$out/cost_of.txt"
    cat "$out/cost.txt"
}

prepare() { # one source and one held-out set; only what becomes of the documents differs
    same_as_before "$root/source$suffix.txt" "DATASET=${datasets[*]:-} DECONTAMINATE=${DECONTAMINATE:-}" \
        "$root"/data_{stream,crop,split,requeue,mul_tokens,own_"$vocab"}"$suffix"/{meta,progress}.json
    for arm in "$a" "$b"; do
        folder="$(data_of "$arm")"
        if [ -e "$folder/meta.json" ]; then continue; fi
        script=(prepare_fineweb.py)
        case "$arm" in
            bos_rows) script=(prepare_bos_rows.py --seq_len "$seq_len" --overflow "$overflow") ;;
            mul_tokens) script+=(--condition mul_tokens) ;;
            own) script+=(--tokenizer "$root/own_$vocab") ;;
        esac
        source_flags=() documents=()
        [ "${#datasets[@]}" -eq 0 ] || source_flags=(--dataset "${datasets[@]}")
        [ "${datasets[*]:-}" != synthetic ] || documents=(--max_docs 2000)
        # shellcheck disable=SC2086  # a list
        [ "$arm" != own ] || [ -e "$root/own_$vocab/tokenizer.json" ] ||
            run "$PYTHON" train_tokenizer.py ${source_flags[@]+"${source_flags[@]}"} ${documents[@]+"${documents[@]}"} \
                $held_out --vocab_size "$vocab" --out_dir "$root/own_$vocab"
        script+=(${source_flags[@]+"${source_flags[@]}"})
        # shellcheck disable=SC2206  # a list
        [ -z "${DECONTAMINATE:-}" ] || script+=(--decontaminate $DECONTAMINATE)
        workers="$(getconf _NPROCESSORS_ONLN)"
        # shellcheck disable=SC2086  # a list
        run "$PYTHON" "${script[@]}" $target $held_out --num_proc $((workers < 16 ? workers : 16)) --resume --out_dir "$folder"
    done
}

train() {
    list="$out/runs_${seeds[*]}.txt" list="${list// /_}" # of these seeds, as others may run on another machine
    for seed in "${seeds[@]}"; do
        for arm in "$a" "$b"; do
            # shellcheck disable=SC2046,SC2086  # lists
            echo train_gpt.py "${train_flags[@]}" $(arm_flags "$arm") ${TRAIN_FLAGS:-} "${score_flags[@]}" \
                --data_dir "$(data_of "$arm")" --out_dir "$out/${arm}_s$seed" --seed "$seed" --notes "124m_$arms"
        done
    done > "$list"
    run "$PYTHON" experiments/sweep.py "$list" --jobs "$jobs" --launcher "$(printf '%q ' "${launcher[@]}")"
}

runs_of() { for seed in "${seeds[@]}"; do echo "$out/$1_s$seed"; done; } # an arm's folders

evals() { # HellaSwag, EWoK and zero-shot are scored while training
    [ "$arms" = tokens ] || return 0
    options=(--max_examples 200) data="${GSM8K_DATA:-}"
    [ -z "$small" ] || { options=(--max_new_tokens 32); data="${data:-synthetic:20}"; }
    same_as_before "$out/gsm8k.txt" "GSM8K_DATA=$data ${options[*]}" "$out"/*/gsm8k_results.json
    for folder in $(runs_of "$a") $(runs_of "$b"); do
        [ -e "$folder/gsm8k_results.json" ] || run "$PYTHON" eval_gsm8k.py --checkpoint "$folder" --data "$data" "${options[@]}" \
            "${machine[@]}"
    done
}

export_all() {
    [ "$arms" != gates ] || { echo "export: Hugging Face has no class for the speedrun's shape."; return; }
    own="$(runs_of "$a") $(runs_of "$b")"
    if [ "$arms" = change ]; then
        echo "export: of the first arm, as another network may have no class in transformers: model.py export tries."
        own="$(runs_of "$a")"
    fi
    for folder in $own; do
        hf="$out/hf/$(basename "$folder")"
        [ -e "$hf" ] || run "$PYTHON" model.py export "$folder" "$hf"
    done
}

report() {
    own="$(runs_of "$a") $(runs_of "$b")" changed=yes
    for folder in $own; do [ -e "$folder/summary.json" ] || fail "$folder is not finished: run the part train first."; done
    if [ "$(cat "$out/reported" 2> /dev/null)" = "$own" ]; then
        # shellcheck disable=SC2086  # a list
        changed="$(find $own -maxdepth 1 \( -name summary.json -o -name gsm8k_results.json \) -newer "$out/reported")"
    fi
    if [ -n "$changed" ]; then
        treatment="" planned=""
        [ "$arms" != optimizers ] || treatment="--treatment optimizer,learning_rate"
        [ "$arms" != change ] || treatment="--treatment $named"
        [ "${#seeds[@]}" -lt 3 ] || planned="--planned ${#seeds[@]}"
        # shellcheck disable=SC2046,SC2086  # lists
        run "$PYTHON" compare_runs.py --a $(runs_of "$a") --b $(runs_of "$b") $treatment $planned --out "$out/report"
        echo "$own" > "$out/reported"
    else
        echo "report: $out/report/report.html"
    fi
}

check_change() { # what is wrong with CHANGE would end the second arm, or the report, after days
    [ -e "$root/probe/meta.json" ] || probe
    # shellcheck disable=SC2046,SC2086  # lists
    "$PYTHON" - "$named" "${train_flags[@]}" $(arm_flags "$b") ${TRAIN_FLAGS:-} --data_dir "$root/probe" <<'PY'
import sys

import torch

sys.path.insert(0, ".")
import train_gpt
from lab import runs, tokenizer

names = sys.argv[1].split(",")
args = train_gpt.parse_args(sys.argv[2:])
tokenizer.use_data(args)
try:
    with torch.device("meta"):
        train_gpt.build_model(args, None, torch.device("meta"))
except ValueError as error:
    sys.exit(f"run_124m.sh: CHANGE: {error}.")
none = [name for name in names if not runs.has_effect(name) or name == "seed" or name.endswith("_every")]
if none:
    sys.exit(f"run_124m.sh: CHANGE has --{none[0]}, which changes no training: name a flag that does, or use TRAIN_FLAGS.")
PY
}

[ -z "$change" ] || check_change
for part in $parts; do
    echo "== $part"
    case "$part" in
        export) export_all ;;
        *) "$part" ;;
    esac
done
