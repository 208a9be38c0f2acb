"""sample.py owns what a trained model writes: continuations, answers in a conversation, checkpoints side by side.

    python sample.py experiments/runs/<run> --prompt "Once upon a time" --num_samples 5         # CPU, 1 GPU
    python sample.py <run>/ckpt/step_000500 --file prompts.txt --out samples.jsonl              # a prompt per line
    python sample.py <run> --compare <run> <run> --prompt "The sky is" --temperature 0          # side by side
    python sample.py <sft run> --chat                                   # a conversation, from terminal or pipe
    python sample.py <sft run> --chat --file questions.txt              # each line is a user's message

Reads a checkpoint, as the evals do. Text goes to stdout as it comes, whole characters only; control characters are
shown as escapes. A sample ends at <|endoftext|> or after --max_new_tokens. Speed and notes go to stderr. --out gets a
line per sample, at once: prompt, text, ids (exact, where bytes are no UTF-8), seed, sample, temperature, top_k,
checkpoint and the sha256 of its weights.

Sample i of a prompt draws from its own stream, of (--seed, i): it depends neither on the other samples and prompts nor
on --batch_size, and checkpoints that are compared draw the same numbers.

The prompt is read as the run's data was. It begins with <|endoftext|> (--bos), as every document does; an empty prompt
is that alone. Of an arm with multiplication tokens, products in it become tokens, by the injector's mode that made the
data, and <MUL_6_9_54> may be typed. Messages of --chat are not injected: fine-tuning injects into answers only, and
eval_gsm8k.py asks in the same way. --chat writes <|endoftext|>User: {q}\\nAssistant: {a}<|endoftext|>User: ... as
lab/conversations.py does, and leaves out the oldest exchanges when the model's window is full.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from inject_mul import MulExpressionInjector
from lab import disk, flags, processes, runs, sources, units
from lab.answers import USER, render_prompt
from lab.byte_pairs import Tokenizer
from lab.terminal import Stream, note, show, side_by_side
from lab.tokenizer import get_tokenizer

FIELDS = ("prompt", "text", "question")  # of a record in --file: the first that it has
SHOWN = 400  # characters of a prompt that are repeated before its continuation
SETTINGS = "seed temperature top_k max_new_tokens".split()  # of each record

# ----------------------------------------------------------------------------------------------------------------------
# prompts


def whole_characters(text: str, place: str) -> str:
    """The text with U+FFFD for every half of a character (a lone surrogate), which no tokenizer reads."""
    if sources.has_lone_surrogate(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        note(f"WARNING: {place} holds half a character, read as U+FFFD.")
    return text


def read_prompts(path: str) -> list[str]:
    """Prompts of a file, of which blank lines are left out: records (the suffix says so, or each line is a JSON
    object), or a prompt per line. ValueError or OSError in one sentence."""
    if path.endswith(tuple(sources.RECORD_READERS)):
        records = list(sources.read_records(path, FIELDS))
    else:
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            fault = f"--file {path} is not UTF-8 in line {line}"
            raise ValueError(f"{fault}: convert it, e.g. with iconv.") from None
        except OSError as error:
            raise ValueError(f"--file {path} cannot be read ({error.strerror}): check the path.") from None
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        records = [(f"{path} line {n}", parse_object(line)) for n, line in numbered]
        if any(record is None for _, record in records):
            records = [(f"{path} line {n}", {"prompt": line}) for n, line in numbered]
    prompts = [prompt_of(place, record) for place, record in records]
    if not prompts:
        raise ValueError(f"--file {path} holds no prompts: write one per line.")
    return prompts


def parse_object(line: str) -> dict | None:
    """The JSON object that a line holds, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return None


def prompt_of(place, record) -> str:
    if isinstance(record, sources.BadRecord):
        raise ValueError(f"--file {record}: repair or remove it.")
    names = []
    if isinstance(record, dict):
        names = [name for name in FIELDS if isinstance(record.get(name), str)]
    if not names:
        fault = f"--file {place} has no text under {', '.join(FIELDS)}"
        raise ValueError(f"{fault}: name it {FIELDS[0]}.")
    return whole_characters(record[names[0]], str(place))


# ----------------------------------------------------------------------------------------------------------------------
# a checkpoint


class Opened(NamedTuple):
    """A checkpoint, and how its data was made."""

    name: str  # the run's with the step, or the folder's
    folder: Path
    model: object  # GPT
    sha256: str  # of its weights
    mul_tokens: bool  # the condition of its data
    injector: MulExpressionInjector | None  # of a prompt
    is_chat: bool | None  # fine-tuned on conversations; None: not known
    bos: bool
    tokenizer: Tokenizer


def open_model(path: str, flag: str, args, device) -> Opened:
    """ValueError or FileNotFoundError, naming `flag`, for what the evals refuse too."""
    from lab import benchmarks

    model, folder, step, run = benchmarks.load_checkpoint(path, device, flag)
    benchmarks.check_vocabulary(model)
    config, is_chat = {}, None
    if run is not None and (run / "config.json").exists():
        config = runs.read_config(run)
    data = config.get("data", {})
    if data:
        is_chat = data.get("format") in ("conversations", "problems")
    mul_tokens, injector = data.get("condition") == "mul_tokens", None
    if mul_tokens and not is_chat:
        injector = MulExpressionInjector(data.get("inject") or "weak")
    bos = args.bos
    if bos is None and args.chat:
        bos = config.get("flags", {}).get("bos")
    name = (run or folder).resolve().name
    if step is not None:
        name += f" step {step}"
    sha256 = disk.sha256_file(folder / "model.safetensors")
    opened = Opened(name, folder, model.eval(), sha256, mul_tokens, injector, is_chat, bos != "off",
                    get_tokenizer())
    check_kind(opened, path, args)
    return opened


def check_kind(opened: Opened, path: str, args) -> None:
    """ValueError for --chat with a checkpoint that never saw a conversation; notes on what may surprise."""
    if args.chat and opened.is_chat is False:
        raise ValueError(f"--chat: {path} was not fine-tuned on conversations: name a run of sft.py or grpo.py, "
                         "or give a --prompt without --chat.")
    if args.chat and opened.is_chat is None:
        note(f"WARNING: nothing says whether {opened.name} was fine-tuned on conversations.")
    if opened.is_chat and not args.chat:
        note(f"{opened.name} was fine-tuned on conversations: --chat asks it as it was trained.")
    if opened.injector:
        note(f"{opened.name}: products in the prompt become multiplication tokens, as in its data "
             f"({opened.injector.mode}).")


def encode(opened: Opened, prompt: str, chat: bool) -> tuple[list[int], int]:
    """(ids of a prompt, products in it that became tokens). ValueError when there are no ids."""
    ids, injected = [opened.tokenizer.bos_id] if opened.bos else [], 0
    if chat:
        prompt = render_prompt(prompt.strip())
    elif opened.injector:
        prompt, injected = opened.injector.inject(prompt)
    ids += opened.tokenizer.encode(prompt, mul_tokens=opened.mul_tokens and not chat)
    if not ids:
        raise ValueError("an empty prompt needs --bos on: give a --prompt, or drop --bos off.")
    window = opened.model.config.block_size
    if len(ids) > window:
        note(f"WARNING: the prompt has {len(ids):,} tokens, of which {opened.name} sees "
             f"the last {window:,}.")
    return ids, injected


# ----------------------------------------------------------------------------------------------------------------------
# writing


class Written(NamedTuple):
    """A sample: its new ids, their text up to a stop string, and why it ends."""

    ids: list[int]
    text: str
    stopped: str


class Clock:
    """Tokens and seconds of everything that one checkpoint has written."""

    def __init__(self):
        self.samples, self.tokens, self.seconds = 0, 0, 0.0

    def report(self, name: str, machine: str) -> str:
        speed = self.tokens / max(self.seconds, 1e-9)
        counts = f"{units.count(self.samples, 'sample')}, {units.count(self.tokens, 'token')}"
        return f"{name}: {counts}, {speed:,.1f} tokens/s ({machine})"


def write(opened: Opened, prompts: list[list[int]], samples: list[int], args, autocast,
          clock: Clock, watch=None, stop: str = "") -> list[Written]:
    """Continues prompts of ids, each as the sample of that number. watch: as in inference.generate."""
    from lab import inference

    decode, begun = opened.tokenizer.decode, time.perf_counter()
    with autocast():
        completions = inference.generate(
            opened.model, prompts, args.max_new_tokens, temperature=args.temperature,
            top_k=args.top_k or None, seed=args.seed, stop_ids=[opened.tokenizer.bos_id],
            stop_strings=[stop] if stop else [], decode=decode, row_ids=samples, watch=watch)
    clock.seconds += time.perf_counter() - begun
    written = []
    for ids, stopped, _ in completions:
        text = decode(ids)
        if stop:
            text = text.partition(stop)[0]
        clock.samples += 1
        clock.tokens += len(ids)
        written.append(Written(ids, text, stopped))
    return written


class Records:
    """The file of --out: a line per sample, synced as it is written. It must be new."""

    def __init__(self, path: str, args, machine: str):
        self.path, self.machine = path, machine
        self.shared = {name: getattr(args, name) for name in SETTINGS}
        if not path:
            return
        if Path(path).exists():
            raise ValueError(f"--out {path} exists: name a new file, or delete it.")
        disk.make_folder(Path(path).parent, "--out")

    def add(self, opened: Opened, prompt: str, ids: list, sample: int, written: Written, **more):
        if not self.path:
            return
        record = {
            "prompt": prompt, "text": written.text, "tokens": len(written.ids), "ids": written.ids,
            "stopped": written.stopped, "sample": sample, **self.shared, **more,
            "prompt_tokens": len(ids), "bos": opened.bos, "model": opened.name,
            "checkpoint": str(opened.folder), "checkpoint_sha256": opened.sha256,
            "machine": self.machine, "timestamp": runs.now(),
        }
        self.write(json.dumps(record).encode() + b"\n")

    def write(self, line: bytes) -> None:
        try:
            disk.append_line(self.path, line)
        except OSError as error:
            why, remedy = disk.reason_of(error), disk.remedy_of(error)
            raise ValueError(f"--out {self.path} cannot be written ({why}): {remedy}, or name another file; "
                             "the lines that it has are whole.") from error


# ----------------------------------------------------------------------------------------------------------------------
# samples of prompts


def sample_all(opened: list[Opened], prompts: list[str], args, autocast, records: Records,
               clocks: list[Clock]) -> None:
    """--num_samples of every prompt by every checkpoint, --batch_size at once. One at once is shown as it comes."""
    stop = USER if args.chat else ""
    encoded = [[encode(one, prompt, args.chat) for one in opened] for prompt in prompts]
    jobs = [(p, i) for p in range(len(prompts)) for i in range(args.num_samples)]
    for start in range(0, len(jobs), args.batch_size):
        batch = jobs[start : start + args.batch_size]
        streams = len(batch) == len(opened) == 1
        results = []
        for m, (one, clock) in enumerate(zip(opened, clocks, strict=True)):
            stream = None
            if streams:
                stream = Stream(stop, opened[0].tokenizer)
                show_head(opened, prompts, batch[0], args)
            ids = [encoded[p][m][0] for p, _ in batch]
            numbers = [i for _, i in batch]
            results.append(write(one, ids, numbers, args, autocast, clock, stream, stop))
            if streams:
                stream.end()
                show("\n")
        for job, *written in zip(batch, *results, strict=True):
            p, i = job
            if not streams:
                show_head(opened, prompts, job, args)
                show(side_by_side([one.name for one in opened], [w.text for w in written]) + "\n")
            for (ids, injected), one, w in zip(encoded[p], opened, written, strict=True):
                records.add(one, prompts[p], ids, i, w, injected=injected)


def show_head(opened: list[Opened], prompts: list[str], job: tuple[int, int], args) -> None:
    """A line that says which sample follows, and its prompt."""
    p, i = job
    words = [f"sample {i + 1} of {args.num_samples}", f"seed {args.seed}"]
    if len(prompts) > 1:
        words.insert(0, f"prompt {p + 1} of {len(prompts)}")
    if len(opened) == 1:
        words.insert(0, opened[0].name)
    show(f"--- {', '.join(words)} ---\n")
    prompt = prompts[p]
    if args.chat:
        prompt = render_prompt(prompt.strip())
    if len(prompt) > SHOWN:
        prompt = f"…{prompt[-SHOWN:]}"
    show(prompt)
    if len(opened) > 1 and prompt:
        show("\n")


# ----------------------------------------------------------------------------------------------------------------------
# a conversation


class StopAnswer(Exception):
    """Ends an answer that the user has stopped with ctrl-C."""


@contextlib.contextmanager
def interruptible():
    """Yields asked(): whether ctrl-C was pressed since. A second one is a KeyboardInterrupt."""
    presses = []

    def press(number, frame):
        presses.append(number)
        if len(presses) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(presses)
    finally:
        signal.signal(signal.SIGINT, before)


def converse(opened: Opened, args, autocast, records: Records, clock: Clock) -> None:
    """Messages from stdin, answered until ctrl-D, or ctrl-C while no answer is being written."""
    exchanges = []  # of ids, a question with its answer each
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  # arrow keys, and earlier messages
        note(f"{opened.name}: ctrl-C stops an answer; ctrl-D, or ctrl-C again, leaves.")
    while True:
        try:
            message = ask(is_terminal)
        except (EOFError, KeyboardInterrupt):
            show("\n")
            return
        if not message.strip():
            continue
        question = opened.tokenizer.encode(render_prompt(message.strip()))
        ids = fit(opened, exchanges, question, args.max_new_tokens)
        show("Assistant:")
        try:
            written = answer(opened, ids, len(exchanges), args, autocast, clock)
        except KeyboardInterrupt:
            show("\n")
            return
        records.add(opened, message, ids, len(exchanges), written)
        # as fine-tuning would tokenise the answer: a space, the text, the end
        reply = opened.tokenizer.encode(f" {written.text.strip()}", mul_tokens=opened.mul_tokens)
        exchanges.append([*question, *reply, opened.tokenizer.bos_id])


def ask(is_terminal: bool) -> str:
    """The next message. EOFError after the last one."""
    message = input("User: " if is_terminal else "")
    if message.strip() and not is_terminal:
        show(f"User: {message}\n")
    return whole_characters(message, "the message")


def fit(opened: Opened, exchanges: list[list[int]], question: list[int], max_new_tokens: int) -> list:
    """Ids of the conversation before an answer, without the oldest exchanges where they would leave no room."""
    window = opened.model.config.block_size
    room = window - min(max_new_tokens, window // 4)
    start, kept = [opened.tokenizer.bos_id] if opened.bos else [], list(exchanges)
    while kept and len(start) + sum(map(len, kept)) + len(question) > room:
        kept.pop(0)
    left_out = len(exchanges) - len(kept)
    if left_out:
        note(f"(the window of {window:,} tokens has no room for the oldest {left_out} of "
             f"{len(exchanges)} exchanges)")
    ids = sum(kept, start) + question
    if len(ids) > window:
        note(f"WARNING: the message has {len(question):,} tokens, of which {opened.name} sees "
             f"the last {window:,}.")
    return ids


def answer(opened: Opened, ids: list[int], number: int, args, autocast, clock: Clock) -> Written:
    """Writes an answer as it comes. The first ctrl-C stops it, a second one is a KeyboardInterrupt."""
    stream, new, begun = Stream(USER, opened.tokenizer), [], time.perf_counter()

    with interruptible() as asked:
        def watch(row, token):
            new.append(token)
            stream(row, token)
            if asked():
                raise StopAnswer

        try:
            [written] = write(opened, [ids], [number], args, autocast, clock, watch, USER)
            stream.end()
        except StopAnswer:
            written = Written(new, opened.tokenizer.decode(new).partition(USER)[0], "ctrl_c")
            clock.samples += 1
            clock.tokens += len(new)
            clock.seconds += time.perf_counter() - begun
            show(" [stopped]")
        show("\n")
    return written


# ----------------------------------------------------------------------------------------------------------------------
# the command line


def parse_args(argv=None) -> argparse.Namespace:
    parser = flags.Parser(
        prog="sample.py", description="Samples of a checkpoint, or a conversation with it.",
        further=", and the others after --compare",
        epilog='example: python sample.py experiments/runs/<run> --prompt "Once upon a time" --num_samples 5')
    add = parser.add_argument_group("what").add_argument
    add("run", metavar="RUN",
        help="a run's folder (its newest checkpoint), one of its ckpt/step_*, or a folder of GPT.save")
    add("--compare", nargs="+", default=[], metavar="RUN",
        help="further checkpoints, shown side by side for the same prompt and seed")
    add("--prompt", help="text to continue (default: none, so that the model begins a document)")
    add("--file", help="prompts: one per line, or a JSON record per line with prompt, text or question")
    add("--chat", action="store_true",
        help="prompts are a user's messages to a run of sft.py; without --prompt and --file a conversation")
    add("--bos", choices=("on", "off"),
        help="begin with <|endoftext|> (default on; with --chat as the run was fine-tuned)")
    add = parser.add_argument_group("sampling").add_argument
    add("--num_samples", type=int, default=1, help="of each prompt (default 1)")
    add("--max_new_tokens", type=int, default=200, help="of a sample (default 200)")
    add("--temperature", type=float, default=0.8, help="below 1 safer, above 1 wilder; 0 = greedy (default 0.8)")
    add("--top_k", type=int, default=200, help="likeliest ids to draw from (default 200; 0 = all)")
    add("--seed", type=int, default=0, help="of the samples, each with its own stream (default 0)")
    add = parser.add_argument_group("output").add_argument
    add("--out", default="", help="new *.jsonl file for a record of each sample ('' = only print)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=int, default=1,
        help="samples at once (default 1, shown as it comes; more are faster, shown when done); no effect on text "
        "but rounding")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)")
    args = parser.parse_args(argv)
    for name, low in {"num_samples": 1, "max_new_tokens": 1, "batch_size": 1, "top_k": 0}.items():
        if getattr(args, name) < low:
            parser.error(f"--{name} {getattr(args, name)}: give {low} or more.")
    if not 0 <= args.temperature < math.inf:
        parser.error(f"--temperature {args.temperature}: give 0 (greedy) or more.")
    if args.prompt is not None and args.file is not None:
        parser.error("--prompt and --file exclude each other: give one of them.")
    args.converse = args.chat and args.prompt is None and args.file is None
    if args.converse and (args.compare or args.num_samples > 1 or args.batch_size > 1):
        parser.error("a conversation is with one run: drop --compare, --num_samples and --batch_size, or give the "
                     "messages with --prompt or --file.")
    return args


def main(argv=None) -> int:
    args = parse_args(argv)
    prompts = [whole_characters(args.prompt or "", "--prompt")]
    if prompts[0].startswith("FILE:"):
        note("WARNING: FILE: is a part of the text, and no file is read as in nanoGPT: a file with a prompt per line "
             "is --file, and a whole one --prompt \"$(cat FILE)\".")
    if args.file is not None:
        prompts = read_prompts(args.file)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise processes.SharedError("this is one process's work: start it with python, not with torchrun.")
    if args.converse and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    with processes.start_processes(args.device) as procs:
        autocast = processes.autocast_for(procs.device, args.dtype)
        machine = f"{procs.device.type}, {args.dtype}"
        records = Records(args.out, args, machine)
        opened = [open_model(args.run, "RUN", args, procs.device)]
        opened += [open_model(path, "--compare", args, procs.device) for path in args.compare]
        if args.temperature == 0 and args.num_samples > 1:
            note("--temperature 0 draws nothing, so that all samples of a prompt are equal.")
        if args.out:
            records.write(b"")  # a file that cannot be written is refused before the first sample
        clocks = [Clock() for _ in opened]
        try:
            if args.converse:
                converse(opened[0], args, autocast, records, clocks[0])
            else:
                sample_all(opened, prompts, args, autocast, records, clocks)
        finally:
            for one, clock in zip(opened, clocks, strict=True):
                note(clock.report(one.name, machine))
            if args.out and any(clock.samples for clock in clocks):
                note(f"records are in {args.out}")
    return 0


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "sample.py", "stopped; the samples before this one are whole.")
