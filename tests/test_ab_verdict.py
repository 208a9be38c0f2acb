"""What compare_runs.py may say: one measurement has one verdict, two seeds have none, no record is not equality."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import default_flags, make_run
from test_compare_runs import GATE, NOISE_A, NOISE_B, compare, csv_of, make_arms, many, rewrite, states, table_rows
from test_experiments import load

from lab import ab_many, ab_numbers, ab_report, ab_rows, ab_stats, ab_verdict

COMPARABLE = {"ok": True, "other_tokens": False}


def row_of(a, b, alpha=0.05):
    return ab_numbers.difference(dict(enumerate(a)), dict(enumerate(b)), alpha)


# ----------------------------------------------------------------------------------------------------------------------
# families


def test_one_measurement_one_verdict(tmp_path, capsys):
    """A val loss was called worse and its own bits/byte, of the same p 0.0034, not clear (0.0818)."""
    make_arms(tmp_path, 4, effect=0.004, b=GATE, hellaswag=0.4, ewok=0.5)
    code, report = compare(tmp_path, "--no_items")
    rows = report["metrics"]
    loss, bits = rows["val_loss"], rows["val_bits_per_byte"]
    assert code == 0 and loss["p_raw"] == pytest.approx(bits["p_raw"]) and loss["p_raw"] < 0.01
    assert loss["verdict"] == bits["verdict"] == "worse" and loss["p_corrected"] == bits["p_corrected"]
    assert bits["same_as"] == "Val loss @ matched step" and loss["same_as"] == ""
    bos = [rows[key] for key in ("val_loss_bos", "val_bits_per_byte_bos")]
    assert bos[0]["verdict"] == bos[1]["verdict"] and bos[0]["p_corrected"] == bos[1]["p_corrected"]
    # quality: the bos view, HellaSwag and EWoK, each once, whatever rules and units they are scored by; and their mean
    assert {row["tests"] for row in rows.values() if row["family"] == "quality"} == {4}
    tested = {key for key, row in rows.items() if row["family"] == "quality" and not row["same_as"]
              and not isinstance(row["delta"], str)}
    assert tested == {"val_loss_bos", "hellaswag_accuracy_norm", "eval_official_sum", "mean_centered_accuracy"}
    assert rows["eval_official_mean"]["verdict"] == "see official sum metric"
    for key in ("tokens_per_sec", "grad_norm_max", "final_train_loss"):  # cost and optimisation: no verdict
        assert rows[key]["family"] == rows[key]["verdict"] == "described"
        assert rows[key]["p_corrected"] == "not tested"
    text = capsys.readouterr().out
    cells = table_rows(text)
    assert cells["Val loss @ matched step"][6::2] == cells["Val bits/byte"][6::2] and "(better)" not in text
    assert cells["Tokens/sec (reported)"][5:] == ["–", "–", "–", "described"]  # no p, in the table and in words
    assert not re.search(r", p [^(;]*\((described|see )", text) and "(see official sum metric)" in text
    assert "95 % interval, uncorrected | p | p, corrected | 95 % interval, corrected | Verdict |" in text
    assert {row["interval"] for row in rows.values()} == {"95 %, uncorrected"}
    steps, flops, wall = report["matchings"]  # equal cost: the same numbers are the same test
    assert steps["verdict"] == flops["verdict"] == wall["verdict"] == "worse" and wall["row"]["tests"] == 1


def test_not_comparable_has_no_interval_and_no_p(tmp_path, capsys):
    """Intervals and p of arms that differ in more than the treatment: none, on the page and in the record."""
    make_arms(tmp_path, 4, effect=0.004, b=GATE, hellaswag=0.4, ewok=0.5)
    code, report = compare(tmp_path, "--treatment", "optimizer")
    assert code == 2 and report["verdict"] == "not comparable" and report["items_and_documents"] == []
    rows = [*report["metrics"].values(), *(match["row"] for match in report["matchings"])]
    for name in ("low", "high", "p", "p_raw", "p_corrected", "p_equivalent"):
        assert not [row[name] for row in rows if isinstance(row.get(name), float)], name
    assert isinstance(report["metrics"]["val_loss"]["delta"], float)
    text = capsys.readouterr().out.split("## How to read this")[0]
    assert not re.search(r"\bp [<0-9]|\[[+-]\d", text)


def test_matchings_are_a_family(tmp_path, capsys):
    """FLOPs and wall-clock: two more tests of one metric, corrected together."""
    flags = {"eval_every": 1}
    make_arms(tmp_path, 3, effect=-0.005, a={"flags": flags},
              b={"step_seconds": 0.53, "extra_flops": 145_742, "flags": flags | GATE["flags"]})
    steps, flops, wall = (match["row"] for match in compare(tmp_path, "--no_items")[1]["matchings"])
    assert steps["p_corrected"] == steps["p_raw"] and flops["tests"] == wall["tests"] == 2
    text = capsys.readouterr().out
    assert "This report holds 4 tests: the primary metric, which stands alone, 1 of quality," in text
    assert "and 2 at equal FLOPs and wall-clock, corrected together" in text
    small, large = sorted((flops, wall), key=lambda row: row["p_raw"])
    assert small["p_corrected"] == pytest.approx(2 * small["p_raw"])
    assert large["p_corrected"] == pytest.approx(max(large["p_raw"], small["p_corrected"]))


@pytest.mark.parametrize("primary, verdict", [("hellaswag_accuracy", "better"), ("eval_official_sum", "inconclusive"),
                                              ("gsm8k_accuracy", "worse")])
def test_primary_of_a_benchmark(tmp_path, primary, verdict):
    """Any score decides when asked to, by seeds, and in its own direction: more is better."""
    for seed in range(4):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed], hellaswag=0.35, ewok=0.5,
                 gsm8k=0.3 + NOISE_A[seed])
        make_run(tmp_path / f"test_s{seed}", seed, loss=NOISE_B[seed], hellaswag=0.55, ewok=0.5,
                 gsm8k=0.1 + NOISE_B[seed], flags=GATE["flags"])
    code, report = compare(tmp_path, "--no_items", "--primary", primary)
    row = report["metrics"][primary]
    assert code == 0 and report["verdict"] == verdict == row["verdict"] and row["n"] == 4 and row["paired"]
    assert ab_numbers.SHORT[primary] in report["headline"] and "nats" not in report["headline"]
    assert report["margin"] == 0.01 and "0.01 score (the default" in report["margin_in_words"]
    assert report["metrics"]["val_loss"]["family"] == "quality"
    group = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    assert many(*group, "--primary", primary, "--out", tmp_path / "out") == 0
    (entry,) = json.loads((tmp_path / "out" / "report.json").read_text())["differences"]
    assert entry["verdict"] == verdict and entry["row"]["delta"] == pytest.approx(row["delta"])
    with pytest.raises(ValueError, match="--primary tokens_per_sec is described .*: use one of val_loss"):
        compare(tmp_path, "--primary", "tokens_per_sec")


def test_synthetic_scores_are_named(tmp_path, capsys):
    """A 3.3M model showed "HellaSwag accuracy 0.7583", and nothing said that the items were made up."""
    described = {"title": "HellaSwag (synthetic, 400 items)"}
    make_arms(tmp_path, 3, b=GATE, hellaswag=0.4, config={"benchmarks": {"hellaswag": described}})
    _, report = compare(tmp_path)
    rows = table_rows(capsys.readouterr().out)
    assert "HellaSwag (synthetic, 400 items) accuracy_norm" in rows and "HellaSwag accuracy_norm" not in rows
    assert "HellaSwag (synthetic, 400 items) accuracy" in report["checklist"][0]
    assert report["items_and_documents"][-1]["what"].startswith("HellaSwag (synthetic, 400 items)")
    table = csv_of(tmp_path, lambda i, row: row | {"hellaswag_title": described["title"],
                                                   "hellaswag_accuracy_norm": 0.4 + i / 100})
    group = ("--group_by", "attn_gate", "--baseline", "attn_gate=none", "--primary", "hellaswag_accuracy_norm")
    assert many("--results", table, *group) == 0
    text = capsys.readouterr().out
    assert "final_loss: HellaSwag (synthetic, 400 items) accuracy_norm (score)" in text and "**comparable** ·" in text
    load("learning_curves").main([str(tmp_path / "*_s*"), "--curves", "accuracy_norm"])
    assert "| HellaSwag (synthetic, 400 items) accuracy_norm (last) |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["init", "init_from"])
def test_chains_of_stages_compare_with_allow(tmp_path, name):
    """Each seed goes on from its own run of the stage before: the gate names --allow init, which lets it pass."""
    for seed in range(3):
        for arm, flags in (("base", {}), ("test", GATE["flags"])):
            make_run(tmp_path / f"{arm}_s{seed}", seed, flags={**flags, name: f"runs/sft_s{seed}"})
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and "; --allow init if each run goes on from its own seed's run" in report["headline"]
    code, report = compare(tmp_path, "--no_items", "--allow", name)
    assert code == 0 and states(report)[name] == "allowed"
    code, report = compare(tmp_path, "--no_items", a="base_s0", b="test_s1")
    [why] = [d["why"] for d in report["gate"]["differences"] if d["knob"] == name]
    assert code == 2 and "--allow init if each arm goes on from its own run" in why


def test_starts_of_fine_tuning_are_compared_by_their_weights(tmp_path):
    """Two arms of sft.py from equal paths with other weights were comparable, and from copies of the same weights were
    not. --allow init lets other weights pass, of train_gpt.py's --init_from, too."""

    def arms(a, b, flag="init", key="model_sha256"):
        for arm, (path, weights), more in (("base", a, {}), ("test", b, GATE["flags"])):
            for seed in range(3):
                folder = tmp_path / f"{arm}_s{seed}"
                shutil.rmtree(folder, ignore_errors=True)
                start = {"folder": path, key: weights * 64}
                make_run(folder, seed, flags={**more, flag: path}, config={"init": start})
        return compare(tmp_path, "--no_items")

    code, report = arms(("runs/base", "1"), ("runs/base", "2"))
    assert code == 2 and states(report)["init_sha256"] == "differs" and "init" not in states(report)
    code, report = compare(tmp_path, "--no_items", "--allow", "init")
    assert code == 0 and states(report)["init_sha256"] == "allowed"
    code, report = arms(("runs/base", "1"), ("copies/base", "1"))
    assert code == 0 and states(report)["init"] == "note" and "init_sha256" not in states(report)
    code, report = arms(("runs/base", "1"), ("runs/other", "2"), "init_from", "sha256")
    assert code == 2 and states(report)["init_from"] == states(report)["init_sha256"] == "differs"
    code, report = compare(tmp_path, "--no_items", "--allow", "init")
    assert code == 0 and states(report)["init_from"] == states(report)["init_sha256"] == "allowed"


def test_mixed_items_are_named(tmp_path, capsys):
    """One seed scored afterwards on other items: the mean is of no one set of items, and the gate says what to do."""
    make_arms(tmp_path, 3, b=GATE, hellaswag=0.4)
    for i, path in enumerate(sorted(tmp_path.glob("*_s*/hellaswag_metrics.jsonl"))):
        title, n = ("HellaSwag (30 of 10,042 items)", 30) if i == 0 else ("HellaSwag (synthetic, 40 items)", 40)
        lines = [json.loads(line) | {"title": title, "n": n} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, report = compare(tmp_path, "--no_items")
    assert code == 2
    assert "hellaswag_scorer (differs within A: some runs were scored on other items" in report["headline"]
    assert "score all alike, or --allow hellaswag_scorer" in report["headline"]
    rows = table_rows(capsys.readouterr().out)
    assert "HellaSwag (other items in some runs) accuracy_norm" in rows
    assert not any("synthetic" in name or "10,042" in name for name in rows)


def test_levels_of_holm():
    """An interval beside a corrected verdict that says the contrary: none, whatever the p's."""
    levels = ab_verdict.holm_levels([0.01, 0.5, 0.02, "N/A: one seed"], 0.05)
    assert levels == pytest.approx([0.05 / 3, 0.05, 0.025, 0.05])
    assert ab_verdict.holm_levels([0.03, 0.03], 0.05) == pytest.approx([0.025, 0.025])
    rng = np.random.default_rng(1)
    for _ in range(40):
        rows = [row_of([3.0] * 5, (3 + effect + rng.normal(0, 1e-3, 5)).tolist()) for effect in rng.normal(0, 2e-3, 4)]
        ab_verdict.judge(rows, 0.05, -1)
        for row in rows:
            leaves_out = row["low_corrected"] > 0 or row["high_corrected"] < 0
            assert leaves_out == row["verdict"].startswith(("better", "worse")) == (row["p_corrected"] < 0.05)
            assert row["low_corrected"] <= row["low"] and row["tests"] == 4


def test_many_arms_are_one_family(tmp_path, capsys):
    """Two arms, each at the last step, at equal FLOPs and at equal wall-clock: six tests, corrected together, and the
    report says so; the seeds' t, spread, sign flips and smallest difference stand beside."""
    for seed in range(4):
        make_run(tmp_path / f"none_s{seed}", seed, loss=NOISE_A[seed], flags={"eval_every": 1})
        for arm, cost in (("headwise", 0.53), ("elementwise", 0.56)):
            make_run(tmp_path / f"{arm}_s{seed}", seed, loss=NOISE_B[seed] - 0.02, step_seconds=cost,
                     extra_flops=145_742, flags={"attn_gate": arm, "eval_every": 1})
    assert many("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", "--out",
                tmp_path / "out", "--print", "full") == 0
    text, report = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())
    rows = [entry[place] for entry in report["differences"] for place in ("row", "flops", "wall")]
    p = sorted({row["p_raw"] for row in rows})
    assert len(p) == 5 or len(p) == 4  # both arms are equal at the last step, and at equal FLOPs
    assert {row["tests"] for row in rows} == {6}
    assert min(row["p_corrected"] for row in rows) == pytest.approx(6 * p[0])
    assert "This report holds 6 tests (at the last step, at equal FLOPs and at equal wall-clock" in text
    assert "delta at equal FLOPs | delta at equal wall-clock |" in text and "95 % interval, corrected" in text
    row = report["differences"][0]["row"]
    cells = next(cells for line in text.split("## How sure")[1].splitlines() if line.startswith("| attn_gate=elem")
                 for cells in [[cell.strip() for cell in line.strip("|").split("|")]])
    s = row["stats"]
    assert cells[1:] == [f"{s['delta'] / s['se']:+.2f} (3)", f"{s['sd_diff']:.5f}", ab_report.form_p(s["p_t"]),
                         f"{s['p_sign_flip']:.4f}", f"{s['mde']:.5f}", f"{max(3, s['n_for']):.0f}"]
    assert many("--results", csv_of(tmp_path), "--group_by", "attn_gate", "--baseline", "attn_gate=none") == 0
    text = capsys.readouterr().out
    assert "This report holds 2 tests (at the last step;" in text and f"| {cells[1]} | {cells[2]} |" in text


# ----------------------------------------------------------------------------------------------------------------------
# too few seeds


@pytest.mark.parametrize("n_a, n_b, word", [(1, 1, "n = 1: too few"), (2, 2, "n = 2: too few"),
                                            (2, 10, "n = 2: too few"), (3, 3, "better")])
@pytest.mark.parametrize("same_seeds", [True, False])
def test_two_seeds_are_too_few(n_a, n_b, word, same_seeds):
    """With two seeds everything rests on the normal distribution: no gap is large enough, and equality neither."""
    rng = np.random.default_rng(n_a)
    a = {seed: 3 + 1e-4 * float(rng.normal()) for seed in range(n_a)}
    shift = 0 if same_seeds else 100
    for effect, said in ((-0.5, word), (0.0, word.replace("better", "equivalent"))):
        b = {seed + shift: 3 + effect + 1e-4 * float(rng.normal()) for seed in range(n_b)}
        row = ab_numbers.difference(a, b, 0.05)
        ab_verdict.judge([row], 0.05, -1, margin=0.01)
        assert row["verdict"] == said


def test_two_seeds_everywhere(tmp_path, capsys):
    """The same in the A/B, its matchings and its checklist, in a stage table from folders and from a results.csv; the
    interval is there."""
    make_arms(tmp_path, 2, effect=-0.5, b=GATE | {"step_seconds": 0.53, "extra_flops": 145_742}, hellaswag=0.4)
    code, report = compare(tmp_path, out=tmp_path / "report")
    row = report["metrics"]["val_loss"]
    assert code == 0 and report["verdict"] == "n = 2: too few" and row["high"] < 0 and row["p_raw"] < 0.05
    assert f"[{row['low']:+.4f}, {row['high']:+.4f}]" in report["headline"]
    assert "An interval from 2 pairs is right only if such differences are normally distributed" in report["headline"]
    assert "Use at least 3 seeds per arm; `--plan`" in report["headline"] and "no evidence" not in report["headline"]
    assert {match["verdict"] for match in report["matchings"]} == {"n = 2: too few"}
    texts = [capsys.readouterr().out, " ".join(report["checklist"])]
    for source in (("--runs", tmp_path / "*_s*"), ("--results", csv_of(tmp_path))):
        assert many(*source, "--group_by", "attn_gate", "--baseline", "attn_gate=none") == 0
        texts.append(capsys.readouterr().out)
        assert "headwise n = 2: too few" in texts[-1]
    for text in texts:
        told = re.sub(r"below 0, B is better|Better and worse|worse/better", "", text)
        assert not re.search(r"\b(better|worse|equivalent)\b", told.split("## How to read")[0]), told


# ----------------------------------------------------------------------------------------------------------------------
# equivalence


def test_equivalence_never_hides_a_difference():
    """An interval that leaves out 0 was called equivalent, as it lay within the margin."""
    noise = np.array([1e-4, -1e-4, 2e-4, -2e-4])
    for effect, word in ((-1e-3, "better, by less than the margin"), (1e-3, "worse, by less than the margin"),
                         (1e-5, "equivalent"), (-1e-2, "better")):
        row = row_of([3.0] * 4, (3 + effect + noise).tolist())
        ab_verdict.judge([row], 0.05, -1, margin=0.002)
        assert row["verdict"] == word and (row["low"] <= 0 <= row["high"]) == (word == "equivalent")


def test_equivalence_is_corrected_over_arms():
    """Any false "equivalent", where every true difference is the margin: 0.34 of the reports of 14 arms."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(60):
        base = rng.normal(3, 0.001, 5)
        rows = [row_of(base.tolist(), rng.normal(3.002, 0.001, 5).tolist()) for _ in range(14)]
        ab_verdict.judge(rows, 0.05, -1, margin=0.002)
        false += any(row["verdict"] == "equivalent" or "margin" in row["verdict"] for row in rows)
    assert false <= 8  # 3 are expected, 20 without the correction


def test_margin_is_told_and_converted(tmp_path, capsys):
    """0.002 nats per token are 0.0007 bits per byte here; the same number in both units would be another margin."""
    arms = {"b": {"flags": GATE["flags"]}}
    make_arms(tmp_path, 3, **arms)
    _, report = compare(tmp_path, "--no_items")
    assert report["margin"] == 0.002
    assert "Equivalence margin 0.002 nats/token, 0.00072 bits/byte (the default; choose" in capsys.readouterr().out
    _, report = compare(tmp_path, "--no_items", "--delta", 0.003)
    assert "0.003 nats/token, 0.0011 bits/byte (by --delta)" in capsys.readouterr().out
    for given, value in (((), 0.002 * 0.25 / np.log(2)), (("--delta", 0.001), 0.001)):
        _, report = compare(tmp_path, "--no_items", "--primary", "val_bits_per_byte", *given)
        assert report["margin"] == pytest.approx(value) and "bits/byte" in report["margin_in_words"]
    tokens = {"data": {"condition": "mul_tokens", "val_fingerprint_tokens": "e" * 64, "fingerprint": "e" * 64,
                       "mul_token_rate": 0.01}}
    make_arms(tmp_path / "other", 3, b=tokens)
    _, report = compare(tmp_path / "other", "--no_items", "--delta", 0.004)  # given for the default primary, in nats
    assert report["primary"] == "val_bits_per_byte" and report["margin"] == pytest.approx(0.004 * 0.25 / np.log(2))
    many("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    assert "Equivalence margin 0.002 nats/token, 0.00072 bits/byte (the default" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# what is not recorded


def test_same_runs_have_the_same_gate(tmp_path, capsys):
    """Six runs as two arms, as folders and as the trainer's results.csv; a column that is not there is not equal."""
    make_arms(tmp_path, 3, b=GATE, effect=-0.02)
    assert compare(tmp_path, "--no_items")[1]["verdict"] == "better"
    group = ("--group_by", "attn_gate", "--baseline", "attn_gate=none")
    table = csv_of(tmp_path)
    capsys.readouterr()
    for source in (("--runs", tmp_path / "*_s*"), ("--results", table)):
        assert many(*source, *group) == 0
        assert "**comparable** · against none: headwise better." in capsys.readouterr().out
    rewrite(table, lambda i, row: {k: v for k, v in row.items() if k not in ("weight_decay", "warmup_iters")})
    assert many("--results", table, *group) == 0
    text = capsys.readouterr().out
    assert "**comparable as far as recorded**" in text and "Not recorded: weight_decay, warmup_iters." in text
    rewrite(table, lambda i, row: row | {"lr_cooldown": i})
    assert many("--results", table, *group) == 0
    assert "Not recorded: weight_decay, warmup_iters, lr_cooldown (unknown)." in capsys.readouterr().out


def test_knobs_are_flags_or_data():
    """A knob that was renamed would be missing from every results.csv."""
    assert set(ab_rows.KNOBS) <= {*default_flags(), *ab_rows.DATA_COLUMNS}


def test_unknown_seeds_and_hardware(tmp_path, capsys):
    """A table without seeds "lacked seed 0..7", and 4 runs against 8 were "4 unpaired"."""
    path = tmp_path / "results.csv"
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["run_id", "attn_gate", "final_val_loss", "train_time_ms", "seed"])
        for i in range(4):
            writer.writerow([f"a{i}", "none", 3.3 + i / 1000, 60_000 + i, ""])
        for i in range(8):
            writer.writerow([f"b{i}", "headwise", 3.2 + i / 1000, 90_000 + i, i])
    assert many("--results", path, "--group_by", "attn_gate", "--baseline", "attn_gate=none") == 0
    text = capsys.readouterr().out
    assert "seeds unknown in attn_gate=none" in text and "lacks seed" not in text
    assert "| 4 against 8 runs, unpaired |" in text
    assert "1m 30.0s (hardware not recorded)" in text and "+50.0 % (hardware not recorded)" in text


# ----------------------------------------------------------------------------------------------------------------------
# survivors and copies


def test_lost_seed_of_one_arm_is_told(tmp_path):
    """A NaN run whose seed the other arm lacks fell out without a word, and the rest were called better."""
    make_arms(tmp_path, 3, b=GATE, effect=-0.02)
    lost = make_run(tmp_path / "test_s7", 7, flags=GATE["flags"])
    scalars = lost / "scalars.jsonl"
    scalars.write_text(scalars.read_text().replace('"val_loss": ', '"val_loss": null, "was": '))
    code, report = compare(tmp_path, "--no_items", "--allow", "seed")
    assert code == 0 and report["verdict"] == "inconclusive" and "seed 7 has no val loss" in report["headline"]
    (lost / "summary.json").unlink()
    code, report = compare(tmp_path, "--no_items", "--allow", "seed")
    assert code == 2 and "test_s7: ended at step " in report["headline"]


def test_copies_are_named(tmp_path, capsys):
    """A run that was copied under another seed counted as a seed of its own."""
    make_arms(tmp_path, 3, b=GATE)
    scalars = (tmp_path / "test_s0" / "scalars.jsonl").read_text()
    (tmp_path / "test_s2" / "scalars.jsonl").write_text(scalars)
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and "copied_run (test_s0 and test_s2 have the same losses)" in report["headline"]
    (tmp_path / "test_s2" / "scalars.jsonl").write_text((tmp_path / "base_s2" / "scalars.jsonl").read_text())
    code, report = compare(tmp_path, "--no_items")  # of one seed: a treatment that changed nothing looks so, too
    assert code == 0 and any("base_s2 and test_s2 have the same losses" in note for note in report["gate"]["notes"])
    (tmp_path / "test_s2" / "scalars.jsonl").write_text(scalars.replace('mean": ', 'mean": 1', 1))
    table = csv_of(tmp_path)
    rewrite(table, lambda i, row: row.update(status="crashed") if i == 1 else None or row.update(
        row if "status" in row else {"status": "finished"}))
    group = ("--results", table, "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    assert many(*group) == 2 and "base_s1: its status is crashed" in capsys.readouterr().out
    rewrite(table, lambda i, row: row | {"status": "", "final_val_loss": "3.25", "train_time_ms": "20000"})
    assert many(*group) == 2 and "test_s0 and test_s1 have the same losses" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# seeds in common


@pytest.mark.parametrize("shift, design", [(9, "10 against 10 runs, unpaired"), (0, "10 pairs"),
                                           (4, "6 pairs (8 runs without a partner left out)")])
def test_partly_equal_seeds(shift, design):
    """10 + 10 runs with one seed in common were one pair."""
    rng = np.random.default_rng(shift)
    a = {seed: float(rng.normal(3, 0.01)) for seed in range(10)}
    b = {seed + shift: float(rng.normal(2.9, 0.01)) for seed in range(10)}
    row = ab_numbers.difference(a, b, 0.05)
    assert ab_numbers.design_of(row) == design
    if not row["paired"]:
        stats = ab_stats.unpaired(list(a.values()), list(b.values()))
        assert (row["low"], row["high"], row["p"]) == (stats["ci_low"], stats["ci_high"], stats["p"])


def test_partly_equal_seeds_in_three_ways(tmp_path, capsys):
    """The same 4 + 4 runs with one seed in common, by --a/--b, --runs and --results: all runs, the same interval."""
    for i in range(4):
        make_run(tmp_path / f"base_s{i}", i, loss=NOISE_A[i])
        make_run(tmp_path / f"test_s{i + 3}", i + 3, loss=NOISE_B[i] - 0.02, flags=GATE["flags"])
    _, report = compare(tmp_path, "--no_items", "--allow", "seed")
    row = report["metrics"]["val_loss"]
    assert report["verdict"] == "better" and row["used"] == 8 and "4 against 4 runs, unpaired" in report["headline"]
    assert report["matchings"][2]["row"]["delta"] == pytest.approx(row["delta"])
    cells = f"| 4 against 4 runs, unpaired | {row['delta']:+.4f} | [{row['low']:+.4f}, {row['high']:+.4f}] |"
    for source in (("--runs", tmp_path / "*_s*"), ("--results", csv_of(tmp_path))):
        assert many(*source, "--group_by", "attn_gate", "--baseline", "attn_gate=none") == 0
        assert cells in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# found by a check on other inputs


GROUP = ("--group_by", "attn_gate", "--baseline", "attn_gate=none")


def test_margin_of_a_table_is_converted(tmp_path, capsys):
    """A results.csv holds each loss in both units: the margin was "cannot be converted", and a word went with it."""
    tokens = {"data": {"condition": "mul_tokens", "val_fingerprint_tokens": "e" * 64, "fingerprint": "e" * 64}}
    make_arms(tmp_path, 4, b=tokens, effect=0.0005)
    group = ("--group_by", "condition", "--baseline", "condition=baseline", "--treatment", "tokens")
    for source in (("--runs", tmp_path / "*_s*"), ("--results", csv_of(tmp_path))):
        assert many(*source, *group) == 0
        text = capsys.readouterr().out
        assert "Equivalence margin 0.00072 bits/byte, from 0.002 nats/token (the default" in text
    table = csv_of(tmp_path, lambda i, row: row | {"final_val_loss": ""})
    assert many("--results", table, *group) == 0
    assert "cannot be converted to bits/byte" in capsys.readouterr().out


def test_unused_flags_of_an_empty_cell(tmp_path, capsys):
    """An arm without a gate uses no gate_pos: known of folders, it was a difference in a table whose cell is empty."""
    make_arms(tmp_path, 3, b={"flags": GATE["flags"] | {"gate_pos": "v"}}, effect=-0.02)
    for source in (("--runs", tmp_path / "*_s*"), ("--results", csv_of(tmp_path))):
        assert many(*source, *GROUP) == 0
        assert "**comparable** · against" in capsys.readouterr().out


def test_copied_rows_without_a_time(tmp_path, capsys):
    """A row copied under another seed, in a table that records no time; losses of four digits may meet by chance."""
    make_arms(tmp_path, 3, b=GATE, effect=-0.02)
    table = csv_of(tmp_path)
    for loss, code in (("3.2713617348", 2), ("3.2714", 0)):
        rewrite(table, lambda i, row, loss=loss: row | {"train_time_ms": ""} | {"final_val_loss": loss} if i < 2
                else row | {"train_time_ms": ""})
        assert many("--results", table, *GROUP) == code
        assert ("base_s0 and base_s1 have the same losses" in capsys.readouterr().out) == (code == 2)


def test_hardware_is_more_than_a_number(tmp_path, capsys):
    """n_gpus alone does not say what a time was measured on."""
    make_arms(tmp_path, 3, b=GATE)
    table = csv_of(tmp_path, lambda i, row: row | {"gpu_name": ["", row["gpu_name"]][i < 3]})
    assert many("--results", table, *GROUP) == 0
    text = capsys.readouterr().out
    assert "0m 20.0s |" in text
    assert text.count("0m 20.0s (hardware not recorded)") == 1 and "% (hardware not recorded)" in text


def test_rule_of_pairing_and_the_way_out_are_told(tmp_path, capsys):
    """Many arms say by which rule runs are paired; an A/B that only lacks seeds says how to compare all the same."""
    for i in range(4):
        make_run(tmp_path / f"base_s{i}", i, loss=NOISE_A[i])
        make_run(tmp_path / f"test_s{i + 3}", i + 3, loss=NOISE_B[i] - 0.02, flags=GATE["flags"])
    assert many("--runs", tmp_path / "*_s*", *GROUP) == 0
    assert ab_many.PAIRING in capsys.readouterr().out
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and "`--allow seed`" in report["headline"]
    table = csv_of(tmp_path, lambda i, row: row | {"seed": ""})
    capsys.readouterr()
    assert many("--results", table, *GROUP) == 0
    text = capsys.readouterr().out
    assert "| 4 runs |" in text and "| 4 seeds |" not in text


def test_a_seed_twice_is_told(tmp_path):
    """Of two runs with one seed the first counts: with --allow seed the other fell out without a word."""
    make_arms(tmp_path, 3, b=GATE, effect=-0.02)
    make_run(tmp_path / "test_s1b", 1, loss=5, flags=GATE["flags"])
    code, report = compare(tmp_path, "--no_items", "--allow", "seed")
    assert code == 0 and "Missing: test_s1b is not used, as its seed is there twice." in report["headline"]


def test_where_hides_no_crashed_run(tmp_path, capsys):
    """A run that crashed never recorded its date or its last loss: --where by such a column left it out silently."""
    make_arms(tmp_path, 4, b=GATE, effect=-0.02)
    table = csv_of(tmp_path)
    (tmp_path / "test_s3" / "summary.json").unlink()
    rewrite(table, lambda i, row: row | ({"status": "crashed", "date": ""} if row["run_id"] == "test_s3" else
                                         {"status": "finished"}))
    for source in (("--runs", tmp_path / "*_s*"), ("--results", table)):
        assert many(*source, *GROUP, "--where", "date=2026-11-21") == 2
        assert "incomplete (test_s3: " in capsys.readouterr().out
        with pytest.raises(ValueError, match="leaves no run"):
            many(*source, *GROUP, "--where", "attn_gate=elementwise")
