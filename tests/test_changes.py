"""Changes that a stranger makes, each in one place of a copy of the repo, tried through the scripts.

The others of the list have tests beside what they change: a benchmark (test_benchmarks.py), a block with inner state
(test_inner_state.py), a column of the A/B table (test_compare_runs.py), a format of shards (test_shards.py).
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from lab import runs

EDITS = {  # file -> (a line that is there, the lines in its place)
    "model.py": ("GATE_ACTIVATIONS = {\n", 'GATE_ACTIVATIONS = {\n    "tanh": torch.tanh,\n'),
    "lab/optim.py": (
        "OPTIMIZERS = {\n",
        '''SGD_LR = {"--sgd_lr": dict(type=float, default=0.1, help="peak for SGD")}
def sgd(params, rank, world_size, *, sgd_lr):
    groups = [dict(name="sgd", params=list(params.values()), initial_lr=sgd_lr)]
    return [torch.optim.SGD(groups, lr=sgd_lr)]
OPTIMIZERS = {
    "sgd": Choice(sgd, SGD_LR),
''',
    ),
    "lab/sources.py": (
        "DOCUMENT_READERS = {\n",
        '''def _read_log(f, path, field, skip):
    lines = [_checked(line.strip()) for line in f]
    yield skip, None
    yield len(lines) - skip, lines[skip:]
DOCUMENT_READERS = {
    ".log": _read_log,
''',
    ),
    "lab/training.py": (
        "    step: int = 0\n",
        "    step: int = 0\n    begun: str = field(default_factory=lambda: str(time.time_ns()))\n",
    ),
}


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A copy of the repo with every edit made, and a folder of documents in the new format."""
    repo = tmp_path_factory.mktemp("stranger") / "repo"
    shutil.copytree(runs.REPO / "lab", repo / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for path in runs.REPO.glob("*.py"):
        shutil.copy(path, repo)
    for name, (line, lines) in EDITS.items():
        text = (repo / name).read_text()
        assert text.count(line) == 1, f"{name}: {line!r}"
        (repo / name).write_text(text.replace(line, lines))
    words = [f"Document {i} tells of {'rain and wind ' * (5 + i % 7)}." for i in range(400)]
    (repo / "corpus.log").write_text("\n".join(words) + "\n")
    done = script(repo, "prepare_fineweb.py", "--dataset", "corpus.log", "--out_dir", "data", "--val_fraction", "0.1")
    assert done.returncode == 0, done.stderr[-2000:]
    return repo


def script(repo, *command):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=300)


def train(repo, name, *flags):
    tiny = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 --total_batch_tokens 128 "
            "--max_train_steps 4 --eval_every 4 --save_every 2 --keep_last 0").split()
    return script(repo, "train_gpt.py", "--data_dir", "data", "--out_dir", name, "--results_csv", "results.csv",
                  *tiny, *flags)


def test_source(repo):
    """A source of documents is one reader and one word in one table: all 400 documents are read."""
    assert json.loads((repo / "data" / "meta.json").read_text())["docs_processed"] == 400


def test_gate_activation(repo):
    """One line in one table: the flag knows it, the gate computes it, and a name that is not there cannot train."""
    done = train(repo, "tanh", "--attn_gate", "headwise", "--gate_act", "tanh")
    assert done.returncode == 0, done.stderr[-2000:]
    looks = [r for r in runs.read_jsonl(repo / "tanh" / "scalars.jsonl") if r["type"] == "mechanism"]
    assert abs(looks[0]["layers"][0]["gate_mean"]) < 0.1  # tanh(0) = 0; both sigmoids begin at 0.5 or above
    assert "tanh" in script(repo, "train_gpt.py", "--help").stdout
    refused = train(repo, "tanhh", "--attn_gate", "headwise", "--gate_act", "tanhh")
    assert refused.returncode == 2 and "tanhh" in refused.stderr and not (repo / "tanhh").exists()


def test_optimizer(repo):
    """One entry with its own learning rate: a flag, a record, a column, and a difference that the gate sees."""
    for name, rate in (("slow", "0.1"), ("fast", "0.2")):
        done = train(repo, name, "--optimizer", "sgd", "--sgd_lr", rate)
        assert done.returncode == 0, done.stderr[-2000:]
    unused = runs.read_run(repo / "slow")["config"]["unused_flags"]
    assert "sgd_lr" not in unused and {"learning_rate", "muon_lr"} <= set(unused)
    compared = script(repo, "compare_runs.py", "--a", "slow", "--b", "fast")
    assert compared.returncode == 2 and "not comparable" in compared.stdout and "sgd_lr" in compared.stdout
    table = script(repo, "compare_runs.py", "--results", "results.csv", "--group_by", "run_id")
    assert table.returncode == 2 and "sgd_lr" in table.stdout
    declared = script(repo, "compare_runs.py", "--a", "slow", "--b", "fast", "--treatment", "sgd_lr")
    assert declared.returncode == 0


def test_checkpoint_field(repo):
    """One line: a field of the state, here the moment of the start, is in every checkpoint and survives a resume."""
    assert train(repo, "long").returncode == 0

    def begun(step):
        return json.loads((repo / "long" / "ckpt" / f"step_{step:06d}" / "trainer.json").read_text())["begun"]

    first = begun(2)
    shutil.rmtree(repo / "long" / "ckpt" / "step_000004")
    (repo / "long" / "summary.json").unlink()
    done = train(repo, "long", "--resume", "auto")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed from" in done.stdout and begun(4) == first
