"""This experiment's tables, from the committed results: python experiments/2026-11-28_sizes/table.py"""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402
import sizes  # noqa: E402

from lab import processes  # noqa: E402  (answers puts the repo's root on the path)


def main():
    with keep_results.unpacked(here / "runs.tar.xz") as folder:
        arguments = ["--a", f"{folder}/adamw_*", "--b", f"{folder}/muon_*",
                     "--treatment", "optimizer,muon_lr", "--planned", "3"]
        record = answers.report(arguments, {"sizes.png": here / "sizes.png"}, script=sizes)
    lines = []
    for one in record["sizes"]:
        question = f"Muon on the blocks instead of AdamW, gpt2, {one['n_layer']} layers x {one['n_embd']}"
        lines.append(answers.answer(question, one["difference"], "nats/token"))
        lines[-1]["log_only"] = one is not record["sizes"][-1]
    slope = record["change_per_doubling"]
    lines.append(answers.answer("The change of that per doubling of the parameters", slope, "nats/token"))
    lines[-1]["log_only"] = True
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
