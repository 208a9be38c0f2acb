"""tinygsm.py: programs into worked steps. All programs here are invented; none is executed except by `exec` in the
property test, which makes its own."""

import gzip
import json
import math
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import inject_mul
from lab import programs, tinygsm

REPO = Path(__file__).resolve().parents[1]
SCRIPT = [sys.executable, "-m", "lab.tinygsm"]


def program(body: str, head: str = "def simple_math_problem() -> int:") -> str:
    """A program as TinyGSM writes it: the question as docstring, then the body."""
    question = '"""\n    A question with (an odd $5 bracket.\n    """'
    return f"{head}\n    {question}\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"


GOLDEN = {  # name: (body, steps)
    "as documented": ("""
        trays = 6
        tray_cost = 9
        tray_total = trays * tray_cost
        result = tray_total + 16 - 2
        return result
        """, "trays: 6\ntray cost: 9\ntray total: 6 * 9 = 54\nresult: 54 + 16 - 2 = 68\n#### 68"),
    "an alias tells nothing": ("""
        eggs_per_day = 16 - 3 - 4
        dollars = eggs_per_day * 2
        result = dollars
        return result
        """, "eggs per day: 16 - 3 - 4 = 9\ndollars: 9 * 2 = 18\n#### 18"),
    "inner operations first": ("""
        # two kinds of tickets
        total = 3 * 8 + 12 * 5 - (20 - 7)  # with a discount
        return total
        """, "3 * 8 = 24\n12 * 5 = 60\n20 - 7 = 13\ntotal: 24 + 60 - 13 = 71\n#### 71"),
    "returned expression": ("""
        hours = 7
        return hours * 9
        """, "hours: 7\n7 * 9 = 63\n#### 63"),
    "floats that are whole": ("""
        price = 12.50
        count = 4.0
        result = price * count / 2
        return result
        """, "price: 12.5\ncount: 4\n12.5 * 4 = 50\nresult: 50 / 2 = 25\n#### 25"),
    "floats that are not": ("""
        share = 10 / 3
        cents = 0.1 + 0.2
        big = 1234567.891 * 1
        result = share
        return result
        """, "share: 10 / 3 = 3.33333\ncents: 0.1 + 0.2 = 0.3\nbig: 1234567.89 * 1 = 1234567.89\n#### 3.33333"),
    "whole division, remainder and power": ("""
        weeks = 45 // 7
        days = 45 % 7
        area = (weeks - 2) ** 2
        return area + days
        """, "weeks: 45 // 7 = 6\ndays: 45 mod 7 = 3\n6 - 2 = 4\narea: 4 ** 2 = 16\n16 + 3 = 19\n#### 19"),
    "calls": ("""
        import math
        boxes = math.ceil(50 / 12)
        most = max(boxes, 3)
        cost = round(boxes * 2.346, 2)
        same = int(6.0)
        total = sum([boxes, most, 4])
        return total
        """, "50 / 12 = 4.16667\nboxes: ceil(4.16667) = 5\nmost: max(5, 3) = 5\n5 * 2.346 = 11.73\n"
             "cost: 11.73\nsame: 6\ntotal: 5 + 5 + 4 = 14\n#### 14"),
    "branches": ("""
        age = 12
        if age < 3:
            price = 0
        elif 3 <= age < 13 and age != 10:
            price = 5
        else:
            price = 10
        discount = 1 if age > 60 else 0
        return price - discount
        """, "age: 12\n12 < 3 is false\n3 <= 12 < 13 and 12 != 10 is true\nprice: 5\n12 > 60 is false\ndiscount: 0\n"
             "5 - 0 = 5\n#### 5"),
    "for": ("""
        total = 0
        for day in range(1, 4):
            total += 2 * day
        return total
        """, "total: 0\n2 * 1 = 2\ntotal: 0 + 2 = 2\n2 * 2 = 4\ntotal: 2 + 4 = 6\n2 * 3 = 6\n"
             "total: 6 + 6 = 12\n#### 12"),
    "while": ("""
        savings, weeks = 0, 0
        while savings < 100:
            savings += 40
            weeks += 1
            if weeks == 50:
                break
        return weeks
        """, "savings: 0\nweeks: 0\nsavings: 0 + 40 = 40\nweeks: 0 + 1 = 1\n1 == 50 is false\nsavings: 40 + 40 = 80\n"
             "weeks: 1 + 1 = 2\n2 == 50 is false\nsavings: 80 + 40 = 120\nweeks: 2 + 1 = 3\n3 == 50 is false\n#### 3"),
    "continue and a chained comparison": ("""
        total = 0
        for day in range(4):
            if 0 < day < 2:
                continue
            total += day
        if 1 < total < 3:
            total = 100
        return total
        """, "total: 0\n0 < 0 is false\ntotal: 0 + 0 = 0\n0 < 1 < 2 is true\n0 < 2 < 2 is false\ntotal: 0 + 2 = 2\n"
             "0 < 3 < 2 is false\ntotal: 2 + 3 = 5\n1 < 5 < 3 is false\n#### 5"),
    "lists and dicts": ("""
        prices = {"pen": 3, "book": 8}
        counts = [2, 5]
        total = prices["pen"] * counts[0] + prices["book"] * counts[-1]
        for count in counts:
            total = total - count
        return total
        """, "prices: {pen: 3, book: 8}\ncounts: [2, 5]\n3 * 2 = 6\n8 * 5 = 40\ntotal: 6 + 40 = 46\n"
             "total: 46 - 2 = 44\ntotal: 44 - 5 = 39\n#### 39"),
    "negative numbers": ("""
        start = -4
        end = start - -9
        change = end * -3 + 2
        return -change
        """, "start: -4\nend: -4 - (-9) = 5\n5 * (-3) = -15\nchange: -15 + 2 = -13\n#### 13"),
    "annotated, chained and tuple assignments": ("""
        red: int = 4
        blue = green = red * 2
        a, b = blue + 1, green
        a, b = b, a
        return a - b
        """, "red: 4\nblue: 4 * 2 = 8\ngreen: 4 * 2 = 8\na: 8 + 1 = 9\n8 - 9 = -1\n#### -1"),
    "a variable called sum": ("""
        sum = 2 + 3
        result = abs(1 - sum)
        return result
        """, "sum: 2 + 3 = 5\n1 - 5 = -4\nresult: abs(-4) = 4\n#### 4"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    """The text that a model is trained on, character by character, and its answer."""
    body, steps = GOLDEN[name]
    done = tinygsm.convert("How many?", program(body))
    assert done.text == steps, done
    assert done.reason == "" and f"#### {tinygsm.show(done.answer)}" == steps.splitlines()[-1]
    namespace = {}
    exec(program(body), namespace)  # the programs above are ours
    assert done.answer == namespace["simple_math_problem"]()


def test_numbers():
    """How an answer is written: `18.0` as 18, and never 1e+16 or -0."""
    for value, text in [(18.0, "18"), (0.1 + 0.2, "0.3"), (-0.0, "0"), (10 / 3, "3.33333"), (2 / 3000, "0.000666667"),
                        (1234567.891, "1234567.89"), (1e16, "10000000000000000"), (17.9999999999, "18"), (0.0, "0"),
                        (10**20, "100000000000000000000"), (-2.50, "-2.5"), (99999.96, "99999.96"), (99.99999, "100"),
                        (1e-9, "0.000000001"), (5, "5"), (-7, "-7"), (True, "true")]:
        assert tinygsm.show(value) == text, value


def test_products_are_injected():
    """The rate of mul tokens after --condition mul_tokens: every product of two digits is found in strict mode, by
    itself, inside a longer expression, and whatever its neighbours are."""
    injector = inject_mul.MulExpressionInjector("strict")
    bodies = ["x_total = {a} * {b}", "week_2 = {a} * {b}", "y = {a} * {b} + 1", "y = 12 - {a} * {b}",
              "return {a} * {b}", "y = {a} * {b} * 3", "y = min({a} * {b}, 4)", "y = ({a} * {b}) / 2",
              "y = 7\ny += {a} * {b}",
              "y = 1\nfor i in range(1):\n    y = y + {a} * {b}", "y = {a}.0 * {b}", "if {a} * {b} > 5:\n    y = 1",
              "p = {a}\nq = {b}\nz = p * q", "x, y = {a} * {b}, 2", "y = [{a} * {b}, 0]", "y = sum([{a} * {b}, 3])"]
    for a in range(1, 10):
        for b in range(1, 10):
            for body in bodies:
                text = tinygsm.convert("How many?", program(body.format(a=a, b=b) + "\nreturn 5")).text
                injected, count = injector.inject(text)
                low, high = sorted((a, b))
                assert count >= 1 and f"<MUL_{low}_{high}_{a * b}>" in injected, text
                assert not re.search(rf"(?<!\d){a} \* {b} =", injected), injected


def test_answer_field():
    """Agreement with a given answer: numbers as GSM8K writes them; a program that disagrees is dropped."""
    code = program("return 1234.5 * 1")
    for gold in ("1234.5", 1234.5, "#### 1,234.50", "steps 3 #### $1,234.50", "1234.5.", None):
        assert tinygsm.convert("q", code, gold).answer == 1234.5, gold
    for gold in ("1234", 5, 0, 0.0, "#### 3", "", "none", "nan", "inf", "9" * 10**6, True):
        assert tinygsm.convert("q", code, gold).reason == "disagrees with the given answer", str(gold)[:20]


REFUSED = {  # wrong rather than hostile: (code, reason)
    "no return": (program("x = 5"), "no return"),
    "bare return": (program("return"), "no return"),
    "text": (program("return 'five'"), "result is not a number"),
    "truth": (program("return 3 > 2"), "result is not a number"),
    "list": (program("return [1, 2]"), "result is not a number"),
    "none": (program("return None"), "not allowed: NoneType"),
    "unknown": (program("return total"), "unknown name"),
    "unknown function": (program("return ceil(2.5)"), "not allowed: call of something else"),
    "math without import": (program("return math.ceil(2.5)"), "not allowed: call of something else"),
    "division": (program("return 5 / (3 - 3)"), "division by zero"),
    "remainder": (program("return 5 % 0"), "division by zero"),
    "index": (program("x = [1, 2]\nreturn x[2]"), "error in the program"),
    "key": (program("x = {'a': 1}\nreturn x['b']"), "error in the program"),
    "root": (program("import math\nreturn math.sqrt(-1)"), "error in the program"),
    "root as power": (program("return (0 - 8) ** 0.5"), "result is not a number"),
    "text plus number": (program("return 'a' + 5"), "error in the program"),
    "text times number": (program("return 'a' * 5"), "error in the program"),
    "list plus list": (program("x = [1] + [2]\nreturn x[0]"), "error in the program"),
    "list in a list": (program("x = [[1, 2], 3]\nreturn 5"), "not allowed: a collection in a collection"),
    "dict of lists": (program("x = {'a': [1, 2]}\nreturn 5"), "not allowed: a collection in a collection"),
    "called variable": (program("max = 3\nreturn max(1, 2)"), "not allowed: call of something else"),
    "unpacking": (program("a, b = 1, 2, 3\nreturn a"), "error in the program"),
    "not Python": ("def f(:\n  return 1", "not Python"),
    "no function": ("x = 5", "not one function"),
    "two functions": (program("return 1") + program("return 2"), "not one function"),
    "arguments": ("def f(x):\n    return 5", "function takes arguments or is decorated"),
    "empty": ("", "no question or no code"),
    "blank": ("  \n", "no question or no code"),
    "second answer": (program("note = '#### 99'\nreturn 6 * 9"), "not allowed: text with # or a new line"),
    "second exchange": (program("note = 'a\\nUser: b\\nAssistant: c'\nreturn 6 * 9"),
                        "not allowed: text with # or a new line"),
    "User": (program("User = 6\nreturn User * 9"), "a line holds User: or Assistant:"),
    "Assistant": (program("the_Assistant_ = 6\nreturn 6 * 9"), "a line holds User: or Assistant:"),
    "User as key": (program("ages = {'User': 6}\nreturn 6 * 9"), "a line holds User: or Assistant:"),
    "text of a turn": (program("note = 'Assistant: 5'\nreturn 6 * 9"), "a line holds User: or Assistant:"),
    "a year of lines": (program("x = 0\nfor i in range(365):\n    x += 1\nreturn x"), "too many lines"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_programs_are_dropped(name):
    """The counts by reason: each fault has its own, and no text."""
    code, reason = REFUSED[name]
    assert tinygsm.convert("How many?", code) == (None, None, reason)


def test_another_answer_is_never_read(monkeypatch):
    """The answer that the exam reads in the text is the program's, by whatever way another might get in."""
    monkeypatch.setattr(programs.Evaluator, "write", lambda self, line: self.lines.append(f"{line} #### 99"))
    assert tinygsm.convert("q", program("x = 6\nreturn x * 9")).reason == "another answer is read in the steps"


def test_other_types_are_dropped():
    """A row whose fields are no text is counted, not a crash."""
    for question, code in ((None, program("return 5")), ("q", None), (5, 5), ("", program("return 5")), ("q", b"x")):
        assert tinygsm.convert(question, code).reason == "no question or no code"
    assert tinygsm.convert("q" * 8001, program("return 5")).reason == "too long"


# ------------------------------------------------------------------------------------------------------------
# hostile programs


HOSTILE = {
    "import": "import os\nreturn os.system('touch HACKED')",
    "import from": "from os import system\nreturn 5",
    "import math as": "import math as os\nreturn os.ceil(2.5)",
    "import two": "import math, os\nreturn 5",
    "import star": "from math import *\nreturn 5",
    "import relative": "from . import math\nreturn 5",
    "dead import": "if 1 > 2:\n    import os\nreturn 5",
    "__import__": "return __import__('os').system('touch HACKED')",
    "builtins": "return __builtins__['open']('HACKED', 'w')",
    "attribute": "x = 5\nreturn x.real",
    "math attribute": "import math\nreturn math.__loader__",
    "math factorial": "import math\nreturn math.factorial(10**9)",
    "math in disguise": "import math\nmath = 5\nreturn math.ceil(2.5)",
    "class ladder": "return ().__class__.__bases__[0].__subclasses__()",
    "method": "return 'x'.join(['a', 'b'])",
    "format": "return '{:>999999999}'.format(5)",
    "format with attribute": "return '{0.__class__}'.format(5)",
    "percent format": "return '%999999999d' % 5",
    "f-string": "x = 5\nreturn f'{x}'",
    "f-string width": "x = 5\nreturn f'{x:>9999999999}'",
    "lambda": "return (lambda: 5)()",
    "lambda loop": "return (lambda f: f(f))(lambda f: f(f))",
    "comprehension": "return len([i for i in range(10**10)])",
    "nested comprehension": "return len([0 for a in range(10**4) for b in range(10**4) for c in range(10**4)])",
    "generator": "return sum(i for i in range(10**12))",
    "set comprehension": "return len({i for i in range(10**9)})",
    "dict comprehension": "return len({i: i for i in range(10**9)})",
    "power tower": "return 9**9**9",
    "power of ten": "return 10**10**8",
    "power in steps": "x = 10\nfor i in range(50):\n    x = x ** 10\nreturn x",
    "pow": "return pow(10, 10**9)",
    "pow modulo": "return pow(3, 10**9, 7)",
    "negative power": "return 2 ** -(10**60)",
    "float power": "return 10.0 ** 10 ** 10",
    "products": "x = 99999999\nwhile True:\n    x = x * x",
    "additions": "x = 1\nwhile True:\n    x = x + x",
    "shift": "return 1 << 10**10",
    "bits": "return 5 | 3 ^ 2 & ~1",
    "matrix": "return 5 @ 5",
    "endless": "while True:\n    pass",
    "endless continue": "while 1:\n    continue",
    "endless with text": "x = 'a'\nwhile x == 'a':\n    x = 'a'",
    "endless without lines": "x = 1\nwhile True:\n    y = x\n    x = y",
    "nested loops": "x = 0\nfor i in range(10**6):\n    for j in range(10**6):\n        x = i\nreturn x",
    "nested short loops": "x = 0\n" + "".join(f"{'    ' * i}for i{i} in range(1000):\n" for i in range(9))
                          + "    " * 9 + "x = i0\nreturn x",
    "long range": "for i in range(10**18):\n    x = i\nreturn x",
    "sum of a range": "return sum(range(10**12))",
    "length of a range": "return len(range(10**30))",
    "sorted range": "x = sorted(range(10**9))\nreturn x[0]",
    "range of a range": "return max(range(0, 10**15, 2))",
    "sorted in a loop": "x = 0\nwhile True:\n    y = sorted(range(1000))",
    "recursion": "return simple_math_problem()",
    "mutual recursion": "def f():\n    return f()\nreturn f()",
    "list times": "x = [0] * 10**10\nreturn 5",
    "tuple times": "return len((1, 2) * 10**10)",
    "list doubling": "x = [1]\nwhile True:\n    x = x + x",
    "list of lists": "a0 = [1, 1, 1]\n" + "".join(f"a{i + 1} = [a{i}, a{i}, a{i}]\n" for i in range(30)) + "return 5",
    "tuple in a loop": "a = (1, 1)\nwhile True:\n    a = (a, a)",
    "dict bomb": "a = {1: 1}\nwhile True:\n    a = {1: a, 2: a}",
    "dict merge": "a = {1: 1}\nreturn len({**a, **a})",
    "huge keys": "a = {10**40: 1}\nreturn 5",
    "text times": "return len('a' * 10**10)",
    "text doubling": "x = 'a'\nwhile True:\n    x = x + x",
    "int of text": "return int('9' * 10**6)",
    "int of digits": "return int('" + "9" * 6000 + "')",
    "float of text": "return float('1' * 10**9)",
    "a million digits": "return " + "9" * 10**6,
    "thousands of digits": "return " + "9" * 4000,
    "decimals": "return 0." + "1" * 10**6,
    "thousands of decimals and powers": "return 0." + "1" * 4000 + " ** -999999",
    "infinity": "return 1e308 * 10",
    "infinite constant": "return 1e999",
    "nan": "return 1e999 - 1e999",
    "nan by name": "return float('nan')",
    "round": "return round(5, -10**9)",
    "round far": "return round(5.5, 10**9)",
    "complex": "return 5j",
    "complex power": "return (0 - 2) ** 0.5",
    "bytes": "return b'abc'",
    "ellipsis": "return ...",
    "exec": "return exec('x = 5')",
    "eval": "return eval('5')",
    "compile": "return compile('5', 'x', 'eval')",
    "open": "return open('HACKED', 'w')",
    "getattr": "return getattr(5, '__class__')",
    "type": "return type('x', (), {})",
    "globals": "return globals()",
    "vars": "return vars()",
    "breakpoint": "breakpoint()\nreturn 5",
    "input": "return int(input())",
    "print": "print('x' * 10**9)\nreturn 5",
    "exit": "exit()",
    "class": "class A:\n    x = 5\nreturn A.x",
    "nested function": "def f():\n    return 5\nreturn f()",
    "async": "async def f():\n    return 5\nreturn 5",
    "await": "return await f",
    "yield": "yield 5",
    "yield from": "yield from range(10**9)",
    "walrus": "return (x := 5)",
    "star call": "return max(*[1, 2])",
    "double star call": "return max(**{'key': 5})",
    "keyword call": "return max(1, 2, key=abs)",
    "star target": "a, *b = 1, 2, 3\nreturn a",
    "star list": "return sum([*range(10**9)])",
    "slice": "x = [1, 2]\nreturn x[0:10**9][0]",
    "element target": "x = [1]\nx[0] = 5\nreturn x[0]",
    "attribute target": "x = 5\nx.y = 5\nreturn 5",
    "try": "try:\n    x = 1 / 0\nexcept:\n    x = 5\nreturn x",
    "swallowing": "while True:\n    try:\n        x = 1\n    finally:\n        continue",
    "with": "with open('HACKED', 'w') as f:\n    return 5",
    "global": "global x\nx = 5\nreturn x",
    "nonlocal": "nonlocal x\nx = 5\nreturn x",
    "del": "x = 5\ndel x\nreturn 5",
    "assert": "assert 5 > 2\nreturn 5",
    "raise": "raise MemoryError",
    "raise exit": "raise SystemExit(0)",
    "match": "match 5:\n    case 5:\n        return 5",
    "is": "return 5 is 5",
    "in": "return 5 in [5]",
    "for else": "for i in range(2):\n    pass\nelse:\n    return 5",
    "annotation": "x: __import__('os').system('touch HACKED') = 5\nreturn x",
    "parentheses": "return " + "(" * 3000 + "5" + ")" * 3000,
    "brackets": "return " + "[" * 150 + "5" + "]" * 150,
    "open brackets": "return " + "{" * 7000,
    "calls in calls": "return " + "abs(" * 90 + "5" + ")" * 90,
    "signs": "return " + "-" * 7000 + "5",
    "nots": "return " + "not " * 1900 + "5",
    "lambdas": "return " + "lambda: " * 900 + "5",
    "long sum": "return " + "1+" * 3500 + "1",
    "powers in a row": "return " + "1**" * 2500 + "1",
    "conditions in a row": "return " + "1 if 0 else " * 600 + "1",
    "elifs": "if 0 > 1:\n    x = 1\n" + "elif 0 > 1:\n    x = 1\n" * 320 + "return 5",
    "comparisons in a row": "x = 1\nwhile " + "x < " * 1500 + "2:\n    y = x",
    "ors in a row": "x = 1\nwhile " + "0 or " * 1400 + "x:\n    y = x",
    "subscripts in a row": "x = 5\nreturn x" + "[0]" * 2500,
    "indentation": "\n".join("    " * 0 + " " * i + "if 1:" for i in range(100)) + "\n" + " " * 101 + "x = 5\nreturn 5",
    "huge source": "x = 5\n" * 10**6 + "return x",
    "huge comment": "#" * 10**7 + "\nreturn 5",
    "huge docstring": "'" + "a" * 10**7 + "'\nreturn 5",
    "long name": "x" * 7000 + " = 5\nreturn 5",
    "null byte": "x = 5\0\nreturn x",
    "surrogate": "x = '\ud800'\nreturn 5",
    "line continuation": "x = 5 \\\n" * 900 + "\nreturn x",
    "string bomb": "x = '" + "a" * 7000 + "'\nwhile x == x and x == x:\n    y = x",
}
HOSTILE_CODE = {name: program(body) for name, body in HOSTILE.items()} | {
    "decorator": "@print\ndef f():\n    return 5\n",
    "call decorator": "@__import__('os').abort\ndef f():\n    return 5\n",
    "default argument": "def f(x=__import__('os').abort()):\n    return 5\n",
    "return annotation": "def f() -> __import__('os').abort():\n    return 5\n",
    "text annotation": "def f() -> '__import__(1)':\n    return 5\n",
    "star arguments": "def f(*a, **k):\n    return 5\n",
    "async function": "async def f():\n    return 5\n",
    "class only": "class f:\n    x = 5\n",
    "code after it": program("return 5") + "\n__import__('os').abort()\n",
    "code before it": "__import__('os').abort()\n" + program("return 5"),
    "coding": "# -*- coding: utf-7 -*-\n+AGEALgA-\n" + "import os",
    "form feeds": "\f" * 7000,
    "tabs": "def f():\n" + "\t" * 7000 + "return 5\n    x\n",
}

CHILD = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from lab import tinygsm
programs = json.load(sys.stdin)
tinygsm.convert("q", "def f():\\n    return 6 * 9\\n")  # imports are done
kilobytes = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20,) * 2)
events = []
watched = ("import", "open", "exec", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "builtins.")
listening = False
def hook(name, args):  # the parser tries to open "" to show the line of a syntax error; it is told no name
    if listening and name.startswith(watched) and (name, args[0]) != ("open", ""):
        events.append(name)
sys.addaudithook(hook)
report = {}
for name, code in programs.items():
    before, wall, cpu = kilobytes(), time.perf_counter(), time.process_time()
    listening = True
    done = tinygsm.convert("q", code)
    listening = False
    report[name] = (done.text, done.reason, time.process_time() - cpu, time.perf_counter() - wall, kilobytes() - before)
    print(name, report[name], file=sys.stderr)
json.dump({"report": report, "events": sorted(set(events))}, sys.stdout)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc and bounded by RLIMIT_AS")
def test_hostile_programs(tmp_path):
    """Each of more than 100 hostile programs: refused, within 1 s of CPU time and 200 MB (the process may not get
    more), with no import, no file opened and nothing executed (Python's own audit events)."""
    assert len(HOSTILE_CODE) >= 100
    run = subprocess.run([sys.executable, "-c", CHILD, str(REPO), "limit"], input=json.dumps(HOSTILE_CODE), text=True,
                         capture_output=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["events"] == []
    assert not any(tmp_path.iterdir())
    for name, (text, reason, cpu, _, grown) in found["report"].items():
        assert text is None and reason, name
        assert cpu < 1 and grown < 200 * 1024, (name, cpu, grown)
    assert len(found["report"]) == len(HOSTILE_CODE)


@pytest.mark.parametrize("body", [
    "x = 1\nwhile x == 1:\n    y = 1.5 ** 2.5", "x = 12345678901234567890\nwhile x > 1:\n    y = x",
    "while True:\n    y = sum(range(1000))", "x = [" + "1.123, " * 900 + "]\nwhile True:\n    y = x",
    "x = " + "{" + "".join(f"'{i}': 1e300, " for i in range(500)) + "}\nwhile True:\n    y = x",
    "x = 1.7e308\nwhile [" + "x, " * 1500 + "][0]:\n    pass", "x = 1.7e308\nwhile x" + " == x" * 900 + ":\n    pass"])
def test_the_dearest_steps(body):
    """The bound on time is one on steps: the programs that spend most per step, and none may need 0.5 s of CPU time."""
    started = time.process_time()
    assert tinygsm.convert("q", program(body)).reason in ("too many steps", "too many lines")
    assert time.process_time() - started < 0.5  # 0.1 (measured); a collection of torch's garbage may take 0.2 more


# ------------------------------------------------------------------------------------------------------------
# the same values as Python's

numbers = st.one_of(st.integers(-20, 200), st.integers(1, 9), st.sampled_from([0.5, 2.0, 12.25, 0.1, 1e6]))
names = st.sampled_from(["a", "b", "c_1", "total"])


def expressions(depth: int):
    if depth == 0:
        return st.one_of(numbers.map(repr), names)
    inner = expressions(depth - 1)
    operation = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "+", "*", "-"]), inner)
    return st.one_of(
        inner, operation.map(lambda t: f"{t[0]} {t[1]} {t[2]}"), operation.map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.integers(0, 3)).map(lambda t: f"({t[0]}) ** {t[1]}"), inner.map(lambda e: f"-({e})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        st.tuples(st.sampled_from(["abs", "round", "int", "float", "math.ceil", "math.floor"]), inner).map(
            lambda t: f"{t[0]}({t[1]})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda part: f"sum([{', '.join(part)}])"),
        st.tuples(inner, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), inner, inner, inner).map(
            lambda t: f"({t[3]} if {t[0]} {t[1]} {t[2]} else {t[4]})"))


statements = st.one_of(
    st.tuples(names, expressions(2)).map(lambda t: f"{t[0]} = {t[1]}"),
    st.tuples(names, st.sampled_from("+-*"), expressions(1)).map(lambda t: f"{t[0]} {t[1]}= {t[2]}"),
    st.tuples(names, names, expressions(1), expressions(1)).map(lambda t: f"{t[0]}, {t[1]} = {t[2]}, {t[3]}"),
    st.tuples(expressions(1), names, expressions(1)).map(lambda t: f"if {t[0]}:\n    {t[1]} = {t[2]}\nelse:\n    pass"),
    st.tuples(st.integers(0, 4), names, expressions(1)).map(
        lambda t: f"for i in range({t[0]}):\n    {t[1]} = {t[2]} + i\n    if i > 2:\n        break"),
    st.tuples(st.integers(0, 4), names).map(lambda t: f"n = 0\nwhile n < {t[0]}:\n    n += 1\n    {t[1]} = n"))


@settings(max_examples=300, deadline=None)
@given(st.lists(statements, min_size=1, max_size=5), expressions(2))
def test_same_value_as_python(body, result):
    """The answer of a program: the value that Python computes, exactly, or a refusal where Python raises."""
    code = program("\n".join(["import math", "a = 3", "b = 4.5", "c_1 = 7", "total = 10", *body, f"return {result}"]))
    done = tinygsm.convert("q", code)
    namespace = {}
    exec(code, namespace)  # nothing but the arithmetic above
    try:
        value = namespace["simple_math_problem"]()
    except (ZeroDivisionError, OverflowError, ValueError):
        assert done.text is None and done.reason in ("division by zero", "number too large", "error in the program",
                                                     "too many lines", "too many steps")
        return
    assume(not done.reason.startswith(("too many", "number too large", "nested")))
    if isinstance(value, (bool, complex)) or not math.isfinite(value):
        assert done.text is None
    else:
        assert (done.reason, done.answer, type(done.answer)) == ("", value, type(value)), code
        check_steps(done.text)


def check_steps(text: str) -> None:
    """Every `expression = value` line is true as it stands, to the precision it is written with."""
    for line in text.splitlines()[:-1]:
        said = line.split(": ", 1)[-1]
        if " = " in said and " is " not in said:
            left, right = said.rsplit(" = ", 1)
            if " mod " in left or "//" in left or "(" in left.replace(" (-", ""):
                continue  # jumps: a rounded operand may fall on the other side
            value = eval(left, {"__builtins__": {}})
            operands = [part.strip("()") for part in left.split()]
            scale = max(1.0, *(abs(float(part)) for part in operands if part[-1].isdigit()))
            assert math.isclose(value, float(right), rel_tol=1e-3, abs_tol=1e-4 * scale), line


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abx01 9.+-*/()[]{}:,='\"\n\t_\\#@!<>%&|~^if elsorn", max_size=300))
def test_any_text_is_answered(code):
    """No text makes the converter raise or print; what converts ends in its answer."""
    for text in (code, program(code or "pass")):
        done = tinygsm.convert("q", text)
        assert (done.text is None) == bool(done.reason)
        if done.text is not None:
            assert done.text.endswith(f"#### {tinygsm.show(done.answer)}")


# ------------------------------------------------------------------------------------------------------------
# files


def rows(n: int) -> list[dict]:
    """n rows, every fifth of which fails."""
    return [{"question": f"How many are {i} bags of 7? ½", "code": program(
        f"bags = {i}\nper_bag = {7 if i % 5 else 'os'}\nresult = bags * per_bag\nreturn result")} for i in range(n)]


def test_files(tmp_path, capsys):
    """The file that sft reads: the same bytes from every format, in order, with its counts."""
    data = rows(1000)
    lines = "".join(json.dumps(row) + "\n\n" for row in data).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist([row | {"id": 5} for row in data]), tmp_path / "a.parquet")
    out = tmp_path / "out.jsonl"
    made = []
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        tinygsm.main(["--data", str(tmp_path / name), "--out", str(out)])
        made.append(out.read_bytes())
        printed = capsys.readouterr().out
        assert "1,000 rows, 800 converted" in printed and "200  dropped: unknown name" in printed
    assert len(set(made)) == 1
    records = [json.loads(line) for line in made[0].splitlines()]
    assert len(records) == 800 and list(records[0]) == ["question", "answer"]
    assert records[0] == {"question": "How many are 1 bags of 7? ½",
                          "answer": "bags: 1\nper bag: 7\nresult: 1 * 7 = 7\n#### 7"}
    both = [str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet")]
    tinygsm.main(["--data", *both, "--out", str(out), "--max_examples", "1003"])
    assert "1,003 rows, 802 converted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_gold_answers_in_files(tmp_path, capsys):
    """Rows that carry an answer are checked against it."""
    data = [row | {"answer": f"#### {7 * i if i != 3 else 5}"} for i, row in enumerate(rows(5))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    tinygsm.main(["--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o.jsonl")])
    printed = capsys.readouterr().out
    assert "5 rows, 3 converted" in printed and "1  dropped: disagrees with the given answer" in printed


def test_bad_files(tmp_path):
    """Each fault is one sentence with exit status 1; an existing --out stays as it was."""
    good = json.dumps(rows(2)[1]) + "\n"
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "broken.jsonl").write_text(good + '{"question": \n' + good)
    (tmp_path / "fields.jsonl").write_text(good + '{"question": "q", "answer": "5"}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.encode() * 500)[:-20])
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "fails.jsonl").write_text(json.dumps({"question": "q", "code": "x"}) + "\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "data.csv").write_text("a")
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    for name, flags, expected in [
        ("missing.jsonl", (), "no such file"), ("broken.jsonl", (), "line 2 is not JSON"),
        ("fields.jsonl", (), "line 2 has no fields"),
        ("list.jsonl", (), "line 1 has no fields"), ("cut.jsonl.gz", (), "damaged or cut off"),
        ("none.jsonl", (), "there are none"),
        ("fails.jsonl", (), "not one function"), ("bad.parquet", (), "cannot be read"), ("data.csv", (), "none of"),
        ("other.parquet", (), "question and code"), ("good.jsonl", ("--max_examples", "-1"), "--max_examples must"),
        ("good.jsonl", ("--out", str(tmp_path / "no" / "out.jsonl")), "its folder does not exist"),
    ]:
        command = [*SCRIPT, "--data", str(tmp_path / name), "--out", str(out), *flags]
        run = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
        lines = [line for line in run.stderr.splitlines() if line]
        assert run.returncode == 1 and expected in run.stderr and len(lines) == 1, (name, run.stderr)
        assert out.read_text() == "before" and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(tmp_path, number):
    """Interrupted at work: exit 130, no file, no half file."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(500) * 300))
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([*SCRIPT, "--data", str(tmp_path / "a.jsonl"), "--out", str(out)], cwd=REPO,
                               stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out.jsonl.tmp").exists() or not (tmp_path / "out.jsonl.tmp").stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == 130, process.stderr.read()
    assert process.stderr.read().splitlines() == ["tinygsm.py: stopped; nothing was written."]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_hub_rows(tmp_path, monkeypatch):
    """The hub's path: rows of a streamed dataset; a network error is one sentence."""
    import datasets

    def load(name, config, split, revision, streaming):
        assert (name, config, split, revision, streaming) == ("TinyGSM/TinyGSM", None, "train", None, True)
        return iter(rows(5))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert tinygsm.convert_files(["TinyGSM/TinyGSM"], "out.jsonl")[""] == 4

    def fail(*args, **kwargs):
        raise ConnectionError("gone")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="cannot be read from the hub .gone.: check the name"):
        tinygsm.convert_files(["TinyGSM/TinyGSM"], "out.jsonl")
