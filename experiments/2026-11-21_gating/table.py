"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_gating/table.py"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402

ARMS = "none wide_mlp headwise elementwise elementwise_ns elementwise_value const".split()


def arm_of(name: str) -> str:
    return re.sub(r"_lr[\d.]+_s\d+$", "", name)


print("## Stage 1: the learning rate (seed 0, 150 steps, val loss)\n")
found: dict = {}
with (here / "lr.csv").open() as f:
    for row in csv.DictReader(f):
        found.setdefault(arm_of(row["run_id"]), {})[float(row["learning_rate"])] = float(row["final_val_loss"])
rates = sorted({lr for by_rate in found.values() for lr in by_rate})
print("| arm | " + " | ".join(f"{lr:g}" for lr in rates) + " |\n|---" + "|---:" * len(rates) + "|")
for arm, by_rate in found.items():
    best = min(by_rate, key=by_rate.get)
    assert min(rates) < best < max(rates), f"{arm}: the best learning rate is at the grid's edge"
    print(f"| {arm} | " + " | ".join(f"**{by_rate[lr]:.4f}**" if lr == best else f"{by_rate[lr]:.4f}" for lr in rates)
          + " |")

print("\n## Stage 2: all arms at one learning rate\n")
screen = answers.report(["--runs", str(here / "runs" / "screen" / "*"), "--group_by",
                         "attn_gate,gate_pos,gate_act,n_inner", "--baseline",
                         "attn_gate=none,gate_pos=sdpa,gate_act=sigmoid,n_inner=512"],
                        {"arms.png": here / "screen.png"}, level=2)

print("## What the gates did (end of stage 2; mean over seeds, layers and, for activations, the largest layer)\n")
print("| arm | parameters | gate mean | 5 % | 25 % | 50 % | 75 % | 95 % | share < 0.1 | attention on the first token "
      "| largest activation | ms per step |\n|---" + "|---:" * 11 + "|")
for arm in ARMS:
    runs = [path for path in sorted((here / "runs" / "screen").iterdir()) if arm_of(path.name) == arm]
    layers, fast = [], []
    for path in runs:
        records = [json.loads(line) for line in (path / "scalars.jsonl").open()]
        layers.append([r["layers"] for r in records if r["type"] == "mechanism"][-1])
        seconds = sorted(r["step_seconds"] for r in records if r["type"] == "train")
        fast.append(1000 * seconds[len(seconds) // 10])
    every = [layer for run in layers for layer in run]
    cells = ["", "", "", "", "", "", ""]
    if "gate_mean" in every[0]:
        cells = [statistics.fmean(layer["gate_mean"] for layer in every),
                 *(statistics.fmean(layer["gate_quantiles"][i] for layer in every) for i in range(5)),
                 statistics.fmean(layer["gate_share_below_0.1"] for layer in every)]
        cells = [f"{c:.3f}" for c in cells]
    largest = statistics.fmean(max(layer["largest_activation"] for layer in run) for run in layers)
    first = statistics.fmean(layer["first_token_attention"] for layer in every)
    parameters = json.loads((runs[0] / "config.json").read_text())["parameters"]["total"]
    print(f"| {arm} | {parameters:,} | {' | '.join(cells)} | {first:.4f} | {largest:.1f} "
          f"| {min(fast):.0f} |")
print("\nms per step: the 10th percentile of the least disturbed seed. The machine was shared: the times of whole runs "
      "(and so the deltas at equal wall-clock above) hold more of its other work than of the gates.")

print("\n## Stage 3: longer, each arm at its own learning rate\n")
arms = "attn_gate,learning_rate,muon_lr"
long = answers.report(["--runs", str(here / "runs" / "long" / "*"), "--group_by", arms, "--baseline",
                       next(f"attn_gate=none,learning_rate={json.loads(p.read_text())['flags']['learning_rate']:g},"
                            f"muon_lr={json.loads(p.read_text())['flags']['muon_lr']:g}"
                            for p in sorted((here / "runs" / "long").glob("none*/config.json")))],
                      {"arms.png": here / "long.png"}, level=2)

by_name = {}
for e in screen["differences"]:
    by_name[tuple(part.split("=")[1] for part in e["name"].split(", "))] = e
lines = []
for question, key in (("Elementwise gate on attention's output", ("elementwise", "sdpa", "sigmoid", "512")),
                      ("Headwise gate", ("headwise", "sdpa", "sigmoid", "512")),
                      ("As many parameters in the MLP instead", ("none", "sdpa", "sigmoid", "576"))):
    e = by_name[key]
    lines.append(answers.answer(f"{question}, 120 steps", e["row"], e["verdict"], "nats/token"))
e = long["differences"][0]
lines.append(answers.answer("Elementwise gate, 200 steps, both tuned", e["row"], e["verdict"], "nats/token",
                            wall=e["wall"]))
answers.write(here, lines)
