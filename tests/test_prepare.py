"""prepare_fineweb.py: documents in, dataset folder out. Embedded documents always; real ones when they lie beside."""

import copy
import errno
import gzip
import hashlib
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import forked, sentence_left

import inject_mul
import prepare_bos_rows
import prepare_fineweb
from lab import disk, retries, shards, sources, synthetic, tokenizing
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, get_tokenizer

REPO = Path(__file__).resolve().parents[1]
REAL = REPO.parent / "shared" / "data"
NASTY = [
    "<|endoftext|> is text, and so is <MUL_6_9_54>; but 6*9=54 and 7 × 8 are products.",
    "x", " ", "\n\n\n", "\x00", "a" * 3000, " " * 3000, "3 x 4 = 12.", "6 * 9 = <<6*9=54>>54", "(2*3)",
    "日本語 6×9=54 テキスト", "naïve ﬁ e\u0301 👩‍👩‍👧‍👦 \U00010348", "\ufeffbom", "line\r\n5*5=25\r\n", "1*1", "9*9=81",
    "106*9 3.5*2 2*3*4",
]
TEXTS = [*synthetic.documents(7, 0, 150), *NASTY, *synthetic.documents(7, 150, 300), "word " * 9000]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """TEXTS as a parquet of small row groups: several batches, groups and shards in a few hundred documents."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path, row_group_size=37)
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Many batches in a small corpus, and no second attempts that wait."""
    monkeypatch.setattr(sources, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(retries, "RETRY_WAITS", (0, 0, 0))


def prepare(dataset, out_dir, *flags):
    """Run the script in this process; returns meta.json."""
    datasets = dataset if isinstance(dataset, list) else [dataset]
    argv = ["--dataset", *map(str, datasets), "--out_dir", str(out_dir), "--shard_tokens", "30000"]
    prepare_fineweb.main([*argv, "--val_fraction", "0.1", *map(str, flags)])
    return shards.read_meta(out_dir)


def sentence_of(*args):
    """The one sentence the script leaves with."""
    return sentence_left(prepare, *args)


def files_of(folder):
    """{name: sha256} of everything in a dataset folder that must not depend on how it was made."""
    return {p.name: disk.sha256_file(p) for p in sorted(Path(folder).iterdir()) if p.name != "meta.json"}


def documents_of(folder, split):
    """The ids of each document of a split, BOS cut off."""
    tokens = shards.open_dataset(folder, split)[0]
    ids = tokens.slice(0, tokens.n_tokens)
    assert ids[0] == BOS_ID
    return [piece[1:] for piece in np.split(ids, np.flatnonzero(ids == BOS_ID)[1:])]


def expected_split(texts, val_fraction, cap):
    """The held-out rule written down once more, document by document: (train texts, val texts)."""
    tokenizer = get_tokenizer("tiktoken")
    train, val, tokens, seen = [], [], 0, set()
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        chosen = int.from_bytes(digest[:8], "little") < val_fraction * 2**64
        if chosen and tokens < cap:
            val.append(text)
            seen.add(text)
            tokens += 1 + len(tokenizer.encode(text))
        elif not (chosen and text in seen):
            train.append(text)
    return train, val


# ------------------------------------------------------------------------------------------------------------
# --holdout_by


BOOKS = [f"book {i * i % 23}" for i in range(len(TEXTS))]  # 12 books whose chapters lie apart


def write_books(path, books=BOOKS, texts=TEXTS):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "book": books}), path, row_group_size=37)
        return path
    records = [{"text": text, "book": book} for text, book in zip(texts, books, strict=True)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def chosen_books(fraction):
    digests = {book: hashlib.blake2b(book.encode(), digest_size=16).digest() for book in set(BOOKS)}
    return {book for book, digest in digests.items() if int.from_bytes(digest[:8], "little") < fraction * 2**64}


def texts_of(folder, split):
    return [get_tokenizer().decode(ids.tolist()) for ids in documents_of(folder, split)]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_holdout_by_keeps_whole_books_apart(tmp_path, suffix):
    """Each book is in val or in train, also when the cap is reached within one: the rest of it is dropped."""
    corpus = write_books(tmp_path / f"books{suffix}")
    held_out = chosen_books(0.3)
    assert 2 <= len(held_out) <= 8
    expected = {split: [text for text, book in zip(TEXTS, BOOKS, strict=True) if (book in held_out) == is_val]
                for split, is_val in (("train", False), ("val", True))}
    flags = ["--holdout_by", "book", "--val_fraction", 0.3]
    meta = prepare(corpus, tmp_path / "all", *flags, "--val_shards", 100)
    assert meta["holdout_by"] == "book" and meta["docs_dropped"] == 0
    for split, texts in expected.items():
        assert texts_of(tmp_path / "all", split) == texts
    meta = prepare(corpus, tmp_path / "cap", *flags, "--shard_tokens", 5000, "--num_proc", 3)
    capped = texts_of(tmp_path / "cap", "val")
    assert capped == expected["val"][: len(capped)] and 0 < len(capped) < len(expected["val"])
    assert meta["docs_dropped"] == len(expected["val"]) - len(capped)
    assert texts_of(tmp_path / "cap", "train") == expected["train"]


def test_holdout_by_drops_a_held_out_text_of_another_book(tmp_path):
    texts, books = ["the same chapter " * 9, *TEXTS[:50], "the same chapter " * 9], BOOKS[:52]
    held_out = chosen_books(0.3)
    books[0] = sorted(held_out)[0]
    books[-1] = sorted(set(BOOKS) - held_out)[0]
    corpus = write_books(tmp_path / "books.jsonl", books, texts)
    meta = prepare(corpus, tmp_path / "d", "--holdout_by", "book", "--val_fraction", 0.3)
    assert texts[0] in texts_of(tmp_path / "d", "val")
    assert texts[0] not in texts_of(tmp_path / "d", "train") and meta["docs_dropped"] == 1


def test_holdout_by_refuses_what_has_no_such_column(tmp_path, corpus):
    books = write_books(tmp_path / "books.jsonl", [None, *BOOKS[1:]])
    assert "has no column 'book': pass --holdout_by with one of" in sentence_of(
        corpus, tmp_path / "d", "--holdout_by", "book")
    assert "has no field 'author'" in sentence_of(books, tmp_path / "d", "--holdout_by", "author")
    fault = sentence_of(books, tmp_path / "d", "--holdout_by", "book")
    assert "document 0" in fault and "without a value of --holdout_by" in fault
    text = tmp_path / "a.txt"
    text.write_text("plain text")
    assert "plain text without columns" in sentence_of(text, tmp_path / "d", "--holdout_by", "book")
    assert "--val_shards 0 holds out nothing: drop one of them" in sentence_of(
        books, tmp_path / "d", "--holdout_by", "book", "--val_shards", 0)
    assert "synthetic has no columns" in sentence_of(
        "synthetic", tmp_path / "d", "--max_docs", 9, "--holdout_by", "book")
    assert not (tmp_path / "d").exists()


# ------------------------------------------------------------------------------------------------------------
# what is written


def check_decoding(folder, texts, val_fraction, cap, condition):
    tokenizer, injector = get_tokenizer(), inject_mul.MulExpressionInjector("weak")
    train, val = expected_split(texts, val_fraction, cap)
    for split, expected in (("train", train), ("val", val)):
        got = documents_of(folder, split)
        assert len(got) == len(expected)
        for ids, text in zip(got, expected, strict=True):
            if condition == "baseline":
                assert (ids < BOS_ID).all()
                assert tokenizer.decode_bytes(ids) == text.encode()
            else:
                injected, count = injector.inject(text)
                assert tokenizer.decode_bytes(ids) == injected.encode()
                assert (ids >= FIRST_MUL_ID).sum() == count
                if "<MUL_" not in text:
                    assert injector.expand(tokenizer.decode(ids)) == injector.expand(injected)
                else:  # a literal token in the text is twelve characters, not an id
                    assert count == 0 or (ids >= FIRST_MUL_ID).sum() < injected.count("<MUL_")


@pytest.mark.parametrize("condition", ["baseline", "mul_tokens"])
def test_decoding_gives_every_document_back(corpus, tmp_path, condition):
    """The bytes of the training text: every document byte for byte, or exactly inject(text) with mul tokens."""
    meta = prepare(corpus, tmp_path / "d", "--condition", condition)
    check_decoding(tmp_path / "d", TEXTS, 0.1, 30000, condition)
    account = meta["token_account"]
    assert account["tokens_read"] == sum(v for k, v in account.items() if k != "tokens_read")
    assert account["train_written"] == sum(len(d) + 1 for d in documents_of(tmp_path / "d", "train"))
    assert meta["docs_processed"] == len(TEXTS)
    assert sum(r["utf8_bytes"] for r in meta["data_files"]) == sum(len(t.encode()) for t in TEXTS)
    assert sum(r["documents"] for r in meta["data_files"]) == len(TEXTS)
    counted = sum(inject_mul.MulExpressionInjector("weak").inject(t)[1] for t in expected_split(TEXTS, 0.1, 30000)[0])
    assert meta["mul_tokens_in_train"] == (counted if condition == "mul_tokens" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edu_web", "books"])
@pytest.mark.parametrize("condition", ["baseline", "mul_tokens"])
def test_decoding_real_documents(tmp_path, name, condition, monkeypatch):
    """As above on textbook pages (55 MB) and books (the first 2,000 of 7,707 chapters)."""
    path = REAL / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    monkeypatch.undo()
    stop = 2000 if name == "books" else 100_000
    prepare_fineweb.main(["--dataset", str(path), "--out_dir", str(tmp_path / "d"), "--condition", condition,
                          "--shard_tokens", "3_000_000", "--max_docs", str(stop), "--num_proc", "2"])
    texts = pq.read_table(path, columns=["text"]).column(0).to_pylist()[:stop]
    check_decoding(tmp_path / "d", texts, 0.01, 3_000_000, condition)


def test_same_bytes_for_any_workers_and_backend(corpus, tmp_path):
    """The data of a run may not depend on the machine that prepared it."""
    for condition in ("baseline", "mul_tokens"):
        made = []
        for backend, workers in (("auto", 1), ("tiktoken", 1), ("auto", 2), ("auto", 4), ("tiktoken", 4)):
            out = tmp_path / f"{condition}_{backend}_{workers}"
            meta = prepare(corpus, out, "--condition", condition, "--tokenizer_backend", backend, "--num_proc", workers)
            made.append((files_of(out), meta["fingerprint"], meta["token_account"]))
        assert all(other == made[0] for other in made)
        assert len(made[0][0]) == 5  # three train shards, a val shard and its index


def test_both_conditions_hold_out_the_same_documents(corpus, tmp_path):
    """The val set of two arms: the same documents also where the cap cuts and where --target_tokens stops."""
    for number, flags in enumerate([(), ("--target_tokens", 60000), ("--val_shards", 1, "--shard_tokens", 2000)]):
        hashes, ends = [], []
        for condition in ("baseline", "mul_tokens"):
            out = tmp_path / f"{condition}{number}"
            meta = prepare(corpus, out, "--condition", condition, *flags)
            hashes.append(np.load(out / "val_documents.npz")["hash"].tobytes())
            ends.append((meta["docs_processed"], meta["val_fingerprint_documents"], meta["plain_tokens_in_train"]))
            val = shards.open_val(out, 10**9)
            texts = expected_split(TEXTS[: meta["docs_processed"]], 0.1, meta["shard_tokens"])[1]
            sizes = np.add.reduceat(val["token_bytes"].astype(int), val["doc_starts"])
            assert sizes.tolist() == [len(text.encode()) for text in texts]
        assert hashes[0] == hashes[1] and ends[0] == ends[1]


def test_target_tokens_stops_after_the_document_that_reaches_it(corpus, tmp_path):
    """The size of a dataset: not one document more, whatever the batches."""
    meta = prepare(corpus, tmp_path / "d", "--target_tokens", 40000, "--val_shards", 0)
    lengths = [len(document) + 1 for document in documents_of(tmp_path / "d", "train")]
    assert sum(lengths) >= 40000 > sum(lengths[:-1])
    assert meta["docs_processed"] == len(lengths) and not meta["docs_held_out"]
    assert prepare(corpus, tmp_path / "e", "--max_docs", 33)["docs_processed"] == 33
    message = sentence_of(corpus, tmp_path / "f", "--target_tokens", 10**7)
    assert "10,000,000" in message and not (tmp_path / "f" / "meta.json").exists()


def test_duplicates_of_held_out_documents_never_reach_train(tmp_path):
    """Leakage: after the cap, a copy of a val document is dropped and counted; other selected documents go to train."""
    texts = [*TEXTS, *TEXTS]
    pq.write_table(pa.table({"text": texts}), tmp_path / "twice.parquet")
    meta = prepare(tmp_path / "twice.parquet", tmp_path / "d", "--shard_tokens", 3000)
    check_decoding(tmp_path / "d", texts, 0.1, 3000, "baseline")
    assert meta["docs_dropped"] == meta["docs_held_out"] and meta["token_account"]["dropped"] > 0


@pytest.mark.parametrize("val_fraction, fault", [
    ("1e-9", "none of 1 document was held out"), ("0.999999", "none is left")])
def test_txt_is_spoken_of_where_one_was_read(tmp_path, val_fraction, fault):
    """The owner of a .jsonl was told how a .txt is split into documents."""
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    for name, is_spoken_of in (("a.txt", True), ("a.jsonl", False)):
        sentence = sentence_of(tmp_path / name, tmp_path / "out", "--val_fraction", val_fraction)
        assert fault in sentence and ("a .txt file is one document" in sentence) == is_spoken_of
        assert "raise --val_fraction" not in sentence  # of one document that is held out, nothing is left to train on
        shutil.rmtree(tmp_path / "out")


def test_every_format_gives_the_same_bytes(corpus, tmp_path):
    """The reader of each format: the same documents, so the same shards."""
    expected = prepare(corpus, tmp_path / "parquet")["fingerprint"]
    lines = "".join(json.dumps({"n": i, "text": text}) + "\n" * (1 + i % 2) for i, text in enumerate(TEXTS)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines[:5000]) + gzip.compress(lines[5000:]))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    for kind in (pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        name = tmp_path / f"{str(kind)[:5]}.parquet"
        pq.write_table(pa.table({"text": pa.array(TEXTS).cast(kind)}), name, row_group_size=100, compression="zstd")
    for path in sorted(p for p in tmp_path.iterdir() if p.is_file()):
        assert prepare(path, tmp_path / f"from_{path.name}")["fingerprint"] == expected, path.name
    half = len(TEXTS) // 2
    for name, part in (("b0.parquet", TEXTS[:half]), ("b1.parquet", TEXTS[half:])):
        pq.write_table(pa.table({"text": part}), tmp_path / name)
    meta = prepare(tmp_path / "b?.parquet", tmp_path / "globbed")
    assert meta["fingerprint"] == expected
    digests = [disk.sha256_file(tmp_path / f"b{i}.parquet") for i in (0, 1)]
    assert [f["sha256"] for f in meta["source"]["files"]] == digests
    (tmp_path / "t.txt").write_bytes(TEXTS[0].encode())
    (tmp_path / "u.txt").write_bytes("Zwölf\r\n".encode())
    assert prepare([tmp_path / "t.txt", tmp_path / "u.txt"], tmp_path / "txt", "--val_shards", 0)["docs_processed"] == 2
    assert [bytes(get_tokenizer().decode_bytes(d)) for d in documents_of(tmp_path / "txt", "train")] == [
        TEXTS[0].encode(), "Zwölf\r\n".encode()]


@pytest.mark.parametrize("name", ["c.parquet", "c.jsonl.gz", "synthetic", "two"])
def test_documents_from_any_start(tmp_path, name):
    """Where a resumed run continues: document k is document k whether or not the ones before it were read."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "c.parquet", row_group_size=53)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    shutil.copy(tmp_path / "c.parquet", tmp_path / "d.parquet")
    argv = {"synthetic": ["synthetic", "--max_docs", "310"], "two": [str(tmp_path / "[cd].parquet")]}.get(name)
    args = parse("--dataset", *(argv or [str(tmp_path / name)]), "--out_dir", "unused")
    source = sources.open_source(args)

    def read(start):
        return [(number, utf8.decode()) for first, batch in sources.read_batches(source._replace(counts={}), start)
                for number, utf8 in enumerate(batch, first)]

    expected = read(0)
    assert [number for number, _ in expected] == list(range(len(expected)))
    texts = {"two": TEXTS * 2, "synthetic": list(synthetic.documents(0, 0, 310))}.get(name, TEXTS)
    assert [text for _, text in expected] == texts
    for start in (0, 1, 52, 53, 54, 300, len(expected) - 1, len(expected), len(expected) + 5):
        assert read(start) == expected[start:]


def parse(*argv):
    import argparse

    parser = argparse.ArgumentParser()
    prepare_fineweb.add_shared_arguments(parser)
    return parser.parse_args([str(a) for a in argv])


def test_prefilter_misses_no_product():
    """The rate of mul tokens: the byte search before the injector may not hide a product from it."""
    injector = inject_mul.MulExpressionInjector("weak")
    pieces = ["6*9", "6 × 9", "2 x 3 = 6", "<<7*8=56>>", "é", " ", "\n", "word", "*", "×", "5", "x4", "3× 3"]
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=6))
        if injector.spans(text):
            assert any(sign.search(text.encode()) for sign in tokenizing.SIGNS), text


def test_torch_is_not_needed(tmp_path):
    """Machines that only prepare data need no torch: neither script imports it."""
    code = ("import sys, prepare_bos_rows, prepare_fineweb; flags = '--dataset synthetic --max_docs 300'.split(); "
            "prepare_fineweb.main([*flags, '--out_dir', sys.argv[1]]); "
            "prepare_bos_rows.main([*flags, '--out_dir', sys.argv[2]]); "
            "sys.exit('torch' in sys.modules)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "b")], check=True, cwd=REPO)


def test_empty_intervention_is_announced(tmp_path, capsys):
    """A mul_tokens dataset without a product equals the baseline, and says so."""
    pq.write_table(pa.table({"text": [f"document {i}, no product" for i in range(100)]}), tmp_path / "p.parquet")
    meta = prepare(tmp_path / "p.parquet", tmp_path / "d", "--condition", "mul_tokens", "--inject", "strict")
    assert meta["mul_token_rate"] == 0 and "intervention is absent" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------
# kills


def die_at(operation, argv, signal_number=signal.SIGKILL):
    """Run the script until disk operation number `operation` (write, fsync, rename, unlink), then kill it there."""
    count = 0

    def step(act, *args, half=None):
        nonlocal count
        count += 1
        if count == operation:
            if half is not None and signal_number == signal.SIGKILL:
                half()
            os.kill(os.getpid(), signal_number)
        return act(*args)

    write_all, fsync, replace, unlink = shards._write_all, os.fsync, os.replace, os.unlink
    shards._write_all = lambda f, data: step(write_all, f, data, half=lambda: f.write(data[: len(data) // 2]))
    os.fsync = lambda fd: step(fsync, fd)
    os.replace = lambda a, b: step(replace, a, b)
    os.unlink = lambda *a, **k: step(lambda: unlink(*a, **k))
    prepare_fineweb.main(argv)
    if operation == 0:
        Path(os.environ["COUNT_FILE"]).write_text(str(count))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("workers", [1, 3])
def test_kill_anywhere_and_resume(corpus, tmp_path, monkeypatch, workers):
    """Every byte of a dataset whose making was killed 24 times, at random disk operations and at random moments."""
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(sources, "BATCH_BYTES", 40_000)
    flags = ("--condition", "mul_tokens", "--num_proc", workers)
    whole = prepare(corpus, tmp_path / "whole", *flags)
    draw, kills = random.Random(workers), 0
    for first_operation in range(1, 16) if workers == 1 else draw.sample(range(16, 160), 5):
        out = tmp_path / f"killed{first_operation}"
        argv = ["--dataset", str(corpus), "--out_dir", str(out), "--shard_tokens", "30000", "--val_fraction", "0.1"]
        argv += [*map(str, flags), "--resume"]
        operation = first_operation
        while True:
            if operation:
                pid = forked(lambda a, n=operation: die_at(n, a), argv)
            else:  # a moment in time rather than an operation
                pid = forked(prepare_fineweb.main, argv)
                time.sleep(draw.uniform(0.0, 0.3))
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            kills += 1
            operation = draw.choice((0, draw.randrange(1, 160), draw.randrange(1, 160)))  # 160 operations in all
        meta = shards.read_meta(out)
        assert files_of(out) == files_of(tmp_path / "whole")
        for name in ("fingerprint", "token_account", "mul_token_counts", "docs_processed"):
            assert meta[name] == whole[name]
    assert kills >= 20 or workers > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_commits(corpus, tmp_path, number):
    """Ctrl-C exits with 130, keeps the work of the batch, and --resume ends with the same bytes."""
    prepare(corpus, tmp_path / "whole")
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "d"), "--shard_tokens", "30000"]
    argv += ["--val_fraction", "0.1"]
    status = os.waitpid(forked(lambda a: die_at(25, a, number), argv), 0)[1]
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130
    progress = json.loads((tmp_path / "d" / "progress.json").read_text())
    assert 0 < progress["state"]["documents"] < len(TEXTS)
    assert "--resume" in sentence_of(corpus, tmp_path / "d")
    with pytest.raises(ValueError, match="--resume"):
        shards.open_dataset(tmp_path / "d")
    prepare(corpus, tmp_path / "d", "--resume")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


def test_real_processes_killed(corpus, tmp_path):
    """The same from the outside: python prepare_fineweb.py, SIGKILL after a random time, no process left behind."""
    prepare_fineweb.main(["--dataset", str(corpus), str(corpus), "--out_dir", str(tmp_path / "whole")])
    command = [sys.executable, str(REPO / "prepare_fineweb.py"), "--dataset", str(corpus), str(corpus),
               "--num_proc", "2", "--out_dir", str(tmp_path / "d"), "--resume"]
    draw = random.Random(3)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.5))
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


def test_resume_edges(corpus, tmp_path):
    """--resume on an empty folder starts; on a finished one it says so; with other settings or files it is refused."""
    (tmp_path / "d").mkdir()
    meta = prepare(corpus, tmp_path / "d", "--resume")
    before = files_of(tmp_path / "d")
    assert prepare(corpus, tmp_path / "d", "--resume") == meta and files_of(tmp_path / "d") == before
    assert "val_fraction was 0.1, now 0.2" in sentence_of(corpus, tmp_path / "d", "--resume", "--val_fraction", 0.2)
    assert "already holds a finished dataset" in sentence_of(corpus, tmp_path / "d")
    pq.write_table(pa.table({"text": TEXTS[::-1]}), tmp_path / "other.parquet")
    told = sentence_of(tmp_path / "other.parquet", tmp_path / "d", "--resume")
    size, digest = (tmp_path / "other.parquet").stat().st_size, disk.sha256_file(corpus)[:12]
    assert "source.files[0].name was 'corpus.parquet', now 'other.parquet', " in told and f"now {size}, " in told
    assert f"source.files[0].sha256 was '{digest}...', now '" in told and len(told) < 500 + 2 * len(str(tmp_path))
    assert told.endswith(f"repeat those, choose another --out_dir, or delete {tmp_path / 'd'}.")
    told = sentence_of([corpus, tmp_path / "other.parquet"], tmp_path / "d", "--resume")
    assert "with other settings (source.files had 1, now 2): " in told


@pytest.mark.parametrize("script, flags", [(prepare_fineweb, ()), (prepare_bos_rows, ("--seq_len", "64"))])
def test_a_source_below_its_target_is_not_read_again(corpus, tmp_path, monkeypatch, script, flags):
    """Hours of work on a source that gives a little less than --target_tokens: --resume takes all of it, as if no
    target had been given, and reads no document anew. A target that is passed already is another dataset."""
    argv = ["--dataset", str(corpus), "--shard_tokens", "30000", "--val_fraction", "0.1", *flags, "--out_dir"]
    script.main([*argv, str(tmp_path / "whole")])
    told = sentence_left(script.main, [*argv, str(tmp_path / "d"), "--target_tokens", "9000000"])
    assert "not --target_tokens 9,000,000: pass --resume --target_tokens 0 to take them all, or delete " in told
    monkeypatch.setattr(tokenizing, "tokenize", lambda *_, **__: pytest.fail("a document is read again"))
    again = [*argv, str(tmp_path / "d"), "--resume", "--target_tokens"]
    assert "target_tokens was 9000000, now 9000)" in sentence_left(script.main, [*again, "9000"])
    assert "not --target_tokens 8,000,000" in sentence_left(script.main, [*again, "8000000"])
    script.main([*again, "0"])
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")
    ended, whole = (shards.read_meta(tmp_path / name) for name in ("d", "whole"))
    assert ended["settings"] == whole["settings"] and ended["fingerprint"] == whole["fingerprint"]


def test_a_higher_target_goes_on(corpus, tmp_path, monkeypatch):
    """A prepare that ended before its target was reached, or between it and meta.json, takes a later one."""
    prepare(corpus, tmp_path / "whole", "--target_tokens", 60_000)

    def fail(self, meta):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as m:
        m.setattr(shards.DatasetWriter, "finish", fail)
        sentence_of(corpus, tmp_path / "d", "--target_tokens", 40_000)
    prepare(corpus, tmp_path / "d", "--target_tokens", 60_000, "--resume")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("flags", [("--target_tokens", 40000), ("--max_docs", 100), ()])
def test_resume_after_the_last_document(corpus, tmp_path, monkeypatch, flags):
    """A run that fails between its last document and meta.json may not read one more when it goes on."""
    prepare(corpus, tmp_path / "whole", *flags)

    def fail(self, meta):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as m:
        m.setattr(shards.DatasetWriter, "finish", fail)
        assert "run the same command again with --resume" in sentence_of(corpus, tmp_path / "d", *flags)
    prepare(corpus, tmp_path / "d", *flags, "--resume")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


def test_full_disk(corpus, tmp_path, monkeypatch):
    """No space left: one sentence, no meta.json; with space again, --resume ends with the same bytes."""
    prepare(corpus, tmp_path / "whole")
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    write_all, left = shards._write_all, 12

    def full(f, data):
        nonlocal left
        left -= 1
        if left < 0:
            f.write(data[: len(data) // 3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(f, data)

    with monkeypatch.context() as m:
        m.setattr(shards, "_write_all", full)
        message = sentence_of(corpus, tmp_path / "d")
    assert "No space left" in message and "--resume" in message and not (tmp_path / "d" / "meta.json").exists()
    prepare(corpus, tmp_path / "d", "--resume")
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_file_size_limit(corpus, tmp_path):
    """The same with the kernel's own refusal (RLIMIT_FSIZE, EFBIG) instead of a simulated one."""
    import resource

    def limited(argv):
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        prepare_fineweb.main(argv)

    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "d"), "--shard_tokens", "30000"]
    assert os.WEXITSTATUS(os.waitpid(forked(limited, argv), 0)[1]) == 1
    assert not (tmp_path / "d" / "meta.json").exists()


@pytest.mark.parametrize("code, words", [
    (errno.ENOSPC, "(No space left on device): free space"), (errno.EFBIG, "(File too large): allow larger files"),
    (errno.EACCES, "(Permission denied): give this user access to it"),
    (errno.EIO, "(Input/output error): repair what is named there")])
@pytest.mark.parametrize("main", [prepare_fineweb.main, prepare_bos_rows.main])
def test_resume_is_advised_where_there_is_something(corpus, tmp_path, monkeypatch, main, code, words):
    """A first write that fails leaves nothing, so the same command begins anew; after a commit, --resume goes on. Space
    is asked for where it is missing alone."""
    out, write_all, left = tmp_path / "d", shards._write_all, 0
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)

    def fail(f, data):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(code, os.strerror(code))
        write_all(f, data)

    def sentence(writes):
        nonlocal left
        left = writes
        argv = ["--dataset", str(corpus), "--out_dir", str(out), "--val_fraction", "0.1", "--buffer_docs", "20"]
        with monkeypatch.context() as m:
            m.setattr(shards, "_write_all", fail)
            return sentence_left(main, argv[: len(argv) - 2 * (main is prepare_fineweb.main)])

    told = sentence(4)
    assert words in told and told.endswith("then run the same command again.") and not out.exists()
    told = sentence(30)
    assert words in told and told.endswith("again with --resume.") and (out / "progress.json").exists()


def test_a_source_that_fails_is_named(corpus, tmp_path, monkeypatch):
    """Not the output's folder, which is in order."""
    def fail(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/private/corpus")

    monkeypatch.setattr(prepare_fineweb, "open_batches", fail)
    assert sentence_of(corpus, tmp_path / "d") == (
        "/private/corpus cannot be used (Permission denied): give this user access to it, then run the same command "
        "again.")


def test_ctrl_c_before_anything_is_written(corpus, tmp_path, monkeypatch):
    """Nothing is there that --resume could continue."""
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_fineweb, "open_batches", stop)
    with pytest.raises(KeyboardInterrupt, match=r"before anything was written; to begin .*d, run it again\.$"):
        prepare(corpus, tmp_path / "d")


def test_a_bad_document_behind_good_ones(tmp_path, monkeypatch):
    """Its repaired file is another one, which --resume refuses: both remedies are those that are then accepted."""
    path, out = tmp_path / "texts.jsonl", tmp_path / "d"
    lines = [json.dumps({"text": text}) + "\n" for text in synthetic.documents(7, 0, 300)]
    path.write_text("".join([*lines, '{"text": ""}\n']))
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    told = sentence_of(path, out)
    assert told.endswith(f": repair it and delete {out}, or pass --bad_documents skip --resume.")
    assert prepare(path, out, "--bad_documents", "skip", "--resume")["docs_processed"] == 301
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 1e9)  # nothing is committed, and nothing stays
    told = sentence_of(path, tmp_path / "e", "--shard_tokens", 10**6)
    assert told.endswith(": repair it, or pass --bad_documents skip.")
    assert not (tmp_path / "e").exists()


# ------------------------------------------------------------------------------------------------------------
# other processes, other people's files, other clocks


def contents(folder):
    """{name: bytes} of everything in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("operation", [8, 40])
def test_second_prepare_says_who_holds_the_folder(corpus, tmp_path, operation):
    """Every byte of a dataset beside whose making another was begun, fresh and with --resume."""
    prepare(corpus, tmp_path / "whole")
    out = tmp_path / "d"
    argv = ["--dataset", str(corpus), "--out_dir", str(out), "--shard_tokens", "30000", "--val_fraction", "0.1"]
    pid = forked(lambda a: die_at(operation, a, signal.SIGSTOP), argv)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    before = contents(out)
    for flags in ((), ("--resume",)):
        message = sentence_of(corpus, out, *flags)
        assert re.fullmatch(rf"{out} is held by process {pid} on \S+ since 20.*: wait until .*", message), message
        assert contents(out) == before
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_locks_of_the_dead_of_others_and_of_strangers(corpus, tmp_path):
    """A dead process of this host holds nothing; one of another host does; a link or a stranger's file is no lock."""
    out, lock, aim = tmp_path / "d", tmp_path / "d" / ".lock", tmp_path / "precious"
    out.mkdir()
    aim.write_text("precious")
    holder = {"pid": 2**22 + 1, "host": "elsewhere", "since": "2026-11-26 12:00:00"}
    lock.write_text(json.dumps(holder))
    message = sentence_of(corpus, out)
    assert f"held by process {2**22 + 1} on elsewhere since 2026-11-26 12:00:00" in message and str(lock) in message
    for text in ("my own notes", "[]", '{"pid": 1}', "[" * 4000, "\xff"):
        lock.write_text(text, encoding="latin-1")
        assert "was not written by this lab" in sentence_of(corpus, out)
        assert lock.read_text(encoding="latin-1") == text
    lock.unlink()
    for plant in (lock.symlink_to, lock.hardlink_to):
        plant(aim)
        assert str(lock) in sentence_of(corpus, out)
        assert aim.read_text() == "precious" and os.listdir(out) == [".lock"]
        lock.unlink()
    os.mkfifo(lock)
    assert "was not written by this lab" in sentence_of(corpus, out)
    lock.unlink()
    for words in (json.dumps({**holder, "host": platform.node()}), ""):
        lock.write_text(words)
        prepare(corpus, out, "--resume")
        assert not lock.exists()


def test_only_a_new_an_empty_or_an_own_folder(corpus, tmp_path):
    """Other people's files: a folder that holds some is refused as it is, --resume or not; an empty one stays."""
    for name in ("notes.partial", "decontamination.jsonl", "val_documents.npz", "README.md", "packer_buffer_1.tmp"):
        out = tmp_path / name / "d"
        out.mkdir(parents=True)
        (out / name).write_text("mine")
        for flags in ((), ("--resume",)):
            assert f"holds {name} of something else" in sentence_of(corpus, out, *flags)
            assert contents(out) == {name: b"mine"}
    (tmp_path / "empty").mkdir()
    sentence_of(corpus, tmp_path / "empty", "--target_tokens", 10**7)
    assert (tmp_path / "empty").is_dir()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_resume_deletes_only_what_prepare_made(corpus, tmp_path):
    """Other people's files beside an unfinished dataset, with names much like ours, are there when it is finished."""
    prepare(corpus, tmp_path / "whole")
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "d"), "--shard_tokens", "30000"]
    argv += ["--val_fraction", "0.1"]
    assert os.WIFSIGNALED(os.waitpid(forked(lambda a: die_at(40, a), argv), 0)[1])
    strange = ["notes.partial", "train_notes.bin", "val_x.partial", "my.jsonl.partial", "x_train_000000.bin.partial"]
    for name in strange:
        (tmp_path / "d" / name).write_text("mine")
    for _ in range(2):  # the second time it is finished already
        prepare(corpus, tmp_path / "d", "--resume")
        assert all((tmp_path / "d" / name).read_text() == "mine" for name in strange)
    for name in strange:
        (tmp_path / "d" / name).unlink()
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("day", [0, 86_400, -86_400])
def test_clock_that_stands_still_or_jumps(corpus, tmp_path, monkeypatch, day):
    """elapsed_seconds, tokens per second and the time between two commits do not come from the clock on the wall."""
    now, pauses, due = [1e9], [], shards.DatasetWriter.commit_is_due

    def clock():
        now[0] += day
        return now[0]

    def spy(self, seconds):
        pauses.append(seconds)
        return due(self, 0)

    with monkeypatch.context() as m:
        m.setattr(time, "time", clock)
        m.setattr(shards.DatasetWriter, "commit_is_due", spy)
        meta = prepare(corpus, tmp_path / "d")
    assert 0 < meta["elapsed_seconds"] < 600 and meta["throughput_tokens_per_sec"] > 0
    assert pauses and 0 < max(pauses) < 3600
    with monkeypatch.context() as m:
        m.setattr(time, "monotonic", lambda: 7.0)
        assert prepare(corpus, tmp_path / "still")["elapsed_seconds"] == 0.001


def mutations(value):
    """Other values for every part of a JSON value, with its place: wrong types, negative, huge, missing."""
    for wrong in (None, True, -1, 1.5, 10**30, "x", [], {}, [[]], {"a": {}}):
        if type(wrong) is not type(value) or wrong != value:
            yield "", wrong
    parts = {}
    if isinstance(value, dict):
        parts = value
    if isinstance(value, list):
        parts = dict(enumerate(value[:2]))
    for key, part in parts.items():
        rest = copy.copy(value)
        del rest[key]
        yield f".{key} is missing", rest
        for place, wrong in mutations(part):
            changed = copy.copy(value)
            changed[key] = wrong
            yield f".{key}{place}", changed


def test_finished_folder_with_a_damaged_meta(corpus, tmp_path):
    """--resume on a finished dataset, whatever its meta.json holds: one sentence with the file, or the summary."""
    prepare(corpus, tmp_path / "d", "--max_docs", 40)
    path = tmp_path / "d" / "meta.json"
    meta = json.loads(path.read_text())
    fields = {*prepare_fineweb.SUMMARY, *(key.rstrip("?") for key in shards.META)}
    fields -= {"decontamination?"}
    refused = 0
    for name in sorted(fields & {*meta}):
        for place, wrong in mutations(meta[name]):
            path.write_text(json.dumps({**meta, name: wrong}))
            try:
                prepare(corpus, tmp_path / "d", "--max_docs", 40, "--resume")
            except (ValueError, OSError) as stopped:
                message = str(stopped)
                assert str(path) in message or "with other settings" in message, (name, place, message)
                assert len(message.splitlines()) == 1
                refused += 1
    assert refused > 300


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_resume_from_a_damaged_progress(corpus, tmp_path, monkeypatch):
    """--resume from a progress.json of any other shape: one sentence, or the same bytes as without the damage."""
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "d"), "--shard_tokens", "30000"]
    argv += ["--val_fraction", "0.1", "--max_docs", "100"]
    prepare(corpus, tmp_path / "whole", "--max_docs", 100)
    assert os.WIFSIGNALED(os.waitpid(forked(lambda a: die_at(40, a), argv), 0)[1])
    saved = contents(tmp_path / "d")
    progress = json.loads(saved["progress.json"])
    refused = 0
    for place, wrong in itertools.islice(mutations(progress), 0, None, 3):
        for path in (tmp_path / "d").iterdir():
            path.unlink()
        for name, data in saved.items():
            (tmp_path / "d" / name).write_bytes(data)
        (tmp_path / "d" / "progress.json").write_text(json.dumps(wrong))
        try:
            prepare(corpus, tmp_path / "d", "--max_docs", 100, "--resume")
        except (ValueError, OSError) as stopped:
            message = str(stopped)
            assert len(message.splitlines()) == 1 and str(tmp_path / "d") in message, (place, message)
            refused += 1
        else:
            assert files_of(tmp_path / "d") == files_of(tmp_path / "whole"), place
    assert refused > 50
    progress["files"][0]["documents"] += 1  # of the right shape
    (tmp_path / "d" / "progress.json").write_text(json.dumps(progress))
    assert "progress.json is damaged or another version's" in sentence_of(corpus, tmp_path / "d", "--resume")


# ------------------------------------------------------------------------------------------------------------
# bad input


def bad_inputs(folder):
    """{name: (dataset, flags, what the sentence must hold)}"""
    good = folder / "good.parquet"
    pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), good)
    data = good.read_bytes()
    (folder / "short.parquet").write_bytes(data[: len(data) // 2])
    (folder / "broken.parquet").write_bytes(data[:2000] + b"\xff" * 5000 + data[7000:])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "none.parquet")
    (folder / "none.jsonl").write_bytes(b"\n\n")
    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode()
    packed = gzip.compress(lines), zstandard.compress(lines)
    (folder / "short.jsonl.gz").write_bytes(packed[0][: len(packed[0]) // 2])
    (folder / "short.jsonl.zst").write_bytes(packed[1][: len(packed[1]) // 2])
    (folder / "not.jsonl.gz").write_bytes(lines)
    (folder / "line.jsonl").write_bytes(lines[:50_000].rsplit(b"\n", 1)[0] + b'\n{"text": "cut of\n' + lines)
    (folder / "list.jsonl").write_bytes(b"[1, 2]\n")
    (folder / "other.jsonl").write_bytes(b'{"body": "a", "title": "b"}\n')
    (folder / "empty.jsonl").write_bytes(b'{"text": "a"}\n{"text": ""}\n')
    (folder / "surrogate.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\\ud800"}\n')
    (folder / "latin1.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b"}\n{"text": "caf\xe9"}\n')
    (folder / "number.jsonl").write_bytes(b'{"text": "a"}\n{"text": 5}\n')
    (folder / "latin1.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_bytes(b"")
    pq.write_table(pa.table({"text": pa.array([b"a", b"caf\xe9"], pa.binary())}), folder / "latin1.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), folder / "null.parquet")
    (folder / "data.csv").write_text("text\na\n")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "train.bin").write_bytes(b"12")
    (folder / "file").write_text("")
    (folder / "folder").mkdir()
    return {
        "missing": ("missing.parquet", (), "no such file or glob"),
        "missing glob": ("nothing*.jsonl", (), "no such file or glob"),
        "column": ("good.parquet", ("--text_field", "body"), "one of text, n"),
        "column of numbers": ("good.parquet", ("--text_field", "n"), "holds int64, not text"),
        "field": ("other.jsonl", (), "it has body, title"),
        "no object": ("list.jsonl", (), "line 1 of"),
        "truncated parquet": ("short.parquet", (), "damaged or cut off"),
        "damaged parquet": ("broken.parquet", (), "damaged or cut off"),
        "truncated gzip": ("short.jsonl.gz", (), "damaged or cut off"),
        "truncated zstd": ("short.jsonl.zst", (), "damaged or cut off"),
        "not gzip": ("not.jsonl.gz", (), "damaged or cut off"),
        "no rows": ("none.parquet", (), "holds no documents"),
        "no lines": ("none.jsonl", (), "holds no documents"),
        "broken line": ("line.jsonl", (), r"line \d+ of .* is not JSON"),
        "empty document": ("empty.jsonl", (), "document 1 .* is empty.*--bad_documents skip"),
        "empty file": ("empty.txt", (), "document 0 .* is empty"),
        "lone surrogate": ("surrogate.jsonl", (), "document 1 .* not valid UTF-8"),
        "latin1 line": ("latin1.jsonl", (), "document 2 .* not valid UTF-8"),
        "latin1 parquet": ("latin1.parquet", (), "document 1 .* not valid UTF-8"),
        "latin1 file": ("latin1.txt", (), "document 0 .* not valid UTF-8"),
        "no text": ("number.jsonl", (), "document 1 .* is not text"),
        "null": ("null.parquet", (), "document 1 .* is not text"),
        "unknown suffix": ("data.csv", (), "is none of .parquet"),
        "empty folder": ("folder", (), "holds no data files"),
        "occupied": ("good.parquet", ("--out_dir", folder / "occupied"), "train.bin of something else"),
        "not writable": ("good.parquet", ("--out_dir", folder / "file" / "d"), "not writable"),
        "num_proc": ("good.parquet", ("--num_proc", 0), "--num_proc must be 1 or more"),
        "shard_tokens": ("good.parquet", ("--shard_tokens", 1), "--shard_tokens must be 2 or more"),
        "val_fraction": ("good.parquet", ("--val_fraction", 1), "--val_fraction must lie between 0 and 1"),
        "val_fraction nan": ("good.parquet", ("--val_fraction", "nan"), "--val_fraction must lie between 0 and 1"),
        "max_docs": ("good.parquet", ("--max_docs", -1), "--max_docs must be 0 or more"),
        "no val": ("good.parquet", ("--val_fraction", 1e-9), "raise --val_fraction"),
        "all val": ("latin1.jsonl", ("--val_fraction", 0.9999, "--bad_documents", "skip"), "lower --val_fraction"),
        "inject alone": ("good.parquet", ("--inject", "weak"), "--condition mul_tokens"),
        "endless": ("synthetic", (), "--max_docs or --target_tokens"),
    }


def test_bad_input_is_one_sentence(tmp_path):
    """Each fault stops with one sentence naming it, and leaves nothing that could pass for a dataset."""
    for number, (name, (dataset, flags, expected)) in enumerate(bad_inputs(tmp_path).items()):
        out = tmp_path / f"out{number}"
        message = sentence_of(dataset if dataset == "synthetic" else tmp_path / dataset, out, *flags)
        assert re.search(expected, message), (name, message)
        assert not (out / "meta.json").exists()
        if name not in ("no val", "all val"):  # these read everything before they know
            assert not out.exists(), (name, list(out.iterdir()))


def test_bad_documents_can_be_skipped(tmp_path):
    """docs_dropped: what is skipped is counted, the rest is kept byte for byte."""
    pq.write_table(pa.table({"text": ["one", None, "two", "", "three"]}), tmp_path / "p.parquet")
    meta = prepare(tmp_path / "p.parquet", tmp_path / "d", "--bad_documents", "skip", "--val_shards", 0)
    texts = [get_tokenizer().decode(d) for d in documents_of(tmp_path / "d", "train")]
    assert texts == ["one", "two", "three"] and (meta["docs_processed"], meta["docs_dropped"]) == (5, 2)


def test_flags_that_do_not_exist(tmp_path):
    """argparse's own refusals: exit status 2."""
    for flags in (("--nonsense", 1), ("--condition", "no"), ("--tokenizer_backend", "hf")):
        with pytest.raises(SystemExit) as stopped:
            prepare("synthetic", tmp_path / "d", "--max_docs", 5, *flags)
        assert stopped.value.code == 2
    with pytest.raises(FileNotFoundError, match="--tokenizer llama: there is no llama: name .*, or gpt2"):
        prepare("synthetic", tmp_path / "d", "--max_docs", 5, "--tokenizer", "llama")
    assert not (tmp_path / "d").exists()


def test_account_that_does_not_close_is_never_finished(corpus, tmp_path, monkeypatch):
    """read = written + held out + cropped + dropped: a document lost on the way to the shards stops the run."""
    write = shards.DatasetWriter.write

    def lossy(self, split, ids, lengths, utf8_bytes):
        write(self, split, ids[: -int(lengths[-1])], lengths[:-1], utf8_bytes[:-1])

    monkeypatch.setattr(shards.DatasetWriter, "write", lossy)
    assert "account does not close" in sentence_of(corpus, tmp_path / "d")
    assert not (tmp_path / "d" / "meta.json").exists()


# ------------------------------------------------------------------------------------------------------------
# the hub


def fake_hub(monkeypatch, folder, failures):
    """The hub's code path on local files: `failures` is popped once per opened file: None, or an exception
    and after how many reads it comes."""
    import huggingface_hub

    resolve = sources._resolve_with_datasets
    local = lambda name, config, split, revision: resolve(str(folder), None, split, None)
    monkeypatch.setattr(sources, "_resolve_with_datasets", local)

    class Info:
        sha = "0123abc"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision, timeout: Info)
    opened = sources._open_file

    def open_file(source, path):
        f = opened(source, path)
        failure = failures.pop(0) if failures else None
        return Failing(f, *failure) if failure else f

    monkeypatch.setattr(sources, "_open_file", open_file)


class Failing:
    """A file whose body breaks off in the middle."""

    def __init__(self, f, error, after):
        self.f, self.error, self.after, self.reads = f, error, after, 0

    def __getattr__(self, name):
        return getattr(self.f, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.f.close()

    def read(self, *args):
        self.reads += 1
        if self.reads > self.after:
            raise self.error
        return self.f.read(*args)


@pytest.fixture
def hub_folder(tmp_path):
    (tmp_path / "hub").mkdir()
    for i in range(2):
        part = TEXTS[i::2]
        pq.write_table(pa.table({"text": part}), tmp_path / "hub" / f"train-{i}.parquet", row_group_size=20)
    return tmp_path / "hub"


def test_hub_survives_network_errors(hub_folder, tmp_path, monkeypatch):
    """A stream that breaks off is continued at the next document: same bytes as without; the revision is recorded."""
    expected = prepare(hub_folder / "*.parquet", tmp_path / "local")["fingerprint"]
    errors = [None, (ConnectionResetError("reset"), 5), (TimeoutError("slow"), 0), (OSError("short"), 3), None,
              (ConnectionError("gone"), 0)]
    fake_hub(monkeypatch, hub_folder, errors)
    meta = prepare("someone/corpus", tmp_path / "d", "--num_proc", 2)
    assert meta["fingerprint"] == expected and not errors
    assert meta["source"]["revision"] == "0123abc" and len(meta["source"]["files"]) == 2


def test_hub_errors_are_fatal_in_the_end(hub_folder, tmp_path, monkeypatch):
    """A swallowed streaming error made a "10B-token" dataset of 1.07B: here it ends the run, and --resume goes on."""
    expected = prepare(hub_folder / "*.parquet", tmp_path / "local")["fingerprint"]
    fake_hub(monkeypatch, hub_folder, [None, None, *[(ConnectionError("gone"), 0)] * 4])
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    message = sentence_of("someone/corpus", tmp_path / "d")
    assert "4 times in a row (ConnectionError: gone)" in message and not (tmp_path / "d" / "meta.json").exists()
    assert "with other settings" in sentence_of(hub_folder / "*.parquet", tmp_path / "d", "--resume")
    assert prepare("someone/corpus", tmp_path / "d", "--resume")["fingerprint"] == expected


def test_hub_refusals_are_not_retried(hub_folder, tmp_path, monkeypatch):
    """404 and 401 do not pass by waiting; a split that does not exist lists those that do."""
    class Response:
        status_code = 404

    refused = OSError("no such dataset")
    refused.response = Response
    assert not retries.may_pass(refused)
    Response.status_code = 503
    assert retries.may_pass(refused)
    try:
        raise RuntimeError("wrapped") from ConnectionError("gone")
    except RuntimeError as error:
        assert retries.may_pass(error)
    assert not retries.may_pass(KeyError("text"))
    fake_hub(monkeypatch, hub_folder, [])
    assert "one of train" in sentence_of("someone/corpus", tmp_path / "d", "--split", "test")


def test_folder_is_its_files(hub_folder, tmp_path):
    """A folder's name stands for what a glob of its files does."""
    expected = prepare(hub_folder / "*.parquet", tmp_path / "files")["fingerprint"]
    assert prepare(hub_folder, tmp_path / "folder")["fingerprint"] == expected


def test_no_network_is_one_sentence(tmp_path):
    """Offline, a hub name fails at once and says what to do."""
    run = subprocess.run([sys.executable, str(REPO / "prepare_fineweb.py"), "--out_dir", str(tmp_path / "d")],
                         env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert run.returncode == 1 and "give local files" in run.stderr and len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "d").exists()


# ------------------------------------------------------------------------------------------------------------
# memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak memory: 240 MB of text in one row group may need at most 150 MB more than 24 MB of it, and 1.5 GB never."""
    if sys.platform != "linux":
        pytest.skip("the peak is read from /proc")
    draw = np.random.default_rng(0)
    words = np.array([text for text in " ".join(TEXTS[:100]).split()])
    texts = [" ".join(draw.choice(words, 4000)) for _ in range(100)]
    peaks = []
    for copies in (12, 120):
        path = tmp_path / f"{copies}.parquet"
        table = pa.concat_tables([pa.table({"text": texts})] * copies)
        pq.write_table(table, path, row_group_size=10**9, use_dictionary=False)
        # not ru_maxrss: a child inherits the size its parent, here pytest, had when it forked
        code = ("import re, sys, prepare_fineweb; prepare_fineweb.main(sys.argv[1:]); "
                "print('PEAK', int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)")
        run = subprocess.run([sys.executable, "-c", code, "--dataset", str(path), "--num_proc", "4", "--val_shards=0",
                              "--out_dir", str(tmp_path / f"o{copies}")], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout.split("PEAK")[1]))
    assert peaks[1] < 1500 and peaks[1] - peaks[0] < 150, peaks
