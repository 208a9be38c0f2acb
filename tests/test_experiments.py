"""The scripts under experiments/ that other experiments stand on: the sweep, the kept results, the learning curves."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_run

import compare_runs

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "experiments" / "sweep.py"

# a run that notes how it was started, waits if told to, saves itself on SIGTERM and writes its summary last
FAKE = """
import json, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out_dir") + 1])
out.mkdir(parents=True, exist_ok=True)
with open(out / "starts", "a") as f:
    f.write(" ".join(sys.argv[1:]) + "\\n")
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
(out / "ready").touch()
if "--wait" in sys.argv and len(open(out / "starts").readlines()) == 1:
    while not asked:
        time.sleep(0.02)
    (out / "saved").touch()
    sys.exit(0)
if "--fail" in sys.argv:
    print("train_gpt.py: the data is gone: prepare it again.", file=sys.stderr)
    sys.exit(3)
(out / "summary.json").write_text("{}")
print("finished 7 steps")
"""


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake run.py").write_text(FAKE)
    return lambda name, *flags: f"'{tmp_path}/fake run.py' --out_dir '{tmp_path}/runs/{name}' {' '.join(flags)}"


def run_sweep(text, *flags):
    return subprocess.run([sys.executable, SWEEP, "-", *flags], input=text, text=True, capture_output=True, timeout=180)


def starts(tmp_path, name):
    path = tmp_path / "runs" / name / "starts"
    return path.read_text().splitlines() if path.exists() else []


def test_sweep_runs_each_once(tmp_path, fake):
    """Every command runs once, in order, with --resume auto; a second sweep starts nothing."""
    text = f"# two runs\npython {fake('a', '--seed 1')}  # the first\n\n{fake('b', '--resume 5')}\n"
    left = run_sweep(text, "--dry_run")
    assert left.returncode == 0 and len(left.stdout.splitlines()) == 2 and not (tmp_path / "runs").exists()
    for _ in range(2):
        done = run_sweep(text)
        assert done.returncode == 0, done.stderr
    assert starts(tmp_path, "a") == [f"--out_dir {tmp_path}/runs/a --seed 1 --resume auto"]
    assert starts(tmp_path, "b") == [f"--out_dir {tmp_path}/runs/b --resume 5"]
    assert (tmp_path / "runs" / "a.out").read_text().endswith("finished 7 steps\n")
    assert run_sweep(text, "--dry_run").stdout.strip() == "all finished"


def test_sweep_stops_at_a_failure_and_goes_on(tmp_path, fake):
    """A failing run ends the sweep with its last words; what was finished stays, what comes later has not begun."""
    done = run_sweep("\n".join([fake("a"), fake("b", "--fail"), fake("c")]))
    assert done.returncode == 1 and "the data is gone" in done.stdout and "status 3" in done.stderr
    assert starts(tmp_path, "a") and not starts(tmp_path, "c") and "Traceback" not in done.stderr
    (tmp_path / "fake run.py").write_text(FAKE.replace('"--fail" in sys.argv', "False"))  # repaired
    assert run_sweep("\n".join([fake("a"), fake("b", "--fail"), fake("c")])).returncode == 0
    assert len(starts(tmp_path, "a")) == 1 and len(starts(tmp_path, "b")) == 2 and starts(tmp_path, "c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sweep_interrupted(tmp_path, fake, number):
    """ctrl-C reaches the run once, which saves itself; the sweep ends with 130 and continues when started again."""
    (tmp_path / "list").write_text("\n".join([fake("a", "--wait"), fake("b")]))
    command = [sys.executable, SWEEP, tmp_path / "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.time() + 30
    while not (tmp_path / "runs" / "a" / "ready").exists() and time.time() < until:
        time.sleep(0.02)
    os.kill(process.pid, number)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "start the sweep again" in said and "Traceback" not in errors
    assert (tmp_path / "runs" / "a" / "saved").exists() and not (tmp_path / "runs" / "b").exists()
    assert subprocess.run(command, capture_output=True, timeout=180).returncode == 0
    assert len(starts(tmp_path, "a")) == 2 and len(starts(tmp_path, "b")) == 1


@pytest.mark.parametrize("text, wanted", [
    ("", "holds no command"), ("# nothing\n", "holds no command"), ("train_gpt.py --seed 1", "0 --out_dir"),
    ("rm -rf x --out_dir y", "no script"), ("train_gpt.py --out_dir 'x", "close the quotes"),
    ("train_gpt.py --out_dir x\ntrain_gpt.py --seed 1 --out_dir=x", "line 2 uses x a second time"),
])
def test_sweep_bad_lists(text, wanted):
    """A list that cannot be used is refused before anything runs, with the line's number."""
    done = run_sweep(text)
    assert done.returncode == 1 and wanted in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_sweep_other_command(tmp_path, fake):
    """A finished folder that another command made is never taken for this run's result."""
    assert run_sweep(fake("a", "--seed 1")).returncode == 0
    done = run_sweep(fake("a", "--seed 2"))
    assert done.returncode == 1 and "another command" in done.stderr and len(starts(tmp_path, "a")) == 1
    begun = run_sweep(fake("b", "--fail"))
    assert begun.returncode == 1
    other = run_sweep(fake("b", "--seed 3"))  # an unfinished run does not go on with other flags, either
    assert other.returncode == 1 and "another command" in other.stderr and len(starts(tmp_path, "b")) == 1
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    binary = subprocess.run([sys.executable, SWEEP, tmp_path / "binary"], capture_output=True, text=True, timeout=180)
    assert binary.returncode == 1 and "cannot be read" in binary.stderr
    missing = subprocess.run([sys.executable, SWEEP, tmp_path / "no"], capture_output=True, text=True, timeout=180)
    assert missing.returncode == 1 and "cannot be read" in missing.stderr


def test_kept_results_compare_as_the_runs(tmp_path, capsys):
    """The verdict, every delta and every interval from the kept files equal those from the runs themselves."""
    keep_results = load("keep_results")
    for arm, loss in (("a", 0.0), ("b", -0.02)):
        for seed in range(3):
            flags = {"attn_gate": "none" if arm == "a" else "headwise", "data_dir": "/home/someone/data"}
            make_run(tmp_path / "runs" / f"{arm}_s{seed}", seed, loss=loss + (arm == "b") * 0.001 * seed, flags=flags,
                     hellaswag=0.5, config={"model.attn_gate": flags["attn_gate"]})
    keep_results.main([str(tmp_path / "runs" / "*_s*"), "--out", str(tmp_path / "kept")])
    reports = []
    for folder in ("runs", "kept"):
        out = tmp_path / f"report_{folder}"
        arms = [str(tmp_path / folder / f"{arm}_s*") for arm in "ab"]
        assert compare_runs.main(["--a", arms[0], "--b", arms[1], "--out", str(out), "--no_items"]) == 0
        reports.append(json.loads((out / "report.json").read_text()))
        assert len(reports[-1].pop("arms")["A"]) == 3  # the folders' paths
    capsys.readouterr()
    assert reports[0]["verdict"] == "better" and reports[0] == reports[1]
    kept = tmp_path / "kept" / "a_s0"
    assert "someone" not in "".join(p.read_text() for p in kept.rglob("*.json*"))
    assert json.loads((kept / "config.json").read_text())["flags"]["data_dir"] == "data"
    assert "host" not in json.loads((kept / "config.json").read_text())["hardware"]
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size(kept) < size(tmp_path / "runs" / "a_s0")


def test_unfinished_run_is_not_kept(tmp_path):
    """Half a run never becomes a committed result; a run is never replaced by its own extract, nor one by another."""
    keep_results = load("keep_results")
    for folder in ("x", "y"):
        make_run(tmp_path / folder / "a_s0")
    before = sorted((tmp_path / "x" / "a_s0").rglob("*"))
    for runs_, out, why in ((["x/a_s0"], "x", "not to be replaced"), (["x/a_s0", "y/a_s0"], "kept", "two runs")):
        with pytest.raises(SystemExit, match=why):
            keep_results.main([*(str(tmp_path / r) for r in runs_), "--out", str(tmp_path / out)])
    assert sorted((tmp_path / "x" / "a_s0").rglob("*")) == before and not (tmp_path / "kept").exists()
    make_run(tmp_path / "runs" / "a_s0", finished=False)
    with pytest.raises(SystemExit, match="not finished"):
        keep_results.main([str(tmp_path / "runs" / "a_s0"), "--out", str(tmp_path / "kept")])
    assert not list((tmp_path / "kept").glob("*")) if (tmp_path / "kept").exists() else True


def test_learning_curves(tmp_path, capsys):
    """The table's last values are the mean and sd over an arm's seeds; the PNG is drawn; single runs have no sd."""
    learning_curves = load("learning_curves")
    folders = [make_run(tmp_path / f"base_s{seed}", seed, loss=0.01 * seed, hellaswag=0.5) for seed in range(3)]
    make_run(tmp_path / "other_s0", 0, loss=0.5)
    learning_curves.main([str(tmp_path / "*_s*"), "--out", str(tmp_path / "c.png"), "--curves", "val_loss",
                          "accuracy_norm"])
    said = capsys.readouterr().out.splitlines()
    last = [list(compare_runs.read_run(f)["val"].values())[-1]["val_loss"] for f in folders]
    mean = sum(last) / 3
    assert said[0] == "| arm | seeds | val loss, nats/token (last) | HellaSwag accuracy_norm (last) |"
    assert said[2].startswith(f"| base | 3 | {mean:.4f} ± 0.0100 | ")
    assert said[3].startswith("| other | 1 | ") and said[3].endswith("| N/A: not run |") and "±" not in said[3]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="has scored"):
        learning_curves.main([str(tmp_path / "other_s0"), "--curves", "eval_official_sum"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"no folder among these is a run"):
        learning_curves.main([str(tmp_path / "empty")])


FOLDERS = sorted(path.parent.name for path in ROOT.glob("experiments/2*/table.py"))


@pytest.mark.parametrize("name", FOLDERS)
def test_tables_come_from_committed_results(tmp_path, name):
    """Every number of an experiment's table.md, and its lines of README's answer table, are printed again by table.py
    from what is committed; no folder is over 2 MB."""
    folder = ROOT / "experiments" / name
    shutil.copytree(folder, tmp_path / "experiments" / name)
    for script in ROOT.glob("experiments/*.py"):
        shutil.copy(script, tmp_path / "experiments")
    copy = tmp_path / "experiments" / name
    (copy / "answers.json").unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, copy / "table.py"], capture_output=True, text=True, env=environment,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "table.md").read_text()
    if (folder / "answers.json").exists():
        assert (copy / "answers.json").read_text() == (folder / "answers.json").read_text()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2e6


def test_readme_has_the_answers():
    """README's first screen says what the committed results say."""
    answers = load("answers")
    assert f"{answers.MARKERS[0]}\n{answers.table()}\n{answers.MARKERS[1]}" in (ROOT / "README.md").read_text()
    first = (ROOT / "README.md").read_text().splitlines()[:40]
    assert answers.MARKERS[1] in first
