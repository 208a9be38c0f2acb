"""The multiplication injector: forms taken, the faults of DESIGN §11 left alone, properties, speed, the filter."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import inject_mul
from inject_mul import MulExpressionInjector

WEAK, STRICT = MulExpressionInjector("weak"), MulExpressionInjector("strict")
DATA = Path(__file__).parent / "../../shared/data"

# text, injected weak (None: unchanged), injected strict (None: unchanged)
TAKEN = [
    ("6*9", "<MUL_6_9_54>", None),
    ("9*6", "<MUL_6_9_54>", None),
    ("6 * 9", "<MUL_6_9_54>", None),
    ("6 *9 and 6* 9", "<MUL_6_9_54> and <MUL_6_9_54>", None),
    ("6 × 9", "<MUL_6_9_54>", None),
    ("6×9", "<MUL_6_9_54>", None),
    ("6x9", "<MUL_6_9_54>", None),
    ("6 x 9", "<MUL_6_9_54>", None),
    ("6*9=54", "<MUL_6_9_54>", "<MUL_6_9_54>"),
    ("9*6 = 54", "<MUL_6_9_54>", "<MUL_6_9_54>"),
    ("6 * 9= 54", "<MUL_6_9_54>", "<MUL_6_9_54>"),
    ("6 × 9 = 54", "<MUL_6_9_54>", "<MUL_6_9_54>"),
    ("6x9=54", "<MUL_6_9_54>", "<MUL_6_9_54>"),
    ("6 x 9 = 54", "<MUL_6_9_54>", "<MUL_6_9_54>"),
    ("1*1=1", "<MUL_1_1_1>", "<MUL_1_1_1>"),
    ("9*9=81", "<MUL_9_9_81>", "<MUL_9_9_81>"),
    ("What is 6*9?", "What is <MUL_6_9_54>?", None),
    ("6*9.", "<MUL_6_9_54>.", None),
    ("6x9.", "<MUL_6_9_54>.", None),
    ("6x9, then", "<MUL_6_9_54>, then", None),
    ("It is 6*9=54. Next", "It is <MUL_6_9_54>. Next", "It is <MUL_6_9_54>. Next"),
    ("6*9=54!", "<MUL_6_9_54>!", "<MUL_6_9_54>!"),
    ("6*9=54 apples", "<MUL_6_9_54> apples", "<MUL_6_9_54> apples"),
    ("6x9=54 apples", "<MUL_6_9_54> apples", "<MUL_6_9_54> apples"),
    ("6 * 9 is 54", "<MUL_6_9_54> is 54", None),
    ("I ate 6 * 9 apples", "I ate <MUL_6_9_54> apples", None),
    ("2*3=6, 4 x 5 = 20", "<MUL_2_3_6>, <MUL_4_5_20>", "<MUL_2_3_6>, <MUL_4_5_20>"),
    ("2*3=6\n3*4=12\r\n4*5\n", "<MUL_2_3_6>\n<MUL_3_4_12>\r\n<MUL_4_5_20>\n", "<MUL_2_3_6>\n<MUL_3_4_12>\r\n4*5\n"),
    ("x = 6*9", "x = <MUL_6_9_54>", None),
    ("total=6*9=54", "total=<MUL_6_9_54>", "total=<MUL_6_9_54>"),
    ("(2*3)", "(<MUL_2_3_6>)", None),
    ("(2*3) apples", "(<MUL_2_3_6>) apples", None),
    ("x = [(2*3)].", "x = [(<MUL_2_3_6>)].", None),
    ("(see 2*3=6)", "(see <MUL_2_3_6>)", "(see <MUL_2_3_6>)"),
    ('he wrote "6*9"', 'he wrote "<MUL_6_9_54>"', None),
    ("`6*9`", "`<MUL_6_9_54>`", None),
    ('"Sure," he said. "6*9 is', '"Sure," he said. "<MUL_6_9_54> is', None),
    ('so "big" 6*9', 'so "big" <MUL_6_9_54>', None),
    ("Q:6*9", "Q:<MUL_6_9_54>", None),
    ("1. 6*9 = 54", "1. <MUL_6_9_54>", "1. <MUL_6_9_54>"),
    ("\t6*9=54 ", "\t<MUL_6_9_54> ", "\t<MUL_6_9_54> "),
    ("7 boxes, 6*9=54\n#### 54", "7 boxes, <MUL_6_9_54>\n#### 54", "7 boxes, <MUL_6_9_54>\n#### 54"),
]

# GSM8K's calculator notes: the same in weak and strict
NOTES = [
    ("<<6*9=54>>", "<MUL_6_9_54>"),
    ("6*9=<<6*9=54>>54", "<MUL_6_9_54>"),
    ("6 * 9 = <<6*9=54>>54", "<MUL_6_9_54>"),
    ("6 x 9= <<6*9=54>>54 apples.", "<MUL_6_9_54> apples."),
    ("9*6=<<6*9=54>>54", "<MUL_6_9_54>"),
    ("There are 2 × 5 = <<2*5=10>>10.\n", "There are <MUL_2_5_10>.\n"),
    ("That is <<6*9=54>>54 apples", "That is <MUL_6_9_54> apples"),
    ("That is <<6*9=54>> apples", "That is <MUL_6_9_54> apples"),
    ("5 * $1 = $<<5*1=5>>5 on apples", "5 * $1 = $<MUL_1_5_5> on apples"),
    ("3 trees x 3 = <<3*3=9>>9 trees", "3 trees x 3 = <MUL_3_3_9> trees"),
    ("boys = <<2*3=6>>6.\n3*4=<<3*4=12>>12", "boys = <MUL_2_3_6>.\n<MUL_3_4_12>"),
]

LEFT_ALONE = [
    # part of a longer number, word or version
    "106*9", "6*91", "3.5*2", "2*3.5", ".5*2", "2*.5", "2*3.0", "v2*3.0.1", "6*9=54.5", "6*9=545", "6*9=54,000",
    "1,2*3", "2*3,4", "a2*3", "2*3x", "2*3px", "2_3*4", "é2*3", "2*3é", "0x9", "1x10", "64x32", "6*9=54th",
    "6*9=54cm", "1 000 6*9", "6*0", "0*6", "2e3*4", "2*3e5", "2*3...", "2*3.x", "5'6*9", "5' 6*9",
    # not ASCII digits, superscripts, fractions
    "６*９", "٦*٩", "६*९", "6*９", "2*3²", "²2*3", "2*3½", "½2*3", "6*9\u0301", "6*9\u20e3",
    # part of a longer expression
    "2*3*4", "2 * 3 * 4", "2x3x4", "2 x 3 x 4", "2 × 3×4", "3-2*4", "3 - 2*4", "2*3+4", "2*3 + 4", "2^3*4", "2*3^2",
    "2*3**2", "2**3", "1/2*4", "2*3/4", "2*3 / 4", "1 / 2*4", "−2*3", "3 − 2*4", "2*3 − 4", "3–2*4", "2*3—4", "±2*3",
    "-2*3", "- 2*3", "2*-3", "2*3-4", "6*9%", "6*9 %", "6*9!", "√2*3", "|2*3|", "2*3·4", "2*3÷4", "2*3 ÷ 4", "~2*3",
    "2*3°", "2:3*4", "2*3:4", "2 3*4", "2*3 4", "plus 2*3", "2*3 plus 4", "5 times 2*3", "2*3 times 4",
    "8 divided by 2*4", "2*3 x 4", "5 x 2*3", "2*3 X 4", "2 +\n3*4", "3*4\n+ 2", "2*3 squared",
    # brackets to which something binds
    "(2*3)+4", "4+(2*3)", "4 + (2*3)", "((2*3)+4)", "5(2*3)", "(2*3)5", "(2*3) 5", "(2*3)x", "f(2*3)", "f(2*3, 4)",
    "(2*3)^2", "(2*3)²", "(2*3)/4", "(2*3)!", "1/(2*3)", "(2*3)(4*5)", "(2*3) (4*5)", "2*3 (4)", "(1) 2*3",
    "[1](2*3)", "( 2*3 ) * 4", "-(2*3)", "(2*3) = 7", "sqrt(2*3)",
    # results that are wrong, or equations in numbers
    "6*9=55", "6 * 9 = 55", "6*9=5", "6*9=", "6*9 = ?", "6*9=x", "6*9=054", "6*9=54=2*27", "2*27=6*9", "2*3=6*1",
    "54 = 6*9", "54=6*9", "2*3=6+1", "2*3=6%", "2*3=6*1=6", "2*3=6/1", "6*9==54", "x == 6*9", "x += 6*9", "x <= 6*9",
    "6*9 > 50", "6*9<50", "6*9≈54", "6*9=$54", "f(x) = 6*9", "6*9 =  54", "6*9  = 54",
    # money, units, Markdown, code
    "$6*9", "6*9$", "€6*9", "*2*3*", "**2*3**", "_2*3_", "**2*3", "1\n* 2", "1 *\n2", "6\n*9", "6*\n9", "6  * 9",
    "6 *  9", "6\t*\t9", "6\u00a0*\u00a09", "* 2 * 3 items", "- 2 * 3 items", "2 * 3 items", "#6*9", "6*9#", "@6*9",
    "6*9@2", "~6*9~", "6\\*9", "<6*9>", "</6*9>", "6*9\u200b", "\ufeff6*9",
    # the letter x
    "4x4 truck", "2 x 4 lumber", "6x9 inches", "4x4\ntruck", '6x9" board', "6x9'", "2x4s", "a 4x4-inch post", "6X9",
    "6 X 9 = 54", "3x5 Post-it", "3x2 + 13x", "(4x4) truck",
    # notes that are not exactly one right product, and what stands around them
    "<<48/2=24>>24", "<<16*9=144>>144", "<<2*3*4=24>>24", "<<6*9=55>>55", "<<6*9>>54", "<<6*9=54.0>>54.0",
    "<<0.5*6=3>>3", "<<(2*3)=6>>6", "<<5+2*3=11>>11", "<<1, 2*3=6>>6", "<<6*9=54>>540", "<<6*9=54>>54.5",
    "<<6*9=54>>54,000", "<<6*9=54>>55", "<<6*9=54>>54%", "<<6*9=54>>54km", "<<6*9=54>>54 + 3", "<<6*9=54>>54*2",
    "<<6*9=54>> 54", "3 + <<6*9=54>>54", "2<<6*9=54>>54", "a<<6*9=54>>54", "-<<6*9=54>>54", "<<<6*9=54>>>",
    "<<6*9=54", "6*9=54>>", "<< 2*3 >>", "1<<2*3",
    # tokens and look-alikes are ordinary text
    "<MUL_6_9_54>", "<MUL_6*9_54>", "<MUL_6_9_54>*2", "2*<MUL_6_9_54>", "", " ", "*", "x", "×", " x 9", "x 9", "*9",
    " *9", "6*", "<<", "<<>>",
]


@pytest.mark.parametrize("text, weak, strict", TAKEN)
def test_taken(text, weak, strict):
    """The number of mul tokens in the data: 0 for a form that is documented to be taken."""
    assert WEAK.inject(text) == (weak, weak.count("<MUL_"))
    expected = text if strict is None else strict
    assert STRICT.inject(text) == (expected, expected.count("<MUL_"))


@pytest.mark.parametrize("text, injected", NOTES)
def test_gsm8k_notes(text, injected):
    """Tokens per worked step: one, not two and a repeated result."""
    for injector in (WEAK, STRICT):
        assert injector.inject(text) == (injected, injected.count("<MUL_"))


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_left_alone(text):
    """A wrong fact in the data (106*9 as 1<MUL_6_9_54>): each of these texts alone and inside a sentence."""
    for injector in (WEAK, STRICT):
        assert injector.inject(text) == (text, 0)
        inside = f"So he said: {text}" if not text.startswith(("*", "-")) else f"He said:\n{text}"
        if text != "2 * 3 items":  # a list only at the start of a line
            assert injector.inject(inside) == (inside, 0)


def test_expand():
    """The digits an eval sees: all 45 tokens become a*b=c; what is none of them stays."""
    tokens = [(a, b, a * b) for a in range(1, 10) for b in range(a, 10)]
    assert len(tokens) == 45
    for a, b, c in tokens:
        assert WEAK.expand(f"x <MUL_{a}_{b}_{c}>.") == f"x {a}*{b}={c}."
        assert WEAK.inject(f"{b} × {a} = {c}") == (f"<MUL_{a}_{b}_{c}>", 1)
        assert STRICT.inject(WEAK.expand(f"<MUL_{a}_{b}_{c}>")) == (f"<MUL_{a}_{b}_{c}>", 1)
    for text in ("<MUL_9_6_54>", "<MUL_6_9_55>", "<MUL_0_9_0>", "<MUL_6_9_054>", "<mul_6_9_54>", "<MUL_6_9_54"):
        assert WEAK.expand(text) == text
    assert WEAK.expand("is <MUL_6_9_54> apples") == "is 6*9=54 apples"


def test_unknown_mode():
    """Arms mislabelled by a misspelt mode: refused."""
    with pytest.raises(ValueError, match="'weak' or 'strict'"):
        MulExpressionInjector("Weak")


# ----------------------------------------------------------------------------------------------------------------------
# properties

PIECES = ["6*9", "6 * 9", "2x3", "4 × 5", "2*3=6", "6*9 = 54", "6*9=55", "<<2*3=6>>6", "<<2*3=6>>", "2*3=<<2*3=6>>6",
          "<<4/2=2>>2", "<MUL_2_3_6>", " ", "\n", "\r\n", "  ", "=", "*", "+", "-", "(", ")", '"', "'", ".", ",", ":",
          "$", "x", "is", "times", "a", "7", "12", "²", "<<", ">>", "<", ">", "`", "\u00a0", "％",
          "items", "?", "!", "/", "^"]
JOINED = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
TEXTS = JOINED | st.text("123469*×x= <>().,\n'\"$a+-", max_size=40) | st.text()
PRODUCT = re.compile(
    r"(?:([1-9]) ?[*×x] ?([1-9])(?: ?= ?(\d\d?))?)?(?: ?= ?)?(?:<<([1-9]) ?[*×x] ?([1-9]) ?= ?(\d\d?)>>(\d*))?"
)


def check_spans(injector, text):
    """All the properties of one text; returns its spans."""
    spans, (injected, count) = injector.spans(text), injector.inject(text)
    outside, tokens, canonical, last = [], [], [], 0
    for start, end, a, b in spans:
        assert 0 <= last <= start < end <= len(text) and 1 <= a <= b <= 9
        groups = PRODUCT.fullmatch(text[start:end]).groups()
        factors = [int(g) for g in (groups[0:2] if groups[0] else ()) + (groups[3:5] if groups[3] else ())]
        assert factors and {tuple(sorted(factors[i : i + 2])) for i in range(0, len(factors), 2)} == {(a, b)}
        assert all(g in (None, "", str(a * b)) for g in (groups[2], groups[5], groups[6]))
        assert injector.mode == "weak" or groups[2] or groups[5]
        outside.append(text[last:start])
        tokens += [text[last:start], f"<MUL_{a}_{b}_{a * b}>"]
        canonical += [text[last:start], f"{a}*{b}={a * b}"]
        last = end
    assert injected == "".join(tokens) + text[last:] and count == len(spans)
    assert injector.inject(injected) == (injected, 0)
    if "<MUL_" not in text:
        assert injector.expand(injected) == "".join(canonical) + text[last:]
    return spans


@settings(max_examples=600, deadline=None)
@example('"6*9" 2*3')
@example("6*9:\n2*3")
@example("6*9:`6*9")
@example("(6*9) 2*3=6")
@example("6*9=<<6*9=54>>54\n<<6*9=54>>54")
@given(TEXTS)
def test_properties(text):
    """inject(inject(t)) = inject(t); expand(inject(t)) = t with canonical spans; count = spans; each is one product."""
    weak, strict = check_spans(WEAK, text), check_spans(STRICT, text)
    assert set(strict) <= set(weak)


@settings(max_examples=300, deadline=None)
@given(JOINED, JOINED)
def test_blank_line_separates(left, right):
    """The position of a span: the same whether its text is alone or a paragraph among prose."""
    if "<<" in left + right:
        return
    text = f"{left}\n\nProse.\n\n{right}"
    offset = len(text) - len(right)
    assert [s for s in WEAK.spans(text) if s[0] >= offset] == [
        (s + offset, e + offset, a, b) for s, e, a, b in WEAK.spans("Prose.\n\n" + right) for s, e in [(s - 8, e - 8)]
    ]


@pytest.mark.parametrize("unit", ["2*3*", "7", " ", "x ", "x9", "6*9 ", "6*9 (", "(6*9", "6*9=", "<<", "<<6*9=54>>",
                                  "<<a", '"6*9', "6*9\n", "6 * 9 = <<6*9=54>>54 + ", "<MUL_", "a", "((", "6*9 )"])
def test_linear_time(unit):
    """Seconds per MB on adversarial text: below 5 for 1 MB, and 4 times the text takes less than 9 times as long."""
    def seconds(size):
        text = unit * (size // len(unit)) + "6*9" + unit * 3
        best = []
        for _ in range(3):
            start = time.process_time()
            WEAK.spans(text)
            best.append(time.process_time() - start)
        return min(best)

    small, large = seconds(250_000), seconds(1_000_000)
    assert large < 5 and large < 9 * small + 0.05


def test_speed_on_prose():
    """MB/s on ordinary prose, where hardly anything is a product: above 50 here (484 measured on an idle core)."""
    text = "The next box held six exact copies, 12 texts and 3 x-rays (see page 47); the fox explained * why. " * 100000
    start = time.process_time()
    assert WEAK.spans(text) == []
    assert len(text) / (time.process_time() - start) > 50e6


def test_gsm8k_answers():
    """The share of GSM8K's right single-digit notes that become tokens: 98.8 % (the rest are `54km` or `54 times`)."""
    path = DATA / "gsm8k/train.jsonl"
    if not path.exists():
        pytest.skip("../shared/data/gsm8k/train.jsonl is not on this machine")
    notes = taken = 0
    for line in path.read_text(encoding="utf-8").splitlines()[:2000]:
        answer = json.loads(line)["answer"]
        spans = check_spans(STRICT, answer)
        for note in re.finditer(r"<<([1-9])\*([1-9])=(\d+)>>", answer):
            if int(note[1]) * int(note[2]) == int(note[3]):
                notes += 1
                taken += any(start <= note.start() < end for start, end, _, _ in spans)
    assert notes > 500 and taken / notes > 0.97


# ----------------------------------------------------------------------------------------------------------------------
# the filter


def run(*args, stdin=b""):
    return subprocess.run([sys.executable, inject_mul.__file__, *map(str, args)], input=stdin, capture_output=True)


def test_filter_text():
    """Bytes outside the products: all of them, newline styles and the missing last newline; counts on stderr."""
    result = run(stdin="\ufeffAé 6*9=54.\r\nB 2 × 3\rC (7*8)\n<<2*2=4>>4, <MUL_1_1_1>".encode())
    assert result.returncode == 0
    expected = "\ufeffAé <MUL_6_9_54>.\r\nB <MUL_2_3_6>\rC (<MUL_7_8_56>)\n<MUL_2_2_4>, <MUL_1_1_1>"
    assert result.stdout == expected.encode()
    assert result.stderr.decode() == ("1 documents, 52 characters, 4 tokens injected "
                                      "(2 bare, 1 with result, 1 annotated)\n")
    back = run("--expand", stdin=b"is <MUL_2_3_6>\r\n")
    assert back.stdout == b"is 2*3=6\r\n" and b"1 tokens expanded" in back.stderr


def test_filter_text_not_utf8(tmp_path):
    """The offset of the broken byte; no output file."""
    result = run("-o", tmp_path / "out", stdin=b"6*9=54\n\xff")
    assert result.returncode == 1 and b"not UTF-8 at byte 7" in result.stderr and list(tmp_path.iterdir()) == []


def test_filter_jsonl(tmp_path):
    """The other fields of a record and the bytes of lines without a product: kept."""
    plain = b'{"id":  1.50, "text": "none \\u00e9"}\n\n'
    source = plain + '{"id": 2, "text": "é 6*9=54", "more": {"text": "2*3=6"}}\r\n{"text": "2*3"}'.encode()
    (tmp_path / "in.jsonl").write_bytes(source)
    result = run("--format", "jsonl", "--mode", "strict", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert result.returncode == 0 and b"3 documents" in result.stderr and b"1 tokens injected" in result.stderr
    written = (tmp_path / "out.jsonl").read_bytes()
    assert written.startswith(plain) and written.endswith(b'{"text": "2*3"}') and written.count(b"\r\n") == 1
    assert json.loads(written.splitlines()[2]) == {"id": 2, "text": "é <MUL_6_9_54>", "more": {"text": "2*3=6"}}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_format_by_name(tmp_path):
    """A file *.jsonl is read line by line, whatever its case; a product in another field stays."""
    (tmp_path / "in.JSONL").write_text('{"text": "6*9", "id": "6*9"}\n')
    assert json.loads(run(tmp_path / "in.JSONL").stdout) == {"text": "<MUL_6_9_54>", "id": "6*9"}
    assert run("--format", "text", tmp_path / "in.JSONL").stdout.count(b"<MUL_6_9_54>") == 2


@pytest.mark.parametrize("line, words", [
    (b'{"text": ', b"line 2 is not JSON"), (b"[1]", b"line 2 has no string field 'text'"),
    (b'{"body": "6*9"}', b"--text_field"), (b'{"text": "\xff"}', b"line 2 is not JSON"),
    (b'{"text": 3}', b"no string field"),
])
def test_filter_jsonl_broken_line(tmp_path, line, words):
    """The number of the broken line, exit status 1, and the old output file untouched."""
    (tmp_path / "out.jsonl").write_text("old")
    result = run("--format", "jsonl", "-o", tmp_path / "out.jsonl", stdin=b'{"text": "6*9"}\n' + line + b"\n")
    assert result.returncode == 1 and words in result.stderr and b"Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"] and (tmp_path / "out.jsonl").read_text() == "old"


def test_filter_bad_files(tmp_path):
    """A missing input, a folder that does not exist: one sentence, status 1; an unknown flag: status 2."""
    for args in ([tmp_path / "missing"], [tmp_path], ["-o", tmp_path / "no/out"]):
        result = run(*args, stdin=b"6*9")
        assert result.returncode == 1 and b"Traceback" not in result.stderr and result.stderr.count(b"\n") == 1
    assert run("--modus", "weak").returncode == 2


def test_a_file_that_cannot_be_used_has_its_own_remedy(tmp_path, monkeypatch):
    """"Space on its disk" is for what cannot be written; a missing file, or a folder, is another name's mistake."""
    (tmp_path / "text.txt").write_text("6*9=54")
    for words in ([tmp_path / "none.txt"], [tmp_path], [tmp_path / "text.txt", "-o", tmp_path / "text.txt" / "x"]):
        monkeypatch.setattr("sys.argv", ["inject_mul.py", *map(str, words)])
        with pytest.raises(ValueError, match=r"cannot be read or written \(.*\): name another file\.$"):
            inject_mul.main()
