"""experiments/package_release.py: one folder to hand on, of one checkpoint per run, whole or not there at all."""

import hashlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
from conftest import ENV, REPO, STEPS, make_run

from lab import disk, runs

SCRIPT = REPO / "experiments" / "package_release.py"
spec = importlib.util.spec_from_file_location("package_release", SCRIPT)
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


def save(run, step):
    """A checkpoint of a few bytes."""
    def write(folder):
        for name in runs.PARTS:
            (folder / name).write_bytes(f"{run.name} {name} {step}".encode())
    runs.save_checkpoint(run, step, write, 0, keep_last=0)


def score(run, of_step, name="niah_pilot", **change):
    """An eval file as long_context.py writes it; change: None leaves a key out."""
    folder = runs.checkpoint_path(run, of_step)
    record = {"niah_2048": 0.1, "checkpoint": str(folder), "step": of_step,
              "checkpoint_sha256": disk.sha256_file(folder / "model.safetensors")} | change
    (run / "eval").mkdir(exist_ok=True)
    disk.write_json(run / "eval" / f"{name}.json", {k: value for k, value in record.items() if value is not None})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs with checkpoints of steps 20 and 40; titan lacks scores."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("hope", "titan"):
        run = make_run(folder / name, hellaswag=0.4)
        (run / "log.txt").write_text("a line\n")
        for step in (20, STEPS):
            save(run, step)
    score(run.with_name("hope"), STEPS)
    (folder / "hope" / "eval" / "niah_pilot_items.jsonl").write_text("{}\n")
    return folder


@pytest.fixture
def hope(finished, tmp_path, monkeypatch):
    """A copy of that run, packed without the seconds that a plot takes."""
    monkeypatch.setattr(release, "draw_losses", lambda folder: b"png")
    shutil.copytree(finished / "hope", tmp_path / "hope")
    return tmp_path / "hope"


def pack(*folders, out, **options):
    release.pack(list(folders), out, options.get("step"))
    return out


def refused(*folders, out, match, **options):
    """The sentence; nothing is left of it."""
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(ValueError, match=match):
        pack(*folders, out=out, **options)
    assert sorted(path.name for path in out.parent.iterdir()) == before


def test_bundle(finished, tmp_path, capsys):
    """All that was promised, from both runs, under checksums that sha256sum can read; verify finds nothing."""
    out = pack(finished / "hope", finished / "titan", out=tmp_path / "artifacts" / "pilot")
    sums = dict(reversed(line.split("  ", 1)) for line in (out / "MANIFEST.txt").read_text().splitlines())
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert set(sums) == set(files) - {"MANIFEST.txt"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == sums[name] for name in sums)
    expected = ["config.json", "log.txt", "scalars.jsonl", "summary.json", "plots/loss.png", "eval/niah_pilot.json",
                "eval/niah_pilot_items.jsonl", "hellaswag_metrics.jsonl", "ckpt/step_000040/model.safetensors"]
    assert {f"hope/{name}" for name in expected} <= set(files)
    assert not any("step_000020" in name for name in files)
    assert files["hope/plots/loss.png"].read_bytes().startswith(b"\x89PNG")
    about = json.loads((out / "metadata.json").read_text())
    assert about["runs"]["hope"]["step"] == about["runs"]["titan"]["step"] == STEPS
    assert about["runs"]["hope"]["flags"]["seed"] == 0 and about["runs"]["hope"]["parameters"]["total"] == 809408
    assert about["runs"]["hope"]["evals"] == ["eval/niah_pilot.json"]
    assert about["runs"]["hope"]["scores"]["val_loss"] > 0
    recorded = {name: entry["sha256"] for name, entry in about["files"].items()}
    assert recorded == {name: value for name, value in sums.items() if name != "metadata.json"}
    release.verify(out)
    assert "hope: step 40, 1 eval files" in capsys.readouterr().out
    checkpoint, step, run = runs.resolve_checkpoint(out / "hope")  # every script reads a packed run as a run
    assert (step, run) == (STEPS, out / "hope") and runs.read_run(out / "hope")["notes"] == []


def test_items_and_own_plots_are_packed_as_they_are(hope, tmp_path):
    """Files of a run that the bundle lacked, or held with other bytes: records per item, its own plots/loss.png."""
    (hope / "plots").mkdir()
    for name in ("plots/loss.png", "loss.png", "other.png", "probes.jsonl"):
        (hope / name).write_text(f"own {name}\n")
    out = pack(hope, out=tmp_path / "out") / "hope"
    assert (out / "hellaswag_items.jsonl").read_bytes() == (hope / "hellaswag_items.jsonl").read_bytes()
    for name in ("plots/loss.png", "loss.png", "probes.jsonl"):
        assert (out / name).read_text() == f"own {name}\n"
    assert (out / "plots" / "other.png").exists() and not (out / "other.png").exists()
    release.verify(out.parent)


def test_a_broken_checkpoint_is_passed_over(hope, tmp_path, capsys):
    """The newest whole one is packed, and the scores of the broken one are not put beside it."""
    (runs.checkpoint_path(hope, STEPS) / "optimizer.pt").write_bytes(b"torn")
    refused(hope, out=tmp_path / "out", match="niah_pilot.json is of other weights .*step_000020: score that one")
    (hope / "eval" / "niah_pilot.json").unlink()
    out = pack(hope, out=tmp_path / "out")
    assert (out / "hope" / "ckpt").is_dir() and "optimizer.pt does not match" in capsys.readouterr().err
    assert json.loads((out / "metadata.json").read_text())["runs"]["hope"]["step"] == 20
    (runs.checkpoint_path(hope, 20) / "rng.pt").unlink()
    refused(hope, out=tmp_path / "more", match="no whole checkpoint .*rng.pt.*: let the run save one")


@pytest.mark.parametrize(("change", "match"), [
    (dict(step=20), "is of step 20"), (dict(checkpoint_sha256="0" * 64), "is of other weights"),
    (dict(checkpoint_sha256=None, step=None, checkpoint=None), "names no checkpoint"),
    (dict(checkpoint_sha256=None, step=None, checkpoint="runs/hope/ckpt/step_000020"), "is of runs/hope/ckpt/step_0"),
    (dict(checkpoint_sha256=None, checkpoint="runs/titan/ckpt/step_000040"), "is of runs/titan"),
    (dict(checkpoint="artifacts/step_000020.pt"), "is of artifacts/step_000020.pt"),
    (dict(more=[{"checkpoint": "x/hope/ckpt/step_000040", "step": 20}]), "is of step 20")])
def test_scores_of_another_checkpoint_are_refused(change, match, hope, tmp_path):
    """By weights, step, or path, also deep inside a record; nothing is written."""
    score(hope, STEPS, "continual_pilot", **change)
    refused(hope, out=tmp_path / "out", match=f"continual_pilot.json {match}.*the checkpoint to pack is hope/ckpt")


def test_gsm8k_belongs_to_one_checkpoint(hope, tmp_path):
    disk.write_json(hope / "gsm8k_results.json", {"checkpoint": str(hope / "ckpt" / "step_000020"), "step": 20})
    refused(hope, out=tmp_path / "out", match="gsm8k_results.json is of step 20")


def test_files_of_training_are_history(hope, tmp_path):
    """zeroshot.py in training writes a file per step: that of the checkpoint is packed, earlier ones stay out; a file
    of another step that no *_metrics.jsonl accounts for is refused."""
    for step in (20, STEPS):
        disk.write_json(hope / "eval" / f"hellaswag_step{step:06d}.json", {"step": step, "accuracy": 0.3})
    out = pack(hope, out=tmp_path / "out")
    names = [path.name for path in (out / "hope" / "eval").iterdir()]
    assert "hellaswag_step000040.json" in names and "hellaswag_step000020.json" not in names
    disk.write_json(hope / "eval" / "ppl_step000020.json", {"step": 20})
    refused(hope, out=tmp_path / "more", match="ppl_step000020.json is of step 20")


def test_a_list_of_one_checkpoints_records_is_packed(hope, tmp_path):
    """The original's continual list; and a run that has moved keeps the scores of its weights."""
    moved = hope.rename(hope.with_name("renamed"))
    listed = [{"checkpoint": "renamed/ckpt/step_000040", "segment_losses": {"web": 3.0}}]
    disk.write_json(moved / "eval" / "continual_pilot.json", listed)
    out = pack(moved, out=tmp_path / "out")
    assert (out / "renamed" / "eval" / "continual_pilot.json").exists()


def test_a_step_can_be_named(hope, tmp_path):
    shutil.rmtree(hope / "eval")
    out = pack(hope, out=tmp_path / "out", step=20)
    assert (out / "hope" / "ckpt" / "step_000020").is_dir()
    refused(hope, out=tmp_path / "more", match="no whole checkpoint of step 30", step=30)


def test_refusals(hope, finished, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    refused(hope, out=tmp_path / "there", match="exists already")
    refused(hope, finished / "hope", out=tmp_path / "out", match="two runs are named hope")
    refused(tmp_path / "there", out=tmp_path / "out", match="is not a run")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
        refused(hope, out=tmp_path / "out", match="0.00 GB free")
    with disk.hold(tmp_path / ".tmp_out"), pytest.raises(ValueError, match="is held by process .*wait until"):
        pack(hope, out=tmp_path / "out")
    (hope / "log.txt").unlink()
    refused(hope, out=tmp_path / "out", match="no log.txt")


@pytest.mark.parametrize("content, words", [
    ("[]", "it is \\[\\], not an object"), ('{"code": 3}', "code is 3, not an object")])
def test_a_damaged_config_is_refused(hope, tmp_path, content, words):
    """One sentence, with its place."""
    (hope / "config.json").write_text(content)
    refused(hope, out=tmp_path / "out", match=f"config.json is damaged .{words}.*: restore it, or name another run")


def test_a_full_disk_leaves_nothing(hope, tmp_path, monkeypatch):
    """In the middle of the copy; the parents that were made go, too."""
    original, copies = shutil.copyfile, []

    def full(*args):
        copies.append(args)
        if len(copies) == 5:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(shutil, "copyfile", full)
    refused(hope, out=tmp_path / "a", match="cannot be made .*No space")
    copies.clear()
    with pytest.raises(ValueError, match="free space"):
        pack(hope, out=tmp_path / "deep" / "er" / "out")
    assert not (tmp_path / "deep").exists()


KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(REPO)!r})
sys.path.insert(0, {str(SCRIPT.parent)!r})
import package_release as release
out, at, number = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
seen = 0
def watch(event, args):
    global seen
    writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile"):
        seen += 1
        if seen == at + 1:
            os.kill(os.getpid(), number)
release.draw_losses = lambda folder: b"png"  # seconds of matplotlib
sys.addaudithook(watch)
release.main([sys.argv[1], "--out", out])
at = -1
print(seen)
"""


def start(run, out, at, number=signal.SIGKILL):
    command = [sys.executable, "-c", KILLED, str(run), str(out), str(at), str(int(number))]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)


def test_killed_anywhere_it_leaves_nothing_or_all(hope, tmp_path):
    """kill -9 at file operations from the first to the last: no bundle, or a whole one; the next call cleans up."""
    place = tmp_path / "artifacts"
    place.mkdir()
    done = start(hope, place / "whole", -1)
    total = int(done.stdout.split()[-1])
    assert done.returncode == 0 and total > 40, done.stderr
    for at in (0, 2, 4, total // 3, total // 2, total - 6, total - 4, total - 2, total - 1):
        killed = start(hope, place / "out", at)
        assert killed.returncode == -signal.SIGKILL
        assert {path.name for path in place.iterdir()} <= {"whole", "out", ".tmp_out"}
        if (place / "out").exists():
            release.verify(place / "out")
            shutil.rmtree(place / "out")
        pack(hope, out=place / "out")
        release.verify(place / "out")
        shutil.rmtree(place / "out")
        assert [path.name for path in place.iterdir()] == ["whole"]
    asked = start(hope, place / "out", total // 2, signal.SIGTERM)
    assert asked.returncode != 0, asked.stderr
    assert [path.name for path in place.iterdir()] == ["whole"], asked.stderr


@pytest.mark.parametrize(("harm", "match"), [
    (lambda out: (out / "hope/log.txt").write_text("other\n"), "log.txt does not match its checksum"),
    (lambda out: (out / "hope/scalars.jsonl").unlink(), "scalars.jsonl is missing"),
    (lambda out: (out / "hope/more.txt").touch(), "more.txt is not in the manifest"),
    (lambda out: (out / "MANIFEST.txt").write_text("x\n"), "broken line, 1"),
    (lambda out: (out / "MANIFEST.txt").unlink(), "is no bundle")])
def test_verify_finds_what_changed(harm, match, finished, tmp_path):
    out = pack(finished / "hope", out=tmp_path / "out")
    harm(out)
    with pytest.raises(ValueError, match=match):
        release.verify(out)


@pytest.mark.parametrize(("flags", "words"), [
    ([], "name at least one run and --out"), (["x", "--out", "y", "--verify", "z"], "give it alone"),
    (["nowhere", "--out", "y"], "is not a run"), (["--verify", "nowhere"], "is no bundle")])
def test_the_command_line_is_a_sentence(flags, words, tmp_path):
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("package_release.py: ") and list(tmp_path.iterdir()) == []
