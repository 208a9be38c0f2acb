r"""hellaswag.py owns HellaSwag: which of four endings does the model find likeliest? Loading, texts, scores, records.

    python hellaswag.py --checkpoint experiments/runs/<run>                              # newest checkpoint, all items
    python hellaswag.py --checkpoint experiments/runs/<run>/ckpt/step_000500 --data hellaswag_val.jsonl --show 5
    python hellaswag.py --checkpoint <folder> --data synthetic:400 --out <folder>        # no network; write the records
    torchrun --standalone --nproc_per_node=8 hellaswag.py --checkpoint <folder>

Reads a checkpoint and the 10,042 validation items (--data; otherwise downloaded once and checked). With --out writes
hellaswag_metrics.jsonl, hellaswag_items.jsonl and step_metrics.json, as a training run does. An item:

    {"ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
     "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": 3,
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."],
     "source_id": "activitynet~v_-JhWjGDPHMY"}

The model scores each ending after the context, in one of two texts:

    plain    ctx | " " + ending, each encoded by itself: build-nanogpt's rule
    lm_eval  activity_label + ": " + ctx_a + " " + ctx_b.capitalize(), with "[title]", bracketed text and double spaces
             taken out: lm-evaluation-harness' rule (its task hellaswag 1.0), spaces and split as in its loglikelihood

Four metrics; chance is 0.25 for each. OpenAI's GPT-2 124M on all items, without BOS:

    accuracy             lm_eval, largest sum of log-probs                 0.2892  the harness' acc
    accuracy_norm_bytes  lm_eval, largest sum / length of the ending       0.3114  the harness' acc_norm
    accuracy_plain       plain, largest sum                                0.2859  build-nanogpt's acc
    accuracy_norm        plain, largest mean over the ending's tokens      0.2955  build-nanogpt's acc_norm

(All four are quoted from the head of build-nanogpt's hellaswag.py.) The harness (0.4.13) divides by the length in
characters, not in UTF-8 bytes as the metric's name would have it, and so do we: 181 of the items are not ASCII.
Where several endings share the maximum an item counts 1/n, if the right one is among them (the harness takes the
first), and ties_<metric> counts such items. Every document that our models saw began with BOS, so each context does,
too, unless --bos off.

>>> items = hellaswag.load("hellaswag_val.jsonl")
>>> hellaswag.evaluate(model, items)["metrics"]["accuracy_norm"]
"""

import argparse
import contextlib
import gzip
import hashlib
import http.client
import json
import math
import os
import re
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lab import disk, inference, processes, runs, shards, synthetic
from lab.inference import n_truncated
from model import GPT

SCORER = "hellaswag-1"  # a change that changes a score must change this name
URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
FIELDS = ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label")
N_SYNTHETIC = 400
TEXTS = ("plain", "lm_eval")
# metric: (text, what the sum of log-probs is divided by)
METRICS = {"accuracy": ("lm_eval", None), "accuracy_norm": ("plain", "tokens"),
           "accuracy_norm_bytes": ("lm_eval", "chars"), "accuracy_plain": ("plain", None)}

# ----------------------------------------------------------------------------------------------------------------------
# items


def load(data=None, max_examples: int = 0) -> list[dict]:
    """Items of a jsonl[.gz] file, of "synthetic" or "synthetic:<n>", or ("" or None) the official validation set.

    The official file is kept in $XDG_CACHE_HOME/moonshotgpt (~/.cache/moonshotgpt). Each item is its line with `id` and
    `cluster` (the video or article it is from) added. max_examples: that many, spread evenly over the file, because its
    first third is of one source (0 = all). ValueError or FileNotFoundError, in one sentence, for anything wrong.
    """
    data = str(data or "")
    if max_examples < 0:
        raise ValueError(f"max_examples is {max_examples}: give 0 for all items, or how many.")
    if data == "synthetic" or data.startswith("synthetic:"):
        n = data.partition(":")[2] or str(N_SYNTHETIC)
        if not n.isdigit() or int(n) == 0:
            raise ValueError(f"--data {data}: give a number of items of at least 1, as in synthetic:{N_SYNTHETIC}.")
        items = check(synthetic.hellaswag_items(int(n)), data)
    else:
        path = Path(data) if data else official_file()
        items = check(read_rows(path), path)
    if 0 < max_examples < len(items):
        items = [items[i * len(items) // max_examples] for i in range(max_examples)]
    return items


def official_file() -> Path:
    """The official validation set on this disk, downloaded if need be. ValueError when it cannot be had."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moonshotgpt"
    path = folder / "hellaswag_val.jsonl"
    instead = "pass --data with a local copy of hellaswag_val.jsonl, or --data synthetic."
    try:
        if path.exists() and disk.sha256_file(path) == SHA256:
            return path
        with urllib.request.urlopen(URL, timeout=30) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise ValueError(f"HellaSwag is not in {folder} and {URL} cannot be read ({error}): {instead}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{URL} gave {len(content)} bytes with another checksum than the official file: {instead}")
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # ranks or runs that download at once do not meet
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tmp.write_bytes(content)
        disk.fsync_path(tmp)
        os.replace(tmp, path)
    except OSError as error:
        tmp.unlink(missing_ok=True)
        raise ValueError(f"{folder} cannot be written ({error.strerror}): set XDG_CACHE_HOME, or {instead}") from error
    return path


def read_rows(path: Path) -> list:
    """What the lines of a jsonl[.gz] file hold."""
    fix = "name a jsonl or jsonl.gz file with HellaSwag's items."
    if not path.is_file():
        raise FileNotFoundError(f"--data {path} is not a file: {fix}")
    rows = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                try:
                    rows += [json.loads(line)] if line.strip() else []
                except (json.JSONDecodeError, RecursionError) as error:
                    why = getattr(error, "msg", "nested too deeply")
                    raise ValueError(f"{path}, line {number} is not JSON ({why}): {fix}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {fix}") from error
    return rows


def check(rows: list, source) -> list[dict]:
    """The rows as items: with `id`, `cluster` and an integer label. ValueError names the first that is wrong."""
    items, number_of = [], {}
    for number, row in enumerate(rows, 1):
        where, fix = f"{source}, item {number}", "correct or remove it."
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: {fix}")
        if missing := [name for name in FIELDS if row.get(name) is None]:
            raise ValueError(f"{where} has no {', '.join(missing)}: name a file with HellaSwag's columns.")
        endings, label = row["endings"], row["label"]
        if any(not isinstance(row[name], str) for name in ("activity_label", "ctx_a", "ctx_b", "ctx")):
            raise ValueError(f"{where} has an activity_label, ctx_a, ctx_b or ctx that is not text: {fix}")
        if not row["ctx"].strip() or not (row["ctx_a"] + row["ctx_b"]).strip():
            raise ValueError(f"{where} has an empty context: {fix}")
        if not isinstance(endings, list) or len(endings) != 4 or any(not isinstance(e, str) for e in endings):
            raise ValueError(f"{where} does not have 4 endings: {fix}")
        if empty := [i for i, ending in enumerate(endings) if not clean(ending).strip()]:
            raise ValueError(f"{where} has an empty ending ({empty[0]}): {fix}")
        texts = row["activity_label"], row["ctx_a"], row["ctx_b"], row["ctx"], *endings
        if re.search("[\ud800-\udfff]", "".join(texts)):
            raise ValueError(f"{where} has half a character (a lone surrogate), which no tokenizer reads: {fix}")
        if str(label) not in ("0", "1", "2", "3"):  # the hub's copy has the label as text, and none in its test split
            raise ValueError(f"{where} has label {label!r}, but a label is 0, 1, 2 or 3: {fix}")
        # `ind` alone is not unique: it starts again with the second source
        name = "#".join(str(row[key]) for key in ("source_id", "ind") if row.get(key) is not None) or str(number)
        if name in number_of:
            raise ValueError(f"{source}, items {number_of[name]} and {number} have the same id {name}: remove one.")
        number_of[name] = number
        items.append({**row, "label": int(label), "id": name, "cluster": str(row.get("source_id") or name)})
    if not items:
        raise ValueError(f"{source} has no items: name another --data.")
    return items


# ----------------------------------------------------------------------------------------------------------------------
# texts and tokens


def clean(text: str) -> str:
    """lm-evaluation-harness' clean-up: what is left of WikiHow's markup goes."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def render(item: dict, text: str) -> tuple[str, list[str], list[str]]:
    """(context, what follows it for each ending, the endings whose lengths count) in one of TEXTS."""
    if text == "plain":
        return item["ctx"], [" " + ending for ending in item["endings"]], item["endings"]
    query = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in item["endings"]]
    context = query.rstrip()  # the harness moves the spaces to the ending, where GPT-2's tokens have them
    return context, [f"{query[len(context) :]} {ending}" for ending in endings], endings


def trees(items: list[dict], text: str, bos: bool) -> list[tuple[list[int], list[list[int]]]]:
    """(context ids, [ids of each ending]) per item: what GPT.score_endings takes.

    lm_eval: the harness encodes context and ending together and gives the ending the tokens after as many as the
    context alone has (_encode_pair). No GPT-2 token goes on from a character that is no space to a space (nor from or
    to the four control characters that only Python calls spaces), so each is encoded by itself here, with the same
    result at a quarter of the cost."""
    rendered = [render(item, text)[:2] for item in items]
    ids, lengths = shards.get_tokenizer().encode_batch(
        [piece for context, follows in rendered for piece in (context, *follows)])
    pieces = [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]
    return [([shards.BOS_ID] * bos + pieces[i], pieces[i + 1 : i + 5]) for i in range(0, 5 * len(items), 5)]


def check_length(items: list[dict], block_size: int) -> None:
    """ValueError when a model of this block_size cannot score an ending: what a trainer wants to know before step 1."""
    most = max(len(ending.encode()) for item in items for ending in item["endings"]) + 9  # bytes, at least the tokens
    for text in TEXTS if most > block_size else ():
        refuse_long(items, trees(items, text, True), block_size)


def refuse_long(items: list[dict], queue: list[tuple], block_size: int) -> None:
    long = {item["id"]: n for item, (_, endings) in zip(items, queue, strict=True)
            if (n := max(map(len, endings))) > block_size}
    if long:
        name, longest = max(long.items(), key=lambda pair: pair[1])
        raise ValueError(f"{len(long)} of {len({item['id'] for item in items})} items have an ending longer than the "
                         f"model's block_size of {block_size} (item {name}: {longest} tokens): take a model with a "
                         f"block_size of at least {longest}, or leave those items out.")


# ----------------------------------------------------------------------------------------------------------------------
# scores


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, text: str = "both", batch_size=None,
             autocast=contextlib.nullcontext, stop=None, progress: bool = False) -> dict | None:
    """{"metrics": {...}, "items": [record per item, in the order of items]}, the same on every rank and for any number
    of ranks; None when a rank's stop.asked became true (looked at between forward passes).

    model: a GPT or its compiled wrapper, left in the mode it was in. items: from load(). text: "both", or one of TEXTS
    for half the cost; the other text's metrics are then None. batch_size: contexts per forward pass (None: as many as
    GPT.score_endings finds fit). autocast: a function giving the context to compute in. Draws no random numbers.
    ValueError: an ending longer than the model's block_size, a vocabulary without GPT-2's ids, scores not finite.
    """
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    if text not in ("both", *TEXTS):
        raise ValueError(f"text is {text!r}: use both, plain or lm_eval.")
    if model.config.vocab_size < shards.N_GPT2_TOKENS:
        raise ValueError(f"the model's vocabulary has {model.config.vocab_size} ids, but HellaSwag is encoded with "
                         f"GPT-2's {shards.N_GPT2_TOKENS}: evaluate a model that was trained on those.")
    if not items or "id" not in items[0]:
        items = check(items, "the items")
    chosen = TEXTS if text == "both" else (text,)
    scored = processes.spread(procs, items, lambda share: score_items(
        model, share, chosen, bos, batch_size, autocast, stop, progress and procs.rank == 0))
    if scored is None:
        return None
    metrics = {"n": len(items)}
    for name in METRICS:
        credits = [record["credit"][name] for record, _, _ in scored if name in record["credit"]]
        metrics[name] = math.fsum(credits) / len(credits) if credits else None
        metrics[f"{name}_stderr"] = standard_error(credits)
        metrics[f"ties_{name}"] = sum(tied[name] > 1 for _, tied, _ in scored) if credits else None
    for name, of in (("margin", "accuracy_norm"), ("margin_norm_bytes", "accuracy_norm_bytes")):
        margins = [margin[of] for _, _, margin in scored if of in margin]
        metrics[name] = math.fsum(margins) / len(margins) if margins else None
    content = json.dumps(sorted([item["id"], *(item[name] for name in FIELDS)] for item in items))
    metrics |= {
        "truncated": sum(record["truncated"] for record, _, _ in scored), "bos": bos, "text": text,
        "scorer": f"{SCORER} bos={int(bos)} text={text}", "dtype": computing_dtype(autocast),
        "items_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
        "seconds": round(time.perf_counter() - begun, 3)}
    return {"metrics": metrics, "items": [record for record, _, _ in scored]}


def standard_error(credits: list[float]) -> float | None:
    """Of the mean, as if items were independent (items of one `cluster` are not: compare_runs.py resamples those)."""
    n = len(credits)
    if n < 2:
        return None
    mean = math.fsum(credits) / n
    return math.sqrt(math.fsum((c - mean) ** 2 for c in credits) / (n - 1) / n)


def computing_dtype(autocast) -> str:
    """The dtype of the products under `autocast`; softmax and sums are fp32 and fp64 in any case."""
    with autocast():
        for kind in ("cuda", "cpu", "mps"):
            if torch.is_autocast_enabled(kind):
                return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "float32"


def score_items(model, items, texts, bos, batch_size, autocast, stop, bar) -> list[tuple[dict, dict, dict]] | None:
    """Per item: its record, and per metric how many endings share the maximum and the right ending's lead over the best
    wrong one. None when asked to stop."""
    queue = [tree for text in texts for tree in trees(items, text, bos)]
    limit = model.config.block_size
    refuse_long(items * len(texts), queue, limit)
    sums = sum_log_probs(model, queue, batch_size, autocast, stop, bar)
    if sums is None:
        return None
    results = []
    for i, item in enumerate(items):
        scores, truncated = {}, False
        for k, text in enumerate(texts):
            at = k * len(items) + i
            scores[f"{text}_sum"] = sums[at]
            scores[f"{text}_tokens"] = [len(ending) for ending in queue[at][1]]
            scores[f"{text}_chars"] = [len(ending) for ending in render(item, text)[2]]
            truncated = truncated or n_truncated([queue[at]], limit) > 0
        if not all(math.isfinite(value) for row in scores.values() for value in row):
            raise ValueError(f"the scores of item {item['id']} are not finite, so the weights are broken: evaluate an "
                             "earlier checkpoint.")
        record = {"id": item["id"], "cluster": item["cluster"], "label": item["label"],
                  "scores": {key: [round(value, 6) for value in row] for key, row in scores.items()},
                  "predictions": {}, "credit": {}, "truncated": truncated}
        tied, margin = {}, {}
        for name, (text, per) in METRICS.items():
            if text not in texts:
                continue
            values = scores[f"{text}_sum"]
            if per:
                values = [value / length for value, length in zip(values, scores[f"{text}_{per}"], strict=True)]
            best, right = max(values), values[item["label"]]
            tied[name] = values.count(best)
            margin[name] = right - max(value for j, value in enumerate(values) if j != item["label"])
            record["predictions"][name] = values.index(best)
            record["credit"][name] = 1 / tied[name] if right == best else 0.0
        results.append((record, tied, margin))
    return results


def sum_log_probs(model, queue, batch_size, autocast, stop, bar) -> list[list[float]] | None:
    """Summed log-prob of each ending of each (context, endings); None when asked to stop.

    Sums of the fp32 values are exact to the last fp64 bit (fsum), so that equal values give equal sums, and equal means
    for endings of any length: ties stay ties."""
    sums, was_training = [None] * len(queue), model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(), tqdm(total=len(queue), unit="context", desc="hellaswag", leave=False,
                                               disable=None if bar else True) as shown:
            for i, endings in inference.iter_scores(model, queue, batch_size):
                sums[i] = [math.fsum(tokens.tolist()) for tokens in endings]
                shown.update()
                if stop is not None and stop.asked:
                    return None
    finally:
        model.train(was_training)
    return sums


# ----------------------------------------------------------------------------------------------------------------------
# records


def write_records(run_folder, step: int, result: dict, timestamp: str) -> None:
    """Put evaluate()'s result into a run's folder: a line in hellaswag_metrics.jsonl, one per item in
    hellaswag_items.jsonl, the scores in step_metrics.json. What the folder has of this step is replaced. The items go
    first: a step that the metrics name has all of its items."""
    folder = Path(run_folder)
    runs.replace_step(folder / "hellaswag_items.jsonl", step, [{"step": step, **record} for record in result["items"]])
    line = {"type": "hellaswag", "step": step, "timestamp": timestamp, **result["metrics"]}
    runs.replace_step(folder / "hellaswag_metrics.jsonl", step, [line])
    runs.update_step_metrics(folder, step, **{f"hellaswag_{name}": result["metrics"][name] for name in METRICS})


def table(metrics: dict) -> str:
    """The four metrics, a line each."""
    rules = {"accuracy": "lm_eval text, sum", "accuracy_norm": "plain text, mean over tokens",
             "accuracy_norm_bytes": "lm_eval text, sum / length", "accuracy_plain": "plain text, sum"}
    return "\n".join(f"{name:<20} {metrics[name]:.4f} +- {metrics[f'{name}_stderr'] or math.nan:.4f}   {rule:<29}"
                     f"ties {metrics[f'ties_{name}']}" for name, rule in rules.items() if metrics[name] is not None)


def show(item: dict, record: dict) -> str:
    """One item with the scores of its endings, per token in the plain text or per character in the other."""
    text, name = ("plain", "accuracy_norm") if "plain_sum" in record["scores"] else ("lm_eval", "accuracy_norm_bytes")
    context, _, endings = render(item, text)
    lengths = record["scores"][f"{text}_{METRICS[name][1]}"]
    lines = [f"item {record['id']} ({name}: {'right' if record['credit'][name] == 1 else 'wrong'})\n  {context}"]
    for i, ending in enumerate(endings):
        marks = ("right" if i == item["label"] else "") + (" chosen" if i == record["predictions"][name] else "")
        lines.append(f"  {record['scores'][f'{text}_sum'][i] / lengths[i]:9.4f}  {marks.strip():<13} {ending}")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# command line


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="hellaswag.py", description="HellaSwag accuracy of a checkpoint.", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python hellaswag.py --checkpoint experiments/runs/<run> --data synthetic:400 --show 5")
    add = parser.add_argument_group("what").add_argument
    add("--checkpoint", required=True,
        help="a run's folder (its newest checkpoint), one of its ckpt/step_*, or a folder of GPT.save (required)")
    add("--data", default="", help="jsonl[.gz] file, or synthetic[:n] ('' = the official set, downloaded once)")
    add("--max_examples", type=int, default=0, help="items, spread evenly over the file (0 = all)")
    add("--bos", choices=("on", "off"), default="on", help="begin each context with <|endoftext|> (default on)")
    add("--text", choices=("both", *TEXTS), default="both", help="which texts to score (default both)")
    add = parser.add_argument_group("output").add_argument
    add("--show", type=int, default=0, help="print this many items with their scores (0 = none)")
    add("--out", default="",
        help="folder for hellaswag_metrics.jsonl, hellaswag_items.jsonl and step_metrics.json, such as the run's; the "
        "step is the checkpoint's, or 0 if it has none ('' = only print)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=int, default=0, help="contexts per forward pass (0 = as many as fit a fixed token budget)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)")
    args = parser.parse_args(argv)
    for name in ("max_examples", "show", "batch_size"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} {getattr(args, name)}: give 0 or more.")
    procs = processes.start_processes(args.device)
    try:
        if args.out:
            procs.on_main(lambda: runs.make_folder(args.out, "--out"))
        folder, step, _ = runs.resolve_checkpoint(args.checkpoint, lambda text: print(text, file=sys.stderr))
        items = procs.on_main(lambda: load(args.data, args.max_examples))
        stop = processes.StopRequest()
        model = GPT.load(folder, procs.device)
        autocast = contextlib.nullcontext
        if args.dtype == "bfloat16":
            autocast = lambda: torch.autocast(procs.device.type, torch.bfloat16)
        result = evaluate(model, items, procs, bos=args.bos == "on", text=args.text, autocast=autocast, stop=stop,
                          batch_size=args.batch_size or None, progress=True)
        if result is None:
            raise KeyboardInterrupt
        if procs.is_main:
            metrics = result["metrics"]
            for item, record in list(zip(items, result["items"], strict=True))[: args.show]:
                print(show(item, record) + "\n")
            print(f"HellaSwag, {metrics['n']:,} items of {args.data or 'the official validation set'} | {folder}\n"
                  f"BOS {args.bos}, {metrics['dtype']}, {metrics['truncated']} truncated, {metrics['seconds']:.1f} s, "
                  f"chance 0.2500\n{table(metrics)}")
            if args.out:
                write_records(args.out, step or 0, result, runs.now())
                print(f"records of step {step or 0} are in {args.out}")
    finally:
        procs.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        repeated = isinstance(error, processes.SharedError) and os.environ.get("RANK", "0") != "0"
        sys.exit(1 if repeated else f"hellaswag.py: {error}")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("hellaswag.py: stopped, nothing was written.", file=sys.stderr)
        sys.exit(130)
