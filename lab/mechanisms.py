"""mechanisms.py owns what gates, attention and memories do in a trained model, and the signs that they do nothing."""

import math

import numpy as np
import torch

from lab import chunks, memory, resume, runs
from lab.schema import check
from model import GPT, Attention, Context

MIN_GAIN = 1e-4  # nats per token: a memory that changes the val loss by less is not active
GATE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def first_token_attention(q, k) -> float:
    """Mean over rows, heads and queries 1 .. T-1 of the probability that causal attention gives to key 0. q, k
    (B, T, H, dh); one row's scores are alive at a time."""
    future = torch.ones(q.size(1), q.size(1), dtype=torch.bool, device=q.device).triu(1)
    share = 0.0
    for q_row, k_row in zip(q.float().transpose(1, 2), k.float().transpose(1, 2), strict=True):  # (H, T, dh)
        scores = (q_row @ k_row.mT / math.sqrt(q.size(-1))).masked_fill(future, -math.inf)
        share += scores.softmax(-1)[:, 1:, 0].mean().item() / len(q)
    return share


@torch.no_grad()
def gate_stats(model: GPT, idx) -> list[dict]:
    """Per layer, on a small batch idx (B, T >= 2): what gating SDPA's output is said to change (arXiv:2505.06708).

    With a gate: gate_mean, gate_share_below_0.1, gate_quantiles (of GATE_QUANTILES). With attention:
    first_token_attention. Always: largest_activation, in the residual stream behind the layer."""
    check(idx.size(1) >= 2, "gate_stats needs rows of at least 2 tokens; pass a longer batch")
    (x, rope), stats = model.embed(idx), []
    context = Context(rope)
    for block in model.transformer["h"]:
        layer, attention, g = {}, getattr(block, "attn", None), None
        if isinstance(attention, Attention):
            normed = block.ln_1(x)
            q, k, _ = attention.qkv(normed, context)
            layer["first_token_attention"] = first_token_attention(q, k)
            g = attention.gate_values(normed)
        if g is not None:
            ordered = g.float().flatten().sort().values  # torch.quantile takes at most 2**24
            at = [round(q * (len(ordered) - 1)) for q in GATE_QUANTILES]
            layer["gate_mean"] = g.float().mean().item()
            layer["gate_share_below_0.1"] = (g < 0.1).float().mean().item()
            layer["gate_quantiles"] = ordered[at].tolist()
        x = block(x, context)
        layer["largest_activation"] = x.abs().max().item()
        stats.append(layer)
    return stats


def memory_stats(model: GPT, idx) -> list[dict]:
    """What reading idx (B, T) writes, per block and level (memory.records); empty where nothing is written."""
    if not model.writes:
        return []
    reading = chunks.Reading(model)
    for _ in chunks.score(reading, idx, chunks.next_tokens(idx)):
        pass  # read for its writes
    return memory.records(reading.layers, model.transformer["h"])


def probe_rows(args, files, val: dict) -> torch.Tensor | None:
    """Up to two rows (2, T) to look at gates and attention with: the beginning of the held-out stream, else of the
    training data. None when a row is one token."""
    T = args.seq_len
    if T == 1:
        return None
    tokens = val["tokens"][: 2 * T]
    if len(tokens) < 2 * T:
        tokens = files.slice(0, 2 * T)
    whole = tokens[: len(tokens) // T * T]
    return torch.from_numpy(whole.astype(np.int64)).view(-1, T)


def record_mechanism(run, probe: torch.Tensor | None) -> None:
    """Adds both to the scalars of a training.Run, from the rows of probe (B, T). ValueError at step 0 when there is a
    memory that is not written."""
    if probe is None:
        return
    model, rows, step = run.model, probe.to(run.procs.device), run.state.step

    def write() -> None:
        stamp = dict(step=step, timestamp=runs.now())
        run.scalars.write(type="mechanism", **stamp, layers=gate_stats(model, rows))
        levels = memory_stats(model, rows)
        if not levels:
            return
        run.scalars.write(type="memory", **stamp, levels=levels)
        check(step > 0 or any(level["updates"] for level in levels),
              "the memory was not written once; raise --inner_lr or --teach_scale, or lower --surprise_threshold")

    run.procs.on_main(write)


def find_warnings(run) -> list[str]:
    """Signs that the intervention of a finished training.Run was absent, a sentence each."""
    args, data, warnings = run.args, run.record["data"], []
    if data["condition"] == "mul_tokens" and not data["mul_token_rate"]:
        warnings.append("the data's condition is mul_tokens but it holds no multiplication token: "
                        "nothing was changed.")
    scalars = resume.read_scalars(run.folder)
    if args.memory != "none":
        warnings += _memory_warnings(scalars)
    if args.attn_gate != "none":
        warnings += _gate_warnings(scalars)
    return warnings


def _gate_warnings(scalars: list[dict]) -> list[str]:
    looks = [record["layers"] for record in scalars if record["type"] == "mechanism"]
    if len(looks) < 2:
        return ["the gates were seen fewer than twice (--seq_len 1): nothing shows that they moved."]
    moves = [abs(a["gate_mean"] - b["gate_mean"]) for a, b in zip(looks[0], looks[-1], strict=True)]
    if max(moves) < 1e-3:
        return [f"no layer's mean gate moved by 0.001 (largest move {max(moves):.1e}): the gate is not active."]
    return []


def _memory_warnings(scalars: list[dict]) -> list[str]:
    """Empty where nothing should be written, and where no held-out data was scored."""
    losses = [record for record in scalars if "val_loss_no_write" in record]
    if not losses:
        return []
    gain = losses[-1]["val_loss_no_write"] - losses[-1]["val_loss"]
    if abs(gain) < MIN_GAIN:
        return [f"writing changes the val loss by {gain:.1e} nats, less than {MIN_GAIN}: "
                "the memory is not active."]
    return []
