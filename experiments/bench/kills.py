"""kills.py ends scripts by SIGKILL at random moments, lets them go on, and compares every byte with an undisturbed run.

    python experiments/bench/kills.py                                                                # some minutes
    python experiments/bench/kills.py --prepare 100 --train 40 --sft 20 --exams 20 --check

Each folder is begun, killed up to three times (half of the moments are drawn over the time that an undisturbed run
takes, half over its renames and syncs, where little time is spent), and then ended with --resume, or by the same
command. Target: 0 folders in which a byte differs (times and logs left out), a file is left over, or results.csv has
another number of rows.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab.flags import Parser, check_first  # noqa: E402

if __name__ == "__main__":
    check_first(__file__)

import tiny  # noqa: E402

MOST_KILLS = 3  # of one folder


def die_at(operation: int) -> None:
    """Lets this process be killed as it begins its operation-th rename or sync."""
    left = [operation]

    def mortal(function):
        def call(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)
        return call

    for name in ("replace", "fsync", "unlink", "rename", "mkdir"):
        setattr(os, name, mortal(getattr(os, name)))


def kill_once(task, world: Path, out: Path, seconds: float, draw) -> bool:
    """Whether a process of the task was killed, in `seconds` from its start; else it has ended, well."""
    real, go_on = os.fork, bool(task.again) and out.exists()
    if draw.random() < 0.5 and seconds < math.inf:
        operation = draw.randrange(1, 60)

        def fork():
            child = real()
            if not child:
                die_at(operation)
            return child

        os.fork, seconds = fork, 1000
    try:
        child = tiny.start(task, world, out, go_on)
    finally:
        os.fork = real
    until = time.monotonic() + draw.random() * seconds
    pid = 0
    while not pid and time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not pid:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        log = out.with_name(f"{out.name}.log")
        raise ValueError(f"{out.name} failed: {log.read_text()[-2000:]}")
    return os.WIFSIGNALED(status)


def run_kind(kind: str, wanted: int, world: Path, draw) -> tuple[int, int, list[str]]:
    """(kills, folders, what differs) for the tasks of a kind, in turn."""
    tasks = {name: task for name, task in tiny.TASKS.items() if task.kind == kind}
    expected, seconds, wrong, kills, folders = {}, {}, [], 0, 0
    while kills < wanted:
        name = list(tasks)[folders % len(tasks)]
        task, place = tasks[name], world / f"{kind}_{folders}"
        place.mkdir()
        if name not in expected:
            whole = world / f"whole_{kind}_{folders}" / "out"
            whole.parent.mkdir()
            expected[name], seconds[name] = tiny.run(task, world, whole)
        out = place / "out"
        for count in range(MOST_KILLS + 1):
            with contextlib.suppress(FileNotFoundError):
                out.with_name("out.log").unlink()
            limit = seconds[name] if count < MOST_KILLS else math.inf
            if not kill_once(task, world, out, limit, draw):
                break
            kills += 1
        found = tiny.differences(expected[name], tiny.outcome(out))
        if found:
            wrong.append(f"{name}, folder {folders}: {', '.join(found[:5])}")
        folders += 1
    return kills, folders, wrong


def main(argv=None) -> int:
    p = Parser(prog="kills.py", description=__doc__)
    add = p.add_argument
    for kind, count in {"prepare": 20, "train": 6, "sft": 4, "exams": 6}.items():
        add(f"--{kind}", type=int, default=count, help=f"kills of {kind} (default %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    add("--check", action="store_true", help="exit with status 1 when anything differs")
    args = p.parse_args(argv)
    bad, draw = 0, random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            tiny.make_world(world)
        tiny.commit_often()
        for kind in ("prepare", "train", "sft", "exams"):
            began = time.monotonic()
            kills, folders, wrong = run_kind(kind, getattr(args, kind), world, draw)
            print(f"{kind}: {kills} kills, {folders} folders, {len(wrong)} differ "
                  f"({time.monotonic() - began:.0f} s)", flush=True)
            for line in wrong:
                print(f"    {line}", flush=True)
            bad += len(wrong)
    return int(args.check and bad > 0)


if __name__ == "__main__":
    sys.exit(main())
