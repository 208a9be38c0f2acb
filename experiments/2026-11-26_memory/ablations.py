"""Document 004's ablations: python experiments/2026-11-26_memory/ablations.py

Every arm against the one that it changes in one knob, from the committed results. --reports prints each comparison's
whole report before the table; --best optimizers.csv each optimizer and its best learning rate; --mean_teach_norm FOLDER
the mean teach norm, for a threshold.
"""

import contextlib
import csv
import io
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import ab_verdict, processes, runs  # noqa: E402  (answers puts the repo's root on the path)

# of an arm: the one it is compared with, and what differs
ARMS = {
    "teach_0.05_decay": ("stop", "teach scale 0.05, document 004's schedule, instead of 1"),
    "teach_0.1_decay": ("stop", "teach scale 0.1, document 004's schedule, instead of 1"),
    "teach_0.15_decay": ("stop", "teach scale 0.15, document 004's schedule, instead of 1"),
    "teach_0.1": ("teach_0.1_decay", "teach scale 0.1 without decay instead of with"),
    "cms_full": ("stop", "levels of periods 128 and 512 instead of 128"),
    "cms_sparse": ("stop", "period 512 instead of 128"),
    "every_1": ("every_32", "a write after every token instead of every 32 (T 128, 2 layers)"),
    "every_8": ("every_32", "a write after every 8 tokens instead of every 32 (T 128, 2 layers)"),
    "surprise": ("stop", "only tokens above the mean teach norm are written"),
    "modifier_off": ("hope", "self-modifier off instead of on"),
    "modifier_frozen": ("hope", "self-modifier frozen instead of on"),
    "adamw": ("stop", "AdamW instead of the Muon hybrid, each at its own rate"),
    "muon_all": ("stop", "Muon everywhere instead of the hybrid, each at its own rate"),
}


def best_rates(path) -> dict[str, float]:
    """{optimizer: learning rate} with the lowest val loss."""
    losses: dict = {}
    with open(path) as f:
        for row in csv.DictReader(f):
            by_rate = losses.setdefault(row["optimizer"], {})
            by_rate[float(row["learning_rate"])] = float(row["final_val_loss"])
    return {optimizer: min(by_rate, key=by_rate.get) for optimizer, by_rate in losses.items()}


def mean_teach_norm(out: Path) -> float:
    """Of the written levels in `stop` of seed 0 at the end of training."""
    norms = []
    for path in (out / "grid").glob("stop_*_s0/scalars.jsonl"):
        *_, last = (record for record in runs.read_jsonl(path) if record["type"] == "memory")
        norms += [level["teach_norm_mean"] for level in last["levels"]]
    return statistics.fmean(norms)


def compare(kept: Path, arm: str, base: str, question: str) -> dict:
    """Prints a report of two arms; returns its line of README's answers, and what both have by themselves."""
    arguments = ["--a", f"{kept}/{base}_lr*", "--b", f"{kept}/{arm}_lr*"]
    arguments += ["--treatment", "memory,optimizer,learning_rate,muon_lr"]
    print(f"\n## {question}\n")
    record = answers.report(arguments, {}, level=2)
    row = record["metrics"][record["primary"]]
    return answers.answer(question, row, "nats/token") | {"own": [own_results(kept, one) for one in (base, arm)]}


def own_results(kept: Path, arm: str) -> str:
    """The val loss of each seed, and what its writes gain on average: the loss without them minus that with them."""
    folders = sorted(kept.glob(f"{arm}_lr*"), key=lambda folder: folder.name.rpartition("_s")[2])
    last = [[r for r in runs.read_jsonl(folder / "scalars.jsonl") if r["type"] == "val"][-1] for folder in folders]
    gain = statistics.fmean(record["val_loss_no_write"] - record["val_loss"] for record in last)
    losses = ", ".join(f"{record['val_loss']:.4f}" for record in last)
    return f"{losses} ({gain:.4f})"


def main():
    if sys.argv[1:2] == ["--best"]:
        for optimizer, rate in best_rates(sys.argv[2]).items():
            print(optimizer, f"{rate:g}")
        return
    if sys.argv[1:2] == ["--mean_teach_norm"]:
        print(f"{mean_teach_norm(Path(sys.argv[2])):.4g}")
        return
    shown = contextlib.nullcontext() if sys.argv[1:] == ["--reports"] else contextlib.redirect_stdout(io.StringIO())
    with keep_results.unpacked(here / "ablations.tar.xz") as kept, shown:
        lines = [compare(kept, arm, base, question) for arm, (base, question) in ARMS.items()]
    corrected = ab_verdict.holm([line["tests"][0]["p"] for line in lines])
    print("Val loss after 160 steps, 3 seeds, nats per token; in brackets what writing gains. The interval (95 %) and "
          f"the verdict are of each comparison alone; the last column corrects for all {len(lines)}.\n")
    print("| ablation | the arm that is changed | changed | effect | verdict | p by Holm |\n|---|---|---|---|---|---:|")
    for line, p in zip(lines, corrected, strict=True):
        cells = [line["question"], *line["own"], line["effect"], line["tests"][0]["verdict"], f"{p:.4f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "ablations.py")
