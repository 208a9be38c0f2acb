"""experiments/run_124m.sh in small: stopped twice, it goes on and ends with the report; then it changes nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ENV, REPO

from lab import runs

SCRIPT = REPO / "experiments" / "run_124m.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
TINY = {"SMALL": "1", "PYTHON": sys.executable, "SEEDS": "0", "TOKENS": "6144", "HELLASWAG_DATA": "synthetic:8"}
WITHOUT_COST = ("prepare", "train", "evals", "export", "report")


def start(out, *parts, **variables):
    return subprocess.Popen(["bash", str(SCRIPT), *parts], env={**ENV, **TINY, "OUT": str(out), **variables},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def stop_when(process, condition):
    """SIGTERM to the script alone, once condition() holds. Nothing that it started may outlive it."""
    until = time.time() + 300
    while not condition():
        assert process.poll() is None and time.time() < until, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)  # until the last that holds its output has ended
    assert process.returncode != 0, printed
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def contents(out):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")
            if path.is_file() and not path.name.startswith("runs_")}


@pytest.mark.slow
def test_stopped_twice_it_ends_with_the_report(tmp_path):
    """Both arms and their export are there, each step trained once; what was finished is never made again."""
    out = tmp_path / "out"
    rows = out / "rows"
    mistake = start(out, "prepare", DATASET="nowhere.jsonl")
    assert "nowhere.jsonl" in mistake.communicate(timeout=120)[0] and mistake.returncode == 1  # which may be corrected
    stop_when(start(out), lambda: list(out.glob("data_stream*/meta.json")))
    scalars = rows / "stream_s0" / "scalars.jsonl"
    stop_when(start(out), lambda: scalars.exists() and scalars.read_text().count('"train"') >= 2)
    whole = start(out)
    printed, _ = whole.communicate(timeout=550)
    assert whole.returncode == 0 and "report.html" in printed, printed
    for arm in ("stream", "bos_rows"):
        records = runs.read_jsonl(rows / f"{arm}_s0" / "scalars.jsonl")
        assert [record["step"] for record in records if record["type"] == "train"] == list(range(1, 13))
        assert (rows / "hf" / f"{arm}_s0" / "model.safetensors").exists()
    report = json.loads((rows / "report" / "report.json").read_text())
    assert report["verdict"] != "not comparable" and report["primary"] == "val_loss"
    assert [d["knob"] for d in report["gate"]["differences"] if d["state"] == "differs"] == []
    assert "2 runs x 6,144 tokens" in (rows / "cost.txt").read_text()

    before = contents(out)
    again = start(out)
    printed, _ = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    assert contents(out) == before

    for parts, variables, words in [
            ((), {"DATASET": str(REPO)},
             " was made with other settings (DATASET=synthetic DECONTAMINATE=; now DATASET="),
            (("report",), {"SEEDS": "0 1"}, "stream_s1 is not finished: run the part train first."),
            (("cost",), {"TOKENS": "60000B"}, "the disk is too small: free ")]:
        other = start(out, *parts, **variables)
        printed, _ = other.communicate(timeout=120)
        assert other.returncode == 1 and words in printed, printed
        assert {path: stamp for path, stamp in contents(out).items() if path in before and "cost" not in path.name} == {
            path: stamp for path, stamp in before.items() if "cost" not in path.name}
    (rows / "reported").write_text("a report of other runs\n")
    printed, _ = start(out, "report").communicate(timeout=120)
    assert contents(out)[rows / "report" / "report.html"] != before[rows / "report" / "report.html"], printed


@pytest.mark.slow
def test_a_vocabulary_of_the_corpus(tmp_path):
    """GPT-2's tokens against 600 that are learned once, from what is not held out; exported with its tokenizer."""
    process = start(tmp_path / "out", *WITHOUT_COST, ARMS="vocabulary", VOCAB_SIZE="600")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "report.html" in printed, printed
    report = json.loads((tmp_path / "out" / "vocabulary" / "report" / "report.json").read_text())
    assert report["primary"] == "val_bits_per_byte" and report["verdict"] != "not comparable"
    assert json.loads((tmp_path / "out" / "own_600" / "training.json").read_text())["val_fraction"] == 0.1
    exported = tmp_path / "out" / "vocabulary" / "hf" / "own_s0"
    assert (exported / "tokenizer.json").read_bytes() == (tmp_path / "out" / "own_600" / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_a_change_of_flags(tmp_path):
    """Any flags are an arm, in a folder of its own and declared in the report; a wrong one is found before anything is
    trained."""
    for change, words in (("--positions ripe", "--positions ripe: choose one of"), ("--n_head 7", "use n_head 1, 2"),
                          ("--micro_batch_size 4", "CHANGE has --micro_batch_size, which changes no training")):
        wrong = start(tmp_path / "out", "train", ARMS="change", CHANGE=change)
        printed, _ = wrong.communicate(timeout=120)
        assert wrong.returncode != 0 and words in printed and "Traceback" not in printed, printed
    process = start(tmp_path / "out", *WITHOUT_COST, ARMS="change", CHANGE="--mlp swiglu --beta2 0.99")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "report.html" in printed, printed
    out = tmp_path / "out" / "change_mlp_swiglu_beta2_0.99"
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["verdict"] != "not comparable"
    treatment = {d["knob"] for d in report["gate"]["differences"] if d["state"] == "treatment"}
    assert treatment == {"mlp", "beta2"}  # the narrower MLP of as many parameters is a note
    assert {path.name for path in (out / "hf").iterdir()} == {"gpt2_s0"}


@pytest.mark.parametrize(("parts", "variables", "words"), [
    ((), {"ARMS": "row"}, "ARMS=row is unknown: use rows, tokens, vocabulary, gates, optimizers or change."),
    ((), {"ARMS": "change"}, "CHANGE='' names no flags: give those of the second arm"),
    ((), {"ARMS": "change", "CHANGE": "positions rope"}, "CHANGE='positions rope' names no flags: give those"),
    ((), {"CHANGE": "--beta2 0.9"}, "CHANGE is of ARMS=change alone: give both, or neither."),
    (("trian",), {}, "trian is no part: use cost, prepare"),
    ((), {"ARMS": "vocabulary", "VOCAB_SIZE": "99"}, "VOCAB_SIZE=99 is no vocabulary: give 257 to 65536."),
    ((), {"SEEDS": "0 x"}, "SEEDS has x: give whole numbers"),
    ((), {"SEEDS": "0 00"}, "SEEDS has 00: give whole numbers"),
    ((), {"SEEDS": "1 0 1"}, "SEEDS has 1 twice: give each seed once"),
    ((), {"SEEDS": " "}, "SEEDS is empty: give whole numbers"),
    ((), {"SEEDS": "9" * 20}, "give whole numbers below a billion"),
    ((), {"TOKENS": "ten"}, "TOKENS=ten is no number, or too large: write 300M"),
    ((), {"TOKENS": "99999999999B"}, "is no number, or too large: write 300M"),
    ((), {"TOKENS": "0000000099"}, "less than one step: give 512 or more"),
    ((), {"OVERFLOW": "bar"}, "OVERFLOW=bar is unknown: use crop, split or requeue."),
    ((), {"MAX_EPOCHS": "many"}, "MAX_EPOCHS=many is no number: write 1.05 or 3."),
    ((), {"HELLASWAG_DATA": "/nope"}, "HELLASWAG_DATA=/nope does not exist: name a file."),
    ((), {"PYTHON": "/nope"}, "there is no command /nope: correct PYTHON or LAUNCHER (where a path with a space"),
    ((), {"LAUNCHER": "/my dir/torchrun"}, "there is no command /my: correct PYTHON or LAUNCHER (where a path with"),
    ((), {"LAUNCHER": "'/my dir/torchrun"}, "torchrun has a quotation mark that is not closed: close it."),
    ((), {"TOKENS": "10"}, "less than one step: give 512 or more"),
    ((), {"OUT": "/tmp/my runs"}, "has a space in it: name another folder."),
])
def test_bad_settings_are_sentences(tmp_path, parts, variables, words):
    """A typing error would cost days on the wrong experiment."""
    process = start(tmp_path / "out", *parts, **variables)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and printed.startswith("run_124m.sh: ") and words in printed
    assert len(printed.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["my items.jsonl", "o'brien.jsonl"])
def test_a_benchmark_that_a_list_of_runs_cannot_name(tmp_path, name):
    """It would stop the trainings, after hours of preparing."""
    (tmp_path / name).write_text("")
    printed, _ = start(tmp_path / "out", HELLASWAG_DATA=str(tmp_path / name)).communicate(timeout=60)
    words = "has a space or a quotation mark in it: put"
    assert re.fullmatch(f"run_124m.sh: HELLASWAG_DATA=.* {words} .*\n", printed), printed


@pytest.mark.slow
def test_a_launcher_in_a_folder_with_a_space(tmp_path):
    """What the trainings are started by, in the measurement and in the list of runs: such a path was two words."""
    launcher = tmp_path / "my tools" / "launch.sh"
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\necho "$1" >> "{tmp_path}/started"\nshift\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    process = start(tmp_path / "out", "cost", "prepare", "train", LAUNCHER=f"  '{launcher}' \\--n=2")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert (tmp_path / "started").read_text() == "--n=2\n" * 3  # the measurement, and a run of each arm


def test_other_folders_of_the_same_name(tmp_path):
    """CDPATH, which sends cd elsewhere: the script is in its own repository all the same."""
    (tmp_path / "elsewhere" / "experiments").mkdir(parents=True)
    env = {**ENV, **TINY, "OUT": str(tmp_path / "out"), "CDPATH": str(tmp_path / "elsewhere")}
    process = subprocess.run(["bash", "experiments/run_124m.sh", "cost"], cwd=REPO, env=env, capture_output=True,
                             text=True, timeout=120)
    assert process.returncode == 0 and "2 runs x" in process.stdout, process.stderr
