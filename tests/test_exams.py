"""lab/exams.py and the command line of the benchmarks: interrupted exams, who holds them, what is stored."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import ENV, REPO, write_jsonl
from fake_model import small

import eval_gsm8k
import ewok
import hellaswag
from lab import benchmarks, disk, exams, inference, processes, runs, synthetic


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint, of step 20."""
    folder = tmp_path / "run"
    (folder / "ckpt").mkdir(parents=True)
    runs.save_checkpoint(folder, 20, small(block_size=512).save, 0, 0)
    return folder


def flags(run, *more, data="synthetic:24"):
    return ["--checkpoint", str(run), "--data", data, "--device", "cpu", "--batch_size", "4", *map(str, more)]


class Stops:
    """Stands for StopRequest: asked for the first time before batch number `batch`."""

    def __init__(self, batch):
        self.left = batch

    def __call__(self, promise):
        return self

    @property
    def asked(self):
        self.left -= 1
        return self.left < 0

    def restore(self):
        pass


def count_batches(patch):
    calls, compute = [], inference._forward_trees
    patch.setattr(inference, "_forward_trees", lambda *args: calls.append(args) or compute(*args))
    return calls


def stop_at(monkeypatch, benchmark, argv, batch):
    with monkeypatch.context() as patch:
        patch.setattr(processes, "StopRequest", Stops(batch))
        with pytest.raises(KeyboardInterrupt) as caught:
            benchmark.main(argv)
    return str(caught.value)


@pytest.mark.parametrize("benchmark", [hellaswag, ewok])
def test_interrupted_twice(run, tmp_path, monkeypatch, capsys, benchmark):
    """Every score: an exam that is stopped twice and continued writes the bytes of an unbroken one, and no batch is
    computed twice. Lines that are torn or altered on disk, and those of other settings, are not taken over."""
    name = benchmark.NAME
    whole, out = tmp_path / "whole", tmp_path / "out"
    with monkeypatch.context() as patch:
        total = count_batches(patch)
        benchmark.main(flags(run, "--out", whole))
    assert len(total) == 12  # 48 contexts, 4 at a time
    assert stop_at(monkeypatch, benchmark, flags(run, "--out", out), 5) == (
        "stopped; run the same command again to go on.")
    [partial] = out.rglob("*.jsonl")
    assert [path.name for path in out.iterdir()] == [f"{name}_partial_000020"] == [partial.parent.name]
    lines = partial.read_text().split("\n")
    assert len([line for line in lines if line]) == 5 * 4
    changed = json.loads(lines[1])
    changed["sums"][0] += 1
    torn = "\n".join([json.dumps(changed), *lines[2:-1], lines[2][:30]])
    partial.write_text(torn)  # one question of the first batch is lost
    stop_at(monkeypatch, benchmark, flags(run, "--out", out), 3)
    with monkeypatch.context() as patch:
        rest = count_batches(patch)
        benchmark.main(flags(run, "--out", out))
    assert len(rest) == 12 - 5 - 3 + 1
    assert "continuing an interrupted exam: 28 questions are done" in capsys.readouterr().err
    items = f"{name}_items.jsonl"
    assert (out / items).read_bytes() == (whole / items).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    stop_at(monkeypatch, benchmark, flags(run, "--out", out), 5)
    for change in (["--bos", "off"], ["--resume", "off"]):
        with monkeypatch.context() as patch:
            again = count_batches(patch)
            benchmark.main(flags(run, "--out", out, *change))
        assert len(again) == 12


def test_interrupted_probes(run, tmp_path, monkeypatch):
    """Every probe's score: an exam stopped among its probes repeats none of them, and gives the same bytes."""
    argv = flags(run, "--max_new_tokens", "2", "--batch_size", "32", "--max_examples", "4")
    eval_gsm8k.main([*argv, "--out", str(tmp_path / "whole")])
    out = tmp_path / "out"
    stop_at(monkeypatch, eval_gsm8k, [*argv, "--out", str(out)], 6)
    asked, score = [], inference.score_endings

    def count(model, trees):
        asked.extend(trees)
        return score(model, trees)

    monkeypatch.setattr(inference, "score_endings", count)
    eval_gsm8k.main([*argv, "--out", str(out)])
    assert len(asked) == 562 - 5 * 64
    for name in ("gsm8k_completions.jsonl", "probes.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((out / "gsm8k_results.json").read_text())["resumed"] == 4


def test_interrupted_ewok_keeps_no_text(run, tmp_path, monkeypatch):
    """EWoK's terms: what an interrupted exam leaves holds ids and numbers."""
    stop_at(monkeypatch, ewok, flags(run, "--out", tmp_path / "out"), 6)
    [partial] = (tmp_path / "out").rglob("*.jsonl")
    words = set(re.findall("[a-z]{4,}", " ".join(item["Context1"] for item in ewok.load("synthetic:24"))))
    assert len(words) > 20 and not words & set(re.findall(r"(?<=[ \"])[a-z]{4,}(?=[ .\"])", partial.read_text())) - {
        "check", "sums"}


def test_no_two_of_the_same_exam(run, tmp_path):
    """gsm8k_results.json and the records: a second exam of the same name in a folder says who holds it; another
    benchmark, and another step, go on; and the second does once the first has ended."""
    gsm8k = ["--max_new_tokens", "2", "--probes", "off"]
    exams_of_the_run = {"gsm8k_partial": (eval_gsm8k.main, gsm8k), "hellaswag_partial_000020": (hellaswag.main, [])}
    for name, (main, more) in exams_of_the_run.items():
        with disk.hold(run / name):
            with pytest.raises(ValueError, match=rf"{name} is held by process {os.getpid()} on .* since \d.*: wait"):
                main(flags(run, *more))
            ewok.main(flags(run))
        assert not (run / name).exists()
        main(flags(run, *more))
    assert json.loads((run / "gsm8k_results.json").read_text())["total"] == 24
    assert len(runs.read_jsonl(run / "hellaswag_items.jsonl")) == len(runs.read_jsonl(run / "ewok_items.jsonl")) == 24
    assert json.loads((run / "step_metrics.json").read_text())["20"].keys() >= {"hellaswag_accuracy", "eval_full_sum"}


def write_scores(folder, name, first):
    """One scorer of ten steps of a run."""
    for step in range(first, 20, 2):
        result = {"metrics": {"x": 1.0}, "items": [{"id": "a"}, {"id": "b"}]}
        benchmarks.write_records(name, [(f"{name}_x",)], folder, step, result, "now")


def test_scorers_beside_each_other(tmp_path):
    """Scores and item lines that are lost when four commands score one run at once: 0."""
    context = torch.multiprocessing.get_context("fork")
    scorers = [(name, first) for name in ("hellaswag", "ewok") for first in (0, 1)]
    workers = [context.Process(target=write_scores, args=(tmp_path, *scorer)) for scorer in scorers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    table = json.loads((tmp_path / "step_metrics.json").read_text())
    assert table == {str(step): {"hellaswag_x": 1.0, "ewok_x": 1.0} for step in range(20)}
    for name in ("hellaswag", "ewok"):
        assert len(runs.read_jsonl(tmp_path / f"{name}_items.jsonl")) == 40
        assert sorted(line["step"] for line in runs.read_jsonl(tmp_path / f"{name}_metrics.jsonl")) == list(range(20))


def test_what_is_stored(run, tmp_path, capsys):
    """The run's records: a command stores into the run; --no_store nowhere; a try of fewer items, or of synthetic ones
    beside official ones, does not take a fuller record's place unless --out says so."""
    before = sorted(run.rglob("*"))
    for main, more in ((hellaswag.main, []), (ewok.main, []), (eval_gsm8k.main, ["--max_new_tokens", "2"])):
        main(flags(run, "--no_store", *more, *["--probes", "off"] * (main is eval_gsm8k.main)))
    assert sorted(run.rglob("*")) == before and "records" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        hellaswag.main(flags(run, "--no_store", "--out", tmp_path))

    def stored():
        [record] = runs.read_jsonl(run / "hellaswag_metrics.jsonl")
        return record["n"], record["title"]

    hellaswag.main(flags(run))
    assert stored() == (24, "HellaSwag (synthetic, 24 items)") and f"are in {run}" in capsys.readouterr().out
    hellaswag.main(flags(run, "--max_examples", "8"))
    assert stored()[0] == 24 and f"of HellaSwag (synthetic, 24 items); pass --out {run}" in capsys.readouterr().out
    hellaswag.main(flags(run, "--text", "lm_eval"))
    assert stored()[0] == 24 and "not stored" in capsys.readouterr().out
    official = write_jsonl(tmp_path / "val.jsonl", synthetic.hellaswag_items(6))
    hellaswag.main(flags(run, data=str(official)))
    assert stored() == (6, "HellaSwag (6 of 10,042 items)")
    hellaswag.main(flags(run))
    assert stored()[0] == 6
    hellaswag.main(flags(run, "--out", run))
    assert stored()[0] == 24


def test_skip_long(tmp_path, capsys):
    """n and accuracy of a model whose block is short: items that do not fit are left out, counted and named; without
    the flag they are refused, by a sentence that names it."""
    rows = synthetic.hellaswag_items(6)
    rows[2]["endings"][1] = "word " * 40
    data = write_jsonl(tmp_path / "items.jsonl", rows)
    small(block_size=32).save(tmp_path / "model")
    argv = flags(tmp_path / "model", data=str(data))
    with pytest.raises(ValueError, match=r"1 of 6 items .*block_size of 32 .*--skip_long\.$"):
        hellaswag.main(argv)
    hellaswag.main([*argv, "--skip_long"])
    [record] = runs.read_jsonl(tmp_path / "model" / "hellaswag_metrics.jsonl")
    items = hellaswag.load(data)
    long = items.pop(2)["id"]
    assert (record["n"], record["skipped"], record["skipped_ids"]) == (5, 1, [long])
    assert record["accuracy"] == hellaswag.evaluate(small(block_size=32), items, batch_size=4)["metrics"]["accuracy"]
    assert "HellaSwag (5 of 10,042 items)" in capsys.readouterr().out
    small(block_size=4).save(tmp_path / "short")
    with pytest.raises(ValueError, match="6 of 6 items"):
        hellaswag.main([*flags(tmp_path / "short", data=str(data)), "--skip_long"])
    rows = [{"question": "word " * n, "answer": "#### 1"} for n in (5, 500)]
    data = write_jsonl(tmp_path / "q.jsonl", rows)
    eval_gsm8k.main(flags(tmp_path / "model", "--skip_long", "--probes", "off", data=str(data)))
    result = json.loads((tmp_path / "model" / "gsm8k_results.json").read_text())
    assert (result["total"], result["skipped"], result["too_long"]) == (1, 1, 0) and len(result["skipped_ids"]) == 1


def as_rank(rank, world_size, folder):
    """One process of a gloo group: what it says of items that are too long, and a stopped and continued exam."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size,
                                         timeout=timedelta(seconds=120))
    procs = processes.Processes(rank, rank, world_size, torch.device("cpu"))
    items = hellaswag.load("synthetic:10")
    sentences, results = [], []
    try:
        hellaswag.evaluate(small(block_size=4), items, procs)
    except processes.SharedError as error:
        sentences.append(str(error))
    for batch in (2, 99):
        processes.StopRequest = Stops(batch)
        try:
            with exams.unfinished(procs, Path(folder) / "out", "x_partial", "settings") as work:
                result = hellaswag.evaluate(small(), items, procs, batch_size=2, stop=work.stop, work=work)
                results.append([len(work.done), result and result["items"]])
                if result is None:
                    raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            sentences.append(str(interrupt))
    (Path(folder) / f"{rank}.json").write_text(json.dumps([sentences, results]))
    procs.close()


def test_ranks(tmp_path):
    """On two ranks: the refused items are counted over both, and what both have done is taken over."""
    method = "fork" if sys.platform.startswith("linux") else "spawn"
    context = torch.multiprocessing.get_context(method)
    workers = [context.Process(target=as_rank, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    items = hellaswag.load("synthetic:10")
    with pytest.raises(ValueError) as alone:
        hellaswag.check_length(items, 4)
    sentences, [first, second] = seen[0]
    assert sentences == [str(alone.value), "stopped; run the same command again to go on."] and seen[0] == seen[1]
    assert first == [0, None] and second[0] == 8  # 2 ranks x 2 batches of 2 contexts
    assert [record["id"] for record in second[1]] == [item["id"] for item in items]
    assert not (tmp_path / "out" / "x_partial").exists()


@pytest.mark.slow
def test_ctrl_c_from_the_shell(run, tmp_path):
    """ctrl-C: what happens is said at once, exit status 130, nothing half-written; the same command goes on and writes
    the bytes of an unbroken one."""
    command = [sys.executable, str(REPO / "hellaswag.py"), *flags(run, "--batch_size", 1, data="synthetic:300")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV)
    partial = run / "hellaswag_partial_000020" / "rank0000.jsonl"
    while not (partial.exists() and partial.stat().st_size) and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it holds the folder while the second starts
    second = subprocess.run(command, capture_output=True, text=True, env=ENV)
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    errors = first.communicate(timeout=200)[1]
    assert second.returncode == 1 and f"is held by process {first.pid} on" in second.stderr
    assert first.returncode == 130 and "ctrl-C: the batch is finished, what is done is kept; ctrl-C again" in errors
    assert errors.endswith("hellaswag.py: stopped; run the same command again to go on.\n")
    assert "Traceback" not in errors + second.stderr and not (run / "hellaswag_items.jsonl").exists()
    third = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert third.returncode == 0 and "continuing an interrupted exam" in third.stderr and not partial.parent.exists()
    hellaswag.main(flags(run, "--batch_size", 1, "--out", tmp_path / "whole", data="synthetic:300"))
    name = "hellaswag_items.jsonl"
    assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("benchmark", [ewok, eval_gsm8k])
def test_quiet_hub(monkeypatch, capfd, benchmark):
    """Lines before our sentence when the hub cannot be reached: none of the library's retries."""
    import datasets

    logger = logging.getLogger("huggingface_hub.utils._http")
    before = logger.isEnabledFor(logging.WARNING)

    def fail(*args, **kwargs):
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="cannot be read from the .*hub"):
        benchmark.load()
    assert capfd.readouterr().err == ""
    assert logger.isEnabledFor(logging.WARNING) == before  # as it was: the code silences for its own call alone


def test_bar(run, monkeypatch, capsys):
    """The bar counts to the end and begins where the exam before had stopped."""
    bars, make = [], benchmarks.tqdm

    def keep(**settings):
        bars.append(make(**settings | {"disable": False, "leave": True}))
        return bars[-1]

    monkeypatch.setattr(benchmarks, "tqdm", keep)
    stop_at(monkeypatch, hellaswag, flags(run), 3)
    hellaswag.main(flags(run))
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 12, 48), (12, 48, 48)]
