"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_mul_tokens/table.py"""

import json
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402

from lab import ab_stats  # noqa: E402  (answers puts the repo's root on the path)

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


def difference(question, values, unit, spec, less_is_better, p=None):
    """A row of cells for two arms paired by seed; its line of the answers goes to `lines` where it has a question. The
    verdict is by p: the pair's own, or one that is corrected for the number of tests."""
    test = ab_stats.paired(values["baseline"], values["mul_tokens"])
    low, high, p = test["ci_low"], test["ci_high"], test["p"] if p is None else p
    good = (test["delta"] < 0) == less_is_better
    verdict = "inconclusive" if not p < 0.05 else "better" if good else "worse"
    if question:
        row = {"delta": test["delta"], "low": low, "high": high, "n": test["n"]}
        lines.append(answers.answer(question, row, verdict, unit, spec))
    means = [format(statistics.fmean(values[arm]), spec.strip("+")) for arm in ARMS]
    return f"{' | '.join(means)} | {test['delta']:{spec}} [{low:{spec}}, {high:{spec}}] | {verdict} |"


lines: list[dict] = []
print("\n## Bits per byte of the held-out documents, by source (difference paired by seed, 95 % interval)\n")
print("| source | documents | view | baseline | mul_tokens | difference | verdict |\n|---|---:|---|---:|---:|---:|---|")
for source in ("edu_web", "arithmetic"):
    found = {arm: [json.loads((path / f"val_{source}.json").read_text()) for path in runs[arm]] for arm in ARMS}
    documents = {(r["documents"], r["fingerprint_documents"]) for arm in ARMS for r in found[arm]}
    assert len(documents) == 1, "the arms were scored on other documents"
    for view, suffix in (("stream", ""), ("bos", "_bos")):
        values = {arm: [r[f"val_bits_per_byte{suffix}"] for r in found[arm]] for arm in ARMS}
        name = {"edu_web": "web text", "arithmetic": "documents with sums"}[source]
        question = f"Products as one token: held-out {name}" if view == "stream" else ""
        print(f"| {source} | {found['baseline'][0]['documents']} | {view} | "
              + difference(question, values, "bits/byte", "+.4f", True))

print("\n## The A/B report (web text: the first 30,000 held-out tokens, scored as the runs trained)\n")
answers.report(["--a", str(here / "runs" / "baseline_s*"), "--b", str(here / "runs" / "mul_tokens_s*")],
               {"paired_differences.png": here / "pairs.png"}, level=2)

print("## The probes (mean over seeds; difference paired by seed, 95 % interval; verdicts by Holm over all of them)\n")
print("| family | measure | chance | baseline | mul_tokens | difference | verdict |\n|---|---|---:|---:|---:|---:|---|")
SHOWN = {"products": "81 products", "two_digit_by_digit": "100 two-digit by one-digit", "additions": "100 additions"}
MEASURES = {"accuracy": ".3f", "top1": ".3f", "mrr": ".3f", "mean_rank": ".1f"}
WANTED = {"accuracy": "share answered right", "mrr": "mean reciprocal rank"}
probes = {(family, measure): {arm: [exam["probes"]["plain"][family][measure] for exam in exams[arm]] for arm in ARMS}
          for family in SHOWN for measure in MEASURES}
p_values = [ab_stats.paired(v["baseline"], v["mul_tokens"])["p"] for v in probes.values()]
corrected = ab_stats.holm([p if p == p else 1.0 for p in p_values])  # equal in every seed: no p
for ((family, measure), values), p in zip(probes.items(), corrected, strict=True):
    chance, spec = exams["baseline"][0]["probes"]["plain"][family].get(f"chance_{measure}"), MEASURES[measure]
    question = f"Products as one token, probe: {SHOWN[family]}, {WANTED.get(measure)}" * (
        family == "products" and measure in WANTED)
    print(f"| {SHOWN[family]} | {measure} | {'' if chance is None else format(chance, spec)} | "
          + difference(question, values, "", "+" + spec, measure == "mean_rank", float(p)))
token = [exam["probes"]["plain"]["products"]["token"] for exam in exams["mul_tokens"]]
first = statistics.fmean(t["top1"] for t in token)
print(f"\nmul_tokens alone: the product's own token ranks first among the 45 in {first:.3f} of the probes "
      f"(chance {token[0]['chance_top1']:.3f}), mean reciprocal rank "
      f"{statistics.fmean(t['mrr'] for t in token):.3f} (chance {token[0]['chance_mrr']:.3f}).")
answers.write(here, lines)
