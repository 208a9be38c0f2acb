"""continual.py owns what a model keeps of one kind of text while it learns another: forgetting, measured.

    python continual.py segments <checkpoint> [<later one> ...] --segments web=edu_web.parquet books=books.parquet
    python continual.py fast <checkpoint> --segments A=books.parquet B=books.parquet C=edu_web.parquet
    python continual.py slow --stages before=<run0> A=<runA> A+B=<runAB> B=<runB> --segments A=a.parquet B=b.parquet
    python continual.py plot eval/continual_step000500.json eval/forgetting_step000500.json --out plots
    python continual.py fast <checkpoint> --segments A=synthetic B=synthetic --max_documents 2 --no_store

segments   document 004's list: the loss of every checkpoint on every segment, static and written (adapt), each token
           scored before it is written, and nothing kept from one document to the next. [{"checkpoint",
           "segment_losses", "segment_baseline_losses", "segment_memorize_delta" (static - adapt), "memorize_stats",
           ...}]. A loss above ln(vocabulary), worse than guessing, is no result: null, with a warning.
fast       fast weights: a reading writes --learn_tokens of A, then of B, then of C; after each, and after B and C
           alone, the next --score_tokens of all three documents are scored. lab/forgetting.py defines gain,
           forgetting, plasticity and backward transfer.
slow       the same measures of trained weights. The stages are checkpoints of the trainer:

               python train_gpt.py --data_dir data/A --out_dir runs/A --init_from runs/0
               python train_gpt.py --data_dir data/B --out_dir runs/AB --init_from runs/A --val_data_dir data/A
               python train_gpt.py --data_dir data/B --out_dir runs/B --init_from runs/0

           --val_data_dir shows the forgetting while it happens. The documents here must be held out from all of it.
plot       every segment over the stages or checkpoints, and the forgetting matrix.

Segments that name the same file take its documents in turn, so none is in two of them. Results go to the (last) run's
eval/continual_step000500.json, forgetting_step000500.json or forgetting_slow_step000500.json, or to --out FILE.json; a
line for each document or unit, from which runs can be paired, is beside it. The same command continues what was
interrupted.
"""

import math
import time
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import benchmarks, disk, files, forgetting, long_documents, long_exams, memory_settings, processes, terminal
from lab.schema import check, read_json

SCORER = "continual-1"  # a change that changes a loss must change this name
WHOLE, ABOVE_0 = "a whole number of at least 1", "a number above 0"

# ----------------------------------------------------------------------------------------------------------------------
# flags


def make_parser(command: str, description: str):
    parser = flags.Parser(prog=f"continual.py {command}", description=description, checks_more=True)
    add = parser.add_argument
    add("--segments", nargs="+", required=True, metavar="NAME=FILE",
        help="texts in the order in which they are learned: parquet or jsonl[.gz|.zst] files, globs or "
             "folders, or synthetic[:n] (required)")
    add("--text_column", default="text", help="column that holds the text (default text)")
    add("--one_per", default="", help="at most one document per value of this column ('' = all)")
    add("--max_documents", type=int, default=16, help="of each segment (default 16)")
    add("--bos", choices=("on", "off"), default="on", help="begin with <|endoftext|> (default on)")
    return parser


def parse_segments(argv):
    parser = make_parser("segments", "Losses of checkpoints on segments of text.")
    add = parser.add_argument
    add("checkpoints", nargs="+", help="runs or checkpoints, in the order of training")
    add("--tokens_per_document", type=int, default=4096, help="scored of each (default 4096)")
    long_exams.add_memory(parser)
    long_exams.add_machine(parser)
    args = parser.parse_args(argv)
    check_numbers(parser, args, "tokens_per_document")
    return args


def parse_fast(argv):
    parser = make_parser("fast", "What fast weights keep of a text while they write another.")
    add = parser.add_argument
    add("checkpoint", help="a run's folder (its newest checkpoint), one of its ckpt/step_*, "
                           "or a folder of GPT.save")
    add("--learn_tokens", type=int, default=2048, help="written of each document (default 2048)")
    add("--score_tokens", type=int, default=1024, help="scored behind those (default 1024)")
    long_exams.add_memory(parser)
    long_exams.add_machine(parser)
    args = parser.parse_args(argv)
    check_numbers(parser, args, "learn_tokens score_tokens")
    return args


def parse_slow(argv):
    parser = make_parser("slow", "What trained weights keep of a text while they learn another.")
    add = parser.add_argument
    add("--stages", nargs="+", required=True, metavar="STAGE=CHECKPOINT",
        help="before, A, A+B, A+B+C for segments A, B, C, and B, C alone; as many as there are (required)")
    add("--tokens_per_document", type=int, default=4096, help="scored of each (default 4096)")
    long_exams.add_machine(parser)
    parser.set_defaults(controls="static", write="trained", inner_lr_multiplier=1.0)
    args = parser.parse_args(argv)
    check_numbers(parser, args, "tokens_per_document")
    return args


def check_numbers(parser, args, more: str) -> None:
    long_exams.check_values(parser, args, {
        WHOLE: f"max_documents batch_size {more}", ABOVE_0: "inner_lr_multiplier"})
    flags.accept()


def parse_plot(argv):
    parser = flags.Parser(prog="continual.py plot", description="Plots of results.", checks_more=True)
    add = parser.add_argument
    add("results", nargs="+", help="JSON files of the other commands")
    add("--out", default="", help="folder for a PNG of each ('' = beside its file)")
    args = parser.parse_args(argv)
    args.device = "cpu"
    flags.accept()
    return args


# ----------------------------------------------------------------------------------------------------------------------
# what all commands do


def load(args, length: int, procs, least: int, of_length: str = "--tokens_per_document") -> dict[str, list]:
    """{segment: its documents}, equally many of each. of_length: the flags that the length comes from."""
    sources = forgetting.parse_named(args.segments, "--segments")
    check(len(sources) >= least,
          f"--segments names {len(sources)}: give at least {least}, NAME=FILE each.")
    options = dict(column=args.text_column, one_per=args.one_per, bos=args.bos == "on",
                   flag="--segments", of_length=of_length)
    segments = procs.on_main(
        lambda: forgetting.load_segments(sources, args.max_documents, length, **options))
    n = count_of(segments)
    if n < args.max_documents:
        terminal.note(f"NOTE: the segments have {n} documents each that are long enough, "
                   f"not {args.max_documents}.")
    return segments


def count_of(segments: dict[str, list]) -> int:
    """Documents of each segment."""
    return len(next(iter(segments.values())))


def about(args, segments: dict[str, list]) -> dict:
    """What a record says about its texts."""
    documents = {}
    for name, chosen in segments.items():
        documents[name] = [{"id": one.id, "sha256": one.sha256} for one in chosen]
    return {"scorer": f"{SCORER} bos={int(args.bos == 'on')}", "segments": args.segments,
            "text_column": args.text_column, "one_per": args.one_per or None, "documents": documents}


def settings_of(segments: dict[str, list], *more) -> list:
    checksums = [[name, *(one.sha256 for one in documents)] for name, documents in segments.items()]
    return [SCORER, *more, checksums]


def refuse_guesses(loss: float, vocab_size: int, what: str) -> float | None:
    """The loss, or None with a warning when it is worse than guessing."""
    if loss <= math.log(vocab_size):
        return loss
    guessing = f"ln({vocab_size:,}) = {math.log(vocab_size):.2f}"
    terminal.note(f"NOTE: {what} has a loss of {loss:.2f} nats, above {guessing}, which guessing has: "
               "the checkpoint is broken or hardly trained, and the loss is not kept.")
    return None


# ----------------------------------------------------------------------------------------------------------------------
# segments: document 004's list


def segments(args, procs) -> None:
    begun = time.perf_counter()
    subjects = [long_exams.load_subject(path, procs) for path in args.checkpoints]
    long_exams.refuse_other_tokens(subjects, "CHECKPOINTS")
    documents = load(args, args.tokens_per_document, procs, least=1)
    conditions = {}
    for i, subject in enumerate(subjects):
        controls = long_exams.controls_of(subject.model.config, args)
        long_exams.needs_two(controls, count_of(documents), args.batch_size, "--max_documents")
        for control in controls:
            for name, chosen in documents.items():
                conditions[i, control, name] = long_exams.Condition(
                    subject.model, control, args.inner_lr_multiplier, chosen)
    autocast = processes.autocast_for(procs.device, args.dtype)
    settings = settings_of(documents, args.tokens_per_document, args.inner_lr_multiplier)
    with long_exams.kept("continual", args, subjects, procs, settings) as (out, work):
        table = long_exams.score_documents(conditions, args, procs, work, autocast, "continual")
        if table is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        results = []
        for i, subject in enumerate(subjects):
            mine = {key[1:]: records for key, records in table.items() if key[0] == i}
            warn_unwritten(subject, mine)
            result = of_checkpoint(subject, mine, args) | about(args, documents)
            result |= long_exams.provenance(args, subject, procs, autocast)
            results.append(result | {"seconds": round(time.perf_counter() - begun, 3)})
        print(list_text(results))
        if out is not None:
            lines = []
            for (i, control, name), records in table.items():
                for one, record in zip(documents[name], records, strict=True):
                    line = {"checkpoint": str(subjects[i].folder), "segment": name, "control": control}
                    lines.append(line | record | {"id": one.id, "sha256": one.sha256})
            long_exams.store(out, results, lines, "documents")


def warn_unwritten(subject, table: dict) -> None:
    """long_exams.warn_unwritten of a checkpoint's {(control, segment): [record of each document]}."""
    by_control = {}
    for (control, _), records in table.items():
        by_control.setdefault(control, []).extend(records)
    written = {control: long_exams.means_of(records) for control, records in by_control.items()}
    long_exams.warn_unwritten(written, f"{subject.folder}: ")


def of_checkpoint(subject, table: dict, args) -> dict:
    """A checkpoint's entry in the list, of {(control, segment): [record of each document]}. segment_losses: as the
    model reads, adapt or, without writes, static."""
    n, per_document, stats, losses = args.tokens_per_document, {}, {}, {}
    vocab_size = subject.model.config.vocab_size
    names = list(dict.fromkeys(name for _, name in table))
    best = "static"
    if ("adapt", names[0]) in table:
        best = "adapt"
    for (control, name), records in table.items():
        values = [math.fsum(record["nats"]) / n for record in records]
        what = f"{subject.folder} on {name} ({control})"
        loss = refuse_guesses(benchmarks.mean(values), vocab_size, what)
        losses.setdefault(control, {})[name] = loss
        per_document[control, name] = values
        if control == best:
            stats[name] = long_exams.means_of(records)
    deltas, errors = dict.fromkeys(names), dict.fromkeys(names)
    for name in names:
        if best == "adapt" and None not in (losses["static"][name], losses[best][name]):
            found = long_exams.minus(per_document["static", name], per_document[best, name])
            deltas[name], errors[name] = found["mean"], found["se"]
    return {
        "type": "continual", "segment_losses": losses[best],
        "segment_baseline_losses": losses["static"],
        "segment_memorize_delta": deltas, "segment_memorize_delta_se": errors,
        "memorize_stats": stats, "segment_losses_by_control": losses,
        "guessing_loss": math.log(vocab_size), "samples": len(per_document["static", names[0]]),
        "tokens_per_document": n, "inner_lr_multiplier": args.inner_lr_multiplier}


def shown(value: float | None, width: int = 10) -> str:
    if value is None:
        return f"{'-':>{width}}"
    return f"{value:>{width}.4f}"


def list_text(results: list[dict]) -> str:
    names = list(results[0]["segment_losses"])
    lines = [f"{'nats per token':<24}" + "".join(f"{name:>12}" for name in names)]
    for result in results:
        lines.append(result["checkpoint"])
        for control, losses in result["segment_losses_by_control"].items():
            row = "".join(shown(losses[name], 12) for name in names)
            lines.append(f"    {control:<20}{row}")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------
# fast, slow: the protocol


def fast(args, procs) -> None:
    begun = time.perf_counter()
    subject = long_exams.load_subject(args.checkpoint, procs)
    model, config = subject.model, subject.model.config
    check(args.controls != ["static"], "under --controls static nothing is written, so there is nothing to forget: "
                                       "leave --controls out.")
    controls = [name for name in long_exams.controls_of(config, args) if name != "static"]
    check(controls, "the model writes nothing, so there is nothing to forget: take one with fast "
                    "weights, or continual.py slow for trained weights.")
    longest = max(memory_settings.written_periods(config))
    check(args.learn_tokens % longest == 0,
          f"--learn_tokens {args.learn_tokens} is no multiple of the model's longest period, {longest}: "
          "what is left of a segment would be written with the next one; change it.")
    documents = load(args, args.learn_tokens + args.score_tokens, procs, 2, "--learn_tokens or --score_tokens")
    n = count_of(documents)
    long_exams.needs_two(controls, n, args.batch_size, "--max_documents")
    autocast = processes.autocast_for(procs.device, args.dtype)
    units, batches = [], []
    for control in controls:
        for batch in long_exams.groups(n, args.batch_size):
            batches.append([len(units) + i for i in batch])
        units += [(f"{control}/{i}", control, i) for i in range(n)]

    def score(batch):
        control, rows = batch[0][1], [i for _, _, i in batch]
        to_learn, to_score, cut = {}, {}, args.learn_tokens
        for name, chosen in documents.items():
            idx, targets = long_documents.tensors([chosen[i] for i in rows], procs.device)
            to_learn[name] = idx[:, :cut], targets[:, :cut]
            to_score[name] = idx[:, cut:], targets[:, cut:]
        keys = ["/".join(chosen[i].sha256 for chosen in documents.values()) for i in rows]
        with autocast(), long_documents.test_time(model, args.inner_lr_multiplier, args.write):
            learners = []

            def new() -> forgetting.Learner:
                learners.append(forgetting.Learner(model, control, keys))
                return learners[-1]

            losses = forgetting.run(new, to_learn, to_score)
        written = long_documents.written_sums(learners[0].reading, len(rows))  # of all segments, one after another
        records = []
        for k in range(len(rows)):
            sums = {what: values[k] for what, values in written.items()}
            records.append({"losses": of_unit(losses, k), **sums})
        return records

    settings = settings_of(documents, args.learn_tokens, args.score_tokens, args.inner_lr_multiplier)
    with long_exams.kept("forgetting", args, [subject], procs, settings) as (out, work):
        records = long_exams.score_units(units, batches, score, procs, work, "continual")
        if records is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        by_control, lines, written = {}, [], {}
        for (_, control, k), record in zip(units, records, strict=True):
            lines.append({"unit": k, "control": control} | record)
        for control in controls:
            mine = [line for line in lines if line["control"] == control]
            losses = together([line["losses"] for line in mine])
            by_control[control] = protocol(losses, list(documents), config.vocab_size)
            written[control] = long_exams.means_of(mine)
        result = {"type": "forgetting", "weights": "fast", "control": controls[0]}
        result |= by_control[controls[0]] | {"by_control": by_control, "units": n, "written": written}
        result |= {"learn_tokens": args.learn_tokens, "score_tokens": args.score_tokens,
                   "inner_lr_multiplier": args.inner_lr_multiplier, **about(args, documents)}
        result |= long_exams.provenance(args, subject, procs, autocast)
        result["seconds"] = round(time.perf_counter() - begun, 3)
        print(f"fast weights, {n} units | {subject.folder}")
        print(long_exams.reading_of(result, args.inner_lr_multiplier))
        for control, found in by_control.items():
            print(f"\n{control}\n{protocol_text(found)}")
        long_exams.warn_unwritten(written)
        if out is not None:
            long_exams.store(out, result, lines, "units")


def of_unit(losses: dict, k: int) -> dict:
    """{stage: {segment: loss}} of the k-th unit of {stage: {segment: losses}}."""
    unit = {}
    for stage, row in losses.items():
        unit[stage] = {name: values[k] for name, values in row.items()}
        benchmarks.refuse_broken(list(unit[stage].values()), f"the texts at stage {stage}")
    return unit


def together(units: list[dict]) -> dict:
    """of_unit()'s inverse."""
    return {stage: {name: [unit[stage][name] for unit in units] for name in row}
            for stage, row in units[0].items()}


def protocol(losses: dict, names: list[str], vocab_size: int) -> dict:
    """The measures of lab/forgetting.py and the mean losses; a NOTE when some are worse than guessing."""
    guessing, means, worse = math.log(vocab_size), forgetting.means(losses), []
    for stage, row in means.items():
        worse += [f"{name} at {stage} ({loss:.2f})" for name, loss in row.items() if loss > guessing]
    if worse:
        terminal.note(f"NOTE: {files.listed(worse)}: worse than guessing, {guessing:.2f} nats, "
                   "so differences to it say little.")
    found = forgetting.measures(losses, names)
    return {**found, "losses": means, "order": names, "guessing_loss": guessing}


def protocol_text(result: dict) -> str:
    names = result["order"]
    lines = ["loss on       " + "".join(f"{name:>10}" for name in names)]
    for stage, row in result["losses"].items():
        lines.append(f"{stage:<14}" + "".join(shown(row[name]) for name in names))
    lines.append(f"\n{'nats per token':<27} {'mean':>13} {'se':>8}   95 % interval")
    for measure in ("gain", "forgetting", "plasticity"):
        for name, found in result[measure].items():
            lines.append(f"{measure:<18} {name:<8}{described(found)}")
    lines.append(f"{'backward_transfer':<27}{described(result['backward_transfer'])}")
    return "\n".join(lines)


def described(found: dict | None) -> str:
    if found is None:
        return " not measured: its stages are not all there"
    return long_exams.shown(found)


def slow(args, procs) -> None:
    begun, n = time.perf_counter(), args.tokens_per_document
    sources = forgetting.parse_named(args.segments, "--segments")
    stages = forgetting.parse_named(args.stages, "--stages")
    known = forgetting.stages_of(list(sources))
    for stage in stages:
        check(stage in known, f"--stages {stage}: with segments {', '.join(sources)} "
                              f"the stages are {', '.join(known)}; use those.")
    subjects = {stage: long_exams.load_subject(stages[stage], procs, "--stages") for stage in known if stage in stages}
    long_exams.refuse_other_tokens(list(subjects.values()), "--stages")
    documents = load(args, n, procs, least=2)
    sizes = {subject.model.config.block_size for subject in subjects.values()}
    check(len(sizes) == 1, f"the checkpoints have block_sizes {sorted(sizes)} and would read with "
                           "different contexts: take checkpoints of one model.")
    autocast = processes.autocast_for(procs.device, args.dtype)
    conditions = {}
    for stage, subject in subjects.items():
        for name, chosen in documents.items():
            conditions[stage, name] = long_exams.Condition(subject.model, "static", 1.0, chosen)
    ordered = list(subjects.values())
    settings = settings_of(documents, list(subjects), n)
    with long_exams.kept("forgetting_slow", args, ordered, procs, settings) as (out, work):
        table = long_exams.score_documents(conditions, args, procs, work, autocast, "continual")
        if table is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        losses, lines = {stage: {} for stage in subjects}, []
        for (stage, name), records in table.items():
            losses[stage][name] = [math.fsum(record["nats"]) / n for record in records]
            for one, record in zip(documents[name], records, strict=True):
                line = {"stage": stage, "segment": name, "id": one.id, "sha256": one.sha256}
                lines.append(line | {"nats": record["nats"]})
        result = {"type": "forgetting", "weights": "slow"}
        result |= protocol(losses, list(documents), ordered[0].model.config.vocab_size)
        result |= {"units": count_of(documents), "tokens_per_document": n, **about(args, documents)}
        result["checkpoints"] = {stage: long_exams.provenance(args, subject, procs, autocast)
                                 for stage, subject in subjects.items()}
        result["seconds"] = round(time.perf_counter() - begun, 3)
        print(f"trained weights, {result['units']} documents of each segment")
        print(protocol_text(result))
        if out is not None:
            long_exams.store(out, result, lines, "documents")


# ----------------------------------------------------------------------------------------------------------------------
# plot


def plot(args, procs) -> None:
    drawn = {}
    for name in args.results:
        path = Path(name)
        result = read_json(path, advice="name a result of continual.py")
        folder = path.parent
        if args.out:
            folder = Path(args.out)
            disk.make_folder(folder, "--out")
        out = folder / f"{path.stem}.png"
        check(out not in drawn, f"{path} and {drawn.get(out)} would both become {out}: "
                                "leave --out out, or rename one.")
        drawn[out] = path
        disk.write_whole(out, forgetting.draw(forgetting.picture_of(result, path)))
        print(f"wrote {out}")


# ----------------------------------------------------------------------------------------------------------------------
# the command line

COMMANDS = {"segments": (parse_segments, segments), "fast": (parse_fast, fast),
            "slow": (parse_slow, slow), "plot": (parse_plot, plot)}


def main(argv=None) -> int:
    return long_exams.main("continual.py", __doc__, COMMANDS, argv)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "continual.py", "stopped, nothing was written.")
