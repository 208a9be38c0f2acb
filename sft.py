"""sft.py tells one fine-tuning from a pretrained checkpoint and conversations to a run's folder.

    python sft.py --stage gsm8k --init experiments/runs/<run> --data gsm8k/train.jsonl                    # CPU, 1 GPU
    torchrun --standalone --nproc_per_node=8 sft.py --stage tulu --init <run> --max_examples 100_000      # 8 GPUs, hub
    python sft.py --stage transition --init <tulu run> --data tulu.jsonl.gz --tinygsm_data tinygsm.parquet
    python sft.py --stage gsm8k --init <run> --data synthetic:2000 --condition mul_tokens                 # no network
    python sft.py --out_dir experiments/runs/<run> --resume auto                                          # continue

Stages: tulu (`messages`), gsm8k (`question`, `answer`), tinygsm (`question`, `code`), transition (tulu's data first,
then more and more of tinygsm's). Format, mask and files: conversations.py. Writes a run's folder (layout: runs.py); its
checkpoints every evaluation accepts. The model's shape comes from the checkpoint.

Packing puts several conversations in a row; none attends to another, and positions start at 0 in each. A step takes
`--total_batch_conversations` of them. Its loss is the sum over all their trained tokens / the number of these tokens,
so it is the same for any packing, micro-batch and number of ranks; what a step takes depends on texts, seed and step
alone.

Rank 0 reads and tokenises, about 7,000 conversations per CPU-second, and sends the others the tokens, which every rank
holds: 3 bytes each and 60 per conversation (1M conversations of 500 tokens: 1.6 GB, and up to four times that at once).
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lab import conversations, data_order, decontaminate, disk, inference, processes, runs, shards
from lab.optim import build_optimizers, lr_multiplier, set_learning_rates
from model import GPT, GPTConfig, causal_attention, chunked_cross_entropy

STAGES = (*conversations.STAGES, "transition")

# ----------------------------------------------------------------------------------------------------------------------
# flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sft.py", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        usage="sft.py --stage STAGE --init CHECKPOINT [--data ...] [flags]   (sft.py --help lists them)",
        description="Fine-tune a checkpoint on conversations: CPU, one GPU, or torchrun with many.",
        epilog="example: python sft.py --stage gsm8k --init experiments/runs/base_s0 --data gsm8k/train.jsonl\n"
        "         --epochs 3 --micro_batch_size 4 --eval_every 50")
    add = parser.add_argument_group("data").add_argument
    add("--stage", choices=STAGES, help="what is learnt (required)")
    add("--init", help="where it starts: a run's folder, a checkpoint, or a GPT.save folder (required)")
    add("--data", nargs="+", default=[], metavar="PATH",
        help="*.jsonl[.gz], *.parquet, folders, or synthetic[:N] for gsm8k (default: the stage's dataset on the hub)")
    add("--tinygsm_data", nargs="+", default=[], metavar="PATH",
        help="transition: files with question and code; --data has the messages (default: the hub dataset)")
    add("--mix_start", type=float, default=0.0, help="transition: share of tinygsm in the first step (default 0)")
    add("--mix_end", type=float, default=1.0, help="transition: share of tinygsm in the last step (default 1); linear")
    add("--max_read", type=int, default=0, help="records read of each source, from its beginning (0 = all)")
    add("--max_examples", type=int, default=0,
        help="conversations kept of each source, chosen by hash among those read (0 = all)")
    add("--bad_conversations", choices=("error", "skip"), default="error",
        help="malformed ones: stop, or leave out and count (default error)")
    add("--condition", choices=("baseline", "mul_tokens"), default="baseline",
        help="mul_tokens: products in answers become one token, as in pretraining (default baseline)")
    add("--seq_len", type=int, default=0, help="longest conversation and width of a row, tokens (0 = the model's)")
    add("--packing", choices=("on", "off"), default="on", help="several conversations per row (default on)")
    add("--bos", choices=("on", "off"), default="on", help="<|endoftext|> before a conversation (default on)")
    decontaminate.add_argument(parser.add_argument_group("contamination guard"))
    add = parser.add_argument_group("optimization").add_argument
    add("--micro_batch_size", type=int, default=8,
        help="rows per forward pass and rank (default 8); no effect on results")
    add("--total_batch_conversations", type=int, default=64,
        help="conversations per optimizer step over all ranks (default 64)")
    add("--epochs", type=float, default=3.0, help="times the conversations are read (default 3)")
    add("--max_train_steps", type=int, default=0, help="optimizer steps (0 = from --epochs)")
    add("--optimizer", choices=("adamw", "muon", "muon_all"), default="adamw",
        help="muon = Muon on the blocks' matrices (default adamw)")
    add("--learning_rate", type=float, default=1e-4, help="peak for AdamW's parameters (default 1e-4)")
    add("--muon_lr", type=float, default=0.0, help="peak for Muon's parameters (0 = 0.1 x --learning_rate)")
    add("--muon_scale", choices=("sqrt_max", "original", "match_rms_adamw"), default="sqrt_max",
        help="update scale by the matrix's shape (default sqrt_max, as document 003)")
    add("--schedule", choices=("cosine", "trapezoid"), default="cosine", help="after warmup (default cosine)")
    add("--warmup_iters", type=int, default=-1,
        help="steps of linear warmup (0 = off; -1 = 4%% of the steps, at most 100)")
    add("--warmdown_iters", type=int, default=0, help="steps of linear warmdown, trapezoid only (default 0 = off)")
    add("--learning_rate_decay_frac", type=float, default=0.1, help="last learning rate / peak (default 0.1)")
    add("--weight_decay", type=float, default=0.0, help="AdamW's, on 2-D and larger (default 0 = off)")
    add("--beta1", type=float, default=0.9, help="AdamW (default 0.9)")
    add("--beta2", type=float, default=0.95, help="AdamW (default 0.95)")
    add("--grad_clip", type=float, default=1.0, help="largest global L2 norm of the gradient (default 1; 0 = off)")
    add("--seed", type=int, default=0, help="of the order of conversations and of the mix (default 0)")
    add = parser.add_argument_group("evaluation and samples").add_argument
    add("--eval_every", type=int, default=100,
        help="steps between val losses; also before the first, after the last (0 = off)")
    add("--val_fraction", type=float, default=0.02, help="share of conversations held out, by hash (default 0.02)")
    add("--val_max_conversations", type=int, default=1000, help="held-out conversations that are scored (0 = all)")
    add("--eval_batch_size", type=int, default=0, help="rows per forward pass in evaluation (0 = --micro_batch_size)")
    add("--sample_every", type=int, default=0, help="steps between printed answers to two held-out questions (0 = off)")
    add("--sample_tokens", type=int, default=64, help="tokens per answer (default 64)")
    add = parser.add_argument_group("run folder").add_argument
    add("--out_dir", help="the run's folder (default experiments/runs/<date>_<name>_s<seed>)")
    add("--name", default="", help="name in the default --out_dir (default: sft, stage, condition)")
    add("--config", help="config.json of a run whose flags become the defaults")
    add("--resume", default="",
        help="auto (newest whole checkpoint, or start) or a step; needs --out_dir ('' = new run)")
    add("--save_every", type=int, default=500, help="steps between checkpoints (default 500; 0 = only the last)")
    add("--keep_last", type=int, default=2, help="checkpoints kept (default 2; 0 = all)")
    add("--log_every", type=int, default=10,
        help="steps between lines in log.txt (0 = none); scalars.jsonl has every step")
    add("--wandb_project", default="", help="also show scalars.jsonl in this Weights & Biases project ('' = off)")
    add("--tensorboard", action="store_true", help="also write TensorBoard events into the run's folder")
    add("--notes", default="", help="free text for config.json")
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="autocast; auto = bfloat16 on CUDA that has it")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto = on CUDA only")
    add("--deterministic", action="store_true",
        help="CUDA: slower, deterministic kernels for bit-exact resume (CPU always is)")
    add("--peak_flops", type=float, default=0.0,
        help="FLOP/s per rank that MFU is measured against (0 = data sheet; measured on CPU)")
    return parser


# what a resumed run may change: nothing here decides a weight or a recorded loss
FREE_ON_RESUME = set(
    "out_dir resume config name notes save_every keep_last log_every micro_batch_size eval_batch_size device compile "
    "peak_flops sample_every sample_tokens wandb_project tensorboard data tinygsm_data decontaminate".split())
# filled in by train() from the model and the data; --config and --resume fill them in again
DERIVED = ("seq_len", "max_train_steps", "warmup_iters")


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked. --config, or the run being resumed, supplies the defaults."""
    parser = build_parser()
    first, _ = parser.parse_known_args(argv)
    source = Path(first.config) if first.config else None
    if first.resume and not first.out_dir:
        parser.error("--resume needs --out_dir: name the run's folder.")
    if first.resume and (Path(first.out_dir) / "config.json").exists():
        source = Path(first.out_dir) / "config.json"
    if source is not None:
        try:
            record = json.loads(source.read_text())
            flags, derived = record["flags"], record["derived"]
            unknown = sorted(set(flags) - set(vars(first)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"{source} is not a fine-tuning's config.json ({error!r}): name one that sft.py wrote.")
        if unknown:
            parser.error(f"{source} has unknown flags ({', '.join(unknown)}): pass them by hand.")
        own = ("out_dir", "resume", "config", "name", "decontaminate", *derived)  # a repeatable flag would add to these
        parser.set_defaults(**{k: v for k, v in flags.items() if k not in own})
    args = parser.parse_args(argv)
    if source is not None and not args.decontaminate:
        args.decontaminate = flags["decontaminate"]
    for name, hint in (("stage", f"one of {', '.join(STAGES)}"),
                       ("init", "a run's folder or a checkpoint to start from")):
        if not getattr(args, name):
            parser.error(f"--{name} is required: name {hint}.")
    for name in ("micro_batch_size", "total_batch_conversations", "sample_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give a whole number of at least 1.")
    for name in ("max_read max_examples seq_len max_train_steps muon_lr warmdown_iters weight_decay grad_clip seed "
                 "eval_every val_max_conversations eval_batch_size sample_every save_every keep_last log_every "
                 "peak_flops").split():
        if not getattr(args, name) >= 0:
            parser.error(f"--{name} {getattr(args, name)}: give 0 or more.")
    for name in ("learning_rate", "epochs"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} {getattr(args, name)}: give a number above 0.")
    for name in ("mix_start", "mix_end", "val_fraction"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"--{name} {getattr(args, name)}: give a share from 0 to 1.")
    if args.stage != "transition" and (args.tinygsm_data or (args.mix_start, args.mix_end) != (0, 1)):
        parser.error(f"--tinygsm_data, --mix_start and --mix_end belong to --stage transition, not {args.stage}: "
                     "drop them, or change the stage.")
    if args.resume not in ("", "auto") and not args.resume.isdigit():
        parser.error(f"--resume {args.resume}: give auto or the number of a checkpointed step.")
    # derived once; config.json records what the run used
    args.muon_lr = args.muon_lr or 0.1 * args.learning_rate
    args.eval_batch_size = args.eval_batch_size or args.micro_batch_size
    args.name = args.name or f"sft_{args.stage}_{args.condition}"
    args.out_dir = args.out_dir or str(
        runs.REPO / "experiments" / "runs" / f"{datetime.date.today()}_{args.name}_s{args.seed}")
    return args


def schedule_of(args) -> dict:
    return dict(schedule=args.schedule, max_steps=args.max_train_steps, warmup=args.warmup_iters,
                warmdown=args.warmdown_iters, decay_frac=args.learning_rate_decay_frac)


# ----------------------------------------------------------------------------------------------------------------------
# the model on packed rows


def hidden_states(model: GPT, x, positions, segments):
    """The head's inputs (B, T, C). A position sees itself and what is before it in its own segment; segments None: rows
    hold one conversation each, whose end is followed by nothing it could see."""
    attend = causal_attention
    if segments is not None:
        T = x.size(1)
        seen = segments[:, None, :, None] == segments[:, None, None, :]  # (B, 1, T, T)
        seen = seen & torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    x, rope = model.embed(x, positions=positions)
    for block in model.transformer["h"]:
        x = block(x, rope, attend)
    return model.transformer["ln_f"](x)


def batch_loss(model: GPT, batch: dict, device, hidden, packing: bool, denominator=None, reduce=True):
    """Sum of -log p over the trained tokens / denominator; with reduce=False each one's, (M,) fp32. Only they reach the
    head, whose products are most of a small model's work."""
    x, positions, segments, where = (batch[k].to(device) for k in ("x", "positions", "segments", "where"))
    targets = batch["y"].flatten()[batch["where"]].to(device)
    states = hidden(model, x, positions, segments if packing else None).flatten(0, 1).index_select(0, where)
    return chunked_cross_entropy(states, model.transformer["wte"].weight, targets, model.config.masked_ranges,
                                 denominator, reduce)


# ----------------------------------------------------------------------------------------------------------------------
# evaluation and the end


@torch.no_grad()
def evaluate_val(model, data: dict, args, procs, autocast, stop) -> tuple[dict, dict] | None:
    """Val loss per trained token over all ranks: (fields for scalars.jsonl, arrays per conversation); None when asked
    to stop. Sums in float64 over exact counts, for any world size, batch and packing. Draws no random numbers."""
    lengths = data["lengths"]
    scored = np.flatnonzero(data["held_out"] & (lengths > 0))
    scored = scored[: args.val_max_conversations] if args.val_max_conversations else scored
    rows = []
    for start in range(0, len(scored), 256):  # packed in groups: the first fit is looked for among few rows
        group = scored[start : start + 256]
        packed = conversations.pack(lengths[group].tolist(), args.seq_len, args.packing == "on")
        rows += [[int(group[i]) for i in row] for row in packed]
    mine = rows[procs.rank :: procs.world_size]
    nats = torch.zeros(len(lengths) + 1, dtype=torch.float64)  # the last one: asked to stop
    for i in range(0, len(mine), args.eval_batch_size):
        if stop.asked:
            nats[-1] = 1
            break
        batch = conversations.make_batch(data, mine[i : i + args.eval_batch_size])
        with autocast():
            nll = batch_loss(model, batch, procs.device, hidden_states, args.packing == "on", reduce=False)
        nats.index_add_(0, batch["owner"], nll.cpu().double())
    nats = procs.sum(nats.to(procs.device)).cpu() if procs.world_size > 1 else nats
    if nats[-1] > 0:
        return None
    nats, count, size = nats.numpy()[scored], data["n_trained"][scored], data["answer_bytes"][scored]
    record = {"val_loss": float(nats.sum() / count.sum()), "val_tokens": int(count.sum()), "val_bytes": int(size.sum()),
              "val_bits_per_byte": float(nats.sum() / math.log(2) / size.sum()) if size.sum() else math.nan,
              "val_conversations": len(scored)}
    return record, {"stream_nats": nats, "stream_tokens": count, "stream_bytes": size,
                    "doc_hash": np.frombuffer(data["hash"][scored].tobytes(), np.uint8).reshape(-1, 16)}


def sample_answers(model: GPT, data: dict, n_tokens: int) -> list[tuple[str, str]]:
    """(prompt, greedy answer) of the first two held-out conversations, or of the first two when none is held out."""
    usable = data["lengths"] > 0
    numbers = np.flatnonzero(usable & (data["held_out"] | ~(data["held_out"] & usable).any()))[:2]
    prompts = []
    for number in numbers:
        span = slice(data["offsets"][number], data["offsets"][number + 1])
        prompts.append(data["tokens"][span][: int(data["trained"][span].argmax())].tolist())
    answers = inference.generate(model.eval(), prompts, n_tokens, temperature=0.0, stop_ids=[shards.BOS_ID])
    decode = shards.get_tokenizer().decode
    return [(decode(prompt), decode(answer.ids)) for prompt, answer in zip(prompts, answers, strict=True)]


def summarise(run: Path, config: dict, args, state: dict) -> dict:
    """summary.json: last and best numbers, cost, and whether the intervention was there."""
    scalars, data = runs.read_jsonl(run / "scalars.jsonl"), config["data"]
    trained, vals = ([r for r in scalars if r["type"] == kind] for kind in ("train", "val"))
    warnings, last = list(config["warnings"]), vals[-1] if vals else {}
    tail = trained[-max(1, len(trained) // 50) :]  # the last 2 %: one step's loss is mostly its batch's noise
    return {
        "final_train_loss": float(np.mean([r["train_loss_opt_step_mean"] for r in tail])),
        **{f"final_{k}": last.get(k) for k in ("val_loss", "val_bits_per_byte")},
        "best_val_loss": min((r["val_loss"] for r in vals), default=None),
        "steps": args.max_train_steps, "stage": args.stage, "condition": args.condition, "epochs": data["epochs"],
        "tokens_seen": state["tokens_seen"], "trained_tokens_seen": state["trained_seen"],
        "flops_total": state["flops"], "mul_tokens": data["mul_tokens"], "mul_token_rate": data["mul_token_rate"],
        "train_time_ms": round(1000 * state["train_seconds"]), "finished": runs.now(),
        "ms_per_step": round(1000 * state["train_seconds"] / args.max_train_steps, 3),
        **{k: round(state[k], 3) for k in ("eval_seconds", "wall_seconds")}, "warnings": warnings,
    }


# ----------------------------------------------------------------------------------------------------------------------
# the run


def open_init(args, before: dict | None) -> tuple[dict, Path | None]:
    """(what config.json says about the checkpoint, its folder). A run that has checkpoints of its own needs it no more,
    so then the folder is None."""
    if before is not None and runs.list_checkpoints(args.out_dir):
        return before["init"], None
    folder, step, source = runs.resolve_checkpoint(args.init, flag="--init")
    config = GPTConfig.from_dict(json.loads((folder / "model.json").read_text(encoding="utf-8"))["config"])
    if args.condition == "mul_tokens" and config.vocab_size < shards.VOCAB_SIZE:
        raise ValueError(f"--init {folder} has {config.vocab_size:,} tokens and --condition mul_tokens needs "
                         f"{shards.VOCAB_SIZE:,}: start from a checkpoint with them, or use --condition baseline.")
    if config.vocab_size <= shards.BOS_ID:
        raise ValueError(f"--init {folder} has {config.vocab_size:,} tokens, fewer than GPT-2's {shards.BOS_ID + 1:,}: "
                         "start from another checkpoint.")
    known = source is not None and (Path(source) / "config.json").exists()
    pretrained = runs.read_config(source).get("data", {}).get("condition") if known else None
    return {"path": str(args.init), "folder": str(folder), "step": step, "run": str(source) if source else None,
            "model_sha256": disk.sha256_file(folder / "model.safetensors"), "condition": pretrained,
            "model": config.to_dict()}, folder


def train(args, procs) -> int:
    # ------------------------------------------------------------------------------------------------------------------
    # machine
    processes.tune_allocator()
    device, is_cuda = procs.device, procs.device.type == "cuda"
    if args.dtype == "auto":
        args.dtype = "bfloat16" if is_cuda and torch.cuda.is_bf16_supported() else "float32"
    autocast = contextlib.nullcontext
    if args.dtype == "bfloat16":
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)
    if is_cuda:
        torch.set_float32_matmul_precision("high")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    run, packing = Path(args.out_dir), args.packing == "on"
    if args.resume and (run / "summary.json").exists():
        if procs.is_main:
            print(f"{run} is already finished (it has a summary.json): nothing to do.")
        return 0

    # ------------------------------------------------------------------------------------------------------------------
    # checkpoint and data: rank 0 reads and tokenises, the other ranks get its arrays
    derived = [name for name in DERIVED if getattr(args, name) == (-1 if name == "warmup_iters" else 0)]
    before = runs.read_config(run) if args.resume and (run / "config.json").exists() else None
    if args.resume not in ("", "auto") and before is None:
        raise ValueError(f"--resume {args.resume}: {run} is not a run (no config.json); use --resume auto.")
    if before is None and (run / "config.json").exists():  # create_run says so too, but only when all is tokenised
        raise ValueError(f"{run} already exists: pass --resume auto to continue it, or choose another --out_dir.")
    init, init_folder = procs.on_main(lambda: open_init(args, before))
    config = GPTConfig.from_dict(init["model"])
    args.seq_len = args.seq_len or config.block_size
    if args.seq_len > config.block_size:
        raise ValueError(f"--seq_len {args.seq_len} is more than the checkpoint's block_size {config.block_size}: pass "
                         f"--seq_len {config.block_size}, or leave it out.")
    data = procs.on_main(lambda: conversations.load(args))
    lengths = data["lengths"]
    usable = (lengths > 0) & ~data["held_out"]
    n_conversations, per_step = int(usable.sum()), args.total_batch_conversations
    args.max_train_steps = args.max_train_steps or math.ceil(args.epochs * n_conversations / per_step)
    if args.warmup_iters < 0:
        args.warmup_iters = min(100, args.max_train_steps // 25)
    lr_multiplier(0, **schedule_of(args))  # refuses warmup + warmdown > steps before anything is written
    plan = conversations.plan_order(data, args.max_train_steps * per_step, args.seed, (args.mix_start, args.mix_end))
    epochs = {stage: round(float((data["source"][plan] == i).sum() / (usable & (data["source"] == i)).sum()), 4)
              for i, stage in enumerate(data["stages"])}

    # ------------------------------------------------------------------------------------------------------------------
    # model and optimizer
    model = (GPT.load(init_folder) if init_folder else GPT(config, seed=None)).to(device)
    optimizers = build_optimizers(
        model, rank=procs.rank, world_size=procs.world_size,
        **{k: getattr(args, k) for k in "optimizer learning_rate muon_lr muon_scale weight_decay beta1 beta2".split()})
    compiled = args.compile == "on" or (args.compile == "auto" and is_cuda)
    hidden = torch.compile(hidden_states) if compiled else hidden_states
    params = [p for p in model.parameters() if p.requires_grad]
    flops_head = 6 * config.vocab_size * config.n_embd  # per trained token; every token pays the rest
    flops_body = model.flops_per_token(args.seq_len) - flops_head
    peak = args.peak_flops or processes.peak_flops(device)

    # ------------------------------------------------------------------------------------------------------------------
    # the run's folder: made before anything is computed, or continued from its newest whole checkpoint
    total = Counter()
    for count in data["record"]["counts"].values():
        total.update(count)
    warnings = []
    if args.condition == "mul_tokens" and not total["mul_tokens"]:
        warnings.append("the condition is mul_tokens but the data holds no multiplication token: nothing was changed.")
    if init["condition"] and init["condition"] != args.condition:
        warnings.append(f"the checkpoint was pretrained as {init['condition']} and is fine-tuned as {args.condition}.")
    for name, what in (("truncated", "lost their end"), ("dropped_too_long", "were too long and dropped"),
                       ("malformed", "were malformed and left out"),
                       ("programs_refused", "had a program that was refused")):
        if total[name] > 0.05 * total["read"]:
            warnings.append(f"{total[name]:,} of {total['read']:,} conversations {what}.")
    record = {
        "flags": dict(vars(args)), "derived": derived, "argv": sys.argv, "started": runs.now(),
        "code": runs.code_state(), **processes.machine_state(device), "world_size": procs.world_size,
        "model": config.to_dict(), "parameters": model.num_params(), "flops_per_token": flops_body + flops_head,
        "peak_flops": peak if math.isfinite(peak) else None, "init": init, "warnings": warnings,
        "data": {"fingerprint": data["fingerprint"], "fingerprint_texts": data["fingerprint_texts"],
                 "format": "conversations", "condition": args.condition, "conversations": n_conversations,
                 "val_conversations": int(((lengths > 0) & data["held_out"]).sum()), "epochs": epochs,
                 "tokens": int(lengths[usable].sum()), "mul_tokens": total["mul_tokens"],
                 "mul_token_rate": total["mul_tokens"] / max(1, total["trained_tokens"]), **data["record"]},
    }
    messages = []

    def open_folder():
        """None for a new run; for a resumed one its checkpoint's path, '' when it has none yet."""
        if before is None:
            runs.create_run(run, record)
            return None
        changed = [f"{k}: {before['flags'].get(k)!r} -> {v!r}" for k, v in sorted(record["flags"].items())
                   if k not in FREE_ON_RESUME and before["flags"].get(k, build_parser().get_default(k)) != v]
        changed += ["fingerprint of the data"] * (before["data"]["fingerprint"] != record["data"]["fingerprint"])
        changed += ["weights of --init"] * (before["init"]["model_sha256"] != init["model_sha256"])
        if changed:
            raise ValueError(f"--resume would change the run ({', '.join(changed)}): "
                             "repeat its flags, or choose another --out_dir.")
        if before["code"]["code_sha256"] != record["code"]["code_sha256"]:
            messages.append("WARNING: the code has changed since the run began; what follows may not be bit-exact.")
        path = runs.find_checkpoint(run, args.resume, warn=messages.append)
        last = runs.step_of(path) if path else -1  # all of a step is recorded before the step is saved
        runs.trim_records(run, last)
        return str(path or "")

    checkpoint = procs.on_main(open_folder)
    # pending_eval: an evaluation that the present step still needs, so that an interrupted one is made up for on resume
    state = {"step": 0, "train_seconds": 0.0, "eval_seconds": 0.0, "wall_seconds": 0.0,
             "pending_eval": args.eval_every > 0, "tokens_seen": 0, "trained_seen": 0, "flops": 0}
    if checkpoint:
        loaded = GPT.load(checkpoint, device)
        model.load_state_dict(loaded.state_dict())
        states = torch.load(Path(checkpoint) / "optimizer.pt", map_location=device, weights_only=True)
        for optimizer, optimizer_state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer_state)
        rng = torch.load(Path(checkpoint) / "rng.pt", weights_only=True)
        if procs.rank < len(rng):  # training draws nothing from these; restored so that it stays so
            torch.set_rng_state(rng[procs.rank]["cpu"])
            if is_cuda:
                torch.cuda.set_rng_state(rng[procs.rank]["cuda"])
        state = {**state, **json.loads((Path(checkpoint) / "trainer.json").read_text())}
        del loaded, states, rng
    log_file = open(run / "log.txt", "a", encoding="utf-8") if procs.is_main else None

    def log(message: str) -> None:
        if procs.is_main:
            tqdm.write(message, file=sys.stdout)
            log_file.write(message + "\n")
            log_file.flush()

    def save() -> None:
        """Checkpoint of the present step; `state` must already be the present one."""
        rngs = procs.gather({"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if is_cuda else {})})

        def write(folder: Path) -> None:
            model.save(folder)
            torch.save([optimizer.state_dict() for optimizer in optimizers], folder / "optimizer.pt")
            torch.save(rngs, folder / "rng.pt")
            disk.write_json(folder / "trainer.json", state)

        state["wall_seconds"] = time.perf_counter() - clock_zero
        moments = [t for o in optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
        size = int(1.05 * sum(t.numel() * t.element_size() for t in [*params, *moments])) + 2**20
        procs.on_main(lambda: str(runs.save_checkpoint(run, state["step"], write, size, args.keep_last)))
        log(f"step {state['step']:6d} | saved {run / 'ckpt' / 'step_'}{state['step']:06d}")

    def rows_of(step: int) -> list[list[int]]:
        """This rank's rows of a step: every world_size-th, from the fullest on."""
        numbers = plan[step * per_step : (step + 1) * per_step]
        packed = conversations.pack(lengths[numbers].tolist(), args.seq_len, packing)
        return [[int(numbers[i]) for i in row] for row in packed][procs.rank :: procs.world_size]

    log(f"run {run} | {procs.world_size} x {device.type} | {args.dtype} | "
        + ", ".join(f"{k} {v:,}" for k, v in record["parameters"].items()) + " parameters")
    log(f"init {init['folder']} | model sha256 {init['model_sha256'][:16]}")
    for stage, count in data["record"]["counts"].items():
        log(f"data {stage} | " + ", ".join(f"{k} {v:,}" for k, v in count.items()) + f" | {epochs[stage]:.2f} epochs")
    log(f"{args.max_train_steps} steps x {per_step:,} conversations of {n_conversations:,}, "
        f"{record['data']['val_conversations']:,} held out | {args.condition} | {args.schedule}, "
        f"warmup {args.warmup_iters} | packing {args.packing}")
    first = int(plan[0])
    log("the first conversation as trained, [[ ]] around what the loss is taken of:\n"
        + conversations.show(conversations.make_batch(data, [[first]])))
    if checkpoint is not None:
        messages.append(f"resumed from {checkpoint}" if checkpoint else "no checkpoint yet: starting at step 0")
    for message in messages:
        log(message)

    # ------------------------------------------------------------------------------------------------------------------
    # the loop. "Step s" is what s optimizer updates made; everything of step s is recorded before step s is saved
    stop = processes.StopRequest()
    clock_zero = time.perf_counter() - state["wall_seconds"]
    (run / "exposures").mkdir(parents=True, exist_ok=True)  # on other nodes too, whose disk may be another
    exposures = runs.JsonlWriter(run / "exposures" / f"exposures_rank{procs.rank:04d}.jsonl")
    try:
        mirrors = procs.is_main and runs.open_mirrors(run, record, state["step"], args.wandb_project, args.tensorboard)
    except ValueError:
        if checkpoint is None:
            shutil.rmtree(run)  # made a moment ago, holds nothing, and would be in the way of the next try
        raise
    scalars = runs.JsonlWriter(run / "scalars.jsonl", mirrors) if procs.is_main else None
    reduced_on = device if is_cuda else torch.device("cpu")
    flat_grads = None  # all gradients in a row: one all-reduce per step, whose order of additions never changes
    bar = tqdm(total=args.max_train_steps, initial=state["step"], unit="step", dynamic_ncols=True,
               disable=None if procs.is_main else True)  # None: off when stderr is no terminal

    def clock() -> dict:
        """Seconds so far over all resumes: of training steps, of evaluations, and of everything with saves and logs."""
        return {"train_seconds": round(state["train_seconds"], 3),
                "eval_seconds_total": round(state["eval_seconds"], 3),
                "wall_seconds": round(time.perf_counter() - clock_zero, 3)}

    def evaluate() -> None:
        """Score the present step and record it; leaves state["pending_eval"] set when interrupted."""
        begun, step = time.perf_counter(), state["step"]
        state["pending_eval"] = True
        model.eval()
        scores = evaluate_val(model, data, args, procs, autocast, stop)
        if scores is None:
            return
        seconds = time.perf_counter() - begun
        state.update(pending_eval=False, eval_seconds=state["eval_seconds"] + seconds)
        if procs.is_main:
            np.savez_compressed(run / f"val_documents_{step:06d}.npz", **scores[1])
            scalars.write(type="val", **scores[0], step=step, timestamp=runs.now(),
                          tokens_seen_global=state["tokens_seen"], flops_total=state["flops"],
                          eval_seconds=round(seconds, 3), **clock())
            runs.update_step_metrics(run, step, **scores[0])
        log(f"step {step:6d} | val {scores[0]['val_loss']:.4f} nats per trained token, "
            f"{scores[0]['val_bits_per_byte']:.4f} bits/byte | {seconds:.1f} s")

    saved = state["step"] if checkpoint else -1
    if state["pending_eval"]:
        evaluate()
    stopped = state["pending_eval"]
    while state["step"] < args.max_train_steps and not stopped:
        begun = time.perf_counter()
        multiplier = lr_multiplier(state["step"], **schedule_of(args))
        set_learning_rates(optimizers, multiplier)
        numbers, rows = plan[state["step"] * per_step : (state["step"] + 1) * per_step], rows_of(state["step"])
        trained_tokens, tokens = int(data["n_trained"][numbers].sum()), int((lengths[numbers] - 1).sum())
        model.train()
        total_loss = torch.zeros((), device=device)
        for i in range(0, len(rows), args.micro_batch_size):
            batch = conversations.make_batch(data, rows[i : i + args.micro_batch_size], args.seq_len if compiled else 0)
            with autocast():
                loss = batch_loss(model, batch, device, hidden, packing, denominator=trained_tokens)
            loss.backward()
            total_loss += loss.detach()
        # over ranks: the step's mean loss, and who was asked to stop
        sums = procs.sum(torch.tensor([total_loss.item(), float(stop.asked)], dtype=torch.float64, device=reduced_on))
        train_loss, stopped = sums[0].item(), sums[1].item() > 0
        if procs.world_size > 1:  # a rank without a row has no gradients
            for p in params:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        grads = [p.grad for p in params]
        if procs.world_size > 1:
            flat_grads = torch.empty(sum(g.numel() for g in grads), device=device) if flat_grads is None else flat_grads
            torch.cat([g.reshape(-1) for g in grads], out=flat_grads)
            procs.sum(flat_grads)
            for g, piece in zip(grads, flat_grads.split([g.numel() for g in grads]), strict=True):
                g.copy_(piece.view_as(g))
        grad_norm = torch.nn.utils.get_total_norm(grads)
        if not (math.isfinite(train_loss) and math.isfinite(grad_norm.item())):
            last = runs.list_checkpoints(run)
            raise processes.SharedError(
                f"step {state['step'] + 1}: loss {train_loss} and gradient norm {grad_norm.item()} are not finite, on "
                f"conversations {numbers[:4].tolist()}...; the last good checkpoint is "
                f"{last[-1] if last else 'none'}: start again with a lower --learning_rate or a longer --warmup_iters.")
        if args.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(params, args.grad_clip, grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        flops = flops_body * tokens + flops_head * trained_tokens
        state["step"] += 1
        state["train_seconds"] += seconds
        state["tokens_seen"] += tokens
        state["trained_seen"] += trained_tokens
        state["flops"] += flops
        step = state["step"]

        # records. The checksum is of the whole step's conversations, in their order, whoever computed them
        checksum = data_order.token_checksum(data["digest"][numbers][:, None], (step - 1) * per_step)
        exposures.write(step=step, rank=procs.rank, seed=args.seed, entries=[(step - 1) * per_step, step * per_step],
                        conversations=sorted(c for row in rows for c in row), rows=len(rows),
                        checksum=f"{checksum:016x}")
        if procs.is_main:
            peak_mem = torch.cuda.max_memory_allocated() if is_cuda else processes.peak_rss_bytes()
            mixed = {"tinygsm_share": float((data["source"][numbers] == 1).mean())} if len(epochs) > 1 else {}
            scalars.write(
                type="train", step=step, timestamp=runs.now(), lr=args.learning_rate * multiplier,
                train_loss_opt_step_mean=train_loss, grad_norm_l2_preclip=grad_norm.item(),
                param_norm_l2=torch.nn.utils.get_total_norm([p.detach() for p in params]).item(),
                tokens_seen_global=state["tokens_seen"], trained_tokens=trained_tokens,
                tokens_per_sec=round(tokens / seconds, 1),
                mfu=round(flops / seconds / (peak * procs.world_size), 4),
                peak_mem_bytes=peak_mem, step_seconds=round(seconds, 6), flops_total=state["flops"],
                epoch=round(step * per_step / n_conversations, 6), **mixed)
            bar.update()
            bar.set_postfix_str(f"loss {train_loss:.4f}, {tokens / seconds:,.0f} tok/s")
            if args.log_every and step % args.log_every == 0:
                left = datetime.timedelta(seconds=round((args.max_train_steps - step) * state["train_seconds"] / step))
                log(f"step {step:6d}/{args.max_train_steps} | loss {train_loss:.4f} | "
                    f"lr {args.learning_rate * multiplier:.3e} | norm {grad_norm.item():.3f} | "
                    f"{tokens / seconds:,.0f} tok/s | {left} left")
            if args.sample_every and step % args.sample_every == 0:
                for prompt, answer in sample_answers(model, data, args.sample_tokens):
                    log(f"step {step:6d} | sample {prompt!r} -> {answer!r}")
        if args.eval_every and (step % args.eval_every == 0 or step == args.max_train_steps):
            evaluate()
            stopped = stopped or state["pending_eval"]
        if stopped or step == args.max_train_steps or (args.save_every and step % args.save_every == 0):
            save()
            saved = step

    # ------------------------------------------------------------------------------------------------------------------
    # goodbye
    bar.close()
    exposures.close()
    if procs.is_main:
        scalars.close()
    if state["step"] < args.max_train_steps or state["pending_eval"]:
        if saved != state["step"]:
            save()
        log(f"stopped at step {state['step']} of {args.max_train_steps}, saved; continue with: "
            f"python sft.py --out_dir {run} --resume auto")
    elif procs.is_main:
        state["wall_seconds"] = time.perf_counter() - clock_zero
        summary = summarise(run, record, args, state)
        for warning in summary["warnings"]:
            log(f"WARNING: {warning}")
        disk.write_json(run / "summary.json", summary)
        final = [f"{k} {summary[f'final_{k}']:.4f}" for k in ("train_loss", "val_loss", "val_bits_per_byte")
                 if summary[f"final_{k}"] is not None]
        log(f"finished {state['step']} steps: {state['train_seconds']:.1f} s of training, "
            f"{state['eval_seconds']:.1f} s of evaluation, {state['wall_seconds']:.1f} s in all | {', '.join(final)}")
    return 0


def main(argv=None) -> int:
    args = parse_args(argv)
    procs = processes.start_processes(args.device)
    try:
        return train(args, procs)
    finally:
        procs.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        repeated = isinstance(error, processes.SharedError) and os.environ.get("RANK", "0") != "0"
        sys.exit(1 if repeated else f"sft.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
