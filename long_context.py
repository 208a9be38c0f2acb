"""long_context.py owns what a model makes of long texts: loss by position, needles in haystacks, passkeys.

    python long_context.py ppl experiments/runs/<run> --data books.parquet --one_per origin
    python long_context.py ppl <checkpoint> --data test.jsonl --choose_inner_lr 0.1,0.3,1,3 --dev_data dev.jsonl
    python long_context.py niah <checkpoint> --data books.parquet --context_lengths 2048,4096,8192
    python long_context.py passkey <checkpoint> --filler sentences --context_tokens 2048       # needs no data
    python long_context.py ppl <checkpoint> --data synthetic --max_documents 4 --no_store      # no network; only print
    torchrun --standalone --nproc_per_node=8 long_context.py ppl <checkpoint>                  # PG-19 from the hub

Reads a checkpoint and long texts (parquet or jsonl). Writes eval/<command>_step000500.json into the run (or --out
FILE.json) and, beside it, a line for each document (..._documents.jsonl: {"id", "control", "nats": [...], "tokens":
[...]} by position, from which runs can be paired) or prompt (..._prompts.jsonl). The same command continues an
interrupted exam. A record of ppl of the same weights that says more is not replaced, unless --out names it.

Every token is scored once, before anything that contains it is written. Attention reaches back no further than
block_size, so beyond that only what was written can help; and a text takes the memory of one window and of the written
weights, however long it is (experiments/bench/long_prompts.py). Controls of the same checkpoint, paired over texts:

    static    nothing is written
    adapt     as the model is made: each chunk is written after its score
    random    in place of each write, a random one of the same norm
    other     in place of each write, that of another text of the batch: what is no memory of this text

A checkpoint that was trained with --write off is written here with --write stop (dynamic evaluation).

niah and passkey ask for one of 10 numbers that stands somewhere in a prompt of exactly so many tokens
(lab/needles.py): chance is 0.1, also for `static` where the needle is out of the window, and, whatever the model, with
the needle removed. Their record has document 004's keys, niah_2048, niah_2048_baseline_accuracy (static),
_memorize_accuracy (adapt), _memorize_delta, niah_2048_depth_0.50; accuracy_base and so on for passkey; and Wilson
intervals of each.
"""

import functools
import math
import time
from typing import NamedTuple

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import benchmarks, long_documents, long_exams, needles, processes, terminal
from lab.long_documents import effect
from lab.schema import check

# a change that changes a score must change its name here
SCORERS = {"ppl": "ppl-1", "niah": "needle-1", "passkey": "needle-1"}
SAMPLES = {"niah": "samples_per_length", "passkey": "samples"}  # flags
LENGTHS = [2048, 4096, 8192, 16_384, 32_768, 65_536]
WHOLE, ABOVE_0, SHARE = "a whole number of at least 1", "a number above 0", "a share from 0 to 1"

# ----------------------------------------------------------------------------------------------------------------------
# flags


def make_parser(command: str, description: str):
    parser = flags.Parser(
        prog=f"long_context.py {command}", description=description, checks_more=True,
        epilog=f"example: python long_context.py {command} experiments/runs/<run> --data books.parquet")
    parser.add_argument("checkpoint", help="a run's folder (its newest checkpoint), one of its ckpt/step_*, "
                                           "or a folder of GPT.save")
    long_exams.add_data(parser)
    return parser


def parse_ppl(argv):
    parser = make_parser("ppl", "Loss by position of long documents.")
    add = parser.add_argument
    add("--one_per", default="",
        help="at most one document per value of this column, such as a chapter's book ('' = all)")
    add("--max_documents", type=int, default=16,
        help="the first so many that are long enough (default 16)")
    add("--tokens_per_document", type=int, default=4096, help="scored of each (default 4096)")
    add("--bos", choices=("on", "off"), default="on", help="begin with <|endoftext|> (default on)")
    long_exams.add_memory(parser)
    add("--choose_inner_lr", type=long_exams.numbers, default=[], metavar="X,Y",
        help="multipliers, of which the best on --dev_data is taken ('' = --inner_lr_multiplier)")
    add("--dev_data", default="", help="documents for --choose_inner_lr, none of which is in --data")
    long_exams.add_machine(parser)
    args = parser.parse_args(argv)
    long_exams.check_values(parser, args, {
        WHOLE: "max_documents tokens_per_document batch_size",
        ABOVE_0: "inner_lr_multiplier choose_inner_lr"})
    if bool(args.choose_inner_lr) != bool(args.dev_data):
        parser.error("--choose_inner_lr and --dev_data need each other: give both or none.")
    if args.choose_inner_lr and args.inner_lr_multiplier != 1:
        parser.error("--choose_inner_lr finds the multiplier: leave --inner_lr_multiplier out.")
    flags.accept()
    return args


def parse_needles(kind: str, argv):
    parser = make_parser(kind, "Is a number found again in a long prompt?")
    add = parser.add_argument
    add("--filler", choices=("text", "sentences"), default="text",
        help="pieces of --data, or numbered sentences, which need no data (default text)")
    if kind == "niah":
        add("--context_lengths", type=long_exams.numbers, default=LENGTHS, metavar="N,M",
            help="tokens of the prompts (default 2048, doubled up to 65536)")
        add(f"--{SAMPLES[kind]}", type=int, default=250,
            help="prompts, spread over --depths (default 250)")
    else:
        add("--context_tokens", type=int, default=2048, help="tokens of the prompts (default 2048)")
        add(f"--{SAMPLES[kind]}", type=int, default=250, help="prompts, spread over --depths (default 250)")
    add("--depths", type=long_exams.numbers, default=[0, 0.25, 0.5, 0.75, 1], metavar="X,Y",
        help="where the needle is, from 0 to 1 (default 0,0.25,0.5,0.75,1)")
    add("--removed", choices=("on", "off"), default="on",
        help="also ask without the needle, which must be at chance (default on)")
    add("--seed", type=int, default=0, help="of the prompts (default 0)")
    long_exams.add_memory(parser)
    long_exams.add_machine(parser)
    args = parser.parse_args(argv)
    if kind == "passkey":
        args.context_lengths, args.samples_per_length = [args.context_tokens], args.samples
    long_exams.check_values(parser, args, {
        WHOLE: "context_lengths samples_per_length batch_size", SHARE: "depths",
        ABOVE_0: "inner_lr_multiplier"})
    if args.data and args.filler == "sentences":
        parser.error("--filler sentences reads no --data: leave one of them out.")
    flags.accept()
    try:
        refuse_short(kind, args)
    except ValueError as error:
        parser.error(str(error))
    return args


def refuse_short(kind: str, args) -> None:
    """ValueError for prompts without room for filler, in the tokens of this process."""
    least = needles.shortest(kind)
    check(min(args.context_lengths) >= least,
          f"a prompt of {min(args.context_lengths)} tokens has no room for filler: give at least {least}.")


# ----------------------------------------------------------------------------------------------------------------------
# ppl


def choose_multiplier(dev: dict, n: int) -> tuple[float, dict]:
    """The multiplier with the lowest loss on the dev documents, and the losses of all."""
    means = {}
    for (_, multiplier), records in dev.items():
        means[multiplier] = benchmarks.mean([math.fsum(record["nats"]) / n for record in records])
    best = min(means, key=means.get)
    if len(means) > 1 and best in (min(means), max(means)):
        terminal.note(f"NOTE: the best multiplier, {best:g}, is the border of --choose_inner_lr: "
                   "the best may lie beyond.")
    return best, {f"{multiplier:g}": loss for multiplier, loss in means.items()}


def ppl_metrics(table: dict[str, list[dict]], n: int) -> dict:
    """What the record says of {control: [record of each document]}, with n tokens per document. Losses in nats per
    token; differences are to static, paired over documents."""
    loss, written = {}, {}
    for control, records in table.items():
        loss[control] = [math.fsum(record["nats"]) / n for record in records]
        written[control] = long_exams.means_of(records)
    mean = {control: benchmarks.mean(values) for control, values in loss.items()}
    base, memorize, delta = math.exp(mean["static"]), None, None
    if "adapt" in mean:
        memorize = math.exp(mean["adapt"])
        delta = base - memorize
    samples = len(loss["static"])
    metrics = {"samples": samples, "tokens": n * samples}
    metrics |= {"ppl_base": base, "ppl_memorize": memorize, "ppl_delta": delta, "loss": mean}
    metrics["loss_se"] = {control: effect(values)["se"] for control, values in loss.items()}
    others = [control for control in loss if control != "static"]
    metrics["minus_static"] = {control: long_exams.minus(loss[control], loss["static"]) for control in others}
    metrics["written"], metrics["by_position"] = written, []
    borders = long_documents.edges(n)
    for i, (first, end) in enumerate(zip(borders, borders[1:], strict=False)):
        row = {"from": first, "to": end, "loss": {}, "minus_static": {}}
        at = {}
        for control, records in table.items():
            at[control] = [record["nats"][i] / (end - first) for record in records]
            row["loss"][control] = benchmarks.mean(at[control])
            if control != "static":
                row["minus_static"][control] = long_exams.minus(at[control], at["static"])
        metrics["by_position"].append(row)
    return metrics


def ppl_text(metrics: dict) -> str:
    lines = [f"{'control':<8} {'nats/token':>10} {'minus static':>13} {'se':>8}   95 % interval"]
    for control, loss in metrics["loss"].items():
        line = f"{control:<8} {loss:>10.4f}"
        if control != "static":
            line += long_exams.shown(metrics["minus_static"][control])
        lines.append(line)
    controls = list(metrics["loss"])
    head = "".join(f"{control:>10}" for control in controls)
    if "adapt" in controls:
        head += "   adapt minus static (se)"
    lines.append(f"\n{'tokens':<14}{head}")
    for row in metrics["by_position"]:
        line = f"{row['from']:>6}-{row['to']:<7}"
        line += "".join(f"{row['loss'][control]:>10.4f}" for control in controls)
        found = row["minus_static"].get("adapt")
        if found:
            line += f"   {found['mean']:+.4f}"
        if found and found["se"] is not None:
            line += f" ({found['se']:.4f})"
        lines.append(line)
    return "\n".join(lines)


def load_documents(args, controls: list[str], procs) -> tuple[list, list, int]:
    """(the documents, those of --dev_data, how many were too short)."""
    n = args.tokens_per_document

    def load(flag: str, source: str):
        return procs.on_main(lambda: long_documents.load(
            source, args.max_documents, n, args.text_column, args.one_per, args.bos == "on", flag))

    documents, short = load("--data", args.data)
    long_exams.needs_two(controls, len(documents), args.batch_size, "--max_documents")
    if len(documents) < args.max_documents:
        terminal.note(f"NOTE: --data has {len(documents)} documents that are long enough, "
                   f"not {args.max_documents}.")
    dev = []
    if args.choose_inner_lr:
        check(controls != ["static"], "the model writes nothing whose rate could be chosen: "
                                      "leave --choose_inner_lr and --dev_data out.")
        dev, _ = load("--dev_data", args.dev_data)
        same = {one.sha256 for one in documents} & {one.sha256 for one in dev}
        check(not same, f"{len(same)} of the documents of --dev_data are in --data, too: "
                        "the rate would be chosen on what it is judged by; separate them.")
    return documents, dev, short


def ppl(args, procs) -> None:
    """Scores documents under every control; rank 0 prints and stores the result."""
    begun, n = time.perf_counter(), args.tokens_per_document
    subject = long_exams.load_subject(args.checkpoint, procs)
    model = subject.model
    controls = long_exams.controls_of(model.config, args)
    documents, dev, short = load_documents(args, controls, procs)
    autocast = processes.autocast_for(procs.device, args.dtype)
    settings = [SCORERS["ppl"], n, [one.sha256 for one in [*documents, *dev]]]
    with long_exams.kept("ppl", args, [subject], procs, settings) as (out, work):
        planned = {"type": "ppl", "checkpoint_sha256": subject.weights_sha256, "tokens": n * len(documents),
                   "data": args.data or long_documents.HUB}
        stays = long_exams.note_fuller(args, out, planned, procs)
        multiplier, choice = args.inner_lr_multiplier, None
        if dev:
            tried = {("dev", one): long_exams.Condition(model, "adapt", one, dev)
                     for one in args.choose_inner_lr}
            scored = long_exams.score_documents(tried, args, procs, work, autocast, "dev")
            if scored is None:
                raise KeyboardInterrupt
            multiplier, losses = choose_multiplier(scored, n)
            choice = {"data": args.dev_data, "documents": [one.id for one in dev]}
            choice["loss_by_multiplier"] = losses
        conditions = {(control, multiplier): long_exams.Condition(model, control, multiplier, documents)
                      for control in controls}
        scored = long_exams.score_documents(conditions, args, procs, work, autocast, "ppl")
        if scored is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        table = {control: records for (control, _), records in scored.items()}
        result = {"type": "ppl", **ppl_metrics(table, n)}
        everything = [token for one in documents for token in one.ids]
        result |= {
            "scorer": f"{SCORERS['ppl']} bos={int(args.bos == 'on')}",
            "data": args.data or long_documents.HUB, "text_column": args.text_column,
            "one_per": args.one_per or None, "tokens_per_document": n,
            "documents": [{"id": one.id, "sha256": one.sha256} for one in documents],
            "documents_sha256": long_documents.sha256_of(everything),
            "shorter_documents_left_out": short,
            "inner_lr_multiplier": multiplier, "inner_lr_choice": choice}
        result |= long_exams.provenance(args, subject, procs, autocast)
        result["seconds"] = round(time.perf_counter() - begun, 3)
        print(f"{result['samples']} documents x {n:,} tokens | {result['data']} | {subject.folder}")
        print(long_exams.reading_of(result, multiplier))
        print(ppl_text(result))
        long_exams.warn_unwritten(result["written"])
        if out is not None and not stays:
            long_exams.store(out, result, document_lines(documents, table, n), "documents")


def document_lines(documents, table: dict[str, list[dict]], n: int) -> list[dict]:
    borders, lines = long_documents.edges(n), []
    tokens = [end - first for first, end in zip(borders, borders[1:], strict=False)]
    for control, records in table.items():
        for document, record in zip(documents, records, strict=True):
            about = {"id": document.id, "sha256": document.sha256, "control": control}
            lines.append(record | about | {"tokens": tokens})
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# niah, passkey


def filler_for(args) -> needles.Filler:
    longest = max(args.context_lengths)
    if args.filler == "sentences":
        return needles.make_filler([needles.sentences(4 * longest)], longest)
    rows = long_documents.texts(args.data, args.text_column, longest)
    return needles.make_filler((text for _, text, _ in rows), longest)


class Question(NamedTuple):
    """A prompt and how it is read. name: of the control; "removed" without the needle."""

    id: str
    name: str
    control: str
    with_needle: bool
    length: int
    number: int
    depth: float


def questions(args, controls: list[str]) -> tuple[list[Question], list[list[int]]]:
    """All questions, and their batches. Without the needle, a prompt is read as adapt does, or static."""
    conditions = [(control, control, True) for control in controls]
    if args.removed == "on":
        conditions.append(("removed", memorizing(controls), False))
    asked, batches, n = [], [], args.samples_per_length
    for length in args.context_lengths:
        for condition in conditions:
            for batch in long_exams.groups(n, args.batch_size):
                batches.append([len(asked) + i for i in batch])
            for i in range(n):
                depth = args.depths[i % len(args.depths)]
                asked.append(Question(f"{length}/{condition[0]}/{i}", *condition, length, i, depth))
    return asked, batches


def memorizing(controls: list[str]) -> str:
    return "adapt" if "adapt" in controls else "static"


def find(kind: str, args, procs) -> None:
    """Asks for the numbers of prompts under every control; rank 0 prints and stores the result."""
    begun, n = time.perf_counter(), args.samples_per_length
    subject = long_exams.load_subject(args.checkpoint, procs)
    model = subject.model
    refuse_short(kind, args)  # again, as the checkpoint may have other tokens
    window = needles.window_of(model.config)
    check(window >= 1, f"the model's block_size of {model.config.block_size} has no room for a number: "
                       "take a model that reads more.")
    controls = long_exams.controls_of(model.config, args)
    long_exams.needs_two(controls, n, args.batch_size, f"--{SAMPLES[kind]}")
    filler = procs.on_main(lambda: filler_for(args))
    autocast = processes.autocast_for(procs.device, args.dtype)
    asked, batches = questions(args, controls)

    def score(batch: list[Question]):
        prompts = [needles.make_prompt(kind, filler, one.length, one.depth, args.seed, one.number,
                                       one.with_needle) for one in batch]
        with autocast(), long_documents.test_time(model, args.inner_lr_multiplier, args.write):
            records = needles.score(model, batch[0].control, prompts)
        scores = [value for record in records for value in record["scores"]]
        benchmarks.refuse_broken(scores, f"prompts of {batch[0].length:,} tokens")
        pairs = zip(prompts, records, strict=True)
        return [needles.mark(prompt, record, window) for prompt, record in pairs]

    filler_sha256 = long_documents.sha256_of(filler.ids)
    settings = [SCORERS[kind], kind, args.context_lengths, n, args.depths, args.seed,
                args.inner_lr_multiplier, filler_sha256]
    with long_exams.kept(kind, args, [subject], procs, settings) as (out, work):
        planned = {"type": kind, "checkpoint_sha256": subject.weights_sha256, "data": None,
                   "context_lengths": args.context_lengths, "samples_per_length": n}
        if args.filler == "text":
            planned["data"] = args.data or long_documents.HUB
        stays = long_exams.note_fuller(args, out, planned, procs)
        records = long_exams.score_units(asked, batches, score, procs, work, kind)
        if records is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        lines = []
        for one, record in zip(asked, records, strict=True):
            about = {"control": one.name, "context_tokens": one.length, "prompt": one.number}
            lines.append(about | {"wanted_depth": one.depth} | record)
        result = {"type": kind, **KEYS[kind](lines, memorizing(controls))}
        result |= {
            "scorer": SCORERS[kind], "chance": needles.CHANCE, "resolution": needles.resolution(n),
            "context_lengths": args.context_lengths, "samples_per_length": n, "depths": args.depths,
            "seed": args.seed, "filler": args.filler, "filler_sha256": filler_sha256,
            "inner_lr_multiplier": args.inner_lr_multiplier}
        if args.filler == "text":
            result |= {"data": args.data or long_documents.HUB, "text_column": args.text_column}
        result["cells"] = cells(lines)
        result |= long_exams.provenance(args, subject, procs, autocast)
        result["seconds"] = round(time.perf_counter() - begun, 3)
        print(f"{kind}, {n} prompts per length, chance {needles.CHANCE} | {subject.folder}")
        print(long_exams.reading_of(result, args.inner_lr_multiplier))
        print(cells_text(result["cells"]))
        print(needles.resolution_sentence(n))
        written = {}
        for control in controls:
            mine = [line for line in lines if line["control"] == control]
            written[control] = long_exams.means_of(mine)
        long_exams.warn_unwritten(written)
        if out is not None and not stays:
            long_exams.store(out, result, lines, "prompts")


def cells(lines: list[dict]) -> list[dict]:
    """needles.summary of each length and control, over all depths and for each (depth None: all)."""
    table = {}
    for line in lines:
        for depth in (None, line["wanted_depth"]):
            table.setdefault((line["context_tokens"], line["control"], depth), []).append(line)
    names = "context_tokens", "control", "depth"
    return [dict(zip(names, key, strict=True)) | needles.summary(chosen) for key, chosen in table.items()]


def cells_text(table: list[dict]) -> str:
    lines = [f"{'tokens':>7} {'control':<8} {'n':>5} {'accuracy':>9}  {'95 % (Wilson)':<16} "
             f"{'margin':>8} {'greedy':>7} {'needle in window':>17}"]
    for cell in table:
        if cell["depth"] is not None:
            continue
        length, accuracy = cell["context_tokens"], cell["accuracy"]
        low, high = cell["accuracy_interval"]
        lines.append(f"{length:>7} {cell['control']:<8} {cell['n']:>5} {accuracy:>9.3f}  "
                     f"[{low:.3f}, {high:.3f}]   "
                     f"{cell['margin']:>8.3f} {cell['greedy']:>7.3f} {cell['visible']:>17.2f}")
        if cell["control"] == "removed" and not needles.at_chance(accuracy, cell["n"]):
            terminal.note(f"NOTE: without the needle, prompts of {length:,} tokens are not at chance but at "
                       f"{accuracy:.3f}: one sample in 20 does that by itself; try another --seed.")
    return "\n".join(lines)


def credits(lines: list[dict], control: str, length: int) -> list[float]:
    mine = [line for line in lines if line["control"] == control]
    return [line["credit"] for line in mine if line["context_tokens"] == length]


def controls_keys(lines: list[dict], length: int, key: str) -> dict:
    """Accuracies with their intervals, of the controls that were read with. key: with {} for the control's name."""
    result = {}
    for control in ("random", "other", "removed"):
        values = credits(lines, control, length)
        if values:
            result |= benchmarks.shares(**{key.format(control): values})
    return result


def memorize_keys(base: list[float], best: list[float], memorize: str, accuracy: str, delta: str) -> dict:
    """Accuracy under adapt, and its difference to static with a standard error; None without adapt."""
    if memorize == "static":
        return {accuracy: None, delta: None}
    found = long_exams.minus(best, base)
    return {accuracy: benchmarks.mean(best), delta: found["mean"], f"{delta}_se": found["se"]}


def niah_keys(lines: list[dict], memorize: str) -> dict:
    """Document 004's keys, niah_2048 and so on, of the control `memorize`, and ours."""
    result = {}
    for length in dict.fromkeys(line["context_tokens"] for line in lines):
        key = f"niah_{length}"
        base, best = credits(lines, "static", length), credits(lines, memorize, length)
        result |= benchmarks.shares(**{key: best})
        result |= {f"{key}_samples": len(best), f"{key}_baseline_accuracy": benchmarks.mean(base)}
        result |= memorize_keys(base, best, memorize, f"{key}_memorize_accuracy", f"{key}_memorize_delta")
        result |= controls_keys(lines, length, f"{key}_{{}}_accuracy")
        at = {}
        for line in lines:
            if line["context_tokens"] == length and line["control"] == memorize:
                at.setdefault(line["wanted_depth"], []).append(line["credit"])
        names = depth_names(list(at))
        result |= {f"{key}_depth_{names[depth]}": benchmarks.mean(values) for depth, values in at.items()}
    return result


def depth_names(depths: list[float]) -> dict[float, str]:
    """{depth: its digits in a key}: two decimals, or as many more as tell the depths apart."""
    decimals = 2
    while len({f"{depth:.{decimals}f}" for depth in depths}) < len(depths):
        decimals += 1
    return {depth: f"{depth:.{decimals}f}" for depth in depths}


def passkey_keys(lines: list[dict], memorize: str) -> dict:
    """The same of passkey's one length."""
    length = lines[0]["context_tokens"]
    base, best = credits(lines, "static", length), credits(lines, memorize, length)
    result = {"samples": len(best), "context_tokens": length, **benchmarks.shares(accuracy_base=base)}
    result |= memorize_keys(base, best, memorize, "accuracy_memorize", "accuracy_delta")
    result |= controls_keys(lines, length, "accuracy_{}")
    mine = [line for line in lines if line["control"] == memorize]
    return result | {"path_stats": long_exams.means_of(mine)}


KEYS = {"niah": niah_keys, "passkey": passkey_keys}

# ----------------------------------------------------------------------------------------------------------------------
# the command line

COMMANDS = {"ppl": (parse_ppl, ppl)}
for name in needles.NEEDLES:
    COMMANDS[name] = functools.partial(parse_needles, name), functools.partial(find, name)


def main(argv=None) -> int:
    return long_exams.main("long_context.py", __doc__, COMMANDS, argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "long_context.py", "stopped, nothing was written.")
