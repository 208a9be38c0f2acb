"""tinygsm.py owns TinyGSM: question + Python program -> question + worked steps that end in `#### answer`.

    python tinygsm.py --data tinygsm.jsonl.gz --out tinygsm_steps.jsonl --num_proc 4     # jsonl[.gz], parquet
    python tinygsm.py --data TinyGSM/TinyGSM --max_rows 1_000_000 --out tinygsm_steps.jsonl          # from the hub

Reads rows {"question", "code"[, "answer"]}; writes {"question", "answer"} lines as GSM8K has them, in order, and prints
how many rows were dropped and why. For the program

    def simple_math_problem() -> int:            the steps are      trays: 6
        trays = 6                                                   tray cost: 9
        tray_cost = 9                                               tray total: 6 * 9 = 54
        tray_total = trays * tray_cost                              result: 54 + 16 - 2 = 68
        result = tray_total + 16 - 2                                #### 68
        return result

A line per assignment, in the order in which they are executed: the name, the expression with values in place of names,
the value. One operation per step, but a chain of + and - is one; the operations inside others get lines of their own
first. So a product of two digits always stands alone as `6 * 9 = 54`, where inject_mul.py finds it.

Nothing is ever executed by Python: no exec, eval or compile. The program is parsed, refused unless every node of its
tree is on a short list, and then walked by `_Evaluator`, whose numbers, collections and steps are bounded, and so its
time and memory: a clock would make the result depend on the machine.
Numbers: an int is written as it is; a float with 6 significant digits, but at least 2 decimals, no zeros at the end and
no point if none is left: 18.0 -> 18, 0.1 + 0.2 -> 0.3, 10 / 3 -> 3.33333, 1234567.891 -> 1234567.89.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import math
import operator
import os
import re
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from fractions import Fraction
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

MAX_SOURCE = 8_000  # characters of a program or a question; the parser's time and memory are bounded by it
MAX_BRACKETS = 20  # nested; before the parser sees them
MAX_DEPTH = 40  # of the syntax tree
MAX_STEPS = 20_000  # nodes evaluated, elements touched, characters shown: 0.1 CPU-s at most (measured)
CHARACTERS_PER_STEP = 16  # 309 of a float take as long as three evaluations (measured)
MAX_BITS = 128  # of an int
MAX_ELEMENTS = 1_000  # of a range; a list or dict has as many as the source says
MAX_STRING = 100  # characters of a key of a dict; text is never computed with
MAX_LINES = 60  # of the answer: a loop over a year is no worked solution
CHUNK_ROWS = 256  # handed to a worker at once


class Conversion(NamedTuple):
    """What became of a program: text (with `####`) and answer, or None and why not. reason: "" or a few fixed words."""

    text: str | None
    answer: int | float | None
    reason: str


class Refused(Exception):
    """Why a program has no worked steps."""


def convert(question: str, code: str, gold: str | int | float | None = None) -> Conversion:
    """Worked steps of a program. gold: the known answer, if there is one; a program that disagrees is refused.

    Any program at all may be given: none is run by Python, each is answered within 1 s and 200 MB.
    """
    try:
        if not isinstance(question, str) or not isinstance(code, str):
            raise Refused("no question or no code")
        if max(len(question), len(code)) > MAX_SOURCE:
            raise Refused("too long")
        if not question.strip() or not code.strip():
            raise Refused("no question or no code")
        evaluator = _Evaluator()
        answer = evaluator.run(_parse(code))
        if isinstance(answer, bool) or not isinstance(answer, (int, float)):
            raise Refused("result is not a number")
        if gold is not None and not _agrees(answer, gold):
            raise Refused("disagrees with the given answer")
        text = "\n".join([*evaluator.lines, f"#### {show(answer)}"])
        _check_text(text, answer)
        return Conversion(text, answer, "")
    except Refused as refusal:
        return Conversion(None, None, str(refusal))


def show(value) -> str:
    """A value as the steps write it; the rule for numbers is in the file's docstring."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        decimals = 2 if value == 0 else max(2, 5 - math.floor(math.log10(abs(value))))
        text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    if isinstance(value, tuple):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{show(key)}: {show(item)}' for key, item in value.items())}}}"
    return str(value)


def _check_text(text: str, answer: int | float) -> None:
    """What the exam reads in the text is the answer, and nothing in it ends the assistant's turn."""
    from lab.answers import ASSISTANT, USER, extract_answer

    if USER in text or ASSISTANT in text:
        raise Refused("a line holds User: or Assistant:")
    if extract_answer(text) != Fraction(show(answer)):
        raise Refused("another answer is read in the steps")


def _agrees(answer: int | float, gold: str | int | float) -> bool:
    text = str(gold).rsplit("####", 1)[-1].replace(",", "").replace("$", "").strip().rstrip(".")
    try:
        return len(text) < 100 and math.isclose(answer, float(text), rel_tol=1e-6, abs_tol=1e-9)
    except (ValueError, OverflowError):
        return False


# ------------------------------------------------------------------------------------------------------------
# the list of what a program may consist of

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "mod", ast.Pow: "**"}
COMPARISONS = {ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt),
               ast.GtE: (">=", operator.ge), ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne)}  # fmt: skip
STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.If, ast.For, ast.While, ast.Break, ast.Continue,
              ast.Pass, ast.Expr)
EXPRESSIONS = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Constant, ast.Name, ast.List,
               ast.Tuple, ast.Dict, ast.Subscript)
OTHERS = (ast.Load, ast.Store, ast.And, ast.Or, ast.Not, ast.UAdd, ast.USub, *OPERATORS, *COMPARISONS)
ALLOWED = frozenset((*STATEMENTS, *EXPRESSIONS, *OTHERS))
MATH = ("ceil", "floor", "sqrt")
CALLS = frozenset(("min", "max", "sum", "abs", "round", "int", "float", "len", "range", "sorted", "pow"))


def _parse(code: str) -> list[ast.stmt]:
    """The statements of the one function in `code`, all of whose nodes are allowed."""
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", code):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_BRACKETS:
        raise Refused("nested too deeply")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\$" in a docstring
            body = ast.parse(code, filename="").body  # for an error's line CPython opens the file named so: none
    except (SyntaxError, ValueError) as error:
        raise Refused("not Python") from error
    except (MemoryError, RecursionError) as error:
        raise Refused("nested too deeply") from error
    known = set(CALLS)
    body = [statement for statement in body if not _imports_math(statement, known)]
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise Refused("not one function")
    function = body[0]
    arguments = function.args
    if any((arguments.posonlyargs, arguments.args, arguments.vararg, arguments.kwonlyargs, arguments.kwarg,
            function.decorator_list, getattr(function, "type_params", ()))):
        raise Refused("function takes arguments or is decorated")
    _check_annotation(function.returns)
    body = [statement for statement in function.body if not _imports_math(statement, known)]
    waiting = [(statement, 1) for statement in body]
    while waiting:  # no recursion: the tree may still be deep
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise Refused("nested too deeply")
        if type(node) not in ALLOWED:
            raise Refused(f"not allowed: {type(node).__name__}")
        _check(node, known)
        hidden = {getattr(node, "annotation", None)}
        if isinstance(node, ast.Call):
            hidden.add(node.func)
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node) if child not in hidden]
    return body


def _imports_math(node: ast.stmt, known: set[str]) -> bool:
    """Whether it is `import math` or `from math import ceil, floor, sqrt`, which are not carried out: their functions
    are this evaluator's own. Adds what may be called to `known`."""
    if isinstance(node, (ast.Import, ast.ImportFrom)) and all(alias.asname is None for alias in node.names):
        names = {alias.name for alias in node.names}
        if isinstance(node, ast.Import) and names == {"math"}:
            known.update(f"math.{name}" for name in MATH)
            return True
        if isinstance(node, ast.ImportFrom) and (node.module, node.level) == ("math", 0) and names <= {*MATH}:
            known.update(names)
            return True
    return False


def _called(node: ast.Call) -> str:
    """The name of what is called: `ceil`, `math.ceil`; "" if that is an expression."""
    function = node.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def _check_annotation(node: ast.expr | None) -> None:
    if node is not None and not (isinstance(node, ast.Name) and node.id in ("int", "float")):
        raise Refused("not allowed: annotation")


def _check(node: ast.AST, known: set[str]) -> None:
    """What the kind of a node does not say. known: what may be called."""
    if isinstance(node, ast.Constant):
        if type(node.value) not in (int, float, bool, str):
            raise Refused(f"not allowed: {type(node.value).__name__}")
    elif isinstance(node, ast.Call):
        if _called(node) not in known:
            raise Refused("not allowed: call of something else")
    elif isinstance(node, ast.Expr):
        if not isinstance(node.value, ast.Constant):  # a docstring
            raise Refused("not allowed: expression without effect")
    elif isinstance(node, ast.AnnAssign):
        _check_annotation(node.annotation)
        if node.value is None:
            raise Refused("not allowed: annotation")
    elif isinstance(node, (ast.For, ast.While)):
        if node.orelse:
            raise Refused("not allowed: else of a loop")
    elif isinstance(node, ast.Subscript):
        if not isinstance(node.ctx, ast.Load):
            raise Refused("not allowed: assignment to an element")
    elif isinstance(node, ast.Dict):
        if None in node.keys:
            raise Refused("not allowed: **")
    elif isinstance(node, ast.Name) and len(node.id) > 80:
        raise Refused("too long")


# ------------------------------------------------------------------------------------------------------------
# the evaluator


class _Leave(Exception):
    """break, continue or return; args: which, and the value."""


class _Evaluator:
    """Walks checked statements and writes down a line for each assignment.

    Values are int (up to MAX_BITS), float (finite), bool, str (a key), range, and tuple (for lists too, as nothing can
    change one) and dict of those but range: a list of lists of lists could grow without a limit. Expressions become
    (text, value): the text is the value as `show` writes it, or an operation on such values that no line has told yet.
    """

    def __init__(self):
        self.names: dict[str, object] = {}
        self.lines: list[str] = []
        self.steps = 0

    def run(self, body: list[ast.stmt]):
        """The value that the function returns."""
        try:
            self.execute(body)
        except _Leave as leave:
            return leave.args[1]
        except ZeroDivisionError as error:
            raise Refused("division by zero") from error
        except OverflowError as error:
            raise Refused("number too large") from error
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise Refused("error in the program") from error
        raise Refused("no return")

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise Refused("too many steps")

    def show(self, value) -> str:
        """Its characters cost steps, or a list of floats of 309 digits would be shown for nothing."""
        text = show(value)
        self.spend(len(text) // CHARACTERS_PER_STEP)
        return text

    def say(self, line: str) -> None:
        if len(self.lines) == MAX_LINES or len(line) > 400:
            raise Refused("too many lines")
        self.lines.append(line)

    # ------------------------------------------------------------------------------------------------ statements

    def execute(self, body: list[ast.stmt]) -> None:
        for node in body:
            self.spend(1)
            if isinstance(node, ast.Assign):
                self.assign_all(node.targets, node.value)
            elif isinstance(node, ast.AnnAssign):
                self.assign(node.target, *self.expression(node.value), node.value)
            elif isinstance(node, ast.AugAssign):
                operation = ast.BinOp(ast.Name(self.name(node.target), ast.Load()), node.op, node.value)
                self.assign(node.target, *self.expression(operation), operation)
            elif isinstance(node, ast.If):
                self.execute(node.body if self.condition(node.test, tell=True) else node.orelse)
            elif isinstance(node, (ast.For, ast.While)):
                self.loop(node)
            elif isinstance(node, ast.Return):
                if node.value is None:
                    raise Refused("no return")
                raise _Leave("return", self.operand(node.value)[1])
            elif isinstance(node, (ast.Break, ast.Continue)):
                raise _Leave("break" if isinstance(node, ast.Break) else "continue", None)

    def name(self, target: ast.expr) -> str:
        if not isinstance(target, ast.Name):
            raise Refused("not allowed: target of an assignment")
        return target.id

    def assign_all(self, targets: list[ast.expr], source: ast.expr) -> None:
        """`a = ...`, `a = b = ...`, `a, b = ...`."""
        if not any(isinstance(target, (ast.Tuple, ast.List)) for target in targets):
            text, value = self.expression(source)
            for target in targets:
                self.assign(target, text, value, source)
            return
        if len(targets) > 1 or not isinstance(source, (ast.Tuple, ast.List)):
            raise Refused("not allowed: target of an assignment")
        if len(targets[0].elts) != len(source.elts):
            raise Refused("error in the program")
        values = [self.expression(element) for element in source.elts]
        for target, (text, value), element in zip(targets[0].elts, values, source.elts, strict=True):
            self.assign(target, text, value, element)

    def assign(self, target: ast.expr, text: str, value, source: ast.expr) -> None:
        """Bind, and tell unless it is `a = b`, which computes nothing."""
        self.names[self.name(target)] = value
        if not isinstance(source, ast.Name) and not isinstance(value, range):
            label = " ".join(target.id.split("_")).strip() or "value"
            shown = self.show(value)
            self.say(f"{label}: {text}" if text == shown else f"{label}: {text} = {shown}")

    def loop(self, node: ast.For | ast.While) -> None:
        values = self.iterable(self.expression(node.iter)[1]) if isinstance(node, ast.For) else None
        while True:
            self.spend(1)
            if values is None:
                if not self.condition(node.test):
                    return
            else:
                value = next(values, self)
                if value is self:
                    return
                self.names[self.name(node.target)] = value
            try:
                self.execute(node.body)
            except _Leave as leave:
                if leave.args[0] == "return":
                    raise
                if leave.args[0] == "break":
                    return

    def iterable(self, value) -> Iterator:
        if not isinstance(value, (tuple, range, dict)):
            raise Refused("error in the program")
        self.spend(len(value))
        return iter(value)

    def condition(self, node: ast.expr, tell: bool = False) -> bool:
        text, value = self.expression(node)
        if tell and text != self.show(value):
            self.say(f"{text} is {self.show(bool(value))}")
        return bool(value)

    # ----------------------------------------------------------------------------------------------- expressions

    def expression(self, node: ast.expr) -> tuple[str, object]:
        self.spend(1)
        if isinstance(node, ast.Constant):
            value = self.bounded(node.value)
            if isinstance(value, str) and len(value) > MAX_STRING:
                raise Refused("too long")
            if isinstance(value, str) and ("#" in value or not value.isprintable()):  # it could write a second answer
                raise Refused("not allowed: text with # or a new line")
        elif isinstance(node, ast.Name):
            if node.id not in self.names:
                raise Refused("unknown name")
            value = self.names[node.id]
            if isinstance(value, (tuple, dict)):
                self.spend(len(value))  # `show` reads them
        elif isinstance(node, ast.BinOp):
            return self.operation(node)
        elif isinstance(node, ast.UnaryOp):
            text, value = self.operand(node.operand)
            if isinstance(node.op, ast.Not):
                return f"not {text}", not value
            value = self.number(value) if isinstance(node.op, ast.UAdd) else -self.number(value)
        elif isinstance(node, ast.BoolOp):
            texts = []
            for part in node.values:
                text, value = self.expression(part)
                texts.append(text)
                if bool(value) == isinstance(node.op, ast.Or):
                    break
            return (" or " if isinstance(node.op, ast.Or) else " and ").join(texts), value
        elif isinstance(node, ast.Compare):
            return self.comparison(node)
        elif isinstance(node, ast.IfExp):
            return self.expression(node.body if self.condition(node.test, tell=True) else node.orelse)
        elif isinstance(node, ast.Call):
            return self.call(_called(node), node.args)
        elif isinstance(node, (ast.List, ast.Tuple)):
            value = tuple(map(self.element, node.elts))
        elif isinstance(node, ast.Dict):
            value = {self.element(key): self.element(item) for key, item in zip(node.keys, node.values, strict=True)}
        else:  # ast.Subscript
            collection, index = self.operand(node.value)[1], self.element(node.slice)
            if not isinstance(collection, (tuple, range, dict)):
                raise Refused("error in the program")
            value = collection[index]
        return self.show(value), value

    def element(self, node: ast.expr) -> int | float | str:
        value = self.operand(node)[1]
        if not isinstance(value, (int, float, str)):
            raise Refused("not allowed: a collection in a collection")
        return value

    def operand(self, node: ast.expr) -> tuple[str, object]:
        """(its value as text, value): what there is to compute gets a line first."""
        text, value = self.expression(node)
        shown = self.show(value)
        if text != shown:
            self.say(f"{text} = {shown}")
        return shown, value

    def number(self, value) -> int | float:
        if not isinstance(value, (int, float)):
            raise Refused("error in the program")
        return int(value) if isinstance(value, bool) else value

    def bounded(self, value):
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise Refused("number too large")
        if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
            raise Refused("result is not a number" if isinstance(value, complex) else "number too large")
        return value

    def operation(self, node: ast.BinOp) -> tuple[str, object]:
        """One operation; of a chain of + and - the whole chain."""
        additive = isinstance(node.op, (ast.Add, ast.Sub))
        if additive and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, (ast.Add, ast.Sub)):
            left_text, left = self.operation(node.left)
        else:
            left_text, left = self.operand(node.left)
            if left_text.startswith("-") and not additive:
                left_text = f"({left_text})"
        right_text, right = self.operand(node.right)
        if right_text.startswith("-"):
            right_text = f"({right_text})"
        value = self.compute(type(node.op), self.number(left), self.number(right))
        return f"{left_text} {OPERATORS[type(node.op)]} {right_text}", value

    def compute(self, kind: type, a: int | float, b: int | float) -> int | float:
        self.spend(1)
        if kind is ast.Pow:
            return self.power(a, b)
        function = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
                    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}[kind]
        return self.bounded(function(a, b))  # of two bounded ints none is large

    def power(self, a: int | float, b: int | float) -> int | float:
        if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b * (abs(a).bit_length() - 1) > MAX_BITS:
            raise Refused("number too large")
        return self.bounded(a**b)

    def comparison(self, node: ast.Compare) -> tuple[str, bool]:
        text, left = self.operand(node.left)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right_text, right = self.operand(right_node)
            sign, function = COMPARISONS[type(kind)]
            if not (isinstance(left, str) and isinstance(right, str)):
                left, right = self.number(left), self.number(right)
            text += f" {sign} {right_text}"
            if not function(left, right):
                return text, False
            left = right
        return text, True

    def call(self, name: str, nodes: list[ast.expr]) -> tuple[str, object]:
        if name.split(".")[0] in self.names:  # a variable of that name
            raise Refused("not allowed: call of something else")
        name = name.removeprefix("math.")
        texts, values = zip(*map(self.operand, nodes), strict=True) if nodes else ((), ())
        self.spend(len(values))
        if name == "range":
            value = range(*map(self.whole, values))
            if max(abs(value.start), abs(value.stop)) > 2**31 or len(value) > MAX_ELEMENTS:
                raise Refused("too many steps")
            return self.show(value), value
        if name in ("min", "max", "sum", "sorted") and len(values) == 1:
            values = [self.number(value) for value in self.iterable(values[0])]
            texts = [self.show(value) for value in values]
            if name == "sorted":
                value = tuple(sorted(values))
                return self.show(value), value
            if name == "sum":
                signed = [f"({text})" if text.startswith("-") and i else text for i, text in enumerate(texts)]
                return " + ".join(signed) or "0", self.bounded(sum(values))
        elif name == "len":
            [collection] = values
            if not isinstance(collection, (tuple, range, dict)):
                raise Refused("error in the program")
            return self.show(len(collection)), len(collection)
        values = [self.number(value) for value in values]
        if name in ("min", "max"):
            if not values:
                raise Refused("error in the program")
            value = min(values) if name == "min" else max(values)
        elif name == "pow":
            [base, exponent] = values
            value, text = self.power(base, exponent), f"{texts[0]} ** {texts[1]}"
            return text if not texts[0].startswith("-") else f"({texts[0]}) ** {texts[1]}", value
        elif name == "round" and len(values) == 2:
            digits = self.whole(values[1])
            if abs(digits) > 15:
                raise Refused("error in the program")
            value = round(values[0], digits)
        else:
            functions = {"abs": abs, "round": round, "int": int, "float": float, "ceil": math.ceil,
                         "floor": math.floor, "sqrt": math.sqrt}
            if name not in functions or len(values) != 1:
                raise Refused("error in the program")
            value = functions[name](values[0])
        value = self.bounded(value)
        if name in ("int", "float", "round", "ceil", "floor", "abs") and self.show(value) == texts[0]:
            return self.show(value), value  # 6.0 -> 6: nothing to tell
        return f"{name}({', '.join(texts)})", value

    def whole(self, value) -> int:
        if not isinstance(value, int):
            raise Refused("error in the program")
        return int(value)


# ------------------------------------------------------------------------------------------------------------
# files


def read_rows(data: list[str]) -> Iterator[dict]:
    """Rows of jsonl[.gz] and parquet files, or of one dataset on the hub (split train, streamed). ValueError /
    FileNotFoundError in one sentence."""
    if len(data) == 1 and not Path(data[0]).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", data[0]) and not (
            data[0].endswith((".jsonl", ".jsonl.gz", ".parquet"))):
        yield from _read_hub(data[0])
        return
    for path in data:
        if not Path(path).is_file():
            raise FileNotFoundError(f"--data {path}: no such file; check the path.")
        if path.endswith(".parquet"):
            yield from _read_parquet(path)
        elif path.endswith((".jsonl", ".jsonl.gz")):
            yield from _read_jsonl(path)
        else:
            raise ValueError(f"--data {path} is none of .jsonl, .jsonl.gz, .parquet: convert it to one of these.")


def _read_hub(name: str) -> Iterator[dict]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        for row in rows:
            yield _checked(row, f"a row of {name}")
    except (OSError, datasets.exceptions.DatasetsError) as error:  # its network errors are OSErrors
        raise ValueError(f"--data {name} cannot be read from the hub ({_first_line(error)}): check the name and the "
                         "network, or give local files.") from error


def _read_parquet(path: str) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in ("question", "code", "answer") if name in file.schema_arrow.names]
            _checked(dict.fromkeys(names), path)
            for batch in file.iter_batches(1024, columns=names):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"--data {path} cannot be read ({_first_line(error)}): download it again.") from error


def _read_jsonl(path: str) -> Iterator[dict]:
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if line.isspace():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number:,} of {path} is not JSON ({_first_line(error)}): repair or remove "
                                     "it and run again.") from error
                yield _checked(row, f"line {number:,} of {path}")
    except (OSError, EOFError) as error:
        raise ValueError(f"--data {path} cannot be read ({_first_line(error)}): it is damaged or cut off; download it "
                         "again.") from error


def _checked(row, where: str) -> dict:
    if not isinstance(row, dict) or "question" not in row or "code" not in row:
        raise ValueError(f"{where} has no fields question and code: give TinyGSM's files.")
    return row


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def convert_rows(rows: list[dict]) -> list[tuple[bytes, str]]:
    """A worker's share: (JSON line or b"", reason) per row."""
    done = []
    for row in rows:
        text, _, reason = convert(row["question"], row["code"], row.get("answer"))
        line = b"" if text is None else json.dumps({"question": row["question"], "answer": text}).encode() + b"\n"
        done.append((line, reason))
    return done


def converted(rows: Iterator[dict], num_proc: int) -> Iterator[list[tuple[bytes, str]]]:
    """`convert_rows` of chunks, in order, on `num_proc` processes; the same for every number of them."""
    chunks = iter(lambda: [row for _, row in zip(range(CHUNK_ROWS), rows, strict=False)], [])
    if num_proc == 1:
        yield from map(convert_rows, chunks)
        return
    pool, pending = ProcessPoolExecutor(num_proc, get_context("spawn"), _ignore_ctrl_c), deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(convert_rows, chunk))
            if len(pending) > 2 * num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_ctrl_c() -> None:
    """The parent ends its workers. A SIGTERM to all of them gives it 5 seconds for that: a worker that dies at once,
    while the parent is sending it rows, can leave Python 3.11's executor waiting for ever (cpython issue 94777)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(5))


def convert_files(data: list[str], out: str, max_rows: int = 0, num_proc: int = 1) -> Counter:
    """Convert `data` into the file `out`, which appears when it is whole. Returns rows by reason, "" = converted.

    max_rows 0: all. Raises ValueError / FileNotFoundError / OSError; then, and after ctrl-C, `out` is as it was."""
    from tqdm import tqdm

    if num_proc < 1 or max_rows < 0:
        raise ValueError("--num_proc must be 1 or more and --max_rows 0 or more: pass other numbers.")
    if not Path(out).parent.is_dir():
        raise FileNotFoundError(f"--out {out}: its folder does not exist; create it or choose another.")
    rows = read_rows(data)
    counts, temporary = Counter(), Path(f"{out}.tmp")
    try:
        with (open(temporary, "wb") as f, closing(converted(islice(rows, max_rows or None), num_proc)) as chunks,
              tqdm(unit="row", unit_scale=True, disable=None, total=max_rows or None) as bar):
            for done in chunks:
                f.writelines(line for line, _ in done)
                counts.update(reason for _, reason in done)
                bar.update(len(done))
            f.flush()
            os.fsync(f.fileno())
        if not counts[""]:
            raise ValueError(f"none of {counts.total():,} rows of {' '.join(data)} could be converted "
                             f"({counts.most_common(1)[0][0] if counts else 'there are none'}): give TinyGSM's files.")
        os.replace(temporary, out)
    except BrokenProcessPool as error:
        raise ValueError("a worker process was killed, perhaps for memory: lower --num_proc and run again.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="TinyGSM's programs -> worked steps that end in '#### answer'; rows that fail are dropped.",
        epilog="example: python tinygsm.py --data tinygsm.jsonl.gz --out tinygsm_steps.jsonl --num_proc 4",
        allow_abbrev=False)
    group = parser.add_argument_group("input and output")
    group.add_argument("--data", nargs="+", required=True, metavar="FILE|NAME",
                       help="files *.jsonl[.gz] or *.parquet with question and code (and answer, which is then "
                            "checked), or a dataset on the hub such as TinyGSM/TinyGSM (streamed)")
    group.add_argument("--out", required=True, help="jsonl file of question and answer, replaced when complete")
    group.add_argument("--max_rows", type=int, default=0, help="rows to read (default: 0 = all)")
    group.add_argument("--num_proc", type=int, default=1, help="worker processes; never change a byte (default: 1)")
    args = parser.parse_args(argv)
    counts = convert_files(args.data, args.out, args.max_rows, args.num_proc)
    print(f"{counts.total():,} rows, {counts['']:,} converted into {args.out}")
    for reason, count in counts.most_common():
        if reason:
            print(f"{count:12,}  dropped: {reason}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like ctrl-C: no half file, no worker left behind
    try:
        main()
    except KeyboardInterrupt:
        print("tinygsm.py: stopped; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tinygsm.py: {error}")
    except OSError as error:
        sys.exit(f"tinygsm.py: {error.filename or 'writing'}: {error.strerror or error}; choose another --out or free "
                 "some space.")
