"""contamination.py measures what the contamination guard finds, and what it costs.

    EWOK_PASSWORD=... python experiments/bench/contamination.py --data edu_web.parquet books.parquet \\
        --decontaminate gsm8k=gsm8k/test.jsonl hellaswag=hellaswag_val.jsonl ewok=ewok_core_1.0.zip --check

Four figures, with their targets:
    planted     each benchmark item written into a document of the first file, one by one: GSM8K's question, HellaSwag's
                context with its right ending, each of EWoK's four pairs; unchanged and disguised in five ways (upper
                case, no punctuation, punctuation as blanks, other white space, typographic apostrophes). Target: all
                are caught
    fine-tuning GSM8K's test questions that sft.py recognises without a guard, in each of WRAPPERS; target: all. With
                --clean FILE, such as GSM8K's train.jsonl, lines of it that are taken for one; target: none
    false hits  documents of --data that the guard drops, unchanged; they are listed for inspection, by number and by
                the ids of the items. Target: below 0.1 % of the first file
    speed       text per CPU-second of `Guard.hits_batch` alone (20 MB), and CPU time of `prepare_fineweb.prepare` with
                the guard (built beforehand) over that without it; interleaved, medians over the rounds. Target: at
                most 2.2
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import prepare_fineweb  # noqa: E402
from lab import decontaminate, flags, sources  # noqa: E402

DISGUISES = {
    "as it stands": lambda text: text,
    "upper case": str.upper,
    "no punctuation": lambda text: re.sub(r"[^\w\s]|_", "", text),
    "punctuation as blanks": lambda text: re.sub(r"[^\w\s]|_", " ", text),
    "white space": lambda text: re.sub(r"\s+", " \n\t ", text),
    "typographic": lambda text: text.replace("'", "’").replace('"', "“").replace(" - ", " — "),
}
# what people put around a question, or do to it, on the way into a file of conversations
WRAPPERS = {
    "Question:": "Question: {}", "Q: A:": "Q: {}\nA:", "Problem:": "Problem: {}", "Solve:": "Solve: {}",
    "instruction": "Below is an instruction.\n\n### Instruction:\n{} Think step by step.\n\n### Response:",
    "bold": "**Question:** {}\n\n**Answer:**", "html": "<p><b>Q</b> {}</p>", "after a turn": "Hi\nHello!\n{}",
    "in a program": 'def f():\n    """{}"""\n    return 1', "choices": "{}\n(A) 5 (B) 6 (C) 7", "latex": "\\text{{{}}}",
}


def batches(texts: list[bytes]) -> list[list[bytes]]:
    """Lists of about 1 MiB, as the prepare scripts read them."""
    cuts = np.cumsum([len(text) for text in texts]) // sources.BATCH_BYTES
    bounds = [0, *(np.flatnonzero(np.diff(cuts)) + 1).tolist(), len(texts)]
    return [texts[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def scan(guard: decontaminate.Guard, texts: list[bytes]) -> dict[int, list[str]]:
    hits, first = {}, 0
    for batch in batches(texts):
        hits |= {first + number: items for number, items in guard.hits_batch(batch).items()}
        first += len(batch)
    return hits


def planted(guard: decontaminate.Guard, files: dict[str, Path], hosts: list[bytes]) -> int:
    """Prints how many planted items are caught, per benchmark and disguise; returns how many are not."""
    missed = 0
    for name, path in files.items():
        items = dict(decontaminate.READERS[name](path))
        if name == "hellaswag":  # the right ending alone, with and without marks
            labels = [record["label"] for _, record in sources.read_records(path)]
            items = {item: texts[int(label) :: 4] for (item, texts), label in zip(items.items(), labels, strict=True)}
        for disguise, change in DISGUISES.items():
            plants = [(f"{name}/{item}", change(text)) for item, texts in items.items() for text in texts]
            documents = []
            for number, (_, text) in enumerate(plants):
                host = hosts[number % len(hosts)][:2000]
                cut = host.rfind(b" ", 0, 1000) + 1
                documents.append(host[:cut] + text.encode() + b" " + host[cut:])
            hits = scan(guard, documents)
            caught = sum(item in hits.get(number, ()) for number, (item, _) in enumerate(plants))
            print(f"planted  {name:10} {disguise:22} {caught:6,} of {len(plants):6,} texts of {len(items):,} items")
            missed += len(plants) - caught
    return missed


def recognised(path: Path, clean: list[Path]) -> int:
    """Prints how many test questions fine-tuning recognises, and how many lines of clean files it takes for one;
    returns the number of mistakes."""
    questions, mistakes = [record["question"] for _, record in sources.read_records(path)], 0
    changes = {name: wrapper.format for name, wrapper in WRAPPERS.items()} | DISGUISES
    for name, change in changes.items():
        hits = len(decontaminate.test_questions_in([change(question) for question in questions]))
        print(f"fine-tuning  {name:22} {hits:6,} of {len(questions):6,} test questions recognised")
        mistakes += len(questions) - hits
    for path in clean:
        texts = ["\n".join(map(str, record.values())) for _, record in sources.read_records(path)]
        hits = sorted(decontaminate.test_questions_in(texts))
        print(f"fine-tuning  {path.name}: {len(hits)} of {len(texts):,} lines taken for one {hits[:20]}")
        mistakes += len(hits)
    return mistakes


def main() -> None:
    parser = flags.Parser(description="The contamination guard: planted items, false hits, cost.",
                          epilog="example: see the top of this file")
    parser.add_argument("--data", nargs="+", required=True, help="parquet files with a column text")
    decontaminate.add_argument(parser)
    parser.add_argument("--clean", nargs="*", type=Path, default=[],
                        help="jsonl files without a test question, such as GSM8K's train.jsonl (default: none)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions (default: 3)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed (default: off)")
    args = parser.parse_args()
    flags.check_flags(parser, args, {"a whole number of at least 1": "rounds"})
    if not args.decontaminate:
        parser.error("pass --decontaminate: without it there is nothing to measure.")

    started = time.process_time()
    guard = decontaminate.from_argument(args.decontaminate)
    files = decontaminate.find_files(args.decontaminate)
    cpu = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    model = re.search(r"model name\s*: (.*)", cpu)
    print(f"{model[1] if model else platform.processor()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"built in {time.process_time() - started:.1f} CPU-s: " + ", ".join(
        f"{name} {record['items']:,} items, {record['items_too_short']} too short"
        for name, record in guard.benchmarks.items()))
    missed, corpora = [], {}
    for path in args.data:
        corpora[path] = [text.encode() for text in pq.read_table(path, columns=["text"]).column(0).to_pylist()]
    if planted(guard, files, corpora[args.data[0]]):
        missed.append("planted")
    if "gsm8k" in files and recognised(files["gsm8k"], args.clean):
        missed.append("fine-tuning")

    for path, texts in corpora.items():
        hits = scan(guard, texts)
        share = len(hits) / len(texts)
        print(f"hits     {Path(path).name}: {len(hits)} of {len(texts):,} documents ({share:.3%})")
        for number, items in list(hits.items())[:20]:
            print(f"         document {number}: {', '.join(items[:5])}{' ...' * (len(items) > 5)}")
        if path == args.data[0] and share >= 0.001:
            missed.append("false hits")

    path, texts = args.data[0], corpora[args.data[0]]
    size = sum(map(len, texts)) / 1e6
    scratch = Path(tempfile.mkdtemp())
    decontaminate.from_argument = lambda values: guard if values else None  # it is built already
    times = {"scan": [], "plain": [], "guarded": []}
    try:
        for _ in range(args.rounds):
            for name in times:
                started = time.process_time()
                if name == "scan":
                    scan(guard, texts)
                else:
                    argv = ["--dataset", path, "--out_dir", str(scratch / name), "--shard_tokens", "5_000_000"]
                    argv += ["--decontaminate", "built"] if name == "guarded" else []
                    with contextlib.redirect_stdout(None), open(os.devnull, "w") as null, (
                            contextlib.redirect_stderr(null)):
                        prepare_fineweb.main(argv)
                    shutil.rmtree(scratch / name)
                times[name].append(time.process_time() - started)
    finally:
        shutil.rmtree(scratch)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["guarded"], times["plain"], strict=True))
    print(f"speed    {Path(path).name}, {size:.1f} MB, {args.rounds} rounds: guard alone {size / medians['scan']:.0f} "
          f"MB/CPU-s; prepare {size / medians['plain']:.0f}, with the guard {size / medians['guarded']:.0f}: "
          f"{ratio:.2f} times the CPU time")
    missed += ["speed"] * (size / medians["scan"] < 20 or ratio > 2.2)
    print(f"FAIL: {', '.join(missed)}" if missed else "pass")
    sys.exit(1 if args.check and missed else 0)


if __name__ == "__main__":
    main()
