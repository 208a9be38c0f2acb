"""runs.py, results.py, processes.py, disk.py: what a run leaves on disk, and how scripts start and end."""

import contextlib
import csv
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import make_run, write_jsonl

from lab import disk, processes, results, runs

COLUMNS_003 = (
    "run_id date git_commit seed attn_gate gate_pos gate_act learning_rate batch_size device_batch_size "
    "sequence_length num_iterations warmdown_iters final_val_loss best_val_loss train_time_ms ms_per_step gpu_name "
    "n_gpus notes"
).split()

# ----------------------------------------------------------------------------------------------------------------------
# flags and results.csv


def test_a_flag_counts_unless_it_is_named():
    """A flag that can change a result, even a new one, is a condition; one in NO_EFFECT is not."""
    flags = {"weight_decay": 0.1, "a_new_flag": 1, "seed": 3, "out_dir": "x", "micro_batch_size": 4, "new_data": "x"}
    assert runs.conditions(flags) == {"weight_decay": 0.1, "a_new_flag": 1, "seed": 3}
    columns = results.condition_columns({**flags, "max_train_steps": 9}, ["gate_pos", "gate_act"])
    assert columns == {"weight_decay": 0.1, "a_new_flag": 1, "seed": 3, "unused_flags": "gate_pos gate_act"}


def test_results_keep_every_cell(tmp_path):
    """A new row costs no cell of an older or hand-edited results.csv, and 003's columns come first."""
    path = tmp_path / "results.csv"
    path.write_text("\ufeffmood,run_id,seed\nfine,old_s0,0\n", encoding="utf-8")
    row = {"run_id": "new_s1", "final_val_loss": 3.5, **results.condition_columns({"beta1": 0.9, "seed": 1})}
    results.append_result(path, row)
    results.append_result(path, {**row, "run_id": "newer_s1", "beta3": 0.5})
    with path.open(newline="") as f:
        reader = csv.DictReader(f)
        old, new, newer = reader
        columns = reader.fieldnames
    assert columns[: len(COLUMNS_003)] == COLUMNS_003 and columns[len(COLUMNS_003)] == "arch"
    assert columns.index("eval_official_mean") < columns.index("beta1") < columns.index("mood")
    assert (old["mood"], old["run_id"], old["seed"], old["beta1"]) == ("fine", "old_s0", "0", "")
    assert (new["run_id"], new["beta1"], new["final_val_loss"], new["mood"]) == ("new_s1", "0.9", "3.5", "")
    assert newer["beta3"] == "0.5" and sorted(p.name for p in tmp_path.iterdir()) == ["results.csv"]
    assert results.read_results(path)[1]["run_id"] == "new_s1"


# ----------------------------------------------------------------------------------------------------------------------
# records


def test_records_are_taken_back_to_a_step(tmp_path):
    """A resumed run has every step once. A nested "step" is not the record's."""
    make_run(tmp_path / "r", hellaswag=0.5)
    folder, before = tmp_path / "r", runs.read_run(tmp_path / "r")
    path = folder / "scalars.jsonl"
    kept = [line for line in path.open() if json.loads(line)["step"] <= 20]
    with path.open("a") as f:
        f.write('{"type": "train", "step": 41, "torn')
    write_jsonl(folder / "more.jsonl", [{"step": 3, "inner": {"step": 99}}, {"step": 99, "inner": {"step": 3}}])
    runs.trim_records(folder, 20)
    assert path.read_text() == "".join(kept)
    assert runs.read_jsonl(folder / "more.jsonl") == [{"step": 3, "inner": {"step": 99}}]
    after = runs.read_run(folder)
    assert list(after["val"].items()) == list(before["val"].items())[:3] and after["benchmarks"]["hellaswag"] == {}
    assert list(json.loads((folder / "step_metrics.json").read_text())) == ["0", "10", "20"]
    assert sorted(runs.step_of(path) for path in folder.glob("val_documents_*.npz")) == [0, 10, 20]


def test_broken_lines(tmp_path):
    """A broken line never drops out of a mean in silence: a trainer stops, a comparison notes it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n[1]\n{"step": 2}\n{"step": 3, "torn')
    with pytest.raises(ValueError, match="broken line"):
        runs.read_jsonl(path)
    with pytest.raises(ValueError, match="broken line"):
        runs.rewrite_jsonl(path, lambda step: step > 1)
    notes = []
    assert runs.read_jsonl(path, notes) == [{"step": 1}, {"step": 2}] and len(notes) == 2
    assert runs.read_jsonl(path, [], step=2) == [{"step": 2}]
    path.write_text('{"step": 1}\n{"step": 3, "torn')
    assert runs.read_jsonl(path) == [{"step": 1}] and runs.read_jsonl(tmp_path / "none") == []


def test_nan_is_written_as_null(tmp_path):
    """NaN is not JSON: another reader would refuse the whole file."""
    seen = []
    writer = runs.JsonlWriter(tmp_path / "a.jsonl", [(seen.append, lambda: seen.append("closed"))])
    writer.write(step=1, loss=float("nan"), mfu=float("inf"), x=0.5)
    writer.close()
    record = {"step": 1, "loss": None, "mfu": None, "x": 0.5}
    assert runs.read_jsonl(tmp_path / "a.jsonl") == [record] and seen == [record, "closed"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """A failed write costs no byte of the old file."""
    path = tmp_path / "a.json"
    disk.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), disk.replacing(path) as f:
        f.write(b"half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_named_once(tmp_path):
    """A checkpoint's name gives its step, also beyond six digits, and checkpoints are listed in the order of steps."""
    for step in (2, 10, 1_234_567):
        path = runs.checkpoint_path(tmp_path, step)
        path.mkdir(parents=True)
        assert runs.step_of(path) == step
    assert [runs.step_of(path) for path in runs.list_checkpoints(tmp_path)] == [2, 10, 1_234_567]


# ----------------------------------------------------------------------------------------------------------------------
# processes


class Rank(processes.Processes):
    """A rank whose collectives go through memory: rank 0's broadcast is what the other one gets."""

    sent: list

    def broadcast(self, value):
        if self.is_main:
            self.sent.append(value)
        return self.sent[-1]


@pytest.mark.parametrize("fails", [False, True])
def test_rank_0_goes_first(fails):
    """No rank waits for ever for one that failed, or works before rank 0 is done."""
    Rank.sent, done = [], []

    def work(rank):
        done.append(rank)
        if fails:
            raise OSError("no file")
        return rank

    for rank in (0, 1):
        expected = pytest.raises(processes.SharedError, match="no file") if fails else contextlib.nullcontext()
        with expected:
            assert Rank(rank, rank, 2).main_first(lambda rank=rank: work(rank)) == rank
    assert done == ([0] if fails else [0, 1])


def test_autocast():
    """The dtype that a run records is the one it computes in."""
    cpu = torch.device("cpu")
    name, context = processes.autocast_for(cpu)
    with context():
        assert name == "float32" and not torch.is_autocast_enabled("cpu")
    name, context = processes.autocast_for(cpu, "bfloat16")
    for _ in range(2):  # one factory serves every batch
        with context():
            assert name == "bfloat16" and torch.get_autocast_dtype("cpu") == torch.bfloat16
            assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("error, rank, code, words", [
    (None, 0, 0, ""), (ValueError("bad --x: pass 1"), 0, 1, "t.py: bad --x: pass 1"),
    (FileNotFoundError("no file"), 1, 1, "t.py: no file"), (processes.SharedError("all"), 0, 1, "t.py: all"),
    (processes.SharedError("all"), 1, 1, ""), (KeyboardInterrupt(), 0, 130, "t.py: stopped"),
    (KeyboardInterrupt(), 1, 130, ""),
    (ModuleNotFoundError("x", name="transformers.models"), 0, 1,
     "t.py: the package transformers is missing: pip install transformers, then run the command again."),
])
def test_exit_in_a_sentence(monkeypatch, capsys, error, rank, code, words):
    """A user's mistake prints one line, on any number of ranks; the exit status tells it from ctrl-C."""
    monkeypatch.setenv("RANK", str(rank))

    def main():
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SystemExit) as exit_:
        processes.exit_in_a_sentence(main, "t.py", interrupted="stopped")
    printed = capsys.readouterr().err.strip()
    if isinstance(exit_.value.code, str):  # the interpreter prints it and exits with 1
        assert (1, exit_.value.code) == (code, words)
    else:
        assert (exit_.value.code, printed) == (code, words)


def test_output_may_go_away(tmp_path):
    """A pipe that nobody reads any more ends nothing, not even the flush at the interpreter's end."""
    reader, writer = os.pipe()
    os.close(reader)
    output = processes.Output(open(writer, "w"))
    for _ in range(2):
        print("lost" * 10_000, file=output, flush=True)
    assert not output.closed and not output.isatty()
    output.stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_file(tmp_path):
    """The sentence names the file that lacks a record and the checkpoint that is still good."""
    runs.checkpoint_path(tmp_path, 7).mkdir(parents=True)
    (tmp_path / "exposures").mkdir()
    for name in ("scalars.jsonl", "exposures/exposures_rank0000.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
        writer = runs.JsonlWriter(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} cannot be written \(No space .*ckpt/step_000007: free space"):
            writer.write(step=1)
        writer.close()
    with pytest.raises(OSError, match="No space left.*x.json"), disk.replacing(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")


def test_hangups_are_ignored_under_nohup():
    """nohup's promise holds: a closed terminal asks a run for nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = processes.StopRequest()
    signal.raise_signal(signal.SIGHUP)
    stop.restore()
    assert not stop.asked and signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_stop_request():
    """The first signal only asks, a second ctrl-C interrupts, and restore() puts the earlier handlers back."""
    before = signal.getsignal(signal.SIGINT)
    stop = processes.StopRequest()
    signal.raise_signal(signal.SIGTERM)
    assert stop.asked
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stop.restore()
    assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(target=processes.StopRequest)  # another thread may not handle signals
    thread.start()
    thread.join()
