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
import compare_runs  # noqa: E402
from lab import ab_report, disk  # noqa: E402

CURVES = (  # records, field, label, chance
    ("val", "val_loss", "val loss, nats/token", None),
    ("val", "val_bits_per_byte", "val bits/byte", None),
    ("val", "val_bits_per_byte_bos", "val bits/byte, bos view", None),
    ("hellaswag", "accuracy_norm", "HellaSwag accuracy_norm", 0.25),
    ("ewok", "eval_official_sum", "EWoK official sum", 0.5),
)
AXES = {"tokens": ("million tokens seen", lambda run, step, r: step * run["config"]["tokens_per_step"] / 1e6),
        "steps": ("optimizer steps", lambda run, step, r: step),
        "flops": ("training PFLOPs", lambda run, step, r: step * run["config"]["tokens_per_step"]
                  * run["config"]["flops_per_token"] / 1e15)}


def points(members: list[dict], kind: str, key: str, x_of) -> np.ndarray | None:
    """(seeds, steps, 2) over the steps that every seed has scored, or None."""
    scored = [{step for step, r in run[kind].items() if math.isfinite(compare_runs.number(r.get(key)))}
              for run in members]
    common = sorted(set.intersection(*scored))
    if not common:
        return None
    return np.array([[(x_of(run, step, run[kind][step]), run[kind][step][key]) for step in common] for run in members])


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False)
    p.add_argument("runs", nargs="+", help="run folders, or quoted patterns")
    p.add_argument("--out", type=Path, help="PNG to write (default: print the table alone)")
    p.add_argument("--x", choices=list(AXES), default="tokens", help="horizontal axis (default tokens)")
    p.add_argument("--curves", nargs="+", choices=[key for _, key, _, _ in CURVES], metavar="SCORE",
                   default=["val_bits_per_byte", "accuracy_norm", "eval_official_sum"],
                   help=f"what to draw, of {', '.join(key for _, key, _, _ in CURVES)} (default: the second and the "
                   "last two)")
    args = p.parse_args(argv)
    try:
        folders = [f for f in compare_runs.expand(args.runs, "runs") if (f / "config.json").exists()]
        if not folders:
            raise ValueError("no folder among these is a run (config.json): name run folders.")
        arms: dict[str, list[dict]] = {}
        for folder in folders:
            run = compare_runs.read_run(folder)
            arms.setdefault(re.sub(r"_s\d+$", "", run["name"]), []).append(run)
        x_label, x_of = AXES[args.x]
        drawn = {}
        for kind, key, label, chance in CURVES:
            curves = {arm: at for arm, members in arms.items() if (at := points(members, kind, key, x_of)) is not None}
            if curves and key in args.curves:
                drawn[key] = label, chance, curves
        if not drawn:
            raise ValueError("none of these runs has scored anything: train with --eval_every or --hellaswag_every.")
    except ValueError as error:
        sys.exit(f"learning_curves.py: {error}")

    print("| arm | seeds | " + " | ".join(f"{label} (last)" for label, _, _ in drawn.values()) + " |")
    print("|---|---:|" + "---:|" * len(drawn))
    for arm, members in arms.items():
        cells = []
        for _, _, curves in drawn.values():
            last = list(curves[arm][:, -1, 1]) if arm in curves else []
            spread = f" ± {statistics.stdev(last):.4f}" if len(last) > 1 else ""
            cells.append(f"{statistics.fmean(last):.4f}{spread}" if last else "N/A: not run")
        print(f"| {arm} | {len(members)} | {' | '.join(cells)} |")
    if args.out:
        axes, save = ab_report.canvas(6.0, 2.6 * len(drawn) + 0.3, [1] * len(drawn))
        xs = np.concatenate([c[..., 0].ravel() for _, _, curves in drawn.values() for c in curves.values()])
        margin = 0.04 * (xs.max() - xs.min() or 1)
        for axis, (label, chance, curves) in zip(axes, drawn.values(), strict=True):
            ab_report.draw_curves(axis, curves)
            axis.set(ylabel=label, xlim=(xs.min() - margin, xs.max() + margin))
            if chance is not None:
                axis.axhline(chance, color="black", linestyle=":", linewidth=1)
                low, high = axis.get_ylim()
                axis.set_ylim(min(low, chance - 0.01), max(high, chance + 0.01))
        axes[0].legend(frameon=False)
        axes[-1].set_xlabel(x_label)
        try:
            disk.write_whole(args.out, save())
        except OSError as error:
            sys.exit(f"learning_curves.py: {args.out} cannot be written ({error.strerror}): choose another file.")
        print(f"\n{args.out}: {', '.join(label for label, _, _ in drawn.values())}")


if __name__ == "__main__":
    main()
