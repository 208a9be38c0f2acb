"""ewok.py owns EWoK: does the model know which target fits which context?

    EWOK_PASSWORD=... python ewok.py --checkpoint experiments/runs/<run> --data ewok_core_1.0.zip
    python ewok.py --checkpoint experiments/runs/<run>                      # from the Hugging Face hub, with HF_TOKEN
    python ewok.py --checkpoint <folder> --data synthetic:440 --no_store        # no network; only print
    torchrun --standalone --nproc_per_node=8 ewok.py --checkpoint <folder> --data ewok_core_1.0.zip

Reads a checkpoint and EWoK-core 1.0 (4,374 items, 11 domains), from the authors' encrypted zip or the gated dataset
ewok-core/ewok-core-1.0. Writes what a training run does, ewok_metrics.jsonl, ewok_items.jsonl and step_metrics.json,
into the run (or --out). The same command continues an interrupted exam. EWoK's terms forbid copies in plain text, so
nothing here prints, logs or stores an item's text, not even in an error: ids are hashes, and records hold numbers. An
invented item:

    Domain: spatial-relations    Context1: The cup is left of the plate.     Target1: The plate is right of the cup.
                                 Context2: The cup is right of the plate.    Target2: The plate is left of the cup.

T1 fits C1 alone and T2 fits C2 alone. S(T|C) is the log-prob of " " + T after C, summed or averaged over T's tokens.
The four scores of an item give all metrics ([] is 1 if true, 1/2 if equal, else 0):

    eval_official_*   [S(T1|C1) > S(T2|C1)]                                      what BabyLM and the originals report
    eval_full_*       mean of [S(T1|C1) > S(T2|C1)] and [S(T2|C2) > S(T1|C2)]    both contexts
    eval_paper_*      mean of [S(T1|C1) > S(T1|C2)] and [S(T2|C2) > S(T2|C1)]    the paper's: one target, two contexts

each with _sum and _mean, averaged over the items of a domain and then over domains; *_micro averages over all items.
Chance is 0.5 for each. `official` prefers the shorter target (sum) or the one with likelier words, whatever the context
says; `paper` cannot, because it compares a target with itself (so its _sum equals its _mean).

Published (arXiv:2405.09605; its repository's analyses/tables/20240429_mean_accuracy_allmodels.tex), as eval_paper_sum:
GPT-2 XL 0.656, phi-1 0.522, its best model 0.802, people 0.954. We know of no figure for GPT-2 124M.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import time

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import benchmarks, processes, sources, synthetic
from lab.benchmarks import mean

SCORER = "ewok-1"  # a change that changes a score must change this name
HUB = "ewok-core/ewok-core-1.0"
FIELDS = ("Domain", "Context1", "Context2", "Target1", "Target2")
N_SYNTHETIC = 440
DOMAINS = ("agent-properties", "material-dynamics", "material-properties", "physical-dynamics",
           "physical-interactions", "physical-relations", "quantitative-properties",
           "social-interactions", "social-properties", "social-relations", "spatial-relations")
PAIRS = ("T1C1", "T2C1", "T1C2", "T2C2")
RULES = {  # rule: comparisons of S(target|context); the left side should win
    "official": (("T1C1", "T2C1"),),
    "full": (("T1C1", "T2C1"), ("T2C2", "T1C2")),
    "paper": (("T1C1", "T1C2"), ("T2C2", "T2C1")),
}
SCORES = [f"{rule}_{per}" for rule in RULES for per in ("sum", "mean")]  # official_sum, official_mean, ...

# what lab/benchmarks.py, the trainer and the reports read
NAME, TITLE, OFFICIAL, CHANCE = "ewok", "EWoK", HUB, 0.5
HAS_SYNTHETIC = True  # load("synthetic") makes items; False where a benchmark has none
N_OFFICIAL = 4_374
METRICS = tuple((f"eval_{score}", f"EWoK {score.replace('_', ' ')} metric", 1, ".4f") for score in SCORES)
SHOWN = ("eval_official_sum", "eval_official_mean", "eval_paper_sum")
ITEM_METRICS = ("official_sum", "official_mean", "paper_sum", "paper_mean")
CLUSTER, CATEGORY = "cluster", "category"
DATA_HELP = ("encrypted zip (password: EWOK_PASSWORD, else asked for), or synthetic[:n] "
             f"('' = {HUB} on the hub, with HF_TOKEN)")
OPTIONS = {}

# ----------------------------------------------------------------------------------------------------------------------
# items. Errors name files, line numbers and our own column names, but nothing that a file holds. None is raised inside
# an `except` block, because it would carry the original one, which may hold the text on which it failed.


def load(source=None, max_examples: int = 0) -> list[dict]:
    """Items of a zip, of "synthetic[:n]", or ("" or None) of the gated dataset on the hub.

    A zip's password is EWOK_PASSWORD, or typed on a terminal. Each item has `id` (domain and a hash), `cluster` (the
    template it is made from) and FIELDS. max_examples: that many, from all domains in proportion (0 = all). ValueError
    or FileNotFoundError in one sentence."""
    source = str(source or "")
    n = sources.synthetic_size(source, N_SYNTHETIC)
    if n:
        rows = benchmarks.numbered(synthetic.ewok_items(n), source)
    elif source:
        rows = sources.read_zip(source, "EWOK_PASSWORD")
    else:
        rows = read_hub()
    items = benchmarks.make_items(rows, source or HUB, fault_of, make_item)
    by_domain = sorted(range(len(items)), key=lambda i: (items[i]["Domain"], i))
    chosen = benchmarks.spread_evenly(by_domain, max_examples)
    return [items[i] for i in sorted(chosen)]


def read_hub() -> list[tuple[str, dict]]:
    """(place, row) pairs of the gated dataset, read with HF_TOKEN or the stored login."""
    import datasets

    try:
        with benchmarks.quiet_hub():
            rows = datasets.load_dataset(HUB, split="test", token=os.environ.get("HF_TOKEN") or None)
        return benchmarks.numbered(rows, HUB)
    except Exception as error:  # a dozen kinds, for no network, no token and no access
        fault = type(error).__name__
    raise ValueError(f"{HUB} cannot be read from the Hugging Face hub ({fault}): accept its terms at "
                     f"https://huggingface.co/datasets/{HUB} and set HF_TOKEN, or pass --data with its zip.")


def normalise(row: dict) -> dict:
    """The row, whose columns may be in any case, with EWoK's spelling of FIELDS and lower case for the others."""
    spelling = {name.lower(): name for name in FIELDS}
    lowered = {str(key).strip().lower(): value for key, value in row.items()}
    return {spelling.get(key, key): value for key, value in lowered.items()}


def fault_of(row) -> str | None:
    """What keeps a row from being an item, see benchmarks.fault_of."""
    if isinstance(row, dict):
        row = normalise(row)
    if fault := benchmarks.fault_of(row, FIELDS):
        return fault
    if not re.fullmatch(r"[\w-]{1,40}", domain_of(row)):
        return "has a Domain that is not one word"
    return None


def make_item(place, row: dict) -> dict:
    row = normalise(row)
    domain = domain_of(row)
    # all columns count: 17 of EWoK-core's items repeat another's text and differ in their template or version
    texts = {key.lower(): "" if value is None else str(value) for key, value in row.items()}
    name = f"{domain}-{short_hash(json.dumps(sorted(texts.items())))}"
    # the template's ids are hashed unless they are numbers, because they may hold text
    template = [str(row.get(key, "")) for key in ("metatemplateid", "templateid")]
    if not any(template):
        template = [name]
    elif not all(re.fullmatch(r"\d[\d.-]*", part) for part in template):
        template = [short_hash("\0".join(template))]
    item = {"id": name, "cluster": "/".join([domain, *template])}
    return item | {field: row[field] for field in FIELDS} | {"Domain": domain}


def domain_of(row: dict) -> str:
    """The domain; one of DOMAINS in EWoK's spelling, whatever its case and its spaces are."""
    name = row["Domain"].strip()
    hyphenated = re.sub(r"[\s_]+", "-", name).lower()
    return hyphenated if hyphenated in DOMAINS else name


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def questions(item: dict) -> list[tuple[str, list[str]]]:
    """Both targets after each context. Equal contexts are one question, so that rounding cannot break their ties."""
    targets = [" " + item["Target1"], " " + item["Target2"]]
    contexts = dict.fromkeys([item["Context1"], item["Context2"]])
    return [(context, targets) for context in contexts]


def check_length(items: list[dict], block_size: int) -> None:
    """ValueError when a model of this block_size cannot score a target."""
    benchmarks.check_length(items, questions, block_size)


# ----------------------------------------------------------------------------------------------------------------------
# scores


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, autocast=contextlib.nullcontext,
             **options) -> dict | None:
    """{"metrics": {...}, "items": [record of each item]}, the same on every rank and for any number of ranks; None when
    asked to stop.

    items: from load(). model, procs, autocast and the options batch_size, stop and progress: see benchmarks.score,
    errors included. metrics: eval_<score> (the mean over domains), its _micro (over items) and _stderr (as if items
    were independent), ties_eval_<score> (equal comparisons), eval_margin_<score> (the left side's mean lead in nats,
    over domains too), and by_category."""
    begun = time.perf_counter()
    scored = benchmarks.score(NAME, model, items, questions, procs, bos=bos, autocast=autocast, **options)
    if scored is None:
        return None
    marked = [mark(item, item_scores) for item, item_scores in zip(items, scored, strict=True)]
    records = [record for record, _, _ in marked]
    rows_of = {domain: [] for domain in sorted({item["Domain"] for item in items})}
    for item, row in zip(items, marked, strict=True):
        rows_of[item["Domain"]].append(row)
    by_category = {domain: {"n": len(rows)} for domain, rows in rows_of.items()}
    metrics = {"n": len(items), "n_domains": len(rows_of)}
    for score in SCORES:
        key = f"eval_{score}"
        credits, margins = [], []
        for domain, rows in rows_of.items():
            credits.append([record["credit"][key] for record, _, _ in rows])
            margins.append([margin[score] for _, _, margin in rows])
            by_category[domain] |= {score: mean(credits[-1]), f"margin_{score}": mean(margins[-1])}
        metrics[key] = mean([mean(values) for values in credits])
        metrics[f"{key}_micro"] = mean(sum(credits, []))
        metrics[f"{key}_stderr"] = benchmarks.standard_error(credits)
        metrics[f"ties_{key}"] = sum(ties[score] for _, ties, _ in marked)
        metrics[f"eval_margin_{score}"] = mean([mean(values) for values in margins])
    names = "\n".join(sorted(item["id"] for item in items))
    metrics["by_category"] = by_category
    metrics |= {"truncated": sum(record["truncated"] for record in records), "bos": bos}
    metrics |= {"scorer": f"{SCORER} bos={int(bos)}", "dtype": benchmarks.computing_dtype(autocast)}
    metrics["items_sha256"] = hashlib.sha256(names.encode()).hexdigest()[:16]
    metrics["seconds"] = round(time.perf_counter() - begun, 3)
    return {"metrics": metrics, "items": records}


def mark(item: dict, scored: benchmarks.Scored) -> tuple[dict, dict, dict]:
    """An item's record; and per score how many comparisons were equal, and the mean lead of the left side."""
    sums = dict(zip(PAIRS, [*scored.sums[0], *scored.sums[-1]], strict=True))
    tokens = dict(zip(("T1", "T2"), scored.lengths[0], strict=True))
    values = {"sum": sums, "mean": {pair: total / tokens[pair[:2]] for pair, total in sums.items()}}
    credit, ties, margins = {}, {}, {}
    for rule, comparisons in RULES.items():
        for per, s in values.items():
            leads = [s[left] - s[right] for left, right in comparisons]  # 0 only if they are equal
            wins = [float(lead > 0) + 0.5 * (lead == 0) for lead in leads]
            credit[f"eval_{rule}_{per}"] = mean(wins)
            ties[f"{rule}_{per}"] = leads.count(0)
            margins[f"{rule}_{per}"] = mean(leads)
    scores = {f"{pair}_{per}": round(values[per][pair], 6) for pair in PAIRS for per in values}
    scores |= {f"{target}_tokens": n for target, n in tokens.items()}
    record = {"id": item["id"], "cluster": item["cluster"], "category": item["Domain"],
              "scores": scores, "credit": credit, "truncated": scored.truncated}
    return record, ties, margins


def write_records(folder, step: int, result: dict, timestamp: str) -> None:
    """Write evaluate()'s result into a run's folder, see benchmarks.write_records; step_metrics.json also gets the
    margins and the scores by domain."""
    metrics = result["metrics"]
    more = {f"eval_margin_{score}": metrics[f"eval_margin_{score}"] for score in SCORES}
    more["ewok_by_category"] = metrics["by_category"]
    benchmarks.write_records(NAME, METRICS, folder, step, result, timestamp, **more)


def table(metrics: dict) -> str:
    lines = []
    for score in SCORES:
        key = f"eval_{score}"
        error = metrics[f"{key}_stderr"] or math.nan
        margin, micro = metrics[f"eval_margin_{score}"], metrics[f"{key}_micro"]
        lines.append(f"{key:<20} {metrics[key]:.4f} +- {error:.4f}   micro {micro:.4f}   "
                     f"margin {margin:9.4f}   ties {metrics[f'ties_{key}']}")
    heads = "".join(f"{score:>15}" for score in SCORES)
    lines.append(f"\n{'domain':<26}{'n':>6}{heads}")
    for domain, row in metrics["by_category"].items():
        cells = "".join(f"{row[score]:>15.4f}" for score in SCORES)
        lines.append(f"{domain:<26}{row['n']:>6}{cells}")
    return "\n".join(lines)


def show(items: list[dict], records: list[dict]) -> str:
    lines = ["ids and scores only: EWoK's terms forbid its text in plain."]
    for record in records:
        credits = [f"{score} {record['credit'][f'eval_{score}']:.1f}" for score in SCORES]
        sums = {pair: record["scores"][f"{pair}_sum"] for pair in PAIRS}
        scores = [f"S({pair[:2]}|{pair[2:]}) {total:.3f}" for pair, total in sums.items()]
        lines.append(f"{record['id']} ({record['cluster']})\n  {' '.join(scores)}\n  {' '.join(credits)}")
    return "\n".join(lines)


def main(argv=None) -> int:
    return benchmarks.main(sys.modules[__name__], argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "ewok.py", "stopped, nothing was written.")
