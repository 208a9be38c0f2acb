"""This experiment's tables, from the committed results: python experiments/2026-11-21_bos_rows/table.py

(packing_report.py and ab_table.py make those results, from the corpora and from the runs.)
"""

import json
import sys
from pathlib import Path

import ab_table
import packing_report

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402

print(packing_report.table(json.loads((here / "packing_report.json").read_text())), end="\n\n")
results = json.loads((here / "ab_results.json").read_text())
print(ab_table.tables(results))
answers.write(here, [
    answers.answer(f"BOS rows, `--overflow {d['arm']}`, instead of a stream", {
        "delta": d["mean"], "low": d["mean"] - d["half_width"], "high": d["mean"] + d["half_width"], "n": d["n"]},
        d["verdict"], "bits/byte")
    for d in results["differences"] if (d["base"], d["view"]) == ("stream", "stream view")])
