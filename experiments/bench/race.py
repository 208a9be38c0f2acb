"""race.py measures whether processes that meet in one file or one folder lose anything.

    python experiments/bench/race.py                                                 # a minute
    python experiments/bench/race.py --ending 40 --scoring 20 --resuming 20 --check

Three races, with the target of no loss in each:
    ending    8 processes finish a run at once and add its row to one results.csv, every second
              one with a new column
    scoring   2 processes score one run beside each other: step_metrics.json and items
    resuming  `train_gpt.py --resume auto` beside a run that was started 0 to 5 s before. One of the
              two must end as an undisturbed run does, to the bit, with one row in results.csv; the
              other must say who holds the folder
"""

from __future__ import annotations

import csv
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import disk, flags, results, runs  # noqa: E402

ENDING, SCORING, STEPS = 8, 2, 20  # processes, processes, steps that each of the latter scores
TINY = ("--n_layer 1 --n_head 2 --n_embd 32 --seq_len 64 --micro_batch_size 4 --total_batch_tokens 1024 "
        "--max_train_steps 60 --max_epochs 9 --eval_every 20 --save_every 10 --device cpu --num_workers 0").split()

# ----------------------------------------------------------------------------------------------------------------------
# in this process's children, which wait for each other


def wait_at(barrier) -> None:
    global START
    START = barrier


def end_run(task) -> None:
    path, number = task
    row = {"run_id": f"race_s{number}", "seed": number, "final_val_loss": 3 + number / 8}
    if number % 2:
        row[f"flag_{number}"] = number
    START.wait()
    results.append_result(path, row)


def score_run(task) -> None:
    folder, number = task
    START.wait()
    for step in range(STEPS):
        place = STEPS * number + step
        runs.replace_step(folder / "race_items.jsonl", place, [{"step": place, "correct": True}])
        runs.update_step_metrics(folder, step, **{f"race_{number}": step})


def at_once(n: int):
    """A pool of n processes whose functions begin together."""
    context = multiprocessing.get_context("spawn")
    return context.Pool(n, wait_at, [context.Barrier(n)])


def lose_rows(folder: Path, trials: int) -> int:
    """Rows that are missing, or have a wrong loss, after `trials` times ENDING runs have ended together."""
    lost = 0
    with at_once(ENDING) as pool:
        for trial in range(trials):
            path = folder / f"results_{trial}.csv"
            pool.map(end_run, [(path, number) for number in range(ENDING)], chunksize=1)
            with path.open(newline="") as f:
                losses = {row["seed"]: row["final_val_loss"] for row in csv.DictReader(f)}
            lost += sum(losses.get(str(number)) != str(3 + number / 8) for number in range(ENDING))
    return lost


def lose_scores(folder: Path, trials: int) -> int:
    """Scores and items that are missing after SCORING benchmarks were scored at once, `trials` times."""
    lost = 0
    with at_once(SCORING) as pool:
        for trial in range(trials):
            run = folder / f"scored_{trial}"
            run.mkdir()
            pool.map(score_run, [(run, number) for number in range(SCORING)], chunksize=1)
            scores = sum(len(scores) for scores in runs.read_step_metrics(run).values())
            lost += 2 * SCORING * STEPS - scores - len(runs.read_jsonl(run / "race_items.jsonl"))
    return lost


# ----------------------------------------------------------------------------------------------------------------------
# two trainers in one folder


def start(script: str, *flags) -> subprocess.Popen:
    command = [sys.executable, str(runs.REPO / script), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def outcome(run: Path, table: Path) -> dict:
    """What of a finished run must not depend on anybody beside it."""
    losses = [(record["type"], record["step"], record.get("train_loss_opt_step_mean", record.get("val_loss")))
              for record in runs.read_jsonl(run / "scalars.jsonl")]
    with table.open(newline="") as f:
        rows = [row["final_val_loss"] for row in csv.DictReader(f)]
    weights = disk.sha256_file(runs.list_checkpoints(run)[-1] / "model.safetensors")
    return {"losses": losses, "rows of results.csv": rows, "weights": weights}


def harm_runs(folder: Path, trials: int, seed: int) -> int:
    """Trials in which a second trainer changed the first's result or table, or kept silent."""
    data, delays, harmed, expected = folder / "data", random.Random(seed), 0, None
    made = start("prepare_fineweb.py", "--dataset", "synthetic", "--max_docs", 400, "--out_dir", data)
    printed, _ = made.communicate()
    if made.returncode:
        raise ValueError(f"prepare_fineweb.py failed: {printed}")
    for trial in range(trials + 1):  # the first without a neighbour
        run, table = folder / f"run_{trial}" / "r", folder / f"run_{trial}" / "results.csv"
        flags = ["--data_dir", data, "--out_dir", run, "--results_csv", table, *TINY]
        both = [start("train_gpt.py", *flags)]
        if trial:
            delay = delays.uniform(0, 5)
            time.sleep(delay)
            both.append(start("train_gpt.py", *flags, "--resume", "auto"))
        printed = [process.communicate()[0] for process in both]
        if all(process.returncode for process in both):
            raise ValueError(f"no run was finished: {printed}")
        result = outcome(run, table)
        if not trial:
            expected = result
            continue
        faults = [name for name in expected if result[name] != expected[name]]
        for process, text in zip(both, printed, strict=True):
            last = text.strip().rpartition("\n")[2]
            is_named = "is held by process" in last or "just been finished" in last
            if process.returncode and not is_named:
                faults.append(last)
        harmed += bool(faults)
        print(f"  after {delay:.1f} s: {', '.join(faults) or 'unharmed'}", flush=True)
    return harmed


def main(argv=None) -> int:
    p = flags.Parser(prog="race.py", description=__doc__)
    add = p.add_argument
    add("--ending", type=int, default=5, help="trials of the first race (default %(default)s)")
    add("--scoring", type=int, default=2, help="trials of the second race (default %(default)s)")
    add("--resuming", type=int, default=2, help="trials of the third race (default %(default)s)")
    add("--seed", type=int, default=0, help="of the delays (default %(default)s)")
    add("--check", action="store_true", help="exit with status 1 when anything was lost")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lost = {f"rows lost of {args.ending} x {ENDING}": lose_rows(folder, args.ending)}
        written = 2 * SCORING * STEPS
        lost[f"scores and items lost of {args.scoring} x {written}"] = lose_scores(folder, args.scoring)
        if args.resuming:
            lost[f"runs harmed of {args.resuming}"] = harm_runs(folder, args.resuming, args.seed)
    for what, count in lost.items():
        print(f"{what}: {count}")
    return int(args.check and any(lost.values()))


if __name__ == "__main__":
    sys.exit(main())
