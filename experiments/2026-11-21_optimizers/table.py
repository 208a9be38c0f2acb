"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_optimizers/table.py"""

import csv
import json
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402

ARCHS, OPTIMIZERS = ("gpt2", "speedrun"), ("adamw", "muon", "muon_all")

print("## Stage 1: each one's own grid of learning rates (seed 0, 80 steps, val loss)\n")
found: dict = {}
with (here / "grid.csv").open() as f:
    for row in csv.DictReader(f):
        key = row["arch"], row["optimizer"]
        found.setdefault(key, {})[float(row["learning_rate"])] = float(row["final_val_loss"])
rates = sorted({lr for by_rate in found.values() for lr in by_rate})
print("| arch | optimizer | " + " | ".join(f"{lr:g}" for lr in rates) + " |\n|---|---" + "|---:" * len(rates) + "|")
best = {}
for arch in ARCHS:
    for optimizer in OPTIMIZERS:
        by_rate = found[arch, optimizer]
        lr = best[arch, optimizer] = min(by_rate, key=by_rate.get)
        assert min(by_rate) < lr < max(by_rate), f"{arch} {optimizer}: the best learning rate is at its grid's edge"
        cells = [f"**{by_rate[r]:.4f}**" if r == lr else f"{by_rate[r]:.4f}" if r in by_rate else "" for r in rates]
        print(f"| {arch} | {optimizer} | {' | '.join(cells)} |")

lines = []
for arch in ARCHS:
    print(f"\n## Stage 2, {arch}: each optimizer at its best learning rate, fresh seeds\n")
    folders = [path for path in sorted((here / "runs").iterdir()) if path.name.startswith(f"{arch}_")]
    flags = {(f["optimizer"], f["learning_rate"]) for path in folders
             for f in [json.loads((path / "config.json").read_text())["flags"]]}
    assert flags == {(optimizer, best[arch, optimizer]) for optimizer in OPTIMIZERS}, "stage 2 used other rates"
    record = answers.report(["--runs", str(here / "runs" / f"{arch}_*"), "--group_by", "optimizer", "--baseline",
                             "optimizer=adamw", "--treatment", "learning_rate,muon_lr"],
                            {"arms.png": here / f"{arch}.png"}, level=2)
    for e in record["differences"]:
        name = {"muon": "Muon on the blocks", "muon_all": "Muon everywhere"}[e["name"].removeprefix("optimizer=")]
        lines.append(answers.answer(f"{name} instead of AdamW, {arch}", e["row"], e["verdict"], "nats/token",
                                    wall=e["wall"]))

print("## Cost of a step (median of the runs' medians)\n")
print("| arch | optimizer | ms per step | against adamw |\n|---|---|---:|---:|")
for arch in ARCHS:
    cost = {}
    for optimizer in OPTIMIZERS:
        steps = [[json.loads(line) for line in (path / "scalars.jsonl").open()]
                 for path in sorted((here / "runs").glob(f"{arch}_{optimizer}_lr*"))]
        cost[optimizer] = statistics.median(statistics.median(r["step_seconds"] for r in run if r["type"] == "train")
                                            for run in steps)
        print(f"| {arch} | {optimizer} | {1000 * cost[optimizer]:.0f} | {cost[optimizer] / cost['adamw'] - 1:+.1%} |")
answers.write(here, lines)
