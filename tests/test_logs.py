"""Other projects' logs: every number of theirs, and never more than they hold."""

import json
import math
import zlib

import pytest
from conftest import make_run

import compare_runs
from lab import logs

NANOGPT = """\
number of parameters: 2.47M
step 0: train loss 10.9, val loss 10.8
iter 0: loss 10.85, time 12.34ms, mfu -100.00%
iter 10: loss 8.5, time 12.34ms, mfu 30.02%
step 20: train loss 6.25, val loss 6.5
saving checkpoint to out
iter 20: loss 6.0, time 12.34ms, mfu 30.02%
"""
BUILD = "0 val 10.8\n0 hella 0.2463\n0 train 10.9\n1 train 9.0\n20 val 6.0\n20 hella 0.2512\n20 train 5.5\n"
LOGS = {  # name: (text, val losses, train losses, HellaSwag)
    "nanoGPT": (NANOGPT, {0: 10.8, 20: 6.5}, {0: 10.85, 10: 8.5, 20: 6.0}, {}),
    "build-nanogpt": (BUILD, {0: 10.8, 20: 6.0}, {0: 10.9, 1: 9.0, 20: 5.5}, {0: 0.2463, 20: 0.2512}),
    "build-nanogpt's terminal": (
        "validation loss: 6.0\nstep    20 | loss: 5.5 | lr 6.0000e-04 | norm: 0.25 | dt: 340.00ms | tok/sec: 1540000.00"
        "\n", {}, {20: 5.5}, {}),
    "modded-nanogpt": (
        'print0(f"step:{step}/{n} val_loss:{val_loss:.4f}")\nstep:0/20 val_loss:10.8 train_time:0ms step_avg:nanms\n'
        "step:1/20 train_loss:9.5 train_time:24389ms step_avg:nanms\nstep:2/20 train_time:30ms step_avg:nanms\n"
        "step:20/20 val_loss:3.2799 train_time:135004ms step_avg:60.68ms\n", {0: 10.8, 20: 3.2799}, {1: 9.5}, {}),
    "llm.c": ("s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:0 eval:0.2512\ns:20 tel:3.2722\n",
              {0: 11.0092, 20: 3.2722}, {0: 11.0091}, {0: 0.2512}),
}


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("project", LOGS)
def test_logs(tmp_path, project, encoding):
    """Every number of a project's log at its step, from Windows, too, and none that the log lacks."""
    text, val, train, hella = LOGS[project]
    run = logs.read_log(written(tmp_path / "log.txt", text.replace("\n", "\r\n"), encoding))
    assert {step: record["val_loss"] for step, record in run["val"].items()} == val
    assert dict(zip(run["train"]["step"], run["train"]["train_loss_opt_step_mean"], strict=True)) == train
    scores = run["benchmarks"].get("hellaswag", {})
    assert {step: record["accuracy_norm"] for step, record in scores.items()} == hella
    assert project in run["log"] and run["summary"]["steps"] == max([*val, *train])
    if val:
        assert run["summary"]["results_row"]["final_val_loss"] == list(val.values())[-1]
    if project == "build-nanogpt's terminal":
        assert run["train"]["tokens_per_sec"] == [1540000.0] and run["train"]["grad_norm_l2_preclip"] == [0.25]


def test_log_of_torchrun(tmp_path):
    """Lines with their rank in front count like others."""
    text = "".join(f"[rank0]: {line}\n" for line in NANOGPT.splitlines())
    run = logs.read_log(written(tmp_path / "log.txt", text))
    assert list(run["val"]) == [0, 20] and run["train"]["step"].tolist() == [0, 10, 20]


def test_log_that_starts_again(tmp_path):
    """A resume from step 10 replaces what came behind it; a new run in the same file replaces all. Both are said."""
    resumed = NANOGPT + "step 10: train loss 9, val loss 9.5\niter 10: loss 8.25, time 1ms, mfu 1%\n"
    run = logs.read_log(written(tmp_path / "a.log", resumed))
    assert list(run["val"]) == [0, 10] and run["train"]["train_loss_opt_step_mean"].tolist() == [10.85, 8.25]
    assert "starts again 1 times (at step 10)" in run["log"]
    run = logs.read_log(written(tmp_path / "b.log", NANOGPT + "step 0: train loss 3, val loss 3.5\n"))
    assert list(run["val"]) == [0] and run["summary"]["results_row"] == {"final_val_loss": 3.5, "best_val_loss": 3.5}


def test_log_that_diverged(tmp_path):
    """A loss of nan is no number, not a smaller one."""
    run = logs.read_log(written(tmp_path / "a.log", NANOGPT + "step 40: train loss nan, val loss nan\n"))
    assert math.isnan(run["val"][40]["val_loss"]) and run["summary"]["steps"] == 40


def test_long_logs_are_quick(tmp_path):
    """50,000 lines, of the 600,000 that nanoGPT prints for GPT-2: a second or two, not the square of it."""
    text = "".join(f"iter {i}: loss 3.1, time 12.34ms, mfu 30.02%\n" for i in range(50_000))
    assert len(logs.read_log(written(tmp_path / "a.log", text))["train"]["step"]) == 50_000


def compared(tmp_path, *flags):
    code = compare_runs.main([*map(str, flags), "--out", str(tmp_path / "report"), "--print", "full"])
    return code, json.loads((tmp_path / "report" / "report.json").read_text())


def test_logs_are_not_comparable(tmp_path, capsys):
    """Two logs: curves and final losses, but settings are not recorded, which is never equal, and one seed no claim."""
    flags = ("--a", written(tmp_path / "a.txt", NANOGPT), "--b", written(tmp_path / "b.txt", BUILD))
    code, record = compared(tmp_path, *flags)
    text = capsys.readouterr().out
    assert code == 2 and record["verdict"] == "not comparable" and "not recorded" in record["headline"]
    assert "| 6.5000 | 6.0000 | -0.5000 |" in text and "seeds unknown" in text and "Equal in every run" not in text
    assert (tmp_path / "report" / "loss_curves.png").exists()
    code, record = compared(tmp_path, *flags, "--allow", "unrecorded,seed")
    assert code == 0 and record["verdict"] == "n = 1: too few"


def test_a_log_beside_runs(tmp_path, capsys):
    """A log as a newcomer in our arm's company: its loss stands there, and nothing of it counts as equal."""
    for seed in range(2):
        make_run(tmp_path / f"ours_s{seed}", seed)
    path = written(tmp_path / "b.txt", BUILD)
    code, record = compared(tmp_path, "--a", tmp_path / "ours_s*", "--b", path, "--no_items")
    assert code == 2 and "unrecorded" in record["headline"] and record["gate"]["equal"] == {}
    assert "micro_batch_size differs (4 / not recorded)" in capsys.readouterr().out


def test_speeds_in_logs(tmp_path, capsys):
    """Tokens per second of machines that nobody recorded are not compared."""
    text = LOGS["build-nanogpt's terminal"][0]
    paths = [written(tmp_path / f"{i}.txt", text.replace("1540000", f"{i}540000")) for i in (1, 2)]
    compare_runs.main(["--a", str(paths[0]), "--b", str(paths[1])])
    assert "| 1,540,000 | 2,540,000 | +1,000,000 | N/A: other hardware" in capsys.readouterr().out


def test_a_log_in_the_band_of_runs(tmp_path, capsys):
    """--check takes a log; its loss is far outside, and that it is comparable nobody knows."""
    for seed in range(4):
        make_run(tmp_path / f"ours_s{seed}", seed)
    path = written(tmp_path / "b.txt", BUILD.replace("20 ", "50 "))
    code, record = compared(tmp_path, "--check", path, "--against", tmp_path / "ours_s*")
    assert code == 2 and "unrecorded (" in record["headline"]


def test_many_logs(tmp_path, capsys):
    """A glob of logs gives an arm each, with its final loss; the same file copied is one run, not two seeds."""
    written(tmp_path / "a.txt", NANOGPT)
    written(tmp_path / "b.txt", BUILD)
    arms = ("--runs", tmp_path / "*.txt", "--group_by", "run_id")
    code, record = compared(tmp_path, *arms, "--allow", "unrecorded,seed")
    assert code == 0 and [arm["losses"] for arm in record["arms"]] == [[6.5], [6.0]]
    copies = [written(tmp_path / f"copy{i}.log", NANOGPT) for i in range(2)]
    code, record = compared(tmp_path, "--a", *copies, "--b", tmp_path / "b.txt", "--allow", "unrecorded,seed")
    assert record["seeds_used"][0] == [-1 - zlib.crc32(NANOGPT.encode())]


@pytest.mark.parametrize("content, said", [(b"hello", "is no log of nanoGPT, build-nanogpt"), (b"", "is no log of")])
def test_other_files_are_no_logs(tmp_path, content, said):
    """A file that no reader knows is one sentence."""
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        compare_runs.main(["--a", str(tmp_path / "x.txt"), "--b", str(tmp_path / "x.txt")])
