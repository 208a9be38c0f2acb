"""This experiment's tables and plots, from the committed results: python experiments/2026-11-21_mul_tokens/table.py"""

import json
import statistics
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import answers  # noqa: E402
import keep_results  # noqa: E402

from lab import ab_numbers, ab_verdict, processes, runs  # noqa: E402  (answers puts the repo's root on the path)

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


def differences(scores: list[dict], better: list[int]) -> list[dict]:
    """The paired differences of two arms, tested together (ab_verdict.judge). scores: {arm: a number per seed} each."""
    rows = []
    for values in scores:
        arms = [dict(enumerate(map(float, values[arm]))) for arm in ARMS]
        rows.append(ab_numbers.difference(*arms, alpha=0.05))
    ab_verdict.judge(rows, 0.05, better)
    return rows


def cells(row: dict, spec: str) -> str:
    """The mean of each arm, the difference with its interval, the verdict."""
    a, b = (format(row[k], spec) for k in "ab")
    delta, low, high = (format(row[k], f"+{spec}") for k in ("delta", "low", "high"))
    return f"{a} | {b} | {delta} [{low}, {high}] | {row['verdict']} |"


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
          "(difference paired by seed, 95 % interval, uncorrected; verdicts by Holm over the table)\n")
    print("| source | documents | view | baseline | mul_tokens | difference | verdict |")
    print("|---|---:|---|---:|---:|---:|---|")
    tested, numbers = {}, {}
    for source in SOURCES:
        scores = {}
        for arm in ARMS:
            scores[arm] = [read_json(run / f"val_{source}.json") for run in folders[arm]]
        every = [r for arm in ARMS for r in scores[arm]]
        documents = {(r["documents"], r["fingerprint_documents"]) for r in every}
        assert len(documents) == 1, "the arms were scored on other documents"
        numbers[source], _ = documents.pop()
        for view, field in VIEWS.items():
            tested[source, view] = {arm: [r[field] for r in scores[arm]] for arm in ARMS}
    lines, rows = [], differences(list(tested.values()), [-1] * len(tested))
    for (source, view), row in zip(tested, rows, strict=True):
        print(f"| {source} | {numbers[source]} | {view} | {cells(row, '.4f')}")
        if view == "stream":
            question = f"Products as one token: held-out {SOURCES[source]}"
            lines.append(answers.answer(question, row, "bits/byte"))
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
            values = {arm: [exam[family][measure] for exam in exams[arm]] for arm in ARMS}
            scores[family, measure] = values
    better = [-1 if measure == "mean_rank" else 1 for _, measure in scores]
    lines, rows = [], differences(list(scores.values()), better)
    for (family, measure), row in zip(scores, rows, strict=True):
        spec = MEASURES[measure]
        chance = exams["baseline"][0][family].get(f"chance_{measure}", "")
        if chance != "":
            chance = format(chance, spec)
        print(f"| {FAMILIES[family]} | {measure} | {chance} | {cells(row, spec)}")
        if family == "products" and measure in ANSWERED:
            question = f"Products as one token, probe: {FAMILIES[family]}, {ANSWERED[measure]}"
            lines.append(answers.answer(question, row, "", f"+{spec}"))

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
    processes.exit_in_a_sentence(main, "table.py")
