"""Whether the number of seeds was decided before looking: planned, looked at in between, or not said."""

import json
import math

import numpy as np
import pytest
from conftest import make_run
from scipy import stats
from test_compare_runs import GATE, NOISE_A, compare, csv_of, make_arms, many

import compare_runs
from lab import ab_alpha, ab_power

SEEDS = 5


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Five pairs whose p of one look is 0.005."""
    folder = make_arms(tmp_path_factory.mktemp("arms"), SEEDS, b=GATE, effect=-0.0009)
    csv_of(folder)
    return folder


def test_every_report_says_whether_n_was_planned(arms, capsys):
    """An A/B, many arms of folders and of a table: each has the sentence."""
    group = ("--group_by", "attn_gate", "--baseline", "attn_gate=none")
    modes = [
        ("--a", arms / "base_s*", "--b", arms / "test_s*", "--no_items"),
        ("--runs", arms / "*_s*", *group), ("--results", arms / "results.csv", *group),
        ("--runs", arms / "*_s*", "--group_by", "attn_gate"),
    ]
    for flags in modes:
        many(*flags)
        text = capsys.readouterr().out
        assert "Whether n was planned is not recorded" in text and "17 % of all cases" in text, flags
    for flags in modes[:3]:
        many(*flags, "--planned", SEEDS)
        assert f"n was planned: {SEEDS} pairs, decided before" in capsys.readouterr().out
        many(*flags, "--sequential", 8)
        assert "n was planned: 8 pairs at most, with looks from the third on" in capsys.readouterr().out


def test_another_number_than_planned_has_no_verdict(arms, capsys):
    """A look at 5 of 8 planned pairs was called better."""
    _, report = compare(arms, "--no_items", "--planned", SEEDS)
    assert report["verdict"] == "better, by less than the margin" and report["planned"] == SEEDS
    for planned in (3, 8):
        code, report = compare(arms, "--no_items", "--planned", planned)
        assert code == 0 and report["verdict"] == "inconclusive"
        assert f"{planned} were planned: no verdict at another number" in report["headline"]
        assert {match["verdict"] for match in report["matchings"]} == {"inconclusive"}
    many("--runs", arms / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", "--planned", 8)
    assert "headwise inconclusive" in capsys.readouterr().out


def test_looks_widen_the_interval(arms, capsys):
    """The same five pairs as one look and as a look on the way to eight: p, interval and word of the second hold at
    every look."""
    one = compare(arms, "--no_items")[1]["metrics"]["val_loss"]
    _, report = compare(arms, "--no_items", "--sequential", 8)
    row, level = report["metrics"]["val_loss"], ab_alpha.level_of(0.05, ab_alpha.Design(SEEDS, looks=8))
    held = float(ab_alpha.held(one["p"], ab_alpha.Design(SEEDS, looks=8)))
    assert one["p"] < 0.05 and row["p"] == pytest.approx(held)
    half = stats.t.ppf(1 - level / 2, SEEDS - 1) * one["stats"]["se"]
    assert row["high"] - row["delta"] == pytest.approx(half) and half > one["high"] - one["delta"]
    assert f"A look at {SEEDS} of at most 8, decided beforehand." in report["headline"]
    assert any("whose own p is" in line for line in report["how_sure"])
    text = " ".join(report["how_sure"])
    assert "t -" in text and "with 4 degrees of freedom" in text
    capsys.readouterr()
    many("--runs", arms / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", "--sequential", 8)
    assert f"[{row['low']:+.4f}, {row['high']:+.4f}]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--sequential 4 allows looks at up to 4 pairs .* there are 5"):
        compare(arms, "--no_items", "--sequential", 4)


def test_a_newcomer_beside_another_number_of_seeds_than_planned(arms, tmp_path, capsys):
    """A run was called inside the band of 5 seeds, and the report said that 8 planned ones gave no verdict."""
    make_run(tmp_path / "mine", 7)
    flags = ("--check", tmp_path / "mine", "--against", arms / "base_s*", "--out", tmp_path / "out")
    verdicts = {}
    for planned in (0, SEEDS, 8):
        code = many(*flags, *(("--planned", planned) if planned else ()))
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        verdicts[planned] = code, report["verdict"]
    assert verdicts == {0: (0, "inside"), SEEDS: (0, "inside"), 8: (2, "inconclusive")}
    assert "8 seeds of the noise floor were planned: no verdict at another number" in report["headline"]
    assert "there are 5: no verdict" in report["in_advance"] and "--sequential" not in report["in_advance"]


def test_the_corrected_interval_is_the_corrected_p(arms):
    """The report said that an interval which leaves out 0 names a winner, where --planned withholds the word."""
    _, report = compare(arms, "--no_items", "--planned", 8)
    row = report["metrics"]["val_loss"]
    assert row["verdict"] == "inconclusive" and row["high_corrected"] < 0 and row["p_corrected"] < 0.05
    [text] = [text for text in compare_runs.DEFINITIONS if "excludes 0" in text]
    assert "exactly when corrected p < alpha" in text and "than was planned" in text


@pytest.mark.parametrize("flags, said", [
    (("--sequential", 2), "--sequential 2: give 3 to 200 pairs"),
    (("--sequential", 8, "--planned", 8), "give one of them"), (("--planned", 2), "--planned 2: give 3 or more")])
def test_nonsense_is_refused(arms, flags, said):
    """A flag that says nothing."""
    with pytest.raises(ValueError, match=said):
        compare(arms, *flags)
    with pytest.raises(ValueError, match="--sequential tests a difference"):
        many("--aa", arms / "base_s*", "--sequential", 8)
    with pytest.raises(ValueError, match="leave out --planned"):
        many("--plan", "--effect", 1, "--noise", 1, "--planned", 8)


# ----------------------------------------------------------------------------------------------------------------------
# planning by a measured noise


def powers_of_plans(bound: bool, seeds: int, plans: int = 400) -> np.ndarray:
    """True power of plans for 80 %, each by the noise of `seeds` runs whose true sd is 1."""
    rng = np.random.default_rng(0)
    effect, power = 2.0, []
    for values in rng.normal(0, 1, (plans, seeds)):
        floor = ab_power.noise_floor(values)
        sd = floor["sd_plan" if bound else "sd"]
        n = max(3, ab_power.n_needed(effect, ab_power.sd_of_difference(sd)))
        shift = effect / math.sqrt(2 / n)
        critical = stats.t.ppf(0.975, n - 1)
        power.append(stats.nct.sf(critical, n - 1, shift))
    return np.array(power)


@pytest.mark.parametrize("seeds", [4, 8])
def test_plans_have_their_power(seeds):
    """Of plans by the measured sd, half lack 80 % power and more than one in ten has less than 50 %."""
    before, after = powers_of_plans(False, seeds), powers_of_plans(True, seeds)
    assert (before < 0.8).mean() > 0.4 and (before < 0.5).mean() > 0.1
    assert (after < 0.8).mean() < 0.08 and (after < 0.5).mean() < 0.03


def test_plan_by_a_noise_floor(tmp_path, capsys):
    """--plan --aa goes by the upper bound, and says what the sd as measured would have given."""
    for seed in range(4):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed])
    assert many("--aa", tmp_path / "base_s*", "--plan", "--effect", 0.003, "--out", tmp_path / "out", "--print",
                "full") == 0
    text, plan = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())["plan"]
    sd = np.std(NOISE_A[:4], ddof=1)
    assert plan["sd"] == pytest.approx(sd)
    assert plan["sd_plan"] == pytest.approx(sd * math.sqrt(3 / stats.chi2.ppf(0.05, 3)))
    expected = ab_power.n_needed(0.003, ab_power.sd_of_difference(plan["sd_plan"]))
    assert plan["seeds_needed"]["paired, seed correlation 0"] == expected
    assert "the plan goes by its upper bound" in text and "| if the sd were as measured |" in text


def test_plan_of_looks(capsys):
    """What each of up to eight looks can find, and at which p of its t test."""
    assert many("--plan", "--effect", 0.003, "--noise", 0.0013, "--sequential", 8) == 0
    text = capsys.readouterr().out
    for n in (3, 8):
        level = ab_alpha.level_of(0.05, ab_alpha.Design(n, looks=8))
        found = ab_power.mde(n, ab_power.sd_of_difference(0.0013), level)
        assert f"| {n} | {level:.4f} | {found:.5f} |" in text
    assert "Looks at up to 8 pairs (`--sequential` 8)" in text and "unpaired" not in text


def test_seeds_that_looks_need(capsys):
    """The first look that finds the effect, and no earlier one: with the last look's level the plan said 7, 5 and 4
    seeds, at whose looks the effect is found in 46, 25 and 19 % of all cases."""
    assert many("--plan", "--effect", 0.003, "--noise", 0.0013, "--sequential", 20) == 0
    text = capsys.readouterr().out
    for correlation, n in ((0, 10), (0.5, 7), (0.8, 6)):
        assert f"| paired, seed correlation {correlation:g} | {n} |" in text
        spread = ab_power.sd_of_difference(0.0013, correlation)
        power = {}
        for pairs in (n - 1, n):
            level = ab_alpha.level_of(0.05, ab_alpha.Design(pairs, looks=20))
            x = np.random.default_rng(0).normal(0.003, spread, (4000, pairs))
            t = x.mean(1) / (x.std(1, ddof=1) / math.sqrt(pairs))
            power[pairs] = (abs(t) > stats.t.ppf(1 - level / 2, pairs - 1)).mean()
        assert power[n - 1] < 0.81 and power[n] > 0.79
    assert many("--plan", "--effect", 0.001, "--noise", 0.0013, "--sequential", 8) == 0
    text = capsys.readouterr().out
    assert "| paired, seed correlation 0 | more than 8 |" in text and "enough for none of the designs below" in text
