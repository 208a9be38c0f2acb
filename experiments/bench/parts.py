"""parts.py times --merge: parts on disk -> a dataset, the one step of a preparation that cannot run on many machines.

    python experiments/bench/parts.py --data corpus.parquet
    python experiments/bench/parts.py --data web.parquet books.parquet --rounds 5 --check

The parts are made first, once. Then prepare_fineweb.py --merge and prepare_bos_rows.py --merge (--seq_len 1024, each
--overflow) take turns, in one process without other threads; million tokens read per CPU-second and per second of wall
time, medians over the rounds, with checksums, syncs and the writing of shards. Target: 100 for each. For
comparison, one process that tokenises and writes the stream, as it runs without parts. All must end with equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab.flags import Parser, check_first, check_flags  # noqa: E402

if __name__ == "__main__":
    check_first(__file__)

import numpy as np  # noqa: E402
import torch  # noqa: E402

import prepare_bos_rows  # noqa: E402
import prepare_fineweb  # noqa: E402
from lab import processes, shards  # noqa: E402

TARGET = 100  # million tokens per CPU-second


def run(script, dataset: list[str], out_dir: Path, flags: list[str]) -> tuple[float, float, dict]:
    """Run a script in this process, without its words: (CPU seconds, wall seconds, meta.json)."""
    shutil.rmtree(out_dir, ignore_errors=True)
    argv = ["--dataset", *dataset, "--out_dir", str(out_dir), *flags]
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main(argv)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu, wall, shards.read_meta(out_dir)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="documents, as prepare_fineweb.py --dataset")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, variants taking turns (default: 5)")
    parser.add_argument("--check", action="store_true", help="exit 1 when the target is missed")
    args = parser.parse_args()
    check_flags(parser, args, {"a whole number of at least 1": "rounds"})
    state = processes.machine_state(torch.device("cpu"))
    print(f"{state['hardware']['cpu']}, {os.cpu_count()} cores, {platform.system()}, Python "
          f"{platform.python_version()}, numpy {np.__version__}")
    folder = Path(tempfile.mkdtemp())
    parts_dir = folder / "parts"
    merge = ["--merge", "--parts_dir", str(parts_dir)]
    variants = {"prepare_fineweb.py without parts": (prepare_fineweb, []),
                "prepare_fineweb.py --merge": (prepare_fineweb, merge)}
    for overflow in ("crop", "split", "requeue"):
        variants[f"prepare_bos_rows.py --merge, {overflow}"] = prepare_bos_rows, [*merge, "--overflow", overflow]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            prepare_fineweb.main(["--dataset", *args.data, "--out_dir", str(folder), "--part", "0/1"])
        figures, prints = {name: [] for name in variants}, {}
        for _ in range(args.rounds):
            for name, (script, flags) in variants.items():
                cpu, wall, meta = run(script, args.data, folder / "out", flags)
                tokens = meta["token_account"]["tokens_read"] / 1e6
                figures[name].append((tokens / cpu, tokens / wall))
                prints.setdefault(name, set()).add(meta["fingerprint"])
    finally:
        shutil.rmtree(folder)
    whole, merged, *_ = prints.values()
    if whole != merged or any(len(found) > 1 for found in prints.values()):
        sys.exit("the datasets differ: report this with the data.")
    print(f"{tokens:.1f} million tokens; million tokens per\n{'':>40}  CPU-second   second")
    medians = {name: list(map(statistics.median, zip(*rows, strict=True))) for name, rows in figures.items()}
    for name, (per_cpu, per_wall) in medians.items():
        print(f"{name:>40}  {per_cpu:10.1f} {per_wall:8.1f}")
    speed, name = min((per_cpu, name) for name, (per_cpu, _) in medians.items() if "--merge" in name)
    verdict = "pass" if speed >= TARGET else "FAIL"
    print(f"{verdict}: the slowest, {name}: {speed:.0f} million tokens per CPU-second (target {TARGET}); equal bytes")
    sys.exit(1 if args.check and verdict == "FAIL" else 0)


if __name__ == "__main__":
    main()
