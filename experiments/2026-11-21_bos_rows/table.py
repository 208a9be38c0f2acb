"""This experiment's tables, from the committed results: python experiments/2026-11-21_bos_rows/table.py

(packing_report.py and ab_table.py make those results, from the corpora and from the runs.)
"""

import json
from pathlib import Path

import ab_table
import packing_report

here = Path(__file__).resolve().parent
print(packing_report.table(json.loads((here / "packing_report.json").read_text())), end="\n\n")
print(ab_table.tables(json.loads((here / "ab_results.json").read_text())))
