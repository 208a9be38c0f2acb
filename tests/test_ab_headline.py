"""The first words of a report where no winner can be named: why not, and what to do next."""

import json

import pytest
from conftest import make_run
from test_compare_runs import GATE, compare, make_arms, many, states

import compare_runs
from lab import ab_gate, ab_headline, ab_numbers


def diverge(folder, step):
    """Cuts a run off behind a step, as a loss that is not finite ends it: no summary, no later record."""
    scalars = folder / "scalars.jsonl"
    lines = [line for line in scalars.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
    scalars.write_text("".join(lines))
    (folder / "summary.json").unlink()


# ----------------------------------------------------------------------------------------------------------------------
# runs that never finished


def test_diverged_runs_are_not_equivalent(tmp_path):
    """Three runs that diverged at step 6 were called equivalent, by the loss of their untrained network."""
    make_arms(tmp_path, 4, b=GATE, effect=1.0)
    for seed in range(4):
        diverge(tmp_path / f"test_s{seed}", 6)
    code, report = compare(tmp_path, "--no_items", "--allow", "incomplete")
    row = report["metrics"]["val_loss"]
    assert code == 0 and report["verdict"] == row["verdict"] == "inconclusive" and report["steps"]["val"] is None
    assert row["delta"] == "N/A: no step that all runs scored"
    assert "No run of B is finished, so that there is no verdict" in report["headline"]
    assert "test_s3: ended at step 6 of 40 without a summary" in report["headline"]
    assert {match["verdict"] for match in report["matchings"]} == {"inconclusive"}
    assert all(isinstance(match["row"]["delta"], str) for match in report["matchings"])


def test_arm_without_a_finished_run_has_no_verdict(tmp_path, capsys):
    """Four runs cut off at step 20 were called worse, as if they had been compared at their end."""
    make_arms(tmp_path, 4, b=GATE, effect=1.0)
    for seed in range(4):
        diverge(tmp_path / f"test_s{seed}", 20)
    _, report = compare(tmp_path, "--no_items", "--allow", "incomplete")
    assert report["verdict"] == "inconclusive" and report["steps"]["val"] == 20
    words = {row["verdict"] for row in report["metrics"].values()}
    assert not any(word.startswith(("better", "worse", "equivalent")) for word in words)
    capsys.readouterr()
    group = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    assert many(*group, "--allow", "incomplete") == 0
    text = capsys.readouterr().out
    assert "No run of headwise is finished, so that there is no verdict" in text and "headwise inconclusive" in text


def test_a_diverged_run_is_not_told_to_go_on(tmp_path, capsys):
    """`--resume auto` was advised for a run whose loss was not finite: it ends at the same step again."""
    make_arms(tmp_path, 3, b=GATE)
    anew = "What diverged would do so again under `--resume auto`: train both arms anew with a lower `--learning_rate`"
    diverge(tmp_path / "test_s2", 20)
    (tmp_path / "test_s2" / "log.txt").write_text("step 20\ndiverged at step 21: loss nan\n")
    headline = compare(tmp_path, "--no_items")[1]["headline"]
    assert "incomplete (test_s2: diverged after step 20 of 40)" in headline and anew in headline
    assert "Finish what is unfinished" not in headline
    diverge(tmp_path / "test_s1", 20)  # killed: that one can go on
    headline = compare(tmp_path, "--no_items")[1]["headline"]
    assert anew in headline and "Finish what is unfinished with `--resume auto`, or" in headline
    group = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    capsys.readouterr()
    assert many(*group) == 2 and f"Finish what is unfinished with `--resume auto`. {anew}" in capsys.readouterr().out
    diverge(tmp_path / "test_s0", 20)
    for seed in range(3):
        (tmp_path / f"test_s{seed}" / "log.txt").write_text("diverged at step 21: loss nan\n")
    headline = compare(tmp_path, "--no_items", "--allow", "incomplete")[1]["headline"]
    assert f"No run of B is finished, so that there is no verdict. {anew}" in headline
    assert many(*group, "--allow", "incomplete") == 0
    assert f"so that there is no verdict. {anew}" in capsys.readouterr().out


@pytest.mark.parametrize("records, step", [
    ([{0, 10, 20}, {0, 10}], 10), ([{0, 10}, {0}], None), ([{0}, {0}], 0), ([{0, 10}, set()], 10)])
def test_untrained_network_is_not_compared(records, step):
    """A step 0 that is compared where a later one was scored."""
    assert ab_numbers.common_step([dict.fromkeys(steps) for steps in records]) == step


def test_stopped_run_says_so(tmp_path):
    """A run that was asked to stop is not a crashed one."""
    make_arms(tmp_path, 3, b=GATE)
    diverge(tmp_path / "test_s2", 20)
    (tmp_path / "test_s2" / "log.txt").write_text("step 20\nstopped at step 20; --resume auto goes on\n")
    _, report = compare(tmp_path, "--no_items")
    assert "incomplete (test_s2: was stopped at step 20 of 40)" in report["headline"]
    assert "with `--resume auto`, or leave its seed out of `--a` and `--b`." in report["headline"]


# ----------------------------------------------------------------------------------------------------------------------
# other projects' logs


def test_logs_are_no_evidence_about_one_change(tmp_path, capsys):
    """Logs of another project, which record no settings, were "better", by a treatment that was "none"."""
    for arm, loss in (("a", 6.5), ("b", 6.0)):
        for i in range(3):
            text = f"0 val 10.8\n0 train 10.9\n20 val {loss + i / 100 + (i == 2) / 1000}\n20 train {loss + i / 50}\n"
            (tmp_path / f"{arm}{i}.txt").write_text(text)
    flags = ["--a", str(tmp_path / "a*.txt"), "--b", str(tmp_path / "b*.txt")]
    assert compare_runs.main(flags) == 2
    assert "To look at them all the same: `--allow unrecorded,seed`." in capsys.readouterr().out
    assert compare_runs.main([*flags, "--allow", "unrecorded,seed"]) == 0
    text = capsys.readouterr().out
    assert "Settings, data and code are not recorded, so that this is no evidence about any one change." in text
    assert "Treatment: not recorded." in text and "differ in nothing" not in text


# ----------------------------------------------------------------------------------------------------------------------
# how often a run is scored


@pytest.mark.parametrize("knob, value", [("eval_every", 20), ("hellaswag_every", 100), ("zeroshot_every", 7)])
def test_cadence_is_no_difference_that_counts(tmp_path, knob, value):
    """Arms scored every 10 and every 20 steps were not comparable, and --treatment eval_every was advised."""
    make_arms(tmp_path, 3, b={"flags": {**GATE["flags"], knob: value}})
    code, report = compare(tmp_path, "--no_items")
    assert code == 0 and states(report) == {"attn_gate": "treatment", knob: "note"} and report["steps"]["val"] == 40
    why = next(d["why"] for d in report["gate"]["differences"] if d["knob"] == knob)
    assert why == "how often it is scored: scores are compared at common steps"
    with pytest.raises(ValueError, match=f"--treatment {knob}"):
        compare(tmp_path, "--no_items", "--treatment", knob)


def test_treatment_is_not_what_is_allowed(tmp_path, capsys):
    """A weight decay that --allow let pass stood in the sentence about the treatment."""
    make_arms(tmp_path, 3, b={"flags": {**GATE["flags"], "weight_decay": 0.0}})
    code, _ = compare(tmp_path, "--no_items", "--allow", "weight_decay")
    assert code == 0
    assert "Treatment: attn_gate: none → headwise (recognised)." in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# what to do next


def test_undeclared_beside_a_declared_treatment(tmp_path):
    """A second setting beside the declared one, and an edit of the code: neither had any advice."""
    b = {"flags": {"beta1": 0.8, "beta2": 0.99}, "config": {"code.code_sha256": "0" * 64}}
    make_arms(tmp_path, 3, b=b)
    _, report = compare(tmp_path, "--no_items", "--treatment", "beta1")
    assert ("add it: `--treatment beta1,beta2,code`; else make it equal in both arms. An edit of the code that changes "
            "nothing: `--allow code`.") in report["headline"]
    for arm, line in (("base", "x = 1\n"), ("test", "x = 1\ny = 2\nz = 3\n")):
        (tmp_path / f"{arm}_s0" / "code").mkdir(exist_ok=True)
        (tmp_path / f"{arm}_s0" / "code" / "model.py").write_text(line)
    _, report = compare(tmp_path, "--no_items", "--treatment", "beta1")
    assert "code_sha256 (model.py +2 -0)" in report["headline"] and "no. 1" not in report["headline"]


def test_declared_treatment_that_does_not_differ(tmp_path):
    """--treatment with the setting that is equal was advised again, beside the one that differs."""
    make_arms(tmp_path, 3, b=GATE)
    _, report = compare(tmp_path, "--no_items", "--treatment", "beta1")
    assert "If it is what you test: `--treatment attn_gate`." in report["headline"]
    assert "beta1,attn_gate" not in report["headline"]


def test_faults_are_told_once(tmp_path, capsys):
    """What made arms not comparable stood in the headline a second time, as missing."""
    make_arms(tmp_path, 3, b=GATE)
    diverge(tmp_path / "test_s2", 20)
    _, report = compare(tmp_path, "--no_items")
    assert report["headline"].count("test_s2: ended at step 20") == 1 and "Missing" not in report["headline"]
    capsys.readouterr()
    assert many("--runs", tmp_path / "*_s*", "--group_by", "attn_gate") == 2
    first = capsys.readouterr().out.split("- **Changed**")[0]
    assert first.count("test_s2: ended") == 1 and "Finish what is unfinished with `--resume auto`." in first


def test_code_of_many_arms_is_named_by_its_files(tmp_path, capsys):
    """code_sha256 (no. 1, no. 2) among three arms, of which nobody knew what was edited."""
    for i, gate in enumerate(("none", "headwise", "elementwise")):
        config = {"code.code_sha256": f"{min(i, 1)}" * 64}
        run = make_run(tmp_path / f"{gate}_s0", flags={"attn_gate": gate}, config=config)
        (run / "code").mkdir(exist_ok=True)
        (run / "code" / "model.py").write_text("x = 1\n" * (1 + min(i, 1)))
    assert many("--runs", tmp_path / "*_s0", "--group_by", "attn_gate") == 2
    assert "code_sha256 (model.py +0 -1): choose a stage" in capsys.readouterr().out


def test_inconclusive_says_what_could_have_been_found(tmp_path):
    """"These seeds do not tell the arms apart" was the end; now what they could have told, and the next look."""
    make_arms(tmp_path, 4, b=GATE)
    _, report = compare(tmp_path, "--no_items", "--delta", 0)
    smallest = report["metrics"]["val_loss"]["stats"]["mde"]
    assert f"find with 80% power is {smallest:.2g} nats/token." in report["headline"]
    assert "decide on more seeds, anew (`--plan`)" in report["headline"]
    _, report = compare(tmp_path, "--no_items", "--delta", 0, "--sequential", 8)
    assert "Next look: pair 5." in report["headline"]


def test_every_fault_has_a_next_step():
    """Faults of the gate without an advice: none."""
    told = set(ab_headline.NEXT) | {"seed", "unrecorded"}
    assert told == set(ab_gate.FAULTS)


# ----------------------------------------------------------------------------------------------------------------------
# runs that are older than a flag


@pytest.mark.parametrize("value, default, equal", [(0.5, 0.5, True), (0.7, 0.5, False), (0.5, None, False)])
def test_flag_that_older_runs_lack(tmp_path, value, default, equal):
    """A setting that one arm does not record, as its code had no such flag, and that is at its default in the other:
    the arms trained alike, and were not comparable. Another value than the default still counts."""
    new = {"config": {"defaults": {} if default is None else {"new_flag": default}}}
    make_arms(tmp_path, 3, b={"flags": {**GATE["flags"], "new_flag": value}, **new})
    code, report = compare(tmp_path, "--no_items")
    assert (code == 0) == equal and ("new_flag" not in states(report)) == equal
    notes = [note for note in report["gate"]["notes"] if "new_flag is newer than" in note]
    assert len(notes) == equal
    if equal:
        assert notes == ["new_flag is newer than base_s0, base_s1, base_s2: counts there as its default, 0.5"]


# ----------------------------------------------------------------------------------------------------------------------
# a treatment that changed nothing


def test_unchanged_losses_are_in_the_headline(tmp_path):
    """A flag that had no effect gave "equivalent", and that not one loss had changed stood in a note at the end."""
    make_arms(tmp_path, 3, b=GATE)
    for seed in range(3):
        text = (tmp_path / f"base_s{seed}" / "scalars.jsonl").read_text()
        (tmp_path / f"test_s{seed}" / "scalars.jsonl").write_text(text)
    _, report = compare(tmp_path, "--no_items")
    assert ("base_s0 and test_s0 have the same losses, and so have 2 more pairs: the treatment changed nothing, or one "
            "is a copy of the other.") in report["headline"]
