"""sample.py: text as it comes, samples that depend on nothing but their seed, conversations, checkpoints compared."""

import json
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from conftest import ENV, REPO, light_files, write_jsonl

import sample
from lab import conversations, disk, inference, runs, terminal
from lab.tokenizer import BOS_ID, get_tokenizer
from model import GPT, GPTConfig

TINY = dict(n_layer=1, n_head=2, n_embd=16, block_size=64)


def make_checkpoint(folder, data=None, flags=None, seed=0, step=3):
    """A run with one checkpoint of a model that knows nothing, its data as config.json would have it."""
    with light_files():
        (folder / "ckpt").mkdir(parents=True)
        model = GPT(GPTConfig(**TINY), seed=seed)
        runs.save_checkpoint(folder, step, model.save, 0, 1)
        disk.write_json(folder / "config.json", {"flags": flags or {}, "data": data or {"format": "stream"}})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "base_s0")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    data = {"format": "conversations", "condition": "mul_tokens"}
    return make_checkpoint(tmp_path_factory.mktemp("runs") / "sft_s0", data, {"bos": "on"})


def call(*flags, out=None):
    """Records of --out."""
    flags = [*map(str, flags), "--device", "cpu"]
    if out:
        flags += ["--out", str(out)]
    assert sample.main(flags) == 0
    return runs.read_jsonl(out) if out else []


# ----------------------------------------------------------------------------------------------------------------------
# text as it comes


def test_stream_shows_what_the_ids_decode_to(capsys):
    """Characters that are broken, lost or doubled where a token ends inside one: 0, for valid and for invalid UTF-8."""
    tokenizer, rng = get_tokenizer(), random.Random(0)
    texts = [tokenizer.encode("naïve 🙂👩‍👩‍👧 日本語 हिन्दी"), [rng.randrange(50257) for _ in range(300)], [30325]]
    for ids in [*texts, *([rng.randrange(256) for _ in range(9)] for _ in range(300))]:
        stream, shown = terminal.Stream(), ""
        for token in ids:
            stream(0, token)
            piece = capsys.readouterr().out
            assert "\ufffd" not in piece or "\ufffd" in tokenizer.decode(ids)
            shown += piece
        stream.end()
        assert shown + capsys.readouterr().out == terminal.visible(tokenizer.decode(ids))


def test_stream_ends_at_a_stop_string(capsys):
    """Characters of `User:` that a user sees when the model goes on with the next question: 0. A beginning that does
    not become one is shown in the end."""
    for text, expected in (("a Us", "a Us"), ("a User", "a User"), ("a User: b", "a "), ("UUser:x", "U"), ("U", "U")):
        for cuts in (1, 2, 3):
            stream = terminal.Stream("User:")
            for i in range(0, len(text), cuts):
                for token in get_tokenizer().encode(text[i : i + cuts]):
                    stream(0, token)
            stream.end()
            assert capsys.readouterr().out == expected


def test_control_characters_are_shown():
    """Bytes of a model that move the cursor, clear the screen or turn the text round: 0."""
    assert terminal.visible("a\x1b[2J\r\x07\tb\n\u202e") == "a\\x1b[2J\\r\\x07\tb\n\\u202e"


def test_one_line_escapes_what_visible_does_and_breaks():
    """Characters that one of the two escapes and the other does not: tab and line break."""
    every = [chr(i) for i in range(0x10000)]
    shown = {c for c in every if terminal.visible(c) == c}
    assert shown - {c for c in every if terminal.one_line(c) == c} == {"\t", "\n"}
    assert terminal.visible("\udc80\x1b") == "\\udc80\\x1b" and terminal.one_line(3) == "3"


def test_columns(monkeypatch):
    """Cells by which the border between two checkpoints moves from line to line: 0, wide characters included."""
    monkeypatch.setenv("COLUMNS", "63")
    texts = ["the quick brown fox jumps over a dog\n日本語" * 3, "short\n\nb"]
    rows = [row.split(" |") for row in terminal.side_by_side(["one", "two"], texts).split("\n")]
    assert {terminal.cells_of(left) for left, _ in rows} == {30} and rows[0][0].rstrip() == "one"
    assert [right.strip() for _, right in rows[2:5]] == ["short", "", "b"]
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.side_by_side(["one", "two"], ["a", "b"]) == "[one]\na\n[two]\nb"


# ----------------------------------------------------------------------------------------------------------------------
# samples


def test_samples_are_those_of_generate(base, tmp_path, capsys):
    """Tokens by which a sample differs from lab/inference's of the same seed, for any batch, number of samples and
    place in a file: 0."""
    prompts = ["Once upon a time", "The sky", "6*9=54 is"]
    file = tmp_path / "p.txt"
    file.write_text("Once upon a time\n\n  \nThe sky\r\n6*9=54 is\n")
    flags = ["--max_new_tokens", 12, "--seed", 5, "--num_samples", 3, "--top_k", 0]
    one = call(base, "--file", file, *flags, out=tmp_path / "one.jsonl")
    shown = capsys.readouterr()
    many = call(base, "--file", file, *flags, "--batch_size", 4, out=tmp_path / "many.jsonl")
    alone = call(base, "--prompt", prompts[1], *flags[:-4], "--num_samples", 2, "--top_k", 0, out=tmp_path / "a.jsonl")
    measured = {"timestamp"}
    strip = lambda records: [{k: v for k, v in r.items() if k not in measured} for r in records]
    assert strip(one) == strip(many) and strip(alone) == strip(one[3:5])
    assert [(r["prompt"], r["sample"]) for r in one] == [(p, i) for p in prompts for i in range(3)]
    ckpt = runs.checkpoint_path(base, 3)
    model = GPT.load(ckpt).eval()
    for record in one:
        ids = [BOS_ID, *get_tokenizer().encode(record["prompt"])]
        [expected] = inference.generate(model, [ids], 12, 0.8, seed=5, stop_ids=[BOS_ID], row_ids=[record["sample"]])
        assert record["ids"] == expected.ids and record["text"] == get_tokenizer().decode(expected.ids)
        assert record["prompt_tokens"] == len(ids) and record["tokens"] == len(expected.ids)
        assert f"{record['prompt']}{terminal.visible(record['text'])}\n" in shown.out
        assert record["checkpoint_sha256"] == disk.sha256_file(ckpt / "model.safetensors")
        assert (record["seed"], record["temperature"], record["model"]) == (5, 0.8, "base_s0 step 3")
    assert "9 samples, " in shown.err and " tokens/s (cpu, float32)" in shown.err


def test_compared_checkpoints_draw_the_same_numbers(base, tmp_path, capsys):
    """Tokens by which a checkpoint, compared with itself as a bare folder, differs: 0; and with another: some."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(runs.checkpoint_path(base, 3) / name, bare)
    other = make_checkpoint(tmp_path / "other", seed=1)
    records = call(base, "--compare", bare, other / "ckpt" / "step_000003", "--num_samples", 2, "--max_new_tokens", 8,
                   out=tmp_path / "o.jsonl")
    shown = capsys.readouterr().out
    assert "base_s0 step 3" in shown and "other step 3" in shown and shown.count("sample 1 of 2") == 1
    for a, b, c in (records[:3], records[3:]):
        assert a["ids"] == b["ids"] != c["ids"] and a["model"] != b["model"]


def test_edges(base, tmp_path, capsys):
    """Prompts and settings at the border that end in a traceback or another text: none."""
    few = ["--max_new_tokens", 4]
    [empty] = call(base, *few, out=tmp_path / "a")
    assert empty["prompt_tokens"] == 1 and empty["prompt"] == ""
    greedy = call(base, "--temperature", 0, "--num_samples", 2, "--top_k", 10**9, *few, out=tmp_path / "b")
    [ids] = inference.generate(GPT.load(runs.checkpoint_path(base, 3)).eval(), [[BOS_ID]], 4, temperature=0)
    assert greedy[0]["ids"] == greedy[1]["ids"] == ids.ids
    assert "all samples of a prompt are equal" in capsys.readouterr().err
    [long] = call(base, "--prompt", "word " * 100, *few, out=tmp_path / "c")
    assert long["tokens"] == 4 and "sees the last 64" in capsys.readouterr().err
    [half] = call(base, "--prompt", "a\udcff", *few, out=tmp_path / "d")
    assert half["prompt"] == "a\ufffd" and "half a character" in capsys.readouterr().err
    call(base, "--prompt", "FILE:prompt.txt", *few, out=tmp_path / "e")  # nanoGPT's way
    assert "no file is read" in capsys.readouterr().err


def test_prompts_of_records(tmp_path):
    """Prompts that are read as the JSON around them: none; and lines that only look like JSON are prompts."""
    records = [{"prompt": "a\nb", "text": "x"}, {"text": "c"}, {"question": "d"}]
    for name in ("p.jsonl", "p.txt"):
        assert sample.read_prompts(str(write_jsonl(tmp_path / name, records))) == ["a\nb", "c", "d"]
    (tmp_path / "q.txt").write_text('\ufeff{"prompt": "a"}\nplain\n', encoding="utf-8")
    assert sample.read_prompts(str(tmp_path / "q.txt")) == ['{"prompt": "a"}', "plain"]


@pytest.mark.parametrize("content, fault", [
    (b"ok\n\xe9t\xe9\n", "not UTF-8 in line 2"), (b"\n \n", "holds no prompts"),
    (b'{"x": 1}\n', "line 1 has no text under"),
])
def test_bad_files(tmp_path, content, fault):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        sample.read_prompts(str(tmp_path / "p.txt"))


@pytest.mark.parametrize("flags, fault", [
    ("--temperature nan", "--temperature nan: give 0"), ("--top_k -1", "--top_k -1: give 0"),
    ("--num_samples 0", "--num_samples 0"), ("--prompt a --file b", "exclude each other"),
    ("--chat", "was not fine-tuned on conversations"), ("--chat --compare x", "a conversation is with one run"),
    ("--bos off", "an empty prompt needs --bos on"), ("--file nowhere.txt", "--file nowhere.txt cannot be read"),
    ("--compare nowhere", "--compare nowhere is not a folder"), ("--out {base}/config.json", "exists: name a new file"),
    ("--out {base}/config.json/x", "cannot be made"),
])
def test_mistakes(base, capsys, flags, fault):
    """Mistakes that start to sample, or whose sentence does not name them: none."""
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        sample.main([str(base), *flags.format(base=base).split(), "--device", "cpu"])
    captured = capsys.readouterr()
    assert fault in str(caught.value) + captured.err and captured.out == ""


def test_products_in_a_prompt_follow_the_data(tmp_path, capsys):
    """Multiplication tokens that a prompt of the treatment lacks, or one of the baseline has: 0. A message of a
    conversation has none in either, as fine-tuning injects into answers only."""
    tokenizer = get_tokenizer()
    for inject, ids in ((None, [50342]), ("strict", tokenizer.encode("6*9"))):
        data = {"format": "stream", "condition": "mul_tokens", "inject": inject}
        run = make_checkpoint(tmp_path / f"mul_{inject}", data)
        args = sample.parse_args([str(run)])
        opened = sample.open_model(str(run), "RUN", args, torch.device("cpu"))
        assert sample.encode(opened, "6*9", chat=False)[0] == [BOS_ID, *ids]
        assert sample.encode(opened, "so 6*9=54", False) == ([BOS_ID, *tokenizer.encode("so "), 50342], 1)
        assert sample.encode(opened, "<MUL_6_9_54>", False)[0] == [BOS_ID, 50342]
        assert sample.encode(opened, "6*9", chat=True)[0] == [BOS_ID, *tokenizer.encode("User: 6*9\nAssistant:")]
    assert "products in the prompt become multiplication tokens, as in its data (strict)" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# conversations


def test_conversation_has_the_format_of_fine_tuning(tuned, tmp_path, monkeypatch, capsys):
    """Ids by which the second turn's context differs from what lab/conversations makes of the first exchange: 0."""
    answers, asked = iter([" It is <MUL_6_9_54>. \nUser: and", " no"]), []

    def write(opened, prompts, numbers, *rest):
        asked.append(prompts[0])
        text = next(answers).partition("User:")[0]
        return [sample.Written(get_tokenizer().encode(text, mul_tokens=True), text, "stop_id")]

    monkeypatch.setattr(sample, "write", write)
    messages = iter(["  What is 6*9? ", "", "And 2+2?"])

    def read(prompt):
        try:
            return next(messages)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    records = call(tuned, "--chat", out=tmp_path / "o.jsonl")
    turns = [("What is 6*9?", "It is 6*9=54.")]
    [(first, _, _)] = conversations.tokenize(
        [turns], seq_len=1000, bos=True, injector=sample.MulExpressionInjector(), strip_notes=False, counts=Counter())
    encode = get_tokenizer().encode
    assert asked == [[BOS_ID, *encode("User: What is 6*9?\nAssistant:")],
                     [*first.tolist(), *encode("User: And 2+2?\nAssistant:")]]
    assert [r["sample"] for r in records] == [0, 1] and records[1]["prompt_tokens"] == len(asked[1])


def test_conversation_longer_than_the_window(tuned, capsys):
    """Tokens of a context that the model cannot see because an old exchange was kept: 0."""
    args = sample.parse_args([str(tuned), "--chat"])
    opened = sample.open_model(str(tuned), "RUN", args, torch.device("cpu"))
    exchanges = [[1] * 20, [2] * 30, [3] * 20]
    assert sample.fit(opened, exchanges, [4] * 5, 200) == [BOS_ID] + [3] * 20 + [4] * 5  # 64 - 64 // 4 = 48
    assert "oldest 2 of 3" in capsys.readouterr().err
    assert sample.fit(opened, exchanges, [4] * 70, 200) == [BOS_ID] + [4] * 70
    assert "sees the last 64" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_then_the_conversation(tuned, tmp_path):
    """Conversations that the first ctrl-C ends, or the one at the prompt does not: 0."""
    leader, terminal_end = pty.openpty()
    command = [sys.executable, str(REPO / "sample.py"), str(tuned), "--chat", "--max_new_tokens", "1000000",
               "--device", "cpu", "--top_k", "0", "--out", str(tmp_path / "o.jsonl")]
    process = subprocess.Popen(command, stdin=terminal_end, stdout=terminal_end, stderr=terminal_end, env=ENV,
                               start_new_session=True)
    seen = b""

    def hears(words, seconds=120) -> bool:
        nonlocal seen
        until = time.monotonic() + seconds
        while words not in seen:
            ready, *_ = select.select([leader], [], [], max(0, until - time.monotonic()))
            if not ready:
                return False
            seen += os.read(leader, 4096)
        seen = seen.partition(words)[2]
        return True

    try:
        assert hears(b"User: ")
        os.write(leader, b"hello\n")
        assert hears(b"Assistant:")
        while len(seen) < 20:
            seen += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        assert hears(b"[stopped]") and hears(b"User: ")
        process.send_signal(signal.SIGINT)
        if not hears(b"tokens/s", 10):  # between its prompt and its first look at the keys, readline forgets a signal
            process.send_signal(signal.SIGINT)
            assert hears(b"tokens/s"), seen
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(leader)
        os.close(terminal_end)
    [record] = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert record["stopped"] == "ctrl_c" and record["prompt"] == "hello" and record["tokens"] == len(record["ids"]) > 0


def test_an_unwritable_file_is_refused_before_the_first_sample(monkeypatch, tmp_path):
    """Samples drawn for a file of --out that cannot be written: none."""
    def full(path, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample.disk, "append_line", full)
    monkeypatch.setattr(sample, "open_model", lambda *args: None)
    monkeypatch.setattr(sample, "sample_all", lambda *args: pytest.fail("sampled"))
    with pytest.raises(ValueError, match="cannot be written .No space left on device"):
        sample.main(["run", "--prompt", "x", "--out", str(tmp_path / "out.jsonl"), "--device", "cpu"])
