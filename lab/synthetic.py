r"""synthetic.py owns the embedded corpus: small documents and matching eval items of one tight world, without network.

    python -m lab.synthetic --n 3                                         # three documents on stdout
    python -m lab.synthetic --n 500 --kind hellaswag --out items.jsonl    # or ewok, piqa, ...; documents: {"text": ...}

A document is paragraphs about three people and four things: outings that follow a fixed script per place, facts whose
second sentence follows from the first, and sums. Document 724 of seed 0:
    Sam fills the white box. Now the box is full.
    On Wednesday Mary goes to the library with Lisa. She takes the white glove along. There she looks at the tall
    shelves. Then she finds an old story. After that she sits down to read. At last she borrows the novel. In the
    evening she brings back the white glove.
    7 * 9 = 63. 6 * 9 = 54. 5*1.
HellaSwag's form (chance 0.25; every ending is the right one equally often; here the third):
    On Tuesday John goes to the theater with Ann. He takes the pink clock along. There he shows the pass. Then he
    watches the play. After that he
    | puts up the tent. | leaves the stage. | takes the medicine. | claps for the actors.
EWoK's (chance 0.50; both targets of a pair occur equally often):
    John is a great baker. -> He bakes bread every day. | John is a great farmer. -> He grows corn every day.
GSM8K's (chance about 0.04, the most frequent answer):
    Adam has 5 packs with 2 coins in each. Jane brings 4 more coins. How many coins are there?
    Adam has 5 * 2 = <<5*2=10>>10 coins. \n There are 10 + 4 = <<10+4=14>>14 coins. \n #### 14

A tiny model learns what never changes (script steps, what a baker does) in a minute, and later to read the context (who
holds the thing, which step is done, sums). `bucket`, a hash of who, what and when, gives every combination either to
documents or to one split of one benchmark, so no item's text is in a document although all its parts are. All
randomness is `random.Random(int).random()`, the one sequence that Python promises to keep.
"""
import functools
import itertools
import json
import math
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator

from lab import disk, flags, processes

MEDIAN_TOKENS, SIGMA = 130, 1.0  # log-normal document length in GPT-2 tokens
CHARS_PER_TOKEN = 3.9  # of this corpus (measured): turns the length into characters
NAMES = dict.fromkeys("Ann Amy Anna Eva Kate Lisa Maria Mary Jane Sarah".split(), "she")
NAMES.update(dict.fromkeys("Tom Ben Sam Max Jack John Paul David Peter Adam".split(), "he"))
WEEK = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WHEN = ["One day", "Today", *(f"On {day}" for day in WEEK)]
COLORS = "red blue green black white brown yellow pink".split()
THINGS = "ball cup hat coat book lamp chair key drum plate bowl clock bottle rope brick glove".split()
BOXES = "box bag basket drawer chest cabinet".split()
ITEMS = "apples eggs coins cards pens cakes stamps beans nuts shells".split()
PACKS = "boxes bags baskets jars rows packs".split()
ADJECTIVES = "young tall kind busy good great quiet famous".split()

# Script knowledge: at each place the same four steps, in this order. Step texts share no ending between places.
SCRIPT_LEAD = ("There", "Then", "After that", "At last", "In the evening")
SCRIPTS = {
    "bakery": ("smells the fresh bread", "chooses a sweet cake", "pays the baker", "eats a warm roll"),
    "library": ("looks at the tall shelves", "finds an old story", "sits down to read", "borrows the novel"),
    "beach": ("walks on the hot sand", "swims in the sea", "builds a castle", "lies in the sun"),
    "farm": ("feeds the hungry pigs", "milks the cow", "collects the eggs", "rides a horse"),
    "garden": ("digs a small hole", "plants the seeds", "waters the flowers", "picks a rose"),
    "kitchen": ("washes the vegetables", "cuts the onions", "cooks the soup", "sets the table"),
    "station": ("buys a ticket", "waits for the train", "finds a seat", "watches the tracks"),
    "hospital": ("talks to the nurse", "sees the doctor", "takes the medicine", "rests in bed"),
    "park": ("feeds the ducks", "climbs a tree", "plays on the swing", "runs on the grass"),
    "river": ("steps into the boat", "throws the line", "catches a big fish", "rows to the shore"),
    "forest": ("gathers dry wood", "lights a fire", "puts up the tent", "sleeps under the stars"),
    "theater": ("shows the pass", "watches the play", "claps for the actors", "leaves the stage"),
}

# Facts: (EWoK domain, how two contexts differ, roles for which a document keeps one key, context, target, {key in the
# context: value in the target}). Keys with different values make a minimal pair.
FACTS = (
    ("agent-properties", "other", "n", "{n} is a {adj} {k}.", "{She} {v} every day.",
     {"baker": "bakes bread", "teacher": "teaches children", "farmer": "grows corn",
      "doctor": "helps sick people", "singer": "sings songs", "driver": "drives a bus"}),
    ("material-dynamics", "other", "", "{n} {k} the {c} {t}.", "Now the {t} is {v}.",
     dict(heats="hot", freezes="cold", soaks="wet", breaks="broken", drags="dirty", folds="flat")),
    ("material-properties", "material", "ct", "The {c} {t} is made of {k}.", "It {v}.",
     {"glass": "breaks easily", "wool": "feels warm", "iron": "is very heavy", "paper": "tears apart",
      "rubber": "bounces high", "ice": "melts quickly"}),
    ("physical-dynamics", "other", "", "{When} {n} {k} the {c} {t}.", "The {t} {v}.",
     {"drops": "falls to the floor", "kicks": "rolls away", "throws": "flies through the air",
      "spins": "turns around", "pushes": "slides forward", "lifts": "goes up"}),
    ("physical-interactions", "antonym", "", "{n} {k} the {c} {box}.", "Now the {box} is {v}.",
     {"opens": "open", "closes": "shut", "fills": "full", "empties": "empty", "locks": "locked",
      "cleans": "clean"}),
    ("physical-relations", "antonym", "t", "The {c} {t} is {k} the {box}.", "The {box} {v} the {t}.",
     dict(inside="contains", under="covers", on="carries", beside="touches", behind="hides")),
    ("quantitative-properties", "antonym", "", "{When} {n} {k} some {items}.", "Now {she} has {v} {items}.",
     dict(finds="more", gets="more", wins="more", sells="fewer", drops="fewer", eats="fewer")),
    ("social-interactions", "antonym", "", "{n} {k} {m}.", "Now {v} has the {t}.",
     {"gives the {c} {t} to": "{m}", "sends the {c} {t} to": "{m}", "takes the {c} {t} from": "{n}",
      "buys the {c} {t} from": "{n}"}),
    ("social-properties", "other", "", "{When} {n} {k}.", "{She} feels {v}.",
     {"wins the game": "proud", "loses a friend": "sad", "hears a strange noise": "scared",
      "works all night": "tired", "misses lunch": "hungry", "waits for hours": "bored"}),
    ("social-relations", "antonym", "nm", "{n} is the {k} of {m}.", "{m} is the {v} of {n}.",
     {"teacher": "student", "student": "teacher", "boss": "worker", "worker": "boss",
      "parent": "child", "child": "parent"}),
    ("spatial-relations", "antonym", "tu", "The {c} {t} is {k} the {d} {u}.", "The {u} is {v} the {t}.",
     {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "near": "near",
      "far from": "far from"}),
)

# Sums: (stem, question, worked lines); [x*y] is an expression to be written out with its value.
PROBLEMS = (
    ("{n} has {a} {packs} with {b} {items} in each.",
     "How many {items} does {n} have?",
     ("{n} has [{a}*{b}] {items}.",)),
    ("{n} buys {a} {items} for {b} dollars each.",
     "How many dollars does {n} pay?",
     ("{n} pays [{a}*{b}] dollars.",)),
    ("{n} has {a} {items}. {m} brings {b} more {items}.",
     "How many {items} are there?",
     ("There are [{a}+{b}] {items}.",)),
    ("{n} has {a} {packs} with {b} {items} in each. {m} brings {e} more {items}.",
     "How many {items} are there?",
     ("{n} has [{a}*{b}] {items}.", "There are [{ab}+{e}] {items}.")),
)


def pick(rand: Callable[[], float], options):
    """One of a sequence, uniformly, from one draw of `rand` (random.choice may change between Python versions)."""
    return options[int(rand() * len(options))]


def bucket(text: str) -> int:
    """0..9, who may use these words: 0-1 evals, 2-9 documents (sums: 2-4 are GSM8K train). Their order is ignored: "Ann
    is the boss of Tom." is also what documents say after "Tom is the worker ..."."""
    return zlib.crc32(" ".join(sorted(text.rstrip(".").split())).encode()) % 10


def new_world(rand) -> dict:
    """The cast of one document or item: three people and four differently coloured things; `known` holds its facts."""
    people, things = [], []
    names = list(NAMES)
    while len(people) < 3:
        people.append(names.pop(int(rand() * len(names))))
    while len(things) < 4:
        thing = (pick(rand, COLORS), pick(rand, THINGS))
        if all(thing[0] != c and thing[1] != t for c, t in things):
            things.append(thing)
    return {"people": people, "things": things, "known": {}}


def roles(rand, world: dict) -> dict:
    """Draws who and what a paragraph is about: template fields n, m (people), c t and d u (things), and the rest."""
    people, things = world["people"], world["things"]
    i, j = int(rand() * 3), int(rand() * 4)
    n, m = people[i], people[(i + 1 + int(rand() * 2)) % 3]
    (c, t), (d, u) = things[j], things[(j + 1 + int(rand() * 3)) % 4]
    role = {"n": n, "m": m, "she": NAMES[n], "She": NAMES[n].capitalize(), "c": c, "t": t, "d": d, "u": u}
    options = {"When": WHEN, "adj": ADJECTIVES, "box": BOXES, "items": ITEMS, "packs": PACKS}
    return role | {field: pick(rand, values) for field, values in options.items()}


def fact(rand, world: dict) -> list[str]:
    """Two sentences, the second following from the first; what a person or thing is stays fixed in one document."""
    while True:
        role, number = roles(rand, world), int(rand() * len(FACTS))
        _, _, fixed_for, context, target, values = FACTS[number]
        if bucket(context.format(k="", **role)) >= 2:
            break
    pair = filled(context, target, values, pick(rand, list(values)), role)
    if fixed_for:
        key = (number, *sorted(role[field] for field in fixed_for))
        pair = world["known"].setdefault(key, pair)
    return pair


def filled(context: str, target: str, values: dict, key: str, role: dict) -> list[str]:
    """A fact's two sentences for one of its keys."""
    k, v = key.format(**role), values[key].format(**role)
    return [context.format(k=k, **role), target.format(v=v, **role)]


def outing(role: dict, place: str) -> list[str]:
    """Seven sentences: who goes where with what, the four steps of that place, and the thing comes home again."""
    sentences = ["{When} {n} goes to the {place} with {m}.", "{She} takes the {c} {t} along."]
    for lead, step in zip(SCRIPT_LEAD, (*SCRIPTS[place], "brings back the {c} {t}"), strict=True):
        sentences.append(f"{lead} {{she}} {step}.")
    return [sentence.format(place=place, **role) for sentence in sentences]


def sum_problem(rand, world: dict, allowed: range) -> tuple[str, str, list[str]]:
    """A stem whose bucket is allowed, its question, and its worked lines with expressions still in brackets."""
    while True:
        role, (stem, question, lines) = roles(rand, world), pick(rand, PROBLEMS)
        for field in "abe":
            role[field] = 2 + int(rand() * 8)
        role["ab"] = role["a"] * role["b"]
        stem = stem.format(**role)
        if bucket(stem) in allowed:
            return stem, question.format(**role), [line.format(**role) for line in lines]


def work_out(line: str, write: Callable[[int, str, int, int], str]) -> str:
    """Replaces each bracketed expression of a worked line by write(x, sign, y, value)."""

    def replace(match: re.Match) -> str:
        x, sign, y = int(match[1]), match[2], int(match[3])
        return write(x, sign, y, {"*": x * y, "+": x + y}[sign])

    return re.sub(r"\[(\d+)([*+])(\d+)\]", replace, line)


def sums(rand, world: dict) -> list[str]:
    """A worked problem or a few bare sums; products in every spelling, some with operands the injector must skip."""

    def write(x, sign, y, value) -> str:
        u = rand()
        if sign == "+" or u < 0.75:
            return f"{x} {sign} {y} = {value}"
        spellings = f"{x} * {y}", f"{x}*{y}={value}", f"{x} × {y} = {value}", f"{x}*{y}"
        return spellings[int((u - 0.75) * 16)]

    if rand() < 0.6:
        stem, question, lines = sum_problem(rand, world, range(5, 10))
        sentences = [stem, question] if rand() < 0.5 else [stem]
        return sentences + [work_out(line, write) for line in lines]
    drill = []
    for _ in range(1 + int(rand() * 4)):
        x, y, u = 1 + int(rand() * 9), 1 + int(rand() * 9), rand()
        if u < 0.08:
            x += 10
        sign = "*" if u < 0.8 else "+"
        if u > 0.94:
            drill.append(f"{x} x {y} = {x * y}.")
        else:
            drill.append(work_out(f"[{x}{sign}{y}].", write))
    return drill


def document(seed: int, index: int) -> str:
    """Document `index` of `seed` (both >= 0): paragraphs of one world until a log-normal length is reached."""
    rand = random.Random(seed << 64 | index).random
    gauss = sum(rand() for _ in range(12)) - 6  # Irwin-Hall: near-normal with exact arithmetic on every platform
    left = CHARS_PER_TOKEN * MEDIAN_TOKENS * math.exp(SIGMA * gauss)
    world, paragraphs = new_world(rand), []
    while left > 0:
        u = rand()
        if left > 200 and u < 0.2:
            sentences = outing(roles(rand, world), pick(rand, list(SCRIPTS)))
            if bucket(sentences[0]) < 2:
                continue
        elif left > 60 and u < 0.75:
            sentences = [s for _ in range(1 + int(rand() * 3)) for s in fact(rand, world)]
        else:
            sentences = sums(rand, world)
        paragraphs.append(" ".join(sentences))
        left -= len(paragraphs[-1])
    return "\n".join(paragraphs)


def documents(seed: int = 0, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Documents start, start + 1, ... (up to `stop`, else without end); each depends on (seed, its number) alone."""
    if seed < 0 or start < 0:
        raise ValueError(f"seed {seed} and start {start} must be >= 0, as in documents(seed=0).")
    numbers = itertools.count(start) if stop is None else range(start, stop)
    return (document(seed, i) for i in numbers)


def distinct(rand, n: int, draw: Callable, text_of: Callable[[dict], str]) -> list[dict]:
    """n items of draw(rand) that differ in text_of(item); a draw of None is none. ValueError: this world has fewer."""
    items, seen, tries = [], set(), 0
    while len(items) < n:
        item = draw(rand)
        tries += 1
        if item is not None and text_of(item) not in seen:
            seen.add(text_of(item))
            items.append(item)
        elif tries > 1000 * (n + 10):
            raise ValueError(f"this world has only about {len(items)} such items, not {n}: ask for fewer.")
    return items


def hellaswag_items(n: int, seed: int = 0, split: str = "val") -> list[dict]:
    """n items with the fields of the real jsonl: an outing up to some step; which ending comes next? Wrong are the same
    step of other places (in every third item once another step of the right place) or, at the end, other things to
    bring back. Items 2k and 2k + 1 cut one story and share `source_id`."""
    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}: use 'train' or 'val'.")
    rand = random.Random(seed << 1 | (split == "val")).random

    def story(rand) -> tuple[str, list[str]] | None:
        place = pick(rand, list(SCRIPTS))
        sentences = outing(roles(rand, new_world(rand)), place)
        if bucket(sentences[0]) == ("val", "train").index(split):
            return place, sentences

    stories = distinct(rand, (n + 1) // 2, story, lambda story: story[1][0])
    items, shift = [], 0
    for number, (place, sentences) in enumerate(stories):
        she = sentences[1].split()[0].lower()
        first = int(rand() * 5)
        for cut in (first, (first + 1 + int(rand() * 4)) % 5):
            ctx_a, ctx_b = " ".join(sentences[: 2 + cut]), f"{SCRIPT_LEAD[cut]} {she}"
            endings = [sentences[2 + cut].removeprefix(ctx_b + " ")]
            if cut < 4 and rand() < 1 / 3:
                endings.append(SCRIPTS[place][(cut + 1 + int(rand() * 3)) % 4] + ".")
            while len(endings) < 4:
                if cut == 4:
                    other = f"brings back the {pick(rand, COLORS)} {pick(rand, THINGS)}."
                else:
                    other = SCRIPTS[pick(rand, list(SCRIPTS))][cut] + "."
                if other not in endings:
                    endings.append(other)
            if len(items) % 4 == 0:
                shift = int(rand() * 4)
            label = (len(items) + shift) % 4
            endings[0], endings[label] = endings[label], endings[0]
            items.append({
                "ind": len(items), "activity_label": f"Visiting the {place}", "ctx_a": ctx_a, "ctx_b": ctx_b,
                "ctx": f"{ctx_a} {ctx_b}", "split": split, "split_type": "indomain", "label": label,
                "endings": endings, "source_id": f"synthetic~{split}-{seed}-{number}"})
    return items[:n]


def ewok_items(n: int, seed: int = 0) -> list[dict]:
    """n minimal pairs with the columns of EWoK-core 1.0, its 11 domains in turn; T1 goes with C1, T2 with C2."""
    rand, turn = random.Random(seed).random, itertools.count()

    def pair(rand) -> dict:
        number = next(turn) % len(FACTS)
        domain, differs, _, context, target, values = FACTS[number]
        while True:
            role = roles(rand, new_world(rand))
            one, two = pick(rand, list(values)), pick(rand, list(values))
            if values[one] != values[two] and bucket(context.format(k="", **role)) < 2:
                break
        item = {"Domain": domain, "ConceptA": one.split()[0], "ConceptB": two.split()[0]}
        item["Context1"], item["Target1"] = filled(context, target, values, one, role)
        item["Context2"], item["Target2"] = filled(context, target, values, two, role)
        keys = "-".join(str(list(values).index(key)) for key in sorted((one, two)))
        swap = "variable swap" if domain == "social-interactions" else "concept swap"
        return item | {"TargetDiff": swap, "ContextDiff": differs, "ContextType": "direct",
                       "MetaTemplateID": str(number), "TemplateID": f"{number}-{keys}"}

    return distinct(rand, n, pair, lambda item: str(sorted((item["Context1"], item["Context2"]))))


def gsm8k_items(n: int, seed: int = 0, split: str = "train") -> list[dict]:
    """n problems {"question", "answer"} with GSM8K's `<<6*9=54>>54` notes and last line `#### 54`; disjoint splits."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}: use 'train' or 'test'.")
    allowed = range(0, 2) if split == "test" else range(2, 5)

    def write(x, sign, y, value) -> str:
        return f"{x} {sign} {y} = <<{x}{sign}{y}={value}>>{value}"

    def problem(rand) -> dict:
        stem, question, lines = sum_problem(rand, new_world(rand), allowed)
        lines = [work_out(line, write) for line in lines]
        result = re.findall(r">>(\d+)", lines[-1])[-1]
        return {"question": f"{stem} {question}", "answer": "\n".join(lines + [f"#### {result}"])}

    rand = random.Random(seed << 1 | (split == "test")).random
    return distinct(rand, n, problem, lambda item: item["question"])


# The columns of each zero-shot task's rows, made of a fact: its context c, question q, choices, the right one's number.
# WinoGrande's and HellaSwag's are made by themselves.
LETTERS = "ABCDE"
QUESTION = "What is true after that?"


def lettered(choices: list[str]) -> dict:
    return {"text": choices, "label": list(LETTERS[: len(choices)])}


ZEROSHOT = {  # task: (choices, columns)
    "piqa": (2, lambda c, choices, right: {
        "goal": c, "sol1": choices[0], "sol2": choices[1], "label": right}),
    "arc_easy": (4, lambda c, choices, right: {
        "question": f"{c} {QUESTION}", "choices": lettered(choices), "answerKey": LETTERS[right]}),
    "arc_challenge": (4, lambda c, choices, right: {
        "question": f"{QUESTION[:-1]} this: {c}", "choices": lettered(choices), "answerKey": LETTERS[right]}),
    "boolq": (2, lambda c, choices, right: {
        "passage": f"{c} {choices[0]}", "question": f"is it right that {choices[right].rstrip('.')}",
        "answer": right == 0}),
    "social_iqa": (3, lambda c, choices, right: {
        "context": c, "question": QUESTION, "answerA": choices[0], "answerB": choices[1],
        "answerC": choices[2], "label": str(right + 1)}),
    "commonsense_qa": (5, lambda c, choices, right: {
        "question": f"{c} {QUESTION}", "choices": lettered(choices), "answerKey": LETTERS[right]}),
    "openbookqa": (4, lambda c, choices, right: {
        "question_stem": c, "choices": lettered(choices), "answerKey": LETTERS[right]}),
}


def zeroshot_items(task: str, n: int, seed: int = 0) -> list[dict]:
    """n rows with the columns of a zero-shot task (lab/tasks.py); each answer is the right one equally often."""
    if task == "hellaswag":
        return hellaswag_items(n, seed)
    turn = itertools.count()
    rand = random.Random(seed << 8 | zlib.crc32(task.encode()) % 251).random

    def gap(rand) -> dict:
        role = roles(rand, new_world(rand))
        right, names = next(turn) % 2, [role["n"], role["m"]]
        if bucket(" ".join(names)) >= 2:
            return None
        n, m = names
        sentence = f"{n} gives the {role['c']} {role['t']} to {m}, so now _ has it."
        if pick(rand, (0, 1)):
            sentence, names = sentence.replace("gives", "takes").replace(" to ", " from "), [m, n]
        if right == 0:
            names.reverse()  # the second has it now
        return {"sentence": sentence, "option1": names[0], "option2": names[1], "answer": str(right + 1)}

    def row(rand) -> dict | None:
        k, columns = ZEROSHOT[task]
        _, _, _, context, target, values = pick(rand, FACTS)
        role, key = roles(rand, new_world(rand)), pick(rand, list(values))
        if bucket(context.format(k="", **role)) >= 2:
            return None
        first, follows = filled(context, target, values, key, role)
        others = [filled(context, target, values, other, role)[1] for other in values]
        others = [other for other in dict.fromkeys(others) if other != follows]
        if len(others) < k - 1:
            return None
        choices = [others.pop(int(rand() * len(others))) for _ in range(k - 1)]
        right = next(turn) % k
        choices.insert(right, follows)
        return columns(first, choices, right)

    return distinct(rand, n, gap if task == "winogrande" else row, str)


ITEM_MAKERS = {"hellaswag": hellaswag_items, "ewok": ewok_items, "gsm8k": gsm8k_items}
for _task in ("winogrande", *ZEROSHOT):
    ITEM_MAKERS[_task] = functools.partial(zeroshot_items, _task)


def main() -> None:
    parser = flags.Parser(
        prog="python -m lab.synthetic", description="Documents and eval items of the synthetic corpus.",
        epilog="example: python -m lab.synthetic --n 500 --kind hellaswag --out items.jsonl")
    add = parser.add_argument
    add("--kind", choices=("documents", *ITEM_MAKERS), default="documents", help="(documents)")
    add("--split", help="hellaswag: val (default) or train; gsm8k: train (default) or test")
    add("--n", type=int, default=3, help="how many documents or items, >= 0 (default 3)")
    add("--start", type=int, default=0, help="number of the first document, >= 0 (default 0)")
    add("--seed", type=int, default=0, help=">= 0 (default 0)")
    add("--out", help="jsonl file to write (default: off, print to stdout)")
    args = parser.parse_args()
    if min(args.n, args.start, args.seed) < 0:
        parser.error("--n, --start and --seed must be >= 0: drop the minus sign.")
    options = {"split": args.split} if args.split else {}
    if options and args.kind not in ("hellaswag", "gsm8k"):
        parser.error(f"--kind {args.kind} has no splits: drop --split.")
    if args.kind == "documents":
        rows = ({"text": text} for text in documents(args.seed, args.start, args.start + args.n))
    else:
        rows = ITEM_MAKERS[args.kind](args.n, args.seed, **options)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if args.out is None:
        if args.kind == "documents":
            lines = (row["text"] + "\n\n" for row in rows)
        sys.stdout.writelines(lines)
        return
    try:
        with disk.replacing(args.out) as f:
            f.writelines(line.encode() for line in lines)
    except OSError as error:
        raise ValueError(f"cannot write {args.out} ({error.strerror}): choose another --out.") from None
    print(f"wrote {args.n} {args.kind} to {args.out}")


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "synthetic.py")
