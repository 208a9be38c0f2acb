"""long_context.py: what is read when, controls, prompts of known answers, records, and mistakes in a sentence."""

import json
import math

import pytest
import torch
from conftest import write_jsonl
from test_memory import ARMS, SMALL, make, settings, tokens

import long_context
from lab import chunks, long_documents, memory
from lab.long_documents import read_and_write, read_static
from model import GPT, GPTConfig

each_arm = pytest.mark.parametrize(("arm", "write"), ARMS)

# ----------------------------------------------------------------------------------------------------------------------
# windows


@pytest.mark.parametrize(("block", "period"), [(64, 0), (64, 8), (64, 48), (100, 64), (63, 8), (9, 8), (7, 0)])
@pytest.mark.parametrize("n", [1, 7, 64, 65, 300])
def test_windows_score_every_token_once(block, period, n):
    """Tokens scored twice or never: none; tokens read beyond block_size: none; of a later window, at least what half
    the block holds, or the block without a chunk, comes before each token; all but the last end with a whole chunk."""
    config = GPTConfig(**{**settings("hope_attention"), "block_size": block, "cms_periods": (period, 0)} if period else
                       dict(block_size=block))
    stride, size = long_documents.sizes(config)
    position = 0
    for start, first, end in long_documents.windows(n, config):
        assert first == position and 0 <= start <= first < end <= start + block
        if first:
            assert first - start == block - stride
        if end < n:
            assert end % size == 0
        position = end
    assert position == n
    assert stride % size == 0 and (stride <= block // 2 or stride == size)


def plain():
    model = GPT(GPTConfig(**{**SMALL, "memory_layers": 0}), seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8)  # so that the context matters
    return model


def long_row(n=200, rows=3):
    idx, targets = tokens(rows, n)
    return idx, targets


@each_arm
def test_within_block_size_it_is_the_model(arm, write):
    """Losses of 64 tokens at block_size 64: those of GPT.per_token_loss, to the bit, with and without writes."""
    model, (idx, targets) = make(arm, write), tokens()
    reading = chunks.Reading(model)
    assert torch.equal(read_and_write(reading, idx, targets), model.per_token_loss(idx, targets))
    assert torch.equal(read_static(model, idx, targets), model.per_token_loss(idx, targets, write=False))


@pytest.mark.parametrize("arm", ["none", "titan", "hope_attention", "hope"])
def test_static_sees_the_tokens_of_its_window_alone(arm):
    """Beyond the first window: the loss of each token by its definition, a forward pass from its window's start."""
    model, (idx, targets) = plain() if arm == "none" else make(arm), long_row()
    losses = read_static(model, idx, targets)
    for position in (63, 64, 95, 96, 130, 199):
        start = 0 if position < 64 else position // 32 * 32 - 32
        seen = slice(start, position + 1)
        alone = model.per_token_loss(idx[:, seen], targets[:, seen], write=False)[:, -1]
        torch.testing.assert_close(losses[:, position], alone, rtol=0, atol=1e-5)


@each_arm
def test_rate_zero_is_static(arm, write):
    """Windows, contexts and chunks are those of the static reading, to rounding."""
    model, (idx, targets) = make(arm, write, inner_lr=0.0), long_row()
    written = read_and_write(chunks.Reading(model), idx, targets)
    torch.testing.assert_close(written, read_static(model, idx, targets), rtol=0, atol=1e-5)


@each_arm
def test_every_chunk_is_written_once(arm, write):
    """200 tokens, chunks of 8, windows that overlap by 32: 24 writes, and the 25th where it is asked for."""
    model, (idx, targets) = make(arm, write), long_row()
    for write_last, expected in ((False, 24), (True, 25)):
        reading = chunks.Reading(model)
        read_and_write(reading, idx, targets, write_last)
        rows = memory.records(reading.layers, model.transformer["h"])
        assert rows and all(row["updates"] == expected for row in rows)
        levels = len(rows)
        sums = long_documents.written_sums(reading, 3)
        assert sums["updates"] == [expected * levels] * 3 and min(sums["update_norm"]) > 0


@each_arm
@pytest.mark.parametrize("position", [20, 100])
def test_a_token_is_scored_before_it_is_written(arm, write, position):
    """A marker changes no loss before it, and as a target only its own within its chunk, in the first window and in a
    later one; what is written of it reaches further than the windows that hold it."""
    model, (idx, targets) = make(arm, write), long_row(n=240)
    before = read_and_write(chunks.Reading(model), idx, targets)
    marked, marked_targets = idx.clone(), targets.clone()
    marked[:, position], marked_targets[:, position - 1] = 7, 7
    after = read_and_write(chunks.Reading(model), marked, marked_targets)
    assert torch.equal(before[:, : position - 1], after[:, : position - 1])
    only_target = read_and_write(chunks.Reading(model), idx, marked_targets)
    end = position // 8 * 8 + 8
    same = (before == only_target)[:, :end].all(0)
    assert same.tolist() == [i != position - 1 for i in range(end)]
    beyond = position + 64
    assert not torch.equal(before[:, beyond:], after[:, beyond:])
    static = [read_static(model, row, targets) for row in (idx, marked)]
    assert torch.equal(static[0][:, beyond:], static[1][:, beyond:])


@each_arm
def test_a_probe_changes_nothing(arm, write):
    """Losses behind a probe are those without it; a probe of an unwritten reading is the static loss."""
    model, (idx, targets) = make(arm, write), long_row()
    other, other_targets = tokens(rows=3, length=100, seed=5)
    reading = chunks.Reading(model)
    first = long_documents.probe(reading, other, other_targets)
    torch.testing.assert_close(first, read_static(model, other, other_targets), rtol=0, atol=1e-5)
    read_and_write(reading, idx, targets, write_last=True)
    second = long_documents.probe(reading, other, other_targets)
    assert torch.equal(second, long_documents.probe(reading, other, other_targets))
    assert not torch.allclose(first, second, atol=1e-4)
    plain = chunks.Reading(model)
    read_and_write(plain, idx, targets, write_last=True)
    assert torch.equal(read_and_write(reading, other, other_targets), read_and_write(plain, other, other_targets))


def documents(n=3, length=100):
    idx, _ = tokens(n, length + 1)
    return [long_documents.Document(str(i), row.tolist(), str(i)) for i, row in enumerate(idx)]


def test_controls_in_batches():
    """static, adapt and random of a document are the same alone and in a batch; other is not, and needs two."""
    model, chosen = make("hope_attention"), documents()
    for control in ("static", "adapt", "random"):
        together, _ = long_documents.losses(model, control, chosen)
        alone = torch.cat([long_documents.losses(model, control, [one])[0] for one in chosen])
        torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)
    losses = {name: long_documents.losses(model, name, chosen)[0] for name in long_documents.CONTROLS}
    for one in losses:
        for other in losses:
            assert one == other or not torch.allclose(losses[one], losses[other], atol=1e-4), (one, other)
    with pytest.raises(ValueError, match="at least two"):
        long_documents.losses(model, "other", chosen[:1])


def test_multiplier_and_write_at_test_time():
    """A multiplier of the rate is that rate; `off`, written, is `stop`; both end with the block."""
    chosen = documents()
    double, _ = long_documents.losses(make("hope_attention", inner_lr=0.5), "adapt", chosen)
    model = make("hope_attention", "off", inner_lr=0.25)
    static, _ = long_documents.losses(model, "static", chosen)
    with long_documents.test_time(model, 2.0, "stop"):
        assert torch.equal(long_documents.losses(model, "adapt", chosen)[0], double)
    nothing, written = long_documents.losses(model, "adapt", chosen)
    torch.testing.assert_close(nothing, static, rtol=0, atol=1e-5)
    assert written["updates"] == [0, 0, 0] and model.config.inner_lr == 0.25


def test_multiplier_reaches_the_titan():
    """The Titans memory reads the same configuration."""
    chosen = documents()
    expected, _ = long_documents.losses(make("titan", inner_lr=0.5), "adapt", chosen)
    model = make("titan", inner_lr=0.25)
    with long_documents.test_time(model, 2.0):
        assert torch.equal(long_documents.losses(model, "adapt", chosen)[0], expected)


# ----------------------------------------------------------------------------------------------------------------------
# numbers


def test_numbers_by_position():
    """Groups at 0, 64, 128 and the end; sums of ones are their sizes."""
    assert long_documents.edges(200) == [0, 64, 128, 200]
    assert long_documents.edges(64) == [0, 64] and long_documents.edges(10) == [0, 10]
    assert long_documents.sums_by_position(torch.ones(2, 200)) == [[64, 64, 72]] * 2


def test_effect_by_hand():
    """1, 2, 6: mean 3, variance 7, se sqrt(7 / 3), t(2) = 4.302653."""
    one = long_documents.effect([1.0, 2.0, 6.0])
    assert one["mean"] == 3 and one["n"] == 3 and one["n_below_0"] == 0 and one["largest"] == 6
    assert one["se"] == pytest.approx(math.sqrt(7 / 3))
    assert one["interval"] == pytest.approx([3 - 4.302653 * math.sqrt(7 / 3), 3 + 4.302653 * math.sqrt(7 / 3)])
    assert long_documents.effect([1.0])["interval"] is None


def test_documents_are_cut_and_chosen(tmp_path):
    """Too short ones and copies are left out, one per book is kept, the id is the row's or its place."""
    texts = ["a b", "one two three four five", "one two three four six", "x y z u v w"]
    rows = [{"text": text, "book": i // 2} for i, text in enumerate(texts)]
    rows[3]["id"] = "last"
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    chosen, short = long_documents.load(str(path), 9, 4)
    assert [one.id for one in chosen] == ["d.jsonl line 2", "last"] and short == 1
    assert chosen[0].ids == [50256, 505, 734, 1115, 1440]
    chosen, _ = long_documents.load(str(path), 9, 5, one_per="book", bos=False)
    assert [one.id for one in chosen] == ["last"]
    chosen, _ = long_documents.load(str(path), 1, 4, one_per="book", bos=False)
    assert [one.ids for one in chosen] == [[505, 734, 1115, 1440, 1936][:5]]


# ----------------------------------------------------------------------------------------------------------------------
# ppl


def save(folder, memory="hope_attention", **more):
    """A checkpoint that reads 64 tokens and writes 16 at a time."""
    shape = dict(n_layer=1, n_head=2, n_embd=16, block_size=64, padded_vocab_size=50432, memory=memory, **more)
    if memory != "none":
        shape["cms_periods"] = (16, 0)
    model = GPT(GPTConfig(**shape), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)  # so that the context matters
    model.save(folder)
    return folder


def run(*words):
    return long_context.main([str(word) for word in words])


FEW = "--max_documents 3 --tokens_per_document 200".split()


def read(path):
    lines = path.with_name(f"{path.stem}_documents.jsonl").read_text().splitlines()
    return json.loads(path.read_text()), [json.loads(line) for line in lines]


def test_ppl_record(tmp_path, capsys):
    """The numbers of a record follow from the lines of its documents; a plain transformer is read as static alone."""
    out = tmp_path / "r.json"
    run("ppl", save(tmp_path / "m"), "--data", "synthetic", *FEW, "--out", out)
    result, lines = read(out)
    printed = capsys.readouterr().out
    assert [line["control"] for line in lines] == [name for name in long_documents.CONTROLS for _ in range(3)]
    assert result["tokens"] == 600 and result["samples"] == 3 and result["stride"] == 32
    mean = {}
    for name in long_documents.CONTROLS:
        mine = [line for line in lines if line["control"] == name]
        assert all(line["tokens"] == [64, 64, 72] for line in mine)
        mean[name] = sum(sum(line["nats"]) for line in mine) / 600
        assert result["loss"][name] == pytest.approx(mean[name], rel=1e-12)
        assert f"{mean[name]:.4f}" in printed
        assert result["by_position"][1]["loss"][name] == pytest.approx(sum(line["nats"][1] for line in mine) / 192)
    assert result["minus_static"]["adapt"]["mean"] == pytest.approx(mean["adapt"] - mean["static"], rel=1e-6)
    assert result["ppl_base"] == pytest.approx(math.exp(mean["static"]))
    assert result["ppl_delta"] == pytest.approx(math.exp(mean["static"]) - math.exp(mean["adapt"]))
    assert result["written"]["adapt"]["updates"] == 12 and result["written"]["static"]["updates"] == 0
    assert [one["sha256"] for one in result["documents"]] == [line["sha256"] for line in lines[:3]]
    plain = save(tmp_path / "plain", "none")
    run("ppl", plain, "--data", "synthetic", *FEW)
    other, lines = read(plain / "eval" / "ppl_step000000.json")
    assert list(other["loss"]) == ["static"] and len(lines) == 3 and other["ppl_delta"] is None
    assert other["documents_sha256"] == result["documents_sha256"] and other["stride"] == result["stride"]
    assert not list(tmp_path.rglob("*partial*"))


def test_ppl_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Stopped after each batch in turn, the same command ends with the record of an uninterrupted one."""
    model, command = save(tmp_path / "m"), ["--data", "synthetic", *FEW, "--batch_size", 2]
    run("ppl", model, *command, "--out", tmp_path / "whole.json")
    computed, original = [], long_documents.losses

    def count(*args):
        computed.append(args[1])
        if len(computed) % 2 == 0:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(long_documents, "losses", count)
    stops = 0
    while True:
        try:
            run("ppl", model, *command, "--out", tmp_path / "parts.json")
            break
        except KeyboardInterrupt as interrupt:
            assert "same command again" in str(interrupt)
            stops += 1
    assert stops == 3 and len(computed) == 7  # 4 controls, the last of 3 documents joins the others
    (whole, lines), (parts, again) = (read(tmp_path / f"{name}.json") for name in ("whole", "parts"))
    for result in (whole, parts):
        for name in ("timestamp", "seconds", "documents_file"):
            del result[name]
    assert whole == parts and lines == again


def test_dynamic_evaluation_and_the_choice_of_a_rate(tmp_path, capsys):
    """A checkpoint that was trained with --write off is written on demand, at the best of the rates on dev."""
    model, out = save(tmp_path / "m", write="off"), tmp_path / "r.json"
    rows = [{"text": long_documents.long_text(100 + i, 201)} for i in range(2)]
    dev = write_jsonl(tmp_path / "dev.jsonl", rows)
    command = ["ppl", model, "--data", "synthetic", *FEW, "--out", out]
    with pytest.raises(ValueError, match="--write stop"):
        run(*command, "--controls", "adapt")
    run(*command)
    assert list(read(out)[0]["loss"]) == ["static"]
    assert "--write stop" in capsys.readouterr().err
    run(*command, "--controls", "adapt", "--write", "stop", "--choose_inner_lr", "0.001,1", "--dev_data", dev)
    result, _ = read(out)
    losses = result["inner_lr_choice"]["loss_by_multiplier"]
    assert result["inner_lr_multiplier"] == float(min(losses, key=losses.get)) == 1
    assert result["inner_lr_choice"]["documents"] == ["dev.jsonl line 1", "dev.jsonl line 2"]
    assert "border" in capsys.readouterr().err
    run(*command, "--controls", "adapt", "--write", "stop")
    assert read(out)[0]["loss"] == result["loss"]
    with pytest.raises(ValueError, match="2 of the documents of --dev_data"):
        run("ppl", model, "--data", dev, *FEW, "--write", "stop", "--choose_inner_lr", "1", "--dev_data", dev)


def test_mistakes_are_a_sentence(tmp_path, capsys):
    model, plain = save(tmp_path / "m"), save(tmp_path / "plain", "none")
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"body": "x"}])
    number = write_jsonl(tmp_path / "number.jsonl", [{"text": 5}])
    for words, sentence in [
        ((model, "--data", bad), "no column 'text': pass --text_column"),
        ((model, "--data", number), "no text in column 'text'"),
        ((model, "--data", tmp_path / "none.parquet"), "no such file"),
        ((model, "--data", bad, "--text_column", "body"), "no document of 4,096 tokens (the longest has 1)"),
        ((model, "--data", "synthetic:1", *FEW), "needs a second document"),
        ((plain, "--data", "synthetic", *FEW, "--write", "stop"), "leave --write out"),
        ((plain, "--data", "synthetic", *FEW, "--choose_inner_lr", "1", "--dev_data", "synthetic"), "writes nothing"),
        ((tmp_path / "gone", "--data", "synthetic"), "CHECKPOINT"),
    ]:
        with pytest.raises((ValueError, OSError)) as caught:
            run("ppl", *words)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
    for words, sentence in [
        (["ppl"], "checkpoint is missing"), (["ppl", model, "--controls", "statics"], "choose from static, adapt"),
        (["ppl", model, "--choose_inner_lr", "1,x"], "give numbers"),
        (["ppl", model, "--dev_data", "x"], "both or none"),
        (["ppl", model, "--max_documents", "0"], "at least 1"), (["ppl", model, "--out", "x.txt"], ".json"),
        (["pp", model], "give ppl"), ([], "give ppl"), (["ppl", model, "--inner_lr_multiplier", "0"], "above 0"),
        (["ppl", model, "--out", "x.json", "--no_store"], "one of them"),
        (["ppl", model, "--choose_inner_lr", "1", "--dev_data", "x", "--inner_lr_multiplier", "2"], "leave"),
    ]:
        with pytest.raises(SystemExit) as end:
            run(*words)
        text = capsys.readouterr().err
        assert end.value.code == 2 and sentence in text and text.count("\n") == 1, text
