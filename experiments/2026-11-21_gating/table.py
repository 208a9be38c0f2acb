"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_gating/table.py

--best lr.csv prints only each arm of stage 1 with its best learning rate, which run.sh trains longer.
"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import processes, runs  # noqa: E402  (answers puts the repo's root on the path)

ARMS = "none wide_mlp headwise elementwise elementwise_ns elementwise_value const".split()
HEAD = (
    "| arm | parameters | gate mean | 5 % | 25 % | 50 % | 75 % | 95 % | share < 0.1 "
    "| attention on the first token | largest activation | ms per step |\n"
    "|---" + "|---:" * 11 + "|")
QUESTIONS = {
    ("elementwise", "sdpa", "sigmoid", "512"): "Elementwise gate on attention's output",
    ("headwise", "sdpa", "sigmoid", "512"): "Headwise gate",
    ("none", "sdpa", "sigmoid", "576"): "As many parameters in the MLP instead",
}


def arm_of(name: str) -> str:
    return re.sub(r"_lr[\d.]+_s\d+$", "", name)


def read_grid(path) -> dict[str, dict[float, float]]:
    """{arm: {learning rate: val loss}}"""
    losses: dict = {}
    with open(path) as f:
        for row in csv.DictReader(f):
            by_rate = losses.setdefault(arm_of(row["run_id"]), {})
            by_rate[float(row["learning_rate"])] = float(row["final_val_loss"])
    return losses


def mechanism(arm: str, folders: list[Path]) -> str:
    """A row of what the gates did: the last record of every seed, the step's time of the least disturbed seed."""
    seeds, fast = [], []
    for folder in folders:
        records = runs.read_jsonl(folder / "scalars.jsonl")
        seeds.append([r["layers"] for r in records if r["type"] == "mechanism"][-1])
        seconds = sorted(r["step_seconds"] for r in records if r["type"] == "train")
        fast.append(1000 * seconds[len(seconds) // 10])
    layers = [layer for seed in seeds for layer in seed]

    gate = [""] * 7
    if "gate_mean" in layers[0]:
        values = [statistics.fmean(layer["gate_mean"] for layer in layers)]
        for i in range(5):
            values.append(statistics.fmean(layer["gate_quantiles"][i] for layer in layers))
        values.append(statistics.fmean(layer["gate_share_below_0.1"] for layer in layers))
        gate = [f"{value:.3f}" for value in values]
    largest = statistics.fmean(max(layer["largest_activation"] for layer in seed) for seed in seeds)
    first = statistics.fmean(layer["first_token_attention"] for layer in layers)
    config = json.loads((folders[0] / "config.json").read_text())
    parameters = config["parameters"]["total"]
    cells = [f"{parameters:,}", *gate, f"{first:.4f}", f"{largest:.1f}", f"{min(fast):.0f}"]
    return f"| {arm} | {' | '.join(cells)} |"


def stages(kept: Path) -> tuple[dict, dict]:
    """Prints stages 2 and 3; returns compare_runs.py's records of both."""
    print("\n## Stage 2: all arms at one learning rate\n")
    arms = "attn_gate,gate_pos,gate_act,n_inner"
    baseline = "attn_gate=none,gate_pos=sdpa,gate_act=sigmoid,n_inner=512"
    arguments = ["--runs", f"{kept}/screen/*", "--group_by", arms, "--baseline", baseline]
    screen = answers.report(arguments, {"arms.png": here / "screen.png"}, level=2)

    print("## What the gates did (end of stage 2; mean over seeds, layers "
          "and, for activations, the largest layer)\n")
    print(HEAD)
    folders = sorted((kept / "screen").iterdir())
    for arm in ARMS:
        print(mechanism(arm, [folder for folder in folders if arm_of(folder.name) == arm]))
    print("\nms per step: the 10th percentile of the least disturbed seed. The machine was shared: "
          "the times of whole runs (and so the deltas at equal wall-clock above) "
          "hold more of its other work than of the gates.")

    print("\n## Stage 3: longer, each arm at its own learning rate\n")
    arms = "attn_gate,learning_rate,muon_lr"
    one = sorted((kept / "long").glob("none*/config.json"))[0]
    flags = json.loads(one.read_text())["flags"]
    baseline = f"attn_gate=none,learning_rate={flags['learning_rate']:g},muon_lr={flags['muon_lr']:g}"
    arguments = ["--runs", f"{kept}/long/*", "--group_by", arms, "--baseline", baseline]
    return screen, answers.report(arguments, {"arms.png": here / "long.png"}, level=2)


def main():
    if sys.argv[1:2] == ["--best"]:
        return answers.print_best(read_grid(sys.argv[2]))
    print("## Stage 1: the learning rate (seed 0, 150 steps, val loss)\n")
    answers.print_grid(read_grid(here / "lr.csv"), "arm")
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        screen, long = stages(kept)

    by_arm = {}
    for e in screen["differences"]:
        by_arm[tuple(part.split("=")[1] for part in e["name"].split(", "))] = e
    lines = []
    for arm, question in QUESTIONS.items():
        e = by_arm[arm]
        lines.append(answers.answer(f"{question}, 120 steps", e["row"], "nats/token"))
    e = long["differences"][0]
    question = "Elementwise gate, 200 steps, both tuned"
    lines.append(answers.answer(question, e["row"], "nats/token", wall=e["wall"]))
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
