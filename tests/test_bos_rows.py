"""prepare_bos_rows.py: rows equal to a plain linear scan, the account and report behind them, kills, and the loader."""

import argparse
import io
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import forked, sentence_left

import prepare_bos_rows
import prepare_fineweb
import train_gpt
from lab import data_order, disk, runs, shards, sources, synthetic
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, get_tokenizer

REPO = Path(__file__).resolve().parents[1]
REAL = REPO.parent / "shared" / "data"
OVERFLOWS = ("crop", "split", "requeue")
TEXTS = [  # short ones, and every seventh several rows long
    "".join(synthetic.documents(3, 9 * i, 9 * i + 8)) if i % 7 == 3 else synthetic.document(3, 9 * i)
    for i in range(400)
] + ["6*9=54 and 7 × 8 are products. " * 60, "x", " "]


# ------------------------------------------------------------------------------------------------------------
# the reference


def linear_scan(documents, row_tokens, buffer_docs, overflow, refill=1):
    """The algorithm in plain words: (rows, per row (documents, tokens cropped, too long, in the buffer), tail)."""
    bos = np.array([BOS_ID])
    source = []
    for document in documents:
        if overflow == "crop":
            source.append(document)
        else:
            source.append(document[:row_tokens])
            for start in range(row_tokens, len(document), row_tokens - 1):
                source.append(np.concatenate([bos, document[start : start + row_tokens - 1]]))
    source.reverse()
    buffer, rows, figures = [], [], []
    row, pieces = [], 0
    while True:
        while source and len(buffer) < buffer_docs:
            buffer += [source.pop() for _ in range(min(refill, len(source)))]
        if not buffer:
            return rows, figures, sum(map(len, row))
        room = row_tokens - sum(map(len, row))
        best = None
        for i, document in enumerate(buffer):
            if len(document) <= room and (best is None or len(document) > len(buffer[best])):
                best = i
        seen = sum(len(document) > row_tokens for document in buffer), len(buffer)
        cropped = 0
        if best is not None:
            row.append(buffer.pop(best))
        else:
            shortest = 0
            for i, document in enumerate(buffer):
                if len(document) < len(buffer[shortest]):
                    shortest = i
            document = buffer.pop(shortest)
            row.append(document[:room])
            if overflow == "requeue":
                buffer.append(np.concatenate([bos, document[room:]]))
            else:
                cropped = len(document) - room
        pieces += 1
        if sum(map(len, row)) == row_tokens:
            rows.append(np.concatenate(row))
            figures.append((pieces, cropped, *seen))
            row, pieces = [], 0


class Collector:
    """Stands in for the writer: keeps what it is given."""

    def __init__(self):
        self.ids, self.lengths = [], []

    def write(self, split, ids, lengths, utf8_bytes):
        assert split == "train" and lengths.sum() == len(ids) and len(lengths) == len(utf8_bytes)
        self.ids.append(ids)
        self.lengths.append(lengths)

    def count_text(self, split, utf8_bytes):
        assert split == "train"


def nanochat_rows(documents, row_tokens, buffer_docs=1000, batch=128):
    """Rows as nanochat's loader makes them, until its documents are used up, in plain words: while fewer than 1,000
    documents wait, a batch of 128 joins them; then the longest that fits, the first of equals; when none fits, the
    beginning of the shortest fills the row."""
    source, waiting, rows, row = iter(documents), [], [], []
    while True:
        while len(waiting) < buffer_docs:
            batch_of_documents = list(itertools.islice(source, batch))
            if not batch_of_documents:
                return rows
            waiting.extend(batch_of_documents)
        room = row_tokens - sum(map(len, row))
        lengths = [len(document) for document in waiting]
        fitting = [n for n in lengths if n <= room]
        chosen = lengths.index(max(fitting, default=min(lengths)))
        row.append(waiting.pop(chosen)[:room])
        if not fitting or max(fitting) == room:
            rows.append(np.concatenate(row))
            row = []


def arguments(out_dir, row_tokens, buffer_docs, overflow, batch_docs=256, refill=1):
    return argparse.Namespace(out_dir=out_dir, seq_len=row_tokens - 1, buffer_docs=buffer_docs, batch_docs=batch_docs,
                              overflow=overflow, shard_rows=0, shard_tokens=10**9, tokenizer_backend="auto",
                              inject=None, refill=refill)


def documents_of(lengths, seed=0):
    """Documents of given lengths: BOS and tokens that tell them apart."""
    draw = np.random.default_rng(seed)
    return [np.concatenate([[BOS_ID], draw.integers(0, 50256, n - 1)]).astype(np.uint16) for n in lengths]


def pack(documents, row_tokens, buffer_docs, overflow, calls=1, batch_docs=256, refill=1):
    """(rows, what RowTrain.finish returns in one dict, or None when there is no row), fed in `calls` portions."""
    train = prepare_bos_rows.RowTrain(arguments(".", row_tokens, buffer_docs, overflow, batch_docs, refill))
    writer = Collector()
    for portion in np.array_split(np.arange(len(documents)), calls):
        if len(portion):
            batch = [documents[i] for i in portion]
            lengths = np.array([len(document) for document in batch])
            train.add(writer, np.concatenate(batch), lengths, lengths)
    try:
        entries, fields = train.finish(writer)
    except ValueError as error:
        assert "less than one row" in str(error) and not writer.ids
        return np.empty((0, row_tokens)), None
    return np.concatenate(writer.ids).reshape(-1, row_tokens), fields | {"account": entries}


def check_rows(documents, row_tokens, buffer_docs, overflow, **how):
    """Rows, account and report of the packer against the reference."""
    expected, figures, tail = linear_scan(documents, row_tokens, buffer_docs, overflow, how.get("refill", 1))
    rows, fields = pack(documents, row_tokens, buffer_docs, overflow, **how)
    assert len(rows) == len(expected)
    if not expected:
        return
    assert np.array_equal(rows, np.stack(expected))
    read, added = sum(map(len, documents)), fields["bos_added_total"]
    cropped = sum(figure[1] for figure in figures)
    assert (fields["rows_written_total"], fields["tokens_cropped_total"]) == (len(rows), cropped)
    assert fields["tokens_dropped_tail"] == tail
    assert read + added == rows.size + cropped + tail
    assert fields["crop_fraction"] == cropped / (cropped + rows.size)
    assert read == rows.size + sum(fields["account"].values())
    assert (rows[:, 0] == BOS_ID).all()
    if overflow == "crop":
        assert added == 0
    if overflow == "requeue":
        assert cropped == 0
    edges = [len(rows) * tenth // 10 for tenth in range(11)]
    parts = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    for part, (a, b) in zip(fields["packing_report"], parts, strict=True):
        documents_in, cut, longer, buffered = np.array(figures[a:b]).sum(0)
        written = (b - a) * row_tokens
        assert (part["first_row"], part["rows"]) == (a, b - a)
        assert part["documents_per_row"] == documents_in / (b - a)
        assert part["crop_fraction"] == cut / (cut + written)
        assert part["buffer_share_longer_than_row"] == longer / buffered
        assert part["mean_document_tokens"] == (cut + written) / documents_in


def adversarial(row, draw):
    """{name: lengths} around a row of `row` tokens."""
    return {
        "all longer": draw.integers(row + 1, 5 * row, 300).tolist(),
        "all equal and longer": [2 * row + 3] * 200,
        "all tiny": draw.integers(1, 4, 1500).tolist(),
        "only BOS": [1] * 500,
        "exactly a row": [row] * 200,
        "row - 1": [row - 1] * 200,
        "row + 1": [row + 1] * 200,
        "row -1, 0, +1": draw.integers(row - 1, row + 2, 400).tolist(),
        "fewer than the buffer": draw.integers(1, 2 * row, 20).tolist(),
        "one giant": [*draw.integers(1, row, 100).tolist(), 60 * row + 7, *draw.integers(1, row, 100).tolist()],
        "only a giant": [50 * row + 1],
        "half a row": [max(1, row // 2)] * 99,
        "one": [row - 1],
        "ties": draw.choice([max(1, row // 3), max(1, row // 2), row - 1, row, row + 1, 3 * row], 600).tolist(),
        "log-normal": np.maximum(1, draw.lognormal(np.log(row / 2), 1.0, 700).astype(int)).tolist(),
        "shrinking": list(range(2 * row, 0, -1)),
        "growing": list(range(1, 2 * row)),
    }


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("row_tokens", [2, 3, 17, 64])
def test_adversarial_lengths(overflow, row_tokens):
    """Every token of every row, the account and the decile report: equal to the linear scan's, ties included."""
    draw = np.random.default_rng(row_tokens)
    for name, lengths in adversarial(row_tokens, draw).items():
        for buffer_docs in (1, 2, 50):
            documents = documents_of(lengths)
            try:
                check_rows(documents, row_tokens, buffer_docs, overflow, calls=int(draw.integers(1, 5)),
                           batch_docs=int(draw.choice([1, 7, 256])))
            except AssertionError as error:
                raise AssertionError(f"{name}, buffer {buffer_docs}") from error


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_random_lengths(overflow):
    """The same over 150 random mixtures of lengths, row sizes and buffers."""
    draw = np.random.default_rng(5)
    for _ in range(150):
        row, n = int(draw.integers(2, 40)), int(draw.integers(1, 120))
        lengths = draw.integers(1, int(draw.integers(2, 4 * row)) + 1, n).tolist()
        check_rows(documents_of(lengths), row, int(draw.integers(1, 60)), overflow, calls=int(draw.integers(1, 4)))


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_refill_in_batches(overflow):
    """Rows, account and report of buffers that are refilled several documents at once, as the linear scan's."""
    draw = np.random.default_rng(6)
    for _ in range(60):
        row, n = int(draw.integers(2, 40)), int(draw.integers(1, 150))
        lengths = draw.integers(1, int(draw.integers(2, 4 * row)) + 1, n).tolist()
        check_rows(documents_of(lengths), row, int(draw.integers(1, 60)), overflow, calls=int(draw.integers(1, 4)),
                   batch_docs=int(draw.choice([1, 7, 256])), refill=int(draw.integers(2, 40)))


def check_nanochat(documents, row_tokens):
    """--refill 128 --buffer_docs 1000 against nanochat's loop, which never empties its buffer; at least one row is
    another than with documents that come one by one."""
    expected = nanochat_rows(documents, row_tokens)
    rows, _ = pack(documents, row_tokens, 1000, "crop", calls=3, refill=128)
    assert len(expected) > 100 and np.array_equal(rows[: len(expected)], np.stack(expected))
    one_by_one, _ = pack(documents, row_tokens, 1000, "crop")
    assert not np.array_equal(one_by_one[: len(expected)], rows[: len(expected)])


def test_rows_of_nanochat():
    """--refill 128: every token of every row that nanochat's own loader makes of the same documents."""
    draw = np.random.default_rng(3)
    check_nanochat(documents_of(np.maximum(1, draw.lognormal(np.log(100), 1.0, 2500).astype(int)).tolist()), 257)
    check_nanochat(documents_of(draw.choice([1, 40, 128, 129, 130, 300], 2500).tolist()), 129)  # ties


@pytest.mark.skipif(not (REAL / "edu_web.parquet").exists(), reason="needs shared/data/edu_web.parquet")
def test_rows_of_nanochat_on_real_documents():
    """The same on the first 2,000 documents of edu_web, at nanochat's row of 2,049 tokens."""
    texts = next(pq.ParquetFile(REAL / "edu_web.parquet").iter_batches(2000, columns=["text"]))["text"].to_pylist()
    tokenizer = get_tokenizer()
    check_nanochat([np.array([BOS_ID, *tokenizer.encode(text)], np.uint16) for text in texts], 2049)


def test_refill_in_the_record(corpus, tmp_path, small_batches):
    """The flag reaches rows and meta.json, and --resume with another one is refused; without it nothing changes."""
    plain = prepare(corpus, tmp_path / "plain")
    assert "refill" not in plain["settings"] and "refill" not in plain
    meta = prepare(corpus, tmp_path / "refill", "--refill", 16)
    assert meta["refill"] == meta["settings"]["refill"] == 16 and meta["fingerprint"] != plain["fingerprint"]
    assert meta["val_fingerprint_tokens"] == plain["val_fingerprint_tokens"]
    assert "refill was 16, now None" in sentence_of(corpus, tmp_path / "refill", "--resume")
    assert "--refill must be 1 or more" in sentence_of(corpus, tmp_path / "none", "--refill", 0)


def test_equal_documents_leave_in_order_of_arrival():
    """Ties: of equal lengths the earliest is placed, also among cut ones, and a requeued rest is the latest."""
    documents = [np.array([BOS_ID, i, i, i], np.uint16) for i in range(8)]
    rows, _ = pack(documents, 8, 4, "crop")
    assert rows[:, 1].tolist() == [0, 2, 4, 6] and rows[:, 5].tolist() == [1, 3, 5, 7]
    rows, fields = pack(documents, 6, 4, "crop")  # a whole one, then two tokens of the next
    assert rows[:, 1].tolist() == [0, 2, 4, 6] and rows[:, 5].tolist() == [1, 3, 5, 7]
    assert fields["tokens_cropped_total"] == 8
    rows, _ = pack(documents, 6, 8, "requeue")  # the rest of document 1 is cut again, then fits behind document 3
    assert rows[:4, 1].tolist() == [0, 2, 3, 4] and rows[:4, 5].tolist() == [1, 1, 1, 5]
    documents = [np.array([BOS_ID] + [i] * n, np.uint16) for i, n in enumerate([3, 4, 3])]
    rows, _ = pack(documents, 6, 3, "requeue")  # document 0 leaves its BOS in row 0 and then waits behind document 2
    assert rows[:, 1].tolist() == [1, 2] and rows[1, 5] == 0


def test_report_keeps_its_sums_when_bins_merge(monkeypatch):
    """The decile report of a long pass: its bins double in width and lose nothing; edges off by at most a bin."""
    documents = documents_of(np.random.default_rng(1).integers(2, 60, 3000).tolist())
    exact = pack(documents, 20, 50, "crop")[1]
    monkeypatch.setattr(prepare_bos_rows, "REPORT_BINS", 40)
    coarse = pack(documents, 20, 50, "crop", calls=4)[1]
    assert exact["crop_fraction"] == coarse["crop_fraction"] and len(coarse["packing_report"]) == 10
    for name, fields in (("exact", exact), ("coarse", coarse)):
        report = fields["packing_report"]
        assert sum(part["rows"] for part in report) == fields["rows_written_total"], name
        total = sum(part["documents_per_row"] * part["rows"] for part in report)
        assert abs(total - sum(p["documents_per_row"] * p["rows"] for p in exact["packing_report"])) < 1e-6
    for a, b in zip(exact["packing_report"], coarse["packing_report"], strict=True):
        assert abs(a["first_row"] - b["first_row"]) <= 128 and abs(a["crop_fraction"] - b["crop_fraction"]) < 0.05


def test_long_documents_clog_only_the_published_algorithm():
    """The flaw: at a log-normal mean of a row, crop's last tenth crops over 3 times what its first does; requeue: 0."""
    draw = np.random.default_rng(0)
    documents = documents_of(np.maximum(2, draw.lognormal(np.log(64) - 0.5, 1.0, 6000).astype(int)).tolist())
    reports = {o: pack(documents, 65, 200, o)[1]["packing_report"] for o in OVERFLOWS}
    crop = [part["crop_fraction"] for part in reports["crop"]]
    longer = [part["buffer_share_longer_than_row"] for part in reports["crop"]]
    assert crop[8] > 3 * crop[0] and longer[8] > 0.99 > 0.8 > longer[0]
    assert max(part["crop_fraction"] for part in reports["split"]) < 0.08
    for o in ("split", "requeue"):
        assert not any(part["buffer_share_longer_than_row"] for part in reports[o])
    assert not any(part["crop_fraction"] for part in reports["requeue"])


# ------------------------------------------------------------------------------------------------------------
# datasets


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=37)
    return path


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 20_000)


SMALL = "--shard_tokens 30000 --val_fraction 0.1".split()


def prepare(dataset, out_dir, *flags, script=prepare_bos_rows):
    """Run a script in this process; returns meta.json."""
    rows = ["--seq_len", "64", "--buffer_docs", "40"] if script is prepare_bos_rows else []
    script.main(["--dataset", str(dataset), "--out_dir", str(out_dir), *SMALL, *rows, *map(str, flags)])
    return shards.read_meta(out_dir)


def sentence_of(*args, **how):
    return sentence_left(prepare, *args, **how)


def files_of(folder):
    """{name: sha256} of everything that must not depend on how it was made."""
    return {p.name: disk.sha256_file(p) for p in sorted(Path(folder).iterdir()) if p.name != "meta.json"}


def val_of(folder):
    return {name: digest for name, digest in files_of(folder).items() if name.startswith("val_")}


def train_documents(folder):
    """The documents of a stream dataset's train split."""
    tokens = shards.open_dataset(folder)[0]
    ids = tokens.slice(0, tokens.n_tokens)
    return np.split(ids, np.flatnonzero(ids == BOS_ID)[1:])


def rows_of(folder):
    files, meta = shards.open_dataset(folder)
    return files.slice(0, files.n_tokens).reshape(-1, meta["row_tokens"])


def check_dataset(dataset, folder, seq_len, buffer_docs, flags=()):
    """Rows on disk against the linear scan over the documents that prepare_fineweb.py writes; val files equal."""
    flags = ["--dataset", *dataset, *flags]
    stream = folder / "stream"
    prepare_fineweb.main([*flags, "--out_dir", str(stream)])
    documents = train_documents(stream)
    for overflow in OVERFLOWS:
        out = folder / f"{overflow}_{seq_len}"
        prepare_bos_rows.main([*flags, "--out_dir", str(out), "--seq_len", str(seq_len), "--overflow", overflow,
                               "--buffer_docs", str(buffer_docs)])
        expected, figures, tail = linear_scan(documents, seq_len + 1, buffer_docs, overflow)
        rows, meta = rows_of(out), shards.read_meta(out)
        assert np.array_equal(rows, np.stack(expected))
        assert meta["tokens_cropped_total"] == sum(figure[1] for figure in figures)
        account = meta["token_account"]
        assert account["tokens_read"] == sum(v for k, v in account.items() if k != "tokens_read")
        assert account["dropped_tail"] == tail and account["train_written"] == rows.size
        assert account["tokens_read"] == shards.read_meta(stream)["token_account"]["tokens_read"]
        assert val_of(out) == val_of(stream)
        shutil.rmtree(out)


def test_synthetic_rows(tmp_path):
    """Rows of the synthetic corpus on disk, in several shards: those of the linear scan; val files those of stream."""
    flags = ["--max_docs", "3000", "--shard_tokens", "50_000"]
    check_dataset(["synthetic"], tmp_path, 128, 200, flags)


@pytest.mark.slow
@pytest.mark.parametrize("name, seq_len, max_docs", [
    ("edu_web", 256, 3000), ("edu_web", 1024, 0), ("books", 1024, 3000)])
def test_real_rows(tmp_path, name, seq_len, max_docs):
    """The same on textbook pages and books, as documents 000 and 001 pack them (buffer 1000)."""
    path = REAL / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    check_dataset([str(path)], tmp_path, seq_len, 1000, ["--shard_tokens", "2_000_000", "--max_docs", str(max_docs)])


def test_meta_has_every_field_of_document_001(corpus, tmp_path):
    """meta.json: the names of document 001, and counts that agree with the files."""
    meta = prepare(corpus, tmp_path / "d", "--shard_rows", 100)
    assert meta["format"] == "bos_row_packed_bestfit" and meta["packing_algo"] == "bestfit_crop"
    assert (meta["seq_len"], meta["row_tokens"], meta["buffer_docs"], meta["batch_docs"]) == (64, 65, 40, 256)
    assert meta["shard_rows"] == 100
    train = [record for record in meta["data_files"] if record["split"] == "train"]
    assert [record["tokens"] for record in train[:-1]] == [6500] * (len(train) - 1) and train[-1]["tokens"] % 65 == 0
    assert meta["rows_written_total"] * 65 == sum(r["tokens"] for r in train) == rows_of(tmp_path / "d").size
    cropped = meta["tokens_cropped_total"]
    assert cropped > 0 and meta["crop_fraction"] == cropped / (cropped + meta["rows_written_total"] * 65)
    rows = rows_of(tmp_path / "d")
    assert sum(record["documents"] for record in train) == (rows == BOS_ID).sum()
    text = get_tokenizer().token_byte_lengths()
    assert sum(record["utf8_bytes"] for record in train) == text[rows].sum()
    stream = {"dataset", "config", "split", "text_field", "tokenizer", "vocab_size", "dtype", "bos_token_id",
              "doc_format", "shard_tokens", "val_shards", "num_shards_total", "tokens_written_total", "docs_processed",
              "elapsed_seconds", "throughput_tokens_per_sec"}
    assert stream <= set(meta) and meta["docs_processed"] == len(TEXTS)
    assert sum(part["rows"] for part in meta["packing_report"]) == meta["rows_written_total"]


def test_report_is_printed(corpus, tmp_path, capsys):
    """The report a user sees: ten tenths, and the crop fraction of meta.json."""
    meta = prepare(corpus, tmp_path / "d")
    lines = capsys.readouterr().out.splitlines()
    assert sum(".." in line and "%" in line for line in lines) == 10
    assert any(f"{meta['crop_fraction']:.2%} of written + cropped" in line for line in lines)


@pytest.mark.parametrize("overflow, warnings", [("crop", 2), ("split", 0), ("requeue", 0)])
def test_a_crop_that_distorts_the_data_ends_with_a_warning(tmp_path, capsys, overflow, warnings):
    """Warnings of a corpus with documents longer than a row: the last words of crop, which lost over 20 % of its tokens
    and reads short documents first; none of the others."""
    draw, words = np.random.default_rng(0), " a big dog ran to the old red barn".split()
    sizes = np.maximum(2, draw.lognormal(np.log(64) - 0.5, 1.0, 2000).astype(int))
    pq.write_table(pa.table({"text": [" ".join(draw.choice(words, n)) for n in sizes]}), tmp_path / "long.parquet")
    meta = prepare(tmp_path / "long.parquet", tmp_path / "d", "--overflow", overflow)
    lines = capsys.readouterr().out.splitlines()
    last = lines[len(lines) - warnings :]
    assert sum(line.startswith("WARNING") for line in lines) == warnings == len(last)
    assert all("--overflow requeue" in line for line in last)
    if overflow == "crop":
        assert meta["crop_fraction"] > 0.2 and f"{meta['crop_fraction']:.1%} of the tokens were cropped" in last[0]
        means = [part["mean_document_tokens"] for part in meta["packing_report"]]
        assert max(means) > 2 * min(means) and f"{max(means):,.0f} in another" in last[1]


def test_bounds_of_the_warnings():
    """20 % and 2x are no warning yet; more is one, which names what is left to try."""
    def warnings(overflow, crop, *means):
        report = [{"mean_document_tokens": mean} for mean in means]
        return prepare_bos_rows.warnings_of({"overflow": overflow, "crop_fraction": crop, "packing_report": report})

    assert warnings("crop", 0.2, 100, 200, 150) == [] == warnings("requeue", 0.0, 100, 200)
    (drift,) = warnings("requeue", 0.0, 100, 201)
    assert "--overflow split" in drift and "201 in another" in drift
    for figures in (("crop", 0.201, 100, 100), ("crop", 0.0, 201, 100), ("split", 0.3, 1, 1)):
        [warning] = warnings(*figures)
        assert "--overflow requeue" in warning and ("--overflow split" in warning) == (figures[0] == "crop")


@pytest.mark.usefixtures("small_batches")
def test_val_files_are_those_of_the_stream(corpus, tmp_path):
    """The val set of every arm: byte for byte prepare_fineweb's, also where the cap cuts and --target_tokens stops."""
    for number, flags in enumerate([(), ("--shard_tokens", 2000), ("--target_tokens", 20000), ("--val_shards", 3,
                                    "--shard_tokens", 1000), ("--condition", "mul_tokens")]):
        stream = prepare(corpus, tmp_path / f"s{number}", *flags, script=prepare_fineweb)
        for overflow in OVERFLOWS if number == 0 else ("requeue",):
            out = tmp_path / f"{overflow}{number}"
            meta = prepare(corpus, out, *flags, "--overflow", overflow, "--shard_rows", 77)
            assert val_of(out) == val_of(tmp_path / f"s{number}") and len(val_of(out)) >= 2
            same = ("val_fingerprint_documents", "val_fingerprint_tokens", "docs_processed", "docs_dropped",
                    "plain_tokens_in_train")
            assert {k: meta[k] for k in same} == {k: stream[k] for k in same}


@pytest.mark.usefixtures("small_batches")
def test_same_bytes_for_any_workers_backend_and_batch(corpus, tmp_path):
    """The rows of a run may not depend on the machine that packed them."""
    for overflow in OVERFLOWS:
        made = []
        for backend, workers, batch in (("auto", 1, 256), ("tiktoken", 1, 256), ("auto", 3, 1), ("tiktoken", 4, 17)):
            out = tmp_path / f"{overflow}_{backend}_{workers}"
            meta = prepare(corpus, out, "--overflow", overflow, "--tokenizer_backend", backend, "--num_proc", workers,
                           "--batch_docs", batch, "--condition", "mul_tokens")
            made.append((files_of(out), meta["fingerprint"], meta["token_account"], meta["packing_report"],
                         meta["mul_token_counts"]))
        assert all(other == made[0] for other in made)


def test_mul_token_rate_is_that_of_the_rows(corpus, tmp_path):
    """mul_token_rate: of the tokens that training sees, not of those that were cropped away."""
    read = prepare(corpus, tmp_path / "s", "--condition", "mul_tokens", script=prepare_fineweb)["mul_tokens_in_train"]
    meta = prepare(corpus, tmp_path / "d", "--condition", "mul_tokens")
    rows = rows_of(tmp_path / "d")
    count = int((rows >= FIRST_MUL_ID).sum())
    assert 0 < count < read and meta["mul_tokens_in_train"] == count == sum(meta["mul_token_counts"].values())
    assert meta["mul_token_rate"] == count / rows.size
    meta = prepare(corpus, tmp_path / "r", "--condition", "mul_tokens", "--overflow", "requeue")
    assert read - 64 <= meta["mul_tokens_in_train"] <= read  # but for the dropped tail


def test_account_that_does_not_close_is_never_finished(corpus, tmp_path, monkeypatch):
    """A token lost between the source and the rows stops the prepare."""
    cut = prepare_bos_rows.RowTrain._cut
    monkeypatch.setattr(prepare_bos_rows.RowTrain, "_cut", lambda self, d, room: (cut(self, d, room)[0], None))
    monkeypatch.setattr(prepare_bos_rows.RowTrain, "bos_added", 0, raising=False)
    documents = prepare_bos_rows.RowTrain._documents
    lossy = lambda self, data, at, lengths: list(documents(self, data, at, lengths))[1:]
    monkeypatch.setattr(prepare_bos_rows.RowTrain, "_documents", lossy)
    assert "account does not close" in sentence_of(corpus, tmp_path / "d")
    assert not (tmp_path / "d" / "meta.json").exists()


# ------------------------------------------------------------------------------------------------------------
# kills


def die_at(operation, argv):
    """Run the script until disk operation number `operation` (write, fsync, rename, unlink), then kill it there."""
    count = 0

    def step(act, *args, half=None):
        nonlocal count
        count += 1
        if count == operation:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*args)

    write_all, fsync, replace, unlink = shards._write_all, os.fsync, os.replace, os.unlink
    shards._write_all = lambda f, data: step(write_all, f, data, half=lambda: f.write(data[: len(data) // 2]))
    os.fsync = lambda fd: step(fsync, fd)
    os.replace = lambda a, b: step(replace, a, b)
    os.unlink = lambda *a, **k: step(lambda: unlink(*a, **k))
    prepare_bos_rows.main(argv)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("overflow, workers", [("crop", 1), ("split", 3), ("requeue", 1)])
def test_kill_anywhere_and_resume(corpus, tmp_path, monkeypatch, overflow, workers):
    """Every byte of rows whose making was killed 20 times, at random disk operations and at random moments."""
    monkeypatch.setattr(sources, "BATCH_BYTES", 20_000)
    flags = ["--overflow", overflow, "--num_proc", workers, "--condition", "mul_tokens"]
    flags += ["--target_tokens", 150_000] if overflow == "crop" else []
    whole = prepare(corpus, tmp_path / "whole", *flags)
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    draw, kills, rounds = random.Random(overflow), 0, 0
    while kills < 20:
        rounds += 1
        out = tmp_path / f"killed{rounds}"
        argv = ["--dataset", str(corpus), "--out_dir", str(out), *SMALL, "--seq_len", "64", "--buffer_docs", "40"]
        argv += [*map(str, flags), "--resume"]
        while True:
            if draw.random() < 0.2:  # a moment in time rather than an operation
                pid = forked(prepare_bos_rows.main, argv)
                time.sleep(draw.uniform(0.0, 0.3))
                os.kill(pid, signal.SIGKILL)
            else:
                operation = draw.randrange(1, 90)
                pid = forked(lambda a, n=operation: die_at(n, a), argv)
            status = os.waitpid(pid, 0)[1]
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            kills += 1
        meta = shards.read_meta(out)
        assert files_of(out) == files_of(tmp_path / "whole")  # and no packer_buffer_*.tmp is left
        same = "fingerprint token_account packing_report crop_fraction mul_token_counts docs_processed".split()
        assert {k: meta[k] for k in same} == {k: whole[k] for k in same}


def test_state_restores_the_buffer_at_any_document(tmp_path):
    """The rows after a restart between any two portions: a new RowTrain made of the state goes on as the old one."""
    draw = np.random.default_rng(2)
    documents = documents_of(draw.choice([3, 9, 16, 17, 18, 40, 200], 500).tolist())
    for overflow, refill in (*((overflow, 1) for overflow in OVERFLOWS), ("crop", 7)):
        expected, fields = pack(documents, 17, 30, overflow, refill=refill)
        folder = tmp_path / f"{overflow}_{refill}"
        folder.mkdir()
        state, writer, largest = {}, Collector(), 0
        for portion in np.array_split(np.arange(len(documents)), 60):
            train = prepare_bos_rows.RowTrain(arguments(str(folder), 17, 30, overflow, refill=refill))
            train.restore(json.loads(json.dumps(state)))
            for half in np.array_split(portion, 2):
                batch = [documents[i] for i in half]
                lengths = np.array([len(document) for document in batch])
                train.add(writer, np.concatenate(batch), lengths, lengths)
                state = train.state()
            assert len(list(folder.glob("packer_buffer_*.tmp"))) <= 2
            unfinished = folder / f"packer_buffer_{state['commits'] + 1:06d}.tmp.tmp"  # what a kill may leave behind
            unfinished.write_bytes(b"garbage")
            largest = max(largest, *(path.stat().st_size for path in folder.glob("packer_buffer_*.tmp")))
        entries, resumed = train.finish(writer)
        assert np.array_equal(np.concatenate(writer.ids).reshape(-1, 17), expected)
        assert resumed | {"account": entries} == fields
        overhead = prepare_bos_rows.REPORT_BINS * 4 * 8 + 10_000  # the report, the names of the arrays
        assert largest < overhead + (29 + refill) * (2 * 17 + 8)  # the file holds no more than one buffer


@pytest.mark.parametrize("overflow, refill", [*((overflow, 1) for overflow in OVERFLOWS), ("crop", 7)])
@pytest.mark.parametrize("shard_rows", [5, 40, 10**6])
def test_a_shard_counts_the_text_of_its_rows(tmp_path, overflow, refill, shard_rows):
    """utf8_bytes of each train shard: its tokens, looked up one by one; also after restarts, with shards that end in
    every call or in none, and with products, which documents write in more bytes than their tokens stand for."""
    draw = np.random.default_rng(shard_rows)
    documents = documents_of(draw.choice([2, 9, 16, 17, 18, 40, 200], 160).tolist())
    for document in documents[80:90]:
        document[1] = FIRST_MUL_ID + 7
    text = get_tokenizer().token_byte_lengths()
    settings = arguments(str(tmp_path), 17, 30, overflow, batch_docs=4, refill=refill)
    settings.shard_rows = shard_rows
    for portion in np.array_split(np.arange(len(documents)), 8):
        writer = shards.DatasetWriter(tmp_path, {}, 10**6, 0, bool(portion[0]), shard_rows * 17)
        train = prepare_bos_rows.RowTrain(settings)
        train.restore(writer.state)
        batch = [documents[i] for i in portion]
        lengths = np.array([len(document) for document in batch])
        is_mul = np.array([bool((document >= FIRST_MUL_ID).any()) for document in batch])
        utf8_bytes = np.array([int(text[document].sum()) for document in batch]) + 3 * is_mul
        train.add(writer, np.concatenate(batch), lengths, utf8_bytes)
        if portion[-1] < len(documents) - 1:
            writer.commit(train.state())
            assert writer.state["text_bytes"] >= 0
    train.finish(writer)
    writer.commit({})
    records = writer.finish({"format": "stream", "vocab_size": 50_304})["data_files"]
    assert len(records) > 20 or shard_rows > 5
    for record in records:
        ids = np.fromfile(tmp_path / record["name"], "<u2")
        assert record["utf8_bytes"] == text[ids].sum(), record["name"]
        assert record["documents"] == (ids == BOS_ID).sum()


def test_resume_refuses_other_rows(corpus, tmp_path, monkeypatch):
    """--resume with another seq_len, overflow or buffer, or without the buffer's file: refused, nothing mixed."""
    monkeypatch.setattr(sources, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "d"), *SMALL]
    argv += ["--seq_len", "64", "--buffer_docs", "40"]
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    assert os.WIFSIGNALED(os.waitpid(forked(lambda a: die_at(30, a), argv), 0)[1])
    assert "--resume" in sentence_of(corpus, tmp_path / "d")
    message = sentence_of(corpus, tmp_path / "d", "--resume", "--seq_len", 32)
    assert "seq_len was 64, now 32" in message
    assert "overflow was 'crop', now 'split'" in sentence_of(corpus, tmp_path / "d", "--resume", "--overflow", "split")
    assert "buffer_docs was 40, now 41" in sentence_of(corpus, tmp_path / "d", "--resume", "--buffer_docs", 41)
    with pytest.raises(ValueError, match="--resume"):
        shards.open_dataset(tmp_path / "d")
    buffers = list((tmp_path / "d").glob("packer_buffer_*.tmp"))
    saved = [path.read_bytes() for path in buffers]
    for path in buffers:
        path.unlink()
    assert "is missing or damaged" in sentence_of(corpus, tmp_path / "d", "--resume")
    for path, data in zip(buffers, saved, strict=True):
        path.write_bytes(data[: len(data) // 2])
    assert "is missing or damaged" in sentence_of(corpus, tmp_path / "d", "--resume")
    for path, data in zip(buffers, saved, strict=True):
        with np.load(io.BytesIO(data)) as arrays:
            np.savez(path.open("wb"), **{**arrays, "tokens": arrays["tokens"][:-1]})
    assert "does not fit progress.json" in sentence_of(corpus, tmp_path / "d", "--resume")
    for path in buffers:
        np.savez(path.open("wb"), lengths=np.arange(3))
    assert "is missing or damaged" in sentence_of(corpus, tmp_path / "d", "--resume")
    for path, data in zip(buffers, saved, strict=True):
        path.write_bytes(data)
    mine = [tmp_path / "d" / name for name in ("packer_buffer_notes.tmp", "packer_buffer_x.tmp.tmp")]
    for path in mine:
        path.write_text("mine")
    prepare(corpus, tmp_path / "d", "--resume", "--batch_docs", 9)  # which changes no row
    for path in mine:  # nor deletes what others put there
        assert path.read_text() == "mine"
        path.unlink()
    prepare(corpus, tmp_path / "whole")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------
# refusals


def test_bad_flags_are_one_sentence(corpus, tmp_path):
    """Each fault stops with one sentence that names the flag, and leaves no dataset."""
    for flags, expected in ((("--seq_len", 0), "--seq_len must be 1 or more"),
                            (("--buffer_docs", 0), "--buffer_docs must be 1 or more"),
                            (("--batch_docs", 0), "--batch_docs must be 1 or more"),
                            (("--shard_rows", -1), "--shard_rows must be 0 or more"),
                            (("--shard_tokens", 60), "less than one row of 65 tokens"),
                            (("--num_proc", 0), "--num_proc must be 1 or more"),
                            (("--seq_len", 10**6, "--shard_rows", 1), "lower --seq_len")):
        assert expected in sentence_of(corpus, tmp_path / "d", *flags)
        assert not (tmp_path / "d" / "meta.json").exists()
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
    for flags in (("--overflow", "wrap"), ("--nonsense", 1)):
        with pytest.raises(SystemExit) as stopped:
            prepare(corpus, tmp_path / "d", *flags)
        assert stopped.value.code == 2


def test_damaged_rows_are_refused(corpus, tmp_path):
    """Rows that would shift every target: another seq_len, no BOS in front, a file that holds half a row."""
    prepare(corpus, tmp_path / "d")
    files, _ = shards.open_dataset(tmp_path / "d")
    for wrong in (63, 65, 128):
        with pytest.raises(ValueError, match=rf"--seq_len 64, not {wrong}: pass --seq_len 64, or run prepare_bos_rows"):
            files.n_sequences(wrong)
    path = tmp_path / "d" / "train_000000.bin"
    data = path.read_bytes()
    path.write_bytes(data[: 65 * 2 * 3] + b"\x05\x00" + data[65 * 2 * 3 + 2 :])
    with pytest.raises(ValueError, match="does not match its checksum"):
        shards.open_dataset(tmp_path / "d")
    with pytest.raises(ValueError, match=r"row 3 of .* does not start with BOS \(50256\): prepare the rows again"):
        shards.open_dataset(tmp_path / "d", verify=False)
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match="truncated or edited"):
        shards.open_dataset(tmp_path / "d", verify=False)
    meta = json.loads((tmp_path / "d" / "meta.json").read_text())
    for changed in ({"row_tokens": 64}, {"row_tokens": None}, {"seq_len": "64"}, {"seq_len": 65, "row_tokens": 66}):
        (tmp_path / "d" / "meta.json").write_text(json.dumps({**meta, **changed}))
        with pytest.raises(ValueError, match=r"meta.json is damaged or edited \((row_tokens|seq_len) is"):
            shards.open_dataset(tmp_path / "d", verify=False)
    next(record for record in meta["data_files"] if record["name"] == path.name)["tokens"] -= 10
    (tmp_path / "d" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="not a multiple of row_tokens 65: prepare the rows again"):
        shards.open_dataset(tmp_path / "d", verify=False)


# ------------------------------------------------------------------------------------------------------------
# training on rows


def test_every_row_once_per_epoch(corpus, tmp_path):
    """Share of rows read exactly once per epoch, over steps that do not divide an epoch: must be 1."""
    prepare(corpus, tmp_path / "d", "--shard_rows", 60)
    files, _ = shards.open_dataset(tmp_path / "d")
    rows, n, per_step = rows_of(tmp_path / "d"), files.n_sequences(64), 7
    assert n == len(rows) and n % per_step and len(files.paths) > 2
    loader = data_order.StepLoader(files, seq_len=64, sequences_per_step=per_step, seed=0, num_workers=0)
    read = np.concatenate([loader.next_step()["tokens"].numpy() for _ in range(2 * n // per_step + 1)])
    for epoch in range(2):
        part = read[epoch * n : (epoch + 1) * n]
        assert np.array_equal(part[np.lexsort(part.T[::-1])], rows[np.lexsort(rows.T[::-1])])


def test_trainer_reads_rows(corpus, tmp_path, monkeypatch):
    """x = row[:-1] and y = row[1:], (B, T), no row twice; what an epoch leaves unread is in the record."""
    prepare(corpus, tmp_path / "d", "--overflow", "split", "--max_docs", 45)
    rows = rows_of(tmp_path / "d")
    assert len(rows) % 16
    seen, forward, out = [], train_gpt.GPT.forward, tmp_path / "run"

    def spy(self, idx, targets=None, **how):
        if self.training and (out / "config.json").exists():  # not while the step's cost is measured
            seen.append((idx.clone(), targets.clone()))
        return forward(self, idx, targets, **how)

    monkeypatch.setattr(train_gpt.GPT, "forward", spy)
    steps = len(rows) // 16
    threads = torch.get_num_threads()
    argv = (f"--data_dir {tmp_path / 'd'} --out_dir {out} --seq_len 64 --micro_batch_size 4 --total_batch_tokens 1024 "
            f"--max_train_steps {steps} --n_layer 1 --n_head 1 --n_embd 16 --eval_every {steps} --val_tokens 2000 "
            "--save_every 0 --device cpu").split()
    assert train_gpt.main([*argv, "--results_csv", ""]) == 0
    torch.set_num_threads(threads)
    assert {x.shape for x, _ in seen} == {y.shape for _, y in seen} == {(4, 64)}
    x, y = (torch.cat(part).numpy() for part in zip(*seen, strict=True))
    assert (x[:, 0] == BOS_ID).all() and np.array_equal(x[:, 1:], y[:, :-1])
    read = Counter(np.append(a, b[-1]).astype(np.uint16).tobytes() for a, b in zip(x, y, strict=True))
    assert len(x) == 16 * steps and not read - Counter(row.tobytes() for row in rows)
    data = runs.read_config(out)["data"]
    assert data["sequences"] == len(rows) and data["unique_tokens"] == 16 * steps * 64
    assert data["epochs"] == 16 * steps / len(rows) < 1 and data["format"] == "bos_row_packed_bestfit"
    assert data["crop_fraction"] == shards.read_meta(tmp_path / "d")["crop_fraction"]
    assert f"{16 * steps * 64:,} unique tokens, {data['epochs']:.3f} epochs" in (out / "log.txt").read_text()
    with pytest.raises(ValueError, match="were packed for --seq_len 64, not 32: pass --seq_len 64"):
        train_gpt.main([*argv, "--results_csv", "", "--seq_len", "32", "--out_dir", str(tmp_path / "other")])
