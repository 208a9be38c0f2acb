r"""ewok.py owns EWoK: does the model know which target fits which context? Loading (encrypted), scores, records.

    EWOK_PASSWORD=... python ewok.py --checkpoint experiments/runs/<run> --data ewok_core_1.0.zip
    python ewok.py --checkpoint experiments/runs/<run>                      # from the Hugging Face hub, with HF_TOKEN
    python ewok.py --checkpoint <folder> --data synthetic:440 --out <folder>    # no network; write the records
    torchrun --standalone --nproc_per_node=8 ewok.py --checkpoint <folder> --data ewok_core_1.0.zip

Reads a checkpoint and EWoK-core 1.0 (4,374 items, 11 domains): an encrypted zip of jsonl or csv files, a folder of such
files, one of them, or the gated dataset ewok-core/ewok-core-1.0. With --out writes ewok_metrics.jsonl, ewok_items.jsonl
and step_metrics.json, as a training run does. EWoK's terms forbid copies in plain text, so nothing here ever prints,
logs or stores an item's text, errors included: ids are hashes, and records hold numbers. An invented item:

    Domain: spatial-relations    Context1: The cup is left of the plate.     Target1: The plate is right of the cup.
                                 Context2: The cup is right of the plate.    Target2: The plate is left of the cup.

T1 fits C1 and not C2; T2 fits C2 and not C1. S(T|C) is the log-prob of " " + T after C, as the sum or as the mean over
T's tokens: four scores per item in one pass, from which all metrics come ([] is 1 if true, 1/2 if equal, 0 if false):

    eval_official_*   [S(T1|C1) > S(T2|C1)]                                      what BabyLM and the originals report
    eval_full_*       mean of [S(T1|C1) > S(T2|C1)] and [S(T2|C2) > S(T1|C2)]    both contexts
    eval_paper_*      mean of [S(T1|C1) > S(T1|C2)] and [S(T2|C2) > S(T2|C1)]    the paper's: one target, two contexts

each with _sum and _mean, averaged over the items of a domain and then over domains; *_micro is the plain average over
items. Chance is 0.5 for each, but for T1 and T2 of different lengths `official` prefers the shorter (sum) or the one
with likelier words whatever the context says; `paper` cannot, because it compares a target with itself (for the same
reason its _sum equals its _mean).

We know of no published figure for GPT-2 124M. The paper (arXiv:2405.09605) gives, by its rule with summed log-probs,
GPT-2 XL (1.5B) 0.656, phi-1 (1.3B) 0.522, its best model 0.802 and people 0.954 (github.com/ewok-core/ewok-paper,
analyses/tables/20240429_mean_accuracy_allmodels.tex).

>>> items = ewok.load("ewok_core_1.0.zip")
>>> ewok.evaluate(model, items)["metrics"]["eval_official_sum"]
"""

import argparse
import contextlib
import csv
import getpass
import hashlib
import io
import json
import logging
import math
import os
import re
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lab import inference, processes, runs, shards, synthetic
from lab.inference import n_truncated
from model import GPT

SCORER = "ewok-1"  # a change that changes a score must change this name
HUB = "ewok-core/ewok-core-1.0"
TEXT_FIELDS = ("Context1", "Context2", "Target1", "Target2")
N_SYNTHETIC = 440
DOMAINS = ("agent-properties", "material-dynamics", "material-properties", "physical-dynamics", "physical-interactions",
           "physical-relations", "quantitative-properties", "social-interactions", "social-properties",
           "social-relations", "spatial-relations")
# rule: comparisons of S(target|context); the left side should win
RULES = {"official": (("T1C1", "T2C1"),), "full": (("T1C1", "T2C1"), ("T2C2", "T1C2")),
         "paper": (("T1C1", "T1C2"), ("T2C2", "T2C1"))}
PAIRS = ("T1C1", "T2C1", "T1C2", "T2C2")
SCORES = [f"{rule}_{per}" for rule in RULES for per in ("sum", "mean")]  # official_sum, official_mean, full_sum, ...

# ----------------------------------------------------------------------------------------------------------------------
# items. Errors name files, row numbers and our own column names, nothing that a file holds. None is raised inside an
# `except` that decoding can reach: Python would attach the original exception, which holds the text that it failed on.


def load(data=None, max_examples: int = 0) -> list[dict]:
    """Items of a zip, a folder, a .jsonl or .csv file, "synthetic[:n]", or ("" or None) the gated dataset on the hub.

    A zip's password is EWOK_PASSWORD, else it is asked for on a terminal. Each item: `id` (domain and a hash),
    `cluster` (the template it is made from), `Domain`, Context1, Context2, Target1, Target2. max_examples: that many,
    from all domains in proportion (0 = all). ValueError or FileNotFoundError, in one sentence.
    """
    data = str(data or "")
    if max_examples < 0:
        raise ValueError(f"max_examples is {max_examples}: give 0 for all items, or how many.")
    if data == "synthetic" or data.startswith("synthetic:"):
        n = data.partition(":")[2] or str(N_SYNTHETIC)
        if not n.isdigit() or int(n) == 0:
            raise ValueError(f"--data {data}: give a number of items of at least 1, as in synthetic:{N_SYNTHETIC}.")
        rows = [(f"{data}, item {i}", row) for i, row in enumerate(synthetic.ewok_items(int(n)), 1)]
    elif not data:
        rows = read_hub()
    else:
        path = Path(data)
        if not path.exists():
            raise FileNotFoundError(f"--data {path} does not exist: name EWoK's zip, a folder of its jsonl or csv "
                                    "files, or synthetic.")
        rows = [row for name, content in read_files(path) for row in parse(name, content)]
    items = check(rows, data or HUB)
    if 0 < max_examples < len(items):
        by_domain = sorted(range(len(items)), key=lambda i: (items[i]["Domain"], i))
        items = [items[i] for i in sorted(by_domain[k * len(items) // max_examples] for k in range(max_examples))]
    return items


def read_hub() -> list[tuple[str, dict]]:
    """(where, row) of the gated dataset, read with HF_TOKEN or the stored login."""
    import datasets

    failed, logger = "", logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # without a network it warns six times, in half a minute, before it gives up
    try:
        table = datasets.load_dataset(HUB, split="test", token=os.environ.get("HF_TOKEN") or None)
        return [(f"{HUB}, row {number}", row) for number, row in enumerate(table, 1)]
    except Exception as error:  # the library raises a dozen kinds for no network, no token and no access
        failed = type(error).__name__
    finally:
        logger.setLevel(level)
    raise ValueError(f"{HUB} cannot be read from the Hugging Face hub ({failed}): accept its terms at "
                     f"https://huggingface.co/datasets/{HUB} and set HF_TOKEN, or pass --data with its zip.")


def read_files(path: Path) -> list[tuple[str, bytes]]:
    """(name, content) of the jsonl and csv files that `path` holds or is."""
    wanted = (".jsonl", ".csv")
    if path.suffix.lower() == ".zip":
        return read_zip(path, wanted)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in wanted) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() not in wanted:
        raise ValueError(f"--data {path} has no .jsonl or .csv file: name EWoK's zip, a folder of such files, or one.")
    try:
        return [(str(file), file.read_bytes()) for file in files]
    except OSError as error:  # holds no text
        raise ValueError(f"--data {path} cannot be read ({error.strerror}): name another --data.") from error


def read_zip(path: Path, wanted) -> list[tuple[str, bytes]]:
    """The wanted members of a zip, decrypted in memory with EWOK_PASSWORD or the password asked for."""
    wrong = ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).suffix.lower() in wanted
                       and not m.filename.startswith("__MACOSX")]
            password = None
            if any(m.flag_bits & 1 for m in members):
                password = os.environ.get("EWOK_PASSWORD", "")
                if not password and sys.stdin is not None and sys.stdin.isatty():
                    password = getpass.getpass(f"password of {path}: ")
                wrong = "" if password else "is encrypted and no password was given: set EWOK_PASSWORD"
            if not members:
                wrong = "has no .jsonl or .csv file: name EWoK's zip"
            if not wrong:
                return [(f"{path}/{m.filename}", archive.read(m, password and password.encode())) for m in members]
    except zipfile.BadZipFile as error:
        wrong = ("does not open with this password: correct EWOK_PASSWORD" if "CRC" in str(error) else
                 "is not a whole zip file: get it again")
    except NotImplementedError:
        wrong = "has an encryption or compression that Python cannot read: pack it again with zip -e"
    except (RuntimeError, EOFError, zlib.error):  # a wrong password that passes the first byte's check ends in zlib
        wrong = "does not open with this password: correct EWOK_PASSWORD"
    except OSError as error:
        wrong = f"cannot be read ({error.strerror}): name another --data"
    raise ValueError(f"--data {path} {wrong}.")


def parse(name: str, content: bytes) -> list[tuple[str, object]]:
    """(where, row) for each row of a jsonl or csv file."""
    rows, wrong = [], ""
    try:
        text = content.decode("utf-8-sig")
        if name.lower().endswith(".csv"):
            reader = csv.DictReader(io.StringIO(text, newline=""))
            rows = [(f"{name}, row {number}", row) for number, row in enumerate(reader, 1)]
        else:
            for number, line in enumerate(text.split("\n"), 1):
                wrong = f"line {number} is not JSON"
                if line.strip():
                    rows.append((f"{name}, line {number}", json.loads(line)))
            wrong = ""
    except UnicodeDecodeError:
        wrong = "it is not UTF-8 text"
    except csv.Error:
        wrong = "it is not a csv file"
    except (ValueError, RecursionError):  # JSON; `wrong` says where
        pass
    if not rows and not wrong:
        wrong = "it has no items"
    if wrong:
        raise ValueError(f"{name} cannot be read, {wrong}: correct or replace it.")
    return rows


def check(rows: list[tuple[str, object]], source: str) -> list[dict]:
    """Rows as items. Column names in any case. ValueError names the first row that is wrong, without its content."""
    items, seen = [], {}
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: correct or remove it.")
        if None in row:  # csv
            raise ValueError(f"{where} has more columns than the header: correct or remove it.")
        columns = {str(key).strip().lower(): value for key, value in row.items()}
        if missing := [name for name in ("Domain", *TEXT_FIELDS) if name.lower() not in columns]:
            raise ValueError(f"{where} has no column {', '.join(missing)}: name a file with EWoK's columns "
                             f"Domain, {', '.join(TEXT_FIELDS)}.")
        for name in ("Domain", *TEXT_FIELDS):
            if not isinstance(columns[name.lower()], str) or not columns[name.lower()].strip():
                raise ValueError(f"{where} has an empty {name}: correct or remove it.")
            if re.search("[\ud800-\udfff]", columns[name.lower()]):
                raise ValueError(f"{where} has half a character (a lone surrogate) in {name}: correct or remove it.")
        domain = re.sub(r"[\s_]+", "-", columns["domain"].strip())
        domain = domain.lower() if domain.lower() in DOMAINS else columns["domain"].strip()
        if not re.fullmatch(r"[\w-]{1,40}", domain):
            raise ValueError(f"{where} has a Domain that is not one word: correct it, or the order of the columns.")
        # A hash over all columns: 17 of EWoK-core's items repeat another's text and differ in their template or version
        content = json.dumps(sorted((key, "" if value is None else str(value)) for key, value in columns.items()))
        name = f"{domain}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        if name in seen:
            raise ValueError(f"{where} is the same item as {seen[name]} (id {name}): remove one.")
        seen[name] = where
        template = [str(columns.get(key, "")) for key in ("metatemplateid", "templateid")]
        if not all(re.fullmatch(r"\d[\d.-]*", part) for part in template):  # not numbers, so maybe text
            template = ["".join(template) and hashlib.sha256("\0".join(template).encode()).hexdigest()[:12] or name]
        items.append({"id": name, "cluster": "/".join([domain, *template]), "Domain": domain,
                      **{field: columns[field.lower()] for field in TEXT_FIELDS}})
    if not items:
        raise ValueError(f"{source} has no items: name another --data.")
    return items


def trees(items: list[dict], bos: bool) -> list[tuple[list[int], list[list[int]]]]:
    """Two (context ids, [ids of " " + T1, ids of " " + T2]) per item, of C1 and of C2: what GPT.score_endings takes."""
    texts = [text for item in items
             for text in (item["Context1"], item["Context2"], " " + item["Target1"], " " + item["Target2"])]
    ids, lengths = shards.get_tokenizer().encode_batch(texts)
    pieces = [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])]
    start = [shards.BOS_ID] * bos
    return [(start + pieces[i + k], pieces[i + 2 : i + 4]) for i in range(0, 4 * len(items), 4) for k in (0, 1)]


def check_length(items: list[dict], block_size: int) -> None:
    """ValueError when a model of this block_size cannot score a target: what a trainer wants to know before step 1."""
    most = max(len(item[name].encode()) for item in items for name in ("Target1", "Target2")) + 1  # bytes: >= tokens
    if most > block_size:
        refuse_long(items, trees(items, True), block_size)


def refuse_long(items: list[dict], queue: list[tuple], block_size: int) -> None:
    long = {item["id"]: n for item, (_, endings) in zip(items, queue[::2], strict=True)
            if (n := max(map(len, endings))) > block_size}
    if long:
        name, longest = max(long.items(), key=lambda pair: pair[1])
        raise ValueError(f"{len(long)} of {len(items)} items have a target longer than the model's block_size of "
                         f"{block_size} (item {name}: {longest} tokens): take a model with a block_size of at least "
                         f"{longest}, or leave those items out.")


# ----------------------------------------------------------------------------------------------------------------------
# scores


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, batch_size=None,
             autocast=contextlib.nullcontext, stop=None, progress: bool = False) -> dict | None:
    """{"metrics": {...}, "items": [record per item, in the order of items]}, the same on every rank and for any number
    of ranks; None when a rank's stop.asked became true (looked at between forward passes).

    model: a GPT or its compiled wrapper, left in the mode it was in. items: from load(). batch_size: contexts per
    forward pass (None: as many as GPT.score_endings finds fit). autocast: a function giving the context to compute in.
    Draws no random numbers. ValueError: a target longer than the model's block_size, a vocabulary without GPT-2's ids,
    scores not finite.

    metrics: eval_<score> (macro), its _micro, its _stderr (of the macro average, items independent) and
    ties_eval_<score> (comparisons that were equal: one per item for official, two for full and paper);
    eval_margin_<score>, by how much the left side is ahead, macro too; by_category with n, scores and margins.
    """
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    if model.config.vocab_size < shards.N_GPT2_TOKENS:
        raise ValueError(f"the model's vocabulary has {model.config.vocab_size} ids, but EWoK is encoded with GPT-2's "
                         f"{shards.N_GPT2_TOKENS}: evaluate a model that was trained on those.")
    if not items or "id" not in items[0]:
        items = check([(f"item {i}", item) for i, item in enumerate(items, 1)], "the list of items")
    scored = processes.spread(procs, items, lambda share: score_items(
        model, share, bos, batch_size, autocast, stop, progress and procs.rank == 0))
    if scored is None:
        return None
    of_domain = {}
    for record, ties, margins in scored:
        of_domain.setdefault(record["category"], []).append((record["credit"], ties, margins))
    of_domain = dict(sorted(of_domain.items()))
    metrics = {"n": len(items), "n_domains": len(of_domain)}
    by_category = {domain: {"n": len(rows)} for domain, rows in of_domain.items()}
    for score in SCORES:
        key, credits, margins = f"eval_{score}", [], []
        for domain, rows in of_domain.items():
            credits.append([credit[key] for credit, _, _ in rows])
            margins.append([margin[score] for _, _, margin in rows])
            by_category[domain] |= {score: mean(credits[-1]), f"margin_{score}": mean(margins[-1])}
        metrics[key], metrics[f"{key}_micro"] = mean(list(map(mean, credits))), mean(sum(credits, []))
        metrics[f"{key}_stderr"] = standard_error(credits)
        metrics[f"ties_{key}"] = sum(ties[score] for rows in of_domain.values() for _, ties, _ in rows)
        metrics[f"eval_margin_{score}"] = mean(list(map(mean, margins)))
    metrics |= {
        "by_category": by_category, "truncated": sum(record["truncated"] for record, _, _ in scored), "bos": bos,
        "scorer": f"{SCORER} bos={int(bos)}", "dtype": computing_dtype(autocast),
        "items_sha256": hashlib.sha256("\n".join(sorted(item["id"] for item in items)).encode()).hexdigest()[:16],
        "seconds": round(time.perf_counter() - begun, 3)}
    return {"metrics": metrics, "items": [record for record, _, _ in scored]}


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(domains: list[list[float]]) -> float | None:
    """Of the average over domains, as if items were independent (those of one `cluster` are not: compare_runs.py
    resamples clusters). None when a domain has one item."""
    if any(len(values) < 2 for values in domains):
        return None
    squares = [math.fsum((v - mean(values)) ** 2 for v in values) / (len(values) - 1) / len(values)
               for values in domains]
    return math.sqrt(math.fsum(squares)) / len(domains)


def computing_dtype(autocast) -> str:
    """The dtype of the products under `autocast`; softmax and sums are fp32 and fp64 in any case."""
    with autocast():
        for kind in ("cuda", "cpu", "mps"):
            if torch.is_autocast_enabled(kind):
                return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "float32"


def score_items(model, items, bos, batch_size, autocast, stop, bar) -> list[tuple[dict, dict, dict]] | None:
    """Per item: its record, and per score how many comparisons were equal and the mean lead of the left side. None when
    asked to stop."""
    queue, limit = trees(items, bos), model.config.block_size
    refuse_long(items, queue, limit)
    # Where C1 is C2 it is scored once, so that equal text has equal bits and counts as a tie
    same = [queue[i] == queue[i + 1] for i in range(0, len(queue), 2)]
    once = [tree for i, tree in enumerate(queue) if i % 2 == 0 or not same[i // 2]]
    sums = sum_log_probs(model, once, batch_size, autocast, stop, bar)
    if sums is None:
        return None
    results, left = [], iter(sums)
    for i, item in enumerate(items):
        c1 = next(left)
        totals = dict(zip(PAIRS, [*c1, *(c1 if same[i] else next(left))], strict=True))
        if not all(map(math.isfinite, totals.values())):
            raise ValueError(f"the scores of item {item['id']} are not finite, so the weights are broken: evaluate an "
                             "earlier checkpoint.")
        tokens = {f"T{k + 1}": len(ending) for k, ending in enumerate(queue[2 * i][1])}
        values = {"sum": totals, "mean": {pair: total / tokens[pair[:2]] for pair, total in totals.items()}}
        credit, ties, margins = {}, {}, {}
        for rule, comparisons in RULES.items():
            for per, s in values.items():
                leads = [s[a] - s[b] for a, b in comparisons]  # 0 only if they are equal
                credit[f"eval_{rule}_{per}"] = mean([float(lead > 0) + 0.5 * (lead == 0) for lead in leads])
                ties[f"{rule}_{per}"] = leads.count(0)
                margins[f"{rule}_{per}"] = mean(leads)
        scores = {f"{pair}_{per}": round(values[per][pair], 6) for pair in PAIRS for per in values}
        record = {"id": item["id"], "cluster": item["cluster"], "category": item["Domain"],
                  "scores": scores | {f"{target}_tokens": n for target, n in tokens.items()}, "credit": credit,
                  "truncated": n_truncated(queue[2 * i : 2 * i + 2], limit) > 0}
        results.append((record, ties, margins))
    return results


def sum_log_probs(model, queue, batch_size, autocast, stop, bar) -> list[list[float]] | None:
    """Summed log-prob of each ending of each (context, endings); None when asked to stop.

    Sums of the fp32 values are exact to the last fp64 bit (fsum), so that equal values give equal sums, and equal means
    for endings of any length: ties stay ties."""
    sums, was_training = [None] * len(queue), model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(), tqdm(total=len(queue), unit="context", desc="ewok", leave=False,
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
    """Put evaluate()'s result into a run's folder: a line in ewok_metrics.jsonl, one per item in ewok_items.jsonl, the
    scores in step_metrics.json. What the folder has of this step is replaced. The items go first: a step that the
    metrics name has all of its items."""
    folder, metrics = Path(run_folder), result["metrics"]
    runs.replace_step(folder / "ewok_items.jsonl", step, [{"step": step, **record} for record in result["items"]])
    line = {"type": "ewok", "step": step, "timestamp": timestamp, **metrics}
    runs.replace_step(folder / "ewok_metrics.jsonl", step, [line])
    scores = {f"eval_{kind}{score}": metrics[f"eval_{kind}{score}"] for kind in ("", "margin_") for score in SCORES}
    runs.update_step_metrics(folder, step, **scores, ewok_by_category=metrics["by_category"])


def table(metrics: dict) -> str:
    """Scores and margins, a line each, and the domains."""
    lines = []
    for score in SCORES:
        key = f"eval_{score}"
        lines.append(f"{key:<20} {metrics[key]:.4f} +- {metrics[f'{key}_stderr'] or math.nan:.4f}   micro "
                     f"{metrics[f'{key}_micro']:.4f}   margin {metrics[f'eval_margin_{score}']:9.4f}   "
                     f"ties {metrics[f'ties_{key}']}")
    lines.append("\n" + f"{'domain':<26}{'n':>6}" + "".join(f"{score:>15}" for score in SCORES))
    for domain, row in metrics["by_category"].items():
        lines.append(f"{domain:<26}{row['n']:>6}" + "".join(f"{row[score]:>15.4f}" for score in SCORES))
    return "\n".join(lines)


def show(record: dict) -> str:
    """One item as id, credits and scores; EWoK's terms forbid its text in plain."""
    credits = " ".join(f"{score} {record['credit'][f'eval_{score}']:.1f}" for score in SCORES)
    scores = " ".join(f"S({pair[:2]}|{pair[2:]}) {record['scores'][f'{pair}_sum']:.3f}" for pair in PAIRS)
    return f"{record['id']} ({record['cluster']})\n  {scores}\n  {credits}"


# ----------------------------------------------------------------------------------------------------------------------
# command line


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="ewok.py", description="EWoK scores of a checkpoint.", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: EWOK_PASSWORD=... python ewok.py --checkpoint experiments/runs/<run> --data ewok_core_1.0.zip")
    add = parser.add_argument_group("what").add_argument
    add("--checkpoint", required=True,
        help="a run's folder (its newest checkpoint), one of its ckpt/step_*, or a folder of GPT.save (required)")
    add("--data", default="",
        help="zip (password: EWOK_PASSWORD, else asked for), folder of jsonl or csv files, one of them, or "
        f"synthetic[:n] ('' = {HUB} on the hub, with HF_TOKEN)")
    add("--max_examples", type=int, default=0, help="items, spread evenly over the domains (0 = all)")
    add("--bos", choices=("on", "off"), default="on", help="begin each context with <|endoftext|> (default on)")
    add = parser.add_argument_group("output").add_argument
    add("--show", type=int, default=0, help="print this many items: ids and scores, never text (0 = none)")
    add("--out", default="",
        help="folder for ewok_metrics.jsonl, ewok_items.jsonl and step_metrics.json, such as the run's; the step is "
        "the checkpoint's, or 0 if it has none ('' = only print)")
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
        result = evaluate(model, items, procs, bos=args.bos == "on", batch_size=args.batch_size or None,
                          autocast=autocast, stop=stop, progress=True)
        if result is None:
            raise KeyboardInterrupt
        if procs.is_main:
            metrics = result["metrics"]
            if args.show:
                print("ids and scores only: EWoK's terms forbid its text in plain.")
                print("\n".join(map(show, result["items"][: args.show])) + "\n")
            print(f"EWoK, {metrics['n']:,} items in {metrics['n_domains']} domains of {args.data or HUB} | {folder}\n"
                  f"BOS {args.bos}, {metrics['dtype']}, {metrics['truncated']} truncated, {metrics['seconds']:.1f} s, "
                  f"chance 0.5000\n{table(metrics)}")
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
        sys.exit(1 if repeated else f"ewok.py: {error}")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("ewok.py: stopped, nothing was written.", file=sys.stderr)
        sys.exit(130)
