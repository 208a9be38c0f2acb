"""race.py measures whether processes that meet in one file or one folder lose anything.

    python experiments/bench/race.py                                                 # a minute
    python experiments/bench/race.py --ending 40 --scoring 20 --resuming 20 --pairs 20 --check

Four races, with the target of no loss in each:
    ending    8 processes finish a run at once and add its row to one results.csv, every second
              one with a new column
    scoring   2 processes score one run beside each other: step_metrics.json and items
    resuming  `train_gpt.py --resume auto` beside a run that was started 0 to 5 s before. One of the
              two must end as an undisturbed run does, to the bit, with one row in results.csv; the
              other must say who holds the folder
    pairs     the same for two of any script of tiny.py, each fresh or with --resume; an exam that
              begins when the other has ended is held again, and must find the same
"""

from __future__ import annotations

import contextlib
import csv
import io
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import tiny  # noqa: E402

from lab import results, runs  # noqa: E402

ENDING, SCORING, STEPS = 8, 2, 20  # processes, processes, steps that each of the latter scores

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
    context = multiprocessing.get_context("fork")
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
# two of anything in one folder

# what the one says that leaves: mostly the first, the others when it comes after the end
LEAVES = re.compile(r"is held by process \d+ on .* since |just been finished|is already finished|already exists|"
                    "already holds a finished dataset")


def harm(world: Path, tasks: dict, trials: int, draw, modes=None) -> int:
    """Trials in which one process beside another changed what is left, or kept silent.

    modes: whether the first and the second are told to go on (None: drawn). An exam may begin when the other has
    ended."""
    harmed, expected = 0, {}
    for trial in range(trials):
        name = list(tasks)[trial % len(tasks)]
        task, place = tasks[name], Path(tempfile.mkdtemp(dir=world))
        if name not in expected:
            (place / "whole").mkdir()
            expected[name], _ = tiny.run(task, world, place / "whole" / "out", "long")
        out, delay = place / "pair" / "out", draw.uniform(0, 5)
        out.parent.mkdir()
        first, second = modes or (draw.random() < 0.5, draw.random() < 0.5)
        one = tiny.start(task, world, out, first, "long")
        time.sleep(delay)
        ended, status = os.waitpid(one, os.WNOHANG)
        two = tiny.start(task, world, out, second, "long")
        if not ended:
            _, status = os.waitpid(one, 0)
        statuses = [status, os.waitpid(two, 0)[1]]
        texts = [path.read_text() for path in (out.with_name("out.log"), out.with_name("out.log2"))]
        faults = tiny.differences(expected[name], tiny.outcome(out))
        words = [match[0] for match in map(LEAVES.search, texts) if match]
        if ended and task.kind == "exams" and not any(statuses):
            words.append("came after its end, and found the same")
        if all(statuses) or len(words) != 1:
            faults.append(f"they ended with {[text[-300:] for text in texts]}")
        harmed += bool(faults)
        listed = ", ".join(faults) or f"unharmed, the other: {words[0]}"
        print(f"  {name}, after {delay:.1f} s: {listed}", flush=True)
    return harmed


def main(argv=None) -> int:
    p = flags.Parser(prog="race.py", description=__doc__)
    add = p.add_argument
    add("--ending", type=int, default=5, help="trials of the first race (default %(default)s)")
    add("--scoring", type=int, default=2, help="trials of the second race (default %(default)s)")
    add("--resuming", type=int, default=2, help="trials of the third race (default %(default)s)")
    add("--pairs", type=int, default=4, help="trials of the fourth race (default %(default)s)")
    add("--seed", type=int, default=0, help="of the delays (default %(default)s)")
    add("--check", action="store_true", help="exit with status 1 when anything was lost")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lost = {f"rows lost of {args.ending} x {ENDING}": lose_rows(folder, args.ending)}
        written = 2 * SCORING * STEPS
        lost[f"scores and items lost of {args.scoring} x {written}"] = lose_scores(folder, args.scoring)
        if args.resuming or args.pairs:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                tiny.make_world(folder)
        draw, trained = random.Random(args.seed), {"train": tiny.TASKS["train"]}
        harmed = harm(folder, trained, args.resuming, draw, (False, True))
        lost[f"runs harmed of {args.resuming}"] = harmed
        harmed = harm(folder, tiny.TASKS, args.pairs, draw)
        lost[f"pairs harmed of {args.pairs}"] = harmed
    for what, count in lost.items():
        print(f"{what}: {count}")
    return int(args.check and any(lost.values()))


if __name__ == "__main__":
    sys.exit(main())
