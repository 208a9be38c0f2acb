"""This experiment's tables, from the committed results: python experiments/2026-11-21_bos_rows/table.py

packing_report.py makes those results from the corpora, ab_table.py from the runs.
"""

import json
import sys
from pathlib import Path

import ab_table
import packing_report

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402

from lab import processes  # noqa: E402  (answers puts the repo's root on the path)


def main():
    records = json.loads((here / "packing_report.json").read_text())
    print(packing_report.table(records), end="\n\n")
    results = json.loads((here / "ab_results.json").read_text())
    print(ab_table.tables(results))

    lines = []
    for d, row in zip(results["differences"], ab_table.judge(results["differences"]), strict=True):
        if d["base"] != "stream" or d["view"] != "stream view":
            continue
        question = f"BOS rows, `--overflow {d['arm']}`, instead of a stream"
        low, high = d["mean"] - d["half_width"], d["mean"] + d["half_width"]
        lines.append(answers.answer(question, row | {"low": low, "high": high}, "bits/byte"))
    answers.write(here, lines)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
