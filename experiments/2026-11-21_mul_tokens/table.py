"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_mul_tokens/table.py"""

import json
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402

import ab_stats  # noqa: E402  (answers puts the repo's root on the path)

ARMS = ("baseline", "mul_tokens")
runs = {arm: sorted((here / "runs").glob(f"{arm}_s*")) for arm in ARMS}
exams = {arm: [json.loads((path / "gsm8k_results.json").read_text()) for path in runs[arm]] for arm in ARMS}
data = {arm: json.loads((runs[arm][0] / "config.json").read_text())["data"] for arm in ARMS}

print("## The intervention\n")
print("| arm | tokens in the data | tokens that are products | bytes per token of the held-out text |")
print("|---|---:|---:|---:|")
for arm in ARMS:
    val = [r for r in map(json.loads, (runs[arm][0] / "scalars.jsonl").open()) if r["type"] == "val"][-1]
    print(f"| {arm} | {data[arm]['tokens']:,} | {data[arm]['mul_token_rate']:.2e} "
          f"| {val['val_bytes'] / val['val_tokens']:.3f} |")
assert data["mul_tokens"]["mul_token_rate"] >= 1e-3

print("\n## The comparison\n")
record = answers.report(["--a", str(here / "runs" / "baseline_s*"), "--b", str(here / "runs" / "mul_tokens_s*")],
                        {"paired_differences.png": here / "pairs.png"}, level=2)
lines = [answers.answer("Products as one token, bits/byte of held-out text", record["rows"]["val_bits_per_byte"],
                        record["verdict"], "bits/byte")]

print("## The probes (mean over seeds; difference paired by seed, 95 % interval)\n")
print("| family | measure | chance | baseline | mul_tokens | difference | verdict |\n|---|---|---:|---:|---:|---:|---|")
for family, shown in (("products", "81 products"), ("two_digit_by_digit", "100 two-digit by one-digit"),
                      ("additions", "100 additions")):
    for measure, better, spec in (("accuracy", 1, ".3f"), ("top1", 1, ".3f"), ("mrr", 1, ".3f"),
                                  ("mean_rank", -1, ".1f")):
        values = {arm: [exam["probes"]["plain"][family][measure] for exam in exams[arm]] for arm in ARMS}
        test = ab_stats.paired(values["baseline"], values["mul_tokens"])
        low, high = test["ci_low"], test["ci_high"]
        good = better * low > 0 if better > 0 else high < 0
        bad = high < 0 if better > 0 else low > 0
        verdict = "better" if good else "worse" if bad else "inconclusive"
        chance = exams["baseline"][0]["probes"]["plain"][family].get(f"chance_{measure}")
        cells = [format(statistics.fmean(values[arm]), spec) for arm in ARMS]
        print(f"| {shown} | {measure} | {'' if chance is None else format(chance, spec)} | {' | '.join(cells)} | "
              f"{test['delta']:+{spec}} [{low:+{spec}}, {high:+{spec}}] | {verdict} |")
        if measure == "mrr" and family != "additions" or (family, measure) == ("products", "accuracy"):
            row = {"delta": test["delta"], "low": low, "high": high, "n": test["n"]}
            name = {"accuracy": "share answered right", "mrr": "mean reciprocal rank"}[measure]
            lines.append(answers.answer(f"Products as one token, probe: {shown}, {name}", row, verdict, "", "+.3f"))
token = [exam["probes"]["plain"]["products"]["token"] for exam in exams["mul_tokens"]]
first = statistics.fmean(t["top1"] for t in token)
print(f"\nmul_tokens alone: the product's own token ranks first among the 45 in {first:.3f} of the probes "
      f"(chance {token[0]['chance_top1']:.3f}), mean reciprocal rank "
      f"{statistics.fmean(t['mrr'] for t in token):.3f} (chance {token[0]['chance_mrr']:.3f}).")
answers.write(here, lines)
