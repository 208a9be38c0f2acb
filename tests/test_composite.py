"""lab/ab_composite.py: one number for all benchmarks of a run, and what a comparison may say of it."""

import json
import math
import statistics

import make_zeroshot_expectations as expectations
import numpy as np
import pytest
from conftest import make_run
from fake_model import Fake, ask_the_fake, uniform  # noqa: F401 (a fixture)
from scipy import stats
from test_compare_runs import compare, many, table_rows

import zeroshot
from lab import ab_composite, ab_items, ab_numbers, runs, tasks

KEY, LABEL = ab_composite.KEY, ab_composite.TITLE
# what guessing scores on the official splits
CHANCE = {"piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5, "arc_easy": 0.25, "arc_challenge": 0.2508, "boolq": 0.5,
          "social_iqa": 1 / 3, "commonsense_qa": 0.2, "openbookqa": 0.25}
KEYS = {name: key for key, name in ab_composite.SUITE.items()}
MUON = {"a": {"optimizer": "adamw"}, "b": {"optimizer": "muon"}}


def suite(accuracies, chance=CHANCE, **more):
    """A record of the zero-shot suite with these accuracies of its tasks."""
    by_task = {name: {"n": 100, "chance": chance[name], "items_sha256": f"items of {name}"} for name in accuracies}
    record = {"scorer": "zeroshot-1 bos=1", "n": 100 * len(by_task), "items_sha256": "-".join(by_task)}
    return record | {KEYS[name]: x for name, x in accuracies.items()} | {"by_task": by_task} | more


def run_of(seed=0, **benchmarks):
    """A run's records, {step: record} of each benchmark, without a folder."""
    return {"seed": seed, "name": f"s{seed}", "benchmarks": benchmarks, "config": {}, "flags": {}, "gsm8k": None}


def composites(every):
    """{step: number} of each run, or nothing."""
    return [{step: record[KEY] for step, record in run["benchmarks"].get(KEY, {}).items()} for run in every]


def keys_of(run):
    """The tasks of a run's number."""
    return [part["key"] for part in run["config"]["benchmarks"][KEY]["parts"]]


# ----------------------------------------------------------------------------------------------------------------------
# the number


def test_formula():
    """Guessing is 0 and all right is 1, whatever the number of choices; below chance counts against a run."""
    assert tasks.mean_centered_accuracy([(0.25, 0.25), (0.5, 0.5)]) == 0
    assert tasks.mean_centered_accuracy([(1, 0.25), (1, 0.5), (1, 0.2)]) == 1
    # 0.4 of four choices is a fifth of the way from guessing, 0.45 of two is a tenth below it
    assert tasks.mean_centered_accuracy([(0.4, 0.25), (0.45, 0.5)]) == pytest.approx((0.2 - 0.1) / 2)
    assert tasks.mean_centered_accuracy([(0.0, 0.5)]) == -1
    assert tasks.centered(np.array([0.25, 1.0]), 0.25).tolist() == [0, 1]


def test_chance_of_items_with_other_numbers_of_choices():
    """ARC has items of 3, 4 and 5 choices: chance is the mean of 1/3, 1/4 and 1/5, and always guessing scores 0. The
    suite prints what a comparison computes from its record, with the standard error by hand."""
    def question(n, right):
        choices = {"label": list("ABCDE"[:n]), "text": [f"word{i}" for i in range(n)]}
        return {"question": f"Which of {n}?", "choices": choices, "answerKey": "ABCDE"[right]}

    arc = expectations.items_of("arc_easy", [question(3, 0), question(4, 1), question(5, 2)])
    boolq = expectations.items_of("boolq", [
        {"question": f"is it {i}", "passage": "No.", "answer": i > 2} for i in range(4)])
    guessing = zeroshot.evaluate(Fake(uniform), arc + boolq)["metrics"]
    assert guessing["by_task"]["arc_easy"]["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 5) / 3)
    assert zeroshot.mean_centered(guessing["by_task"])[0] == pytest.approx(0)
    no = Fake(lambda context, ending: [-0.1 if ending[-1] == 645 else -5.0] * len(ending))  # " no", right in 3 of 4
    metrics = zeroshot.evaluate(no, arc + boolq)["metrics"]
    own, chance = metrics["by_task"], guessing["by_task"]["arc_easy"]["chance"]
    value, error = zeroshot.mean_centered(own)
    assert own["boolq"]["acc"] == 0.75 and own["arc_easy"]["acc_norm"] == pytest.approx(chance)
    assert value == pytest.approx((0 + 0.5) / 2)
    errors = [own["arc_easy"]["acc_norm_stderr"] / (1 - chance), own["boolq"]["acc_stderr"] / 0.5]
    assert error == pytest.approx(math.hypot(*errors) / 2)
    assert f"centered 0.2500 +- {error:.4f}   mean over them of" in zeroshot.table(metrics)
    every = [run_of(seed, zeroshot={4: metrics}) for seed in (0, 1)]
    assert "ARC-easy acc_norm, BoolQ acc." in ab_composite.add(every)
    assert composites(every) == [{4: pytest.approx(0.25)}] * 2
    [one] = boolq[:1]
    assert math.isnan(zeroshot.mean_centered(zeroshot.evaluate(no, [one])["metrics"]["by_task"])[1])


def test_each_thing_once():
    """HellaSwag of the suite and of its own file would count twice; EWoK is a task of two choices; GSM8K, where nothing
    is guessed, and other rules of the same items are none."""
    hella = {"scorer": "hellaswag-1", "n": 400, "items_sha256": "h", "accuracy": 0.9, "accuracy_norm": 0.4}
    ewok = {"scorer": "ewok-1", "n": 40, "items_sha256": "e", "eval_official_sum": 0.6, "eval_paper_sum": 0.9}

    def made(**more):
        one = run_of(hellaswag={8: hella}, ewok={8: ewok}, **more)
        return one | {"gsm8k": {"step": 8, "accuracy": 0.9}}

    every = [made(), made()]
    words = ab_composite.add(every)
    assert keys_of(every[0]) == ["hellaswag_accuracy_norm", "eval_official_sum"] and "2 tasks" in words
    assert composites(every)[0] == {8: pytest.approx((0.15 / 0.75 + 0.1 / 0.5) / 2)}
    every = [made(zeroshot={8: suite({"hellaswag": 0.3, "boolq": 0.5})}) for _ in range(2)]
    words = ab_composite.add(every)
    assert keys_of(every[1]) == ["eval_official_sum", KEYS["hellaswag"], KEYS["boolq"]]
    assert composites(every)[1] == {8: pytest.approx((0.2 + 0.05 / 0.75 + 0) / 3)}
    assert words.endswith("Left out: HellaSwag: accuracy_norm (counted already).")
    # a benchmark of one's own counts where it says what guessing scores, and a share of errors never
    verbs = {"title": "Verbs", "metrics": [["verbs_accuracy", "Verbs accuracy", 1, ".4f"]], "chance": 0.5}
    riddles = verbs | {"metrics": [["riddles_error", "Riddles error", -1, ".4f"]]}
    config = {"benchmarks": {"verbs": verbs, "riddles": riddles}}
    every = [made(verbs={8: {"accuracy": 0.6}}, riddles={8: {"error": 0.6}}) | {"config": dict(config)} for _ in "ab"]
    ab_composite.add(every)
    assert keys_of(every[0]) == ["hellaswag_accuracy_norm", "eval_official_sum", "verbs_accuracy"]
    # the suite's HellaSwag in one run alone: the one that both have counts
    every = [made(zeroshot={8: suite({"hellaswag": 0.3, "boolq": 0.5})}), made(zeroshot={8: suite({"boolq": 0.5})})]
    ab_composite.add(every)
    assert keys_of(every[0]) == ["hellaswag_accuracy_norm", "eval_official_sum", KEYS["boolq"]]


def test_only_what_all_runs_were_scored_on():
    """A task that one arm lacks, or answered other items of or by another rule, would compare unlike with unlike."""
    a, b = {"piqa": 0.6, "boolq": 0.6, "arc_easy": 0.4}, {"piqa": 0.7, "arc_easy": 0.4, "openbookqa": 0.3}
    every = [run_of(0, zeroshot={4: suite(a)}), run_of(0, zeroshot={4: suite(b)})]
    words = ab_composite.add(every)
    assert [one[4] for one in composites(every)] == pytest.approx([(0.2 + 0.2) / 2, (0.4 + 0.2) / 2])
    assert "2 tasks of" in words and "of Zero-shot: PIQA acc_norm, ARC-easy acc_norm." in words
    assert "Left out: Zero-shot: BoolQ acc, OpenBookQA acc_norm (not scored in every run at that step)." in words

    def changed(name, **own):
        record = suite(a)
        record["by_task"][name] |= own
        return [run_of(0, zeroshot={4: suite(a, items_sha256="other")}), run_of(0, zeroshot={4: record})]

    for fault in ({"items_sha256": "other"}, {"n": 99}, {"chance": 0.4}):
        every = changed("boolq", **fault)
        assert "Left out: Zero-shot: BoolQ acc (other items or another rule" in ab_composite.add(every), fault
        assert keys_of(every[0]) == [KEYS["piqa"], KEYS["arc_easy"]]
    # an older record has the hash of all items alone
    older = suite(a)
    for own in older["by_task"].values():
        own.pop("items_sha256")
    assert "3 tasks" in ab_composite.add([run_of(zeroshot={4: older}), run_of(zeroshot={4: suite(a)})])
    for record in (older | {"items_sha256": "other"}, suite(a, scorer="zeroshot-1 bos=0")):
        every = [run_of(zeroshot={4: older}), run_of(zeroshot={4: record})]
        assert ab_composite.add(every).endswith("N/A: fewer than 2 tasks were scored alike in every run.")
        assert composites(every) == [{}, {}] and KEY not in ab_numbers.metrics_of(every)
    # one task is its own row; nothing scored, no words
    assert ab_composite.add([run_of(zeroshot={4: suite({"piqa": 0.6})})] * 2) == "" == ab_composite.add([])
    # a damaged record
    every = [run_of(zeroshot={4: suite(a) | {"by_task": [1]}}), run_of(zeroshot={4: suite(a)})]
    assert KEY in ab_numbers.metrics_of(every) or ab_composite.add(every)


def test_step():
    """The number is of one step: the last with the most tasks, not of the untrained network; a run that was scored on
    nothing lacks it, which withholds the verdict, and does not take the others' away."""
    both, one = suite({"piqa": 0.6, "boolq": 0.6}), suite({"piqa": 0.7})
    later = suite({"piqa": 0.7, "boolq": 0.5})
    every = [run_of(seed, zeroshot={0: both, 4: both, 8: later, 12: one}) for seed in (0, 1)]
    ab_composite.add(every)
    assert composites(every)[0] == {0: pytest.approx(0.2), 4: pytest.approx(0.2), 8: pytest.approx(0.2)}
    metrics = ab_numbers.metrics_of(every)
    assert ab_numbers.common_steps([run | {"val": {}, "train": {"step": []}} for run in every])[KEY] == 8
    assert metrics[KEY].label == f"{LABEL} (2 tasks)" and metrics[KEY].thing == KEY
    every = [run_of(0, zeroshot={0: both, 4: one}), run_of(1, zeroshot={0: both, 4: one})]
    assert ab_composite.add(every).endswith("in every run.")
    every = [run_of(0, zeroshot={4: both}), run_of(1), run_of(2, zeroshot={4: both, 6: both})]
    ab_composite.add(every)
    assert composites(every) == [{4: pytest.approx(0.2)}, {}, dict.fromkeys((4, 6), pytest.approx(0.2))]
    # arms of other lengths
    every = [run_of(0, zeroshot={4: both}), run_of(0, zeroshot={6: both})]
    assert ab_composite.add(every).startswith(f"{LABEL}: N/A")
    assert "2 tasks" in ab_composite.add(every, at_ends=True) and composites(every)[1] == {6: pytest.approx(0.2)}


# ----------------------------------------------------------------------------------------------------------------------
# what may be said of it


def arms(rng, effect, n_seeds=4, n=300, noise=0.01):
    """Runs of both arms: tasks of n items, at chance in A, `effect` above it in B, with the noise of seeds."""
    return [[run_of(seed, zeroshot={4: suite({
        name: rng.binomial(n, chance + own + rng.normal(0, noise)) / n for name, chance in CHANCE.items()})})
        for seed in range(n_seeds)] for own in (0, effect)]


def test_false_claims_and_power_over_seeds():
    """Claims where there is no difference: 5 % at most. Where every task gains 2 points, the composite finds it in more
    than twice as many comparisons as any of its tasks."""
    rng, rates, n = np.random.default_rng(1), {}, 300
    for effect in (0.0, 0.02):
        values = []
        for _ in range(n):
            both = arms(rng, effect)
            ab_composite.add(both[0] + both[1])
            values.append([[[run["benchmarks"][KEY][4][KEY], *map(run["benchmarks"]["zeroshot"][4].get, KEYS.values())]
                            for run in arm] for arm in both])
        a, b = np.moveaxis(values, 1, 0)  # (n, seeds, composite and tasks) each
        rates[effect] = (stats.ttest_rel(b, a, axis=1).pvalue < 0.05).mean(0)  # the report's test, see below
    assert rates[0.0][0] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / n), rates
    assert rates[0.02][0] > 0.4 and rates[0.02][0] > 2 * rates[0.02][1:].max(), rates


def items_of(rng, levels, shared, n_seeds=3):
    """What composite_row reads: records of pairs of runs, of three tasks, one of them EWoK with three domains."""
    def tables(name):
        names = {"zeroshot": ["piqa", "arc_easy"], "ewok": ["ewok"]}[name]
        own = [[{}, {}] for _ in range(n_seeds)]
        for task in names:
            for i, hard in enumerate(shared[task]):
                for pair in own:
                    for side in (0, 1):
                        right = float(hard + rng.normal(0, 0.5) < levels[side])
                        record = {"credit": {"harness": right, "eval_official_sum": right}, "task": task,
                                  "cluster": f"text{i // 2}", "category": f"domain{i % 7 % 3}"}
                        pair[side][f"{task}/{i}"] = record
        return own

    made = {name: tables(name) for name in ("zeroshot", "ewok")}
    return lambda name, step: made[name]


DESCRIBED = {
    "zeroshot": {"category": "task", "cluster": "cluster"}, "ewok": {"category": "category", "cluster": "cluster"},
    KEY: {"metrics": [(KEY, LABEL, 1, ".4f")], "parts": [
        {"benchmark": "zeroshot", "key": KEYS["piqa"], "name": "piqa", "chance": 0.5},
        {"benchmark": "zeroshot", "key": KEYS["arc_easy"], "name": "arc_easy", "chance": 0.25},
        {"benchmark": "ewok", "key": "eval_official_sum", "name": "", "chance": 0.5}]},
}


def test_items_are_paired_within_tasks():
    """The row of items has the score's own numbers: tasks weigh alike however many items they have, EWoK's domains
    share one weight. Where arms differ in nothing its interval leaves out 0 in 5 % of the cases at most."""
    rng, found, n = np.random.default_rng(2), 0, 100
    for _ in range(n):
        shared = {name: rng.normal(0, 1, size) for name, size in (("piqa", 40), ("arc_easy", 80), ("ewok", 60))}
        tables_of = items_of(rng, (0.0, 0.0), shared)
        [row] = ab_items.composite_row(KEY, DESCRIBED, tables_of, 4, [], 0.05)
        found += not row["low"] <= 0 <= row["high"]
    assert found / n <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / n)
    for side, letter in enumerate("ab"):
        means = []
        for pair in range(3):
            own = {name: tables_of(name, 4)[pair][side].values() for name in ("zeroshot", "ewok")}

            def mean_of(rows, **wanted):
                rows = [row for row in rows if wanted.items() <= row.items()]
                return statistics.fmean(row["credit"]["harness"] for row in rows)

            domains = [mean_of(own["ewok"], category=f"domain{i}") for i in range(3)]
            scores = [(mean_of(own["zeroshot"], task="piqa"), 0.5), (mean_of(own["zeroshot"], task="arc_easy"), 0.25),
                      (statistics.fmean(domains), 0.5)]
            means.append(tasks.mean_centered_accuracy(scores))
        assert row[letter] == pytest.approx(statistics.fmean(means))
    assert row["delta"] == pytest.approx(row["b"] - row["a"]) and row["n"] == "180 items x 3"
    assert row["clusters"] > 90  # pairs of items, and of EWoK's those of a domain
    [better] = ab_items.composite_row(KEY, DESCRIBED, items_of(rng, (-0.3, 0.3), shared), 4, [], 0.05)
    assert better["low"] > 0 and better["p"] < 0.05
    reasons = []
    gone = lambda name, step: [[{}, {}]] if name == "ewok" else tables_of(name, step)
    assert ab_items.composite_row(KEY, DESCRIBED, gone, 4, reasons, 0.05) == []
    assert reasons == [f"{LABEL} items: N/A: no items of eval_official_sum at step 4 are in every run's file"]


# ----------------------------------------------------------------------------------------------------------------------
# reports


def add_suite(folder, step, level, seed, names=("piqa", "boolq", "arc_easy", "commonsense_qa")):
    """Records of a run whose model gets about `level` of 40 items of each task, half of them easy for every run."""
    items = [item for item in zeroshot.load("synthetic:40") if item["task"] in names]
    hard, own = np.random.default_rng(0).random(len(items)), np.random.default_rng([seed, int(1000 * level)])
    records = []
    for item, difficulty in zip(items, hard, strict=True):
        scores = tasks.scores_of(item["task"])
        credit = float(difficulty / 2 + own.random() / 2 < level)
        records.append({key: item[key] for key in ("id", "task", "cluster", "label")} | {
            "predictions": dict.fromkeys(scores, 0), "ties": dict.fromkeys(scores, 1), "truncated": False,
            "credit": dict.fromkeys((*scores, "harness"), credit), "scores": {}})
    metrics = zeroshot.collect(items, records) | {"scorer": "zeroshot-1", "seconds": 1.0}
    metrics |= {"title": f"Zero-shot (synthetic, {len(items)} items)", "items_sha256": zeroshot.items_sha256(items)}
    zeroshot.write_records(folder, step, {"metrics": metrics, "items": records}, runs.now())
    return metrics


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Four seeds of two arms, scored on four tasks and EWoK; B is better at the tasks."""
    folder = tmp_path_factory.mktemp("scored")
    for seed in range(4):
        for arm, level in (("base", 0.45), ("test", 0.6)):
            run = make_run(folder / f"{arm}_s{seed}", seed, loss=0.01 * seed, ewok=0.5,
                           flags=MUON["ab"[arm == "test"]])
            add_suite(run, 40, level, seed)
    return folder


def by_hand(folder):
    """The number of a run's folder at its last step."""
    record = runs.read_jsonl(folder / "zeroshot_metrics.jsonl")[-1]
    scores = [(own[tasks.scores_of(name)[0]], own["chance"]) for name, own in record["by_task"].items()]
    scores.append((runs.read_jsonl(folder / "ewok_metrics.jsonl")[-1]["eval_official_sum"], 0.5))
    return statistics.fmean((accuracy - chance) / (1 - chance) for accuracy, chance in scores)


def test_row_of_an_ab(scored, tmp_path, capsys):
    """Its numbers are the runs' own, by seeds, and its p is corrected with the other metrics of quality; items stand
    beside it; first screen, report.md and report.json have it."""
    out = tmp_path / "report"
    code, report = compare(scored, "--treatment", "optimizer", "--print", "full", out=out)
    row, text = report["metrics"][KEY], capsys.readouterr().out
    a, b = ([by_hand(scored / f"{arm}_s{seed}") for seed in range(4)] for arm in ("base", "test"))
    assert code == 0 and row["values_a"] == pytest.approx(a) and row["values_b"] == pytest.approx(b)
    assert row["delta"] == pytest.approx(np.mean(b) - np.mean(a)) and row["paired"] and row["n"] == 4
    assert row["p_raw"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
    # the bos view, EWoK, four tasks of the suite, and their composite; the primary metric is alone
    family = [one for one in report["metrics"].values() if one["family"] == "quality" and one["tests"]]
    assert {one["tests"] for one in family} == {7} and row in family and report["metrics"]["val_loss"]["tests"] == 1
    assert row["p_raw"] < row["p_corrected"] < 0.05 and row["verdict"] == "better"
    label = f"{LABEL} (5 tasks, 4 synthetic)"
    cells = table_rows((out / "report.md").read_text())
    assert cells[label] and row["label"] == label and f"| {label} | " in text.split("## Result")[0]
    assert "EWoK: official sum metric; Zero-shot (synthetic, 160 items): PIQA acc_norm," in report["composite"]
    page = (out / "report.html").read_text()
    assert report["composite"] in text and label in page
    assert "Every measured metric but the mean centered accuracy: change in percent" in page
    assert KEY not in (scored / "base_s0" / "config.json").read_text()  # what is computed is not written there
    [items] = [one for one in report["items_and_documents"] if one.get("key") == KEY]
    assert items["what"] == label and items["n"] == "280 items x 4" and items["how"].startswith("seeds and ")
    assert (items["a"], items["b"]) == (pytest.approx(row["a"]), pytest.approx(row["b"]))
    assert items["delta"] == pytest.approx(row["delta"]) and items["low"] > 0
    assert not any(LABEL in reason for reason in report["not_available"])


def test_primary(scored, tmp_path, capsys):
    """Asked for, it decides alone, at its own level, in an A/B, over many arms and beside a noise floor."""
    flags = ("--treatment", "optimizer", "--primary", KEY)
    code, report = compare(scored, *flags, "--no_items")
    row = report["metrics"][KEY]
    assert code == 0 and report["verdict"] == "better" == row["verdict"] and row["tests"] == 1
    assert row["p_corrected"] == row["p_raw"] and report["margin"] == 0.01 and report["steps"][KEY] == 40
    assert {match["row"]["delta"] for match in report["matchings"]} == {row["delta"]}
    assert "(5 tasks, 4 synthetic) at step 40, 4 pairs: B - A = +0." in report["headline"]
    many("--runs", scored / "*_s*", "--group_by", "optimizer", "--baseline", "optimizer=adamw", "--primary", KEY,
         "--out", tmp_path / "out", "--print", "full")
    [entry] = json.loads((tmp_path / "out" / "report.json").read_text())["differences"]
    assert entry["verdict"] == "better" and entry["row"]["delta"] == pytest.approx(row["delta"])
    assert "is the mean over 5 tasks" in capsys.readouterr().out
    many("--check", scored / "test_s0", "--against", scored / "base_s*", "--allow", "optimizer", "--primary", KEY)
    text = capsys.readouterr().out
    assert f"{LABEL} (5 tasks, 4 synthetic)" in table_rows(text) and "is the mean over 5 tasks" in text


def test_what_is_left_out_is_told(tmp_path):
    """Arms that were scored on other tasks: the gate says so first; let pass, what both have is compared. Without two
    common tasks there is no such row, and asking for it says why."""
    for seed in range(3):
        for arm, names in (("a", ("piqa", "boolq")), ("b", ("boolq", "piqa", "openbookqa"))):
            run = make_run(tmp_path / f"{arm}_s{seed}", seed, flags=MUON[arm], ewok=0.5 if arm == "a" else None)
            add_suite(run, 40, 0.5, seed, names)
    common = (tmp_path, "--treatment", "optimizer")
    code, report = compare(*common, a="a_s*", b="b_s*")
    assert code == 2 and report["metrics"][KEY]["p"] == "N/A: not comparable"
    code, report = compare(*common, "--allow", "zeroshot_scorer", a="a_s*", b="b_s*")
    assert code == 0 and report["metrics"][KEY]["label"] == f"{LABEL} (synthetic, 2 tasks)"
    assert report["metrics"][KEY]["delta"] == 0
    assert ("Left out: EWoK: official sum metric; Zero-shot (other items in some runs): OpenBookQA acc_norm "
            "(not scored in every run at that step).") in report["composite"]
    for name, flags in (("plain_s0", {}), ("other_s0", MUON["b"])):
        make_run(tmp_path / name, flags=flags)
    with pytest.raises(ValueError, match="--primary mean_centered_accuracy needs folders of runs that were all scored"):
        compare(*common, "--primary", KEY, a="plain_s*", b="other_s*")
    assert KEY not in compare(*common, a="plain_s*", b="other_s*")[1]["metrics"]


def test_a_seed_without_scores_withholds_the_verdict(scored, tmp_path):
    """The seed that was not scored may be the one that went wrong."""
    for folder in scored.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "test_s3").unlink()
    make_run(tmp_path / "test_s3", 3, loss=0.03, flags=MUON["b"])
    _, report = compare(tmp_path, "--treatment", "optimizer", "--no_items")
    row = report["metrics"][KEY]
    assert (row["n"], row["lacking"], row["verdict"]) == (3, [3], "inconclusive")
    assert "mean over 5 tasks" in report["composite"]
