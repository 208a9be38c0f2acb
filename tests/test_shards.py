"""tokenizer.py, token_files.py, shards.py: ids, the reader with everything it refuses, the neighbours' formats."""

import argparse
import importlib.util
import json
import re
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import inject_mul
import prepare_fineweb
from lab import byte_pairs, disk, shards, synthetic, token_files, tokenizer
from lab.token_files import AGAIN
from lab.tokenizer import BOS_ID, FIRST_MUL_ID, VOCAB_SIZE, get_tokenizer

TEXTS = [*synthetic.documents(3, 0, 120), "<|endoftext|><MUL_6_9_54> literally", "6*9=54", "日本語 7×8=56 é"]


def make(folder, texts, *flags):
    """A dataset folder of these texts, through the real script."""
    source = folder.parent / f"{folder.name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    argv = ["--dataset", str(source), "--out_dir", str(folder), "--shard_tokens", "2000", "--val_fraction", "0.2"]
    prepare_fineweb.main([*argv, *map(str, flags)])
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{condition: dataset folder}, both of TEXTS. Read-only: tests that edit copy it."""
    root = tmp_path_factory.mktemp("shards")
    return {name: make(root / name, TEXTS, "--condition", name) for name in ("baseline", "mul_tokens")}


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of the baseline that a test may damage."""
    for path in folders["baseline"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def everything(folder, split="train"):
    files = shards.open_dataset(folder, split)[0]
    return files.slice(0, files.n_tokens)


# ------------------------------------------------------------------------------------------------------------
# tokenizer


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
@example("<|endoftext|>").via("special")
@example("<MUL_6_9_54>")
@example(byte_pairs.PROBE_TEXT)
@example("\r\n \t\u00a0\u3000  x")
def test_backends_give_the_same_ids(text):
    """Every id of every dataset: gigatoken equals tiktoken, decoding gives the bytes back, no special id from text."""
    reference, fast = get_tokenizer("tiktoken"), get_tokenizer("auto")
    ids = reference.encode(text)
    for backend in (reference, fast):
        for batch in ([text, "", "a b"], [text.encode(), b"", b"a b"]):
            got, lengths = backend.encode_batch(batch)
            assert got[: lengths[0]].tolist() == ids and lengths.tolist() == [len(ids), 0, 2] and got.dtype == np.uint16
    assert max(ids, default=0) < BOS_ID
    assert reference.decode_bytes(ids) == text.encode()


def test_gigatoken_is_tested_here():
    """The backends test compares nothing when gigatoken is missing."""
    pytest.importorskip("gigatoken")
    assert get_tokenizer("gigatoken").backend == get_tokenizer("auto").backend == "gigatoken"


def test_known_ids():
    """Ids published by OpenAI for GPT-2, and the 45 of document 002."""
    tokenizer = get_tokenizer("tiktoken")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    facts = shards.MulFactTokens
    assert len(facts.tokens) == 45 and facts.token_to_id["<MUL_1_1_1>"] == 50304
    assert facts.token_to_id["<MUL_6_9_54>"] == facts.id_of(9, 6) == 50342 and facts.id_of(9, 9) == 50348
    assert tokenizer.encode("a <MUL_6_9_54>!", mul_tokens=True) == [64, 220, 50342, 0]
    assert tokenizer.encode("<MUL_9_6_54>", mul_tokens=True) == tokenizer.encode("<MUL_9_6_54>")
    assert tokenizer.decode([50256, 50342]) == "<|endoftext|><MUL_6_9_54>"
    for bad in (-1, 50257, 50303, 50349, 60000):
        with pytest.raises(ValueError, match="stands for no text"):
            tokenizer.decode([bad])


def test_byte_lengths_of_tokens():
    """The denominator of bits per byte: what each id's text measures in UTF-8, 0 for BOS."""
    tokenizer = get_tokenizer()
    lengths = tokenizer.token_byte_lengths()
    assert all(lengths[i] == len(tokenizer.decode_bytes([i])) for i in range(0, BOS_ID, 7))
    assert lengths[BOS_ID] == 0 and lengths[50342] == len("6*9=54") and not lengths[50257:50304].any()


def test_memory_of_the_fast_tokenizer_is_given_back(monkeypatch):
    """Peak memory: gigatoken's cache grows without a limit, so beyond the ceiling it starts again with equal ids."""
    fast = tokenizer.get_tokenizer()
    if fast.backend != "gigatoken":
        pytest.skip("gigatoken is not installed")
    before = fast.encode_batch([byte_pairs.PROBE_TEXT])[0]
    instance = fast._gigatoken.fast
    monkeypatch.setattr(byte_pairs, "CACHE_CEILING", 0)
    fast._gigatoken.fed = 2**27
    assert (fast.encode_batch([byte_pairs.PROBE_TEXT])[0] == before).all()
    assert fast._gigatoken.fast is not instance


@pytest.mark.parametrize("wrong", ["ids", "crash", "missing"])
def test_untrustworthy_gigatoken_is_not_used(monkeypatch, wrong):
    """auto falls back to tiktoken when gigatoken's ids differ or it fails; asking for it by name is an error."""
    good = shards.GPT2TokenizerWithMulFacts._encode_gigatoken

    def broken(self, texts):
        if wrong == "crash":
            raise RuntimeError("illegal instruction")
        ids, lengths = good(self, texts)
        ids[3] += 1
        return ids, lengths

    if wrong == "missing":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gigatoken" else find(name))
    else:
        pytest.importorskip("gigatoken")
        monkeypatch.setattr(shards.GPT2TokenizerWithMulFacts, "_encode_gigatoken", broken)
    fallen_back = shards.GPT2TokenizerWithMulFacts("auto")
    assert fallen_back.backend == "tiktoken" and fallen_back.backend_note
    with pytest.raises(ValueError, match="--tokenizer_backend gigatoken"):
        shards.GPT2TokenizerWithMulFacts("gigatoken")
    with pytest.raises(ValueError, match="unknown"):
        shards.GPT2TokenizerWithMulFacts("sentencepiece")


# ------------------------------------------------------------------------------------------------------------
# reading back


def test_read_across_file_borders(tmp_path):
    """Training windows: every (index, seq_len) equals a slice of all tokens in one row, over borders and tiny files."""
    draw = np.random.default_rng(0)
    sizes = [1, 7, 2, 1, 100, 3, 64]
    row = draw.integers(0, 50257, sum(sizes)).astype("<u2")
    for i, piece in enumerate(np.split(row, np.cumsum(sizes)[:-1])):
        piece.tofile(tmp_path / f"train_{i:06d}.bin")
    files, meta = shards.open_dataset(tmp_path)
    assert meta is None and files.n_tokens == len(row) and files.row_tokens is None
    for seq_len in (1, 2, 5, 16, len(row) - 1):
        n = files.n_sequences(seq_len)
        assert n == (len(row) - 1) // seq_len
        indices = draw.permutation(n)
        expected = np.stack([row[i * seq_len : i * seq_len + seq_len + 1] for i in indices]).astype(np.int64)
        assert np.array_equal(files.read(indices, seq_len), expected)
        out = np.zeros((n, seq_len + 1), np.int64)
        assert files.read(indices, seq_len, out) is out and np.array_equal(out, expected)
    assert np.array_equal(files.slice(5, 1000), row[5:]) and len(files.slice(len(row), 3)) == 0
    with pytest.raises(ValueError, match="less than one sequence of seq_len 178"):
        files.n_sequences(len(row))


def test_rows(tmp_path):
    """BOS rows: row i is row i, and a --seq_len they were not packed for is refused."""
    rows = np.full((6, 9), 11, "<u2")
    rows[:, 0], rows[:, 1] = BOS_ID, np.arange(6)
    writer = shards.DatasetWriter(tmp_path / "d", {}, 27, 0)
    writer.write("train", rows.reshape(-1), np.full(6, 9), np.full(6, 8))
    writer.commit({})
    writer.finish({"vocab_size": VOCAB_SIZE, "format": "bos_row_packed_bestfit", "row_tokens": 9, "seq_len": 8})
    files, meta = shards.open_dataset(tmp_path / "d")
    assert len(files.paths) == 2 and files.row_tokens == 9 and files.n_sequences(8) == 6
    assert np.array_equal(files.read([5, 0, 2], 8), rows[[5, 0, 2]])
    for seq_len in (7, 9):
        with pytest.raises(ValueError, match="packed for --seq_len 8, not"):
            files.n_sequences(seq_len)
    with pytest.raises(ValueError, match="--seq_len 16$|--seq_len 16\\."):
        files.n_sequences(16)


@pytest.mark.parametrize("condition", ["baseline", "mul_tokens"])
def test_open_val(folders, condition):
    """Val documents, their ids and the original bytes each token stands for, for any --val_tokens."""
    folder = folders[condition]
    tokenizer, injector = get_tokenizer("tiktoken"), inject_mul.MulExpressionInjector("weak")
    held_out = {shards.document_hash(t.encode()): t for t in TEXTS
                if shards.is_held_out([shards.document_hash(t.encode())], 0.2)[0]}
    whole = shards.open_val(folder, 10**9)
    texts = [held_out[bytes(digest)] for digest in whole["doc_hash"]]
    assert 5 < len(texts) <= len(held_out)
    baseline = np.cumsum([1 + len(tokenizer.encode(text)) for text in texts])
    bounds = [*whole["doc_starts"].tolist(), len(whole["tokens"])]
    for i, text in enumerate(texts):
        ids, sizes = (whole[key][bounds[i] : bounds[i + 1]] for key in ("tokens", "token_bytes"))
        assert ids[0] == BOS_ID and sizes[0] == 0
        spans = injector.spans(text) if condition == "mul_tokens" else []
        assert sizes[ids >= FIRST_MUL_ID].tolist() == [len(text[s:e].encode()) for s, e, _, _ in spans]
        assert sizes.sum() == len(text.encode())
        expected = injector.inject(text)[0] if spans else text
        assert tokenizer.decode_bytes(ids[1:]) == expected.encode()
    for val_tokens in (1, int(baseline[0]), int(baseline[3]), int(baseline[3]) - 1, int(baseline[-1])):
        some = shards.open_val(folder, val_tokens)
        n = max(1, int((baseline <= val_tokens).sum()))
        assert len(some["doc_starts"]) == len(some["doc_hash"]) == n
        assert np.array_equal(some["tokens"], whole["tokens"][: bounds[n]])
        assert np.array_equal(some["token_bytes"], whole["token_bytes"][: bounds[n]])
    other = shards.open_val(folders["baseline" if condition == "mul_tokens" else "mul_tokens"], 10**9)
    assert other["fingerprint_documents"] == whole["fingerprint_documents"]
    assert other["fingerprint_tokens"] != whole["fingerprint_tokens"]


def test_literal_special_tokens_stay_text(folders):
    """A document that spells <|endoftext|> or <MUL_6_9_54> may not split documents or inject facts."""
    for condition, folder in folders.items():
        ids = np.concatenate([everything(folder, split) for split in ("train", "val")])
        assert (ids == BOS_ID).sum() == len(TEXTS)
        products = sum(inject_mul.MulExpressionInjector("weak").inject(text)[1] for text in TEXTS)
        assert (ids >= FIRST_MUL_ID).sum() == (products if condition == "mul_tokens" else 0)
        assert not ((ids >= 50257) & (ids < 50304)).any()


# ------------------------------------------------------------------------------------------------------------
# the neighbours


def test_neighbours_formats(folders, tmp_path):
    """llm.c / modded-nanogpt, nanoGPT and build-nanogpt data train as they are: the same tokens, found by content."""
    tokens = everything(folders["baseline"])[:5000]
    folder = {name: tmp_path / name for name in ("llmc", "nanogpt", "npy")}
    for path in folder.values():
        path.mkdir()
    for i, piece in enumerate(np.array_split(tokens, 3)):
        header = struct.pack("<256i", 20240520, 1, len(piece), *[0] * 253)
        (folder["llmc"] / f"fineweb_{'val' if i == 0 else 'train'}_{i:06d}.bin").write_bytes(header + piece.tobytes())
        np.save(folder["npy"] / f"edufineweb_{'val' if i == 0 else 'train'}_{i:06d}.npy", piece)
    pieces = np.array_split(tokens, 3)
    np.concatenate(pieces[1:]).tofile(folder["nanogpt"] / "train.bin")
    pieces[0].tofile(folder["nanogpt"] / "val.bin")
    for name, source in (("llmc", "llm.c"), ("nanogpt", "nanoGPT"), ("npy", "build-nanogpt")):
        files, meta = shards.open_dataset(folder[name])
        assert meta is None and files.source == source and files.fingerprint
        assert np.array_equal(files.slice(0, files.n_tokens), np.concatenate(pieces[1:]))
        assert np.array_equal(everything(folder[name], "val"), pieces[0])
        val = shards.open_val(folder[name], 500)
        assert val["doc_hash"] is None and val["fingerprint_documents"] is None
        starts = val["doc_starts"].tolist()
        assert starts[0] == 0 and all(val["tokens"][start] == BOS_ID for start in starts[1:])
        decoded = get_tokenizer().decode_bytes(val["tokens"][val["tokens"] != BOS_ID])
        assert int(val["token_bytes"].sum()) == len(decoded)
    assert shards.open_dataset(folder["npy"])[0].fingerprint != shards.open_dataset(folder["npy"], "val")[0].fingerprint


def test_a_format_is_one_entry(tmp_path, monkeypatch):
    """The tokens read from a format that this lab does not know yet: one function in one table."""
    def toy(path):
        return (4, path.stat().st_size // 2 - 2) if path.read_bytes()[:4] == b"TOY!" else None

    monkeypatch.setattr(token_files, "FILE_FORMATS", {"toy": toy, **token_files.FILE_FORMATS})
    (tmp_path / "train.bin").write_bytes(b"TOY!" + np.arange(9, dtype="<u2").tobytes())
    files, meta = shards.open_dataset(tmp_path)
    assert files.source == "toy" and meta is None and files.slice(0, 99).tolist() == list(range(9))


def test_split_names_are_whole_words(folders, tmp_path):
    """A train shard whose name holds "val" or a val shard whose name holds "train" is in its own split only."""
    tokens = everything(folders["baseline"])
    names = {"train": ["retrieval_train_000000.bin", "eval-train_1.bin", "medievalTrain02.bin", "training.bin"],
             "val": ["constrained_val_000000.bin", "pretrain.validation.bin", "Valid3.bin"]}
    pieces = iter(np.split(tokens[:700], 7))
    content = {name: next(pieces) for split in names for name in names[split]}
    for name, piece in content.items():
        piece.tofile(tmp_path / name)
    np.arange(9).tofile(tmp_path / "notes_trainval.bin")  # neither word
    for split, expected in names.items():
        assert np.array_equal(everything(tmp_path, split), np.concatenate([content[n] for n in sorted(expected)]))
    (tmp_path / "train_again.bin").symlink_to(tmp_path / "training.bin")  # each file is read once
    assert shards.open_dataset(tmp_path)[0].n_tokens == 400
    tokens[:9].tofile(tmp_path / "train_val.bin")
    with pytest.raises(ValueError, match="train_val.bin names both splits: rename it"):
        shards.open_dataset(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("dtype, name", [
    ("<u4", "uint32"), ("<i4", "uint32"), ("<i8", "int64"), (">u2", "big-endian uint16"), (">u4", "big-endian uint32"),
    (">i8", "big-endian int64"), ("<f4", "float32"), ("<f8", "float64"),
])
def test_headerless_ids_of_another_type(folders, tmp_path, dtype, name, verify):
    """The loss of a .bin that is no uint16 (4.796 instead of 5.666): refused before step 0, whatever is verified."""
    tokens = everything(folders["baseline"])
    for n, top in ((40, None), (5000, None), (5000, 128_000)):
        ids = tokens[:n].astype(np.int64)
        if top:  # of a tokenizer whose vocabulary needs uint32
            if dtype == ">u2":
                continue
            ids[::50] = top
        (tmp_path / "train.bin").write_bytes(ids.astype(dtype).tobytes())
        if dtype == ">u2" and n < 64:
            continue
        with pytest.raises(ValueError, match=rf"train.bin holds {name} \(ids up to [\d,]+\), not GPT-2's") as refused:
            shards.open_dataset(tmp_path, verify=verify)
        assert ("prepare its text" in str(refused.value)) == bool(top)


@pytest.mark.parametrize("verify", [True, False])
def test_files_that_hold_no_ids_of_gpt2(folders, tmp_path, verify):
    """Text, ids of padding, products without their meta.json, nanoGPT's characters: none is trained on as GPT-2's."""
    tokens, path = everything(folders["baseline"]), tmp_path / "train.bin"

    def refuses(data, match, **how):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=match):
            shards.open_dataset(tmp_path, verify=verify, **how)

    refuses("Once upon a time, naïvely. ".encode() * 4000, "holds text, not tokens: rename it to .txt")
    refuses(bytes(range(256)) * 3000, "has token 50628 at position 98, not below 50,257")
    for bad in (50257, 50303, 50304, 50348):
        refuses(np.append(tokens[:99], bad).astype("<u2").tobytes(), f"token {bad} at position 99, not below 50,257")
    path.write_bytes(np.append(tokens[:99], 50400).astype("<u2").tobytes())  # another tokenizer's, as the user says
    assert shards.open_dataset(tmp_path, verify=verify, vocab_size=60000)[0].n_tokens == 100
    (tmp_path / "meta.pkl").write_bytes(b"")
    refuses(np.arange(65, dtype="<u2").tobytes(), "meta.pkl is nanoGPT's vocabulary of characters.*"
            "train_tokenizer.py --dataset TEXTS --vocab_size 257 .*, or pass the --vocab_size of those ids, to train a")
    assert shards.open_dataset(tmp_path, verify=verify, vocab_size=65)[0].n_tokens == 65


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8", "<u8", ">u2", ">i8"])
def test_npy_of_other_integers(folders, tmp_path, dtype):
    """build-nanogpt's shards saved without astype(uint16): the same tokens, training windows and val documents."""
    tokens = everything(folders["baseline"])[:3000]
    made = {name: tmp_path / name for name in ("<u2", dtype)}
    for name, folder in made.items():
        folder.mkdir()
        for i, piece in enumerate(np.split(tokens, 3)):
            np.save(folder / f"shard_{'val' if i == 0 else 'train'}_{i}.npy", piece.astype(name))
    for verify in (True, False):
        expected, got = (shards.open_dataset(folder, verify=verify)[0] for folder in made.values())
        assert np.array_equal(got.read(range(31), 64), expected.read(range(31), 64))
        assert got.slice(900, 500).dtype == np.uint16 and np.array_equal(got.slice(900, 500), tokens[1900:2400])
        expected, got = (shards.open_val(folder, 500, verify) for folder in made.values())
        assert all(np.array_equal(got[key], expected[key]) for key in ("tokens", "token_bytes", "doc_starts"))


# ------------------------------------------------------------------------------------------------------------
# what the reader refuses


def refusals():
    """{name: (damage(folder), split, what the sentence must hold)}"""

    def edit(name, change):
        def damage(folder):
            path = folder / name
            path.write_bytes(change(path.read_bytes()))

        return damage

    def remove(*patterns):
        return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]

    def neighbour(data, name="train.bin"):
        def damage(folder):
            remove("*")(folder)
            np.asarray(data, "<u2").tofile(folder / name)

        return damage

    def header(*words, tokens=10):
        return np.frombuffer(struct.pack("<256i", *words, *[0] * (256 - len(words))) + b"\1\0" * tokens, "<u2")

    def meta(**fields):
        return edit("meta.json", lambda data: json.dumps({**json.loads(data), **fields}).encode())

    def npy(array):
        def damage(folder):
            remove("*")(folder)
            np.save(folder / "train_0.npy", array)

        return damage

    def mixed(folder):
        neighbour([1, 2])(folder)
        np.save(folder / "train_1.npy", np.zeros(3, np.uint16))

    def broken_npy(folder):
        remove("*")(folder)
        (folder / "train_0.npy").write_bytes(b"not numpy")

    def renamed_npz(folder):
        remove("*")(folder)
        np.savez(folder / "train_0.npz", np.zeros(3, np.uint16))
        (folder / "train_0.npz").rename(folder / "train_0.npy")

    return {
        "empty folder": (remove("*"), "train", "no train files .*prepare_fineweb.py"),
        "no val": (neighbour([1, 2, 3]), "val", "no val files .*--val_data_dir"),
        "no val shards": (lambda f: _without_val(f), "val", "no val shards: prepare with --val_shards 1"),
        "missing shard": (remove("train_000001.bin"), "train", "listed in meta.json but missing"),
        "truncated": (edit("train_000000.bin", lambda d: d[:-10]), "train", "holds 1,995 tokens, not the 2,000"),
        "odd bytes": (edit("train_000000.bin", lambda d: d[:-1]), "train", "odd number of bytes"),
        "edited": (edit("train_000001.bin", lambda d: d[:9] + b"\7" + d[10:]), "train", "does not match its checksum"),
        "edited val": (edit("val_documents.npz", lambda d: d + b"x"), "val", "does not match its checksum"),
        "broken meta": (edit("meta.json", lambda d: d[:50]), "train", "cannot be read"),
        "binary meta": (edit("meta.json", lambda d: b"\xff\xfe"), "train", "cannot be read"),
        "foreign meta": (edit("meta.json", lambda d: b'{"vocab_size": 65}'), "train", "was not written by this repo"),
        "list meta": (edit("meta.json", lambda d: b"[]"), "train", "was not written by this repo"),
        "newer meta": (meta(format_version=9), "train", "version 9, which this version cannot read"),
        "unknown format": (meta(format="parquet"), "train", "describes format 'parquet'"),
        "unfinished": (lambda f: (f / "meta.json").rename(f / "progress.json"), "train", "unfinished.*--resume"),
        "empty file": (neighbour([]), "train", "is empty"),
        "odd neighbour": (lambda f: (remove("*")(f), (f / "train.bin").write_bytes(b"123")), "train", "odd number"),
        "token above vocab": (neighbour([5, 60000, 6]), "train", "token 60000 at position 1, not below"),
        "wrong magic": (neighbour(header(20240801, 1, 10)), "train", "magic is 20240801, not 20240520"),
        "wrong version": (neighbour(header(20240520, 2, 10)), "train", "version 2, not 1"),
        "truncated llm.c": (neighbour(header(20240520, 1, 1000)), "train", "should hold 1,000 tokens but has 10"),
        "npy of floats": (npy(np.arange(5.0)), "train", "holds float64 of shape"),
        "npy of bytes": (npy(np.arange(5, dtype=np.uint8)), "train", "holds uint8 of shape"),
        "npy below 0": (npy(np.array([5, -1, 6])), "train", "token -1 at position 1, not below"),
        "npy above GPT-2": (npy(np.array([5, 6, 2**16 + 1])), "train", "token 65537 at position 2, not below"),
        "npy of rows": (npy(np.zeros((2, 2), np.uint16)), "train", r"shape \(2, 2\)"),
        "broken npy": (broken_npy, "train", "not a readable .npy"),
        "renamed npz": (renamed_npz, "train", "not a readable .npy"),
        "mixed": (mixed, "train", "mixes formats"),
    }


@pytest.mark.parametrize("verify", [True, False])
def test_meta_that_contradicts_itself(copy, verify):
    """A checksum or a split that somebody edited in meta.json, also when only sizes are verified: one sentence."""
    path = copy / "meta.json"
    meta = json.loads(path.read_text())
    train, val = meta["data_files"][0], meta["data_files"][-1]
    first = {**meta, "data_files": [dict(record) for record in meta["data_files"]]}["data_files"]

    def shard(number, **fields):
        return {"data_files": [{**r, **fields} if i == number else r for i, r in enumerate(first)]}

    digit = {"0": "1"}.get(meta["fingerprint"][0], "0")
    cases = {
        "fingerprint is": {"fingerprint": digit + meta["fingerprint"][1:]},
        "val_fingerprint_tokens is": {"val_fingerprint_tokens": "0" * 64},
        "val_fingerprint_documents": {"val_fingerprint_documents": "0" * 64},
        "has train_000000.bin as a shard of val": shard(0, split="val"),
        "has val_000000.bin as a shard of train": shard(len(first) - 1, split="train"),
        "sha256 is null, not 64": shard(0, sha256=None),
        "fingerprint is .* but data_files": shard(0, sha256="0" * 64),
        r'name is "../x", not': shard(0, name="../x"),
        r'name is "train_000000.bin/../../x"': shard(0, name="train_000000.bin/../../x"),
        "names a shard twice": {"data_files": [first[0], *first]},
        "tokens is -5, not": shard(0, tokens=-5),
        "tokens is true, not": shard(0, tokens=True),
        "documents is missing": {"data_files": [{k: v for k, v in r.items() if k != "documents"} for r in first]},
        "data_files is .*, not a list": {"data_files": {}},
        r"data_files\[0\] is 5, not an object": {"data_files": [5]},
        "tokens_written_total is": {"tokens_written_total": meta["tokens_written_total"] + 1},
        "num_shards_total is": {"num_shards_total": 99},
        'condition is "mul_tokens", but "baseline" in settings': {"condition": "mul_tokens"},
        'condition is "other", not baseline or': {"condition": "other"},
        "mul_token_rate is NaN, not a finite number": {"mul_token_rate": float("nan")},
        "vocab_size is null": {"vocab_size": None},
        "describes format": {"format": ["stream"]},
    }
    assert train["split"] == "train" and val["split"] == "val"
    for match, changed in cases.items():
        path.write_text(json.dumps({**meta, **changed}))
        with pytest.raises(ValueError, match=match) as refused:
            shards.open_dataset(copy, verify=verify)
            shards.open_val(copy, 1000, verify)
        message = str(refused.value)
        assert str(copy) in message and AGAIN in message and len(message.splitlines()) == 1, message
    for text in ("[" * 100_000, "1" * 5000, '{"a": 1' + "0" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(ValueError, match="meta.json"):
            shards.open_dataset(copy, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_val_documents_of_another_shape(copy, verify):
    """val_documents.npz whose checksum was edited to fit: its columns must still fit the shards."""
    path, meta_path = copy / "val_documents.npz", copy / "meta.json"
    meta = json.loads(meta_path.read_text())
    with np.load(path) as arrays:
        columns = dict(arrays)
    cases = [("tokens", columns["tokens"][:-1]), ("tokens", columns["tokens"] + 1), ("tokens", columns["tokens"] * 1.0),
             ("tokens", np.array(5)), ("hash", columns["hash"][:, :8]), ("hash", columns["hash"][::-1]),
             ("baseline_tokens", -columns["baseline_tokens"]), ("utf8_bytes", columns["utf8_bytes"] + 1),
             ("mul_bytes", np.ones(3, np.uint8)), ("mul_tokens", None)]
    for name, wrong in cases:
        changed = {key: value for key, value in {**columns, name: wrong}.items() if value is not None}
        np.savez(path, **changed)
        meta_path.write_text(json.dumps({**meta, "val_documents_sha256": disk.sha256_file(path)}))
        with pytest.raises(ValueError, match=rf"val_documents.npz .*{AGAIN}"):
            shards.open_val(copy, 10**6, verify)
    data = path.read_bytes()
    for wrong in (b"", b"text", data[:100], data[:-30]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="does not match its checksum"):
            shards.open_val(copy, 10**6, verify)
        meta_path.write_text(json.dumps({**meta, "val_documents_sha256": disk.sha256_file(path)}))
        with pytest.raises(ValueError, match="is missing or damaged"):
            shards.open_val(copy, 10**6, verify)


def _without_val(folder):
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "data_files": [r for r in meta["data_files"] if r["split"] != "val"]}))


@pytest.mark.parametrize("name", refusals())
def test_reader_refuses_in_one_sentence(copy, name):
    """Training on damaged or foreign tokens would give a number; instead each fault is named with the way out."""
    damage, split, expected = refusals()[name]
    damage(copy)
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        shards.open_val(copy, 1000) if split == "val" else shards.open_dataset(copy)
    message = str(refused.value)
    assert re.search(expected, message) and len(message.splitlines()) == 1, message
    assert re.search(r": [^:]*$", message), message  # what to do comes last


def test_reader_refuses_a_missing_folder_and_a_small_vocabulary(folders, tmp_path):
    """--data_dir that does not exist; mul ids for a model that has no rows for them."""
    with pytest.raises(FileNotFoundError, match="does not exist: make it with python prepare_fineweb.py"):
        shards.open_dataset(tmp_path / "nothing")
    for name in ("train_000000.bin", "meta.json"):  # as a shell completes it
        with pytest.raises(FileNotFoundError, match=f"is a file, and .*: pass the folder .* {folders['baseline']}[.]$"):
            shards.open_dataset(folders["baseline"] / name)
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(FileNotFoundError, match="is a file, and .*: pass the folder that python prepare_fineweb"):
        shards.open_dataset(tmp_path / "text.txt")
    with pytest.raises(ValueError, match="--vocab_size 50349"):
        shards.open_dataset(folders["mul_tokens"], vocab_size=50257)
    assert shards.open_dataset(folders["baseline"], vocab_size=50257)[0].n_tokens


def test_verify_can_be_left_out(copy):
    """verify=False skips the checksum, never the lengths."""
    path = copy / "train_000000.bin"
    data = path.read_bytes()
    path.write_bytes(b"\7\0" + data[2:])
    assert shards.open_dataset(copy, verify=False)[0].n_tokens
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match="truncated"):
        shards.open_dataset(copy, verify=False)


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_large_ids_beyond_the_samples(tmp_path, dtype):
    """Without a whole read, an id that no sample showed is refused where it is read, with its file and position; it was
    "index out of bounds", or another token (in int32)."""
    ids = np.random.default_rng(0).integers(0, 50000, 600_000).astype(dtype)
    ids[::100] = BOS_ID
    ids[120_001] = 65_000
    suffix = "bin" if dtype == "<u2" else "npy"
    for split in ("train", "val"):
        path = tmp_path / f"{split}_0.{suffix}"
        if suffix == "npy":
            np.save(path, ids)
        else:
            path.write_bytes(ids.tobytes())
    files, _ = shards.open_dataset(tmp_path, "train", verify=False)
    found = r"{}_0.* has token 65,?000 at position 120,001, not below 50,257: "
    assert files.read([0, 1], 60_000).shape == (2, 60_001)
    for read in (lambda: files.read([1, 2], 60_000), lambda: files.slice(120_000, 2)):
        with pytest.raises(ValueError, match=found.format("train")):
            read()
    with pytest.raises(ValueError, match=found.format("val")):
        shards.open_val(tmp_path, 10**6, verify=False)


def test_writer_refuses_other_settings_and_damage(tmp_path):
    """A resumed run may not continue with other settings or on files that lost bytes."""
    def writer(**settings):
        return shards.DatasetWriter(tmp_path / "d", {"a": (1, 2), **settings}, 10, 1, resume=True)

    first = writer()
    first.write("train", np.arange(14, dtype=np.uint16), np.array([14]), np.array([50]))
    first.commit({"documents": 1})
    assert writer().state == {"documents": 1} and writer().tokens("train") == 14
    with pytest.raises(ValueError, match="b was None, now 3"):
        writer(b=3)
    (tmp_path / "d" / "train_000001.bin.partial").write_bytes(b"12")
    with pytest.raises(ValueError, match="shorter than recorded"):
        writer()


def test_arguments_of_both_scripts_are_one_list():
    """prepare_bos_rows.py adds its flags to these."""
    parser = argparse.ArgumentParser()
    prepare_fineweb.add_shared_arguments(parser)
    args = parser.parse_args(["--out_dir", "x"])
    assert (args.shard_tokens, args.val_shards, args.num_proc, args.condition) == (100_000_000, 1, 1, "baseline")
