r"""hellaswag.py owns HellaSwag: which of four endings does the model find likeliest?

    python hellaswag.py --checkpoint experiments/runs/<run>                              # newest checkpoint, all items
    python hellaswag.py --checkpoint experiments/runs/<run>/ckpt/step_000500 --data hellaswag_val.jsonl --show 5
    python hellaswag.py --checkpoint <folder> --data synthetic:400 --no_store            # no network; only print
    torchrun --standalone --nproc_per_node=8 hellaswag.py --checkpoint <folder>

Reads a checkpoint and the 10,042 validation items (--data, else downloaded once and checked). Writes what a training
run does, hellaswag_metrics.jsonl, hellaswag_items.jsonl and step_metrics.json, into the run (or --out). The same
command continues an interrupted exam. An item:

    {"ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
     "ctx": "A man is sitting on a roof. he", "label": 3, "source_id": "activitynet~v_-JhWjGDPHMY", ...,
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."]}

Each ending is scored after the context, in two texts:

    plain    ctx | " " + ending, encoded separately: build-nanogpt's rule
    lm_eval  activity_label + ": " + ctx_a + " " + ctx_b.capitalize(), without "[title]", bracketed text and double
             spaces: lm-evaluation-harness' rule (its task hellaswag 1.0), split into tokens as in its loglikelihood

Four metrics; chance is 0.25 for each. The numbers are OpenAI's GPT-2 124M on all items without BOS, quoted from the
head of build-nanogpt's hellaswag.py:

    accuracy             lm_eval, largest sum of log-probs                 0.2892  the harness' acc
    accuracy_norm_bytes  lm_eval, largest sum / length of the ending       0.3114  the harness' acc_norm
    accuracy_plain       plain, largest sum                                0.2859  build-nanogpt's acc
    accuracy_norm        plain, largest mean over the ending's tokens      0.2955  build-nanogpt's acc_norm

Despite the name, the harness (0.4.13) divides by characters, not UTF-8 bytes, and so do we: 181 items are not ASCII.
If n endings share the maximum and the right one is among them, the item counts 1/n (the harness takes the first);
ties_<metric> counts such items. In training every document began with BOS, so contexts do, too, unless --bos off.
"""

import contextlib
import hashlib
import json
import math
import sys
import time

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import benchmarks, processes, sources, synthetic
from lab.tasks import clean

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
HAS_SYNTHETIC = True  # load("synthetic") makes items; False where a benchmark has none
N_OFFICIAL = 10_042
METRICS = tuple((f"hellaswag_{name}", f"HellaSwag {name}", 1, ".4f") for name in RULES)
SHOWN = ("accuracy", "accuracy_norm", "accuracy_norm_bytes")
ITEM_METRICS = ("accuracy", "accuracy_norm", "accuracy_norm_bytes")
CLUSTER, CATEGORY = "cluster", None
DATA_HELP = "jsonl[.gz] file, or synthetic[:n] ('' = the official 10,042 items, downloaded once)"
OPTIONS = {"text": dict(choices=("both", *TEXTS), default="both", help="which texts to score (default both)")}

# ----------------------------------------------------------------------------------------------------------------------
# items


def load(source=None, max_examples: int = 0) -> list[dict]:
    """Items of a jsonl[.gz] file, of "synthetic[:n]", or ("" or None) of the official validation set.

    Each is its row with an `id`, a `cluster` (the video or article it is from) and an integer label. max_examples: that
    many, spread evenly, because the first third is of one source (0 = all). ValueError or FileNotFoundError in one
    sentence."""
    source = str(source or "")
    n = sources.synthetic_size(source, N_SYNTHETIC)
    if n:
        rows = benchmarks.numbered(synthetic.hellaswag_items(n), source)
    else:
        rows = sources.read_benchmark(source or benchmarks.download(URL, SHA256, TITLE))
    items = benchmarks.make_items(rows, source, fault_of, make_item)
    return benchmarks.spread_evenly(items, max_examples)


def make_item(place, row: dict) -> dict:
    # `ind` alone is not unique: it starts again with the second source
    parts = [str(row[key]) for key in ("source_id", "ind") if row.get(key) is not None]
    name = "#".join(parts) or str(place.number)
    cluster = str(row.get("source_id") or name)
    return row | {"label": int(row["label"]), "id": name, "cluster": cluster}


def fault_of(row) -> str | None:
    """What keeps a row from being an item, see benchmarks.fault_of."""
    if fault := benchmarks.fault_of(row, ["ctx"], may_be_empty=["activity_label", "ctx_a", "ctx_b"]):
        return fault
    if not (row["ctx_a"] + row["ctx_b"]).strip():
        return "has no text under 'ctx_a' and 'ctx_b'"
    endings = row.get("endings")
    if not isinstance(endings, list) or [type(ending) for ending in endings] != [str] * 4:
        return "does not have 4 endings"
    for i, ending in enumerate(endings):
        if not clean(ending).strip():
            return f"has an empty ending ({i})"
        if sources.has_lone_surrogate(ending):
            return f"has half a character (a lone surrogate) in ending {i}"
    # the hub's copy has the label as text, and none in its test split
    if str(row.get("label")) not in ("0", "1", "2", "3"):
        return f"has label {row.get('label')!r}, but a label is 0, 1, 2 or 3"
    return None


def render(item: dict, text: str) -> tuple[str, list[str], list[str]]:
    """(context, the scored continuation of each ending, the endings whose lengths count) in one of TEXTS."""
    if text == "plain":
        return item["ctx"], [" " + ending for ending in item["endings"]], item["endings"]
    query = clean(f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in item["endings"]]
    context = query.rstrip()
    spaces = query[len(context) :]  # the harness moves them to the ending, where GPT-2's tokens have them
    return context, [f"{spaces} {ending}" for ending in endings], endings


def questions(item: dict, texts=TEXTS) -> list[tuple[str, list[str]]]:
    """(context, [continuation of each ending]) in each of the texts.

    For lm_eval the harness encodes context and continuation together and cuts after as many tokens as the context
    alone has (_encode_pair). GPT-2 never merges across "non-space, space" (nor at the four control characters that
    only Python calls spaces), so encoding them apart gives the same ids, 4x faster."""
    return [render(item, text)[:2] for text in texts]


def check_length(items: list[dict], block_size: int) -> None:
    """ValueError when a model of this block_size cannot score an ending."""
    benchmarks.check_length(items, questions, block_size)


# ----------------------------------------------------------------------------------------------------------------------
# scores


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, text: str = "both",
             autocast=contextlib.nullcontext, **options) -> dict | None:
    """{"metrics": {...}, "items": [record of each item]}, the same on every rank and for any number of ranks; None when
    asked to stop.

    items: from load(). text: "both", or one of TEXTS for half the cost; the other's metrics are then None.
    model, procs, autocast and the options batch_size, stop and progress: see benchmarks.score, errors included."""
    begun = time.perf_counter()
    if text not in ("both", *TEXTS):
        raise ValueError(f"text is {text!r}: use both, {' or '.join(TEXTS)}.")
    texts = TEXTS if text == "both" else (text,)
    scored = benchmarks.score(NAME, model, items, lambda item: questions(item, texts), procs,
                              bos=bos, autocast=autocast, **options)
    if scored is None:
        return None
    marked = [mark(item, item_scores, texts) for item, item_scores in zip(items, scored, strict=True)]
    records = [record for record, _, _ in marked]
    metrics = {"n": len(items)}
    for name in RULES:
        credits = [record["credit"][name] for record in records if name in record["credit"]]
        metrics[name] = benchmarks.mean(credits)
        metrics[f"{name}_stderr"] = benchmarks.standard_error([credits])
        metrics[f"ties_{name}"] = sum(tied[name] > 1 for _, tied, _ in marked) if credits else None
    for name, rule in MARGINS.items():
        metrics[name] = benchmarks.mean([margin[rule] for _, _, margin in marked if rule in margin])
    content = json.dumps(sorted([item["id"], *(item[name] for name in FIELDS)] for item in items))
    metrics |= {"truncated": sum(record["truncated"] for record in records), "bos": bos, "text": text}
    metrics["scorer"] = f"{SCORER} bos={int(bos)} text={text}"
    metrics["dtype"] = benchmarks.computing_dtype(autocast)
    metrics["items_sha256"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    metrics["seconds"] = round(time.perf_counter() - begun, 3)
    return {"metrics": metrics, "items": records}


def mark(item: dict, scored: benchmarks.Scored, texts) -> tuple[dict, dict, dict]:
    """An item's record; and per metric how many endings share the maximum, and the right ending's lead over the best
    wrong one."""
    scores = {}
    for text, sums, lengths in zip(texts, scored.sums, scored.lengths, strict=True):
        chars = [len(ending) for ending in render(item, text)[2]]
        scores |= {f"{text}_sum": sums, f"{text}_tokens": lengths, f"{text}_chars": chars}
    predictions, credit, tied, margin = {}, {}, {}, {}
    for name, (text, per) in RULES.items():
        if text not in texts:
            continue
        values = scores[f"{text}_sum"]
        if per:
            values = [value / length for value, length in zip(values, scores[f"{text}_{per}"], strict=True)]
        best, right = max(values), values[item["label"]]
        wrong = [value for i, value in enumerate(values) if i != item["label"]]
        margin[name] = right - max(wrong)
        predictions[name] = values.index(best)
        tied[name] = values.count(best)
        credit[name] = 1 / tied[name] if right == best else 0.0
    rounded = {key: [round(value, 6) for value in row] for key, row in scores.items()}
    record = {"id": item["id"], "cluster": item["cluster"], "label": item["label"], "scores": rounded,
              "predictions": predictions, "credit": credit, "truncated": scored.truncated}
    return record, tied, margin


def write_records(folder, step: int, result: dict, timestamp: str) -> None:
    """Write evaluate()'s result into a run's folder, see benchmarks.write_records."""
    benchmarks.write_records(NAME, METRICS, folder, step, result, timestamp)


def table(metrics: dict) -> str:
    lines = []
    for name, (text, per) in RULES.items():
        if metrics[name] is not None:
            error = metrics[f"{name}_stderr"] or math.nan
            rule = f"{text} text, sum"
            if per:
                rule += f" / {per}"
            lines.append(f"{name:<20} {metrics[name]:.4f} +- {error:.4f}   {rule:<29}"
                         f"ties {metrics[f'ties_{name}']}")
    return "\n".join(lines)


def show(items: list[dict], records: list[dict]) -> str:
    """The endings' scores: per token in the plain text if it was scored, else per character in the other."""
    lines = []
    for item, record in zip(items, records, strict=True):
        name = "accuracy_norm" if "accuracy_norm" in record["credit"] else "accuracy_norm_bytes"
        text, per = RULES[name]
        context, _, endings = render(item, text)
        sums, lengths = record["scores"][f"{text}_sum"], record["scores"][f"{text}_{per}"]
        lines.append(f"item {record['id']} ({name} {record['credit'][name]:g})\n  {context}")
        notes = [""] * len(endings)
        notes[item["label"]] = "right"
        notes[record["predictions"][name]] += " chosen"
        for ending, note, total, length in zip(endings, notes, sums, lengths, strict=True):
            lines.append(f"  {total / length:9.4f}  {note.strip():<13} {ending}")
        lines.append("")
    return "\n".join(lines)


def main(argv=None) -> int:
    return benchmarks.main(sys.modules[__name__], argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "hellaswag.py", "stopped, nothing was written.")
