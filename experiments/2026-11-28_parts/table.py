"""This experiment's tables and plots, from the committed results: python experiments/2026-11-28_parts/table.py

--best grid.csv prints only each arm with its best learning rate, which run.sh trains next.
"""

import csv
import json
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import architecture, processes  # noqa: E402  (answers puts the repo's root on the path)

NAMES = {  # as run.sh calls them
    "gpt2": "GPT-2's network",
    "rope": "RoPE instead of learned positions", "nope": "No positions at all",
    "rmsnorm": "RMSNorm instead of LayerNorm", "qk_norm": "Queries and keys normalised",
    "relu2": "ReLU² instead of GELU", "swiglu": "SwiGLU instead of GELU", "no_bias": "No biases",
    "init": "The speedrun's initial weights", "speedrun": "All of the speedrun's network",
}
COLUMNS = ["arch", *architecture.PARTS]


def read_grid(path) -> dict[str, dict[float, float]]:
    """{arm: {learning rate: val loss}}; a run that diverged has infinity."""
    losses: dict = {name: {} for name in NAMES}
    with open(path) as f:
        for row in csv.DictReader(f):
            losses[row["notes"]][float(row["learning_rate"])] = float(row["final_val_loss"] or "inf")
    return losses


def arms_of(kept: Path, grid: dict) -> dict[str, str]:
    """{what compare_runs.py calls an arm: its name here}"""
    names = {}
    for path in kept.glob("*_s*/config.json"):
        flags = json.loads(path.read_text())["flags"]
        assert flags["learning_rate"] == answers.best_rate(grid[flags["notes"]]), "stage 2 used another rate"
        names[", ".join(f"{column}={flags[column]}" for column in COLUMNS)] = flags["notes"]
    return names


def main():
    if sys.argv[1:2] == ["--best"]:
        return answers.print_best(read_grid(sys.argv[2]))
    print("## Stage 1: each arm's own grid of learning rates (seed 0, 300 steps, val loss)\n")
    grid, lines = read_grid(here / "grid.csv"), []
    answers.print_grid(grid, "arm")
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        print("\n## Stage 2: each arm at its best learning rate, fresh seeds\n")
        names = arms_of(kept, grid)
        baseline = next(cells for cells, name in names.items() if name == "gpt2")
        arguments = ["--runs", f"{kept}/*_s*", "--group_by", ",".join(COLUMNS), "--baseline", baseline.replace(" ", "")]
        arguments += ["--treatment", "learning_rate", "--planned", "5"]
        # how soon each arm is where GPT-2's network ended in stage 1, whose seed takes no part in these tests
        arguments += ["--target_loss", f"{min(grid['gpt2'].values()):.4f}"]
        record = answers.report(arguments, {"arms.png": here / "arms.png"}, level=2)
    for e in record["differences"]:
        line = answers.answer(f"{NAMES[names[e['name']]]}, 300 steps", e["row"], "nats/token", wall=e["wall"])
        lines.append(line | {"log_only": names[e["name"]] != "speedrun"})
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
