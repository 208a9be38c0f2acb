"""golden.py on made-up run folders, and on a checkout whose scripts are stubs: what is hashed and what is not."""

import csv
import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent

# writes one number that counts and one that is measured, wherever it is told to
STUB = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[-1])
out.mkdir()
print("said aloud")
record = {"tokens": 7, "elapsed_seconds": time.time(), "dataset": sys.argv[2]}
(out / "meta.json").write_text(json.dumps(record))
(out / "train_000000.bin").write_bytes(b"abc")
"""


@pytest.fixture(scope="module")
def golden():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        spec = importlib.util.spec_from_file_location("golden", ROOT / "experiments" / "golden.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def make_run(folder, *, loss=7.25, seconds=0.5, weight=1.0, extra=False):
    """A run's folder as far as golden.py looks at it."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model.py").write_text(f"# {seconds}")
    checkpoint = folder / "ckpt" / "step_000001"
    checkpoint.mkdir(parents=True)
    tensors = {"wte": np.full((2, 2), weight, np.float32), "bias": np.zeros(2, np.float32)}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"written": str(seconds)})
    (checkpoint / "optimizer.pt").write_text(str(seconds))
    (checkpoint / "manifest.json").write_text(str(seconds))
    np.savez_compressed(folder / "val_documents_000001.npz", stream_nats=np.array([loss]))
    train = {"type": "train", "step": 1, "train_loss_opt_step_mean": loss, "mfu": seconds, "tokens_per_sec": seconds}
    val = {"type": "val", "step": 1, "val_loss": loss, "timestamp": str(seconds), "eval_seconds_total": seconds}
    (folder / "scalars.jsonl").write_text(json.dumps(train) + "\n" + json.dumps(val) + "\n")
    flags = {"n_inner": 128, "out_dir": str(folder), "seed": 0}
    config = {"flags": flags, "started": str(seconds), "model": {"n_layer": 2}, "code": {"git_commit": seconds}}
    if extra:
        config["new"] = 1
        flags["new_flag"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"final_val_loss": loss, "train_time_ms": seconds, "warnings": [f"{seconds}"], "results_row": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "log.txt").write_text(f"step 1 | loss {loss} | {seconds} tok/s\nstep 1 | sample ' once'\n")
    return folder


def hashed(golden, folder):
    return {name: golden.entry_of(content) for name, content in golden.contents(folder).items()}


def test_measured_is_left_out_and_a_changed_number_is_listed(golden, tmp_path):
    """A loss that changed in its last bit would pass for equal, or every run's clock for a change."""
    old = hashed(golden, make_run(tmp_path / "old"))
    again = hashed(golden, make_run(tmp_path / "again", seconds=0.75))
    assert golden.compare(old, again) == ([], [])
    kept = {"config.json/model", "config.json/flags", "scalars.jsonl", "summary.json", "log.txt/samples"}
    assert kept <= set(old) and not any(name.startswith("code/") for name in old)

    loss = np.nextafter(7.25, 8)
    faults, added = golden.compare(old, hashed(golden, make_run(tmp_path / "loss", loss=loss)))
    assert [fault.split()[:2] for fault in faults] == [
        ["DIFFERS", "scalars.jsonl"], ["DIFFERS", "summary.json"], ["DIFFERS", "val_documents_000001.npz"]]
    assert str(loss) in faults[0] and "7.25" in faults[0] and not added

    faults, _ = golden.compare(old, hashed(golden, make_run(tmp_path / "weight", weight=1.5)))
    assert len(faults) == 1 and "model.safetensors" in faults[0] and "wte" in faults[0]

    more = hashed(golden, make_run(tmp_path / "more", extra=True)) | {"a_new_file": golden.entry_of("1")}
    assert golden.compare(old, more) == ([], ["a_new_file"])
    faults, _ = golden.compare(more, old)
    assert faults == ["GONE     a_new_file"]


def test_columns_of_results(golden, tmp_path):
    """Every column by itself, so that a new one is no difference; rows by name, whichever run finished first."""
    tables = []
    for order, more in ((1, {}), (-1, {"new": 3})):
        rows = [{"run_id": f"run{i}", "final_val_loss": 7 + i, "train_time_ms": order, **more} for i in (0, 1)]
        path = tmp_path / f"{order}.csv"
        with open(path, "w", newline="") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows[::order])
        tables.append({name: golden.entry_of(cells) for name, cells in golden.columns_of(path).items()})
    assert golden.compare(*tables) == ([], ["new"])
    assert set(tables[0]) == {"run_id", "final_val_loss"}


def test_report_has_a_hash_of_its_numbers_alone(golden, tmp_path):
    """Better words for a verdict are told from another p value."""
    hashes = []
    for name, headline, p in (("a", "better", 0.01), ("b", "good", 0.01), ("c", "better", 0.02)):
        (tmp_path / name).mkdir()
        record = {"headline": headline, "rows": [{"p": p, "train_time_ms": 5.0}]}
        (tmp_path / name / "report.json").write_text(json.dumps(record))
        hashes.append(hashed(golden, tmp_path / name))
    words, _ = golden.compare(hashes[0], hashes[1])
    numbers, _ = golden.compare(hashes[0], hashes[2])
    assert [fault.split()[1] for fault in words] == ["report.json"]
    assert [fault.split()[1] for fault in numbers] == ["report.json", "report.json/numbers"]
    assert "train_time_ms" in hashes[0]["report.json/numbers"]["text"]  # of a committed run, so it counts


def test_records_in_both_layouts(golden, tmp_path):
    """The committed runs are the same, be they a folder or runs.tar.xz."""
    trees = []
    for layout in ("folder", "packed"):
        experiment = tmp_path / layout / "experiments" / "2026-11-21_gating"
        make_run(experiment / "runs" / "screen" / "none_s0")
        (experiment / "lr.csv").write_text("run_id\n")
        if layout == "packed":
            with tarfile.open(experiment / "runs.tar.xz", "w:xz") as tar:
                tar.add(experiment / "runs", "runs")
            subprocess.run(["rm", "-r", experiment / "runs"], check=True)
        records = tmp_path / layout / "records"
        golden.golden_tasks.unpack_records(tmp_path / layout, records)
        trees.append(sorted(path.relative_to(records).as_posix() for path in records.rglob("*")))
    assert trees[0] == trees[1]
    assert "gating/screen/none_s0/scalars.jsonl" in trees[0] and "gating_lr.csv" in trees[0]


def test_every_input_is_made_by_a_task(golden):
    """A task that reads a folder nobody writes would fail on both sides, and so pass for equal."""
    tasks = golden.golden_tasks.all_tasks()
    folders = {task.folder for task in tasks}
    keys = [task.key for task in tasks]
    assert len(folders) == len(set(keys)) == len(tasks)
    before = golden.golden_tasks.dependencies(tasks)
    for i, task in enumerate(tasks):
        inputs = [word.split("/")[0] for word in task.words]
        missing = {word for word in inputs if word.startswith(golden.STAGES) and "_" in word} - folders
        assert not missing, task.key
        assert before[task.key] <= set(keys[:i]), task.key


def test_against_a_commit(golden, tmp_path, monkeypatch, capsys):
    """The whole way: a changed number in the work tree is found, listed with its place, and sets the exit status."""
    repo = tmp_path / "repo"
    repo.mkdir()
    for script in ("prepare_fineweb", "prepare_bos_rows", "inject_mul"):
        (repo / f"{script}.py").write_text(STUB)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", repo, *command], check=True)
    monkeypatch.setattr(golden, "ROOT", repo)
    names = ("stream/baseline", "rows/crop", "injected")
    monkeypatch.setattr(golden.golden_tasks, "DATA", {name: golden.golden_tasks.DATA[name] for name in names})
    arguments = ["--checkout", str(repo), "--only", "data"]

    assert golden.main([*arguments, "--out", str(tmp_path / "old.json")]) == 0
    assert "WARNING" not in capsys.readouterr().out
    (repo / "prepare_bos_rows.py").write_text(STUB.replace('"tokens": 7', '"tokens": 8'))
    (repo / "inject_mul.py").write_text("raise ValueError('broken')")
    assert golden.main([*arguments, "--against", "HEAD", "--out", str(tmp_path / "new.json")]) == 1
    printed = capsys.readouterr().out
    listed = {line.split()[1] for line in printed.splitlines() if line.startswith(("DIFFERS", "GONE"))}
    gone = {f"data/injected/{file}" for file in ("status", "meta.json", "train_000000.bin")}
    assert listed == {"data/rows/crop/meta.json", *gone}
    assert 'now: "tokens": 8' in printed
    assert "WARNING: data/injected failed: ValueError: broken" in printed

    files = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    assert golden.main(["--compare", *files]) == 1
    assert "DIFFERS  data/rows/crop/meta.json" in capsys.readouterr().out
    assert golden.main(["--compare", *files, "--only", "train"]) == 0
    with pytest.raises(ValueError, match="no-such-commit"):
        golden.main(["--against", "no-such-commit"])


@pytest.mark.parametrize("content", [
    "", "[1]", "[" * 100_000, '{"machine": 1, "contents": []}', '{"contents": {}}',
    '{"machine": 1, "contents": {"train/a": {"x": 1}}}',
    '{"machine": 1, "contents": {"a": {"sha256": "b", "text": 3}}}'], ids=lambda content: content[:50])
def test_a_damaged_file_is_one_sentence(golden, tmp_path, content):
    """It is compared with nothing, nor replaced."""
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="old.json was not written by golden.py, or is damaged: make one with --out.$"):
        golden.main(["--compare", str(path), str(path)])
    with pytest.raises(ValueError, match="old.json exists and was not written by golden.py: choose another file.$"):
        golden.main(["--out", str(path)])
    assert path.read_text() == content


def test_refused_before_the_work(golden, tmp_path, capsys):
    """Minutes of work whose hashes have no place to go, or that hash nothing: 0."""
    with pytest.raises(ValueError, match="none is no folder: make it, or choose another file.$"):
        golden.main(["--out", str(tmp_path / "none" / "new.json")])
    with pytest.raises(ValueError, match="cannot be read .No such file or directory.: name a file that --out has"):
        golden.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit):
        golden.main(["--checkout", str(tmp_path), "--out", str(tmp_path / "new.json")])
    assert "has no prepare_fineweb.py: name the folder of a checkout" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
