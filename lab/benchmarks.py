"""benchmarks.py owns what benchmarks do alike: rows to items, scores over ranks, records, the command line.

A likelihood benchmark is one file of its own rules at the top level, such as hellaswag.py, and one word in
train_gpt.BENCHMARKS. The trainer's flags and log line, config.json, the records and the rows of compare_runs.py follow
from its names:

    NAME          of flags (--<NAME>_every, --<NAME>_data) and files (<NAME>_metrics.jsonl, <NAME>_items.jsonl)
    TITLE         what people call it
    N_OFFICIAL    how many items the official data has; a score on others says so in its title (not defined: unknown)
    METRICS       (key, label, better, format) for each row of a report. key: evaluate()'s, with or without `<NAME>_`
                  before it. better: 1 higher, -1 lower, 0 neither
    SHOWN         evaluate()'s keys in the trainer's log line
    ITEM_METRICS  keys of a record's "credit" that a report compares item by item, without `eval_`
    CLUSTER       field of a record; items that share its value are not independent (None: all are)
    CATEGORY      field of a record; metrics are averaged within each of its values first (None: over all items)
    DATA_HELP     what --data accepts
    CHANCE        what guessing scores; without it no part of mean_centered_accuracy (None: by_task says it for each)
    TESTS         {key: the key of METRICS that is tested for it} (not defined: one test for the benchmark)
    TASKS         names among which --tasks (--<NAME>_tasks) chooses, which load() then takes (not defined: no choice)

    load(source, max_examples[, tasks])  items, dicts with "id". source: a file, "synthetic[:n]" (made on the spot) or
                                      "" (the official data). ValueError or OSError in one sentence
    check_length(items, block_size)   ValueError when a model of this block_size cannot score the items
    questions(item)                   what score() takes as render: --skip_long asks it
    evaluate(model, items, procs, *, bos, autocast, **options)
                                      {"metrics": {...}, "items": [record, ...]}, or None when stopped. options: score's
                                      (batch_size, stop, progress, work, kept), to hand on. metrics has n,
                                      truncated, scorer, dtype, items_sha256 and seconds; a record has id and credit
    write_records(folder, step, result, timestamp)

For main(), its command line, the file also defines OFFICIAL (the official data in a few words), OPTIONS (flags of its
own: {name: arguments of add_argument}), table(metrics) and show(items, records); both return text.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import logging
import math
import os
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lab import disk, exams, flags, inference, processes, runs, snapshots, sources
from lab.tokenizer import N_GPT2_TOKENS, advice_for, bos_id, get_tokenizer, use_of
from model import GPT

# ----------------------------------------------------------------------------------------------------------------------
# items


def numbered(rows, source) -> list[tuple[sources.Place, dict]]:
    """(place, row) pairs, as sources.read_records gives them, of rows that are in no file."""
    return [(sources.Place(source, "item", number), row) for number, row in enumerate(rows, 1)]


def make_items(rows, source, fault_of, make) -> list[dict]:
    """make(place, row) of each (place, row). ValueError, which quotes no row, for the first row that has a fault, for
    an id that came before, and when there are no rows. fault_of(row): the benchmark's own, which asks ours below."""
    items, place_of = [], {}
    for place, row in rows:
        if fault := fault_of(row):
            raise ValueError(f"{place} {fault}: correct or remove it, or name another --data.")
        item = make(place, row)
        name = item["id"]
        if name in place_of:
            raise ValueError(f"{place} is the same item as {place_of[name]} (id {name}): remove one.")
        place_of[name] = place
        items.append(item)
    if not items:
        raise ValueError(f"{source} has no items: name another --data.")
    return items


def fault_of(row, texts, may_be_empty=()) -> str | None:
    """What keeps a row from having these columns of text, to follow its place in a sentence; None when nothing does."""
    if isinstance(row, sources.BadRecord):
        return row.why
    if not isinstance(row, dict):
        return "is not a JSON object"
    for name in (*texts, *may_be_empty):
        text = row.get(name)
        if not isinstance(text, str) or (name in texts and not text.strip()):
            return f"has no text under {name!r}"
        if sources.has_lone_surrogate(text):
            return f"has half a character (a lone surrogate) under {name!r}"
    return None


def spread_evenly(items: list, n: int) -> list:
    """n of the items at equal distances; all of them for n = 0 or if there are no more."""
    if n < 0:
        raise ValueError(f"max_examples is {n}: give 0 for all items, or how many.")
    if n == 0 or n >= len(items):
        return items
    return [items[i * len(items) // n] for i in range(n)]


def encode(rendered: list[list[tuple]], bos: bool) -> list[list[tuple]]:
    """The questions of every item, (context, [ending, ...]) as text, in GPT-2's ids. bos: each context begins with
    <|endoftext|>, as an empty one does in any case."""
    queue = [question for questions in rendered for question in questions]
    texts = [text for context, endings in queue for text in (context, *endings)]
    ids, lengths = get_tokenizer().encode_batch(texts)
    pieces = (piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1]))
    start = [bos_id()] if bos else []
    encoded = []
    for questions in rendered:
        encoded.append([])
        for _, endings in questions:
            context = start + next(pieces) or [bos_id()]
            encoded[-1].append((context, [next(pieces) for _ in endings]))
    return encoded


def too_long(items: list[dict], encoded: list[list[tuple]], block_size: int) -> dict[str, int]:
    """{id: tokens of its longest ending} of the items that a model of this block_size cannot score."""
    tokens_of = {}
    for item, questions in zip(items, encoded, strict=True):
        tokens = max(len(ending) for _, endings in questions for ending in endings)
        if tokens > block_size:
            tokens_of[item["id"]] = tokens
    return tokens_of


def refuse_long(tokens_of: dict[str, int], n: int, block_size: int) -> None:
    """ValueError when too_long() found some of n items."""
    if tokens_of:
        name, longest = max(tokens_of.items(), key=lambda entry: entry[1])
        raise processes.SharedError(
            f"{len(tokens_of)} of {n} items have an ending longer than the model's block_size of "
            f"{block_size} (item {name}: {longest} tokens): take a model with a block_size of at least "
            f"{longest}, or leave those items out with --skip_long.")


def check_length(items: list[dict], render, block_size: int) -> None:
    """ValueError for endings that a model of this block_size cannot score. render: as in score()."""
    encoded = encode([render(item) for item in items], bos=True)
    refuse_long(too_long(items, encoded, block_size), len(items), block_size)


def skip_long(items: list[dict], render, block_size: int) -> tuple[list[dict], list[str]]:
    """(the items that a model of this block_size can score, the ids of the others). ValueError when none is left."""
    skipped = too_long(items, encode([render(item) for item in items], bos=True), block_size)
    kept = [item for item in items if item["id"] not in skipped]
    if not kept:
        refuse_long(skipped, len(items), block_size)
    return kept, list(skipped)


def title_of(benchmark, items: list[dict], source) -> str:
    """What scores on these items are called, wherever they are shown: TITLE alone for all of the official items.

    source: what load() was given. Others: "HellaSwag (synthetic, 400 items)", "HellaSwag (200 of 10,042 items)"."""
    n, official = len(items), getattr(benchmark, "N_OFFICIAL", 0)
    if str(source or "").partition(":")[0] == "synthetic":
        return f"{benchmark.TITLE} (synthetic, {n:,} items)"
    if n == official:
        return benchmark.TITLE
    if n < official:
        return f"{benchmark.TITLE} ({n:,} of {official:,} items)"
    return f"{benchmark.TITLE} ({n:,} items)"


@contextlib.contextmanager
def quiet_hub():
    """Inside, the libraries of the Hugging Face hub do not log their retries before our own sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def name_items(benchmark, items: list[dict], source, skipped: list[str] | None) -> dict:
    """What a record says about its items. skipped: the ids that --skip_long left out, None without the flag."""
    about = {"title": title_of(benchmark, items, source)}
    if skipped is not None:
        about |= {"skipped": len(skipped), "skipped_ids": skipped}
    return about


def describe(benchmark, items: list[dict], about: dict) -> dict:
    """The benchmark in a run's config.json: its items, and all that a report needs to know about its metrics. about:
    name_items()'s."""
    sha256 = hashlib.sha256(json.dumps(items).encode()).hexdigest()
    optional = {name.lower(): getattr(benchmark, name) for name in ("TESTS", "CHANCE") if hasattr(benchmark, name)}
    about = {"items": len(items), "sha256": sha256, **about, **optional}
    about["metrics"] = [list(metric) for metric in benchmark.METRICS]
    about["item_metrics"] = list(benchmark.ITEM_METRICS)
    return about | {"cluster": benchmark.CLUSTER, "category": benchmark.CATEGORY}


def download(url: str, sha256: str, title: str) -> Path:
    """The file at `url`, kept in $XDG_CACHE_HOME/moonshotgpt (~/.cache/moonshotgpt). ValueError when it cannot be
    fetched or has another checksum."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "moonshotgpt"
    path = folder / url.rpartition("/")[2]
    instead = f"pass --data with a local copy of {path.name}, or --data synthetic."
    try:
        if path.exists() and disk.sha256_file(path) == sha256:
            return path
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{url} gave {len(content)} bytes with another checksum than the official file: {instead}")
        folder.mkdir(parents=True, exist_ok=True)
        private = path.with_name(f"{path.name}.{os.getpid()}")  # another run may download at the same time
        disk.write_whole(private, content)
        os.replace(private, path)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise ValueError(f"{title} cannot be fetched from {url} into {folder} ({error}): {instead}") from error
    return path


# ----------------------------------------------------------------------------------------------------------------------
# scores


class Scored(NamedTuple):
    """The scores of one item's questions. A question is a context with its endings."""

    sums: list[list[float]]  # [question][ending] log p, summed over the ending's tokens, nats
    lengths: list[list[int]]  # [question][ending] tokens
    truncated: bool  # the model saw only the end of a context


NOTHING_DONE = exams.Work()


def score(name, model, items, render, procs=None, *, bos=True, batch_size=None,
          autocast=contextlib.nullcontext, stop=None, progress=False,
          work=NOTHING_DONE, kept=None, **options) -> list[Scored] | None:
    """The scores of each item, in the order of items, on every rank; each item is scored by one rank. None when any
    rank's stop.asked is true, which is looked at between forward passes.

    name: of the progress bar. model: a GPT or its compiled wrapper; it stays in its mode. render(item): its questions
    as text, [(context, [ending, ...]), ...]. batch_size: contexts per forward pass (None: a fixed budget of tokens).
    autocast: makes the context to compute in. work: of exams.unfinished. kept: a dict, in which the next call with the
    same items and settings finds what the host prepares; a CPU, which has less to gain, keeps nothing. options: of
    iter_scores. Draws no random numbers. ValueError: an ending longer than block_size, a vocabulary without GPT-2's,
    scores that are not finite."""
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    check_vocabulary(model, largest=math.inf)
    share, block_size = items[procs.rank :: procs.world_size], model.config.block_size
    if kept is None or procs.device.type == "cpu":
        kept = {}
    else:
        options["kept"] = kept.setdefault("passes", {})
    encoded = kept.get("encoded") or encode([render(item) for item in share], bos)
    kept["encoded"], long = encoded, {}
    for part in procs.gather(too_long(share, encoded, block_size)):
        long |= part
    refuse_long(long, len(items), block_size)

    def score_share(share):
        queue, names = [], []
        for item, questions in zip(share, encoded, strict=True):
            queue += questions
            names += [f"{item['id']}/{i}" for i in range(len(questions))]
        sums = {i: work.done[key]["sums"] for i, key in enumerate(names) if key in work.done}

        def keep(i, values):
            work.save([{"id": names[i], "sums": values}])
            bar.update(i not in sums)
            sums[i] = values

        with progress_bar(len(queue), name, progress and procs.is_main, len(sums)) as bar:
            sum_log_probs(model, queue, batch_size, autocast, keep, known=sums, stop=stop, **options)
        if len(sums) < len(queue):
            return None
        scored, rest = [], iter(sums[i] for i in range(len(queue)))
        for item, questions in zip(share, encoded, strict=True):
            item_sums = [next(rest) for _ in questions]
            refuse_broken(sum(item_sums, []), f"item {item['id']}")
            lengths = [[len(ending) for ending in endings] for _, endings in questions]
            truncated = inference.n_truncated(questions, block_size) > 0
            scored.append(Scored(item_sums, lengths, truncated))
        return scored

    return processes.spread(procs, items, score_share)


def refuse_broken(scores: list[float], where: str) -> None:
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"the scores of {where} are not finite, so the weights are broken: "
                         "evaluate an earlier checkpoint.")


def sum_log_probs(model, queue, batch_size, autocast, keep, **options) -> None:
    """keep(index, summed log-probs of its endings) for each (context, endings) in queue; options: of iter_scores.

    fsum is exact for fp32 values, so equal log-probs give equal sums, and equal means at any length: ties stay ties."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast():
            for i, endings in inference.iter_scores(model, queue, batch_size, **options):
                keep(i, [math.fsum(tokens.tolist()) for tokens in endings])
    finally:
        model.train(was_training)


def progress_bar(total: int, name: str, visible: bool, done: int = 0) -> tqdm:
    """A bar that is drawn on terminals only, which is tqdm's meaning of disable=None."""
    hidden = None if visible else True
    return tqdm(total=total, initial=done, desc=name, leave=False, disable=hidden)


def mean(values: list[float]) -> float | None:
    if not values:
        return None
    return math.fsum(values) / len(values)


def standard_error(groups: list[list[float]]) -> float | None:
    """Of the mean of the groups' means, as if items were independent (compare_runs.py resamples clusters instead).
    None when a group has fewer than two values."""
    variances = []
    for values in groups:
        n, center = len(values), mean(values)
        if n < 2:
            return None
        variances.append(math.fsum((value - center) ** 2 for value in values) / (n - 1) / n)
    return math.sqrt(math.fsum(variances)) / len(groups)


def computing_dtype(autocast) -> str:
    """The dtype of the products under `autocast`; softmax is fp32 and sums are fp64 in any case."""
    with autocast():
        for kind in ("cuda", "cpu", "mps"):
            if torch.is_autocast_enabled(kind):
                return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "float32"


def encode_prompt(text: str, bos: bool) -> list[int]:
    start = [bos_id()] if bos else []
    return start + get_tokenizer().encode(text)


def make_batches(prompts: list[list[int]], rooms: list[int], batch_size: int) -> list[list[int]]:
    """Indices of the prompts with room for new tokens, in batches of equal room and similar length, longest first.
    Batches, and with them rounding, depend neither on ranks nor on what an interrupted exam has done."""
    order = [i for i in range(len(prompts)) if rooms[i] > 0]
    order.sort(key=lambda i: (rooms[i], -len(prompts[i]), i))
    batches = []
    for i in order:
        if not batches or len(batches[-1]) == batch_size or rooms[batches[-1][0]] != rooms[i]:
            batches.append([])
        batches[-1].append(i)
    return batches


def write_answers(procs, batches: list[list[int]], n: int, answer, name: str, progress: bool,
                  stop=None, known=frozenset()) -> list | None:
    """Records 0 to n - 1 on every rank, None for those in no batch. answer(batch): the records of these indices; each
    batch is answered by one rank. None when a rank's stop.asked is true before its last batch. known: indices
    that answer() need not compute, for the bar."""

    def answer_share(share):
        results, n_known = [], sum(len(batch) for batch in share if known.issuperset(batch))
        with progress_bar(sum(map(len, share)), name, progress and procs.is_main, n_known) as bar:
            for batch in share:
                if stop is not None and stop.asked:
                    return None
                with torch.no_grad():
                    results.append(answer(batch))
                if not known.issuperset(batch):
                    bar.update(len(batch))
        return results

    answered = processes.spread(procs, batches, answer_share)
    if answered is None:
        return None
    records = [None] * n
    for batch, results in zip(batches, answered, strict=True):
        for i, record in zip(batch, results, strict=True):
            records[i] = record
    return records


def check_vocabulary(model, largest: int | None = None) -> None:
    """ValueError for a model without the ids of this process's tokenizer, or with more than `largest`: by default the
    tokenizer's, which alone can be decoded."""
    size, own = model.config.vocab_size, get_tokenizer()
    least, words = own.vocab_size, f"the {own.vocab_size} of {own.condition}"
    if own.is_gpt2:
        least, words = N_GPT2_TOKENS, f"GPT-2's {N_GPT2_TOKENS} (or {own.vocab_size} with the multiplication tokens)"
    if not least <= size <= (largest or own.vocab_size):
        raise ValueError(f"the model's vocabulary has {size} ids, but texts are encoded with {words}: "
                         f"{advice_for(size)}.")


def shares(**credits) -> dict:
    """The mean of each name's credits (None without any) and its 95 % interval: Wilson's (1927), which treats items as
    independent."""
    result, z = {}, 1.959964
    for name, values in credits.items():
        n, p = len(values), mean(values)
        result[name], result[f"{name}_interval"] = p, None
        if n:
            middle = p + z * z / (2 * n)
            half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
            low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
            result[f"{name}_interval"] = [max(0.0, low), min(1.0, high)]
    return result


# ----------------------------------------------------------------------------------------------------------------------
# records


def write_records(name, table, folder, step: int, result: dict, timestamp: str, **more) -> None:
    """Write evaluate()'s result into a run's folder, in place of what it has of this step: a line per item in
    <name>_items.jsonl, then one in <name>_metrics.jsonl, so that a step there has all of its items, and last the
    metrics of `table` (METRICS) and `more` in step_metrics.json."""
    folder, metrics = Path(folder), result["metrics"]
    items = [{"step": step, **record} for record in result["items"]]
    runs.replace_step(folder / f"{name}_items.jsonl", step, items)
    line = {"type": name, "step": step, "timestamp": timestamp, **metrics}
    runs.replace_step(folder / f"{name}_metrics.jsonl", step, [line])
    scores = {key: metrics[key.removeprefix(f"{name}_")] for key, *_ in table}
    runs.update_step_metrics(folder, step, **scores, **more)


# ----------------------------------------------------------------------------------------------------------------------
# command line


def make_parser(name: str, title: str, data: str, out: str, long: str, batch: str,
                batch_size=0) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have. data, out, batch: what --data, --out and --batch_size mean;
    long: what becomes of long items without --skip_long."""
    parser = flags.Parser(
        prog=f"{name}.py", description=f"{title} of a checkpoint.", checks_more=True,
        epilog=f"example: python {name}.py --checkpoint experiments/runs/<run> --show 3")
    add = parser.add_argument_group("what").add_argument
    add("--checkpoint", required=True,
        help="a run's folder (its newest checkpoint), one of its ckpt/step_*, or a folder of GPT.save (required)")
    add("--data", default="", help=data)
    add("--max_examples", type=int, default=0, help="items, spread evenly (0 = all)")
    add("--skip_long", action="store_true", help=f"leave out items too long for the model: {long}")
    add("--bos", choices=("on", "off"), default="on", help="begin with <|endoftext|> (default on)")
    add = parser.add_argument_group("output").add_argument
    add("--show", type=int, default=0, help="print this many items with their scores (0 = none)")
    add("--out", default="", help=f"folder for {out} ('' = the run's or, without a run, the checkpoint's)")
    add("--no_store", dest="store", action="store_false", help="only print")
    add("--resume", choices=("on", "off"), default="on",
        help="continue this exam if it was interrupted (default on)")
    add = parser.add_argument_group("machine").add_argument
    add("--dry_run", action="store_true", help="check settings, checkpoint and data, and stop there")
    add("--batch_size", type=int, default=batch_size, help=batch)
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)")
    return parser


def parse_counts(parser, argv, **lowest: int) -> argparse.Namespace:
    """Parsed flags, none below its lowest value. When the script has no more to check, flags.accept() follows."""
    args = parser.parse_args(argv)
    for name, low in {"max_examples": 0, "show": 0, **lowest}.items():
        if getattr(args, name) < low:
            parser.error(f"--{name} {getattr(args, name)}: give {low} or more.")
    if args.out and not args.store:
        parser.error("--out and --no_store: give one of them.")
    return args


def load_checkpoint(path, device, flag="--checkpoint") -> tuple[GPT, Path, int | None, Path | None]:
    """(model, its folder, step or None, its run's folder or None) of what a flag names. Its tokenizer is in use now."""
    folder, step, run = runs.resolve_checkpoint(path, lambda text: print(text, file=sys.stderr), flag)
    use_of(folder)
    return GPT.load(folder, device), folder, step, run


def main(benchmark, argv=None) -> int:
    """The command line of a benchmark's own file: score a checkpoint, print the result, write the records."""
    name = benchmark.NAME
    parser = make_parser(
        name, f"{benchmark.TITLE} scores", benchmark.DATA_HELP,
        out=f"{name}_metrics.jsonl, {name}_items.jsonl and step_metrics.json; the step is the "
        "checkpoint's, or 0 if it has none",
        long="those with an ending beyond its block_size, else refused; a long context loses its beginning",
        batch="contexts per forward pass (0 = a fixed budget of tokens)")
    if hasattr(benchmark, "TASKS"):
        parser.add_argument("--tasks", default="all", help=f"all, or some of {','.join(benchmark.TASKS)} (default all)")
    for option, settings in benchmark.OPTIONS.items():
        parser.add_argument(f"--{option}", **settings)
    args = parse_counts(parser, argv, batch_size=0)
    flags.accept()
    with processes.start_processes(args.device) as procs:
        examine(benchmark, args, procs)
    return 0


def examine(benchmark, args, procs) -> None:
    """Score a checkpoint; rank 0 prints and stores the result."""
    name = benchmark.NAME
    model, folder, step, run = load_checkpoint(args.checkpoint, procs.device)
    chosen = [args.tasks] if hasattr(benchmark, "TASKS") else []
    items = procs.on_main(lambda: benchmark.load(args.data, args.max_examples, *chosen))
    skipped = None
    if args.skip_long:
        items, skipped = skip_long(items, benchmark.questions, model.config.block_size)
    autocast = processes.autocast_for(procs.device, args.dtype)
    options = {option: getattr(args, option) for option in benchmark.OPTIONS}
    options |= {"bos": args.bos == "on", "batch_size": args.batch_size or None}
    step, out = step or 0, out_folder(args, run, folder)
    # all that decides a score; a rank's share, and with it the batches, depends on the number of ranks
    decisive = [options, weights_sha256(folder), items, args.dtype, procs.device.type, procs.world_size,
                snapshots.code_state()["code_sha256"]]
    partial, resume = f"{name}_partial_{step:06d}", args.resume == "on"
    with exams.unfinished(procs, out, partial, decisive, resume, args.dry_run) as work:
        result = benchmark.evaluate(model, items, procs, autocast=autocast, stop=work.stop, work=work,
                                    progress=True, **options)
        if result is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        metrics, source = result["metrics"], args.data or benchmark.OFFICIAL
        metrics |= name_items(benchmark, items, args.data, skipped) | snapshots.of_scores(run, step)
        if args.show:
            print(benchmark.show(items[: args.show], result["items"][: args.show]) + "\n")
        print(f"{metrics['title']} | {source} | {folder}")
        print(f"BOS {args.bos}, {metrics['dtype']}, {metrics['truncated']} truncated, "
              f"{len(skipped or [])} skipped, {metrics['seconds']:.1f} s, "
              f"chance {metrics.get('chance', benchmark.CHANCE):.4f}")
        print(benchmark.table(metrics))
        if out is None:
            return
        better = None
        if not args.out:
            better = exams.better_record(benchmark, out, step, metrics)
        if better:
            print(f"not stored: {out} has scores of step {step} that say more, of {better}; "
                  f"pass --out {out} to replace them, or another --out.")
            return
        benchmark.write_records(out, step, result, runs.now())
        print(f"records of step {step} are in {out}")


def out_folder(args, run: Path | None, folder: Path) -> Path | None:
    """Where an exam's records go: --out, else the run's folder, else the checkpoint's; None with --no_store."""
    if not args.store:
        return None
    return Path(args.out or run or folder)


def weights_sha256(folder: Path) -> str:
    return disk.sha256_file(folder / "model.safetensors")
