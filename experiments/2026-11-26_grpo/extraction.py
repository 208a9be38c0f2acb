"""Answers where the rules differ: ours (lab/answers.py), lm-evaluation-harness' and nanochat's; who is right?

    python experiments/2026-11-26_grpo/extraction.py            # prints extraction.md

The other rules are written here from what their projects publish, lm_eval/tasks/gsm8k/gsm8k.yaml version 3.0 (its two
filters and what its exact_match ignores) and nanochat's tasks/gsm8k.py; tests/test_policy.py compares them with lm_eval
where that is installed. "Right" is what a human reader would say of the completion when the answer is `gold`.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from inject_mul import MulExpressionInjector  # noqa: E402
from lab import answers, rewards  # noqa: E402

HARNESS_STRICT = r"#### (\-?[0-9\.\,]+)"
HARNESS_FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
HARNESS_IGNORES = (",", r"\$", r"(?s).*#### ", r"\.$")
NANOCHAT = r"#### (\-?[0-9\.\,]+)"


def harness(text: str, gold: str, pattern: str, which: int) -> bool:
    """RegexFilter with group_select, then exact_match with regexes_to_ignore."""
    found, said = re.findall(pattern, text), "[invalid]"
    if found:
        said = found[which]
        if isinstance(said, tuple):
            said = next((group for group in said if group), "[invalid]")
    said, wanted = said.strip(), f"#### {gold}"
    for ignored in HARNESS_IGNORES:
        said, wanted = re.sub(ignored, "", said), re.sub(ignored, "", wanted)
    return said.lower() == wanted.lower()


def nanochat(text: str, gold: str) -> bool:
    """extract_answer of the completion and of the reference, compared as strings."""
    numbers = []
    for one in (text, f"#### {gold}"):
        match = re.search(NANOCHAT, one)
        numbers.append(match[1].strip().replace(",", "") if match else None)
    return numbers[0] == numbers[1]


def ours(text: str, gold: str, rule: str) -> bool:
    expanded = MulExpressionInjector().expand(text)
    return answers.extract_answer(expanded, rule) == answers.gold_answer(f"#### {gold}")


def reward(text: str, gold: str) -> bool:
    expanded = MulExpressionInjector().expand(text.partition(answers.USER)[0])
    return rewards.is_right(rewards.Attempt(expanded, True, answers.gold_answer(f"#### {gold}")))


RULES: dict[str, Callable[[str, str], bool]] = {
    "ours, strict": lambda text, gold: ours(text, gold, "strict"),
    "ours, reward": reward,
    "ours, flexible": lambda text, gold: ours(text, gold, "flexible"),
    "harness, strict": lambda text, gold: harness(text, gold, HARNESS_STRICT, 0),
    "harness, flexible": lambda text, gold: harness(text, gold, HARNESS_FLEXIBLE, -1),
    "nanochat": nanochat,
}
# (completion, gold, whether a human calls it right, why)
CASES = [
    ("#### 18", "18", True, "the plain case"),
    ("#### 18.00", "18", True, "the same number"),
    ("#### 18.0", "18", True, "the same number"),
    ("#### 18.", "18", True, "a full stop"),
    ("#### 18.\nShe has 18.", "18", True, "a full stop, then a sentence"),
    ("#### $18", "18", True, "a currency"),
    ("#### $ 18", "18", True, "a currency and a space"),
    ("#### £18", "18", True, "another currency"),
    ("#### -$18", "-18", True, "sign before the currency"),
    ("#### −18", "-18", True, "a typographic minus"),
    ("#### +18", "18", True, "a plus"),
    ("####18", "18", True, "no space after the mark"),
    ("####  18", "18", True, "two spaces"),
    ("##### 18", "18", True, "five #"),
    ("#### 1,800", "1800", True, "commas"),
    ("#### 1{,}800", "1800", True, "LaTeX's comma"),
    ("#### 1e3", "1000", True, "an exponent"),
    ("#### 0.5", ".5", True, "a leading zero"),
    ("#### 1/2", "0.5", True, "a fraction"),
    ("#### 2 1/2", "2.5", True, "a mixed number"),
    ("#### 18 apples", "18", True, "a unit"),
    ("#### 18%", "18", True, "a percentage"),
    ("#### **18**", "18", True, "bold"),
    ("#### The answer is 18", "18", True, "words before the number"),
    ("#### 2*9=18", "18", True, "the sum once more, with its result"),
    ("#### <MUL_2_9_18>", "18", True, "one token for 2*9=18"),
    ("#### 18\n\nCheck: 18 - 3 = 15.", "18", True, "a check follows"),
    ("#### 18\nUser: And 5?\nAssistant: #### 5", "18", True, "a new question follows, which nobody asked"),
    ("#### #### 18", "18", True, "the mark twice"),
    ("#### 18 for 3 people", "18", True, "another number in the same line, of something else"),
    ("She has 18.", "18", True, "an answer without the mark"),
    ("So 18 is left, of 20.", "18", True, "an answer without the mark, another number last"),
    ("#### 18, 19 or 20", "18", False, "three answers"),
    ("#### 18 or 19", "18", False, "two answers"),
    ("#### 18\n#### 19", "18", False, "two answers, two marks"),
    ("#### 19\n#### 18", "18", False, "two answers, two marks"),
    ("#### 18 and 19", "18", False, "two answers"),
    ("#### 18 and a half", "18", False, "eighteen and a half"),
    ("#### 18½", "18", False, "eighteen and a half"),
    ("#### 18 million", "18", False, "another number"),
    ("#### 18k", "18", False, "another number"),
    ("#### 18*2", "18", False, "a sum that was not worked out"),
    ("#### 18-3", "18", False, "a sum that was not worked out"),
    ("#### 18:30", "18", False, "a time"),
    ("#### 18/3", "18", False, "6"),
    ("#### 1.8e1", "1.8", False, "18"),
    ("#### 1,8", "18", False, "a decimal comma: 1.8"),
    ("#### 1.800,5", "1.8", False, "a decimal comma: 1800.5"),
    ("#### 1,80,0", "1800", False, "no number"),
    ("#### 18.5.2", "18.5", False, "no number"),
    ("#### 5 feet 3 inches", "5", False, "two numbers of one answer"),
    ("#### <MUL_2_9_19>", "19", False, "no such token: its digits are no answer"),
    ("<MUL_2_9_18>", "18", False, "a product, not said to be the answer"),
    ("I cannot tell, perhaps 18", "18", False, "a guess, not an answer"),
    ("", "18", False, "nothing"),
]


def table() -> str:
    names = list(RULES)
    lines = [f"| completion | gold | right? | {' | '.join(names)} | |", f"|---|---|---|{'---|' * len(names)}---|"]
    agree, differing = dict.fromkeys(names, 0), 0
    for text, gold, right, why in CASES:
        said = {name: rule(text, gold) for name, rule in RULES.items()}
        differing += len(set(said.values())) > 1
        cells = []
        for name, value in said.items():
            agree[name] += value == right
            word = "right" if value else "wrong"
            cells.append(word if value == right else f"**{word}**")
        shown = text.replace("|", "\\|").replace("\n", " ⏎ ") or " "
        word = "yes" if right else "no"
        lines.append(f"| `{shown}` | {gold} | {word} | {' | '.join(cells)} | {why} |")
    counts = ", ".join(f"{name} {count}" for name, count in agree.items())
    head = (f"{len(CASES)} answers, in {differing} of which the rules differ. Of {len(CASES)} a rule says what a human "
            f"says in: {counts}. Bold: it does not.")
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    print(table())
