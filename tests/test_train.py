"""train_gpt.py end to end on tiny models: order of data, resume, val loss, signals, records and refusals."""

import contextlib
import importlib
import io
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import (
    ENV,
    REPO,
    TRAIN,
    exact,
    exposures,
    light_files,
    losses,
    rank_jobs,
    records,
    run_forked,
    run_script,
    tiny_documents,
    weights,
    write_dataset,
    write_jsonl,
)

import hellaswag
import model
import sample
import train_gpt
from lab import data_order, disk, optim, processes, resume, run_state, runs, shards, training, val_loss
from lab.mirrors import open_mirrors
from lab.tokenizer import BOS_ID, get_tokenizer
from model import GPT

torch.set_num_threads(1)  # as processes of their own, whose bits are compared

TINY = [*"--n_layer 2 --n_head 2 --n_embd 16 --seq_len 32 --micro_batch_size 2 --total_batch_tokens 256 "
        "--learning_rate 1e-2 --results_csv".split(), ""]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """About 5,000 train tokens (157 sequences of 32) in four shards, with documents of 3 to 120 tokens."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_dataset(folder, tiny_documents(82, 3, 120))
    return folder


def command(data, out, *flags, ranks=1):
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    own = ["--data_dir", str(data), "--out_dir", str(out)]
    return [*launch, str(REPO / "train_gpt.py"), *own, *TINY, *map(str, flags)]


def train(data, out, *flags):
    """In this process; returns what it printed."""
    with light_files(), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train_gpt_main(data, out, *flags) == 0
    return printed.getvalue()


def train_on_ranks(*jobs):
    """Jobs (ranks, data, out, *flags): runs of several ranks, all at once."""
    of_ranks = []
    for ranks, data, out, *flags in jobs:
        of_ranks += rank_jobs(ranks, ["--data_dir", data, "--out_dir", out, *TINY, *flags])
    for status, printed in run_forked(TRAIN, of_ranks):
        assert status == 0, printed


def checksums(run):
    return [r["checksum"] for r in exposures(run)]


@pytest.fixture(scope="session")
def base(data, tmp_path_factory):
    """The uninterrupted run that others are compared with: 24 steps, 1.2 epochs."""
    out = tmp_path_factory.mktemp("runs") / "base"
    train_gpt_main(data, out, "--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5)
    return out


# ----------------------------------------------------------------------------------------------------------
# the order of data


def test_every_sequence_once_per_epoch(data):
    """Share of sequences read exactly once per epoch, over 3 epochs, with steps that straddle epochs: must be 1."""
    files, _ = shards.open_dataset(data)
    n = files.n_sequences(32)
    one = data_order.StepLoader(files, seq_len=32, sequences_per_step=6, seed=3, num_workers=0)
    entries = np.concatenate([np.stack(one.positions(s)) for s in range(3 * n // 6)], axis=1)
    for epoch in range(3):
        seen = entries[1][entries[0] == epoch]
        if epoch < 2:
            assert np.array_equal(np.sort(seen), np.arange(n))
    assert not np.array_equal(one._order(0), one._order(1))  # each epoch has an order of its own


def test_step_tokens_do_not_depend_on_ranks_or_workers(data):
    """Tokens of a step assembled from 1, 2, 4 ranks and 0, 3 reading threads: must be equal; checksums must add up."""
    files, _ = shards.open_dataset(data)
    make = lambda **k: data_order.StepLoader(files, seq_len=32, sequences_per_step=8, seed=1, **k)
    for step in (0, 5, 15, 16):
        whole = make(num_workers=0).read_step(step)
        for world in (2, 4):
            parts = [make(rank=r, world_size=world, num_workers=0).read_step(step) for r in range(world)]
            assert torch.equal(torch.cat([p["tokens"] for p in parts]), whole["tokens"])
            assert sum(p["checksum"] for p in parts) & (2**64 - 1) == whole["checksum"]
    ahead = make(num_workers=3, start_step=4, stop_step=9)
    for step in range(4, 9):
        batch = ahead.next_step()
        assert batch["step"] == step and torch.equal(batch["tokens"], make(num_workers=0).read_step(step)["tokens"])
    ahead.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_no_step_makes_the_order(data, workers, monkeypatch):
    """Orders of an epoch that are made while the steps run, after start(): none, resumed or not, until the epoch ends;
    and nothing is made for a run without steps."""
    files, _ = shards.open_dataset(data)
    made, epoch_order = [], data_order.epoch_order
    monkeypatch.setattr(data_order, "epoch_order", lambda *args: made.append(args[2]) or epoch_order(*args))
    make = lambda start: data_order.StepLoader(files, seq_len=32, sequences_per_step=4, seed=1, num_workers=workers,
                                               start_step=start, stop_step=5)
    for start in (0, 3):
        made.clear()
        loader = make(start)
        loader.start()
        assert made == [0]
        assert [loader.next_step()["step"] for _ in range(start, 5)] == list(range(start, 5)) and made == [0]
        loader.close()
    made.clear()
    make(5).start()
    assert not made


def test_order_depends_on_data_seed_and_epoch_only(data):
    """The permutation of one (fingerprint, seed, epoch), pinned: a changed value would break every resumed run."""
    assert data_order.epoch_order("f", 0, 0, 8).tolist() == [0, 3, 5, 7, 1, 2, 4, 6]
    assert not np.array_equal(data_order.epoch_order("f", 0, 0, 50), data_order.epoch_order("g", 0, 0, 50))
    assert not np.array_equal(data_order.epoch_order("f", 0, 0, 50), data_order.epoch_order("f", 1, 0, 50))
    assert data_order.epoch_order("f", 0, 3, 5, "sequential").tolist() == [0, 1, 2, 3, 4]


def test_sequences_are_windows_of_the_stream(data):
    """Sequence i is tokens [i T, i T + T] of the concatenated shards, across shard borders."""
    files, _ = shards.open_dataset(data)
    stream = np.concatenate([np.fromfile(p, "<u2") for p in sorted(data.glob("train_*.bin"))])
    batch = data_order.StepLoader(
        files, seq_len=32, sequences_per_step=files.n_sequences(32), seed=0, data_order="sequential", num_workers=0
    ).read_step(0)
    for i, row in enumerate(batch["tokens"].numpy()):
        assert np.array_equal(row, stream[32 * i : 32 * i + 33])


@pytest.fixture(scope="session")
def shared_out(data, tmp_path_factory):
    """{(ranks, micro-batch): a run as base, without saves}"""
    folder = tmp_path_factory.mktemp("ranks")
    out = {shape: folder / "r{}_m{}".format(*shape) for shape in ((2, 2), (4, 2), (1, 8))}
    flags = {}
    for ranks, micro in out:
        flags[ranks, micro] = ["--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 0,
                               "--micro_batch_size", micro, "--eval_batch_size", {2: 3, 1: 8, 4: 1}[ranks]]
    train(data, out[1, 8], *flags[1, 8])
    train_on_ranks(*[(ranks, data, out[ranks, micro], *flags[ranks, micro]) for ranks, micro in out if ranks > 1])
    return out


def test_world_size_and_accumulation_read_and_learn_the_same(base, shared_out):
    """1 process x 4 micro-batches = 2 x 2 = 4 x 1, and a micro-batch of 8: token checksums of every step equal;
    losses to 1e-6 at step 1 and 1e-4 at step 20; and val loss (both views) to 1e-6 on the initial weights."""
    for out in shared_out.values():
        assert checksums(out) == checksums(base)
        difference = np.abs(losses(out) - losses(base))
        assert difference[0] < 1e-6 and difference[:20].max() < 1e-4
        for key in ("val_loss", "val_loss_bos", "val_bits_per_byte", "val_bits_per_byte_bos"):
            assert abs(records(out, "val")[0][key] - records(base, "val")[0][key]) < 1e-6
            assert abs(records(out, "val")[-1][key] - records(base, "val")[-1][key]) < 1e-4


def test_exposures_name_what_every_rank_read(shared_out):
    """Entries of two ranks partition each step's list; the two per-rank checksums sum to the step's."""
    a, b = (exposures(shared_out[2, 2], rank) for rank in (0, 1))
    assert len(a) == 24
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x["entries"] == [8 * step, 8 * step + 4] and y["entries"] == [8 * step + 4, 8 * step + 8]
        assert x["checksum"] == y["checksum"]
        assert (int(x["rank_checksum"], 16) + int(y["rank_checksum"], 16)) & (2**64 - 1) == int(x["checksum"], 16)


# ----------------------------------------------------------------------------------------------------------
# resume


def test_kill_and_resume_is_bit_exact(data, base, tmp_path):
    """kill -9 at two random points (also across the epoch boundary in step 20) + --resume auto: every record but times,
    exposures and final weights must equal the uninterrupted run's, bit for bit."""
    out, rng = tmp_path / "killed", np.random.default_rng(time.time_ns() % 2**32)
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5, "--resume", "auto")
    for low, high in ((1, 12), (13, 23)):
        target = int(rng.integers(low, high))
        process = subprocess.Popen(
            command(data, out, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENV
        )
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            path = out / "scalars.jsonl"
            if path.exists() and path.read_text().count('"train"') >= target:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    printed = train(data, out, *flags)
    assert "resumed from" in printed
    assert exact(out) == exact(base)
    assert weights(out) == weights(base)
    assert checksums(out) == checksums(base)


def test_sigterm_under_two_processes_saves_and_exits_zero(data, base, tmp_path):
    """SIGTERM to the ranks of a 2-process run: both exit 0 with a checkpoint, and resuming on one process ends with the
    checksums of the uninterrupted run."""
    out = tmp_path / "stopped"
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5)
    process = subprocess.Popen(
        command(data, out, *flags, ranks=2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV
    )
    while not (out / "scalars.jsonl").exists() or (out / "scalars.jsonl").read_text().count('"train"') < 3:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in children:
        os.kill(int(pid), signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert "saved; continue with" in printed and runs.list_checkpoints(out) and not (out / "summary.json").exists()
    train(data, out, *flags, "--resume", "auto", "--micro_batch_size", 8)
    assert checksums(out) == checksums(base)
    assert np.abs(losses(out) - losses(base)).max() < 1e-3


def test_a_second_resume_leaves_the_first_alone(data, base, tmp_path):
    """A second process in a run's folder says who holds it, and the run ends as if undisturbed. A dead one holds it no
    more."""
    out = tmp_path / "r"
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5)
    process = subprocess.Popen(command(data, out, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENV)
    while not (out / "scalars.jsonl").exists() or (out / "scalars.jsonl").read_text().count('"train"') < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    before = (out / "scalars.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"is held by process {process.pid} on .* since 20.*: wait until"):
        train_gpt_main(data, out, *flags, "--resume", "auto")
    assert (out / "scalars.jsonl").read_bytes() == before and (out / ".lock").exists()
    process.send_signal(signal.SIGCONT)
    assert process.wait(120) == 0, process.stderr.read()
    process.stderr.close()
    assert exact(out) == exact(base) and weights(out) == weights(base) and not (out / ".lock").exists()
    (out / ".lock").write_text(json.dumps({"pid": process.pid, "host": platform.node(), "since": "2026-01-01"}))
    (out / "summary.json").unlink()
    train_gpt_main(data, out, *flags, "--resume", "auto")
    assert (out / "summary.json").exists() and not (out / ".lock").exists()


def test_resume_from_a_named_step(data, base, tmp_path, monkeypatch):
    """--resume 20 of a run at 24: the later checkpoint steps aside until the run has passed it, and the end is the
    undisturbed run's. Each checkpoint that is taken up is read once."""
    out, reads = tmp_path / "r", []
    shutil.copytree(base, out)
    (out / "summary.json").unlink()
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5)
    read = resume.read_checkpoint

    def note(folder, *rest):
        reads.append(folder.name)
        return read(folder, *rest)

    monkeypatch.setattr(resume, "read_checkpoint", note)
    evaluate, asked = training.evaluate, []

    def stop_at_22(run, evaluations):
        evaluate(run, evaluations)
        if run.state.step == 22 and not asked:
            asked.append(1)
            run.stop.asked = True

    monkeypatch.setattr(training, "evaluate", stop_at_22)
    train_gpt_main(data, out, *flags, "--resume", "20")
    names = lambda: sorted(path.name for path in (out / "ckpt").iterdir())
    assert reads == ["step_000020"] and not (out / "summary.json").exists()
    assert "step_000024.aside" in names() and runs.step_of(runs.list_checkpoints(out)[-1]) < 24
    train_gpt_main(data, out, *flags, "--resume", "auto")
    assert names()[-1] == "step_000024" and not [name for name in names() if "aside" in name]
    assert exact(out) == exact(base) and weights(out) == weights(base)


def test_records_that_were_deleted(data, base, tmp_path):
    """A run whose scalars.jsonl is gone still ends, and says so; no NaN gets into a record."""
    out = tmp_path / "r"
    shutil.copytree(base, out)
    (out / "summary.json").unlink()
    (out / "scalars.jsonl").unlink()
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5)
    train_gpt_main(data, out, *flags, "--resume", "auto")
    text = (out / "summary.json").read_text()
    summary = json.loads(text)
    assert "NaN" not in text and summary["final_train_loss"] is summary["best_val_loss"] is None
    assert "scalars.jsonl lacks 24 of 24 steps" in summary["warnings"][-1]


def test_a_run_outlives_its_terminal(data, base, tmp_path):
    """`| head -1`, then a closed terminal (SIGHUP): no step is lost, log.txt goes on, and the run is saved."""
    out = tmp_path / "closed"
    # an evaluation after every step: a run that is slow enough to be caught in the middle
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 1, "--save_every", 0, "--log_every", 1)
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup leaves it, a run would not listen
    process = subprocess.Popen(command(data, out, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV,
                               preexec_fn=heard)
    process.stdout.readline()
    process.stdout.close()
    while not (out / "scalars.jsonl").exists() or (out / "scalars.jsonl").read_text().count('"train"') < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    errors = process.stderr.read().strip()
    assert process.wait(120) == 0 and errors.startswith(b"SIGHUP: this step is finished and saved first")
    assert errors.count(b"\n") == 0
    steps = len(losses(out))
    assert 3 <= steps < 24 and np.array_equal(losses(out), losses(base)[:steps])
    assert [runs.step_of(path) for path in runs.list_checkpoints(out)] == [steps]
    log = (out / "log.txt").read_text()
    assert f"step {steps:6d}/24" in log and log.splitlines()[-1].startswith(f"stopped at step {steps} of 24, saved")


def test_disk_full_while_recording(data, tmp_path, monkeypatch):
    """A full disk costs no step up to the last checkpoint, and the sentence names the file and that checkpoint."""
    real = runs.JsonlWriter.write

    def write(self, **record):
        if record["step"] == 3 and record.get("type") == "train":
            self.file = open("/dev/full", "ab", buffering=0)
        real(self, **record)

    monkeypatch.setattr(runs.JsonlWriter, "write", write)
    flags = ("--max_train_steps", 4, "--save_every", 2, "--eval_every", 0)
    with pytest.raises(ValueError, match=r"scalars.jsonl cannot be written \(No space left .*ckpt/step_000002: free"):
        train_gpt_main(data, tmp_path / "r", *flags)
    monkeypatch.undo()
    train_gpt_main(data, tmp_path / "r", *flags, "--resume", "auto")
    assert [record["step"] for record in records(tmp_path / "r")] == [1, 2, 3, 4]


def test_broken_newest_checkpoint_falls_back(data, base, tmp_path):
    """A flipped byte in the newest checkpoint: a warning, the one before is used, and the end is bit-identical."""
    out = tmp_path / "broken"
    shutil.copytree(base, out)
    (out / "summary.json").unlink()
    newest = runs.list_checkpoints(out)[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    printed = train(
        data, out, "--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5, "--resume", "auto"
    )
    assert "WARNING" in printed and "step_000020" in printed
    assert exact(out) == exact(base) and weights(out) == weights(base)


def damage_checkpoint(path, name, change):
    """Change a file of a checkpoint; the manifest goes with it, unless it is the one that changes."""
    value = json.loads((path / name).read_text()) if name.endswith("json") else torch.load(path / name)
    value = change(value)
    if name.endswith("json"):
        (path / name).write_text(json.dumps(value))
    else:
        torch.save(value, path / name)
    if name != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name]["sha256"] = disk.sha256_file(path / name)
        (path / "manifest.json").write_text(json.dumps(manifest))


def shorten_momentum(states):
    states[0]["state"][0]["exp_avg"] = states[0]["state"][0]["exp_avg"][:3]
    return states


def drop(states, of, key):
    del of[key]
    return states


DAMAGE = {
    "manifest a list": ("manifest.json", lambda m: [], r"it is \[\], not an object"),
    "files a list": ("manifest.json", lambda m: m | {"files": []}, r"files is \[\], not an object"),
    "no step": ("manifest.json", lambda m: {"files": m["files"]}, "step is missing"),
    "another step": ("manifest.json", lambda m: m | {"step": 20}, "manifest.json is of step 20"),
    "no files": ("manifest.json", lambda m: m | {"files": {}}, "manifest.json does not name model.safetensors"),
    "optimizer left out": ("manifest.json", lambda m: m["files"].pop("optimizer.pt") and m, "not name optimizer.pt"),
    "a file elsewhere": ("manifest.json", lambda m: m["files"].update({"../../x.pt": {}}) or m, "is no key of it"),
    "no checksum": ("manifest.json", lambda m: m["files"].update({"rng.pt": {"sha256": None}}) or m,
                    "files.rng.pt.sha256 is null, not 64 hex digits"),
    "trainer a list": ("trainer.json", lambda t: [], r"trainer.json is damaged \(it is \[\], not an object"),
    "half a step": ("trainer.json", lambda t: t | {"step": 23.5}, "step is 23.5, not a whole number"),
    "other trainer": ("trainer.json", lambda t: t | {"step": 20}, "trainer.json is of step 20"),
    "due is a number": ("trainer.json", lambda t: t | {"due": 3}, "due is 3, not a list"),
    "optimizer a dict": ("optimizer.pt", lambda o: {}, r"optimizer.pt does not belong to this run \(not a list of 1"),
    "no groups": ("optimizer.pt", lambda o: [{"state": {}}], "param_groups is missing"),
    "fewer parameters": ("optimizer.pt", lambda o: [o[0] | {"param_groups": o[0]["param_groups"][:1]}],
                         "are of other parameters"),
    "short momentum": ("optimizer.pt", shorten_momentum, r"exp_avg has shape \(3, 16\), not \(\d+, 16\)"),
    "no betas": ("optimizer.pt", lambda o: drop(o, o[0]["param_groups"][0], "betas"), "betas is 'missing'"),
    "a huge rate": ("optimizer.pt", lambda o: o[0]["param_groups"][0].update(lr=10**400) or o, "lr is 1000"),
    "one beta": ("optimizer.pt", lambda o: o[0]["param_groups"][0].update(betas=(0.9,)) or o, r"betas is \(0.9,\)"),
    "weight decay nan": ("optimizer.pt", lambda o: o[0]["param_groups"][0].update(weight_decay=math.nan) or o,
                         "weight_decay is nan"),
    "no second moment": ("optimizer.pt", lambda o: drop(o, o[0]["state"][2], "exp_avg_sq"),
                         r"\[0\].state\[2\] does not have the values of the first"),
    "no state of one": ("optimizer.pt", lambda o: drop(o, o[0]["state"], 3), r"\[0\].state is not of \d+ parameters"),
    "rng empty": ("rng.pt", lambda r: [], "rng.pt holds no generators' states"),
    "rng short": ("rng.pt", lambda r: [{"cpu": torch.zeros(3, dtype=torch.uint8)}], "rng.pt holds no generators'"),
}


@pytest.fixture(scope="session")
def taken_up(base):
    """base's run as a resume has it before it looks for a checkpoint."""
    flags = SimpleNamespace(**json.loads((base / "config.json").read_text())["flags"])
    model = GPT.load(runs.checkpoint_path(base, 20))
    optimizers = optim.build_optimizers(model, **optim.settings(flags))
    return training.Run("train_gpt.py", flags, processes.Processes(), {}, model, optimizers, None, None)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_of_another_shape_is_passed_over(case, base, taken_up, tmp_path):
    """A run never goes on from half a state: a warning and the checkpoint before it, or, when it is asked for by its
    number, one sentence."""
    name, change, fault = DAMAGE[case]
    shutil.copytree(base / "ckpt", tmp_path / "ckpt")
    find = lambda which: runs.find_checkpoint(tmp_path, which, warn=warnings.append, check=taken_up.check)
    warnings = []
    assert find("auto") == runs.checkpoint_path(tmp_path, 24) and warnings == []
    damage_checkpoint(runs.checkpoint_path(tmp_path, 24), name, change)
    with pytest.raises(ValueError, match=f"step_000024.*{fault}"):
        find("24")
    assert find("auto") == runs.checkpoint_path(tmp_path, 20)
    assert len(warnings) == 1 and re.search(f"WARNING: .*step_000024.*{fault}.*falling back", warnings[0])


@pytest.mark.parametrize("name, line, fault", [
    ("scalars.jsonl", '{"type": "train", "step": 3}', "scalars.jsonl has a broken line, 4 .train_loss.* is missing"),
    ("scalars.jsonl", '{"type": "train", "step": 3, }', "scalars.jsonl has a broken line, 4"),
    ("scalars.jsonl", '{"type": ["val"], "step": 3}', r'line, 4 \(type is \["val"\], not text\): restore the file'),
    ("scalars.jsonl", '{"type": "x", "inner": {"step": 99}}', r"line, 4 \(step is missing\): restore the file"),
    ("exposures/exposures_rank0000.jsonl", "junk", "exposures_rank0000.jsonl has a broken line, 4: restore"),
    ("step_metrics.json", None, r"step_metrics.json is damaged \(flags is no key of it\): restore it, or delete it"),
    ("config.json", None, r"config.json is not a run's .*flags is \[\], not an object"),
])
def test_a_damaged_record_is_named_before_a_step(name, line, fault, data, base, tmp_path, capsys):
    """A record that the run could not be finished with stops it before a step, with its file and line."""
    out = tmp_path / "r"
    shutil.copytree(base, out)
    (out / "summary.json").unlink()
    lines = (out / name).read_text().splitlines(keepends=True)
    if line is None:
        lines = ['{"flags": [], "x": {}}']
    else:
        lines[3] = line + "\n"
    (out / name).write_text("".join(lines))
    with pytest.raises((ValueError, SystemExit)) as error:
        train_gpt_main(data, out, "--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10,
                       "--save_every", 5, "--resume", "auto")
    assert re.search(fault, f"{error.value} {capsys.readouterr().err}")


@pytest.mark.parametrize("flag, value", [
    ("seed", 1.5), ("seed", "1"), ("seed", True), ("seed", None), ("seed", [1]), ("dtype", "bf16"), ("device", "gpu"),
    ("arch", ["gpt2"]), ("learning_rate", "fast"), ("learning_rate", float("nan")), ("notes", 3), ("notes", {}),
    ("deterministic", "no"), ("deterministic", 1),
])
def test_config_takes_what_the_command_line_takes(flag, value, base, tmp_path, capsys):
    """dtype 'bf16' would train in fp32 without a word: a value that the command line refuses is refused."""
    record = json.loads((base / "config.json").read_text())
    record["flags"][flag] = value
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        train_gpt.parse_args(["--config", str(tmp_path / "config.json")])
    assert f"config.json has --{flag} {value!r}, which train_gpt.py does not take" in capsys.readouterr().err


def test_resume_without_flags_and_config_repeat(base, tmp_path, capsys):
    """`--out_dir RUN --resume auto` alone continues with the run's own flags; `--config` repeats a run bit for bit."""
    out = tmp_path / "again"
    assert train_gpt.main(["--config", str(base / "config.json"), "--out_dir", str(out)]) == 0
    assert exact(out) == exact(base) and weights(out) == weights(base)
    capsys.readouterr()
    assert train_gpt.main(["--out_dir", str(out), "--resume", "auto"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_evaluation_sampling_and_logging_leave_training_alone(data, base, tmp_path):
    """Training losses with another --eval_every, samples, log cadence, workers: bit-identical."""
    out = tmp_path / "quiet"
    train(data, out, "--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 3, "--sample_every", 4,
          "--sample_tokens", 5,
          "--log_every", 1, "--num_workers", 0, "--save_every", 0, "--keep_last", 0)
    assert losses(out).tolist() == losses(base).tolist()
    assert weights(out) == weights(base)


SCORED = ("--hellaswag_every", 8, "--hellaswag_data", "synthetic:9", "--ewok_every", 12, "--ewok_data", "synthetic:22",
          "--zeroshot_every", 24, "--zeroshot_data", "synthetic:2",
          "--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5)


BENCHMARKS = ("hellaswag", "ewok", "zeroshot")


def step_metrics(run):
    return json.loads((Path(run) / "step_metrics.json").read_text())


@pytest.fixture(scope="session")
def scored(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "scored"
    train(data, out, *SCORED)
    return out


def test_benchmarks_leave_training_alone(base, scored):
    """24 losses, weights and data checksums of a run that is scored on all benchmarks: the bits of one without."""
    assert losses(scored).tolist() == losses(base).tolist()
    assert weights(scored) == weights(base)
    assert checksums(scored) == checksums(base)


def test_benchmarks_are_recorded(scored):
    """HellaSwag at steps 8, 16, 24 (9 items each), EWoK at 12, 24 (22 items); their seconds are in the wall-clock and
    not in the training time; the originals' key names are in step_metrics.json."""
    lines = {name: runs.read_jsonl(scored / f"{name}.jsonl") for name in
             ("hellaswag_metrics", "hellaswag_items", "ewok_metrics", "ewok_items")}
    assert [r["step"] for r in lines["hellaswag_metrics"]] == [8, 16, 24] and len(lines["hellaswag_items"]) == 27
    assert [r["step"] for r in lines["ewok_metrics"]] == [12, 24] and len(lines["ewok_items"]) == 44
    table = step_metrics(scored)
    assert set(table) == {"0", "8", "10", "12", "16", "20", "24"}
    assert {"val_loss", "hellaswag_accuracy", "hellaswag_accuracy_norm", "eval_official_sum", "eval_official_mean",
            "eval_full_sum", "eval_margin_official_sum", "ewok_by_category"} <= set(table["24"])
    assert table["24"]["hellaswag_accuracy"] == records(scored, "hellaswag")[-1]["accuracy"]
    summary, trained = json.loads((scored / "summary.json").read_text()), records(scored)
    spent = sum(r["eval_seconds"] for kind in ("val", *BENCHMARKS) for r in records(scored, kind))
    assert abs(summary["eval_seconds"] - spent) < 0.01
    assert abs(summary["train_time_ms"] / 1000 - sum(r["step_seconds"] for r in trained)) < 0.01
    assert summary["wall_seconds"] > summary["eval_seconds"] + summary["train_time_ms"] / 1000
    assert all(abs(r["tokens_per_sec"] * r["step_seconds"] / 256 - 1) < 0.01 for r in trained)
    assert summary["results_row"]["eval_official_sum"] == table["24"]["eval_official_sum"]
    assert json.loads((scored / "config.json").read_text())["benchmarks"]["hellaswag"]["items"] == 9


def test_interrupted_benchmark_is_made_up_for(data, scored, tmp_path, monkeypatch):
    """A stop in the middle of step 16's HellaSwag: saved at 16 without it, and after --resume every score, item and
    loss is the uninterrupted run's."""
    out, argv = tmp_path / "run", command(data, tmp_path / "run", *SCORED)[2:]
    whole = train_gpt.hellaswag.evaluate

    def stopped_at_16(model, items, procs, **kwargs):
        if (out / "ckpt" / "step_000015").exists():
            kwargs["stop"].asked = True
        return whole(model, items, procs, **kwargs)

    monkeypatch.setattr(train_gpt.hellaswag, "evaluate", stopped_at_16)
    assert train_gpt.main(argv) == 0
    monkeypatch.undo()
    assert not (out / "summary.json").exists() and runs.list_checkpoints(out)[-1].name == "step_000016"
    assert "16" not in step_metrics(out)
    assert train_gpt.main([*argv, "--resume", "auto"]) == 0
    assert step_metrics(out) == step_metrics(scored)
    for name in BENCHMARKS:
        name += "_items.jsonl"
        assert (out / name).read_text() == (scored / name).read_text()
    assert losses(out).tolist() == losses(scored).tolist()


def test_benchmarks_on_two_ranks(data, scored, tmp_path):
    """Scores after 24 steps on two processes: those of one, to what the sums' order does to the weights."""
    train_on_ranks((2, data, tmp_path / "two", *SCORED, "--micro_batch_size", 1))
    one, two = step_metrics(scored)["24"], step_metrics(tmp_path / "two")["24"]
    for name in ("hellaswag_accuracy", "eval_official_sum", "eval_paper_mean", "zeroshot_sum", "zeroshot_harness"):
        assert abs(one[name] - two[name]) < 0.12  # an item of 9 may flip
    assert abs(one["eval_margin_official_sum"] - two["eval_margin_official_sum"]) < 1e-3


def test_init_from(data, base, tmp_path, capsys):
    """Step 0 of a run from a checkpoint scores that checkpoint's val loss to the bit; its shape needs no flags; a flag
    that contradicts it, a longer seq_len and a missing folder are refused."""
    shape = ("--n_layer", "--n_head", "--n_embd")
    argv = command(data, tmp_path / "next", "--init_from", base, "--max_train_steps", 2, "--eval_every", 2)[2:]
    free = [a for i, a in enumerate(argv) if a not in shape and (i == 0 or argv[i - 1] not in shape)]
    assert train_gpt.main(free) == 0
    assert records(tmp_path / "next", "val")[0]["val_loss"] == records(base, "val")[-1]["val_loss"]
    config = json.loads((tmp_path / "next" / "config.json").read_text())
    assert config["model"]["n_embd"] == 16 and len(config["init"]["sha256"]) == 64
    for change, why in ((["--n_embd", "32"], "drop --n_embd 32"), (["--seq_len", "64"], "lower --seq_len"),
                        (["--init_from", "nowhere"], "is not a folder")):
        with pytest.raises(SystemExit):
            train_gpt.main([*free, "--out_dir", str(tmp_path / "no"), *change])
        assert why in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_resume_needs_the_start_no_more(data, base, tmp_path, monkeypatch):
    """Steps lost when the --init_from folder is gone after the run's first checkpoint: 0."""
    shutil.copytree(base, tmp_path / "start")
    argv = command(data, tmp_path / "run", "--init_from", tmp_path / "start", "--max_train_steps", 6, "--save_every", 2,
                   "--eval_every", 0)[2:]
    monkeypatch.setattr(train_gpt.processes, "StopRequest", lambda *_: SimpleNamespace(asked=True))
    assert train_gpt.main(argv) == 0 and not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "start")
    assert train_gpt.main([*argv, "--resume", "auto"]) == 0
    assert len(records(tmp_path / "run")) == 6 and (tmp_path / "run" / "summary.json").exists()


def test_score_val_gives_the_runs_own_losses(data, base, tmp_path):
    """A checkpoint scored afterwards: the val losses that its run recorded, on the same documents, to 1e-6."""
    recorded = records(base, "val")[-1]
    flags = json.loads((base / "config.json").read_text())["flags"]
    done = run_script("experiments/score_val.py", "--checkpoint", base, "--data_dir", data,
                      "--out", tmp_path / "val.json", "--val_tokens", flags["val_tokens"])
    assert done.returncode == 0, done.stderr
    scored = json.loads((tmp_path / "val.json").read_text())
    for name in ("val_loss", "val_bits_per_byte", "val_loss_bos", "val_bits_per_byte_bos"):
        assert scored[name] == pytest.approx(recorded[name], abs=1e-6)
    assert scored["val_tokens"] == recorded["val_tokens"] and scored["step"] == recorded["step"]


def test_dead_gate_is_flagged_without_evaluations(data, tmp_path):
    """Warnings of a run whose gate cannot move: 1, with or without --eval_every; of a run without a gate: 0."""
    for name, flags, wanted in (("dead", ["--attn_gate", "headwise", "--learning_rate", "1e-9"], 1), ("none", [], 0)):
        train_gpt_main(data, tmp_path / name, "--max_train_steps", 4, "--eval_every", 0, *flags)
        warnings = json.loads((tmp_path / name / "summary.json").read_text())["warnings"]
        assert len(warnings) == wanted and all("the gate is not active" in w for w in warnings)
        assert [r["step"] for r in records(tmp_path / name, "mechanism")] == [0, 4]


def test_mirrors_show_the_jsonl(data, base, tmp_path):
    """TensorBoard's and (offline) wandb's losses are the JSONL's 24, and training does not notice them."""
    pytest.importorskip("wandb")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out, env = tmp_path / "shown", {**ENV, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 5, "--tensorboard",
             "--wandb_project", "test")
    done = subprocess.run(command(data, out, *flags), capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert losses(out).tolist() == losses(base).tolist()
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    shown = events.Scalars("train/train_loss_opt_step_mean")
    assert [e.step for e in shown] == list(range(1, 25))
    assert np.allclose([e.value for e in shown], losses(out), atol=1e-6)
    assert [e.step for e in events.Scalars("val/val_loss")] == [0, 10, 20, 24]
    offline = list((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(offline) == 1 and b"train_loss_opt_step_mean" in offline[0].read_bytes()


@pytest.mark.parametrize("checkpoint", [0, 3, None])
def test_tensorboard_after_a_resume(tmp_path, checkpoint):
    """Points of the curve after a kill at step 5 and a resume: one per step, the checkpoint's own among them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    last = -1 if checkpoint is None else checkpoint
    for steps, first_step, value in ((range(6), 0, 1.0), (range(last + 1, 8), last if last > 0 else 0, 2.0)):
        found = list((tmp_path / "tensorboard").glob("*"))
        if found and checkpoint is not None:
            (tmp_path / "ckpt" / f"step_{checkpoint:06d}").mkdir(parents=True)
        [(write, close)] = open_mirrors(tmp_path, {}, first_step, tensorboard=True)
        for step in steps:
            write({"type": "train", "step": step, "loss": value})
        close()
        for i, path in enumerate(found):  # files are read by the second in their names
            path.rename(path.with_name(f"events.out.tfevents.{i}.host"))
    points = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(p.step, p.value) for p in points] == [(s, 1.0 if s <= last else 2.0) for s in range(8)]


def test_wandb_without_login(tmp_path, monkeypatch):
    """Nobody logged in: one sentence with the three ways out."""
    wandb = pytest.importorskip("wandb")

    def init(**settings):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nSee the manual.")

    monkeypatch.setattr(wandb, "init", init)
    record = {"started": "", "flags": {}, "data": {}, "parameters": {}}
    with pytest.raises(ValueError, match="No API key .*: run wandb login, set WANDB_MODE=offline, or drop the flag.$"):
        open_mirrors(tmp_path, record, 0, wandb_project="p")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("compiled", ["on", "off"])
def test_cuda_learns_the_same_and_resumes(data, base, tmp_path, compiled):
    """bf16 on CUDA: losses of 24 steps to 0.05 nats of the CPU's fp32 run, token checksums equal; resumed at step 12
    with deterministic kernels, the losses after it are bit-identical."""
    flags = ("--max_train_steps", 24, "--max_epochs", 2, "--eval_every", 10, "--save_every", 12, "--keep_last", 0)
    cuda = ("--device", "cuda", "--deterministic", "--compile", compiled)
    train(data, tmp_path / "a", *flags, *cuda)
    assert checksums(tmp_path / "a") == checksums(base)
    assert np.abs(losses(tmp_path / "a") - losses(base)).max() < 0.05
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "b" / "ckpt" / "step_000024")
    train(data, tmp_path / "b", *flags, *cuda, "--resume", "auto")
    assert losses(tmp_path / "b").tolist() == losses(tmp_path / "a").tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_attention_is_deterministic(data, tmp_path):
    """--deterministic at 512 tokens per row, where attention's backward pass adds up several blocks of keys: two runs
    end with the same bytes of weights."""
    flags = ("--device", "cuda", "--deterministic", "--seq_len", 512, "--total_batch_tokens", 2048, "--n_embd", 128,
             "--max_train_steps", 10, "--max_epochs", 9, "--eval_every", 0)
    for name in ("a", "b"):
        train(data, tmp_path / name, *flags)
    assert losses(tmp_path / "a").tolist() == losses(tmp_path / "b").tolist()
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


# ----------------------------------------------------------------------------------------------------------
# what is scored and what is recorded


@pytest.mark.parametrize("multiple", [8, 32])
def test_padded_val_rows_score_the_same(data, base, multiple, monkeypatch):
    """Val loss of both views with rows padded to a multiple of tokens, as on CUDA: to 1e-6; and no row is wider than
    the longest."""
    args = train_gpt.parse_args(["--data_dir", str(data), *TINY])
    procs = processes.Processes(device=torch.device("cpu"))
    model, val = GPT.load(runs.list_checkpoints(base)[-1]).eval(), shards.open_val(data, 10**9)
    score = lambda: val_loss.evaluate(model, val, args, procs, contextlib.nullcontext, SimpleNamespace(asked=False))[0]
    plain, widths, val_batches = score(), set(), data_order.val_batches

    def watch(*arguments):
        for batch in val_batches(*arguments):
            widths.add(batch[0].size(1))
            yield batch

    monkeypatch.setattr(data_order, "val_batches", watch)
    monkeypatch.setattr(val_loss, "MULTIPLE", {"cpu": multiple})
    padded = score()
    assert all(width % multiple == 0 for width in widths) and max(widths) == 32
    assert padded == pytest.approx(plain, abs=1e-6)


def test_val_loss_against_a_plain_loop(data, base):
    """val_loss, its bits per byte and the bos view, recomputed window by window from full logits: to 1e-5."""
    model = GPT.load(runs.list_checkpoints(base)[-1])
    val = shards.open_val(data, 10**9)
    tokens, table = torch.from_numpy(val["tokens"].astype(np.int64)), get_tokenizer().token_byte_lengths()

    def score(start, stop):
        logits = model(tokens[None, start : stop - 1])[0].float()
        return torch.nn.functional.cross_entropy(logits, tokens[start + 1 : stop], reduction="sum").item()

    stream = sum(score(s, min(s + 33, len(tokens))) for s in range(0, len(tokens) - 1, 32))
    ends = [*val["doc_starts"][1:].tolist(), len(tokens)]
    spans = [(s, min(e, s + 33)) for s, e in zip(val["doc_starts"].tolist(), ends, strict=True)]
    bos = sum(score(s, e) for s, e in spans)
    last = records(base, "val")[-1]
    bos_bytes = sum(int(table[val["tokens"][s + 1 : e]].sum()) for s, e in spans)
    assert last["val_tokens"] == len(tokens) - 1 and last["val_bytes"] == table[val["tokens"]].sum()
    assert abs(last["val_loss"] - stream / (len(tokens) - 1)) < 1e-5
    assert abs(last["val_bits_per_byte"] - stream / np.log(2) / last["val_bytes"]) < 1e-5
    assert abs(last["val_loss_bos"] - bos / sum(e - s - 1 for s, e in spans)) < 1e-5
    assert abs(last["val_bits_per_byte_bos"] - bos / np.log(2) / bos_bytes) < 1e-5
    stored = np.load(base / "val_documents_000024.npz")
    assert abs(stored["stream_nats"].sum() - stream) < 1e-2 and stored["bos_bytes"].sum() == bos_bytes
    assert len(stored["doc_hash"]) == len(ends)


def test_run_folder_is_complete(data, base, tmp_path):
    """Files and fields of DESIGN section 7; a run without one of them cannot be compared later."""
    for name in (
        "config.json",
        "code/train_gpt.py",
        "log.txt",
        "scalars.jsonl",
        "summary.json",
        "step_metrics.json",
        "val_documents_000024.npz",
        "exposures/exposures_rank0000.jsonl",
    ):
        assert (base / name).exists(), name
    steps = records(base)
    assert [r["step"] for r in steps] == list(range(1, 25))
    wanted = (
        "step timestamp lr train_loss_opt_step_mean grad_norm_l2_preclip param_norm_l2 tokens_seen_global "
        "tokens_per_sec mfu peak_mem_bytes step_seconds flops_total epoch"
    )
    assert set(wanted.split()) <= set(steps[0])
    assert steps[-1]["tokens_seen_global"] == 24 * 256 and losses(base)[-3:].mean() < losses(base)[0] - 0.5
    config = json.loads((base / "config.json").read_text())
    assert (
        config["flags"]["seq_len"] == 32
        and config["data"]["fingerprint"]
        and config["code"]["code_sha256"]
        and config["parameters"]["total"]
    )
    assert [p.name for p in runs.list_checkpoints(base)] == ["step_000020", "step_000024"]  # --keep_last 2
    train(data, tmp_path / "a", "--max_train_steps", 2, "--results_csv", tmp_path / "results.csv")
    train(
        data,
        tmp_path / "b",
        "--max_train_steps",
        2,
        "--results_csv",
        tmp_path / "results.csv",
        "--attn_gate",
        "headwise",
        "--optimizer",
        "muon",
    )
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith(
        "run_id,date,git_commit,seed,attn_gate,gate_pos,gate_act,learning_rate,batch_size"
    )
    assert "headwise" in lines[2]


def test_gated_arms_read_the_same_data_and_start_the_same(data, base, tmp_path):
    """Batch checksums of a gated arm equal the ungated's at one seed: arms proved equal."""
    train(
        data,
        tmp_path / "g",
        "--max_train_steps",
        24,
        "--max_epochs",
        2,
        "--attn_gate",
        "elementwise",
        "--arch",
        "speedrun",
        "--optimizer",
        "muon_all",
        "--eval_every",
        10,
    )
    assert checksums(tmp_path / "g") == checksums(base)
    layers = records(tmp_path / "g", "mechanism")[-1]["layers"]
    assert len(layers) == 2 and 0 < layers[0]["gate_mean"] < 1


def neighbour(kind, folder):
    folder.mkdir()
    rng = np.random.default_rng(1)
    split = {"train": rng.integers(0, 50257, 3000).astype("<u2"), "val": rng.integers(0, 50257, 500).astype("<u2")}
    for name, ids in split.items():
        ids[::50] = BOS_ID
        if kind == "llmc":
            header = np.zeros(256, "<i4")
            header[:3] = 20240520, 1, len(ids)
            (folder / f"fineweb_{name}_000001.bin").write_bytes(header.tobytes() + ids.tobytes())
        elif kind == "nanogpt":
            (folder / f"{name}.bin").write_bytes(ids.tobytes())
        else:
            np.save(folder / f"edufineweb_{name}_000001.npy", ids)
    return folder, split["train"]


@pytest.mark.parametrize("kind", ["llmc", "nanogpt", "build-nanogpt"])
def test_neighbours_data_trains_without_conversion(kind, tmp_path):
    """First training step's tokens from each foreign format, against the raw stream: equal; and the run finishes."""
    folder, stream = neighbour(kind, tmp_path / kind)
    files, meta = shards.open_dataset(folder)
    assert meta is None and np.array_equal(files.slice(0, 10**9), stream)
    train_gpt_main(folder, tmp_path / "run", "--max_train_steps", 2, "--eval_every", 1)
    val = records(tmp_path / "run", "val")[-1]
    assert val["val_tokens"] == 499 and val["val_loss_bos"] is not None


def test_ids_of_a_neighbours_own_tokenizer(tmp_path):
    """Bits per byte were counted by GPT-2's tokens of the same numbers: 4.97 for 4.73 of a BPE of 512 ids. What writes
    or reads text ended such a run at its first sample."""
    for name, n in (("train", 3000), ("val", 500)):
        (np.arange(n) % 512).astype("<u2").tofile(tmp_path / f"{name}.bin")
    flags = ("--vocab_size", 512, "--max_train_steps", 2, "--eval_every", 1)
    train_gpt_main(tmp_path, tmp_path / "run", *flags)
    val = records(tmp_path / "run", "val")[-1]
    assert val["val_loss"] > 0 and val["val_tokens"] == 499
    assert val["val_bits_per_byte"] is None and val["val_bytes"] == 0
    out = tmp_path / "val.json"
    score_val = importlib.import_module("experiments.score_val")
    score_val.main(["--checkpoint", str(tmp_path / "run"), "--data_dir", str(tmp_path), "--out", str(out)])
    scores = json.loads(out.read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert scores["val_loss"] == pytest.approx(val["val_loss"]) and scores["val_bits_per_byte"] is None
    for more in (("--sample_every", 2), ("--hellaswag_every", 2, "--hellaswag_data", "synthetic:4")):
        with pytest.raises(ValueError, match="vocabulary has 512 ids, but texts are encoded with GPT-2's"):
            train_gpt_main(tmp_path, tmp_path / "other", *flags, "--skip_long", *more)
    assert not (tmp_path / "other" / "config.json").exists()
    for main in (sample.main, lambda words: model.main(["export", words[0], str(tmp_path / "hf")]),
                 lambda words: hellaswag.main(["--checkpoint", words[0], "--data", "synthetic:4"])):
        with pytest.raises(ValueError, match="train_tokenizer.py --dataset TEXTS --vocab_size 512 .*--tokenizer T "):
            main([str(tmp_path / "run")])
    assert not (tmp_path / "hf").exists()


# ----------------------------------------------------------------------------------------------------------
# refusals


def train_gpt_main(data, out, *flags):
    return train_gpt.main(["--data_dir", str(data), "--out_dir", str(out), *TINY, *map(str, flags)])


def break_data(data, tmp_path, how):
    folder = tmp_path / "broken_data"
    shutil.copytree(data, folder)
    how(folder)
    return folder


REFUSALS = {
    "missing data_dir": (None, ("--data_dir", "/nonexistent/x"), "make it with python prepare_fineweb.py"),
    "empty data_dir": (lambda d: [p.unlink() for p in d.iterdir()], (), "has no train files"),
    "no val": (lambda d: edit_meta(d, drop_val), (), "has no val shards"),
    "truncated shard": (lambda d: truncate(d / "train_000001.bin", -2), (), "truncated or edited"),
    "odd bytes": (lambda d: truncate(d / "train_000001.bin", -1), (), "odd number of bytes"),
    "edited shard": (lambda d: flip(d / "train_000001.bin"), (), "does not match its checksum"),
    "broken meta": (lambda d: (d / "meta.json").write_text("{"), (), "cannot be read"),
    "foreign meta": (lambda d: (d / "meta.json").write_text('{"a": 1}'), (), "was not written by this repo"),
    "unfinished": (lambda d: (d / "meta.json").rename(d / "progress.json"), (), "--resume"),
    "long seq_len": (None, ("--seq_len", 8192, "--total_batch_tokens", 16384), "lower --seq_len"),
    "batch": (None, ("--total_batch_tokens", 250), "pass --total_batch_tokens 256"),
    "batch by micro": (None, ("--micro_batch_size", 3), "--micro_batch_size 2 or 4"),
    "epochs": (None, ("--max_train_steps", 999), "pass --max_epochs"),
    "warmdown": (None, "--schedule trapezoid --warmup_iters 3 --warmdown_iters 4".split(), "warmup 3 + warmdown 4"),
    "heads": (None, ("--n_head", 3), "use"),
    "condition": (None, ("--condition", "mul_tokens"), "was prepared as baseline"),
    "out_dir": (None, ("--out_dir", "/proc/nothing/here"), "another --out_dir"),
    "small vocab": (None, ("--vocab_size", 1000), "--vocab_size"),
    "resume nothing": (None, ("--resume", "5"), "not a run"),
}


def edit_meta(folder, change):
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def drop_val(meta):
    meta["data_files"] = [record for record in meta["data_files"] if record["split"] == "train"]


def truncate(path, by):
    os.truncate(path, path.stat().st_size + by)


def flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused_in_a_sentence_and_writes_nothing(name, data, tmp_path):
    """Number of files a refused run leaves behind: 0; and the sentence names the way out."""
    damage, flags, says = REFUSALS[name]
    folder = break_data(data, tmp_path, damage) if damage else data
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        train_gpt_main(folder, tmp_path / "run", "--max_train_steps", 6, *flags)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_items_too_long_for_the_model_are_refused_before_step_1(data, tmp_path):
    """Steps trained for nothing: 0. The sentence counts the items and names the block size that would do."""
    item = {"ind": 1, "activity_label": "x", "ctx_a": "Ann sings.", "ctx_b": "she", "ctx": "Ann sings. she", "label": 0,
            "endings": ["sings on.", "stops.", "la " * 200, "leaves."]}
    short = {**item, "ind": 2, "endings": ["sings on.", "stops.", "la la.", "leaves."]}
    write_jsonl(tmp_path / "long.jsonl", [item, short])
    flags = ("--max_train_steps", 2, "--hellaswag_every", 2, "--hellaswag_data", tmp_path / "long.jsonl")
    with pytest.raises(ValueError, match="1 of 2 items have an ending longer than .* of at least 2.*--skip_long"):
        train_gpt_main(data, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    train_gpt_main(data, tmp_path / "run", *flags, "--skip_long", "--results_csv", tmp_path / "table.csv")
    about = json.loads((tmp_path / "run" / "config.json").read_text())["benchmarks"]["hellaswag"]
    [record] = runs.read_jsonl(tmp_path / "run" / "hellaswag_metrics.jsonl")
    for place in (about, record):
        assert (place["title"], place["skipped"]) == ("HellaSwag (1 of 10,042 items)", 1)
        assert place["skipped_ids"] == ["1"]
    for text in ("log.txt", "scalars.jsonl", "../table.csv"):
        assert "HellaSwag (1 of 10,042 items)" in (tmp_path / "run" / text).read_text()


def test_wrong_flags_and_occupied_folders(data, base, tmp_path, capsys):
    """Exit status of an unknown flag is 2, of bad data 1; an existing run is not touched."""
    for flags in (
        ["--no_such_flag"],
        ["--data_dir", "x", "--max_train_steps", "0"],
        ["--data_dir", "x", "--resume", "soon", "--out_dir", "y"],
    ):
        with pytest.raises(SystemExit) as caught:
            train_gpt.main(flags)
        assert caught.value.code == 2
    before = (base / "scalars.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already exists: pass --resume auto"):
        train_gpt_main(data, base, "--max_train_steps", 24, "--max_epochs", 2)
    (tmp_path / "r").mkdir()
    shutil.copy(base / "config.json", tmp_path / "r")
    with pytest.raises(ValueError, match="would change the run .*seed"):
        train_gpt.main(["--out_dir", str(tmp_path / "r"), "--resume", "auto", "--seed", "5"])
    assert (base / "scalars.jsonl").read_bytes() == before
    done = subprocess.run(command(tmp_path / "none", tmp_path / "q"), capture_output=True, text=True, env=ENV)
    assert done.returncode == 1 and done.stderr.strip().count("\n") == 0 and "Traceback" not in done.stderr


def test_disk_full_while_saving(data, tmp_path, monkeypatch):
    """A save that fails half way: one sentence, no half-written checkpoint, the older one is whole."""
    out = tmp_path / "full"
    real = torch.save

    def fail(value, path, *a, **k):
        if "step_000004" in str(path):
            raise OSError(28, "No space left on device")
        return real(value, path, *a, **k)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ValueError, match="No space left.*--resume auto"):
        train_gpt_main(data, out, "--max_train_steps", 6, "--save_every", 2, "--eval_every", 0)
    assert [p.name for p in (out / "ckpt").iterdir()] == ["step_000002"]
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ValueError, match="GB free"):
        train_gpt_main(data, out, "--max_train_steps", 6, "--save_every", 2, "--eval_every", 0, "--resume", "auto")


def test_a_run_finishes_whatever_happens_to_the_table(data, tmp_path, capsys):
    """A table that is bad at step 0 costs no step; one that goes bad later costs no result."""
    table, out = tmp_path / "results.csv", tmp_path / "r"
    table.write_text("run_id;seed\nold;0\n")
    flags = ("--max_train_steps", 2, "--eval_every", 0, "--results_csv", table)
    with pytest.raises(ValueError, match="results.csv has no column run_id between commas"):
        train_gpt_main(data, out, *flags)
    assert not out.exists()
    table.unlink()
    train_gpt_main(data, out, *flags, "--max_train_steps", 1)
    (out / "summary.json").unlink()
    train_gpt_main(data, out, *flags, "--max_train_steps", 1, "--resume", "auto")
    assert len(table.read_text().splitlines()) == 2  # killed between the row and the summary: one row
    with mock.patch("lab.results.append_result", side_effect=OSError(28, "No space left on device")):
        train_gpt_main(data, tmp_path / "s", *flags)
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert "No space left" in summary["warnings"][-1] and summary["results_row"]["run_id"] == "s"
    assert "WARNING: the run's row" in capsys.readouterr().out


def test_non_finite_loss_stops_with_step_and_data(data, tmp_path):
    """A learning rate of 1e30 makes the loss non-finite: the step, the data entries and the checkpoint are named, and
    nothing is advised that only ends there again. The log and the list say so too."""
    flags = ("--max_train_steps", 8, "--learning_rate", 1e30, "--save_every", 1, "--keep_last", 0, "--eval_every", 0,
             "--grad_clip", 0, "--warmup_iters", 0)
    with pytest.raises(
        ValueError, match=r"step \d+: loss .* not finite, on entries \d+\.\.\d+ .*last good checkpoint is .*step_000001"
        ".*--resume auto would end here again, so start another run"
    ):
        train_gpt_main(data, tmp_path / "nan", *flags)
    last = (tmp_path / "nan" / "log.txt").read_text().splitlines()[-1]
    assert re.match(r"diverged at step \d+: loss ", last) and run_state.look(tmp_path / "nan")["state"] == "diverged"
    with pytest.raises(ValueError, match="nan already exists and has diverged; --resume auto would end there again: "):
        train_gpt_main(data, tmp_path / "nan", *flags)


# ----------------------------------------------------------------------------------------------------------------------
# what a user should know before, and sentences of --resume


@pytest.mark.parametrize("sizes, asked, other, words", [
    ([2580, 45036, 650], 30_000, None, "of 2,580 tokens of 1 held-out document, as the next one does not fit into "
                                       "--val_tokens 30,000: pass 47,616 to have it."),
    ([300] * 50, 10_000, None, None),
    ([300] * 50, 10**9, None, None),
    ([300] * 9, 10**9, None, "of 9 held-out documents alone"),
    ([300] * 50, 10_000, "mul_tokens", "holds baseline tokens, the training data mul_tokens tokens")])
def test_few_held_out_documents_are_a_warning(sizes, asked, other, words, tmp_path):
    """The documents that a val loss rests on, where they are fewer than was asked for or of other tokens."""
    write_dataset(tmp_path / "d", [[i % 999 for i in range(1, size)] for size in sizes], val_every=1)
    found = val_loss.warnings(shards.open_val(tmp_path / "d", asked), asked, other or "baseline")
    assert len(found) == bool(words) and (not words or words in found[0])


def test_resume_says_what_is_wrong(data, base, tmp_path, capsys):
    """A folder that is no run, a step of a finished run, and another corpus under the same name."""
    with pytest.raises(SystemExit):
        train_gpt.main(["--out_dir", str(tmp_path / "no"), "--resume", "auto"])
    assert "has no config.json, so that --resume takes no flags from it.)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--resume 5 cannot go back in it: .* start a new run with --init_from"):
        train_gpt.main(["--out_dir", str(base), "--resume", "5"])
    assert train_gpt.main(["--out_dir", str(base), "--resume", "24"]) == 0

    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, folder)
    flags = [*TINY, "--max_train_steps", "2", "--eval_every", "0"]
    train_gpt.main(["--data_dir", str(folder), "--out_dir", str(out), *flags])
    (out / "summary.json").unlink()
    shutil.rmtree(folder)
    write_dataset(folder, tiny_documents(80, 3, 120))
    with pytest.raises(ValueError, match="fingerprint of the data.*: name the files that it began with"):
        train_gpt.main(["--out_dir", str(out), "--resume", "auto"])


def test_config_may_be_a_run_s_folder(base, capsys):
    """--config with the folder of a run stands for its config.json."""
    by_file, by_folder = (train_gpt.parse_args(["--config", str(path)]) for path in (base / "config.json", base))
    del by_file.config, by_folder.config
    assert vars(by_file) == vars(by_folder)
