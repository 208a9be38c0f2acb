"""lab/benchmarks.py: a stranger's benchmark needs one file and one word in train_gpt.BENCHMARKS; and shared helpers."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hellaswag
from lab import ab_numbers, benchmarks, runs

SYNTHETIC = "HellaSwag (synthetic, 400 items)"

AGREEMENT = '''"""agreement.py owns number agreement: does the model prefer the verb that fits its subject?"""

import contextlib
import hashlib
import sys
import time

from lab import benchmarks, processes

NAME, TITLE, OFFICIAL, CHANCE = "agreement", "Agreement", "the items in this file", 0.5
METRICS = (("agreement_accuracy", "Agreement accuracy", 1, ".4f"),)
SHOWN = ITEM_METRICS = ("accuracy",)
CLUSTER, CATEGORY = "noun", None
DATA_HELP = "synthetic ('' = the items in this file)"
OPTIONS = {}
VERBS = {"singular": " is", "plural": " are"}


def load(source=None, max_examples=0):
    items = []
    for noun in "cat dog bird tree girl boy king star".split():
        for number, ending in (("singular", ""), ("plural", "s")):
            for place in ("here", "old"):
                items.append({"id": f"{noun}-{number}-{place}", "noun": noun, "number": number,
                              "subject": f"The {noun}{ending}", "place": place})
    return benchmarks.spread_evenly(items, max_examples)


def questions(item):
    return [(item["subject"], [f"{verb} {item['place']}." for verb in VERBS.values()])]


def check_length(items, block_size):
    benchmarks.check_length(items, questions, block_size)


def evaluate(model, items, procs=None, *, bos=True, autocast=contextlib.nullcontext, **options):
    begun = time.perf_counter()
    scored = benchmarks.score(NAME, model, items, questions, procs, bos=bos, autocast=autocast, **options)
    if scored is None:
        return None
    records = []
    for item, answer in zip(items, scored, strict=True):
        sums = dict(zip(VERBS, answer.sums[0], strict=True))
        right = sums.pop(item["number"]) > max(sums.values())
        records.append({"id": item["id"], "noun": item["noun"], "credit": {"accuracy": float(right)}})
    names = "".join(item["id"] for item in items)
    metrics = {
        "n": len(items), "accuracy": benchmarks.mean([record["credit"]["accuracy"] for record in records]),
        "truncated": sum(answer.truncated for answer in scored), "scorer": f"agreement-1 bos={int(bos)}",
        "dtype": benchmarks.computing_dtype(autocast), "seconds": time.perf_counter() - begun,
        "items_sha256": hashlib.sha256(names.encode()).hexdigest()[:16]}
    return {"metrics": metrics, "items": records}


def write_records(folder, step, result, timestamp):
    benchmarks.write_records(NAME, METRICS, folder, step, result, timestamp)


def table(metrics):
    return f"accuracy {metrics['accuracy']:.4f}"


def show(items, records):
    return "\\n".join(f"{item['subject']} {record['credit']['accuracy']}"
                     for item, record in zip(items, records, strict=True))


def main(argv=None):
    return benchmarks.main(sys.modules[__name__], argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "agreement.py", "stopped, nothing was written.")
'''

DRIVER = '''
import contextlib, io, json, sys
import agreement, compare_runs, prepare_fineweb, train_gpt

help_text = io.StringIO()
with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
    train_gpt.main(["--help"])
prepare_fineweb.main("--dataset synthetic --max_docs 400 --out_dir data".split())
common = ("--data_dir data --seq_len 64 --n_layer 1 --n_head 2 --n_embd 16 --micro_batch_size 2 --device cpu "
          "--total_batch_tokens 256 --max_train_steps 4 --warmup_iters 0 --val_tokens 2000 --eval_every 2 "
          "--log_every 1 --save_every 4 --results_csv results.csv --agreement_every 2 "
          "--agreement_max_examples 24").split()
for seed in (1, 2):
    for optimizer in ("adamw", "muon"):
        out = f"{optimizer}_s{seed}"
        assert train_gpt.main([*common, "--optimizer", optimizer, "--seed", str(seed), "--out_dir", out]) == 0
report = io.StringIO()
with contextlib.redirect_stdout(report):
    code = compare_runs.main(["--a", "adamw_s*", "--b", "muon_s*", "--treatment", "optimizer", "--out", "report"])
scores = io.StringIO()
with contextlib.redirect_stdout(scores):
    agreement.main(["--checkpoint", "adamw_s1", "--out", "single", "--show", "1", "--device", "cpu"])
json.dump({"help": help_text.getvalue(), "report": report.getvalue(), "code": code, "scores": scores.getvalue()},
          open("seen.json", "w"))
'''


@pytest.mark.slow
def test_a_third_benchmark(tmp_path):
    """Its accuracy: scored while training and by its own command, recorded, and a row of the report, item by item."""
    repo = tmp_path / "repo"
    shutil.copytree(runs.REPO / "lab", repo / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    for path in runs.REPO.glob("*.py"):
        shutil.copy(path, repo)
    (repo / "agreement.py").write_text(AGREEMENT)
    trainer = (repo / "train_gpt.py").read_text()
    changed = trainer.replace("BENCHMARKS = (hellaswag, ewok, zeroshot)", "BENCHMARKS = (hellaswag, ewok, agreement)")
    assert changed != trainer
    (repo / "train_gpt.py").write_text(changed.replace("\nimport ewok\n", "\nimport agreement\nimport ewok\n"))
    (repo / "driver.py").write_text(DRIVER)
    done = subprocess.run([sys.executable, repo / "driver.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    seen = json.loads((tmp_path / "seen.json").read_text())
    for flag in ("--agreement_every", "--agreement_data", "--agreement_max_examples"):
        assert flag in seen["help"]
    run = tmp_path / "adamw_s1"
    metrics = runs.read_jsonl(run / "agreement_metrics.jsonl")
    accuracy = metrics[-1]["accuracy"]
    assert [(record["step"], record["n"]) for record in metrics] == [(2, 24), (4, 24)] and 0 <= accuracy <= 1
    assert f"Agreement (synthetic, 24 items) accuracy {accuracy:.4f}" in (run / "log.txt").read_text()
    items = runs.read_jsonl(run / "agreement_items.jsonl")
    assert len(items) == 48 and sum(r["credit"]["accuracy"] for r in items if r["step"] == 4) / 24 == accuracy
    assert json.loads((run / "step_metrics.json").read_text())["4"]["agreement_accuracy"] == accuracy
    config = json.loads((run / "config.json").read_text())["benchmarks"]["agreement"]
    assert config["items"] == 24 and config["metrics"] == [["agreement_accuracy", "Agreement accuracy", 1, ".4f"]]
    assert (config["item_metrics"], config["cluster"], config["category"]) == (["accuracy"], "noun", None)
    with open(tmp_path / "results.csv", newline="") as f:
        row = next(csv.DictReader(f))
    assert (row["agreement_accuracy"], row["agreement_title"]) == (str(accuracy), "Agreement (synthetic, 24 items)")
    assert config["title"] == metrics[-1]["title"] == "Agreement (synthetic, 24 items)" and row["hellaswag_title"] == ""

    assert seen["code"] == 0
    report = (tmp_path / "report" / "report.md").read_text()
    rows = [line for line in report.splitlines() if line.startswith("| Agreement (synthetic, 24 items) accuracy")]
    scores = []
    for seed in (1, 2):
        table = json.loads((tmp_path / f"adamw_s{seed}" / "step_metrics.json").read_text())
        scores.append(table["4"]["agreement_accuracy"])
    assert rows and f"{sum(scores) / 2:.4f}" in rows[0]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    by_item = [row for row in report["items_and_documents"] if row["what"] == f"{config['title']} accuracy"]
    assert [row["clusters"] for row in by_item] == [8]

    assert "The cat " in seen["scores"] and "Agreement (32 items) | the items in this file" in seen["scores"]
    single = runs.read_jsonl(tmp_path / "single" / "agreement_metrics.jsonl")
    assert [(record["step"], record["n"]) for record in single] == [(4, 32)]


@pytest.mark.parametrize(("n", "source", "title"), [
    (10_042, "", "HellaSwag"), (10_042, Path("val.jsonl"), "HellaSwag"), (400, "synthetic", SYNTHETIC),
    (400, "synthetic:9000", SYNTHETIC), (10_042, "synthetic:10042", "HellaSwag (synthetic, 10,042 items)"),
    (200, None, "HellaSwag (200 of 10,042 items)"), (39_905, "train.jsonl", "HellaSwag (39,905 items)")])
def test_title(n, source, title):
    """What a score is called in logs, tables and results.csv: HellaSwag alone is all of the official items."""
    assert benchmarks.title_of(hellaswag, [None] * n, source) == title


def test_titles_of_reports():
    """What a report calls scores that were made after training: by the items of their last record."""
    about = benchmarks.describe(hellaswag, [{}] * 40, {"title": SYNTHETIC})
    trained = {"config": {"benchmarks": {"hellaswag": about}}}
    later = {"hellaswag": "HellaSwag (60 of 10,042 items)", "ewok": "EWoK (synthetic, 44 items)",
             "gsm8k": "GSM8K (synthetic, 8 items)"}
    scored = {name: {4: {"title": later[name]}} for name in ("hellaswag", "ewok")}
    rescored = trained | {"benchmarks": scored, "gsm8k": {"title": later["gsm8k"]}}
    before = {"hellaswag": SYNTHETIC, "ewok": "EWoK", "gsm8k": "GSM8K"}
    for run, titles in ((trained, before), (rescored, later)):
        for name, benchmark in ab_numbers.benchmarks_of([run]).items():
            assert benchmark["title"] == titles[name]
            assert all(label.startswith(f"{titles[name]} ") for _, label, *_ in benchmark["metrics"])


def test_spread_evenly():
    """Which items a part of a benchmark has: equal distances, in order; 0 and too many give all."""
    assert benchmarks.spread_evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert benchmarks.spread_evenly([1, 2, 3], 0) == benchmarks.spread_evenly([1, 2, 3], 9) == [1, 2, 3]
    with pytest.raises(ValueError, match="max_examples is -1"):
        benchmarks.spread_evenly([1], -1)


def test_standard_error():
    """Every stderr: of one group the textbook's, of several that of the mean of their means; None from one value."""
    assert benchmarks.standard_error([[0.0, 1.0, 1.0, 0.0]]) == pytest.approx((0.25 * 4 / 3 / 4) ** 0.5)
    variances = 0.5 / 2 + 1 / 3
    assert benchmarks.standard_error([[0.0, 1.0], [1.0, 2.0, 3.0]]) == pytest.approx(variances**0.5 / 2)
    assert benchmarks.standard_error([[0.0, 1.0], [1.0]]) is benchmarks.standard_error([[]]) is None
