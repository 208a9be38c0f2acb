"""nanogpt_parity.py trains nanoGPT's model beside train_gpt.py: same tokens, schedule, initial weights; same losses?

    python experiments/2026-11-21_edu_web/nanogpt_parity.py --nanogpt <checkout> --data_dir <prepared folder>

Runs train_gpt.py with --vocab_size 50257, then nanoGPT's `GPT` and `configure_optimizers` (imported from the checkout)
in nanoGPT's loop: accumulate, clip, step, zero. Prints both losses of every step and the largest difference; exit
status 1 when it exceeds --tolerance. Takes about 3 minutes on two quiet cores.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import torch  # noqa: E402

from lab import data_order, runs, shards  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

SHAPE = dict(n_layer=4, n_head=4, n_embd=128)
SEQ_LEN, MICRO, TOKENS, VOCAB, SEED = 128, 8, 2048, 50257, 0


def train_ours(args) -> list[dict]:
    """The training records of train_gpt.py."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        flags = dict(data_dir=args.data_dir, out_dir=run, vocab_size=VOCAB, seq_len=SEQ_LEN, seed=SEED)
        flags |= dict(micro_batch_size=MICRO, total_batch_tokens=TOKENS, max_train_steps=args.steps)
        flags |= dict(warmup_iters=10, learning_rate=args.learning_rate)
        flags |= dict(eval_every=0, save_every=0, results_csv="", dtype="float32")
        command = [sys.executable, str(runs.REPO / "train_gpt.py")]
        for flag, value in (flags | SHAPE).items():
            command += [f"--{flag}", str(value)]
        subprocess.run(command, check=True)
        return [r for r in runs.read_jsonl(f"{run}/scalars.jsonl") if r["type"] == "train"]


def build_peer(checkout: Path, learning_rate: float):
    """nanoGPT's model with our initial weights, and its own AdamW."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    nanogpt = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = nanogpt
    spec.loader.exec_module(nanogpt)
    padded = -(-VOCAB // 128) * 128
    config = GPTConfig(vocab_size=VOCAB, padded_vocab_size=padded, block_size=SEQ_LEN, **SHAPE)
    weights = GPT(config, seed=SEED).state_dict()
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:VOCAB]
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    config = nanogpt.GPTConfig(block_size=SEQ_LEN, vocab_size=VOCAB, dropout=0.0, bias=True, **SHAPE)
    peer = nanogpt.GPT(config)
    peer.load_state_dict(weights)
    return peer, peer.configure_optimizers(0.1, learning_rate, (0.9, 0.95), "cpu")


def train_theirs(peer, optimizer, batches, ours: list[dict]) -> list[float]:
    """nanoGPT's loop on the same batches and learning rates: the loss of every step."""
    micro_steps = TOKENS // SEQ_LEN // MICRO
    losses = []
    for record in ours:
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        total = 0.0
        for part in batches.next_step()["tokens"].split(MICRO):
            _, loss = peer(part[:, :-1].contiguous(), part[:, 1:].contiguous())
            (loss / micro_steps).backward()
            total += loss.item() / micro_steps
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        mine = record["train_loss_opt_step_mean"]
        line = f"step {record['step']:3d} | ours {mine:.6f} | nanoGPT {total:.6f} | {mine - total:+.1e}"
        print(line, flush=True)
    return losses


def main():
    p = flags.Parser(description=__doc__)
    p.add_argument("--nanogpt", type=Path, required=True, help="nanoGPT checkout")
    p.add_argument("--data_dir", type=Path, required=True,
                   help="folder of prepare_fineweb.py, baseline condition")
    p.add_argument("--steps", type=int, default=50, help="optimizer steps (default 50)")
    p.add_argument("--learning_rate", type=float, default=1e-3, help="peak (default 1e-3)")
    p.add_argument("--tolerance", type=float, default=1e-3,
                   help="largest difference of a loss, nats (default 1e-3)")
    p.add_argument("--json", type=Path, help="file for the losses (default: none)")
    args = p.parse_args()

    records = train_ours(args)
    peer, optimizer = build_peer(args.nanogpt, args.learning_rate)
    files, _ = shards.open_dataset(args.data_dir, verify=False)
    batches = data_order.StepLoader(
        files, seq_len=SEQ_LEN, sequences_per_step=TOKENS // SEQ_LEN, seed=SEED, num_workers=0)
    theirs = train_theirs(peer, optimizer, batches, records)

    ours = [r["train_loss_opt_step_mean"] for r in records]
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference over {len(theirs)} steps: {worst:.1e} nats (tolerance {args.tolerance:g})")
    if args.json:
        result = {"ours": ours, "nanogpt": theirs, "largest_difference": worst}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if worst > args.tolerance:
        sys.exit(1)


if __name__ == "__main__":
    main()
