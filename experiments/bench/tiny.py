"""tiny.py owns small examples of every script that fills a folder, for kills.py and race.py.

It knows how each begins, in a fork of this process, which has imported torch, and what of its folder must not depend
on who was killed or stood beside."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "experiments")]
import golden  # noqa: E402

import eval_gsm8k  # noqa: E402
import ewok  # noqa: E402
import hellaswag  # noqa: E402
import prepare_bos_rows  # noqa: E402
import prepare_fineweb  # noqa: E402
import sft  # noqa: E402
import train_gpt  # noqa: E402
from lab import sources, synthetic  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

DOCS = "--dataset synthetic --val_fraction 0.1 --shard_tokens 5000"
# each token costs a product with 50,304 rows, so there are few
STEPS = ("--learning_rate 1e-3 --eval_every 5 --save_every 3 --device cpu "
         "--seq_len 32 --micro_batch_size 2 --log_every 0 --peak_flops 1e12 ")
TRAIN = STEPS + (
    "--n_layer 1 --n_head 2 --n_embd 16 --total_batch_tokens 64 --max_epochs 99 "
    "--val_tokens 300 --num_workers 1 --eval_batch_size 8 --results_csv {out}/../results.csv "
    "--hellaswag_every 6 --hellaswag_max_examples 2 --ewok_every 7 --ewok_max_examples 2")
SFT = STEPS + ("--init {world}/model --seq_len 128 --stage gsm8k --data synthetic:120 "
               "--total_batch_conversations 2 --val_max_conversations 4")
EXAM = "--checkpoint {world}/model --device cpu --batch_size 4"


class Task(NamedTuple):
    """A script with its flags; {world} is the folder of what it reads. It writes into what `out` names."""

    kind: str
    main: object
    flags: str
    again: str = ""  # a flag with which it goes on; without it, it begins
    out: str = "--out_dir"
    short: str = ""  # flags for about a second of work
    long: str = ""  # for some more


TASKS = {
    "prepare": Task("prepare", prepare_fineweb.main, DOCS, "--resume",
                    short="--max_docs 150", long="--max_docs 5000"),
    "prepare, products": Task(
        "prepare", prepare_fineweb.main, f"{DOCS} --condition mul_tokens --num_proc 3 --decontaminate "
        "gsm8k={world}/gsm8k.jsonl", "--resume", short="--max_docs 150", long="--max_docs 4000"),
    "prepare, rows": Task(
        "prepare", prepare_bos_rows.main, f"{DOCS} --seq_len 32 --overflow split", "--resume",
        short="--max_docs 150", long="--max_docs 5000"),
    "train": Task(
        "train", train_gpt.main, "--data_dir {world}/data " + TRAIN,
        "--resume auto", short="--max_train_steps 14", long="--max_train_steps 90"),
    "train, Muon and a gate": Task(
        "train", train_gpt.main, "--data_dir {world}/rows --arch speedrun --attn_gate headwise "
        "--optimizer muon --keep_last 0 " + TRAIN,
        "--resume auto", short="--max_train_steps 14", long="--max_train_steps 60"),
    "sft": Task("sft", sft.main, SFT, "--resume auto",
                short="--max_train_steps 12", long="--max_train_steps 60"),
    "gsm8k": Task("exams", eval_gsm8k.main, EXAM, out="--out",
                  short="--data synthetic:24 --max_new_tokens 16 --probes off",
                  long="--data synthetic:60 --max_new_tokens 32"),
    "hellaswag": Task("exams", hellaswag.main, EXAM, out="--out", short="--data synthetic:60",
                      long="--data synthetic:400"),
    "ewok": Task("exams", ewok.main, EXAM, out="--out", short="--data synthetic:90", long="--data synthetic:800"),
}


def make_world(world: Path) -> None:
    """What the tasks read: a dataset of each kind, a model, a benchmark's file."""
    torch.set_num_threads(1)  # a fork has no other threads
    flags = [*DOCS.split(), "--max_docs", "300", "--out_dir"]
    prepare_fineweb.main([*flags, str(world / "data")])
    prepare_bos_rows.main([*flags, str(world / "rows"), "--seq_len", "32"])
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=256, padded_vocab_size=50432)
    GPT(config, seed=0).save(world / "model")
    # one step here imports what torch imports late, which each fork would do again
    warm = TASKS["train"].flags.format(world=world, out=world / "warm" / "out").split()
    train_gpt.main([*warm, "--max_train_steps", "1", "--out_dir", str(world / "warm" / "out")])
    with open(world / "gsm8k.jsonl", "wb") as f:
        f.write(eval_gsm8k.jsonl(list(synthetic.gsm8k_items(50))))


def commit_often() -> None:
    """More states that a kill can leave: prepare commits each batch, and batches are small."""
    prepare_fineweb.COMMIT_SECONDS, sources.BATCH_BYTES = 0.0, 5_000


def start(task: Task, world: Path, out: Path, go_on: bool, size: str = "short") -> int:
    """Begins a task in a fork; gives its process. What it prints is in <out>.log, or <out>.log2 of a second one."""
    flags = " ".join((task.flags, getattr(task, size), task.again if go_on else ""))
    argv = [*flags.format(world=world, out=out).split(), task.out, str(out)]
    log = out.with_name(f"{out.name}.log")
    if log.exists():
        log = log.with_name(f"{log.name}2")
    log.touch()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(log, "w", buffering=1) as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
            sys.stdout = sys.stderr = f
            try:
                status = task.main(argv)
            except SystemExit as end:
                status = end.code
            except (ValueError, OSError) as error:
                status = str(error)
            except BaseException:
                status = traceback.format_exc()
            if isinstance(status, str):
                f.write(f"{status}\n")
                status = 1
            if isinstance(status, dict):  # prepare's meta.json
                status = 0
    finally:
        os._exit(status or 0)


def run(task: Task, world: Path, out: Path, size: str = "short") -> tuple[dict, float]:
    """(what an undisturbed run leaves, the seconds it takes)."""
    began = time.monotonic()
    _, status = os.waitpid(start(task, world, out, go_on=False, size=size), 0)
    if status:
        raise ValueError(f"a task failed: {out.with_name(f'{out.name}.log').read_text()[-2000:]}")
    return outcome(out), time.monotonic() - began


def outcome(out: Path) -> dict:
    """{file: content} of a folder without times, and what else must be equal: the names of its files and its rows."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    names = [path.relative_to(out).as_posix() for path in files]
    table = {"names": [name for name in names if not name.startswith("code/")]}
    for name, content in golden.contents(out).items():
        if not name.endswith("log.txt"):
            table[name] = content
    for path in files:
        name = path.relative_to(out).as_posix()
        if path.suffix == ".pt":
            table[name] = described(torch.load(path, weights_only=True))
        if path.name == "trainer.json":
            table |= {f"{name}{key}": value for key, value in golden.read_json(path).items()}
        if path.name == eval_gsm8k.RESULTS:
            lines = table[name].splitlines()
            table[name] = [line for line in lines if '"resumed"' not in line]
    rows = out.parent / "results.csv"
    if rows.exists():
        table |= golden.columns_of(rows)
    return table


def described(value):
    """A value that torch.save wrote, with a hash for each tensor."""
    if torch.is_tensor(value):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: described(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(inner) for inner in value]
    return value


def differences(one: dict, other: dict) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
