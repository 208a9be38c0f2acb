"""eval_gsm8k.py: answers out of text, the exam, the probes, and what they leave on disk."""

import gzip
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_model import ask_the_fake  # noqa: F401 (a fixture)
from hypothesis import given, settings
from hypothesis import strategies as st

import eval_gsm8k as g
from lab import answers, benchmarks, disk, exams, inference, probes, processes, runs
from lab.inference import Completion
from lab.tokenizer import VOCAB_SIZE, get_tokenizer
from model import GPT, GPTConfig

REPO = Path(__file__).resolve().parents[1]
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"
SHAPE = dict(n_layer=1, n_head=1, n_embd=8, block_size=128)

# ----------------------------------------------------------------------------------------------------------------------
# answers out of text

TABLE = [  # text, strict, flexible
    ("#### 18", 18, 18),
    ("#### 1,234.50", "1234.5", "1234.5"),
    ("#### $29.00", 29, 29),
    ("#### -3", -3, -3),
    ("#### 18.", 18, 18),
    ("#### 18.00", 18, 18),
    ("The answer is 1,234", None, 1234),
    ("The answer is 1,234.", None, 1234),
    ("9*2 = 18\n#### 18", 18, 18),
    ("#### 5\nThen again:\n#### 6", 5, 6),  # two marks: the first, where a model should have stopped
    ("#### none\n#### 6", 6, 6),  # as GSM8K's own pattern: the first mark that has a number
    ("####", None, None),
    ("It is 7.\n####", None, 7),
    ("It is 7.\n#### seven", None, 7),
    ("####\n18", None, 18),
    ("### 18", None, 18),
    ("##### 18", 18, 18),
    ("It is 1\u202f000.", None, None),  # groups of a typesetter: not 0
    ("#### 1\u00a0234", None, None),
    ("#### 3/4", "3/4", "3/4"),
    ("#### 3 / 4", "3/4", "3/4"),
    ("#### 1 1/2", "3/2", "3/2"),
    ("#### -1/2", "-1/2", "-1/2"),
    ("#### -1 1/2", "-3/2", "-3/2"),
    ("#### 3/0", None, None),
    ("#### 12/4 = 3", 3, 3),
    ("#### 25%", 25, 25),
    ("#### 25 %", 25, 25),
    ("#### 0.25", "1/4", "1/4"),
    ("#### 18 apples", 18, 18),
    ("#### 18 apples for 3 people", 18, 3),
    ("#### 18, because 20 - 2 is 18", 18, 18),
    ("#### 18kg", 18, 18),
    ("#### 18 dollars.\n", 18, 18),
    ("#### \u22123", -3, -3),
    ("#### \u20133", -3, -3),
    ("#### - 3", -3, 3),
    ("#### -$3", -3, -3),
    ("#### $-3", -3, -3),
    ("#### +3", 3, 3),
    ("####18", 18, 18),
    ("####   18", 18, 18),
    ("####\t\u00a018 \r\n", 18, 18),
    ("#### \u20ac1,000,000", 10**6, 10**6),
    ("#### \\$5", 5, 5),
    ("#### .5", "1/2", "1/2"),
    ("#### 007", 7, 7),
    ("#### 1e3", 1000, 1000),
    ("#### 1.5E-2", "0.015", "0.015"),
    ("#### 123456789012345678901234567890", 123456789012345678901234567890, 123456789012345678901234567890),
    ("#### " + "9" * 6000, None, None),  # above Python's limit for int(): an error, if it were tried
    ("#### 1e999999999", None, None),  # would take all memory
    ("#### 1e99999999999999", None, None),
    ("#### 1.2.3", None, None),
    ("#### 2\u00bd", None, None),
    ("#### 6*9", None, 9),  # an expression is not its value
    ("#### 6*9=54", 54, 54),
    ("#### 6 * 9 = $54", 54, 54),
    ("#### <<6*9=54>>54", 54, 54),
    ("#### 6*9 = 5*9+9 = 54", 54, 54),
    ("#### (5 + 4) * 2 = 18", 18, 18),
    ("#### 18 = 20 - 2", 18, 2),
    ("#### 18-20", None, 20),
    ("16-3", None, 3),  # a minus after a number is no sign
    ("16 eggs -3 eggs", None, -3),
    ("total=-3", None, -3),
    ("#### <MUL_6_9_54>", None, None),
    ("The answer is <MUL_6_9_54>", None, None),
    ("The answer is <MUL_6_9_5", None, None),
    ("7 or <MUL_6_9_54>", None, 7),
    ("#### 5<MUL_6_9_54>", 5, 5),
    ("#### <MUL_9_6_54>", None, None),
    ("", None, None),
    # a number that goes on in another way is none, not its first or last digits
    ("#### 9{,}500", 9500, 9500),  # LaTeX's thousands
    ("#### 1{,}234{,}567.5", "1234567.5", "1234567.5"),
    ("#### 9\\,500", 9500, 9500),
    ("#### 9{,}50", None, None),
    ("#### 0,5", None, None),
    ("#### 0,500", None, None),
    ("#### 2,5", None, None),
    ("#### 1,234,56", None, None),
    ("#### 1234,567", None, None),
    ("#### 1,234{,}567", None, None),
    ("#### 1.234,5", None, None),
    ("#### 1'000", None, None),
    ("#### 1_000", None, None),
    ("#### 12:30", None, None),
    ("#### 3:2", None, None),
    ("#### 5'10", None, None),
    ("It is 7. At 12:30", None, None),
    ("#### 3 million", None, None),
    ("#### 3-million", None, None),
    ("#### 0.5 Billion", None, None),
    ("#### $3M", None, None),
    ("#### 5k", None, None),
    ("#### 5 km", 5, 5),
    ("#### 3 dozen", 3, 3),  # a unit in GSM8K
    ("#### 18 m\u00b2", 18, 18),
    ("#### 18 m2", 18, 2),
    ("#### 2\u00b2", None, None),
    ("7 or \u00bd", None, 7),
    ("7 or 2\u00bd", None, None),
    ("#### 12 and 13", None, 13),
    ("#### 12, 13", None, 13),
    ("#### 12 or 13", None, 13),
    ("#### 12 to 15", None, 15),
    ("#### 12..15", None, 15),
    ("#### 1 234", None, 234),
    ("#### 5 feet 3 inches", None, 3),
    ("#### 2 hours and 30 minutes", None, 30),
    ("#### 2 and a half", None, 2),
    ("#### 2 hours and a half", None, 2),
    ("#### 18 because 20 - 2 is 18", 18, 18),
    ("#### 18 per 2 people", 18, 2),
    ("#### 18 Step 2: none", 18, 2),
    ("#### 12:30\n#### 6", None, 6),  # the first mark that has a number decides
    ("#### 12 and 13\n#### 6", None, 6),
    ("#### " + "9" * 6000 + " 1/2", None, None),
]

GOLDS = [  # a right answer, its value
    ("12", 12), ("12 apples", 12), ("12 apples.", 12), ("12.", 12), ("$12.50", "12.5"), ("50%", 50), ("1/2", "1/2"),
    ("1 1/2 cups", "3/2"), ("1e3", 1000), ("-3", -3), ("\u22123", -3), ("1,234", 1234), ("9{,}500", 9500),
    ("12 \u20ac", 12), ("5 km/h", 5), ("12 cm\u00b3", 12), ("5 quarters", 5), ("3 salt and pepper shakers", 3),
    ("12\nThe answer is: 12", 12), ("0,5", None), ("12:30", None), ("3 million", None), ("1,234,56", None),
    ("1.234,5", None), ("12 and 13", None), ("12 or more", None), ("2 and a half", None), ("2 hours and a half", None),
    ("5 feet 3 inches", None), ("12-15", None), ("12 (total)", None), ("12, so", None), ("10+", None), ("~10", None),
    ("6*9=54", None), ("54 = 6*9", None), ("3/0", None), ("seven", None), ("", None), ("12 #### 12", None)]


@pytest.mark.parametrize("text, strict, flexible", TABLE)
def test_extraction_table(text, strict, flexible):
    """Accuracy itself: an answer read wrongly is a problem scored wrongly."""
    for rule, expected in (("strict", strict), ("flexible", flexible)):
        assert answers.extract_answer(text, rule) == (None if expected is None else Fraction(expected)), rule


@pytest.mark.parametrize("text, value", GOLDS)
def test_gold_answers(tmp_path, text, value):
    """What every answer is compared with: one number and its unit, or the line that is refused."""
    row = {"question": "a", "answer": f"So 7.\n#### {text}"}
    path = write(tmp_path / "a.jsonl", GOOD, row)
    if value is not None:
        assert g.load(path)[1]["gold"] == Fraction(value) == answers.extract_answer(row["answer"])
        return
    with pytest.raises(ValueError, match="a.jsonl line 2 has an answer .*correct or remove it"):
        g.load(path)


def test_unknown_rule():
    """No number at all: a misspelt rule must not fall back to another one."""
    with pytest.raises(ValueError, match="use strict or flexible"):
        answers.extract_answer("#### 1", "loose")


@pytest.mark.parametrize("text, expected", [
    (" 54", 54), (" 54.", 54), ("54\n6*9=54", 54), ("\n54", None), (" 6*9 = 54", 54), (" <<6*9=54>>54", 54),
    ("6*9=54", 54), ("6*9=55", 55), ("6 x 9 = 54", 54), (" 6 times 9 is 54", 54), ("12 plus 34 equals 46.", 46),
    ("12+34=46", 46), ("6*9", None), ("7*1", None), ("54, because 6*9=54", 54), ("The answer is $54.", 54),
    ("6*9=5*9+9=54", 54), ("<MUL_6_9_54>", None), ("none", None), ("-3", -3), ("3/4", None), ("", None)])
def test_first_number(text, expected):
    """The probes' accuracy: operands of a restated sum must not count as the answer, in either arm."""
    assert answers.first_number(text) == expected


def test_first_number_is_fair_to_tokens():
    """The probes' accuracy: 6*9=54 as one token and as text get the same credit, right or wrong."""
    from inject_mul import MulExpressionInjector
    for a in range(1, 10):
        for b in range(a, 10):
            token = MulExpressionInjector().expand(f" <MUL_{a}_{b}_{a * b}>")
            assert answers.first_number(token) == answers.first_number(f" {a}*{b}={a * b}") == a * b
            assert answers.extract_answer("####" + token) == a * b


@settings(max_examples=300, deadline=None)
@given(st.integers(-10**12, 10**12), st.integers(0, 99), st.sampled_from(["{:,}", "{}"]),
       st.sampled_from(["", "$", "€"]), st.sampled_from(["", ".", " apples", "%", ", so", "\n", "\nUser: 3"]))
def test_every_spelling_of_a_number(whole, cents, grouping, currency, after):
    """Accuracy: every usual way to write one number must be read as that number."""
    value = Fraction(whole) + (1 if whole >= 0 else -1) * Fraction(cents, 100)
    text = ("-" if whole < 0 else "") + currency + grouping.format(abs(whole)) + (f".{cents:02d}" if cents else "")
    assert answers.extract_answer(f"So 12.\n#### {text}{after}") == value
    if "3" not in after:
        assert answers.extract_answer(f"It was 12 and is {text}{after}", "flexible") == value
    assert Fraction(answers.answer_text(value)) == value


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="#0123456789.,-+*/=%$eE <>()MUL_x½\n−", max_size=60))
def test_any_text_is_survived(text):
    """An exam of 1,319 must not die on one odd completion."""
    for rule in ("strict", "flexible"):
        value = answers.extract_answer("####" + text, rule)
        assert value is None or Fraction(answers.answer_text(value)) == value
    answers.first_number(text)


@pytest.mark.parametrize("piece", ["1+", "1,", "1 1/", "-", "(", "####", "#### 1+", "1.", "1e", "<<1*1=", "1 times "])
def test_long_text_takes_linear_time(piece):
    """Seconds: a model that repeats itself must not stall the exam in a regular expression."""
    start = time.process_time()
    text = piece * (20_000 // len(piece))
    for part in (text, "#### " + text):
        answers.extract_answer(part), answers.extract_answer(part, "flexible"), answers.first_number(part)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("value, text", [("18", "18"), ("1234.5", "1234.5"), ("-0.05", "-0.05"), ("1/3", "1/3"),
                                         ("0.000001", "0.000001"), ("0.0000001", "1/10000000"), ("-7/2", "-3.5")])
def test_answer_text(value, text):
    """The records' `strict` and `gold`: the same number must always be the same text."""
    assert answers.answer_text(Fraction(value)) == text


# ----------------------------------------------------------------------------------------------------------------------
# the template and the problems


def test_template():
    """Every score: the prompt is 002's, to the character."""
    assert answers.render_prompt("Why?") == "User: Why?\nAssistant:"
    assert (answers.USER, answers.ASSISTANT) == ("User:", "Assistant:")


@pytest.mark.skipif(not REAL.exists(), reason="no ../shared/data/gsm8k beside the repo")
@pytest.mark.parametrize("name, n", [("test", 1319), ("train", 7473)])
def test_real_gold_answers(name, n):
    """The golds of all problems equal what GSM8K's own pattern finds; the total is the official one."""
    items = g.load(REAL / f"{name}.jsonl")
    rows = [json.loads(line) for line in open(REAL / f"{name}.jsonl")]
    assert len(items) == len({item["id"] for item in items}) == n
    for item, row in zip(items, rows, strict=True):
        official = re.search(r"#### (\-?[0-9\.\,]+)", row["answer"])[1].replace(",", "")
        assert item["gold"] == Fraction(official) == answers.extract_answer(row["answer"], "flexible")


def write(path, *lines):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as f:
        f.write("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def check(*rows):
    return benchmarks.make_items(benchmarks.numbered(rows, "here"), "here", g.fault_of, g.make_item)


GOOD = {"question": "How many? ", "answer": "#### 1"}


def test_load(tmp_path):
    """Which problems are asked: blank lines are none, gz is the same, and a part is spread over the file."""
    rows = [{"question": f" {i}? ", "answer": f"so\n#### {i}"} for i in range(10)]
    items = g.load(write(tmp_path / "a.jsonl", *rows[:5], "\n", *rows[5:]))
    assert [item["question"] for item in items] == [f"{i}?" for i in range(10)]
    assert [item["gold"] for item in items] == list(range(10))
    assert [item["id"][:5] for item in items] == [f"{i:05d}" for i in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)]
    gz = g.load(write(tmp_path / "a.jsonl.gz", *rows))
    assert [item["question"] for item in gz] == [item["question"] for item in items]
    assert [item["question"] for item in g.load(tmp_path / "a.jsonl", 3)] == ["0?", "3?", "6?"]
    assert len(g.load(tmp_path / "a.jsonl", 99)) == 10
    assert len(g.load("synthetic")) == g.N_SYNTHETIC and len(g.load("synthetic:7")) == 7


@pytest.mark.parametrize("content, message", [
    ([GOOD, "{\n"], "line 2 is not JSON"), ([GOOD, '{"question": "a"\n'], "line 2 is not JSON"),
    ([GOOD, "[1]\n"], "line 2 is not a JSON object"),
    ([GOOD, "\n", {"question": "a"}], "line 3 has no text under 'answer'"),
    ([{"answer": "#### 1"}], "line 1 has no text under 'question'"),
    ([{"question": 3, "answer": "#### 1"}], "line 1 has no text under 'question'"),
    ([{"question": " ", "answer": "#### 1"}], "line 1 has no text under 'question'"),
    ([GOOD, {"question": "a", "answer": "18"}], "line 2 has an answer without a number after ####"),
    ([GOOD, {"question": "a", "answer": "#### <MUL_6_9_54>"}], "line 2 has an answer without a number"),
    ([GOOD, '{"question": "\\ud800", "answer": "#### 1"}\n'], "line 2 has half a character"),
    (["9" * 5000 + "\n"], "line 1 is not"), (["[" * 10**6 + "\n"], "line 1 is not JSON"),
    ([], "has no items"), (["\n"], "has no items")])
def test_broken_data(tmp_path, content, message):
    """Which problems are asked: a file that is not GSM8K's is refused by line, in one sentence."""
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        g.load(write(tmp_path / "a.jsonl", *content))
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and "a.jsonl" in str(error.value)


def test_broken_files(tmp_path):
    """Which problems are asked: a file that cannot be read is never taken for a shorter one."""
    whole = write(tmp_path / "a.jsonl.gz", *[GOOD] * 1000).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-30])
    (tmp_path / "not.jsonl.gz").write_bytes(b'{"question": "a", "answer": "#### 1"}\n')
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é", "answer": "#### 1"}\n'.encode("latin-1"))
    for name, message in (("cut.jsonl.gz", "cannot be read"), ("not.jsonl.gz", "cannot be read"),
                          ("latin.jsonl", "line 1 is not JSON")):
        with pytest.raises(ValueError, match=message):
            g.load(tmp_path / name)
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            g.load(missing)
    for count in ("synthetic:x", "synthetic:0", "synthetic:-1", "synthetic:1.5"):
        with pytest.raises(ValueError, match="at least 1, as in synthetic:"):
            g.load(count)
    with pytest.raises(ValueError, match="give 0 for all"):
        g.load("synthetic", -1)


def test_hub(monkeypatch):
    """Which problems are asked: the hub's main test split, or one sentence when it cannot be had."""
    import datasets
    asked = []

    def fake(*args, **kwargs):
        asked.append((args, kwargs))
        return [GOOD]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert g.load()[0]["gold"] == 1 and asked == [(("openai/gsm8k", "main"), {"split": "test"})]

    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub.\nmore\nlines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="cannot be read from the hub.*give local files") as error:
        g.load()
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# the exam

TOKENIZER = get_tokenizer()


class Fake:
    """Writes answer(prompt text) and stops, or not; asked: the arguments of each call."""

    def __init__(self, answer, stopped="stop_id", block_size=256, vocab_size=VOCAB_SIZE):
        self.config = SimpleNamespace(block_size=block_size, vocab_size=vocab_size)
        self.answer, self.stopped, self.asked = answer, stopped, []

    def generate(self, prompts, max_new_tokens, **options):
        self.asked.append((prompts, max_new_tokens, options))
        new = [TOKENIZER.encode(self.answer(TOKENIZER.decode(prompt)), mul_tokens=True) for prompt in prompts]
        return [Completion(ids[:max_new_tokens], self.stopped) for ids in new]

    def score_endings(self, items):
        """0 for the ending that answer(prompt) is, -1 per token for all others."""
        return [[torch.full((len(e),), 0.0 if TOKENIZER.decode(e) == self.answer(TOKENIZER.decode(context)) else -1.0)
                 for e in endings] for context, endings in items]


def asked_question(prompt):
    assert prompt.startswith("<|endoftext|>User: ") and prompt.endswith("\nAssistant:")
    return prompt[len("<|endoftext|>User: "):-len("\nAssistant:")]


def test_oracle_gets_everything():
    """Accuracy 1 for a model that is always right, and every share and count that goes with it."""
    items = g.load("synthetic:50")
    right = {item["question"]: f" So.\n#### {item['gold']}" for item in items}
    model = Fake(lambda prompt: right[asked_question(prompt)])
    result = g.evaluate(model, items)
    m = result["metrics"]
    assert m["accuracy"] == m["accuracy_flexible"] == m["accuracy_unexpanded"] == 1
    assert m["stopped_by_itself"] == m["has_mark"] == 1 and m["has_mul_token"] == 0
    assert (m["correct"], m["total"], m["no_answer_strict"], m["no_answer_flexible"]) == (50, 50, 0, 0)
    assert m["stopped_at_end_of_text"] == 50 and m["stopped_at_user"] == m["stopped_at_limit"] == m["too_long"] == 0
    assert [r["id"] for r in result["items"]] == [item["id"] for item in items]
    assert all(r["completion"] == right[r["question"]] for r in result["items"])
    assert m["most_frequent_answer_share"] == max([item["gold"] for item in items].count(x) for x in range(100)) / 50
    assert all(o["stop_ids"] == (50256,) and o["stop_strings"] == ("User:",) and o["temperature"] == 0.0
               for _, _, o in model.asked)
    lengths = [len(p) for prompts, _, _ in model.asked for p in prompts]
    assert lengths == sorted(lengths, reverse=True)  # longest first: memory runs out at once or never


def test_never_stopping_model():
    """Share of completions that stop by themselves: 0 for a model that goes on; and no answer is not a wrong answer."""
    items = g.load("synthetic:20")
    m = g.evaluate(Fake(lambda prompt: " and" * 500, "length"), items, max_new_tokens=32)["metrics"]
    assert (m["accuracy"], m["stopped_by_itself"], m["has_mark"], m["no_answer_strict"], m["no_answer_flexible"]) == (
        0, 0, 0, 1, 1)
    assert m["stopped_at_limit"] == 20 and m["tokens_generated"] == 20 * 32
    m = g.evaluate(Fake(lambda prompt: " It is -1", "length"), items)["metrics"]
    assert (m["accuracy_flexible"], m["no_answer_strict"], m["no_answer_flexible"], m["has_mark"]) == (0, 1, 0, 0)


def test_mul_tokens_are_expanded_alike():
    """Accuracy between arms: a token, its literal text and 6*9=54 are one answer; unexpanded digits are none."""
    items = check({"question": "What is 6*9?", "answer": "#### 54"})
    for text in (" #### <MUL_6_9_54>", " #### 6*9=54"):
        result = g.evaluate(Fake(lambda prompt, text=text: text), items)
        assert result["metrics"]["accuracy"] == result["metrics"]["accuracy_flexible"] == 1, text
        assert result["metrics"]["has_mul_token"] == ("MUL" in text)
        assert result["metrics"]["accuracy_unexpanded"] == ("MUL" not in text)
    literal, ids = Fake(lambda prompt: "unused"), TOKENIZER.encode(" #### <MUL_6_9_54>")
    literal.generate = lambda prompts, n, **options: [Completion(ids, "stop_id") for _ in prompts]
    m = g.evaluate(literal, items)["metrics"]
    assert (m["accuracy"], m["accuracy_unexpanded"], m["no_answer_strict"], m["has_mul_token"]) == (1, 0, 0, 1)
    wrong = g.evaluate(Fake(lambda prompt: " #### <MUL_6_8_48>"), items)
    assert wrong["metrics"]["accuracy"] == 0 and wrong["items"][0]["strict"] == "48"


def test_text_after_user_is_not_the_models():
    """Accuracy: what a model writes into the next question is no answer."""
    items = check({"question": "q", "answer": "#### 3"})
    model = Fake(lambda prompt: " It is 2.\nUser: What is #### 3?", "stop_string")
    result = g.evaluate(model, items)
    assert result["items"][0]["completion"] == " It is 2.\n" and result["items"][0]["flexible"] == "2"
    assert result["metrics"]["accuracy"] == 0 and result["metrics"]["stopped_at_user"] == 1
    assert result["metrics"]["stopped_by_itself"] == 1 and result["metrics"]["has_mark"] == 0


def test_bos():
    """Every score: the prompt begins with exactly one BOS, or with none."""
    items = g.load("synthetic:3")
    for bos in (True, False):
        model = Fake(lambda prompt: " #### 1")
        metrics = g.evaluate(model, items, bos=bos)["metrics"]
        assert metrics["bos"] is bos and f"bos={int(bos)}" in metrics["scorer"]
        for prompts, _, _ in model.asked:
            assert all(p.count(50256) == bos and (p[0] == 50256) == bos for p in prompts)
        model.asked.clear()


def test_room():
    """`too_long`, `short_room`: a prompt never loses its beginning, and no completion goes beyond block_size."""
    items = check(*({"question": "word " * n + "?", "answer": "#### 1"} for n in (5, 50, 70, 80, 90, 100, 500)))
    model = Fake(lambda prompt: " #### 1", block_size=128)
    result = g.evaluate(model, items, max_new_tokens=64)
    rooms = {len(p): n for prompts, n, _ in model.asked for p in prompts}
    length = [len(benchmarks.encode_prompt(answers.render_prompt(item["question"]), True)) for item in items]
    assert rooms == {length[0]: 64, length[1]: 64, length[2]: 48, length[3]: 32, length[4]: 16, length[5]: 16}
    assert length[5] + 16 <= 128 < length[5] + 32
    assert [r["stopped"] for r in result["items"]] == ["stop_id"] * 6 + ["too_long"]
    m = result["metrics"]
    assert (m["too_long"], m["short_room"], m["correct"], m["total"]) == (1, 4, 6, 7)
    assert m["accuracy"] == 6 / 7  # scored wrong, not left out
    model.asked.clear()
    assert g.evaluate(model, items[-1:], max_new_tokens=64)["metrics"]["accuracy"] == 0 and not model.asked
    assert g.evaluate(model, items[5:6], max_new_tokens=4)["metrics"]["too_long"] == 0  # needs little room


def test_make_batches():
    """Batches: every prompt with room once, one room per batch, at most batch_size."""
    prompts = [[0] * n for n in (5, 9, 5, 7, 1, 3, 8)]
    rooms = [16, 16, 32, 32, 0, 32, 32]
    assert benchmarks.make_batches(prompts, rooms, 3) == [[1, 0], [6, 3, 2], [5]]
    assert benchmarks.make_batches(prompts, [0] * 7, 3) == []


@pytest.fixture(scope="module")
def tiny():
    """A random model whose sampled text has some variety; its vocabulary has the multiplication tokens."""
    return GPT(GPTConfig(**SHAPE), seed=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_and_company_change_nothing(tiny, temperature):
    """Accuracy: a completion depends on its problem and the seed, not on what is asked beside it."""
    items = g.load("synthetic:12")
    settings_ = dict(max_new_tokens=24, temperature=temperature, seed=5)
    base = g.evaluate(tiny, items, batch_size=32, **settings_)["items"]
    assert len({r["completion"] for r in base}) > 1
    assert g.evaluate(tiny, items, batch_size=1, **settings_)["items"] == base
    assert g.evaluate(tiny, items, batch_size=5, **settings_)["items"] == base
    assert g.evaluate(tiny, items[7:2:-1], **settings_)["items"] == base[7:2:-1]
    if temperature:
        assert g.evaluate(tiny, items, max_new_tokens=24, temperature=1.0, seed=6)["items"] != base


def test_wilson():
    """Every interval: Wilson's, as scipy computes it."""
    from scipy.stats import binomtest
    for k, n in ((0, 200), (200, 200), (3, 10), (1, 1), (57, 1319)):
        mine = benchmarks.shares(x=[True] * k + [False] * (n - k))
        theirs = binomtest(k, n).proportion_ci(method="wilson")
        assert mine["x"] == k / n and mine["x_interval"] == pytest.approx([theirs.low, theirs.high], abs=1e-6)
    assert benchmarks.shares(x=[]) == {"x": None, "x_interval": None}


@pytest.mark.parametrize("size", [256, 50256, 50432])
def test_other_vocabularies(size):
    """No number: ids of another tokenizer would make every prompt nonsense."""
    for call in (lambda m: g.evaluate(m, g.load("synthetic:2")), probes.evaluate):
        with pytest.raises(ValueError, match=f"vocabulary has {size} ids"):
            call(Fake(None, vocab_size=size))


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_bad_options(options):
    """No number: an exam without tokens would score 0."""
    with pytest.raises(ValueError, match="give at least 1"):
        g.evaluate(Fake(None), g.load("synthetic:2"), **options)


# ----------------------------------------------------------------------------------------------------------------------
# probes


def test_probe_sets():
    """n = 81, 100, 100; right answers; drawn without replacement, by seed, and in no other family."""
    items = probes.draw()
    by = {family: [item for item in items if item["family"] == family] for family in probes.FAMILIES}
    assert [len(by[family]) for family in probes.FAMILIES] == [81, 100, 100]
    assert all(item["answer"] == eval(item["sum"]) for item in items)
    assert len({item["sum"] for item in items}) == len({item["id"] for item in items}) == 281
    pairs = {f: [tuple(map(int, re.split(r"[*+]", item["sum"]))) for item in by[f]] for f in probes.FAMILIES}
    assert sorted(pairs["products"]) == [(a, b) for a in range(1, 10) for b in range(1, 10)]
    assert all(10 <= a <= 99 and 2 <= b <= 9 for a, b in pairs["two_digit_by_digit"])
    assert all(10 <= a <= 99 and 10 <= b <= 99 for a, b in pairs["additions"])
    assert len({tuple(sorted(pair)) for pair in pairs["additions"]}) == 100
    assert len({item["cluster"] for item in by["products"]}) == 45
    assert len({item["answer"] for item in by["products"]}) == 36
    assert 20 < sum(a < b for a, b in pairs["additions"]) < 80  # either operand may be the larger
    assert probes.draw(0) == items
    for seed in range(1, 6):  # a sum turned round is the same sum
        sums = [item["sum"].split("+") for item in probes.draw(seed) if item["family"] == "additions"]
        assert len(sums) == len({tuple(sorted(pair)) for pair in sums}) == 100
    other = probes.draw(1)
    assert [x for x in other if x["family"] == "products"] == by["products"]
    for family in list(probes.FAMILIES)[1:]:
        shared = {x["sum"] for x in other} & {x["sum"] for x in by[family]}
        assert 0 <= len(shared) < 40, family  # 100 of 720 twice: about 14 in common
    digest = hashlib.sha256(json.dumps([item["sum"] for item in items]).encode()).hexdigest()
    assert digest.startswith("47e96c4305449061")  # the set is part of the scorer's name


def right_answer(prompt):
    for head, tail, lead in (("<|endoftext|>User: What is ", "?\nAssistant:", " "), ("<|endoftext|>", "=", "")):
        if prompt.startswith(head) and prompt.endswith(tail):
            return f"{lead}{eval(prompt[len(head):-len(tail)])}"
    raise AssertionError(prompt)


def test_probe_oracle():
    """1.0 in both scores, both forms and all families for a model that is right; the prompts are as stated."""
    result = probes.evaluate(Fake(right_answer))
    assert len(result["items"]) == 2 * 281
    for form in probes.FORMS:
        for family in probes.FAMILIES:
            m = result["metrics"][form][family]
            assert (m["accuracy"], m["mrr"], m["top1"], m["mean_rank"], m["no_answer"], m["ties"]) == (1, 1, 1, 1, 0, 0)
            assert m["total"] == (81 if family == "products" else 100) == m["correct"]
    assert result["metrics"]["plain"]["products"]["candidates"] == 36
    assert result["metrics"]["prompts"] == {"plain": "6*9=", "chat": "User: What is 6*9?\nAssistant:"}


def test_probe_chance():
    """The chance levels: a model without preferences scores exactly them, by the rule for ties."""
    indifferent = Fake(lambda prompt: " no")
    result = probes.evaluate(indifferent, forms=("chat",))
    for record in result["items"]:  # all candidates are equally likely, but for those of two tokens
        if record["family"] == "products":
            assert record["tied"] == 36 and record["rank"] == 18.5
    m = result["metrics"]["chat"]["products"]
    assert m["mrr"] == pytest.approx(m["chance_mrr"]) == pytest.approx(sum(1 / j for j in range(1, 37)) / 36)
    assert m["top1"] == pytest.approx(m["chance_top1"]) == pytest.approx(1 / 36)
    assert (m["accuracy"], m["no_answer"], m["ties"]) == (0, 1, 81)


@pytest.mark.parametrize("scores, right, expected", [
    ([3.0, 2.0, 1.0], 0, (1, 1, 1, 1)), ([3.0, 2.0, 1.0], 2, (3, 1 / 3, 0, 1)), ([1.0, 1.0], 1, (1.5, 0.75, 0.5, 2)),
    ([2.0, 1.0, 1.0, 0.0], 1, (2.5, (1 / 2 + 1 / 3) / 2, 0, 2))])
def test_rank_of(scores, right, expected):
    """Ranks, mrr and top1, with ties worth their mean over all orders."""
    assert probes.rank_of(scores, right) == pytest.approx(expected)


def test_restating_is_no_answer():
    """The probes' accuracy: repeating the question earns nothing, though 7*1 holds its product."""
    def echo(prompt):
        return " " + re.search(r"\d+[*+]\d+", prompt)[0]

    m = probes.evaluate(Fake(echo), forms=("chat",))["metrics"]["chat"]
    assert all(m[family]["accuracy"] == 0 and m[family]["no_answer"] == 1 for family in probes.FAMILIES)
    solved = Fake(lambda prompt: echo(prompt) + " =" + right_answer(prompt))
    m = probes.evaluate(solved, forms=("chat",))["metrics"]["chat"]
    assert all(m[family]["accuracy"] == 1 for family in probes.FAMILIES)


def test_probe_with_tokens():
    """The probes' accuracy of the mul arm: the fact's token is its product, another fact's token is not."""
    def token(prompt):
        a, b = sorted(map(int, re.search(r"(\d+)[*+](\d+)", prompt).groups()))
        return f" <MUL_{a}_{b}_{a * b}>" if b < 10 else " <MUL_1_1_1>"

    result = probes.evaluate(Fake(token), forms=("chat",))
    m = result["metrics"]["chat"]
    assert m["products"]["accuracy"] == 1 and m["additions"]["accuracy"] == 0
    assert [m["products"]["token"][k] for k in ("mrr", "top1", "candidates")] == [1, 1, 45]
    assert "token" not in m["additions"] and m["products"]["mrr"] < 0.2
    without = probes.evaluate(Fake(right_answer, vocab_size=50257), forms=("chat",))
    assert "token" not in without["metrics"]["chat"]["products"]


def test_ranks_against_literal_computation(tiny):
    """Ranks and log-probs of real scores equal those of one forward pass per candidate."""
    result = probes.evaluate(tiny, forms=("plain", "chat"))
    items = {item["id"]: item for item in probes.draw()}
    for number in (0, 40, 90, 150, 200, 281, 330, 400, 500):
        record = result["items"][number]
        form, name = record["id"].split("/", 1)
        prompt = f"{items[name]['sum']}=" if form == "plain" else f"User: What is {items[name]['sum']}?\nAssistant:"
        lead = "" if form == "plain" else " "
        context = [50256, *TOKENIZER.encode(prompt)]
        values = sorted({x["answer"] for x in items.values() if x["family"] == record["family"]})
        scores = {}
        for value in values:
            ending = TOKENIZER.encode(f"{lead}{value}")
            with torch.no_grad():
                log_probs = tiny(torch.tensor([context + ending])).log_softmax(-1)[0]
            scores[value] = sum(log_probs[len(context) - 1 + i, t].item() for i, t in enumerate(ending))
        assert record["log_prob"] == pytest.approx(scores[record["answer"]], abs=1e-4)
        assert record["rank"] == 1 + sum(s > scores[record["answer"]] for s in scores.values())
        assert record["best"] == max(scores, key=scores.get)
        assert record["credit"]["mrr"] == 1 / record["rank"]


def test_probe_refusals(tiny):
    """No number: probes that do not fit, and weights that are broken, are refused."""
    with pytest.raises(ValueError, match="block_size is 16: pass --probes off"):
        probes.evaluate(Fake(right_answer, block_size=16))
    broken = Fake(right_answer)
    broken.score_endings = lambda items: [[torch.full((1,), math.nan) for _ in endings] for _, endings in items]
    with pytest.raises(ValueError, match="not finite"):
        probes.evaluate(broken)


# ----------------------------------------------------------------------------------------------------------------------
# ranks


def as_rank(rank, world_size, folder):
    """One process of a gloo group: the exam and the probes, into folder/<rank>.json."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size,
                                         timeout=timedelta(seconds=120))
    procs = processes.Processes(rank, rank, world_size, torch.device("cpu"))
    model = GPT(GPTConfig(**SHAPE), seed=0)
    mine = []
    exam = g.evaluate(model, g.load("synthetic:11"), procs, max_new_tokens=16, temperature=1.0, batch_size=2,
                      save=mine.extend)
    probed = probes.evaluate(model, procs, forms=("plain",))
    for result in (exam, probed):
        del result["metrics"]["seconds"]
    (Path(folder) / f"{rank}.json").write_text(json.dumps([exam, probed, [record["id"] for record in mine]]))
    procs.close()


def test_world_sizes(tmp_path):
    """All scores: the same on 1, 2 and 3 processes, on each of them; every problem is done once."""
    method = "fork" if sys.platform.startswith("linux") else "spawn"
    results = {}
    for world in (1, 2, 3):
        folder = tmp_path / str(world)
        folder.mkdir()
        context = torch.multiprocessing.get_context(method)
        workers = [context.Process(target=as_rank, args=(rank, world, str(folder))) for rank in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(180)
            assert worker.exitcode == 0
        results[world] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    reference = results[1][0]
    for world, ranks in results.items():
        assert all(exam == reference[0] and probed == reference[1] for exam, probed, _ in ranks)
        did = sum((ids for _, _, ids in ranks), [])
        assert len(did) == len(set(did)) == 11 and all(ids for _, _, ids in ranks), world


# ----------------------------------------------------------------------------------------------------------------------
# the command and its files


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A run with one checkpoint, as resolve_checkpoint knows it."""
    run = tmp_path / "run"
    (run / "ckpt").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"data": {"condition": "mul_tokens"}}))
    runs.save_checkpoint(run, 7, tiny.save, 0, 0)
    return run


def command(checkpoint, *more):
    return ["--checkpoint", str(checkpoint), "--data", "synthetic:12", "--max_new_tokens", "16", "--batch_size", "4",
            "--device", "cpu", *map(str, more)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files(checkpoint, tiny, capsys):
    """gsm8k_results.json: the original's keys, the settings, and the sha256 of the records that it belongs to."""
    assert g.main(command(checkpoint, "--show", 1)) == 0
    result = json.loads((checkpoint / "gsm8k_results.json").read_text())
    assert {"model", "checkpoint", "accuracy", "correct", "total"} <= set(result)
    assert (result["total"], result["step"], result["condition"], result["model"]) == (12, 7, "mul_tokens", "run")
    assert result["checkpoint_sha256"] == disk.sha256_file(checkpoint / "ckpt" / "step_000007" / "model.safetensors")
    assert (result["temperature"], result["max_new_tokens"], result["bos"], result["dtype"]) == (0, 16, True, "float32")
    assert result["rules"]["mul_tokens"] and result["code"]["code_sha256"] and result["data_sha256"] is None
    assert result["scorer"].startswith(g.SCORER) and result["title"] == "GSM8K (synthetic, 12 items)"
    for name in ("gsm8k_completions.jsonl", "probes.jsonl"):
        assert result["files"][name] == disk.sha256_file(checkpoint / name)
    records = lines(checkpoint / "gsm8k_completions.jsonl")
    assert records == g.evaluate(tiny, g.load("synthetic:12"), max_new_tokens=16, batch_size=4)["items"]
    assert set("id cluster question completion tokens stopped strict flexible gold credit".split()) <= set(records[0])
    assert len(lines(checkpoint / "probes.jsonl")) == 562
    assert set(result["probes"]) >= {"plain", "chat", "seed", "prompts"}
    files = {g.COMPLETIONS, g.PROBES, g.RESULTS}
    assert {p.name for p in checkpoint.iterdir()} == {"ckpt", "config.json"} | files
    printed = capsys.readouterr().out
    assert "accuracy " in printed and "chance 0.116" in printed and "problem 00001" in printed


def test_a_fuller_exam_stays(checkpoint, tmp_path, capsys):
    """Two synthetic problems replaced, without a word, the exam of a file's official ones."""
    data = write(tmp_path / "a.jsonl", GOOD, GOOD, GOOD)
    asked = ["--checkpoint", str(checkpoint), "--max_new_tokens", "4", "--probes", "off", "--data"]
    g.main([*asked, str(data)])
    before = (checkpoint / "gsm8k_completions.jsonl").read_bytes()
    for other in ("synthetic:12", str(write(tmp_path / "b.jsonl", GOOD))):
        g.main([*asked, other])
        printed = capsys.readouterr()
        assert "has an exam that says more, of 3 problems" in printed.out
        assert "NOTE: this exam will not be stored" in printed.err
        assert (checkpoint / "gsm8k_completions.jsonl").read_bytes() == before
    g.main([*asked, str(write(tmp_path / "b.jsonl", GOOD)), "--out", str(checkpoint)])
    assert len(lines(checkpoint / "gsm8k_completions.jsonl")) == 1


def test_where_the_files_go(checkpoint, tiny, tmp_path):
    """The folder of the record: --out, else the run, else the bare folder; and a local file's sha256, also of the one
    that a folder or a glob stands for."""
    (tmp_path / "d").mkdir()
    data = write(tmp_path / "d" / "a.jsonl", GOOD, GOOD)
    names = iter([data, data.parent, data.with_name("*.jsonl")])
    bare = tmp_path / "bare"
    tiny.save(bare)
    for flags, folder in ((["--checkpoint", bare], bare), (["--checkpoint", bare, "--out", tmp_path / "o" / "p"],
                                                           tmp_path / "o" / "p"),
                          (["--checkpoint", checkpoint / "ckpt" / "step_000007"], checkpoint)):
        g.main([*map(str, flags), "--data", str(next(names)), "--max_new_tokens", "4", "--probes", "off",
                "--bos", "off"])
        result = json.loads((folder / "gsm8k_results.json").read_text())
        assert result["probes"] is None and result["bos"] is False and result["total"] == 2
        assert result["data_sha256"] == disk.sha256_file(data)
        assert not (folder / "probes.jsonl").exists() and list(result["files"]) == ["gsm8k_completions.jsonl"]


class Counting:
    """Stands for inference.generate: counts the prompts, and is interrupted at call number `stop_at`."""

    def __init__(self, monkeypatch, stop_at=None):
        self.calls, self.prompts, real = 0, 0, inference.generate

        def generate(model, prompts, *args, **options):
            self.calls += 1
            if self.calls == stop_at:
                raise KeyboardInterrupt
            self.prompts += len(prompts)
            return real(model, prompts, *args, **options)

        monkeypatch.setattr(inference, "generate", generate)


def test_interrupted_exam_continues(checkpoint, tmp_path, monkeypatch):
    """All scores: an exam broken off twice and continued gives the records of an unbroken one, without repeating."""
    g.main(command(checkpoint, "--probes", "off", "--out", tmp_path / "whole"))
    out = tmp_path / "broken"
    flags = command(checkpoint, "--probes", "off", "--out", out)
    with monkeypatch.context() as patch:
        Counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            g.main(flags)
    assert [p.name for p in out.iterdir()] == ["gsm8k_partial"]
    partial = out / "gsm8k_partial" / "rank0000.jsonl"
    with open(partial, "a") as f:
        f.write('{"id": "torn')
    with monkeypatch.context() as patch:
        Counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            g.main(flags)
    records = [json.loads(line) for line in partial.read_text().splitlines() if line[-1:] == "}"]
    assert len({record["id"] for record in records}) == len(records) == 8  # appended, none twice
    with monkeypatch.context() as patch:
        count = Counting(patch)
        g.main(flags)
        assert count.prompts == 4
    assert sorted(p.name for p in out.iterdir()) == ["gsm8k_completions.jsonl", "gsm8k_results.json"]
    name = "gsm8k_completions.jsonl"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    results = [json.loads((folder / "gsm8k_results.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert [r["resumed"] for r in results] == [8, 0]
    assert results[0]["accuracy_flexible"] == results[1]["accuracy_flexible"]


@pytest.mark.parametrize("change", [["--bos", "off"], ["--max_new_tokens", "17"], ["--temperature", "1"],
                                    ["--data", "synthetic:13"], ["--resume", "off"], ["--batch_size", "3"]])
def test_another_exam_does_not_continue(checkpoint, tmp_path, monkeypatch, change):
    """All scores: completions of other settings or problems are never taken over."""
    flags = command(checkpoint, "--probes", "off", "--out", tmp_path)
    with monkeypatch.context() as patch:
        Counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            g.main(flags)
    count = Counting(monkeypatch)
    g.main([*flags, *change])
    assert count.prompts == (13 if "--data" in change else 12)


def test_another_checkpoint_does_not_continue(checkpoint, tmp_path, monkeypatch):
    """All scores: completions of other weights are never taken over."""
    flags = ["--probes", "off", "--out", tmp_path]
    with monkeypatch.context() as patch:
        Counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            g.main(command(checkpoint, *flags))
    GPT(GPTConfig(**SHAPE), seed=1).save(tmp_path / "other")
    count = Counting(monkeypatch)
    g.main(command(tmp_path / "other", *flags))
    assert count.prompts == 12


def test_failed_write_leaves_the_old_result(checkpoint, monkeypatch):
    """gsm8k_results.json: a full disk leaves the old record, whole, and what was generated is kept for the next try."""
    flags = command(checkpoint, "--probes", "off")
    g.main(flags)
    before = (checkpoint / "gsm8k_results.json").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(exams, "read_done", lambda *args: {})  # the disk fills up while the model writes
        with pytest.raises(ValueError, match="No space left on device.*: free space, then run the same command again"):
            g.main([*flags, "--bos", "off"])
    assert (checkpoint / "gsm8k_results.json").read_bytes() == before
    assert not list(checkpoint.glob("*.tmp"))
    count = Counting(monkeypatch)
    g.main([*flags, "--bos", "off"])
    assert count.prompts == 0 and json.loads((checkpoint / "gsm8k_results.json").read_text())["bos"] is False


@pytest.mark.parametrize("flags, message", [
    (["--checkpoint", "nowhere"], "nowhere"), (["--checkpoint", "."], "neither a run"),
    (["--checkpoint", "{run}", "--data", "none.jsonl"], "no such file"),
    (["--checkpoint", "{run}", "--data", "synthetic:0"], "at least 1"),
    (["--checkpoint", "{run}", "--data", "synthetic:2", "--out", "{run}/config.json"], "--out .* cannot be made"),
    (["--checkpoint", "{small}", "--data", "synthetic:2"], "vocabulary has 300 ids")])
def test_refusals(checkpoint, tmp_path, monkeypatch, flags, message):
    """No number: what cannot be examined is refused in one sentence that ends with what to do, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    GPT(GPTConfig(vocab_size=300, **SHAPE), seed=0).save(tmp_path / "small")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        g.main([flag.format(run=checkpoint, small=tmp_path / "small") for flag in flags])
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flags", [["--max_new_tokens", "0"], ["--temperature", "-1"], ["--temperature", "nan"],
                                   ["--top_p", "0"], ["--top_k", "5"], ["--sample_temperature", "1"],
                                   ["--batch_size", "0"], ["--prob", "off"], ["--x"]])
def test_refused_flags(checkpoint, flags, capsys):
    """No number: a flag that is wrong, unknown, cut short or without effect stops the command."""
    with pytest.raises(SystemExit) as error:
        g.main([*command(checkpoint), *flags])
    assert error.value.code == 2 and not (checkpoint / "gsm8k_results.json").exists()


def test_dry_run_asks_nothing(checkpoint, monkeypatch, capsys, tmp_path):
    """Completions that are generated, and files that are written: none; missing problems are refused all the same."""
    monkeypatch.setattr(inference, "generate", None)
    with pytest.raises(SystemExit) as end:
        g.main([*command(checkpoint, "--out", tmp_path / "new"), "--dry_run"])
    assert not end.value.code and "nothing was scored" in capsys.readouterr().out and not (tmp_path / "new").exists()
    with pytest.raises((ValueError, OSError), match="no such file"):
        g.main(["--checkpoint", str(checkpoint), "--data", str(tmp_path / "gone.jsonl"), "--dry_run"])


def test_sampling_flags_reach_the_model(checkpoint, monkeypatch, tmp_path):
    """The record's decoding settings are those that the model got."""
    got = []
    monkeypatch.setattr(inference, "generate", lambda model, prompts, n, **options: got.append((n, options)) or [
        Completion([], "stop_id") for _ in prompts])
    g.main(command(checkpoint, "--probes", "off", "--temperature", 0.7, "--top_k", 5, "--top_p", 0.9, "--seed", 3))
    result = json.loads((checkpoint / "gsm8k_results.json").read_text())
    for n, options in got:
        assert n == 16 and [options[k] for k in ("temperature", "top_k", "top_p", "seed")] == [0.7, 5, 0.9, 3]
    assert [result[k] for k in ("temperature", "top_k", "top_p", "seed")] == [0.7, 5, 0.9, 3]
    assert "sampled" in result["scorer"]


@pytest.mark.slow
def test_ctrl_c_and_errors_from_the_shell(checkpoint, tmp_path):
    """Exit status 130 and a message at ctrl-C, nothing half-written, the next try goes on; 1 and a line on errors."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(REPO / "eval_gsm8k.py")]
    flags = command(checkpoint, "--data", "synthetic:150", "--max_new_tokens", 48, "--batch_size", 1, "--probes", "off")
    process = subprocess.Popen([*script, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    partial = checkpoint / "gsm8k_partial" / "rank0000.jsonl"
    while not (partial.exists() and partial.stat().st_size) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.strip().endswith("run the same command again to go on.")
    assert "Traceback" not in errors and not (checkpoint / "gsm8k_results.json").exists()
    done = subprocess.run([*script, *flags], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "continuing an interrupted exam" in done.stderr
    assert json.loads((checkpoint / "gsm8k_results.json").read_text())["resumed"] >= 1
    done = subprocess.run([*script, "--checkpoint", str(tmp_path / "none")], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stderr.startswith("eval_gsm8k.py: ") and done.stderr.count("\n") == 1
