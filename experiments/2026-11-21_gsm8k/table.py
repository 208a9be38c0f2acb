"""This experiment's table, from the committed results of both arms: python experiments/2026-11-21_gsm8k/table.py"""

import json
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1]))
sys.path.insert(0, str(here.parent))
import keep_results  # noqa: E402

from lab import ab_stats, processes, runs  # noqa: E402

ARMS = ("baseline", "mul_tokens")
MEASURES = {  # name in gsm8k_results.json: the same of one problem
    "accuracy": lambda item: item["credit"]["accuracy"],
    "accuracy_flexible": lambda item: item["credit"]["accuracy_flexible"],
    "no_answer_strict": lambda item: item["strict"] is None,
    "stopped_by_itself": lambda item: item["stopped"] in ("stop_id", "stop_string"),
    "has_mark": lambda item: "####" in item["completion"],
}


def exam(kept: Path) -> None:
    results, items = {}, {}
    for arm in ARMS:
        folder = kept / f"sft2_{arm}"
        results[arm] = json.loads((folder / "gsm8k_results.json").read_text())
        items[arm] = runs.read_jsonl(folder / "gsm8k_completions.jsonl")
    ids = [[item["id"] for item in items[arm]] for arm in ARMS]
    assert ids[0] == ids[1], "the arms answered different problems"

    print(f"GSM8K test, {len(ids[0])} problems, greedy; shares with 95 % intervals; "
          "p: exact McNemar on the same problems\n")
    print("| | baseline | mul_tokens | p |")
    print("|---|---:|---:|---:|")
    for name, measure in MEASURES.items():
        shares = []
        for arm in ARMS:
            low, high = results[arm][f"{name}_interval"]
            shares.append(f"{results[arm][name]:.3f} ({low:.3f} to {high:.3f})")
        a, b = ([float(measure(item)) for item in items[arm]] for arm in ARMS)
        print(f"| {name} | {' | '.join(shares)} | {ab_stats.mcnemar(a, b)['p']:.2f} |")


def trainings(kept: Path, arm: str) -> str:
    pre, sft, sft2 = (
        json.loads((kept / f"{part}_{arm}" / "summary.json").read_text())
        for part in ("pretrain", "sft", "sft2"))
    first = json.loads((kept / f"sft_{arm}" / "gsm8k_results.json").read_text())
    low, high = first["stopped_by_itself_interval"]
    return (f"{arm}: pretraining {pre['steps']} steps, {pre['final_val_bits_per_byte']:.4f} bits/byte; "
            f"fine-tuning {sft['steps']} + {sft2['steps']} steps, val loss {sft['final_val_loss']:.4f}, "
            f"then {sft2['final_val_loss']:.4f} nats per trained token; after the first three passes "
            f"{first['stopped_by_itself']:.3f} ({low:.3f} to {high:.3f}) of the answers stopped by themselves, "
            f"accuracy {first['accuracy']:.3f}")


def main():
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        exam(kept)
        for arm in ARMS:
            print(f"\n{trainings(kept, arm)}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
