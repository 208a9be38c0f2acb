"""packing.py times prepare_bos_rows.BestFit against a plain scan of the buffer, and the whole prepare; and its memory.

    python experiments/bench/packing.py
    python experiments/bench/packing.py --dataset 'corpus/*.parquet'

1. Choosing the documents that share a row: lists of ids (tokenised beforehand) of log-normal lengths, mean 1,000 and
   sigma 1, T = 1024; million tokens per CPU-second. The scan is what documents 000 and 001 describe; "scan of lengths"
   is a faster one, over a plain list of numbers, printed for comparison. Targets: at least 50 times the scan at buffer
   1,000; at buffer 100,000 at least a third of the speed at 1,000.
2. The packer with tokens, as prepare_bos_rows.py drives it, and the memory that the buffer adds. Target: at most
   1.25 x 2 x buffer_docs x row_tokens bytes (tokens, and what the allocator wastes), 200 bytes per document, and 32 MB
   for the batches.
3. prepare_bos_rows.py against prepare_fineweb.py on the same text, each in a new process. Target: 70 % of its tokens/s.

Variants take turns; figures are medians.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab.flags import Parser, check_first  # noqa: E402

if __name__ == "__main__":
    check_first(__file__)

import numpy as np  # noqa: E402
import torch  # noqa: E402

import prepare_bos_rows  # noqa: E402
from lab import byte_pairs, processes, shards, synthetic  # noqa: E402
from lab.tokenizer import BOS_ID  # noqa: E402

ROW = 1025
REPO = Path(__file__).resolve().parents[2]


def lengths_of(n: int, seed: int = 0) -> list[int]:
    return np.maximum(2, np.random.default_rng(seed).lognormal(np.log(1000) - 0.5, 1.0, n).astype(int)).tolist()


def scan(documents: list[list[int]], buffer_docs: int) -> int:
    """Rows that the published algorithm makes, by looking at every document of the buffer for every choice."""
    buffer, rows, room, at = [], 0, ROW, 0
    while True:
        while len(buffer) < buffer_docs and at < len(documents):
            buffer.append(documents[at])
            at += 1
        if not buffer:
            return rows
        best, longest = -1, 0
        for i, document in enumerate(buffer):
            n = len(document)
            if longest < n <= room:
                best, longest = i, n
        if best >= 0:
            room -= len(buffer.pop(best))
        else:
            buffer.pop(min(range(len(buffer)), key=lambda i: len(buffer[i])))
            room = 0
        if room == 0:
            rows, room = rows + 1, ROW


def scan_lengths(lengths: list[int], buffer_docs: int) -> int:
    """The same algorithm over lengths alone."""
    buffer, rows, room, at = [], 0, ROW, 0
    while True:
        while len(buffer) < buffer_docs and at < len(lengths):
            buffer.append(lengths[at])
            at += 1
        if not buffer:
            return rows
        best, longest = -1, 0
        for i, n in enumerate(buffer):
            if longest < n <= room:
                best, longest = i, n
        if best >= 0:
            room -= buffer.pop(best)
        else:
            buffer.pop(min(range(len(buffer)), key=buffer.__getitem__))
            room = 0
        if room == 0:
            rows, room = rows + 1, ROW


def best_fit(documents: list[list[int]], buffer_docs: int) -> int:
    packer = prepare_bos_rows.BestFit(ROW, buffer_docs, lambda document, room: (document, None))
    return len(packer.add(((len(document), document) for document in documents), last=True)[1])


def best_fit_lengths(lengths: list[int], buffer_docs: int) -> int:
    packer = prepare_bos_rows.BestFit(ROW, buffer_docs, lambda document, room: (document, None))
    return len(packer.add(zip(lengths, lengths, strict=True), last=True)[1])


class Discard:
    """A writer that only counts."""

    shard_tokens = 10**9

    def __init__(self):
        self.state, self.written = {"tokens_read": 0, "tokens_dropped": 0}, 0

    def count_text(self, split, utf8_bytes):
        pass

    def write(self, split, ids, lengths, utf8_bytes):
        self.written += len(ids)

    def tokens(self, split):
        return self.written if split == "train" else 0


def with_tokens(buffer_docs: int, n_documents: int) -> tuple[float, int]:
    """(million tokens per CPU-second, most bytes of memory held after a batch, less what was held after the first) of
    RowTrain.add, in a new process, on batches of about 1 MiB of text as prepare_fineweb.py hands them over."""
    args = argparse.Namespace(out_dir=".", seq_len=ROW - 1, buffer_docs=buffer_docs, batch_docs=256, overflow="crop",
                              shard_rows=0, shard_tokens=10**9, tokenizer_backend="tiktoken", inject=None,
                              refill=1)
    train, writer = prepare_bos_rows.RowTrain(args), Discard()
    ids, seconds, tokens, held = np.full(2**22, 11, np.uint16), 0.0, 0, []
    for first in range(0, n_documents, 250):
        lengths = np.array(lengths_of(250, seed=first + 1))
        batch = ids[: lengths.sum()].copy()
        batch[np.cumsum(lengths) - lengths] = BOS_ID
        start = time.process_time()
        train.add(writer, batch, lengths, lengths)
        seconds += time.process_time() - start
        tokens += len(batch)
        held.append(byte_pairs.resident_bytes())
    return tokens / 1e6 / seconds, max(held) - held[0]


def make_corpus(path: Path) -> None:
    """40 MB of text: log-normal lengths over the words of the synthetic corpus."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = np.array(" ".join(synthetic.documents(0, 0, 2000)).split(" "))
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, max(5, int(draw.lognormal(np.log(600) - 0.5, 1.0))))) for _ in range(15_000)]
    pq.write_table(pa.table({"text": texts}), path)


def prepare(script: str, dataset: list[str], out_dir: Path, flags: list[str]) -> tuple[float, float]:
    """(million tokens per second of the folder's meta.json, per CPU-second of the whole process)."""
    command = [sys.executable, str(REPO / script), "--dataset", *dataset, "--out_dir", str(out_dir), *flags]
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    meta = shards.read_meta(out_dir)
    return meta["throughput_tokens_per_sec"] / 1e6, meta["token_account"]["tokens_read"] / 1e6 / cpu


def main():
    p = Parser(description=__doc__)
    p.add_argument("--dataset", nargs="+", help="text for part 3 (default: 40 MB made up)")
    p.add_argument("--documents", type=int, default=400_000, help="documents of parts 1 and 2 (default: 400_000)")
    p.add_argument("--repeats", type=int, default=5, help="rounds, variants taking turns (default: 5)")
    p.add_argument("--num_proc", type=int, default=1, help="tokenising workers in part 3 (default: 1)")
    p.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    args = p.parse_args()
    state = processes.machine_state(torch.device("cpu"))
    print(f"{state['hardware']['cpu']}, {os.cpu_count()} cores, {platform.system()}, Python "
          f"{platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}")
    failed = []

    def target(name: str, value: float, low: float, unit: str) -> None:
        failed.extend([name] if value < low else [])
        print(f"    {'pass' if value >= low else 'FAIL'}: {name} {value:,.2f}{unit} (target {low:.2f}{unit})")

    print("\n1. which documents share a row, million tokens per CPU-second")
    few, many = lengths_of(10_000), lengths_of(args.documents)
    documents = [[11] * n for n in few]
    buffers = (1_000, 10_000, 100_000)
    cases = {
        "scan": (scan, documents, 1_000), "BestFit": (best_fit, documents, 1_000),
        "scan of lengths": (scan_lengths, few, 1_000), "BestFit of lengths": (best_fit_lengths, few, 1_000),
    } | {f"BestFit of lengths, buffer {n:,}": (best_fit_lengths, many, n) for n in buffers}
    figures, rows = {name: [] for name in cases}, {}
    for _ in range(args.repeats):
        for name, (function, case, buffer_docs) in cases.items():
            start = time.process_time()
            rows[name] = function(case, buffer_docs)
            seconds = time.process_time() - start
            figures[name].append(sum(few if len(case) == len(few) else many) / 1e6 / seconds)
    median = {name: statistics.median(values) for name, values in figures.items()}
    for name, value in median.items():
        print(f"  {name:>34}: {value:8.1f}   ({len(cases[name][1]):,} documents, {rows[name]:,} rows)")
    if len({rows[name] for name in list(cases)[:4]}) > 1:
        sys.exit("the scan and BestFit disagree on the rows: run tests/test_bos_rows.py.")
    target("BestFit / scan at buffer 1,000", median["BestFit"] / median["scan"], 50, " x")
    print(f"    no target: of lengths {median['BestFit of lengths'] / median['scan of lengths']:.2f} x")
    fast, large = (median[f"BestFit of lengths, buffer {n:,}"] for n in (1_000, 100_000))
    target("buffer 100,000 / buffer 1,000", large / fast, 1 / 3, "")

    print("\n2. with tokens: million tokens per CPU-second, and memory that the buffer adds, MB")
    speeds, memory = {n: [] for n in buffers}, {n: [] for n in buffers}
    for _ in range(min(3, args.repeats)):
        for n in buffers:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                speed, added = pool.submit(with_tokens, n, args.documents).result()
            speeds[n].append(speed)
            memory[n].append(added / 1e6)
    for n in buffers:
        bound = (1.25 * 2 * n * ROW + 200 * n + 32e6) / 1e6
        print(f"  {f'buffer {n:,}':>30}: {statistics.median(speeds[n]):8.1f}   {statistics.median(memory[n]):7.1f} MB, "
              f"bound {bound:.1f}")
        target(f"bound - memory at buffer {n:,}", bound - statistics.median(memory[n]), 0, " MB")
    target("buffer 100,000 / buffer 1,000", statistics.median(speeds[100_000]) / statistics.median(speeds[1_000]),
           1 / 3, "")

    print("\n3. whole prepares, million tokens per second (wall, from meta.json) and per CPU-second with start-up")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        dataset = args.dataset
        if dataset is None:
            make_corpus(folder / "corpus.parquet")
            dataset = [str(folder / "corpus.parquet")]
        scripts = {"prepare_fineweb.py": ("prepare_fineweb.py", [])}
        scripts |= {f"prepare_bos_rows.py {o}": ("prepare_bos_rows.py", ["--seq_len", "1024", "--overflow", o])
                    for o in ("crop", "split", "requeue")}
        wall, cpu = {name: [] for name in scripts}, {name: [] for name in scripts}
        for i in range(args.repeats):
            for j, (name, (script, flags)) in enumerate(scripts.items()):
                figure = prepare(script, dataset, folder / f"{i}_{j}", [*flags, "--num_proc", str(args.num_proc)])
                wall[name].append(figure[0])
                cpu[name].append(figure[1])
        for name in scripts:
            print(f"  {name:>30}: {statistics.median(wall[name]):8.2f}   {statistics.median(cpu[name]):8.2f}")
        for name in list(scripts)[1:]:
            ratio = statistics.median(wall[name]) / statistics.median(wall["prepare_fineweb.py"])
            target(f"{name} / prepare_fineweb.py", ratio, 0.7, "")
    sys.exit(1 if args.check and failed else 0)


if __name__ == "__main__":
    main()
