r"""hellaswag.py owns HellaSwag: which of four endings does the model find likeliest? Items, texts, scores.

    python hellaswag.py --checkpoint experiments/runs/<run>                              # newest checkpoint, all items
    python hellaswag.py --checkpoint experiments/runs/<run>/ckpt/step_000500 --data hellaswag_val.jsonl --show 5
    python hellaswag.py --checkpoint <folder> --data synthetic:400 --out <folder>        # no network; write the records
    torchrun --standalone --nproc_per_node=8 hellaswag.py --checkpoint <folder>

Reads a checkpoint and the 10,042 validation items (--data; otherwise downloaded once and checked). With --out it writes
hellaswag_metrics.jsonl, hellaswag_items.jsonl and step_metrics.json, as a training run does. An item:

    {"ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
     "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": 3,
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."],
     "source_id": "activitynet~v_-JhWjGDPHMY"}

The model scores each ending after the context, in one of two texts:

    plain    ctx | " " + ending, encoded separately: build-nanogpt's rule
    lm_eval  activity_label + ": " + ctx_a + " " + ctx_b.capitalize(), without "[title]", bracketed text and double
             spaces: lm-evaluation-harness' rule (its task hellaswag 1.0), split into tokens as in its loglikelihood

Four metrics; chance is 0.25 for each. OpenAI's GPT-2 124M on all items, without BOS:

    accuracy             lm_eval, largest sum of log-probs                 0.2892  the harness' acc
    accuracy_norm_bytes  lm_eval, largest sum / length of the ending       0.3114  the harness' acc_norm
    accuracy_plain       plain, largest sum                                0.2859  build-nanogpt's acc
    accuracy_norm        plain, largest mean over the ending's tokens      0.2955  build-nanogpt's acc_norm

(All four are quoted from the head of build-nanogpt's hellaswag.py.) Despite the metric's name, the harness (0.4.13)
divides by the length in characters, not in UTF-8 bytes, and so do we: 181 items are not ASCII. If n endings share the
maximum and the right one is among them, the item counts 1/n (the harness takes the first); ties_<metric> counts such
items. Every document that our models read in training began with BOS, so each context does, too, unless --bos off.

>>> items = hellaswag.load("hellaswag_val.jsonl")
>>> hellaswag.evaluate(model, items)["metrics"]["accuracy_norm"]
"""

import contextlib
import hashlib
import json
import math
import re
import sys
import time

from lab import benchmarks, processes, sources, synthetic

SCORER = "hellaswag-1"  # a change that changes a score must change this name
URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
FIELDS = ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label")
N_SYNTHETIC = 400
TEXTS = ("plain", "lm_eval")
RULES = {  # metric: (text, what the sum of log-probs is divided by)
    "accuracy": ("lm_eval", None),
    "accuracy_norm": ("plain", "tokens"),
    "accuracy_norm_bytes": ("lm_eval", "chars"),
    "accuracy_plain": ("plain", None),
}
MARGINS = {"margin": "accuracy_norm", "margin_norm_bytes": "accuracy_norm_bytes"}

# what lab/benchmarks.py, the trainer and the reports read
NAME, TITLE, OFFICIAL, CHANCE = "hellaswag", "HellaSwag", "the official validation set", 0.25
METRICS = tuple((f"hellaswag_{name}", f"HellaSwag {name}", 1, ".4f") for name in RULES)
SHOWN = ("accuracy", "accuracy_norm", "accuracy_norm_bytes")
ITEM_METRICS = ("accuracy", "accuracy_norm", "accuracy_norm_bytes")
CLUSTER, CATEGORY = "cluster", None
DATA_HELP = "jsonl[.gz] file, or synthetic[:n] ('' = the official 10,042 items, downloaded once)"
OPTIONS = {"text": dict(choices=("both", *TEXTS), default="both", help="which texts to score (default both)")}

# ----------------------------------------------------------------------------------------------------------------------
# items


def load(source=None, max_examples: int = 0) -> list[dict]:
    """Items of a jsonl[.gz] file, of "synthetic" or "synthetic:<n>", or ("" or None) the official validation set.

    Each item is its line with `id` and `cluster` (the video or article it is from) added. max_examples: that many,
    spread evenly over the file, because its first third is of one source (0 = all). ValueError or FileNotFoundError, in
    one sentence, for anything wrong.
    """
    source = str(source or "")
    n = sources.synthetic_size(source, N_SYNTHETIC)
    if n:
        rows = synthetic.hellaswag_items(n)
    else:
        source = source or benchmarks.download(URL, SHA256, TITLE)
        rows = [row for _, row in sources.read_records(source)]
    return benchmarks.spread_evenly(check(rows, source), max_examples)


def check(rows: list, source) -> list[dict]:
    """The rows as items: with `id`, `cluster` and an integer label. ValueError names the first that is wrong."""
    items, number_of = [], {}
    for number, row in enumerate(rows, 1):
        if fault := fault_of(row):
            raise ValueError(f"{source}, item {number} {fault}")
        # `ind` alone is not unique: it starts again with the second source
        parts = [str(row[key]) for key in ("source_id", "ind") if row.get(key) is not None]
        name = "#".join(parts) or str(number)
        if name in number_of:
            raise ValueError(f"{source}, items {number_of[name]} and {number} have the same id {name}: remove one.")
        number_of[name] = number
        cluster = str(row.get("source_id") or name)
        items.append({**row, "label": int(row["label"]), "id": name, "cluster": cluster})
    if not items:
        raise ValueError(f"{source} has no items: name another --data.")
    return items


def fault_of(row) -> str | None:
    """What keeps a row from being an item, as the rest of a sentence that begins with its place; None for an item."""
    fix = "correct or remove it."
    if isinstance(row, sources.BadRecord):
        return f"{row.why}: {fix}"
    if not isinstance(row, dict):
        return f"is not a JSON object: {fix}"
    if missing := [name for name in FIELDS if row.get(name) is None]:
        return f"has no {', '.join(missing)}: name a file with HellaSwag's columns."
    texts = [row[name] for name in ("activity_label", "ctx_a", "ctx_b", "ctx")]
    if not all(isinstance(text, str) for text in texts):
        return f"has an activity_label, ctx_a, ctx_b or ctx that is not text: {fix}"
    if not row["ctx"].strip() or not (row["ctx_a"] + row["ctx_b"]).strip():
        return f"has an empty context: {fix}"
    endings = row["endings"]
    if not isinstance(endings, list) or [type(ending) for ending in endings] != [str] * 4:
        return f"does not have 4 endings: {fix}"
    for i, ending in enumerate(endings):
        if not clean(ending).strip():
            return f"has an empty ending ({i}): {fix}"
    if sources.has_lone_surrogate("".join(texts + endings)):
        return f"has half a character (a lone surrogate), which no tokenizer reads: {fix}"
    # the hub's copy has the label as text, and none in its test split
    if str(row["label"]) not in ("0", "1", "2", "3"):
        return f"has label {row['label']!r}, but a label is 0, 1, 2 or 3: {fix}"
    return None


# ----------------------------------------------------------------------------------------------------------------------
# texts and tokens


def clean(text: str) -> str:
    """lm-evaluation-harness' clean-up: what is left of WikiHow's markup goes."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def render(item: dict, text: str) -> tuple[str, list[str], list[str]]:
    """(context, continuation for each ending, the endings whose lengths count) in one of TEXTS. The model reads the
    context and scores a continuation."""
    if text == "plain":
        return item["ctx"], [" " + ending for ending in item["endings"]], item["endings"]
    query = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in item["endings"]]
    context = query.rstrip()
    # the harness moves the context's last spaces to the ending, where GPT-2's tokens have them
    spaces = query[len(context) :]
    return context, [f"{spaces} {ending}" for ending in endings], endings


def questions(item: dict, texts=TEXTS) -> list[tuple[str, list[str]]]:
    """(context, [continuation of each ending]) in each of the texts.

    In lm_eval the harness encodes context and continuation together and gives the ending the tokens after as many as
    the context alone has (_encode_pair). GPT-2 never merges across "non-space, space" (nor at the four control
    characters that only Python calls spaces), so both can be encoded apart: the same ids, 4x faster."""
    return [render(item, text)[:2] for text in texts]


def check_length(items: list[dict], block_size: int) -> None:
    """ValueError when a model of this block_size cannot score an ending: a trainer asks before its first step."""
    benchmarks.check_length(items, questions, block_size)


# ----------------------------------------------------------------------------------------------------------------------
# scores


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, text: str = "both",
             autocast=contextlib.nullcontext, **options) -> dict | None:
    """{"metrics": {...}, "items": [record of each item, in the order of items]}, the same on every rank and for any
    number of ranks; None when asked to stop.

    items: from load(). text: "both", or one of TEXTS for half the cost; the other text's metrics are then None.
    model, procs, autocast and the options batch_size, stop and progress: see benchmarks.score, errors included."""
    begun = time.perf_counter()
    if text not in ("both", *TEXTS):
        raise ValueError(f"text is {text!r}: use both, {' or '.join(TEXTS)}.")
    if not items or "id" not in items[0]:
        items = check(items, "the list of items")
    texts = TEXTS if text == "both" else (text,)
    scored = benchmarks.score(NAME, model, items, lambda item: questions(item, texts), procs, bos=bos,
                              autocast=autocast, **options)
    if scored is None:
        return None
    marked = [mark(item, answer, texts) for item, answer in zip(items, scored, strict=True)]
    records = [record for record, _, _ in marked]
    metrics = {"n": len(items)}
    for name in RULES:
        credits = [record["credit"][name] for record in records if name in record["credit"]]
        metrics[name] = benchmarks.mean(credits)
        metrics[f"{name}_stderr"] = benchmarks.standard_error([credits])
        metrics[f"ties_{name}"] = None
        if credits:
            metrics[f"ties_{name}"] = sum(tied[name] > 1 for _, tied, _ in marked)
    for name, rule in MARGINS.items():
        metrics[name] = benchmarks.mean([margin[rule] for _, _, margin in marked if rule in margin])
    content = json.dumps(sorted([item["id"], *(item[name] for name in FIELDS)] for item in items))
    metrics |= {
        "truncated": sum(record["truncated"] for record in records),
        "bos": bos,
        "text": text,
        "scorer": f"{SCORER} bos={int(bos)} text={text}",
        "dtype": benchmarks.computing_dtype(autocast),
        "items_sha256": hashlib.sha256(content.encode()).hexdigest()[:16],
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return {"metrics": metrics, "items": records}


def mark(item: dict, answer: benchmarks.Scored, texts) -> tuple[dict, dict, dict]:
    """An item's record; and per metric how many endings share the maximum, and the right ending's lead over the best
    wrong one."""
    scores = {}
    for text, sums, lengths in zip(texts, answer.sums, answer.lengths, strict=True):
        scores[f"{text}_sum"] = sums
        scores[f"{text}_tokens"] = lengths
        scores[f"{text}_chars"] = [len(ending) for ending in render(item, text)[2]]
    predictions, credit, tied, margin = {}, {}, {}, {}
    for name, (text, per) in RULES.items():
        if text not in texts:
            continue
        values = scores[f"{text}_sum"]
        if per:
            values = [value / length for value, length in zip(values, scores[f"{text}_{per}"], strict=True)]
        best, right = max(values), values[item["label"]]
        wrong = [value for i, value in enumerate(values) if i != item["label"]]
        tied[name] = values.count(best)
        margin[name] = right - max(wrong)
        predictions[name] = values.index(best)
        credit[name] = 1 / tied[name] if right == best else 0.0
    rounded = {key: [round(value, 6) for value in row] for key, row in scores.items()}
    record = {"id": item["id"], "cluster": item["cluster"], "label": item["label"], "scores": rounded,
              "predictions": predictions, "credit": credit, "truncated": answer.truncated}
    return record, tied, margin


def write_records(folder, step: int, result: dict, timestamp: str) -> None:
    """Put evaluate()'s result into a run's folder, see benchmarks.write_records."""
    benchmarks.write_records(NAME, METRICS, folder, step, result, timestamp)


# ----------------------------------------------------------------------------------------------------------------------
# command line


def table(metrics: dict) -> str:
    """The four metrics, a line each."""
    lines = []
    for name, (text, per) in RULES.items():
        if metrics[name] is not None:
            error = metrics[f"{name}_stderr"] or math.nan
            rule = " / ".join(filter(None, [f"{text} text, sum", per]))
            lines.append(f"{name:<20} {metrics[name]:.4f} +- {error:.4f}   {rule:<29}"
                         f"ties {metrics[f'ties_{name}']}")
    return "\n".join(lines)


def show(items: list[dict], records: list[dict]) -> str:
    """Items with the scores of their endings: per token in the plain text, or per character in the other."""
    lines = []
    for item, record in zip(items, records, strict=True):
        name = "accuracy_norm" if "accuracy_norm" in record["credit"] else "accuracy_norm_bytes"
        text, per = RULES[name]
        context, _, endings = render(item, text)
        sums, lengths = record["scores"][f"{text}_sum"], record["scores"][f"{text}_{per}"]
        lines.append(f"item {record['id']} ({name} {record['credit'][name]:g})\n  {context}")
        chosen = record["predictions"][name]
        marks = {item["label"]: "right"}
        marks[chosen] = f"{marks.get(chosen, '')} chosen".strip()
        for i, ending in enumerate(endings):
            lines.append(f"  {sums[i] / lengths[i]:9.4f}  {marks.get(i, ''):<13} {ending}")
        lines.append("")
    return "\n".join(lines)


def main(argv=None) -> int:
    return benchmarks.main(sys.modules[__name__], argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "hellaswag.py", "stopped, nothing was written.")
