"""experiments/pilot_suite.sh: document 004's evaluations of tiny checkpoints, kept, continued, and fit to be packed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ENV, REPO, make_run
from test_release import release

from lab import disk, runs
from model import GPT, GPTConfig

SUITE = REPO / "experiments" / "pilot_suite.sh"
EVALS = "zeroshot niah passkey pg19 continual".split()
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
QUICK = {
    "PYTHON": sys.executable, "DEVICE": "cpu", "ZEROSHOT_DATA": "synthetic:2", "MAX_SAMPLES": "2",
    "TEXT_DATA": "synthetic:4", "NIAH_CONTEXTS": "192", "NIAH_SAMPLES": "2", "PASSKEY_CONTEXT": "192",
    "PASSKEY_SAMPLES": "2", "PG19_DOCUMENTS": "2", "PG19_TOKENS": "96", "SEGMENTS": "A=synthetic B=synthetic",
    "CONTINUAL_DOCUMENTS": "2", "CONTINUAL_TOKENS": "64", "BATCH_SIZE": "4"}


def suite(cwd, **variables):
    env = {key: value for key, value in ENV.items() if not key.endswith("_CHECKPOINT")}
    return subprocess.run(["bash", str(SUITE)], env={**env, **QUICK, **variables}, cwd=cwd, capture_output=True,
                          text=True, timeout=550)


def tiny(memory, seed=0):
    more = dict(memory=memory, cms_periods=(16, 0))
    if memory == "none":
        more = {}
    return GPT(GPTConfig(vocab_size=50257, block_size=64, n_layer=1, n_head=2, n_embd=16, **more), seed=seed)


def save(run, step, model):
    def write(folder):
        model.save(folder)
        for name in ("optimizer.pt", "rng.pt", "trainer.json"):
            (folder / name).write_text(name)
    runs.save_checkpoint(run, step, write, 0, keep_last=0)


@pytest.mark.slow
def test_every_evaluation_once(tmp_path):
    """A run and a bare model: all five files under their tags, each of the newest weights; the same command scores only
    what is missing or of other weights; package_release.py takes them."""
    hope = make_run(tmp_path / "my runs" / "hope")
    (hope / "log.txt").touch()
    save(hope, 40, tiny("hope_attention"))
    tiny("none").save(tmp_path / "plain")
    places = dict(HOPE_CHECKPOINT="my runs/hope", HOPE_TAG="pilot", TRANSFORMER_CHECKPOINT="plain")
    done = suite(tmp_path, **places, EVALS=EVALS[0])
    assert done.returncode == 0, done.stdout + done.stderr
    done = suite(tmp_path, **places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": done, ") == 2
    folders = {"pilot": hope / "eval", "transformer": tmp_path / "plain" / "eval"}
    weights = {"pilot": hope / "ckpt" / "step_000040", "transformer": tmp_path / "plain"}
    for tag, folder in folders.items():
        sha256 = disk.sha256_file(weights[tag] / "model.safetensors")
        for name in EVALS:
            records = json.loads((folder / f"{name}_{tag}.json").read_text())
            for record in records if isinstance(records, list) else [records]:
                assert record["checkpoint_sha256"] == sha256
        assert (folder / f"zeroshot_{tag}_items.jsonl").exists() and not (folder / f"zeroshot_{tag}").exists()
    zeroshot = [json.loads((folder / f"zeroshot_{tag}.json").read_text()) for tag, folder in folders.items()]
    assert [record["adapt"] for record in zeroshot] == ["prompt", "off"]
    release.pack([hope], tmp_path / "bundle", None)
    assert (tmp_path / "bundle" / "hope" / "eval" / "niah_pilot.json").exists()

    save(hope, 60, tiny("hope_attention", seed=1))  # it has trained on
    with pytest.raises(ValueError, match="pilot.json is of other weights"):
        release.pack([hope], tmp_path / "newer", None)
    (folders["transformer"] / "pg19_transformer.json").unlink()
    done = suite(tmp_path, **places, EVALS="pg19")
    assert done.returncode == 0 and ": done, " not in done.stdout
    assert json.loads((hope / "eval" / "pg19_pilot.json").read_text())["step"] == 60


@pytest.mark.parametrize(("variables", "words"), [
    ({}, "no checkpoint: give HOPE_CHECKPOINT"), (dict(HOPE_CHECKPOINT="nowhere"), "HOPE_CHECKPOINT nowhere is not a"),
    (dict(HOPE_CHECKPOINT="x", SEGMENTS=""), "SEGMENTS names no texts"),
    (dict(HOPE_CHECKPOINT="x", EVALS="niah gsm8k"), "EVALS has gsm8k")])
def test_mistakes_are_a_sentence(variables, words, tmp_path):
    done = suite(tmp_path, **variables)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("pilot_suite.sh: ") and os.listdir(tmp_path) == []


@pytest.mark.parametrize(("variables", "words"), [
    (dict(TITAN_CHECKPOINT="plan"), "TITAN_CHECKPOINT plan is not a folder"),
    (dict(NIAH_CONTEXTS="2048,x"), "long_context.py niah: --context_lengths"),
    (dict(SEGMENTS="A=gone.jsonl"), "gone.jsonl: no such file"),
    (dict(MAX_SAMPLES="few"), "zeroshot.py: --max_examples 'few': give a whole number"),
    (dict(TITAN_CHECKPOINT="plain", TITAN_TAG="hope"), "two checkpoints have the tag hope in"),
    (dict(TITAN_CHECKPOINT="hope", BATCH_SIZE="1"), "the control other needs a second text")])
def test_what_would_fail_late_is_refused_before_the_first_evaluation(variables, words, tmp_path):
    """Of the last evaluation of the last checkpoint: a sentence, and nothing is scored or written."""
    tiny("none").save(tmp_path / "plain")
    tiny("hope_attention").save(tmp_path / "hope")
    before = sorted(tmp_path.rglob("*"))
    done = suite(tmp_path, **dict(HOPE_CHECKPOINT="plain", EVALS="pg19 zeroshot niah continual"), **variables)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
    assert "==" not in done.stdout and sorted(tmp_path.rglob("*")) == before


def test_a_failed_evaluation_ends_the_suite(tmp_path):
    """With the evaluation's own sentence and status; nothing later is begun."""
    tiny("none").save(tmp_path / "plain")
    python = tmp_path / "python"
    fails = 'case "$*" in *"long_context.py ppl"*) echo "disk full" >&2; exit 3 ;; esac'
    python.write_text(f'#!/usr/bin/env bash\n{fails}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = suite(tmp_path, TRANSFORMER_CHECKPOINT="plain", EVALS="pg19 niah", PYTHON=str(python))
    assert done.returncode == 3 and "disk full" in done.stderr
    assert "== pg19 of" in done.stdout and "niah" not in done.stdout
