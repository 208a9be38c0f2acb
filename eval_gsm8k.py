r"""eval_gsm8k.py owns the exam: GSM8K problems, completions and what is right in them.

    python eval_gsm8k.py --checkpoint experiments/runs/<run> --data gsm8k/test.jsonl --max_examples 200    # CPU, 1 GPU
    python eval_gsm8k.py --checkpoint <folder> --data synthetic:200 --probes off                           # no network
    torchrun --standalone --nproc_per_node=8 eval_gsm8k.py --checkpoint experiments/runs/<run>             # hub, 8 GPUs

Reads a checkpoint and problems (--data, else the hub's openai/gsm8k, main, test: 1,319). Writes, a line per item,
gsm8k_completions.jsonl, probes.jsonl and, with --samples, gsm8k_samples.jsonl into the run (or --out) and, last,
gsm8k_results.json, which names their sha256. The same command continues an interrupted exam. A problem:

    {"question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts ...?",
     "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total ... is 2+1=<<2+1=3>>3 bolts ...\n#### 3"}

The model reads <|endoftext|> (--bos) and `User: {question}\nAssistant:`, and writes until <|endoftext|>, a new `User:`,
--max_new_tokens, or the end of its block_size. Then every `<MUL_6_9_54>` in its text, one token or literal text, is
expanded to `6*9=54`, in every arm alike, and the answer is compared as an exact number (lab/answers.py):

    accuracy             strict: the number after the first `####` that has one on its line
    accuracy_flexible    the last number of the text
    accuracy_unexpanded  strict in the text as written, where digits of a multiplication token are no answer. If the
                         injector made a token of a bare `6*9`, expansion adds a result that the other arm has not

No answer scores 0 like a wrong one; its share is reported, too. A prompt that leaves fewer than ROOM_STEP tokens of
block_size is scored wrong, not cut (`too_long`). Room for fewer than --max_new_tokens is rounded down to a multiple of
ROOM_STEP, so that problems can share a batch (`short_room`). --probes adds 281 sums and products, see lab/probes.py.
"""

import argparse
import contextlib
import hashlib
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from inject_mul import MulExpressionInjector
from lab import benchmarks, disk, exams, inference, probes, processes, retries, runs, snapshots, sources, synthetic
from lab import files as data_files
from lab.answers import LITERAL_MUL, MARK, SCORER, USER, answer_text, extract_answer, gold_answer, render_prompt
from lab.benchmarks import shares
from lab.tokenizer import bos_id, get_tokenizer

ROOM_STEP = 16  # tokens: the shortest worked answer, such as " 2 + 3 = 5\n#### 5" and <|endoftext|>
TITLE, N_OFFICIAL, N_SYNTHETIC = "GSM8K", 1_319, 200
HUB = "openai/gsm8k"
COMPLETIONS, PROBES, RESULTS = "gsm8k_completions.jsonl", "probes.jsonl", "gsm8k_results.json"
SAMPLES = "gsm8k_samples.jsonl"
OF_SAMPLES = "temperature seed tokens_generated stopped_by_itself no_answer_strict".split()
RULES = {  # stated in every result
    "strict": "the number after the first #### that one follows on its line",
    "flexible": "the last number of the text",
    "mul_tokens": "<MUL_6_9_54> in a completion, one token or literal text, is read as 6*9=54 "
                  "in every arm",
    "unexpanded": "strict, but digits of a multiplication token are never an answer",
    "too_long": f"a prompt that leaves fewer than {ROOM_STEP} tokens of block_size is scored wrong",
    "probe_answer": "the first number before a newline, expressions passed over together with their =",
    "probe_rank": "by summed log-prob among the different results of the probe's family; ties as "
                  "if broken at random",
}

# ----------------------------------------------------------------------------------------------------------------------
# problems


def load(source=None, max_examples: int = 0) -> list[dict]:
    """Problems of a jsonl[.gz] file, of "synthetic[:n]" (test split), or ("" or None) of the hub.

    Each is {"id", "cluster", "question", "gold" (Fraction)}; the id is the line's number and a hash of the question.
    max_examples: that many, spread evenly (0 = all). ValueError or FileNotFoundError in one sentence."""
    source = str(source or "")
    n = sources.synthetic_size(source, N_SYNTHETIC)
    if n:
        rows = benchmarks.numbered(synthetic.gsm8k_items(n, split="test"), source)
    elif source:
        rows = sources.read_benchmark(source)
    else:
        import datasets

        with benchmarks.quiet_hub(), retries.hub_errors(HUB):
            rows = benchmarks.numbered(datasets.load_dataset(HUB, "main", split="test"), HUB)
    items = benchmarks.make_items(rows, source or HUB, fault_of, make_item)
    return benchmarks.spread_evenly(items, max_examples)


def make_item(place, row: dict) -> dict:
    question = row["question"].strip()
    name = f"{place.number:05d}-{hashlib.sha256(question.encode()).hexdigest()[:8]}"
    gold = gold_answer(row["answer"])
    return {"id": name, "cluster": name, "question": question, "gold": gold}


def fault_of(row) -> str | None:
    """What keeps a row from being a problem, see benchmarks.fault_of."""
    if fault := benchmarks.fault_of(row, ["question", "answer"]):
        return fault
    if gold_answer(row["answer"]) is not None:
        return None
    _, mark, end = LITERAL_MUL.sub("", row["answer"]).rpartition(MARK)
    if not mark or not any(map(str.isdigit, end)):
        return f"has an answer without a number after {MARK}"
    return f"has an answer that is not one number and its unit after its only {MARK} ({end.strip()[-40:]!r})"


def file_sha256(source: str) -> str | None:
    """Of the one file that a name, a folder or a glob stands for; None for made-up problems and the hub's."""
    if not source or sources.synthetic_size(source, N_SYNTHETIC):
        return None
    return disk.sha256_file(data_files.only(source, sources.RECORD_READERS))


def items_sha256(items: list[dict]) -> str:
    """Of the questions and right answers, in their order."""
    content = json.dumps([[item["question"], str(item["gold"])] for item in items])
    return hashlib.sha256(content.encode()).hexdigest()


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, max_new_tokens: int = 256,
             temperature: float = 0.0, top_k=None, top_p=None, seed: int = 0, batch_size: int = 32,
             log_probs: bool = False, autocast=contextlib.nullcontext, done=None, save=None, stop=None,
             progress: bool = False) -> dict | None:
    """{"metrics": {...}, "items": [record of each item]}, the same on every rank and for any number of ranks; None when
    a rank's stop.asked is true before its last batch.

    model: a GPT or its compiled wrapper. items: from load(). temperature 0: greedy; else each problem draws from (seed,
    its id). log_probs: records also have drawn, how many tokens, and nats, the sum of their -log p. autocast: makes the
    context to compute in. done: {id: record} of an earlier try, the same on every rank. save(records): called after
    each batch on its rank. ValueError: a vocabulary not GPT-2's, options out of range."""
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    benchmarks.check_vocabulary(model)
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}: give at least 1.")
    prompts = [benchmarks.encode_prompt(render_prompt(item["question"]), bos) for item in items]
    rooms = [room_after(len(prompt), model.config.block_size, max_new_tokens) for prompt in prompts]
    done, decode = done or {}, get_tokenizer().decode_generated
    known = {i for i, item in enumerate(items) if item["id"] in done}

    def answer(batch):
        ids = [items[i]["id"] for i in batch]
        if all(name in done for name in ids):
            return [done[name] for name in ids]
        with autocast():
            completions = inference.generate(
                model, [prompts[i] for i in batch], rooms[batch[0]], temperature=temperature,
                top_k=top_k, top_p=top_p, seed=seed, stop_ids=(bos_id(),),
                stop_strings=(USER,), decode=decode, row_ids=ids, log_probs=log_probs)
        records = []
        for i, completion in zip(batch, completions, strict=True):
            text = decode(completion.ids).partition(USER)[0]
            record = mark(items[i], text, len(prompts[i]), len(completion.ids), completion.stopped)
            if log_probs:
                nats = -math.fsum(completion.log_probs)
                record |= {"drawn": len(completion.log_probs), "nats": nats}
            records.append(record)
        if save is not None:
            save(records)
        return records

    batches = benchmarks.make_batches(prompts, rooms, batch_size)
    records = benchmarks.write_answers(procs, batches, len(items), answer, "gsm8k", progress, stop, known)
    if records is None:
        return None
    for i, record in enumerate(records):
        if record is None:
            records[i] = mark(items[i], "", len(prompts[i]), 0, "too_long")
    decoding = "greedy" if temperature == 0 else "sampled"
    metrics = summarise(records) | {
        "rules": RULES, "bos": bos, "max_new_tokens": max_new_tokens, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "seed": seed, "batch_size": batch_size,
        "short_room": sum(0 < room < max_new_tokens for room in rooms),
        "stop": ["<|endoftext|>", USER], "template": render_prompt("{question}"),
        "scorer": f"{SCORER} bos={int(bos)} {decoding}", "items_sha256": items_sha256(items),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return {"metrics": metrics, "items": records}


def evaluate_samples(model, items: list[dict], procs=None, *, samples: int,
                     sample_temperature: float = 1.0, **options) -> dict | None:
    """evaluate(), and with `samples` completions drawn for each problem; None when asked to stop.

    "metrics" gets "samples", those of summarise_samples; "items" get sampled, the strict answers drawn, and
    their credit; "samples" are the records of all completions, "<id>~<number>". 0 samples: evaluate() alone."""
    exam = evaluate(model, items, procs, **options)
    if exam is None or samples == 0:
        return exam
    many = [item | {"id": f"{item['id']}~{j}"} for item in items for j in range(samples)]
    ways = options | {"temperature": sample_temperature, "log_probs": True}
    drawn = evaluate(model, many, procs, **ways)
    if drawn is None:
        return None
    for number, record in enumerate(exam["items"]):
        first = number * samples
        own = drawn["items"][first : first + samples]
        answers = [sample["strict"] for sample in own]
        right = int(sum(sample["credit"]["accuracy"] for sample in own))
        record["sampled"], credit = answers, record["credit"]
        for k in (1, samples):
            credit[f"pass_at_{k}"] = pass_at_k(samples, right, k)
        credit[f"majority_at_{samples}"] = majority(answers, record["gold"])
    exam["metrics"]["samples"] = summarise_samples(exam["items"], drawn, samples)
    return exam | {"samples": drawn["items"]}


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that k of n completions, drawn without replacement, hold one of the `right` ones: the unbiased
    estimate of pass@k from n >= k samples (arXiv:2107.03374)."""
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(answers: list[str | None], gold: str) -> float:
    """Credit of the commonest answer: 1 for gold, 1/m where gold is one of m that tie, 0 without an answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    winners = [answer for answer, count in votes.items() if count == most]
    return (gold in winners) / max(1, len(winners))


def summarise_samples(records: list[dict], drawn: dict, samples: int) -> dict:
    """Shares over problems with Wilson's intervals, and the entropy at which the samples were drawn: the mean of -log p
    over the tokens drawn, nats."""
    keys = dict.fromkeys(("pass_at_1", f"pass_at_{samples}", f"majority_at_{samples}"))
    credit = {key: [record["credit"][key] for record in records] for key in keys}
    own = [record for record in drawn["items"] if "nats" in record]
    tokens = sum(record["drawn"] for record in own)
    entropy = math.fsum(record["nats"] for record in own) / max(1, tokens)
    of_samples = {f"samples_{key}": drawn["metrics"][key] for key in OF_SAMPLES}
    return {"samples": samples, **shares(**credit), "entropy": entropy, **of_samples}


def room_after(prompt_tokens: int, block_size: int, max_new_tokens: int) -> int:
    """New tokens that fit after a prompt: max_new_tokens, else a multiple of ROOM_STEP."""
    room = block_size - prompt_tokens
    if room >= max_new_tokens:
        return max_new_tokens
    return max(0, room // ROOM_STEP * ROOM_STEP)


def skip_long(items: list[dict], bos: bool, block_size: int, max_new_tokens: int) -> tuple[list[dict], list[str]]:
    """(the problems whose prompts leave room for an answer, the ids of the others). ValueError when none does."""
    kept, skipped = [], []
    for item in items:
        prompt = benchmarks.encode_prompt(render_prompt(item["question"]), bos)
        if room_after(len(prompt), block_size, max_new_tokens):
            kept.append(item)
        else:
            skipped.append(item["id"])
    if not kept:
        raise ValueError(f"all {len(items)} problems are too long for the model's block_size of {block_size}: "
                         "evaluate a model with a longer one.")
    return kept, skipped


def mark(item: dict, completion: str, prompt_tokens: int, tokens: int, stopped: str) -> dict:
    """The record of one problem. completion: as the model wrote it, multiplication tokens not expanded."""
    expanded, gold = MulExpressionInjector().expand(completion), item["gold"]
    strict, flexible = extract_answer(expanded), extract_answer(expanded, "flexible")
    credit = {"accuracy": float(strict == gold), "accuracy_flexible": float(flexible == gold),
              "accuracy_unexpanded": float(extract_answer(completion) == gold)}
    record = {key: item[key] for key in ("id", "cluster", "question")}
    record |= {"prompt_tokens": prompt_tokens, "completion": completion, "tokens": tokens}
    record |= {"stopped": stopped, "gold": answer_text(gold), "strict": answer_text(strict)}
    return record | {"flexible": answer_text(flexible), "credit": credit}


def summarise(records: list[dict]) -> dict:
    """The metrics of records; every share with its interval."""
    credit = {name: [record["credit"][name] for record in records] for name in records[0]["credit"]}
    stopped = Counter(record["stopped"] for record in records)
    golds = Counter(record["gold"] for record in records)
    texts = [record["completion"] for record in records]
    metrics = {"correct": int(sum(credit["accuracy"])), "total": len(records)}
    metrics |= shares(
        **credit,
        no_answer_strict=[record["strict"] is None for record in records],
        no_answer_flexible=[record["flexible"] is None for record in records],
        stopped_by_itself=[record["stopped"] in ("stop_id", "stop_string") for record in records],
        has_mark=[MARK in text for text in texts],
        has_mul_token=[LITERAL_MUL.search(text) is not None for text in texts])
    metrics["stopped_at_end_of_text"] = stopped["stop_id"]
    metrics["stopped_at_user"] = stopped["stop_string"]
    metrics["stopped_at_limit"] = stopped["length"]
    metrics["too_long"] = stopped["too_long"]
    metrics["tokens_generated"] = sum(record["tokens"] for record in records)
    # the accuracy of always giving the commonest answer
    metrics["most_frequent_answer_share"] = max(golds.values()) / len(records)
    return metrics


# ----------------------------------------------------------------------------------------------------------------------
# files and the command line


def jsonl(records: list[dict]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def report(result: dict) -> str:
    """What the command prints: the shares with their intervals, then the probes."""
    lines = [f"{result['title']} | {result['data']} | {result['checkpoint']}"]
    if result.get("samples"):
        result = result | result["samples"]
    lines.append(f"{result['scorer']}, {result['dtype']}, {result['tokens_generated']:,} tokens, "
                 f"{result['too_long']} prompts too long, "
                 f"always the commonest answer {result['most_frequent_answer_share']:.4f}")
    for name, value in result.items():
        if f"{name}_interval" in result:
            low, high = result[f"{name}_interval"]
            lines.append(f"{name:<20} {value:.4f}  [{low:.4f}, {high:.4f}]")
    if "entropy" in result:
        lines.append(f"entropy of the samples {result['entropy']:.4f} nats per token")
    if result["probes"]:
        lines.append(probes.table(result["probes"]))
    return "\n".join(lines)


def parse_flags(argv) -> argparse.Namespace:
    parser = benchmarks.make_parser(
        "eval_gsm8k", "GSM8K accuracy and arithmetic probes",
        data=f"jsonl[.gz] file, or synthetic[:n] ('' = {HUB}, main, test, from the hub)",
        out="the three files", long="otherwise they are scored wrong",
        batch="problems at once (default 32); no effect on results but rounding", batch_size=32)
    add = parser.add_argument_group("exam; the probes are greedy").add_argument
    add("--max_new_tokens", type=int, default=256, help="never beyond block_size (default 256)")
    add("--temperature", type=float, default=0.0, help="0 = greedy (default)")
    add("--top_k", type=int, default=0, help="ids to draw from (0 = all)")
    add("--top_p", type=float, default=1.0, help="probability to draw from (1 = all)")
    add("--seed", type=int, default=0, help="of sampling; without effect when greedy (default 0)")
    add("--samples", type=int, default=0,
        help="also draw so many completions per problem, for pass@k and majority (0 = off)")
    add("--sample_temperature", type=float, help="of --samples (default 1)")
    switch = dict(choices=("on", "off"), default="on")
    add("--probes", **switch, help="the arithmetic probes, too (default on)")
    args = benchmarks.parse_counts(parser, argv, top_k=0, max_new_tokens=1, batch_size=1, samples=0)
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        parser.error("--temperature is 0 (greedy) or more, --top_p above 0 and up to 1.")
    if args.samples and args.temperature:
        parser.error("--samples belongs to a greedy exam: drop --temperature, "
                     "and give --sample_temperature.")
    if args.sample_temperature is not None and not args.samples:
        parser.error("--sample_temperature does nothing without --samples: give both, or neither.")
    if args.sample_temperature is None:
        args.sample_temperature = 1.0
    if not 0 < args.sample_temperature < math.inf:
        parser.error("--sample_temperature is above 0.")
    if args.temperature == 0 and (args.top_k or args.top_p < 1):
        parser.error("--top_k and --top_p do nothing when greedy: raise --temperature, or drop them.")
    flags.accept()
    return args


def examine(args, procs) -> None:
    """The exam and the probes of one checkpoint; rank 0 writes and prints the result."""
    model, folder, step, run = benchmarks.load_checkpoint(args.checkpoint, procs.device)
    benchmarks.check_vocabulary(model)
    items = procs.on_main(lambda: load(args.data, args.max_examples))
    autocast = processes.autocast_for(procs.device, args.dtype)
    settings = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature,
                "top_k": args.top_k or None, "top_p": None if args.top_p == 1 else args.top_p,
                "seed": args.seed, "batch_size": args.batch_size, "bos": args.bos == "on"}
    skipped = None
    if args.skip_long:
        items, skipped = skip_long(items, settings["bos"], model.config.block_size, args.max_new_tokens)
    code, checkpoint_sha256 = snapshots.code_state(), benchmarks.weights_sha256(folder)
    # all that decides a completion; only an exam with the same key is continued
    decisive = [settings, args.sample_temperature, checkpoint_sha256, items_sha256(items), args.dtype,
                procs.device.type, code["code_sha256"]]
    data_sha256 = procs.on_main(lambda: file_sha256(args.data))
    out = benchmarks.out_folder(args, run, folder)
    resume = args.resume == "on"
    about = benchmarks.name_items(sys.modules[__name__], items, args.data, skipped)
    fuller = ""
    if out is not None and not args.out:
        fuller = fuller_exam(out, checkpoint_sha256, about["title"], len(items))
    if fuller and procs.is_main:  # before the work, not after it
        print(f"NOTE: this exam will not be stored: {out} has one of this checkpoint that says more, of {fuller}; "
              f"pass --out {out} to replace it, or another --out.", file=sys.stderr)
    with exams.unfinished(procs, out, "gsm8k_partial", decisive, resume, args.dry_run) as work:
        exam = evaluate_samples(
            model, items, procs, samples=args.samples, sample_temperature=args.sample_temperature,
            **settings, autocast=autocast, done=work.done, save=work.save, stop=work.stop,
            progress=True)
        probed = None
        if exam and args.probes == "on":
            probed = probes.evaluate(model, procs, bos=settings["bos"], autocast=autocast, done=work.done,
                                     save=work.save, stop=work.stop, progress=True)
        if exam is None or (probed is None and args.probes == "on"):
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        files = {COMPLETIONS: jsonl(exam["items"])}
        if args.samples:
            files[SAMPLES] = jsonl(exam["samples"])
        if probed:
            files[PROBES] = jsonl(probed["items"])
        config = {}
        if run is not None and (run / "config.json").exists():
            config = runs.read_config(run)
        result = {
            "type": "gsm8k", "model": (run or folder).name,
            **about,
            "checkpoint": str(folder), "step": step, **snapshots.of_scores(run, step),
            "condition": config.get("data", {}).get("condition"),  # baseline or mul_tokens
            **exam["metrics"],
            "data": args.data or f"{HUB} main test",
            "data_sha256": data_sha256,
            "checkpoint_sha256": checkpoint_sha256,
            "probes": probed and probed["metrics"], "dtype": args.dtype,
            "resumed": sum(item["id"] in work.done for item in items), "world_size": procs.world_size,
            "timestamp": runs.now(),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "code": {name: value for name, value in code.items() if name != "git_diff"},
            **processes.machine_state(procs.device),
        }
        if out is not None and not fuller:
            write_files(out, files, result)
        for record in exam["items"][: args.show]:
            print(f"problem {record['id']}: {record['question']}\n"
                  f"  wrote ({record['stopped']}): {record['completion']!r}\n"
                  f"  strict {record['strict']}, flexible {record['flexible']}, right {record['gold']}\n")
        print(report(result))
        if fuller:
            print(f"not stored: {out} has an exam that says more, of {fuller}.")
        elif out is not None:
            print(f"records are in {out}")


def fuller_exam(out: Path, weights_sha256: str, title: str, total: int) -> str:
    """What the folder's exam of the same weights is of, where it says more than one of `total` problems: official ones
    beside synthetic ones, or more of them. "" where it does not."""

    def worth(title, total) -> tuple:
        return "(synthetic" not in str(title), runs.number(total)

    try:
        old = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        says_more = worth(old["title"], old["total"]) > worth(title, total)
        if old["checkpoint_sha256"] == weights_sha256 and says_more:
            return f"{old['total']} problems ({old.get('data')})"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # none, or damaged: it is replaced
    return ""


def write_files(out: Path, files: dict[str, bytes], result: dict) -> None:
    """Write the records and, last, the result. ValueError when they cannot be written."""
    try:
        for name, content in files.items():
            disk.write_whole(out / name, content)
        disk.write_json(out / RESULTS, result)
    except OSError as error:
        why, remedy = disk.reason_of(error), disk.remedy_of(error)
        raise ValueError(f"{out} cannot be written ({why}), what was generated is kept: {remedy}, then run the same "
                         "command again.") from error


def main(argv=None) -> int:
    args = parse_flags(argv)
    with processes.start_processes(args.device) as procs:
        examine(args, procs)
    return 0


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "eval_gsm8k.py", "stopped; run the same command again to go on.")
