"""val_loss.py owns the val loss of pretraining: held-out documents scored in two views, exactly over all ranks."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from lab import data_order, estimate, kernels, processes, units
from lab.tokenizer import bos_id

VIEWS = {"stream": "", "bos": "_bos"}  # view: suffix of its numbers
NO_WRITE = "_no_write"  # suffix of the stream view's, read by a memory that is not written
# of a row's tokens: few lengths, for which a GPU's kernels are chosen and partly made; a CPU pays for padding
MULTIPLE = {"cuda": 128}
# times --micro_batch_size: without a backward pass a row needs a fraction of the memory (assumption)
MORE_ROWS = {"cuda": 4}
# Losses that are left on the device, until all are there or so many: reading them waits for it. 4 bytes each, and 9 of
# the host's.
HELD = {"cuda": 2**24}
FEW_DOCUMENTS = 10  # below, each one counts much
# stands for the held-out documents when nothing is scored on them
NONE = {"tokens": (), "doc_starts": (), "fingerprint_documents": None, "fingerprint_tokens": None}


def count_tokens(val: dict, args) -> int:
    """How many tokens evaluate() reads."""
    if not len(val["tokens"]):
        return 0
    return sum(int(data_order.val_rows(val, args.seq_len, view, bos_id())[1].sum()) for view in VIEWS)


def warnings(val: dict, asked: int, condition: str | None) -> list[str]:
    """What a reader of the val loss should know of its documents, a sentence each. asked: --val_tokens; condition: of
    the data that is trained on."""
    n, plain, sentences = len(val["doc_starts"]), val.get("plain_tokens", asked), []
    held_out = units.count(n, "held-out document")
    if plain < asked / 2 and val["next_document"]:
        sentences.append(f"the val loss is of {plain:,} tokens of {held_out}, as the next one does not fit into "
                         f"--val_tokens {asked:,}: pass {plain + val['next_document']:,} to have it.")
    elif 0 < n < FEW_DOCUMENTS:
        sentences.append(f"the val loss is of {held_out} alone, and the bos view of as many beginnings: raise "
                         "--val_tokens, or prepare with a higher --val_fraction.")
    other = val.get("condition")
    if other and condition and other != condition:
        sentences.append(f"--val_data_dir holds {other} tokens, the training data {condition} tokens: the val loss is "
                         "of another tokenisation.")
    return sentences


def rows_per_pass(args, device) -> int:
    """What --eval_batch_size stands for."""
    return args.eval_batch_size or args.micro_batch_size * MORE_ROWS.get(device.type, 1)


def compile_forward(model) -> None:
    """From now on the model's per_token_loss reads with a compiled forward pass: one graph for rows of any number and
    length."""
    compiled = torch.compile(type(model).hidden, fullgraph=True)

    def run(model, idx, write):
        n = len(idx)
        if n == 1:  # for which there would be another graph
            idx = idx.repeat(2, 1)
        positions = torch.arange(idx.size(1), device=idx.device)  # a slice as long as its table is a special case
        for tensor, dim in ((idx, 0), (idx, 1), (positions, 0)):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return compiled(model, idx, positions=positions, write=write)[:n]

    model.eval_hidden = run


@kernels.for_many_shapes()
def warm_up(model, args, autocast) -> float:
    """Compiles the forward pass of the evaluations that a run will make. Returns the seconds of the first one."""
    started, rows, was_training = time.perf_counter(), args.eval_batch_size, model.training
    if not args.eval_every or args.dry_run or model.writes:
        return 0.0
    compile_forward(model)
    if rows == args.seq_len:  # or the graph would be one for as many rows as tokens
        rows += 1
    zeros = torch.zeros(rows, args.seq_len, dtype=torch.int64).to(model.transformer["wte"].weight.device)
    with autocast(), estimate.naming("eval_batch_size", args):
        model.eval().per_token_loss(zeros, zeros, write=False)
    model.train(was_training)
    return time.perf_counter() - started


@torch.no_grad()
@kernels.for_many_shapes()
def evaluate(model, val: dict, args, procs, autocast, stop) -> tuple[dict, dict] | None:
    """Val loss in both views, of a memory also without its writes: (fields for scalars.jsonl, arrays per document);
    None when asked to stop.

    Sums of NLL over all ranks in float64 over exact counts, the same for any world size and batch. Draws no random
    numbers."""
    record, documents = {}, {}
    doc_lengths = np.diff(np.append(val["doc_starts"], len(val["tokens"])))
    doc_of = np.repeat(np.arange(len(doc_lengths)), doc_lengths)  # each token's document
    passes = [(view, suffix, view) for view, suffix in VIEWS.items()]
    if model.writes:
        passes.append(("stream", NO_WRITE, "stream" + NO_WRITE))
    for view, suffix, name_of_arrays in passes:

        def score(x, y, write=suffix != NO_WRITE):
            with autocast():
                return model.per_token_loss(x, y, write=write)

        sums = sum_by_document(score, view, val, doc_of, args, procs, stop)
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


def sum_by_document(score, view: str, val: dict, doc_of, args, procs, stop) -> torch.Tensor:
    """Nats, tokens and bytes of each document in this rank's rows of a view, (3, documents + 1) float64; last column:
    asked to stop. score(x, y): nats (B, T) of y, on the device, which is not waited for until HELD of them are there.
    """
    n_docs, device = len(val["doc_starts"]), procs.device
    batch_size = rows_per_pass(args, device)
    starts, lengths = data_order.val_rows(val, args.seq_len, view, bos_id())
    starts, lengths = (rows[procs.rank :: procs.world_size] for rows in (starts, lengths))
    batches = data_order.val_batches(val, starts, lengths, batch_size, MULTIPLE.get(device.type, 1))
    total = math.ceil(len(starts) / batch_size)
    sums = torch.zeros(3, n_docs + 1, dtype=torch.float64)
    held, n_held = [], 0  # (nats (B, T), which of them count (B, T), their documents), so many nats

    def add(row: int, docs, values) -> None:
        sums[row, :-1] += torch.from_numpy(np.bincount(docs, weights=values, minlength=n_docs))

    def read_held() -> None:
        nats = torch.cat([nll.flatten() for nll, _, _ in held]).cpu().double().numpy()
        for _, scored, docs in held:
            own, nats = nats[: scored.size], nats[scored.size :]
            add(0, docs, own[scored.ravel()])
        held.clear()

    for x, y, where in processes.show_progress(batches, total, f"val loss, {view}", procs):
        if stop.asked:
            sums[0, -1] = 1
            return sums
        nll = score(*(processes.to_device(tokens, device) for tokens in (x, y)))
        scored = y.numpy() != data_order.IGNORE
        at = where[scored]
        docs = doc_of[at]
        add(1, docs, np.ones(len(at)))
        add(2, docs, val["token_bytes"][at])
        held.append((nll, scored, docs))
        n_held += nll.numel()
        if n_held > HELD.get(device.type, 0):
            read_held()
            n_held = 0
    if held:
        read_held()
    return sums
