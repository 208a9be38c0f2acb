"""nanogpt_parity.py trains nanoGPT's model beside train_gpt.py: same tokens, schedule, initial weights; same losses?

    python experiments/2026-11-21_edu_web/nanogpt_parity.py --nanogpt <checkout> --data_dir <prepared folder>

Runs train_gpt.py with --vocab_size 50257, then nanoGPT's `GPT` and `configure_optimizers` (imported from the checkout)
in nanoGPT's loop: accumulate, clip, step, zero. Prints both losses of every step and the largest difference; exit
status 1 when it exceeds --tolerance. Takes about 3 minutes on two quiet cores.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from lab import data_order, runs, shards
from model import GPT, GPTConfig

SHAPE = dict(n_layer=4, n_head=4, n_embd=128)
SEQ_LEN, MICRO, TOKENS, VOCAB, SEED = 128, 8, 2048, 50257, 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nanogpt", type=Path, required=True, help="nanoGPT checkout")
    p.add_argument("--data_dir", type=Path, required=True, help="folder of prepare_fineweb.py, baseline condition")
    p.add_argument("--steps", type=int, default=50, help="optimizer steps (default 50)")
    p.add_argument("--learning_rate", type=float, default=1e-3, help="peak (default 1e-3)")
    p.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of a loss, nats (default 1e-3)")
    p.add_argument("--json", type=Path, help="file for the losses ('' = none)")
    args = p.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        flags = dict(data_dir=args.data_dir, out_dir=f"{folder}/run", vocab_size=VOCAB, seq_len=SEQ_LEN, seed=SEED,
                     micro_batch_size=MICRO, total_batch_tokens=TOKENS, max_train_steps=args.steps, warmup_iters=10,
                     learning_rate=args.learning_rate, eval_every=0, save_every=0, results_csv="", **SHAPE)  # fmt: skip
        command = [sys.executable, runs.REPO / "train_gpt.py", *(x for k, v in flags.items() for x in (f"--{k}", v))]
        subprocess.run([str(x) for x in command], check=True)
        ours = [r for r in runs.read_jsonl(f"{folder}/run/scalars.jsonl") if r["type"] == "train"]

    spec = importlib.util.spec_from_file_location("nanogpt_model", args.nanogpt / "model.py")
    nanogpt = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = nanogpt
    spec.loader.exec_module(nanogpt)
    config = GPTConfig(vocab_size=VOCAB, padded_vocab_size=-(-VOCAB // 128) * 128, block_size=SEQ_LEN, **SHAPE)
    start = GPT(config, seed=SEED).state_dict()
    start["transformer.wte.weight"] = start["transformer.wte.weight"][:VOCAB]
    start["lm_head.weight"] = start["transformer.wte.weight"]
    peer = nanogpt.GPT(nanogpt.GPTConfig(block_size=SEQ_LEN, vocab_size=VOCAB, dropout=0.0, bias=True, **SHAPE))
    peer.load_state_dict(start)
    optimizer = peer.configure_optimizers(0.1, args.learning_rate, (0.9, 0.95), "cpu")

    files, _ = shards.open_dataset(args.data_dir, verify=False)
    per_step, micro_steps = TOKENS // SEQ_LEN, TOKENS // SEQ_LEN // MICRO
    batches = data_order.StepLoader(files, seq_len=SEQ_LEN, sequences_per_step=per_step, seed=SEED, num_workers=0)
    theirs = []
    for record in ours:
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        tokens, total = batches.next_step()["tokens"], 0.0
        for part in tokens.split(MICRO):
            _, loss = peer(part[:, :-1].contiguous(), part[:, 1:].contiguous())
            (loss / micro_steps).backward()
            total += loss.item() / micro_steps
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        theirs.append(total)
        mine = record["train_loss_opt_step_mean"]
        print(f"step {record['step']:3d} | ours {mine:.6f} | nanoGPT {total:.6f} | {mine - total:+.1e}", flush=True)
    worst = max(abs(r["train_loss_opt_step_mean"] - t) for r, t in zip(ours, theirs, strict=True))
    print(f"largest difference over {len(theirs)} steps: {worst:.1e} nats (tolerance {args.tolerance:g})")
    if args.json:
        args.json.write_text(json.dumps({"ours": [r["train_loss_opt_step_mean"] for r in ours], "nanogpt": theirs,
                                         "largest_difference": worst}, indent=1) + "\n")  # fmt: skip
    sys.exit(0 if worst <= args.tolerance else 1)


if __name__ == "__main__":
    main()
