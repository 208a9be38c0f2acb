"""conversations.py owns conversations: from files to tokens with a mask, and from tokens to the rows of a step.

A conversation becomes   <|endoftext|>User: {q}\\nAssistant: {a}<|endoftext|>   and each further exchange follows at
once: User: {q}\\nAssistant: {a}<|endoftext|>. Prompt (answers.render_prompt) and answer are tokenised apart, so that
the border lies where it lies in evaluation. A system message goes before the first question, with a blank line between;
white space around a message is dropped.

The loss is taken over the tokens of the answers and the <|endoftext|> after each (of an answer without text, over that
alone); the mask is built from spans, never from ids. GSM8K's `<<6*9=54>>` notes are removed from its answers; under
mul_tokens the injector sees them first and replaces the products among them, the only difference between the two
conditions. A conversation of more than seq_len + 1 tokens loses its end, or is dropped when no trained token is left.

Records: {"messages": [{"role", "content"}, ...]} (tulu), {"question", "answer"} (gsm8k), {"question", "code"} (tinygsm,
whose programs tinygsm.py turns into worked steps; or {"question", "answer"}, where it has already), in the files that
sources.py reads, or from the hub. GSM8K's test split is refused by name, by the file's bytes and by every single
question, wherever it stands in a conversation (decontaminate.py).
"""

import argparse
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from inject_mul import ANNOTATION, MulExpressionInjector
from lab import data_order, decontaminate, disk, files, retries, shards, sources, synthetic, tinygsm
from lab.answers import render_prompt
from lab.data_order import IGNORE
from lab.tokenizer import bos_id, get_tokenizer, special_texts

STAGES = ("tulu", "gsm8k", "tinygsm")
FIELDS = ("messages", "question", "answer", "code")
HUB = {"tulu": ("allenai/tulu-3-sft-mixture", None), "gsm8k": ("openai/gsm8k", "main"),
       "tinygsm": ("TinyGSM/TinyGSM", None)}
N_SYNTHETIC = 2000
CHUNK = 256  # conversations handled at once: their text is held no longer than that

# ----------------------------------------------------------------------------------------------------------------------
# records


def find_files(stage: str, names: list[str]) -> list[Path]:
    """The files that --data names. GSM8K's test file is refused by its name and by its bytes, before it is parsed."""
    paths = list(map(Path, files.find(names, sources.RECORD_READERS)))
    for path in paths:
        named_test = stage == "gsm8k" and "test" in files.words_of(path.name)
        if named_test or disk.sha256_file(path) == decontaminate.TEST_FILE_SHA256:
            fault = "named as a test split" if named_test else "GSM8K's test file"
            raise ValueError(f"{path} is {fault}, which training never reads: pass GSM8K's train file.")
    return paths


def read_source(stage: str, paths: list[str], about: list[dict]) -> Iterator[tuple[str, object]]:
    """(place, record) of a source in its order. Adds to `about` what config.json says about the source."""
    if not paths:
        name, config = HUB[stage]
        with retries.hub_errors(name):
            revision = sources.hub_revision(name)
        about.append({"name": name, "config": config, "split": "train", "revision": revision})
        for number, record in enumerate(sources.hub_records(name, config, "train", revision)):
            yield f"{name} record {number:,}", record
    elif any(path.split(":")[0] == "synthetic" for path in paths):
        if stage != "gsm8k" or len(paths) > 1:
            raise ValueError(f"--data {' '.join(paths)}: synthetic[:N] stands alone and belongs to "
                             f"--stage gsm8k, as in --stage gsm8k --data synthetic:{N_SYNTHETIC}.")
        n = sources.synthetic_size(paths[0], N_SYNTHETIC)
        about.append({"name": "synthetic", "split": "train", "items": n})
        for number, item in enumerate(synthetic.gsm8k_items(n, split="train")):
            yield f"synthetic item {number:,}", item
    else:
        inputs = find_files(stage, paths)
        for path in inputs:
            digest = disk.sha256_file(path)
            about.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
        for path in inputs:
            yield from sources.read_records(path, FIELDS)


def exchanges(stage: str, record) -> list[tuple[str, ...]]:
    """[(question, answer), ...] of a record, or [(question, program, known answer or "")] of TinyGSM's. ValueError:
    what is wrong, in words that follow the record's place."""
    if isinstance(record, sources.BadRecord):
        raise ValueError(record.why)
    if not isinstance(record, dict):
        raise ValueError("is not an object with fields")
    turns = _turns(stage, record)
    if any(sources.has_lone_surrogate(text) for turn in turns for text in turn):
        raise ValueError("has half a character (a lone surrogate) in a text")
    return turns


def _turns(stage: str, record: dict) -> list[tuple[str, ...]]:
    if stage == "tulu":
        return _chat(_field(record, "messages", list))
    question = _field(record, "question").strip()
    if stage == "gsm8k" or (record.get("code") is None and "answer" in record):
        return [(question, _field(record, "answer").strip())]
    program, known = _field(record, "code"), record.get("answer")
    known = "" if known is None else str(known)  # the number 0 is a known answer
    return [(question, program, known)]


def _field(record: dict, name: str, kind: type = str):
    if name not in record:
        raise ValueError(f"has no field {name!r}, which its --stage needs")
    if not isinstance(record[name], kind):
        raise ValueError(f"has a field {name!r} that is {type(record[name]).__name__}, not {kind.__name__}")
    return record[name]


def _chat(messages: list) -> list[tuple[str, str]]:
    """(question, answer) pairs of messages: a system message if there is one, then user and assistant in turn."""
    roles, texts = [], []
    for i, message in enumerate(messages):
        message = message if isinstance(message, dict) else {}
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"has role {role!r} in message {i}, not system, user or assistant")
        if not isinstance(content, str):
            raise ValueError(f"has content that is {type(content).__name__}, not text, in message {i}")
        roles.append(role)
        texts.append(content.strip())
    system = ""
    if roles[:1] == ["system"]:
        system, roles, texts = texts[0], roles[1:], texts[1:]
    for i, role in enumerate(roles, 1):
        if role != ("assistant", "user")[i % 2]:
            raise ValueError(f"has its roles out of order: turn {i} is {role}, but they must alternate")
    if len(roles) < 2:
        raise ValueError("has no assistant turn, so there is nothing to learn")
    if len(roles) % 2:
        raise ValueError("has its roles out of order: no assistant answers the last user")
    if system:
        texts[0] = f"{system}\n\n{texts[0]}"
    return list(zip(texts[::2], texts[1::2], strict=True))


def read_conversations(stage: str, paths: list[str], args, guard, counts: Counter, about: list, dropped: list):
    """Yield (place, digest, exchanges) of a source's conversations. digest: 16 bytes that name the original text, the
    same in every condition. `counts` counts the records read and left out. A question of GSM8K's test split is an
    error; with a guard, in data other than GSM8K's, it goes to `dropped`."""
    source = itertools.islice(read_source(stage, paths, about), args.max_read or None)
    while chunk := list(itertools.islice(source, CHUNK)):
        kept = []
        for place, record in chunk:
            counts["read"] += 1
            try:
                kept.append((place, exchanges(stage, record)))
            except ValueError as error:
                if args.bad_conversations == "error":
                    raise ValueError(f"{place} {error}: repair it, or pass --bad_conversations skip.") from None
                counts["malformed"] += 1
        texts = ["\n".join(text for turn in turns for text in turn) for _, turns in kept]
        held = decontaminate.test_questions_in(texts)
        for i, (place, turns) in enumerate(kept):
            if i in held:
                question = f"{place} holds a question of GSM8K's test split, which training never reads"
                if stage == "gsm8k":
                    raise ValueError(f"{question}: pass GSM8K's train file.")
                if guard is None:
                    raise ValueError(f"{question}: remove it, or drop all that benchmarks share with --decontaminate.")
                dropped.append({"place": str(place), "items": ["gsm8k/question"]})
                continue
            utf8 = "\0".join(text for turn in turns for text in turn).encode()
            if special_texts([utf8]):
                counts["with_special_texts"] += 1
            yield place, shards.document_hash(utf8), turns


def sample(conversations, n: int) -> list:
    """The n conversations with the smallest hashes, in their order. The other half of the hash decides what is held
    out."""
    def rank(numbered):
        number, (_, digest, _) = numbered
        return int.from_bytes(digest[8:], "little"), number

    chosen = heapq.nsmallest(n, enumerate(conversations), rank)
    return [conversation for _, conversation in sorted(chosen, key=lambda numbered: numbered[0])]


# ----------------------------------------------------------------------------------------------------------------------
# tokens


def answer_pieces(answer: str, injector, strip_notes: bool) -> list[tuple]:
    """" " + answer as pieces: (text, None), or (mul id, UTF-8 bytes it stands for in the baseline's text). That text is
    the answer without its GSM8K notes; an injector takes a note together with what it repeats."""
    def baseline(text: str) -> str:
        return ANNOTATION.sub("", text) if strip_notes else text

    spans = injector.spans(answer) if injector else []
    pieces, text, last = [], " ", 0
    for start, end, a, b in spans:
        size = len(baseline(answer[start:end]).encode())
        pieces.append((text + baseline(answer[last:start]), None))
        pieces.append((shards.MulFactTokens.id_of(a, b), size))
        text, last = "", end
    pieces.append((text + baseline(answer[last:]), None))
    return [piece for piece in pieces if piece[0]]


def tokenize(conversations: list[list[tuple[str, str]]], *, seq_len: int, bos: bool, injector, strip_notes: bool,
             counts: Counter) -> list[tuple]:
    """Per conversation (tokens uint16 (n,), trained bool (n,), UTF-8 bytes of the trained text); n = 0 when dropped.
    Counts truncated, tokens_cut, dropped_too_long, empty_answers, tokens, trained_tokens, mul_tokens."""
    tokenizer, eos = get_tokenizer(), bos_id()
    plans = []  # of each conversation its pieces: (text or one id, whether it is trained, bytes a mul id stands for)
    for turns in conversations:
        plan = [(eos, False, None)] if bos else []
        for question, answer in turns:
            plan.append((render_prompt(question), False, None))
            counts["empty_answers"] += not answer
            pieces = answer_pieces(answer, injector, strip_notes) if answer else []
            plan += [(content, True, size) for content, size in pieces]
            plan.append((eos, True, None))
        plans.append(plan)
    texts = [content for plan in plans for content, _, _ in plan if isinstance(content, str)]
    ids, sizes = tokenizer.encode_batch([text.encode() for text in texts])
    encoded = iter(np.split(ids, np.cumsum(sizes)[:-1]))
    byte_lengths = tokenizer.token_byte_lengths()
    rows = []
    for plan in plans:
        pieces = []
        for content, _, _ in plan:
            is_text = isinstance(content, str)
            pieces.append(next(encoded) if is_text else np.array([content], np.uint16))
        tokens = np.concatenate(pieces)
        trained = np.repeat([on for _, on, _ in plan], [len(piece) for piece in pieces])
        n_bytes = byte_lengths[tokens].astype(np.int64)
        n_bytes[tokens >= tokenizer.first_mul_id] = [size for _, _, size in plan if size is not None]
        if len(tokens) > seq_len + 1:
            keep, kind = seq_len + 1, "truncated"
            if not trained[1:keep].any():
                keep, kind = 0, "dropped_too_long"
            counts[kind] += 1
            counts["tokens_cut"] += len(tokens) - keep
            tokens, trained, n_bytes = tokens[:keep], trained[:keep], n_bytes[:keep]
        counts.update(tokens=len(tokens), trained_tokens=int(trained.sum()),
                      mul_tokens=int((tokens >= tokenizer.first_mul_id).sum()))
        rows.append((tokens, trained, int(n_bytes[trained].sum())))
    return rows


def _worked(turns: list[tuple[str, ...]], counts: Counter) -> list[tuple[str, str]]:
    """Exchanges with a program turned into its worked steps; [] when it is refused, and why is counted."""
    if len(turns[0]) == 2:
        return turns
    question, program, known = turns[0]
    steps = tinygsm.convert(question, program, known or None)
    counts["programs"] += 1
    if not steps.text:
        counts.update({"programs_refused": 1, f"({steps.reason})": 1})
        return []
    return [(question, steps.text.strip())]


def usable(chunk: list[tuple], guard, counts: Counter, dropped: list) -> list[tuple]:
    """(digest, exchanges) of those of a chunk, (place, digest, exchanges), that share no text with a benchmark, which
    go to `dropped`, and whose program was not refused."""
    hits = {}
    if guard is not None:
        texts = ["\n".join(text for turn in turns for text in turn) for _, _, turns in chunk]
        hits = guard.hits_batch([text.encode() for text in texts])
    dropped += [{"place": str(chunk[i][0]), "items": items} for i, items in hits.items()]
    kept = [(digest, _worked(turns, counts)) for i, (_, digest, turns) in enumerate(chunk) if i not in hits]
    return [(digest, turns) for digest, turns in kept if turns]


def load_source(stage: str, paths: list[str], args, guard, counts: Counter, about: list, dropped: list) -> dict:
    """All of a source as flat arrays: tokens uint16 (N,), trained bool (N,); per conversation lengths, n_trained,
    answer_bytes, digest (of tokens and mask) int64 (C,) and hash V16 (C,)."""
    injector = MulExpressionInjector("weak") if args.condition == "mul_tokens" else None
    rows, hashes = [], []
    stream = read_conversations(stage, paths, args, guard, counts, about, dropped)
    if args.max_examples:
        stream = iter(sample(stream, args.max_examples))
    bar = tqdm(desc=f"tokenize {stage}", unit=" conversations", dynamic_ncols=True, disable=None)
    while chunk := list(itertools.islice(stream, CHUNK)):
        bar.update(len(chunk))
        conversations = []
        for digest, turns in usable(chunk, guard, counts, dropped):
            hashes.append(digest)
            conversations.append(turns)
        if conversations:
            rows += tokenize(conversations, seq_len=args.seq_len, bos=args.bos == "on", injector=injector,
                             strip_notes=stage == "gsm8k", counts=counts)
    bar.close()
    counts["contaminated"] = len(dropped)
    if not rows:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n and kind != "read")
        raise ValueError(f"--stage {stage}: no conversation is left of {counts['read']:,} records "
                         f"({kinds or 'no data'}): give --data that holds some.")
    digests = [hashlib.blake2b(tokens.tobytes() + trained.tobytes(), digest_size=8).digest()
               for tokens, trained, _ in rows]
    tokens, trained, sizes = zip(*rows, strict=True)
    return {
        "tokens": np.concatenate(tokens), "trained": np.concatenate(trained),
        "lengths": np.array([len(t) for t in tokens]),
        "n_trained": np.array([int(mask.sum()) for mask in trained]),
        "answer_bytes": np.array(sizes), "digest": np.frombuffer(b"".join(digests), "<i8"),
        "hash": np.frombuffer(b"".join(hashes), "V16"),
    }


def load_val(args) -> tuple[dict, dict]:
    """--val_data, whole: the arrays of load_source, and what config.json records."""
    counts, about, dropped = Counter(), [], []
    whole = argparse.Namespace(**{**vars(args), "max_read": 0, "max_examples": 0})
    try:
        piece = load_source(args.stage, args.val_data, whole, None, counts, about, dropped)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace("--data", "--val_data")) from None
    return piece, {"sources": about, "counts": dict(counts)}


def load(args, val_fraction: float | None = None) -> dict:
    """Every conversation of a run: the arrays of load_source, source uint8 and held_out bool (C,), offsets (C + 1,),
    fingerprints, and what config.json records. A dropped conversation has length 0. args: sft.py's flags; val_fraction:
    in place of that flag's. ValueError / FileNotFoundError in one sentence."""
    guard = decontaminate.from_argument(args.decontaminate)
    inputs = {args.stage: args.data}
    if args.stage == "transition":
        inputs = {"tulu": args.data, "tinygsm": args.tinygsm_data}
    record = {"sources": {}, "counts": {}, "contaminated": {}, "benchmarks": None}
    if guard is not None:
        record["benchmarks"] = guard.benchmarks
    pieces = []
    for number, (stage, paths) in enumerate(inputs.items()):
        counts, about, dropped = Counter(), [], []
        piece = load_source(stage, paths, args, guard, counts, about, dropped)
        piece["source"] = np.full(len(piece["lengths"]), number, np.uint8)
        pieces.append(piece)
        record["sources"][stage], record["counts"][stage] = about, dict(counts)
        record["contaminated"][stage] = dropped
    if args.val_data:
        piece, record["val_data"] = load_val(args)
        piece["source"] = np.full(len(piece["lengths"]), len(inputs), np.uint8)
        pieces.append(piece)
    data = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    data["offsets"] = np.concatenate([[0], np.cumsum(data["lengths"])]).astype(np.int64)
    if val_fraction is None:
        val_fraction = args.val_fraction
    data["held_out"] = shards.is_held_out([value.tobytes() for value in data["hash"]], val_fraction)
    if args.val_data:
        of_val = {value.tobytes() for value in pieces[-1]["hash"]}
        data["held_out"] = np.array([value.tobytes() in of_val for value in data["hash"]])
    data["stages"], data["record"] = list(inputs), record
    trained = data["source"] < len(inputs)  # the order does not depend on --val_data
    source = data["source"][trained].tobytes()
    # the order depends on the texts and not on how they are tokenised: both conditions read them in the same order
    data["fingerprint_texts"] = hashlib.sha256(data["hash"][trained].tobytes() + source).hexdigest()
    data["fingerprint"] = hashlib.sha256(data["digest"][trained].tobytes() + source).hexdigest()
    usable = data["lengths"] > 0
    for number, stage in enumerate(data["stages"]):
        of_stage = data["source"] == number
        if not (of_stage & usable & ~data["held_out"]).any():
            too_long = int((of_stage & ~usable).sum())
            raise ValueError(f"--stage {stage}: of {int(of_stage.sum()):,} conversations {too_long:,} are too long for "
                             f"--seq_len {args.seq_len} and the rest is held out, so none is left to train on: raise "
                             "--seq_len, lower --val_fraction, or give more --data.")
    if args.eval_every and not (usable & data["held_out"]).any():
        too_long = int((~usable).sum())
        raise ValueError(
            f"--val_fraction {args.val_fraction} holds out none of {len(usable) - too_long:,} conversations "
            f"({too_long:,} more are too long for --seq_len {args.seq_len}): raise either, give more --data, or pass "
            "--eval_every 0.")
    return data


# ----------------------------------------------------------------------------------------------------------------------
# order and rows


def plan_order(data: dict, n: int, seed: int, mix: tuple[float, float]) -> np.ndarray:
    """The conversation read at each of the run's n positions, int64 (n,); each source in data_order's epochs. The
    probability of the second source goes linearly from mix[0] at the first position to mix[1] at the last."""
    if len(data["stages"]) == 1:
        return _source_order(data, 0, n, seed)
    share = mix[0] + (mix[1] - mix[0]) * np.arange(n) / max(n - 1, 1)
    key = hashlib.sha256(f"{data['fingerprint_texts']}|{seed}|mix".encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(key[:16], np.uint64)).random_raw(n)
    from_second = (bits >> np.uint64(11)) * 2.0**-53 < share  # a double in [0, 1) from the top 53 bits
    n_second = int(from_second.sum())
    plan = np.empty(n, np.int64)
    plan[from_second] = _source_order(data, 1, n_second, seed)
    plan[~from_second] = _source_order(data, 0, n - n_second, seed)
    return plan


def _source_order(data: dict, source: int, n: int, seed: int) -> np.ndarray:
    """The first n conversations of one source over its epochs; one that was dropped leaves the others in order."""
    numbers = np.flatnonzero((data["source"] == source) & ~data["held_out"])
    fingerprint = f"{data['fingerprint_texts']}|{source}"
    plan, epochs = np.empty(0, np.int64), itertools.count()
    while len(plan) < n:
        order = numbers[data_order.epoch_order(fingerprint, seed, next(epochs), len(numbers))]
        plan = np.concatenate([plan, order[data["lengths"][order] > 0]])
    return plan[:n]


def pack(lengths: list[int], width: int, packing: bool) -> list[list[int]]:
    """Rows as lists of numbers of conversations: first fit, longest first; without packing each has a row to itself.
    lengths: tokens of each conversation, at most width + 1: the last one is only predicted and takes no place."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if not packing:
        return [[i] for i in order]
    rows, room = [], []
    for i in order:
        row = next((r for r, left in enumerate(room) if left >= lengths[i] - 1), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(i)
        room[row] -= lengths[i] - 1
    return rows


def make_batch(data: dict, rows: list[list[int]], width=0, height=0) -> dict[str, torch.Tensor]:
    """Rows of conversation numbers as int64 tensors: x, y, positions, segments (B, T), T the longest row or `width`, B
    their number or `height`.
    y is the token after x where it is trained, else -100. positions start at 0 in each conversation; segments number
    the conversations of a row, -1 for padding. where (M,): the flat positions that are trained; owner (M,): the number
    of the conversation each is of."""
    offsets = data["offsets"]
    width = max(width, *(int(sum(data["lengths"][row])) - len(row) for row in rows))
    x = np.full((max(height, len(rows)), width), bos_id(), np.int64)
    y = np.full_like(x, IGNORE)
    segments = np.full_like(x, -1)
    positions, owner = np.zeros_like(x), np.zeros_like(x)
    for r, row in enumerate(rows):
        start = 0
        for segment, number in enumerate(row):
            inside = slice(offsets[number], offsets[number + 1])
            tokens = data["tokens"][inside].astype(np.int64)
            targets = np.where(data["trained"][inside], tokens, IGNORE)
            here = slice(start, start + len(tokens) - 1)
            x[r, here], y[r, here] = tokens[:-1], targets[1:]
            positions[r, here] = np.arange(len(tokens) - 1)
            segments[r, here], owner[r, here] = segment, number
            start = here.stop
    where = np.flatnonzero(y != IGNORE)
    batch = {"x": x, "y": y, "positions": positions, "segments": segments, "where": where,
             "owner": owner.flat[where]}
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def show(batch: dict) -> str:
    """The first conversation of a batch as text, from the tensors that are trained on: [[ ]] around what is trained."""
    first = batch["segments"][0] == 0
    x, y = batch["x"][0][first].tolist(), batch["y"][0][first].tolist()
    tokens, trained, text = list(x), [False] + [target != IGNORE for target in y], ""
    if trained[-1]:
        tokens.append(y[-1])
    pairs = zip(tokens, trained, strict=False)
    for on, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        piece = get_tokenizer().decode([token for token, _ in group])
        text += f"[[{piece}]]" if on else piece
    return text
