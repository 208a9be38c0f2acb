"""results.csv: a row per started run, whatever became of it, and rows that somebody took out."""

import csv
import json
import struct

import numpy as np
import pytest
from conftest import make_run
from test_compare_runs import GATE, NOISE_A, NOISE_B, compare, csv_of, many, rewrite
from test_train import data, train_gpt_main  # noqa: F401 (a fixture)

from lab import processes, results, runs, shards, token_files

GROUP = ("--group_by", "attn_gate", "--baseline", "attn_gate=none")


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


# ----------------------------------------------------------------------------------------------------------------------
# the trainer


def test_a_row_per_started_run(data, tmp_path):  # noqa: F811
    """Finished, diverged, stopped and killed runs: five starts, five rows in the order of the starts, each rewritten in
    place; a resume has the row that its start had."""
    table = tmp_path / "results.csv"
    flags = ("--max_train_steps", 2, "--eval_every", 0, "--results_csv", table)
    train_gpt_main(data, tmp_path / "runs" / "a", *flags)
    diverging = ("--learning_rate", 1e30, "--grad_clip", 0, "--warmup_iters", 0, "--max_train_steps", 8)
    with pytest.raises(ValueError, match="not finite"):
        train_gpt_main(data, tmp_path / "runs" / "b", *flags[2:], *diverging, "--save_every", 1)
    train_gpt_main(data, tmp_path / "runs" / "c", *flags)
    rows = rows_of(table)
    assert [(row["run_id"], row["status"], row["number"]) for row in rows] == [
        ("a", "finished", "1"), ("b", "diverged", "2"), ("c", "finished", "3")]
    assert [row["final_train_loss"] != "" for row in rows] == [True, False, True]
    assert [row["folder"] for row in rows] == ["runs/a", "runs/b", "runs/c"] and rows[1]["learning_rate"] == "1e+30"
    before = rows
    (tmp_path / "runs" / "c" / "summary.json").unlink()
    train_gpt_main(data, tmp_path / "runs" / "c", *flags, "--resume", "auto")
    assert rows_of(table) == before
    with pytest.raises(ValueError, match="already exists"):  # the row of the run in that folder stays as it is
        train_gpt_main(data, tmp_path / "runs" / "a", *flags)
    assert rows_of(table) == before


def test_whole_numbers_that_a_spreadsheet_wrote_as_1_0(tmp_path):
    """Of a table whose every number has become 1.0: the next run has the next number, a run that is written again keeps
    its row, a deleted row is missed, and the runs of a copy are the same runs."""
    path, other = tmp_path / "results.csv", tmp_path / "other.csv"
    known = {"final_val_loss": 3.5, "learning_rate": 0.001, "date": "2026-11-21", "num_iterations": 40}
    for seed in range(3):
        results.append_result(path, {"run_id": f"r{seed}", "started": f"{seed}", "seed": seed, **known})
    whole = rows_of(path)
    saved = [{**row, **{name: f"{row[name]}.0" for name in ("number", "seed", "num_iterations")}} for row in whole]
    for table, rows in ((path, saved), (other, whole)):
        with open(table, "w", newline="") as f:
            writer = csv.DictWriter(f, whole[0])
            writer.writeheader()
            writer.writerows(rows)
    results.append_result(path, {"run_id": "r3", "started": "3", "seed": 3, **known})
    assert [row["number"] for row in rows_of(path)] == ["1.0", "2.0", "3.0", "4"]
    results.append_result(path, {"run_id": "r1", "seed": 1, "notes": "again", **known})
    assert [row["notes"] for row in rows_of(path)] == ["", "again", "", ""]
    read = results.read_results(path)
    assert results.missing_numbers([[read[0], read[2], read[3]]]) == [2]
    assert read[0] == results.read_results(other)[0] and read[0]["learning_rate"] == "0.001"
    assert [results.whole(cell) for cell in ("12.0", "-3.", "1.50", "3", "1e3", "", "x.0")] == [
        "12", "-3", "1.50", "3", "1e3", "", "x.0"]


def test_how_a_row_ends(tmp_path):
    """Started; then crashed, diverged or stopped, by the exception or as the trainer says; a killed process leaves
    "started"."""
    path = tmp_path / "results.csv"
    ends = [(ValueError, "crashed"), (KeyboardInterrupt, "stopped"), (SystemExit, "crashed")]
    for error, status in [*ends, (processes.DivergedError, "diverged")]:
        with pytest.raises(error):
            with results.following(path, {"run_id": status, "started": error.__name__}, True):
                assert rows_of(path)[-1]["status"] == "started"
                raise error
        assert rows_of(path)[-1]["status"] == status
    with results.following(path, {"run_id": "x", "started": "4"}, True) as row:
        row["status"] = "stopped"
    with results.following(path, {"run_id": "y", "started": "5"}, is_main=False):
        pass
    assert [row["number"] for row in rows_of(path)] == list("12345") and rows_of(path)[-1]["status"] == "stopped"
    said = []
    (tmp_path / "bad.csv").write_text("run_id;seed\n")
    with results.following(tmp_path / "bad.csv", {"run_id": "z", "started": "6"}, True, said.append):
        pass
    assert "WARNING: " in said[0] and "does not say that this run has started" in said[0]


def test_older_rows_have_no_number(tmp_path):
    """A table of before: its rows count, none of them is changed or called missing."""
    path = tmp_path / "results.csv"
    path.write_text("run_id,final_val_loss\nold_s0,3.5\nold_s1,3.6\n")
    results.append_result(path, {"run_id": "new", "final_val_loss": 3.1, "started": "1", "status": "finished"})
    results.append_result(path, {"run_id": "new", "final_val_loss": 3.2, "started": "1", "status": "finished"})
    rows = rows_of(path)
    assert [(row["run_id"], row["final_val_loss"], row["number"]) for row in rows] == [
        ("old_s0", "3.5", ""), ("old_s1", "3.6", ""), ("new", "3.2", "3")]
    assert results.missing_numbers([rows]) == [] and results.missing_numbers([rows[1:]]) == [2]


# ----------------------------------------------------------------------------------------------------------------------
# what the table lacks


@pytest.fixture
def table(tmp_path):
    """Eight runs in two arms, as the trainer writes them: folders in runs/, and their table beside it."""
    path = tmp_path / "results.csv"
    for i in range(8):
        seed, arm = i // 2, ("base", "test")[i % 2]
        loss = NOISE_A[seed] if arm == "base" else NOISE_B[seed] - 0.02
        flags = {"results_csv": str(path)} | (GATE["flags"] if arm == "test" else {})
        folder = make_run(tmp_path / "runs" / f"{arm}_s{seed}", seed, loss=loss, flags=flags)
        row = json.loads((folder / "summary.json").read_text())["results_row"]
        place = results.place_of(folder, path, f"2026-11-26T0{i}")
        results.append_result(path, {**row, **place, "status": "finished"})
    return path


def without(path, run_id):
    rows = [row for row in rows_of(path) if row["run_id"] != run_id]
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_deleted_row_is_missed(table, tmp_path, capsys):
    """The seed that went wrong, taken out of the table of both arms: the rest was called better without a word."""
    group = ("--results", table, *GROUP)
    assert many(*group) == 0
    text = capsys.readouterr().out
    assert "**comparable** · against none: headwise better." in text and "Missing" not in text
    for arm in ("base", "test"):
        without(table, f"{arm}_s1")
    assert many(*group) == 0
    text = capsys.readouterr().out
    assert "no row has the number 3, 4: of 2 started runs the row was deleted" in text
    assert f"test_s1 has a folder ({tmp_path / 'runs'}) and no row" in text
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert many(*group) == 0
    assert "no row has the number 3, 4" in capsys.readouterr().out
    # the last one leaves no gap: its folder tells, wherever the runs lie
    rewrite(table, lambda i, row: row | {"folder": row["folder"].replace("runs/", "elsewhere/")})
    without(table, "test_s3")
    (tmp_path / "elsewhere" / "test_s3" / "summary.json").unlink()
    assert many(*group) == 0
    assert "test_s3 has a folder" in capsys.readouterr().out.split(", an unfinished one")[0]
    assert many(*group, "--where", "attn_gate=none") == 2  # of the stage that is compared
    assert "test_s3 has a folder" not in capsys.readouterr().out


def test_started_and_crashed_rows_stand_in_the_headline(table, capsys):
    """A run that was killed or crashed is no row with a lower n: not comparable, and left out when that is allowed."""
    for status in ("crashed", "started", "stopped"):
        rewrite(table, lambda i, row, status=status: row | ({"status": status, "final_val_loss": ""} if i == 5 else {}))
        assert many("--results", table, *GROUP) == 2
        assert f"test_s2: its status is {status}" in capsys.readouterr().out
    assert many("--results", table, *GROUP, "--allow", "incomplete") == 0
    text = capsys.readouterr().out
    assert "| headwise | 3 |" in text and "Missing: test_s2: its status is stopped" in text


def test_several_tables(table, tmp_path, capsys):
    """003's stage files beside its results.csv: by paths and by a glob, each run once."""
    rows, halves = rows_of(table), {}
    for arm in ("base", "test"):
        halves[arm] = tmp_path / f"results_{arm}.csv"
        halves[arm].write_bytes(table.read_bytes())
        for row in rows:
            if not row["run_id"].startswith(arm):
                without(halves[arm], row["run_id"])
    outputs = []
    for source in ([table], halves.values(), [tmp_path / "results*.csv"], [tmp_path / "results_*.csv"]):
        assert many("--results", *source, *GROUP) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1 and "| headwise | 4 |" in outputs[0]
    assert many("--results", halves["base"], "--group_by", "attn_gate") == 2  # a half alone
    assert "no row has the number 2, 4, 6" in capsys.readouterr().out
    rewrite(halves["test"], lambda i, row: row | ({"final_val_loss": "3.9"} if i == 0 else {}))
    assert many("--results", table, halves["test"], *GROUP) == 2  # another loss under the same name
    assert "attn_gate=headwise has seed 0 twice" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--results '.*none\*.csv' matches no file: check the path"):
        many("--results", tmp_path / "none*.csv", *GROUP)


def test_tables_of_folders(tmp_path):
    """csv_of of the other tests is what the trainer wrote before rows had a status: all of it counts as finished."""
    make_run(tmp_path / "base_s0", 0)
    (row,) = results.read_results(csv_of(tmp_path))
    assert row["status"] == "" and results.missing_numbers([[row]]) == [] and runs.read_run(tmp_path / "base_s0")


# ----------------------------------------------------------------------------------------------------------------------
# the same tokens in another container


def containers(dataset, folder):
    """The tokens of a dataset of ours as llm.c's files, build-nanogpt's and nanoGPT's, cut elsewhere."""
    for split in ("train", "val"):
        files, _ = shards.open_dataset(dataset, split)
        tokens = files.slice(0, files.n_tokens)
        for name in ("llmc", "npy", "nanogpt"):
            (folder / name).mkdir(exist_ok=True)
        for i, piece in enumerate(np.array_split(tokens, 3)):
            header = struct.pack("<256i", 20240520, 1, len(piece), *[0] * 253)
            (folder / "llmc" / f"fineweb_{split}_{i:06d}.bin").write_bytes(header + piece.tobytes())
        np.save(folder / "npy" / f"edufineweb_{split}_000000.npy", tokens.astype(np.int32))
        tokens.tofile(folder / "nanogpt" / f"{split}.bin")
    return {name: folder / name for name in ("llmc", "npy", "nanogpt")}


def test_the_same_tokens_in_another_container(data, tmp_path, capsys):  # noqa: F811
    """llm.c's, build-nanogpt's and nanoGPT's files of the same tokens were other data, other documents and other units;
    one token more is."""
    folders = containers(data, tmp_path)
    opened = {name: shards.open_dataset(folder)[0] for name, folder in folders.items()}
    ours = shards.open_dataset(data)[0]
    assert {files.content_sha256() for files in opened.values()} == {ours.content_sha256()}
    assert len({files.fingerprint for files in [*opened.values(), ours]}) == 4
    flags = ("--max_train_steps", 2, "--eval_every", 2, "--results_csv", tmp_path / "results.csv")
    for seed in range(2):
        train_gpt_main(data, tmp_path / "runs" / f"ours_s{seed}", *flags, "--seed", seed)
        train_gpt_main(folders["llmc"], tmp_path / "runs" / f"llmc_s{seed}", *flags, "--seed", seed)
    train_gpt_main(folders["npy"], tmp_path / "runs" / "npy_s0", *flags, "--seed", 0)
    capsys.readouterr()
    code, report = compare(tmp_path / "runs", "--no_items", a="ours_s*", b="llmc_s*")
    gate = {d["knob"]: d for d in report["gate"]["differences"]}
    assert code == 0 and not report["gate"]["other_tokens"] and report["primary"] == "val_loss"
    assert {d["state"] for d in gate.values()} == {"note"} and "data_fingerprint" in gate and "data_format" in gate
    why = gate["data_fingerprint"]["why"]
    assert "the same tokens in another container; the fingerprint also draws the order" in why
    assert compare(tmp_path / "runs", "--no_items", a="ours_s0", b="npy_s0")[0] == 0
    capsys.readouterr()
    assert many("--results", tmp_path / "results.csv", "--group_by", "run_id", "--where", "seed=0") == 0
    assert "the same tokens in another container" in capsys.readouterr().out
    files = sorted(folders["llmc"].glob("*train*"))
    tokens = np.frombuffer(files[-1].read_bytes()[1024:], "<u2").copy()
    tokens[5] ^= 1
    files[-1].write_bytes(files[-1].read_bytes()[:1024] + tokens.tobytes())
    train_gpt_main(folders["llmc"], tmp_path / "runs" / "other_s0", *flags, "--seed", 0)
    code, report = compare(tmp_path / "runs", "--no_items", a="ours_s0", b="other_s0")
    assert code == 2 and "data_fingerprint (" in report["headline"]


def test_rows_are_no_stream():
    """Rows read as a stream are other sequences: the same tokens, another content."""
    ids = np.arange(2 * 9, dtype="<u2")
    contents = set()
    for row_tokens in (None, 9):
        files = token_files.TokenFiles.__new__(token_files.TokenFiles)
        vars(files).update(paths=["x"], vocab_size=50257, row_tokens=row_tokens, maps=[ids],
                           _bounds=[0, 18], n_tokens=18)
        contents.add(files.content_sha256())
    assert len(contents) == 2
