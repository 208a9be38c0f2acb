r"""eval_gsm8k.py owns the exam: the one prompt template, answers out of text, GSM8K, and the arithmetic probes.

    python eval_gsm8k.py --checkpoint experiments/runs/<run> --data gsm8k/test.jsonl --max_examples 200    # CPU, 1 GPU
    python eval_gsm8k.py --checkpoint <folder> --data synthetic:200 --probes off                           # no network
    torchrun --standalone --nproc_per_node=8 eval_gsm8k.py --checkpoint experiments/runs/<run>             # hub, 8 GPUs

Reads a checkpoint and problems (--data; by default the hub's openai/gsm8k, main, test: 1,319). Writes into --out
gsm8k_completions.jsonl and probes.jsonl (one line per item) and, last, gsm8k_results.json, which names their sha256.
An interrupted exam continues when the same command is run again. A problem:

    {"question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts ...?",
     "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total ... is 2+1=<<2+1=3>>3 bolts ...\n#### 3"}

The model reads <|endoftext|> (--bos) and `User: {question}\nAssistant:`, and writes until <|endoftext|>, a new `User:`,
--max_new_tokens, or the end of its block_size. Every `<MUL_6_9_54>` in what it wrote then becomes `6*9=54`, be it one
token or literal text, in every arm alike. Two rules take the answer, and answers are compared as exact numbers:

    strict    the number after the first `####` that one follows on its line: GSM8K's own `#### (\-?[0-9\.\,]+)`, first
              match. Also read: `#### $29.00`, `3/4`, `1 1/2`, `1e3`, `25%` (as 25), `-$3`, text after the number, and
              `#### 6*9=54` as 54. An expression without a result (`#### 6*9`) is no answer
    flexible  the last number of the text

`accuracy` is strict. A wrong answer and no answer both score 0; the shares without an answer are reported apart. Where
injection turned a bare `6*9` into its token, expansion brings a result that the other arm's text does not have:
`accuracy_unexpanded` is strict on the text as written, where digits of a multiplication token are never an answer.
A prompt that leaves fewer than ROOM_STEP tokens of block_size is scored wrong, not cut, and counted (`too_long`); less
room than --max_new_tokens is rounded down to a multiple of it, so that problems can share a batch (`short_room`).

Probes: 81 products of digits, 100 two-digit x one-digit products, 100 sums of two-digit numbers, each asked as `6*9=`
(plain, for a base model) and as `What is 6*9?` in the template (chat, for a fine-tuned one). Two scores: the first
number that the model writes before a newline, where an expression is passed over together with its `=` (after `6*9=54`
the answer is 54, not 6, in every arm); and the rank of the right result by summed log-prob among all results of its
family (the 81 products have 36). Ties count as if broken at random. Prompts hold no multiplication token in any arm, so
an arm that was trained on those has seldom seen `6*9=`.

>>> items = eval_gsm8k.load("gsm8k/test.jsonl")
>>> eval_gsm8k.evaluate(model, items)["metrics"]["accuracy"]
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import math
import os
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from inject_mul import MulExpressionInjector
from lab import disk, inference, processes, runs, shards, synthetic
from lab.answers import (
    LITERAL_MUL,
    MARK,
    USER,
    answer_text,
    extract_answer,
    first_number,
    render_prompt,
)
from model import GPT

SCORER = "gsm8k-1"  # a change that changes a score must change this name
ROOM_STEP = 16  # tokens: the shortest worked answer, such as " 2 + 3 = 5\n#### 5" and <|endoftext|>
PROBE_TOKENS = 16  # new tokens of a probe: room for " 6 * 9 = 54" written out
PROBE_FORMS = ("plain", "chat")
FAMILIES = ("products", "two_digit_by_digit", "additions")
N_SYNTHETIC = 200
FILES = ("gsm8k_completions.jsonl", "probes.jsonl", "gsm8k_results.json")
PARTIAL = "gsm8k_partial"
RULES = {  # stands in every record
    "strict": "the number after the first #### that one follows on its line",
    "flexible": "the last number of the text",
    "mul_tokens": "<MUL_6_9_54> in a completion, one token or literal text, is read as 6*9=54 in every arm",
    "unexpanded": "strict, but digits of a multiplication token are never an answer",
    "too_long": f"a prompt that leaves fewer than {ROOM_STEP} tokens of block_size is scored wrong",
    "probe_answer": "the first number before a newline, expressions passed over together with their =",
    "probe_rank": "by summed log-prob among the different results of the probe's family; ties as if broken at random",
}


# ----------------------------------------------------------------------------------------------------------------------
# problems


def load(data=None, max_examples: int = 0) -> list[dict]:
    """Problems of a jsonl[.gz] file, of "synthetic" or "synthetic:<n>" (test split), or ("" or None) of the hub.

    Each is {"id", "cluster", "question", "gold" (Fraction)}; the id is the line's number and a hash of the question.
    max_examples: that many, spread evenly (0 = all). ValueError or FileNotFoundError, one sentence, for what is wrong.
    """
    data = str(data or "")
    if max_examples < 0:
        raise ValueError(f"max_examples is {max_examples}: give 0 for all problems, or how many.")
    if data == "synthetic" or data.startswith("synthetic:"):
        n = data.partition(":")[2] or str(N_SYNTHETIC)
        if not (n.isascii() and n.isdigit()) or int(n) == 0:
            raise ValueError(f"--data {data}: give a number of problems of at least 1, as in synthetic:{N_SYNTHETIC}.")
        rows, source = enumerate(synthetic.gsm8k_items(int(n), split="test"), 1), data
    elif data:
        rows, source = read_rows(Path(data)), data
    else:
        rows, source = enumerate(hub_rows(), 1), "openai/gsm8k"
    items = check(rows, source)
    if 0 < max_examples < len(items):
        items = [items[i * len(items) // max_examples] for i in range(max_examples)]
    return items


def read_rows(path: Path):
    """(line number, what it holds) for every line of a jsonl[.gz] file that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"--data {path} is not a file: name a jsonl or jsonl.gz file of GSM8K problems.")
    fix = "repair or remove it, or name another --data."
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        raise ValueError(f"{path}, line {number} is not JSON ({getattr(error, 'msg', error)}): {fix}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read after line {number} ({error}): {fix}") from error


def hub_rows():
    """GSM8K's test split from the hub, or from the copy that `datasets` keeps. ValueError without either."""
    import datasets

    try:
        return datasets.load_dataset("openai/gsm8k", "main", split="test")
    except Exception as error:  # datasets, huggingface_hub and httpx each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"openai/gsm8k cannot be had from the hub ({reason}): check the network, or pass --data with "
                         "a local test.jsonl, or --data synthetic.") from error


def check(rows, source) -> list[dict]:
    """(line number, row) pairs as problems. ValueError names the first line that is wrong."""
    items = []
    for number_, row in rows:
        where, fix = f"{source}, line {number_}", "repair or remove it, or name another --data."
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: {fix}")
        for name in ("question", "answer"):
            text = row.get(name)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{where} has no text under {name!r}: {fix}")
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(f"{where} has half a character under {name!r} (a lone surrogate): {fix}")
        gold = extract_answer(row["answer"])
        if gold is None:
            raise ValueError(f"{where} has an answer without a number after {MARK}: {fix}")
        question = row["question"].strip()
        identity = f"{number_:05d}-{hashlib.sha256(question.encode()).hexdigest()[:8]}"
        items.append({"id": identity, "cluster": identity, "question": question, "gold": gold})
    if not items:
        raise ValueError(f"{source} has no problems: name another --data.")
    return items


# ----------------------------------------------------------------------------------------------------------------------
# generation in batches


def encode_prompt(text: str, bos: bool) -> list[int]:
    return [shards.BOS_ID] * bos + shards.get_tokenizer().encode(text)


def make_batches(prompts: list[list[int]], rooms: list[int], batch_size: int) -> list[list[int]]:
    """Numbers of prompts in batches of equal room and like length, the longest first; prompts without room in none.

    What shares a batch depends on the problems alone, not on ranks or on what a broken run has done, so rounding does
    not either."""
    order = [i for i in range(len(prompts)) if rooms[i] > 0]
    order.sort(key=lambda i: (rooms[i], -len(prompts[i]), i))
    batches = []
    for i in order:
        if not batches or len(batches[-1]) == batch_size or rooms[batches[-1][0]] != rooms[i]:
            batches.append([])
        batches[-1].append(i)
    return batches


def check_vocabulary(model) -> None:
    """ValueError unless the model's ids are those of shards' tokenizer, with or without its multiplication tokens."""
    size = model.config.vocab_size
    if not shards.N_GPT2_TOKENS <= size <= shards.VOCAB_SIZE:
        raise ValueError(f"the model's vocabulary has {size} ids, but problems are encoded with GPT-2's "
                         f"{shards.N_GPT2_TOKENS} (or {shards.VOCAB_SIZE} with the multiplication tokens): evaluate a "
                         "model that was trained on those.")


def shares(**credits) -> dict:
    """For each name the mean of its credits (None: there are none) and a 95 % interval: Wilson's (1927), which takes
    the items as independent."""
    result = {}
    for name, values in credits.items():
        n, z = len(values), 1.959964
        p = math.fsum(values) / n if n else None
        result[name], result[f"{name}_interval"] = p, None
        if n:
            middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
            scale = 1 + z * z / n
            result[f"{name}_interval"] = [max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)]
    return result


# ----------------------------------------------------------------------------------------------------------------------
# GSM8K


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, max_new_tokens: int = 256,
             temperature: float = 0.0, top_k=None, top_p=None, seed: int = 0, batch_size: int = 32,
             autocast=contextlib.nullcontext, done=None, save=None, progress: bool = False) -> dict:
    """{"metrics": {...}, "items": [record per problem, in the order of items]}, the same on every rank and for any
    number of ranks.

    model: a GPT or its compiled wrapper; fp32 unless autocast, a function giving the context to compute in, says other.
    items: from load(), or {"question", "answer"} rows. temperature 0: greedy; otherwise each problem draws from
    (seed, its id). done: {id: record} of an earlier try, the same on every rank; save(records) is called after each
    batch on the rank that did it. ValueError: a vocabulary that is not GPT-2's, options out of range."""
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    check_vocabulary(model)
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}: give at least 1.")
    if not items or "gold" not in items[0]:
        items = check(enumerate(items, 1), "the items")
    prompts = [encode_prompt(render_prompt(item["question"]), bos) for item in items]
    rooms = [model.config.block_size - len(prompt) for prompt in prompts]
    rooms = [max_new_tokens if room >= max_new_tokens else max(0, room // ROOM_STEP * ROOM_STEP) for room in rooms]
    batches = make_batches(prompts, rooms, batch_size)
    done, decode = done or {}, shards.get_tokenizer().decode

    def work(share):
        results = []
        with tqdm(total=sum(map(len, share)), unit="problem", desc="gsm8k", leave=False,
                  disable=None if progress and procs.is_main else True) as shown:
            for batch in share:
                if all(items[i]["id"] in done for i in batch):
                    records = [done[items[i]["id"]] for i in batch]
                else:
                    with torch.no_grad(), autocast():
                        completions = inference.generate(
                            model,
                            [prompts[i] for i in batch], rooms[batch[0]], temperature=temperature, top_k=top_k,
                            top_p=top_p, seed=seed, stop_ids=(shards.BOS_ID,), stop_strings=(USER,), decode=decode,
                            row_ids=[items[i]["id"] for i in batch])
                    records = [mark(items[i], len(prompts[i]), decode(c.ids).partition(USER)[0], len(c.ids), c.stopped)
                               for i, c in zip(batch, completions, strict=True)]
                    if save is not None:
                        save(records)
                results.append(records)
                shown.update(len(batch))
        return results

    records = [mark(item, len(prompt), "", 0, "too_long") for item, prompt in zip(items, prompts, strict=True)]
    for batch, batch_records in zip(batches, processes.spread(procs, batches, work), strict=True):
        for i, record in zip(batch, batch_records, strict=True):
            records[i] = record
    metrics = summarise(records)
    metrics |= {
        "rules": RULES, "bos": bos, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "seed": seed, "batch_size": batch_size,
        "short_room": sum(0 < room < max_new_tokens for room in rooms),
        "stop": ["<|endoftext|>", USER], "template": render_prompt("{question}"),
        "scorer": f"{SCORER} bos={int(bos)} {'greedy' if temperature == 0 else 'sampled'}",
        "items_sha256": items_sha256(items), "seconds": round(time.perf_counter() - begun, 3)}
    return {"metrics": metrics, "items": records}


def items_sha256(items: list[dict]) -> str:
    """Of the questions and right answers, in their order."""
    content = json.dumps([[item["question"], str(item["gold"])] for item in items])
    return hashlib.sha256(content.encode()).hexdigest()


def mark(item: dict, prompt_tokens: int, completion: str, tokens: int, stopped: str) -> dict:
    """The record of one problem. completion: as the model wrote it, multiplication tokens not expanded."""
    expanded = MulExpressionInjector().expand(completion)
    strict, flexible = extract_answer(expanded), extract_answer(expanded, "flexible")
    return {"id": item["id"], "cluster": item["cluster"], "question": item["question"], "prompt_tokens": prompt_tokens,
            "completion": completion, "tokens": tokens, "stopped": stopped, "gold": answer_text(item["gold"]),
            "strict": answer_text(strict), "flexible": answer_text(flexible),
            "credit": {"accuracy": float(strict == item["gold"]), "accuracy_flexible": float(flexible == item["gold"]),
                       "accuracy_unexpanded": float(extract_answer(completion) == item["gold"])}}


def summarise(records: list[dict]) -> dict:
    """The metrics of marked problems; every share with its interval."""
    credit = {name: [record["credit"][name] for record in records] for name in records[0]["credit"]}
    stopped = Counter(record["stopped"] for record in records)
    return {
        "correct": int(sum(credit["accuracy"])), "total": len(records),
        **shares(**credit,
                 no_answer_strict=[record["strict"] is None for record in records],
                 no_answer_flexible=[record["flexible"] is None for record in records],
                 stopped_by_itself=[record["stopped"] in ("stop_id", "stop_string") for record in records],
                 has_mark=[MARK in record["completion"] for record in records],
                 has_mul_token=[bool(LITERAL_MUL.search(record["completion"])) for record in records]),
        "stopped_at_end_of_text": stopped["stop_id"], "stopped_at_user": stopped["stop_string"],
        "stopped_at_limit": stopped["length"], "too_long": stopped["too_long"],
        "tokens_generated": sum(record["tokens"] for record in records),
        # what always giving the same answer would get: chance, for an exam with few different answers
        "most_frequent_answer_share": max(Counter(record["gold"] for record in records).values()) / len(records)}


# ----------------------------------------------------------------------------------------------------------------------
# probes


def probe_items(seed: int = 0) -> list[dict]:
    """The 281 probes {"id", "family", "cluster", "sum" (`6*9`), "answer"}: all 81 products of 1..9; 100 products of
    10..99 and 2..9; 100 sums of two numbers 10..99, no two of them the same sum turned round.

    The hundreds are those whose hash of (seed, family, sum) is smallest: drawn without replacement, each family by
    itself, on every platform alike. Operands and sign tell the families apart, so no probe can be in two of them.
    cluster: 6*9 and 9*6 are one."""
    digits, two_digits = range(1, 10), range(10, 100)
    pools = (("*", digits, digits, 81), ("*", two_digits, digits[1:], 100), ("+", two_digits, two_digits, 100))
    items = []
    for family, (sign, first, second, n) in zip(FAMILIES, pools, strict=True):
        drawn = [(a, b) for a in first for b in second]
        if family != "products":
            drawn.sort(key=lambda pair: hashlib.sha256(f"{seed}/{family}/{pair[0]}{sign}{pair[1]}".encode()).digest())
        seen = set()
        for a, b in drawn:
            low, high = sorted((a, b))
            if len(seen) == n or (family == "additions" and (low, high) in seen):
                continue
            seen.add((a, b) if family == "products" else (low, high))
            items.append({"id": f"{family}/{a}{sign}{b}", "family": family, "cluster": f"{family}/{low}{sign}{high}",
                          "sum": f"{a}{sign}{b}", "answer": a * b if sign == "*" else a + b})
    return items


def probe_prompt(probe: dict, form: str) -> tuple[str, str]:
    """(prompt, what an answer begins with) in one of PROBE_FORMS."""
    return (f"{probe['sum']}=", "") if form == "plain" else (render_prompt(f"What is {probe['sum']}?"), " ")


def probes(model, procs=None, *, forms=PROBE_FORMS, bos: bool = True, seed: int = 0, batch_size: int = 64,
           autocast=contextlib.nullcontext, progress: bool = False) -> dict:
    """{"metrics": {form: {family: {...}}, and the settings}, "items": [record per form and probe]}, the same on every
    rank and for any number of ranks. Greedy. seed: of the set of probes.

    With a vocabulary that has the multiplication tokens, products also have `token_*`: the rank of the product's own
    token among the 45 in the answer's place. It says nothing in an arm that never saw them."""
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    check_vocabulary(model)
    if unknown := set(forms) - set(PROBE_FORMS):
        raise ValueError(f"unknown form of probes {', '.join(unknown)}: use {' or '.join(PROBE_FORMS)}.")
    tokenizer, items = shards.get_tokenizer(), probe_items(seed)
    candidates = {family: sorted({item["answer"] for item in items if item["family"] == family}) for family in FAMILIES}
    facts = shards.MulFactTokens.tokens if model.config.vocab_size >= shards.VOCAB_SIZE else []
    questions = [(form, item, *probe_prompt(item, form)) for form in forms for item in items]
    prompts = [encode_prompt(prompt, bos) for _, _, prompt, _ in questions]
    limit = model.config.block_size
    if (needed := max(map(len, prompts)) + PROBE_TOKENS) > limit:
        raise ValueError(f"the probes need {needed} tokens, but the model's block_size is {limit}: pass --probes off, "
                         "or evaluate a model with a longer block_size.")
    batches = make_batches(prompts, [PROBE_TOKENS] * len(prompts), batch_size)

    def work(share):
        results = []
        with tqdm(total=sum(map(len, share)), unit="probe", desc="probes", leave=False,
                  disable=None if progress and procs.is_main else True) as shown:
            for batch in share:
                trees = []
                for i in batch:
                    _, item, _, lead = questions[i]
                    endings = [tokenizer.encode(f"{lead}{value}") for value in candidates[item["family"]]]
                    if item["family"] == "products":
                        endings += [tokenizer.encode(lead + fact, mul_tokens=True) for fact in facts]
                    trees.append((prompts[i], endings))
                with torch.no_grad(), autocast():
                    scores = inference.score_endings(model, trees)
                    completions = inference.generate(
                            model,
                        [prompts[i] for i in batch], PROBE_TOKENS, temperature=0.0, stop_ids=(shards.BOS_ID,),
                        stop_strings=("\n",), decode=tokenizer.decode, row_ids=batch)
                results.append([mark_probe(*questions[i][:2], tokenizer.decode(completion.ids), completion.stopped,
                                           [math.fsum(tokens.tolist()) for tokens in endings], candidates, facts)
                                for i, completion, endings in zip(batch, completions, scores, strict=True)])
                shown.update(len(batch))
        return results

    records = [None] * len(questions)
    for batch, batch_records in zip(batches, processes.spread(procs, batches, work), strict=True):
        for i, record in zip(batch, batch_records, strict=True):
            records[i] = record
    metrics = {form: {} for form in forms}
    for form in forms:
        for family in FAMILIES:
            own = [record for record in records if record["form"] == form and record["family"] == family]
            metrics[form][family] = summarise_probes(own, len(candidates[family]), len(facts))
    metrics |= {"prompts": {form: probe_prompt({"sum": "6*9"}, form)[0] for form in forms}, "seed": seed, "bos": bos,
                "max_new_tokens": PROBE_TOKENS, "scorer": f"{SCORER} bos={int(bos)}",
                "seconds": round(time.perf_counter() - begun, 3)}
    return {"metrics": metrics, "items": records}


def mark_probe(form: str, item: dict, completion: str, stopped: str, scores: list[float], candidates: dict,
               facts: list[str]) -> dict:
    """The record of one probe. scores: summed log-probs of the family's candidates and, for a product, of the facts."""
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"the scores of probe {item['id']} are not finite: the model's weights are broken; evaluate "
                         "an earlier checkpoint.")
    answer = first_number(MulExpressionInjector().expand(completion))
    values = candidates[item["family"]]
    rank, reciprocal, top1, tied = rank_of(scores[: len(values)], values.index(item["answer"]))
    record = {"id": f"{form}/{item['id']}", "form": form, "family": item["family"], "cluster": item["cluster"],
              "answer": item["answer"], "completion": completion, "stopped": stopped, "given": answer_text(answer),
              "rank": rank, "tied": tied, "log_prob": round(scores[values.index(item["answer"])], 6),
              "best": values[scores.index(max(scores[: len(values)]))],
              "credit": {"accuracy": float(answer == item["answer"]), "mrr": reciprocal, "top1": top1}}
    if len(scores) > len(values):
        a, b = map(int, item["sum"].split("*"))
        own = facts.index(f"<MUL_{min(a, b)}_{max(a, b)}_{a * b}>")
        record["token_rank"], record["credit"]["token_mrr"], record["credit"]["token_top1"], _ = rank_of(
            scores[len(values):], own)
    return record


def rank_of(scores: list[float], right: int) -> tuple[float, float, float, int]:
    """(rank, reciprocal rank, first place) of scores[right], 1 = largest, each the mean over all orders of those that
    tie with it; and how many those are, itself included."""
    before = sum(score > scores[right] for score in scores)
    tied = scores.count(scores[right])
    reciprocal = math.fsum(1 / (before + j) for j in range(1, tied + 1)) / tied
    return before + (tied + 1) / 2, reciprocal, (1 / tied if before == 0 else 0.0), tied


def chance(n: int) -> tuple[float, float]:
    """(mean reciprocal rank, share of first places) of a random order of n candidates."""
    return math.fsum(1 / j for j in range(1, n + 1)) / n, 1 / n


def summarise_probes(records: list[dict], n_candidates: int, n_facts: int) -> dict:
    """The metrics of one family in one form."""
    credit = {name: [record["credit"][name] for record in records] for name in records[0]["credit"]}
    n = len(records)
    result = {"correct": int(sum(credit["accuracy"])), "total": n,
              **shares(accuracy=credit["accuracy"], no_answer=[record["given"] is None for record in records],
                       top1=credit["top1"]),
              "mrr": math.fsum(credit["mrr"]) / n, "mean_rank": math.fsum(r["rank"] for r in records) / n,
              "ties": sum(record["tied"] > 1 for record in records), "candidates": n_candidates}
    result["chance_mrr"], result["chance_top1"] = chance(n_candidates)
    if "token_mrr" in credit:
        chance_mrr, chance_top1 = chance(n_facts)
        result["token"] = {**shares(top1=credit["token_top1"]), "mrr": math.fsum(credit["token_mrr"]) / n,
                           "mean_rank": math.fsum(r["token_rank"] for r in records) / n, "candidates": n_facts,
                           "chance_mrr": chance_mrr, "chance_top1": chance_top1}
    return result


# ----------------------------------------------------------------------------------------------------------------------
# records


def jsonl(records: list[dict]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def take_partial(folder: Path, key: str) -> dict[str, dict]:
    """{id: record} that interrupted exams with this key left in folder; gathers them in one file and drops others'."""
    done = {}
    parts = [path for path in [folder / f"{PARTIAL}.jsonl", *sorted(folder.glob(f"{PARTIAL}.rank*.jsonl"))]
             if path.exists()]
    for path in parts:
        for record in runs.read_jsonl(path):
            if record.pop("key", None) == key:
                done[record["id"]] = record
    if parts:
        disk.write_whole(folder / f"{PARTIAL}.jsonl", jsonl([{"key": key, **record} for record in done.values()]))
    for path in parts[parts[0].name == f"{PARTIAL}.jsonl":] if parts else []:
        path.unlink()
    return done


def drop_partial(folder: Path) -> None:
    for path in folder.glob(f"{PARTIAL}*.jsonl"):
        path.unlink()


def report(result: dict) -> str:
    """What the command prints: the shares with their intervals, then the probes."""
    def line(name, of):
        share, (low, high) = of[name], of[f"{name}_interval"]
        return f"{name:<20} {share:.4f}  [{low:.4f}, {high:.4f}]"

    lines = [f"GSM8K, {result['total']:,} problems of {result['data']} | {result['checkpoint']}",
             f"BOS {'on' if result['bos'] else 'off'}, {'greedy' if result['temperature'] == 0 else 'sampled'}, "
             f"{result['dtype']}, {result['tokens_generated']:,} tokens, {result['too_long']} prompts too long, "
             f"always the commonest answer {result['most_frequent_answer_share']:.4f}"]
    lines += [line(name, result) for name in (
        "accuracy", "accuracy_flexible", "accuracy_unexpanded", "no_answer_strict", "no_answer_flexible",
        "stopped_by_itself", "has_mark", "has_mul_token")]
    for form in PROBE_FORMS if result["probes"] else ():
        for family, m in result["probes"][form].items():
            lines.append(f"{form:<5} {family:<18} {line('accuracy', m)[21:]}  mrr {m['mrr']:.3f} (chance "
                         f"{m['chance_mrr']:.3f})  first {m['top1']:.3f} (chance {m['chance_top1']:.3f})")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# command line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval_gsm8k.py", description="GSM8K accuracy and arithmetic probes of a checkpoint.", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python eval_gsm8k.py --checkpoint experiments/runs/<run> --data gsm8k/test.jsonl --show 3")
    add = parser.add_argument_group("what").add_argument
    add("--checkpoint", required=True, help="a run's folder (its newest checkpoint), one of its ckpt/step_*, or a "
        "folder of GPT.save (required)")
    add("--data", default="", help="jsonl[.gz] file, or synthetic[:n] ('' = openai/gsm8k, main, test, from the hub)")
    add("--max_examples", type=int, default=0, help="problems, spread evenly over the file (0 = all)")
    add("--bos", choices=("on", "off"), default="on", help="begin each prompt with <|endoftext|> (default on)")
    add("--probes", choices=("on", "off"), default="on", help="the arithmetic probes, too (default on)")
    add = parser.add_argument_group("decoding of the exam; the probes are greedy").add_argument
    add("--max_new_tokens", type=int, default=256, help="tokens at most, and never beyond block_size (default 256)")
    add("--temperature", type=float, default=0.0, help="0 = greedy (default)")
    add("--top_k", type=int, default=0, help="ids to draw from (0 = all)")
    add("--top_p", type=float, default=1.0, help="probability to draw from (1 = all)")
    add("--seed", type=int, default=0, help="of sampling; without effect when greedy (default 0)")
    add = parser.add_argument_group("output").add_argument
    add("--show", type=int, default=0, help="print this many problems with their completions (0 = none)")
    add("--out", default="", help="folder for the three files ('' = the checkpoint's run, or its own folder)")
    add("--resume", choices=("on", "off"), default="on", help="go on where this exam was interrupted (default on)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=int, default=32, help="problems at once (default 32); no effect on results but rounding")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)")
    return parser


def main(argv=None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, low in (("max_examples", 0), ("top_k", 0), ("show", 0), ("max_new_tokens", 1), ("batch_size", 1)):
        if getattr(args, name) < low:
            parser.error(f"--{name} {getattr(args, name)}: give {low} or more.")
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        parser.error("--temperature is 0 (greedy) or more, --top_p above 0 and up to 1: correct them.")
    if args.temperature == 0 and (args.top_k or args.top_p < 1):
        parser.error("--top_k and --top_p do nothing when greedy: give a --temperature above 0, or drop them.")
    procs = processes.start_processes(args.device)
    try:
        return examine(args, procs)
    finally:
        procs.close()


def examine(args, procs) -> int:
    folder, step, run = runs.resolve_checkpoint(args.checkpoint, lambda text: print(text, file=sys.stderr))
    items = procs.on_main(lambda: load(args.data, args.max_examples))
    model = GPT.load(folder, procs.device)
    check_vocabulary(model)
    autocast = contextlib.nullcontext
    if args.dtype == "bfloat16":
        autocast = lambda: torch.autocast(procs.device.type, torch.bfloat16)
    decisive = "eval_gsm8k.py inject_mul.py model.py lab/answers.py lab/inference.py lab/tokenizer.py"
    sources = [runs.REPO / name for name in decisive.split()]
    settings = {
        "checkpoint_sha256": disk.sha256_file(folder / "model.safetensors"), "items_sha256": items_sha256(items),
        "dtype": args.dtype, "device": procs.device.type, "code": [disk.sha256_file(path) for path in sources],
        **{name: getattr(args, name) for name in "bos max_new_tokens temperature top_k top_p seed batch_size".split()}}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    out = Path(args.out or run or folder)

    def open_out():
        try:
            out.mkdir(parents=True, exist_ok=True)
            if args.resume == "off":
                drop_partial(out)
            return take_partial(out, key)
        except OSError as error:
            raise ValueError(f"--out {out} cannot be written ({error.strerror}): choose another --out.") from error

    done = procs.on_main(open_out)
    if done and procs.is_main:
        print(f"going on with an interrupted exam: {len(done)} of {len(items)} problems are done", file=sys.stderr)
    writer = runs.JsonlWriter(out / f"{PARTIAL}.rank{procs.rank:04d}.jsonl")
    try:
        exam = evaluate(
            model, items, procs, bos=args.bos == "on", max_new_tokens=args.max_new_tokens, temperature=args.temperature,
            top_k=args.top_k or None, top_p=args.top_p if args.top_p < 1 else None, seed=args.seed, autocast=autocast,
            batch_size=args.batch_size, done=done, progress=True,
            save=lambda records: [writer.write(key=key, **record) for record in records])
    finally:
        writer.close()
    probed = None
    if args.probes == "on":
        probed = probes(model, procs, bos=args.bos == "on", autocast=autocast, progress=True)
    if not procs.is_main:
        return 0

    config = json.loads((run / "config.json").read_text()) if run and (run / "config.json").exists() else {}
    files = {FILES[0]: jsonl(exam["items"])} | ({FILES[1]: jsonl(probed["items"])} if probed else {})
    data_file = Path(args.data)
    code = runs.code_state()
    result = {
        "type": "gsm8k", "model": (run or folder).name, "checkpoint": str(folder), "step": step,
        "condition": config.get("data", {}).get("condition"), **exam["metrics"],
        "data": args.data or "openai/gsm8k main test",
        "data_sha256": disk.sha256_file(data_file) if args.data and data_file.is_file() else None,
        "checkpoint_sha256": settings["checkpoint_sha256"], "probes": probed and probed["metrics"],
        "dtype": args.dtype, "resumed": len(done), "world_size": procs.world_size, "timestamp": runs.now(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "code": {name: value for name, value in code.items() if name != "git_diff"},
        **processes.machine_state(procs.device)}
    try:
        for name, content in files.items():
            disk.write_whole(out / name, content)
        disk.write_json(out / FILES[2], result)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}), what was generated is kept: free some space and "
                         "run the same command again.") from error
    drop_partial(out)
    for record in exam["items"][: args.show]:
        print(f"problem {record['id']}: {record['question']}\n  wrote ({record['stopped']}): {record['completion']!r}\n"
              f"  strict {record['strict']}, flexible {record['flexible']}, right {record['gold']}\n")
    print(report(result) + f"\nrecords are in {out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        repeated = isinstance(error, processes.SharedError) and os.environ.get("RANK", "0") != "0"
        sys.exit(1 if repeated else f"eval_gsm8k.py: {error}")
    except KeyboardInterrupt:
        print("eval_gsm8k.py: stopped; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
