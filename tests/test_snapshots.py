"""snapshots.py: a change of the code as the thing that is tested, and what meets weights that other code trained."""

import shutil
import subprocess
import sys
import types

from conftest import ENV, REPO, make_run, tiny_documents, write_dataset
from test_compare_runs import NOISE_A, NOISE_B, compare, states

from lab import disk, runs, snapshots

TINY = ("--seq_len 32 --n_layer 1 --n_head 2 --n_embd 16 --micro_batch_size 4 --total_batch_tokens 128 "
        "--max_train_steps 4 --save_every 2 --warmup_iters 1 --eval_every 0 --dtype float32 --results_csv").split()


def code_of(run, text):
    (run / "code").mkdir(exist_ok=True)
    (run / "code" / "model.py").write_text(text)


def edited_arms(folder):
    """Three seeds of two versions of the code, which differ in a line of model.py."""
    for seed in range(3):
        for arm, noise, digit, text in (("base", NOISE_A, "1", "a = 1\ng = gelu\n"),
                                        ("edit", NOISE_B, "2", "a = 1\ng = relu\n")):
            make_run(folder / f"{arm}_s{seed}", seed, loss=noise[seed] - 0.02 * (arm == "edit"),
                     config={"code.code_sha256": digit * 64})
            code_of(folder / f"{arm}_s{seed}", text)


def test_a_run_of_two_versions_is_no_arm_of_changed_code(tmp_path):
    """Its seeds are partly the other arm's: an effect of -0.03 was reported as -0.006, better."""
    edited_arms(tmp_path)
    for seed in range(3):
        config = runs.read_config(tmp_path / f"base_s{seed}")
        config["code"]["versions"] = [{"step": 0, "code_sha256": "1" * 64}, {"step": 20, "code_sha256": "2" * 64}]
        disk.write_json(tmp_path / f"base_s{seed}" / "config.json", config)
    code, report = compare(tmp_path, "--no_items", "--treatment", "code", b="edit_s*")
    assert code == 2 and "several versions of the code in one run: base_s0" in report["headline"]
    code, report = compare(tmp_path, "--no_items", "--allow", "code", b="edit_s*")
    assert code == 0


def test_changed_code_as_the_treatment(tmp_path):
    """Who has edited the network asks just this; the refusal says how to ask, and the report says what was edited."""
    edited_arms(tmp_path)
    code, report = compare(tmp_path, "--no_items", b="edit_s*")
    assert code == 2 and "If it is what you test: `--treatment code`." in report["headline"]
    code, report = compare(tmp_path, "--no_items", "--treatment", "code", b="edit_s*", out=tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"# by its own code, which is in {tmp_path / 'edit_s0' / 'code'}" in text
    assert code == 0 and report["verdict"] == "better" and states(report)["code_sha256"] == "treatment"
    assert report["compared"]["Changed"] == "code: model.py +1 -1"
    code, report = compare(tmp_path, "--no_items", "--allow", "code", b="edit_s*")
    assert code == 0 and states(report)["code_sha256"] == "allowed"


def test_a_run_of_two_versions_of_the_code(tmp_path):
    """A run that was resumed by other code is none of its arm. One that goes back to before that is one again."""
    edited_arms(tmp_path)
    run, now = tmp_path / "edit_s1", {"code_sha256": "2" * 64, "git_commit": None}
    config = runs.read_config(run)
    assert snapshots.record_resumed(run, config, "ckpt/step_000020", now) == []
    assert "versions" not in runs.read_config(run)["code"]
    (told,) = snapshots.record_resumed(run, config, "ckpt/step_000020", now | {"code_sha256": "3" * 64})
    assert "model.py +" in told
    code = runs.read_config(run)["code"]
    assert [one["step"] for one in code["versions"]] == [0, 20] and code["code_sha256"] not in ("2" * 64, "3" * 64)
    assert (run / "code_000020" / "lab" / "snapshots.py").is_file() and snapshots.other_network(run) == []
    code, report = compare(tmp_path, "--no_items", "--treatment", "code", b="edit_s*")
    assert code == 2 and "differs within B" in report["headline"]
    config = runs.read_config(run)
    assert snapshots.record_resumed(run, config, "ckpt/step_000010", now) == []  # before the other code
    assert runs.read_config(run)["code"]["code_sha256"] == "2" * 64 and not (run / "code_000020").exists()
    assert compare(tmp_path, "--no_items", "--treatment", "code", b="edit_s*")[0] == 0
    assert len(snapshots.record_resumed(run, runs.read_config(run), "", now | {"code_sha256": "4" * 64})) == 1
    assert runs.read_config(run)["code"] == {"code_sha256": "4" * 64, "git_commit": None}
    assert (run / "code" / "lab" / "snapshots.py").is_file()


def test_modules_of_your_own(tmp_path, monkeypatch):
    """A module in a folder of one's own was neither in the hash nor in code/; an environment's packages are not."""
    for name in ("model.py", "lab/a.py", "mine/act.py", ".venv/lib/site-packages/torch.py", "tests/test_x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / name)
        monkeypatch.setitem(sys.modules, f"of_{name}", module)
    monkeypatch.setattr(snapshots, "REPO", tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in snapshots.code_files()]
    assert names == ["lab/a.py", "mine/act.py", "model.py"]
    before = snapshots.code_state()["code_sha256"]
    (tmp_path / "mine" / "act.py").write_text("x = 2\n")
    assert snapshots.code_state()["code_sha256"] != before


def test_weights_of_another_network(tmp_path):
    """A checkpoint in other code than its run's: a warning, wherever it is opened, unless only comments differ."""
    run = tmp_path / "run"
    for name in snapshots.NETWORK:
        (run / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, run / "code" / name)
    assert "lab/architecture.py" in snapshots.NETWORK  # where activations and norms are
    assert snapshots.other_network(run) == [] and snapshots.of_scores(run, 4) == snapshots.of_scores(None, 4) == {}
    path = run / "code" / "model.py"
    path.write_text("# a comment\n" + path.read_text().replace('"""', '"""Another docstring. ', 1))
    assert snapshots.other_network(run) == []
    path.write_text(path.read_text() + "x = 1\n")
    (run / "code" / "mine").mkdir()
    (run / "code" / "mine" / "act.py").write_text("x = 1\n")
    assert snapshots.other_network(run) == ["mine/act.py", "model.py"]
    assert snapshots.of_scores(run, 4)["other_network"].startswith("mine/act.py, model.py ")
    told = []
    for _ in range(2):
        runs.warn_of_other_network(run, 4, told.append)
    assert len(told) == 1
    assert told[0].startswith(f"WARNING: {run} was trained by other code than this, of mine/act.py, model.py (")


def test_the_whole_of_it(tmp_path):
    """Train, edit the network, score, resume, and run the run's own copy of the code, as a user would."""
    repo, data, run = tmp_path / "repo", tmp_path / "data", tmp_path / "run"
    repo.mkdir()
    shutil.copytree(REPO / "lab", repo / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for path in REPO.glob("*.py"):
        shutil.copy(path, repo)
    write_dataset(data, tiny_documents(40, 3, 60))

    def do(home, name, *flags):
        done = subprocess.run([sys.executable, home / name, *map(str, flags)], capture_output=True, text=True, env=ENV,
                              cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    train = ["train_gpt.py", "--data_dir", data, "--out_dir", run, *TINY, ""]
    assert do(repo, *train)[0] == 0
    score = ["hellaswag.py", "--checkpoint", run, "--data", "synthetic:4", "--skip_long"]
    assert "WARNING" not in do(repo, *score, "--no_store")[1]
    text = (repo / "model.py").read_text()
    edited = text.replace("class MLP(nn.Module):", "class MLP(nn.Module):\n    mine = 1\n", 1)
    assert edited != text
    (repo / "model.py").write_text(edited)
    status, printed = do(repo, *score)
    assert status == 0 and "was trained by other code than this, of model.py (" in printed
    assert runs.read_run(run)["benchmarks"]["hellaswag"][4]["other_network"].startswith("model.py ")
    status, printed = do(run / "code", *score, "--no_store")
    assert status == 0 and "WARNING" not in printed
    (run / "summary.json").unlink()
    shutil.rmtree(run / "ckpt" / "step_000004")
    (repo / "model.py").write_text(text.replace("self.c_proj = ", "self.c_other = self.c_proj = ", 1))
    status, printed = do(repo, *train, "--resume", "auto")
    assert status and "versions" not in runs.read_config(run)["code"]  # its weights do not fit: nothing was trained
    (repo / "model.py").write_text(edited)
    status, printed = do(repo, *train, "--resume", "auto")
    assert status == 0 and "the code has changed since the run was left (model.py +2 -0)" in printed
    assert [one["step"] for one in runs.read_config(run)["code"]["versions"]] == [0, 2]
    assert "WARNING" not in do(repo, *score, "--no_store")[1]  # as it was trained last
    (repo / "model.py").write_text(text)
    assert "of model.py (" in do(repo, *score, "--no_store")[1]
    score[2] = run / "ckpt" / "step_000002"  # which the first code has trained
    assert "WARNING" not in do(repo, *score, "--no_store")[1]


def test_a_network_that_is_a_link(tmp_path):
    """model.py as a link out of the repository ended in a TypeError, and was no part of the code's hash."""
    repo, own = tmp_path / "repo", tmp_path / "mine.py"
    repo.mkdir()
    shutil.copytree(REPO / "lab", repo / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for path in REPO.glob("*.py"):
        shutil.copy(path, repo)
    (repo / "model.py").rename(own)
    (repo / "model.py").symlink_to(own)
    (tmp_path / "link").symlink_to(repo)  # a repository that is itself reached by a link
    write_dataset(tmp_path / "data", tiny_documents(20, 20, 60))
    hashes = []
    for number, script in enumerate((repo / "train_gpt.py", tmp_path / "link" / "train_gpt.py")):
        out = tmp_path / f"run_{number}"
        command = [sys.executable, script, "--data_dir", tmp_path / "data", "--out_dir", out, *TINY, ""]
        done = subprocess.run(command, env=ENV | {"PYTHONPATH": ""}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (out / "code" / "model.py").read_text() == own.read_text()
        hashes.append(runs.read_config(out)["code"]["code_sha256"])
        own.write_text(own.read_text() + "\nX = 1\n")
    assert hashes[0] != hashes[1]
