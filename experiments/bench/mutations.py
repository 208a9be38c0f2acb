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

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import platform
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab.flags import Parser, check_first  # noqa: E402

if __name__ == "__main__":
    check_first(__file__)

import numpy as np  # noqa: E402
import tiny  # noqa: E402 # whose folder's scripts, and the repo's, can be imported from here on
import torch  # noqa: E402
from damage import ARRAYS, BYTES, GZIP, JSON, LINES, ROWS, TABLE, TENSORS, ZIP  # noqa: E402

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
    exams,
    optim,
    processes,
    results,
    resume,
    runs,
    shards,
    sources,
    synthetic,
    tokenizing,
    training,
)
from model import GPT  # noqa: E402

MAX_SECONDS, MAX_BYTES = 2.0, 500e6
TOY = "--dataset synthetic --max_docs 60 --val_fraction 0.2".split()
TINY = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 32 --micro_batch_size 2 --total_batch_tokens 64 "
        "--max_train_steps 6 --max_epochs 9 --eval_every 3 --save_every 3 --device cpu --num_workers 0 "
        "--val_tokens 300 --hellaswag_every 3 --hellaswag_max_examples 2 --keep_last 0").split()

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
            names = "tokens", "token_bytes", "doc_starts", "doc_hash"
            values += [digest(bytes(val[name])) for name in names if val[name] is not None]
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
    flags = SimpleNamespace(**RUN["flags"])
    flags.out_dir = str(folder)
    model = GPT.load(RUN["ckpt"])
    optimizers = optim.build_optimizers(model, **optim.settings(flags))
    procs = processes.Processes(device=torch.device("cpu"))
    record = {"data": {"epochs": 1}}
    return training.Run("train_gpt.py", flags, procs, record, model, optimizers, None, None)


def read_checkpoint(folder):
    run = trainer(folder)
    path = runs.find_checkpoint(folder, "auto", warn=lambda text: None, check=run.check)
    run.load(str(path))
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
    rng = torch.get_rng_state().numpy().tobytes()
    return run.state.step, digest(bytes_of(run.model), run.state, rng)


def read_model(folder):
    path, *_ = runs.resolve_checkpoint(folder, warn=lambda text: None)
    model = GPT.load(path)
    return runs.step_of(path), digest(bytes_of(model))


def bytes_of(model) -> list[tuple]:
    return [(name, t.numpy().tobytes()) for name, t in model.state_dict().items()]


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
    record = training.resumed_config(before)
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
    """Records that were not there, although each line has a checksum."""
    done = exams.read_done(folder, "key")
    return [record for record in done.values() if record not in DONE]


def hold(folder):
    with disk.hold(folder):
        pass


def read_conversations(file, stage):
    flags = dict(stage=stage, decontaminate=[], condition="baseline", max_examples=0, max_read=0, seq_len=128,
                 bos="on", eval_every=1, val_fraction=0.3, val_data=[], bad_conversations="skip")

    def read(folder):
        for kind in ("skip", "error"):
            own = {"data": [str(folder / file)], "bad_conversations": kind}
            conversations.load(SimpleNamespace(**flags | own))
    return read


def read_documents(file):
    def read(folder):
        parser = Parser()
        prepare_fineweb.add_shared_arguments(parser)
        args = parser.parse_args(["--dataset", str(folder / file), "--out_dir", "x"])
        for first, documents in sources.read_batches(sources.open_source(args)):
            if not first:
                tokenizing.tokenize(first, documents, "auto", "weak", 0.1)
    return read


def read_guard(name, file):
    return lambda folder: decontaminate.from_argument([f"{name}={folder / file}"])


def reader(function, file):
    return lambda folder: function(folder / file)


CKPT, OLD = "ckpt/step_000006", "ckpt/step_000003"
FORMATS = {
    "meta.json": Format("data", "meta.json", read_dataset, JSON, weight=6),
    "meta.json of rows": Format("rows", "meta.json", read_dataset, JSON),
    "meta.json, prepare": Format("data", "meta.json", read_finished, JSON),
    "shard": Format("data", "train_000000.bin", read_dataset, BYTES, True, 3),
    "val shard": Format("mul", "val_000000.bin", read_dataset, BYTES, True, 3),
    "npz": Format("mul", "val_documents.npz", read_dataset, ARRAYS, True, 4),
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
    "optimizer.pt": Format("run", f"{CKPT}/optimizer.pt", read_checkpoint, TENSORS, True),
    "sealed optimizer.pt": Format("run", f"{CKPT}/optimizer.pt", read_checkpoint, TENSORS, weight=6,
                                  after=seal),
    "rng.pt": Format("run", f"{CKPT}/rng.pt", read_checkpoint, TENSORS, True),
    "sealed rng.pt": Format("run", f"{CKPT}/rng.pt", read_checkpoint, TENSORS, weight=3, after=seal),
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
    "val documents, compare": Format("run", "val_documents_000006.npz", compare, ARRAYS),
    "gsm8k results, compare": Format("run", "gsm8k_results.json", compare, JSON),
    "results.csv": Format("files", "results.csv", read_table, TABLE, weight=6),
    "results.csv, compare": Format("files", "results.csv", read_results, TABLE, weight=3),
    ".lock": Format("files", ".lock", hold, JSON),
    "unfinished exam": Format("files", "rank0000.jsonl", read_partial, LINES, True),
}
for kind, load in (("hellaswag", hellaswag.load), ("gsm8k", eval_gsm8k.load)):
    name = f"{kind}.jsonl"
    FORMATS[f"{kind} items"] = Format("files", name, reader(load, name), LINES, weight=4)
    FORMATS[f"{kind} items, guard"] = Format("files", name, read_guard(kind, name), LINES)
    packed = f"{name}.gz"
    FORMATS[f"{kind} items, gzip"] = Format("files", packed, reader(load, packed), GZIP)
FORMATS["ewok zip"] = Format("files", "ewok.zip", reader(ewok.load, "ewok.zip"), ZIP, weight=4)
FORMATS["ewok zip, guard"] = Format("files", "ewok.zip", read_guard("ewok", "ewok.zip"), ZIP)
for name, damage in (("tulu.jsonl", LINES), ("gsm8k.jsonl", LINES), ("tinygsm.jsonl", LINES), ("tulu.parquet", ROWS)):
    read = read_conversations(name, name.partition(".")[0])
    FORMATS[f"conversations {name}"] = Format("files", name, read, damage, weight=3)
# no bombs: a corpus may have any number of lines, and is read as a stream
DOCUMENTS = {"docs.jsonl": LINES, "docs.jsonl.gz": BYTES, "docs.parquet": ROWS, "docs.txt": BYTES}
for name, damage in DOCUMENTS.items():
    FORMATS[f"documents {name}"] = Format("files", name, read_documents(name), damage)

DONE = [{"id": f"{i}", "credit": {"accuracy": i / 8}} for i in range(9)]
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
    for name, content in (("plain", ids.tobytes()), ("llmc", header.tobytes() + ids.tobytes())):
        (root / name).mkdir()
        for split in ("train", "val"):
            (root / name / f"{split}_0.bin").write_bytes(content)
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
        flags = ["--data_dir", str(root / "data"), "--out_dir", str(root / name), *TINY]
        train_gpt.main([*flags, "--results_csv", ""])
        shutil.rmtree(root / name / "code")
        exam = {"type": "gsm8k", "total": 2, "accuracy": 0.5, "scorer": "gsm8k-1", "files": {}}
        disk.write_json(root / name / "gsm8k_results.json", exam)
    make_files(root / "files")


def make_files(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    problems = list(synthetic.gsm8k_items(20))
    talk = []
    for item in problems:
        texts = {"system": "Be brief.", "user": item["question"], "assistant": item["answer"]}
        messages = [{"role": role, "content": text} for role, text in texts.items()]
        talk.append({"messages": messages})
    program = "def simple_math_problem() -> int:\n    a = 6\n    return a * 9\n"
    texts = [{"text": text, "n": i} for i, text in enumerate(synthetic.documents(0, 0, 20))]
    contents = {
        "hellaswag.jsonl": list(synthetic.hellaswag_items(20)),
        "gsm8k.jsonl": problems, "tulu.jsonl": talk,
        "tinygsm.jsonl": [{"question": item["question"], "code": program} for item in problems],
        "docs.jsonl": texts,
        "rank0000.jsonl": [{"check": exams.check_of("key", record), **record} for record in DONE],
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
            row = {"run_id": f"{gate}_s{seed}", "seed": seed, "attn_gate": gate, "notes": "a, b"}
            row |= {"final_val_loss": 3.5 + seed / 8, "num_iterations": 100, "train_time_ms": 1000}
            results.append_result(folder / "results.csv", row)
    holder = {"pid": 1, "host": platform.node(), "since": "2026-01-01 00:00:00"}
    disk.write_json(folder / ".lock", holder)


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
    if not isinstance(error, SystemExit) and not frames[-1].filename.startswith(str(tiny.REPO)):
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
        return fault_of(error, folder, printed.getvalue()), error


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
        fault = f"{seconds:.1f} s, {size / 1e6:.0f} MB, {outcome}: {value!r}"[:300]
        outcome = "slow or big"
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
    p = Parser(prog="mutations.py", description=__doc__)
    add = p.add_argument
    add("--files", type=int, default=600, help="damaged files to read, of all kinds together (default %(default)s)")
    add("--seed", type=int, default=0, help="of the damage (default %(default)s)")
    add("--only", default="", help="kinds whose name holds this text ('' = all)")
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
