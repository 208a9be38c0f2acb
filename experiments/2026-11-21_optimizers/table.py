"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_optimizers/table.py

--best grid.csv prints only each architecture and optimizer with its best learning rate, which run.sh trains next.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import processes, runs  # noqa: E402  (answers puts the repo's root on the path)

ARCHS, OPTIMIZERS = ("gpt2", "speedrun"), ("adamw", "muon", "muon_all")
NAMES = {"optimizer=muon": "Muon on the blocks", "optimizer=muon_all": "Muon everywhere"}


def read_grid(path) -> dict[str, dict[float, float]]:
    """{"architecture optimizer": {learning rate: val loss}}"""
    losses: dict = {f"{arch} {optimizer}": {} for arch in ARCHS for optimizer in OPTIMIZERS}
    with open(path) as f:
        for row in csv.DictReader(f):
            losses[f"{row['arch']} {row['optimizer']}"][float(row["learning_rate"])] = float(row["final_val_loss"])
    return losses


def comparison(kept: Path, arch: str, grid: dict) -> list[dict]:
    """Prints stage 2 of an architecture; returns its lines of README's answers."""
    trained = set()
    for path in kept.glob(f"{arch}_*/config.json"):
        flags = json.loads(path.read_text())["flags"]
        trained.add((flags["optimizer"], flags["learning_rate"]))
    best = {(optimizer, answers.best_rate(grid[f"{arch} {optimizer}"])) for optimizer in OPTIMIZERS}
    assert trained == best, "stage 2 used other rates"

    arguments = ["--runs", f"{kept}/{arch}_*", "--group_by", "optimizer", "--baseline", "optimizer=adamw"]
    arguments += ["--treatment", "learning_rate,muon_lr"]
    record = answers.report(arguments, {"arms.png": here / f"{arch}.png"}, level=2)
    lines = []
    for e in record["differences"]:
        question = f"{NAMES[e['name']]} instead of AdamW, {arch}"
        lines.append(answers.answer(question, e["row"], "nats/token", wall=e["wall"]))
    return lines


def cost_of_a_step(kept: Path, arch: str, optimizer: str) -> float:
    """Seconds: the median over the runs of their medians."""
    medians = []
    for path in sorted(kept.glob(f"{arch}_{optimizer}_lr*/scalars.jsonl")):
        records = runs.read_jsonl(path)
        medians.append(statistics.median(r["step_seconds"] for r in records if r["type"] == "train"))
    return statistics.median(medians)


def main():
    if sys.argv[1:2] == ["--best"]:
        return answers.print_best(read_grid(sys.argv[2]))
    print("## Stage 1: each one's own grid of learning rates (seed 0, 80 steps, val loss)\n")
    grid, lines = read_grid(here / "grid.csv"), []
    answers.print_grid(grid, "arch optimizer")
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        for arch in ARCHS:
            print(f"\n## Stage 2, {arch}: each optimizer at its best learning rate, fresh seeds\n")
            lines += comparison(kept, arch, grid)
        print("## Cost of a step (median of the runs' medians)\n")
        print("| arch | optimizer | ms per step | against adamw |\n|---|---|---:|---:|")
        for arch in ARCHS:
            cost = {optimizer: cost_of_a_step(kept, arch, optimizer) for optimizer in OPTIMIZERS}
            for optimizer, seconds in cost.items():
                change = seconds / cost["adamw"] - 1
                print(f"| {arch} | {optimizer} | {1000 * seconds:.0f} | {change:+.1%} |")
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
