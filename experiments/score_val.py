"""score_val.py scores a checkpoint on the held-out documents of any dataset, as train_gpt.py does while it trains.

    python experiments/score_val.py --checkpoint experiments/runs/<run> --data_dir D --out val.json

Reads a checkpoint and the val files of D; prints nats per token and bits per byte in both views, and writes them with
--out. For a second look at finished runs: documents of one source, or of a corpus they were not trained on. Documents
are held out by their text's hash, so a source prepared alone holds out those that it holds out in a mixture.
"""

import contextlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

from lab import ab_report, disk, processes, runs, shards, tokenizer, val_loss  # noqa: E402
from model import GPT  # noqa: E402

ALL = 2**40  # tokens


def score(args, procs) -> dict:
    folder, step, _ = runs.resolve_checkpoint(args.checkpoint)
    tokenizer.use_of(folder)
    model = GPT.load(folder, procs.device).eval()
    val = shards.open_val(args.data_dir, args.val_tokens, True, model.config.vocab_size)
    shape = SimpleNamespace(seq_len=model.config.block_size, eval_batch_size=args.batch_size)
    never = SimpleNamespace(asked=False)
    scores, documents = val_loss.evaluate(model, val, shape, procs, contextlib.nullcontext, never)
    fingerprints = {k: val[k] for k in ("fingerprint_documents", "fingerprint_tokens")}
    return {"step": step, "documents": len(documents["stream_nats"]), **scores, **fingerprints}


def check_out(path: Path | None) -> None:
    """ValueError where --out would replace something else than an earlier score, or is in no folder."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: {path.parent} is no folder: make it, or choose another file.")
    if path.exists():
        record = None
        with contextlib.suppress(ValueError):
            record = runs.read_json(path)
        if not isinstance(record, dict) or "fingerprint_tokens" not in record:
            fault = f"--out {path} exists and is no score of score_val.py"
            raise ValueError(f"{fault}: choose another file.")


def main(argv=None):
    p = flags.Parser(description=__doc__)
    p.add_argument("--checkpoint", required=True,
                   help="a run's folder, one of its ckpt/step_*, or a GPT.save folder")
    p.add_argument("--data_dir", required=True, help="folder whose val files are scored")
    p.add_argument("--val_tokens", type=int, default=ALL,
                   help="first whole documents worth this many plain GPT-2 tokens (default all)")
    p.add_argument("--batch_size", type=int, default=8, help="rows per forward pass (default 8)")
    p.add_argument("--out", type=Path, help="JSON file to write (default: print alone)")
    args = p.parse_args(argv)
    flags.check_flags(p, args, {"a whole number of at least 1": "val_tokens batch_size"})
    try:
        check_out(args.out)
        with processes.start_processes("auto") as procs:
            record = score(args, procs)
    except (ValueError, OSError) as error:
        sys.exit(f"score_val.py: {error}")
    for name, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            record[name] = None  # NaN is not JSON
    line, fault = json.dumps(record), ""
    if args.out:
        try:
            disk.write_whole(args.out, f"{line}\n".encode())
        except OSError as error:
            why = f"--out {args.out} cannot be written ({error.strerror})"
            fault = f"score_val.py: {why}: keep the line above."
    ab_report.show(line)
    if fault:
        sys.exit(fault)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "score_val.py", "stopped, nothing was written.")
