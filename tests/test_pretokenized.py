"""--max_shards: llm.c's shards of GPT-2 tokens, as document 003's cached_fineweb10B.py fetches them, as a dataset."""

import os
import random
import struct

import numpy as np
import pytest
import test_prepare
from conftest import forked, sentence_left
from test_prepare import TEXTS

import prepare_bos_rows
import prepare_fineweb
from lab import pretokenized, retries, shards, token_files
from lab.tokenizer import BOS_ID, get_tokenizer

SHARD = 9_000  # tokens of each file but the last
ROWS = "--seq_len 64 --buffer_docs 40".split()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pretokenized, "BLOCK_TOKENS", 1000)
    monkeypatch.setattr(retries, "RETRY_WAITS", (0, 0, 0))


def documents():
    """What the publisher tokenised, in order."""
    return [np.array([BOS_ID, *get_tokenizer("tiktoken").encode(text)], np.uint16) for text in TEXTS]


def write_shard(path, ids, magic=20240520, version=1, tokens=None):
    count = len(ids) if tokens is None else tokens
    path.write_bytes(struct.pack("<256i", magic, version, count, *[0] * 253) + np.asarray(ids, "<u2").tobytes())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The documents as one stream, cut into a val shard and train shards wherever a shard is full."""
    folder = tmp_path_factory.mktemp("published")
    ids = np.concatenate(documents())
    for i, at in enumerate(range(0, len(ids), SHARD)):
        split = "val" if i == 0 else "train"
        write_shard(folder / f"fineweb_{split}_{i:06d}.bin", ids[at : at + SHARD])
    (folder / "README.md").write_text("shards")
    assert len(list(folder.glob("*train*"))) >= 5
    return folder


def run(dataset, out_dir, *flags, script=prepare_fineweb):
    """Run a script in this process; returns meta.json."""
    rows = ROWS if script is prepare_bos_rows else []
    script.main(["--dataset", str(dataset), "--out_dir", str(out_dir), *rows, *map(str, flags)])
    return shards.read_meta(out_dir)


def sentence_of(*args, **how):
    """The one sentence that a script leaves with."""
    return sentence_left(run, *args, **how)


def tokens_of(folder, split):
    files = shards.open_dataset(folder, split)[0]
    return files.slice(0, files.n_tokens)


def first_bos(ids):
    return int(np.argmax(ids == BOS_ID))


# ----------------------------------------------------------------------------------------------------------------------
# what is written


@pytest.mark.parametrize("n", [2, 0])
def test_shards_become_a_dataset(published, tmp_path, capsys, n):
    """Tokens that differ from the publisher's: none. Val is their val shard, train the first N others, without the end
    of the document that val has begun; documents, hashes and bytes are those of the texts."""
    meta = run(published, tmp_path / "d", "--max_shards", n, "--shard_tokens", 10_000)
    stream = np.concatenate(documents())
    end = SHARD * (1 + n) if n else len(stream)
    assert np.array_equal(tokens_of(tmp_path / "d", "val"), stream[:SHARD])
    skipped = first_bos(stream[SHARD:])
    assert skipped and np.array_equal(tokens_of(tmp_path / "d", "train"), stream[SHARD + skipped : end])
    assert f"begins with {skipped:,} tokens of a document" in capsys.readouterr().err
    assert meta["plain_tokens_in_train"] == end - SHARD - skipped and meta["val_fraction"] is None
    assert meta["docs_held_out"] == int((stream[:SHARD] == BOS_ID).sum())
    assert meta["source"]["kind"] == "local" and len(meta["source"]["files"]) == 1 + (n or -(-len(stream) // SHARD) - 1)
    val = np.load(tmp_path / "d" / "val_documents.npz")
    whole = [shards.document_hash(text.encode()) for text in TEXTS]
    assert [row.tobytes() for row in val["hash"][:-1]] == whole[: len(val["hash"]) - 1]
    assert val["utf8_bytes"][:-1].tolist() == [len(text.encode()) for text in TEXTS[: len(val["hash"]) - 1]]
    scored = shards.open_val(tmp_path / "d", 4000)
    assert np.array_equal(scored["tokens"], stream[: len(scored["tokens"])])


def test_rows_of_published_shards(published, tmp_path):
    """Rows packed of their documents: those of the same texts prepared here, where no document is cut."""
    starts = np.cumsum([0, *map(len, documents())])
    folder = tmp_path / "whole documents"
    folder.mkdir()
    stream, cut = np.concatenate(documents()), int(starts[40])
    write_shard(folder / "fineweb_val_000000.bin", stream[:cut])
    write_shard(folder / "fineweb_train_000001.bin", stream[cut : cut + 5000])  # cut within a document
    write_shard(folder / "fineweb_train_000002.bin", stream[cut + 5000 :])
    meta = run(folder, tmp_path / "rows", "--max_shards", 2, script=prepare_bos_rows)
    corpus = test_prepare.write_books(tmp_path / "train.jsonl", [""] * len(TEXTS[40:]), TEXTS[40:])
    expected = run(corpus, tmp_path / "own", "--val_shards", 0, script=prepare_bos_rows)
    assert np.array_equal(tokens_of(tmp_path / "rows", "train"), tokens_of(tmp_path / "own", "train"))
    for name in ("rows_written_total", "tokens_cropped_total", "utf8_bytes_processed", "packing_report"):
        if name != "utf8_bytes_processed":
            assert meta[name] == expected[name], name


def test_held_out_beyond_the_cap_is_not_trained_on(published, tmp_path):
    """Tokens of their val shard that reach train, where --val_shards takes only a part of it or none: 0."""
    train = tokens_of_train = None
    for name, flags in {"all": [], "some": ["--shard_tokens", 2000], "none": ["--val_shards", 0]}.items():
        meta = run(published, tmp_path / name, "--max_shards", 1, *flags)
        train = tokens_of(tmp_path / name, "train")
        if tokens_of_train is None:
            tokens_of_train = train
        assert np.array_equal(train, tokens_of_train)
        assert meta["token_account"]["dropped"] + meta["token_account"]["held_out"] == SHARD


def test_limits(published, tmp_path):
    """--max_docs and --target_tokens stop where they do for documents."""
    n_val = int((np.concatenate(documents())[:SHARD] == BOS_ID).sum())
    assert run(published, tmp_path / "docs", "--max_shards", 3, "--max_docs", n_val + 7)["docs_processed"] == n_val + 7
    meta = run(published, tmp_path / "target", "--max_shards", 3, "--target_tokens", 6000)
    assert 6000 <= meta["plain_tokens_in_train"] < 6000 + 300


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_anywhere_and_resume(published, tmp_path, monkeypatch):
    """Bytes of a dataset whose making was killed at random disk operations: those of an undisturbed one."""
    monkeypatch.setattr(pretokenized, "BLOCK_TOKENS", 4000)
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    flags = ["--max_shards", "0", "--shard_tokens", "10000"]
    run(published, tmp_path / "whole", *flags)
    argv = ["--dataset", str(published), "--out_dir", str(tmp_path / "d"), *flags, "--resume"]
    draw, kills = random.Random(2), 0
    while True:
        operation = draw.randrange(1, 120)
        status = os.waitpid(forked(lambda a, n=operation: test_prepare.die_at(n, a), argv), 0)[1]
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    assert os.WEXITSTATUS(status) == 0 and kills >= 2
    assert test_prepare.files_of(tmp_path / "d") == test_prepare.files_of(tmp_path / "whole")


# ----------------------------------------------------------------------------------------------------------------------
# the hub


@pytest.fixture
def hub(published, monkeypatch):
    """huggingface_hub's calls on the published folder; `failures` is popped once per download."""
    import huggingface_hub

    calls, failures = [], []

    class Info:
        sha = "89abcde"

    def list_repo_files(self, name, repo_type, revision):
        assert (name, repo_type, revision) == ("someone/fineweb10B-gpt2", "dataset", "89abcde")
        return [".gitattributes", *(path.name for path in published.iterdir())]

    def download(name, path, repo_type, revision):
        assert (name, repo_type, revision) == ("someone/fineweb10B-gpt2", "dataset", "89abcde")
        calls.append(path)
        if failures and (error := failures.pop(0)):
            raise error
        return str(published / path)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision, timeout: Info)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls, failures


def test_shards_of_the_hub(published, hub, tmp_path):
    """Fetched: the val shard and the first N of train, in order, again after a network error; pinned to a revision."""
    calls, failures = hub
    failures += [None, ConnectionError("gone"), TimeoutError("slow"), None]
    run(published, tmp_path / "local", "--max_shards", 2)
    meta = run("someone/fineweb10B-gpt2", tmp_path / "d", "--max_shards", 2)
    names = ["fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    assert calls == [names[0], *[names[1]] * 3, names[2]]
    assert meta["source"] == {"kind": "hub", "format": "llm.c", "revision": "89abcde", "files": names}
    assert meta["dataset"] == "someone/fineweb10B-gpt2" and meta["config"] is None and meta["split"] is None
    assert test_prepare.files_of(tmp_path / "d") == test_prepare.files_of(tmp_path / "local")


def test_broken_download_is_continued(published, hub, tmp_path, monkeypatch):
    """A network that stays away ends in one sentence; --resume goes on with what was written."""
    calls, failures = hub
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    failures += [None, None, *[ConnectionError("gone")] * 4]
    message = sentence_of("someone/fineweb10B-gpt2", tmp_path / "d", "--max_shards", 2)
    assert "4 times in a row (ConnectionError: gone)" in message and not (tmp_path / "d" / "meta.json").exists()
    run("someone/fineweb10B-gpt2", tmp_path / "d", "--max_shards", 2, "--resume")
    run(published, tmp_path / "local", "--max_shards", 2)
    assert test_prepare.files_of(tmp_path / "d") == test_prepare.files_of(tmp_path / "local")


# ----------------------------------------------------------------------------------------------------------------------
# what is refused


DAMAGED = {
    "magic": (lambda path, ids: write_shard(path, ids, magic=20240801), "magic is 20240801, not 20240520"),
    "version": (lambda path, ids: write_shard(path, ids, version=2), "version 2, not 1"),
    "cut off": (lambda path, ids: write_shard(path, ids, tokens=len(ids) + 5), "was cut off"),
    "no header": (lambda path, ids: path.write_bytes(ids.tobytes()), "does not begin with llm.c's header"),
    "an id": (lambda path, ids: write_shard(path, [*ids[:500], 50300, *ids[500:]]), "token 50300 at position 500"),
    "no document": (lambda path, ids: write_shard(path, ids[ids != BOS_ID]), "holds no 50256"),
    "text": (lambda path, ids: path.write_bytes(b"these are words " * 400), "does not begin with llm.c's header"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_shards_are_refused(tmp_path, kind):
    """Datasets made of a shard with another header, length or tokenizer: none."""
    folder = tmp_path / "published"
    folder.mkdir()
    stream = np.concatenate(documents())
    write_shard(folder / "fineweb_val_000000.bin", stream[:3000])
    damage, words = DAMAGED[kind]
    damage(folder / "fineweb_train_000001.bin", stream[3000:8000])
    message = sentence_of(folder, tmp_path / "d", "--max_shards", 1)
    assert words in message and "fineweb_train_000001.bin" in message
    assert not (tmp_path / "d" / "meta.json").exists()


@pytest.mark.parametrize("flags, words", [
    (["--max_shards", "99"], "train shards, not --max_shards 99: lower it"), (["--max_shards", "-1"], "0 or more"),
    (["--max_shards", "1", "--condition", "mul_tokens"], "--condition mul_tokens needs text"),
    (["--max_shards", "1", "--holdout_by", "book"], "--holdout_by needs text"),
    (["--max_shards", "1", "--decontaminate", "gsm8k={file}"], "--decontaminate needs text"),
    (["--max_shards", "1", "--merge"], "need no --merge"),
])
def test_flags_that_need_text(published, tmp_path, flags, words):
    """Flags that would be ignored on tokens: none, each is refused in a sentence."""
    file = tmp_path / "test.jsonl"
    file.write_text('{"question": "How many are there of one and of the other?", "answer": "#### 3"}\n')
    flags = [flag.replace("{file}", str(file)) for flag in flags]
    assert words in sentence_of(published, tmp_path / "d", *flags)
    assert not (tmp_path / "d").exists()


def test_folders_without_shards(published, tmp_path):
    """A folder without train or val shards, and a name that is none."""
    folder = tmp_path / "published"
    folder.mkdir()
    assert "no shards *train*.bin" in sentence_of(folder, tmp_path / "d", "--max_shards", 1)
    (folder / "fineweb_train_000001.bin").write_bytes((published / "fineweb_train_000001.bin").read_bytes())
    assert "no shard *val*.bin: pass --val_shards 0" in sentence_of(folder, tmp_path / "d", "--max_shards", 1)
    assert run(folder, tmp_path / "d", "--max_shards", 1, "--val_shards", 0)["docs_held_out"] == 0
    assert "is no folder of shards" in sentence_of(tmp_path / "no where", tmp_path / "e", "--max_shards", 1)


def test_the_trainer_reads_published_shards_as_they_are(published, tmp_path):
    """Train tokens of the prepared dataset and of the folder itself: the same but for the piece that val has begun."""
    run(published, tmp_path / "d", "--max_shards", 0)
    own, theirs = tokens_of(tmp_path / "d", "train"), tokens_of(published, "train")
    assert np.array_equal(own, theirs[first_bos(theirs) :])
    files = token_files.neighbours_files(published, "val")[0]
    assert [file.tokens for file in files] == [SHARD]
