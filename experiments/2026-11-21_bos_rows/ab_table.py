"""ab_table.py compares the arms of run.sh on the common val set: bits per byte in both views, paired by seed.

    python experiments/2026-11-21_bos_rows/ab_table.py experiments/runs/bos_rows

Reads <folder>/<arm>_s<seed>/ of every finished run. Refuses runs that differ in more than their train data and seed.
Differences are arm minus stream, and arm minus crop, of the same seed; intervals are 95 % by Student's t.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import runs  # noqa: E402

ARMS = ("stream", "crop", "split", "requeue")
VIEWS = {"stream view": "val_bits_per_byte", "bos view": "val_bits_per_byte_bos"}
T_95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # two-sided, 1..9 degrees of freedom
FREE = set("data_dir out_dir name resume seed notes results_csv num_workers verify_data log_every save_every "
           "keep_last".split())


def read_arms(folder: Path) -> dict[str, dict[int, dict]]:
    """{arm: {seed: run}} of the finished runs; exits with a sentence when they are not comparable."""
    arms, reference = {}, None
    for path in sorted(folder.glob("*_s[0-9]*/")):
        arm = path.name.rsplit("_s", 1)[0]
        if arm not in ARMS or not (path / "summary.json").exists():
            continue
        run = runs.read_run(path)
        run["val"] = list(run["val"].values())[-1]
        same = {k: v for k, v in run["config"]["flags"].items() if k not in FREE}
        same |= {k: run["config"]["data"][k] for k in ("val_fingerprint_documents", "val_fingerprint_tokens")}
        same |= {k: run["val"][k] for k in ("val_tokens", "val_tokens_bos", "val_bytes", "val_bytes_bos")}
        reference = reference or same
        if differs := [k for k in reference if same[k] != reference[k]]:
            sys.exit(f"{path} differs from the runs before it in {', '.join(differs)}: delete it and run run.sh again.")
        arms.setdefault(arm, {})[run["config"]["flags"]["seed"]] = run
    if not arms:
        sys.exit(f"{folder} holds no finished run: start run.sh, or name its folder.")
    return arms


def paired(a: dict, b: dict, field: str) -> dict | None:
    """b - a over the seeds both have: mean, half-width of the 95 % interval, n and a verdict (less is better)."""
    seeds = sorted(set(a) & set(b))
    values = [b[s]["val"][field] - a[s]["val"][field] for s in seeds]
    n = len(values)
    if n < 2:
        return None
    mean = statistics.mean(values)
    half = T_95[min(n - 1, len(T_95)) - 1] * statistics.stdev(values) / math.sqrt(n)
    verdict = "inconclusive" if abs(mean) <= half else "better" if mean < 0 else "worse"
    return {"n": n, "mean": mean, "half_width": half, "verdict": verdict, "differences": values}


def collect(folder: Path) -> dict:
    """Everything that the tables say, from the runs."""
    arms = read_arms(folder)
    seeds = sorted({seed for found in arms.values() for seed in found})
    one = next(iter(next(iter(arms.values())).values()))
    results = {
        "steps": one["summary"]["steps"], "tokens_seen": one["summary"]["tokens_seen"],
        "parameters": one["config"]["parameters"]["total"], "val_documents": one["config"]["data"]["val_documents"],
        "val_tokens": one["val"]["val_tokens"], "val_tokens_bos": one["val"]["val_tokens_bos"], "seeds": seeds,
        "missing": [f"{arm}_s{seed}" for arm in ARMS for seed in seeds if seed not in arms.get(arm, {})],
        "code_versions": len({r["config"]["code"]["code_sha256"] for found in arms.values() for r in found.values()}),
        "arms": {}, "differences": []}
    for arm in [arm for arm in ARMS if arm in arms]:
        found = [arms[arm][seed] for seed in sorted(arms[arm])]
        data = found[0]["config"]["data"]
        values = {"train loss": [run["summary"]["final_train_loss"] for run in found]}
        values |= {view: [run["val"][field] for run in found] for view, field in VIEWS.items()}
        results["arms"][arm] = {k: data[k] for k in ("unique_tokens", "epochs", "tokens", "crop_fraction")} | values
    for base in ("stream", "crop"):
        for arm in ARMS[ARMS.index(base) + 1 :]:
            if base in arms and arm in arms:
                results["differences"] += [{"arm": arm, "base": base, "view": view,
                                            **(paired(arms[base], arms[arm], field) or {})}
                                           for view, field in VIEWS.items()]
    return results


def tables(results: dict) -> str:
    lines = []
    if results["code_versions"] > 1:
        lines += [f"WARNING: the runs were made by {results['code_versions']} versions of the code.", ""]
    if results["missing"]:
        lines += [f"MISSING: {', '.join(results['missing'])}", ""]
    lines += [f"{results['steps']} steps, {results['tokens_seen']:,} tokens, {results['parameters']:,} parameters, "
              f"seeds {results['seeds']}; common val set: {results['val_documents']} documents, "
              f"{results['val_tokens']:,} tokens in the stream view, {results['val_tokens_bos']:,} in the bos view", "",
              "| arm | unique tokens | epochs | tokens in the data | crop fraction | train loss | "
              + " | ".join(f"bits/byte, {view}" for view in VIEWS) + " |", "|---" + "|---:" * (5 + len(VIEWS)) + "|"]
    for arm, r in results["arms"].items():
        crop = "N/A" if r["crop_fraction"] is None else f"{r['crop_fraction']:.1%}"
        spreads = [f"{statistics.mean(v):.4f}" + (f" ± {statistics.stdev(v):.4f}" if len(v) > 1 else "")
                   for v in (r["train loss"], *(r[view] for view in VIEWS))]
        lines.append(f"| {arm} | {r['unique_tokens']:,} | {r['epochs']:.3f} | {r['tokens']:,} | {crop} | "
                     + " | ".join(spreads) + " |")
    lines += ["", "Paired differences in bits/byte, 95 % intervals; less is better.", "",
              "| difference | pairs | " + " | ".join(f"{view} | verdict" for view in VIEWS) + " |",
              "|---|---:" + "|---:|---" * len(VIEWS) + "|"]
    for first in range(0, len(results["differences"]), len(VIEWS)):
        both = results["differences"][first : first + len(VIEWS)]
        cells = [f"{d['mean']:+.4f} ± {d['half_width']:.4f} | {d['verdict']}" if "mean" in d
                 else "N/A | inconclusive (fewer than two pairs)" for d in both]
        lines.append(f"| {both[0]['arm']} - {both[0]['base']} | {both[0].get('n', 0)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="where run.sh put the runs")
    p.add_argument("--json", type=Path, help="file for the numbers (default: none)")
    args = p.parse_args()
    results = collect(args.folder)
    print(tables(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
