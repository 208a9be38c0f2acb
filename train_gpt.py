"""train_gpt.py tells one training run from flags to summary.json: one file for a laptop, one GPU, or many.

    python train_gpt.py --data_dir data/synthetic --n_layer 4 --n_head 4 --n_embd 128 --seq_len 128 \\
        --micro_batch_size 8 --total_batch_tokens 4096 --max_train_steps 300                     # CPU
    python train_gpt.py --data_dir fineweb_edu_10B                                               # 1 GPU, 124M
    torchrun --standalone --nproc_per_node=8 train_gpt.py --data_dir fineweb_edu_10B             # 8 GPUs
    python train_gpt.py --out_dir experiments/runs/<run> --resume auto                           # continue
    python train_gpt.py --config experiments/runs/<run>/config.json --seed 1                     # repeat, one change

Reads a folder of prepare_fineweb.py or prepare_bos_rows.py (or llm.c, nanoGPT, build-nanogpt shards); writes a run's
folder (layout: lab/runs.py). The tokens of a step depend on data, seed and step alone (lab/data_order.py), so two arms
can be proved to have read the same, and no resume, number of ranks or micro-batch size changes what is learnt, but for
the rounding of sums in another order.
"""

import argparse
import contextlib
import functools
import math
import time
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

import numpy as np
import torch

import ewok
import hellaswag
import zeroshot
from lab import (
    architecture,
    benchmarks,
    compiling,
    data_order,
    disk,
    estimate,
    gradients,
    inference,
    memory_settings,
    optim,
    precision,
    presets,
    processes,
    results,
    resume,
    runs,
    shards,
    training,
    val_loss,
)
from lab.mechanisms import find_warnings, probe_rows, record_mechanism
from lab.tokenizer import VOCAB_SIZE, bos_id, get_tokenizer, refuse_other, use_data
from model import GATE_ACTIVATIONS, GATE_POSITIONS, GATES, GPT, GPTConfig

BENCHMARKS = (hellaswag, ewok, zeroshot)  # scored while training; flags, log lines, records follow
LONGEST_WARMUP = 715  # steps
# the flags of GPTConfig
SHAPE = ["arch", *architecture.PARTS, *"n_layer n_head n_embd n_inner attn_gate gate_pos gate_act vocab_size".split()]

# ----------------------------------------------------------------------------------------------------------------------
# flags


def build_parser() -> argparse.ArgumentParser:
    parser = flags.make_parser("train_gpt.py", __doc__, epilog=presets.help_text())
    parser.add_argument("--preset", choices=presets.PRESETS,
                        help="defaults for a purpose, listed at the end; beats --config, any other flag beats it")
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", help="folder of train_*.bin and val_*.bin (required)")
    add("--val_data_dir", help="folder whose val files are scored instead (default: --data_dir)")
    add("--condition", choices=("baseline", "mul_tokens"), help="refuse other data (default: any)")
    add("--seq_len", type=int, default=1024, help="tokens per sequence (default %(default)s)")
    add("--data_order", choices=data_order.ORDERS, default="shuffled", help="(default %(default)s)")
    add("--max_epochs", type=float, default=1.0, help="most passes over data (default %(default)g)")
    add("--num_workers", type=int, default=1, help="threads that read ahead (default %(default)s)")
    add("--verify_data", choices=("full", "sizes"), default="full",
        help="checked before step 0: checksums, or sizes alone (default %(default)s)")
    add("--vocab_size", type=int, default=0,
        help=f"token ids (0 = the tokenizer's: GPT-2's and our products' {VOCAB_SIZE})")
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--init_from", default="",
        help="run or checkpoint whose weights and shape to start from ('' = fresh from --seed)")
    architecture.add_arguments(group)
    add("--n_layer", type=int, default=12, help="blocks (default %(default)s)")
    add("--n_head", type=int, default=0, help="heads (0 = 12 for gpt2, n_embd / 128 for speedrun)")
    add("--n_embd", type=int, default=768, help="width (default %(default)s)")
    add("--n_inner", type=int, default=0, help="width of the MLP (0 = 4 x n_embd; swiglu: 8/3)")
    add("--attn_gate", choices=GATES, default=GPTConfig.attn_gate, help="attention gate (default %(default)s)")
    add("--gate_pos", choices=GATE_POSITIONS, default=GPTConfig.gate_pos,
        help="gate the SDPA output or the values (default %(default)s)")
    add("--gate_act", choices=GATE_ACTIVATIONS, default=GPTConfig.gate_act,
        help="range of the gate; ns_sigmoid = 0.5 + 0.5 sigmoid (default %(default)s)")
    memory_settings.add_arguments(parser.add_argument_group("memory: fast weights, written while a sequence is read"))
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--micro_batch_size", type=int, default=10,
        help="sequences per forward pass and rank (default %(default)s; 0 = as many as fit); no effect on results")
    add("--total_batch_tokens", type=int, default=491_520, help="tokens per step over all ranks (default %(default)s)")
    add("--max_train_steps", type=int, default=20_000, help="optimizer steps (default %(default)s)")
    add("--seed", type=int, default=0,
        help="of weights, data order and samples, each with its own stream (default %(default)s)")
    optim.add_arguments(group, learning_rate=6e-4, weight_decay=0.1, longest_warmup=LONGEST_WARMUP)
    add = flags.add_evaluation_arguments(parser, eval_every=250).add_argument
    add("--val_tokens", type=int, default=10_485_760,
        help="first whole documents of this many plain GPT-2 tokens (default %(default)s)")
    for benchmark in BENCHMARKS:
        name = benchmark.NAME
        add(f"--{name}_every", type=int, default=0, help="steps between scores, and the last (0 = off)")
        add(f"--{name}_data", default="",
            help=f"{benchmark.DATA_HELP}; a synthetic corpus has synthetic items by default")
        add(f"--{name}_max_examples", type=int, default=0, help="items, evenly spread (0 = all)")
        if hasattr(benchmark, "TASKS"):
            add(f"--{name}_tasks", default="",
                help="comma-separated; max_examples are of each ('' = all)")
    add("--skip_long", action="store_true", help="leave out benchmark items longer than --seq_len")
    add("--eval_bos", choices=("on", "off"), default="on",
        help="<|endoftext|> before every context (default %(default)s)")
    add = flags.add_run_arguments(parser, name="data folder, arm, optimizer", save_every=1000).add_argument
    add("--results_csv", default=str(runs.REPO / "experiments" / "results.csv"),
        help="table that a finished run is added to ('' = none)")
    flags.add_machine_arguments(parser)
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked and completed. --config, or the run being resumed, supplies the defaults."""
    parser = build_parser()
    config = resume.take_defaults(parser, argv)
    presets.take(parser, argv)
    start = config_of_start(parser, argv, config)
    shape = {name: start[name] for name in SHAPE if name in start} | memory_settings.flags_of(start)
    parser.set_defaults(**shape)
    args = architecture.normalise(parser.parse_args(argv))
    for name, value in shape.items():
        if getattr(args, name) != value:
            parser.error(f"--init_from {args.init_from} has {name} {value}: drop --{name} {getattr(args, name)}.")
    if args.seq_len > start.get("block_size", args.seq_len):
        parser.error(f"--init_from {args.init_from} reads at most {start['block_size']} tokens: lower --seq_len.")
    if not args.data_dir:
        parser.error("--data_dir is required: make one with python prepare_fineweb.py "
                     "--dataset synthetic --max_docs 5000 --out_dir data/synthetic")
    more = [f"{one.NAME}_every {one.NAME}_max_examples" for one in BENCHMARKS]
    more += [optim.number_flags(), *memory_settings.SCHEDULE_NAMES]
    flags.check_flags(parser, args, {
        "a whole number of at least 1": "seq_len n_layer n_embd total_batch_tokens max_train_steps val_tokens",
        "0 or more": f"vocab_size micro_batch_size num_workers n_head n_inner {' '.join(more)}",
        "a number above 0": "max_epochs"})
    memory_settings.fill_in(args)
    if not args.n_head:
        args.n_head = max(1, args.n_embd // 128) if args.arch == "speedrun" else 12
    args.n_inner = args.n_inner or architecture.default_inner(args)
    optim.fill_in(args, LONGEST_WARMUP)
    arm = "" if args.attn_gate == "none" else f"_{args.attn_gate}_{args.gate_pos}_{args.gate_act}"
    if args.memory != "none":
        arm += f"_{args.memory}_{args.write}"
    for name in SHAPE:  # an architecture, and what you add
        value = getattr(args, name)
        is_word = isinstance(value, str) and name not in architecture.PARTS and "gate" not in name
        arm += f"_{value}" if is_word and value != parser.get_default(name) else ""
    arm += f"{architecture.name_of(args)}_{args.optimizer}"
    flags.fill_in(args, name=Path(args.data_dir).name + arm)
    return args


def config_of_start(parser, argv, config: dict | None) -> dict:
    """The configuration of the model that --init_from names; {} without one. A run that already has checkpoints no
    longer needs the model it started from: its own config.json has the shape. config: see resume.take_defaults."""
    args, _ = parser.parse_known_args(argv)
    if not args.init_from:
        return {}
    if args.resume and config is not None and runs.list_checkpoints(args.out_dir):
        return config.get("model", {})
    try:
        folder, _, _ = runs.resolve_checkpoint(args.init_from, flag="--init_from")
        if args.data_dir:
            refuse_other(folder, "--init_from", args.data_dir)
        return GPT.load_config(folder).to_dict()
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


# ----------------------------------------------------------------------------------------------------------------------
# data and model


def micro_batch_sizes(args, world_size: int) -> list[int]:
    """Those that share the sequences of a rank's step evenly; [] where ranks cannot."""
    share, rest = divmod(args.total_batch_tokens // args.seq_len, world_size)
    return [size for size in range(1, share + 1) if share % size == 0 and rest == 0]


def count_sequences(args, world_size: int) -> int:
    """Sequences per optimizer step. ValueError, naming values that work, when ranks and micro-batches do not share
    them evenly."""
    sequences, rest = divmod(args.total_batch_tokens, args.seq_len)
    unit = args.micro_batch_size * args.seq_len * world_size
    if args.total_batch_tokens % unit == 0:
        return sequences
    advice = f"pass --total_batch_tokens {max(1, round(args.total_batch_tokens / unit)) * unit}"
    sizes = micro_batch_sizes(args, world_size)
    if rest == 0 and sizes:
        sizes.sort(key=lambda size: abs(size - args.micro_batch_size))
        advice += f", or --micro_batch_size {' or '.join(map(str, sizes[:3]))}"
    raise ValueError(
        f"--total_batch_tokens {args.total_batch_tokens} is not a multiple of micro_batch_size x "
        f"seq_len x ranks = {args.micro_batch_size} x {args.seq_len} x {world_size} = {unit}: {advice}.")


def count_epochs(args, sequences_per_step: int, n_sequences: int) -> float:
    """How often this run reads the data. ValueError when that is more than --max_epochs."""
    needed = args.max_train_steps * sequences_per_step
    epochs = needed / n_sequences
    if epochs > args.max_epochs:
        steps = int(args.max_epochs * n_sequences // sequences_per_step)
        lower = f"--max_train_steps to {steps}" if steps else "--total_batch_tokens"
        raise ValueError(
            f"{args.max_train_steps} steps x {sequences_per_step} sequences = {needed:,}, but "
            f"{args.data_dir} has {n_sequences:,} of {args.seq_len} tokens: {epochs:.3f} epochs, over "
            f"--max_epochs {args.max_epochs:g}; lower {lower}, prepare more, or pass --max_epochs {math.ceil(epochs)}.")
    return epochs


def open_data(args, verify: bool) -> tuple:
    """(training files, their meta.json or {}, held-out documents or val_loss.NONE)."""
    files, meta = shards.open_dataset(args.data_dir, "train", verify, args.vocab_size)
    files.content = files.content_sha256() if verify else None
    meta = meta or {}
    condition = meta.get("condition", "unknown")
    if args.condition and args.condition != condition:
        raise ValueError(f"--condition {args.condition}, but {args.data_dir} was prepared as "
                         f"{condition}: name the other folder, or drop --condition.")
    val = val_loss.NONE
    if args.eval_every:
        val = shards.open_val(args.val_data_dir or args.data_dir, args.val_tokens, verify, args.vocab_size)
    return files, meta, val


def bytes_per_token(meta: dict) -> float | None:
    """UTF-8 bytes of text that a train token stands for in the mean; None of a neighbour's data."""
    train = [record for record in meta.get("data_files", ()) if record["split"] == "train"]
    return sum(r["utf8_bytes"] for r in train) / sum(r["tokens"] for r in train) if train else None


def load_items(args, benchmark, meta: dict, procs) -> tuple[list[dict], dict]:
    """A benchmark's items, and what its records say about them. ValueError when there are none, or some are too long
    for --seq_len."""
    flag = f"{benchmark.NAME}_data"
    source, count = getattr(args, flag), getattr(args, f"{benchmark.NAME}_max_examples")
    if not source and meta.get("dataset") == "synthetic" and getattr(benchmark, "HAS_SYNTHETIC", True):
        source = "synthetic"
    skipped, chosen = None, []
    if hasattr(benchmark, "TASKS"):
        chosen = [getattr(args, f"{benchmark.NAME}_tasks")]
    try:
        items = procs.on_main(lambda: benchmark.load(source, count, *chosen))
        if args.skip_long:
            items, skipped = benchmarks.skip_long(items, benchmark.questions, args.seq_len)
        benchmark.check_length(items, args.seq_len)
    except ValueError as error:
        sentence = str(error).replace("--data", f"--{flag}")
        raise processes.SharedError(sentence.replace("--tasks", f"--{benchmark.NAME}_tasks")) from None
    return items, benchmarks.name_items(benchmark, items, source, skipped)


def build_model(args, resumed: dict | None, device) -> tuple[GPT, dict | None]:
    """(the model, what config.json records of --init_from)."""
    if args.init_from and resumed is not None and runs.list_checkpoints(args.out_dir):
        return GPT(GPTConfig.from_dict(resumed["model"]), seed=None).to(device), resumed.get("init")
    if args.init_from:
        folder, _, _ = runs.resolve_checkpoint(args.init_from, flag="--init_from")
        init = {"checkpoint": str(folder), "sha256": disk.sha256_file(folder / "model.safetensors")}
        return GPT.load(folder, device), init
    padded = -(-args.vocab_size // 128) * 128  # makes the head's products faster; masked everywhere
    shape = {name: getattr(args, name) for name in SHAPE} | memory_settings.settings_of(args)
    shape["unused_ids"] = get_tokenizer().unused_ids if args.vocab_size <= VOCAB_SIZE else ()
    config = GPTConfig(**shape, padded_vocab_size=padded, block_size=args.seq_len)
    return GPT(config, seed=args.seed).to(device), None


# ----------------------------------------------------------------------------------------------------------------------
# evaluation


def record_benchmark(run: training.Run, benchmark, about: dict, scores: dict, fields: dict) -> None:
    metrics = scores["metrics"]
    metrics |= about
    training.log_scores(run, about["title"], metrics, benchmark.SHOWN, fields)
    if run.procs.is_main:
        benchmark.write_records(run.folder, fields["step"], scores, fields["timestamp"])
        scalars = {k: value for k, value in metrics.items() if isinstance(value, (int, float, str))}
        run.scalars.write(type=benchmark.NAME, **fields, **scalars)


def plan_evaluations(run: training.Run, val: dict, probe, items: dict) -> dict:
    """What training.evaluate takes. probe: probe_rows'. items: {name: (benchmark, *load_items())}."""
    args, procs, autocast, stop = run.args, run.procs, run.autocast, run.stop

    def record_val(scores, fields):
        training.record_val(run, scores, fields)
        record_mechanism(run, probe)

    compute_val = functools.partial(val_loss.evaluate, run.model, val, args, procs, autocast, stop)
    evaluations = {"val": (compute_val, record_val)}
    for name, (benchmark, examples, about) in items.items():
        compute = functools.partial(
            benchmark.evaluate, run.model, examples, procs, bos=args.eval_bos == "on",
            autocast=autocast, stop=stop, progress=True, kept={})
        evaluations[name] = compute, functools.partial(record_benchmark, run, benchmark, about)
    return evaluations


def print_samples(run: training.Run) -> None:
    step, args = run.state.step, run.args
    samples = inference.generate(
        run.model.eval(), [[bos_id()]] * 2, args.sample_tokens,
        temperature=0.8, top_k=50, seed=args.seed + step, stop_ids=[bos_id()])
    decode = get_tokenizer().decode_generated
    training.record_samples(run, [("", decode(sample.ids)) for sample in samples])
    run.pace.mark("sample")


# ----------------------------------------------------------------------------------------------------------------------
# the end


def summarise(run: training.Run) -> dict:
    """summary.json: last and best numbers, cost, warnings, the row for results.csv."""
    config, data = run.record, run.record["data"]
    numbers = training.final_numbers(run, "val_loss val_bits_per_byte val_loss_bos val_bits_per_byte_bos")
    numbers["unique_tokens"] = data["unique_tokens"]
    scores = runs.read_step_metrics(run.folder).get(str(run.state.step), {})
    row = results.first_row(run) | numbers
    for benchmark in BENCHMARKS:
        about = config["benchmarks"].get(benchmark.NAME, {})
        row[f"{benchmark.NAME}_title"] = about.get("title")
        if about or not hasattr(benchmark, "TASKS"):  # its many columns are there where they are scored
            row |= {key: scores.get(key) for key, *_ in benchmark.METRICS}
    return {**numbers, "scores": scores, "warnings": find_warnings(run), "results_row": row}


# ----------------------------------------------------------------------------------------------------------------------
# the run


def train(args, procs, until_end: contextlib.ExitStack) -> int:
    # ------------------------------------------------------------------------------------------------------------------
    # processes
    device, derived = procs.device, use_data(args) + architecture.derived_flags(args)
    training.prepare_machine(args, device, masks=args.memory != "none")
    sizes, fits_rows = micro_batch_sizes(args, procs.world_size), not args.micro_batch_size
    if fits_rows:
        args.micro_batch_size = min(procs.gather(estimate.guess_rows(args, device, sizes)))
    sequences_per_step = count_sequences(args, procs.world_size)
    tokens_per_step = args.total_batch_tokens
    schedule = optim.schedule_settings(args)
    args.out_dir = procs.broadcast(args.out_dir)  # its date may differ at midnight
    if procs.on_main(lambda: training.nothing_to_do(args, build_parser(), "--init_from")):
        return 0
    if not args.dry_run:
        procs.hold(args.out_dir)
    resumed = procs.on_main(lambda: training.resumed_config(args))
    if args.results_csv:
        procs.on_main(lambda: results.check_table(args.results_csv))

    # ------------------------------------------------------------------------------------------------------------------
    # data: rank 0 reads every byte once and compares checksums, then the others open the files
    verify = procs.is_main and args.verify_data == "full" and not args.dry_run
    files, meta, val = procs.main_first(lambda: open_data(args, verify))
    files.fingerprint = procs.broadcast(files.fingerprint)
    n_sequences = files.n_sequences(args.seq_len)
    epochs = count_epochs(args, sequences_per_step, n_sequences)
    unique_tokens = min(args.max_train_steps * sequences_per_step, n_sequences) * args.seq_len
    every, items = {"val": args.eval_every}, {}  # every: steps between evaluations
    for benchmark in BENCHMARKS:
        name = benchmark.NAME
        every[name] = getattr(args, f"{name}_every")
        if every[name]:
            items[name] = benchmark, *load_items(args, benchmark, meta, procs)

    # ------------------------------------------------------------------------------------------------------------------
    # model and optimizer
    model, init = build_model(args, resumed, device)
    if items or args.sample_every:  # noticed now, not at the first
        benchmarks.check_vocabulary(model, largest=math.inf)
    memory_settings.check_rows(model.config, args.seq_len)
    autocast = precision.choose(args, procs, model, args.micro_batch_size * args.seq_len, resumed)
    reducer = gradients.Reducer(procs, model)
    model.train()
    optimizers = optim.build_optimizers(
        model, **optim.settings(args), rank=procs.rank, world_size=procs.world_size)
    forward = compiling.compile_training(args, model, model, procs.world_size)
    vars(args).update(memory_settings.flags_of(model.config.to_dict()))  # as the model was built
    flops_per_token = model.flops_per_token(args.seq_len)
    flops_per_step = flops_per_token * tokens_per_step

    def compute_gradients(tokens):  # (B, T + 1)
        tokens = tokens.to(device, non_blocking=True)
        with autocast():
            loss = forward(tokens[:, :-1], tokens[:, 1:], loss_denominator=tokens_per_step)
        loss.backward()
        return loss.detach()

    # ------------------------------------------------------------------------------------------------------------------
    # what it will cost, from one micro-step, which leaves no trace
    scored = {name: estimate.tokens_of(examples) for name, (_, examples, _) in items.items()}
    scored["val"] = val_loss.count_tokens(val, args)
    sequence = torch.from_numpy(files.slice(0, args.seq_len + 1).astype(np.int64))
    micro_step = lambda rows: compute_gradients(sequence.repeat(rows, 1))
    fitting = 0.0  # seconds
    if fits_rows:
        args.micro_batch_size, fitting = estimate.fit_rows(procs, micro_step, model, args.micro_batch_size, sizes)
    args.eval_batch_size = val_loss.rows_per_pass(args, device)
    pace, costs = training.look_ahead(
        args, reducer, model, optimizers, micro_step,
        micro_steps=sequences_per_step // args.micro_batch_size // procs.world_size,
        tokens=args.micro_batch_size * args.seq_len, every=every, scored=scored,
        sizes=sizes, advice=presets.LAPTOP_ADVICE)
    of_memory = memory_settings.schedule_warning(model.config, args)
    of_val = val_loss.warnings(val, args.val_tokens, meta.get("condition"))
    costs += [f"WARNING: {words}" for words in (*of_val, of_memory) if words]
    if compiling.compiles(args, device):
        pace.compile_seconds += fitting + val_loss.warm_up(model, args, autocast)
    if args.dry_run:
        procs.print("\n".join([str(autocast), *costs]))
        return 0

    # ------------------------------------------------------------------------------------------------------------------
    # the run's folder: made before anything is computed, or continued from its newest checkpoint
    unused_flags = optim.unused_flags(args) + memory_settings.unused_flags(model.config)
    if args.attn_gate == "none":
        unused_flags += ["gate_pos", "gate_act"]
    record = training.describe(args, procs, model, flops_per_token, unused_flags)
    record |= {"init": init, "tokens_per_step": tokens_per_step, "derived": derived}
    record["content_sha256"] = {"data": files.content, "val": val.get("content_sha256")}
    record["data"] = {
        "fingerprint": files.fingerprint, "format": files.source, "tokens": files.n_tokens,
        "sequences": n_sequences, "epochs": epochs, "unique_tokens": unique_tokens,
        "bytes_per_token": bytes_per_token(meta), "val_documents": len(val["doc_starts"])}
    of_data = "condition inject mul_token_rate crop_fraction overflow tokenizer tokenizer_sha256".split()
    record["data"] |= {k: meta.get(k) for k in of_data} | {"dataset": shards.dataset_name(meta)}
    record["data"] |= {f"val_{k}": val[k] for k in ("fingerprint_documents", "fingerprint_tokens")}
    record["benchmarks"] = {name: benchmarks.describe(*items[name]) for name in items}
    same = {"fingerprint of the data": ("data", "fingerprint"),
            "val_fingerprint_tokens of the data": ("data", "val_fingerprint_tokens")}
    for name in items:
        same[f"items of {name}"] = ("benchmarks", name, "sha256")
    run = training.Run("train_gpt.py", args, procs, record, model, optimizers, autocast, pace)
    training.open_run(run, resumed, same, build_parser())
    result = results.first_row(run) | results.place_of(run.folder, args.results_csv, record["started"])
    result |= {f"{split}_content_sha256": content for split, content in record["content_sha256"].items()}
    result = until_end.enter_context(results.following(args.results_csv, result, procs.is_main, run.log))
    state = run.state
    # checkpoints of older versions do not hold these
    state.tokens_seen = state.trained_seen = state.step * tokens_per_step
    state.flops = state.step * flops_per_step
    last_step = args.max_train_steps
    run.log(f"data {args.data_dir} | {files.source} | {files.n_tokens:,} tokens | "
            f"{n_sequences:,} sequences of {args.seq_len} | "
            f"this run reads {unique_tokens:,} unique tokens, {epochs:.3f} epochs")
    run.log(f"{last_step} steps x {tokens_per_step:,} tokens = {last_step * tokens_per_step:,} | "
            f"{args.schedule}, warmup {args.warmup_iters} | {last_step * flops_per_step:.3e} FLOPs")
    cadence = ", ".join(f"{name} {steps or 'off'}" for name, steps in every.items())
    run.log(f"steps between evaluations: {cadence}")
    for line in costs:
        run.log(line)

    # ------------------------------------------------------------------------------------------------------------------
    # the loop
    batches = data_order.StepLoader(
        files, seq_len=args.seq_len, sequences_per_step=sequences_per_step, seed=args.seed,
        data_order=args.data_order, rank=procs.rank, world_size=procs.world_size,
        start_step=state.step, stop_step=last_step, num_workers=args.num_workers,
        pin_memory=device.type == "cuda")
    batches.start()
    probe = probe_rows(args, files, val)
    if model.writes and state.step == 0:  # the evaluation at step 0 reads it; a checkpoint holds it
        model.teach_factor.fill_(memory_settings.teach_factor(args, 0))
    if not args.eval_every and state.step == 0:  # evaluations record it, where there are any
        record_mechanism(run, probe)
    evaluations = plan_evaluations(run, val, probe, items)
    training.evaluate(run, evaluations)
    stopped = bool(state.due)
    while state.step < last_step and not stopped:
        started = time.perf_counter()
        multiplier = optim.lr_multiplier(state.step, **schedule)
        optim.set_learning_rates(optimizers, multiplier)
        if model.writes:
            model.teach_factor.fill_(memory_settings.teach_factor(args, state.step))
        batch = batches.next_step()
        model.train()
        loss = torch.zeros((), device=device)
        for tokens in reducer.micro_steps(batch["tokens"].split(args.micro_batch_size)):
            loss += compute_gradients(tokens)
        grad_norm = reducer.finish()
        gradients.clip_and_step(optimizers, grad_norm, args.grad_clip)
        outcome = training.read_step(run, loss, grad_norm, batch["checksum"])
        stopped = outcome.stopped
        first = state.step * sequences_per_step  # of the step's entries in the data order
        training.refuse_non_finite(
            run, outcome, f"entries {first}..{first + sequences_per_step - 1} of the data "
            f"order (sequences {batch['sequences'][:4].tolist()}... on rank {procs.rank})")
        seconds = training.finish_step(run, started, tokens_per_step, tokens_per_step, flops_per_step)

        # records
        step = state.step
        own = first + batches.offset
        run.exposures.write(
            step=step, rank=procs.rank, seed=args.seed,
            epochs=sorted(set(batch["epochs"].tolist())), entries=[own, own + batches.share],
            checksum=f"{outcome.checksum:016x}", rank_checksum=f"{batch['checksum']:016x}")
        training.record_step(
            run, outcome, lr=args.learning_rate * multiplier, seconds=seconds,
            tokens=tokens_per_step, flops=flops_per_step,
            epoch=step * sequences_per_step / n_sequences)
        if procs.is_main and training.is_due(args.sample_every, step):
            print_samples(run)
        if not args.eval_every and step == last_step:
            record_mechanism(run, probe)
        for name, steps in every.items():
            if training.is_due(steps, step, last_step):
                state.due.append(name)
        training.evaluate(run, evaluations)
        stopped = stopped or bool(state.due)
        if stopped or step == last_step or training.is_due(args.save_every, step):
            run.save()

    # ------------------------------------------------------------------------------------------------------------------
    # goodbye
    batches.close()
    run.close()
    if not training.is_complete(run):
        training.leave(run)
        result["status"] = "stopped"
    elif procs.is_main:
        summary = summarise(run)
        result |= summary["results_row"] | {"status": "finished"}
        if args.results_csv:
            try:
                results.append_result(args.results_csv, result)
            except (OSError, ValueError) as error:
                summary["warnings"].append(f"the run's row, results_row of summary.json, was not added: {error}")
        training.write_summary(run, summary)
    return 0


def main(argv=None) -> int:
    args = parse_args(argv)
    with processes.start_processes(args.device) as procs:
        sizes = micro_batch_sizes(args, procs.world_size)
        with estimate.naming("micro_batch_size", args, sizes), contextlib.ExitStack() as until_end:
            return train(args, procs, until_end)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "train_gpt.py", training.INTERRUPTED)
