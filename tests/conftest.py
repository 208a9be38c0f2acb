"""What several tests share: running scripts, datasets of a few thousand tokens, run folders as the trainer writes."""

import contextlib
import functools
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tqdm

from lab import disk, processes, results, runs, shards, snapshots, tokenizer
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, VOCAB_SIZE, get_tokenizer

REPO = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
# no thread of tqdm's: one that holds its lock while a test forks would leave the child waiting for ever
tqdm.tqdm.monitor_interval = 0


@pytest.fixture(autouse=True)
def gpt2_again():
    """A test may have given this process another tokenizer."""
    yield
    tokenizer.use("gpt2")


def write_jsonl(path, records):
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def run_script(name, *flags, **options):
    """Run `python <name> <flags>` of this repo on one thread; returns the finished process with its text."""
    command = [sys.executable, str(REPO / name), *map(str, flags)]
    return subprocess.run(command, **{"capture_output": True, "text": True, "env": ENV, "timeout": 300, **options})


def run_two_ranks(script, *flags, cwd=REPO):
    """Run Python text as two ranks; returns (exit status, stdout, stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in ("0", "1"):
        env = ENV | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": str(port), "PYTHONPATH": str(REPO)}
        ranks.append(subprocess.Popen([sys.executable, "-c", script, *map(str, flags)], cwd=cwd, env=env, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    ends = [rank.communicate(timeout=300) for rank in ranks]
    return [(rank.returncode, *end) for rank, end in zip(ranks, ends, strict=True)]


FORKING = """
import json, os, sys
import train_gpt
text, jobs = json.loads(sys.stdin.read())
pids, statuses = [], {}
for environment, arguments, log in jobs:
    pids.append(os.fork())
    if pids[-1] == 0:
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.environ.update(environment)
        sys.argv[1:] = arguments
        exec(text, {"__name__": "__main__"})
        sys.exit()
for _ in pids:
    pid, status = os.wait()
    statuses[pid] = os.waitstatus_to_exitcode(status)
print(json.dumps([statuses[pid] for pid in pids]))
"""
TRAIN = "import sys, train_gpt\nsys.exit(train_gpt.main(sys.argv[1:]))"


def run_forked(text, jobs):
    """Run Python text in one process per job (environment, arguments), at once; returns (exit status, what it printed)
    of each. They are forked from one that has imported torch, which takes longer than most of what is run."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(i) for i in range(len(jobs))]
        order = [text, [(environment, list(map(str, arguments)), str(log))
                        for (environment, arguments), log in zip(jobs, logs, strict=True)]]
        done = subprocess.run([sys.executable, "-c", FORKING], input=json.dumps(order), cwd=REPO, env=ENV,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [(status, log.read_text()) for status, log in zip(json.loads(done.stdout), logs, strict=True)]


def rank_jobs(n, arguments):
    """Jobs of run_forked that are the n ranks of one run, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [({"RANK": str(rank), "LOCAL_RANK": str(rank), **own}, arguments) for rank in range(n)]


def sentence_left(run, *args, **how):
    """The one sentence of the error that a script's main, run in this process, raises."""
    with pytest.raises((ValueError, OSError)) as stopped:
        run(*args, **how)
    message = str(stopped.value)
    assert len(message.splitlines()) == 1, message
    return message


def forked(run, argv) -> int:
    """Run a script's main in a forked child (an import-free start), silently; returns its process. Exit status: the
    script's, 99 for a traceback."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            processes.exit_in_a_sentence(lambda: run(argv), "forked")
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
        finally:
            os._exit(code)
    return pid


def write_dataset(folder, documents, condition="baseline", val_every=7, **meta):
    """Write a dataset folder from lists of ids; every `val_every`-th document is held out."""
    lengths = get_tokenizer().token_byte_lengths()
    writer = shards.DatasetWriter(folder, {"made_by": "test"}, shard_tokens=1500, val_shards=1)
    for i, ids in enumerate(documents):
        ids = np.array([BOS_ID, *ids], np.uint16)
        count = int(lengths[ids].sum())
        if i % val_every == 0:
            mul = [int(lengths[t]) for t in ids if t >= FIRST_MUL_ID]
            writer.write_val_document(ids, bytes([i % 256]) * 16, len(ids), count, mul)
        else:
            writer.write("train", ids, np.array([len(ids)]), np.array([count]))
    writer.commit({})
    fields = {"format": "stream", "vocab_size": VOCAB_SIZE, "condition": condition, "mul_token_rate": 0.0}
    return writer.finish({**fields, **meta})


def tiny_documents(n, shortest, longest, seed=0):
    """n documents of few distinct tokens, so that a loss falls within a few steps."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 50257, 40)
    return [rng.choice(words, rng.integers(shortest, longest)).tolist() for _ in range(n)]


# ----------------------------------------------------------------------------------------------------------------------
# what a run recorded

MEASURED = set("timestamp tokens_per_sec mfu peak_mem_bytes step_seconds train_seconds eval_seconds "
               "eval_seconds_total wall_seconds seconds".split())


def records(run, kind="train"):
    """Records of scalars.jsonl of one type."""
    return [record for record in runs.read_jsonl(Path(run) / "scalars.jsonl") if record["type"] == kind]


def losses(run):
    return np.array([record["train_loss_opt_step_mean"] for record in records(run)])


def exact(run):
    """All records of scalars.jsonl, without what a clock or the memory counter measured."""
    lines = runs.read_jsonl(Path(run) / "scalars.jsonl")
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in lines]


def exposures(run, rank=0):
    return runs.read_jsonl(Path(run) / "exposures" / f"exposures_rank{rank:04d}.jsonl")


def weights(run):
    """Bytes of the newest checkpoint's weights."""
    return (runs.list_checkpoints(run)[-1] / "model.safetensors").read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# run folders without training

STAMP = "2026-11-21T13:18:01.230+00:00"
DOCS = 12
STEPS = 40
MODEL = "vocab_size n_layer n_head n_embd n_inner arch attn_gate gate_pos gate_act".split()
DATA = {
    "fingerprint": "d" * 64,
    "format": "stream",
    "tokens": 70915,
    "sequences": 2216,
    "epochs": 0.5,
    "unique_tokens": 10240,
    "condition": "baseline",
    "mul_token_rate": 0.0,
    "crop_fraction": None,
    "val_fingerprint_documents": "1" * 64,
    "val_fingerprint_tokens": "c" * 64,
    "val_documents": DOCS,
}
HARDWARE = {"host": "vm", "system": "Linux", "cpu": "EPYC", "cpu_count": 2, "torch_threads": 1, "gpu": None}
SCORES = {
    "hellaswag": ["accuracy", "accuracy_norm", "accuracy_norm_bytes", "accuracy_plain"],
    "ewok": [f"eval_{rule}_{per}" for rule in ("official", "full", "paper") for per in ("sum", "mean")],
}


@functools.cache
def default_flags():
    """Every flag of train_gpt.py, resolved as for a run of 40 tiny steps."""
    import train_gpt

    flags = (
        "--data_dir data --name x --seq_len 32 --n_layer 1 --n_head 2 --n_embd 16 --micro_batch_size 4 "
        f"--total_batch_tokens 256 --max_train_steps {STEPS} --warmup_iters 2 --eval_every 10 --val_tokens 1000 "
        "--log_every 0 --dtype float32"
    )
    return vars(train_gpt.parse_args([*flags.split(), "--results_csv", ""]))


@contextlib.contextmanager
def light_files():
    """Inside, a run gets no copy of the code, and files are not synced to disk: much faster."""
    with mock.patch.object(os, "fsync"), mock.patch.object(snapshots, "code_files", list):
        yield


def base_loss(step, steps):
    return 3 + 2 * math.exp(-2 * step / steps)


def config_of(flags, data, flops, changes):
    """A run's config.json. changes: {"code.code_sha256": value, ...}."""
    sizes = {"block_size": flags["seq_len"], "padded_vocab_size": 50432, "unused_ids": [[50257, 50304]]}
    record = {
        "flags": flags,
        "argv": ["train_gpt.py"],
        "started": STAMP,
        "code": {"git_commit": "16914ea", "git_dirty": False, "git_diff": "", "code_sha256": "9" * 64},
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "cuda": None},
        "hardware": dict(HARDWARE),
        "world_size": 1,
        "model": {**{name: flags[name] for name in MODEL}, **sizes},
        "parameters": {"total": 809408, "non_embedding": 3312, "gate": 0, "padding": 1328},
        "flops_per_token": flops,
        "tokens_per_step": flags["total_batch_tokens"],
        "peak_flops": 2e10,
        "data": data,
    }
    for path, value in changes.items():
        *way, last = path.split(".")
        place = record
        for key in way:
            place = place[key]
        place[last] = value
    return record


def make_run(folder, seed=0, *, loss=0.0, step_seconds=0.5, flags=None, data=None, config=None, hellaswag=None,
             ewok=None, gsm8k=None, finished=True, warnings=(), extra_flops=0, tokens_per_byte=0.25):
    """A run's folder as train_gpt.py writes it; its val loss lies `loss` above a curve that all runs share.

    hellaswag, ewok: share of items it gets right at the last step. config: {"hardware.gpu": value, ...}."""
    folder = Path(folder)
    flags = {**default_flags(), "seed": seed, "out_dir": str(folder), **(flags or {})}
    data = {**DATA, **(data or {})}
    steps, tokens, flops = flags["max_train_steps"], flags["total_batch_tokens"], 4_858_080 + extra_flops
    rng = np.random.default_rng(list(os.fsencode(folder.name)))
    sizes = np.random.default_rng(5).integers(50, 400, DOCS).astype(float)
    noise = np.random.default_rng(6).normal(0, 0.3, DOCS)
    vals = []

    def evaluate(step):
        value = base_loss(step, steps) + loss
        bits = value * tokens_per_byte / math.log(2)
        numbers = {
            "val_loss": value,
            "val_bits_per_byte": bits,
            "val_tokens": 700,
            "val_bytes": 2800,
            "val_loss_bos": value + 0.1,
            "val_bits_per_byte_bos": bits + 0.03,
            "val_tokens_bos": 100,
            "val_bytes_bos": 400,
        }
        cost = {"tokens_seen_global": step * tokens, "flops_total": step * tokens * flops, "eval_seconds": 0.3}
        seconds = round(step * step_seconds, 3)
        scalars.write(type="val", step=step, timestamp=STAMP, **numbers, **cost, train_seconds=seconds)
        scalars.write(type="mechanism", step=step, timestamp=STAMP, layers=[{"first_token_attention": 0.1}])
        runs.update_step_metrics(folder, step, **numbers)
        nats = (value + noise + 0.01 * rng.normal(size=DOCS)) * sizes * tokens_per_byte
        fields = {"nats": nats, "tokens": sizes * tokens_per_byte, "bytes": sizes}
        views = {f"{view}_{field}": values for view in ("stream", "bos") for field, values in fields.items()}
        doc_hash = np.arange(DOCS * 16, dtype=np.uint8).reshape(DOCS, 16)
        np.savez(folder / f"val_documents_{step:06d}.npz", **views, doc_hash=doc_hash)
        vals.append(numbers)

    with light_files():
        record = config_of(flags, data, flops, config or {})
        runs.create_run(folder, record)
        scalars = runs.JsonlWriter(folder / "scalars.jsonl")
        exposures = runs.JsonlWriter(folder / "exposures" / "exposures_rank0000.jsonl")
        evaluate(0)
        for step in range(1, steps + 1):
            train_loss = base_loss(step, steps) + loss + float(rng.normal(0, 0.02))
            scalars.write(
                type="train", step=step, timestamp=STAMP, lr=6e-4, train_loss_opt_step_mean=train_loss,
                grad_norm_l2_preclip=1 + 0.1 * float(rng.random()), param_norm_l2=19.8,
                tokens_seen_global=step * tokens, tokens_per_sec=round(tokens / step_seconds, 1), mfu=0.33,
                peak_mem_bytes=444129280, step_seconds=step_seconds, flops_total=step * tokens * flops, epoch=0.1,
            )
            check = hashlib.sha256(f"{data['fingerprint']} {seed} {step}".encode()).hexdigest()[:16]
            exposures.write(step=step, rank=0, seed=seed, epochs=[0], entries=[8 * step - 8, 8 * step],
                            checksum=check, rank_checksum=check)
            if flags["eval_every"] and (step % flags["eval_every"] == 0 or step == steps):
                evaluate(step)
        scalars.close()
        exposures.close()
        for name, share in (("hellaswag", hellaswag), ("ewok", ewok)):
            if share is not None:
                write_items(folder, name, share, steps, rng)
        if gsm8k is not None:
            disk.write_json(folder / "gsm8k_results.json", {"type": "gsm8k", "accuracy": gsm8k, "total": 10})
        if finished:
            times = {"train_time_ms": round(1000 * steps * step_seconds), "ms_per_step": 1000 * step_seconds}
            summary = summary_of(folder, record, vals, {"final_train_loss": 3.3 + loss, **times})
            disk.write_json(folder / "summary.json", {**summary, "warnings": list(warnings)})
    return folder


def summary_of(folder, config, vals, numbers):
    """A run's summary.json, with its row of results.csv."""
    flags, data = config["flags"], config["data"]
    steps, tokens = flags["max_train_steps"], flags["total_batch_tokens"]
    finals = "val_loss val_bits_per_byte val_loss_bos val_bits_per_byte_bos".split()
    numbers = {
        **numbers,
        **{f"final_{name}": vals[-1][name] for name in finals},
        "best_val_loss": min(val["val_loss"] for val in vals),
        "tokens_seen": steps * tokens,
        "unique_tokens": data["unique_tokens"],
        "epochs": data["epochs"],
        "flops_total": steps * tokens * config["flops_per_token"],
    }
    row = {
        **results.condition_columns(flags),
        "notes": flags["notes"],
        "run_id": folder.name,
        "date": "2026-11-21",
        "git_commit": "16914ea",
        "batch_size": tokens // flags["seq_len"],
        "device_batch_size": flags["micro_batch_size"],
        "sequence_length": flags["seq_len"],
        "num_iterations": steps,
        "gpu_name": "cpu",
        "n_gpus": 1,
        "condition": data["condition"],
        "parameters": 809408,
        "data_fingerprint": data["fingerprint"],
        "val_fingerprint": data["val_fingerprint_documents"],
        "val_fingerprint_tokens": data["val_fingerprint_tokens"],
        "data_format": data["format"],
        "mul_token_rate": data["mul_token_rate"],
        "code_sha256": config["code"]["code_sha256"],
        "init_sha256": None,
        **numbers,
    }
    return {**numbers, "steps": steps, "finished": STAMP, "eval_seconds": 1.5, "results_row": row}


def write_items(folder, name, share, step, rng, n=120):
    """Records of a benchmark at two steps, with items in clusters of 3.

    An item is right when its difficulty, much the same in every run, is below `share`."""
    hard = 0.8 * np.random.default_rng(3).random(n) + 0.2 * rng.random(n)
    mean = float((hard < share).mean())
    head = {"type": name, "timestamp": STAMP, "scorer": f"{name}-1 bos=1", "n": n, "bos": True, "seconds": 1.0}
    for at in (step - 10, step):
        items = []
        for i, difficulty in enumerate(hard):
            credit = dict.fromkeys(SCORES[name], float(difficulty < share))
            item = {"step": at, "id": f"item{i}", "cluster": f"text{i // 3}", "credit": credit}
            if name == "ewok":
                item["category"] = f"domain{i % 3}"
            items.append(item)
        runs.replace_step(folder / f"{name}_items.jsonl", at, items)
        metrics = {**head, "step": at, **dict.fromkeys(SCORES[name], mean)}
        runs.replace_step(folder / f"{name}_metrics.jsonl", at, [metrics])
