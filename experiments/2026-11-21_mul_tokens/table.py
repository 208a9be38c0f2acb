"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_mul_tokens/table.py"""

import json
import math
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import ab_stats, runs  # noqa: E402  (answers puts the repo's root on the path)

ARMS = ("baseline", "mul_tokens")
SOURCES = {"edu_web": "web text", "arithmetic": "documents with sums"}
VIEWS = {"stream": "val_bits_per_byte", "bos": "val_bits_per_byte_bos"}
FAMILIES = {
    "products": "81 products",
    "two_digit_by_digit": "100 two-digit by one-digit",
    "additions": "100 additions",
}
MEASURES = {"accuracy": ".3f", "top1": ".3f", "mrr": ".3f", "mean_rank": ".1f"}
ANSWERED = {"accuracy": "share answered right", "mrr": "mean reciprocal rank"}  # of the products


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def difference(values: dict, less_is_better: bool, p: float | None = None) -> tuple[dict, str]:
    """The paired difference of two arms, {"delta", "low", "high", "n"}, and its verdict.

    values: {arm: a number per seed}. p: corrected for the number of tests (default: the pair's own).
    """
    test = ab_stats.paired(values["baseline"], values["mul_tokens"])
    if p is None:
        p = test["p"]
    verdict = "inconclusive"
    if p < 0.05:
        lower = test["delta"] < 0
        verdict = "better" if lower == less_is_better else "worse"
    row = {"delta": test["delta"], "low": test["ci_low"], "high": test["ci_high"], "n": test["n"]}
    return row, verdict


def cells(values: dict, row: dict, verdict: str, spec: str) -> str:
    """The mean of each arm, the difference with its interval, the verdict."""
    a, b = (format(statistics.fmean(values[arm]), spec) for arm in ARMS)
    delta, low, high = (format(row[k], f"+{spec}") for k in ("delta", "low", "high"))
    return f"{a} | {b} | {delta} [{low}, {high}] | {verdict} |"


def intervention(folders: dict[str, list[Path]]) -> None:
    print("## The intervention\n")
    print("| arm | tokens in the data | tokens that are products "
          "| bytes per token of the held-out text |")
    print("|---|---:|---:|---:|")
    for arm in ARMS:
        one = folders[arm][0]
        data = read_json(one / "config.json")["data"]
        val = [r for r in runs.read_jsonl(one / "scalars.jsonl") if r["type"] == "val"][-1]
        bytes_per_token = val["val_bytes"] / val["val_tokens"]
        print(f"| {arm} | {data['tokens']:,} | {data['mul_token_rate']:.2e} | {bytes_per_token:.3f} |")
    assert data["mul_token_rate"] >= 1e-3, "the second arm has too few products to test anything"


def held_out(folders: dict[str, list[Path]]) -> list[dict]:
    """Prints bits per byte by source and view; returns the answers' lines of the stream view."""
    print("\n## Bits per byte of the held-out documents, by source "
          "(difference paired by seed, 95 % interval)\n")
    print("| source | documents | view | baseline | mul_tokens | difference | verdict |")
    print("|---|---:|---|---:|---:|---:|---|")
    lines = []
    for source, name in SOURCES.items():
        scores = {arm: [read_json(run / f"val_{source}.json") for run in folders[arm]] for arm in ARMS}
        documents = {(r["documents"], r["fingerprint_documents"]) for arm in ARMS for r in scores[arm]}
        assert len(documents) == 1, "the arms were scored on other documents"
        number, _ = documents.pop()
        for view, field in VIEWS.items():
            values = {arm: [r[field] for r in scores[arm]] for arm in ARMS}
            row, verdict = difference(values, less_is_better=True)
            print(f"| {source} | {number} | {view} | {cells(values, row, verdict, '.4f')}")
            if view == "stream":
                question = f"Products as one token: held-out {name}"
                lines.append(answers.answer(question, row, verdict, "bits/byte"))
    return lines


def probes(exams: dict[str, list[dict]]) -> list[dict]:
    """Prints the arithmetic probes; returns the answers' lines of the products."""
    print("## The probes (mean over seeds; difference paired by seed, 95 % interval; "
          "verdicts by Holm over all of them)\n")
    print("| family | measure | chance | baseline | mul_tokens | difference | verdict |")
    print("|---|---|---:|---:|---:|---:|---|")
    scores = {}
    for family in FAMILIES:
        for measure in MEASURES:
            scores[family, measure] = {arm: [exam[family][measure] for exam in exams[arm]] for arm in ARMS}
    p_values = []
    for values in scores.values():
        p = ab_stats.paired(values["baseline"], values["mul_tokens"])["p"]
        if math.isnan(p):  # the difference is the same in every seed
            p = 1.0
        p_values.append(p)

    lines = []
    for ((family, measure), values), p in zip(scores.items(), ab_stats.holm(p_values), strict=True):
        spec = MEASURES[measure]
        row, verdict = difference(values, measure == "mean_rank", float(p))
        chance = exams["baseline"][0][family].get(f"chance_{measure}", "")
        if chance != "":
            chance = format(chance, spec)
        print(f"| {FAMILIES[family]} | {measure} | {chance} | {cells(values, row, verdict, spec)}")
        if family == "products" and measure in ANSWERED:
            question = f"Products as one token, probe: {FAMILIES[family]}, {ANSWERED[measure]}"
            lines.append(answers.answer(question, row, verdict, "", f"+{spec}"))

    token = [exam["products"]["token"] for exam in exams["mul_tokens"]]
    first = statistics.fmean(t["top1"] for t in token)
    rank = statistics.fmean(t["mrr"] for t in token)
    print(f"\nmul_tokens alone: the product's own token ranks first among the 45 in {first:.3f} of the probes "
          f"(chance {token[0]['chance_top1']:.3f}), mean reciprocal rank {rank:.3f} "
          f"(chance {token[0]['chance_mrr']:.3f}).")
    return lines


def main():
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        folders = {arm: sorted(kept.glob(f"{arm}_s*")) for arm in ARMS}
        exams = {}
        for arm in ARMS:
            exams[arm] = [read_json(run / "gsm8k_results.json")["probes"]["plain"] for run in folders[arm]]
        intervention(folders)
        lines = held_out(folders)
        print("\n## The A/B report "
              "(web text: the first 30,000 held-out tokens, scored as the runs trained)\n")
        answers.report(["--a", f"{kept}/baseline_s*", "--b", f"{kept}/mul_tokens_s*"],
                       {"paired_differences.png": here / "pairs.png"}, level=2)
        lines += probes(exams)
    answers.write(here, lines)


if __name__ == "__main__":
    main()
