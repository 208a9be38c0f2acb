"""This experiment's tables, from the committed results: python experiments/2026-11-28_sizes/table.py"""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402
import sizes  # noqa: E402

from lab import processes  # noqa: E402  (answers puts the repo's root on the path)

ARMS = {  # as run.sh calls them: (what they are, what was changed)
    "rope": ("RoPE instead of learned positions", "positions"),
    "speedrun": ("All of the speedrun's network", "arch,learning_rate"),
}


def main():
    lines = []
    with keep_results.unpacked(here / "runs.tar.xz") as folder:
        for arm, (name, treatment) in ARMS.items():
            print(f"## {name}\n")
            arguments = ["--a", f"{folder}/gpt2_*", "--b", f"{folder}/{arm}_*",
                         "--treatment", treatment, "--planned", "3"]
            record = answers.report(arguments, {"sizes.png": here / f"{arm}.png"}, script=sizes, level=2)
            rows = [(f"{name}, {one['n_layer']} layers x {one['n_embd']}", one) for one in record["sizes"]]
            rows.append((f"The change of that per doubling of the parameters, {name}",
                         {"difference": record["change_per_doubling"]}))
            for question, one in rows:
                lines.append(answers.answer(question, one["difference"], "nats/token"))
                lines[-1]["log_only"] = True
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
