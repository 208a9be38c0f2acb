"""hellaswag.py, and what it and ewok.py use of runs.py: spread, replace_step, resolve_checkpoint."""

import gzip
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import make_hellaswag_expectations as expectations
import pytest
import torch
import torch.nn.functional as F
from fake_model import Fake, ask_the_fake, small, uniform  # noqa: F401 (a fixture)

import hellaswag
from lab import benchmarks, disk, processes, runs
from lab.tokenizer import get_tokenizer
from model import GPT, GPTConfig

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "hellaswag_val.jsonl"
real = pytest.mark.skipif(not REAL.exists(), reason="the real items are not beside this repo")


def encoded(items, text, bos):
    """(context ids, [ids of each continuation]) of every item."""
    return [questions[0] for questions in benchmarks.encode([hellaswag.questions(item, [text]) for item in items], bos)]


def oracle(items):
    """Log-probs of a model that finds the right endings likeliest by any rule."""
    right = set()
    for text in hellaswag.TEXTS:
        for item, (context, endings) in zip(items, encoded(items, text, True), strict=True):
            right.add((*context, *endings[item["label"]]))
    return lambda context, ending: [-0.001 if (*context, *ending) in right else -9.0] * len(ending)


def row(**changes) -> dict:
    return {"ind": 7, "activity_label": "Cooking", "ctx_a": "Ann heats the oil.", "ctx_b": "she",
            "ctx": "Ann heats the oil. she", "label": 2, "source_id": "invented~1",
            "endings": ["flies away.", "reads a book.", "fries the onions.", "sleeps."]} | changes


def check(rows, source="x"):
    return benchmarks.make_items(benchmarks.numbered(rows, source), source, hellaswag.fault_of, hellaswag.make_item)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def same(a, b):
    """Equal predictions and credits, scores to 1e-4, in the order of the items."""
    assert [r["id"] for r in a["items"]] == [r["id"] for r in b["items"]]
    for one, two in zip(a["items"], b["items"], strict=True):
        assert {k: v for k, v in one.items() if k != "scores"} == {k: v for k, v in two.items() if k != "scores"}
        for key, values in one["scores"].items():
            assert values == pytest.approx(two["scores"][key], abs=1e-4)
    for key, value in a["metrics"].items():
        if key != "seconds":
            other = b["metrics"][key]
            assert value == (pytest.approx(other, abs=1e-4) if isinstance(value, float) else other)


@pytest.fixture(scope="module")
def items():
    return hellaswag.load("synthetic:40")


@pytest.fixture(scope="module")
def result(items):
    return hellaswag.evaluate(small(), items)


# ----------------------------------------------------------------------------------------------------------------------
# the numbers


@pytest.mark.parametrize("bos", [False, True])
def test_same_as_lm_evaluation_harness(bos):
    """accuracy and accuracy_norm_bytes: the harness' sums, acc and acc_norm, recorded with its own task and code."""
    said = json.loads(expectations.FILE.read_text(encoding="utf-8"))
    assert len(said["items"]) >= 12
    result = hellaswag.evaluate(expectations.tiny_model(), check(said["items"]), bos=bos)
    theirs = said["bos" if bos else "no_bos"]
    for record, want in zip(result["items"], theirs, strict=True):
        assert record["scores"]["lm_eval_sum"] == pytest.approx(want["sums"], abs=1e-3)
        assert record["credit"]["accuracy"] == want["acc"]
        assert record["credit"]["accuracy_norm_bytes"] == want["acc_norm"]
    for name, key in (("accuracy", "acc"), ("accuracy_norm_bytes", "acc_norm")):
        assert result["metrics"][name] == pytest.approx(sum(w[key] for w in theirs) / len(theirs))
    chosen = {tuple(r["predictions"][name] for r in result["items"]) for name in hellaswag.RULES}
    assert len(chosen) >= 3  # the rules differ on these items, so that one cannot stand in for another


def literal(model, item, bos):
    """build-nanogpt's rule by hand: sums and means of log p over the tokens of " " + ending, one row at a time."""
    encode, answers = get_tokenizer("tiktoken").encode, []
    for ending in item["endings"]:
        context = [50256] * bos + encode(item["ctx"])
        ids = torch.tensor([context + encode(" " + ending)])
        logits = model(ids[:, :-1])[0, len(context) - 1 :].double()
        answers.append(-F.cross_entropy(logits, ids[0, len(context) :], reduction="none"))
    return [a.sum().item() for a in answers], [a.mean().item() for a in answers]


@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_same_as_build_nanogpt(bos):
    """accuracy_norm and accuracy_plain: argmax of the mean and of the sum over the ending's tokens, one by one."""
    items = hellaswag.load(REAL, 12) if REAL.exists() else hellaswag.load("synthetic:12")
    model, credits = small(), []
    result = hellaswag.evaluate(model, items, bos=bos)
    for item, record in zip(items, result["items"], strict=True):
        sums, means = literal(model, item, bos)
        assert record["scores"]["plain_sum"] == pytest.approx(sums, abs=1e-3)
        assert record["predictions"]["accuracy_norm"] == max(range(4), key=means.__getitem__)
        assert record["predictions"]["accuracy_plain"] == max(range(4), key=sums.__getitem__)
        credits.append(max(range(4), key=means.__getitem__) == item["label"])
    assert result["metrics"]["accuracy_norm"] == sum(credits) / 12


def test_lm_eval_text():
    """accuracy: what the harness reads, written out for one item with every kind of markup."""
    item = row(ctx_a="[header] How to cook [title] Buy oil.", ctx_b="THE cook  [step]",
               endings=["[substeps] Now  fry.", "a [title] b", "c.", "  d [x] e  "])
    context, follows, endings = hellaswag.render(item, "lm_eval")
    assert context == "Cooking: How to cook. Buy oil. The cook"
    # the blanks left by "[header]" and by "[step]" are one each after the doubles are taken out, once
    assert endings == [" Now fry.", "a. b", "c.", "d e"] and follows == ["   Now fry.", "  a. b", "  c.", "  d e"]


def test_split_is_where_the_harness_has_it():
    """accuracy: the tokens of context and ending encoded together, split after as many as the context has."""
    encode = get_tokenizer("tiktoken").encode
    items = hellaswag.load("synthetic:12") + check(expectations.invented(), "invented")
    # \x1c is a space to Python and none to GPT-2's pattern
    items += check([row(ctx_b="she stirs ()\x1c[step]", endings=["\x1c)(", "()", "a", "\u3000b"])], "odd")
    for item, (ids, endings) in zip(items, encoded(items, "lm_eval", False), strict=True):
        context, follows, _ = hellaswag.render(item, "lm_eval")
        assert ids == encode(context)
        assert endings == [encode(context + follow)[len(ids) :] for follow in follows]
    assert encoded(items[:1], "plain", True)[0][0] == [50256, *encode(items[0]["ctx"])]


@pytest.mark.parametrize("text", ["both", "plain", "lm_eval"])
def test_oracle_is_perfect(items, text):
    """Every accuracy: 1.0 for a model that knows; a text not scored gives no number at all, not 0."""
    metrics = hellaswag.evaluate(Fake(oracle(items)), items, text=text)["metrics"]
    for name, (needs, _) in hellaswag.RULES.items():
        scored = text in ("both", needs)
        assert metrics[name] == (1.0 if scored else None) and metrics[f"ties_{name}"] == (0 if scored else None)
        assert metrics[f"{name}_stderr"] == (0.0 if scored else None)
    assert (metrics["margin"] or 1) > 0 and (metrics["margin"] is None) == (text == "lm_eval")
    assert (metrics["margin_norm_bytes"] is None) == (text == "plain")


def test_uniform_is_chance_with_every_tie_counted(items):
    """accuracy_norm: exactly 0.25 where all tokens are equally likely, by the fake and by a real model of zeros."""
    zeros = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, padded_vocab_size=50432), seed=0)
    with torch.no_grad():
        zeros.transformer["wte"].weight.zero_()
    for model in (Fake(uniform), zeros):
        metrics = hellaswag.evaluate(model, items)["metrics"]
        assert metrics["accuracy_norm"] == 0.25 and metrics["ties_accuracy_norm"] == metrics["n"] == 40
        assert metrics["margin"] == 0
    # with endings of one length every rule ties, also when two of four share the maximum
    twins = check([row(ind=i, label=i % 4, endings=["a dog.", "a cat.", "a cow.", "a pig."])
                             for i in range(8)], "twins")
    metrics = hellaswag.evaluate(Fake(uniform), twins)["metrics"]
    assert all(metrics[name] == 0.25 and metrics[f"ties_{name}"] == 8 for name in hellaswag.RULES)
    cat_or_cow = {tuple(get_tokenizer().encode(f" a {animal}.")) for animal in ("cat", "cow")}
    half = Fake(lambda context, ending: [-1.0 if tuple(ending[-3:]) in cat_or_cow else -2.0] * len(ending))
    record = hellaswag.evaluate(half, twins)
    assert [r["credit"]["accuracy_plain"] for r in record["items"]] == [0, 0.5, 0.5, 0] * 2
    assert record["metrics"]["accuracy_plain"] == 0.25 and record["metrics"]["ties_accuracy_plain"] == 8


def test_shortest_wins_by_sums(items):
    """accuracy and accuracy_norm_bytes of a uniform model, by a literal loop over lengths."""
    metrics = hellaswag.evaluate(Fake(uniform), items)["metrics"]
    credit = {"accuracy": 0.0, "accuracy_norm_bytes": 0.0}
    for item, (_, endings) in zip(items, encoded(items, "lm_eval", True), strict=True):
        sums = [-len(e) for e in endings]
        norms = [-len(e) / len(text) for e, text in zip(endings, item["endings"], strict=True)]
        for name, values in (("accuracy", sums), ("accuracy_norm_bytes", norms)):
            best = [k for k in range(4) if values[k] == max(values)]
            credit[name] += (item["label"] in best) / len(best)
    assert {name: metrics[name] for name in credit} == {name: pytest.approx(c / 40) for name, c in credit.items()}


def test_length_is_in_characters():
    """accuracy_norm_bytes: the harness divides by len(text), not by UTF-8 bytes, whatever the metric is called."""
    item = row(endings=["ÄÖÜÄÖÜÄÖÜ", "abcdefghijkl", "a", "b"], label=0)
    want = {tuple(ids): value for ids, value in zip(
        encoded([item], "lm_eval", True)[0][1], (-9.0, -8.0, -50.0, -50.0), strict=True)}
    model = Fake(lambda context, ending: [want[tuple(ending)]] + [0.0] * (len(ending) - 1))
    result = hellaswag.evaluate(model, check([item], "x"), text="lm_eval")
    assert result["items"][0]["predictions"]["accuracy_norm_bytes"] == 1  # -8 / 12 > -9 / 9, but -9 / 18 is larger
    assert result["items"][0]["scores"]["lm_eval_chars"] == [9, 12, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_order_change_nothing(items, result, batch_size):
    """All scores: the same to 1e-4 and the same choices, for any batch and any order of the items, compiled or not."""
    same(result, hellaswag.evaluate(small(), items, batch_size=batch_size))
    shuffled = random.Random(batch_size).sample(range(len(items)), len(items))
    again = hellaswag.evaluate(torch.compile(small()), [items[i] for i in shuffled], batch_size=batch_size)
    back = sorted(range(len(items)), key=shuffled.__getitem__)
    same(result, {"metrics": again["metrics"], "items": [again["items"][i] for i in back]})


def worker(rank, world, folder):
    """Three processes, then two of them: evaluate, stop on the last rank, fail on the last rank."""
    torch.set_num_threads(1)
    for size in (world, world - 1):
        if rank < size:
            torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group{size}", rank=rank,
                                                 world_size=size)
            procs, items = processes.Processes(rank, rank, size), hellaswag.load("synthetic:40")
            results = hellaswag.evaluate(small(), items, procs)
            stopped = hellaswag.evaluate(small(), items, procs, stop=SimpleNamespace(asked=rank == size - 1))
            few = hellaswag.evaluate(small(), items[:1], procs)  # the other ranks have nothing to do
            try:
                long = row(ind=99, endings=["a", "b", "c", "long " * 300])
                hellaswag.evaluate(small(), check([*items[: size - 1], long]), procs)
                error = ""
            except processes.SharedError as e:
                error = str(e)
            Path(folder, f"{size}_{rank}.json").write_text(json.dumps([results, stopped, few, error]))
            torch.distributed.destroy_process_group()


def test_world_size_changes_nothing(items, result, tmp_path):
    """All scores: 40 items over 1, 2 and 3 processes; a stop or an error on one rank reaches all of them."""
    context = torch.multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    workers = [context.Process(target=worker, args=(rank, 3, str(tmp_path))) for rank in range(3)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(180)
        assert process.exitcode == 0
    for size in (3, 2):
        for rank in range(size):
            got, stopped, few, error = json.loads((tmp_path / f"{size}_{rank}.json").read_text())
            same(result, got)
            assert stopped is None and few["metrics"]["n"] == 1 and "have an ending longer than" in error


def test_evaluation_leaves_no_trace(items):
    """Training losses: neither random numbers nor the model's mode or weights change, so evals cannot move training."""
    model, state = small(), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for mode in (True, False):
        model.train(mode)
        hellaswag.evaluate(model, items[:3])
        assert model.training is mode and all(m.training is mode for m in model.modules())
        assert hellaswag.evaluate(model, items[:3], stop=SimpleNamespace(asked=True)) is None
        assert model.training is mode
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_stop_is_seen_between_batches(items):
    """The wait after ctrl-C: at most one more forward pass, however many are left."""
    stop, passes = SimpleNamespace(asked=False), []

    def log_probs(context, ending):
        passes.append(context)
        stop.asked = len(passes) >= 8
        return uniform(context, ending)

    assert hellaswag.evaluate(Fake(log_probs), items, stop=stop) is None and len(passes) == 8


def test_metrics_say_what_they_are(items, result):
    """What compare_runs holds equal: scorer, BOS, text, dtype and the items, whatever their order."""
    metrics = result["metrics"]
    assert metrics["scorer"] == "hellaswag-1 bos=1 text=both" and metrics["dtype"] == "float32"
    other = hellaswag.evaluate(Fake(uniform), items[::-1], bos=False, text="plain",
                               autocast=lambda: torch.autocast("cpu", torch.bfloat16))["metrics"]
    assert other["scorer"] == "hellaswag-1 bos=0 text=plain" and other["dtype"] == "bfloat16"
    assert other["items_sha256"] == metrics["items_sha256"] and other["bos"] is False
    changed = [{**items[0], "label": (items[0]["label"] + 1) % 4}, *items[1:]]
    assert hellaswag.evaluate(Fake(uniform), changed)["metrics"]["items_sha256"] != metrics["items_sha256"]
    p, n = metrics["accuracy_norm"], metrics["n"]
    assert metrics["accuracy_norm_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert json.loads(json.dumps(metrics)) == metrics and metrics["seconds"] > 0
    record = result["items"][0]
    assert list(record) == ["id", "cluster", "label", "scores", "predictions", "credit", "truncated"]
    assert record["cluster"] == items[0]["source_id"] == result["items"][1]["cluster"]


def test_margin_by_hand():
    """margin: the right ending's mean log-prob less the best wrong one's, averaged over items."""
    items = check([row(ind=0, label=2), row(ind=1, label=0)], "x")
    values = dict(zip(map(tuple, encoded(items, "plain", True)[0][1]), (-1.0, -2.0, -4.0, -8.0), strict=True))
    result = hellaswag.evaluate(Fake(lambda c, e: [values[tuple(e)]] * len(e)), items, text="plain")
    assert result["metrics"]["margin"] == pytest.approx(((-4 + 1) + (-1 + 2)) / 2)
    assert result["metrics"]["accuracy_norm"] == 0.5 and result["items"][0]["scores"]["plain_tokens"] == [3, 4, 4, 2]


def test_long_items_lose_the_beginning_of_their_context():
    """truncated: items of which the model does not see all; their scores are those of what is left, without BOS."""
    long = check([row(ctx="word " * 40 + "she"), row(ind=8)], "x")
    model = small(block_size=32)
    result = hellaswag.evaluate(model, long, text="plain")
    assert [r["truncated"] for r in result["items"]] == [True, False] and result["metrics"]["truncated"] == 1
    context, endings = encoded(long, "plain", True)[0]
    ids = torch.tensor([(context + endings[0])[-33:]])
    with torch.no_grad():
        want = model(ids[:, :-1]).log_softmax(-1)[0].gather(1, ids[0, 1:, None])[-len(endings[0]) :].sum().item()
    assert result["items"][0]["scores"]["plain_sum"][0] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("vocab_size", [50257, 50349])
def test_vocabularies_that_hold_gpt2s(items, vocab_size):
    """Either vocabulary is scored over its own logical ids; sums of p over them are 1, padding excluded."""
    model = small(vocab_size=vocab_size)
    result = hellaswag.evaluate(model, items[:2], text="plain")
    assert result["items"][0]["scores"]["plain_sum"] == pytest.approx(literal(model, items[0], True)[0], abs=1e-3)


@real
def test_real_items():
    """n: the official file has 10,042 items with ids of their own, and a subset has both of its sources."""
    assert disk.sha256_file(REAL) == hellaswag.SHA256
    items = hellaswag.load(REAL)
    assert len(items) == len({i["id"] for i in items}) == 10_042 and len({i["cluster"] for i in items}) == 8_407
    some = hellaswag.load(REAL, 300)
    share = sum(i["source_id"].startswith("wikihow") for i in some) / 300
    assert len(some) == 300 and share == pytest.approx(6799 / 10_042, abs=0.01)


# ----------------------------------------------------------------------------------------------------------------------
# loading


def test_files(tmp_path):
    """n and labels: jsonl and jsonl.gz, labels as numbers or text, ids of source and ind, a spread of max_examples."""
    rows = [row(ind=i, label=str(i % 4)) for i in range(10)]
    path = write(tmp_path / "items.jsonl", rows)
    with gzip.open(tmp_path / "items.jsonl.gz", "wt") as f:
        f.write(path.read_text())
    items = hellaswag.load(path)
    assert items == hellaswag.load(tmp_path / "items.jsonl.gz")
    assert items[3]["label"] == 3 and items[3]["id"] == "invented~1#3"
    assert [i["ind"] for i in hellaswag.load(path, 4)] == [0, 2, 5, 7]
    assert len(hellaswag.load(path, 10)) == len(hellaswag.load(path, 99)) == 10
    assert len(hellaswag.load("synthetic")) == 400 and len(hellaswag.load("synthetic:3", 2)) == 2
    del rows[0]["source_id"], rows[1]["ind"], rows[2]["ind"], rows[2]["source_id"]
    assert [i["id"] for i in check(rows[:3], "x")] == ["0", "invented~1", "3"]


BAD = [({"label": 4}, "label is 0, 1, 2 or 3"), ({"label": -1}, "label is 0"), ({"label": ""}, "label is 0"),
       ({"label": True}, "label is 0"), ({"label": 1.5}, "label is 0"),
       ({"endings": ["a", "b", "c", " "]}, r"empty ending \(3\)"),
       ({"endings": ["a", "[title]", "c", "d"]}, r"empty ending \(1\)"), ({"endings": ["a", "b", "c"]}, "4 endings"),
       ({"endings": "abcd"}, "4 endings"), ({"endings": ["a", "b", "c", 4]}, "4 endings"),
       ({"ctx": " "}, "no text under .ctx"), ({"ctx": 5}, "no text under .ctx"),
       ({"ctx_a": None}, "no text under .ctx_a"), ({"ctx_a": "", "ctx_b": " "}, "no text under .ctx_a. and .ctx_b")]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_items(tmp_path, change, message):
    """No number at all comes from a broken item, and the message says which one it is."""
    path = write(tmp_path / "items.jsonl", [row(ind=0), row(ind=1, **change)])
    with pytest.raises(ValueError, match=f"items.jsonl line 2 .*{message}.*[.]$"):
        hellaswag.load(path)


def test_bad_files(tmp_path, items):
    """Nothing is guessed: files, counts and models that do not fit are one sentence each."""
    good = json.dumps(row())
    for name, content, message in [
        ("a.jsonl", good + "\n" + good + "\n", "line 2 is the same item as .*line 1 .id invented~1#7"),
        ("b.jsonl", good + "\n{oops\n", "line 2 is not JSON"), ("c.jsonl", "", "has no items"),
        ("d.jsonl", "[1]\n", "not a JSON object"), ("e.jsonl.gz", good, "cannot be read"),
        ("f.jsonl", '{"ctx": "a"}\n', "has no text under .activity_label")]:
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            hellaswag.load(tmp_path / name)
    (tmp_path / "g.jsonl").write_bytes(b'{"ctx": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        hellaswag.load(tmp_path / "g.jsonl")
    (tmp_path / "bom.jsonl").write_text("\ufeff" + json.dumps(row()) + "\n\n", encoding="utf-8")
    assert len(hellaswag.load(tmp_path / "bom.jsonl")) == 1  # a byte order mark and an empty line harm nobody
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        hellaswag.load(tmp_path / "deep.jsonl")
    with pytest.raises(ValueError, match="lone surrogate"):
        hellaswag.load(write(tmp_path / "half.jsonl", [row(endings=["a", "b", "c", "\ud800"])]))
    for data in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            hellaswag.load(data)
    for data in ("synthetic:0", "synthetic:x", "synthetic:-3"):
        with pytest.raises(ValueError, match="at least 1"):
            hellaswag.load(data)
    with pytest.raises(ValueError, match="max_examples is -1"):
        hellaswag.load("synthetic", -1)
    with pytest.raises(ValueError, match="vocabulary has 50000 ids.*50257"):
        hellaswag.evaluate(Fake(uniform, vocab_size=50_000), items)
    with pytest.raises(ValueError, match="38 of 40 items have an ending longer than the model's block_size of 4"):
        hellaswag.evaluate(small(block_size=4), items)
    with pytest.raises(ValueError, match="38 of 40 items have an ending longer"):
        hellaswag.check_length(items, 4)
    hellaswag.check_length(items, 64)
    with pytest.raises(ValueError, match="text is 'other': use both"):
        hellaswag.evaluate(Fake(uniform), items, text="other")
    with pytest.raises(ValueError, match="are not finite"):
        hellaswag.evaluate(Fake(lambda c, e: [math.nan] * len(e)), items)


def test_download(tmp_path, monkeypatch):
    """The official file: fetched once, checked, kept whole; anything else is refused with what to do instead."""
    (tmp_path / "source").mkdir()
    source, cache = write(tmp_path / "source" / "hellaswag_val.jsonl", [row()]), tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(hellaswag, "URL", source.as_uri())
    with pytest.raises(ValueError, match="another checksum.*--data"):
        hellaswag.load()
    assert not cache.exists()
    monkeypatch.setattr(hellaswag, "SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    assert len(hellaswag.load("")) == 1
    kept = cache / "moonshotgpt" / "hellaswag_val.jsonl"
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
    kept.write_text("damaged")
    assert hellaswag.load(None)[0]["ind"] == 7  # fetched again

    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(benchmarks.urllib.request, "urlopen", no_network)
    assert len(hellaswag.load()) == 1  # from the cache
    kept.unlink()
    with pytest.raises(ValueError, match="no network.*pass --data with a local copy"):
        hellaswag.load()


# ----------------------------------------------------------------------------------------------------------------------
# records and the command line


def test_records(tmp_path, items):
    """What is compared later: one line per item and step; a step evaluated again replaces itself and nothing else."""
    results = {step: hellaswag.evaluate(small(seed=step), items[:5]) for step in (50, 500)}
    other = {"step": 5, "x": '"step": 50'}
    (tmp_path / "hellaswag_items.jsonl").write_text(json.dumps(other) + "\n" + '{"step": 50, "torn')
    for step in (50, 500, 50):
        hellaswag.write_records(tmp_path, step, results[step], f"time {step}")
    lines = runs.read_jsonl(tmp_path / "hellaswag_items.jsonl")
    assert lines[0] == other and [r["step"] for r in lines[1:]] == [500] * 5 + [50] * 5
    assert lines[6:] == [{"step": 50, **record} for record in results[50]["items"]]
    metrics = runs.read_jsonl(tmp_path / "hellaswag_metrics.jsonl")
    assert [m["step"] for m in metrics] == [500, 50]
    assert metrics[1] == {"type": "hellaswag", "step": 50, "timestamp": "time 50", **results[50]["metrics"]}
    table = json.loads((tmp_path / "step_metrics.json").read_text())
    assert table["500"] == {f"hellaswag_{name}": results[500]["metrics"][name] for name in hellaswag.RULES}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "hellaswag_items.jsonl", "hellaswag_metrics.jsonl", "step_metrics.json"]


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Records: a write that fails on the way changes nothing."""
    runs.replace_step(tmp_path / "a.jsonl", 1, [{"step": 1}])
    before = (tmp_path / "a.jsonl").read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full_disk)
    with pytest.raises(ValueError, match="No space"):
        runs.replace_step(tmp_path / "a.jsonl", 1, [{"step": 1, "again": True}])
    assert (tmp_path / "a.jsonl").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def save(model):
    def write_files(folder):
        model.save(folder)
        (folder / "optimizer.pt").write_bytes(b"state")
    return write_files


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("run") / "run"
    (folder / "ckpt").mkdir(parents=True)
    for step in (10, 20):
        runs.save_checkpoint(folder, step, save(small(seed=step)), 0, 0)
    return folder


def test_which_checkpoint_is_meant(run_folder, tmp_path, monkeypatch):
    """The step under which a number is filed: newest whole checkpoint of a run, a named one, or none."""
    newest = run_folder / "ckpt" / "step_000020"
    assert runs.resolve_checkpoint(run_folder) == (newest, 20, run_folder)
    assert runs.resolve_checkpoint(str(run_folder / "ckpt" / "step_000010"))[1:] == (10, run_folder)
    monkeypatch.chdir(run_folder / "ckpt" / "step_000010")
    assert runs.resolve_checkpoint(".")[1:] == (10, run_folder)
    small().save(tmp_path / "model")
    assert runs.resolve_checkpoint(tmp_path / "model") == (tmp_path / "model", None, None)
    (newest / "optimizer.pt").write_bytes(b"other")
    warnings = []
    try:
        assert runs.resolve_checkpoint(run_folder, warnings.append)[1] == 10 and "falling back" in warnings[0]
        with pytest.raises(ValueError, match="does not match its checksum.*name another checkpoint"):
            runs.resolve_checkpoint(newest)
    finally:
        (newest / "optimizer.pt").write_bytes(b"state")
    (tmp_path / "empty").mkdir()
    (tmp_path / "new" / "ckpt").mkdir(parents=True)
    for path, kind, message in [("none", FileNotFoundError, "is not a folder"), ("empty", ValueError, "neither a run"),
                                ("new", ValueError, "no checkpoint yet")]:
        with pytest.raises(kind, match=message):
            runs.resolve_checkpoint(tmp_path / path)


def test_command_line(run_folder, tmp_path, capsys, monkeypatch):
    """What is printed and filed is what evaluate gives for the newest checkpoint."""
    out = tmp_path / "out"
    argv = ["--checkpoint", str(run_folder), "--data", "synthetic:12", "--show", "2", "--out", str(out), "--bos", "off"]
    assert hellaswag.main([*argv, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    items = hellaswag.load("synthetic:12")
    want = hellaswag.evaluate(small(seed=20), items, bos=False)["metrics"]
    for name in hellaswag.RULES:
        assert f"{name:<20} {want[name]:.4f}" in printed
    assert items[1]["endings"][0] in printed and printed.count("chosen") == 2 and items[2]["id"] not in printed
    filed = runs.read_jsonl(out / "hellaswag_metrics.jsonl")[0]
    assert {**filed, "seconds": 0} == {"type": "hellaswag", "step": 20, "timestamp": filed["timestamp"], **want,
                                       "title": "HellaSwag (synthetic, 12 items)", "seconds": 0}
    assert "HellaSwag (synthetic, 12 items) | synthetic:12" in printed
    assert hellaswag.main([*argv[:4], "--text", "lm_eval", "--dtype", "bfloat16", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy_norm_bytes" in printed and "accuracy_plain" not in printed and "bfloat16" in printed
    for flags in (["--show", "-1"], ["--text", "all"], ["--check", "x"]):
        with pytest.raises(SystemExit):
            hellaswag.main([*argv[:4], *flags])


def test_errors_are_one_sentence(tmp_path):
    """A stranger's first mistake: exit status 1 and a line that says what to do, no traceback."""
    for flags, message in ((["--checkpoint", tmp_path / "none"], "is not a folder: name a run"),):
        done = subprocess.run([sys.executable, runs.REPO / "hellaswag.py", *flags], capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stdout == ""
        assert done.stderr.startswith("hellaswag.py: ") and message in done.stderr
