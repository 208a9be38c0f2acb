"""programs.py owns small Python programs that nobody may run: their value and their worked steps.

    evaluator = Evaluator()
    evaluator.run(parse("def f():\\n    trays = 6\\n    return trays * 9"))    # 54
    evaluator.lines                                                         # ["trays: 6", "6 * 9 = 54"]

A line per assignment, in the order of execution: the name, the expression with values in place of names, the value. A
step has one operation, or one chain of + and -; the operations inside others get lines of their own first. So a product
of two digits always stands alone as `6 * 9 = 54`, where inject_mul.py finds it.

Nothing is ever executed by Python: no exec, eval or compile. The program is parsed, refused unless every node of its
tree is in a table of this file, and walked by `Evaluator`, whose numbers, collections and steps are bounded, and so its
time and memory (a clock would make the result depend on the machine).
Numbers: an int as it is; a float with 6 significant digits, but at least 2 decimals, without zeros at the end and a
bare point: 18.0 -> 18, 0.1 + 0.2 -> 0.3, 10 / 3 -> 3.33333, 1234567.891 -> 1234567.89.
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Iterator
from itertools import cycle

MAX_BRACKETS = 20  # nested; before the parser sees them
MAX_DEPTH = 40  # of the syntax tree
MAX_STEPS = 20_000  # nodes evaluated, elements touched, characters shown: 0.1 CPU-s at most (measured)
CHARACTERS_PER_STEP = 16  # 309 of a float take as long as three evaluations (measured)
MAX_BITS = 128  # of an int
MAX_ELEMENTS = 1_000  # of a range; a list or dict has as many as the source says
MAX_STRING = 100  # characters of a key of a dict; text is never computed with
MAX_LINES = 60  # of the answer: a loop over a year is no worked solution


class Refused(Exception):
    """Why a program has no worked steps."""


def check(condition, reason: str = "error in the program") -> None:
    if not condition:
        raise Refused(reason)


def show(value) -> str:
    """A value as the steps write it; the rule for numbers is in the file's docstring."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        decimals = max(2, 5 - math.floor(math.log10(abs(value)))) if value else 2
        text = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    if isinstance(value, tuple):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        items = [f"{show(key)}: {show(item)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
    return str(value)


# ----------------------------------------------------------------------------------------------------------------------
# the syntax tree: what a program may consist of


def parse(code: str) -> list[ast.stmt]:
    """The statements of the one function in `code`, all of whose nodes are allowed."""
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", code):
        depth += 1 if bracket in "([{" else -1
        check(depth <= MAX_BRACKETS, "nested too deeply")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as for "\$" in a docstring
            body = ast.parse(code, filename="").body  # for an error's line CPython opens the file named so: none
    except (SyntaxError, ValueError) as error:
        raise Refused("not Python") from error
    except (MemoryError, RecursionError) as error:
        raise Refused("nested too deeply") from error
    functions = [statement for statement in body if not _imports(statement)]
    check(len(functions) == 1 and isinstance(functions[0], ast.FunctionDef), "not one function")
    [function] = functions
    a = function.args
    extras = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg, *function.decorator_list]
    check(not any((*extras, *getattr(function, "type_params", ()))), "function takes arguments or is decorated")
    check(_is_number_type(function.returns), "not allowed: annotation")
    callable_names = (set(FUNCTIONS) - MATH).union(*map(_imports, body + function.body))
    body = [statement for statement in function.body if not _imports(statement)]
    nodes = [(statement, 1) for statement in body]
    while nodes:  # no recursion: the tree may still be deep
        node, depth = nodes.pop()
        check(depth <= MAX_DEPTH, "nested too deeply")
        check(type(node) in ALLOWED, f"not allowed: {type(node).__name__}")
        rule, reason = RULES.get(type(node), (bool, ""))
        check(rule(node), reason)
        hidden = {getattr(node, "annotation", None)}
        if isinstance(node, ast.Constant):
            kind = type(node.value)
            check(kind in (int, float, bool, str), f"not allowed: {kind.__name__}")
        if isinstance(node, ast.Call):
            check(_called(node) in callable_names, "not allowed: call of something else")
            hidden.add(node.func)
        nodes += [(child, depth + 1) for child in ast.iter_child_nodes(node) if child not in hidden]
    return body


def _imports(node: ast.stmt) -> set[str]:
    """What `import math` or `from math import ceil, floor, sqrt` makes callable; nothing for other statements. They are
    not carried out: the functions are this evaluator's own."""
    match node:
        case ast.Import(names=aliases) if all(a.name == "math" and a.asname is None for a in aliases):
            return {f"math.{name}" for name in MATH}
        case ast.ImportFrom(module="math", level=0, names=aliases) if all(
                a.name in MATH and a.asname is None for a in aliases):
            return {a.name for a in aliases}
    return set()


def _called(node: ast.Call) -> str:
    """The name of what is called: `ceil`, `math.ceil`; "" if that is an expression."""
    function = node.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return getattr(function, "id", "")


def _is_number_type(annotation: ast.expr | None) -> bool:
    return annotation is None or getattr(annotation, "id", None) in ("int", "float")


RULES = {  # what the kind of a node does not say: (rule, why a node is refused that breaks it)
    ast.Expr: (lambda node: isinstance(node.value, ast.Constant), "not allowed: expression without effect"),
    ast.AnnAssign: (lambda node: node.value and _is_number_type(node.annotation), "not allowed: annotation"),
    ast.For: (lambda node: not node.orelse, "not allowed: else of a loop"),
    ast.While: (lambda node: not node.orelse, "not allowed: else of a loop"),
    ast.Subscript: (lambda node: isinstance(node.ctx, ast.Load), "not allowed: assignment to an element"),
    ast.Dict: (lambda node: None not in node.keys, "not allowed: **"),
    ast.Name: (lambda node: len(node.id) <= 80, "too long"),
}

# ----------------------------------------------------------------------------------------------------------------------
# the evaluator


def _number(value) -> int | float:
    check(isinstance(value, (int, float)))
    return int(value) if isinstance(value, bool) else value


def _bounded(value):
    """A number that is not too large, or any other value."""
    check(not isinstance(value, complex), "result is not a number")
    is_bounded = True
    if isinstance(value, int):
        is_bounded = value.bit_length() <= MAX_BITS
    elif isinstance(value, float):
        is_bounded = math.isfinite(value)
    check(is_bounded, "number too large")
    return value


def _in_brackets(text: str) -> str:
    """A negative number as the operand of an operation."""
    return f"({text})" if text.startswith("-") else text


def _power(a: int | float, b: int | float) -> int | float:
    if isinstance(a, int) and isinstance(b, int) and abs(a) > 1:
        check(b * (abs(a).bit_length() - 1) <= MAX_BITS, "number too large")
    return a**b


def _round(number: int | float, digits: int | None = None) -> int | float:
    check(digits is None or abs(digits) <= 15)
    return round(number, digits)


OPERATORS = {
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv), ast.FloorDiv: ("//", operator.floordiv), ast.Mod: ("mod", operator.mod),
    ast.Pow: ("**", _power),
}
COMPARISONS = {
    ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge), ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne),
}
ADDITIVE = (ast.Add, ast.Sub)
PROGRAM_ERRORS = {
    ZeroDivisionError: "division by zero", OverflowError: "number too large",
    **dict.fromkeys((TypeError, ValueError, IndexError, KeyError), "error in the program"),
}


class _Leave(Exception):
    """break, continue or return; args: the statement's kind, and the value."""


class Evaluator:
    """Walks checked statements and writes down a line for each assignment.
    Values are int (up to MAX_BITS), float (finite), bool, str (a key), range, and tuple (lists too, as nothing can
    change one) and dict of those but range: lists of lists could grow without limit. Expressions become (text, value):
    the text is the value as `show` writes it, or an operation on such values that has no line yet."""

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
        except tuple(PROGRAM_ERRORS) as error:
            raise Refused(PROGRAM_ERRORS[type(error)]) from error
        raise Refused("no return")

    def spend(self, steps: int) -> None:
        self.steps += steps
        check(self.steps <= MAX_STEPS, "too many steps")

    def show(self, value) -> str:
        """The value as text, whose characters cost steps: a float may have 309 digits."""
        text = show(value)
        self.spend(len(text) // CHARACTERS_PER_STEP)
        return text

    def write(self, line: str) -> None:
        check(len(self.lines) < MAX_LINES and len(line) <= 400, "too many lines")
        self.lines.append(line)

    def execute(self, body: list[ast.stmt]) -> None:
        for node in body:
            self.spend(1)
            STATEMENTS[type(node)](self, node)

    def do_assign(self, node: ast.Assign | ast.AnnAssign) -> None:
        """`a = ...`, `a: int = ...`, `a = b = ...`, `a, b = ...`."""
        targets, values = getattr(node, "targets", None) or [node.target], [node.value]
        sequence = (ast.Tuple, ast.List)
        if any(isinstance(target, sequence) for target in targets):
            one = len(targets) == 1 and isinstance(node.value, sequence)
            check(one, "not allowed: target of an assignment")
            targets, values = targets[0].elts, node.value.elts
            check(len(targets) == len(values))
        results = [(*self.expression(value), value) for value in values]
        for target, result in zip(targets, cycle(results), strict=False):
            self.bind(target, *result)

    def do_augmented(self, node: ast.AugAssign) -> None:
        operation = ast.BinOp(ast.Name(self.name_of(node.target), ast.Load()), node.op, node.value)
        self.bind(node.target, *self.expression(operation), operation)

    def do_if(self, node: ast.If) -> None:
        self.execute(node.body if self.condition(node.test) else node.orelse)

    def do_for(self, node: ast.For) -> None:
        for value in self.elements(self.expression(node.iter)[1]):
            self.spend(1)
            self.names[self.name_of(node.target)] = value
            if not self.goes_on(node.body):
                return
        self.spend(1)

    def do_while(self, node: ast.While) -> None:
        self.spend(1)
        while self.expression(node.test)[1]:
            if not self.goes_on(node.body):
                return
            self.spend(1)

    def goes_on(self, body: list[ast.stmt]) -> bool:
        """One round of a loop: False after `break`."""
        try:
            self.execute(body)
        except _Leave as leave:
            if leave.args[0] is ast.Return:
                raise
            return leave.args[0] is ast.Continue
        return True

    def do_leave(self, node: ast.Return | ast.Break | ast.Continue) -> None:
        value = None
        if isinstance(node, ast.Return):
            check(node.value is not None, "no return")
            value = self.operand(node.value)[1]
        raise _Leave(type(node), value)

    def name_of(self, target: ast.expr) -> str:
        check(isinstance(target, ast.Name), "not allowed: target of an assignment")
        return target.id

    def bind(self, target: ast.expr, text: str, value, source: ast.expr) -> None:
        """Give a name its value, with a line unless it is `a = b`, which computes nothing."""
        self.names[self.name_of(target)] = value
        if isinstance(source, ast.Name) or isinstance(value, range):
            return
        label = " ".join(target.id.split("_")).strip() or "value"
        result = self.show(value)
        self.write(f"{label}: {text}" if text == result else f"{label}: {text} = {result}")

    def condition(self, node: ast.expr) -> bool:
        """Whether a branch is taken, with a line that says so."""
        text, value = self.expression(node)
        if text != self.show(value):
            self.write(f"{text} is {self.show(bool(value))}")
        return bool(value)

    # each method below takes an expression or the operands of a call, and returns (text, value)

    def expression(self, node: ast.expr) -> tuple[str, object]:
        self.spend(1)
        return EXPRESSIONS[type(node)](self, node)

    def as_value(self, value) -> tuple[str, object]:
        return self.show(value), value

    def operand(self, node: ast.expr) -> tuple[str, object]:
        """(its value as text, value): what there is to compute gets a line first."""
        text, value = self.expression(node)
        result = self.show(value)
        if text != result:
            self.write(f"{text} = {result}")
        return result, value

    def elements(self, collection) -> Iterator:
        check(isinstance(collection, (tuple, range, dict)))
        self.spend(len(collection))
        return iter(collection)

    def element(self, node: ast.expr) -> int | float | str:
        value = self.operand(node)[1]
        check(isinstance(value, (int, float, str)), "not allowed: a collection in a collection")
        return value

    def constant(self, node: ast.Constant):
        value = _bounded(node.value)
        if isinstance(value, str):
            check(len(value) <= MAX_STRING, "too long")
            # it could write a second answer
            check("#" not in value and value.isprintable(), "not allowed: text with # or a new line")
        return self.as_value(value)

    def name(self, node: ast.Name):
        check(node.id in self.names, "unknown name")
        value = self.names[node.id]
        if isinstance(value, (tuple, dict)):
            self.spend(len(value))  # `show` reads them
        return self.as_value(value)

    def operation(self, node: ast.BinOp):
        """One operation; of a chain of + and - the whole chain."""
        additive = isinstance(node.op, ADDITIVE)
        if additive and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ADDITIVE):
            left_text, left = self.operation(node.left)
        else:
            left_text, left = self.operand(node.left)
            if not additive:
                left_text = _in_brackets(left_text)
        right_text, right = self.operand(node.right)
        sign, function = OPERATORS[type(node.op)]
        left, right = _number(left), _number(right)
        self.spend(1)
        return f"{left_text} {sign} {_in_brackets(right_text)}", _bounded(function(left, right))

    def unary(self, node: ast.UnaryOp):
        text, value = self.operand(node.operand)
        if isinstance(node.op, ast.Not):
            return f"not {text}", not value
        value = _number(value)
        return self.as_value(-value if isinstance(node.op, ast.USub) else value)

    def and_or(self, node: ast.BoolOp):
        is_or, texts = isinstance(node.op, ast.Or), []
        for part in node.values:
            text, value = self.expression(part)
            texts.append(text)
            if bool(value) == is_or:
                break
        return (" or " if is_or else " and ").join(texts), value

    def comparison(self, node: ast.Compare):
        text, left = self.operand(node.left)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right_text, right = self.operand(right_node)
            sign, holds = COMPARISONS[type(kind)]
            if not (isinstance(left, str) and isinstance(right, str)):
                left, right = _number(left), _number(right)
            text += f" {sign} {right_text}"
            if not holds(left, right):
                return text, False
            left = right
        return text, True

    def choice(self, node: ast.IfExp):
        return self.expression(node.body if self.condition(node.test) else node.orelse)

    def sequence(self, node: ast.List | ast.Tuple):
        return self.as_value(tuple(map(self.element, node.elts)))

    def dictionary(self, node: ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return self.as_value({self.element(key): self.element(item) for key, item in pairs})

    def subscript(self, node: ast.Subscript):
        collection, index = self.operand(node.value)[1], self.element(node.slice)
        check(isinstance(collection, (tuple, range, dict)))
        return self.as_value(collection[index])

    def call(self, node: ast.Call):
        name = _called(node)
        check(name.split(".")[0] not in self.names, "not allowed: call of something else")
        operands = [self.operand(argument) for argument in node.args]
        self.spend(len(operands))
        texts, values = [text for text, _ in operands], [value for _, value in operands]
        name = name.removeprefix("math.")
        return FUNCTIONS[name](self, name, texts, values)

    def numbers_in(self, collection) -> tuple[list[str], list[int | float]]:
        values = [_number(value) for value in self.elements(collection)]
        return [self.show(value) for value in values], values

    def call_range(self, name, texts, values):
        value = range(*map(_number, values))
        check(max(abs(value.start), abs(value.stop)) <= 2**31 and len(value) <= MAX_ELEMENTS, "too many steps")
        return self.as_value(value)

    def call_len(self, name, texts, values):
        [collection] = values
        check(isinstance(collection, (tuple, range, dict)))
        return self.as_value(len(collection))

    def call_sorted(self, name, texts, values):
        [collection] = values
        return self.as_value(tuple(sorted(self.numbers_in(collection)[1])))

    def call_sum(self, name, texts, values):
        [collection] = values
        texts, values = self.numbers_in(collection)
        texts[1:] = map(_in_brackets, texts[1:])
        return " + ".join(texts) or "0", _bounded(sum(values))

    def call_numeric(self, name, texts, values):
        if name in ("min", "max") and len(values) == 1:
            texts, values = self.numbers_in(values[0])
        check(values)
        value = _bounded(NUMERIC[name](*map(_number, values)))
        if name == "pow":
            return f"{_in_brackets(texts[0])} ** {texts[1]}", value
        if name in ROUNDING and self.show(value) == texts[0]:
            return self.as_value(value)  # 6.0 -> 6 is no step
        return f"{name}({', '.join(texts)})", value


# the tables: nothing else can occur in a program
STATEMENTS = {
    ast.Assign: Evaluator.do_assign, ast.AugAssign: Evaluator.do_augmented, ast.AnnAssign: Evaluator.do_assign,
    ast.If: Evaluator.do_if, ast.For: Evaluator.do_for, ast.While: Evaluator.do_while,
    ast.Return: Evaluator.do_leave, ast.Break: Evaluator.do_leave, ast.Continue: Evaluator.do_leave,
    **dict.fromkeys((ast.Pass, ast.Expr), lambda evaluator, node: None),  # Expr: a docstring
}
EXPRESSIONS = {
    ast.Constant: Evaluator.constant, ast.Name: Evaluator.name, ast.Call: Evaluator.call,
    ast.BinOp: Evaluator.operation, ast.UnaryOp: Evaluator.unary, ast.BoolOp: Evaluator.and_or,
    ast.Compare: Evaluator.comparison, ast.IfExp: Evaluator.choice, ast.Subscript: Evaluator.subscript,
    ast.List: Evaluator.sequence, ast.Tuple: Evaluator.sequence, ast.Dict: Evaluator.dictionary,
}
ROUNDING = {"int": int, "float": float, "abs": abs, "round": _round, "ceil": math.ceil, "floor": math.floor}
NUMERIC = {"min": lambda *numbers: min(numbers), "max": lambda *numbers: max(numbers), "pow": _power,
           "sqrt": math.sqrt, **ROUNDING}
FUNCTIONS = {
    "range": Evaluator.call_range, "len": Evaluator.call_len, "sorted": Evaluator.call_sorted,
    "sum": Evaluator.call_sum, **dict.fromkeys(NUMERIC, Evaluator.call_numeric),
}
MATH = {"ceil", "floor", "sqrt"}  # callable after `import math` only
SIGNS = (ast.Load, ast.Store, ast.And, ast.Or, ast.Not, ast.UAdd, ast.USub)
ALLOWED = {*STATEMENTS, *EXPRESSIONS, *OPERATORS, *COMPARISONS, *SIGNS}
