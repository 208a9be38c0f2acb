"""ab_table.py compares the arms of run.sh on the common val set: bits per byte in both views, paired by seed.

    python experiments/2026-11-21_bos_rows/ab_table.py experiments/runs/bos_rows

Reads <folder>/<arm>_s<seed>/ of every finished run. Refuses runs that differ in more than their train data and seed.
Differences are arm minus stream, and arm minus crop, of the same seed; intervals are 95 % by Student's t.
"""

import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import ab_numbers, ab_verdict, flags, runs  # noqa: E402

ARMS = ("stream", "crop", "split", "requeue")
BASES = ("stream", "crop")
VIEWS = {"stream view": "val_bits_per_byte", "bos view": "val_bits_per_byte_bos"}
ALPHA = 0.05
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # two-sided, 1..9 degrees of freedom
SAME_DATA = ("val_fingerprint_documents", "val_fingerprint_tokens")
SAME_VAL = ("val_tokens", "val_tokens_bos", "val_bytes", "val_bytes_bos")


def conditions(run: dict) -> dict:
    """What must be equal in all runs: every flag that can change a result but the seed, and the held-out text."""
    same = runs.conditions(run["flags"])
    del same["seed"]
    same |= {k: run["config"]["data"][k] for k in SAME_DATA}
    same |= {k: run["last_val"][k] for k in SAME_VAL}
    return same


def read_arms(folder: Path) -> dict[str, dict[int, dict]]:
    """{arm: {seed: run}} of the finished runs; exits with a sentence when they are not comparable."""
    arms, reference = {}, None
    for path in sorted(folder.glob("*_s[0-9]*/")):
        arm = path.name.rsplit("_s", 1)[0]
        if arm not in ARMS or not (path / "summary.json").exists():
            continue
        run = runs.read_run(path)
        run["last_val"] = list(run["val"].values())[-1]
        same = conditions(run)
        if reference is None:
            reference = same
        if differs := [k for k in reference if same.get(k) != reference[k]]:
            sys.exit(f"{path} differs from the runs before it in {', '.join(differs)}: delete it and run run.sh again.")
        arms.setdefault(arm, {})[run["seed"]] = run
    if not arms:
        sys.exit(f"{folder} holds no finished run: start run.sh, or name its folder.")
    return {arm: arms[arm] for arm in ARMS if arm in arms}


def paired(a: dict, b: dict, field: str) -> dict:
    """b - a over the seeds both have: mean, half-width of the 95 % interval, n. Empty with fewer than two pairs."""
    seeds = sorted(set(a) & set(b))
    values = [b[s]["last_val"][field] - a[s]["last_val"][field] for s in seeds]
    n = len(values)
    if n < 2:
        return {}
    mean = statistics.mean(values)
    half = T_95[min(n - 1, len(T_95)) - 1] * statistics.stdev(values) / math.sqrt(n)
    return {"n": n, "mean": mean, "half_width": half, "differences": values}


def judge(differences: list[dict]) -> list[dict]:
    """Rows of ab_verdict.judge, all differences corrected together (less is better)."""
    rows = []
    for d in differences:
        pairs = dict(enumerate(d.get("differences", [])))
        rows.append(ab_numbers.difference(dict.fromkeys(pairs, 0.0), pairs, ALPHA))
    ab_verdict.judge(rows, ALPHA, -1)
    return rows


def collect(folder: Path) -> dict:
    """Everything that the tables show, from the runs."""
    arms = read_arms(folder)
    all_runs = [run for by_seed in arms.values() for run in by_seed.values()]
    seeds = sorted({run["seed"] for run in all_runs})
    one = all_runs[0]
    results = {
        "steps": one["summary"]["steps"],
        "tokens_seen": one["summary"]["tokens_seen"],
        "parameters": one["config"]["parameters"]["total"],
        "val_documents": one["config"]["data"]["val_documents"],
        "val_tokens": one["last_val"]["val_tokens"],
        "val_tokens_bos": one["last_val"]["val_tokens_bos"],
        "seeds": seeds,
        "missing": [f"{arm}_s{seed}" for arm in ARMS for seed in seeds if seed not in arms.get(arm, {})],
        "code_versions": len({run["config"]["code"]["code_sha256"] for run in all_runs}),
        "arms": {},
        "differences": [],
    }
    for arm, by_seed in arms.items():
        members = [by_seed[seed] for seed in sorted(by_seed)]
        data = members[0]["config"]["data"]
        values = {k: data[k] for k in ("unique_tokens", "epochs", "tokens", "crop_fraction")}
        values["train loss"] = [run["summary"]["final_train_loss"] for run in members]
        for view, field in VIEWS.items():
            values[view] = [run["last_val"][field] for run in members]
        results["arms"][arm] = values
    for base in BASES:
        for arm in ARMS[ARMS.index(base) + 1 :]:
            if base not in arms or arm not in arms:
                continue
            for view, field in VIEWS.items():
                d = paired(arms[base], arms[arm], field)
                results["differences"].append({"arm": arm, "base": base, "view": view, **d})
    return results


def mean_and_sd(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def tables(results: dict) -> str:
    lines = []
    if results["code_versions"] > 1:
        lines += [f"WARNING: the runs were made by {results['code_versions']} versions of the code.", ""]
    if results["missing"]:
        lines += [f"MISSING: {', '.join(results['missing'])}", ""]
    lines.append(
        f"{results['steps']} steps, {results['tokens_seen']:,} tokens, {results['parameters']:,} parameters, "
        f"seeds {results['seeds']}; common val set: {results['val_documents']} documents, "
        f"{results['val_tokens']:,} tokens in the stream view, {results['val_tokens_bos']:,} in the bos view")

    head = ["arm", "unique tokens", "epochs", "tokens in the data", "crop fraction", "train loss"]
    head += [f"bits/byte, {view}" for view in VIEWS]
    lines += ["", f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for arm, r in results["arms"].items():
        crop = "N/A"
        if r["crop_fraction"] is not None:
            crop = f"{r['crop_fraction']:.1%}"
        cells = [arm, f"{r['unique_tokens']:,}", f"{r['epochs']:.3f}", f"{r['tokens']:,}", crop]
        cells += [mean_and_sd(r[k]) for k in ("train loss", *VIEWS)]
        lines.append(f"| {' | '.join(cells)} |")

    judged = judge(results["differences"])
    lines += ["", "Paired differences in bits/byte, 95 % intervals (uncorrected); less is better. "
              f"Verdicts by Holm over all {judged[0]['tests']}.", ""]
    head = ["difference", "pairs"] + [f"{view} | verdict" for view in VIEWS]
    lines += [f"| {' | '.join(head)} |", "|---|---:" + "|---:|---" * len(VIEWS) + "|"]
    for first in range(0, len(results["differences"]), len(VIEWS)):
        views = results["differences"][first : first + len(VIEWS)]
        cells = [f"{views[0]['arm']} - {views[0]['base']}", str(views[0].get("n", 0))]
        for d, row in zip(views, judged[first : first + len(VIEWS)], strict=True):
            change = f"{d['mean']:+.4f} ± {d['half_width']:.4f}" if "mean" in d else "N/A"
            cells.append(f"{change} | {row['verdict']}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    p = flags.Parser(description=__doc__)
    p.add_argument("folder", type=Path, help="where run.sh put the runs")
    p.add_argument("--json", type=Path, help="file for the numbers (default: none)")
    args = p.parse_args()
    results = collect(args.folder)
    print(tables(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
