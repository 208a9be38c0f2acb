"""mutations.py damages every kind of file that is read, and counts what a user would not understand.

    python experiments/bench/mutations.py                                # 600 files, a minute
    python experiments/bench/mutations.py --files 6000 --seed 1 --check

A small dataset, run, table and benchmark are made once. Then one file at a time is damaged (bits, bytes, JSON of
another shape, cells, tensors, names) and read by the function that scripts read it with. Targets: 0 tracebacks, which
is anything but one of our own sentences that names the file or its folder; 0 changed contents that are accepted where
a checksum stands for them; no read that takes more than 2 s or 500 MB. --show prints each fault. The same seed gives
the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import compare_runs  # noqa: E402
import eval_gsm8k  # noqa: E402
import ewok  # noqa: E402
import hellaswag  # noqa: E402
import prepare_bos_rows  # noqa: E402
import prepare_fineweb  # noqa: E402
import train_gpt  # noqa: E402
from lab import (  # noqa: E402  # noqa: E402
    conversations,
    decontaminate,
    disk,
    optim,
    processes,
    results,
    resume,
    runs,
    shards,
    sources,
    synthetic,
    training,
)
from model import GPT  # noqa: E402

MAX_SECONDS, MAX_BYTES = 2.0, 500e6
TOY = "--dataset synthetic --max_docs 60 --val_fraction 0.2".split()
TINY = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 64 --micro_batch_size 4 --total_batch_tokens 512 "
        "--max_train_steps 6 --max_epochs 9 --eval_every 3 --save_every 3 --device cpu --num_workers 0 "
        "--val_tokens 2000 --hellaswag_every 3 --hellaswag_max_examples 4 --keep_last 0").split()

# ----------------------------------------------------------------------------------------------------------------------
# damage: each function takes (bytes, random numbers) and gives other bytes


def flip(data: bytes, rng) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8, 64))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def splice(data: bytes, rng) -> bytes:
    """A part cut out, doubled, zeroed, or replaced by random bytes."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 16, 512)))
    part = data[start:end]
    new = rng.choice((b"", part * 2, bytes(len(part)), rng.randbytes(len(part) + rng.randrange(3))))
    return data[:start] + new + data[end:]


def cut(data: bytes, rng) -> bytes:
    return data[: rng.choice((0, 1, len(data) // 2, max(0, len(data) - 1), rng.randrange(len(data) + 1)))]


def swap_halves(data: bytes, rng) -> bytes:
    middle = rng.randrange(len(data) + 1)
    return data[middle:] + data[:middle]


def encode_again(data: bytes, rng) -> bytes:
    text = data.decode("latin-1")
    kinds = "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-8"
    return text.encode(rng.choice(kinds))


def pack(data: bytes, rng) -> bytes:
    return rng.choice((gzip.compress, lambda part: part + b"\0" * 99, lambda part: b"\n\n" + part))(data)


def replace_all(data: bytes, rng) -> bytes:
    return rng.choice((b"", b"\n", b"null", b"[]", b"{}", b"[" * 200_000, b'{"a":' * 50_000, b"-", b"\xff\xfe",
                       b"9" * 5000, b"1e999", b"NaN", b'"\\ud800"', b"<html>Not found</html>", b"PK\x03\x04"))


BYTES = (flip, flip, splice, cut, swap_halves, encode_again, pack, replace_all)

ODD = [None, True, [], {}, "", "x", "NaN", "../x", "a\nb", "\ud800", "0" * 64, "x" * 100_000, -1, 0, 1, 1.5, -0.0,
       math.nan, math.inf, 1e308, 2**31, 2**63, 2**64, 10**400, [[]], [None], {"a": None}, "1", "1e5", "日本", [0] * 9]


def places(value, path=()) -> list[tuple]:
    """Paths to everything inside a JSON value."""
    found = [path]
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:40])
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def change_value(value, rng):
    """A JSON-like value with one place changed. It changes `value` itself."""
    path = rng.choice(places(value))
    if not path:
        return rng.choice(ODD)
    outer = value
    for key in path[:-1]:
        outer = outer[key]
    key, inner = path[-1], outer[path[-1]]
    kind = rng.randrange(6)
    if kind == 0:
        del outer[key]
    elif kind == 1 and isinstance(outer, dict):
        outer[rng.choice((str(key).upper(), f"{key} ", "", "../x", "x" * 300))] = outer.pop(key)
    elif kind == 2 and isinstance(outer, dict):
        other = rng.choice(list(outer))
        outer[key], outer[other] = outer[other], outer[key]
    elif kind == 3 and isinstance(inner, (int, float)):
        outer[key] = rng.choice((str(inner), -inner, inner + 1, inner * 1000, float(inner)))
    elif kind == 4 and isinstance(inner, str) and inner:
        at = rng.randrange(len(inner))
        outer[key] = inner[:at] + chr(rng.randrange(32, 127)) + inner[at + 1 :]
    else:
        outer[key] = rng.choice(ODD)
    return value


def dump(value, rng) -> str:
    """JSON, now and then with a number or nesting that Python's own reader refuses, or with a key twice."""
    sys.set_int_max_str_digits(0)
    text = json.dumps(value)
    sys.set_int_max_str_digits(4300)
    hard = rng.randrange(12)
    if hard == 0:
        text = text.replace("1", "1" * 5000, 1)
    elif hard == 1:
        text = text.replace("null", "[" * 100_000 + "]" * 100_000, 1)
    elif hard == 2:
        text = text.replace("{", '{"step": 1, "step": [], ', 1)
    return text


def json_file(data: bytes, rng) -> bytes:
    return dump(change_value(json.loads(data), rng), rng).encode()


def json_line(data: bytes, rng) -> bytes:
    lines = data.splitlines() or [b"{}"]
    i = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        lines.insert(i, lines[i])
    elif kind == 1:
        lines.insert(i, rng.choice((b"", b"[1]", b"{", b"null", b"{}", b"9" * 5000, b"[" * 100_000, b"\xff\xfe")))
    elif kind == 2:
        j = rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = dump(change_value(json.loads(lines[i]), rng), rng).encode()
    return b"\n".join(lines) + b"\n"


def zip_lines(data: bytes, rng) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: json_line(archive.read(name), rng) for name in archive.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        if rng.randrange(9) == 0:
            archive.writestr("bomb.jsonl", bytes(400_000_000))
    return packed.getvalue()


def gzip_lines(data: bytes, rng) -> bytes:
    lines = json_line(gzip.decompress(data), rng)
    if rng.randrange(9) == 0:
        lines += rng.choice((b"\n", b" ", b"{}\n")) * 60_000_000
    return gzip.compress(lines, 1)


def parquet_rows(data: bytes, rng) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    packed = io.BytesIO()
    if rng.randrange(9) == 0:
        rows = [rows[0] | {key: "x" * 1_000_000 for key in rows[0] if key == "text"}] * 600
    else:
        rows = [change_value(rows, rng)] if len(rows) == 1 else change_value(rows, rng)
    try:
        pq.write_table(pa.Table.from_pylist(rows), packed)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError):
        return data  # parquet cannot hold it
    return packed.getvalue()


def table(data: bytes, rng) -> bytes:
    lines = data.decode().splitlines()
    i = rng.randrange(len(lines))
    cells = lines[i].split(",")
    at = rng.randrange(len(cells))
    kind = rng.randrange(7)
    if kind == 0:
        return data.replace(b",", rng.choice((b";", b"\t", b"|")))
    if kind == 1:
        return data.replace(b".", b",")
    if kind == 2:
        del cells[at]
    elif kind == 3:
        cells.insert(at, rng.choice(("", "x", "3,5", '"', '"3,5"')))
    elif kind == 4:
        cells[at] = rng.choice(("", "NaN", "inf", "1e999", "=1+1", "3,5", "-", "x" * 200_000, '"', "\0", "0x10"))
    elif kind == 5:
        lines.insert(i, lines[0])
    else:
        cells[at], cells[0] = cells[0], cells[at]
    lines[i] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "replace") + b"\n"


def arrays(data: bytes, rng) -> bytes:
    with np.load(io.BytesIO(data)) as file:
        content = dict(file)
    name = rng.choice(list(content))
    value = content[name]
    odd = (value[:-1], value.astype(np.float32), value[None], np.array(3), np.array(["x"]), value[::-1],
           np.full(value.shape, 2**62), -value.view(np.int8), np.zeros(0))
    kind = rng.randrange(4)
    if kind == 0:
        content[f"{name}_"] = content.pop(name)
    elif kind == 1:
        content[name] = np.array([None, {}], object)
    else:
        content[name] = odd[rng.randrange(len(odd))]
    packed = io.BytesIO()
    np.savez(packed, **content)
    return packed.getvalue()


def tensor_places(value, path=()) -> list[tuple]:
    found, items = [path], ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    for key, inner in items:
        found += tensor_places(inner, (*path, key))
    return found


def tensors(data: bytes, rng) -> bytes:
    """Another shape of what torch.save wrote."""

    def change(value, path):
        if path:
            key, rest = path[0], path[1:]
            if isinstance(value, dict):
                return {other: change(inner, rest) if other == key else inner for other, inner in value.items()}
            items = [change(inner, rest) if i == key else inner for i, inner in enumerate(value)]
            return type(value)(items)
        if torch.is_tensor(value):
            odd = value.double(), value[..., :-1] if value.dim() else value[None], value.flatten(), None, value.int()
            return rng.choice(odd)
        return rng.choice([*ODD, torch.zeros(3), torch.tensor(math.nan), {3: 4}, (1, 2)])

    value = torch.load(io.BytesIO(data), weights_only=True)
    packed = io.BytesIO()
    with contextlib.suppress(TypeError):  # a tuple that would hold too little
        value = change(value, rng.choice(tensor_places(value)))
    torch.save(value, packed)
    return packed.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# what is read, and with what


class Format(NamedTuple):
    """A kind of file."""

    folder: str  # of the world, copied for each read
    file: str
    read: object  # read(folder) gives what was taken from the file
    damage: tuple
    guarded: bool = False  # whether a checksum stands for the whole content
    weight: int = 2
    after: object = None  # after(folder): makes the checksums right again, so that the shape alone is looked at


def digest(*parts) -> str:
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


def read_dataset(folder):
    values = []
    for verify in (True, False):
        files, _ = shards.open_dataset(folder, "train", verify=verify)
        val = shards.open_val(folder, 10**6, verify=verify)
        if verify:
            values += [files.fingerprint, digest(files.slice(0, files.n_tokens).tobytes())]
            values += [digest(val[name].tobytes()) for name in ("tokens", "token_bytes", "doc_starts", "doc_hash")]
    return values


def read_neighbours(folder):
    for verify in (True, False):
        files, _ = shards.open_dataset(folder, "train", verify=verify)
        files.n_sequences(16)
        files.read([0], 16)
        shards.open_val(folder, 10**6, verify=verify)


def read_finished(folder):
    prepare_fineweb.main([*TOY, "--out_dir", str(folder), "--resume"])


def read_progress(folder):
    writer = shards.DatasetWriter(folder, {"a": 1}, 1000, 1, resume=True)
    for handle in writer._handles():
        handle.close()
    return digest(writer.state, writer.files, writer.mul_counts.tolist())


def trainer(folder):
    """A run as its resume has it before it looks for a checkpoint."""
    flags = SimpleNamespace(**RUN["flags"], **{})
    flags.out_dir = str(folder)
    model = GPT.load(RUN["ckpt"])
    optimizers = optim.build_optimizers(model, **optim.settings(flags))
    run = training.Run("train_gpt.py", flags, processes.Processes(), {"data": {"epochs": 1}}, model, optimizers, None)
    run.procs.device = torch.device("cpu")
    return run


def read_checkpoint(folder):
    run = trainer(folder)
    path = runs.find_checkpoint(folder, "auto", warn=lambda text: None, check=run.check)
    run.load(str(path))
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
    weights = [(name, t.numpy().tobytes()) for name, t in run.model.state_dict().items()]
    return run.state.step, digest(weights, run.state, torch.get_rng_state().numpy().tobytes())


def read_model(folder):
    path, *_ = runs.resolve_checkpoint(folder, warn=lambda text: None)
    model = GPT.load(path)
    return runs.step_of(path), digest([(name, t.numpy().tobytes()) for name, t in model.state_dict().items()])


def seal(folder):
    """The newest checkpoint's manifest fits its files."""
    path = runs.list_checkpoints(folder)[-1]
    manifest = json.loads((path / "manifest.json").read_text())
    for name, record in manifest["files"].items():
        record["sha256"] = disk.sha256_file(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))


def read_config(folder):
    config = str(folder / "config.json")
    args = train_gpt.parse_args(["--config", config, "--out_dir", "new"])
    before = train_gpt.parse_args(["--out_dir", str(folder), "--resume", "auto"])
    (folder / "summary.json").unlink()
    record = training.config_before(before)
    training.refuse_changes(record, record | {"flags": vars(args)}, {"d": ("data", "fingerprint")},
                            train_gpt.build_parser())


def read_records(folder):
    run = trainer(folder)
    for step in (5, 3):
        resume.trim_records(folder, step)
        runs.update_step_metrics(folder, step, val_loss=3.0)
    training.final_numbers(run, "val_loss val_bits_per_byte")


def compare(folder):
    """The run beside another as compare_runs reads both; status 2, not comparable, is an answer."""
    compare_runs.main(["--a", str(RUN["other"]), "--b", str(folder)])


def read_table(folder):
    path = folder / "results.csv"
    results.check_table(path)
    if not path.exists():
        return
    before = path.read_bytes()
    row = {"run_id": "new", "seed": 7, "final_val_loss": 3.5, "extra": 1}
    results.append_result(path, row)
    (folder / "before.csv").write_bytes(before)
    old, new = (results.read_table(name, "--results") for name in (folder / "before.csv", path))
    assert len(new.rows) == len(old.rows) + 1, "a row was lost"
    for was, now in zip(old.rows, new.rows, strict=False):
        assert all(now.get(column, "") == cell for column, cell in was.items()), "a cell was lost"


def read_results(folder):
    compare_runs.main(["--results", str(folder / "results.csv"), "--group_by", "attn_gate"])


def read_partial(folder):
    runs.make_folder(folder, "--out")
    return len(eval_gsm8k.read_partial(folder, "key"))


def hold(folder):
    with disk.hold(folder):
        pass


def read_conversations(file, stage):
    flags = dict(stage=stage, decontaminate=[], condition="baseline", max_examples=0, max_read=0, seq_len=128,
                 bos="on", eval_every=1, val_fraction=0.3, bad_conversations="skip")

    def read(folder):
        for kind in ("skip", "error"):
            args = SimpleNamespace(**flags | {"data": [str(folder / file)], "bad_conversations": kind})
            conversations.load(args)
    return read


def read_documents(file):
    def read(folder):
        parser = argparse.ArgumentParser()
        prepare_fineweb.add_source_arguments(parser)
        args = parser.parse_args(["--dataset", str(folder / file), "--out_dir", "x"])
        for first, documents in sources.read_batches(sources.open_source(args)):
            if not first:
                prepare_fineweb.tokenize(first, documents, "auto", "weak", 0.1)
    return read


def read_guard(name, file):
    return lambda folder: decontaminate.from_argument([f"{name}={folder / file}"])


def reader(function, file):
    return lambda folder: function(folder / file)


JSON, LINES = (*BYTES, *[json_file] * 12), (*BYTES, *[json_line] * 10)
ROWS = (*BYTES, *[parquet_rows] * 8)
CKPT, OLD = "ckpt/step_000006", "ckpt/step_000003"
FORMATS = {
    "meta.json": Format("data", "meta.json", read_dataset, JSON, weight=6),
    "meta.json of rows": Format("rows", "meta.json", read_dataset, JSON),
    "meta.json, prepare": Format("data", "meta.json", read_finished, JSON),
    "shard": Format("data", "train_000000.bin", read_dataset, BYTES, True, 3),
    "val shard": Format("mul", "val_000000.bin", read_dataset, BYTES, True, 3),
    "npz": Format("mul", "val_documents.npz", read_dataset, (*BYTES, *[arrays] * 8), True, 4),
    "llm.c shard": Format("llmc", "train_0.bin", read_neighbours, BYTES),
    "npy shard": Format("npy", "train_0.npy", read_neighbours, BYTES),
    "headerless shard": Format("plain", "train_0.bin", read_neighbours, BYTES),
    "progress.json": Format("begun", "progress.json", read_progress, JSON, True, 4),
    "manifest.json": Format("run", f"{CKPT}/manifest.json", read_checkpoint, JSON, True, 5),
    "manifest.json, evals": Format("run", f"{CKPT}/manifest.json", read_model, JSON, True),
    "weights": Format("run", f"{CKPT}/model.safetensors", read_checkpoint, BYTES, True),
    "weights, evals": Format("run", f"{CKPT}/model.safetensors", read_model, BYTES, True),
    "sealed weights": Format("run", f"{CKPT}/model.safetensors", read_checkpoint, BYTES, after=seal),
    "model.json": Format("run", f"{CKPT}/model.json", read_checkpoint, JSON, True),
    "sealed model.json": Format("run", f"{CKPT}/model.json", read_checkpoint, JSON, weight=4, after=seal),
    "sealed model.json, evals": Format("run", f"{CKPT}/model.json", read_model, JSON, after=seal),
    "optimizer.pt": Format("run", f"{CKPT}/optimizer.pt", read_checkpoint, (*BYTES, tensors), True),
    "sealed optimizer.pt": Format("run", f"{CKPT}/optimizer.pt", read_checkpoint, (*BYTES, *[tensors] * 12), weight=6,
                                  after=seal),
    "rng.pt": Format("run", f"{CKPT}/rng.pt", read_checkpoint, (*BYTES, tensors), True),
    "sealed rng.pt": Format("run", f"{CKPT}/rng.pt", read_checkpoint, (*BYTES, *[tensors] * 6), weight=3, after=seal),
    "trainer.json": Format("run", f"{CKPT}/trainer.json", read_checkpoint, JSON, True),
    "sealed trainer.json": Format("run", f"{CKPT}/trainer.json", read_checkpoint, JSON, weight=4, after=seal),
    "config.json": Format("run", "config.json", read_config, JSON, weight=6),
    "config.json, compare": Format("run", "config.json", compare, JSON, weight=3),
    "summary.json, compare": Format("run", "summary.json", compare, JSON, weight=3),
    "scalars.jsonl": Format("run", "scalars.jsonl", read_records, LINES, weight=5),
    "scalars.jsonl, compare": Format("run", "scalars.jsonl", compare, LINES, weight=3),
    "step_metrics.json": Format("run", "step_metrics.json", read_records, JSON, weight=4),
    "exposures": Format("run", "exposures/exposures_rank0000.jsonl", read_records, LINES),
    "exposures, compare": Format("run", "exposures/exposures_rank0000.jsonl", compare, LINES),
    "items": Format("run", "hellaswag_items.jsonl", read_records, LINES),
    "items, compare": Format("run", "hellaswag_items.jsonl", compare, LINES),
    "metrics, compare": Format("run", "hellaswag_metrics.jsonl", compare, LINES),
    "val documents, compare": Format("run", "val_documents_000006.npz", compare, (*BYTES, *[arrays] * 8)),
    "gsm8k results, compare": Format("run", "gsm8k_results.json", compare, JSON),
    "results.csv": Format("files", "results.csv", read_table, (*BYTES, *[table] * 10), weight=6),
    "results.csv, compare": Format("files", "results.csv", read_results, (*BYTES, *[table] * 10), weight=3),
    ".lock": Format("files", ".lock", hold, JSON),
    "gsm8k partial": Format("files", "gsm8k_partial_rank0000.jsonl", read_partial, LINES),
}
for kind, name, load in (("hellaswag", "hellaswag.jsonl", hellaswag.load), ("gsm8k", "gsm8k.jsonl", eval_gsm8k.load)):
    FORMATS[f"{kind} items"] = Format("files", name, reader(load, name), LINES, weight=4)
    FORMATS[f"{kind} items, guard"] = Format("files", name, read_guard(kind, name), LINES)
    packed = f"{name}.gz"
    FORMATS[f"{kind} items, gzip"] = Format("files", packed, reader(load, packed), (*BYTES, *[gzip_lines] * 4))
FORMATS["ewok zip"] = Format("files", "ewok.zip", reader(ewok.load, "ewok.zip"), (*BYTES, *[zip_lines] * 8), weight=4)
FORMATS["ewok zip, guard"] = Format("files", "ewok.zip", read_guard("ewok", "ewok.zip"), (*BYTES, *[zip_lines] * 8))
for stage, name in (("tulu", "tulu.jsonl"), ("gsm8k", "gsm8k.jsonl"), ("tinygsm", "tinygsm.jsonl")):
    FORMATS[f"conversations {name}"] = Format("files", name, read_conversations(name, stage), LINES, weight=3)
FORMATS["conversations parquet"] = Format("files", "tulu.parquet", read_conversations("tulu.parquet", "tulu"), ROWS, weight=3)
for name, damage in (("docs.jsonl", LINES), ("docs.jsonl.gz", BYTES), ("docs.parquet", ROWS), ("docs.txt", BYTES)):
    FORMATS[f"documents {name}"] = Format("files", name, read_documents(name), damage)

RUN = {}  # flags of the run, its newest checkpoint, and the run beside it

# ----------------------------------------------------------------------------------------------------------------------
# the world


def make_world(root: Path) -> None:
    """One small example of everything."""
    prepare_fineweb.main([*TOY, "--out_dir", str(root / "data")])
    prepare_fineweb.main([*TOY, "--out_dir", str(root / "mul"), "--condition", "mul_tokens"])
    prepare_bos_rows.main([*TOY, "--out_dir", str(root / "rows"), "--seq_len", "64"])
    ids = np.fromfile(root / "data" / "train_000000.bin", "<u2")[:2000]
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    for name, file, content in (("plain", "0.bin", ids.tobytes()), ("llmc", "0.bin", header.tobytes() + ids.tobytes())):
        (root / name).mkdir()
        for split in ("train", "val"):
            (root / name / f"{split}_{file}").write_bytes(content)
    (root / "npy").mkdir()
    for split in ("train", "val"):
        np.save(root / "npy" / f"{split}_0.npy", ids)
    writer = shards.DatasetWriter(root / "begun", {"a": 1}, 1000, 1)
    writer.write("train", ids, np.array([len(ids)]), np.array([9000]))
    writer.write_val_document(ids[:50], b"x" * 16, 50, 200)
    writer.commit({"documents": 2})
    for handle in writer._handles():
        handle.close()
    for name in ("run", "other"):
        flags = ["--data_dir", str(root / "data"), "--out_dir", str(root / name), "--results_csv", "", *TINY]
        train_gpt.main(flags)
        shutil.rmtree(root / name / "code")
        exam = {"type": "gsm8k", "total": 2, "accuracy": 0.5, "scorer": "gsm8k-1", "files": {}}
        disk.write_json(root / name / "gsm8k_results.json", exam)
    make_files(root / "files")


def make_files(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    problems = list(synthetic.gsm8k_items(20))
    talk = [{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": item["question"]},
                          {"role": "assistant", "content": item["answer"]}]} for item in problems]
    program = "def simple_math_problem() -> int:\n    a = 6\n    result = a * 9\n    return result\n"
    texts = [{"text": text, "n": i} for i, text in enumerate(synthetic.documents(0, 0, 20))]
    contents = {
        "hellaswag.jsonl": list(synthetic.hellaswag_items(20)), "gsm8k.jsonl": problems, "tulu.jsonl": talk,
        "tinygsm.jsonl": [{"question": item["question"], "code": program} for item in problems],
        "docs.jsonl": texts,
        "gsm8k_partial_rank0000.jsonl": [{"key": "key", "id": f"{i}", "credit": {}} for i in range(9)],
    }
    for name, records in contents.items():
        data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        (folder / name).write_bytes(data)
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    (folder / "docs.txt").write_text(texts[0]["text"])
    pq.write_table(pa.Table.from_pylist(talk), folder / "tulu.parquet")
    pq.write_table(pa.Table.from_pylist(texts), folder / "docs.parquet")
    with zipfile.ZipFile(folder / "ewok.zip", "w") as archive:
        rows = synthetic.ewok_items(20)
        archive.writestr("ewok/items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for gate in ("none", "headwise"):
        for seed in range(3):
            row = {"run_id": f"{gate}_s{seed}", "seed": seed, "attn_gate": gate, "final_val_loss": 3.5 + seed / 8,
                   "date": "2026-01-01", "num_iterations": 100, "train_time_ms": 1000, "notes": "a, b"}
            results.append_result(folder / "results.csv", row)
    disk.write_json(folder / ".lock", {"pid": 1, "host": os.uname().nodename, "since": "2026-01-01 00:00:00"})


# ----------------------------------------------------------------------------------------------------------------------
# trials


def fault_of(error: BaseException, folder: Path, printed: str) -> str:
    """Why an error is none of our sentences; "" when it is one."""
    sentence = str(error)
    if isinstance(error, SystemExit):
        sentence = error.code if isinstance(error.code, str) else printed
    elif not isinstance(error, (ValueError, OSError)) or isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, SystemExit) and not frames[-1].filename.startswith(str(runs.REPO)):
        return f"not ours, {type(error).__name__} in {frames[-1].filename}: {error}"
    last = sentence.strip().rpartition("\n")[2]
    if not last:
        return "an empty sentence"
    if str(folder) not in sentence and "--" not in sentence:
        return f"names no file: {last[:300]}"
    if not re.search(r"[:;,] [a-z]", last) or last.startswith("[Errno"):
        return f"no advice: {last[:300]}"
    return ""


def peak_bytes(reset: bool = False) -> int:
    """The most memory held since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Result(NamedTuple):
    outcome: str  # refused, accepted or a fault
    fault: str
    seconds: float
    bytes: int


def attempt(form: Format, folder: Path) -> tuple[str, object]:
    """(fault or "", what was read or None) of one read."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            return "", form.read(folder)
    except BaseException as error:  # anything may come
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = fault_of(error, folder, printed.getvalue())
        if fault and RUN["trace"]:
            traceback.print_exception(error)
        return fault, error


def try_one(form: Format, world: Path, place: Path, expected: list, rng) -> Result:
    """Copies a folder of the world, damages its file, reads it."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(world / form.folder, place)
    path = place / form.file
    data = path.read_bytes()
    if rng.randrange(40) == 0:
        path.unlink()
        with contextlib.suppress(OSError):
            rng.choice((lambda: None, path.mkdir, lambda: path.symlink_to(path)))()
    else:
        changed = data
        while changed == data:
            changed = rng.choice(form.damage)(data, rng)
        path.write_bytes(changed)
        if form.after:
            form.after(place)
    held, began = peak_bytes(reset=True), time.process_time()
    fault, value = attempt(form, place)
    seconds, size = time.process_time() - began, peak_bytes() - held
    outcome = "refused"
    if fault:
        outcome = "traceback"
    elif not isinstance(value, BaseException):
        outcome = "accepted"
        if form.guarded and value not in expected:
            outcome, fault = "changed content accepted", f"{value}"[:200]
    if seconds > MAX_SECONDS or size > MAX_BYTES:
        outcome, fault = "slow or big", f"{seconds:.1f} s, {size / 1e6:.0f} MB, {outcome}: {value!r}"[:300]
    return Result(outcome, fault, seconds, size)


def expected_values(form: Format, world: Path, place: Path) -> list:
    """What an undamaged file gives, and for a checkpoint what the one before it gives."""
    values = []
    for broken in (False, True)[: 1 + form.file.startswith("ckpt")]:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(world / form.folder, place)
        if broken:
            (place / CKPT / "manifest.json").write_text("[]")
        fault, value = attempt(form, place)
        if fault or isinstance(value, BaseException):
            raise RuntimeError(f"the undamaged {form.file} is not read: {fault or value}")
        values.append(value)
    return values


def in_child(work):
    """work() in a fork of this process; None when it crashed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            with open(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(data) if status == 0 else None


def run_format(name: str, count: int, world: Path, seed: int) -> list[Result]:
    form, place = FORMATS[name], world / "place"
    torch.set_num_threads(1)
    expected = expected_values(form, world, place)
    found = []
    for number in range(count):
        rng = random.Random(f"{seed} {name} {number}")
        found.append((number, try_one(form, world, place, expected, rng)))
    return found


def main(argv=None) -> int:
    p = argparse.ArgumentParser(
        prog="mutations.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--files", type=int, default=600, help="damaged files to read, of all kinds together (default %(default)s)")
    add("--seed", type=int, default=0, help="of the damage (default %(default)s)")
    add("--only", default="", help="kinds whose name holds this text ('' = all)")
    add("--trace", action="store_true", help="print tracebacks of what is found")
    add("--show", action="store_true", help="print every fault, with the number that repeats it")
    add("--check", action="store_true", help="exit with status 1 when anything was found")
    args = p.parse_args(argv)
    names = [name for name in FORMATS if args.only in name]
    weights = sum(FORMATS[name].weight for name in names)
    totals, slowest, largest = Counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make_world(world)
        RUN["flags"] = json.loads((world / "run" / "config.json").read_text())["flags"]
        RUN["trace"] = args.trace
        RUN["ckpt"], RUN["other"] = world / "run" / OLD, world / "other"
        for name in names:
            count = math.ceil(args.files * FORMATS[name].weight / weights)
            found = in_child(lambda name=name, count=count: run_format(name, count, world, args.seed))
            if found is None:
                totals["crash"] += 1
                print(f"{name}: the interpreter crashed")
                continue
            outcomes = Counter(result.outcome for _, result in found)
            totals += outcomes
            slowest = max(slowest, *(result.seconds for _, result in found))
            largest = max(largest, *(result.bytes for _, result in found))
            listed = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
            print(f"{name:<28} {listed}", flush=True)
            for number, result in found:
                if args.show and result.fault:
                    print(f"    {number}: {result.outcome}: {result.fault}")
    bad = sum(totals.values()) - totals["refused"] - totals["accepted"]
    print(f"{sum(totals.values()):,} files: {dict(totals)}; slowest {slowest:.2f} s, largest {largest / 1e6:.0f} MB")
    return int(args.check and bad > 0)


if __name__ == "__main__":
    sys.exit(main())
