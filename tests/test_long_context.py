"""long_context.py: what is read when, controls, prompts of known answers, records, and mistakes in a sentence."""

import json
import math

import pytest
import torch
from conftest import write_jsonl
from test_memory import ARMS, SMALL, make, settings, tokens

import long_context
from lab import chunks, long_documents, long_exams, memory, needles
from lab.long_documents import read_and_write
from lab.tokenizer import get_tokenizer
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


def read_static(model, idx, targets):
    return long_documents.probe(chunks.Reading(model), idx, targets)


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


def test_a_quick_look_replaces_no_fuller_record(tmp_path, capsys):
    """A record of 3 documents gave way in silence to one of 1, and one of real text would to synthetic text. It is
    told before the work; as much or more, other weights, or an --out replace it."""
    model = save(tmp_path / "m", "none")
    out = model / "eval" / "ppl_step000000.json"
    run("ppl", model, "--data", "synthetic", *FEW)
    whole = out.read_bytes()
    for fewer in (("--max_documents", 1), ("--tokens_per_document", 100)):
        capsys.readouterr()
        run("ppl", model, "--data", "synthetic", *FEW, *fewer)
        told = capsys.readouterr()
        assert out.read_bytes() == whole and "the record is" not in told.out
        assert f"NOTE: this will not be stored: {out} is a record" in told.err
        assert "of 3 documents x 200 tokens (synthetic); pass --out" in told.err
    run("ppl", model, "--data", "synthetic", *FEW, "--max_documents", 1, "--out", out)
    assert read(out)[0]["samples"] == 1
    run("ppl", model, "--data", "synthetic", *FEW)
    assert read(out)[0]["samples"] == 3 and "NOTE" not in capsys.readouterr().err
    real = read(out)[0] | {"data": "books.parquet", "tokens": 100}
    out.write_text(json.dumps(real))
    run("ppl", model, "--data", "synthetic", *FEW)
    assert read(out)[0]["data"] == "books.parquet" and "this will not be stored" in capsys.readouterr().err
    out.write_text(json.dumps(real | {"checkpoint_sha256": "0" * 64}))
    run("ppl", model, "--data", "synthetic", *FEW)
    assert read(out)[0]["data"] == "synthetic"


@pytest.mark.parametrize("kind, few, length, samples", [
    ("niah", ["--context_lengths", "120,150", "--samples_per_length", 4], "--context_lengths", "--samples_per_length"),
    ("passkey", ["--context_tokens", 120, "--samples", 4], "--context_tokens", "--samples")])
def test_few_prompts_replace_no_fuller_record(tmp_path, capsys, kind, few, length, samples):
    """A record of 4 prompts per length gave way in silence to one of 2, and one of text would to sentences. As much or
    more, other weights, or an --out replace it."""
    model = save(tmp_path / "m", "none")
    out, few = model / "eval" / f"{kind}_step000000.json", ["--filler", "sentences", "--removed", "off", *few]
    run(kind, model, *few)
    whole = out.read_bytes()
    capsys.readouterr()
    run(kind, model, *few, samples, 2)
    told = capsys.readouterr()
    assert out.read_bytes() == whole and "the record is" not in told.out
    assert f"NOTE: this will not be stored: {out} is a record of this checkpoint that says more, of 4 " in told.err
    assert "tokens (sentences); pass --out" in told.err
    run(kind, model, *few, length, 150, samples, 2, "--out", out)
    assert json.loads(out.read_text())["samples_per_length"] == 2
    run(kind, model, *few)
    real = json.loads(out.read_text()) | {"data": "books.parquet", "filler": "text"}
    assert real["samples_per_length"] == 4 and "NOTE: this" not in capsys.readouterr().err
    out.write_text(json.dumps(real))
    run(kind, model, *few, samples, 8)
    assert "(books.parquet); pass --out" in capsys.readouterr().err
    out.write_text(json.dumps(real | {"checkpoint_sha256": "0" * 64}))
    run(kind, model, *few)
    assert "data" not in json.loads(out.read_text())


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
        for name in ("timestamp", "seconds"):
            del result[name]
    assert whole == parts and lines == again


@pytest.mark.parametrize("words", [["ppl", "--data", "synthetic", *FEW], ["niah", "--filler", "sentences",
                                                                          "--context_lengths", "130"]])
def test_dry_run_checks_and_scores_nothing(tmp_path, capsys, monkeypatch, words):
    """Forward passes, and files that are written: none; what would end the exam before its first one still does."""
    model, (command, *flags) = save(tmp_path / "m"), words
    monkeypatch.setattr(chunks.Reading, "read", None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        run(command, model, *flags, "--dry_run")
    assert not end.value.code and "nothing was scored" in capsys.readouterr().out
    with pytest.raises(ValueError, match="raise --batch_size"):
        run(command, model, *flags, "--dry_run", "--batch_size", 1)
    assert sorted(tmp_path.rglob("*")) == before


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


# ----------------------------------------------------------------------------------------------------------------------
# prompts


@pytest.fixture(scope="module")
def fillers():
    """Of numbered sentences and of the synthetic corpus, for prompts of up to 65,536 tokens."""
    longest = 65_536
    rows = long_documents.texts("synthetic", "text", longest)
    return {"sentences": needles.make_filler([needles.sentences(4 * longest)], longest),
            "text": needles.make_filler((text for _, text, _ in rows), longest)}


each_kind = pytest.mark.parametrize("kind", needles.NEEDLES)


@each_kind
@pytest.mark.parametrize(("length", "n"), [
    (2048, 20), (4096, 10), (8192, 5), (16_384, 5), (32_768, 5), (65_536, 5), (300, 20)])
def test_prompts_have_exactly_so_many_tokens(kind, length, n, fillers):
    """Also when the text is encoded again. The needle stands within a sentence of its depth, and ten different numbers
    of two tokens are asked for, of which the right one alone is in the text."""
    encode, decode = get_tokenizer().encode, get_tokenizer().decode
    depths = [0, 0.25, 0.5, 0.75, 1]
    for filler in fillers.values():
        for i in range(n):
            for with_needle in (True, False):
                prompt = needles.make_prompt(kind, filler, length, depths[i % 5], 0, i, with_needle)
                text = decode(prompt.ids[1:])
                assert len(prompt.ids) == length and prompt.ids == [50256, *encode(text)]
                numbers = [decode(candidate).strip() for candidate in prompt.candidates]
                assert len(set(numbers)) == 10 and all(len(number) == 5 for number in numbers)
                assert all(len(candidate) == 2 for candidate in prompt.candidates)
                inside = [number for number in numbers if number in text]
                assert inside == [numbers[prompt.answer]] * with_needle
                if with_needle:
                    assert abs(prompt.depth - depths[i % 5]) < 40 / length
                    before = decode(prompt.ids[1 : prompt.needle_end])
                    assert numbers[prompt.answer] in before[-60:] and before.endswith(".")


@each_kind
def test_prompts_are_seeded(kind, fillers):
    """The same prompt for the same number and seed, others for others; without its needle, the same question."""
    make = lambda *where, **more: needles.make_prompt(kind, fillers["text"], 2048, 0.5, *where, **more)
    first = make(0, 0)
    assert first == make(0, 0)
    assert first.ids != make(0, 1).ids and first.ids != make(1, 0).ids
    removed = make(0, 0, with_needle=False)
    assert removed.candidates == first.candidates and removed.answer == first.answer
    assert removed.ids[-500:] == first.ids[-500:] and removed.needle_end == 0


def test_answers_are_anywhere(fillers):
    """Of 1,000 prompts each of the ten places has the right answer 60 to 140 times (five standard deviations)."""
    answers = [needles.make_prompt("niah", fillers["sentences"], 300, 0, 0, i).answer for i in range(1000)]
    assert all(60 < answers.count(place) < 140 for place in range(10))


def oracle(model, control, prompts):
    """Finds a number that stands in the prompt."""
    records = []
    for prompt in prompts:
        text = get_tokenizer().decode(prompt.ids)
        scores = [float(get_tokenizer().decode(number) in text) for number in prompt.candidates]
        records.append({"scores": scores, "greedy": max(scores) == 1, "updates": 1.0, "update_norm": 1.0})
    return records


@each_kind
def test_an_oracle_is_right_and_without_the_needle_at_chance(kind, tmp_path, monkeypatch):
    """Accuracy 1.0 at every depth, and 0.1 when the needle is removed: ten equal numbers share the point."""
    monkeypatch.setattr(needles, "score", oracle)
    result = ask(tmp_path, kind, 20, "none")
    accuracy = {cell["control"]: set() for cell in result["cells"]}
    for cell in result["cells"]:
        accuracy[cell["control"]].add(round(cell["accuracy"], 12))
    assert accuracy == {"static": {1.0}, "removed": {0.1}}


def ask(tmp_path, kind, n, memory="hope_attention", length=300, *words, **more):
    """A record of n prompts of a length."""
    out = tmp_path / "ask.json"
    names = {"niah": ("--context_lengths", "--samples_per_length"), "passkey": ("--context_tokens", "--samples")}
    flags = [names[kind][0], length, names[kind][1], n, "--filler", "sentences", "--out", out, *words]
    run(kind, save(tmp_path / memory, memory, **more), *flags)
    return json.loads(out.read_text())


def test_without_the_needle_any_scorer_is_at_chance(fillers):
    """Over the ten places that the right answer can have, a scorer of a prompt without a needle gets one point."""
    prompt = needles.make_prompt("niah", fillers["text"], 300, 0.5, 0, 0, with_needle=False)
    for scores in ([float(i) for i in range(10)], [0.0] * 10, [1.0, 1.0, 1.0] + [0.0] * 7):
        record = {"scores": scores}
        credits = [needles.mark(prompt._replace(answer=i), record, 60)["credit"] for i in range(10)]
        assert sum(credits) == pytest.approx(1.0)


def test_a_model_is_at_chance_without_the_needle(tmp_path):
    """0.1 lies in the interval of 40 prompts, for a model that writes what it reads."""
    result = ask(tmp_path, "niah", 40, "hope_attention", 130, "--controls", "adapt", "--batch_size", 40)
    low, high = result["niah_130_removed_accuracy_interval"]
    assert low < 0.1 < high


@pytest.mark.parametrize("memory", ["none", "hope_attention"])
def test_static_cannot_reach_beyond_its_window(memory, fillers, tmp_path):
    """With the needle out of the window, its number changes no score, to the bit; within, it does. What was written
    reaches further."""
    model = GPT.load(save(tmp_path / "m", memory))
    window = needles.window_of(model.config)
    for depth, same in ((0, True), (1, False)):
        prompt = needles.make_prompt("niah", fillers["sentences"], 300, depth, 0, 0)
        other = list(prompt.ids)
        place = prompt.needle_end - 3  # " 48213" and "."
        assert other[place : place + 2] == prompt.candidates[prompt.answer]
        other[place : place + 2] = prompt.candidates[(prompt.answer + 1) % 10]
        pair = prompt, prompt._replace(ids=other)
        controls = ["static", "adapt"][: 1 + (memory != "none")]
        for control in controls:
            first, second = (needles.score(model, control, [one])[0]["scores"] for one in pair)
            assert (first == second) == (same and control == "static"), (depth, control)
        assert needles.mark(prompt, {"scores": [0.0] * 10}, window)["visible"] != same


@pytest.mark.parametrize("kind, copies", [("niah", 1), ("passkey", 2)])
def test_a_needle_is_in_the_window_with_its_number(kind, copies, fillers):
    """Not where only the end of its sentence is, as of most passkeys at the window's border."""
    prompt = needles.make_prompt(kind, fillers["sentences"], 300, 0.5, 0, 0)
    number = prompt.candidates[prompt.answer]
    places = [i for i in range(prompt.needle_end) if prompt.ids[i : i + 2] == number]
    assert len(places) == copies
    for window in range(len(prompt.ids) - prompt.needle_end, len(prompt.ids) + 9):
        seen = needles.mark(prompt, {"scores": [0.0] * 10}, window)["visible"]
        assert seen == (len(prompt.ids) - window <= places[-1])


@each_arm
def test_scores_are_those_of_the_definition(arm, write):
    """A prompt of 150 tokens at block_size 64: 18 chunks of 8 written in windows, then 63 tokens read anew, and the
    first token of a number behind them; every log-prob from the chunked forward of that."""
    model, ids = make(arm, write), [row.tolist() for row in tokens(2, 150)[0]]
    candidates = [[[2 * i, 2 * i + 1] for i in range(10)], [[2 * i + 1, 2 * i] for i in range(10)]]
    prompts = [needles.Prompt(row, numbers, 3, 0.0, 0) for row, numbers in zip(ids, candidates, strict=True)]
    for control in ("static", "adapt"):
        records = needles.score(model, control, prompts)
        for prompt, record in zip(prompts, records, strict=True):
            reading, idx = chunks.Reading(model), torch.tensor([prompt.ids])
            if control == "adapt":
                read_and_write(reading, idx[:, :144], idx[:, 1:145], write_last=True)
            for number, given in zip(prompt.candidates, record["scores"], strict=True):
                with torch.no_grad():
                    states = long_documents.read_only(
                        reading.fork(), torch.tensor([prompt.ids[-63:] + number[:1]]), restart=True)
                    log_probs = model.head(states[:, -2:]).log_softmax(-1)[0]
                expected = log_probs[0, number[0]] + log_probs[1, number[1]]
                assert given == pytest.approx(expected.item(), abs=2e-5)
            best = [max(range(101), key=lambda i: log_probs[0, i])]
            assert record["greedy"] == (best == prompt.candidates[3][:1]) or not record["greedy"]


def test_greedy_is_what_the_model_would_write():
    """greedy: the two likeliest tokens, one after the other, are the right number."""
    model, row = make("hope_attention"), tokens(1, 60)[0][0].tolist()
    ids = list(row)
    for _ in range(2):
        ids.append(long_documents.read_only(chunks.Reading(model), torch.tensor([ids]))[:, -1:])
        ids[-1] = model.head(ids[-1]).argmax(-1).item()
    right, wrong = ids[60:], [(ids[60] + 1) % 101, ids[61]]
    numbers = [right] + [wrong] * 9
    prompts = [needles.Prompt(row, numbers, answer, 0.0, 0) for answer in (0, 1)]
    assert [record["greedy"] for record in needles.score(model, "static", prompts)] == [True, False]


def test_a_long_prompt_needs_no_more_memory(tmp_path):
    """Of 20 times block_size tokens, what is kept: the keys and values of one window, and the written weights."""
    model = GPT.load(save(tmp_path / "m"))
    ids = torch.randint(0, 50000, (2, 1281), generator=torch.Generator().manual_seed(0))
    reading = needles.read_prompts(model, "adapt", ids, ["a", "b"])
    assert all(pair[0].size(2) <= 64 for pair in reading.past.values())
    rows = memory.records(reading.layers, model.transformer["h"])
    assert [row["updates"] for row in rows] == [80]
    assert not any(layer.seen for layer in reading.layers.values())


# ----------------------------------------------------------------------------------------------------------------------
# records of needles


def test_niah_record(tmp_path, capsys):
    """Accuracies, intervals and differences follow from the lines of the prompts; the original's keys are there."""
    result = ask(tmp_path, "niah", 8, "hope_attention", 256, "--batch_size", 3)
    path = tmp_path / "ask_prompts.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = ["static", "adapt", "random", "other", "removed"]
    assert [line["control"] for line in lines] == [name for name in names for _ in range(8)]
    mean = {name: sum(line["credit"] for line in lines if line["control"] == name) / 8 for name in names}
    assert result["niah_256"] == result["niah_256_memorize_accuracy"] == mean["adapt"]
    assert result["niah_256_baseline_accuracy"] == mean["static"]
    assert result["niah_256_memorize_delta"] == pytest.approx(mean["adapt"] - mean["static"])
    for name in ("random", "other", "removed"):
        assert result[f"niah_256_{name}_accuracy"] == mean[name]
    first = [line["credit"] for line in lines if line["control"] == "adapt" and line["wanted_depth"] == 0]
    assert result["niah_256_depth_0.00"] == sum(first) / 2
    assert result["niah_256_samples"] == 8 and result["chance"] == 0.1
    printed = capsys.readouterr().out
    assert "8 prompts cannot tell two models apart whose accuracies are nearer than 0.21 and 0.79" in printed
    assert "above chance (0.1) from 3 right answers on" in printed
    low, high = result["niah_256_interval"]
    assert f"{mean['adapt']:.3f}  [{low:.3f}, {high:.3f}]" in printed


def test_depths_of_two_equal_decimals_have_keys_of_their_own():
    """A depth whose accuracy another one's would overwrite: none; others keep the original's two decimals."""
    lines = [{"context_tokens": 256, "control": "static", "wanted_depth": depth, "credit": float(i)}
             for i, depth in enumerate((0.251, 0.2512, 0.75))]
    result = long_context.niah_keys(lines, "static")
    at = {key: value for key, value in result.items() if "_depth_" in key}
    assert at == {"niah_256_depth_0.2510": 0, "niah_256_depth_0.2512": 1, "niah_256_depth_0.7500": 2}
    assert long_context.depth_names([0, 0.333333, 1]) == {0: "0.00", 0.333333: "0.33", 1: "1.00"}


def test_batches_of_one_stay_single():
    """Texts that a batch has more than asked for: one where a single one would be left; none of --batch_size 1, whose
    point is memory."""
    assert long_exams.groups(3, 1) == [[0], [1], [2]]
    assert long_exams.groups(5, 2) == [[0, 1], [2, 3, 4]] and long_exams.groups(1, 8) == [[0]]


def test_filler_of_many_short_texts_takes_linear_time(monkeypatch):
    """The tokens of a text are added to a list of those before, which is copied then: never."""
    class Piece(list):
        def __radd__(self, other):
            raise AssertionError(f"{len(other)} tokens are copied for each text")

    encode = get_tokenizer().encode
    monkeypatch.setattr(get_tokenizer(), "encode", lambda text: Piece(encode(text)))
    with pytest.raises(AssertionError, match="0 tokens are copied"):
        sum([Piece([1])], [])
    assert needles.make_filler(["Two words"] * 1000, 500).ids.tolist() == encode(" Two words") * 1000


def test_passkey_record(tmp_path):
    """The original's keys, for a model without a memory: None where it has no number."""
    result = ask(tmp_path, "passkey", 5, "none", 128)
    assert result["samples"] == 5 and result["context_tokens"] == 128
    assert 0 <= result["accuracy_base"] <= 1 and len(result["accuracy_base_interval"]) == 2
    assert result["accuracy_memorize"] is None and result["accuracy_delta"] is None
    assert result["path_stats"] == {"updates": 0.0, "update_norm": 0.0}


def test_resolution():
    """8 prompts cannot tell 0.3 from 0.7 and 50 can; at 0.1, 3 of 8 or 10 of 50 right answers are above chance."""
    low, high = needles.resolution(8)["told_apart"]
    assert low < 0.3 and high > 0.7
    # the gap is what a z test between two shares finds with power 80 %
    assert high - low == pytest.approx(2.8016 * math.sqrt(2 * low * high / 8), rel=1e-3)
    low, high = needles.resolution(50)["told_apart"]
    assert low > 0.3 and high < 0.7
    assert [needles.resolution(n)["least_above_chance"] for n in (1, 2, 8, 50)] == [None, 2, 3, 10]
    assert needles.at_chance(0.1, 50) and needles.at_chance(0.4, 5) and needles.at_chance(0, 8)
    assert not needles.at_chance(0.6, 5) and not needles.at_chance(0, 200)


def test_mistakes_are_a_sentence(tmp_path, capsys):
    model, plain = save(tmp_path / "m"), save(tmp_path / "plain", "none")
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"body": "x"}])
    short = write_jsonl(tmp_path / "short.jsonl", [{"text": "A word. " * 100 + "And"}])
    no_words = write_jsonl(tmp_path / "no_words.jsonl", [{"text": "x" * 9000}])
    number = write_jsonl(tmp_path / "number.jsonl", [{"text": 5}])
    tiny = write_jsonl(tmp_path / "tiny.jsonl", [{"text": "A word."}])
    for name in ("text.zip", "zip.jsonl"):
        (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(99))
    for words, sentence in [
        ((model, "--data", bad), "no column 'text': pass --text_column"),
        ((model, "--data", number), "no text in column 'text'"),
        ((model, "--data", tmp_path / "none.parquet"), "no such file"),
        ((model, "--data", bad, "--text_column", "body"), "no document of 4,096 tokens (the longest has 1)"),
        ((model, "--data", "synthetic:1", *FEW), "needs a second text"),
        ((plain, "--data", "synthetic", *FEW, "--write", "stop"), "leave --write out"),
        ((plain, "--data", "synthetic", *FEW, "--choose_inner_lr", "1", "--dev_data", "synthetic"), "writes nothing"),
        ((tmp_path / "gone", "--data", "synthetic"), "CHECKPOINT"),
        (("niah", model, "--data", short), "the filler has 301 tokens"),
        (("niah", model, "--data", no_words, "--context_lengths", "200"), "no sentence that ends"),
        (("niah", model, "--filler", "sentences", "--samples_per_length", "1"), "raise --samples_per_length, or"),
        (("passkey", model, "--filler", "sentences", "--samples", "1", "--batch_size", "1"),
         "raise --samples and --batch_size, or"),
        (("passkey", model, "--data", bad), "no column 'text': pass --text_column with a name that it has, or"),
        ((model, "--data", "synthetic", *FEW, "--choose_inner_lr", "1", "--dev_data", bad), "or another --dev_data"),
        ((model, "--data", "synthetic", *FEW, "--choose_inner_lr", "1", "--dev_data", tiny), "another --dev_data"),
        ((model, "--data", short, *FEW, "--one_per", "book"), "no column 'book': pass --one_per with a name"),
        ((model, "--data", "synthetic", *FEW, "--batch_size", "1"), "raise --batch_size, or leave it out"),
        ((model, "--data", tmp_path / "text.zip"), "text.zip is none of .jsonl, .jsonl.gz"),
        ((model, "--data", tmp_path / "zip.jsonl"), "is a zip inside, not text: unpack it"),
    ]:
        if words[0] not in ("niah", "passkey"):
            words = "ppl", *words
        with pytest.raises((ValueError, OSError)) as caught:
            run(*words)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
    capsys.readouterr()
    for words, sentence in [
        (["ppl"], "checkpoint is missing"), (["ppl", model, "--controls", "statics"], "choose from static, adapt"),
        (["ppl", model, "--choose_inner_lr", "1,x"], "give numbers"),
        (["ppl", model, "--dev_data", "x"], "both or none"),
        (["ppl", model, "--max_documents", "0"], "at least 1"), (["ppl", model, "--out", "x.txt"], ".json"),
        (["pp", model], "give one of ppl"), ([], "give one of ppl"),
        (["ppl", model, "--inner_lr_multiplier", "0"], "above 0"),
        (["ppl", model, "--out", "x.json", "--no_store"], "one of them"),
        (["niah", model, "--context_lengths", "20"], "no room for filler"),
        (["niah", model, "--context_lengths", "2048.5"], "a whole number"),
        (["niah", model, "--depths", "0,1.5"], "a share from 0 to 1"),
        (["passkey", model, "--filler", "sentences", "--data", "x"], "leave one of them out"),
        (["passkey", model, "--samples", "0"], "at least 1"),
        (["ppl", model, "--choose_inner_lr", "1", "--dev_data", "x", "--inner_lr_multiplier", "2"], "leave"),
    ]:
        with pytest.raises(SystemExit) as end:
            run(*words)
        text = capsys.readouterr().err
        assert end.value.code == 2 and sentence in text and text.count("\n") == 1, text
