"""branch.py and lengths.py: runs of other lengths out of a long one, and what an effect is at each."""

import errno
import json
import math
import os
import shutil
import sys

import numpy as np
import pytest
from conftest import REPO, exposures, make_run, records, tiny_documents, weights, write_dataset
from scipy import stats
from test_compare_runs import NOISE_A, NOISE_B

import train_gpt
from lab import ab_report, resume, run_state, runs

sys.path.insert(0, str(REPO / "experiments"))
import branch
import lengths

TRUNK = ("--seq_len 16 --n_layer 1 --n_head 2 --n_embd 16 --micro_batch_size 4 --total_batch_tokens 64 --dtype float32 "
         "--schedule trapezoid --warmup_iters 2 --max_train_steps 20 --warmdown_iters 4 --save_every 3 --keep_last 0 "
         "--eval_every 5 --log_every 0 --results_csv").split()


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A run of 20 steps, 4 of them warmdown, with checkpoints at 3, 6, ... 18 and 20."""
    folder = tmp_path_factory.mktemp("trunk")
    write_dataset(folder / "data", tiny_documents(60, 20, 60))
    train_gpt.main(["--data_dir", str(folder / "data"), "--val_tokens", "200", "--out_dir", str(folder / "x_s0"),
                    *TRUNK, ""])
    return folder


def branched(trunk, out, *flags):
    branch.main([str(trunk / "x_s0"), "--out_dir", str(out), *flags])


def scalars_of(run):
    """Records without what a clock or the memory says."""
    clocks = {"timestamp", "tokens_per_sec", "mfu", "peak_mem_bytes", "step_seconds", "eval_seconds", "train_seconds",
              "eval_seconds_total", "wall_seconds"}
    return [{key: value for key, value in record.items() if key not in clocks}
            for record in runs.read_jsonl(run / "scalars.jsonl")]


@pytest.mark.parametrize("steps, first", [(10, 9), (15, 12), (30, 15)])
def test_a_branch_is_the_run_that_was_trained_alone(trunk, tmp_path, capsys, steps, first):
    """Else the effect at a length would be that of another training: weights, records and batches are those of a run
    of this length, and so is what config.json says of it."""
    branched(trunk, tmp_path, "--max_train_steps", str(steps))
    out = capsys.readouterr()
    run = tmp_path / f"x_{steps}_s0"
    assert out.out.split() == ["python", "train_gpt.py", "--out_dir", str(run), "--resume", "auto"]
    assert f"step_{first:06d}, {steps - first} of {steps} steps are left to train" in out.err
    assert run_state.look(run)["state"] == "stopped"
    train_gpt.main(["--out_dir", str(run), "--resume", "auto"])
    alone = tmp_path / "alone_s0"
    train_gpt.main(["--config", str(run / "config.json"), "--out_dir", str(alone)])
    assert records(run)[-1]["step"] == steps and records(run)[-1]["lr"] < records(run)[-2]["lr"]
    assert weights(run) == weights(alone)
    assert scalars_of(run) == scalars_of(alone) and exposures(run) == exposures(alone)
    config, own = (runs.read_config(folder) for folder in (run, alone))
    assert config["data"] == own["data"] and config["code"] == own["code"]
    assert config["branched_from"] == {"run": str(trunk / "x_s0"), "step": first}
    summary, own = (json.loads((folder / "summary.json").read_text()) for folder in (run, alone))
    assert summary["tokens_seen"] == own["tokens_seen"] and summary["flops_total"] == own["flops_total"]
    of_trunk = sum(record["step_seconds"] for record in records(run)[:first])
    assert summary["train_time_ms"] > 1000 * of_trunk > 0  # its part counts


def test_branching_again_does_nothing(trunk, tmp_path, capsys):
    """A branch that is there, begun or finished, is left as it is; its command is printed all the same."""
    branched(trunk, tmp_path, "--max_train_steps", "10", "5")
    first = capsys.readouterr()
    (tmp_path / "x_10_s0" / "mark").write_text("mine")
    branched(trunk, tmp_path, "--max_train_steps", "5", "10")
    again = capsys.readouterr()
    assert again.out == first.out and "are left" not in again.err and (tmp_path / "x_10_s0" / "mark").exists()
    with pytest.raises(ValueError, match="exists and is not this branch"):
        branched(trunk, tmp_path, "--max_train_steps", "10", "--warmdown_frac", "0.5")


@pytest.mark.parametrize("flags, words", [
    ("--max_train_steps 3", "no checkpoint up to step 2, where a branch of 3 steps leaves it"),
    ("--max_train_steps 20", "has 20 steps and this warmdown itself: leave 20 out"),
    ("--max_train_steps 10 --warmdown_frac 1", "do not fit into it: .* pass a smaller --warmdown_frac"),
    ("--max_train_steps 99", "more than its data and --max_epochs 1 give: ask for at most 31 steps"),
])
def test_what_cannot_be_branched(trunk, tmp_path, flags, words):
    """Each is a sentence, and nothing is made, not even the branch that would have been possible."""
    with pytest.raises(ValueError, match=words):
        branched(trunk, tmp_path / "out", "--max_train_steps", "12", *flags.split()[1:])
    assert not (tmp_path / "out").exists()


def test_a_cosine_is_refused(trunk, tmp_path):
    """Its learning rate at step 6 of 20 is another one than at step 6 of 10."""
    shutil.copytree(trunk / "x_s0", tmp_path / "x_s0")
    config = runs.read_config(tmp_path / "x_s0")
    config["flags"]["schedule"] = "cosine"
    (tmp_path / "x_s0" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="train the trunk with --schedule trapezoid"):
        branched(tmp_path, tmp_path, "--max_train_steps", "10")


@pytest.mark.parametrize("place, value, words", [
    ([], [], "it is \\[\\], not an object"), (["data"], {}, "data.sequences is missing"),
    (["data", "sequences"], "x", "data.sequences is \"x\", not a whole number"),
    (["tokens_per_step"], 0, "tokens_per_step is 0"), (["flags"], {}, "flags.schedule is missing"),
    (["flags", "max_train_steps"], 0, "flags.max_train_steps is 0"),
    (["flags", "seq_len"], None, "flags.seq_len is null"),
    (["flags", "warmdown_iters"], "y", "flags.warmdown_iters is \"y\""),
    (["flags", "max_epochs"], None, "flags.max_epochs is null"),
])
def test_a_damaged_config_is_one_sentence(trunk, tmp_path, place, value, words):
    """Its place is named; what is read of it was read as it came."""
    (tmp_path / "x_s0").mkdir()
    config = runs.read_config(trunk / "x_s0")
    if place:
        part = config
        for name in place[:-1]:
            part = part[name]
        part[place[-1]] = value
    (tmp_path / "x_s0" / "config.json").write_text(json.dumps(config if place else value))
    words = f"is not a run of train_gpt.py, by its config.json \\({words}.*: name one[.]$"
    with pytest.raises(ValueError, match=words):
        branched(tmp_path, tmp_path / "out", "--max_train_steps", "10")
    assert not (tmp_path / "out").exists()


def test_damaged_records_are_named_where_they_are(trunk, tmp_path):
    """In the trunk, not in the copy that is gone by then; without them, its first steps would be lost."""
    records = tmp_path / "x_s0" / "scalars.jsonl"
    shutil.copytree(trunk / "x_s0", tmp_path / "x_s0")
    records.write_text("{torn}\n" + records.read_text())
    with pytest.raises(ValueError, match=f"^{records} has a broken line, 1: restore the file"):
        branched(tmp_path, tmp_path / "out", "--max_train_steps", "10")
    records.unlink()
    with pytest.raises(ValueError, match="x_s0 has no scalars.jsonl, .*: restore it, or name another.$"):
        branched(tmp_path, tmp_path / "out", "--max_train_steps", "10")
    assert not list((tmp_path / "out").glob("*"))


def test_a_damaged_branch_is_not_taken_for_one(trunk, tmp_path):
    """A folder in its place whose config.json is [] is left alone."""
    (tmp_path / "x_10_s0").mkdir()
    (tmp_path / "x_10_s0" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="x_10_s0 exists and is not this branch of .*: delete it, or choose another"):
        branched(trunk, tmp_path, "--max_train_steps", "10")
    assert [path.name for path in tmp_path.rglob("*")] == ["x_10_s0", "config.json"]


def test_a_damaged_checkpoint_is_passed_over(trunk, tmp_path, capsys):
    """The one before it has the same past."""
    shutil.copytree(trunk / "x_s0", tmp_path / "x_s0")
    (tmp_path / "x_s0" / "ckpt" / "step_000009" / "model.safetensors").write_bytes(b"torn")
    branched(tmp_path, tmp_path, "--max_train_steps", "10")
    assert "step_000006, 4 of 10 steps are left" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(trunk, tmp_path, monkeypatch):
    """Not a branch that a resume would take for a run."""
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(branch.disk, "write_json", full)
    with pytest.raises(ValueError, match="No space left on device.*free space"):
        branched(trunk, tmp_path, "--max_train_steps", "10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of_copytree", [False, True])
@pytest.mark.parametrize("code, remedy", [
    (errno.ENOSPC, "free space, or choose"), (errno.EDQUOT, "free space, or choose"),
    (errno.EACCES, "give this user access to it, or choose"), (errno.EIO, "repair what is named there, or choose")])
def test_what_stands_in_the_way_of_a_branch(trunk, tmp_path, monkeypatch, code, remedy, of_copytree):
    """A folder that may not be written, or a file that cannot be read, was a full disk. copytree's error is a list."""
    def fail(source, *_, **__):
        raise OSError(code, os.strerror(code), os.fspath(source))

    monkeypatch.setattr(branch.shutil, "copyfile", fail)
    if of_copytree:
        copy = shutil.copytree
        tree = lambda source, to: copy(source, to, copy_function=fail)
        monkeypatch.setattr(branch.shutil, "copytree", tree)
    reason = rf"cannot be made \({os.strerror(code)}: '[^']*'\): {remedy} another --out_dir"
    with pytest.raises(ValueError, match=reason):
        branched(trunk, tmp_path, "--max_train_steps", "10")
    assert list(tmp_path.iterdir()) == []


def test_due_evaluations_are_recorded_once(trunk, tmp_path):
    """A run that was stopped before the evaluation of step 5, resumed, and killed after it makes it anew."""
    shutil.copytree(trunk / "x_s0", tmp_path / "x_s0")
    before = runs.read_jsonl(tmp_path / "x_s0" / "scalars.jsonl")
    of_five = [record["type"] for record in before if record["step"] == 5]
    assert of_five == ["train", "val", "mechanism"]
    resume.trim_records(tmp_path / "x_s0", 5, ["val"])
    after = runs.read_jsonl(tmp_path / "x_s0" / "scalars.jsonl")
    assert after == [one for one in before if one["step"] < 5 or (one["step"] == 5 and one["type"] == "train")]


# ----------------------------------------------------------------------------------------------------------------------
# the effect by length


def make_lengths(folder, effects, seeds=3, **of_b):
    """{steps: effect}"""
    for steps, effect in effects.items():
        for seed in range(seeds):
            flags = {"max_train_steps": steps}
            make_run(folder / f"a_{steps}_s{seed}", seed, loss=NOISE_A[seed] * steps / 10, flags=flags)
            make_run(folder / f"b_{steps}_s{seed}", seed, loss=NOISE_B[seed] * steps / 10 + effect,
                     flags=flags | of_b)


def compare(folder, *flags):
    return lengths.main(["--a", str(folder / "a_*"), "--b", str(folder / "b_*"), *map(str, flags)])


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_change_per_doubling(tmp_path):
    """Against scipy: each seed's slope over log2(steps), a t-test of the slopes, and Holm over lengths and slope."""
    effects = {5: 0.3, 10: 0.2, 20: 0.11}
    make_lengths(tmp_path, effects, attn_gate="headwise")
    assert compare(tmp_path, "--out", tmp_path / "report") == 0
    report = report_of(tmp_path / "report")
    deltas = {steps: (np.array(NOISE_B[:3]) - NOISE_A[:3]) * steps / 10 + effect for steps, effect in effects.items()}
    x = np.log2(list(effects))
    slopes = [stats.linregress(x, [deltas[steps][seed] for steps in effects]).slope for seed in range(3)]
    slope = report["change_per_doubling"]
    assert list(slope["pairs"].values()) == pytest.approx(slopes)
    p = [stats.ttest_1samp(deltas[steps], 0).pvalue for steps in effects] + [stats.ttest_1samp(slopes, 0).pvalue]
    rows = [one["difference"] for one in report["lengths"]] + [slope]
    assert [row["p_raw"] for row in rows] == pytest.approx(p)
    assert [row["p_corrected"] for row in rows] == pytest.approx(stats_holm(p))
    assert report["verdict"] == "moves towards B"
    assert [row["verdict"] for row in rows[:3]] == ["worse"] * 3
    text = (tmp_path / "report" / "report.md").read_text()
    assert "4 tests, corrected together (Holm)" in text and (tmp_path / "report" / "lengths.png").exists()


def stats_holm(p):
    order = np.argsort(p)
    adjusted, highest = list(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


@pytest.mark.parametrize("seeds, of_b, code, verdict, words", [
    (3, {"attn_gate": "headwise", "learning_rate": 1.0}, 2, "not tested", "learning_rate"),
    (2, {"attn_gate": "headwise"}, 0, "change not shown", "too few"),
])
def test_no_verdict(tmp_path, capsys, seeds, of_b, code, verdict, words):
    """Arms that differ in something else, too, and two seeds say nothing of a change."""
    make_lengths(tmp_path, {5: 0.3, 10: 0.2}, seeds, **of_b)
    assert compare(tmp_path, "--out", tmp_path / "report") == code
    assert report_of(tmp_path / "report")["verdict"] == verdict and words in capsys.readouterr().out


def test_lengths_of_one_arm(tmp_path, capsys):
    """They are named; without any common length there is a sentence that names what each arm has."""
    make_lengths(tmp_path, {5: 0.3, 10: 0.2}, attn_gate="headwise")
    for seed in range(3):
        shutil.rmtree(tmp_path / f"b_10_s{seed}")
    assert compare(tmp_path) == 0
    out = capsys.readouterr().out
    assert "a alone has runs of 10 steps: left out" in out and "**not tested**" in out
    for seed in range(3):
        shutil.rmtree(tmp_path / f"a_5_s{seed}")
    with pytest.raises(ValueError, match=r"no length is in --a and in --b \(A has 10 steps; B has 5 steps\)"):
        compare(tmp_path)


def test_report_of_lengths_is_known_as_ours(tmp_path):
    """So that a second call may replace it, and another folder is refused."""
    make_lengths(tmp_path, {5: 0.3, 10: 0.2}, attn_gate="headwise")
    compare(tmp_path, "--out", tmp_path / "report")
    assert ab_report.is_report(tmp_path / "report" / "report.json")
    compare(tmp_path, "--out", tmp_path / "report")
    with pytest.raises(ValueError, match="--out"):
        compare(tmp_path, "--out", tmp_path / "a_5_s0")


def test_equal_effects_are_no_change(tmp_path):
    """With a margin above the noise, the change per doubling is equivalent to none."""
    make_lengths(tmp_path, {5: -0.2, 10: -0.2, 20: -0.2}, attn_gate="headwise")
    compare(tmp_path, "--delta", 0.05, "--out", tmp_path / "report")
    report = report_of(tmp_path / "report")
    assert report["verdict"] == "no trend" and math.isclose(report["margin"], 0.05)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "at each length it bounds the difference, for the trend its change per doubling." in page


def test_a_trend_within_the_margin_says_so(tmp_path):
    """A change of 0.01 per doubling, a fifth of the margin, read as any other trend."""
    make_lengths(tmp_path, {5: -0.20, 10: -0.21, 20: -0.22}, 4, attn_gate="headwise")
    compare(tmp_path, "--delta", 0.05, "--out", tmp_path / "report")
    report = report_of(tmp_path / "report")
    assert report["verdict"] == "moves towards B", report["change_per_doubling"]
    assert "in B's favour, by less than the margin per doubling: -0.01" in report["headline"]


@pytest.mark.parametrize("primary, advice", [
    ("hellaswag_accuracy_norm", r"score each with python hellaswag.py --checkpoint \S*a_5_s0, or choose"),
    ("gsm8k_accuracy", r"score each with python eval_gsm8k.py --checkpoint \S*a_5_s0, or choose another --primary"),
])
def test_a_score_that_no_run_has(tmp_path, primary, advice):
    """It read "not tested", as if the lengths were at fault, with no way on."""
    make_lengths(tmp_path, {5: -0.2, 10: -0.2}, attn_gate="headwise")
    with pytest.raises(ValueError, match=f"no run has a {primary} that is a number: {advice}"):
        compare(tmp_path, "--primary", primary)


@pytest.mark.parametrize("setting", ["learning_rate", "attn_gate"])
def test_an_arm_of_other_settings_has_no_trend(tmp_path, capsys, setting):
    """An effect that moves with the learning rate, or is another gate's, was a change with the length."""
    values = {"learning_rate": (0.001, 0.004), "attn_gate": ("headwise", "elementwise")}[setting]
    for steps, value in zip((5, 10), values, strict=True):
        make_lengths(tmp_path, {steps: -0.2}, **{"attn_gate": "headwise", setting: value})
    compare(tmp_path, "--treatment", "attn_gate,learning_rate", "--out", tmp_path / "report")
    assert report_of(tmp_path / "report")["verdict"] == "not tested"
    assert f"B is not the same at all lengths: {setting}" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, -3, True, "x", None])
def test_a_length_that_is_no_number_of_steps(tmp_path, value):
    """Its logarithm would be fitted."""
    make_lengths(tmp_path, {5: 0.1, 10: 0.1}, seeds=1)
    for name in "ab":
        path = tmp_path / f"{name}_5_s0" / "config.json"
        config = json.loads(path.read_text())
        config["flags"]["max_train_steps"] = value
        path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a_5_s0 does not record its --max_train_steps: name runs of train_gpt.py.$"):
        compare(tmp_path)


def test_a_seed_without_a_number_is_told(tmp_path, capsys):
    """The seed that diverged at the longest run may be the very one that would have turned the trend."""
    make_lengths(tmp_path, {5: 0.3, 10: 0.2}, 4, attn_gate="headwise")
    run = tmp_path / "b_10_s3"
    runs.rewrite_jsonl(run / "scalars.jsonl", lambda step: step == 10, [
        record | ({"val_loss": None} if record["type"] == "val" else {})
        for record in runs.read_jsonl(run / "scalars.jsonl") if record["step"] == 10])
    compare(tmp_path, "--out", tmp_path / "report")
    assert report_of(tmp_path / "report")["verdict"] == "change not shown"
    assert "10 steps: seed 3 has no number" in capsys.readouterr().out


def test_lengths_without_a_finished_run_have_no_verdict(tmp_path):
    """Three runs that died at the longest length were compared where they died."""
    make_lengths(tmp_path, {5: -0.3, 10: -0.2}, attn_gate="headwise")
    for seed in range(3):
        (tmp_path / f"b_10_s{seed}" / "summary.json").unlink()
    compare(tmp_path, "--allow", "incomplete", "--out", tmp_path / "report")
    report = report_of(tmp_path / "report")
    assert report["verdict"] == "not tested"
    assert [one["difference"]["verdict"] for one in report["lengths"]] == ["better", "inconclusive"]


def test_the_same_runs_twice_are_refused(tmp_path):
    make_lengths(tmp_path, {5: -0.3, 10: -0.2}, attn_gate="headwise")
    with pytest.raises(ValueError, match="is in --a and in --b"):
        lengths.main(["--a", str(tmp_path / "a_*"), "--b", str(tmp_path / "a_*")])


def test_a_trunk_of_another_network_is_refused(trunk, tmp_path):
    """Its branch would have been trained by two networks, the second of which is the other arm's."""
    shutil.copytree(trunk / "x_s0", tmp_path / "x_s0")
    code = tmp_path / "x_s0" / "code" / "model.py"
    code.write_text(code.read_text() + "\nOTHER = 1\n")
    with pytest.raises(ValueError, match="another network than this, of model.py"):
        branched(tmp_path, tmp_path / "out", "--max_train_steps", "10")


def test_a_branch_of_an_older_trunk_is_refused(trunk, tmp_path):
    """A trunk of the same name was trained anew at another learning rate: the old branch is not its."""
    shutil.copytree(trunk / "x_s0", tmp_path / "x_s0")
    branched(tmp_path, tmp_path / "out", "--max_train_steps", "10")
    config = runs.read_config(tmp_path / "x_s0")
    config["flags"]["learning_rate"] = 0.5
    (tmp_path / "x_s0" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="exists and is not this branch"):
        branched(tmp_path, tmp_path / "out", "--max_train_steps", "10")
