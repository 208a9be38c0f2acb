"""This experiment's tables, from the committed results: python experiments/2026-11-26_grpo/table.py"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1]))
sys.path.insert(0, str(here.parent))
import keep_results  # noqa: E402

import compare_runs  # noqa: E402
from lab import ab_stats, processes, runs  # noqa: E402

ARMS = {
    "sft": "(a) the start: SFT on 600 problems",
    "grpo": "GRPO, exact reward",
    "more": "(b) SFT, as many more updates on the same 600",
    "random": "(c) GRPO, random reward",
    "zero": "(d) GRPO, reward 0: the KL term alone",
    "upper": "(e) SFT, as many updates on the pool's own solutions",
}
MEASURES = {"greedy": "greedy", "pass_at_1": "pass@1", "pass_at_8": "pass@8", "majority_at_8": "majority at 8",
            "entropy": "entropy"}


def exams(kept: Path, arm: str, condition: str = "baseline") -> dict[int, dict]:
    """{seed: {measure: value}} of an arm's runs."""
    found = {}
    for folder in sorted(kept.glob(f"{arm}_{condition}_s[0-9]")):
        exam = json.loads((folder / "exam.json").read_text())
        scores = {"greedy": exam["greedy"]["accuracy"], **exam["samples"], "mul_tokens": exam["mul_tokens"]}
        found[int(folder.name.rpartition("_s")[2])] = scores
    return found


def change(start: dict, arm: dict, measure: str) -> str:
    """Mean difference from the start over the seeds that both have, with its 95 % interval (paired t)."""
    seeds = sorted(set(start) & set(arm))
    if len(seeds) < 2:
        return "–"
    stats = ab_stats.paired([start[s][measure] for s in seeds], [arm[s][measure] for s in seeds])
    return f"{stats['delta']:+.3f} [{stats['ci_low']:+.3f}, {stats['ci_high']:+.3f}]"


def main_table(kept: Path) -> None:
    print("## GRPO and its controls\n")
    print("Seeds' values where there are few, and the mean; differences from the start are paired by seed, with 95 % "
          "intervals over seeds. Greedy: 1,000 held-out problems; the rest: eight samples at temperature 1 of 200 of "
          "them. Entropy: nats per token of these samples.\n")
    changing = "greedy, change | pass@1, change | pass@8, change"
    print(f"| arm | greedy by seed | {' | '.join(MEASURES.values())} | {changing} |")
    print(f"|---|---|{'---:|' * len(MEASURES)}---|---|---|")
    start = exams(kept, "sft")
    for arm, title in ARMS.items():
        own = exams(kept, arm)
        if not own:
            continue
        by_seed = ", ".join(f"{scores['greedy']:.3f}" for scores in own.values())
        means = [f"{sum(s[measure] for s in own.values()) / len(own):.3f}" for measure in MEASURES]
        changes = ["", "", ""]
        if arm != "sft":
            changes = [change(start, own, measure) for measure in ("greedy", "pass_at_1", "pass_at_8")]
        print(f"| {title} | {by_seed} | {' | '.join(means)} | {' | '.join(changes)} |")


def training_table(kept: Path) -> None:
    """The first and the last steps of each GRPO run."""
    print("\n## The training steps\n")
    print("Means of the first and of the last five steps. KL: k3 to the start, nats per token.\n")
    print("| run | reward | exact | flat groups | entropy | KL | tokens | truncated |")
    print("|---|---|---|---|---|---|---|---|")
    keys = "reward_mean exact_share flat_groups entropy kl length_mean truncated_share".split()
    tokens, off, largest = 0.0, 0.0, 0.0
    for folder in sorted(kept.iterdir()):
        steps = [r for r in runs.read_jsonl(folder / "scalars.jsonl") if r.get("type") == "train" and "kl" in r]
        if not steps:
            continue
        ends = (steps[:5], steps[-5:])
        cells = [" → ".join(f"{sum(r[key] for r in part) / len(part):.3f}" for part in ends) for key in keys]
        print(f"| {folder.name} | {' | '.join(cells)} |")
        flags = json.loads((folder / "config.json").read_text())["flags"]
        for record in steps:
            of_step = record["length_mean"] * flags["problems_per_step"] * flags["group_size"]
            tokens, off = tokens + of_step, off + record["ratio_off_share"] * of_step
            largest = max(largest, record["ratio_off_max"])
    print(f"\nOf all {tokens:,.0f} tokens {off:.0f} have a p that differs beyond rounding (grpo.ROUNDING) between "
          f"sampling and update; the largest difference is {largest:.3f}.")


def grid_table(kept: Path) -> None:
    rates = {}
    for folder in sorted(kept.glob("grpo*_baseline_s0")):
        rate = json.loads((folder / "config.json").read_text())["flags"]["learning_rate"]
        rates[rate] = json.loads((folder / "exam.json").read_text())
    if len(rates) < 2:
        return
    print("\n## Learning rate, seed 0\n")
    print("| learning rate | greedy | pass@1 | pass@8 | entropy |\n|---:|---:|---:|---:|---:|")
    for rate, exam in sorted(rates.items()):
        cells = [exam["greedy"]["accuracy"], *(exam["samples"][key] for key in ("pass_at_1", "pass_at_8", "entropy"))]
        print(f"| {rate:g} | {' | '.join(f'{value:.3f}' for value in cells)} |")


def arms_table(kept: Path) -> None:
    """baseline against mul_tokens, by compare_runs.py. --allow init: each run goes on from its own seed's and arm's."""
    pairs = {arm: [exams(kept, arm, condition) for condition in ("baseline", "mul_tokens")] for arm in ("sft", "grpo")}
    if not pairs["grpo"][1]:
        return
    print("\n## baseline against mul_tokens, the same problems and seeds\n")
    print("| stage | baseline, greedy | mul_tokens, greedy | mul tokens per answer: baseline, mul_tokens |")
    print("|---|---|---|---|")
    for arm, own in pairs.items():
        greedy = [", ".join(f"{s['greedy']:.3f}" for s in one.values()) for one in own]
        tokens = [f"{sum(s['mul_tokens'] for s in one.values()) / len(one):.3f}" for one in own]
        print(f"| {arm} | {' | '.join(greedy)} | {', '.join(tokens)} |")
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            compare_runs.main(["--a", f"{kept}/grpo_baseline_s*", "--b", f"{kept}/grpo_mul_tokens_s*", "--primary",
                               "grpo_accuracy", "--allow", "init", "--out", folder])
        report = json.loads((Path(folder) / "report.json").read_text())
    print(f"\n`compare_runs.py --primary grpo_accuracy --allow init`: {report['headline']}")


def main():
    with keep_results.unpacked(here / "runs.tar.xz") as kept:
        main_table(kept)
        training_table(kept)
        grid_table(kept)
        arms_table(kept)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "table.py")
