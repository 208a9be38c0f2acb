"""keep_results.py keeps what compare_runs.py reads of finished runs, in files small enough for git.

    python experiments/keep_results.py 'experiments/runs/gating/*_s*' --out experiments/2026-11-21_gating/runs
    python compare_runs.py --runs 'experiments/2026-11-21_gating/runs/*' --group_by attn_gate

Per run, under the same name: config.json, summary.json, scalars.jsonl (of the training records the fields that are
compared), the last scores per document, benchmark scores, GSM8K results, and the checksum of every step's tokens: about
30 kB for 100 steps. Weights, code, records per item and logs stay behind; folders of absolute paths and the host's name
are left out.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare_runs  # noqa: E402

TABLES = ("config.json", "summary.json", "hellaswag_metrics.jsonl", "ewok_metrics.jsonl", "gsm8k_results.json")


def portable(value):
    """JSON without what belongs to one machine: absolute paths keep their last part, lists of flags and all."""
    if isinstance(value, dict):
        return {k: portable(v) for k, v in value.items() if k not in ("host", "git_diff")}
    if isinstance(value, list):
        return [portable(v) for v in value]
    if isinstance(value, str) and (value.startswith("/") or "=/" in value):
        name, sign, path = value.partition("=") if "=/" in value else ("", "", value)
        return name + sign + Path(path).name
    return value


def lines(records) -> str:
    return "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records)


def keep(run: Path, out: Path) -> int:
    """Writes out/<name of run>, whole or not at all, and returns its bytes. ValueError when the run is not finished."""
    if not (run / "summary.json").exists():
        raise ValueError(f"{run} is not finished (no summary.json): continue it, then keep its results.")
    new, final = out / f"{run.name}.tmp", out / run.name
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name in TABLES:
            if (run / name).exists() and name.endswith(".json"):
                (new / name).write_text(json.dumps(portable(json.loads((run / name).read_text())), indent=1) + "\n")
            elif (run / name).exists():
                (new / name).write_text(lines(portable(json.loads(s)) for s in (run / name).open()))
        with (run / "scalars.jsonl").open() as f:
            records = [json.loads(s) for s in f]
        wanted = ("type", *compare_runs.TRAIN_FIELDS)
        short = [{k: r[k] for k in wanted if k in r} if r.get("type") == "train" else r for r in records]
        (new / "scalars.jsonl").write_text(lines(short))
        for path in sorted(run.glob("val_documents_*.npz"))[-1:]:
            shutil.copy(path, new)
        (new / "exposures").mkdir()
        for path in sorted((run / "exposures").glob("*.jsonl")):
            steps = ({k: r[k] for k in ("step", "checksum")} for r in map(json.loads, path.open()))
            (new / "exposures" / path.name).write_text(lines(steps))
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return sum(path.stat().st_size for path in final.rglob("*") if path.is_file())


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                allow_abbrev=False)
    p.add_argument("runs", nargs="+", help="run folders, or quoted patterns")
    p.add_argument("--out", type=Path, required=True, help="folder that gets a folder per run")
    args = p.parse_args(argv)
    try:
        folders = compare_runs.expand(args.runs, "runs")
        folders = [f for f in folders if (f / "config.json").exists()]
        if not folders:
            raise ValueError("no folder among these is a run (config.json): name run folders.")
        if taken := [f.name for f in folders if (args.out / f.name).resolve() == f.resolve()]:
            raise ValueError(f"--out {args.out} holds the run {taken[0]} itself, not to be replaced: name another.")
        names = [f.name for f in folders]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two runs are called {double[0]}: keep them in two folders, with two calls.")
        size = sum(keep(folder, args.out) for folder in tqdm(folders, unit="run", disable=None))
    except (OSError, ValueError) as error:
        sys.exit(f"keep_results.py: {error}")
    print(f"{len(folders)} runs, {size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
