"""conversations.py owns conversations: from files to tokens with a mask, and from tokens to the rows of a step.

A conversation becomes   <|endoftext|>User: {q}\\nAssistant: {a}<|endoftext|>   and each further exchange follows at
once: User: {q}\\nAssistant: {a}<|endoftext|>. The prompt is eval_gsm8k.render_prompt's, and prompt and answer are
tokenised apart, so that the border lies where it lies in evaluation. A system message goes before the first question,
with a blank line between; white space around a message is dropped.

Trained are the tokens of the answers and the <|endoftext|> after each, known from spans, nothing else. An answer
without text trains its <|endoftext|> alone. GSM8K's `<<6*9=54>>` notes are taken out of its answers; under mul_tokens
the injector sees them first and replaces what it takes as a product, so the conditions' texts differ in that only.

A conversation of more than seq_len + 1 tokens loses its end, or is dropped when no trained token stays; both counted.

Records: {"messages": [{"role", "content"}, ...]} (tulu), {"question", "answer"} (gsm8k), {"question", "code"} (tinygsm;
tinygsm.py turns the program into worked steps, and {"question", "answer"} is what it has turned before), as *.jsonl,
*.jsonl.gz, *.parquet, or from the hub. GSM8K's test split is refused by name, by the file's bytes, and by every single
question (gsm8k_test_hashes.py). Caller: sft.py.
"""

import gzip
import hashlib
import heapq
import itertools
import json
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from inject_mul import ANNOTATION, MulExpressionInjector
from lab import data_order, decontaminate, disk, gsm8k_test_hashes, shards, synthetic, tinygsm
from lab.answers import render_prompt
from lab.data_order import IGNORE

STAGES = ("tulu", "gsm8k", "tinygsm")
FIELDS = ("messages", "question", "answer", "code")
HUB = {"tulu": ("allenai/tulu-3-sft-mixture", None), "gsm8k": ("openai/gsm8k", "main"),
       "tinygsm": ("TinyGSM/TinyGSM", None)}
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
CHUNK = 256  # conversations handled at once: their text is held no longer than that

# ----------------------------------------------------------------------------------------------------------------------
# records


def find_files(stage: str, paths: list[str]) -> list[Path]:
    """The files that --data names. GSM8K's test file is refused by its name and by its bytes, before it is parsed."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES))
            if not inside:
                raise FileNotFoundError(f"--data {path} holds no {', '.join(SUFFIXES)} files: name one that does.")
            files += inside
        elif not path.is_file():
            raise FileNotFoundError(f"--data {path}: no such file or folder; check the path.")
        elif not path.name.endswith(SUFFIXES):
            raise ValueError(f"--data {path} is none of {', '.join(SUFFIXES)}: convert it to one of these.")
        else:
            files.append(path)
    for path in files:
        if stage == "gsm8k" and "test" in re.split("[^a-z]+", path.name.lower()):
            raise ValueError(f"{path} is named as a test split, which training never reads: pass GSM8K's train file.")
        if disk.sha256_file(path) == gsm8k_test_hashes.TEST_FILE_SHA256:
            raise ValueError(f"{path} is GSM8K's test file, which training never reads: pass GSM8K's train file.")
    return files


def read_records(stage: str, paths: list[str], sources: list[dict]):
    """(place, record) of a source in its order; a record that is not JSON is the ValueError about it. Adds to `sources`
    what config.json says about the source."""
    if not paths:
        yield from _read_hub(stage, sources)
    elif any(path.split(":")[0] == "synthetic" for path in paths):
        yield from _read_synthetic(stage, paths, sources)
    else:
        files = find_files(stage, paths)
        sources += [{"name": path.name, "bytes": path.stat().st_size, "sha256": disk.sha256_file(path)}
                    for path in files]
        for path in files:
            yield from _read_parquet(path) if path.name.endswith(".parquet") else _read_jsonl(path)


def _read_hub(stage: str, sources: list[dict]):
    name, config = HUB[stage]
    try:
        import datasets
        import huggingface_hub

        revision = huggingface_hub.HfApi().dataset_info(name, timeout=20).sha
        sources.append({"name": name, "config": config, "split": "train", "revision": revision})
        rows = datasets.load_dataset(name, config, split="train", revision=revision, streaming=True)
        for number, record in enumerate(rows):
            yield f"{name} record {number:,}", record
    except Exception as error:  # whatever the network and three libraries come up with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{name} could not be read from the hub ({reason[:200]}): check the network, or pass local "
                         "files with --data.") from error


def _read_synthetic(stage: str, paths: list[str], sources: list[dict]):
    _, _, count = paths[0].partition(":")
    if stage != "gsm8k" or len(paths) > 1 or (count and not count.isdigit()) or count == "0":
        raise ValueError(f"--data {' '.join(paths)}: synthetic[:N] stands alone and belongs to --stage gsm8k, as in "
                         "--stage gsm8k --data synthetic:2000.")
    sources.append({"name": "synthetic", "split": "train", "items": int(count or 2000)})
    for number, item in enumerate(synthetic.gsm8k_items(int(count or 2000), split="train")):
        yield f"synthetic item {number:,}", item


def _read_jsonl(path: Path):
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if line.isspace():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                    record = ValueError(f"is not JSON ({error})")
                yield f"{path} line {number:,}", record
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read after line {number:,} ({error}): it is damaged or cut off; get it "
                         "again.") from error


def _read_parquet(path: Path):
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in FIELDS if name in file.schema_arrow.names]
        for batch in file.iter_batches(1024, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield f"{path} row {number:,}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read after row {number:,} ({str(error).splitlines()[0]}): it is damaged; "
                         "get it again.") from error


def exchanges(stage: str, record) -> list[tuple[str, ...]]:
    """[(question, answer), ...] of a record, or [(question, program, known answer or "")] of TinyGSM's. ValueError says
    what is wrong with the record, in words that follow its place."""
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError("is not an object with fields")
    has_code = stage == "tinygsm" and (record.get("code") is not None or "answer" not in record)
    for field in ["messages"] if stage == "tulu" else ["question", "code" if has_code else "answer"]:
        if field not in record:
            raise ValueError(f"has no field {field!r}, which --stage {stage} needs")
        if not isinstance(record[field], list if stage == "tulu" else str):
            raise ValueError(f"has a field {field!r} that is {type(record[field]).__name__}, not "
                             + ("a list" if stage == "tulu" else "text"))
    if has_code:
        known = record.get("answer")  # may be the number 0
        return [(record["question"].strip(), record["code"], "" if known is None else str(known))]
    if stage != "tulu":
        return [(record["question"].strip(), record["answer"].strip())]
    messages, system, question, found = record["messages"], "", None, []
    for i, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"has role {role!r} in message {i}, not system, user or assistant")
        if not isinstance(content, str):
            raise ValueError(f"has content that is {type(content).__name__}, not text, in message {i} ({role})")
        if role == "system" and i == 0:
            system = content.strip()
        elif role == "user" and question is None:
            question, system = f"{system}\n\n{content.strip()}" if system else content.strip(), ""
        elif role == "assistant" and question is not None:
            found.append((question, content.strip()))
            question = None
        else:
            raise ValueError(f"has its roles out of order: message {i} is {role} after "
                             f"{messages[i - 1]['role'] if i else 'nothing'}, but user and assistant must alternate")
    if not found:
        raise ValueError("has no assistant turn, so there is nothing to learn")
    if question is not None:
        raise ValueError("has its roles out of order: no assistant answers the last user")
    return found


def read_conversations(stage: str, paths: list[str], args, guard, counts: Counter, sources: list, dropped: list):
    """Yield (place, digest, exchanges) of a source's conversations: 16 bytes that name the original text, the same in
    every condition, and the exchanges as plain text. What is left out is counted in `counts`; a question of GSM8K's
    test split goes to `dropped` when there is a guard and the data is not GSM8K's, and is an error otherwise."""
    chosen = []  # with --max_examples a heap: the largest of the smallest hashes is on top
    for number, (place, record) in enumerate(read_records(stage, paths, sources)):
        if args.max_read and number == args.max_read:
            break
        counts["read"] += 1
        try:
            turns = exchanges(stage, record)
        except ValueError as error:
            if args.bad_conversations == "error":
                raise ValueError(f"{place} {error}: repair it, or pass --bad_conversations skip.") from None
            counts["malformed"] += 1
            continue
        asked = [message["content"] for message in record["messages"]] if stage == "tulu" else [record["question"]]
        if any(map(gsm8k_test_hashes.is_test_question, asked)):
            if guard is None or stage == "gsm8k":
                raise ValueError(f"{place} holds a question of GSM8K's test split, which training never reads: " + (
                    "pass GSM8K's train file." if stage == "gsm8k" else
                    "remove it, or drop all that benchmarks share with --decontaminate."))
            dropped.append({"place": place, "items": ["gsm8k/question"]})
            continue
        digest = shards.document_hash("\0".join(text for turn in turns for text in turn).encode(errors="replace"))
        if not args.max_examples:
            yield place, digest, turns
            continue
        # by the half of the hash that does not decide what is held out
        item = (-int.from_bytes(digest[8:], "little"), -number, place, digest, turns)
        if len(chosen) < args.max_examples:
            heapq.heappush(chosen, item)
        else:
            heapq.heappushpop(chosen, item)
    for item in sorted(chosen, key=lambda item: -item[1]):
        yield item[2:]


# ----------------------------------------------------------------------------------------------------------------------
# tokens


def answer_pieces(answer: str, injector, strip_notes: bool) -> list:
    """" " + answer as pieces: text, or (mul id, UTF-8 bytes it stands for in the baseline's text). The baseline's text
    is the answer without its GSM8K notes; an injector takes a note together with what it repeats."""
    strip = (lambda text: ANNOTATION.sub("", text)) if strip_notes else str
    pieces, text, last = [], " ", 0
    for start, end, a, b in injector.spans(answer) if injector else ():
        size = len(strip(answer[start:end]).encode(errors="replace"))
        pieces += [text + strip(answer[last:start]), (shards.MulFactTokens.id_of(a, b), size)]
        text, last = "", end
    return [piece for piece in [*pieces, text + strip(answer[last:])] if piece]


def tokenize(conversations: list[list[tuple[str, str]]], *, seq_len: int, bos: bool, injector, strip_notes: bool,
             counts: Counter) -> list[tuple]:  # fmt: skip
    """Per conversation (tokens uint16 (n,), trained bool (n,), UTF-8 bytes of the trained text); n = 0 when dropped.

    Counts truncated, tokens_cut, dropped_too_long, empty_answers, tokens, trained_tokens, mul_tokens."""
    tokenizer, texts, plans = shards.get_tokenizer(), [], []
    eos, next_text = shards.BOS_ID, -1
    for turns in conversations:
        plan = [(eos, False, 0)] if bos else []  # per piece: its id or next_text, whether it is trained, bytes of a mul
        for question, answer in turns:
            texts.append(render_prompt(question))
            plan.append((next_text, False, 0))
            counts["empty_answers"] += not answer
            for piece in answer_pieces(answer, injector, strip_notes) if answer else ():
                if isinstance(piece, str):
                    texts.append(piece)
                    plan.append((next_text, True, 0))
                else:
                    plan.append((piece[0], True, piece[1]))
            plan.append((eos, True, 0))
        plans.append(plan)
    ids, sizes = tokenizer.encode_batch([text.encode(errors="replace") for text in texts])
    pieces, table, rows = iter(np.split(ids, np.cumsum(sizes)[:-1])), tokenizer.token_byte_lengths(), []
    for plan in plans:
        row = [next(pieces) if i == next_text else np.array([i], np.uint16) for i, _, _ in plan]
        tokens = np.concatenate(row)
        trained = np.repeat([on for _, on, _ in plan], [len(piece) for piece in row])
        stands_for = table[tokens].astype(np.int64)
        stands_for[tokens >= shards.FIRST_MUL_ID] = [size for i, _, size in plan if i >= shards.FIRST_MUL_ID]
        if len(tokens) > seq_len + 1:
            stays = seq_len + 1 if trained[1 : seq_len + 1].any() else 0
            counts["truncated" if stays else "dropped_too_long"] += 1
            counts["tokens_cut"] += len(tokens) - stays
            tokens, trained, stands_for = tokens[:stays], trained[:stays], stands_for[:stays]
        counts.update(tokens=len(tokens), trained_tokens=int(trained.sum()),
                      mul_tokens=int((tokens >= shards.FIRST_MUL_ID).sum()))
        rows.append((tokens, trained, int(stands_for[trained].sum())))
    return rows


def _worked(turns: list[tuple[str, ...]], counts: Counter) -> list[tuple[str, str]]:
    """Exchanges with a program turned into its worked steps; [] when it is refused, and why is counted."""
    if len(turns[0]) == 2:
        return turns
    question, program, known = turns[0]
    steps = tinygsm.convert(question, program, known or None)
    counts.update({"programs": 1} if steps.text else {"programs": 1, "programs_refused": 1, f"({steps.reason})": 1})
    return [(question, steps.text.strip())] if steps.text else []


def load_source(stage: str, paths: list[str], args, guard, counts: Counter, sources: list, dropped: list) -> dict:
    """All of a source as flat arrays: tokens uint16 (N,), trained bool (N,); per conversation lengths, n_trained,
    answer_bytes, digest (of tokens and mask) int64 (C,) and hash V16 (C,)."""
    injector = MulExpressionInjector("weak") if args.condition == "mul_tokens" else None
    parts = {name: [] for name in "tokens trained lengths n_trained answer_bytes digest hash".split()}
    stream = read_conversations(stage, paths, args, guard, counts, sources, dropped)
    bar = tqdm(desc=f"tokenize {stage}", unit=" conversations", dynamic_ncols=True, disable=None)
    while chunk := list(itertools.islice(stream, CHUNK)):
        bar.update(len(chunk))
        hits = guard.hits_batch(["\n".join(text for turn in turns for text in turn).encode(errors="replace")
                                 for _, _, turns in chunk]) if guard else {}
        dropped += [{"place": chunk[i][0], "items": items} for i, items in hits.items()]
        chunk = [item for i, item in enumerate(chunk) if i not in hits]
        chunk = [(place, digest, _worked(turns, counts)) for place, digest, turns in chunk]
        chunk = [item for item in chunk if item[2]]
        if not chunk:
            continue
        rows = tokenize([turns for _, _, turns in chunk], seq_len=args.seq_len, bos=args.bos == "on",
                        injector=injector, strip_notes=stage == "gsm8k", counts=counts)
        parts["tokens"].append(np.concatenate([tokens for tokens, _, _ in rows]))
        parts["trained"].append(np.concatenate([trained for _, trained, _ in rows]))
        parts["lengths"].append(np.array([len(tokens) for tokens, _, _ in rows]))
        parts["n_trained"].append(np.array([int(trained.sum()) for _, trained, _ in rows]))
        parts["answer_bytes"].append(np.array([size for _, _, size in rows]))
        digests = [hashlib.blake2b(tokens.tobytes() + trained.tobytes(), digest_size=8).digest()
                   for tokens, trained, _ in rows]
        parts["digest"].append(np.frombuffer(b"".join(digests), "<i8"))
        parts["hash"].append(np.frombuffer(b"".join(digest for _, digest, _ in chunk), "V16"))
    bar.close()
    counts["contaminated"] = len(dropped)
    if not parts["tokens"]:
        raise ValueError(f"--stage {stage}: no conversation is left of {counts['read']:,} records "
                         f"({', '.join(f'{n:,} {k}' for k, n in counts.items() if n and k != 'read') or 'no data'}): "
                         "give --data that holds some.")
    return {name: np.concatenate(values) for name, values in parts.items()}


def load(args) -> dict:
    """Every conversation of a run: the arrays of load_source, source uint8 and held_out bool (C,), offsets (C + 1,),
    fingerprints, and what config.json records. A dropped conversation has length 0.

    args: stage data tinygsm_data max_read max_examples bad_conversations condition seq_len bos decontaminate
    val_fraction eval_every, as sft.py's flags. ValueError / FileNotFoundError in one sentence."""
    guard = decontaminate.from_argument(args.decontaminate)
    inputs = {args.stage: args.data}
    if args.stage == "transition":
        inputs = {"tulu": args.data, "tinygsm": args.tinygsm_data}
    pieces, record = [], {"sources": {}, "counts": {}, "contaminated": {}, "benchmarks": guard and guard.benchmarks}
    for number, (stage, paths) in enumerate(inputs.items()):
        counts, sources, dropped = Counter(), [], []
        pieces.append(load_source(stage, paths, args, guard, counts, sources, dropped))
        pieces[-1]["source"] = np.full(len(pieces[-1]["lengths"]), number, np.uint8)
        record["sources"][stage], record["counts"][stage] = sources, dict(counts)
        record["contaminated"][stage] = dropped
    data = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    data["offsets"] = np.concatenate([[0], np.cumsum(data["lengths"])]).astype(np.int64)
    data["held_out"] = shards.is_held_out([value.tobytes() for value in data["hash"]],
                                          args.val_fraction if args.eval_every else 0.0)
    data["stages"], data["record"] = list(inputs), record
    # the order depends on the texts and not on how they are tokenised: both conditions read them in the same order
    data["fingerprint_texts"] = hashlib.sha256(data["hash"].tobytes() + data["source"].tobytes()).hexdigest()
    data["fingerprint"] = hashlib.sha256(data["digest"].tobytes() + data["source"].tobytes()).hexdigest()
    usable = data["lengths"] > 0
    for number, stage in enumerate(data["stages"]):
        mine = data["source"] == number
        if not (mine & usable & ~data["held_out"]).any():
            raise ValueError(f"--stage {stage}: of {int(mine.sum()):,} conversations {int((mine & ~usable).sum()):,} "
                             f"are too long for --seq_len {args.seq_len} and the rest is held out, so none is left to "
                             "train on: raise --seq_len, lower --val_fraction, or give more --data.")
    if args.eval_every and not (usable & data["held_out"]).any():
        raise ValueError(f"--val_fraction {args.val_fraction} holds out none of {len(usable):,} conversations: raise "
                         "it, give more --data, or pass --eval_every 0.")
    return data


# ----------------------------------------------------------------------------------------------------------------------
# order and rows


def plan_order(data: dict, n: int, seed: int, mix: tuple[float, float]) -> np.ndarray:
    """Which conversation stands at each of the run's n positions, int64 (n,).

    Each source is read in data_order's epochs. With two, position p takes from the second with a probability that goes
    linearly from mix[0] at the first position to mix[1] at the last, by a random number of its own."""

    def of_source(source: int, count: int) -> np.ndarray:
        numbers, found, epoch, left = np.flatnonzero((data["source"] == source) & ~data["held_out"]), [], 0, count
        while left > 0:
            order = numbers[data_order.epoch_order(f"{data['fingerprint_texts']}|{source}", seed, epoch, len(numbers))]
            order = order[data["lengths"][order] > 0][:left]  # those dropped leave the others in their order
            found.append(order)
            left, epoch = left - len(order), epoch + 1
        return np.concatenate([np.empty(0, np.int64), *found])

    if len(data["stages"]) == 1:
        return of_source(0, n)
    share = mix[0] + (mix[1] - mix[0]) * np.arange(n) / max(n - 1, 1)
    key = hashlib.sha256(f"{data['fingerprint_texts']}|{seed}|mix".encode()).digest()
    drawn = (np.random.Philox(key=np.frombuffer(key[:16], np.uint64)).random_raw(n) >> np.uint64(11)) * 2.0**-53
    second, plan = drawn < share, np.empty(n, np.int64)
    plan[second], plan[~second] = of_source(1, int(second.sum())), of_source(0, int((~second).sum()))
    return plan


def pack(lengths: list[int], width: int, packing: bool) -> list[list[int]]:
    """Rows as lists of numbers of conversations: first fit, longest first; without packing each has a row to itself.

    lengths: tokens of each conversation, at most width + 1: the last one is only predicted and takes no place."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if not packing:
        return [[i] for i in order]
    rows, room = [], []
    for i in order:
        r = next((r for r, left in enumerate(room) if left >= lengths[i] - 1), len(rows))
        if r == len(rows):
            rows.append([])
            room.append(width)
        rows[r].append(i)
        room[r] -= lengths[i] - 1
    return rows


def make_batch(data: dict, rows: list[list[int]], width: int = 0) -> dict[str, torch.Tensor]:
    """Rows of conversation numbers as int64 tensors: x, y, positions, segments (B, T), T the longest row or `width`.

    y is the token after x where it is trained, else -100. positions start at 0 in each conversation; segments say which
    of its row's a position belongs to, -1 for padding. where (M,): the flat positions that are trained; owner (M,):
    the number of the conversation each is of."""
    offsets = data["offsets"]
    width = max(width, *(int(sum(data["lengths"][row])) - len(row) for row in rows))
    x, y = np.full((len(rows), width), shards.BOS_ID, np.int64), np.full((len(rows), width), IGNORE, np.int64)
    positions, segments, owner = np.zeros_like(x), np.full_like(x, -1), np.zeros_like(x)
    for r, row in enumerate(rows):
        at = 0
        for segment, number in enumerate(row):
            tokens = data["tokens"][offsets[number] : offsets[number + 1]].astype(np.int64)
            trained = data["trained"][offsets[number] : offsets[number + 1]]
            here = slice(at, at + len(tokens) - 1)
            x[r, here], y[r, here] = tokens[:-1], np.where(trained, tokens, IGNORE)[1:]
            positions[r, here], segments[r, here], owner[r, here] = np.arange(len(tokens) - 1), segment, number
            at = here.stop
    where = np.flatnonzero(y != IGNORE)
    batch = {"x": x, "y": y, "positions": positions, "segments": segments, "where": where, "owner": owner.flat[where]}
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def show(batch: dict) -> str:
    """The first conversation of a batch as text, from the very tensors that are trained on: [[ ]] around what the loss
    is taken of."""
    inside = batch["segments"][0] == 0
    x, y = batch["x"][0][inside].tolist(), batch["y"][0][inside].tolist()
    tokens = [*x, y[-1]] if y[-1] != IGNORE else x
    text = ""
    for on, group in itertools.groupby(zip(tokens, [IGNORE, *y], strict=False), key=lambda pair: pair[1] != IGNORE):
        piece = shards.get_tokenizer().decode([token for token, _ in group])
        text += f"[[{piece}]]" if on else piece
    return text
