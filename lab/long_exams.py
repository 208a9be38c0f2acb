"""long_exams.py owns what the commands on long texts do alike: flags, the controls a model has, kept work, records."""

import contextlib
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

from lab import benchmarks, disk, exams, flags, long_documents, memory_settings, processes, runs, snapshots, terminal
from lab.long_documents import CONTROLS
from lab.schema import check
from lab.tokenizer import hash_of
from model import GPT

NAMES = ", ".join(CONTROLS)

# ----------------------------------------------------------------------------------------------------------------------
# flags


def numbers(text: str) -> list[float]:
    """A comma-separated list, each once, for argparse."""
    values = [float(part) for part in text.split(",")]
    if not all(map(math.isfinite, values)):
        raise ValueError
    return [int(value) if value.is_integer() else value for value in dict.fromkeys(values)]


def add_data(parser) -> None:
    add = parser.add_argument
    add("--data", default="",
        help="parquet or jsonl[.gz|.zst] file, glob or folder, or synthetic[:n] "
             f"('' = {long_documents.HUB} on the hub)")
    add("--text_column", default="text", help="column that holds the text (default text)")


def add_memory(parser) -> None:
    add = parser.add_argument_group("fast weights").add_argument
    add("--controls", default="",
        help=f"comma-separated, of {NAMES} (default: all that the model has)")
    add("--write", choices=("trained", *memory_settings.CHOICES["write"]), default="trained",
        help="of CMS levels; stop writes a model that was trained with off (default: as trained)")
    add("--inner_lr_multiplier", type=float, default=1.0,
        help="of the writes' learning rate (default 1)")


def add_machine(parser) -> None:
    """The flags of where a result goes, and of what changes it by rounding."""
    add = parser.add_argument_group("output and machine").add_argument
    add("--out", default="",
        help="JSON file of the results ('' = eval/<command>_step<step>.json in the run's folder "
             "or, without a run, the checkpoint's)")
    add("--no_store", dest="store", action="store_false", help="only print")
    add("--resume", choices=("on", "off"), default="on",
        help="continue this exam if it was interrupted (default on)")
    add("--dry_run", action="store_true", help="check settings, checkpoint and texts, and stop there")
    add("--batch_size", type=int, default=8,
        help="texts at once (default 8); `other` takes the writes of another one of them")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto = CUDA when there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the matrix products (default float32)")


def check_values(parser, args, needs: dict[str, str]) -> None:
    """Ends with a usage error when a flag is not what it must be. needs: {key of flags.NEEDS: names}."""
    for need, names in needs.items():
        for name in names.split():
            given = getattr(args, name)
            for value in given if isinstance(given, list) else [given]:
                whole = "whole" not in need or isinstance(value, int)
                if not (whole and flags.NEEDS[need](value)):
                    parser.error(f"--{name} {value}: give {need}.")
    args.controls = list(dict.fromkeys(filter(None, re.split(r"[,\s]+", args.controls))))
    unknown = [name for name in args.controls if name not in CONTROLS]
    if unknown:
        parser.error(f"--controls {unknown[0]}: choose from {NAMES}.")
    if args.out and not args.store:
        parser.error("--out and --no_store: give one of them.")
    if args.out and not args.out.endswith(".json"):
        parser.error(f"--out {args.out}: give a file that ends in .json.")


# ----------------------------------------------------------------------------------------------------------------------
# the exam


class Subject(NamedTuple):
    """The checkpoint that is examined."""

    model: GPT
    folder: Path
    step: int | None
    run: Path | None
    weights_sha256: str


def load_subject(path, procs, flag: str = "CHECKPOINT") -> Subject:
    model, folder, step, run = benchmarks.load_checkpoint(path, procs.device, flag)
    benchmarks.check_vocabulary(model, largest=math.inf)
    return Subject(model.eval(), folder, step, run, benchmarks.weights_sha256(folder))


def refuse_other_tokens(subjects: list[Subject], flag: str) -> None:
    """ValueError for checkpoints of several tokenizers, whose losses per token are of different pieces of text."""
    check(len({hash_of(subject.folder) for subject in subjects}) < 2,
          f"the checkpoints of {flag} have several tokenizers, so their losses are of different tokens: "
          "name checkpoints of one.")


def controls_of(config, args) -> list[str]:
    """The controls to read with, of those asked for, and always static. ValueError where the model has none of them."""
    can_change = args.write == "trained" or config.memory in memory_settings.WITH_CMS
    check(can_change, "the model has no CMS level, which --write could change: leave --write out.")
    if config.memory == "none":
        if set(args.controls) - {"static"}:
            terminal.note("NOTE: the model has no memory: it is read with the control static alone.")
        return ["static"]
    writes = memory_settings.writes(config)
    if args.write != "trained" and config.memory not in memory_settings.WITH_TITAN:
        writes = args.write != "off"
    if not writes:
        check(not set(args.controls) - {"static"},
              "the model was trained with --write off and writes nothing: pass --write stop to "
              "write it here (dynamic evaluation), or --controls static.")
        terminal.note("NOTE: nothing is written, as --write is off; --write stop writes it here.")
        return ["static"]
    asked = args.controls or list(CONTROLS)
    return ["static", *(name for name in asked if name != "static")]


def needs_two(controls: list[str], n: int, batch_size: int, flag: str) -> None:
    """ValueError when `other` would be read with, and a batch is of a single text. flag: gives their number, n."""
    low = [name for name, value in ((flag, n), ("--batch_size", batch_size)) if value < 2]
    check("other" not in controls or not low,
          f"the control other needs a second text in the batch: raise {' and '.join(low)}, "
          "or leave it out with --controls adapt,random.")


def groups(n: int, size: int) -> list[list[int]]:
    """0 to n - 1 in batches of `size`; of more than one, none of a single one, which would have no other."""
    batches = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches


def score_units(units: list[tuple], batches: list[list[int]], score, procs, work,
                name: str) -> list[dict] | None:
    """A record per unit, on every rank; None when asked to stop. units: (id, ...); score(units of a batch): their
    records without ids. Finished batches are kept in work, and taken from there."""

    def answer(batch: list[int]) -> list[dict]:
        ids = [units[i][0] for i in batch]
        if all(one in work.done for one in ids):
            return [work.done[one] for one in ids]
        records = [{"id": one, **record} for one, record in
                   zip(ids, score([units[i] for i in batch]), strict=True)]
        work.save(records)
        return records

    known = {i for i, unit in enumerate(units) if unit[0] in work.done}
    return benchmarks.write_answers(procs, batches, len(units), answer, name, True, work.stop, known)


class Condition(NamedTuple):
    """How documents of equal length are read."""

    model: GPT
    control: str
    multiplier: float  # of inner_lr
    documents: list


def score_documents(conditions: dict[tuple, Condition], args, procs, work, autocast,
                    name: str) -> dict[tuple, list[dict]] | None:
    """{key: a record of each document}, with "nats" by position and what was written; None when asked to stop."""
    units, batches = [], []
    for key, condition in conditions.items():
        label = "/".join(map(str, key))
        for batch in groups(len(condition.documents), args.batch_size):
            batches.append([len(units) + i for i in batch])
        units += [(f"{label}/{one.sha256[:16]}", condition, one) for one in condition.documents]

    def score(batch):
        _, (model, control, multiplier, _), _ = batch[0]
        documents = [document for _, _, document in batch]
        with autocast(), long_documents.test_time(model, multiplier, args.write):
            nll, written = long_documents.losses(model, control, documents)
        records = [{"nats": nats} for nats in long_documents.sums_by_position(nll)]
        for i, record in enumerate(records):
            benchmarks.refuse_broken(record["nats"], f"{documents[i].id} under {control}")
            for what, values in written.items():
                record[what] = values[i]
        return records

    records = score_units(units, batches, score, procs, work, name)
    if records is None:
        return None
    rest = iter(records)
    return {key: [next(rest) for _ in condition.documents] for key, condition in conditions.items()}


def means_of(records: list[dict], keys=("updates", "update_norm")) -> dict[str, float]:
    return {key: benchmarks.mean([record[key] for record in records]) for key in keys}


def minus(values: list[float], others: list[float]) -> dict:
    """effect() of paired differences."""
    return long_documents.effect([a - b for a, b in zip(values, others, strict=True)])


@contextlib.contextmanager
def kept(command: str, args, subjects: list[Subject], procs, settings):
    """(where the record goes, or None; Work that is kept beside it until the block ends, see exams.unfinished).
    settings: JSON of what decides a result besides the weights, the code and the device."""
    out, subject = None, subjects[-1]
    if args.store:
        name = f"{command}_step{subject.step or 0:06d}.json"
        out = Path(args.out or (subject.run or subject.folder) / "eval" / name)
    decisive = [command, settings, args.write, args.batch_size, args.dtype, procs.device.type,
                [one.weights_sha256 for one in subjects], snapshots.code_state()["code_sha256"]]
    folder = out and out.parent
    name = f"{(out or Path(command)).stem}_partial"
    resume = args.resume == "on"
    with exams.unfinished(procs, folder, name, decisive, resume, args.dry_run) as work:
        yield out, work


def worth_of(record: dict) -> tuple[bool, float]:
    """How much a record says, beside another of its command: whether it is of real text, then of how much."""
    is_real = record.get("data") not in (None, "synthetic")  # None: numbered sentences
    if record["type"] == "ppl":
        return is_real, runs.number(record["tokens"])
    return is_real, len(record["context_lengths"]) * runs.number(record["samples_per_length"])


def described(record: dict) -> str:
    """What a record is of, in words."""
    source = record.get("data") or record.get("filler")
    if record["type"] == "ppl":
        return f"{record['samples']} documents x {record['tokens_per_document']:,} tokens ({source})"
    lengths = ", ".join(f"{length:,}" for length in record["context_lengths"])
    return f"{record['samples_per_length']} prompts each of {lengths} tokens ({source})"


def note_fuller(args, out: Path | None, planned: dict, procs) -> bool:
    """Whether the record at `out` stays, as it is of the same weights and says more than the one that is planned: a
    note, before the work and not after it. --out replaces any. planned: what worth_of and this read of a record."""
    if out is None or args.out:
        return False
    try:
        old = json.loads(out.read_text(encoding="utf-8"))
        is_fuller = worth_of(old) > worth_of(planned)
        if old["checkpoint_sha256"] != planned["checkpoint_sha256"] or not is_fuller:
            return False
        words = described(old)
    except (AttributeError, OSError, ValueError, LookupError, TypeError, RecursionError):
        return False  # none, or damaged: it is replaced
    if procs.is_main:
        terminal.note(f"NOTE: this will not be stored: {out} is a record of this checkpoint that says more, of "
                      f"{words}; pass --out {out} to replace it, or another --out.")
    return True


def provenance(args, subject: Subject, procs, autocast) -> dict:
    """What a record says about where its numbers come from."""
    config = subject.model.config
    stride, chunk = long_documents.sizes(config)
    code = {name: value for name, value in snapshots.code_state().items() if name != "git_diff"}
    return {
        "checkpoint": str(subject.folder), "step": subject.step,
        "run": subject.run and str(subject.run), "checkpoint_sha256": subject.weights_sha256,
        "memory": config.memory, "trained_write": config.write, "write": args.write,
        "inner_lr": config.inner_lr,
        "block_size": config.block_size, "stride": stride, "chunk": chunk,
        "dtype": benchmarks.computing_dtype(autocast), "device": procs.device.type,
        "batch_size": args.batch_size, "timestamp": runs.now(), "code": code}


def store(out: Path, result, lines: list[dict], what: str) -> None:
    """Writes a line each into <out>_<what>.jsonl, then the result."""
    beside = out.with_name(f"{out.stem}_{what}.jsonl")
    disk.write_whole(beside, "".join(json.dumps(line) + "\n" for line in lines).encode())
    disk.write_json(out, result)
    print(f"the record is {out}, a line for each of its {what} is in {beside.name}")


def reading_of(result: dict, multiplier: float) -> str:
    """How texts were read, for the head of a table."""
    return (f"memory {result['memory']}, inner_lr {result['inner_lr']:g} x {multiplier:g}, windows of "
            f"{result['block_size']:,} tokens every {result['stride']:,}, chunks of {result['chunk']:,}")


def warn_unwritten(written: dict[str, dict], whose: str = "") -> None:
    """Says under which controls nothing was written, which then mean nothing. written: {control: {"updates": mean}};
    whose: begins the sentence where there are several checkpoints."""
    for control, means in written.items():
        if control != "static" and means["updates"] == 0:
            terminal.note(f"NOTE: {whose}under {control} nothing was written: the model's inner_lr or teach scale "
                          "is 0, or no text has a whole period.")


def shown(one: dict) -> str:
    """An effect() behind a loss."""
    text = f" {one['mean']:>+13.4f}"
    if one["se"] is not None:
        low, high = one["interval"]
        text += f" {one['se']:>8.4f}   [{low:+.4f}, {high:+.4f}], "
        text += f"below 0 in {one['n_below_0']} of {one['n']}"
    return text


# ----------------------------------------------------------------------------------------------------------------------
# the command line


def main(prog: str, doc: str, commands: dict, argv=None) -> int:
    """The command line of a script of several commands. commands: {name: (parse(argv) -> args, run(args, procs))}."""
    argv = sys.argv[1:] if argv is None else argv
    command = "".join(argv[:1])
    if command not in commands:
        usage = f"{prog} {'|'.join(commands)} ... [flags]; each has its own --help"
        parser = flags.Parser(prog=prog, checks_more=True, description=doc, usage=usage)
        parser.parse_args([word for word in argv[:1] if word.startswith("-")])
        parser.error(f"{command or 'no command'}: give one of {', '.join(commands)} first.")
    parse, run = commands[command]
    args = parse(argv[1:])
    with processes.start_processes(args.device) as procs:
        run(args, procs)
    return 0
