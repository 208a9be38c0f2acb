"""long_context.py owns what a model makes of long texts: loss by position, with what its fast weights wrote.

    python long_context.py ppl experiments/runs/<run> --data books.parquet --one_per origin
    python long_context.py ppl <checkpoint> --data test.jsonl --choose_inner_lr 0.1,0.3,1,3 --dev_data dev.jsonl
    python long_context.py ppl <checkpoint> --data synthetic --max_documents 4 --no_store   # no network; only print
    torchrun --standalone --nproc_per_node=8 long_context.py ppl <checkpoint>               # PG-19 from the hub

Reads a checkpoint and documents (parquet or jsonl), each of which gives --tokens_per_document tokens and is a sequence
of its own. Writes eval/ppl_step000500.json into the run (or --out FILE.json), and ..._documents.jsonl beside it: a line
per document and control, {"id", "control", "nats": [...], "tokens": [...]} by position, from which runs can be paired.
The same command continues an interrupted exam.

Every token is scored once, before anything that contains it is written. Attention reaches back no further than
block_size, so beyond that only what was written can help. Controls of the same checkpoint, paired over documents:

    static    nothing is written
    adapt     as the model is made: each chunk is written after its score
    random    in place of each write, a random one of the same norm
    other     in place of each write, that of another document of the batch: what is no memory of this text

A checkpoint that was trained with --write off is written here with --write stop (dynamic evaluation).
"""

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import benchmarks, disk, exams, files, long_documents, memory_settings, processes, runs
from lab.long_documents import CONTROLS, effect
from lab.schema import check

SCORER = "ppl-1"  # a change that changes a loss must change this name
NAMES = ", ".join(CONTROLS)

# ----------------------------------------------------------------------------------------------------------------------
# flags


def numbers(text: str) -> list[float]:
    """A comma-separated list of numbers above 0, for argparse."""
    values = [float(part) for part in text.split(",")]
    if not all(0 < value < math.inf for value in values):
        raise ValueError
    return values


def add_machine(parser) -> None:
    """The flags that every command has, and which have no effect on the result but rounding."""
    add = parser.add_argument_group("output and machine").add_argument
    add("--out", default="", help="JSON file of the results ('' = eval/<command>_step<step>.json in the run's folder "
                                  "or, without a run, the checkpoint's)")
    add("--no_store", dest="store", action="store_false", help="only print")
    add("--resume", choices=("on", "off"), default="on", help="continue this exam if it was interrupted (default on)")
    add("--batch_size", type=int, default=8, help="sequences at once (default 8); also whose writes `other` takes")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products (default float32)")


def add_memory(parser) -> None:
    add = parser.add_argument_group("fast weights").add_argument
    add("--controls", default="", help=f"comma-separated, of {NAMES} (default: all that the model has)")
    add("--write", choices=("trained", *memory_settings.CHOICES["write"]), default="trained",
        help="whether CMS levels are written; stop writes a model that was trained with off (default: as trained)")
    add("--inner_lr_multiplier", type=float, default=1.0, help="of the writes' learning rate (default 1)")


def parse_ppl(argv) -> argparse.Namespace:
    parser = flags.Parser(prog="long_context.py ppl", checks_more=True,
                          description="Loss by position of long documents.",
                          epilog="example: python long_context.py ppl experiments/runs/<run> --data books.parquet")
    add = parser.add_argument
    add("checkpoint", help="a run's folder (its newest checkpoint), one of its ckpt/step_*, or a folder of GPT.save")
    add("--data", default="", help="parquet or jsonl[.gz|.zst] file, glob or folder, or synthetic[:n] "
                                   f"('' = {long_documents.HUB} on the hub)")
    add("--text_column", default="text", help="column that holds the text (default text)")
    add("--one_per", default="", help="at most one document per value of this column, such as a chapter's book "
                                      "('' = all)")
    add("--max_documents", type=int, default=16, help="the first so many that are long enough (default 16)")
    add("--tokens_per_document", type=int, default=4096, help="tokens scored of each (default 4096)")
    add("--bos", choices=("on", "off"), default="on", help="begin with <|endoftext|> (default on)")
    add_memory(parser)
    add("--choose_inner_lr", type=numbers, default=[], metavar="X,Y",
        help="multipliers, of which the best on --dev_data is taken ('' = --inner_lr_multiplier)")
    add("--dev_data", default="", help="documents for --choose_inner_lr, none of which is in --data")
    add_machine(parser)
    args = parser.parse_args(argv)
    needs = {"a whole number of at least 1": "max_documents tokens_per_document batch_size",
             "a number above 0": "inner_lr_multiplier"}
    check_values(parser, args, needs)
    if bool(args.choose_inner_lr) != bool(args.dev_data):
        parser.error("--choose_inner_lr and --dev_data need each other: give both or none.")
    if args.choose_inner_lr and args.inner_lr_multiplier != 1:
        parser.error("--choose_inner_lr finds the multiplier: leave --inner_lr_multiplier out.")
    flags.accept()
    return args


def check_values(parser, args, needs: dict[str, str]) -> None:
    """Ends with a usage error when a flag is not what it must be. needs: {key of flags.NEEDS: names}."""
    for need, names in needs.items():
        for name in names.split():
            value = getattr(args, name)
            if not flags.NEEDS[need](value):
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
# what all commands do


def controls_of(config, args) -> list[str]:
    """The controls to read with, of those asked for. ValueError where the model has none of them."""
    asked = args.controls or list(CONTROLS)
    if config.memory == "none":
        check(args.write == "trained", "the model has no memory, which --write could change: leave --write out.")
        if args.controls not in ([], ["static"]):
            files.note("the model has no memory: it is read with the control static alone.")
        return ["static"]
    write = config.write if args.write == "trained" else args.write
    writes = memory_settings.writes(config) or write != "off"
    if config.memory in memory_settings.WITH_TITAN and config.memory not in memory_settings.WITH_CMS:
        check(args.write == "trained", "the model has no CMS level, which --write could change: leave --write out.")
    if not writes:
        check(not set(args.controls) - {"static"},
              "the model was trained with --write off and writes nothing: pass --write stop to write it here "
              "(dynamic evaluation), or --controls static.")
        files.note("the model was trained with --write off and is read as that; --write stop writes it here.")
        return ["static"]
    return asked


def groups(n: int, size: int) -> list[list[int]]:
    """0 to n - 1 in batches of `size`; none of a single one, which would have no other."""
    batches = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches


def score_units(units: list[tuple], batches: list[list[int]], score, procs, work, name: str) -> list[dict] | None:
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


def out_file(command: str, args, folder: Path, step: int | None, run: Path | None) -> Path | None:
    if not args.store:
        return None
    name = f"{command}_step{step or 0:06d}.json"
    return Path(args.out or (run or folder) / "eval" / name)


def provenance(args, folder: Path, step, run, weights: str, procs, autocast) -> dict:
    """What a record says about where its numbers come from."""
    state = runs.code_state()
    return {"checkpoint": str(folder), "step": step, "run": run and str(run), "checkpoint_sha256": weights,
            "data": args.data or long_documents.HUB, "dtype": benchmarks.computing_dtype(autocast),
            "device": procs.device.type, "batch_size": args.batch_size, "timestamp": runs.now(),
            "code": {name: value for name, value in state.items() if name != "git_diff"}}


# ----------------------------------------------------------------------------------------------------------------------
# ppl


def measure(model, documents, conditions: list[tuple], args, procs, work, autocast) -> dict | None:
    """{condition: [record of each document]} of conditions (control, multiplier); None when asked to stop."""
    write = "" if args.write == "trained" else args.write
    units, batches = [], []
    for control, multiplier in conditions:
        first = len(units)
        units += [(f"{control}/{multiplier:g}/{one.sha256[:16]}", control, multiplier, one) for one in documents]
        for batch in groups(len(documents), args.batch_size):
            batches.append([first + i for i in batch])

    def score(batch):
        _, control, multiplier, _ = batch[0]
        chosen = [unit[3] for unit in batch]
        with autocast(), long_documents.test_time(model, multiplier, write):
            nll, written = long_documents.losses(model, control, chosen)
        sums = long_documents.sums_by_position(nll)
        benchmarks.refuse_broken(sum(sums, []), f"the documents under {control}, from {chosen[0].id} on,")
        return [{"nats": nats, **{key: values[i] for key, values in written.items()}} for i, nats in enumerate(sums)]

    records = score_units(units, batches, score, procs, work, "ppl")
    if records is None:
        return None
    n = len(documents)
    return {condition: records[i * n : (i + 1) * n] for i, condition in enumerate(conditions)}


def choose_multiplier(args, dev: dict, n: int) -> tuple[float, dict]:
    """The multiplier with the lowest loss on the dev documents, and what the record says about the choice."""
    means = {}
    for (_, multiplier), records in dev.items():
        means[multiplier] = benchmarks.mean([math.fsum(record["nats"]) / n for record in records])
    best = min(means, key=means.get)
    if len(means) > 1 and best in (min(means), max(means)):
        files.note(f"the best multiplier, {best:g}, is the border of --choose_inner_lr: the best may lie beyond.")
    return best, {"loss_by_multiplier": {f"{key:g}": value for key, value in means.items()}, "chosen": best}


def ppl_metrics(table: dict[str, list[dict]], n: int) -> dict:
    """What the record says of {control: [record of each document]}, with n tokens per document. Losses in nats per
    token; differences are to static."""
    borders = long_documents.edges(n)
    loss = {control: [math.fsum(record["nats"]) / n for record in records] for control, records in table.items()}
    mean = {control: benchmarks.mean(values) for control, values in loss.items()}
    metrics = {"samples": len(loss["static"]), "tokens": n * len(loss["static"])}
    metrics |= {"ppl_base": math.exp(mean["static"]), "ppl_memorize": None, "ppl_delta": None}
    if "adapt" in mean:
        metrics["ppl_memorize"] = math.exp(mean["adapt"])
        metrics["ppl_delta"] = metrics["ppl_base"] - metrics["ppl_memorize"]
    metrics["loss"] = mean
    metrics["loss_se"] = {control: effect(values)["se"] for control, values in loss.items()}
    metrics["minus_static"] = {
        control: effect([a - b for a, b in zip(values, loss["static"], strict=True)])
        for control, values in loss.items() if control != "static"}
    metrics["written"] = {
        control: {key: benchmarks.mean([record[key] for record in records]) for key in ("updates", "update_norm")}
        for control, records in table.items()}
    metrics["by_position"] = []
    for i, (first, end) in enumerate(zip(borders, borders[1:], strict=False)):
        at = {control: [record["nats"][i] / (end - first) for record in records] for control, records in table.items()}
        row = {"from": first, "to": end, "loss": {control: benchmarks.mean(values) for control, values in at.items()}}
        row["minus_static"] = {
            control: {key: value for key, value in
                      effect([a - b for a, b in zip(values, at["static"], strict=True)]).items()
                      if key in ("mean", "se", "n_below_0")}
            for control, values in at.items() if control != "static"}
        metrics["by_position"].append(row)
    return metrics


def ppl_table(metrics: dict) -> str:
    lines = [f"{'control':<8} {'nats/token':>10} {'minus static':>13} {'se':>8}   95 % interval"]
    for control, loss in metrics["loss"].items():
        line = f"{control:<8} {loss:>10.4f}"
        if control != "static":
            line += shown(metrics["minus_static"][control])
        lines.append(line)
    controls = list(metrics["loss"])
    lines.append("\n" + f"{'tokens':<14}" + "".join(f"{control:>10}" for control in controls))
    for row in metrics["by_position"]:
        losses = "".join(f"{row['loss'][control]:>10.4f}" for control in controls)
        lines.append(f"{row['from']:>6}-{row['to']:<7}" + losses)
    return "\n".join(lines)


def shown(one: dict) -> str:
    """An effect() behind a loss."""
    text = f" {one['mean']:>+13.4f}"
    if one["se"] is not None:
        low, high = one["interval"]
        text += f" {one['se']:>8.4f}   [{low:+.4f}, {high:+.4f}], below 0 in {one['n_below_0']} of {one['n']}"
    return text


def ppl(args, procs) -> None:
    """Scores documents under every control; rank 0 prints and stores the result."""
    begun = time.perf_counter()
    model, folder, step, run = benchmarks.load_checkpoint(args.checkpoint, procs.device, "CHECKPOINT")
    benchmarks.check_vocabulary(model, largest=math.inf)
    model.eval()
    n, bos = args.tokens_per_document, args.bos == "on"
    load = lambda source: procs.on_main(lambda: long_documents.load(
        source, args.max_documents, n, args.text_column, args.one_per, bos))
    controls = controls_of(model.config, args)
    documents, short = load(args.data)
    dev = []
    if args.choose_inner_lr:
        check(controls != ["static"], "the model writes nothing whose rate could be chosen: "
                                      "leave --choose_inner_lr and --dev_data out.")
        dev, _ = load(args.dev_data)
        same = {one.sha256 for one in documents} & {one.sha256 for one in dev}
        check(not same, f"{len(same)} of the documents of --dev_data are in --data, too: the rate would be chosen on "
                        "what it is judged by; separate them.")
    check("other" not in controls or min(len(documents), args.batch_size) > 1,
          "the control other needs a second document in the batch: raise --max_documents and --batch_size, "
          "or leave it out of --controls.")
    if len(documents) < args.max_documents:
        files.note(f"--data has {len(documents)} documents that are long enough, not {args.max_documents}.")
    if "static" not in controls:
        controls.insert(0, "static")  # all others are compared with it
    weights, (_, autocast) = benchmarks.weights_sha256(folder), processes.autocast_for(procs.device, args.dtype)
    settings = {"write": args.write, "bos": bos, "batch_size": args.batch_size, "dtype": args.dtype}
    decisive = [SCORER, settings, weights, [one.sha256 for one in [*documents, *dev]], procs.device.type,
                runs.code_state()["code_sha256"]]
    out = out_file("ppl", args, folder, step, run)
    with exams.unfinished(procs, out and out.parent, f"{out and out.stem}_partial", decisive,
                          args.resume == "on") as work:
        multiplier, choice = args.inner_lr_multiplier, None
        if dev:
            conditions = [("adapt", one) for one in args.choose_inner_lr]
            losses = measure(model, dev, conditions, args, procs, work, autocast)
            if losses is None:
                raise KeyboardInterrupt
            multiplier, choice = choose_multiplier(args, losses, n)
            choice |= {"data": args.dev_data, "documents": [one.id for one in dev]}
        table = measure(model, documents, [(control, multiplier) for control in controls], args, procs, work, autocast)
        if table is None:
            raise KeyboardInterrupt
        if not procs.is_main:
            return
        table = {control: records for (control, _), records in table.items()}
        stride, chunk = long_documents.sizes(model.config)
        result = {"type": "ppl", **ppl_metrics(table, n), "scorer": f"{SCORER} bos={int(bos)}", "bos": bos,
                  "tokens_per_document": n, "shorter_documents_left_out": short, "text_column": args.text_column,
                  "one_per": args.one_per or None, "documents": [{"id": one.id, "sha256": one.sha256}
                                                                 for one in documents],
                  "documents_sha256": long_documents.sha256_of(sum((one.ids for one in documents), [])),
                  "memory": model.config.memory, "trained_write": model.config.write, "write": args.write,
                  "inner_lr": model.config.inner_lr, "inner_lr_multiplier": multiplier, "inner_lr_choice": choice,
                  "block_size": model.config.block_size, "stride": stride, "chunk": chunk,
                  **provenance(args, folder, step, run, weights, procs, autocast)}
        result["seconds"] = round(time.perf_counter() - begun, 3)
        print(f"{result['samples']} documents x {n:,} tokens | {result['data']} | {folder}")
        print(f"memory {result['memory']}, inner_lr {result['inner_lr']:g} x {multiplier:g}, "
              f"windows of {result['block_size']:,} every {stride:,} tokens")
        print(ppl_table(result))
        for control in controls[1:]:
            if result["written"][control]["updates"] == 0:
                files.note(f"under {control} nothing was written: the model's inner_lr or teach scale is 0.")
        if out is not None:
            store_ppl(out, result, table, documents)


def store_ppl(out: Path, result: dict, table: dict, documents) -> None:
    """Writes the lines per document, then the result, which names their checksum."""
    borders = long_documents.edges(result["tokens_per_document"])
    tokens = [end - first for first, end in zip(borders, borders[1:], strict=False)]
    lines = []
    for control, records in table.items():
        for document, record in zip(documents, records, strict=True):
            lines.append({**record, "id": document.id, "sha256": document.sha256, "control": control,
                          "tokens": tokens})
    beside = out.with_name(f"{out.stem}_documents.jsonl")
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    disk.write_whole(beside, content)
    disk.write_json(out, result | {"documents_file": beside.name})
    print(f"the record is {out}, the sums of each document are in {beside.name}")


# ----------------------------------------------------------------------------------------------------------------------
# the command line

COMMANDS = {"ppl": (parse_ppl, ppl)}


def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = "".join(argv[:1])
    if command not in COMMANDS:
        usage = f"long_context.py {'|'.join(COMMANDS)} CHECKPOINT [flags]; each has its own --help"
        parser = flags.Parser(prog="long_context.py", description=__doc__, usage=usage)
        parser.parse_args([word for word in argv if word in ("-h", "--help")])
        parser.error(f"{command or 'no command'}: give {' or '.join(COMMANDS)} first.")
    parse, examine = COMMANDS[command]
    args = parse(argv[1:])
    procs = processes.start_processes(args.device)
    try:
        examine(args, procs)
    finally:
        procs.close()
    return 0


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "long_context.py", "stopped, nothing was written.")
