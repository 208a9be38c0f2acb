"""tokenizing.py times text to shards beside the usual fineweb.py pattern, multiprocessing.Pool(n).imap(tiktoken).

    python experiments/bench/tokenizing.py --data corpus.parquet
    python experiments/bench/tokenizing.py --data corpus.parquet --num_proc 2 --rounds 5 --check

Two comparisons on the same text, interleaved, medians over the rounds:
    tokenizer   texts in memory (str for tiktoken; for ours UTF-8 bytes, as Arrow delivers them) -> ids. Vocabularies
                are loaded before; gigatoken's cache of seen pieces is empty at each start. Target 10x per core
    end to end  parquet -> uint16 shards on disk, as two commands with their start-up; target 5x per core
Per core means text bytes per CPU-second of all processes. The ids (tokenizer) and the shard files (end to end) must be
equal, or the run fails. Results are labelled with the file's name: they hold for that text and machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np  # noqa: E402

from lab import disk, flags  # noqa: E402
from lab.tokenizer import BOS_ID, get_tokenizer, gpt2_tokenizer  # noqa: E402

TARGETS = {"tokenizer": 10.0, "end to end": 5.0}


def peer_encode(text: str) -> np.ndarray:
    """One document in a pool worker, as fineweb.py does it: a list of ids, checked and turned into uint16."""
    tokens = [BOS_ID, *get_tokenizer("tiktoken")._tiktoken.encode_ordinary(text)]
    row = np.array(tokens)
    if not ((0 <= row).all() and (row < 2**16).all()):
        raise ValueError("a token does not fit into uint16: this is not the GPT-2 tokenizer.")
    return row.astype(np.uint16)


def read_texts(path: str, field: str) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=[field]).column(0).to_pylist()


def peer_prepare(path: str, field: str, out_dir: str, shard_tokens: int, num_proc: int) -> None:
    """The pattern end to end: Pool.imap over the documents, one shard's array filled and written when full."""
    Path(out_dir).mkdir(parents=True)
    shard, used, index = np.empty(shard_tokens, np.uint16), 0, 0
    with multiprocessing.Pool(num_proc) as pool:
        for row in pool.imap(peer_encode, read_texts(path, field), chunksize=16):
            while used + len(row) >= shard_tokens:
                room = shard_tokens - used
                shard[used:] = row[:room]
                shard.tofile(f"{out_dir}/train_{index:06d}.bin")
                row, used, index = row[room:], 0, index + 1
            shard[used : used + len(row)] = row
            used += len(row)
        pool.close()
        pool.join()
    if used:
        shard[:used].tofile(f"{out_dir}/train_{index:06d}.bin")


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def measured(run) -> tuple[float, float, object]:
    """(wall seconds, CPU seconds, result) of a call."""
    gpt2_tokenizer.cache_clear()  # an empty cache of seen pieces
    for backend in ("tiktoken", "auto"):
        get_tokenizer(backend)
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = run()
    return time.perf_counter() - wall, cpu_seconds() - cpu, result


def pool_ids(texts: list[str]) -> list[np.ndarray]:
    with multiprocessing.Pool(1) as pool:
        rows = list(pool.imap(peer_encode, texts, chunksize=16))
        pool.close()
        pool.join()
    return rows


def loop_ids(texts: list[str]) -> list[np.ndarray]:
    return [peer_encode(text) for text in texts]


def batch_ids(batches: list[list[bytes]], backend: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [get_tokenizer(backend).encode_batch(batch) for batch in batches]


def hardware() -> str:
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        model = names[0] if names else model
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("tiktoken", "numpy", "torch")]
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    parser = flags.Parser(
        description="Text to shards, beside multiprocessing.Pool(n).imap(tiktoken).",
        epilog="example: python experiments/bench/tokenizing.py --data corpus.parquet --rounds 5 --check")
    group = parser.add_argument_group("what is measured")
    group.add_argument("--data", required=True, help="parquet file of documents")
    group.add_argument("--text_field", default="text", help="its column (default: text)")
    group.add_argument("--num_proc", type=int, default=1, help="workers of both sides, end to end (default: 1)")
    group.add_argument("--rounds", type=int, default=3, help="interleaved repetitions (default: 3)")
    group.add_argument("--shard_tokens", type=int, default=5_000_000, help="tokens per shard (default: 5_000_000)")
    group = parser.add_argument_group("outcome")
    group.add_argument("--check", action="store_true", help="exit with 1 when a target is missed (default: off)")
    group.add_argument("--peer_out", help=argparse.SUPPRESS)  # this script calls itself as the peer's command
    args = parser.parse_args()
    flags.check_flags(parser, args, {"a whole number of at least 1": "rounds"})
    if args.peer_out:
        peer_prepare(args.data, args.text_field, args.peer_out, args.shard_tokens, args.num_proc)
        return

    texts = read_texts(args.data, args.text_field)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{Path(args.data).name}: {len(texts):,} documents, {size:.1f} MB of text\n{hardware()}")
    if get_tokenizer().backend != "gigatoken":
        print("gigatoken is not in use here, so both sides run tiktoken: pip install gigatoken to compare.")
    batches = [[text.encode() for text in texts[i : i + 128]] for i in range(0, len(texts), 128)]
    script = Path(__file__).resolve().parents[2] / "prepare_fineweb.py"
    scratch = Path(tempfile.mkdtemp())
    common = [f"--num_proc={args.num_proc}", f"--shard_tokens={args.shard_tokens}", f"--text_field={args.text_field}"]
    ours_command = [sys.executable, str(script), "--dataset", args.data, "--val_shards", "0", *common]
    peer_command = [sys.executable, __file__, "--data", args.data, *common]

    def run_command(command, flag, out):
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([*command, flag, str(out)], check=True, capture_output=True)
        return {path.name: disk.sha256_file(path) for path in sorted(out.glob("train_*.bin"))}

    variants = {
        "tokenizer": {
            "Pool(1).imap(encode_ordinary)": lambda: pool_ids(texts),
            "encode_ordinary in a loop": lambda: loop_ids(texts),
            "ours, backend tiktoken": lambda: batch_ids(batches, "tiktoken"),
            "ours": lambda: batch_ids(batches, "auto"),
        },
        "end to end": {
            f"Pool({args.num_proc}).imap to shards": lambda: run_command(peer_command, "--peer_out", scratch / "peer"),
            "prepare_fineweb.py": lambda: run_command(ours_command, "--out_dir", scratch / "ours"),
        },
    }
    missed = []
    for part, runs in variants.items():
        times = {name: [] for name in runs}
        for number in range(args.rounds):
            results = {}
            for name, run in runs.items():
                wall, cpu, results[name] = measured(run)
                times[name].append((wall, cpu))
            if number == 0:
                check_equal(part, list(results.values()))
        print(f"\n{part:32}{'MB/CPU-s':>10}{'MB/s':>10}{'CPU ratio':>11}{'wall ratio':>12}")
        medians = {name: list(map(statistics.median, zip(*rows, strict=True))) for name, rows in times.items()}
        peer = next(iter(medians.values()))
        for name, (wall, cpu) in medians.items():
            print(f"{name:32}{size / cpu:10.1f}{size / wall:10.1f}{peer[1] / cpu:10.1f}x{peer[0] / wall:11.1f}x")
        ratio = peer[1] / cpu  # the last one is ours
        verdict = "pass" if ratio >= TARGETS[part] else "FAIL"
        missed += [part] * (verdict == "FAIL")
        print(f"{verdict}: {ratio:.1f}x per core, target {TARGETS[part]:.0f}x; outputs equal")
    shutil.rmtree(scratch)
    sys.exit(1 if args.check and missed else 0)


def check_equal(part: str, results: list) -> None:
    """SystemExit unless every variant produced the same ids, or the same shard files."""
    if part == "tokenizer":
        expected = np.concatenate(results[0])
        for rows in results[1:]:
            if isinstance(rows[0], tuple):  # ours: without BOS, which is put in front of each document here
                ids, lengths = (np.concatenate(column) for column in zip(*rows, strict=True))
                rows = [np.insert(ids, np.cumsum(lengths) - lengths, BOS_ID)]
            if not np.array_equal(np.concatenate(rows), expected):
                sys.exit("the ids differ: do not use this backend, and report the text.")
    elif results[0] != results[1] or not results[0]:
        sys.exit("the shard files differ: report this with the data.")


if __name__ == "__main__":
    main()
