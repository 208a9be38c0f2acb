"""golden_tasks.py owns the commands that golden.py runs, and the inputs they read. Nothing of the repo is imported.

A flag such as `--data_dir data_rows_crop` names the folder in which the task `data/rows/crop` has left its output.
Every setting is tiny: two blocks of width 32, 24 steps of 256 tokens. The head over the vocabulary costs the most.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import random
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STAGES = ("data", "train", "sft", "evals", "report")


class Task(NamedTuple):
    """One command. Its current folder is the work folder, where its output goes to the folder `folder`."""

    key: str
    script: str  # "": there is only something to prepare
    flags: str
    needs: tuple[str, ...] = ()  # keys of tasks that come first, beside those whose folders stand in the flags
    prepare: Callable[[Path, Task], None] | None = None  # is called with the work folder before the command

    @property
    def stage(self) -> str:
        return self.key.split("/")[0]

    @property
    def folder(self) -> str:
        return self.key.replace("/", "_")

    @property
    def words(self) -> list[str]:
        flag = OUT_FLAGS.get(self.script, "--out")
        return [*shlex.split(f"{self.flags} {flag}"), self.folder]


OUT_FLAGS = {
    "prepare_fineweb": "--out_dir",
    "prepare_bos_rows": "--out_dir",
    "inject_mul": "-o",
    "train_gpt": "--out_dir",
    "sft": "--out_dir",
    "model": "",
}

# ----------------------------------------------------------------------------------------------------------------------
# the commands

SYNTHETIC = "--dataset synthetic --max_docs 600 --val_fraction 0.05"
LOCAL = (
    "--dataset sources/a.jsonl.gz sources/b.parquet sources/c.txt sources/d.jsonl "
    "--val_fraction 0.1 --bad_documents skip"
)
GUARD = "--decontaminate gsm8k=sources/gsm8k.jsonl"
DATA = {
    "stream/baseline": f"prepare_fineweb {SYNTHETIC}",
    "stream/mul_tokens": f"prepare_fineweb {SYNTHETIC} --condition mul_tokens",
    "stream/strict": f"prepare_fineweb {SYNTHETIC} --condition mul_tokens --inject strict",
    "stream/shards": f"prepare_fineweb {SYNTHETIC} --shard_tokens 40_000 --num_proc 2 --synthetic_seed 1",
    "stream/target": "prepare_fineweb --dataset synthetic --target_tokens 30_000 --tokenizer_backend tiktoken",
    "stream/local": f"prepare_fineweb {LOCAL} --condition mul_tokens",
    "stream/guarded": f"prepare_fineweb {LOCAL} {GUARD} hellaswag=sources/hellaswag.jsonl",
    "rows/crop": f"prepare_bos_rows {SYNTHETIC} --seq_len 64 --buffer_docs 50 --overflow crop",
    "rows/split": f"prepare_bos_rows {SYNTHETIC} --seq_len 64 --buffer_docs 50 --overflow split",
    "rows/requeue": f"prepare_bos_rows {SYNTHETIC} --seq_len 64 --buffer_docs 50 --overflow requeue",
    "rows/mul_tokens": f"prepare_bos_rows {SYNTHETIC} --seq_len 64 --condition mul_tokens",
    "rows/local": f"prepare_bos_rows {LOCAL} --seq_len 32 --buffer_docs 20",
    "injected": "inject_mul sources/c.txt",
    "injected_strict": "inject_mul sources/d.jsonl --format jsonl --mode strict",
}

TINY = (
    "--n_layer 2 --n_head 2 --n_embd 32 --seq_len 64 --micro_batch_size 2 --total_batch_tokens 256 "
    "--max_train_steps 24 --eval_every 8 --val_tokens 1500 --eval_batch_size 8 --learning_rate 0.005 "
    "--warmup_iters 3 --save_every 0 --log_every 8 --peak_flops 1e12 --device cpu --results_csv results.csv"
)
BENCHMARKS = "--hellaswag_every 24 --hellaswag_data synthetic:16 --ewok_every 24 --ewok_data synthetic:22"
STREAM, MUL = "--data_dir data_stream_baseline", "--data_dir data_stream_mul_tokens"
LONGER = "--seq_len 160 --total_batch_tokens 320"  # room for a problem and its answer
WHOLE = f"{STREAM} --optimizer muon --save_every 8 --keep_last 0"
ARCHS = ("gpt2", "speedrun")
GATES = ("none", "headwise", "elementwise", "const")
OPTIMIZERS = ("adamw", "muon", "muon_all")
SCORED = ("gpt2/headwise/adamw", "gpt2/none/muon", "speedrun/elementwise/muon", "speedrun/const/muon_all")
SEEDS = range(4)
RUNS = {  # beside the grid, each with something that the grid has not
    "rows_sequential": "--data_dir data_rows_requeue --data_order sequential",
    "rows_cropped": "--data_dir data_rows_crop --val_data_dir data_stream_baseline",
    "mul_tokens": f"{MUL} --condition mul_tokens --arch speedrun --optimizer muon",
    "trapezoid": f"{STREAM} --schedule trapezoid --warmdown_iters 10",
    "n_inner": f"{STREAM} --n_inner 48 --seed 5",
    "value_gate": f"{STREAM} --attn_gate elementwise --gate_pos value --gate_act ns_sigmoid",
    "muon_original": f"{STREAM} --optimizer muon --muon_scale original --muon_lr 0.001",
    "muon_rms": f"{STREAM} --optimizer muon_all --muon_scale match_rms_adamw",
    "bfloat16": f"{STREAM} --dtype bfloat16 --arch speedrun",
    "epochs": "--data_dir data_stream_local --max_epochs 3 --total_batch_tokens 512",
    "samples": "--data_dir data_stream_shards --eval_every 0 --sample_every 12 --grad_clip 0 "
    "--weight_decay 0 --beta1 0.8 --beta2 0.99 --micro_batch_size 4 --num_workers 0",
    "plain_vocabulary": f"{STREAM} --vocab_size 50257",
    "no_bos": f"{STREAM} {BENCHMARKS} --eval_bos off --ewok_max_examples 11",
    "whole": WHOLE,
    "init_from": "--data_dir data_stream_shards --init_from train_whole --seed 1",
    "repeated": "--config train_whole/config.json --seed 3",
    "base": f"{STREAM} {LONGER} {BENCHMARKS}",
    "base_gated": f"{MUL} {LONGER} --arch speedrun --attn_gate headwise --optimizer muon",
}

SFT = (
    "--init train_base --micro_batch_size 2 --total_batch_conversations 8 --epochs 1 --learning_rate 0.003 "
    "--val_fraction 0.1 --eval_every 5 --save_every 0 --log_every 5 --peak_flops 1e12 --device cpu"
)
PROBLEMS = "--stage gsm8k --data synthetic:80"
SFTS = {
    "packed": f"{PROBLEMS} --condition mul_tokens --optimizer muon",
    "unpacked": f"{PROBLEMS} --condition mul_tokens --optimizer muon --packing off",
    "baseline": f"{PROBLEMS} --bos off --init train_base_gated --sample_every 5",
    "tulu": "--stage tulu --data sources/tulu.jsonl.gz --max_examples 40 --bad_conversations skip",
    "tinygsm": "--stage tinygsm --data sources/tinygsm.jsonl --condition mul_tokens --schedule trapezoid",
    "transition": "--stage transition --data sources/tulu.jsonl.gz --tinygsm_data sources/tinygsm.jsonl "
    f"--mix_start 0.1 --mix_end 0.9 --bad_conversations skip {GUARD}",
}

EVALS = {
    "hellaswag": "hellaswag --data synthetic:24",
    "hellaswag_plain": "hellaswag --data synthetic:24 --text plain --bos off --batch_size 3",
    "hellaswag_local": "hellaswag --data sources/hellaswag.jsonl --dtype bfloat16",
    "ewok": "ewok --data synthetic:44",
    "ewok_few": "ewok --data synthetic:44 --bos off --max_examples 22 --batch_size 5",
    "gsm8k": "eval_gsm8k --data synthetic:12 --max_new_tokens 24",
    "gsm8k_sampled": "eval_gsm8k --data sources/gsm8k.jsonl --max_new_tokens 24 --probes off --bos off "
    "--temperature 0.8 --top_k 40 --top_p 0.9 --seed 3 --max_examples 8",
}
EVALUATED = ("train/base", "train/base_gated", "sft/packed")

SCREEN = "records/gating/screen"
RATES = "--treatment learning_rate,muon_lr"
UNEQUAL_EVALS = "--allow hellaswag_every,ewok_every"
REPORTS = {
    "gating/screen": f"--runs {SCREEN}/* --group_by attn_gate,gate_pos,gate_act,n_inner "
    "--baseline attn_gate=none,gate_pos=sdpa,gate_act=sigmoid,n_inner=512",
    "gating/long": "--runs records/gating/long/* --group_by attn_gate,learning_rate,muon_lr "
    "--baseline attn_gate=none,learning_rate=0.005,muon_lr=0.0005",
    "gating/headwise": f"--a {SCREEN}/none_* --b {SCREEN}/headwise_*",
    "gating/mlp": f"--a {SCREEN}/none_* --b {SCREEN}/wide_mlp_* --treatment n_inner",
    "gating/undeclared": f"--a {SCREEN}/none_* --b {SCREEN}/wide_mlp_*",
    "gating/lr": "--results records/gating_lr.csv --group_by attn_gate,learning_rate",
    "optimizers/gpt2": "--runs records/optimizers/gpt2_* --group_by optimizer "
    f"--baseline optimizer=adamw {RATES}",
    "optimizers/speedrun": "--runs records/optimizers/speedrun_* --group_by optimizer "
    f"--baseline optimizer=adamw {RATES}",
    "optimizers/pair": "--a records/optimizers/gpt2_adamw_* --b records/optimizers/gpt2_muon_lr* "
    f"{RATES},optimizer --delta 0.01",
    "optimizers/grid": "--results records/optimizers_grid.csv --where arch=gpt2 "
    "--group_by arch,optimizer,learning_rate",
    "mul_tokens/pair": "--a records/mul_tokens/baseline_s* --b records/mul_tokens/mul_tokens_s*",
    "gsm8k/pretrain": "--a records/gsm8k/pretrain_baseline --b records/gsm8k/pretrain_mul_tokens",
    "gsm8k/sft": "--a records/gsm8k/sft2_baseline --b records/gsm8k/sft2_mul_tokens "
    "--treatment tokens --allow init",
    "made/pair": "--a report_made/train_plain_s* --b report_made/train_mul_s*",
    "made/no_items": "--a report_made/train_plain_s* --b report_made/train_mul_s* --no_items "
    "--alpha 0.1 --primary val_bits_per_byte_bos",
    "made/grid": "--runs report_made/train_gpt2_* report_made/train_speedrun_* --no_items "
    "--group_by attn_gate,arch,optimizer --baseline attn_gate=none,arch=gpt2,optimizer=adamw "
    f"{UNEQUAL_EVALS},invalid_run",
    "made/noise": "--aa report_made/train_plain_s* --plan --effect 0.01",
    "made/check": "--check report_made/train_plain_s3 --against report_made/train_plain_s* "
    f"report_made/train_n_inner {UNEQUAL_EVALS},n_inner",
    "made/results": "--results report_made/results.csv --where notes=grid "
    "--group_by attn_gate,arch,optimizer",
    "plan": "--plan --effect 0.003 --noise 0.0013 --correlation 0.6",
}


def all_tasks() -> list[Task]:
    """Everything that is hashed, each task behind those that it needs."""
    tasks = []

    def add(key: str, command: str, **more) -> None:
        script, _, flags = command.partition(" ")
        tasks.append(Task(key, script, flags, **more))

    for name, command in DATA.items():
        add(f"data/{name}", command)

    for arch, gate, optimizer in itertools.product(ARCHS, GATES, OPTIMIZERS):
        name = f"{arch}/{gate}/{optimizer}"
        arm = f"--arch {arch} --attn_gate {gate} --optimizer {optimizer} --notes grid"
        if name in SCORED:
            arm += f" {BENCHMARKS}"
        add(f"train/{name}", f"train_gpt {TINY} {STREAM} {arm}")
    grid = [task.key for task in tasks if task.stage == "train"]
    for name, flags in RUNS.items():
        add(f"train/{name}", f"train_gpt {TINY} {flags}")
    resume = f"train_gpt {TINY} {WHOLE} --resume auto"
    add("train/resumed", resume, needs=("train/whole",), prepare=cut_back)
    pairs = []
    for seed in SEEDS:
        for arm, data in (("plain", STREAM), ("mul", MUL)):
            pairs.append(f"train/{arm}_s{seed}")
            add(pairs[-1], f"train_gpt {TINY} {data} --seed {seed} {BENCHMARKS}")

    for name, flags in SFTS.items():
        add(f"sft/{name}", f"sft {SFT} {flags}")

    for run in EVALUATED:
        checkpoint = run.replace("/", "_")
        for name, command in EVALS.items():
            add(f"evals/{checkpoint}/{name}", f"{command} --checkpoint {checkpoint}")
    for arch, gate in itertools.product(ARCHS, GATES):
        name = f"train_{arch}_{gate}_muon"
        add(f"evals/{name}", f"hellaswag --data synthetic:6 --checkpoint {name}")
    add("evals/exported", "model export train_base")
    add("evals/imported", "model import evals_exported")

    kept = (*grid, *pairs, "train/n_inner")
    add("report/made", "", needs=kept, prepare=freeze_runs)
    for name, flags in REPORTS.items():
        add(f"report/{name}", f"compare_runs {flags}")
    return tasks


def dependencies(tasks: list[Task]) -> dict[str, set[str]]:
    """{key: keys of the tasks that must come before}: those whose folders the flags name, and task.needs."""
    by_folder = {task.folder: task.key for task in tasks}
    before = {}
    for task in tasks:
        named = {word.split("/")[0] for word in task.words}
        before[task.key] = {by_folder[word] for word in named if word in by_folder}
        before[task.key] |= set(task.needs)
        before[task.key].discard(task.key)
    return before


def closure(before: dict[str, set[str]], keys: set[str]) -> set[str]:
    """The keys and all that must come before them."""
    needed = set()
    left = set(keys)
    while left:
        key = left.pop()
        needed.add(key)
        left |= before[key] - needed
    return needed


# ----------------------------------------------------------------------------------------------------------------------
# inputs that are made here

NAMES = "Ada Bob Chloë Dan Eve Farid Grace 李雷".split()
THINGS = "apples pears books stamps marbles coins".split()


def write_sources(folder: Path) -> None:
    """Corpora in every local format, conversations, programs and benchmark items; the same in every call."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    draw = random.Random(12)
    problems = [problem(draw, day) for day in range(60)]
    only = lambda *fields: [{name: p[name] for name in fields} for p in problems]

    write_jsonl(folder / "a.jsonl.gz", [{"text": document(draw), "id": i} for i in range(60)])
    table = pyarrow.table({"text": [document(draw) for _ in range(50)]})
    pyarrow.parquet.write_table(table, folder / "b.parquet")
    lines = [document(draw) for _ in range(8)]
    (folder / "c.txt").write_bytes("\r\n".join(lines).encode())
    leaks = [{"text": f"{document(draw)} {p['question']}"} for p in problems[:3]]
    others = [{"text": document(draw)} for _ in range(40)]
    write_jsonl(folder / "d.jsonl", [*leaks, {"text": ""}, *others])

    write_jsonl(folder / "gsm8k.jsonl", only("question", "answer")[:20])
    write_jsonl(folder / "tinygsm.jsonl", only("question", "code"))
    write_jsonl(folder / "tulu.jsonl.gz", [*(talk(draw, i) for i in range(70)), no_answer()])
    write_jsonl(folder / "hellaswag.jsonl", [hellaswag_item(draw, i) for i in range(12)])


def write_jsonl(path: Path, records: list[dict]) -> None:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    path.write_bytes(content)


def sentence(draw: random.Random) -> str:
    a, b = draw.randint(1, 12), draw.randint(1, 12)
    sign = draw.choice(["*", "x", "×", " * ", " times "])
    result = draw.choice([f" = {a * b}", f"={a * b}", "", f" = {a * b + 1}"])
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    return f"{name} has {a} bags of {b} {thing}. {a}{sign}{b}{result}."


def document(draw: random.Random) -> str:
    return " ".join(sentence(draw) for _ in range(draw.randint(1, 30)))


def problem(draw: random.Random, day: int) -> dict:
    """{"question", "answer", "code"} as GSM8K and TinyGSM have them."""
    a, b, c = (draw.randint(2, 9) for _ in range(3))
    name, thing = NAMES[day % 8], THINGS[day % 6]
    question = f"{name} buys {a} boxes with {b} {thing} each, and later {c} more on day {day}."
    question += f" How many {thing} does {name} own in the end?"
    total = a * b + c
    answer = f"In boxes: {a}*{b}=<<{a}*{b}={a * b}>>{a * b}\nTogether: {a * b}+{c}={total}\n#### {total}"
    code = f"def simple_math_problem() -> int:\n    boxes = {a}\n    each = {b}\n"
    code += f"    inside = boxes * each\n    result = inside + {c}\n    return result\n"
    return {"question": question, "answer": answer, "code": code}


def talk(draw: random.Random, number: int) -> dict:
    messages = []
    if number % 3 == 0:
        messages.append({"role": "system", "content": "Be brief."})
    for _ in range(1 + number % 3):
        messages.append({"role": "user", "content": sentence(draw)})
        messages.append({"role": "assistant", "content": sentence(draw)})
    return {"messages": messages}


def no_answer() -> dict:
    return {"messages": [{"role": "user", "content": "?"}]}


def hellaswag_item(draw: random.Random, number: int) -> dict:
    context = sentence(draw)
    endings = [f"counts the {THINGS[(number + k) % 6]} [step] once  more." for k in range(4)]
    return {
        "ind": number,
        "activity_label": "Counting [title]",
        "ctx_a": context,
        "ctx_b": "she",
        "ctx": f"{context} she",
        "split": "val",
        "split_type": "indomain",
        "label": number % 4,
        "source_id": f"golden~{number // 2}",
        "endings": endings,
    }


def unpack_records(checkout: Path, folder: Path) -> None:
    """The committed runs as folder/<experiment>/..., from experiments/<date>_<experiment>/runs or runs.tar.xz, and its
    tables of results as folder/<experiment>_<name>.csv."""
    folder.mkdir()
    for experiment in sorted((checkout / "experiments").glob("2*_*")):
        out = folder / experiment.name.split("_", 1)[1]
        packed = experiment / "runs.tar.xz"
        if packed.exists():
            unpacked = folder / "unpacked"
            with tarfile.open(packed) as tar:
                tar.extractall(unpacked, filter="data")
            (unpacked / "runs").rename(out)
            shutil.rmtree(unpacked)
        elif (experiment / "runs").is_dir():
            shutil.copytree(experiment / "runs", out)
        for table in experiment.glob("*.csv"):
            shutil.copy(table, folder / f"{out.name}_{table.name}")


def cut_back(work: Path, task: Task) -> None:
    """Makes the task's folder a copy of train_whole that was killed after its checkpoint of step 8."""
    out = work / task.folder
    shutil.copytree(work / "train_whole", out)
    (out / "summary.json").unlink()
    for step in (16, 24):
        shutil.rmtree(out / "ckpt" / f"step_{step:06d}")


# names of what is measured, or belongs to the day or the code, wherever they stand in a record
MEASURED = re.compile(
    r"timestamp|started|finished|date|seconds|\w+_seconds|eval_seconds_total|(throughput_)?tokens_per_sec|mfu"
    r"|peak_mem_bytes|peak_flops|train_time_ms|ms_per_step|git_\w+|code_sha256"
)


def freeze_runs(work: Path, task: Task) -> None:
    """Copies runs to where reports read them, with made-up times, so that reports of them can be compared."""
    out = work / task.folder
    for key in task.needs:
        source = work / key.replace("/", "_")
        run = out / source.name
        shutil.copytree(source, run, ignore=shutil.ignore_patterns("ckpt", "code"))
        for path in [*run.glob("*.json"), *run.glob("*.jsonl")]:
            values = [path.read_text()]
            if path.suffix == ".jsonl":
                values = values[0].splitlines()
            values = [json.loads(value) for value in values]
            places = [f"{run.name}/{path.name}/{i}" for i in range(len(values))]
            lines = [json.dumps(frozen(*pair)) + "\n" for pair in zip(values, places, strict=True)]
            path.write_text("".join(lines))
    rows = read_csv(work / "results.csv")
    with open(out / "results.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(frozen(row, row["run_id"]) for row in rows)


def frozen(value, place: str):
    """The JSON value with everything that MEASURED names replaced by what follows from its place."""
    if isinstance(value, list):
        return [frozen(v, place) for v in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for name, v in value.items():
        digest = hashlib.sha256(f"{place}/{name}".encode()).digest()
        if not MEASURED.fullmatch(name):
            result[name] = frozen(v, place)
        elif name in ("timestamp", "started", "finished", "date"):
            result[name] = "2026-01-01T00:00:00.000+00:00"
        elif name == "git_dirty":
            result[name] = False
        elif name in ("git_commit", "git_diff", "code_sha256"):
            result[name] = "0"
        elif v is not None:
            result[name] = 1 + digest[0] / 256
    return result


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a results.csv, by the runs' names: their order in the file is that in which they finished."""
    with open(path, newline="") as f:
        return sorted(csv.DictReader(f), key=lambda row: row["run_id"])
