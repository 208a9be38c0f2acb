"""decontaminate.py and --decontaminate: which documents are dropped. Invented benchmarks always; the real ones when
they lie beside the repository. EWoK's text is only ever in memory."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_prepare
from conftest import forked
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare_bos_rows
import prepare_fineweb
from lab import decontaminate, disk, shards, sources, synthetic
from lab.tokenizer import get_tokenizer

REPO = Path(__file__).resolve().parents[1]
REAL = REPO.parent / "shared" / "data"
NAMES = "Ada Bo Cy Dora Eli Fay Gus Hal Ivy Jo".split()


def question(i: int) -> str:
    """An invented word problem of 24 words; no 13 of them are another's."""
    name, things = NAMES[i % 10], f"thing{i}s"
    return (f"{name}'s shop #{i} sells {i + 3} {things} a day, for ${i + 1},250.50 each. If it's closed on Sunday{i}s, "
            f"how much does shop {i} earn in a week?")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """{name: file} of 60 invented GSM8K-shaped, 20 HellaSwag-shaped and 20 EWoK-shaped items."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "gsm8k").mkdir()
    lines = [json.dumps({"question": question(i), "answer": f"#### {i}"}) + "\n" for i in range(60)]
    (folder / "gsm8k" / "test.jsonl").write_text("".join(lines))
    lines = [json.dumps({
        "ind": i, "source_id": f"w~{i}", "label": 1, "activity_label": "Folding", "ctx_a": "Fold", "ctx_b": "",
        "ctx": f"[header] How to fold item{i} [title] Take the item{i} by its left corner. [step] Lift the corner{i} "
               "slowly and then",
        "endings": [f"put it {word} on pile {i} of your table{i}." for word in "down up off back".split()],
    }) + "\n" for i in range(20)]
    (folder / "hellaswag_val.jsonl").write_text("".join(lines))
    rows = synthetic.ewok_items(20)
    with zipfile.ZipFile(folder / "ewok_invented.zip", "w") as archive:
        archive.writestr("items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return {"gsm8k": folder / "gsm8k" / "test.jsonl", "hellaswag": folder / "hellaswag_val.jsonl",
            "ewok": folder / "ewok_invented.zip"}


@pytest.fixture(scope="module")
def guard(benchmarks):
    return decontaminate.Guard.build(benchmarks)


def plain(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.encode("ascii", "replace").decode().lower())


def passages(words: list[str], n: int) -> set[tuple]:
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def reference(items: dict[str, list[str]], text: str) -> list[str]:
    """The rule written down once more, with sets of words: ids of the items that contaminate a text."""
    found, words = [], plain(text)
    owners = {}
    spelled = {item: [plain(s) for text in texts for s in (
        text, re.sub("['’`ʼ]", "", text), re.sub(r"[^\sA-Za-z0-9]", "", text))] for item, texts in items.items()}
    for item, spellings in spelled.items():
        for passage in set().union(*(passages(s, 13) for s in spellings)):
            owners.setdefault(passage, set()).add(item)
    for item, spellings in spelled.items():
        own = set().union(*(passages(s, 13) for s in spellings))
        rare = {passage for passage in own if len(owners[passage]) <= 10} or own
        whole = {tuple(s) for s in spellings if 6 <= len(s) < 13}
        if rare & passages(words, 13) or any(w in passages(words, len(w)) for w in whole):
            found.append(item)
    return found


def write_gsm8k(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"question": text, "answer": "#### 1"}) + "\n" for text in texts))
    return path


# ------------------------------------------------------------------------------------------------------------
# the rule


words = st.sampled_from("a b c don't 1,000 is the x-ray café the's a a b".split())
texts = st.lists(words, max_size=40).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=14), st.lists(texts, min_size=1, max_size=6), st.booleans(), st.randoms())
def test_same_hits_as_sets_of_words(tmp_path_factory, items, documents, small_chunks, draw):
    """Which documents are dropped: what sets of word tuples say, for short, long, repeated and shared items, documents
    that end in the middle of an item, and chunks of any size."""
    path = write_gsm8k(tmp_path_factory.mktemp("rule") / "test.jsonl", items)
    built = decontaminate.Guard.build({"gsm8k": path})
    by_id = dict(zip(built.ids, [[text] for text in items], strict=True)) if len(built.ids) == len(items) else None
    documents = [*documents, *items, *(f"some {item} words" for item in items)]
    documents += [a + " " + b for a, b in zip(items, documents, strict=False)]
    draw.shuffle(documents)
    with pytest.MonkeyPatch.context() as patch:
        if small_chunks:
            patch.setattr(decontaminate, "CHUNK", 300)
        found = built.hits_batch([text.encode() for text in documents])
    assert by_id is not None
    for number, text in enumerate(documents):
        assert found.get(number, []) == reference(by_id, text), text


def test_borders_of_chunks(tmp_path, monkeypatch):
    """An item of 13 words, and one of 8, at every place around the end of a chunk: found; one word less: not."""
    monkeypatch.setattr(decontaminate, "CHUNK", 400)
    items = ["a1 b2 c3 d4 e5 f6 g7 h8 i9 j10 k11 l12 m13", "n1 o2 p3 q4 r5 s6 t7 u8"]
    built = decontaminate.Guard.build({"gsm8k": write_gsm8k(tmp_path / "test.jsonl", items)})
    for shift in range(250, 450):
        for number, item in enumerate(items):
            before, after = ("y " * 300)[:shift] + " ", " z" * 300
            assert built.hits(before + item + after) == [built.ids[number]], shift
            assert built.hits(before + item) == [built.ids[number]], shift
            assert built.hits(before + item.rsplit(" ", 1)[0] + after) == [], shift
            assert built.hits(before + item.split(" ", 1)[1] + after) == [], shift


def test_long_documents(benchmarks, guard):
    """A document larger than a chunk: an item is found wherever it lies, once, and not across two documents."""
    filler = "word " * (decontaminate.CHUNK // 5)
    item = question(7)
    assert len(filler) > decontaminate.CHUNK - 10
    for shift in range(0, 300, 7):
        text = "x" * shift + " " + filler[: -len(item) // 2] + item + " " + filler
        assert guard.hits(text) == [guard.ids[7]], shift
    spoken = plain(item)
    pieces = [" ".join(spoken[i : i + 12]).encode() for i in range(0, len(spoken), 12)]
    assert guard.hits_batch(pieces) == {} and guard.hits(b" ".join(pieces)) == [guard.ids[7]]
    assert guard.hits("q" * (3 * decontaminate.CHUNK) + " " + item) == [guard.ids[7]]
    assert guard.hits("") == [] and guard.hits_batch([]) == {} and guard.hits_batch([b"", b"", b""]) == {}
    assert guard.hits_batch([b"", item.encode(), b""]) == {1: [guard.ids[7]]}


DISGUISES = [str, str.upper, str.swapcase, lambda t: re.sub(r"\s+", "\n\t ", t), lambda t: re.sub(r"[^\w\s]", "", t),
             lambda t: re.sub(r"[^\w\s]", " ", t), lambda t: t.replace("'", "’").replace(",", ";"),
             lambda t: "> " + t.replace(" ", " — "), lambda t: t.replace("'", "")]


def test_disguises(guard):
    """Case, punctuation and white space hide no item, and do not make it another's."""
    for i in range(60):
        for disguise in DISGUISES:
            text = f"Before it 5 words. {disguise(question(i))} And after it."
            assert guard.hits(text) == [guard.ids[i]], text
    assert guard.hits(question(0).encode() + b" \xff\xfe") == [guard.ids[0]]
    assert guard.hits(question(0) + "\ud800") == [guard.ids[0]]


def test_what_is_compared(benchmarks, guard):
    """The texts of each benchmark: HellaSwag with and without WikiHow's marks, each ending; EWoK's four pairs; not
    GSM8K's answers; and the ids that the evaluations give."""
    import eval_gsm8k
    import ewok
    import hellaswag

    number = guard.ids.index
    first = number("hellaswag/w~4#4")
    clean = "how to fold item4 take the item4 by its left corner lift the corner4 slowly and then"
    for ending in "down up off back".split():
        assert guard.hits(f"corner. Lift the corner4 slowly and then put it {ending} on pile 4") == [guard.ids[first]]
    assert guard.hits(clean) == [guard.ids[first]] and guard.hits(clean.replace("fold", "bend"))
    assert guard.hits("put it down on pile 4 of your table4.") == []
    items = ewok.load(benchmarks["ewok"])
    for item in items:
        for context in ("Context1", "Context2"):
            for target in ("Target1", "Target2"):
                assert f"ewok/{item['id']}" in guard.hits(f"So. {item[context]}  {item[target]} Yes")
        assert guard.hits(item["Context1"]) == []
    assert [f"ewok/{item['id']}" for item in items] == [i for i in guard.ids if i.startswith("ewok/")]
    assert ([f"gsm8k/{item['id']}" for item in eval_gsm8k.load(benchmarks["gsm8k"])]
            == [i for i in guard.ids if i.startswith("gsm8k/")])
    assert ([f"hellaswag/{item['id']}" for item in hellaswag.load(str(benchmarks["hellaswag"]))]
            == [i for i in guard.ids if i.startswith("hellaswag/")])


def test_boilerplate_and_short_items(tmp_path):
    """Passages that 11 items share drop nothing, of 10 they do; an item that has nothing else keeps them; whole texts
    of 6 words are found, of 5 are counted as too short."""
    shared = "one two three four five six seven eight nine ten eleven twelve thirteen"
    other = "1 2 3 4 5 6 7 8 9 10 11 12 13"
    tail = [f"own{i} {' '.join(f'w{i}x{j}' for j in range(13))}" for i in range(22)]
    items = [f"{shared} {tail[i]}" for i in range(11)] + [f"{other} {tail[11 + i]}" for i in range(10)]
    path = write_gsm8k(tmp_path / "test.jsonl", [*items, "just six words are enough here", "five are not enough here"])
    built = decontaminate.Guard.build({"gsm8k": path})
    assert built.hits(shared) == [] and built.hits(f"{shared} own3 w3x0") == [built.ids[3]]
    assert len(built.hits(other)) == 10
    assert built.hits("Just six words; are enough HERE!") == [built.ids[21]]
    assert built.hits("just six words are enough") == built.hits("five are not enough here") == []
    assert built.benchmarks["gsm8k"]["items_too_short"] == 1
    only = write_gsm8k(tmp_path / "only.jsonl", [shared, *(f"{shared} {text}" for text in tail)])
    built = decontaminate.Guard.build({"gsm8k": only})
    assert built.hits(shared) == [built.ids[0]]


@pytest.mark.slow
def test_real_false_hits(monkeypatch):
    """The share of clean documents that are lost: below 0.1 % of edu_web (6,202) and books (7,707) against all three
    benchmarks. None is hit at all, so any change of the rule shows here."""
    if not (REAL / "edu_web.parquet").exists():
        pytest.skip("the real data is not beside the repository")
    monkeypatch.setenv("EWOK_PASSWORD", "ewok")
    built = decontaminate.from_argument([str(REAL)])
    assert {k: (v["items"], v["items_too_short"]) for k, v in built.benchmarks.items()} == {
        "gsm8k": (1319, 0), "hellaswag": (10042, 0), "ewok": (4374, 0)}
    for name in ("edu_web", "books"):
        column = pq.read_table(REAL / f"{name}.parquet", columns=["text"]).column(0).to_pylist()
        found, documents = 0, [text.encode() for text in column]
        for first in range(0, len(documents), 100):
            found += len(built.hits_batch(documents[first : first + 100]))
        assert found / len(documents) < 0.001 and found == 0


def test_every_real_question(tmp_path):
    """GSM8K's test split: each of its 1,319 questions is caught by itself, however short, in every disguise, inside a
    longer document, and next to nothing else is accused."""
    path = REAL / "gsm8k" / "test.jsonl"
    if not path.exists():
        pytest.skip("the real data is not beside the repository")
    built = decontaminate.Guard.build({"gsm8k": path})
    questions = [json.loads(line)["question"] for line in open(path)]
    assert len(questions) == 1319
    for disguise in DISGUISES:
        found = built.hits_batch([f"Chapter 3. {disguise(text)} He thought.".encode() for text in questions])
        assert all(built.ids[i] in found[i] for i in range(1319))
        assert sum(map(len, found.values())) <= 1323  # two pairs of questions are the same story
    training = [json.loads(line)["question"] for line in open(path.with_name("train.jsonl"))]
    assert len(built.hits_batch([text.encode() for text in training])) < 0.01 * len(training)


# ------------------------------------------------------------------------------------------------------------
# the prepare scripts


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 20_000)


CLEAN = [text for text in test_prepare.TEXTS if len(text) > 40]
PLANTED = {11 + 5 * k: k for k in range(50)}  # number of the document -> item


def planted_corpus(texts: list[str], questions: list[str], seed: int = 0) -> list[str]:
    """`texts` with `questions` in the middle of 50 of them, in other case, punctuation and white space."""
    draw, texts = random.Random(seed), list(texts)
    for number, item in PLANTED.items():
        cut = texts[number].find(" ", len(texts[number]) // 2) + 1
        disguised = draw.choice(DISGUISES)(questions[item])
        texts[number] = f"{texts[number][:cut]} {disguised} {texts[number][cut:]}"
    return texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    texts = planted_corpus(CLEAN, [question(i) for i in range(60)])
    pq.write_table(pa.table({"text": texts}), path, row_group_size=37)
    return path


def log_of(folder):
    return [json.loads(line) for line in (Path(folder) / "decontamination.jsonl").read_text().splitlines()]


def test_planted_questions_are_dropped(corpus, benchmarks, guard, tmp_path, capsys):
    """What the model never reads: 50 planted questions, all caught; every other document is there, byte for byte; the
    account closes, and meta.json and decontamination.jsonl say so without a word of the benchmark."""
    meta = test_prepare.prepare(corpus, tmp_path / "d", "--decontaminate", f"gsm8k={benchmarks['gsm8k']}")
    texts = pq.read_table(corpus).column(0).to_pylist()
    kept = [text for number, text in enumerate(texts) if number not in PLANTED]
    test_prepare.check_decoding(tmp_path / "d", kept, 0.1, 30000, "baseline")
    account = meta["token_account"]
    assert account["tokens_read"] == sum(v for k, v in account.items() if k != "tokens_read")
    found = meta["decontamination"]
    ids = [guard.ids[item].split("/")[1] for item in PLANTED.values()]
    encode = get_tokenizer().encode
    tokens = [1 + len(encode(texts[number])) for number in PLANTED]
    assert log_of(tmp_path / "d") == [{"document": number, "tokens": n, "benchmark": "gsm8k", "items": [item]}
                                      for number, n, item in zip(PLANTED, tokens, ids, strict=True)]
    assert found == {
        "rule": decontaminate.RULE, "documents_dropped": 50, "plain_tokens_dropped": sum(tokens), "benchmarks": {
            "gsm8k": {"file": "test.jsonl", "sha256": disk.sha256_file(benchmarks["gsm8k"]), "items": 60,
                      "items_too_short": 0, "documents_dropped": 50, "items_hit_total": 50, "items_hit": sorted(ids)}}}
    assert meta["docs_dropped"] == 50 and account["dropped"] == sum(tokens)
    written = json.dumps(meta) + (tmp_path / "d" / "decontamination.jsonl").read_text()
    assert "shop" not in written and "earn" not in written
    assert "50 documents" in capsys.readouterr().out


def test_real_planted_questions(tmp_path):
    """The same with 50 questions of GSM8K's test split in documents of edu_web, against all of it."""
    if not (REAL / "edu_web.parquet").exists():
        pytest.skip("the real data is not beside the repository")
    documents = pq.read_table(REAL / "edu_web.parquet", columns=["text"]).column(0).to_pylist()[:400]
    lines = open(REAL / "gsm8k" / "test.jsonl").read().splitlines()
    questions = sorted((json.loads(line)["question"] for line in lines), key=len)[:50]  # the shortest are the hardest
    pq.write_table(pa.table({"text": planted_corpus(documents, questions, 1)}), tmp_path / "planted.parquet")
    meta = test_prepare.prepare(tmp_path / "planted.parquet", tmp_path / "d", "--decontaminate",
                                f"gsm8k={REAL / 'gsm8k' / 'test.jsonl'}", f"hellaswag={REAL / 'hellaswag_val.jsonl'}")
    assert {record["document"] for record in log_of(tmp_path / "d")} == set(PLANTED)
    assert meta["decontamination"]["benchmarks"]["gsm8k"]["items_hit_total"] == 50
    assert meta["decontamination"]["benchmarks"]["hellaswag"]["documents_dropped"] == 0


def test_off_by_default(corpus, tmp_path):
    """Without the flag nothing is dropped, and folders are as they were before it existed."""
    meta = test_prepare.prepare(corpus, tmp_path / "d")
    assert meta["docs_dropped"] == 0 and "decontamination" not in meta and "decontaminate" not in meta["settings"]
    assert not (tmp_path / "d" / "decontamination.jsonl").exists()
    meta = test_prepare.prepare("synthetic", tmp_path / "e", "--max_docs", 50, "--decontaminate",
                                f"gsm8k={write_gsm8k(tmp_path / 't.jsonl', [question(1)])}")
    assert meta["decontamination"]["documents_dropped"] == 0 and log_of(tmp_path / "e") == []


def test_same_for_workers_conditions_and_rows(corpus, benchmarks, tmp_path):
    """The dropped documents, and so the val set: the same for 1 and 4 workers, both conditions, stream and rows, also
    when --target_tokens stops inside a batch and held-out documents are among the planted."""
    flags = ("--decontaminate", f"gsm8k={benchmarks['gsm8k']}", f"hellaswag={benchmarks['hellaswag']}")
    for stop in ((), ("--target_tokens", 25000)):
        made = {}
        for name, more in {"a": (), "b": ("--num_proc", 4), "c": ("--condition", "mul_tokens"),
                           "d": ("--condition", "mul_tokens", "--num_proc", 3)}.items():
            out = tmp_path / f"{name}{len(stop)}"
            meta = test_prepare.prepare(corpus, out, *flags, *stop, *more)
            made[name] = test_prepare.files_of(out), meta["decontamination"], meta["val_fingerprint_documents"]
        assert made["a"] == made["b"] and made["c"] == made["d"]
        assert made["a"][1:] == made["c"][1:]
        assert made["a"][0]["decontamination.jsonl"] == made["c"][0]["decontamination.jsonl"]
        rows = tmp_path / f"rows{len(stop)}"
        prepare_bos_rows.main(["--dataset", str(corpus), "--out_dir", str(rows), "--shard_tokens", "30000", "--seq_len",
                               "64", "--val_fraction", "0.1", *map(str, (*flags, *stop))])
        meta = shards.read_meta(rows)
        assert (meta["decontamination"], meta["val_fingerprint_documents"]) == made["a"][1:]
        assert test_prepare.files_of(rows)["decontamination.jsonl"] == made["a"][0]["decontamination.jsonl"]
        account = meta["token_account"]
        assert account["tokens_read"] == sum(v for k, v in account.items() if k != "tokens_read")
    dropped = meta["decontamination"]["documents_dropped"]
    assert 0 < dropped < 50 and len(log_of(rows)) == dropped


def test_nothing_is_listed_after_the_end(corpus, benchmarks, tmp_path):
    """documents_dropped with --target_tokens: what was read and dropped, not what lay behind in the same batch."""
    for target in (6000, 12000, 25000):
        out = tmp_path / str(target)
        flags = ("--target_tokens", target, "--decontaminate", f"gsm8k={benchmarks['gsm8k']}")
        meta = test_prepare.prepare(corpus, out, *flags)
        expected = [number for number in PLANTED if number < meta["docs_processed"]]
        assert [record["document"] for record in log_of(out)] == expected and 0 < len(expected) < 50
        assert meta["docs_dropped"] == meta["decontamination"]["documents_dropped"] == len(expected)


def test_held_out_share_does_not_depend_on_it(corpus, benchmarks, tmp_path):
    """No contaminated document is held out; the others are, exactly as without the guard."""
    hashes = []
    for name, flags in (("a", ()), ("b", ("--decontaminate", f"gsm8k={benchmarks['gsm8k']}"))):
        test_prepare.prepare(corpus, tmp_path / name, "--shard_tokens", 10**6, *flags)
        hashes.append({row.tobytes() for row in np.load(tmp_path / name / "val_documents.npz")["hash"]})
    texts = pq.read_table(corpus).column(0).to_pylist()
    contaminated = {shards.document_hash(texts[number].encode()) for number in PLANTED}
    assert hashes[0] & contaminated and hashes[1] == hashes[0] - contaminated


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("script", ["stream", "rows"])
def test_kill_anywhere_and_resume(corpus, benchmarks, tmp_path, monkeypatch, script):
    """Every byte, decontamination.jsonl included, of a dataset whose making was killed at random disk operations."""
    monkeypatch.setattr(prepare_fineweb, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(sources, "BATCH_BYTES", 40_000)
    module = prepare_fineweb if script == "stream" else prepare_bos_rows
    monkeypatch.setattr(test_prepare.prepare_fineweb, "main", module.main)  # what die_at runs

    def argv(out):
        return ["--dataset", str(corpus), "--out_dir", str(out), "--shard_tokens", "30000", "--val_fraction", "0.1",
                "--decontaminate", f"gsm8k={benchmarks['gsm8k']}", "--resume"]

    module.main(argv(tmp_path / "whole"))
    assert len(log_of(tmp_path / "whole")) == 50
    draw, kills = random.Random(0), 0
    for first_operation in range(3, 36, 8):
        out, operation = tmp_path / f"killed{first_operation}", first_operation
        while True:
            pid = forked(lambda a, n=operation: test_prepare.die_at(n, a), argv(out))
            status = os.waitpid(pid, 0)[1]
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            kills += 1
            operation = draw.choice((10**6, draw.randrange(1, 150)))
        assert test_prepare.files_of(out) == test_prepare.files_of(tmp_path / "whole")
        assert (shards.read_meta(out)["decontamination"], shards.read_meta(out)["token_account"]) == (
            shards.read_meta(tmp_path / "whole")["decontamination"],
            shards.read_meta(tmp_path / "whole")["token_account"])
        assert not list(out.glob("*.partial")) and not list(out.glob("*.tmp"))
    assert kills >= 5


def test_resume_with_another_guard_is_refused(corpus, benchmarks, tmp_path, monkeypatch):
    """A dataset is of one guard: another file, fewer benchmarks or none are refused, begun or finished."""
    flags = ("--decontaminate", f"gsm8k={benchmarks['gsm8k']}")
    other = write_gsm8k(tmp_path / "other.jsonl", [question(3)])
    with monkeypatch.context() as patch:
        def fail(self, meta):
            raise OSError(5, "broken")
        patch.setattr(shards.DatasetWriter, "finish", fail)
        test_prepare.sentence_of(corpus, tmp_path / "d", *flags)
    for _ in range(2):  # begun, then finished
        for wrong in ((), ("--decontaminate", f"gsm8k={other}"), (*flags, f"hellaswag={benchmarks['hellaswag']}")):
            told = test_prepare.sentence_of(corpus, tmp_path / "d", "--resume", *wrong)
            assert "with other settings (decontaminate" in told and " was " in told
        moved = tmp_path / "moved.jsonl"
        moved.write_bytes(benchmarks["gsm8k"].read_bytes())  # the same content under another name is the same guard
        test_prepare.prepare(corpus, tmp_path / "d", "--resume", "--decontaminate", f"gsm8k={moved}")
    assert "with other settings" in test_prepare.sentence_of(corpus, tmp_path / "d", "--resume")


def test_flag(benchmarks, guard):
    """--decontaminate FOLDER is the named form of what lies in it; it can be repeated."""
    folder = benchmarks["hellaswag"].parent
    named = [f"{name}={path}" for name, path in benchmarks.items()]
    assert decontaminate.from_argument([]) is None
    assert decontaminate.from_argument([str(folder)]).settings == guard.settings
    assert decontaminate.from_argument(named).settings == guard.settings
    assert test_prepare.parse("--out_dir", "x", "--decontaminate", *named[:2], "--decontaminate", named[2]
                              ).decontaminate == named


def test_bad_input_is_one_sentence(benchmarks, corpus, tmp_path):
    """Each fault stops before anything is written."""
    (tmp_path / "broken.jsonl").write_text(benchmarks["gsm8k"].read_text() + '{"question": \n')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "nothing").mkdir()
    write_gsm8k(tmp_path / "huge.jsonl", ["word " * 50_000])
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    for values, expected in [
        (["gsm8k=missing.jsonl"], "no such file"), (["piqa=" + str(benchmarks["gsm8k"])], "no such benchmark"),
        ([str(benchmarks["gsm8k"])], "is no folder: name the benchmark"), (["missing"], "is no folder"),
        ([str(tmp_path / "nothing")], "holds none of"), ([f"gsm8k={tmp_path}/broken.jsonl"], "line 61"),
        ([f"gsm8k={tmp_path}/empty.jsonl"], "holds no items"), ([f"gsm8k={tmp_path}/list.jsonl"], "is not GSM8K"),
        ([f"hellaswag={benchmarks['gsm8k']}"], "no fields ctx, endings: that is not HellaSwag"),
        ([f"gsm8k={benchmarks['gsm8k']}", f"gsm8k={tmp_path}/list.jsonl"], "names gsm8k twice"),
        ([f"gsm8k={tmp_path}/huge.jsonl"], "item 0 has"), ([f"ewok={tmp_path}/bad.zip"], "not a whole zip"),
        (["gsm8k="], "no such file"),
    ]:
        message = test_prepare.sentence_of(corpus, tmp_path / "d", "--decontaminate", *values)
        assert expected in message, message
        assert not (tmp_path / "d").exists()


def test_prepare_does_not_import_torch(corpus, benchmarks, tmp_path):
    """Memory and start-up: neither prepare script needs torch, with a guard for all benchmarks either."""
    code = ("import sys, prepare_bos_rows, prepare_fineweb; prepare_fineweb.main(sys.argv[1:]); "
            "assert 'torch' not in sys.modules")
    flags = ["--decontaminate", *(f"{name}={path}" for name, path in benchmarks.items())]
    subprocess.run([sys.executable, "-c", code, "--dataset", str(corpus), "--out_dir", str(tmp_path / "d"),
                    "--val_shards", "0", *flags], check=True, capture_output=True, cwd=REPO)
