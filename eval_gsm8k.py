r"""eval_gsm8k.py owns the exam: GSM8K problems, completions and their marks.

    python eval_gsm8k.py --checkpoint experiments/runs/<run> --data gsm8k/test.jsonl --max_examples 200    # CPU, 1 GPU
    python eval_gsm8k.py --checkpoint <folder> --data synthetic:200 --probes off                           # no network
    torchrun --standalone --nproc_per_node=8 eval_gsm8k.py --checkpoint experiments/runs/<run>             # hub, 8 GPUs

Reads a checkpoint and problems (--data; by default the hub's openai/gsm8k, main, test: 1,319). Writes into --out
gsm8k_completions.jsonl and probes.jsonl (one line per item) and, last, gsm8k_results.json, which names their sha256.
An interrupted exam continues when the same command is run again. A problem:

    {"question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts ...?",
     "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total ... is 2+1=<<2+1=3>>3 bolts ...\n#### 3"}

The model reads <|endoftext|> (--bos) and `User: {question}\nAssistant:`, and writes until <|endoftext|>, a new `User:`,
--max_new_tokens, or the end of its block_size. Then every `<MUL_6_9_54>` in its text, one token or literal text, is
expanded to `6*9=54`, in every arm alike. lab/answers.py reads the answer by two rules, and answers are compared as
exact numbers:

    strict    the number after the first `####` that has one on its line
    flexible  the last number of the text

`accuracy` is strict. A wrong answer and no answer both score 0; the shares without an answer are reported separately.
If injection turned a bare `6*9` into its token, expansion adds a result that the other arm's text does not have:
`accuracy_unexpanded` is strict on the text as written, where digits of a multiplication token are never an answer.
A prompt that leaves fewer than ROOM_STEP tokens of block_size is scored wrong, not cut, and counted (`too_long`). Room
for fewer than --max_new_tokens is rounded down to a multiple of it, so that problems can share a batch (`short_room`).

--probes adds 281 sums and products, see lab/probes.py.

>>> items = eval_gsm8k.load("gsm8k/test.jsonl")
>>> eval_gsm8k.evaluate(model, items)["metrics"]["accuracy"]
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

from inject_mul import MulExpressionInjector
from lab import benchmarks, disk, inference, probes, processes, runs, sources, synthetic
from lab.answers import LITERAL_MUL, MARK, SCORER, USER, answer_text, extract_answer, render_prompt
from lab.benchmarks import shares
from lab.tokenizer import BOS_ID, get_tokenizer

ROOM_STEP = 16  # tokens: the shortest worked answer, such as " 2 + 3 = 5\n#### 5" and <|endoftext|>
N_SYNTHETIC = 200
FILES = ("gsm8k_completions.jsonl", "probes.jsonl", "gsm8k_results.json")
PARTIAL = "gsm8k_partial"
RULES = {  # stands in every record
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
    """Problems of a jsonl[.gz] file, of "synthetic" or "synthetic:<n>" (test split), or ("" or None) of the hub.

    Each is {"id", "cluster", "question", "gold" (Fraction)}; the id is the line's number and a hash of the question.
    max_examples: that many, spread evenly (0 = all). ValueError or FileNotFoundError, one sentence, for what is wrong.
    """
    source = str(source or "")
    n = sources.synthetic_size(source, N_SYNTHETIC)
    if n:
        rows = enumerate(synthetic.gsm8k_items(n, split="test"), 1)
    elif source:
        rows = ((place.number, row) for place, row in sources.read_records(source))
    else:
        rows = enumerate(hub_rows(), 1)
    return benchmarks.spread_evenly(check(rows, source or "openai/gsm8k"), max_examples)


def hub_rows():
    """GSM8K's test split from the hub, or from the copy that `datasets` keeps. ValueError without either."""
    import datasets

    try:
        return datasets.load_dataset("openai/gsm8k", "main", split="test")
    except Exception as error:  # datasets, huggingface_hub and httpx each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"openai/gsm8k cannot be had from the hub ({reason}): check the network, "
                         "or pass --data with a local test.jsonl, or --data synthetic.") from error


def check(rows, source) -> list[dict]:
    """(line number, row) pairs as problems. ValueError names the first line that is wrong."""
    items = []
    for number, row in rows:
        if fault := fault_of(row):
            raise ValueError(f"{source}, line {number} {fault}: repair or remove it, or name another --data.")
        question = row["question"].strip()
        name = f"{number:05d}-{hashlib.sha256(question.encode()).hexdigest()[:8]}"
        gold = extract_answer(row["answer"])
        items.append({"id": name, "cluster": name, "question": question, "gold": gold})
    if not items:
        raise ValueError(f"{source} has no problems: name another --data.")
    return items


def fault_of(row) -> str | None:
    """What keeps a row from being a problem; None for a problem."""
    if isinstance(row, sources.BadRecord):
        return row.why
    if not isinstance(row, dict):
        return "is not a JSON object"
    for name in ("question", "answer"):
        text = row.get(name)
        if not isinstance(text, str) or not text.strip():
            return f"has no text under {name!r}"
        if sources.has_lone_surrogate(text):
            return f"has half a character under {name!r} (a lone surrogate)"
    if extract_answer(row["answer"]) is None:
        return f"has an answer without a number after {MARK}"
    return None


def items_sha256(items: list[dict]) -> str:
    """Of the questions and right answers, in their order."""
    content = json.dumps([[item["question"], str(item["gold"])] for item in items])
    return hashlib.sha256(content.encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# GSM8K


def evaluate(model, items: list[dict], procs=None, *, bos: bool = True, max_new_tokens: int = 256,
             temperature: float = 0.0, top_k=None, top_p=None, seed: int = 0, batch_size: int = 32,
             autocast=contextlib.nullcontext, done=None, save=None, progress: bool = False) -> dict:
    """{"metrics": {...}, "items": [record per problem, in the order of items]}, the same on every rank and for any
    number of ranks.

    model: a GPT or its compiled wrapper. autocast: a function that gives the context to compute in (default: fp32).
    items: from load(), or {"question", "answer"} rows. temperature 0: greedy; otherwise each problem draws from
    (seed, its id). done: {id: record} of an earlier try, the same on every rank; save(records) is called after each
    batch on the rank that did it. ValueError: a vocabulary that is not GPT-2's, options out of range."""
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    benchmarks.check_vocabulary(model)
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}: give at least 1.")
    if not items or "gold" not in items[0]:
        items = check(enumerate(items, 1), "the items")
    prompts = [benchmarks.encode_prompt(render_prompt(item["question"]), bos) for item in items]
    rooms = [room_after(len(prompt), model.config.block_size, max_new_tokens) for prompt in prompts]
    done, decode = done or {}, get_tokenizer().decode

    def answer(batch):
        ids = [items[i]["id"] for i in batch]
        if all(name in done for name in ids):
            return [done[name] for name in ids]
        with autocast():
            completions = inference.generate(
                model, [prompts[i] for i in batch], rooms[batch[0]], temperature=temperature,
                top_k=top_k, top_p=top_p, seed=seed, stop_ids=(BOS_ID,),
                stop_strings=(USER,), decode=decode, row_ids=ids)
        records = []
        for i, completion in zip(batch, completions, strict=True):
            written, stopped = completion.ids, completion.stopped
            text = decode(written).partition(USER)[0]
            records.append(mark(items[i], len(prompts[i]), text, len(written), stopped))
        if save is not None:
            save(records)
        return records

    batches = benchmarks.make_batches(prompts, rooms, batch_size)
    records = benchmarks.write_answers(procs, batches, len(items), answer, "gsm8k", progress)
    for i, record in enumerate(records):
        if record is None:
            records[i] = mark(items[i], len(prompts[i]), "", 0, "too_long")
    decoding = "greedy" if temperature == 0 else "sampled"
    metrics = summarise(records) | {
        "rules": RULES,
        "bos": bos, "max_new_tokens": max_new_tokens, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "seed": seed, "batch_size": batch_size,
        "short_room": sum(0 < room < max_new_tokens for room in rooms),
        "stop": ["<|endoftext|>", USER],
        "template": render_prompt("{question}"),
        "scorer": f"{SCORER} bos={int(bos)} {decoding}",
        "items_sha256": items_sha256(items),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return {"metrics": metrics, "items": records}


def room_after(prompt_tokens: int, block_size: int, max_new_tokens: int) -> int:
    """New tokens that fit after a prompt: max_new_tokens, or fewer in steps of ROOM_STEP."""
    room = block_size - prompt_tokens
    if room >= max_new_tokens:
        return max_new_tokens
    return max(0, room // ROOM_STEP * ROOM_STEP)


def mark(item: dict, prompt_tokens: int, completion: str, tokens: int, stopped: str) -> dict:
    """The record of one problem. completion: as the model wrote it, multiplication tokens not expanded."""
    expanded, gold = MulExpressionInjector().expand(completion), item["gold"]
    strict, flexible = extract_answer(expanded), extract_answer(expanded, "flexible")
    credit = {
        "accuracy": float(strict == gold),
        "accuracy_flexible": float(flexible == gold),
        "accuracy_unexpanded": float(extract_answer(completion) == gold),
    }
    return {
        **{key: item[key] for key in ("id", "cluster", "question")},
        "prompt_tokens": prompt_tokens, "completion": completion, "tokens": tokens,
        "stopped": stopped, "gold": answer_text(gold), "strict": answer_text(strict),
        "flexible": answer_text(flexible), "credit": credit,
    }


def summarise(records: list[dict]) -> dict:
    """The metrics of marked problems; every share with its interval."""
    credit = {name: [record["credit"][name] for record in records] for name in records[0]["credit"]}
    stopped = Counter(record["stopped"] for record in records)
    golds = Counter(record["gold"] for record in records)
    texts = [record["completion"] for record in records]
    own_end = ("stop_id", "stop_string")
    return {
        "correct": int(sum(credit["accuracy"])),
        "total": len(records),
        **shares(**credit,
                 no_answer_strict=[record["strict"] is None for record in records],
                 no_answer_flexible=[record["flexible"] is None for record in records],
                 stopped_by_itself=[record["stopped"] in own_end for record in records],
                 has_mark=[MARK in text for text in texts],
                 has_mul_token=[LITERAL_MUL.search(text) is not None for text in texts]),
        "stopped_at_end_of_text": stopped["stop_id"],
        "stopped_at_user": stopped["stop_string"],
        "stopped_at_limit": stopped["length"],
        "too_long": stopped["too_long"],
        "tokens_generated": sum(record["tokens"] for record in records),
        # what always giving the same answer would get: chance, for an exam with few different answers
        "most_frequent_answer_share": max(golds.values()) / len(records),
    }


# ----------------------------------------------------------------------------------------------------------------------
# records


def jsonl(records: list[dict]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@contextlib.contextmanager
def append_partial(folder: Path, rank: int, key: str):
    """A function that appends records to this rank's file of unfinished work. Nothing there is ever rewritten."""
    path = folder / f"{PARTIAL}.rank{rank:04d}.jsonl"
    with open(path, "a", encoding="utf-8", buffering=1) as partial:
        if partial.tell():
            partial.write("\n")  # a kill may have torn the last line

        def save(records):
            partial.writelines(json.dumps({"key": key, **record}) + "\n" for record in records)

        yield save


def read_partial(folder: Path, key: str) -> dict[str, dict]:
    """{id: record} of what exams with this key have appended in folder, on however many ranks."""
    done = {}
    for path in sorted(folder.glob(f"{PARTIAL}.rank*.jsonl")):
        for record in runs.read_jsonl(path, notes=[]):  # leaves out torn lines
            if record.pop("key", None) == key:
                done[record["id"]] = record
    return done


def drop_partial(folder: Path) -> None:
    for path in folder.glob(f"{PARTIAL}*.jsonl"):
        path.unlink()


def report(result: dict) -> str:
    """What the command prints: the shares with their intervals, then the probes."""
    lines = [
        f"GSM8K, {result['total']:,} problems of {result['data']} | {result['checkpoint']}",
        f"{result['scorer']}, {result['dtype']}, {result['tokens_generated']:,} tokens, "
        f"{result['too_long']} prompts too long, always the commonest answer "
        f"{result['most_frequent_answer_share']:.4f}",
    ]
    for name in ("accuracy", "accuracy_flexible", "accuracy_unexpanded", "no_answer_strict",
                 "no_answer_flexible", "stopped_by_itself", "has_mark", "has_mul_token"):
        low, high = result[f"{name}_interval"]
        lines.append(f"{name:<20} {result[name]:.4f}  [{low:.4f}, {high:.4f}]")
    if result["probes"]:
        lines.append(probes.table(result["probes"]))
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# command line


def parse_flags(argv) -> argparse.Namespace:
    parser = benchmarks.make_parser(
        "eval_gsm8k", "GSM8K accuracy and arithmetic probes",
        data="jsonl[.gz] file, or synthetic[:n] ('' = openai/gsm8k, main, test, from the hub)",
        out="folder for the three files ('' = the checkpoint's run, or its own folder)",
        batch="problems at once (default 32); no effect on results but rounding", batch_size=32)
    add = parser.add_argument_group("exam; the probes are greedy").add_argument
    add("--max_new_tokens", type=int, default=256, help="tokens at most, and never beyond block_size (default 256)")
    add("--temperature", type=float, default=0.0, help="0 = greedy (default)")
    add("--top_k", type=int, default=0, help="ids to draw from (0 = all)")
    add("--top_p", type=float, default=1.0, help="probability to draw from (1 = all)")
    add("--seed", type=int, default=0, help="of sampling; without effect when greedy (default 0)")
    add("--resume", choices=("on", "off"), default="on", help="continue this exam if it was interrupted (default on)")
    add("--probes", choices=("on", "off"), default="on", help="the arithmetic probes, too (default on)")
    args = benchmarks.parse_counts(parser, argv, top_k=0, max_new_tokens=1, batch_size=1)
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        parser.error("--temperature is 0 (greedy) or more, --top_p above 0 and up to 1.")
    if args.temperature == 0 and (args.top_k or args.top_p < 1):
        parser.error("--top_k and --top_p do nothing when greedy: give a --temperature above 0, or drop them.")
    return args


def main(argv=None) -> int:
    args = parse_flags(argv)
    procs = processes.start_processes(args.device)
    try:
        examine(args, procs)
    finally:
        procs.close()
    return 0


def examine(args, procs) -> None:
    """The exam and the probes of one checkpoint; rank 0 writes and prints the result."""
    model, folder, step, run = benchmarks.load_checkpoint(args.checkpoint, procs.device)
    benchmarks.check_vocabulary(model)
    items = procs.on_main(lambda: load(args.data, args.max_examples))
    _, autocast = processes.autocast_for(procs.device, args.dtype)
    names = "max_new_tokens temperature top_k top_p seed batch_size".split()
    settings = {name: getattr(args, name) for name in names} | {"bos": args.bos == "on"}
    settings |= {"top_k": args.top_k or None, "top_p": None if args.top_p == 1 else args.top_p}
    code, checkpoint_sha256 = runs.code_state(), disk.sha256_file(folder / "model.safetensors")
    # all that decides a completion; only an exam with the same key is continued
    decisive = [settings, checkpoint_sha256, items_sha256(items), args.dtype, procs.device.type,
                code["code_sha256"]]
    key = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
    out = Path(args.out or run or folder)

    def open_out():
        runs.make_folder(out, "--out")
        if args.resume == "off":
            drop_partial(out)
        return read_partial(out, key)

    done = procs.on_main(open_out)
    if done and procs.is_main:
        print(f"continuing an interrupted exam: {len(done)} of {len(items)} problems are done", file=sys.stderr)
    with append_partial(out, procs.rank, key) as save:
        exam = evaluate(model, items, procs, **settings, autocast=autocast, done=done, save=save,
                        progress=True)
    files, probed = {FILES[0]: jsonl(exam["items"])}, None
    if args.probes == "on":
        answers = probes.evaluate(model, procs, bos=settings["bos"], autocast=autocast, progress=True)
        files[FILES[1]], probed = jsonl(answers["items"]), answers["metrics"]
    if not procs.is_main:
        return
    result = {
        "type": "gsm8k", "model": (run or folder).name, "checkpoint": str(folder), "step": step,
        "condition": condition_of(run),
        **exam["metrics"],
        "data": args.data or "openai/gsm8k main test",
        "data_sha256": disk.sha256_file(args.data) if Path(args.data).is_file() else None,
        "checkpoint_sha256": checkpoint_sha256,
        "probes": probed,
        "dtype": args.dtype, "resumed": len(done), "world_size": procs.world_size,
        "timestamp": runs.now(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "code": {name: value for name, value in code.items() if name != "git_diff"},
        **processes.machine_state(procs.device),
    }
    try:
        for name, content in files.items():
            disk.write_whole(out / name, content)
        disk.write_json(out / FILES[2], result)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}), what was generated is kept: "
                         "free some space and run the same command again.") from error
    drop_partial(out)
    for record in exam["items"][: args.show]:
        print(f"problem {record['id']}: {record['question']}\n"
              f"  wrote ({record['stopped']}): {record['completion']!r}\n"
              f"  strict {record['strict']}, flexible {record['flexible']}, right {record['gold']}\n")
    print(f"{report(result)}\nrecords are in {out}")


def condition_of(run: Path | None) -> str | None:
    """baseline or mul_tokens, as the run's config.json states it."""
    if run is None or not (run / "config.json").exists():
        return None
    return runs.read_json(run / "config.json").get("data", {}).get("condition")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "eval_gsm8k.py", "stopped; run the same command again to go on.")
