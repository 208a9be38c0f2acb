"""train_gpt.py tells one training run from flags to summary.json: one file for a laptop, one GPU, or many.

    python train_gpt.py --data_dir data/synthetic --n_layer 4 --n_head 4 --n_embd 128 --seq_len 128 \\
        --micro_batch_size 8 --total_batch_tokens 4096 --max_train_steps 300                     # CPU
    python train_gpt.py --data_dir fineweb_edu_10B                                               # 1 GPU, 124M
    torchrun --standalone --nproc_per_node=8 train_gpt.py --data_dir fineweb_edu_10B             # 8 GPUs
    python train_gpt.py --out_dir experiments/runs/<run> --resume auto                           # continue
    python train_gpt.py --config experiments/runs/<run>/config.json --seed 1                     # repeat, one change

Reads a folder of prepare_fineweb.py or prepare_bos_rows.py (or llm.c, nanoGPT, build-nanogpt shards); writes a run's
folder (layout: runs.py). The tokens of a step depend on data, seed and step alone (data_order.py), so arms can be
proved to have read the same, and neither a resume nor the number of ranks nor the micro-batch changes what is learnt.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import ewok
import hellaswag
from lab import data_order, disk, inference, processes, runs, shards
from lab.optim import build_optimizers, lr_multiplier, set_learning_rates
from model import GPT, GPTConfig

# ----------------------------------------------------------------------------------------------------------------------
# flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_gpt.py", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Train a GPT-2 on token shards: CPU, one GPU, or torchrun with many.",
        epilog="example: python train_gpt.py --data_dir data/synthetic --n_layer 4 --n_head 4 --n_embd 128\n"
        "         --seq_len 128 --micro_batch_size 8 --total_batch_tokens 4096 --max_train_steps 300 --eval_every 100")
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", help="folder of train_*.bin and val_*.bin (required)")
    add("--val_data_dir", help="folder whose val files are scored instead (default: --data_dir)")
    add("--condition", choices=("baseline", "mul_tokens"),
        help="refuse data of another condition (default: accept any)")
    add("--seq_len", type=int, default=1024, help="tokens that a sequence predicts (default 1024)")
    add("--data_order", choices=("shuffled", "sequential"), default="shuffled",
        help="sequences in an epoch (default shuffled)")
    add("--max_epochs", type=float, default=1.0, help="refuse to read the data more often than this (default 1)")
    add("--num_workers", type=int, default=1, help="threads that read ahead (default 1; 0 = read in the loop)")
    add("--verify_data", choices=("full", "sizes"), default="full",
        help="before step 0 check sha256 or only sizes (default full)")
    add("--vocab_size", type=int, default=shards.VOCAB_SIZE,
        help="logical vocabulary (default 50349; 50257 = plain GPT-2)")
    add = parser.add_argument_group("model").add_argument
    add("--init_from", default="",
        help="run or checkpoint whose weights and shape training starts from ('' = fresh weights from --seed)")
    add("--arch", choices=("gpt2", "speedrun"), default="gpt2",
        help="GPT-2, or the October-2024 speedrun's (default gpt2)")
    add("--n_layer", type=int, default=12, help="blocks (default 12)")
    add("--n_head", type=int, default=0, help="heads (0 = 12 for gpt2, n_embd / 128 for speedrun)")
    add("--n_embd", type=int, default=768, help="width (default 768)")
    add("--n_inner", type=int, default=0, help="width of the MLP (0 = 4 x n_embd)")
    add("--attn_gate", choices=("none", "headwise", "elementwise", "const"), default="none",
        help="attention gate (default none)")
    add("--gate_pos", choices=("sdpa", "value"), default="sdpa",
        help="gate the SDPA output or the values (default sdpa)")
    add("--gate_act", choices=("sigmoid", "ns_sigmoid"), default="sigmoid",
        help="ns_sigmoid = 0.5 + 0.5 sigmoid (default sigmoid)")
    add = parser.add_argument_group("optimization").add_argument
    add("--micro_batch_size", type=int, default=10,
        help="sequences per forward pass and rank (default 10); no effect on results")
    add("--total_batch_tokens", type=int, default=491_520,
        help="tokens per optimizer step over all ranks (default 491520)")
    add("--max_train_steps", type=int, default=20_000, help="optimizer steps (default 20000)")
    add("--optimizer", choices=("adamw", "muon", "muon_all"), default="adamw",
        help="muon = Muon on the blocks' matrices (default adamw)")
    add("--learning_rate", type=float, default=6e-4, help="peak for AdamW's parameters (default 6e-4)")
    add("--muon_lr", type=float, default=0.0, help="peak for Muon's parameters (0 = 0.1 x --learning_rate)")
    add("--muon_scale", choices=("sqrt_max", "original", "match_rms_adamw"), default="sqrt_max",
        help="update scale by the matrix's shape (default sqrt_max, as document 003)")
    add("--schedule", choices=("cosine", "trapezoid"), default="cosine", help="after warmup (default cosine)")
    add("--warmup_iters", type=int, default=-1,
        help="steps of linear warmup (0 = off; -1 = 4%% of the steps, at most 715)")
    add("--warmdown_iters", type=int, default=0, help="steps of linear warmdown, trapezoid only (default 0 = off)")
    add("--learning_rate_decay_frac", type=float, default=0.1, help="last learning rate / peak (default 0.1)")
    add("--weight_decay", type=float, default=0.1, help="AdamW's, on 2-D and larger (default 0.1; 0 = off)")
    add("--beta1", type=float, default=0.9, help="AdamW (default 0.9)")
    add("--beta2", type=float, default=0.95, help="AdamW (default 0.95)")
    add("--grad_clip", type=float, default=1.0, help="largest global L2 norm of the gradient (default 1; 0 = off)")
    add("--seed", type=int, default=0, help="of weights, data order and samples, each with its own stream (default 0)")
    add = parser.add_argument_group("evaluation and samples").add_argument
    add("--eval_every", type=int, default=250,
        help="steps between val losses; also before the first, after the last (0 = off)")
    add("--val_tokens", type=int, default=10_485_760,
        help="score the first whole documents worth this many plain GPT-2 tokens")
    add("--eval_batch_size", type=int, default=0, help="rows per forward pass in evaluation (0 = --micro_batch_size)")
    add("--hellaswag_every", type=int, default=0, help="steps between HellaSwag scores; also after the last (0 = off)")
    add("--hellaswag_data", default="",
        help="jsonl, or synthetic:N ('' = synthetic for a synthetic corpus, else the official 10,042, fetched once)")
    add("--hellaswag_max_examples", type=int, default=0, help="items, spread evenly over the file (0 = all)")
    add("--ewok_every", type=int, default=0, help="steps between EWoK scores; also after the last (0 = off)")
    add("--ewok_data", default="",
        help="encrypted zip, folder, synthetic:N ('' = synthetic for a synthetic corpus, else the gated hub dataset)")
    add("--ewok_max_examples", type=int, default=0, help="items, spread evenly over the file (0 = all)")
    add("--eval_bos", choices=("on", "off"), default="on", help="<|endoftext|> before every context (default on)")
    add("--sample_every", type=int, default=0, help="steps between printed samples (0 = off)")
    add("--sample_tokens", type=int, default=64, help="tokens per sample (default 64)")
    add = parser.add_argument_group("run folder").add_argument
    add("--out_dir", help="the run's folder (default experiments/runs/<date>_<name>_s<seed>)")
    add("--name", default="", help="name in the default --out_dir (default: data folder, arm, optimizer)")
    add("--config", help="config.json of a run whose flags become the defaults")
    add("--resume", default="",
        help="auto (newest whole checkpoint, or start) or a step; needs --out_dir ('' = new run)")
    add("--save_every", type=int, default=1000, help="steps between checkpoints (default 1000; 0 = only the last)")
    add("--keep_last", type=int, default=2, help="checkpoints kept (default 2; 0 = all)")
    add("--log_every", type=int, default=10,
        help="steps between lines in log.txt (0 = none); scalars.jsonl has every step")
    add("--results_csv", default=str(runs.REPO / "experiments" / "results.csv"),
        help="table a finished run is added to ('' = none)")
    add("--notes", default="", help="free text for results.csv")
    add("--wandb_project", default="", help="also show scalars.jsonl in this Weights & Biases project ('' = off)")
    add("--tensorboard", action="store_true", help="also write TensorBoard events into the run's folder")
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


SHOWN = {"hellaswag": ("accuracy", "accuracy_norm", "accuracy_norm_bytes"),  # in log.txt; the records hold all scores
         "ewok": ("eval_official_sum", "eval_official_mean", "eval_paper_sum")}

# what a resumed run may change: nothing here decides a weight or a recorded loss
FREE_ON_RESUME = set(
    "out_dir resume config name notes results_csv save_every keep_last log_every num_workers micro_batch_size "
    "eval_batch_size device compile peak_flops verify_data sample_every sample_tokens data_dir val_data_dir "
    "hellaswag_data ewok_data wandb_project tensorboard".split())


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked, with derived values filled in. --config, or the run being resumed, supplies the defaults."""
    parser = build_parser()
    first, _ = parser.parse_known_args(argv)
    source = Path(first.config) if first.config else None
    if first.resume and not first.out_dir:
        parser.error("--resume needs --out_dir: name the run's folder.")
    if first.resume and (Path(first.out_dir) / "config.json").exists():
        source = Path(first.out_dir) / "config.json"
    if source is not None:
        try:
            flags = json.loads(source.read_text())["flags"]
            unknown = sorted(set(flags) - set(vars(first)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"{source} is not a run's config.json ({error}): name one that train_gpt.py wrote.")
        if unknown:
            parser.error(f"{source} has unknown flags ({', '.join(unknown)}): pass them by hand.")
        parser.set_defaults(**{k: v for k, v in flags.items() if k not in ("out_dir", "resume", "config", "name")})
    shape = {}
    if start := parser.parse_known_args(argv)[0].init_from:
        try:
            if first.resume and first.out_dir and runs.list_checkpoints(first.out_dir):  # it needs the start no more
                config = json.loads(source.read_text())["model"]
            else:
                config = GPT.load_config(runs.resolve_checkpoint(start, flag="--init_from")[0]).to_dict()
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
        shape = {k: config[k] for k in
                 "arch n_layer n_head n_embd n_inner attn_gate gate_pos gate_act vocab_size".split()}
        parser.set_defaults(**shape)
    args = parser.parse_args(argv)
    if wrong := [f"--{k} {getattr(args, k)} (there {v})" for k, v in shape.items() if getattr(args, k) != v]:
        parser.error(f"--init_from {start} has another shape: drop {', '.join(wrong)}.")
    if shape and args.seq_len > config["block_size"]:
        parser.error(f"--init_from {start} reads at most {config['block_size']} tokens: lower --seq_len.")
    if not args.data_dir:
        parser.error("--data_dir is required: make one with "
                     "python prepare_fineweb.py --dataset synthetic --max_docs 5000 --out_dir data/synthetic")
    for name in ("seq_len n_layer n_embd micro_batch_size total_batch_tokens max_train_steps val_tokens "
                 "sample_tokens").split():
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give a whole number of at least 1.")
    for name in ("num_workers eval_every hellaswag_every hellaswag_max_examples ewok_every ewok_max_examples "
                 "eval_batch_size sample_every save_every keep_last log_every warmdown_iters "
                 "grad_clip seed n_head n_inner muon_lr weight_decay peak_flops").split():
        if not getattr(args, name) >= 0:
            parser.error(f"--{name} {getattr(args, name)}: give 0 or more.")
    for name in ("learning_rate", "max_epochs"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} {getattr(args, name)}: give a number above 0.")
    if args.resume not in ("", "auto") and not args.resume.isdigit():
        parser.error(f"--resume {args.resume}: give auto or the number of a checkpointed step.")
    # derived once; config.json records what the run used
    args.n_head = args.n_head or (max(1, args.n_embd // 128) if args.arch == "speedrun" else 12)
    args.n_inner = args.n_inner or 4 * args.n_embd
    args.muon_lr = args.muon_lr or 0.1 * args.learning_rate
    args.eval_batch_size = args.eval_batch_size or args.micro_batch_size
    if args.warmup_iters < 0:
        args.warmup_iters = min(715, args.max_train_steps // 25)
    arm = "" if args.attn_gate == "none" else f"_{args.attn_gate}_{args.gate_pos}_{args.gate_act}"
    args.name = args.name or f"{Path(args.data_dir).name}{arm}_{args.optimizer}"
    args.out_dir = args.out_dir or str(
        runs.REPO / "experiments" / "runs" / f"{datetime.date.today()}_{args.name}_s{args.seed}")
    return args


def schedule_of(args) -> dict:
    return dict(schedule=args.schedule, max_steps=args.max_train_steps, warmup=args.warmup_iters,
                warmdown=args.warmdown_iters, decay_frac=args.learning_rate_decay_frac)


def check_batch(args, world_size: int) -> int:
    """Sequences per optimizer step. ValueError names values that work."""
    sequences, rest = divmod(args.total_batch_tokens, args.seq_len)
    unit = args.micro_batch_size * args.seq_len * world_size
    if args.total_batch_tokens % unit:
        share = sequences // world_size if not rest and sequences % world_size == 0 else 0
        fits = sorted((m for m in range(1, share + 1) if share % m == 0), key=lambda m: abs(m - args.micro_batch_size))
        also = f", or --micro_batch_size {' or '.join(map(str, fits[:3]))}" if fits else ""
        raise ValueError(
            f"--total_batch_tokens {args.total_batch_tokens} is not a multiple of micro_batch_size x seq_len x ranks = "
            f"{args.micro_batch_size} x {args.seq_len} x {world_size} = {unit}: pass --total_batch_tokens "
            f"{max(1, round(args.total_batch_tokens / unit)) * unit}{also}.")
    return sequences


# ----------------------------------------------------------------------------------------------------------------------
# evaluation and the end


@torch.no_grad()
def evaluate_val(model, val: dict, args, procs, autocast, stop) -> tuple[dict, dict] | None:
    """Val loss in both views over all ranks: (fields for scalars.jsonl, arrays per document); None when asked to stop.

    Sums of NLL in float64 over exact counts, the same for any world size and batch. Draws no random numbers.
    """
    record, documents, n_docs = {}, {}, len(val["doc_starts"])
    doc_of = np.repeat(np.arange(n_docs), np.diff(np.append(val["doc_starts"], len(val["tokens"]))))
    for view, suffix in (("stream", ""), ("bos", "_bos")):
        starts, lengths = data_order.val_rows(val, args.seq_len, view, shards.BOS_ID)
        mine = slice(procs.rank, None, procs.world_size)
        sums = torch.zeros(3, n_docs + 1, dtype=torch.float64)  # nats, tokens, bytes per document; last column: stopped
        for x, y, where in data_order.val_batches(val, starts[mine], lengths[mine], args.eval_batch_size):
            if stop.asked:
                sums[0, -1] = 1
                break
            with autocast():
                nll = model.per_token_loss(x.to(procs.device), y.to(procs.device)).cpu().double().numpy()
            scored = y.numpy() != data_order.IGNORE
            at = where[scored]
            for row, values in enumerate((nll[scored], np.ones(len(at)), val["token_bytes"][at])):
                sums[row, :-1] += torch.from_numpy(np.bincount(doc_of[at], weights=values, minlength=n_docs))
        sums = procs.sum(sums.to(procs.device)).cpu() if procs.world_size > 1 else sums
        if sums[0, -1] > 0:
            return None
        nats, count, byte_count = (float(v) for v in sums[:, :-1].sum(1))
        record[f"val_loss{suffix}"] = nats / count if count else math.nan
        record[f"val_bits_per_byte{suffix}"] = nats / math.log(2) / byte_count if byte_count else math.nan
        record[f"val_tokens{suffix}"], record[f"val_bytes{suffix}"] = int(count), int(byte_count)
        documents |= {f"{view}_{k}": v for k, v in zip(("nats", "tokens", "bytes"), sums[:, :-1].numpy(), strict=True)}
    return record, documents


def summarise(run: Path, config: dict, args, state: dict) -> dict:
    """summary.json: last and best numbers, cost, the row for results.csv, and whether the intervention was there."""
    scalars, train_seconds = runs.read_jsonl(run / "scalars.jsonl"), state["train_seconds"]
    trained, vals = ([r for r in scalars if r["type"] == kind] for kind in ("train", "val"))
    data, last, steps = config["data"], vals[-1] if vals else {}, args.max_train_steps
    warnings = []
    if data["condition"] == "mul_tokens" and not data["mul_token_rate"]:
        warnings.append("the data's condition is mul_tokens but it holds no multiplication token: nothing was changed.")
    mechanism = [r["layers"] for r in scalars if r["type"] == "mechanism" and args.attn_gate != "none"]
    gates = [[layer["gate_mean"] for layer in layers] for layers in mechanism]
    if args.attn_gate != "none" and len(gates) < 2:
        warnings.append("the gates were looked at fewer than twice (--seq_len 1), so nothing shows that they moved.")
    if len(gates) > 1 and (moved := max(abs(a - b) for a, b in zip(gates[0], gates[-1], strict=True))) < 1e-3:
        warnings.append(f"no layer's mean gate moved by 0.001 (largest move {moved:.1e}): the gate is not active.")
    tail = trained[-max(1, len(trained) // 50) :]  # the last 2 %: one step's loss is mostly its batch's noise
    numbers = {
        "final_train_loss": float(np.mean([r["train_loss_opt_step_mean"] for r in tail])),
        **{f"final_{k}": last.get(k) for k in "val_loss val_bits_per_byte val_loss_bos val_bits_per_byte_bos".split()},
        "best_val_loss": min((r["val_loss"] for r in vals), default=None),
        "tokens_seen": steps * args.total_batch_tokens, **{k: data[k] for k in ("unique_tokens", "epochs")},
        "flops_total": steps * args.total_batch_tokens * config["flops_per_token"],
        "train_time_ms": round(1000 * train_seconds), "ms_per_step": round(1000 * train_seconds / steps, 3),
    }
    scores = json.loads(path.read_text()).get(str(steps), {}) if (path := run / "step_metrics.json").exists() else {}
    row = {
        "run_id": run.name, "date": config["started"][:10], "git_commit": config["code"]["git_commit"],
        "learning_rate": args.learning_rate, "batch_size": args.total_batch_tokens // args.seq_len,
        "device_batch_size": args.micro_batch_size, "sequence_length": args.seq_len, "num_iterations": steps,
        "gpu_name": config["hardware"]["gpu"] or "cpu", "n_gpus": config["world_size"], "condition": data["condition"],
        "parameters": config["parameters"]["total"], "data_fingerprint": data["fingerprint"],
        "val_fingerprint": data["val_fingerprint_documents"], **numbers,
        **{k: getattr(args, k) for k in
           "seed attn_gate gate_pos gate_act warmdown_iters notes arch optimizer n_layer n_embd muon_lr".split()},
        **{k: scores.get(k) for k in "hellaswag_accuracy hellaswag_accuracy_norm hellaswag_accuracy_norm_bytes "
           "eval_official_sum eval_official_mean".split()},
    }
    return {**numbers, "steps": steps, "finished": runs.now(), "scores": scores,
            **{k: round(state[k], 3) for k in ("eval_seconds", "wall_seconds")},
            "warnings": warnings, "results_row": row}


# ----------------------------------------------------------------------------------------------------------------------
# the run


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
    sequences_per_step = check_batch(args, procs.world_size)
    lr_multiplier(0, **schedule_of(args))  # refuses warmup + warmdown > steps before anything is written
    run = Path(args.out_dir)
    if args.resume and (run / "summary.json").exists():
        if procs.is_main:
            print(f"{run} is already finished (it has a summary.json): nothing to do.")
        return 0

    # ------------------------------------------------------------------------------------------------------------------
    # data: rank 0 reads every byte once and compares checksums, the other ranks rely on it
    def open_data(verify: bool):
        files, meta = shards.open_dataset(args.data_dir, "train", verify, args.vocab_size)
        val = None
        if args.eval_every:
            val = shards.open_val(args.val_data_dir or args.data_dir, args.val_tokens, verify, args.vocab_size)
        return files, meta or {}, val

    opened = []
    fingerprints = procs.on_main(lambda: opened.extend(open_data(args.verify_data == "full")) or opened[0].fingerprint)
    files, meta, val = opened or open_data(False)
    files.fingerprint = fingerprints
    if args.condition and meta.get("condition") != args.condition:
        raise ValueError(f"--condition {args.condition}, but {args.data_dir} was prepared as "
                         f"{meta.get('condition', 'unknown')}: name the other folder, or drop --condition.")
    benchmarks = {}  # name -> (module, items, steps between scores)
    for module, every in ((hellaswag, args.hellaswag_every), (ewok, args.ewok_every)):
        name = module.__name__
        source = getattr(args, f"{name}_data") or ("synthetic" if meta.get("dataset") == "synthetic" else "")
        most = getattr(args, f"{name}_max_examples")
        if every:
            try:
                items = procs.on_main(lambda module=module, source=source, most=most: module.load(source, most))
                module.check_length(items, args.seq_len)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(str(error).replace("--data", f"--{name}_data")) from None
            benchmarks[name] = (module, items, every)
    n_sequences, needed = files.n_sequences(args.seq_len), args.max_train_steps * sequences_per_step
    epochs, unique_tokens = needed / n_sequences, min(needed, n_sequences) * args.seq_len
    if epochs > args.max_epochs:
        raise ValueError(
            f"{args.max_train_steps} steps x {sequences_per_step} sequences = {needed:,}, but {args.data_dir} has "
            f"{n_sequences:,} sequences of {args.seq_len} tokens: {epochs:.3f} epochs, more than --max_epochs "
            f"{args.max_epochs:g}; lower --max_train_steps to "
            f"{int(args.max_epochs * n_sequences // sequences_per_step)}, prepare more data, or pass "
            f"--max_epochs {math.ceil(epochs)}.")

    # ------------------------------------------------------------------------------------------------------------------
    # model and optimizer. Rows up to a multiple of 128 make the head's products faster; they are masked everywhere
    padded = -(-args.vocab_size // 128) * 128
    config = GPTConfig(vocab_size=args.vocab_size, padded_vocab_size=padded, block_size=args.seq_len,
                       **{k: getattr(args, k) for k in
                          "n_layer n_head n_embd n_inner arch attn_gate gate_pos gate_act".split()})
    init = None
    if args.init_from and args.resume and runs.list_checkpoints(run):
        before = runs.read_config(run)
        config, init = GPTConfig.from_dict(before["model"]), before["init"]
        model = GPT(config, seed=None).to(device)
    elif args.init_from:
        source = runs.resolve_checkpoint(args.init_from, flag="--init_from")[0]
        model = GPT.load(source, device)
        config = model.config
        init = {"checkpoint": str(source), "sha256": disk.sha256_file(source / "model.safetensors")}
    else:
        model = GPT(config, seed=args.seed).to(device)
    optimizers = build_optimizers(
        model, rank=procs.rank, world_size=procs.world_size,
        **{k: getattr(args, k) for k in "optimizer learning_rate muon_lr muon_scale weight_decay beta1 beta2".split()})
    forward = torch.compile(model) if args.compile == "on" or (args.compile == "auto" and is_cuda) else model
    params = [p for p in model.parameters() if p.requires_grad]
    flops_per_token, tokens_per_step = model.flops_per_token(args.seq_len), args.total_batch_tokens
    peak = args.peak_flops or processes.peak_flops(device)

    # ------------------------------------------------------------------------------------------------------------------
    # the run's folder: made before anything is computed, or continued from its newest whole checkpoint
    record = {
        "flags": dict(vars(args)), "argv": sys.argv, "started": runs.now(), "code": runs.code_state(),
        "init": init, **processes.machine_state(device), "world_size": procs.world_size, "model": config.to_dict(),
        "parameters": model.num_params(), "flops_per_token": flops_per_token, "tokens_per_step": tokens_per_step,
        "peak_flops": peak if math.isfinite(peak) else None,
        "data": {"fingerprint": files.fingerprint, "format": files.source, "tokens": files.n_tokens,
                 "sequences": n_sequences, "epochs": epochs, "unique_tokens": unique_tokens,
                 **{k: meta.get(k) for k in ("condition", "mul_token_rate", "crop_fraction")},
                 **{f"val_{k}": val[k] if val else None for k in ("fingerprint_documents", "fingerprint_tokens")},
                 "val_documents": len(val["doc_starts"]) if val else 0},
        "benchmarks": {name: {"items": len(items), "sha256": hashlib.sha256(json.dumps(items).encode()).hexdigest()}
                       for name, (_, items, _) in benchmarks.items()},
    }
    messages = []

    def open_folder():
        """None for a new run; for a resumed one its checkpoint's path, '' when it has none yet."""
        if not (args.resume and (run / "config.json").exists()):
            if args.resume not in ("", "auto"):
                raise ValueError(f"--resume {args.resume}: {run} is not a run (no config.json); use --resume auto.")
            runs.create_run(run, record)
            return None
        before = runs.read_config(run)
        changed = [f"{k}: {before['flags'].get(k)!r} -> {v!r}" for k, v in sorted(record["flags"].items())
                   if k not in FREE_ON_RESUME and before["flags"].get(k, build_parser().get_default(k)) != v]
        changed += [f"{k} of the data" for k in ("fingerprint", "val_fingerprint_tokens")
                    if before["data"][k] != record["data"][k]]
        changed += [f"items of {name}" for name in benchmarks
                    if before.get("benchmarks", {}).get(name) != record["benchmarks"][name]]
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
    # due: evaluations that the present step still needs, so that an interrupted one is made up for on resume
    state = {"step": 0, "train_seconds": 0.0, "eval_seconds": 0.0, "wall_seconds": 0.0,
             "due": ["val"] if args.eval_every else []}
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
        state = {**state, "due": [], **json.loads((Path(checkpoint) / "trainer.json").read_text())}
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

    log(f"run {run} | {procs.world_size} x {device.type} | {args.dtype} | "
        + ", ".join(f"{k} {v:,}" for k, v in record["parameters"].items()) + " parameters")
    log(f"data {args.data_dir} | {files.source} | {files.n_tokens:,} tokens | {n_sequences:,} sequences of "
        f"{args.seq_len} | this run reads {unique_tokens:,} unique tokens, {epochs:.3f} epochs")
    log(f"{args.max_train_steps} steps x {tokens_per_step:,} tokens = {args.max_train_steps * tokens_per_step:,} | "
        f"{args.schedule}, warmup {args.warmup_iters} | "
        f"{flops_per_token * tokens_per_step * args.max_train_steps:.3e} FLOPs")
    log("scored: " + ", ".join(
        [f"val loss every {args.eval_every}" if args.eval_every else "val loss off (--eval_every)"] +
        [f"{name} every {benchmarks[name][2]} ({len(benchmarks[name][1]):,} items)" if name in benchmarks
         else f"{name} off (--{name}_every)" for name in ("hellaswag", "ewok")]))
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
    batches = data_order.StepLoader(
        files, seq_len=args.seq_len, sequences_per_step=sequences_per_step, seed=args.seed, data_order=args.data_order,
        rank=procs.rank, world_size=procs.world_size, start_step=state["step"], stop_step=args.max_train_steps,
        num_workers=args.num_workers, pin_memory=is_cuda)
    reduced_on = device if is_cuda else torch.device("cpu")
    flat_grads = None  # all gradients in a row: one all-reduce per step, whose order of additions never changes
    bar = tqdm(total=args.max_train_steps, initial=state["step"], unit="step", dynamic_ncols=True,
               disable=None if procs.is_main else True)  # None: off when stderr is no terminal

    def clock() -> dict:
        """Seconds so far over all resumes: of training steps, of evaluations, and of everything with saves and logs."""
        return {"train_seconds": round(state["train_seconds"], 3),
                "eval_seconds_total": round(state["eval_seconds"], 3),
                "wall_seconds": round(time.perf_counter() - clock_zero, 3)}

    def note_mechanism() -> None:
        """What gates and attention do on two rows: the beginning of the held-out stream, else of the data."""
        if procs.is_main and args.seq_len > 1:
            held_out = val is not None and len(val["tokens"]) >= 2 * args.seq_len
            rows = val["tokens"][: 2 * args.seq_len] if held_out else files.slice(0, 2 * args.seq_len)
            idx = torch.from_numpy(rows[: len(rows) // args.seq_len * args.seq_len].astype(np.int64))
            scalars.write(type="mechanism", step=state["step"], timestamp=runs.now(),
                          layers=model.gate_stats(idx.view(-1, args.seq_len).to(device)))

    def evaluate() -> None:
        """Make and record the evaluations in state["due"]; those that were interrupted stay there."""
        while state["due"]:
            begun, step, name = time.perf_counter(), state["step"], state["due"][0]
            model.eval()
            if name == "val":
                scores = evaluate_val(model, val, args, procs, autocast, stop)
            else:
                module, items, _ = benchmarks[name]
                scores = module.evaluate(model, items, procs, bos=args.eval_bos == "on", autocast=autocast, stop=stop)
            if scores is None:
                return
            state["due"].pop(0)
            seconds = time.perf_counter() - begun
            state["eval_seconds"] += seconds
            where = {"step": step, "timestamp": runs.now(), "tokens_seen_global": step * tokens_per_step,
                     "flops_total": step * tokens_per_step * flops_per_token, "eval_seconds": round(seconds, 3)}
            if name == "val":
                said = [f"{scores[0]['val_loss' + v]:.4f} nats, {scores[0]['val_bits_per_byte' + v]:.4f} bits/byte"
                        for v in ("", "_bos")]
                said = f"{said[0]} | bos view {said[1]}"
            else:
                said = ", ".join(f"{k} {scores['metrics'][k]:.4f}" for k in SHOWN[name])
            log(f"step {step:6d} | {name} {said} | {seconds:.1f} s")
            if not procs.is_main:
                continue
            if name != "val":
                module.write_records(run, step, scores, where["timestamp"])
                scalars.write(type=name, **where, **clock(),
                              **{k: v for k, v in scores["metrics"].items() if isinstance(v, (int, float, str))})
                continue
            hashes = {} if val["doc_hash"] is None else {"doc_hash": val["doc_hash"]}
            np.savez_compressed(run / f"val_documents_{step:06d}.npz", **scores[1], **hashes)
            scalars.write(type="val", **scores[0], **where, **clock())
            runs.update_step_metrics(run, step, **scores[0])
            note_mechanism()

    saved = state["step"] if checkpoint else -1
    if not args.eval_every and state["step"] == 0:
        note_mechanism()
    evaluate()
    stopped = bool(state["due"])
    while state["step"] < args.max_train_steps and not stopped:
        begun = time.perf_counter()
        multiplier = lr_multiplier(state["step"], **schedule_of(args))
        set_learning_rates(optimizers, multiplier)
        batch = batches.next_step()
        model.train()
        total = torch.zeros((), device=device)
        for i in range(0, batches.share, args.micro_batch_size):
            tokens = batch["tokens"][i : i + args.micro_batch_size].to(device, non_blocking=True)  # (B, T + 1)
            with autocast():
                loss = forward(tokens[:, :-1], tokens[:, 1:], loss_denominator=tokens_per_step)
            loss.backward()
            total += loss.detach()
        # over ranks: the step's mean loss, who was asked to stop, and the checksum modulo 2**64 (int64 sums wrap)
        sums = procs.sum(torch.tensor([total.item(), float(stop.asked)], dtype=torch.float64, device=reduced_on))
        train_loss, stopped = sums[0].item(), sums[1].item() > 0
        checksum = torch.tensor(np.uint64(batch["checksum"]).astype(np.int64).item(), device=reduced_on)
        checksum = procs.sum(checksum).item() % 2**64
        grads = [p.grad for p in params]
        if procs.world_size > 1:
            flat_grads = torch.empty(sum(g.numel() for g in grads), device=device) if flat_grads is None else flat_grads
            torch.cat([g.reshape(-1) for g in grads], out=flat_grads)
            procs.sum(flat_grads)
            for g, piece in zip(grads, flat_grads.split([g.numel() for g in grads]), strict=True):
                g.copy_(piece.view_as(g))
        grad_norm = torch.nn.utils.get_total_norm(grads)
        if not (math.isfinite(train_loss) and math.isfinite(grad_norm.item())):
            first, last = state["step"] * sequences_per_step, runs.list_checkpoints(run)
            raise processes.SharedError(
                f"step {state['step'] + 1}: loss {train_loss} and gradient norm {grad_norm.item()} are not finite, on "
                f"entries {first}..{first + sequences_per_step - 1} of the data order (sequences "
                f"{batch['sequences'][:4].tolist()}... on rank {procs.rank}); the last good checkpoint is "
                f"{last[-1] if last else 'none'}: start again with a lower --learning_rate or a longer --warmup_iters.")
        if args.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(params, args.grad_clip, grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        state["step"] += 1
        state["train_seconds"] += seconds
        step = state["step"]

        # records
        first = (step - 1) * sequences_per_step + batches.offset
        exposures.write(step=step, rank=procs.rank, seed=args.seed, epochs=sorted(set(batch["epochs"].tolist())),
                        entries=[first, first + batches.share], checksum=f"{checksum:016x}",
                        rank_checksum=f"{batch['checksum']:016x}")
        if procs.is_main:
            peak_mem = torch.cuda.max_memory_allocated() if is_cuda else processes.peak_rss_bytes()
            scalars.write(
                type="train", step=step, timestamp=runs.now(), lr=args.learning_rate * multiplier,
                train_loss_opt_step_mean=train_loss, grad_norm_l2_preclip=grad_norm.item(),
                param_norm_l2=torch.nn.utils.get_total_norm([p.detach() for p in params]).item(),
                tokens_seen_global=step * tokens_per_step, tokens_per_sec=round(tokens_per_step / seconds, 1),
                mfu=round(flops_per_token * tokens_per_step / seconds / (peak * procs.world_size), 4),
                peak_mem_bytes=peak_mem, step_seconds=round(seconds, 6),
                flops_total=step * flops_per_token * tokens_per_step,
                epoch=round(step * sequences_per_step / n_sequences, 6))
            bar.update()
            bar.set_postfix_str(f"loss {train_loss:.4f}, {tokens_per_step / seconds:,.0f} tok/s")
            if args.log_every and step % args.log_every == 0:
                left = datetime.timedelta(seconds=round((args.max_train_steps - step) * state["train_seconds"] / step))
                log(f"step {step:6d}/{args.max_train_steps} | loss {train_loss:.4f} | "
                    f"lr {args.learning_rate * multiplier:.3e} | norm {grad_norm.item():.3f} | "
                    f"{tokens_per_step / seconds:,.0f} tok/s | {left} left")
            if args.sample_every and step % args.sample_every == 0:
                samples = inference.generate(model.eval(), [[shards.BOS_ID]] * 2, args.sample_tokens, temperature=0.8,
                                             top_k=50, seed=args.seed + step, stop_ids=[shards.BOS_ID])
                for sample in samples:
                    log(f"step {step:6d} | sample {shards.get_tokenizer().decode(sample.ids)!r}")
        cadence = {"val": args.eval_every, **{name: every for name, (_, _, every) in benchmarks.items()}}
        state["due"] = [k for k, n in cadence.items() if n and (step % n == 0 or step == args.max_train_steps)]
        if not args.eval_every and step == args.max_train_steps:
            note_mechanism()
        evaluate()
        stopped = stopped or bool(state["due"])
        if stopped or step == args.max_train_steps or (args.save_every and step % args.save_every == 0):
            save()
            saved = step

    # ------------------------------------------------------------------------------------------------------------------
    # goodbye
    bar.close()
    batches.close()
    exposures.close()
    if procs.is_main:
        scalars.close()
    if state["step"] < args.max_train_steps or state["due"]:
        if saved != state["step"]:
            save()
        log(f"stopped at step {state['step']} of {args.max_train_steps}, saved; continue with: "
            f"python train_gpt.py --out_dir {run} --resume auto")
    elif procs.is_main:
        state["wall_seconds"] = time.perf_counter() - clock_zero
        summary = summarise(run, record, args, state)
        for warning in summary["warnings"]:
            log(f"WARNING: {warning}")
        if args.results_csv:
            runs.append_result(args.results_csv, summary["results_row"])
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
        sys.exit(1 if repeated else f"train_gpt.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
