"""The scripts under experiments/ that other experiments stand on: the sweep, the kept results, the learning curves."""

import hashlib
import importlib.util
import json
import lzma
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_run

import compare_runs
from lab import ab_plots, disk, runs

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "experiments" / "sweep.py"

# a run that notes how it was started, and its process. It saves itself on SIGTERM and writes its summary last.
# --wait: its first start ends by SIGTERM alone. --meet X: it needs X beside it. --after X: it ends after X
FAKE = """
import json, os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out_dir") + 1])
out.mkdir(parents=True, exist_ok=True)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
with open(out / "starts", "a") as f:
    f.write(" ".join(sys.argv[1:]) + "\\n")
others = [folder for folder in out.parent.iterdir() if (folder / "ready").exists()]
(out / "beside").write_text(str(sum(not (folder / "summary.json").exists() for folder in others)))
(out / "process").write_text(str(os.getpid()))
(out / "ready").touch()

def wait_until(condition):
    until = time.time() + 30
    while not condition() and not asked:
        if time.time() > until:
            sys.exit(f"{out.name} waited in vain")
        time.sleep(0.02)

def other(flag):
    return out.parent / sys.argv[sys.argv.index(flag) + 1]

def has_ended(folder):  # and the sweep has noticed: until then its number is taken
    try:
        os.kill(int((folder / "process").read_text()), 0)
    except (OSError, ValueError):
        return (folder / "ready").exists()

if "--wait" in sys.argv and len(open(out / "starts").readlines()) == 1:
    wait_until(lambda: False)
if "--meet" in sys.argv:
    wait_until(lambda: (other("--meet") / "ready").exists())
if "--after" in sys.argv:
    wait_until(lambda: has_ended(other("--after")))
if asked:
    (out / "saved").touch()
    sys.exit(0)
if "--diverge" in sys.argv:
    (out / "log.txt").write_text("step 3\\ndiverged at step 4: loss nan and gradient norm nan are not finite\\n")
    sys.exit("train_gpt.py: step 4: loss nan")
if "--fail" in sys.argv:
    print(f"train_gpt.py: the data of {out.name} is gone: prepare it again.", file=sys.stderr)
    sys.exit(3)
(out / "summary.json").write_text("{}")
print(f"{out.name} finished 7 steps")
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


def wait_for(path):
    until = time.time() + 30
    while not path.exists():
        assert time.time() < until, f"{path} was not written"
        time.sleep(0.02)


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
    assert (tmp_path / "runs" / "a.out").read_text().endswith("a finished 7 steps\n")
    assert run_sweep(text, "--dry_run").stdout.strip() == "all finished"


def test_sweep_with_a_launcher(tmp_path, fake):
    """Each script is started by --launcher, as torchrun is, with its own flags and --resume auto."""
    (tmp_path / "launch.py").write_text(
        "import pathlib, runpy, sys\n(pathlib.Path(__file__).parent / 'launched').touch()\n"
        "assert sys.argv.pop(1) == '--n=2'\nsys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    done = run_sweep(fake("a", "--seed 1"), "--launcher", f"{sys.executable} '{tmp_path}/launch.py' --n=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "launched").exists()
    assert starts(tmp_path, "a") == [f"--out_dir {tmp_path}/runs/a --seed 1 --resume auto"]


@pytest.mark.parametrize("launcher, words", [
    ("torchrun 'a", "--launcher torchrun 'a: No closing quotation: close the quotes."),
    ("no_such_program --x", "there is no program no_such_program: install it, or write its whole path."),
])
def test_sweep_with_a_launcher_that_cannot_start(tmp_path, fake, launcher, words):
    """One sentence before the first run, of which nothing is left."""
    done = run_sweep(fake("a"), "--launcher", launcher)
    assert done.returncode == 2 and done.stderr.startswith("sweep.py: ") and words in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_sweep_keeps_going(tmp_path, fake):
    """With --keep_going what comes after a failure runs, too; the table says what each came to; the status stays 1."""
    text = "\n".join([fake("a"), fake("b", "--fail"), fake("c")])
    done = run_sweep(text, "--keep_going")
    table = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert done.returncode == 1 and [row[:2] for row in table] == [
        ["run", "state"], ["a", "finished"], ["b", "failed"], ["c", "finished"]]
    assert table[2][3:6] == ["s", "status", "3:"] and "b ended with status 3" in done.stderr
    done = run_sweep(text)  # stops at b again, and c is finished
    assert [line.split()[1] for line in done.stdout.splitlines()[-3:]] == ["finished", "failed", "finished"]


def test_sweep_stops_at_a_failure_and_goes_on(tmp_path, fake):
    """A failing run ends the sweep with its last words; what was finished stays, what comes later has not begun."""
    done = run_sweep("\n".join([fake("a"), fake("b", "--fail"), fake("c")]))
    assert done.returncode == 1 and "the data of b is gone" in done.stdout and "status 3" in done.stderr
    assert starts(tmp_path, "a") and not starts(tmp_path, "c") and "Traceback" not in done.stderr
    (tmp_path / "fake run.py").write_text(FAKE.replace('"--fail" in sys.argv', "False"))  # repaired
    assert run_sweep("\n".join([fake("a"), fake("b", "--fail"), fake("c")])).returncode == 0
    assert len(starts(tmp_path, "a")) == 1 and len(starts(tmp_path, "b")) == 2 and starts(tmp_path, "c")


def test_sweep_goes_on_after_a_run_that_diverged(tmp_path, fake):
    """Starts of a run whose loss was not finite, over two sweeps: 1, and what comes after it is trained. The table has
    the step, and the status is 0, as a rate that is too high is a result."""
    text = "\n".join([fake("a", "--diverge"), fake("b")])
    for _ in range(2):
        done = run_sweep(text)
        table = [line.split() for line in done.stdout.splitlines()[-2:]]
        assert [row[:2] for row in table] == [["a", "diverged"], ["b", "finished"]] and done.returncode == 0
        assert "step 4: loss nan" in done.stdout
        assert "NOTE: diverged, and not trained again: a; --resume auto would end there again" in done.stderr
    assert len(starts(tmp_path, "a")) == len(starts(tmp_path, "b")) == 1
    assert run_sweep(text, "--dry_run").stdout.strip() == "all finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_sweep_interrupted(tmp_path, fake, number):
    """ctrl-C reaches the run once, which saves itself; the sweep ends with 130 and continues when started again."""
    (tmp_path / "list").write_text("\n".join([fake("a", "--wait"), fake("b")]))
    command = [sys.executable, SWEEP, tmp_path / "list"]
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup leaves it, a sweep does not listen
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    wait_for(tmp_path / "runs" / "a" / "ready")
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "start the sweep again" in output and "Traceback" not in errors
    assert (tmp_path / "runs" / "a" / "saved").exists() and not (tmp_path / "runs" / "b").exists()
    assert subprocess.run(command, capture_output=True, timeout=180).returncode == 0
    assert len(starts(tmp_path, "a")) == 2 and len(starts(tmp_path, "b")) == 1


def test_sweep_under_nohup(tmp_path, fake):
    """A closed terminal asks nothing of a sweep that was told to outlive it."""
    (tmp_path / "list").write_text("\n".join([fake("a", "--after b"), fake("b")]))
    process = subprocess.Popen([sys.executable, SWEEP, tmp_path / "list", "--jobs", "2"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(tmp_path / "runs" / "b")
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(60) == 0 and len(starts(tmp_path, "a")) == len(starts(tmp_path, "b")) == 1


def test_sweep_takes_no_other_run_for_its_own(tmp_path, fake):
    """A folder that a run of another command has finished without a sweep, and one that a run still writes into; a run
    of the same flags in another order is taken."""
    line = fake("a", "--seed 1")
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    for argv, status in [(["x.py", "--seed", "2", "--out_dir", "b"], 1), (["x.py", "--seed", "1", "--lr", "1"], 1),
                         (["x.py", "--resume", "auto", "--out_dir=elsewhere", "--seed=1"], 0)]:
        (folder / "config.json").write_text(json.dumps({"argv": argv}))
        done = run_sweep(line)
        assert done.returncode == status and ("begun by another command" in done.stderr) is bool(status), done.stderr
    assert not starts(tmp_path, "a")
    (folder / "code").mkdir()
    (folder / "code" / "model.py").write_text("x = 1\n")
    assert "finished by the code of another network, and not trained anew: a." in run_sweep(line).stderr
    (folder / "summary.json").unlink()
    with disk.hold(folder):
        held = run_sweep(line)
    assert held.returncode == 1 and f"process {os.getpid()} still writes into {folder}: wait" in held.stderr


def test_sweep_two_at_once(tmp_path, fake):
    """--jobs 2 runs two commands side by side and never a third, each with its output in its own file."""
    text = "\n".join([fake("a", "--meet b"), fake("b", "--meet a"), fake("c"), fake("d")])
    done = run_sweep(text, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    for name in "abcd":
        folder = tmp_path / "runs" / name
        assert int((folder / "beside").read_text()) <= 1
        command, *output = folder.with_name(f"{name}.out").read_text().splitlines()
        assert command.startswith("$ ") and output == [f"{name} finished 7 steps"]
    assert run_sweep(text, "--jobs", "2").returncode == 0
    assert [len(starts(tmp_path, name)) for name in "abcd"] == [1, 1, 1, 1]
    assert run_sweep(text, "--jobs", "0").returncode == 1


def test_sweep_failures_beside_others(tmp_path, fake):
    """What runs beside a failing run goes on to its end, nothing new begins, and every failure is named at the end."""
    text = "\n".join([fake("a", "--after b"), fake("b", "--meet a --fail"), fake("c")])
    done = run_sweep(text, "--jobs", "2")
    assert done.returncode == 1 and "b ended with status 3" in done.stderr and "a ended" not in done.stderr
    assert (tmp_path / "runs" / "a" / "summary.json").exists() and not starts(tmp_path, "c")
    (tmp_path / "fake run.py").write_text(FAKE.replace('"--fail" in sys.argv', "False"))  # repaired
    assert run_sweep(text, "--jobs", "2").returncode == 0
    assert [len(starts(tmp_path, name)) for name in "abc"] == [1, 2, 1]

    (tmp_path / "fake run.py").write_text(FAKE)
    both = run_sweep("\n".join([fake("d", "--meet e --fail"), fake("e", "--after d --fail")]), "--jobs", "2")
    assert both.returncode == 1 and "d ended" in both.stderr and "e ended" in both.stderr
    assert "the data of d is gone" in both.stdout and "the data of e is gone" in both.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_sweep_interrupted_with_two(tmp_path, fake, number):
    """A signal reaches both runs, the sweep waits until they have saved themselves (no process is left), and a second
    sweep continues both."""
    (tmp_path / "list").write_text("\n".join([fake("a", "--wait"), fake("b", "--wait"), fake("c")]))
    command = [sys.executable, SWEEP, tmp_path / "list", "--jobs", "2"]
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    both = [tmp_path / "runs" / name for name in "ab"]
    for folder in both:
        wait_for(folder / "ready")
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "start the sweep again" in output and "Traceback" not in errors
    for folder in both:
        assert (folder / "saved").exists() and folder.name in output
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / "process").read_text()), 0)
    assert not (tmp_path / "runs" / "c").exists()
    assert subprocess.run(command, capture_output=True, timeout=180).returncode == 0
    assert [len(starts(tmp_path, name)) for name in "abc"] == [2, 2, 1]


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
    archive = tmp_path / "kept" / "runs.tar.xz"
    keep_results.main([str(tmp_path / "runs" / "*_s*"), "--out", str(archive)])
    with keep_results.unpacked(archive) as kept:
        reports = []
        for folder in (tmp_path / "runs", kept):
            out = tmp_path / f"report_{len(reports)}"
            arms = [str(folder / f"{arm}_s*") for arm in "ab"]
            assert compare_runs.main(["--a", arms[0], "--b", arms[1], "--out", str(out), "--no_items"]) == 0
            reports.append(json.loads((out / "report.json").read_text()))
            assert len(reports[-1].pop("arms")["A"]) == 3  # the folders' paths
            assert reports[-1]["compared"].pop("Data").startswith(("someone/data,", "data,"))  # kept without its path
        capsys.readouterr()
        assert reports[0]["verdict"] == "better" and reports[0] == reports[1]
        one = kept / "a_s0"
        assert "someone" not in "".join(p.read_text() for p in one.rglob("*.json*"))
        assert json.loads((one / "config.json").read_text())["flags"]["data_dir"] == "data"
        assert "host" not in json.loads((one / "config.json").read_text())["hardware"]
        size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        assert size(one) < size(tmp_path / "runs" / "a_s0")
    assert not kept.exists() and archive.stat().st_size < size(tmp_path / "runs") / 10


def test_unfinished_run_is_not_kept(tmp_path, capsys):
    """Half a run never becomes a committed result, nor replaces one; two runs of one name are both kept."""
    keep_results = load("keep_results")
    for folder in ("x", "y"):
        make_run(tmp_path / folder / "a_s0")
        (tmp_path / folder / "a_s0" / "val_web.json").write_text(f'{{"of": "{folder}"}}')
    before = sorted((tmp_path / "x" / "a_s0").rglob("*"))
    archive = tmp_path / "kept.tar.xz"
    keep_results.main([str(tmp_path / "x" / "a_s0"), str(tmp_path / "y" / "a_s0"), "--out", str(archive),
                       "--also", "val_*.json"])
    assert sorted((tmp_path / "x" / "a_s0").rglob("*")) == before and "2 runs" in capsys.readouterr().out
    with keep_results.unpacked(archive) as kept:
        for folder in ("x", "y"):
            assert json.loads((kept / folder / "a_s0" / "val_web.json").read_text()) == {"of": folder}
            assert (kept / folder / "a_s0" / "summary.json").exists()
    bytes_before = archive.read_bytes()
    make_run(tmp_path / "runs" / "a_s0", finished=False)
    for also, reason in (([], "not finished"), (["--also", "no_such"], "no run holds no_such")):
        with pytest.raises(ValueError, match=reason):
            keep_results.main([str(tmp_path / "runs" / "a_s0"), "--out", str(archive), *also])
    assert archive.read_bytes() == bytes_before


@pytest.mark.parametrize("file, content, words", [
    ("config.json", b"[]", "config.json is not a run's record"),
    ("config.json", b'{"flags": {', "config.json cannot be read"),
    ("summary.json", b"\xff\xfe", "summary.json cannot be read"), ("summary.json", b"3", "summary.json is damaged"),
    ("scalars.jsonl", None, "has no scalars.jsonl: restore it, or leave the run out"),
    ("scalars.jsonl", b"{broken\n{}\n", "has a broken line, 1"),
    ("val_documents_000040.npz", b"PK", "a_s0/val_documents_000040.npz is broken .*: restore it, or leave its run"),
])
def test_damaged_results_are_not_kept(tmp_path, file, content, words):
    """What a damaged file says is lost when the run is deleted for its archive: it is refused, with its name."""
    make_run(tmp_path / "a_s0")
    (tmp_path / "a_s0" / file).unlink()
    if content is not None:
        (tmp_path / "a_s0" / file).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load("keep_results").main([str(tmp_path / "a_s0"), "--out", str(tmp_path / "kept.tar.xz")])
    assert not (tmp_path / "kept.tar.xz").exists()


def test_where_results_are_kept(tmp_path):
    """A text of the user's own under --out, a folder, no folder, and --also beyond the run: a sentence each, before
    the runs are read; the text stays."""
    keep_results = load("keep_results")
    make_run(tmp_path / "a_s0")
    (tmp_path / "notes.md").write_text("my thesis")
    for out, also, words in [
            ("notes.md", [], "notes.md exists and is no archive of keep_results.py: choose another file.$"),
            (".", [], "is a folder: name a file in it, as "),
            ("notes.md/x", [], "notes.md is no folder.: name another.$"),
            ("x", ["/etc/hosts"], "'/etc/hosts' is no file of a run: name files by their paths"),
            ("x", ["../*"], "is no file of a run"), ("x", [""], "--also '' is no file of a run"),
            ("x", ["exposures"], "exposures is a folder: name the files in it, as exposures/")]:
        with pytest.raises(ValueError, match=words):
            also = ["--also", *also] if also else []
            keep_results.main([str(tmp_path / "a_s0"), "--out", str(tmp_path / out), *also])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_s0", "notes.md"]
    assert (tmp_path / "notes.md").read_text() == "my thesis"
    for _ in range(2):  # an archive is replaced
        keep_results.main([str(tmp_path / "a_s0"), "--out", str(tmp_path / "kept.tar.xz"), "--also", "exposures/*"])


def test_archive_is_deterministic(tmp_path):
    """The same files give the same bytes, whenever and in whatever order they were written; a broken or missing archive
    is one sentence."""
    keep_results = load("keep_results")
    for name, order in (("first", "ab"), ("second", "ba")):
        for run in order:
            path = tmp_path / name / run / "config.json"
            path.parent.mkdir(parents=True)
            path.write_text(run)
            os.utime(path, (1e9 * len(name), 1e9))
            path.chmod(0o600 if name == "first" else 0o755)
        keep_results.pack(tmp_path / name, tmp_path / f"{name}.tar.xz")
    packed = (tmp_path / "first.tar.xz").read_bytes()
    assert packed == (tmp_path / "second.tar.xz").read_bytes()
    (tmp_path / "torn.tar.xz").write_bytes(packed[:-20])
    for name in ("torn", "missing"):
        with pytest.raises(ValueError, match="cannot be unpacked"), keep_results.unpacked(tmp_path / f"{name}.tar.xz"):
            pass


ARCHIVES = sorted(ROOT.glob("experiments/2*/runs.tar.xz"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=[path.parent.name for path in ARCHIVES])
def test_committed_archives(tmp_path, archive):
    """What git holds tells nothing about the machine that made it (no absolute path, owner or time), cannot be unpacked
    anywhere else, and is what keep_results.pack makes of its files."""
    keep_results = load("keep_results")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert members and [m.name for m in members] == sorted(m.name for m in members)
    for m in members:
        assert m.isfile() and m.name.startswith("runs/") and ".." not in m.name
        assert (m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "")
    with keep_results.unpacked(archive) as kept:
        for path in kept.rglob("*.json*"):
            text = path.read_text()
            assert '"/' not in text and "=/" not in text, path
        keep_results.pack(kept, tmp_path / "again.tar.xz")
    again = (tmp_path / "again.tar.xz").read_bytes()
    assert lzma.decompress(again) == lzma.decompress(archive.read_bytes())


def test_learning_curves(tmp_path, capsys):
    """The table's last values are the mean and sd over an arm's seeds; the PNG is drawn; single runs have no sd."""
    learning_curves = load("learning_curves")
    folders = [make_run(tmp_path / f"base_s{seed}", seed, loss=0.01 * seed, hellaswag=0.5) for seed in range(3)]
    make_run(tmp_path / "other_s0", 0, loss=0.5)
    learning_curves.main([str(tmp_path / "*_s*"), "--out", str(tmp_path / "c.png"), "--curves", "val_loss",
                          "accuracy_norm"])
    table = capsys.readouterr().out.splitlines()
    last = [list(runs.read_run(f)["val"].values())[-1]["val_loss"] for f in folders]
    mean = sum(last) / 3
    assert table[0] == "| arm | seeds | val loss, nats/token (last) | HellaSwag accuracy_norm (last) |"
    assert table[2].startswith(f"| base | 3 | {mean:.4f} ± 0.0100 | ")
    assert table[3].startswith("| other | 1 | ") and table[3].endswith("| N/A: not run |") and "±" not in table[3]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="has scored"):
        learning_curves.main([str(tmp_path / "other_s0"), "--curves", "eval_official_sum"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"no folder among these is a run"):
        learning_curves.main([str(tmp_path / "empty")])


def test_learning_curves_name_what_is_left_out(tmp_path, capsys):
    """A run's broken lines are left out of its curve, and it says so."""
    make_run(tmp_path / "a_s0")
    with open(tmp_path / "a_s0" / "scalars.jsonl", "a") as f:
        f.write("{torn}\n{torn}\n")
    load("learning_curves").main([str(tmp_path / "a_s0")])
    assert "a_s0: scalars.jsonl: 2 broken lines, the first is" in capsys.readouterr().out


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_learning_curves_show_their_noise(tmp_path, monkeypatch, n_seeds):
    """Every panel has a bar at every marker, of one seed over its items or documents; two arms that differ by 0.0005
    nats and by one item of 120 stand close together, and do not fill the panel."""
    learning_curves = load("learning_curves")
    for seed in range(n_seeds):
        make_run(tmp_path / f"base_s{seed}", seed, loss=0.001 * seed, hellaswag=0.3)
        make_run(tmp_path / f"test_s{seed}", seed, loss=0.001 * seed + 0.0005, hellaswag=0.3,
                 flags={"attn_gate": "headwise"})
    axes, canvas = [], ab_plots.canvas
    monkeypatch.setattr(ab_plots, "canvas", lambda *size: [axes.append(drawn := canvas(*size)), drawn][1])
    curves = ["val_loss", "val_bits_per_byte", "val_bits_per_byte_bos", "accuracy_norm"]
    learning_curves.main([str(tmp_path / "*_s*"), "--out", str(tmp_path / "c.png"), "--curves", *curves])
    (panels, _), = axes
    for panel, field in zip(panels, curves, strict=True):
        low, high = panel.get_ylim()
        bars = panel.collections[-1].get_segments()
        assert len(panel.containers) == 2 and len(bars) == (2 if field == "accuracy_norm" else 5)
        lengths = [float(bar[1][1] - bar[0][1]) for bar in bars]
        assert min(lengths) > 0 and 4 * lengths[-1] <= (high - low) * 1.001
        assert low <= bars[-1][0][1] and bars[-1][1][1] <= high
        assert high - low >= (0.1 if field == "accuracy_norm" else 0.02 * low)
    if n_seeds == 1:  # 25 of 120 items: 1.96 standard errors both ways
        score = runs.read_run(tmp_path / "test_s0")["benchmarks"]["hellaswag"][40]["accuracy_norm"]
        assert lengths[-1] == pytest.approx(2 * 1.959964 * (score * (1 - score) / 120) ** 0.5, rel=1e-5)


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


INTERVAL = re.compile(r"[\[(]([-+]?\d+\.\d+)(?:,| to)\s+([-+]?\d+\.\d+)[\])]")


def is_rounded(written: tuple, ends: tuple) -> bool:
    """Whether an interval of the prose is this one of a table, rounded; a loss of 0.03 may be a gain of -0.03."""
    def fits(pair):
        return all(abs(abs(float(a)) - abs(float(b))) <= 0.5001 * 10.0 ** -len(a.partition(".")[2])
                   for a, b in zip(written, pair, strict=True))

    return fits(ends) or fits(ends[::-1])


@pytest.mark.parametrize("name", FOLDERS)
def test_prose_says_what_the_tables_say(name):
    """Every interval, and number of tests, that an experiment's README or its row of the log names stands in what is
    committed beside it."""
    folder = ROOT / "experiments" / name
    sources = [*folder.glob("*.json"), *(path for path in folder.glob("*.md") if path.name != "README.md")]
    committed = "".join(path.read_text() for path in sources)
    known = INTERVAL.findall(committed)
    prose = (folder / "README.md").read_text().split("\n\n")
    prose += [line for line in (ROOT / "experiments/README.md").read_text().splitlines() if f"({name}/" in line]
    for text in prose:
        for written in INTERVAL.findall(text):
            assert any(is_rounded(written, ends) for ends in known), f"{written} of: {text[:200]}"
        for count in re.findall(r"its (\d+) tests", text):
            assert f"holds {count} tests" in committed, text[:200]


def test_arms_of_a_chain_compare(capsys):
    """The arms of the GRPO experiment, each run of which goes on from its own, are comparable in its table."""
    folder = ROOT / "experiments" / "2026-11-26_grpo"
    table = load("2026-11-26_grpo/table")
    with load("keep_results").unpacked(folder / "runs.tar.xz") as kept:
        table.arms_table(kept)
    printed = capsys.readouterr().out
    assert "--allow init`: **inconclusive**" in printed and "3 pairs: B - A = -0.2500" in printed
    assert "not comparable" not in printed
    assert "| grpo | 0.467, 0.380, 0.424 | 0.081, 0.246, 0.204 | 0.000, 0.760 |" in printed


def test_readme_has_the_answers():
    """README and the log say what the committed results say."""
    answers = load("answers")
    for name, make in answers.TABLES.items():
        assert f"{answers.START}\n{make()}\n{answers.END}" in (ROOT / name).read_text(), name


def test_held_out_books(tmp_path):
    """Every chapter of a held-out book is in dev.parquet or in test.parquet, each book whole; a table without its
    columns is one sentence, and so is --help."""
    script = ROOT / "experiments" / "2026-11-26_memory" / "split.py"

    def run(*words):
        return subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, timeout=120)

    books = [f"book {i % 40}" for i in range(120)]
    pq.write_table(pa.table({"id": range(120), "text": books, "origin": books}), tmp_path / "books.parquet")
    done = run(tmp_path / "books.parquet", 0.5, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    dev, test = (pq.read_table(tmp_path / "out" / f"{part}.parquet")["text"].to_pylist() for part in ("dev", "test"))
    assert all((dev + test).count(book) == 3 for book in dev + test) and not set(dev) & set(test)
    digests = {book: hashlib.blake2b(book.encode(), digest_size=16).digest() for book in books}
    assert {*dev, *test} == {book for book, d in digests.items() if int.from_bytes(d[:8], "little") < 2**63}
    assert run("--help").stdout.startswith("usage: split.py")
    pq.write_table(pa.table({"text": books}), tmp_path / "texts.parquet")
    for words, said in [((tmp_path / "texts.parquet", 0.5, tmp_path), "has the columns text: name a parquet with id, "),
                        ((tmp_path / "none.parquet", 0.5, tmp_path), "no such file or glob; check the path."),
                        ((tmp_path / "books.parquet", 50, tmp_path), "give a share between 0 and 1."), ((), "--help")]:
        done = run(*words)
        assert done.returncode in (1, 2) and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_damaged_answers(tmp_path, monkeypatch):
    """A number of the table that is no number: one sentence, with the file and what makes it again."""
    answers = load("answers")
    folder = tmp_path / "experiments" / "2026-01-01_x"
    folder.mkdir(parents=True)
    monkeypatch.setattr(answers, "ROOT", tmp_path)
    good = {"question": "q", "n": "3 pairs", "effect": "+1", "tests": [{"p": 0.01, "verdict": "better"}]}
    (folder / "answers.json").write_text(json.dumps([good]))
    assert "| [q](2026-01-01_x/README.md) | 3 pairs |" in answers.table()
    for content, words in [("[", "cannot be read"), ("{}", "is damaged .it is {}, not a list"),
                           (json.dumps([good | {"tests": [{"p": None, "verdict": "x"}]}]), "p is null, not a finite")]:
        (folder / "answers.json").write_text(content)
        again = "make it again with python experiments/2026-01-01_x/table.py"
        with pytest.raises(ValueError, match=f"{words}.*: {again}.$"):
            answers.table()


def test_sweep_waiting_for_its_list(monkeypatch, capsys):
    """ctrl-C while it waits for standard input: one sentence, 130."""
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["sweep.py", "-"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(read=interrupted))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the script wraps both
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setenv("RANK", "0")  # so that the signal is not passed on to this process
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SWEEP), run_name="__main__")
    assert end.value.code == 130 and capsys.readouterr().err == "sweep.py: stopped before a run began.\n"
