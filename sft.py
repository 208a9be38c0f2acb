"""sft.py tells one fine-tuning from a pretrained checkpoint and conversations to a run's folder.

    python sft.py --stage gsm8k --init experiments/runs/<run> --data gsm8k/train.jsonl                    # CPU, 1 GPU
    torchrun --standalone --nproc_per_node=8 sft.py --stage tulu --init <run> --max_examples 100_000      # 8 GPUs, hub
    python sft.py --stage transition --init <tulu run> --data tulu.jsonl.gz --tinygsm_data tinygsm.parquet
    python sft.py --stage gsm8k --init <run> --data synthetic:2000 --condition mul_tokens                 # no network
    python sft.py --out_dir experiments/runs/<run> --resume auto                                          # continue

Stages: tulu (`messages`), gsm8k (`question`, `answer`), tinygsm (`question`, `code`), transition (tulu's data first,
then more and more of tinygsm's). Format, mask and files: lab/conversations.py. Writes a run's folder (layout:
lab/runs.py) whose checkpoints every evaluation accepts. The model's shape comes from the checkpoint.

Packing puts several conversations in a row; none attends to another, and positions start at 0 in each. A step's loss is
the mean over all trained tokens of its `--total_batch_conversations`, the same for any packing, micro-batch and number
of ranks; what a step takes depends on texts, seed and step alone.

Rank 0 reads and tokenises (about 7,000 conversations per CPU-second); every rank holds the tokens, 3 bytes each and 60
per conversation (1M conversations of 500 tokens: 1.6 GB, and up to four times that while they are sent).
"""

import argparse
import functools
import hashlib
import math
import time
from collections import Counter
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

import numpy as np
import torch
import torch.nn.functional as F

from lab import (
    compiling,
    conversations,
    data_order,
    decontaminate,
    estimate,
    gradients,
    inference,
    kernels,
    optim,
    precision,
    processes,
    resume,
    runs,
    training,
    val_loss,
)
from lab.loss import chunked_cross_entropy
from lab.tokenizer import bos_id, get_tokenizer, use_of
from model import GPT, GPTConfig

STAGES = (*conversations.STAGES, "transition")
LONGEST_WARMUP = 100  # steps
# flags that derive from the model and the data when they have these values; --config and --resume derive them anew
DERIVED = {"seq_len": 0, "max_train_steps": 0, "warmup_iters": -1}

# ----------------------------------------------------------------------------------------------------------------------
# flags


def build_parser() -> argparse.ArgumentParser:
    parser = flags.make_parser(
        "sft.py", __doc__, usage="sft.py --stage STAGE --init CHECKPOINT [flags]   (sft.py --help lists them)")
    add = parser.add_argument_group("data").add_argument
    add("--stage", choices=STAGES, help="what the model learns (required)")
    add("--init", help="starting weights: a run's folder, a checkpoint, or a GPT.save folder (required)")
    add("--data", nargs="+", default=[], metavar="PATH",
        help="*.jsonl[.gz, .zst], *.parquet, globs, folders (all such files in them), or synthetic[:N] for gsm8k "
             "(default: the stage's hub dataset)")
    add("--tinygsm_data", nargs="+", default=[], metavar="PATH",
        help="transition: files with question and code; --data has the messages (default: the hub dataset)")
    add("--mix_start", type=float, default=0.0, help="transition: share of tinygsm in step 1 (default %(default)g)")
    add("--mix_end", type=float, default=1.0, help="its share in the last (default %(default)g); linear between")
    add("--max_read", type=int, default=0, help="records read of each source, from its beginning (0 = all)")
    add("--max_examples", type=int, default=0,
        help="conversations kept of each source, chosen by hash among those read (0 = all)")
    add("--bad_conversations", choices=("error", "skip"), default="error",
        help="malformed ones: stop, or leave out and count (default %(default)s)")
    add("--condition", choices=("baseline", "mul_tokens"), default="baseline",
        help="mul_tokens: products in answers become one token, as in pretraining (default %(default)s)")
    add("--seq_len", type=int, default=0, help="tokens per row, and at most per conversation (0 = the model's)")
    add("--packing", choices=("on", "off"), default="on", help="several conversations per row (default %(default)s)")
    add("--bos", choices=("on", "off"), default="on", help="<|endoftext|> before a conversation (default %(default)s)")
    decontaminate.add_argument(parser.add_argument_group("contamination guard"))
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--micro_batch_size", type=int, default=8,
        help="rows per forward pass and rank (default %(default)s); no effect on results")
    add("--total_batch_conversations", type=int, default=64,
        help="conversations per optimizer step over all ranks (default %(default)s)")
    add("--epochs", type=float, default=3.0, help="times the conversations are read (default %(default)g)")
    add("--max_train_steps", type=int, default=0, help="optimizer steps (0 = from --epochs)")
    add("--seed", type=int, default=0,
        help="of the order of conversations and of the mix (default %(default)s)")
    optim.add_arguments(group, learning_rate=1e-4, weight_decay=0.0, longest_warmup=LONGEST_WARMUP)
    add = flags.add_evaluation_arguments(parser, eval_every=100).add_argument
    add("--val_fraction", type=float, default=0.02,
        help="share of conversations held out, by hash, also with --eval_every 0 (default %(default)s)")
    add("--val_data", nargs="+", default=[], metavar="PATH",
        help="held-out conversations, files as of --data, in place of --val_fraction; what --data "
             "shares with them is not trained on")
    add("--val_max_conversations", type=int, default=1000,
        help="held-out conversations that are scored (default %(default)s; 0 = all)")
    flags.add_run_arguments(parser, name="sft, stage, condition", save_every=500)
    flags.add_machine_arguments(parser)
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked. --config, or the run being resumed, supplies the defaults."""
    parser = build_parser()
    # --decontaminate may be repeated: a default would be added to, so it is set afterwards
    config = resume.take_defaults(parser, argv, skip=["decontaminate"])
    args = parser.parse_args(argv)
    if config and not args.decontaminate:
        args.decontaminate = config["flags"].get("decontaminate", [])
    if not args.stage:
        parser.error(f"--stage is required: name one of {', '.join(STAGES)}.")
    if not args.init:
        parser.error("--init is required: name a run's folder or a checkpoint to start from.")
    flags.check_flags(parser, args, {
        "a whole number of at least 1": "micro_batch_size total_batch_conversations",
        "0 or more": "max_read max_examples seq_len max_train_steps val_max_conversations " + optim.number_flags(),
        "a number above 0": "epochs", "a share from 0 to 1": "mix_start mix_end val_fraction"})
    mixes = args.tinygsm_data or (args.mix_start, args.mix_end) != (0, 1)
    if args.val_data and args.stage == "transition":
        parser.error("--val_data belongs to a stage of one kind of conversations: drop it for --stage transition.")
    if mixes and args.stage != "transition":
        parser.error("--tinygsm_data, --mix_start and --mix_end belong to --stage transition, not "
                     f"{args.stage}: drop them, or change the stage.")
    flags.fill_in(args, name=f"sft_{args.stage}_{args.condition}")
    return args


# ----------------------------------------------------------------------------------------------------------------------
# data and model


def open_init(args, resumed: dict | None) -> tuple[dict, Path | None]:
    """(what config.json records of the checkpoint, its folder). The folder is None once the run has checkpoints of
    its own and no longer needs the one it started from."""
    if resumed is not None and runs.list_checkpoints(args.out_dir):
        return resumed["init"], None
    return resume.describe_init(args.init, args.condition)


def hidden_states(model: GPT, x, positions, segments):
    """The head's inputs (B, T, C) of tokens x (B, T).

    segments (B, T): a position sees itself and what is before it in its own segment. None: rows of one conversation
    each, where padding comes last and nothing sees it."""
    if segments is None:
        return model.hidden(x, positions=positions)
    T = x.size(1)
    mask = segments[:, None, :, None] == segments[:, None, None, :]  # (B, 1, T, T)
    mask = mask & torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
    attend = functools.partial(F.scaled_dot_product_attention, attn_mask=mask)
    return model.hidden(x, positions=positions, attend=attend)


def batch_loss(model, batch: dict, packing: bool, hidden=hidden_states, denominator=None, reduce=True):
    """Sum of -log p over the trained tokens / denominator; with reduce=False each one's, (M,) fp32. Only they reach the
    head, whose products are most of a small model's work. hidden: hidden_states, or that compiled."""
    weight = model.transformer["wte"].weight
    device = weight.device
    tensors = [batch["x"], batch["positions"], batch["where"], batch["y"].flatten()[batch["where"]]]
    x, positions, where, targets = (processes.to_device(tensor, device) for tensor in tensors)
    segments = processes.to_device(batch["segments"], device) if packing else None
    states = hidden(model, x, positions, segments).flatten(0, 1).index_select(0, where)
    return chunked_cross_entropy(
        states, weight, targets, model.config.masked_ranges, denominator, reduce)


def pack_rows(data: dict, numbers, args) -> list[list[int]]:
    """The conversations of these numbers as rows of numbers, the fullest row first."""
    rows = conversations.pack(data["lengths"][numbers].tolist(), args.seq_len, args.packing == "on")
    return [[int(numbers[i]) for i in row] for row in rows]


# ----------------------------------------------------------------------------------------------------------------------
# evaluation


def choose_scored(data: dict, args) -> np.ndarray:
    """Numbers of the held-out conversations that are scored."""
    is_scored = data["held_out"] & (data["lengths"] > 0)
    if args.val_data:  # and not what --data shares with them
        is_scored &= data["source"] == len(data["stages"])
    scored = np.flatnonzero(is_scored)
    return scored[: args.val_max_conversations or None]


def val_fingerprints(data: dict, scored: np.ndarray) -> dict:
    """What config.json says of the scored conversations, in any order: of their texts and of how
    many bytes of each are scored, which --seq_len may cut; and of their tokens and masks."""
    names = "val_fingerprint_documents", "val_fingerprint_tokens"
    if not len(scored):
        return dict.fromkeys(names)
    sizes = data["answer_bytes"][scored].astype("<i8")
    pairs = zip(data["hash"][scored], sizes, strict=True)
    texts = [value.tobytes() + size.tobytes() for value, size in pairs]
    tokens = [value.tobytes() for value in data["digest"][scored]]
    return {name: hashlib.sha256(b"".join(sorted(parts))).hexdigest()
            for name, parts in zip(names, (texts, tokens), strict=True)}


@torch.no_grad()
@kernels.for_many_shapes()
def evaluate_val(model, data: dict, args, procs, autocast, stop) -> tuple[dict, dict] | None:
    """Val loss per trained token over all ranks: (fields for scalars.jsonl, arrays per conversation); None when asked
    to stop. Sums in float64 over exact counts, for any world size, batch and packing. Draws no random numbers."""
    scored = choose_scored(data, args)
    rows = []
    for start in range(0, len(scored), 256):  # in groups, because first fit looks at every open row
        rows += pack_rows(data, scored[start : start + 256], args)
    mine = rows[procs.rank :: procs.world_size]
    nats = torch.zeros(len(data["lengths"]) + 1, dtype=torch.float64)  # the last one: asked to stop
    starts = range(0, len(mine), args.eval_batch_size)
    for i in processes.show_progress(starts, len(starts), "val loss", procs):
        if stop.asked:
            nats[-1] = 1
            break
        batch = conversations.make_batch(data, mine[i : i + args.eval_batch_size])
        with autocast():
            nll = batch_loss(model, batch, args.packing == "on", reduce=False)
        nats.index_add_(0, batch["owner"], nll.cpu().double())
    if procs.world_size > 1:
        nats = procs.sum(nats.to(procs.device)).cpu()
    if nats[-1] > 0:
        return None
    nats = nats.numpy()[scored]
    documents = {
        "stream_nats": nats,
        "stream_tokens": data["n_trained"][scored],
        "stream_bytes": data["answer_bytes"][scored],
        "doc_hash": np.frombuffer(data["hash"][scored].tobytes(), np.uint8).reshape(-1, 16),
    }
    total, n_tokens = float(nats.sum()), int(documents["stream_tokens"].sum())
    n_bytes = int(documents["stream_bytes"].sum())
    record = {
        "val_loss": total / n_tokens,
        "val_bits_per_byte": total / math.log(2) / n_bytes if n_bytes else math.nan,
        "val_tokens": n_tokens,
        "val_bytes": n_bytes,
        "val_conversations": len(scored),
    }
    return record, documents


def print_samples(run: training.Run, data: dict) -> None:
    """Greedy answers to the first two held-out questions, or to the first two when none is held out."""
    usable = data["lengths"] > 0
    held_out = usable & data["held_out"]
    if not held_out.any():
        held_out = usable
    prompts = []
    for number in np.flatnonzero(held_out)[:2]:
        span = slice(data["offsets"][number], data["offsets"][number + 1])
        first_answer = int(data["trained"][span].argmax())
        prompts.append(data["tokens"][span][:first_answer].tolist())
    answers = inference.generate(
        run.model.eval(), prompts, run.args.sample_tokens, temperature=0.0, stop_ids=[bos_id()])
    decode = get_tokenizer().decode_generated
    pairs = zip(prompts, answers, strict=True)
    training.record_samples(run, [(decode(prompt), decode(answer.ids)) for prompt, answer in pairs])
    run.pace.mark("sample")


# ----------------------------------------------------------------------------------------------------------------------
# the end


# count: what has happened to such conversations; many of them are a warning
DATA_FAULTS = {
    "truncated": "lost their end",
    "dropped_too_long": "were too long and dropped",
    "empty_answers": "have an answer without text, of which only <|endoftext|> is trained",
    "malformed": "were malformed and left out",
    "programs_refused": "had a program that was refused",
    "with_special_texts": "hold <|endoftext|> or the like as text, which was read as ordinary characters",
}


def find_warnings(args, init: dict, counts: Counter) -> list[str]:
    """Signs that the intervention was absent or that data was lost, a sentence each."""
    warnings = []
    if args.condition == "mul_tokens" and not counts["mul_tokens"]:
        warnings.append("the condition is mul_tokens but the data holds no multiplication token: "
                        "nothing was changed.")
    if init["condition"] and init["condition"] != args.condition:
        warnings.append(f"the checkpoint was pretrained as {init['condition']} and is fine-tuned as "
                        f"{args.condition}.")
    for name, fate in DATA_FAULTS.items():
        if counts[name] > 0.05 * counts["read"]:
            warnings.append(f"{counts[name]:,} of {counts['read']:,} conversations {fate}.")
    return warnings


def summarise(run: training.Run) -> dict:
    """summary.json: last and best numbers, cost, warnings."""
    data = run.record["data"]
    return {
        **training.final_numbers(run, "val_loss val_bits_per_byte"),
        "stage": run.args.stage, "condition": run.args.condition,
        "trained_tokens_seen": run.state.trained_seen, "mul_tokens": data["mul_tokens"],
        "mul_token_rate": data["mul_token_rate"], "warnings": run.record["warnings"],
    }


# ----------------------------------------------------------------------------------------------------------------------
# the run


def train(args, procs) -> int:
    # ------------------------------------------------------------------------------------------------------------------
    # processes
    device, packing = procs.device, args.packing == "on"
    training.prepare_machine(args, device, masks=True)
    args.out_dir = procs.broadcast(args.out_dir)  # its date may differ at midnight
    if procs.on_main(lambda: training.nothing_to_do(args, build_parser(), "--init")):
        return 0
    if not args.dry_run:
        procs.hold(args.out_dir)
    resumed = procs.on_main(lambda: training.resumed_config(args))

    # ------------------------------------------------------------------------------------------------------------------
    # data: rank 0 reads and tokenises, the other ranks get its arrays
    derived = [name for name, unset in DERIVED.items() if getattr(args, name) == unset]
    init, init_folder = procs.on_main(lambda: open_init(args, resumed))
    use_of(init_folder or runs.list_checkpoints(args.out_dir)[-1])
    config = GPTConfig.from_dict(init["model"])
    args.seq_len = args.seq_len or config.block_size
    if args.seq_len > config.block_size:
        raise ValueError(
            f"--seq_len {args.seq_len} is more than the checkpoint's block_size "
            f"{config.block_size}: pass --seq_len {config.block_size}, or leave it out.")
    val_fraction = args.val_fraction
    if resumed is not None and not resumed["data"]["val_conversations"]:
        val_fraction = 0.0  # an older run with --eval_every 0 trained on all conversations
    data = procs.arrays_from_main(lambda: conversations.load(args, val_fraction))
    lengths, source = data["lengths"], data["source"]
    usable = (lengths > 0) & ~data["held_out"]
    n_conversations = int(usable.sum())
    per_step = args.total_batch_conversations
    steps = math.ceil(args.epochs * n_conversations / per_step)
    args.max_train_steps = args.max_train_steps or steps
    optim.fill_in(args, LONGEST_WARMUP)
    args.eval_batch_size = val_loss.rows_per_pass(args, device)
    schedule = optim.schedule_settings(args)
    mix = args.mix_start, args.mix_end
    plan = conversations.plan_order(data, args.max_train_steps * per_step, args.seed, mix)
    epochs = {}
    for i, stage in enumerate(data["stages"]):
        share = (source[plan] == i).sum() / (usable & (source == i)).sum()
        epochs[stage] = round(float(share), 4)

    # ------------------------------------------------------------------------------------------------------------------
    # model and optimizer
    if init_folder is None:
        model = GPT(config, seed=None).to(device)
    else:
        model = GPT.load(init_folder, device)
    autocast = precision.choose(args, procs, model, args.micro_batch_size * args.seq_len, resumed)
    reducer = gradients.Reducer(procs, model)
    optimizers = optim.build_optimizers(
        model, **optim.settings(args), rank=procs.rank, world_size=procs.world_size)
    hidden, shape = compiling.compile_training(args, model, hidden_states), ()
    if compiling.compiles(args, device):
        shape = args.seq_len, args.micro_batch_size  # one, compiled once
    flops_per_token = model.flops_per_token(args.seq_len)
    flops_head = 6 * config.vocab_size * config.n_embd  # the part that only trained tokens pay
    flops_body = flops_per_token - flops_head

    def compute_gradients(rows, trained_tokens: int):
        batch = conversations.make_batch(data, rows, *shape)
        with autocast():
            loss = batch_loss(model, batch, packing, hidden, denominator=trained_tokens)
        loss.backward()
        return loss.detach()

    # ------------------------------------------------------------------------------------------------------------------
    # what it will cost, from one micro-step, which leaves no trace
    rows = pack_rows(data, plan[:per_step], args)
    scored = choose_scored(data, args)
    of_val = lengths[scored]
    pace, costs = training.look_ahead(
        args, reducer, model, optimizers, lambda n: compute_gradients((rows * n)[:n], per_step),
        micro_steps=math.ceil(len(rows) / procs.world_size / args.micro_batch_size),
        tokens=args.micro_batch_size * args.seq_len, every={"val": args.eval_every}, scored={"val": int(of_val.sum())},
        sizes=range(1, args.micro_batch_size), advice="for a laptop: lower --epochs or --max_examples")
    if args.dry_run:
        procs.print("\n".join([str(autocast), *costs]))
        return 0

    # ------------------------------------------------------------------------------------------------------------------
    # the run's folder: made before anything is computed, or continued from its newest whole checkpoint
    counts = Counter()
    for of_stage in data["record"]["counts"].values():
        counts.update(of_stage)
    record = training.describe(args, procs, model, flops_per_token, optim.unused_flags(args))
    record |= {"derived": derived, "init": init, "warnings": find_warnings(args, init, counts)}
    record["data"] = {
        "fingerprint": data["fingerprint"], "fingerprint_texts": data["fingerprint_texts"],
        "format": "conversations", "condition": args.condition, "conversations": n_conversations,
        "val_conversations": int(((lengths > 0) & data["held_out"]).sum()), "epochs": epochs,
        "tokens": int(lengths[usable].sum()), "mul_tokens": counts["mul_tokens"],
        "mul_token_rate": counts["mul_tokens"] / max(1, counts["trained_tokens"]),
        **val_fingerprints(data, scored), **data["record"]}
    same = {"fingerprint of the data": ("data", "fingerprint"),
            "conversations that are not held out": ("data", "conversations"),
            "weights of --init": ("init", "model_sha256")}
    run = training.Run("sft.py", args, procs, record, model, optimizers, autocast, pace)
    training.open_run(run, resumed, same, build_parser())
    state = run.state
    run.log(f"init {init['folder']} | model sha256 {init['model_sha256'][:16]}")
    for stage, of_stage in data["record"]["counts"].items():
        listed = ", ".join(f"{name} {count:,}" for name, count in of_stage.items())
        run.log(f"data {stage} | {listed} | {epochs[stage]:.2f} epochs")
    run.log(f"{args.max_train_steps} steps x {per_step:,} conversations of {n_conversations:,}, "
            f"{record['data']['val_conversations']:,} held out | {args.condition} | {args.schedule}, "
            f"warmup {args.warmup_iters} | packing {args.packing}")
    run.log("the first conversation as trained, [[ ]] around what the loss is taken of:\n"
            + conversations.show(conversations.make_batch(data, [[int(plan[0])]])))
    for line in costs:
        run.log(line)

    # ------------------------------------------------------------------------------------------------------------------
    # the loop
    last_step = args.max_train_steps
    compute_val = functools.partial(evaluate_val, model, data, args, procs, autocast, run.stop)
    evaluations = {"val": (compute_val, functools.partial(training.record_val, run))}
    training.evaluate(run, evaluations)
    stopped = bool(state.due)
    while state.step < last_step and not stopped:
        started = time.perf_counter()
        multiplier = optim.lr_multiplier(state.step, **schedule)
        optim.set_learning_rates(optimizers, multiplier)
        first = state.step * per_step  # of the step's entries in the plan
        numbers = plan[first : first + per_step]
        rows = pack_rows(data, numbers, args)[procs.rank :: procs.world_size]
        tokens = int((lengths[numbers] - 1).sum())
        trained_tokens = int(data["n_trained"][numbers].sum())
        model.train()
        loss = torch.zeros((), device=device)
        for i in reducer.micro_steps(range(0, len(rows), args.micro_batch_size)):
            loss += compute_gradients(rows[i : i + args.micro_batch_size], trained_tokens)
        grad_norm = reducer.finish()
        gradients.clip_and_step(optimizers, grad_norm, args.grad_clip)
        outcome = training.read_step(run, loss, grad_norm)
        stopped = outcome.stopped
        training.refuse_non_finite(run, outcome, f"conversations {numbers[:4].tolist()}...")
        flops = flops_body * tokens + flops_head * trained_tokens
        seconds = training.finish_step(run, started, tokens, trained_tokens, flops)

        # records. The checksum is of the whole step's conversations, in their order, on every rank
        step = state.step
        checksum = data_order.token_checksum(data["digest"][numbers][:, None], first)
        run.exposures.write(
            step=step, rank=procs.rank, seed=args.seed, entries=[first, first + per_step],
            conversations=sorted(number for row in rows for number in row), rows=len(rows),
            checksum=f"{checksum:016x}")
        more = {"trained_tokens": trained_tokens}
        if len(epochs) > 1:
            more["tinygsm_share"] = float((source[numbers] == 1).mean())
        training.record_step(
            run, outcome, lr=args.learning_rate * multiplier,
            seconds=seconds, tokens=tokens, flops=flops,
            epoch=step * per_step / n_conversations, **more)
        if procs.is_main and training.is_due(args.sample_every, step):
            print_samples(run, data)
        if training.is_due(args.eval_every, step, last_step):
            state.due = ["val"]
        training.evaluate(run, evaluations)
        stopped = stopped or bool(state.due)
        if stopped or step == last_step or training.is_due(args.save_every, step):
            run.save()

    # ------------------------------------------------------------------------------------------------------------------
    # goodbye
    run.close()
    if not training.is_complete(run):
        training.leave(run)
    elif procs.is_main:
        training.write_summary(run, summarise(run))
    return 0


def main(argv=None) -> int:
    args = parse_args(argv)
    with processes.start_processes(args.device) as procs:
        with estimate.naming("micro_batch_size", args):
            return train(args, procs)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "sft.py", training.INTERRUPTED)
