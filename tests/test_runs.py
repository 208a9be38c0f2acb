"""runs.py, results.py, processes.py, disk.py: what a run leaves on disk, and how scripts start and end."""

import argparse
import concurrent.futures
import contextlib
import csv
import errno
import json
import os
import platform
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import make_run, write_jsonl

import model
from lab import disk, processes, results, resume, run_state, runs, snapshots, training

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


FOREIGN_TABLES = {
    "quoted decimal commas": (b'run_id,seed,final_val_loss\nold,0,"3,5"\n', "has numbers with decimal commas"),
    "columns without a name": (b",,run_id\n0,1,old\n", "has several columns without a name"),
    "two headers": (b"run_id,seed\nold,0\nrun_id,seed\n", "repeats its header in line 3"),
    "European Excel": ("\ufeffrun_id;seed;final_val_loss\r\nold;0;3,5\r\n".encode(), "no column run_id between commas"),
    "decimal comma": (b"run_id,seed,final_val_loss\nold,0,3,5\n", "more cells in line 2 than columns"),
    "tabs": (b"run_id\tseed\nold\t0\n", "no column run_id between commas"),
    "Latin-1": ("run_id,notes\nold,caf\u00e9\n".encode("latin-1"), "is not UTF-8"),
    "UTF-16": ("run_id,notes\nold,x\n".encode("utf-16"), "is not UTF-8"),
    "one column twice": (b"run_id,seed,seed \nold,0,1\n", "two columns seed"),
    "an open quote": (b'run_id,notes\nold,"x\n', "is not a table"),
    "prose": (b"# Results\n", "no column run_id"),
}


@pytest.mark.parametrize("case", FOREIGN_TABLES)
def test_a_table_whose_cells_could_be_lost_is_refused(case, tmp_path):
    """3,5 must not become 3: a table that somebody's program changed is refused before a step, and no byte changes."""
    content, fault = FOREIGN_TABLES[case]
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"--results_csv .*{fault}"):
        results.check_table(path)
    with pytest.raises(ValueError, match=f"--results_csv .*{fault}"):
        results.append_result(path, {"run_id": "new"})
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_written_is_refused(tmp_path):
    """A run of days does not end at a path that was wrong on its first day; looking writes nothing."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "results.csv", Path("/dev/null"), Path("/")):
        with pytest.raises(ValueError, match="--results_csv .* cannot be written"):
            results.check_table(path)
    results.check_table(tmp_path / "new" / "results.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_rows_are_appended(tmp_path):
    """No byte of a table with all columns changes; a row that a killed process has added is not added again."""
    path = tmp_path / "results.csv"
    row = {"run_id": "a_s0", "seed": 0, "date": "2026-01-01", "final_train_loss": 3.25, "notes": 'x, "y"\nz'}
    results.append_result(path, row)
    before = path.read_bytes().rstrip()  # as an editor leaves it
    path.write_bytes(before)
    results.append_result(path, row)
    assert path.read_bytes() == before
    results.append_result(path, row | {"seed": 1, "notes": None})
    results.append_result(path, row | {"final_train_loss": 3.5})
    assert path.read_bytes().startswith(before + b"\r\n")
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(one["seed"], one["final_train_loss"]) for one in rows] == [("0", "3.25"), ("1", "3.25"), ("0", "3.5")]
    assert [one["notes"] for one in rows] == [row["notes"], "", row["notes"]]
    path.write_text("run_id,mood,,\nold,fine,,\n")  # a spreadsheet's padding
    results.append_result(path, row)
    assert [one["mood"] for one in csv.DictReader(path.open(newline=""))] == ["fine", ""]


def test_a_linked_table_stays_one(tmp_path):
    """results.csv is a link to a table that others share: new columns go there, with the rights it had."""
    shared, path = tmp_path / "shared" / "all.csv", tmp_path / "results.csv"
    shared.parent.mkdir()
    shared.write_text("run_id,mood\nold,fine\n")
    shared.chmod(0o664)
    path.symlink_to("shared/all.csv")
    results.check_table(path)
    for seed in (0, 1):
        results.append_result(path, {"run_id": "new", "seed": seed})
    assert path.is_symlink() and shared.stat().st_mode & 0o777 == 0o664
    with shared.open(newline="") as f:
        assert [row["run_id"] for row in csv.DictReader(f)] == ["old", "new", "new"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["all.csv", "results.csv", "shared"]


def at_once(work, n):
    """work(0), ..., work(n - 1), each in a thread: file locks part threads as they part processes."""
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        list(pool.map(work, range(n)))


def test_runs_that_end_together(tmp_path):
    """Eight runs that end at once, half of them with a column of their own: eight rows, every cell."""
    path = tmp_path / "results.csv"

    def end(number):
        row = {"run_id": f"r_s{number}", "seed": number, "final_val_loss": number / 8}
        if number % 2:
            row[f"flag_{number}"] = number
        results.append_result(path, row)

    at_once(end, 8)
    with path.open(newline="") as f:
        rows = {int(row["seed"]): row for row in csv.DictReader(f)}
    assert sorted(rows) == list(range(8))
    for number, row in rows.items():
        assert float(row["final_val_loss"]) == number / 8 and row.get(f"flag_{number}", "") in (str(number), "")
        assert number % 2 == 0 or row[f"flag_{number}"] == str(number)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_two_scorers_on_one_run(tmp_path):
    """Two benchmarks scored beside each other, step by step: no score and no line of an item is lost."""

    def score(number):
        for step in range(20):
            place = 100 * number + step
            runs.replace_step(tmp_path / "items.jsonl", place, [{"step": place, "correct": True}])
            runs.update_step_metrics(tmp_path, step, **{f"benchmark_{number}": step})

    at_once(score, 3)
    table = runs.read_step_metrics(tmp_path)
    assert table == {str(step): {f"benchmark_{n}": step for n in range(3)} for step in range(20)}
    steps = sorted(record["step"] for record in runs.read_jsonl(tmp_path / "items.jsonl"))
    assert steps == [100 * number + step for number in range(3) for step in range(20)]


def test_no_write_follows_a_planted_link(tmp_path):
    """A link under the name of a lock or a temporary file changes no file that it points to."""
    other = tmp_path / "other"
    other.write_text("theirs")
    for name in ("step_metrics.json.tmp", "step_metrics.json.lock"):
        (tmp_path / name).symlink_to(other)
        with contextlib.suppress(ValueError):
            runs.update_step_metrics(tmp_path, 1, x=1)
        (tmp_path / name).unlink(missing_ok=True)
        assert other.read_text() == "theirs"


def test_a_strangers_folder_is_left_alone(tmp_path, monkeypatch):
    """Only a new folder, an empty one, or what a start left that was killed early becomes a run's; a full disk
    leaves nothing half made."""
    record = {"code": {"git_diff": ""}}
    theirs = tmp_path / "theirs"
    (theirs / "code").mkdir(parents=True)
    (theirs / "code" / "train_gpt.py").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        runs.create_run(theirs, record)
    assert [path.read_text() for path in theirs.rglob("*") if path.is_file()] == ["mine"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "code").symlink_to(theirs / "code")
    with pytest.raises(ValueError, match="already exists"):
        runs.create_run(linked, record)
    monkeypatch.setattr(disk, "write_json", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(ValueError, match="ours cannot be written .full.: free space"):
        runs.create_run(tmp_path / "ours", record)
    assert not list((tmp_path / "ours").rglob("*"))  # the same command works when there is space
    monkeypatch.undo()
    runs.create_run(tmp_path / "ours", record)
    (tmp_path / "ours" / "config.json").unlink()  # killed before it was there, while a file was copied
    cut = tmp_path / "ours" / "code" / "lab" / "runs.py"
    cut.write_bytes(cut.read_bytes()[:1000])
    runs.create_run(tmp_path / "ours", record)
    assert (tmp_path / "ours" / "code" / "lab" / "runs.py").read_bytes() == Path(runs.__file__).read_bytes()


def test_resume_is_advised_for_runs_alone(tmp_path):
    """A start is refused before the data is read, and what it is told to do instead can be done."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    run_state.refuse_existing(tmp_path / "new")
    run_state.refuse_existing(theirs)
    (theirs / "notes.txt").write_text("mine")
    sentence = f"{theirs} already exists and is no run (no config.json), so that nothing can be resumed: "
    for resume_flag in ("", "auto", "300"):
        with pytest.raises(ValueError) as caught:
            training.resumed_config(argparse.Namespace(out_dir=str(theirs), resume=resume_flag))
        assert str(caught.value) == sentence + "choose another --out_dir."
    (theirs / "ckpt" / "step_000004").mkdir(parents=True)
    with pytest.raises(ValueError) as caught:
        run_state.refuse_existing(theirs)
    assert str(caught.value) == sentence + "restore its config.json, or choose another --out_dir."
    (theirs / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="exists: pass --resume auto to continue it, or choose another --out_dir.$"):
        run_state.refuse_existing(theirs)


def test_a_name_that_is_no_checkpoint(tmp_path):
    """What nanoGPT and Hugging Face call a model, and files: each with the command that makes a checkpoint of it."""
    saved, other = tmp_path / "own" / "model.safetensors", tmp_path / "ckpt.pt"
    saved.parent.mkdir()
    for path in (saved, other, saved.with_name("model.json")):
        path.touch()
    for flag, path, advice in (
        ("--init_from", "gpt2", "fetch it with python model.py import gpt2 OUT, then pass --init_from OUT."),
        ("--init", "openai-community/gpt2-xl",
         "fetch it with python model.py import openai-community/gpt2-xl OUT, then pass --init OUT."),
        ("RUN", "gpt2-medium", "fetch it with python model.py import gpt2-medium OUT, then name OUT."),
        ("--init_from", "scratch", "leave it out, for fresh weights."),
        ("--init_from", "resume", "pass --out_dir RUN --resume auto in its place."),
        ("--checkpoint", saved, f"name the folder that holds it, {saved.parent}."),
        ("--checkpoint", other, f"if it is another project's checkpoint, python model.py import {other} OUT, then pass "
                                "--checkpoint OUT."),
        ("--init", "nowhere", "name a run's, or one in its ckpt/; python model.py import NAME OUT takes other "
                              "projects' files.")):
        with pytest.raises(FileNotFoundError) as caught:
            runs.resolve_checkpoint(path, flag=flag)
        assert str(caught.value) == f"{flag} {path} is not a folder: {advice}"


def test_paths_in_the_repo_are_relative_to_it(tmp_path):
    """A copied repo writes into its own results.csv, not into the original's."""
    table, outside = runs.REPO / "experiments" / "results.csv", str(tmp_path)
    flags = {"results_csv": str(table), "data_dir": outside, "val_data_dir": "data", "init_from": str(table), "seed": 1}
    record = resume.portable(flags)
    assert record["flags"] == flags | {"results_csv": "experiments/results.csv"}
    assert record["repo_paths"] == ["results_csv"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    parser = argparse.ArgumentParser()
    for flag in ("results_csv", "data_dir", "val_data_dir", "init_from", "config", "resume", "out_dir"):
        parser.add_argument(f"--{flag}", default="")
    parser.add_argument("--seed", type=int, default=0)
    argv = ["--config", str(tmp_path / "config.json")]
    resume.take_defaults(parser, argv)
    assert {name: value for name, value in vars(parser.parse_args(argv)).items() if name in flags} == flags


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
    for step in (20, 30, 40):
        runs.checkpoint_path(folder, step).mkdir(parents=True)
    resume.trim_records(folder, 20)
    assert [runs.step_of(path) for path in runs.list_checkpoints(folder)] == [20]  # nor a later one for --resume auto
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


def test_a_path_that_is_not_utf8(tmp_path):
    """A run in it would train to its end, and no checkpoint of it could be read."""
    disk.refuse_undecoded(tmp_path / "café", "--out_dir")
    with pytest.raises(ValueError, match=r"^--out_dir '/.*caf\\udce9' is not UTF-8: choose another\.$"):
        disk.refuse_undecoded(tmp_path / "caf\udce9", "--out_dir")  # as Python reads Latin-1 from a command line


def test_code_that_git_tells_nothing_about(tmp_path, monkeypatch):
    """Without a commit (a tarball, a clone that git does not trust) nobody knows whether the code was changed."""
    (tmp_path / ".git").write_text("not git's")  # also where a folder above is a repository
    monkeypatch.setattr(snapshots, "REPO", tmp_path)
    state = snapshots.code_state()
    assert state["git_commit"] is None and state["git_dirty"] is None and state["git_diff"] == ""


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
    with processes.autocast_for(cpu, "float32")():
        assert not torch.is_autocast_enabled("cpu")
    context = processes.autocast_for(cpu, "bfloat16")
    for _ in range(2):  # one factory serves every batch
        with context():
            assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


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
    waits = []
    monkeypatch.setattr(processes.time, "sleep", waits.append)
    with pytest.raises(SystemExit) as exit_:
        processes.exit_in_a_sentence(main, "t.py", interrupted="stopped")
    speaks_second = rank == 1 and isinstance(error, (ValueError, OSError))
    assert waits == [processes.SECONDS_FOR_MAIN] * speaks_second
    printed = capsys.readouterr().err.strip()
    if isinstance(exit_.value.code, str):  # the interpreter prints it and exits with 1
        assert (1, exit_.value.code) == (code, words)
    else:
        assert (exit_.value.code, printed) == (code, words)


def test_a_folder_that_was_only_looked_at(tmp_path):
    """A file manager's own file makes no folder a used one."""
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    assert disk.holds_only(tmp_path, {})
    (tmp_path / "notes.txt").write_text("mine")
    assert not disk.holds_only(tmp_path, {})


def test_the_name_of_a_mac_s_processor(monkeypatch, tmp_path):
    """Two of Apple's are not one machine: processor() says "arm" of each."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(processes, "Path", lambda path: tmp_path / "none")
    sysctl = tmp_path / "sysctl"
    monkeypatch.setenv("PATH", str(tmp_path))
    device = torch.device("cpu")
    unknown = processes.machine_state(device)["hardware"]["cpu"]
    assert unknown == (platform.processor() or platform.machine())
    sysctl.write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo "Apple M3 Pro"\n')
    sysctl.chmod(0o755)
    assert processes.machine_state(device)["hardware"]["cpu"] == "Apple M3 Pro"


def test_import_without_transformers(monkeypatch, tmp_path):
    """The optional package that a command needs is named, with how to get it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match="model.py: the package transformers is missing: pip install transformers"):
        processes.exit_in_a_sentence(lambda: model.main(["import", str(tmp_path), str(tmp_path / "out")]), "model.py")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyError("bug"), MemoryError("big")])
def test_a_fault_of_ours_shows_its_traceback(error):
    """A bug in what rank 0 does for all is no sentence there: only its traceback says where it is."""
    Rank.sent = []

    def work():
        raise error

    for rank, kind in ((0, type(error)), (1, processes.SharedError)):
        with pytest.raises(kind):
            Rank(rank, rank, 2).on_main(work)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size, status", [(10, 0), (100_000, 0), (10, "failed: repair it.")])
def test_a_full_disk_behind_stdout(monkeypatch, size, status):
    """`> file` on a full disk: the work goes on to its end, and exit status 0 never hides that print was lost."""
    monkeypatch.setattr("sys.stdout", open("/dev/full", "w"))
    done = []

    def main():
        print("x" * size)
        done.append(1)
        return status

    with pytest.raises(SystemExit) as exit_:
        processes.exit_in_a_sentence(main, "t.py")
    wanted = status or r"t.py: .* stdout could not be written \(No space left on device\): free space .*"
    assert done and re.fullmatch(wanted, exit_.value.code)
    sys.stdout.flush()  # as the interpreter does at its end
    sys.stdout.close()


def test_output_may_go_away(tmp_path):
    """A pipe that nobody reads any more ends nothing, not even the flush at the interpreter's end."""
    reader, writer = os.pipe()
    os.close(reader)
    output = processes.Output(open(writer, "w"))
    for _ in range(2):
        print("lost" * 10_000, file=output, flush=True)
    assert not output.closed and not output.isatty() and output.fault is None
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
