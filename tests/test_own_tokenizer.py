"""Tokenizers of one's own: learned, read from a file, in a dataset, in a run and everything that reads one."""

import json
import math
import os
import re
import shutil
import signal
import threading
import unicodedata

import numpy as np
import pytest
import tokenizers
import torch
from conftest import REPO, exact, light_files, run_script, run_two_ranks, sentence_left, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import compare_runs
import continual
import hellaswag
import long_context
import model
import prepare_bos_rows
import prepare_fineweb
import sample
import sft
import train_gpt
import train_tokenizer
from lab import shards, synthetic, tokenizer, tokenizer_json
from lab.byte_pairs import PROBE_TEXT
from lab.tokenizer import get_tokenizer, gpt2_tokenizer, use, use_of
from model import GPT, GPTConfig

END = "<|endoftext|>"
SHAPE = "--seq_len 32 --n_layer 2 --n_head 2 --n_embd 32 --total_batch_tokens 256 --micro_batch_size 8".split()
STEPS = ("--max_train_steps 12 --warmup_iters 2 --eval_every 4 --val_tokens 3000 --save_every 6 --learning_rate 0.003 "
         "--results_csv").split()


def documents():
    """Texts of the synthetic corpus, and one with everything odd."""
    texts = [text.decode() for text in map(bytes, synthetic_texts(400))]
    return [*texts, PROBE_TEXT, f"a {END} b <|im_end|>"]


def synthetic_texts(n):
    from argparse import Namespace

    from lab import sources

    args = Namespace(dataset=["synthetic"], config=None, split="train", revision=None, text_field="text",
                     synthetic_seed=0, max_docs=n, target_tokens=0, num_proc=1, holdout_by=None)
    return [text for _, batch in sources.read_batches(sources.open_source(args)) for text in batch]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()), encoding="utf-8")
    return path


def learn(corpus, folder, *flags):
    train_tokenizer.main(["--dataset", str(corpus), "--out_dir", str(folder), "--vocab_size", "600", *flags])
    return folder


@pytest.fixture(scope="module")
def own(corpus, tmp_path_factory):
    """A folder with a tokenizer of 600 ids."""
    return learn(corpus, tmp_path_factory.mktemp("tokenizers") / "tiny_600")


def prepare(corpus, folder, *flags, script=prepare_fineweb):
    script.main(["--dataset", str(corpus), "--out_dir", str(folder), "--val_fraction", "0.1", *map(str, flags)])
    return folder


@pytest.fixture(scope="module")
def data(corpus, own, tmp_path_factory):
    """(a dataset of the own tokenizer, one of GPT-2's)."""
    folder = tmp_path_factory.mktemp("data")
    return prepare(corpus, folder / "own", "--tokenizer", own), prepare(corpus, folder / "gpt2")


def train(data_dir, folder, *flags):
    with light_files():
        argv = ["--data_dir", data_dir, "--out_dir", folder, *SHAPE, *STEPS, "", *flags]
        assert train_gpt.main(list(map(str, argv))) == 0
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data[0], tmp_path_factory.mktemp("runs") / "own_s0")


def reference(folder):
    """The `tokenizers` package's own reading of the file, in which special tokens in a text stay text."""
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return theirs


# ----------------------------------------------------------------------------------------------------------------------
# learned


def test_learned_again_it_is_the_same_file(corpus, own, tmp_path):
    again = learn(corpus, tmp_path / "again")
    assert (again / "tokenizer.json").read_bytes() == (own / "tokenizer.json").read_bytes()
    record = json.loads((own / "training.json").read_text())
    assert record["vocab_size"] == 600 and use(own).bos_id == 599
    assert "already holds a tokenizer" in sentence_left(
        train_tokenizer.main, ["--dataset", str(corpus), "--out_dir", str(own)])


def test_held_out_documents_are_not_learned_from(tmp_path):
    """A word that stands only in held-out documents has no token, and bytes per token are counted on those documents.
    """
    texts = [f"{i} some plain words that every document has" for i in range(400)]
    is_held = shards.is_held_out([shards.document_hash(text.encode()) for text in texts], 0.1)
    assert 20 < is_held.sum() < 80
    secret = " zyxwvutsrq"
    # the hash is of the whole text, so look for texts that stay held out with the secret
    held = [text for i in range(3000) if shards.is_held_out(
        [shards.document_hash((text := f"{i}{secret * 20}").encode())], 0.1)[0]][:100]
    learned = [text for text, out in zip(texts, is_held, strict=True) if not out]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*held, *learned]))
    folder = learn(path, tmp_path / "own", "--val_fraction", "0.1")
    vocab = reference(folder).get_vocab()
    assert "\u0120words" in vocab and not any("zyx" in token for token in vocab)
    record = json.loads((folder / "training.json").read_text())
    assert record["documents"] == len(learned) and record["held_out_bytes"] == sum(map(len, held))
    tokens = sum(len(reference(folder).encode(text).ids) for text in held)
    assert record["held_out"]["this"]["tokens"] == tokens
    assert record["held_out"]["gpt2"]["tokens"] == sum(len(gpt2_tokenizer().encode(text)) for text in held)
    everything = learn(path, tmp_path / "all", "--val_fraction", "0.0001")
    assert any("zyx" in token for token in reference(everything).get_vocab())


def test_max_bytes_and_patterns(corpus, tmp_path, capsys):
    whole = json.loads((learn(corpus, tmp_path / "whole") / "training.json").read_text())
    part = json.loads((learn(corpus, tmp_path / "part", "--max_bytes", "20000") / "training.json").read_text())
    assert part["documents"] < whole["documents"] and 20000 <= part["bytes"] < 30000
    for pattern, pieces in (("gpt4", ["123", "4"]), ("digits", ["1", "2", "3", "4"])):
        own = use(learn(corpus, tmp_path / pattern, "--pattern", pattern))
        cut = own._tokenizers.pre_tokenizer.pre_tokenize_str("1234")
        assert [piece for piece, _ in cut] == pieces
        assert own.decode(own.encode(PROBE_TEXT)) == PROBE_TEXT
    capsys.readouterr()
    learn(corpus, tmp_path / "few", "--vocab_size", "60000", "--max_bytes", "3000")
    assert "ids, not for --vocab_size 60,000: give more text" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    (["--vocab_size", "256"], "not between 257"), (["--vocab_size", "70000"], "65536"),
    (["--val_fraction", "1"], "--val_fraction must lie between"), (["--max_bytes", "0"], "--max_bytes must be 1"),
    (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--dataset", "synthetic"], "--dataset synthetic has no end: pass --max_docs."),
])
def test_refusals_of_learning(corpus, tmp_path, flags, words):
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "new"), *flags]
    assert words in sentence_left(train_tokenizer.main, argv)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("where", ["reading", "merging"])
def test_ctrl_c_writes_nothing(corpus, tmp_path, monkeypatch, where):
    """Also while the library is at work, which hears no signal."""
    learn_, ended = train_tokenizer.learn, threading.Event()

    def slow(reader, *settings):
        learned = learn_(reader, *settings)
        ended.wait(30)
        return learned

    if where == "merging":
        monkeypatch.setattr(train_tokenizer, "learn", slow)
    else:
        endless = ((0, [b"a b c"]) for _ in range(10**7))
        monkeypatch.setattr(train_tokenizer.sources, "read_batches", lambda source: endless)
        monkeypatch.setattr(train_tokenizer.sources, "open_source", lambda args: mock_source())
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        train_tokenizer.main(["--dataset", str(corpus), "--out_dir", str(tmp_path / "new"), "--vocab_size", "300"])
    ended.set()
    assert not (tmp_path / "new").exists()


def mock_source():
    return train_tokenizer.sources.Source("local", [], ("text",), {}, 0, 10**6, None, {})


def test_a_bad_document_ends_learning_or_is_left_out(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "fine words, fine words"}\n{"text": ""}\n')
    argv = ["--dataset", str(path), "--out_dir", str(tmp_path / "new"), "--vocab_size", "260"]
    assert "document 1 (counted from 0) is empty" in sentence_left(train_tokenizer.main, argv)
    assert not (tmp_path / "new").exists()
    train_tokenizer.main([*argv, "--bad_documents", "skip"])
    assert json.loads((tmp_path / "new" / "training.json").read_text())["documents_skipped"] == 1


# ----------------------------------------------------------------------------------------------------------------------
# read


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_a_text_comes_back(own_read, text):
    ids = own_read.encode(text)
    assert own_read.decode_bytes(ids) == text.encode()
    assert own_read.bos_id not in ids and ids == own_read.theirs.encode(text).ids
    lengths = own_read.token_byte_lengths()
    assert int(lengths[ids].sum()) == len(text.encode())


@pytest.fixture(scope="module")
def own_read(own):
    read = tokenizer_json.load(own)
    read.theirs = reference(own)
    return read


def test_backends_agree(own):
    slow = tokenizer_json.load(own, "tiktoken")
    assert slow.backend == "tokenizers"
    pytest.importorskip("gigatoken")
    fast = tokenizer_json.load(own, "gigatoken")
    texts = [*documents(), "", " ", END]
    for a, b in zip(slow.encode_batch(texts), fast.encode_batch([text.encode() for text in texts]), strict=True):
        assert np.array_equal(a, b)


def changed(own, **changes):
    """The bytes of own's tokenizer.json with other values at dotted places."""
    record = json.loads((own / "tokenizer.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        place = record
        for key in path:
            place = place[key]
        place[last] = value(place.get(last)) if callable(value) else value
    return json.dumps(record).encode()


def without_a_byte(vocab):
    return {token: i for token, i in vocab.items() if token != "q"}


@pytest.mark.parametrize("changes, words", [
    ({"normalizer": {"type": "Lowercase"}}, "changes a text"),
    ({"normalizer": {"type": "NFC"}}, "changes a text"),
    ({"pre_tokenizer__add_prefix_space": True}, "changes a text"),
    ({"model__type": "WordPiece"}, "of kind WordPiece"),
    ({"added_tokens": []}, "may begin a document"),
    ({"model__vocab": without_a_byte}, "no token for 1 of the 256 bytes"),
    ({"model__vocab": lambda vocab: vocab | {"more": 70000}}, "70,001 ids"),
    ({"model__vocab": lambda vocab: vocab | {"\u2581the": 600}}, "not spelled in bytes"),
    ({"model__vocab": 3}, "no table of tokens"),
    ({"model__vocab": lambda vocab: vocab | {"aq": 300}}, "two tokens of one id"),
    ({"model": 3}, "not a tokenizer.json"),
])
def test_refusals_of_reading(own, tmp_path, changes, words):
    path = tmp_path / "other.json"
    path.write_bytes(changed(own, **changes))
    message = sentence_left(use, path)
    assert words in message and message.startswith("--tokenizer ")
    assert get_tokenizer().name == "gpt2"


def test_refusals_of_files(own, tmp_path):
    assert "there is no" in sentence_left(use, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((own / "tokenizer.json").read_bytes()[:1000])
    assert "is not JSON" in sentence_left(use, tmp_path)
    assert "backend" in sentence_left(use, own, "magic")


def test_of_other_projects(own, tmp_path):
    """Special tokens of other names, a template that adds one, and more tokens that a text may have."""
    record = json.loads(changed(own))
    [end] = record["added_tokens"]
    end["content"] = "<|begin_of_text|>"
    more = end | {"id": 600, "content": "<tool>", "special": False}
    record["added_tokens"] = [end, more, end | {"id": 601, "content": "<|pad|>"}]
    piece = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [599], "tokens": ["<|begin_of_text|>"]}}
    record["post_processor"] = {"type": "TemplateProcessing", "single": piece, "pair": piece, "special_tokens": known}
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(record))
    theirs = use(path)
    assert theirs.bos_id == 599 and theirs.vocab_size == 602 and theirs.name == "theirs"
    assert theirs.encode("a<tool>b") == [*theirs.encode("a"), 600, *theirs.encode("b")]
    assert 599 not in theirs.encode("<|begin_of_text|>") and theirs.decode([600]) == "<tool>"
    assert theirs.token_byte_lengths()[[599, 600, 601]].tolist() == [0, 6, 0]


# ----------------------------------------------------------------------------------------------------------------------
# a dataset


def ids_of(folder, split):
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}_*.bin"))])


def test_a_dataset_is_what_the_package_gives(data, own):
    """Tokens by the package alone; documents held out, and counted, as with GPT-2's tokens."""
    theirs = reference(own)
    expected = {"train": [], "val": []}
    for text in documents():
        [out] = shards.is_held_out([shards.document_hash(text.encode())], 0.1)
        expected["val" if out else "train"] += [599, *theirs.encode(text).ids]
    mine, gpt2 = data
    for split, ids in expected.items():
        assert ids_of(mine, split).tolist() == ids
    a, b = (np.load(folder / "val_documents.npz") for folder in data)
    for name in ("hash", "baseline_tokens", "utf8_bytes"):
        assert np.array_equal(a[name], b[name])
    assert not np.array_equal(a["tokens"], b["tokens"])
    meta, other = (json.loads((folder / "meta.json").read_text()) for folder in data)
    assert (meta["vocab_size"], meta["bos_token_id"], meta["tokenizer"]) == (600, 599, "tiny_600")
    assert meta["condition"] == f"tiny_600-{meta['tokenizer_sha256'][:8]}" and other["condition"] == "baseline"
    assert meta["plain_tokens_in_train"] == other["plain_tokens_in_train"]
    assert (mine / "tokenizer.json").read_bytes() == (own / "tokenizer.json").read_bytes()
    assert not (gpt2 / "tokenizer.json").exists()


def test_target_tokens_take_the_same_documents(corpus, own, tmp_path):
    flags = "--target_tokens", 4000
    mine = prepare(corpus, tmp_path / "own", "--tokenizer", own, *flags)
    gpt2 = prepare(corpus, tmp_path / "gpt2", *flags)
    counts = [json.loads((folder / "meta.json").read_text())["docs_processed"] for folder in (mine, gpt2)]
    assert counts[0] == counts[1]
    text = use_of(mine).decode(ids_of(mine, "train"))
    assert text == use_of(gpt2).decode(ids_of(gpt2, "train"))


def test_parts_threads_and_backends_give_the_same_bytes(corpus, own, data, tmp_path):
    args = "--tokenizer", own
    prepare(corpus, tmp_path / "parts", *args, "--part", "0/1")
    for folder, flags in {"parts": ["--merge"], "threads": ["--num_proc", 2],
                          "slow": ["--tokenizer_backend", "tiktoken"]}.items():
        prepare(corpus, tmp_path / folder, *args, *flags)
        for split in ("train", "val"):
            assert np.array_equal(ids_of(tmp_path / folder, split), ids_of(data[0], split))
    other = learn(corpus, tmp_path / "other", "--vocab_size", "500")
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "new"), "--val_fraction", "0.1", "--parts_dir",
            str(tmp_path / "parts" / "parts"), "--merge", "--tokenizer", str(other)]
    message = sentence_left(prepare_fineweb.main, argv)
    assert "tokenizer_sha256 was" in message and f"--tokenizer {other}" in message


def test_a_tokenizer_is_known_by_its_bytes(corpus, own, data, tmp_path, monkeypatch, capsys):
    """--resume with the same file under another name was refused as another condition. The dataset keeps the name that
    it was begun with, whether it is finished or not; another file is refused still."""
    moved = tmp_path / "moved.json"
    shutil.copy(own / "tokenizer.json", moved)
    begun, fields = tmp_path / "begun", prepare_fineweb.meta_fields
    shutil.copytree(data[0], tmp_path / "whole")
    whole = (tmp_path / "whole" / "meta.json").read_bytes()
    prepare(corpus, tmp_path / "whole", "--tokenizer", moved, "--resume")
    assert "is already finished" in capsys.readouterr().out and (tmp_path / "whole" / "meta.json").read_bytes() == whole

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_fineweb, "meta_fields", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, begun, "--tokenizer", own)
    monkeypatch.setattr(prepare_fineweb, "meta_fields", fields)
    other = learn(corpus, tmp_path / "other", "--vocab_size", "500")
    argv = ["--dataset", str(corpus), "--out_dir", str(begun), "--val_fraction", "0.1", "--resume", "--tokenizer"]
    assert "tokenizer_sha256 was" in sentence_left(prepare_fineweb.main, [*argv, str(other)])
    prepare(corpus, begun, "--tokenizer", moved, "--resume")
    meta, as_before = (json.loads((folder / "meta.json").read_text()) for folder in (begun, data[0]))
    for key in ("tokenizer", "condition", "settings", "data_files", "tokenizer_sha256"):
        assert meta[key] == as_before[key], key
    assert shards.read_meta(begun) and meta["tokenizer"] == "tiny_600"


def test_rows_begin_with_its_bos(corpus, own, tmp_path):
    folder = prepare(corpus, tmp_path / "rows", "--tokenizer", own, "--seq_len", 32, "--overflow", "split",
                     script=prepare_bos_rows)
    rows = ids_of(folder, "train").reshape(-1, 33)
    assert len(rows) > 50 and (rows[:, 0] == 599).all() and rows.max() == 599
    assert "is begun with other settings" in sentence_left(
        prepare_bos_rows.main, ["--dataset", str(corpus), "--out_dir", str(folder), "--resume", "--seq_len", "32",
                                "--val_fraction", "0.1", "--overflow", "split"]).replace("was begun", "is begun")


@pytest.mark.parametrize("flags, words", [
    (["--condition", "mul_tokens"], "45 tokens behind GPT-2's"), (["--max_shards", "1"], "GPT-2's tokens"),
])
def test_refusals_of_preparing(corpus, own, tmp_path, flags, words):
    argv = ["--dataset", str(corpus), "--out_dir", str(tmp_path / "new"), "--tokenizer", str(own), *flags]
    assert words in sentence_left(prepare_fineweb.main, argv)
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_loses_text_is_noticed_in_the_document(own, tmp_path):
    """One that the probe text does not betray."""
    shorter = {"type": "Replace", "pattern": {"String": "zzz"}, "content": "z"}
    (tmp_path / "eats.json").write_bytes(changed(own, normalizer=shorter))
    (tmp_path / "t.jsonl").write_text('{"text": "plain"}\n{"text": "a zzz b"}\n')
    argv = ["--dataset", str(tmp_path / "t.jsonl"), "--out_dir", str(tmp_path / "d"),
            "--tokenizer", str(tmp_path / "eats.json")]
    message = sentence_left(prepare_fineweb.main, argv)
    assert "document 1 is not what its tokens say" in message and "changes a text" in message


def test_added_tokens_with_other_ids(own, tmp_path):
    record = json.loads(changed(own))
    [end] = record["added_tokens"]
    record["added_tokens"].append(end | {"id": 700, "content": "<tool>", "special": False})
    (tmp_path / "gap.json").write_text(json.dumps(record))
    assert "other ids than the file" in sentence_left(use, tmp_path / "gap.json")


# ----------------------------------------------------------------------------------------------------------------------
# a run


def test_a_run_has_the_data_s_vocabulary(run, data):
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["vocab_size"] == 600 and "vocab_size" in config["derived"]
    assert config["model"]["unused_ids"] == [] and config["model"]["padded_vocab_size"] == 640
    meta = json.loads((data[0] / "meta.json").read_text())
    assert config["data"]["tokenizer"] == "tiny_600" and config["data"]["condition"] == meta["condition"]
    text, ids = (sum(record[key] for record in meta["data_files"] if record["split"] == "train")
                 for key in ("utf8_bytes", "tokens"))
    assert config["data"]["bytes_per_token"] == pytest.approx(text / ids)
    for checkpoint in (run / "ckpt").iterdir():
        assert (checkpoint / "tokenizer.json").read_bytes() == (data[0] / "tokenizer.json").read_bytes()


def test_bits_per_byte_are_of_the_text(run, data):
    """The val loss recomputed from the checkpoint by a plain loop over windows, and its bytes from the text."""
    own, val = use_of(data[0]), shards.open_val(data[0], 3000)
    model, tokens = GPT.load(run / "ckpt" / "step_000012").eval(), val["tokens"].astype(np.int64)
    record = [json.loads(line) for line in open(run / "scalars.jsonl") if '"type": "val"' in line][-1]
    nats, size, T = 0.0, 0, 32
    lengths = own.token_byte_lengths()
    for start in range(0, len(tokens) - 1, T):
        x, y = (torch.from_numpy(tokens[start + shift : start + shift + T]) for shift in (0, 1))
        x = x[: len(y)]
        with torch.no_grad():
            scores = model(x[None])[0, :, :600].float().log_softmax(-1)
        nats -= scores[torch.arange(len(y)), y].sum().item()
        size += int(lengths[y.numpy()].sum())
    assert record["val_bytes"] == size
    assert record["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_resumed_it_is_the_same(run, data, tmp_path):
    folder = train(data[0], tmp_path / "again", "--max_train_steps", 6, "--warmup_iters", 2)
    changed = json.loads((folder / "config.json").read_text())
    changed["flags"]["max_train_steps"] = 12  # as if it had been killed
    (folder / "config.json").write_text(json.dumps(changed))
    (folder / "summary.json").unlink()
    whole = train(data[0], tmp_path / "whole")
    assert exact(whole) == exact(run) and weights(whole) == weights(run)
    with light_files():
        train_gpt.main(["--resume", "auto", "--out_dir", str(folder)])
    assert "vocab_size" in json.loads((folder / "config.json").read_text())["derived"]
    assert (folder / "ckpt" / "step_000012" / "tokenizer.json").exists()


def test_other_tokens_are_refused(run, data, tmp_path):
    mine, gpt2 = map(str, data)
    new = ["--out_dir", str(tmp_path / "new"), *SHAPE, *STEPS, ""]
    message = sentence_left(train_gpt.main, ["--data_dir", mine, "--val_data_dir", gpt2, *new])
    assert "has tokens of gpt2, not of tiny_600" in message
    done = run_script("train_gpt.py", "--data_dir", gpt2, "--init_from", run, *new)
    assert done.returncode == 2 and "has another tokenizer than" in done.stderr and "--tokenizer" in done.stderr
    message = sentence_left(train_gpt.main, ["--data_dir", mine, "--vocab_size", "500", *new])
    assert "not below --vocab_size 500" in message and "pass --vocab_size 600" in message
    assert not (tmp_path / "new").exists()


def test_config_of_another_run_takes_the_data_s_vocabulary(run, data, tmp_path):
    with light_files():
        train_gpt.main(["--config", str(run), "--data_dir", str(data[1]), "--out_dir", str(tmp_path / "gpt2")])
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text())["model"]["vocab_size"] == 50349


def test_more_ids_than_gpt2_has_are_all_used(corpus, own, tmp_path):
    """50257 to 50303 are padding only in GPT-2's vocabulary."""
    record = json.loads(changed(own))
    [end] = record["added_tokens"]
    record["added_tokens"].append(end | {"id": 50400, "content": "<far>", "special": False})
    record["model"]["vocab"] |= {END: 599, "<far>": 50400}
    (tmp_path / "far.json").write_text(json.dumps(record))
    folder = prepare(corpus, tmp_path / "data", "--tokenizer", tmp_path / "far.json")
    train(folder, tmp_path / "run", "--max_train_steps", 2, "--warmup_iters", 1, "--eval_every", 0)
    model = GPT.load(tmp_path / "run" / "ckpt" / "step_000002")
    assert model.config.vocab_size == 50401 and model.config.masked_ranges == [(50401, 50432)]


def test_comparing_tokenizers(run, data, tmp_path, capsys):
    """A recognised treatment, compared by bits per byte; also at equal text."""
    for seed in range(3):
        train(data[0], tmp_path / f"own_s{seed}", "--seed", seed)
        train(data[1], tmp_path / f"base_s{seed}", "--seed", seed)
    compare_runs.main(["--a", str(tmp_path / "base_s*"), "--b", str(tmp_path / "own_s*"), "--out", str(tmp_path / "r")])
    assert "not comparable" not in capsys.readouterr().out
    text = (tmp_path / "r" / "report.md").read_text()
    assert "tokens: GPT-2's \u2192 tokenizer tiny_600-" in text and "recognised" in text
    assert "Primary metric: val bits/byte, as the arms' tokens differ." in text
    assert "3 at equal FLOPs, wall-clock and text" in text
    compare_runs.main(["--a", str(tmp_path / "base_s*"), "--b", str(tmp_path / "own_s*"), "--out", str(tmp_path / "p"),
                       "--primary", "val_bits_per_byte"])
    assert "Primary metric: val bits/byte. " in (tmp_path / "p" / "report.md").read_text()  # asked for: no reason why
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    equal = {match["name"]: match for match in report["matchings"]}
    text_of = {}
    for arm in ("own", "base"):
        config = json.loads((tmp_path / f"{arm}_s0" / "config.json").read_text())
        text_of[arm] = 12 * 256 * config["data"]["bytes_per_token"] / 1e6
    budget = float(re.match(r"[\d.]+", equal["equal text"]["budget"])[0])
    assert budget == pytest.approx(min(text_of.values()), rel=1e-2)
    assert report["metrics"]["text_mb"]["a"] == pytest.approx(text_of["base"])
    # the arm that reads less is at its end; the other is read off before its own
    assert equal["equal text"]["row"]["b"] == equal["equal steps (tokens)"]["row"]["b"]
    assert equal["equal text"]["row"]["a"] > equal["equal steps (tokens)"]["row"]["a"]


def test_benchmarks_and_samples(run, tmp_path):
    """An item's score, by its tokens as the package gives them."""
    [item, *_] = items = synthetic.hellaswag_items(8, 0) if hasattr(synthetic, "hellaswag_items") else []
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    assert hellaswag.main(["--checkpoint", str(run), "--data", str(path), "--out", str(tmp_path), "--skip_long"]) == 0
    record = json.loads((tmp_path / "hellaswag_items.jsonl").read_text().splitlines()[0])
    assert record
    model = GPT.load(run / "ckpt" / "step_000012").eval()
    with torch.no_grad():
        assert model(torch.tensor([[599]])).shape[-1] == 640
    assert not sample.main([str(run), "--prompt", "the", "--max_new_tokens", "5"])


@pytest.mark.parametrize("pattern", ["gpt2", "digits"])
def test_needles_are_of_its_numbers(corpus, tmp_path, capsys, pattern):
    """Prompts were as long as GPT-2's numbers are; with a small vocabulary no number has two tokens."""
    folder = tmp_path / "model"
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=160, vocab_size=600, unused_ids=()), seed=0).save(folder)
    use(learn(corpus, tmp_path / "own", "--pattern", pattern)).save(folder)
    passkey = ["passkey", str(folder), "--filler", "sentences", "--samples", "3", "--no_store", "--context_tokens"]
    long_context.main([*passkey, "150"])
    with pytest.raises(SystemExit):
        long_context.main([*passkey, "64"])
    assert "has no room for filler: give at least" in capsys.readouterr().err


def test_a_copy_that_was_lost_or_edited(data, tmp_path):
    folder = shutil.copytree(data[0], tmp_path / "copy")
    path = folder / "tokenizer.json"
    for content in (path.read_bytes() + b"\n", None):
        path.unlink()
        if content:
            path.write_bytes(content)
        use_of(folder)
        with pytest.raises(ValueError, match=r"tokenizer.json is missing or not the one of meta.json: restore it, or"):
            shards.open_dataset(folder)


def test_names(own, run, corpus, tmp_path):
    """A tokenizer is called as it was when it was learned, wherever its copy lies; none is called as GPT-2's."""
    assert {use_of(path).name for path in (run / "ckpt").iterdir()} == {"tiny_600"}
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "tokenizer.json").write_bytes((own / "tokenizer.json").read_bytes())
    named = use(tmp_path / "gpt2")
    assert named.name == "gpt2_json" and not named.is_gpt2 and get_tokenizer() is named
    message = sentence_left(train_tokenizer.main, ["--dataset", str(corpus), "--out_dir", str(tmp_path / "x" / "gpt2")])
    assert "name another" in message


def test_sft_from_it_on_two_ranks(run, tmp_path):
    talk = tmp_path / "talk.jsonl"
    messages = lambda i: [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"word {i}"}]
    talk.write_text("".join(json.dumps({"messages": messages(i)}) + "\n" for i in range(40)))
    flags = ["--stage", "tulu", "--init", run, "--data", talk, "--max_train_steps", 3, "--warmup_iters", 1,
             "--total_batch_conversations", 4, "--micro_batch_size", 2, "--val_fraction", "0.2"]
    script = "import sys, sft; sys.exit(sft.main(sys.argv[1:]))"
    for status, _, error in run_two_ranks(script, *flags, "--out_dir", tmp_path / "two"):
        assert status == 0, error
    with light_files():
        assert sft.main(list(map(str, [*flags, "--out_dir", tmp_path / "one"]))) == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one["final_val_loss"] == pytest.approx(two["final_val_loss"], rel=1e-4)
    assert max((tmp_path / "two" / "ckpt").iterdir()).joinpath("tokenizer.json").exists()
    assert get_tokenizer().name != "gpt2"
    message = sentence_left(sft.main, [*map(str, flags), "--out_dir", str(tmp_path / "x"), "--condition", "mul_tokens"])
    assert "leave it out" in message


def test_export(run, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    model.main(["export", str(run), str(tmp_path / "hf")])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "the cat 12 + 3 <b>"
    assert theirs(text).input_ids == use_of(run / "ckpt" / "step_000012").encode(text)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.eos_token_id == network.config.eos_token_id == 599 and network.config.vocab_size == 600
    # and back, with its tokenizer
    model.main(["import", str(tmp_path / "hf"), str(tmp_path / "ours")])
    assert "its own tokenizer of 600 ids goes along" in capsys.readouterr().out
    assert use_of(tmp_path / "ours").encode(text) == theirs(text).input_ids
    ours = GPT.load(tmp_path / "ours")
    assert torch.equal(ours.transformer["wte"].weight[:600],
                       GPT.load(run / "ckpt" / "step_000012").transformer["wte"].weight[:600])
    assert not sample.main([str(tmp_path / "ours"), "--prompt", "the", "--max_new_tokens", "5"])
    broken = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    broken["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(broken))
    message = sentence_left(model.main, ["import", str(tmp_path / "hf"), str(tmp_path / "not")])
    assert "its own tokenizer is not GPT-2's" in message and not (tmp_path / "not").exists()


def test_continual_refuses_two_tokenizers(run, data, tmp_path):
    other = train(data[1], tmp_path / "gpt2")
    texts = tmp_path / "texts"
    message = sentence_left(continual.main, ["segments", str(run), str(other), "--segments", f"a={texts}"])
    assert "several tokenizers" in message


def test_normal_form():
    """PROBE_TEXT shows what NFC would change, or its refusal above would be of no worth."""
    assert unicodedata.normalize("NFC", PROBE_TEXT) != PROBE_TEXT
    assert tokenizer.own_file(REPO) is None
