"""val_loss.py owns the val loss of pretraining: held-out documents scored in two views, exactly over all ranks."""

from __future__ import annotations

import math

import numpy as np
import torch

from lab import data_order, processes
from lab.tokenizer import BOS_ID

VIEWS = {"stream": "", "bos": "_bos"}  # view: suffix of its numbers
NO_WRITE = "_no_write"  # suffix of the stream view's, read by a memory that is not written
# of a row's tokens: a GPU prepares each new shape, at up to 37 ms (cuDNN's attention), a CPU pays for padding
MULTIPLE = {"cuda": 128}
# stands for the held-out documents when nothing is scored on them
NONE = {"tokens": (), "doc_starts": (), "fingerprint_documents": None, "fingerprint_tokens": None}


def count_tokens(val: dict, args) -> int:
    """How many tokens evaluate() reads."""
    if not len(val["tokens"]):
        return 0
    return sum(int(data_order.val_rows(val, args.seq_len, view, BOS_ID)[1].sum()) for view in VIEWS)


@torch.no_grad()
def evaluate(model, val: dict, args, procs, autocast, stop) -> tuple[dict, dict] | None:
    """Val loss in both views, of a memory also without its writes: (fields for scalars.jsonl, arrays per document);
    None when asked to stop.

    Sums of NLL over all ranks in float64 over exact counts, the same for any world size and batch. Draws no random
    numbers."""
    record, documents = {}, {}
    n_docs = len(val["doc_starts"])
    doc_lengths = np.diff(np.append(val["doc_starts"], len(val["tokens"])))
    doc_of = np.repeat(np.arange(n_docs), doc_lengths)  # each token's document
    passes = [(view, suffix, view) for view, suffix in VIEWS.items()]
    if model.writes:
        passes.append(("stream", NO_WRITE, "stream" + NO_WRITE))
    for view, suffix, name_of_arrays in passes:
        starts, lengths = data_order.val_rows(val, args.seq_len, view, BOS_ID)
        mine = slice(procs.rank, None, procs.world_size)
        # nats, tokens, bytes of each document; last column: asked to stop
        sums = torch.zeros(3, n_docs + 1, dtype=torch.float64)
        multiple = MULTIPLE.get(procs.device.type, 1)
        batches = data_order.val_batches(val, starts[mine], lengths[mine], args.eval_batch_size, multiple)
        total = math.ceil(len(starts[mine]) / args.eval_batch_size)
        for x, y, where in processes.show_progress(batches, total, f"val loss, {view}", procs):
            if stop.asked:
                sums[0, -1] = 1
                break
            with autocast():
                nll = model.per_token_loss(x.to(procs.device), y.to(procs.device), write=suffix != NO_WRITE)
            scored = y.numpy() != data_order.IGNORE
            nll = nll.cpu().double().numpy()[scored]
            at = where[scored]
            for row, values in enumerate((nll, np.ones(len(at)), val["token_bytes"][at])):
                added = np.bincount(doc_of[at], weights=values, minlength=n_docs)
                sums[row, :-1] += torch.from_numpy(added)
        if procs.world_size > 1:
            sums = procs.sum(sums.to(procs.device)).cpu()
        if sums[0, -1] > 0:
            return None
        sums = sums[:, :-1]
        nats, n_tokens, n_bytes = sums.sum(1).tolist()
        record[f"val_loss{suffix}"] = nats / n_tokens if n_tokens else math.nan
        record[f"val_bits_per_byte{suffix}"] = nats / math.log(2) / n_bytes if n_bytes else math.nan
        record[f"val_tokens{suffix}"] = int(n_tokens)
        record[f"val_bytes{suffix}"] = int(n_bytes)
        for name, values in zip(("nats", "tokens", "bytes"), sums.numpy(), strict=True):
            documents[f"{name_of_arrays}_{name}"] = values
    if val["doc_hash"] is not None:
        documents["doc_hash"] = val["doc_hash"]
    return record, documents
