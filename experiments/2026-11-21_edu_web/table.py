"""This experiment's table and plot, from the committed results: python experiments/2026-11-21_edu_web/table.py"""

import json
import sys
from pathlib import Path

import numpy as np

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1]))
from lab import ab_plots, processes  # noqa: E402

VIEWS = {"stream view": "val_bits_per_byte", "bos view": "val_bits_per_byte_bos"}
SCORES = ("val_loss", "val_bits_per_byte", "val_loss_bos", "val_bits_per_byte_bos")


def draw(val: list[dict]) -> bytes:
    axes, save = ab_plots.canvas(6.0, 3.4)
    for (name, field), style in zip(VIEWS.items(), ab_plots.STYLES, strict=False):
        points = np.array([(r["tokens_seen_global"] / 1e6, r[field]) for r in val])
        colour, line, marker = style
        axes[0].plot(*points.T, color=colour, linestyle=line, marker=marker, label=name)
    axes[0].set(xlabel="million tokens seen", ylabel="val bits/byte")
    axes[0].legend(frameon=False)
    return save()


def main():
    summary = json.loads((here / "summary.json").read_text())
    parity = json.loads((here / "nanogpt_parity.json").read_text())
    lines = (here / "val.jsonl").read_text().splitlines()
    val = [json.loads(line) for line in lines]

    print("| step | val loss, nats/token | bits/byte | bos view, nats/token | bits/byte |")
    print("|---:|---:|---:|---:|---:|")
    for r in val:
        scores = " | ".join(f"{r[field]:.4f}" for field in SCORES)
        print(f"| {r['step']} | {scores} |")
    last = val[-1]
    speed = summary["tokens_seen"] / (summary["train_time_ms"] / 1000)
    parameters = summary["results_row"]["parameters"]
    print(f"\n{last['val_tokens']:,} scored tokens in the stream view, "
          f"{last['val_tokens_bos']:,} in the bos view; "
          f"{parameters:,} parameters, {summary['tokens_seen']:,} tokens, "
          f"final train loss {summary['final_train_loss']:.4f}; {speed:,.0f} tokens/s over the whole run")
    worst = parity["largest_difference"]
    print(f"\nbeside nanoGPT: largest difference of any step's loss {worst:.1e} nats")
    (here / "losses.png").write_bytes(draw(val))


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
