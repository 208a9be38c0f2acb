"""This experiment's table and plot, from the committed results: python experiments/2026-11-21_edu_web/table.py"""

import json
import sys
from pathlib import Path

import numpy as np

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1]))
from lab import ab_report  # noqa: E402

summary = json.loads((here / "summary.json").read_text())
val = [json.loads(line) for line in (here / "val.jsonl").open()]
parity = json.loads((here / "nanogpt_parity.json").read_text())

print("| step | val loss, nats/token | bits/byte | bos view, nats/token | bits/byte |")
print("|---:|---:|---:|---:|---:|")
for r in val:
    scores = " | ".join(f"{r[k]:.4f}" for k in "val_loss val_bits_per_byte val_loss_bos val_bits_per_byte_bos".split())
    print(f"| {r['step']} | {scores} |")
print(f"\n{val[-1]['val_tokens']:,} scored tokens in the stream view, {val[-1]['val_tokens_bos']:,} in the bos view; "
      f"{summary['results_row']['parameters']:,} parameters, {summary['tokens_seen']:,} tokens, final train loss "
      f"{summary['final_train_loss']:.4f}; {summary['tokens_seen'] / (summary['train_time_ms'] / 1000):,.0f} tokens/s "
      "over the whole run")
print(f"\nbeside nanoGPT: largest difference of any step's loss {parity['largest_difference']:.1e} nats")

axes, save = ab_report.canvas(6.0, 3.4)
for name, key in (("stream view", "val_bits_per_byte"), ("bos view", "val_bits_per_byte_bos")):
    at = np.array([(r["tokens_seen_global"] / 1e6, r[key]) for r in val])
    colour, line, marker = ab_report.STYLES[name == "bos view"]
    axes[0].plot(*at.T, color=colour, linestyle=line, marker=marker, label=name)
axes[0].set(xlabel="million tokens seen", ylabel="val bits/byte")
axes[0].legend(frameon=False)
(here / "losses.png").write_bytes(save())
