"""This experiment's table, from the committed results of both arms: python experiments/2026-11-21_gsm8k/table.py"""

import json
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1]))
from lab import ab_stats  # noqa: E402

ARMS = ("baseline", "mul_tokens")
results = {arm: json.loads((here / "runs" / f"sft2_{arm}" / "gsm8k_results.json").read_text()) for arm in ARMS}
lines = {arm: (here / "runs" / f"sft2_{arm}" / "gsm8k_completions.jsonl").read_text().splitlines() for arm in ARMS}
items = {arm: [json.loads(line) for line in lines[arm]] for arm in ARMS}
ids = [item["id"] for item in items["baseline"]]
assert ids == [item["id"] for item in items["mul_tokens"]], "the arms answered different problems"

print(f"GSM8K test, {len(ids)} problems, greedy; shares with 95 % intervals; p: exact McNemar on the same problems\n")
print("| | baseline | mul_tokens | p |")
print("|---|---:|---:|---:|")


def share(arm, name):
    low, high = results[arm][f"{name}_interval"]
    return f"{results[arm][name]:.3f} ({low:.3f} to {high:.3f})"


for name, of in (("accuracy", lambda i: i["credit"]["accuracy"]),
                 ("accuracy_flexible", lambda i: i["credit"]["accuracy_flexible"]),
                 ("no_answer_strict", lambda i: i["strict"] is None),
                 ("stopped_by_itself", lambda i: i["stopped"] in ("stop_id", "stop_string")),
                 ("has_mark", lambda i: "####" in i["completion"])):
    test = ab_stats.mcnemar(*([float(of(i)) for i in items[arm]] for arm in ARMS))
    print(f"| {name} | {share('baseline', name)} | {share('mul_tokens', name)} | {test['p']:.2f} |")
for arm in ARMS:
    pre, sft, sft2 = (json.loads((here / "runs" / f"{part}_{arm}" / "summary.json").read_text())
                      for part in ("pretrain", "sft", "sft2"))
    print(f"\n{arm}: pretraining {pre['steps']} steps, {pre['final_val_bits_per_byte']:.4f} bits/byte; fine-tuning "
          f"{sft['steps']} + {sft2['steps']} steps, val loss {sft['final_val_loss']:.4f}, then "
          f"{sft2['final_val_loss']:.4f} nats per trained token")
