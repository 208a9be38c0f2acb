"""Examines runs: python experiments/2026-11-26_grpo/exam.py RUN ...     writes RUN/exam.json, once

Greedy on 1,000 synthetic problems of the test split, and eight samples at temperature 1 of 200 of them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import eval_gsm8k  # noqa: E402
from lab import benchmarks, disk, processes  # noqa: E402

GREEDY, SAMPLED, SAMPLES = 1000, 200, 8


def main() -> None:
    parser = flags.Parser(prog="exam.py", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders")
    folders = parser.parse_args().runs
    processes.tune_allocator()
    items = eval_gsm8k.load(f"synthetic:{GREEDY}")
    for name in folders:
        path = Path(name) / "exam.json"
        if path.exists():
            continue
        model, folder, step, _ = benchmarks.load_checkpoint(name, "cpu")
        options = {"max_new_tokens": 40, "batch_size": 128, "progress": True}
        greedy = eval_gsm8k.evaluate(model.eval(), items, **options)
        few = benchmarks.spread_evenly(items, SAMPLED)
        sampled = eval_gsm8k.evaluate_samples(model, few, samples=SAMPLES, **options)["metrics"]["samples"]
        texts = [item["completion"] for item in greedy["items"]]
        right = {item["id"]: item["credit"]["accuracy"] for item in greedy["items"]}
        tokens = sum(text.count("<MUL_") for text in texts) / len(texts)
        disk.write_json(path, {"step": step, "checkpoint_sha256": benchmarks.weights_sha256(folder),
                               "greedy": greedy["metrics"], "samples": sampled, "mul_tokens": tokens, "right": right})
        print(f"{name}: greedy {greedy['metrics']['accuracy']:.4f}, pass@1 {sampled['pass_at_1']:.4f}, "
              f"pass@8 {sampled['pass_at_8']:.4f}, entropy {sampled['entropy']:.4f}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "exam.py")
