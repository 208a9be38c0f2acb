"""compare_runs.py --list, --watch and --prune: the state of a run is what its lock and records say, and only
checkpoints that nobody needs go."""

import contextlib
import datetime
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENV, REPO, light_files, make_run, write_jsonl

import compare_runs
from lab import disk, run_list, run_state, runs, units

HOST = {"pid": os.getpid(), "host": os.uname().nodename, "since": "2026-11-26 10:00:00"}


def add_checkpoints(run, *steps):
    with light_files():
        for step in steps:
            write = lambda folder, step=step: (folder / "model.safetensors").write_bytes(bytes([step]) * 1000)
            runs.save_checkpoint(run, step, write, 0, 0)
    return run


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def lock(**changes):
    return lambda run: (run / ".lock").write_text(json.dumps({**HOST, **changes}))


def log(text):
    return lambda run: (run / "log.txt").write_text(text)


def content(folder):
    """{path: hash} of everything below a folder."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


STOPPED = "step 14 | saved x\nstopped at step 14 of 40, saved; continue with: python train_gpt.py\n"


@pytest.mark.parametrize("finished, change, state", [
    (True, log(""), "finished"),
    (True, lock(pid=dead_pid()), "finished"),
    (False, log(STOPPED), "stopped"),
    (False, log(STOPPED + "run x | resumed\n"), "crashed"),  # it went on after that
    (False, log("step 3\ndiverged at step 4: loss nan\n"), "diverged"),
    (False, log("step 3"), "crashed"),
    (False, lock(pid=dead_pid()), "crashed"),
    (False, lock(), "crashed"),  # the pid lives on as another process, which does not hold the lock
    (False, lock(host="another"), "unknown"),
    (False, lock(pid="1"), "unknown"),
    (False, lambda run: (run / ".lock").write_text("?"), "unknown"),
    (False, lambda run: (run / "config.json").write_text("{"), "unknown"),
    (True, lambda run: (run / "summary.json").write_text("{"), "unknown"),
])
def test_states(tmp_path, finished, change, state):
    """States that are guessed instead of read from the lock and the records: 0."""
    run = make_run(tmp_path / "run", finished=finished)
    change(run)
    assert run_state.look(run)["state"] == state


def test_a_living_process_is_running_and_a_killed_one_has_crashed(tmp_path):
    """Runs that look running after kill -9, or crashed while their process lives: 0. Looking takes no lock away."""
    run = make_run(tmp_path / "run", finished=False)
    code = "import sys, time; from lab import disk\nwith disk.hold(sys.argv[1]): print(1, flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code, run], cwd=REPO, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    for _ in range(3):
        row = run_state.look(run)
        assert row["state"] == "running" and f"process {process.pid} on " in row["why"]
    with pytest.raises(ValueError, match="is held"), disk.hold(run):
        pass
    process.kill()
    process.wait()
    assert run_state.look(run)["state"] == "crashed"
    process.stdout.close()


def test_a_diverged_run_is_not_told_to_go_on(tmp_path, capsys):
    """--resume auto, which ends at the same step again, as the way on of a run whose loss was not finite: no."""
    log("step 3\ndiverged at step 4: loss nan\n")(make_run(tmp_path / "run", finished=False))
    assert compare_runs.main(["--list", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "run: diverged: --resume auto would end there again: start another run with a lower --learning_rate" in text
    assert "1 run: 1 diverged" in text


def test_starting_run(tmp_path):
    """A run that reads its data has a lock and nothing else: it is listed, and a folder without a lock is none."""
    run = tmp_path / "run"
    with disk.hold(run):
        row = run_state.look(run)
        assert (row["state"], row["step"], row["eta"]) == ("running", None, None)
        assert run_list.steps_in_words(row) == "N/A"
    (tmp_path / "other").mkdir()
    assert run_state.look(tmp_path / "other") is None


def test_numbers(tmp_path, capsys):
    """Seconds by which the ETA differs from steps left times seconds per step since the process took the run, with
    evaluations and without the pause before a resume: 0. Bytes by which the size differs from the files': 0."""
    run = make_run(tmp_path / "run_s0", finished=False)
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    stamps = [now - datetime.timedelta(seconds=s) for s in (9000, 8000, 26, 24, 22, 13, 11)]  # 9: an evaluation
    lines = [{"type": "train", "step": step, "timestamp": stamp.isoformat(timespec="milliseconds"),
              "train_loss_opt_step_mean": 5.0 - step / 8} for step, stamp in enumerate(stamps, 1)]
    write_jsonl(run / "scalars.jsonl", lines)
    with open(run / "scalars.jsonl", "a") as f:
        f.write('{"type": "train", "step": 8, "times')
    since = (now - datetime.timedelta(seconds=30)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    with disk.hold(run):
        os.utime(run)
        (run / ".lock").write_text(json.dumps({**HOST, "since": since}))
        row = run_state.look(run)
        assert row["state"] == "running" and (row["step"], row["steps"], row["train_loss"]) == (7, 40, 4.125)
        assert row["eta"] == pytest.approx(33 * 15 / 4) and row["moved"] == stamps[-1].timestamp()
        assert row["val_loss"] == runs.read_step_metrics(run)["40"]["val_loss"]
        assert row["bytes"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        assert compare_runs.main(["--list", str(tmp_path / "*")]) == 0
    header, line, _, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "Run" and re.split(r" {2,}", line)[:6] == [
        "run_s0", "running", "7 / 40", "4.1250", f"{row['val_loss']:.4f}", "2.1 min"]
    assert last.startswith("1 run: 1 running; ")


@pytest.mark.parametrize("seconds, words", [
    (None, "N/A"), (0, "0 s"), (0.314, "0.31 s"), (14.6, "15 s"), (89, "89 s"), (90, "1.5 min"), (200, "3.3 min"),
    (5399, "90 min"), (5400, "1.5 h"), (172_799, "48 h"), (172_800, "2.0 days"), (1e8, "1,157.4 days")])
def test_time_in_words(seconds, words):
    assert units.duration(seconds) == words


@pytest.mark.parametrize("flags, fault", [
    ("--list {0} --yes", "add --prune"), ("--prune --yes", "name the runs"), ("--list --prune --yes", "name the runs"),
    ("--list {0} --watch 0 --out {0}/x", "at least 1 second"), ("--list {0} --watch nan --out x", "at least 1 second"),
    ("--list {0} --watch 5", "add --out"), ("--list {0} --watch 5 --prune --out x", "exclude each other"),
    ("--list {0} --out x", "drop --out"), ("--list {0} --plan", "not --plan and --list together"),
    ("--list {0}/none*", "matches no folder"), ("--list {0}", "no folder there is a run"),
    ("--list {0}/run --watch 5 --out {0}", "holds no page of --watch"),
])
def test_mistakes(tmp_path, flags, fault):
    make_run(tmp_path / "run")
    with pytest.raises(ValueError, match=re.escape(fault)):
        compare_runs.main(flags.format(tmp_path).split())


# ----------------------------------------------------------------------------------------------------------------------
# the page


def test_page_is_whole_and_ends_cleanly(tmp_path):
    """Moments at which the page is half there, needs a network, or shows no curve of a running run: 0. ctrl-C exits
    with 0 and leaves a page that does not wait for a next one."""
    folders = [make_run(tmp_path / "runs" / f"run_s{seed}", seed, finished=False) for seed in range(2)]
    page = tmp_path / "live" / "index.html"
    command = [sys.executable, str(REPO / "compare_runs.py"), "--list", str(tmp_path / "runs" / "*"), "--watch", "1",
               "--out", str(page.parent)]
    with disk.hold(folders[0]):
        process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)
        texts, until = set(), time.monotonic() + 120
        while len(texts) < 2:
            assert time.monotonic() < until and process.poll() is None
            with contextlib.suppress(FileNotFoundError):
                texts.add(page.read_text())
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "no longer kept fresh" in out
    last = page.read_text()
    for text in texts | {last}:
        assert text.startswith("<!doctype html>") and text.endswith("</html>\n") and "run_s1" in text
        assert "http:" not in text and "https:" not in text
        assert text.count("<svg ") == 2 * len(run_list.PICTURES) == 4 and " src=" not in text
    assert all('http-equiv="refresh" content="1"' in text for text in texts) and "refresh" not in last
    assert os.listdir(page.parent) == ["index.html"]
    run_list.check_page(page.parent)  # the next --watch may use it


# ----------------------------------------------------------------------------------------------------------------------
# deleting


def test_prune_deletes_only_what_nobody_needs(tmp_path, capsys):
    """Files that --prune deletes without --yes: 0; and with it, those outside the checkpoints that it named: 0."""
    folder = tmp_path / "runs"
    done = add_checkpoints(make_run(folder / "done"), 10, 20, 30, 40)
    (done / "ckpt" / "step_000040" / "model.safetensors").write_bytes(b"torn")  # 30 is the last whole one
    for name in ("step_000035.aside", ".tmp_step_000036", "step_000010.bak"):
        (done / "ckpt" / name).mkdir()
        (done / "ckpt" / name / "x").write_text("x")
    outside = add_checkpoints(make_run(tmp_path / "outside"), 5, 6)
    (done / "ckpt" / "step_000005").symlink_to(outside / "ckpt" / "step_000005")
    (done / "ckpt" / "step_000010" / "link").symlink_to(outside / "ckpt" / "step_000006")
    child = add_checkpoints(make_run(folder / "child", config={"data.x": 1}), 1)
    config = json.loads((child / "config.json").read_text())
    disk.write_json(child / "config.json", {**config, "init": {"folder": str(done / "ckpt" / "step_000020")}})
    held = add_checkpoints(make_run(folder / "held"), 1, 2)
    crashed = add_checkpoints(make_run(folder / "crashed", finished=False), 1, 2)
    elsewhere = add_checkpoints(make_run(folder / "elsewhere"), 1, 2)
    lock(host="another")(elsewhere)
    (folder / "linked").symlink_to(outside)
    moved = make_run(folder / "moved")
    (moved / "ckpt").rmdir()
    (moved / "ckpt").symlink_to(outside / "ckpt")
    before, beside = content(folder), content(outside)

    with disk.hold(held):
        assert compare_runs.main(["--list", str(folder / "*"), "--prune"]) == 0
        shown = capsys.readouterr().out
        gone = {path for path in before if re.match(
            r"done/ckpt/(step_000010|step_000040|step_000035\.aside|\.tmp_step_000036)/", path)}
        size = sum((folder / path).stat().st_size for path in gone) + len(os.readlink(done / "ckpt/step_000010/link"))
        words = units.size(size)
        assert f"would free {words} in 4 checkpoints" in shown
        assert ("step_000030 (the last whole one)" in shown and "step_000020 (child started from it)" in shown
                and "step_000005 (no folder)" in shown)
        for line in ("held: stays: a process holds it", "elsewhere: stays: a process holds it",
                     "crashed: stays: it is crashed", "is a link"):
            assert line in shown
        now = content(folder)
        del now["held/.lock"]
        assert now == before
        assert compare_runs.main(["--list", str(folder / "*"), "--prune", "--yes"]) == 0
        assert f"freed {words}" in capsys.readouterr().out
    left = content(folder)
    assert set(before) - set(left) == gone
    assert all(left[path] == before[path] for path in left)
    assert content(outside) == beside and (done / "ckpt" / "step_000005").is_symlink()
    assert not (done / ".lock").exists() and crashed.exists()


def test_prune_knows_runs_beside_those_listed(tmp_path, capsys):
    """Checkpoints that go although a run which is not listed, in the same folder, started from them: 0."""
    base = add_checkpoints(make_run(tmp_path / "base"), 1, 2, 3)
    child = make_run(tmp_path / "child")
    config = json.loads((child / "config.json").read_text())
    disk.write_json(child / "config.json", {**config, "init": {"folder": str(base / "ckpt" / "step_000002")}})
    assert compare_runs.main(["--list", str(base), "--prune", "--yes"]) == 0
    assert "step_000002 (child started from it)" in capsys.readouterr().out
    assert sorted(os.listdir(base / "ckpt")) == ["step_000002", "step_000003"]


def test_prune_of_a_run_without_a_whole_checkpoint(tmp_path, capsys):
    """Checkpoints that go when none of them is whole: 0."""
    run = add_checkpoints(make_run(tmp_path / "run"), 1, 2)
    for path in Path(run / "ckpt").iterdir():
        (path / "manifest.json").unlink()
    before = content(run)
    assert compare_runs.main(["--list", str(run), "--prune", "--yes"]) == 0
    assert "none of its checkpoints is whole" in capsys.readouterr().out and content(run) == before


def test_prune_says_what_it_could_not_delete(tmp_path, monkeypatch):
    """A checkpoint that cannot be deleted: exit 1 in a sentence that names the run, and the others are done."""
    stuck, fine = (add_checkpoints(make_run(tmp_path / name), 1, 2) for name in ("a_stuck", "b_fine"))
    rmtree = run_list.shutil.rmtree

    def refuse(path, *rest, **more):
        if "a_stuck" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, *rest, **more)

    monkeypatch.setattr(run_list.shutil, "rmtree", refuse)
    with pytest.raises(ValueError, match="not all was deleted .*a_stuck.*Permission denied"):
        compare_runs.main(["--list", str(tmp_path / "*"), "--prune", "--yes"])
    assert [path.name for path in runs.list_checkpoints(fine)] == ["step_000002"]
