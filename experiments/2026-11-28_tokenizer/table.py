"""This experiment's tables, from the committed results: python experiments/2026-11-28_tokenizer/table.py"""

import json
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402
import lengths  # noqa: E402

from lab import processes  # noqa: E402  (answers puts the repo's root on the path)

ARMS = {"16384": "16k", "4096": "4k"}  # ids -> the end of its tokenizer's name
BUDGETS = {"equal steps (tokens)": "equal tokens", "equal FLOPs": "equal FLOPs", "equal text": "equal text"}


def print_tokenizers() -> None:
    """How many bytes of held-out text a token stands for."""
    print("| tokenizer | ids | tokens of the held-out text | bytes per token |\n|---|---:|---:|---:|")
    for ids, name in ARMS.items():
        held_out = json.loads((here / f"web_books_{name}.json").read_text())["held_out"]
        if name == "16k":
            row = held_out["gpt2"]
            print(f"| GPT-2's | 50,257 | {row['tokens']:,} | {row['bytes_per_token']:.3f} |")
        row = held_out["this"]
        print(f"| web_books_{name} | {int(ids):,} | {row['tokens']:,} | {row['bytes_per_token']:.3f} |")
    print()


def main():
    print_tokenizers()
    lines = []
    with keep_results.unpacked(here / "runs.tar.xz") as folder:
        for ids, name in ARMS.items():
            arms = ["--a", f"{folder}/gpt2_s*", "--b", f"{folder}/{ids}_s*", "--planned", "3"]
            images = {"loss_curves.png": here / f"loss_{name}.png"}
            record = answers.report(arms, images, level=2)
            for match in record["matchings"]:
                budget = BUDGETS.get(match["name"])
                if budget:
                    question = f"{int(ids):,} own tokens instead of GPT-2's, {budget}"
                    lines.append(answers.answer(question, match["row"], "bits/byte"))
                    lines[-1]["log_only"] = ids == "4096" or budget != "equal tokens"
    with keep_results.unpacked(here / "longer.tar.xz") as folder:
        arms = ["--a", f"{folder}/long_gpt2_*", "--b", f"{folder}/long_16384_*", "--planned", "3"]
        record = answers.report(arms, {"lengths.png": here / "lengths.png"}, level=2, script=lengths)
    for one in record["lengths"]:
        question = f"16,384 own tokens instead of GPT-2's, {one['steps']:,} steps, fresh seeds"
        lines.append(answers.answer(question, one["difference"], "bits/byte"))
        lines[-1]["log_only"] = True
    change = "The change of that per doubling, 400 to 1,600 steps"
    lines.append(answers.answer(change, record["change_per_doubling"], "bits/byte"))
    lines[-1]["log_only"] = True
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
