"""schema.py owns the shape of JSON that a script relies on: a schema is data, and a file that differs is one sentence.

A schema is a kind, (words, test), which a value fits when test(value) is true; [schema] for a list; or a dict for an
object. Its keys are names, with a "?" at the end for those that may be missing, or patterns for keys of any number.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

COUNT = "a whole number of at least 0", lambda value: type(value) is int and 0 <= value < 2**63
MOST = sys.float_info.max  # JSON's whole numbers may be larger
AMOUNT = "a finite number of at least 0", lambda value: type(value) in (int, float) and 0 <= value <= MOST
NUMBER = "a finite number", lambda value: type(value) in (int, float) and abs(value) <= MOST
NUMBER_OR_NULL = "a finite number or null", lambda value: value is None or NUMBER[1](value)
TEXT = "text", lambda value: isinstance(value, str)
SHA256 = "64 hex digits", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
ANYTHING = "any value", lambda value: True
ANY_NAME = re.compile("(?s).*")


def check(condition, sentence: str) -> None:
    """ValueError with the sentence, unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


def require(condition, fault: str, remedy: str, kind: type[Exception] = ValueError) -> None:
    """Unless the condition holds, raise `kind` in one sentence: what is wrong, and what to do."""
    if not condition:
        raise kind(f"{fault}: {remedy}.")


def is_pairs(value) -> bool:
    """Whether a value is a list of pairs of whole numbers."""
    is_list = isinstance(value, (list, tuple))
    return is_list and all(isinstance(pair, (list, tuple)) and [*map(type, pair)] == [int, int] for pair in value)


def misfit(value, schema, place: str = "") -> str:
    """What does not fit, with its place, such as "files.rng.pt.sha256 is null, not 64 hex digits"; "" when all fits."""
    if isinstance(schema, tuple):
        words, test = schema
        if test(value):
            return ""
    elif isinstance(schema, list):
        words = "a list"
        if isinstance(value, list):
            faults = (misfit(item, schema[0], f"{place}[{i}]") for i, item in enumerate(value))
            return next(filter(None, faults), "")
    else:
        words = "an object"
        if isinstance(value, dict):
            return _misfit_of_object(value, schema, place)
    name = place or "it"
    # piece by piece: all of it may be endless, as of a pickle's tuples in tuples
    pieces = json.JSONEncoder(default=repr).iterencode(value)
    shown = "".join(itertools.islice(pieces, 60))[:60]
    return f"{name} is {shown}, not {words}"


def _misfit_of_object(value: dict, schema: dict, place: str) -> str:
    prefix = f"{place}." if place else ""
    for key, of_key in schema.items():
        names = [key]
        if isinstance(key, re.Pattern):
            names = list(value)
        elif key.endswith("?"):
            names = [name for name in value if name == key[:-1]]
        for name in names:
            if name not in value:
                return f"{prefix}{name} is missing"
            if isinstance(key, re.Pattern) and not key.fullmatch(name):
                return f"{prefix}{name} is no key of it"
            fault = misfit(value[name], of_key, f"{prefix}{name}")
            if fault:
                return fault
    return ""


def differences(was, now, name: str = "") -> list[str]:
    """What differs between two values of JSON, a phrase each, such as "source.files[2].bytes was 10, now 12"; of a
    list, the first item that does."""
    if was == now:
        return []
    if isinstance(was, dict) and isinstance(now, dict):
        prefix = f"{name}." if name else ""
        phrases = (differences(was.get(key), now.get(key), f"{prefix}{key}") for key in sorted({*was, *now}))
        return list(itertools.chain.from_iterable(phrases))
    if isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            return [f"{name} had {len(was):,}, now {len(now):,}"]
        first = next(i for i, (old, new) in enumerate(zip(was, now, strict=True)) if old != new)
        return differences(was[first], now[first], f"{name}[{first}]")
    return [f"{name} was {_shown(was)}, now {_shown(now)}"]


def _shown(value) -> str:
    """A value in a sentence: of what is long, such as a checksum, its beginning."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return f"an object of {', '.join(value)}"
    if isinstance(value, str) and len(value) > 40:
        value = f"{value[:12]}..."
    return repr(value)


def read_json(path, schema=ANYTHING, advice: str = "restore it or leave it out"):
    """A JSON file's value. ValueError, which ends with `advice`, when it cannot be read or does not fit the schema."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {advice}.") from None
    fault = misfit(value, schema)
    if fault:
        raise ValueError(f"{path} is damaged ({fault}): {advice}.")
    return value


# ----------------------------------------------------------------------------------------------------------------------
# config.json of a run, as far as a resume or a report needs it

FORMAT = re.compile(r"[+,]?(\.\d{1,2})?[efg%]?")
KINDS = [str, str, int, str]
METRIC = "[key, label, -1 or 0 or 1, format]", lambda value: (
    isinstance(value, list) and [*map(type, value)] == KINDS and FORMAT.fullmatch(value[3]))
TEXT_OR_NULL = "text or null", lambda value: value is None or isinstance(value, str)
BENCHMARK = {"title?": TEXT, "metrics?": [METRIC], "item_metrics?": [TEXT], "tests?": {ANY_NAME: TEXT},
             "cluster?": TEXT_OR_NULL, "category?": TEXT_OR_NULL}
BENCHMARKS = "an object of benchmarks", lambda value: (
    value is None or not misfit(value, {ANY_NAME: BENCHMARK}))
VERSION = {"step": COUNT, "code_sha256": TEXT}
RUN = {"flags": {"seed": COUNT}, "code": {"code_sha256": TEXT, "versions?": [VERSION]},
       "data": {"fingerprint": ANYTHING}, "benchmarks?": BENCHMARKS, "unused_flags?": [TEXT]}
