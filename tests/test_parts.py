"""--part and --merge: the tokens of a corpus made file by file, on any machine and in any order, then one dataset."""

import gzip
import io
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_prepare
from conftest import ENV, REPO, forked, sentence_left, write_jsonl
from test_prepare import REAL, TEXTS

import prepare_bos_rows
import prepare_fineweb
from lab import decontaminate, disk, parts, retries, shards, sources, tokenizing

SMALL = "--shard_tokens 30000 --val_fraction 0.1".split()
ROWS = "--seq_len 64 --buffer_docs 40".split()
OF_THE_MOMENT = {"elapsed_seconds", "throughput_tokens_per_sec"}  # the only fields of meta.json that may differ


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Several batches in each file, and no second attempts that wait."""
    monkeypatch.setattr(sources, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 8_000)  # of two and more
    monkeypatch.setattr(retries, "RETRY_WAITS", (0, 0, 0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Seven files of four kinds: one of a single document, one empty, and one that repeats documents of the first."""
    folder = tmp_path_factory.mktemp("corpus")
    records = lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    pq.write_table(pa.table({"text": TEXTS[:120]}), folder / "a.parquet", row_group_size=37)
    (folder / "b.jsonl").write_bytes(records(TEXTS[120:121]))
    (folder / "c.jsonl").write_bytes(b"")
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(records(TEXTS[121:200])))
    (folder / "e.txt").write_text("<|endoftext|>".join(TEXTS[200:210]), encoding="utf-8")
    (folder / "f.jsonl").write_bytes(records(TEXTS[210:]))
    pq.write_table(pa.table({"text": TEXTS[20:60]}), folder / "g.parquet", row_group_size=37)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A file of GSM8K's form whose questions are documents of the corpus."""
    texts = sorted(TEXTS[:200], key=len)[60:180:20]
    records = [{"question": text, "answer": "So it is.\n#### 3"} for text in texts]
    return write_jsonl(tmp_path_factory.mktemp("benchmark") / "test.jsonl", records)


def run(files, out_dir, *flags, script=prepare_fineweb):
    """Run a script in this process."""
    rows = ROWS if script is prepare_bos_rows else []
    script.main(["--dataset", *map(str, files), "--out_dir", str(out_dir), *SMALL, *rows, *map(str, flags)])


def sentence_of(*args, **how):
    """The one sentence that a script leaves with."""
    return sentence_left(run, *args, **how)


def make_parts(files, out_dir, n, *flags, seed=0):
    """All n shares of the parts, in a shuffled order."""
    for i in random.Random(seed).sample(range(n), n):
        run(files, out_dir, *flags, "--part", f"{i}/{n}")


def content_of(folder):
    """(checksums of all files, meta.json as far as the clock does not decide it)."""
    meta = json.loads((Path(folder) / "meta.json").read_text())
    folder = Path(folder)
    sums = {path.name: disk.sha256_file(path) for path in folder.iterdir() if path.is_file()}
    del sums["meta.json"]
    return sums, {name: value for name, value in meta.items() if name not in OF_THE_MOMENT}


# ----------------------------------------------------------------------------------------------------------------------
# the same bytes


KINDS = {  # name: (script, flags of a part, flags of --merge)
    "stream": (prepare_fineweb, [], []),
    "mul_tokens": (prepare_fineweb, ["--condition", "mul_tokens"], []),
    "target": (prepare_fineweb, [], ["--target_tokens", "40_000"]),
    "max_docs": (prepare_fineweb, ["--max_docs", "230"], []),
    "val cap": (prepare_fineweb, [], ["--shard_tokens", "5000", "--val_shards", "2"]),
    "rows, crop": (prepare_bos_rows, [], []),
    "two workers": (prepare_fineweb, ["--num_proc", "2"], []),
    "strict": (prepare_fineweb, ["--condition", "mul_tokens", "--inject", "strict"], []),
    "rows, requeue": (prepare_bos_rows, [], ["--overflow", "requeue", "--target_tokens", "30_000"]),
    "rows, mul_tokens": (prepare_bos_rows, ["--condition", "mul_tokens"], ["--overflow", "split"]),
}


SHARES = {"two workers": [3], "strict": [3], "rows, requeue": [3], "rows, mul_tokens": [3]}  # of the others 1, 3, 7


@pytest.mark.parametrize("kind", KINDS)
def test_parts_end_as_one_process(corpus, tmp_path, kind):
    """Bytes by which 1, 3 or 7 shares in shuffled order differ from one process: 0, meta.json included."""
    script, of_part, of_merge = KINDS[kind]
    run(corpus, tmp_path / "whole", *of_part, *of_merge, script=script)
    whole = content_of(tmp_path / "whole")
    for n in SHARES.get(kind, [1, 3, 7]):
        out = tmp_path / str(n)
        make_parts(corpus, out, n, *of_part, seed=n)
        assert sorted(path.name for path in out.iterdir()) == ["parts"]
        run(corpus, out, *of_part, *of_merge, "--merge", script=script)
        assert content_of(out) == whole
        shards.open_dataset(out)
        shards.open_val(out, 2000)


def test_decontaminated_parts(corpus, benchmark, tmp_path):
    """The same with documents that are dropped for a benchmark: also the log of them, with its documents' numbers."""
    flags = ["--decontaminate", f"gsm8k={benchmark}"]
    run(corpus, tmp_path / "whole", *flags)
    whole = content_of(tmp_path / "whole")
    assert whole[1]["decontamination"]["documents_dropped"] >= 5
    for n in (1, 3, 7):
        make_parts(corpus, tmp_path / str(n), n, *flags, seed=n)
        run(corpus, tmp_path / str(n), *flags, "--merge")
        assert content_of(tmp_path / str(n)) == whole


def test_grouped_parts(tmp_path):
    """The same with --holdout_by, whose decision is made over a column that no part of tokens holds."""
    files = []
    for i in range(3):
        path = tmp_path / f"{i}.parquet"
        files.append(test_prepare.write_books(path, test_prepare.BOOKS[i::3], TEXTS[i::3]))
    flags = ["--holdout_by", "book", "--val_fraction", "0.3"]
    run(files, tmp_path / "whole", *flags)
    make_parts(files, tmp_path / "d", 2, *flags)
    run(files, tmp_path / "d", *flags, "--merge")
    assert content_of(tmp_path / "d") == content_of(tmp_path / "whole")


def test_parts_without_a_document(corpus, tmp_path):
    """Folders left by a merge of parts that hold no document, or documents that its sentence does not miss: 0."""
    empty = corpus[2:3]
    make_parts(empty, tmp_path / "d", 1)
    assert sentence_of(empty, tmp_path / "d", "--merge").endswith("holds no documents: give files that do.")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["parts"]


def test_one_set_of_parts_for_stream_and_rows(corpus, tmp_path):
    """Times that a corpus is tokenised for a stream and rows of two lengths: once. Parts of another folder serve."""
    make_parts(corpus, tmp_path / "d", 3)
    flags = ["--parts_dir", tmp_path / "d" / "parts", "--merge"]
    for script, more in ((prepare_fineweb, []), (prepare_bos_rows, []), (prepare_bos_rows, ["--seq_len", "32"])):
        name = f"{script.__name__}{''.join(more)}"
        run(corpus, tmp_path / name, *flags, *more, script=script)
        run(corpus, tmp_path / f"{name}_whole", *more, script=script)
        assert content_of(tmp_path / name) == content_of(tmp_path / f"{name}_whole")


def test_unusable_documents(tmp_path, capsys):
    """A part counts unusable documents and goes on; --merge stops at them, or leaves them out, as one process does."""
    files = [write_jsonl(tmp_path / f"{i}.jsonl", [{"text": text} for text in texts])
             for i, texts in enumerate([TEXTS[:50], ["", *TEXTS[50:70], "\ud800", "x"], ["", ""]])]
    skip = ["--bad_documents", "skip"]
    run(files, tmp_path / "whole", *skip)
    make_parts(files, tmp_path / "d", 3)
    assert capsys.readouterr().err.count("unusable") == 2
    assert "document 50 (counted from 0) is empty, in" in sentence_of(files, tmp_path / "d", "--merge")
    run(files, tmp_path / "d", "--merge", *skip, "--resume")
    assert content_of(tmp_path / "d") == content_of(tmp_path / "whole")
    before = ["--target_tokens", "3000"]  # which the first file has
    run(files, tmp_path / "e", *before)
    run(files, tmp_path / "f", "--parts_dir", tmp_path / "d" / "parts", "--merge", *before)
    assert content_of(tmp_path / "e") == content_of(tmp_path / "f")


def test_between_cuts_a_batch_anywhere(corpus):
    """Documents that a cut batch has too many, too few or changed: none, at every pair of borders."""
    documents = [text.encode() for text in TEXTS[140:170]]
    documents[3] = documents[20] = "empty"
    batch = tokenizing.tokenize(100, documents, "auto", "weak", 0.5)
    assert batch.mul_bytes and batch.special
    for start in range(100, 131, 3):
        for stop in range(start, 133, 4):
            expected = tokenizing.tokenize(start, documents[start - 100 : stop - 100], "auto", "weak", 0.5)
            check_equal(tokenizing.between(batch, start, stop), expected)


def check_equal(batch, expected):
    """Two batches hold the same."""
    for name, value in expected._asdict().items():
        if name == "special":
            assert {k: v for k, v in batch.special.items() if v} == value
        elif isinstance(value, (list, dict, int)):
            assert getattr(batch, name) == value, name
        else:
            assert getattr(batch, name).tolist() == value.tolist(), name


def test_joined_batches_are_one(benchmark):
    """A batch of several: what the tokenizer makes of all their documents at once, whatever they hold."""
    documents = [text.encode() for text in TEXTS[100:200]]
    documents[3] = documents[70] = "empty"
    guard = decontaminate.from_argument([f"gsm8k={benchmark}"])
    whole = tokenizing.tokenize(100, documents, "auto", "weak", 0.5, guard)
    assert len(whole.hits) > 1 and whole.mul_bytes and whole.special
    for step in (1, 7, 100):
        batches = [tokenizing.tokenize(100 + at, documents[at : at + step], "auto", "weak", 0.5, guard)
                   for at in range(0, 100, step)]
        assert batches[3 % len(batches)].bad or step != 1
        check_equal(tokenizing.join(batches), whole)
        for tokens in (1, 2000, 10**9):
            groups = list(tokenizing.joined(iter(batches), tokens))
            assert all(len(batch.ids) >= tokens for batch in groups[:-1])
            check_equal(tokenizing.join(groups), whole)
    assert list(tokenizing.joined(iter([]), 5)) == []


# ----------------------------------------------------------------------------------------------------------------------
# kills


def die_in_a_part(operation, argv):
    """Run --part until operation number `operation` (a batch written, a sync, a rename, an unlink); be killed there."""
    count = 0

    def step(act):
        def counted(*args, **how):
            nonlocal count
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **how)
        return counted

    parts.write_batch = step(parts.write_batch)
    os.fsync, os.replace, os.unlink = step(os.fsync), step(os.replace), step(os.unlink)
    prepare_fineweb.main(argv)


def until_done(start, draw):
    """Start a process again and again, to be killed at some operation, until it ends by itself; how often it died."""
    kills = 0
    while True:
        status = os.waitpid(start(draw.randrange(1, 15)), 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return kills
        kills += 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("script, n", [(prepare_fineweb, 3), (prepare_bos_rows, 7)], ids=["stream", "rows"])
def test_kill_anywhere(corpus, tmp_path, script, n, monkeypatch):
    """Bytes of a dataset after SIGKILL at random operations of every share and of --merge: those of one process."""
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    flags = ["--condition", "mul_tokens"]
    run(corpus, tmp_path / "whole", *flags, script=script)
    draw, out, kills = random.Random(n), tmp_path / "d", 0
    argv = ["--dataset", *map(str, corpus), "--out_dir", str(out), *SMALL, *flags]
    for i in draw.sample(range(n), n):
        share = [*argv, "--part", f"{i}/{n}"]
        kills += until_done(lambda k, share=share: forked(lambda a: die_in_a_part(k, a), share), draw)
    assert kills >= 3
    assert {path.name for path in (out / "parts").iterdir()} == {f"{i:06d}.npz" for i in range(7)}
    if script is prepare_bos_rows:
        argv += ROWS
    main = script.main
    monkeypatch.setattr(test_prepare.prepare_fineweb, "main", main)  # what die_at runs
    merge = [*argv, "--merge", "--resume"]
    kills = 0
    for _ in range(3):
        kills += until_done(lambda k: forked(lambda a: test_prepare.die_at(12 * k, a), merge), draw)
        if content_of(out) != content_of(tmp_path / "whole"):
            break
        for path in out.iterdir():
            if path.is_file():
                path.unlink()
    else:
        assert kills >= 3
        return
    assert content_of(out) == content_of(tmp_path / "whole")


def test_real_process_killed(corpus, tmp_path):
    """The same from outside: SIGKILL to `python prepare_fineweb.py --part` after a random time, restarted, merged."""
    out = tmp_path / "d"
    run(corpus, tmp_path / "whole")
    command = [sys.executable, str(REPO / "prepare_fineweb.py"), "--dataset", *map(str, corpus), "--out_dir", str(out),
               *SMALL]
    draw = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen([*command, "--part", "0/1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.4, 1.2))
        process.kill()
        process.wait()
    for step in (["--part", "0/1"], ["--merge"]):
        done = subprocess.run([*command, *step], capture_output=True, text=True, env=ENV)
        assert done.returncode == 0, done.stderr
    assert content_of(out)[0] == content_of(tmp_path / "whole")[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_merge_goes_on_where_one_process_was_killed(corpus, tmp_path, monkeypatch):
    """Bytes of a dataset that one process began, at any document, and --merge ended, and the reverse: the same."""
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    run(corpus, tmp_path / "whole")
    make_parts(corpus, tmp_path / "parts", 1)
    merge = ["--merge", "--parts_dir", str(tmp_path / "parts" / "parts")]
    for i, (first, then) in enumerate([([], merge), (merge, [])]):
        out = tmp_path / str(i)
        argv = ["--dataset", *map(str, corpus), "--out_dir", str(out), *SMALL, *first]
        assert os.WIFSIGNALED(os.waitpid(forked(lambda a: test_prepare.die_at(60, a), argv), 0)[1])
        assert json.loads((out / "progress.json").read_text())["state"]["documents"] > 0
        run(corpus, out, *then, "--resume")
        assert content_of(out) == content_of(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_finished_parts(corpus, tmp_path, monkeypatch, number):
    """After ctrl-C in the second of the large files: exit status 130, the parts before it, and nothing half written."""
    write_batch, calls = parts.write_batch, []

    def interrupted(archive, batch_number, batch):
        write_batch(archive, batch_number, batch)
        calls.append(batch_number)
        if calls[-2:] == [0, 1] and len(calls) > 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(parts, "write_batch", interrupted)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 1)  # a file has batches behind the second
    argv = ["--dataset", *map(str, corpus), "--out_dir", str(tmp_path / "d"), *SMALL, "--part", "0/1"]
    status = os.waitpid(forked(prepare_fineweb.main, argv), 0)[1]
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130
    finished = sorted(path.name for path in (tmp_path / "d" / "parts").iterdir())
    assert finished == [f"{i:06d}.npz" for i in range(3)]
    monkeypatch.setattr(parts, "write_batch", write_batch)
    run(corpus, tmp_path / "d", "--part", "0/1")
    run(corpus, tmp_path / "d", "--merge")
    run(corpus, tmp_path / "whole")
    assert content_of(tmp_path / "d") == content_of(tmp_path / "whole")


def test_finished_parts_are_not_made_again(corpus, tmp_path, monkeypatch):
    """Batches that a second run of the same shares tokenises: 0, and what killed processes had begun is gone."""
    make_parts(corpus, tmp_path / "d", 3)
    folder = tmp_path / "d" / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "tokenize", None)
        make_parts(corpus, tmp_path / "d", 7)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "000000.npz").rename(folder / "000000.npz.elsewhere-12.tmp")
    run(corpus, tmp_path / "d", "--part", "0/3")
    assert {path.name for path in folder.iterdir()} == before.keys()


def test_two_processes_at_one_part(corpus, tmp_path, monkeypatch):
    """A part that another process finishes meanwhile, and whose beginning it removes, is that process's part."""
    write_batch, out, me = parts.write_batch, tmp_path / "d", os.getpid()

    def overtaken(archive, number, batch):
        monkeypatch.setattr(parts, "write_batch", write_batch)
        monkeypatch.setattr(os, "getpid", lambda: me + 1)
        run(corpus, out, "--part", "0/1")
        monkeypatch.undo()
        write_batch(archive, number, batch)

    monkeypatch.setattr(parts, "write_batch", overtaken)
    run(corpus, out, "--part", "0/7")
    assert {path.name for path in (out / "parts").iterdir()} == {f"{i:06d}.npz" for i in range(7)}
    run(corpus, out, "--merge")


# ----------------------------------------------------------------------------------------------------------------------
# what is refused


FOREIGN = {  # name: (flags of the parts, flags of --merge, words of the sentence)
    "condition": ([], ["--condition", "mul_tokens"], ["condition was 'baseline', now 'mul_tokens'"]),
    "injector": (["--condition", "mul_tokens", "--inject", "strict"], ["--condition", "mul_tokens"], ["inject was"]),
    "val_fraction": ([], ["--val_fraction", "0.2"], ["val_fraction was 0.1, now 0.2"]),
    "benchmark": (["--decontaminate", "gsm8k={benchmark}"], [], ["decontaminate was an object of rule", "now None"]),
    "max_docs": (["--max_docs", "9"], [], ["made with --max_docs 9", "may lack"]),
    "more max_docs": (["--max_docs", "9"], ["--max_docs", "10"], ["made with --max_docs 9"]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_parts_of_other_settings_are_refused(corpus, benchmark, tmp_path, kind):
    """Datasets merged of parts that were made with another setting: none; the sentence names setting and remedy."""
    of_part, of_merge, words = FOREIGN[kind]
    of_part = [flag.replace("{benchmark}", str(benchmark)) for flag in of_part]
    make_parts(corpus[:3], tmp_path / "d", 1, *of_part)
    for step in ("--merge", "--part=0/1"):
        message = sentence_of(corpus[:3], tmp_path / "d", *of_merge, step)
        assert all(word in message for word in words) and "000000.npz was made with" in message
        assert "delete it and run python prepare_fineweb.py" in message and "--part 0/3" in message
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["parts"]


def test_parts_of_another_tokenizer_are_refused(corpus, tmp_path, monkeypatch):
    """The tokenizer's hash is part of every part."""
    make_parts(corpus[:3], tmp_path / "d", 1)
    monkeypatch.setattr(parts, "tokenizer_hash", lambda: "0" * 64)
    assert "tokenizer_sha256 was" in sentence_of(corpus[:3], tmp_path / "d", "--merge")
    monkeypatch.setattr(parts, "FORMAT_VERSION", 2)
    assert "is of format 1, not 2" in sentence_of(corpus[:3], tmp_path / "d", "--merge")


def test_parts_of_other_files_are_refused(corpus, tmp_path):
    """A file that was edited at equal length, left out, added or moved in the list since its part was made."""
    files = [tmp_path / path.name for path in corpus[:4]]
    for path, original in zip(files, corpus, strict=False):
        path.write_bytes(original.read_bytes())
    out = tmp_path / "d"
    make_parts(files, out, 1)
    text = files[1].read_bytes()
    files[1].write_bytes(text.replace(b"a", b"b", 1))
    message = sentence_of(files, out, "--merge")
    assert "000001.npz is of another file (name b.jsonl" in message and "--part 1/4" in message
    assert "000001.npz is of another file" in sentence_of(files, out, "--part", "1/2")
    files[1].write_bytes(text)
    assert "000001.npz is of another file" in sentence_of([files[0], *files[2:]], out, "--merge")
    assert "000003.npz is of no file: --dataset names 3" in sentence_of(files[:3], out, "--merge")
    message = sentence_of([*files, corpus[4]], out, "--merge")
    assert "lacks 1 of 5 parts, those of e.txt" in message
    run(files, out, "--merge")


def test_missing_parts_are_named_with_their_command(corpus, tmp_path, monkeypatch):
    """The commands that the sentence names, pasted into a shell, make what is missing."""
    out, flags = tmp_path / "d", ["--condition", "mul_tokens"]
    message = sentence_of(corpus, out, *flags, "--merge")
    assert "lacks 7 of 7 parts" in message and message.endswith("--part 0/1.") and not out.exists()
    for i in (0, 2, 3, 6):
        run(corpus, out, *flags, "--part", f"{i}/7")
    message = sentence_of(corpus, out, *flags, "--merge")
    assert "lacks 3 of 7 parts, those of b.jsonl, e.txt, f.jsonl: run python" in message
    assert message.endswith("--part 1/7, and the same with 4/7, 5/7.")
    command = message.split(": run ", 1)[1].split(", and")[0]
    for share in ("1/7", "4/7", "5/7"):
        words = shlex.split(command.replace("1/7", share))
        done = subprocess.run([sys.executable, *words[1:]], cwd=REPO, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    run(corpus, out, *flags, "--merge")
    run(corpus, tmp_path / "whole", *flags)
    assert content_of(out) == content_of(tmp_path / "whole")


def test_target_needs_only_the_parts_before_it(corpus, tmp_path, monkeypatch):
    """Parts that --target_tokens and --max_docs ask for beyond their end: none. One before it is named, and when it is
    there, --resume goes on."""
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    for name, flags in {"target": ["--target_tokens", "30_000"], "docs": ["--max_docs", "190"]}.items():
        out = tmp_path / name
        run(corpus, tmp_path / f"{name}_whole", *flags)
        for i in (0, 1, 2):
            run(corpus, out, *flags, "--part", f"{i}/7")
        message = sentence_of(corpus, out, *flags, "--merge")
        assert "lacks 4 of 7 parts" in message and "--part 3/7" in message and "--merge with --resume" in message
        run(corpus, out, *flags, "--part", "3/7")
        run(corpus, out, *flags, "--merge", "--resume")
        assert content_of(out) == content_of(tmp_path / f"{name}_whole")


def test_damaged_parts_are_refused(corpus, tmp_path):
    """Datasets merged of a part that was cut off or in which a byte changed: none."""
    out = tmp_path / "d"
    make_parts(corpus, out, 1)
    path = out / "parts" / "000000.npz"
    whole = path.read_bytes()
    damaged = [b"", whole[: len(whole) // 2]]
    for at in (300, len(whole) // 3, len(whole) // 2, whole.rindex(b'"documents"'), len(whole) - 30):
        damaged.append(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        message = sentence_of(corpus, out, "--merge", "--resume")
        assert "000000.npz is damaged" in message and "delete it and run python" in message and "--part 0/7" in message
        assert not (out / "meta.json").exists()
    path.write_bytes(whole)
    run(corpus, out, "--merge", "--resume")
    run(corpus, tmp_path / "whole")
    assert content_of(out) == content_of(tmp_path / "whole")


def test_arrays_of_another_format_are_refused():
    """An array of a part is read as it was written, or not at all."""
    lengths = np.arange(5, dtype="<u2")
    for name, dtype, version, is_read in (("same", "<u2", (1, 0), True), ("wider", "<u4", (1, 0), False),
                                          ("swapped", ">u2", (1, 0), False), ("later", "<u2", (2, 0), False)):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive, archive.open("a.npy", "w") as f:
            np.lib.format.write_array(f, lengths.astype(dtype), version)
        with zipfile.ZipFile(data) as archive:
            if is_read:
                assert np.array_equal(parts.read_array(archive, "a.npy", parts.IDS), lengths), name
            else:
                with pytest.raises(ValueError, match="another format"):
                    parts.read_array(archive, "a.npy", parts.IDS)


@pytest.mark.parametrize("flags, words", [
    (["--part", "3/3"], "write i/n with i from 0 to n - 1"), (["--part", "a/3"], "is no share"),
    (["--part", "1"], "is no share"), (["--part", "0/0"], "is no share"),
    (["--part", "0/3", "--merge"], "two steps: pass one"), (["--parts_dir", "x"], "--parts_dir needs --part or"),
    (["--part", "0/1", "--max_shards", "3"], "--max_shards takes shards of tokens"),
])
def test_flags_that_do_not_go_together(corpus, tmp_path, flags, words):
    """Folders made by a command line that cannot be meant: none."""
    assert words in sentence_of(corpus, tmp_path / "d", *flags)
    assert "has no files for --part" in sentence_of(["synthetic"], tmp_path / "d", "--max_docs", 5, "--part", "0/2")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("script", [prepare_fineweb, prepare_bos_rows])
def test_no_sentence_advises_to_delete_the_parts(corpus, tmp_path, script):
    """A merge that cannot succeed, and one that has, in the folder with the parts, which took many machines hours."""
    make_parts(corpus, tmp_path, 1)
    keeps = f"delete everything in {tmp_path} but parts"
    assert keeps in sentence_of(corpus, tmp_path, "--merge", "--target_tokens", "999_999_999", script=script)
    for path in tmp_path.iterdir():
        if path.name != "parts":
            path.unlink()
    run(corpus, tmp_path, "--merge", script=script)
    assert keeps in sentence_of(corpus, tmp_path, "--merge", script=script)


def test_a_file_that_is_changed_while_it_is_read(tmp_path, monkeypatch):
    """A dataset or part whose recorded checksum is of other text than was read: none is made."""
    grows = tmp_path / "grows.jsonl"
    write_jsonl(grows, [{"text": text} for text in TEXTS])
    tokenize = tokenizing.tokenize

    def tokenize_late(*args):
        with open(grows, "a") as f:
            f.write('{"text": "one more"}\n')
        return tokenize(*args)

    monkeypatch.setattr(tokenizing, "tokenize", tokenize_late)
    for flags in ([], ["--part", "0/1"]):
        sentence = sentence_of([grows], tmp_path / "d", *flags)
        assert f"{grows} was changed while it was read: wait until it is final, and prepare anew." in sentence
        assert not list(tmp_path.rglob("meta.json")) and not list(tmp_path.rglob("*.npz"))
        shutil.rmtree(tmp_path / "d")


def test_what_killed_processes_left_goes_first(corpus, tmp_path, monkeypatch):
    """Unfinished files of a part: those of dead processes of this machine go before it is made, as they would fill the
    disk; those of others may still be written."""
    folder = tmp_path / "parts"
    folder.mkdir()
    dead, other = folder / f"000000.npz.{platform.node()}-{2**22 + 1}.tmp", folder / "000000.npz.elsewhere-7.tmp"
    for path in (dead, other):
        path.write_bytes(b"x")
    seen, write_part = [], parts.write_part
    monkeypatch.setattr(parts, "write_part", lambda *args: seen.append(set(folder.iterdir())) or write_part(*args))
    run(corpus[:1], tmp_path, "--part", "0/1")
    assert seen == [{other}] and [path.name for path in folder.iterdir()] == ["000000.npz"]


def test_a_file_in_the_place_of_a_folder(corpus, tmp_path):
    """It is said to be a file: to name a command that makes the parts would not help, nor the system's File exists."""
    (tmp_path / "file").write_text("")
    for flags in (["--merge"], ["--part", "0/1"]):
        told = sentence_of(corpus, tmp_path / "d", *flags, "--parts_dir", tmp_path / "file")
        assert f"--parts_dir {tmp_path}/file " in told and re.search("is a file: name|is no folder.: name", told), told
    for name in ("file", "file/below"):
        told = sentence_of(corpus, tmp_path / name)
        assert f"{name} is not writable ({tmp_path / 'file'} is no folder): choose another --out_dir." in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_shares_than_files(corpus, tmp_path, capsys):
    """A share without a file is done at once, as the last jobs of a large array are."""
    run(corpus, tmp_path / "d", "--part", "8/9")
    assert "0 of 7 files" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# where the files are


def test_parts_of_a_hub_dataset(corpus, tmp_path, monkeypatch):
    """Parts of files on the hub, with network errors in between: the bytes of one process, pinned to one revision."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for i in range(3):
        pq.write_table(pa.table({"text": TEXTS[i::3]}), folder / f"train-{i}.parquet", row_group_size=20)
    test_prepare.fake_hub(monkeypatch, folder, [])
    run(["someone/corpus"], tmp_path / "whole")
    test_prepare.fake_hub(monkeypatch, folder, [(ConnectionResetError("reset"), 4), None, (TimeoutError("slow"), 2)])
    make_parts(["someone/corpus"], tmp_path / "d", 2)
    run(["someone/corpus"], tmp_path / "d", "--merge")
    assert content_of(tmp_path / "d") == content_of(tmp_path / "whole")

    import huggingface_hub

    class Later:
        sha = "4567def"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision, timeout: Later)
    message = sentence_of(["someone/corpus"], tmp_path / "e", "--parts_dir", tmp_path / "d" / "parts", "--merge")
    assert "revision 0123abc; --dataset names" in message and "revision 4567def" in message


def test_a_part_reads_its_own_files_alone(corpus, tmp_path, monkeypatch):
    """Files that a share opens beside its own: none, as each of n machines would otherwise read the whole corpus."""
    opened, read = [], []
    describe, open_file = sources.describe, sources._open_file
    monkeypatch.setattr(sources, "describe", lambda path: opened.append(path) or describe(path))
    monkeypatch.setattr(sources, "_open_file", lambda source, path: read.append(path) or open_file(source, path))
    run(corpus, tmp_path / "d", "--part", "1/3")
    assert opened == read == [str(corpus[1]), str(corpus[4])]


def test_memory_of_a_part_is_that_of_its_batches(tmp_path, monkeypatch):
    """Batches that are held at once while a file of eighteen is written and read again: one."""
    files = [write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS * 3])]
    alive, peaks = [], []
    write_batch, read_batch = parts.write_batch, parts.read_batch

    def watched(batch):
        import weakref

        alive.append(weakref.ref(batch.ids))
        peaks.append(sum(ref() is not None for ref in alive))
        return batch

    monkeypatch.setattr(parts, "write_batch", lambda archive, n, batch: write_batch(archive, n, watched(batch)))
    monkeypatch.setattr(parts, "read_batch", lambda *args: watched(read_batch(*args)))
    run(files, tmp_path / "d", "--part", "0/1")
    run(files, tmp_path / "d", "--merge")
    assert len(peaks) > 30 and max(peaks) <= 2


# ----------------------------------------------------------------------------------------------------------------------
# datatrove

SBATCH = """#!/bin/bash
# runs the tasks of an array one after the other
for word in "$@"; do script=$word; done
last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
for task in $(seq 0 $last); do
    SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=7 SLURM_NODELIST=node bash "$script" >> sbatch.log 2>&1
done
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


def run_cluster(folder, *flags, **options):
    """experiments/cluster.py in a folder, as a user runs it."""
    command = [sys.executable, str(REPO / "experiments" / "cluster.py"), *map(str, flags)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**ENV, **options}, timeout=300)


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_datatrove(corpus, tmp_path, executor):
    """Bytes by which 4 tasks of datatrove's executor differ from one process: 0. (Slurm's commands are stand-ins.)"""
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e '.[cluster]'")
    flags = ["--dataset", *corpus, "--out_dir", tmp_path / "d", *SMALL]
    where, options = ["--workers", "2"], {}
    if executor == "slurm":
        where = ["--executor", "slurm", "--partition", "cpu"]
        options = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        (tmp_path / "bin").mkdir()
        for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": "#!/bin/bash\necho node\n"}.items():
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
    done = run_cluster(tmp_path, *where, "--tasks", "4", "--", *flags, **options)
    assert done.returncode == 0, done.stderr
    run(corpus, tmp_path / "d", "--merge")
    run(corpus, tmp_path / "whole")
    assert content_of(tmp_path / "d") == content_of(tmp_path / "whole")


def test_datatrove_refuses_before_it_starts(corpus, tmp_path):
    """Jobs that are queued with a flag which no task will take, or without what the executor needs: none."""
    for flags, words in [
        (["--tasks", "2", "--", "--dataset", "x", "--out_dirr", "d"], "did you mean --out_dir?"),
        (["--tasks", "2", "--", "--dataset", "synthetic", "--out_dir", "d"], "synthetic has no files for --part"),
        (["--tasks", "0", "--", "--dataset", "x", "--out_dir", "d"], "--tasks"),
        (["--tasks", "2", "--", "--dataset", "x", "--out_dir", "d", "--part=0/3"], "are done: leave --part=0/3 out."),
        (["--tasks", "2", "--executor", "slurm", "--", "--dataset", "x", "--out_dir", "d"], "needs --partition"),
    ]:
        done = run_cluster(tmp_path, *flags)
        assert done.returncode and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_datatrove_passes_a_task_s_sentence_on(corpus, tmp_path):
    """What a task ends with is what the script ends with, and nothing is made."""
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e '.[cluster]'")
    for tasks, workers in ((1, 1), (2, 2)):
        flags = ["--tasks", tasks, "--workers", workers, "--", "--dataset", "no.jsonl", "--out_dir", "d"]
        done = run_cluster(tmp_path, *flags)
        words = f"{tasks} of {tasks} tasks failed, the first with --part 0/{tasks}: "
        assert done.returncode == 1 and words in done.stderr.splitlines()[-1], done.stderr
        assert "--dataset no.jsonl: no such file" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_datatrove_stops(tmp_path, number):
    """Processes of a stopped cluster.py that live on: none; it says so, and the finished parts stay."""
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e '.[cluster]'")
    text = "the quick brown fox jumps over the lazy dog " * 2000
    files = [write_jsonl(tmp_path / f"{i}.jsonl", [{"text": f"{i} {k} {text}"} for k in range(600 * (i % 2) + 2)])
             for i in range(4)]
    flags = ["--tasks", 4, "--workers", 2, "--", "--dataset", *files, "--out_dir", tmp_path / "d", *SMALL]
    command = [sys.executable, str(REPO / "experiments" / "cluster.py"), *map(str, flags)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=ENV, start_new_session=True)
    until = time.time() + 120
    while not list(tmp_path.glob("d/parts/*.npz")):
        assert process.poll() is None and time.time() < until
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)  # until the last that holds its stderr has ended
    assert process.returncode == 130 and "stopped; the finished parts stay." in errors, errors
    assert "Traceback" not in errors and list(tmp_path.glob("d/parts/*.npz"))
    until = time.time() + 30
    with pytest.raises(ProcessLookupError):
        while time.time() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


# ----------------------------------------------------------------------------------------------------------------------
# real documents


def test_real_parts(tmp_path, monkeypatch):
    """1, 3 and 7 shares of real documents, of the web and of books, one file of a single document and one empty."""
    if not (REAL / "edu_web.parquet").exists():
        pytest.skip("the real data is not beside the repository")
    monkeypatch.setattr(sources, "BATCH_BYTES", 200_000)
    files = [tmp_path / f"{name}.parquet" for name in ("web_0", "book", "web_1", "none", "books", "web_2", "web_3")]
    web = pq.read_table(REAL / "edu_web.parquet", columns=["text"])
    books = pq.read_table(REAL / "books.parquet", columns=["text"])
    tables = [web[:150], books[7:8], web[150:400], web[:0], books[100:150], web[400:410], web[410:500]]
    for path, table in zip(files, tables, strict=True):
        pq.write_table(table, path, row_group_size=64)
    arms = {"stream": (prepare_fineweb, []), "rows": (prepare_bos_rows, ["--seq_len", "256"]),
            "target": (prepare_fineweb, ["--target_tokens", "300_000"])}
    for name, (script, flags) in arms.items():
        run(files, tmp_path / name, *flags, "--shard_tokens", "100_000", script=script)
    for n in (1, 3, 7):
        made = tmp_path / f"parts{n}"
        make_parts(files, made, n, seed=n)
        for name, (script, flags) in arms.items():
            out, parts_dir = tmp_path / f"{name}{n}", made / "parts"
            run(files, out, *flags, "--shard_tokens", "100_000", "--parts_dir", parts_dir, "--merge", script=script)
            assert content_of(out) == content_of(tmp_path / name)
