"""The first screen of many arms and of a noise floor; numbers that rounding would hide; hashes and doubled seeds."""

import json

import numpy as np
import pytest
from conftest import make_run
from test_compare_runs import GATE, NOISE_A, NOISE_B, compare, csv_of, make_arms, many, rewrite

from lab import ab_curves, ab_gate, ab_many, ab_numbers, ab_plots, ab_power, ab_report, ab_verdict

# ----------------------------------------------------------------------------------------------------------------------
# numbers and hashes


@pytest.mark.parametrize("x, spec, text", [
    (0.0123, ".4f", "+0.0123"), (0.000031, ".4f", "+3.1e-05"), (-0.00004, ".3f", "-4e-05"), (0.0, ".4f", "+0.0000"),
    (-0.35, ",.0f", "-0.35"), (1200.0, ",.0f", "+1,200"), ("N/A: one seed", ".4f", "N/A: one seed")])
def test_no_difference_rounds_to_nothing(x, spec, text):
    """A difference and an interval of +0.0000 in a headline."""
    assert ab_report.signed(x, spec) == text
    if isinstance(x, float):
        row = {"delta": x, "low": x, "high": x, "p": 0.01}
        assert ab_report.form_change(row, spec) == f"{text} [{text}, {text}], p 0.0100"


def test_small_differences_of_quality(tmp_path):
    """A bos view that is better by a tenth of the margin, in the margin's unit, read as better without reserve."""
    make_arms(tmp_path, 5, b=GATE, effect=-0.0009)
    _, report = compare(tmp_path, "--no_items")
    assert report["metrics"]["val_loss_bos"]["verdict"] == "better, by less than the margin"
    row = {"verdict": "better", "low": -0.003, "high": -0.001}
    ab_verdict.note_small(row, 0.002)
    assert row["verdict"] == "better"


def test_decimals_are_no_hashes():
    """A rate of 0.0011235955056179774 was written as 0.no. 1; hashes of digits alone are still numbered."""
    texts = ab_gate.by_arm({"A": ["0.0011235955056179774", 0.0], "B": ["1.1235955056179774e-05", "9" * 64]})
    assert texts == "0.0011235955056179774 and 0 / 1.1235955056179774e-05 and no. 1"


def test_doubled_seeds_are_one_clause(tmp_path):
    """Three clauses for three doubled seeds."""
    make_arms(tmp_path, 3)
    for seed in range(3):
        make_run(tmp_path / f"test_s{seed}b", seed, loss=0.1)
    _, report = compare(tmp_path, "--no_items")
    assert "B has seeds 0, 1, 2 twice" in report["headline"]
    assert "Give each arm one run of each seed." in report["headline"]


# ----------------------------------------------------------------------------------------------------------------------
# many arms


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four learning rates with a gate each, of three seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    for i, rate in enumerate((0.01, 0.02, 0.04, 0.08)):
        for seed in range(3):
            noise = (NOISE_A, NOISE_B)[i % 2][seed] * (1 + i)
            flags = {"learning_rate": rate, "muon_lr": rate / 10, "attn_gate": "headwise"}
            make_run(folder / f"r{i}_s{seed}", seed, loss=0.01 * abs(i - 2) + noise, flags=flags)
    return folder


def test_first_screen_of_many(sweep, tmp_path, capsys):
    """The best arm without its metric and unit, arms under their long names, and "best" of how many nobody knew."""
    group = ("--runs", sweep / "r*", "--group_by", "learning_rate,attn_gate", "--baseline", "learning_rate=0.01")
    assert many(*group, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    best = np.mean(report["arms"][2]["losses"])
    assert f"Best: 0.04 (val loss {best:.4f} nats/token)." in lines[0]
    assert "against 0.01: 0.02 " in lines[0] and "attn_gate=" not in lines[0]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| Best 3 of 4 arms | val loss (nats/token) |" in text
    assert "At the end, val loss: 0.01 " in text and "; 0.02 " in text


@pytest.mark.parametrize("primary, words", [
    ("val_loss", " Best: a (val loss 4.0590 nats/token)."), ("val_bits_per_byte", " Best: a (val bits/byte 4.0590)."),
    ("hellaswag_accuracy", " Best: a (HellaSwag accuracy 4.0590).")])
def test_units_of_the_best(primary, words):
    """"val bits/byte 1.2 bits/byte", "accuracy 0.4 score"."""
    ab_numbers.metrics_of([])
    assert ab_many.best_in_words([{"what": "a", "loss": "4.0590"}], primary) == words


def test_seeds_for_the_observed_one_by_holm(sweep, tmp_path, capsys):
    """Seeds that would find a difference, reckoned at alpha though its test stands among three."""
    group = ("--runs", sweep / "r*", "--group_by", "learning_rate", "--baseline", "learning_rate=0.01")
    assert many(*group, "--out", tmp_path / "out", "--print", "full") == 0
    sure = capsys.readouterr().out.split("## How sure")[1]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for entry in report["differences"]:
        row = entry["row"]
        needed = ab_power.n_needed(row["delta"], row["stats"]["sd_diff"], row["level_corrected"])
        line = next(line for line in sure.splitlines() if line.startswith(f"| {entry['name']} |"))
        assert line.split("|")[-2].strip() == f"{max(3, needed)}"
    assert min(entry["row"]["level_corrected"] for entry in report["differences"]) == pytest.approx(0.05 / 3)


def test_rows_are_not_seeds(tmp_path, capsys):
    """Six rows of three seeds were called six seeds."""
    make_arms(tmp_path, 3, b=GATE)
    table = csv_of(tmp_path)
    table.write_text(table.read_text() + "".join(table.read_text().splitlines(keepends=True)[1:]))
    rewrite(table, lambda i, row: row.update(
        run_id=f"{row['run_id']}_{i}", final_val_loss=str(float(row["final_val_loss"]) + i / 1000)))
    many("--results", table, "--group_by", "attn_gate", "--allow", "seed,copied_run")
    text = capsys.readouterr().out
    assert "| 6 rows |" in text and "| 6 seeds |" not in text


# ----------------------------------------------------------------------------------------------------------------------
# noise floors


def test_newcomer_that_is_not_comparable(tmp_path, capsys):
    """Of a run with another learning rate every row said OUTSIDE, as if that were a verdict."""
    for seed in range(4):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed])
    make_run(tmp_path / "mine", 9, loss=1.0, flags={"weight_decay": 0.0})
    flags = ("--check", tmp_path / "mine", "--against", tmp_path / "base_s*", "--out", tmp_path / "out")
    assert many(*flags, "--print", "full") == 2
    text, report = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())
    assert "OUTSIDE" not in text and "| inside |" not in text and "lie outside" not in text
    assert {row["state"] for row in report["metrics"].values()} == {"N/A: not comparable"}
    assert "let pass what does no harm (`--allow`)" in report["headline"]
    assert many(*flags, "--allow", "weight_decay", "--print", "full") == 2 and "OUTSIDE" in capsys.readouterr().out


def test_noise_floor_has_no_warning_about_looks(tmp_path, capsys):
    """--aa and --check warned of stopping at the first clear difference, which they do not test."""
    for seed in range(5):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed])
    assert many("--aa", tmp_path / "base_s*") == 0
    assert many("--check", tmp_path / "base_s4", "--against", tmp_path / "base_s[0-3]") in (0, 2)
    text = capsys.readouterr().out
    assert "Whether n was planned" not in text and "17 %" not in text


# ----------------------------------------------------------------------------------------------------------------------
# plots


def captions(report):
    return [line for line in (report / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("![")]


@pytest.mark.parametrize("steps, words", [(1000, " Train loss: means over 5 steps."), (200, "")])
def test_binned_train_loss_says_so(tmp_path, monkeypatch, steps, words):
    """A train curve of means over many steps, drawn as if it were every step's."""
    monkeypatch.setattr(ab_plots, "plot_losses", lambda *drawn, **more: {"png": b""})
    step = np.arange(1.0, steps + 1)
    run = {"train": {"step": step, "train_loss_opt_step_mean": step}, "val": {}, "summary": {}}
    [(_, _, caption, _)] = ab_curves.loss_curves({"A": [run]}, "val_loss", False)
    told = "".join(part for part in caption.partition(" Train loss")[1:])
    assert told == words


def test_cut_intervals_are_marked(monkeypatch):
    """An interval that the forest cuts off at its edge looked as if it ended there."""
    panels, canvas = [], ab_plots.canvas
    monkeypatch.setattr(ab_plots, "canvas", lambda *size, **more: [panels.append(new := canvas(*size, **more)), new][1])
    row = {"label": "x", "delta": 1.0, "low": 0.5, "high": 1.5, "better": -1, "verdict": "worse"}
    rows = [row, row | {"low": -9.0, "high": 9.0}, row | {"high": 9.0}]
    assert [ab_plots.is_cut(one, rows) for one in rows] == [False, True, True]
    ab_plots.plot_forest({"losses": rows})
    for (axis,), _ in panels:
        arrows = [(line.get_marker(), line.get_xdata()[0]) for line in axis.lines if line.get_marker() in "<>"]
        low, high = axis.get_xlim()
        assert sorted(arrows) == [("<", low), (">", high), (">", high)]


def test_a_diverged_arm_does_not_flatten_the_others(monkeypatch):
    """One unfinished arm at a loss of 90 made a line of all the others."""
    panels, canvas = [], ab_plots.canvas
    monkeypatch.setattr(ab_plots, "canvas", lambda *size, **more: [panels.append(new := canvas(*size, **more)), new][1])
    good = [[(step, 3.0 - step / 100) for step in range(0, 101, 10)]]
    bad = [[(step, 3.0 + step) for step in range(0, 101, 10)]]
    ab_plots.plot_losses({"y": {"good": good, "bad": bad}}, "steps", apart=("bad",))
    for (axis,), _ in panels:
        assert axis.get_ylim()[1] < 4
        assert [text.get_text() for text in axis.texts] == ["outside: 13 at 10 … 103 at 100"]
    ab_plots.plot_losses({"y": {"bad": bad}}, "steps", apart=("bad",))  # alone it is shown


@pytest.mark.filterwarnings("error")
def test_signs_that_a_font_lacks():
    """matplotlib's warnings about a name in Japanese between the lines of a verdict."""
    assert ab_plots.plot_arms({"日本": [1.0, 2.0], "b": [1.0]}, "x")


# ----------------------------------------------------------------------------------------------------------------------
# words


def test_main_numbers(tmp_path, capsys):
    """"Three rows", a speed that is "described", and "corrected" over intervals that nothing corrects."""
    make_arms(tmp_path, 4, b=GATE, effect=-0.02, hellaswag=0.4)
    assert compare(tmp_path, "--no_items", "--print", "full")[0] == 0
    first = capsys.readouterr().out.split("## Result")[0]
    rows = [line for line in first.splitlines() if line.startswith("| ")]
    assert rows[0] == "| Main numbers | A: base | B: test | B - A, 95 % interval | Verdict |"
    assert rows[1].startswith("| Val loss |") and "corrected" not in rows[1]
    assert ", corrected |" in rows[2]
    assert rows[3].endswith("| not tested |") and "corrected" not in rows[3]


def test_arms_of_one_name(tmp_path, capsys):
    """base against base."""
    for folder, arm in (("one", {}), ("two", GATE)):
        for seed in range(2):
            make_run(tmp_path / folder / f"base_s{seed}", seed, **arm)
    assert many("--a", tmp_path / "one" / "base_s*", "--b", tmp_path / "two" / "base_s*", "--no_items") == 0
    text = capsys.readouterr().out
    assert text.startswith("# two/base against one/base: ") and "A: one/base, B: two/base" in text


def test_long_names_fit_the_terminal(tmp_path, capsys, monkeypatch):
    """Rows of --list that a terminal breaks, as a name is long."""
    name = "a_name_that_is_much_longer_than_it_need_be_" * 2 + "s7"
    make_run(tmp_path / name)
    monkeypatch.setenv("COLUMNS", "100")
    assert many("--list", tmp_path / "*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:2])) <= 100 and "…" in lines[1] and "_s7  " in lines[1]
    monkeypatch.setenv("COLUMNS", "300")
    assert many("--list", tmp_path / "*") == 0 and name in capsys.readouterr().out
