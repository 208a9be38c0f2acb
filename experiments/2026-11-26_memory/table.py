"""This experiment's tables, from the committed results: python experiments/2026-11-26_memory/table.py

--best grid.csv prints only each arm and its best learning rate, which run.sh trains next.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

import numpy as np

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import ab_stats, ab_verdict, memory_settings, processes, runs  # noqa: E402  (answers puts the repo's root on the path)

ARMS = ("transformer", "off", "stop", "through", "titan", "hope")
SEEDS = (1, 2, 3)
# what is claimed of the books: an arm and how it is read, against another; negative is better
CLAIMS = {
    "`stop` written against `off` written (target: below 0)": (("stop", "adapt"), ("off", "adapt")),
    "`stop` written against the transformer (target: below 0)": (
        ("stop", "adapt"), ("transformer", "static")),
    "`stop` unwritten against the transformer": (("stop", "static"), ("transformer", "static")),
    "`through` written against `stop` written": (("through", "adapt"), ("stop", "adapt")),
    "`off` written against itself unwritten": (("off", "adapt"), ("off", "static")),
    "`stop` written against itself unwritten": (("stop", "adapt"), ("stop", "static")),
    "`original` written against itself unwritten": (("original", "adapt"), ("original", "static")),
    "`titan` against the transformer": (("titan", "adapt"), ("transformer", "static")),
    "`titan` against itself unwritten": (("titan", "adapt"), ("titan", "static")),
    "`hope` against the transformer": (("hope", "adapt"), ("transformer", "static")),
    "`hope` against itself unwritten": (("hope", "adapt"), ("hope", "static")),
    "random writes in `stop`, against none (target: within 0.005)": (
        ("stop", "random"), ("stop", "static")),
    "another book's writes in `stop`, against none (target: at least 0)": (
        ("stop", "other"), ("stop", "static")),
}


# arms of document 004, which README's table has
QUESTIONS = {
    "memory=hope_attention, write=stop": "Fast weights, `--memory hope_attention`",
    "memory=titan, write=stop": "A Titans memory, `--memory titan`",
    "memory=hope, write=stop": "Both, `--memory hope`",
}


# ----------------------------------------------------------------------------------------------------------------------
# learning rates


def arm_of(row: dict) -> str:
    if row["memory"] != "hope_attention":
        return {"none": "transformer"}.get(row["memory"], row["memory"])
    if float(row["inner_lr"]) == memory_settings.PRESETS["original"]["inner_lr"]:
        return "original"
    return row["write"]


def read_grid(path) -> dict[str, dict[float, float]]:
    """{arm: {learning rate: val loss}}."""
    grid: dict = {}
    with open(path) as f:
        for row in csv.DictReader(f):
            grid.setdefault(arm_of(row), {})[float(row["learning_rate"])] = float(row["final_val_loss"])
    return grid


# ----------------------------------------------------------------------------------------------------------------------
# books


def read_exams(kept: Path) -> dict[str, list[dict]]:
    """{arm: its record of each seed, with "books", the lines of single books}."""
    exams = {}
    for arm in (*ARMS, "original"):
        folder, name = (arm, "books") if arm != "original" else ("off", "original")
        for seed in SEEDS:
            run = next(kept.glob(f"{folder}_lr*_s{seed}"))
            record = json.loads((run / f"{name}.json").read_text())
            record["books"] = list(runs.read_jsonl(run / f"{name}_documents.jsonl"))
            exams.setdefault(arm, []).append(record)
    return exams


def print_books(exams: dict) -> None:
    print("| arm | rate x | no writes | written | random writes | another book's | updates per book |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for arm, records in exams.items():
        cells = []
        for control in ("static", "adapt"):
            losses = [record["loss"].get(control) for record in records]
            cells.append("" if None in losses else f"{statistics.fmean(losses):.4f}")
        for control in ("random", "other"):
            changes = [record["minus_static"].get(control) for record in records]
            means = [one["mean"] for one in changes if one]
            cells.append(f"{statistics.fmean(means):+.4f}" if means else "")
        written = [record["written"].get("adapt", {"updates": 0})["updates"] for record in records]
        rate = f"{records[0]['inner_lr_multiplier']:g}" if records[0]["memory"] != "none" else ""
        print(f"| {arm} | {rate} | {' | '.join(cells)} | {statistics.fmean(written):.0f} |")


def claim(exams: dict, new: tuple[str, str], old: tuple[str, str]) -> dict:
    """ab_stats.paired over seeds: the losses of two arms, each read under a control."""
    def losses(arm, control):
        return [record["loss"][control] for record in exams[arm]]

    for first, second in zip(exams[new[0]], exams[old[0]], strict=True):
        assert first["documents_sha256"] == second["documents_sha256"], "the arms read other books"
    return ab_stats.paired(losses(*old), losses(*new))


def of_books(exams: dict, arm: str, control: str) -> np.ndarray:
    """Nats per token (seeds, books)."""
    return np.array([[sum(line["nats"]) / sum(line["tokens"]) for line in record["books"] if line["control"] == control]
                     for record in exams[arm]])


def between(stats: dict) -> str:
    return f"[{stats['ci_low']:+.4f}, {stats['ci_high']:+.4f}]"


def print_claims(exams: dict) -> None:
    rows = {name: claim(exams, *pair) for name, pair in CLAIMS.items()}
    corrected = ab_verdict.holm([row["p"] for row in rows.values()])
    print("| | nats/token | 95 % interval over seeds | p | by Holm | 95 % interval over seeds and books |")
    print("|---|---:|---|---:|---:|---|")
    for (name, row), p in zip(rows.items(), corrected, strict=True):
        new, old = (of_books(exams, *side) for side in CLAIMS[name])
        both = ab_stats.hierarchical_bootstrap(old, new, range(new.shape[1]))
        print(f"| {name} | {row['delta']:+.4f} | {between(row)} | {row['p']:.4f} | {p:.4f} | {between(both)} |")


def print_positions(exams: dict) -> None:
    """What writing gains by position, as means over seeds."""
    arms = [arm for arm, records in exams.items() if "adapt" in records[0]["loss"]]
    print(f"| tokens | {' | '.join(arms)} |\n|---" + "|---:" * len(arms) + "|")
    for i, span in enumerate(exams[arms[0]][0]["by_position"]):
        cells = []
        for arm in arms:
            rows = [record["by_position"][i] for record in exams[arm]]
            gains = [one["minus_static"]["adapt"]["mean"] for one in rows]
            cells.append(f"{statistics.fmean(gains):+.4f}")
        print(f"| {span['from']} to {span['to']} | {' | '.join(cells)} |")


# ----------------------------------------------------------------------------------------------------------------------
# the trainer's own val loss, at equal steps and at equal wall-clock


def compare_all(kept: Path) -> list[dict]:
    arguments = ["--runs", *(f"{kept}/{arm}_lr*" for arm in ARMS)]
    arguments += ["--group_by", "memory,write", "--baseline", "memory=none"]
    arguments += ["--treatment", "memory,learning_rate,muon_lr"]
    record = answers.report(arguments, {"arms.png": here / "arms.png"}, level=2)
    found = {e["name"]: e for e in record["differences"]}
    return [answers.answer(question, found[name]["row"], "nats/token", wall=found[name]["wall"])
            for name, question in QUESTIONS.items()]


def main():
    if sys.argv[1:2] == ["--best"]:
        return answers.print_best(read_grid(sys.argv[2]))
    print("## Planted pairs\n")
    print((here / "planted.md").read_text())
    if not (here / "grid.csv").exists():
        print("The books have not been read yet: run.sh reads them.")
        return
    print("## Each arm's own learning rate (seed 0, val loss)\n")
    grid = read_grid(here / "grid.csv")
    answers.print_grid({arm: grid[arm] for arm in ARMS}, "arm")
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        exams = read_exams(kept)
        trained = json.loads((next(kept.glob("original_*_s1")) / "original.json").read_text())
        assert trained["loss"] == exams["original"][0]["loss"], "training `original` gives other weights than `off`"
        print("\n## 16 held-out books, 4,096 tokens each (nats per token, means over 3 seeds)\n")
        print_books(exams)
        print("\nRandom writes and another book's: against no writes.\n")
        print_claims(exams)
        print("\n## What writing changes, by position\n")
        print_positions(exams)
        print("\n## Val loss at equal steps and at equal wall-clock\n")
        answers.write(here, compare_all(kept))


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
