"""learning_curves.py draws val loss, HellaSwag and EWoK over a run's checkpoints, and prints the last scores by arm.

    python experiments/learning_curves.py 'experiments/runs/quickstart/*_s*' --out curves.png
    python hellaswag.py --checkpoint experiments/runs/<run>/ckpt/step_000500    # adds a point to a run's curve

Reads what train_gpt.py recorded as it trained (--eval_every, --hellaswag_every, --ewok_every) and what hellaswag.py
and ewok.py added for single checkpoints. Folders whose names differ in `_s<seed>` alone are one arm: its mean is drawn,
with a band from the lowest to the highest seed, over the steps that all its seeds have. A dotted line is chance.
"""

import argparse
import math
import re
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import ab_report, disk, runs  # noqa: E402

CURVES = (  # records, field, label, chance
    ("val", "val_loss", "val loss, nats/token", None),
    ("val", "val_bits_per_byte", "val bits/byte", None),
    ("val", "val_bits_per_byte_bos", "val bits/byte, bos view", None),
    ("hellaswag", "accuracy_norm", "HellaSwag accuracy_norm", 0.25),
    ("ewok", "eval_official_sum", "EWoK official sum", 0.5),
)
FIELDS = [field for _, field, _, _ in CURVES]
DEFAULT = ["val_bits_per_byte", "accuracy_norm", "eval_official_sum"]


def million_tokens(config: dict, step: int) -> float:
    return step * config["tokens_per_step"] / 1e6


def petaflops(config: dict, step: int) -> float:
    return step * config["tokens_per_step"] * config["flops_per_token"] / 1e15


def steps(config: dict, step: int) -> float:
    return step


AXES = {
    "tokens": ("million tokens seen", million_tokens),
    "steps": ("optimizer steps", steps),
    "flops": ("training PFLOPs", petaflops),
}


def read_arms(patterns: list[str]) -> dict[str, list[dict]]:
    """{name of an arm: its runs, one per seed}"""
    folders = [f for f in runs.expand(patterns, "runs") if (f / "config.json").exists()]
    if not folders:
        raise ValueError("no folder among these is a run (config.json): name run folders.")
    arms: dict[str, list[dict]] = {}
    for folder in folders:
        run = runs.read_run(folder)
        arm = re.sub(r"_s\d+$", "", run["name"])
        arms.setdefault(arm, []).append(run)
    return arms


def points(members: list[dict], kind: str, field: str, x_of) -> np.ndarray | None:
    """(seeds, steps, 2) over the steps that every seed has scored, or None."""
    scored = []
    for run in members:
        records = run["val"]
        if kind != "val":
            records = run["benchmarks"].get(kind, {})
        values = {step: runs.number(record.get(field)) for step, record in records.items()}
        scored.append({step: value for step, value in values.items() if math.isfinite(value)})
    common = sorted(set.intersection(*(set(values) for values in scored)))
    if not common:
        return None
    rows = []
    for run, values in zip(members, scored, strict=True):
        rows.append([(x_of(run["config"], step), values[step]) for step in common])
    return np.array(rows)


def read_curves(arms: dict, wanted: list[str], x_of) -> dict[str, tuple]:
    """{label: (chance, {arm: points})} of the wanted scores that any arm has."""
    drawn = {}
    for kind, field, label, chance in CURVES:
        if field not in wanted:
            continue
        curves = {arm: points(members, kind, field, x_of) for arm, members in arms.items()}
        curves = {arm: curve for arm, curve in curves.items() if curve is not None}
        if curves:
            drawn[label] = chance, curves
    return drawn


def print_table(arms: dict, drawn: dict) -> None:
    print("| arm | seeds | " + " | ".join(f"{label} (last)" for label in drawn) + " |")
    print("|---|---:|" + "---:|" * len(drawn))
    for arm, members in arms.items():
        cells = [arm, str(len(members))]
        for _, curves in drawn.values():
            if arm not in curves:
                cells.append("N/A: not run")
                continue
            last = list(curves[arm][:, -1, 1])
            cell = f"{statistics.fmean(last):.4f}"
            if len(last) > 1:
                cell += f" ± {statistics.stdev(last):.4f}"
            cells.append(cell)
        print(f"| {' | '.join(cells)} |")


def draw(drawn: dict, x_label: str) -> bytes:
    axes, save = ab_report.canvas(6.0, 2.6 * len(drawn) + 0.3, [1] * len(drawn))
    xs = np.concatenate([c[..., 0].ravel() for _, curves in drawn.values() for c in curves.values()])
    margin = 0.04 * (xs.max() - xs.min() or 1)
    for axis, (label, (chance, curves)) in zip(axes, drawn.items(), strict=True):
        ab_report.draw_curves(axis, curves)
        axis.set(ylabel=label, xlim=(xs.min() - margin, xs.max() + margin))
        if chance is not None:
            axis.axhline(chance, color="black", linestyle=":", linewidth=1)
            low, high = axis.get_ylim()
            axis.set_ylim(min(low, chance - 0.01), max(high, chance + 0.01))
    axes[0].legend(frameon=False)
    axes[-1].set_xlabel(x_label)
    return save()


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("runs", nargs="+", help="run folders, or quoted patterns")
    p.add_argument("--out", type=Path, help="PNG to write (default: print the table alone)")
    p.add_argument("--x", choices=list(AXES), default="tokens", help="horizontal axis (default tokens)")
    p.add_argument("--curves", nargs="+", choices=FIELDS, metavar="SCORE", default=DEFAULT,
                   help=f"what to draw, of {', '.join(FIELDS)} (default: {' '.join(DEFAULT)})")
    args = p.parse_args(argv)
    x_label, x_of = AXES[args.x]
    try:
        arms = read_arms(args.runs)
        drawn = read_curves(arms, args.curves, x_of)
        if not drawn:
            raise ValueError("none of these runs has scored anything: train with --eval_every or --hellaswag_every.")
    except ValueError as error:
        sys.exit(f"learning_curves.py: {error}")
    print_table(arms, drawn)
    if not args.out:
        return
    try:
        disk.write_whole(args.out, draw(drawn, x_label))
    except OSError as error:
        sys.exit(f"learning_curves.py: {args.out} cannot be written ({error.strerror}): choose another file.")
    print(f"\n{args.out}: {', '.join(drawn)}")


if __name__ == "__main__":
    main()
