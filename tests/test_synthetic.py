"""The synthetic corpus: determinism, lengths, products, and eval items that are held out, balanced and well-formed."""
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import inject_mul
from lab import synthetic
from lab.tokenizer import get_tokenizer

REPO = Path(synthetic.__file__).parents[1]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(synthetic.documents(seed=0, start=0, stop=6000))


def test_documents_depend_on_seed_and_number_alone(corpus):
    """Wrong number if it failed: the tokens of a run with several workers or of a resumed prepare."""
    assert list(synthetic.documents(0, 137, 150)) == corpus[137:150]
    assert list(itertools.islice(synthetic.documents(start=137), 13)) == corpus[137:150]
    random.seed(1)
    assert synthetic.document(0, 42) == corpus[42]
    assert len({synthetic.document(seed, i)[:60] for seed in range(20) for i in range(20)}) > 390
    with pytest.raises(ValueError, match="seed=0"):
        synthetic.documents(seed=-1)


def test_corpus_is_the_same_everywhere(corpus):
    """Wrong number if it failed: every fingerprint and loss recorded on another Python, platform or hash seed."""
    digest = hashlib.sha256("\0".join(corpus[:1000]).encode()).hexdigest()
    assert digest == "94989188335b2228ebd8b71f5441cfeafce5695cf6e3b9c2090a8d7097414b74"
    code = ("import hashlib; from lab import synthetic; "
            "print(hashlib.sha256('\\0'.join(synthetic.documents(0, 0, 1000)).encode()).hexdigest())")
    other = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": "123", "PATH": ""})
    assert other.stdout.strip() == digest


def test_document_lengths_are_log_normal(corpus):
    """Wrong number if it failed: the crop fraction of rows, which needs documents longer than rows of 256 and 1024."""
    tokenizer = get_tokenizer("tiktoken")
    lengths = sorted(len(tokenizer.encode(text)) for text in corpus[:2500])
    share = [sum(n > limit for n in lengths) / len(lengths) for limit in (256, 1024)]
    assert 120 <= lengths[len(lengths) // 2] <= 200
    assert 0.2 < share[0] < 0.4 and 0.005 < share[1] < 0.05
    assert lengths[0] < 20 and sum(n < 30 for n in lengths) < 0.1 * len(lengths)
    quartile_ratio = lengths[3 * len(lengths) // 4] / lengths[len(lengths) // 4]
    assert 2.8 < quartile_ratio < 4.8  # log-normal of sigma 1: 3.85


def test_products_are_right_and_frequent(corpus):
    """Wrong number if it failed: the mul-token rate of the mul_tokens arm (1e-5 made that arm vacuous in 002)."""
    injector, tokenizer = inject_mul.MulExpressionInjector(mode="weak"), get_tokenizer("tiktoken")
    injected = sum(injector.inject(text)[1] for text in corpus[:1000])
    assert injected / sum(len(tokenizer.encode(text)) for text in corpus[:1000]) > 0.01
    text = "\n".join(corpus)
    stated = re.findall(r"(\d+) ?([*x×+]) ?(\d+) ?= ?(\d+)", text)
    assert all(int(v) == (int(x) + int(y) if op == "+" else int(x) * int(y)) for x, op, y, v in stated)
    assert {(int(x), int(y)) for x, op, y, _ in stated if op != "+"} >= set(itertools.product(range(1, 10), repeat=2))
    for form in (r"\b6 \* 9 = 54\b", r"\b6\*9=54\b", r"\b6 × 9 = 54\b", r"\b9 x 6 = 54\b", r"\b6 \* 9\b(?! =)",
                 r"\b1\d \* \d = \d"):
        assert re.search(form, text), form


def test_facts_stay_fixed_within_a_document(corpus):
    """Wrong number if it failed: EWoK accuracy, since a document would teach that one thing is both glass and wool."""
    for text in corpus:
        seen = {}
        for thing, material in re.findall(r"The (\w+ \w+) is made of (\w+)\.", text):
            assert seen.setdefault(thing, material) == material
        for name, job in re.findall(r"(\w+) is a (\w+ \w+)\.", text):
            assert seen.setdefault(name, job) == job


def test_hellaswag_items_are_well_formed_and_balanced(corpus):
    """Wrong number if it failed: chance level 0.25 (a label, an ending or a length would give the answer away)."""
    items = synthetic.hellaswag_items(400)
    assert items == synthetic.hellaswag_items(400) and [item["ind"] for item in items] == list(range(400))
    assert Counter(item["label"] for item in items) == {label: 100 for label in range(4)}
    tokenizer, right, wrong = get_tokenizer("tiktoken"), [], []
    for item in items:
        assert set(item) == {"ind", "activity_label", "ctx_a", "ctx_b", "ctx", "split", "split_type", "label",
                             "endings", "source_id"}
        assert item["ctx"] == f"{item['ctx_a']} {item['ctx_b']}" and len(set(item["endings"])) == 4
        for i, ending in enumerate(item["endings"]):
            (right if i == item["label"] else wrong).append(len(tokenizer.encode(" " + ending)))
    assert abs(sum(right) / len(right) - sum(wrong) / len(wrong)) < 0.15
    pairs = Counter(item["source_id"] for item in items)
    assert set(pairs.values()) == {2}
    text = "\n".join(corpus)
    counts = [text.count(f" {step}.") for steps in synthetic.SCRIPTS.values() for step in steps]
    assert max(counts) < 1.35 * min(counts)  # a wrong ending is as frequent in documents as a right one
    with pytest.raises(ValueError, match="'train' or 'val'"):
        synthetic.hellaswag_items(1, split="test")


def test_ewok_items_are_minimal_pairs():
    """Wrong number if it failed: chance level 0.5 (a target's own frequency must not say which context it follows)."""
    items = synthetic.ewok_items(550, seed=0)
    assert len({item["Domain"] for item in items}) == 11
    assert min(Counter(item["Domain"] for item in items).values()) >= 40
    first = Counter()
    for item in items:
        assert item["Context1"] != item["Context2"] and item["Target1"] != item["Target2"]
        first[item["Domain"], item["ConceptA"] < item["ConceptB"]] += 1
        words1, words2 = item["Context1"].split(), item["Context2"].split()
        assert words1[0] == words2[0] and words1[-1].isalpha() == words2[-1].isalpha()
    share = sum(n for (_, ordered), n in first.items() if ordered) / len(items)
    assert abs(share - 0.5) < 4 * (0.25 / len(items)) ** 0.5


def test_gsm8k_items_work_out():
    """Wrong number if it failed: GSM8K accuracy, and its claim that test problems were never trained on."""
    train, test = synthetic.gsm8k_items(3000), synthetic.gsm8k_items(500, split="test")
    assert not {item["question"] for item in train} & {item["question"] for item in test}
    for item in train + test:
        *lines, last = item["answer"].split("\n")
        for x, op, y, note, value in re.findall(r"(\d+) ([*+]) (\d+) = <<([^>]*)>>(\d+)", "\n".join(lines)):
            assert int(value) == (int(x) * int(y) if op == "*" else int(x) + int(y)) and note == f"{x}{op}{y}={value}"
        assert last == f"#### {value}"
    answers = Counter(item["answer"].split("#### ")[1] for item in test)
    assert answers.most_common(1)[0][1] < 0.08 * len(test)


def test_eval_items_never_occur_in_documents(corpus):
    """Wrong number if it failed: every synthetic eval score, which would be memory instead of knowledge."""
    text = "\n".join(corpus)
    sentences = set(re.findall(r"[^.?\n]+[.?]", text))
    sentences |= {s.strip() for s in sentences}
    for split in ("val", "train"):
        for item in synthetic.hellaswag_items(300, split=split):
            assert item["ctx_a"].split(".")[0] + "." not in sentences
    for item in synthetic.ewok_items(550):
        assert item["Context1"] not in sentences and item["Context2"] not in sentences
    stems = set(re.findall(r"[A-Z]\w+ (?:has|buys) \d+[^?\n=]*(?=\. )", text))
    for split in ("train", "test"):
        for item in synthetic.gsm8k_items(300, split=split):
            assert item["question"].rsplit(". ", 1)[0] + ". How" not in text
    assert len(stems) > 1000  # the documents do hold problems, other ones


def test_docstring_shows_real_samples():
    """Wrong number if it failed: none, but the first thing a newcomer reads would not be what the generator writes."""
    shown = " ".join(synthetic.__doc__.split())
    assert " ".join(synthetic.document(0, 724).split()) in shown
    assert synthetic.hellaswag_items(2)[0]["ctx"] in shown and synthetic.ewok_items(1)[0]["Context2"] in shown
    assert synthetic.gsm8k_items(2)[1]["question"] in shown


def test_command_line_writes_jsonl(tmp_path):
    """Wrong number if it failed: how many items an eval reads (`--n`), or a traceback instead of a sentence."""
    def call(*args):
        return subprocess.run([sys.executable, "-m", "lab.synthetic", *args], capture_output=True, text=True, cwd=REPO)

    out = tmp_path / "items.jsonl"
    assert call("--kind", "documents", "--n", "5", "--start", "7", "--out", out).returncode == 0
    lines = out.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == list(synthetic.documents(0, 7, 12))
    assert call("--kind", "gsm8k", "--split", "test", "--n", "4", "--out", out).returncode == 0
    assert [json.loads(line) for line in out.open()] == synthetic.gsm8k_items(4, split="test")
    bad = call("--kind", "ewok", "--split", "val")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr
    bad = call("--kind", "hellaswag", "--split", "test")
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    bad = call("--out", tmp_path / "missing" / "x.jsonl")
    assert bad.returncode == 1 and "--out" in bad.stderr and "Traceback" not in bad.stderr
