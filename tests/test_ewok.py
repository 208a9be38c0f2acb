"""ewok.py: scores against a slow literal implementation, encrypted and plain sources, and that no text gets out."""

import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import threading
import traceback
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_model import Fake, ask_the_fake, small, uniform  # noqa: F401 (a fixture)

import ewok
from lab import benchmarks, processes, runs, sources
from lab.tokenizer import get_tokenizer
from model import GPT, GPTConfig

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ewok_core_1.0.zip"
CANARY = "xylocanaryphone"  # stands in every text of `secret` items and in nothing else
COLUMNS = ("Domain", "Context1", "Context2", "Target1", "Target2", "MetaTemplateID", "TemplateID", "Version")


def pair(number: int, domain="spatial-relations", word="cup") -> dict:
    """An invented item with the columns that EWoK-core has and ewok.py reads."""
    it = f"{word} {number}"
    return {"Domain": domain, "MetaTemplateID": str(number // 4), "TemplateID": str(number // 2), "Version": "1",
            "Context1": f"The {it} is left of the plate.", "Target1": f"The plate is right of {it}.",
            "Context2": f"The {it} is right of the plate.", "Target2": f"The plate is left of {it}."}


def check(rows):
    return benchmarks.make_items(benchmarks.numbered(rows, "x"), "x", ewok.fault_of, ewok.make_item)


def secret(n: int) -> list[dict]:
    return [pair(i, ("spatial-relations", "Social Relations")[i % 2], CANARY) for i in range(n)]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def plain_zip(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def encrypted_zip(path, members: dict[str, bytes], password: bytes, method=0):
    """A zip in PKWARE's traditional encryption (APPNOTE.TXT 6.1), which Python's zipfile can only read. method: 0
    stored, 8 deflated."""
    step = lambda crc, byte: zlib.crc32(bytes([byte]), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF  # without zlib's inversions
    body, directory = b"", b""
    for name, content in members.items():
        keys = [0x12345678, 0x23456789, 0x34567890]

        def encrypt(byte, keys=keys):
            key = keys[2] | 2
            mix = (key * (key ^ 1) >> 8) & 0xFF
            keys[0] = step(keys[0], byte)
            keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
            keys[2] = step(keys[2], keys[1] >> 24)
            return byte ^ mix

        for byte in password:
            encrypt(byte)
        crc = zlib.crc32(content)
        packed = content
        if method == 8:
            deflate = zlib.compressobj(wbits=-15)
            packed = deflate.compress(content) + deflate.flush()
        data = bytes(encrypt(byte) for byte in bytes(11) + bytes([crc >> 24]) + packed)
        head = struct.pack("<HHHHHLLLHH", 20, 1, method, 0, 33, crc, len(data), len(content), len(name), 0)
        directory += b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack("<HHHLL", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\3\4" + head + name.encode() + data
    end = struct.pack("<HHHHLLH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\5\6" + end)
    return path


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.delenv("EWOK_PASSWORD", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture(scope="module")
def items():
    return ewok.load("synthetic:44")


@pytest.fixture(scope="module")
def result(items):
    return ewok.evaluate(small(), items)


def same(a, b):
    """Equal credits, scores to 1e-4, in the order of the items."""
    assert [r["id"] for r in a["items"]] == [r["id"] for r in b["items"]]
    for one, two in zip(a["items"], b["items"], strict=True):
        assert one["credit"] == two["credit"] and one["scores"] == pytest.approx(two["scores"], abs=1e-4)
    for key, value in a["metrics"].items():
        other = b["metrics"][key]
        if key == "by_category":
            assert list(value) == list(other)
            assert all(value[d] == pytest.approx(other[d], abs=1e-4) for d in value)
        elif key != "seconds":
            assert value == (pytest.approx(other, abs=1e-4) if isinstance(value, float) else other)


# ----------------------------------------------------------------------------------------------------------------------
# the numbers


def literal(items, score):
    """Every number of the docstring by loops: score(context, target) -> per-token log-probs."""
    above = lambda a, b: 1.0 if a > b else 0.5 if a == b else 0.0
    rows = []
    for item in items:
        row = {"domain": item["Domain"]}
        for per, reduce in (("sum", math.fsum), ("mean", lambda v: math.fsum(v) / len(v))):
            s = {t + c: reduce(score(item["Context" + c], item["Target" + t])) for t in "12" for c in "12"}
            s11, s21, s12, s22 = s["11"], s["21"], s["12"], s["22"]  # target, context
            row[f"official_{per}"] = above(s11, s21), s11 - s21, int(s11 == s21)
            row[f"full_{per}"] = ((above(s11, s21) + above(s22, s12)) / 2, (s11 - s21 + s22 - s12) / 2,
                                  (s11 == s21) + (s22 == s12))
            row[f"paper_{per}"] = ((above(s11, s12) + above(s22, s21)) / 2, (s11 - s12 + s22 - s21) / 2,
                                   (s11 == s12) + (s22 == s21))
        rows.append(row)
    domains = sorted({row["domain"] for row in rows})
    want = {"by_category": {d: {"n": sum(row["domain"] == d for row in rows)} for d in domains}}
    for score_name in (f"{rule}_{per}" for rule in ("official", "full", "paper") for per in ("sum", "mean")):
        credit, margin, variance = 0, 0, 0
        for d in domains:
            values = [row[score_name] for row in rows if row["domain"] == d]
            mean, n = sum(v[0] for v in values) / len(values), len(values)
            want["by_category"][d] |= {score_name: mean, f"margin_{score_name}": sum(v[1] for v in values) / n}
            credit, margin = credit + mean / len(domains), margin + sum(v[1] for v in values) / n / len(domains)
            variance += sum((v[0] - mean) ** 2 for v in values) / (n - 1) / n
        want |= {f"eval_{score_name}": credit, f"eval_margin_{score_name}": margin,
                 f"eval_{score_name}_micro": sum(row[score_name][0] for row in rows) / len(rows),
                 f"eval_{score_name}_stderr": math.sqrt(variance) / len(domains),
                 f"ties_eval_{score_name}": sum(row[score_name][2] for row in rows)}
    return want


def test_same_as_literal_implementation():
    """Every score, margin, tie, standard error and category, on scores so coarse that a third of comparisons tie."""
    items, encode = ewok.load("synthetic:97"), get_tokenizer("tiktoken").encode
    coarse = lambda ids: [-float(random.Random(str(ids[: k + 1])).randint(1, 2)) for k in range(len(ids))]

    def log_probs(context, ending):  # the target's last token depends on the context, the others on the target alone
        return [*coarse(ending)[:-1], coarse(context + ending)[-1]]

    got = ewok.evaluate(Fake(log_probs), items)["metrics"]
    want = literal(items, lambda c, t: log_probs([50256, *encode(c)], encode(" " + t)))
    for key, value in want.items():
        if key != "by_category":
            assert got[key] == pytest.approx(value), key
    assert set(got["by_category"]) == set(ewok.DOMAINS) and got["n_domains"] == 11
    for domain, row in want["by_category"].items():
        assert got["by_category"][domain] == pytest.approx(row)
    assert all(want[f"ties_eval_{s}"] > 3 for s in ("official_sum", "full_sum", "paper_sum", "paper_mean"))
    assert len({round(want[f"eval_{s}"], 9) for s in ewok.SCORES}) == 5  # the paper's sum and mean are the same number
    assert got["eval_official_sum"] != pytest.approx(got["eval_official_sum_micro"])


@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_same_as_one_forward_per_score(bos):
    """The four S(T|C) themselves: log-softmax of a whole forward pass, one context and target at a time."""
    items, model, encode = ewok.load("synthetic:6"), small(), get_tokenizer("tiktoken").encode
    for item, record in zip(items, ewok.evaluate(model, items, bos=bos)["items"], strict=True):
        for t in (1, 2):
            target = encode(" " + item[f"Target{t}"])
            assert record["scores"][f"T{t}_tokens"] == len(target)
            for c in (1, 2):
                ids = torch.tensor([[50256] * bos + encode(item[f"Context{c}"]) + target])
                logs = model(ids[:, :-1])[0].double().log_softmax(-1).gather(1, ids[0, 1:, None])[-len(target) :]
                assert record["scores"][f"T{t}C{c}_sum"] == pytest.approx(logs.sum().item(), abs=1e-3)
                assert record["scores"][f"T{t}C{c}_mean"] == pytest.approx(logs.mean().item(), abs=1e-3)


def test_oracle_is_perfect(items):
    """Every score: 1.0 for a model that knows which target fits."""
    fits = set()
    for (c1, (t1, _)), (c2, (_, t2)) in benchmarks.encode([ewok.questions(item) for item in items], True):
        fits |= {(*c1, *t1), (*c2, *t2)}
    knows = Fake(lambda c, t: [-0.001 if (*c, *t) in fits else -9.0] * len(t))
    metrics = ewok.evaluate(knows, items)["metrics"]
    for score in ewok.SCORES:
        assert metrics[f"eval_{score}"] == metrics[f"eval_{score}_micro"] == 1.0
        assert metrics[f"ties_eval_{score}"] == metrics[f"eval_{score}_stderr"] == 0
        assert metrics[f"eval_margin_{score}"] > 0 and all(r[score] == 1 for r in metrics["by_category"].values())


def test_uniform_is_chance_with_every_tie_counted(items):
    """0.5 exactly where all tokens are equally likely, by the fake and by a real model of zeros."""
    zeros = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, padded_vocab_size=50432), seed=0)
    with torch.no_grad():
        zeros.transformer["wte"].weight.zero_()
    for model in (Fake(uniform), zeros):
        metrics = ewok.evaluate(model, items)["metrics"]
        for score, ties in (("paper_sum", 88), ("paper_mean", 88), ("official_mean", 44), ("full_mean", 88)):
            assert metrics[f"eval_{score}"] == 0.5 and metrics[f"ties_eval_{score}"] == ties, score
            assert metrics[f"eval_margin_{score}"] == 0
        assert metrics["eval_full_sum"] == 0.5  # what the shorter target wins after C1 it loses after C2
    equal = check([{**pair(i), "Target1": "It is hot.", "Target2": "It is red."} for i in range(4)])
    metrics = ewok.evaluate(Fake(uniform), equal)["metrics"]
    assert all(metrics[f"eval_{score}"] == 0.5 for score in ewok.SCORES) and metrics["ties_eval_official_sum"] == 4


def test_equal_texts_tie_in_a_real_model():
    """paper: a target after the same context twice is 0.5, whatever the batch; likewise the same target twice."""
    rows = [{**pair(i), "Context2": pair(i)["Context1"]} for i in range(3)]
    rows += [{**pair(i), "Target2": pair(i)["Target1"]} for i in range(3, 6)]
    items = check(rows)

    class Rounding(Fake):  # a device that rounds one text differently in two batches
        def iter_scores(self, items, *_, **options):
            for i, (_, endings) in enumerate(items):
                yield i, [torch.full((len(ending),), -2 - 1e-6 * i) for ending in endings]

    for model, batch_size in ((small(), None), (small(), 1), (Rounding(None), None)):
        result = ewok.evaluate(model, items, batch_size=batch_size)
        assert [r["credit"]["eval_paper_sum"] for r in result["items"][:3]] == [0.5] * 3
        assert [r["credit"]["eval_full_mean"] for r in result["items"]] == [0.5] * 6
        assert [r["credit"]["eval_official_sum"] for r in result["items"][3:]] == [0.5] * 3
        assert result["metrics"]["ties_eval_paper_mean"] == 6 and result["metrics"]["ties_eval_official_mean"] >= 3


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_order_change_nothing(items, result, batch_size):
    """All scores: the same to 1e-4 and the same credits, for any batch and any order of the items, compiled or not."""
    same(result, ewok.evaluate(small(), items, batch_size=batch_size))
    shuffled = random.Random(batch_size).sample(range(len(items)), len(items))
    again = ewok.evaluate(SimpleNamespace(_orig_mod=small()), [items[i] for i in shuffled], batch_size=batch_size)
    back = sorted(range(len(items)), key=shuffled.__getitem__)
    same(result, {"metrics": again["metrics"], "items": [again["items"][i] for i in back]})


@pytest.mark.parametrize("world", [1, 2, 3])
def test_world_size_changes_nothing(items, result, world):
    """All scores: 44 items over 1, 2 and 3 ranks; a stop or an error on one rank reaches all (gloo: test_hellaswag)."""
    barrier, shared, got = threading.Barrier(world, timeout=60), [None] * world, {}

    def ranks(name, model, asked=False, items=items):
        def rank(r):
            def gather(value):
                shared[r] = value
                barrier.wait()
                copies = list(shared)
                barrier.wait()
                return copies

            procs = SimpleNamespace(rank=r, world_size=world, gather=gather)
            try:
                stop = SimpleNamespace(asked=asked and r == world - 1)
                got[name, r] = ewok.evaluate(model(r), items, procs, stop=stop)
            except processes.SharedError as error:
                got[name, r] = str(error)

        threads = [threading.Thread(target=rank, args=(r,)) for r in range(world)]
        [t.start() for t in threads]
        [t.join() for t in threads]

    ranks("scores", lambda r: small())
    ranks("stopped", lambda r: small(), asked=True)
    ranks("few", lambda r: small(), items=items[:1])
    ranks("broken", lambda r: Fake(lambda c, t: [math.nan if r == world - 1 else -1.0] * len(t)))
    for r in range(world):
        same(result, got["scores", r])
        assert got["stopped", r] is None and got["few", r]["metrics"]["n"] == 1
        assert "are not finite" in got["broken", r]


def test_evaluation_leaves_no_trace(items):
    """Training losses: neither random numbers nor the model's mode or weights change."""
    model, state = small(), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for mode in (True, False):
        model.train(mode)
        ewok.evaluate(model, items[:3])
        assert model.training is mode and ewok.evaluate(model, items[:3], stop=SimpleNamespace(asked=True)) is None
        assert model.training is mode and all(m.training is mode for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_metrics_say_what_they_are(items, result):
    """What compare_runs holds equal: scorer, BOS, dtype and the items, whatever their order."""
    metrics = result["metrics"]
    assert metrics["scorer"] == "ewok-1 bos=1" and metrics["dtype"] == "float32" and metrics["n"] == 44
    other = ewok.evaluate(Fake(uniform), items[::-1], bos=False,
                          autocast=lambda: torch.autocast("cpu", torch.bfloat16))["metrics"]
    assert other["scorer"] == "ewok-1 bos=0" and other["dtype"] == "bfloat16"
    assert other["items_sha256"] == metrics["items_sha256"]
    assert ewok.evaluate(Fake(uniform), items[1:])["metrics"]["items_sha256"] != metrics["items_sha256"]
    assert json.loads(json.dumps(metrics)) == metrics and metrics["seconds"] > 0
    record = result["items"][0]
    assert list(record) == ["id", "cluster", "category", "scores", "credit", "truncated"]
    one = ewok.evaluate(Fake(uniform), items[:1])["metrics"]
    assert one["eval_paper_sum"] == 0.5 and one["eval_paper_sum_stderr"] is None


def test_long_items_lose_the_beginning_of_their_context():
    """truncated: items of which the model does not see all."""
    rows = [{**pair(1), "Context2": "word " * 60 + "end."}, pair(2)]
    result = ewok.evaluate(small(block_size=32), check(rows))
    assert [r["truncated"] for r in result["items"]] == [True, False] and result["metrics"]["truncated"] == 1


# ----------------------------------------------------------------------------------------------------------------------
# loading


def test_sources_give_the_same_items(tmp_path, monkeypatch, no_terminal):
    """n and ids: zip with and without password, one file or several, the hub, columns in any case."""
    rows = secret(6)
    parts = {"a.jsonl": jsonl(rows[:3]), "b.jsonl": jsonl(rows[3:]), "CANARY.txt": b"not items"}
    plain_zip(tmp_path / "plain.zip", {f"deep/{name}": content for name, content in parts.items()}
              | {"__MACOSX/a.jsonl": b"rubbish"})
    upper = jsonl([{k.upper(): v for k, v in row.items()} for row in rows])
    plain_zip(tmp_path / "upper.zip", {"all.JSONL": b"\xef\xbb\xbf" + upper + b"\n"})
    encrypted_zip(tmp_path / "secret.zip", parts, b"pass word", 8)
    want = ewok.load(tmp_path / "plain.zip")
    assert [item["Context1"] for item in want] == [row["Context1"] for row in rows]
    assert len({item["id"] for item in want}) == 6
    assert [i["Domain"] for i in want[:2]] == ["spatial-relations", "social-relations"]
    assert want[5]["cluster"] == "social-relations/1/2"
    monkeypatch.setenv("EWOK_PASSWORD", "pass word")
    for source in ("upper.zip", "secret.zip"):
        assert ewok.load(tmp_path / source) == want, source
    monkeypatch.delenv("EWOK_PASSWORD")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sources.getpass, "getpass", lambda prompt: "pass word")
    assert ewok.load(tmp_path / "secret.zip") == want
    import datasets

    monkeypatch.setenv("HF_TOKEN", "hf_x")

    def hub(name, split, token):
        assert (name, split, token) == ("ewok-core/ewok-core-1.0", "test", "hf_x")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert ewok.load("") == ewok.load(None) == want


def test_subset_keeps_the_domains():
    """eval_*: max_examples leaves every domain its share, also when domains alternate in the file; 0 = all."""
    items = ewok.load("synthetic:110")
    some = ewok.load("synthetic:110", 22)
    assert sorted(i["Domain"] for i in some) == sorted(2 * list(ewok.DOMAINS))
    assert [i["id"] for i in some] == [i["id"] for i in items if i in some]
    assert len(ewok.load("synthetic:110", 0)) == len(ewok.load("synthetic:110", 500)) == 110
    assert len(ewok.load("synthetic")) == 440


def test_clusters_hold_no_text():
    """cluster: template numbers where they are numbers, else a hash that is the same for the same template."""
    templates = ("a sentence", "a sentence", "another")
    rows = [{**pair(0), "Version": str(v), "TemplateID": t} for v, t in enumerate(templates)]
    del rows[2]["TemplateID"], rows[2]["MetaTemplateID"]
    one, two, three = (item["cluster"] for item in check(rows))
    assert one == two != three and "sentence" not in one and one.startswith("spatial-relations/")


@pytest.mark.skipif(not REAL.exists(), reason="the real items are not beside this repo")
def test_real_items(monkeypatch):
    """n: 4,374 items in 11 domains and 875 templates, from the authors' zip."""
    monkeypatch.setenv("EWOK_PASSWORD", "ewok")
    items = ewok.load(REAL)
    assert len(items) == len({i["id"] for i in items}) == 4374 and {i["Domain"] for i in items} == set(ewok.DOMAINS)
    assert len({i["cluster"] for i in items}) == 875
    assert all("/" in i["cluster"] and i["cluster"].split("/", 1)[1].replace("/", "").isdigit() for i in items)
    assert {i["Domain"] for i in ewok.load(REAL, 100)} == set(ewok.DOMAINS)


def bad_sources(folder) -> dict:
    """{name of a broken source: what its error says}; each holds the canary."""
    rows = secret(4)
    blank = [{**rows[0], "Target1": " "}]
    shifted = [{**rows[0], "Domain": rows[0]["Context1"]}]
    files = {
        "missing": (jsonl([{k: v for k, v in row.items() if k != "Target2"} for row in rows]),
                    "line 1 has no text under .Target2.: .* name another --data"),
        "blank": (jsonl(rows[1:] + blank), "line 4 has no text under .Target1"),
        "number": (jsonl([{**rows[0], "Target1": 5}]), "line 1 has no text under .Target1"),
        "half": (jsonl([{**rows[0], "Target1": CANARY + "\ud800"}]), "line 1 has half a character .* under .Target1"),
        "list": (jsonl([[CANARY]]), "line 1 is not a JSON object"),
        "broken": (jsonl(rows) + b'{"Context1": "' + CANARY.encode() + b"\n", "line 5 is not JSON"),
        "deep": (b"[" * 100_000 + CANARY.encode(), "line 1 is not JSON"),
        "latin": (CANARY.encode() + b"\xff", "not UTF-8"), "empty": (b"\n", "has no items"),
        "twice": (jsonl([*rows, rows[1]]), "line 5 is the same item as .*line 2 .id social-relations-[0-9a-f]"),
        "shifted": (jsonl(shifted), "line 1 has a Domain that is not one word"),
    }
    for name, (content, _) in files.items():
        plain_zip(folder / f"{name}.zip", {"a.jsonl": content})
    (folder / "torn.zip").write_bytes(b"PK\3\4" + CANARY.encode())
    encrypted_zip(folder / "wrong.zip", {"a.jsonl": jsonl(rows)}, b"other")
    encrypted_zip(folder / "aes.zip", {"a.jsonl": jsonl(rows)}, b"secret", method=99)
    plain_zip(folder / "no_rows.zip", {"CANARY.txt": CANARY.encode()})
    (folder / "loose.jsonl").write_bytes(jsonl(rows))
    (folder / "folder").mkdir()
    return {f"{name}.zip": message for name, (_, message) in files.items()} | {
        "torn.zip": "is not a whole zip file", "loose.jsonl": "is not a whole zip file", "folder": "cannot be read",
        "wrong.zip": "does not open with this password: correct EWOK_PASSWORD", "aes.zip": "encryption or compression",
        "no_rows.zip": "has no .jsonl file"}


def test_bad_sources_and_no_text_in_errors(tmp_path, monkeypatch, no_terminal):
    """No number comes from broken data, and no error, nor anything attached to it, holds a word of an item."""
    monkeypatch.setenv("EWOK_PASSWORD", "secret")
    for name, message in bad_sources(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            ewok.load(tmp_path / name)
        chain = [caught.value]
        while (chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(chain[-1].__cause__ or chain[-1].__context__)
        shown = "".join(traceback.format_exception(caught.value)) + repr([vars(e) for e in chain]) + repr(chain)
        assert CANARY not in shown and str(caught.value).endswith("."), name
        assert all(not hasattr(e, "doc") and not hasattr(e, "object") for e in chain), name


def test_every_wrong_password_is_recognised(tmp_path, monkeypatch, no_terminal):
    """One wrong password in 256 passes the format's one-byte check and gives rubbish: that, too, is a sentence."""
    path = encrypted_zip(tmp_path / "a.zip", {"a.jsonl": jsonl(secret(1))}, b"right", method=8)
    with pytest.raises(ValueError, match="is encrypted and no password was given: set EWOK_PASSWORD[.]"):
        ewok.load(path)
    for number in range(1000):  # about four of them get to the decompressor, or to the checksum
        monkeypatch.setenv("EWOK_PASSWORD", f"wrong {number}")
        with pytest.raises(ValueError, match="does not open with this password"):
            ewok.load(path)


def test_bad_arguments(items, tmp_path, monkeypatch):
    """Nothing is guessed: sources, counts and models that do not fit are one sentence each."""
    with pytest.raises(ValueError, match="none.zip cannot be read"):
        ewok.load(tmp_path / "none.zip")
    for data in ("synthetic:0", "synthetic:x"):
        with pytest.raises(ValueError, match="at least 1"):
            ewok.load(data)
    with pytest.raises(ValueError, match="max_examples is -1"):
        ewok.load("synthetic", -1)
    with pytest.raises(ValueError, match="vocabulary has 50000 ids.*50257"):
        ewok.evaluate(Fake(uniform, vocab_size=50_000), items)
    with pytest.raises(ValueError, match=r"longer than .* block_size of 3 \(item [a-z]+-[a-z]+-[0-9a-f]{12}: "):
        ewok.evaluate(small(block_size=3), items)
    import datasets

    def gated(*_, **__):
        raise ConnectionError(CANARY)

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(ValueError, match=r"\(ConnectionError\): accept its terms at https.*set HF_TOKEN, or") as caught:
        ewok.load()
    assert CANARY not in "".join(traceback.format_exception(caught.value))


# ----------------------------------------------------------------------------------------------------------------------
# records and the command line


def test_records(tmp_path, items):
    """What is compared later: one line per item and step; a step evaluated again replaces itself and nothing else."""
    results = {step: ewok.evaluate(small(seed=step), items[:22]) for step in (50, 500)}
    for step in (50, 500, 50):
        ewok.write_records(tmp_path, step, results[step], f"time {step}")
    lines = runs.read_jsonl(tmp_path / "ewok_items.jsonl")
    assert lines == [{"step": s, **record} for s in (500, 50) for record in results[s]["items"]]
    metrics = runs.read_jsonl(tmp_path / "ewok_metrics.jsonl")
    line = lambda s: {"type": "ewok", "step": s, "timestamp": f"time {s}", **results[s]["metrics"]}
    assert metrics == [line(500), line(50)]
    table = json.loads((tmp_path / "step_metrics.json").read_text())["500"]
    want = results[500]["metrics"]
    assert table.pop("ewok_by_category") == want["by_category"]
    assert table == {f"eval_{m}{rule}_{per}": want[f"eval_{m}{rule}_{per}"] for m in ("", "margin_")
                     for rule in ("official", "full", "paper") for per in ("sum", "mean")}


def test_no_text_is_ever_written(tmp_path, capsys, monkeypatch):
    """EWoK's terms: a word of the items is in no file, print or error of a whole evaluation."""
    monkeypatch.setenv("EWOK_PASSWORD", "p")
    source, out = encrypted_zip(tmp_path / "in.zip", {"a.jsonl": jsonl(secret(9))}, b"p"), tmp_path / "out"
    small().save(tmp_path / "model")
    argv = ["--checkpoint", str(tmp_path / "model"), "--data", str(source), "--device", "cpu"]
    assert ewok.main([*argv, "--show", "9", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    small(block_size=4).save(tmp_path / "short")
    with pytest.raises(ValueError, match="longer than the model.s block_size") as caught:
        ewok.main(["--checkpoint", str(tmp_path / "short"), *argv[2:]])
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert len(written) == 3 and len(runs.read_jsonl(out / "ewok_items.jsonl")) == 9
    shown = printed.out + printed.err + "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown and all(CANARY.encode() not in content for content in written)
    for word in ("plate", "The cup", "left of"):
        assert word not in shown and all(word.encode() not in content for content in written)
    result = ewok.evaluate(small(), ewok.load(source))
    assert CANARY not in repr(result) and "S(T1|C2)" in printed.out and "forbid its text" in printed.out
    for score in ewok.SCORES:
        assert f"eval_{score:<15} {result['metrics'][f'eval_{score}']:.4f}" in printed.out


def test_errors_are_one_sentence(tmp_path):
    """A stranger's first mistake: exit status 1 and a line that says what to do, no traceback."""
    small().save(tmp_path / "model")
    path = encrypted_zip(tmp_path / "in.zip", {"a.jsonl": jsonl(secret(1))}, b"p")
    env = {k: v for k, v in os.environ.items() if k != "EWOK_PASSWORD"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, runs.REPO / "ewok.py", "--checkpoint", tmp_path / "model", "--data", path],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"ewok.py: {path} is encrypted and no password was given: set EWOK_PASSWORD.\n"
