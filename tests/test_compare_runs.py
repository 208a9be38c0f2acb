"""compare_runs.py on runs that are made here as train_gpt.py writes them, with differences and faults planted."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from conftest import DOCS, ENV, REPO, base_loss, default_flags, make_run, write_jsonl
from scipy import stats

import compare_runs
from lab import ab_gate, ab_items, ab_numbers, ab_plots, ab_report, ab_stats, ab_verdict, runs
from lab.results import append_result
from lab.tokenizer import BOS_ID, VOCAB_SIZE, get_tokenizer

NOISE_A = (0.0021, -0.0013, 0.0004, -0.0017, 0.0009)  # what a seed does to an arm, so that verdicts are known
NOISE_B = (0.0016, -0.0008, -0.0003, -0.0020, 0.0012)


def make_arms(folder, n=3, *, effect=0.0, a=None, b=None, **both):
    """n seeds of `base` and `test`; b's val loss is `effect` above a's but for the noise of seeds."""
    for seed in range(n):
        make_run(folder / f"base_s{seed}", seed, loss=NOISE_A[seed], **both, **(a or {}))
        make_run(folder / f"test_s{seed}", seed, loss=NOISE_B[seed] + effect, **both, **(b or {}))
    return folder


GATE = {"flags": {"attn_gate": "headwise"}}


def compare(folder, *flags, a="base_s*", b="test_s*", out=None):
    """(exit code, what report.json holds) of an A/B. Without `out` no file is written and nothing is drawn."""
    records, publish = [], ab_report.publish
    keep = lambda blocks, record, *rest: (records.append(ab_report.plain(record)), publish(blocks, record, *rest))
    with mock.patch.object(ab_report, "publish", keep):
        code = compare_runs.main(["--a", str(folder / a), "--b", str(folder / b), *map(str, flags),
                                  *(["--out", str(out)] if out else [])])
    return code, records[0]


def states(report):
    return {d["knob"]: d["state"] for d in report["gate"]["differences"]}


def table_rows(text):
    """{first cell: cells} of every Markdown table row."""
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in rows}


# ----------------------------------------------------------------------------------------------------------------------
# reading what train_gpt.py writes


def test_reads_runs_of_the_trainer(tmp_path, capsys):
    """A val loss, a checksum or a time taken from the wrong field of a real run; and the runs made here have no
    key that real ones lack, so that what the other tests show holds for those."""
    import train_gpt
    from lab import shards

    rng = np.random.default_rng(0)
    words = rng.integers(0, 50257, 40)
    lengths = get_tokenizer().token_byte_lengths()
    writer = shards.DatasetWriter(tmp_path / "data", {"made_by": "test"}, shard_tokens=3000, val_shards=1)
    for i in range(60):
        ids = np.array([BOS_ID, *rng.choice(words, rng.integers(5, 60))], np.uint16)
        count = int(lengths[ids].sum())
        if i % 10 == 0:
            writer.write_val_document(ids, bytes([i]) * 16, len(ids), count, [])
        else:
            writer.write("train", ids, np.array([len(ids)]), np.array([count]))
    writer.commit({})
    writer.finish({"format": "stream", "vocab_size": VOCAB_SIZE, "condition": "baseline", "mul_token_rate": 0.0})
    for name, gate in (("none", "none"), ("gated", "headwise")):
        assert train_gpt.main([
            "--data_dir", str(tmp_path / "data"), "--out_dir", str(tmp_path / f"{name}_s0"), "--attn_gate", gate,
            *"--n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 --total_batch_tokens 64 "
            "--max_train_steps 6 --eval_every 3 --val_tokens 120 --log_every 0 --learning_rate 0.05 "
            "--results_csv".split(), ""]) == 0
    capsys.readouterr()
    # other sessions may edit the repo's code between the two runs
    code, report = compare(tmp_path, "--allow", "code_sha256,invalid_run", a="none_s0", b="gated_s0")
    summary = [json.loads((tmp_path / f"{name}_s0" / "summary.json").read_text()) for name in ("none", "gated")]
    assert code == 0 and report["verdict"] == "n = 1: too few" and report["gate"]["family"] == "gate"
    for key in ab_numbers.PRIMARY:
        assert [report["metrics"][key][side] for side in "ab"] == [s[f"final_{key}"] for s in summary]
    assert report["metrics"]["final_train_loss"]["b"] == summary[1]["final_train_loss"]
    assert report["metrics"]["flops_total"]["a"] == summary[0]["flops_total"]
    assert report["metrics"]["train_seconds"]["a"] == pytest.approx(summary[0]["train_time_ms"] / 1000, abs=2e-3)
    assert any("read the same tokens at every step" in note for note in report["gate"]["notes"])
    documents = report["items_and_documents"][0]
    assert documents["a"] == pytest.approx(summary[0]["final_val_bits_per_byte"], rel=1e-12)

    fake, real = make_run(tmp_path / "fake"), tmp_path / "none_s0"
    for name in ("config.json", "summary.json"):
        made, found = (json.loads((folder / name).read_text()) for folder in (fake, real))
        assert set(made) <= set(found)
        for key in ("code", "versions", "hardware", "model", "data", "results_row"):
            if key in found:
                assert set(made[key]) <= set(found[key]), key
    lines = [runs.read_jsonl(folder / "scalars.jsonl", []) for folder in (fake, real)]
    for kind in ("train", "val", "mechanism"):
        made, found = (next(set(r) for r in records if r["type"] == kind) for records in lines)
        assert made <= found
    made, found = (runs.read_jsonl(f / "exposures" / "exposures_rank0000.jsonl", [])[0] for f in (fake, real))
    assert set(made) <= set(found)
    made, found = (set(np.load(f / "val_documents_000000.npz")) for f in (fake, real))
    assert made <= found


def test_torn_line_and_nan_are_told(tmp_path):
    """A killed or diverged run would crash the comparison, or drop out of the mean in silence."""
    make_arms(tmp_path, b=GATE)
    torn, holed = (tmp_path / f"base_s{s}" / "scalars.jsonl" for s in (0, 1))
    torn.write_text(torn.read_text()[:-30])  # the last line is the mechanism record
    lines = holed.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"train"' in line and '"step": 7,' in line)
    lines[at] = re.sub(r'"grad_norm_l2_preclip": [0-9.]+', '"grad_norm_l2_preclip": NaN', lines[at])
    lines[at + 1] = "no json"
    holed.write_text("\n".join(lines) + "\n")
    code, report = compare(tmp_path)
    notes = " ".join(report["gate"]["notes"])
    assert code == 0 and "base_s0: scalars.jsonl: the last line" in notes and "torn" in notes
    assert "grad_norm_l2_preclip is no finite number at 1 steps, first at step 7" in notes
    assert "1 broken lines" in notes
    assert report["metrics"]["grad_norm_mean"]["n"] == 3 and report["metrics"]["grad_norm_mean"]["lacking"] == []
    # null is how the trainer writes NaN: a seed without a val loss is named and stops any verdict
    text = holed.read_text()
    end = text.rindex('"val_loss": ')
    holed.write_text(text[:end] + re.sub(r'"val_loss": [0-9.]+', '"val_loss": null', text[end:], count=1))
    code, report = compare(tmp_path)
    assert report["verdict"] == "n = 2: too few" and "seed 1 has no val loss" in report["headline"]
    assert report["metrics"]["val_loss"]["n"] == 2


DAMAGE = {  # file -> (what stands in it instead, exit status, where the report tells it)
    "summary list": ("summary.json", "[1, 2]", 2, "test_s1: summary.json is broken"),
    "summary null": ("summary.json", "null", 2, "test_s1: summary.json is broken"),
    "results_row": ("summary.json", '{"steps": 40, "results_row": [1]}', 2, "test_s1: summary.json is broken"),
    "steps": ("summary.json", '{"steps": "many", "warnings": null}', 2, "equal batches cannot be proved"),
    "deep": ("summary.json", "[" * 100_000, 2, "test_s1: summary.json is broken"),
    "gsm8k": ("gsm8k_results.json", "[1]", 0, "gsm8k_results.json is broken"),
    "npz half": ("val_documents_000040.npz", 0.5, 0, "test_s1/val_documents_000040.npz is broken (BadZipFile"),
    "npz flip": ("val_documents_000040.npz", -1, 0, "test_s1/val_documents_000040.npz is broken"),
    "npz empty": ("val_documents_000040.npz", "", 0, "test_s1/val_documents_000040.npz is broken"),
    "npz keys": ("val_documents_000040.npz", {"foo": [1, 2]}, 0, "is broken (KeyError"),
    "npz lengths": ("val_documents_000040.npz", {"stream_nats": [1, 2], "stream_bytes": [1]}, 0, "is broken (Value"),
    **{f"config {key}": ("config.json", key, 0, f"config.json: {key} is null and counts as not recorded")
       for key in ("parameters", "model")},
    **{f"config {key}": ("config.json", key, 0, f"config.json: {key} is null") for key in ("hardware", "versions")},
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_told(tmp_path, capsys, case):
    """A file cut off by a full disk, or of another shape, would end the comparison with a traceback."""
    name, content, status, told = DAMAGE[case]
    make_arms(tmp_path, 2, b=GATE)
    path = tmp_path / "test_s1" / name
    data = path.read_bytes() if path.exists() else b""
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, float):
        path.write_bytes(data[: len(data) // 2])
    elif isinstance(content, int):
        path.write_bytes(data.replace(b"stream_nats", b"stream_nbts", 1))
    elif name == "config.json":
        path.write_text(json.dumps(json.loads(data) | {content: None}))
    else:
        path.write_text(content)
    assert compare(tmp_path)[0] == status and told in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# the gate

MISMATCHES = {
    "seq_len": {"flags": {"seq_len": 64}}, "total_batch_tokens": {"flags": {"total_batch_tokens": 512}},
    "max_train_steps": {"flags": {"max_train_steps": 30}},
    "learning_rate": {"flags": {"learning_rate": 7e-4, "muon_lr": 7e-5}},
    "warmup_iters": {"flags": {"warmup_iters": 3}},
    "learning_rate_decay_frac": {"flags": {"learning_rate_decay_frac": 0.0}},
    "warmdown_iters": {"flags": {"warmdown_iters": 5}}, "schedule": {"flags": {"schedule": "trapezoid"}},
    "vocab_size": {"flags": {"vocab_size": 50257}}, "arch": {"flags": {"arch": "speedrun"}},
    "n_layer": {"flags": {"n_layer": 2}}, "n_head": {"flags": {"n_head": 4}}, "n_embd": {"flags": {"n_embd": 32}},
    "n_inner": {"flags": {"n_inner": 96}}, "optimizer": {"flags": {"optimizer": "muon"}},
    "weight_decay": {"flags": {"weight_decay": 0.0}}, "beta1": {"flags": {"beta1": 0.8}},
    "beta2": {"flags": {"beta2": 0.99}}, "grad_clip": {"flags": {"grad_clip": 0.0}},
    "data_order": {"flags": {"data_order": "sequential"}}, "val_tokens": {"flags": {"val_tokens": 2000}},
    "dtype": {"flags": {"dtype": "bfloat16"}}, "data_fingerprint": {"data": {"fingerprint": "e" * 64}},
    "val_fingerprint_documents": {"data": {"val_fingerprint_documents": "2" * 64}},
    "val_fingerprint_tokens": {"data": {"val_fingerprint_tokens": "a" * 64}},
    "code_sha256": {"config": {"code.code_sha256": "8" * 64}},
    "init_from": {"flags": {"init_from": "another checkpoint"}},
    "init_sha256": {"config": {"init": {"checkpoint": "ckpt", "sha256": "7" * 64}}},
}


@pytest.mark.parametrize("knob", MISMATCHES)
def test_planted_mismatch_is_caught(tmp_path, capsys, knob):
    """A difference that is not the treatment would be reported as the treatment's effect: alone, and beside a gate."""
    make_arms(tmp_path, 2, b=MISMATCHES[knob])
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and report["verdict"] == "not comparable" and states(report)[knob] == "differs"
    assert knob in report["headline"] and knob in capsys.readouterr().out
    assert all(m["verdict"] == "not comparable" for m in report["matchings"])
    for seed in (0, 1):  # now beside a treatment that is recognised
        config = tmp_path / f"test_s{seed}" / "config.json"
        record = json.loads(config.read_text())
        record["flags"]["attn_gate"] = record["model"]["attn_gate"] = "headwise"
        config.write_text(json.dumps(record))
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and states(report)[knob] == "differs"
    allow = [knob] + ["batch_checksums"] * (knob in ("seq_len", "total_batch_tokens"))
    code, report = compare(tmp_path, "--no_items", "--allow", ",".join(allow), "--primary", "val_bits_per_byte")
    assert code == 0 and states(report)[knob] == "allowed" and knob in report["allowed"][0]
    assert f"Allowed by --allow: {knob}" in capsys.readouterr().out
    assert report["verdict"] != "not comparable" and states(report)["attn_gate"] == "treatment"


@pytest.mark.parametrize("knob", [k for k in MISMATCHES if k not in ab_gate.YARDSTICKS])
def test_declared_treatment_passes(tmp_path, knob):
    """A declared treatment would be refused, so nobody could test a learning rate or an optimizer."""
    make_arms(tmp_path, 2, b=MISMATCHES[knob])
    code, report = compare(tmp_path, "--no_items", "--treatment", knob, "--primary", "val_bits_per_byte")
    assert code == 0 and states(report)[knob] == "treatment", states(report)


TREATMENTS = {
    "gate": GATE | {"flags": {"attn_gate": "headwise", "gate_act": "ns_sigmoid"}},
    "rows": {"data": {"fingerprint": "e" * 64, "format": "bos_row_packed_bestfit", "crop_fraction": 0.31}},
    "tokens": {"data": {"fingerprint": "e" * 64, "condition": "mul_tokens", "mul_token_rate": 1e-3,
                        "val_fingerprint_tokens": "a" * 64}},
}


@pytest.mark.parametrize("family", TREATMENTS)
def test_recognised_treatments(tmp_path, family):
    """Rows, tokens and gates are what this repo is for: they pass by themselves, but not two at a time, and a run
    inside an arm that differs is never the treatment."""
    make_arms(tmp_path, 2, b=TREATMENTS[family])
    code, report = compare(tmp_path, "--no_items")
    assert code == 0 and report["gate"]["family"] == family
    assert report["primary"] == ("val_bits_per_byte" if family == "tokens" else "val_loss")
    other = TREATMENTS["rows" if family == "gate" else "gate"]
    make_run(tmp_path / "both_s0", 0, flags=TREATMENTS[family].get("flags", {}) | other.get("flags", {}),
             data=TREATMENTS[family].get("data", {}) | other.get("data", {}))
    make_run(tmp_path / "both_s1", 1, flags=TREATMENTS[family].get("flags", {}) | other.get("flags", {}),
             data=TREATMENTS[family].get("data", {}) | other.get("data", {}))
    code, report = compare(tmp_path, "--no_items", b="both_s*")
    assert code == 2 and {"differs"} == {v for k, v in states(report).items() if k in ("attn_gate", "data_fingerprint")}
    code, report = compare(tmp_path, "--no_items", "--treatment", f"{family},{'rows' if family == 'gate' else 'gate'}",
                           b="both_s*")
    assert code == 0
    make_run(tmp_path / "test_s2", 2)
    make_run(tmp_path / "base_s2", 2)
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and any("differs within B" in d["why"] for d in report["gate"]["differences"])
    code, report = compare(tmp_path, "--no_items", "--treatment", family)
    assert code == 2 and "treatment" not in states(report).values()


def test_treatment_that_is_absent(tmp_path, capsys):
    """Two equal arms would be told apart by noise and called a gate's effect."""
    make_arms(tmp_path, 2)
    code, report = compare(tmp_path, "--no_items", "--treatment", "attn_gate")
    assert code == 2 and "does not differ" in report["gate"]["differences"][0]["why"]
    code, report = compare(tmp_path, "--no_items")
    assert code == 0 and report["treatment"] == ""  # an A/A is fair, and says what it is
    assert "Treatment: none: the arms differ in nothing that counts (an A/A)." in capsys.readouterr().out
    make_run(tmp_path / "rate_s0", flags={"learning_rate": 7e-4, "muon_lr": 7e-5})
    assert compare(tmp_path, a="base_s0", b="rate_s0")[0] == 2  # with a difference that counts, none of that
    assert "Treatment: none declared or recognised among what differs." in capsys.readouterr().out


def test_knobs_without_effect_do_not_count(tmp_path):
    """muon_lr under AdamW, a gate's activation without a gate, a folder's name, micro_batch_size: false alarms would
    make people use --allow for everything."""
    free = {"muon_lr": 1.0, "gate_act": "ns_sigmoid", "micro_batch_size": 8, "num_workers": 0, "data_dir": "elsewhere",
            "save_every": 5, "notes": "x", "eval_batch_size": 2, "hellaswag_every": 0}
    make_arms(tmp_path, 2, b={"flags": free})
    code, report = compare(tmp_path, "--no_items")
    assert code == 0 and set(states(report).values()) == {"note"}
    told = " ".join(report["gate"]["notes"])
    assert "micro_batch_size differs (4 / 8), as it may" in told
    assert report["metrics"]["tokens_per_sec"]["p"] == "N/A: other hardware or software"  # speeds do not compare


@pytest.mark.parametrize("unused, verdict", [([], "differs"), (["muon_lr", "muon_scale"], "note")])
def test_new_optimizer_says_which_flags_it_uses(tmp_path, unused, verdict):
    """An optimizer that this code has not heard of, with a second learning rate: its difference would be a note, and
    what it did be called the gate's effect."""
    soap = {"optimizer": "soap", "muon_lr": 0.01}
    config = {"unused_flags": unused}
    make_arms(tmp_path, 2, a={"flags": soap}, b={"flags": {**soap, "muon_lr": 0.02, **GATE["flags"]}}, config=config)
    code, report = compare(tmp_path, "--no_items")
    assert code == (2 if verdict == "differs" else 0) and states(report)["muon_lr"] == verdict
    table = csv_of(tmp_path, change=lambda i, row: row.update(unused_flags=" ".join(unused)))
    assert many("--results", table, "--group_by", "attn_gate") == code


def test_flag_that_one_arm_uses(tmp_path, capsys):
    """The same muon_lr in both arms, of which only one uses it, is no difference; two values among its users are."""
    for seed in (0, 1):
        make_run(tmp_path / f"base_s{seed}", seed, config={"unused_flags": ["muon_lr"]})
        make_run(tmp_path / f"test_s{seed}", seed, flags={"optimizer": "soap", "muon_lr": 0.02 + 0.01 * seed},
                 config={"unused_flags": []})
    code, report = compare(tmp_path, "--treatment", "optimizer", "--no_items")
    assert code == 2 and "muon_lr (differs within B)" in report["headline"]
    code, report = compare(tmp_path, "--treatment", "optimizer", "--no_items", a="base_s0", b="test_s0")
    assert code == 0 and states(report)["muon_lr"] == "note"


def test_seeds_batches_and_broken_runs(tmp_path):
    """Missing seeds, other batches, crashed and invalid runs: each would put something else than the treatment into the
    delta. Each is named in the headline."""
    make_arms(tmp_path, 3, b=GATE, effect=-0.02)
    make_run(tmp_path / "base_s4", 4)
    code, report = compare(tmp_path)
    assert code == 2 and states(report)["seed"] == "differs" and "B lacks seed 4" in report["headline"]
    code, report = compare(tmp_path, "--allow", "seed")
    assert code == 0 and report["verdict"] == "better" and "B lacks seed 4" in report["headline"]
    assert report["metrics"]["val_loss"]["n"] == 3 and report["seeds_used"] == [[0, 1, 2], [0, 1, 2]]

    make_run(tmp_path / "test_s4", 4, flags=GATE["flags"], finished=False, loss=9)
    code, report = compare(tmp_path)
    assert code == 2 and states(report)["incomplete"] == "differs"
    assert "test_s4: ended at step 40 of 40" in report["headline"]
    code, report = compare(tmp_path, "--allow", "incomplete")
    assert code == 0 and report["metrics"]["val_loss"]["n"] == 3 and "test_s4" in report["headline"]
    (tmp_path / "test_s4" / "summary.json").write_text("{")
    code, report = compare(tmp_path)
    assert code == 2 and states(report)["incomplete"] == "differs"

    make_run(tmp_path / "test_s5", 5, flags=GATE["flags"], warnings=["the gate is not active."])
    make_run(tmp_path / "base_s5", 5)
    code, report = compare(tmp_path, "--allow", "incomplete,seed")
    assert code == 2 and states(report)["invalid_run"] == "differs"
    assert "the gate is not active). What follows" in report["headline"]

    make_run(tmp_path / "test_s5b", 5, flags=GATE["flags"])
    code, report = compare(tmp_path)
    assert "B has seed 5 twice" in next(d["why"] for d in report["gate"]["differences"] if d["knob"] == "seed")

    exposures = tmp_path / "test_s1" / "exposures" / "exposures_rank0000.jsonl"
    lines = exposures.read_text().splitlines()
    record = json.loads(lines[16])
    lines[16] = json.dumps(record | {"checksum": "0" * 16})
    exposures.write_text("\n".join(lines) + "\n")
    code, report = compare(tmp_path, b="test_s[0-2]", a="base_s[0-2]")
    assert code == 2 and "from step 17 on" in report["headline"] and states(report) == {
        "attn_gate": "treatment", "batch_checksums": "differs"}
    full = (tmp_path / "base_s1" / "exposures" / "exposures_rank0000.jsonl").read_text().splitlines(keepends=True)
    for kept in (full[:10], full[:10] + [full[10][:20]], full[5:], full[:-1], []):  # a part of the steps proves nothing
        exposures.write_text("".join(kept))
        code, report = compare(tmp_path, b="test_s[0-2]", a="base_s[0-2]")
        assert code == 2 and "cannot be proved" in report["headline"]
    exposures.unlink()
    code, report = compare(tmp_path, b="test_s[0-2]", a="base_s[0-2]")
    assert code == 2 and "cannot be proved" in report["headline"]


def test_more_ranks_read_the_same_batches(tmp_path):
    """Two ranks record other entries per rank but the same step: calling that unequal data would stop fair A/Bs."""
    make_arms(tmp_path, 2, b=GATE | {"config": {"world_size": 2}})
    for seed in (0, 1):
        path = tmp_path / f"test_s{seed}" / "exposures" / "exposures_rank0000.jsonl"
        records = [json.loads(line) | {"entries": [0, 4], "rank_checksum": "f" * 16} for line in path.open()]
        write_jsonl(path, records)
    code, report = compare(tmp_path)
    assert code == 0 and any("2 pairs of runs read the same tokens" in note for note in report["gate"]["notes"])
    assert any("world_size (1 / 2)" in note for note in report["gate"]["notes"])


def test_other_scorer_is_caught(tmp_path):
    """HellaSwag by two rules under one name."""
    make_arms(tmp_path, 2, b=GATE, hellaswag=0.4)
    for seed in (0, 1):
        path = tmp_path / f"test_s{seed}" / "hellaswag_metrics.jsonl"
        path.write_text(path.read_text().replace("bos=1", "bos=0"))
    code, report = compare(tmp_path)
    assert code == 2 and states(report)["hellaswag_scorer"] == "differs" and "bos=0" in report["headline"]
    assert compare(tmp_path, "--allow", "scorer")[0] == 0
    for seed in (0, 1):  # scored in one arm alone, afterwards: nothing to compare, and nothing wrong
        (tmp_path / f"test_s{seed}" / "hellaswag_metrics.jsonl").unlink()
    code, report = compare(tmp_path)
    assert code == 0 and report["metrics"]["hellaswag_accuracy"]["delta"] == "N/A: not run"
    assert isinstance(report["metrics"]["hellaswag_accuracy"]["a"], float)


# ----------------------------------------------------------------------------------------------------------------------
# table, matchings, verdicts

LABELS_000 = [
    "Final train loss (opt-step mean)", "Val loss @ matched step", "HellaSwag accuracy", "HellaSwag accuracy_norm",
    "EWoK official sum metric", "EWoK official mean metric", "Tokens/sec (reported)", "Grad norm stability",
    "Crop fraction (BOS only)",
]


def test_table_of_document_000(tmp_path, capsys):
    """Rows, columns and every number's home: a metric in the wrong row, or a blank for what was not run."""
    make_arms(tmp_path, 3, b=TREATMENTS["rows"], effect=-0.02)
    compare(tmp_path)
    text = capsys.readouterr().out
    assert ("| Metric | A mean ± sd | B mean ± sd | Delta | 95 % interval, uncorrected | p | p, corrected | "
            "95 % interval, corrected | Verdict |"
            in text)
    rows = table_rows(text)
    begin = text.index("| Metric |")
    labels = [line.split(" | ")[0].strip("| ") for line in text[begin:].splitlines()[2:]]
    assert labels[: len(LABELS_000)] == LABELS_000
    mean_a, mean_b = (base_loss(40, 40) + np.mean(noise[:3]) for noise in (NOISE_A, NOISE_B))
    assert rows["Val loss @ matched step"][1] == f"{mean_a:.4f} ± {np.std(NOISE_A[:3], ddof=1):.4f}"
    assert rows["Val loss @ matched step"][3] == f"{mean_b - 0.02 - mean_a:+.4f}"
    for label in LABELS_000[2:6]:
        assert rows[label][1:5] == ["N/A: not run"] * 4 and rows[label][-1] == "N/A: not run"
    assert rows["Crop fraction (BOS only)"][1:4] == ["N/A: not packed rows", "0.3100", "N/A: not packed rows"]
    assert rows["Tokens/sec (reported)"][1] == "512 ± 0" and rows["Parameters"][1] == "809,408"
    assert rows["Training FLOPs"][1] == f"{4_858_080 * 256 * 40:.4g}" and rows["Unique tokens"][1] == "10,240"
    assert all(cell for cells in rows.values() for cell in cells), "a blank cell"
    assert "GSM8K" not in text


def test_benchmarks_items_and_gsm8k(tmp_path):
    """HellaSwag and EWoK rows, their item-level intervals, and GSM8K where it was run."""
    make_arms(tmp_path, 3, effect=-0.02, a={"hellaswag": 0.35, "ewok": 0.5, "gsm8k": 0.1},
              b=GATE | {"hellaswag": 0.55, "ewok": 0.5, "gsm8k": 0.2})
    code, report = compare(tmp_path)
    m, items = report["metrics"], {r["what"]: r for r in report["items_and_documents"]}
    assert code == 0 and m["gsm8k_accuracy"]["delta"] == pytest.approx(0.1)
    assert m["hellaswag_accuracy_norm"]["delta"] == pytest.approx(items["HellaSwag accuracy_norm"]["delta"])
    assert items["HellaSwag accuracy"]["low"] > 0 and items["HellaSwag accuracy"]["n"] == "120 items x 3"
    assert items["HellaSwag accuracy"]["clusters"] == 40 and items["EWoK official_sum"]["clusters"] == 120
    assert items["EWoK official_sum"]["low"] <= 0 <= items["EWoK official_sum"]["high"]
    assert "HellaSwag accuracy_norm +0." in report["checklist"][0] and "(better)" in report["checklist"][0]
    path = tmp_path / "test_s0" / "hellaswag_items.jsonl"  # one item is missing in one run: the rest is used, and told
    path.write_text("".join(line for line in path.open() if '"item7"' not in line))
    code, report = compare(tmp_path)
    assert any("119 of 120" in reason for reason in report["not_available"])
    assert {r["what"]: r for r in report["items_and_documents"]}["HellaSwag accuracy"]["n"] == "119 items x 3"
    # other spaces in the JSON are the same items; a credit that is no number takes that metric's row, and says so
    records = [json.loads(line) for line in path.open()]
    records[-1]["credit"]["accuracy"] = None
    path.write_text("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records))
    code, report = compare(tmp_path)
    rows = {r["what"]: r for r in report["items_and_documents"]}
    assert rows["HellaSwag accuracy_norm"]["n"] == "119 items x 3" and "HellaSwag accuracy" not in rows
    assert any(reason.startswith("HellaSwag items, accuracy: N/A: 1 of 714 credits") for reason in
               report["not_available"])


def test_unknown_benchmark_gets_its_rows(tmp_path, capsys):
    """A benchmark that this code has not heard of: its scores, their direction and its items come from what the runs
    recorded, or a new benchmark would be left out of the report."""
    described = {
        "title": "Riddles", "items": 60, "sha256": "0" * 64, "item_metrics": ["error"], "cluster": "theme",
        "category": None, "metrics": [["riddles_error", "Riddles, share of errors", -1, ".3f"]],
    }
    make_arms(tmp_path, 3, b=GATE, config={"benchmarks": {"riddles": described}})
    for folder in tmp_path.iterdir():
        error = 0.2 if folder.name.startswith("test") else 0.4
        rng = np.random.default_rng(list(folder.name.encode()))
        items = [{"step": 40, "id": i, "theme": i // 2, "credit": {"error": float(rng.random() < error)}}
                 for i in range(60)]
        mean = float(np.mean([item["credit"]["error"] for item in items]))
        record = {"step": 40, "scorer": "riddles-1", "error": mean, "seconds": 1}
        write_jsonl(folder / "riddles_metrics.jsonl", [record])
        write_jsonl(folder / "riddles_items.jsonl", items)
    code, report = compare(tmp_path, "--print", "full", out=tmp_path / "report")
    row = report["metrics"]["riddles_error"]
    assert code == 0 and row["n"] == 3 and row["delta"] == pytest.approx(row["b"] - row["a"]) and row["delta"] < 0
    assert table_rows(capsys.readouterr().out)["Riddles, share of errors"][3] == f"{row['delta']:+.3f}"
    items = {r["what"]: r for r in report["items_and_documents"]}["Riddles error"]
    assert items["n"] == "60 items x 3" and items["clusters"] == 30 and items["delta"] == pytest.approx(row["delta"])
    assert report["gate"]["equal"]["riddles_scorer"] == "scorer riddles-1"
    assert report["metrics"]["eval_seconds"]["a"] == pytest.approx(5 * 0.3 + 1)
    assert row["family"] == "quality" and row["tests"] == 2  # with the bos view


def test_new_column_of_the_table(tmp_path, capsys):
    """A column is one line: put between two others, it has its own cells and leaves the alignment of its neighbours."""
    make_arms(tmp_path, 2, b=GATE)
    columns = list(compare_runs.METRIC_COLUMNS)
    columns.insert(1, ("Better", "left", lambda metric, row: {-1: "lower", 0: "either", 1: "higher"}[metric.better]))
    with mock.patch.object(compare_runs, "METRIC_COLUMNS", columns):
        compare(tmp_path, "--no_items")
    text = capsys.readouterr().out
    begin = text.index("| Metric | Better | A mean ± sd | B mean ± sd | Delta | 95 % interval, uncorrected | p |")
    assert text[begin:].splitlines()[1] == "|---|---|---:|---:|---:|---:|---:|---:|---:|---|"
    assert table_rows(text)["Val loss @ matched step"][1:3] == ["lower", f"{base_loss(40, 40) + 0.0004:.4f} ± 0.0024"]


def test_gaps_of_the_table_are_told(tmp_path, capsys):
    """A benchmark that one seed lacks would be a mean of two under a heading of three; a scorer's null is no score."""
    make_arms(tmp_path, 3, b=GATE, hellaswag=0.4)
    (tmp_path / "test_s1" / "hellaswag_metrics.jsonl").unlink()
    for path in tmp_path.glob("*/hellaswag_metrics.jsonl"):
        write_jsonl(path, [json.loads(line) | {"accuracy_norm": None} for line in path.open()])
    _, report = compare(tmp_path, "--no_items")
    rows = table_rows(capsys.readouterr().out)
    assert rows["HellaSwag accuracy"][3].endswith(" (2 of 3 seeds)") and report["verdict"] != "better"
    assert rows["HellaSwag accuracy_norm"][1:5] == ["N/A: not run"] * 4
    assert "seeds)" not in rows["Val loss @ matched step"][3]


def test_forest_follows_the_adjusted_p(tmp_path):
    """A metric whose interval leaves out 0 while its adjusted p is not small would be drawn as better."""
    # raw p 0.03, adjusted 0.06
    make_arms(tmp_path, 4, effect=-0.02, a={"hellaswag": 0.4, "ewok": 0.5},
              b=GATE | {"hellaswag": 0.43, "ewok": 0.5})
    drawn, plot = {}, ab_plots.plot_forest
    with mock.patch.object(ab_plots, "plot_forest", lambda groups: (drawn.update(groups), plot(groups))[1]):
        compare(tmp_path, "--no_items", out=tmp_path / "report")
    row = next(r for r in drawn["benchmarks"] if r["label"] == "HellaSwag accuracy_norm")
    assert row["low"] > 0 and row["verdict"] == "inconclusive"
    assert next(r for r in drawn["losses"] if r["label"] == "Val loss")["verdict"] == "better"


def test_single_pair_gives_mcnemar_and_no_verdict(tmp_path):
    """One seed of each arm: a huge gap says nothing about the next seed, whatever the items say."""
    make_arms(tmp_path, 1, effect=-1.0, a={"hellaswag": 0.2}, b=GATE | {"hellaswag": 0.7})
    code, report = compare(tmp_path)
    row = report["metrics"]["val_loss"]
    assert code == 0 and report["verdict"] == "n = 1: too few" and "fewer are no evidence" in report["headline"]
    assert row["low"] == row["p"] == "N/A: one seed" and row["delta"] == pytest.approx(-1.0005)
    item = next(r for r in report["items_and_documents"] if r["what"] == "HellaSwag accuracy")
    assert item["mcnemar"]["p"] < 1e-6 and item["low"] > 0 and "McNemar" in item["how"]
    documents = report["items_and_documents"][0]  # the documents' interval is there for one seed, too
    assert documents["low"] < documents["delta"] < documents["high"] < 0


def test_document_interval(tmp_path):
    """The interval over documents: against the difference of the ratios with each document left out once."""
    make_arms(tmp_path, 2, effect=-0.02, b=GATE)
    _, report = compare(tmp_path)
    row = report["items_and_documents"][0]
    data = [[np.load(tmp_path / f"{arm}_s{seed}" / "val_documents_000040.npz") for seed in (0, 1)]
            for arm in ("base", "test")]
    nats = [np.mean([d["stream_nats"] for d in arm], axis=0) / math.log(2) for arm in data]
    size = data[0][0]["stream_bytes"]
    delta = (nats[1].sum() - nats[0].sum()) / size.sum()
    rest = ~np.eye(DOCS, dtype=bool)
    without = [(nats[1] - nats[0])[one].sum() / size[one].sum() - delta for one in rest]
    error = math.sqrt((DOCS - 1) / DOCS * np.square(without).sum())
    share = np.square(size / size.sum())
    t = stats.t.ppf(0.975, share.sum() ** 2 / np.square(share).sum() - 1)
    assert row["delta"] == pytest.approx(delta) and row["high"] - row["delta"] == pytest.approx(t * error)
    others = dict(data[1][0]) | {"doc_hash": np.zeros((DOCS, 16))}
    np.savez(tmp_path / "test_s0" / "val_documents_000040.npz", **others)
    _, report = compare(tmp_path)
    assert "Documents: N/A: the runs scored other documents" in report["not_available"]


@pytest.mark.parametrize("n, spread", [(4, 1.0), (12, 1.2), (45, 1.2)])
def test_documents_of_unequal_size(n, spread):
    """A few long documents are most of a held-out text. The 95 % interval covered 83 to 90 % there."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        size = np.exp(spread * rng.standard_normal(n)) * 1000
        sides = [{"stream_nats": size * rng.normal(0.7, 0.05, n), "stream_bytes": size} for _ in range(2)]
        (row,) = ab_items.document_row("stream", [sides], 0.05)
        covered.append(row["low"] <= 0 <= row["high"])
    assert np.mean(covered) >= 0.92


def test_matchings(tmp_path):
    """A gate that wins per step, costs 6 % time and 3 % FLOPs: better at equal steps, and what it is at equal cost its
    evaluations are too far apart to say. The curve between two of them is a straight line, and nothing is read beyond
    its ends."""
    make_arms(tmp_path, 3, effect=-0.005, b=GATE | {"step_seconds": 0.53, "extra_flops": 145_742})
    code, report = compare(tmp_path)
    steps, flops, wall = report["matchings"]
    assert [m["verdict"] for m in report["matchings"]] == ["better", "inconclusive", "inconclusive"] and code == 0
    assert steps["budget"] == "step 40" and wall["budget"] == "20.0 s"
    at = 20 / 0.53
    between = base_loss(30, 40) + (base_loss(40, 40) - base_loss(30, 40)) * (at - 30) / 10
    assert wall["row"]["b"] == pytest.approx(between - 0.005 + np.mean(NOISE_B[:3]), abs=1e-6)
    assert wall["row"]["a"] == pytest.approx(base_loss(40, 40) + np.mean(NOISE_A[:3]), abs=1e-9)
    at = 40 / 1.03
    between = base_loss(30, 40) + (base_loss(40, 40) - base_loss(30, 40)) * (at - 30) / 10
    assert flops["row"]["b"] == pytest.approx(between - 0.005 + np.mean(NOISE_B[:3]), abs=1e-6)
    run = runs.read_run(tmp_path / "test_s0")
    assert "scored from 0 to 21.2" in ab_numbers.at_budget(run, "val_loss", "train_seconds", 21.3)
    value, low, high = ab_numbers.at_budget(run, "val_loss", "train_seconds", 21.0)
    after, before = base_loss(40, 40), base_loss(30, 40)
    left = (21.2 - 21.0) / 5.3
    assert np.array([value, low, high]) - run["val"][40]["val_loss"] == pytest.approx(
        [left * (before - after), 0, 4 * left * (before - after)], abs=1e-9)
    assert "-5.7 % [" in report["checklist"][2] and "materially worse" in report["checklist"][2]


@pytest.mark.parametrize("every, verdict", [(20, "inconclusive"), (5, "inconclusive"), (1, "worse")])
def test_between_evaluations(tmp_path, every, verdict):
    """Arms of one curve, of which B is 5 % slower. Read as a line it was clearly worse by 0.044 where its evaluations
    were half a run apart, as the curve lies below the line; the interval holds the true 0.027 however far they are."""
    make_arms(tmp_path, 3, a={"flags": {"eval_every": every}},
              b={"flags": GATE["flags"] | {"eval_every": every}, "step_seconds": 0.525})
    _, report = compare(tmp_path, "--no_items")
    wall = report["matchings"][2]
    true = base_loss(40 / 1.05, 40) - base_loss(40, 40)
    assert wall["verdict"] == verdict and wall["row"]["low"] < true < wall["row"]["high"]
    assert (wall["row"]["p"] == 1.0) == (verdict == "inconclusive")


def test_checkpoints_are_matched_at_a_common_step(tmp_path):
    """A run that logged its last evaluation late would be compared with another step of its twin."""
    make_arms(tmp_path, 2, b=GATE, effect=-0.02)
    path = tmp_path / "test_s1" / "scalars.jsonl"
    path.write_text("".join(line for line in path.open() if not ('"step": 40,' in line and '"val"' in line)))
    _, report = compare(tmp_path)
    assert report["steps"]["val"] == 30 and "step 30 is the last that all runs scored, of 40" in report["headline"]
    assert report["metrics"]["val_loss"]["a"] == pytest.approx(base_loss(30, 40) + np.mean(NOISE_A[:2]))
    assert report["metrics"]["tokens_seen"]["a"] == 30 * 256


def test_length_as_the_treatment(tmp_path):
    """Arms of 40 and 30 steps are compared at their ends; at step 30, the last that both scored, the learning rate of
    the longer ones is not down yet."""
    make_arms(tmp_path, 4, b={"flags": {"max_train_steps": 30}})
    _, report = compare(tmp_path, "--treatment", "max_train_steps")
    row = report["metrics"]["val_loss"]
    assert row["a"] == pytest.approx(base_loss(40, 40) + np.mean(NOISE_A[:4]))
    assert row["b"] == pytest.approx(base_loss(30, 30) + np.mean(NOISE_B[:4]))
    assert "at step" not in report["headline"] and "Missing" not in report["headline"]
    assert report["not_available"] == ["Items and documents: N/A: the arms end at different steps"]
    assert report["matchings"][0]["row"]["a"] == pytest.approx(base_loss(30, 40) + np.mean(NOISE_A[:4]))


@pytest.mark.parametrize("flags, words", [
    ({"beta1": 0.8}, "If it is what you test: `--treatment beta1`."),
    ({"beta1": 0.8, "beta2": 0.99}, "Which of beta1, beta2 is what you test?"),
    ({"beta1": 0.8, "code": "x"}, "Which of beta1, code is what you test?"),
    ({"code": "x"}, "If it is what you test: `--treatment code`. An edit of the code that changes nothing: `--allow"),
    ({"val": "x"}, "if it does no harm: `--allow val_documents`.")])
def test_what_to_declare_stands_in_the_verdict(tmp_path, flags, words):
    """Arms that differ in what is not recognised: the flag that declares it, to be pasted. Where several settings
    differ, --treatment with all of them was advised, which made a forgotten one part of the treatment."""
    flags, other = dict(flags), {}
    if flags.pop("code", ""):
        other["config"] = {"code.code_sha256": "0" * 64}
    if flags.pop("val", ""):
        other["data"] = {"val_documents": 11}
    make_arms(tmp_path, 3, b={"flags": flags, **other})
    code, report = compare(tmp_path, "--no_items")
    assert code == 2 and words in report["headline"]
    if "If it is" in words:
        assert compare(tmp_path, "--no_items", "--treatment", words.split("`")[1].split()[1])[0] == 0


@pytest.mark.parametrize("n, low, high, verdict", [
    (5, 0.0, 0.0, "score 300 independent"), (299, 0.0, 0.0, "score 300 independent"), (300, 0.0, 0.0, ""),
    (900, -0.0086, 0.0151, "over seeds and items the interval is -0.0086 to +0.0151: score more items"),
    (900, -0.0086, 0.0099, ""), (1, "N/A: a single cluster", "N/A", "score 300 independent")])
def test_equal_scores_on_few_items_are_not_equivalent(n, low, high, verdict):
    """Arms that answer a handful of items alike may differ on others by more than the margin of 0.01."""
    row = {"verdict": "equivalent"}
    of_items = {"low": low, "high": high} | ({"clusters": n} if n > 1 else {})
    ab_verdict.doubt_equivalence(row, [of_items], 0.01)
    assert row["verdict"] == ("inconclusive" if verdict else "equivalent") and verdict in row.get("of_items", "")


def test_few_items_in_a_report(tmp_path):
    """The same from the runs' own items, in the headline and in the table."""
    arm = {"hellaswag": 1.0}
    make_arms(tmp_path, 4, a=arm, b=GATE | arm)
    _, report = compare(tmp_path, "--primary", "hellaswag_accuracy")
    row = report["metrics"]["hellaswag_accuracy"]
    assert row["low"] == row["high"] == 0 and report["verdict"] == row["verdict"] == "inconclusive"
    assert "The seeds agree, but these items are too few" in report["headline"]
    assert "equivalent" not in {match["verdict"] for match in report["matchings"]} and report["matchings"]
    assert not any(answer.endswith(": equivalent.") for answer in report["checklist"])


VERDICTS = {"better": (-0.02, 0.002), "worse": (0.02, 0.002), "equivalent": (0.0, 0.002), "inconclusive": (0.0, 1e-5)}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_verdicts(tmp_path, capsys, verdict):
    """The headline's word on cases with a known answer; and the same word in every file."""
    effect, margin = VERDICTS[verdict]
    make_arms(tmp_path, 4, effect=effect, b=GATE)
    code, report = compare(tmp_path, "--delta", margin, out=tmp_path / "report" if verdict == "better" else None)
    assert code == 0 and report["verdict"] == verdict
    assert report["headline"].startswith(f"**{verdict}**") and "4 pairs" in report["headline"]
    assert ("Margin: 0.002 nats/token" in report["headline"]) == (verdict == "equivalent")
    assert report["headline"].replace("**", "") in capsys.readouterr().out.replace("**", "")
    if verdict == "better":
        assert report["headline"] in (tmp_path / "report" / "report.md").read_text()
        assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(json.dumps(report))
    row = report["metrics"]["val_loss"]
    differences = np.array(NOISE_B[:4]) - np.array(NOISE_A[:4]) + effect
    half = 3.1824463 * differences.std(ddof=1) / 2  # t with 3 degrees of freedom
    assert row["low"] == pytest.approx(differences.mean() - half) and row["high"] == pytest.approx(
        differences.mean() + half)
    assert any("sign-flip" in line for line in report["how_sure"])


def test_holm_spares_the_primary(tmp_path):
    """The primary's p is not adjusted; the others' are, together."""
    make_arms(tmp_path, 4, effect=-0.002, b=GATE)
    _, report = compare(tmp_path)
    rows = report["metrics"]
    assert rows["val_loss"]["p_corrected"] == rows["val_loss"]["p_raw"] == pytest.approx(rows["val_loss_bos"]["p_raw"])
    assert rows["val_loss_bos"]["p_corrected"] == rows["val_loss_bos"]["p_raw"]  # the only other thing measured
    make_arms(tmp_path / "items", 4, effect=-0.02, a={"hellaswag": 0.4, "ewok": 0.5},
              b=GATE | {"hellaswag": 0.43, "ewok": 0.5})
    _, other = compare(tmp_path / "items")
    row = other["metrics"]["hellaswag_accuracy_norm"]
    assert row["p_raw"] < 0.05 < row["p_corrected"] and "(better)" not in other["checklist"][0]
    assert row["tests"] == 4 and row["p_corrected"] == pytest.approx(3 * row["p_raw"])  # the bos view's is smaller


def test_unpaired_seeds(tmp_path):
    """Arms without a common seed: pairing them by position would use a correlation that is not there."""
    for seed in range(3):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed])
        make_run(tmp_path / f"test_s{seed + 3}", seed + 3, loss=NOISE_B[seed] - 0.02, flags=GATE["flags"])
    code, report = compare(tmp_path)
    assert code == 2
    code, report = compare(tmp_path, "--allow", "seed")
    row = report["metrics"]["val_loss"]
    assert code == 0 and report["verdict"] == "better" and not row["paired"] and row["pairs"] == {}
    assert "unpaired" in report["headline"] and "Welch" in " ".join(report["how_sure"])


def test_other_tokens_compare_in_bytes(tmp_path):
    """Nats per token between tokenisations: the arm with fewer tokens looks worse for free."""
    make_arms(tmp_path, 3, b=TREATMENTS["tokens"] | {"tokens_per_byte": 0.24})
    code, report = compare(tmp_path)
    assert code == 0 and report["primary"] == "val_bits_per_byte" and report["verdict"] == "better"
    assert report["metrics"]["val_loss"]["delta"].startswith("N/A: other tokens")
    with pytest.raises(ValueError, match="use --primary val_bits_per_byte"):
        compare(tmp_path, "--primary", "val_loss")


def test_grad_norm_spikes():
    """Spikes: against a plain loop, and on planted ones."""
    rng = np.random.default_rng(0)
    norm = np.exp(rng.normal(0, 0.7, 400))
    norm[[3, 20, 130, 399]] = 50
    slow = sum(norm[i] > 3 * np.median(norm[max(0, i - 50) : i]) for i in range(5, len(norm)))
    assert ab_numbers.spikes(norm) == slow >= 3
    assert ab_numbers.spikes(np.ones(100)) == ab_numbers.spikes(np.ones(3)) == 0


CHECKLIST = [
    ({"crop_fraction": None}, 0.0, "No: no text was discarded"),
    ({"crop_fraction": 0.4}, -0.02, "It may be: 40.0% of B's text"),
    ({"crop_fraction": 0.4}, 0.02, "There is no clear gain to explain"),
]


@pytest.mark.parametrize("data, effect, answer", CHECKLIST)
def test_checklist(tmp_path, data, effect, answer):
    """Document 000's four questions, each answered with its number."""
    make_arms(tmp_path, 3, effect=effect, b={"data": TREATMENTS["rows"]["data"] | data})
    _, report = compare(tmp_path)
    questions = ["Did BOS alignment improve benchmark quality at matched compute?",
                 "Did BOS alignment change optimization stability (loss smoothness, grad norms)?",
                 "Was runtime throughput materially worse/better?",
                 "Is any observed gain plausibly explained by data discard (`crop_fraction`)?"]
    assert [text.split("**")[1] for text in report["checklist"]] == questions
    assert answer in report["checklist"][3]
    assert all(re.search(r"\d", text.split("**")[2]) for text in report["checklist"])


# ----------------------------------------------------------------------------------------------------------------------
# many arms

STAGE_1 = {  # document 003: (attn_gate, gate_act) -> final loss, seconds; two seeds around each mean
    ("const", "sigmoid"): (3.5383, 609.1), ("elementwise", "sigmoid"): (3.5159, 631.0),
    ("headwise", "ns_sigmoid"): (3.5272, 611.4), ("headwise", "sigmoid"): (3.5312, 615.7),
    ("none", "sigmoid"): (3.5334, 592.9),
}
TABLE_1 = """| attn_gate | gate_act | seeds | final_loss | train_time |
|---|---|---:|---:|---:|
| const | sigmoid | 2 | 3.5383 | 10m 9.1s |
| elementwise | sigmoid | 2 | 3.5159 | 10m 31.0s |
| headwise | ns_sigmoid | 2 | 3.5272 | 10m 11.4s |
| headwise | sigmoid | 2 | 3.5312 | 10m 15.7s |
| none | sigmoid | 2 | 3.5334 | 9m 52.9s |
"""
STAGE_3 = {("elementwise", 0.00468): (3.2723, 1570.9, 3), ("none", 0.00468): (3.2927, 1476.9, 3),
           ("none", 0.0036): (3.2938, 1476.9, 1)}
COLUMNS_003 = ("run_id date git_commit seed attn_gate gate_pos gate_act learning_rate batch_size device_batch_size "
               "sequence_length num_iterations warmdown_iters final_val_loss best_val_loss train_time_ms ms_per_step "
               "gpu_name n_gpus notes").split()


@pytest.fixture
def results(tmp_path):
    """Document 003's stages 1 and 3 in one results.csv, in its own columns."""
    rows = []

    def add(gate, act, rate, steps, loss, seconds, seeds):
        wobble = [0.0] if seeds == 1 else [0.001, -0.001, 0.0][:seeds]
        for seed, w in zip(range(seeds), wobble, strict=True):
            rows.append(dict(zip(COLUMNS_003, (
                f"{gate}-{act}-{rate}-{steps}-{seed}", "2025-11-01", "abc1234", seed, gate, "sdpa", act, rate, 512, 64,
                1024, steps, 450, f"{loss + (0.5 if gate == 'none' else 1) * w:.6f}", loss, 1000 * seconds + 300 * w, 1,
                "H100", 8, "a, comma"), strict=True)))

    for (gate, act), (loss, seconds) in STAGE_1.items():
        add(gate, act, 0.0036, 1500, loss, seconds, 2)
    for (gate, rate), (loss, seconds, seeds) in STAGE_3.items():
        add(gate, "sigmoid", rate, 5100, loss, seconds, seeds)
    path = tmp_path / "results.csv"
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS_003)
        writer.writeheader()
        writer.writerows(rows)
    return path


def many(*flags):
    return compare_runs.main([str(flag) for flag in flags])


def test_stage_tables_of_document_003(results, tmp_path, capsys):
    """The stage tables as document 003 prints them, from its columns alone; columns of ours that only some rows have
    change nothing."""
    flags = ("--results", results, "--group_by", "attn_gate,gate_act",
             "--where", "num_iterations=1500,learning_rate=3.6e-3")
    assert many(*flags, "--baseline", "attn_gate=none", "--out", tmp_path / "out", "--print", "full") == 0
    text = capsys.readouterr().out
    assert TABLE_1 in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    row = next(e for e in report["differences"] if e["name"].startswith("attn_gate=elementwise"))
    assert row["row"]["n"] == 2 and row["row"]["paired"] and row["row"]["delta"] == pytest.approx(-0.0175)
    assert row["time"] == "+6.4 %" and len(report["differences"]) == 4
    raw = [e["row"]["p_raw"] for e in report["differences"]]
    assert min(e["row"]["p_corrected"] for e in report["differences"]) == pytest.approx(4 * min(raw))
    assert {e["verdict"] for e in report["differences"]} == {"n = 2: too few"} and "better" not in text
    lines = results.read_text().splitlines()
    results.write_text("\n".join([lines[0] + ",arch,our_column", *(line + ",," for line in lines[1:5]),
                                  *(line + ",speedrun,7" for line in lines[5:])]) + "\n")
    assert many(*flags) == 0
    text = capsys.readouterr().out
    assert TABLE_1 in text and "\n- not recorded in 4 of 10 rows: arch\n" in text
    assert many("--results", results, "--group_by", "attn_gate,learning_rate", "--where", "num_iterations=5100",
                "--baseline", "attn_gate=none,learning_rate=0.00468") == 0
    text = capsys.readouterr().out
    assert ("| elementwise | 0.00468 | 3 | 3.2723 | 26m 10.9s |\n| none | 0.0036 | 1 | 3.2938 | 24m 36.9s |\n"
            "| none | 0.00468 | 3 | 3.2927 | 24m 36.9s |\n") in text
    assert "none, 0.0036 n = 1: too few" in text and "lacks seed 1, 2" in text


def test_stages_that_are_mixed_are_refused(results, capsys):
    """Final losses of 1,500 and 5,100 steps averaged into one arm."""
    assert many("--results", results, "--group_by", "attn_gate,gate_act", "--baseline", "attn_gate=none") == 2
    text = capsys.readouterr().out
    assert "**not comparable**" in text and "num_iterations (1500, 5100)" in text and "better" not in text
    assert many("--results", results, "--group_by", "attn_gate", "--where", "num_iterations=1500") == 2  # two gate_acts
    assert "gate_act (sigmoid, ns_sigmoid)" in capsys.readouterr().out


def rewrite(path, change):
    """Rows of a results.csv, each through `change`, which returns another row or changes its own."""
    with open(path, newline="") as f:
        rows = [change(i, row) or row for i, row in enumerate(csv.DictReader(f))]
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def csv_of(folder, change=lambda i, row: None):
    """The results.csv of the finished runs in a folder, as the trainer writes it; each row through `change`."""
    path = folder / "results.csv"
    path.unlink(missing_ok=True)
    for run in sorted(folder.glob("*/summary.json")):
        append_result(path, json.loads(run.read_text())["results_row"])
    rewrite(path, change)
    return path


PLANTED = {"weight_decay": 0.0, "dtype": "bfloat16", "n_inner": 96, "warmup_iters": 3, "schedule": "trapezoid",
           "beta2": 0.99, "grad_clip": 0.5, "n_head": 4, "init_from": "runs/other", "max_train_steps": 30,
           "seq_len": 64}


@pytest.fixture(scope="module")
def finished_arms(tmp_path_factory):
    return make_arms(tmp_path_factory.mktemp("csv"), 3, b=GATE, effect=-0.02)


def test_many_arms_of_which_no_run_is_finished(tmp_path, capsys):
    """Not comparable, for that reason; it ended in a traceback."""
    for seed in range(2):
        make_run(tmp_path / f"base_s{seed}", seed, finished=False)
        make_run(tmp_path / f"test_s{seed}", seed, finished=False, **GATE)
    group = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    assert many(*group, "--out", tmp_path / "report", "--print", "full") == 2
    text = capsys.readouterr().out
    assert "**not comparable** · incomplete (" in text and "- **Seeds** · none is finished" in text
    assert many(*group, "--allow", "incomplete") == 0 and "headwise inconclusive" in capsys.readouterr().out


@pytest.mark.parametrize("flag", PLANTED)
def test_results_go_through_the_gate(finished_arms, results, capsys, flag):
    """Two arms of a results.csv that differ in a flag beside their gate were called "comparable, better"."""
    column = {"max_train_steps": "num_iterations", "seq_len": "sequence_length"}.get(flag, flag)
    table = csv_of(finished_arms)
    flags = ("--results", table, "--group_by", "attn_gate", "--baseline", "attn_gate=none")
    assert many(*flags) == 0 and "headwise better." in capsys.readouterr().out
    rewrite(table, lambda i, row: row.update({column: PLANTED[flag]}) if row["attn_gate"] == "headwise" else None)
    assert many(*flags) == 2
    text = capsys.readouterr().out
    assert f"**not comparable** · {column} (" in text and "better" not in text
    for name in (flag, column):  # the flag's name and document 003's mean the same
        assert many(*flags, "--treatment", name) == 0 and many(*flags, "--allow", name) == 0
    capsys.readouterr()
    # the same in a table made by hand, in document 003's columns and one more
    value = {**default_flags(), "init_from": "runs/one"}[flag]
    rewrite(results, lambda i, row: {**row, column: PLANTED[flag] if row["attn_gate"] == "const" else value})
    assert many("--results", results, "--group_by", "attn_gate,gate_act") == 2
    assert f"{column} (" in capsys.readouterr().out.split("choose a stage")[0]


def test_columns_of_strangers_are_named(results, capsys):
    """A stranger's own columns say nothing about our flags: they must not stop a comparison, but nobody should believe
    that they were compared."""
    flags = ("--results", results, "--group_by", "attn_gate,gate_act", "--where", "num_iterations=1500")
    assert many(*flags) == 0 and "no flags of train_gpt.py" not in capsys.readouterr().out
    rewrite(results, lambda i, row: {**row, "cluster": i, "flavour": "sweet", "save_every": i})
    assert many(*flags) == 0
    text = capsys.readouterr().out
    assert "no flags of train_gpt.py, not compared: cluster, flavour\n" in text and TABLE_1 in text


@pytest.mark.parametrize("value", ["nan", "", "inf", "x"])
def test_seed_without_a_loss_stops_the_verdict(results, capsys, value):
    """A seed that diverged would drop out, and the rest be called better: as in an A/B it may be the one that tells."""
    flags = ("--results", results, "--group_by", "attn_gate", "--where", "num_iterations=5100,learning_rate=0.00468",
             "--baseline", "attn_gate=none")
    assert many(*flags) == 0 and "elementwise better." in capsys.readouterr().out
    rewrite(results, lambda i, row: row.update(final_val_loss=value) if row["run_id"].startswith(
        "elementwise-sigmoid-0.00468-5100-2") else None)
    assert many(*flags) == 0
    text = capsys.readouterr().out
    assert "elementwise n = 2: too few." in text and "5100-2 (attn_gate=elementwise) has no final_val" in text
    assert "| elementwise | 2 | 3.2723 | 26m 10.9s |" in text
    assert "| 2 pairs (1 run without a partner left out) |" in text


def test_stage_table_names_its_metric_and_refuses_other_tokens(results, tmp_path, capsys):
    """final_loss in nats per token between tokenisations: the arm with fewer tokens looks worse for free. Rows that do
    not tell their tokens may have others."""
    stage = ("--where", "num_iterations=1500", "--group_by", "attn_gate,gate_act", "--results", results)
    assert many(*stage) == 0
    assert "\nfinal_loss: val loss (nats/token) at the last step, mean over seeds.\n" in capsys.readouterr().out
    for told in ({"none": "mul_tokens"}, {"none": "mul_tokens", "const": ""}, {"none": "", "const": ""}):
        rewrite(results, lambda i, row, told=told: row | {"condition": told.get(row["attn_gate"], "baseline"),
                                                          "final_val_bits_per_byte": 1 + i / 1000})
        with pytest.raises(ValueError, match="use --primary val_bits_per_byte"):
            many(*stage, "--primary", "val_loss", "--allow", "condition")
        many(*stage)
        assert "\nfinal_loss: val bits/byte (bits/byte) at" in capsys.readouterr().out
    for name, arm in (("none", {}), ("mul", TREATMENTS["tokens"])):
        make_run(tmp_path / f"{name}_s0", **arm)
    with pytest.raises(ValueError, match="use --primary val_bits_per_byte"):
        many("--runs", tmp_path / "*_s0", "--group_by", "condition", "--primary", "val_loss")


def test_other_hardware_spoils_times_of_many(results, tmp_path, capsys):
    """-30 % train_time by a faster GPU would read as the arm's."""
    for seed in range(2):
        make_run(tmp_path / f"none_s{seed}", seed)
        make_run(tmp_path / f"head_s{seed}", seed, flags=GATE["flags"], config={"hardware.gpu": "other"})
    rewrite(results, lambda i, row: row.update(gpu_name="other") if row["attn_gate"] == "const" else None)
    for source in (("--runs", tmp_path / "*_s*"), ("--results", results, "--where", "num_iterations=1500")):
        assert many(*source, "--group_by", "attn_gate,gate_act", "--baseline", "attn_gate=none") == 0
        text = capsys.readouterr().out
        assert "| N/A: other hardware or software |" in text and " % |" not in text.replace("95 % interval |", "")


def test_batch_size_is_in_sequences(tmp_path, capsys):
    """A finished run's batch_size counts sequences, an unfinished one's counted tokens: two arms of one setting."""
    make_run(tmp_path / "none_s0")
    make_run(tmp_path / "none_s1", 1, finished=False)
    flags = ("--runs", tmp_path / "*_s*", "--group_by", "batch_size", "--allow", "incomplete")
    assert many(*flags) == 2
    text = capsys.readouterr().out
    assert "# 1 arms by batch_size" in text and "**no comparison** · these runs are one arm" in text
    make_run(tmp_path / "large_s0", flags={"total_batch_tokens": 512}, finished=False)
    assert many(*flags) == 0
    text = capsys.readouterr().out
    assert "| 8 | 1 |" in text and "| 16 | 0 |" in text and "| total_batch_tokens | 256 | 512 | treatment |" in text


def test_minutes():
    """59.96 seconds are a minute, not 60.0 seconds."""
    assert [ab_report.minutes(ms) for ms in (609_100, 59_960, 0, 1_570_940, 5_025_000)] == [
        "10m 9.1s", "1m 0.0s", "0m 0.0s", "26m 10.9s", "83m 45.0s"]


def test_many_arms_from_folders(tmp_path, capsys):
    """Arms from run folders: paired with the baseline by seed, the loss at equal wall-clock beside, and the gate over
    everything that is not the arm."""
    for seed in range(3):
        often = {"eval_every": 1}
        make_run(tmp_path / f"none_s{seed}", seed, loss=NOISE_A[seed], flags=often)
        make_run(tmp_path / f"head_s{seed}", seed, loss=NOISE_B[seed] - 0.02, step_seconds=0.53,
                 flags=often | GATE["flags"])
        make_run(tmp_path / f"elem_s{seed}", seed, loss=NOISE_B[seed], flags=often | {"attn_gate": "elementwise"})
    flags = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate,gate_act", "--baseline", "attn_gate=none", "--out",
             tmp_path / "out", "--print", "full")
    assert many(*flags) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    mean = base_loss(40, 40) + np.mean(NOISE_B[:3]) - 0.02
    assert f"| headwise | sigmoid | 3 | {mean:.4f} | 0m 21.2s |" in text
    head = next(e for e in report["differences"] if "headwise" in e["name"])
    assert head["verdict"] == "better" and head["row"]["p_corrected"] > head["row"]["p_raw"]
    assert head["wall"]["delta"] > 0 and head["wall"]["verdict"] == "worse"
    assert (tmp_path / "out" / "arms.png").exists() and "loss_curves.png" in text
    make_run(tmp_path / "elem_s3", 3, flags={"attn_gate": "elementwise", "learning_rate": 1e-3, "muon_lr": 1e-4},
             finished=False)
    assert many(*flags) == 2
    text = capsys.readouterr().out
    assert "learning_rate (0.0006, 0.001)" in text and "elem_s3: ended at step 40 of 40 without a summary" in text
    assert "| elementwise | sigmoid | 3 |" in text  # the unfinished run is not in the mean


def test_many_verdicts_are_holm_corrected(tmp_path, capsys):
    """With two arms that are each just significant (p 0.036), one in fourteen A/A tables would name a winner."""
    for seed in range(3):
        make_run(tmp_path / f"none_s{seed}", seed, loss=NOISE_A[seed])
        for arm in ("headwise", "elementwise"):
            make_run(tmp_path / f"{arm}_s{seed}", seed, loss=NOISE_B[seed] - 0.0017, flags={"attn_gate": arm})
    flags = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", "--delta", 0)
    assert many(*flags) == 0
    assert "elementwise inconclusive; headwise inconclusive" in capsys.readouterr().out
    for seed in range(3):
        (tmp_path / f"elementwise_s{seed}").rename(tmp_path / f"left_out_{seed}")
    assert many(*flags) == 0
    assert "headwise better" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# noise floor


def test_noise_floor_and_check(tmp_path, capsys):
    """The band of one more run, and on which side of it a newcomer falls."""
    for seed in range(5):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed])
    assert many("--aa", tmp_path / "base_s*", "--out", tmp_path / "out") == 0
    floor = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]["val_loss"]
    values = base_loss(40, 40) + np.array(NOISE_A)
    half = 2.7764451 * values.std(ddof=1) * math.sqrt(1 + 1 / 5)  # t with 4 degrees of freedom
    assert floor["sd"] == pytest.approx(values.std(ddof=1))
    assert floor["band_high"] == pytest.approx(values.mean() + half)
    for name, loss, code in (("in", half * 0.98, 0), ("out", half * 1.02, 2), ("low", -half * 1.02, 2)):
        make_run(tmp_path / f"{name}_s9", 9, loss=float(np.mean(NOISE_A)) + loss)
        capsys.readouterr()
        assert many("--check", tmp_path / f"{name}_s9", "--against", tmp_path / "base_s*") == code
        row = table_rows(capsys.readouterr().out)["Val loss @ matched step"]
        assert row[-1] == ("inside" if code == 0 else "OUTSIDE")
    assert many("--check", tmp_path / "base_s4", "--against", tmp_path / "base_s*") == 0  # itself is not in the floor
    assert "4 seeds (0, 1, 2, 3)" in capsys.readouterr().out
    make_run(tmp_path / "other_s9", 9, flags={"learning_rate": 1e-3})
    assert many("--check", tmp_path / "other_s9", "--against", tmp_path / "base_s*") == 2
    assert "**not comparable** · learning_rate (0.0006 / 0.001)" in capsys.readouterr().out
    lost = make_run(tmp_path / "lost_s9", 9, finished=False)
    scalars = (lost / "scalars.jsonl").read_text()
    for damaged in ("", scalars.replace('"val_loss": ', '"val_loss": null, "was": ')):
        (lost / "scalars.jsonl").write_text(damaged)
        assert many("--check", lost, "--against", tmp_path / "base_s*", "--allow", "incomplete") == 2
        assert "**not comparable** · val loss of this run N/A (not " in capsys.readouterr().out
    with pytest.raises(ValueError, match="at least 4 finished runs.*there are 3"):
        many("--aa", tmp_path / "base_s[0-2]")
    make_run(tmp_path / "base_s7", 7, flags={"warmup_iters": 9})
    assert many("--aa", tmp_path / "base_s*") == 2
    assert "warmup_iters (differs within noise floor)" in capsys.readouterr().out


def test_plan(tmp_path, capsys):
    """Seeds for an effect: normal theory's answer is too few; the table's n finds the effect with 80 % power."""
    assert many("--plan", "--effect", 0.003, "--noise", 0.0013, "--correlation", 0.65, "--out", tmp_path / "out") == 0
    needed = json.loads((tmp_path / "out" / "report.json").read_text())["plan"]["seeds_needed"]
    assert set(needed) == {f"paired, seed correlation {r}" for r in ("0", "0.5", "0.65", "0.8")} | {"unpaired"}
    rng = np.random.default_rng(0)
    for name, n in needed.items():
        r = 0.0 if name == "unpaired" else float(name.split()[-1])
        noise = rng.normal(0, 0.0013, (2, 20_000, n))
        a, b = noise[0], r * noise[0] + math.sqrt(1 - r * r) * noise[1] + 0.003
        test = ab_stats.unpaired if name == "unpaired" else ab_stats.paired
        sample = slice(0, 1500)
        assert (test(a[sample], b[sample])["p"] < 0.05).mean() > 0.75, name
    assert "Smallest difference that n seeds per arm find" in capsys.readouterr().out
    for seed in range(4):
        make_run(tmp_path / f"base_s{seed}", seed, loss=NOISE_A[seed])
    assert many("--plan", "--effect", 1, "--noise", 0.001, "--out", tmp_path / "large") == 0
    needed = json.loads((tmp_path / "large" / "report.json").read_text())["plan"]["seeds_needed"]
    assert set(needed.values()) == {3}  # two would show it, and two never give a verdict
    capsys.readouterr()
    assert many("--aa", tmp_path / "base_s*", "--plan", "--effect", 0.003) == 0
    assert f"sd between seeds {np.std(NOISE_A[:4], ddof=1):.5g}" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# output, flags, speed


def test_page_needs_no_network(tmp_path):
    """A report that is mailed or opened from a disk would lack its plots; text from a config must not become markup."""
    make_arms(tmp_path, 2, b={"flags": {"attn_gate": "<script>alert(1)</script>"}})
    code, report = compare(tmp_path, out=tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    names = {"loss_curves.png", "val_wall_clock.png", "paired_differences.png", "forest.png"}
    assert names <= {p.name for p in (tmp_path / "report").iterdir()} and page.count("<figure>") == 4
    assert not re.search(r"\bsrc\s*=|<link|<image|url\((?!#)|@import|https?://", page)  # nothing is loaded
    assert "<script" not in page and "&lt;script&gt;" in page and 'name="viewport"' in page
    assert not list((tmp_path / "report").glob("*.tmp"))
    assert (tmp_path / "report" / "loss_curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (tmp_path / "report" / "report.md").read_text()
    assert all(f"({name})" in text for name in names)


BAD = {
    "no folder": (["--a", "{0}/nothing_*", "--b", "{0}/test_s*"], "matches no folder"),
    "no run": (["--a", "{0}", "--b", "{0}/test_s*"], "is not a run"),
    "missing path": (["--a", "{0}/base_s9", "--b", "{0}/test_s*"], "is not a run"),
    "both arms": (["--a", "{0}/base_s*", "--b", "{0}/base_s0"], "is in --a and in --b"),
    "no b": (["--a", "{0}/base_s*"], "--a and --b need each other"),
    "nothing": ([], "give one of"),
    "two modes": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--aa", "{0}/base_s*"], "together"),
    "treatment": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--treatment", "atn_gate"], "--treatment atn_gate: use"),
    "yardstick": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--treatment", "scorer"], "--treatment scorer: use"),
    "allow": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--allow", "everything"], "--allow everything: use"),
    "alpha": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--alpha", "5"], "--alpha 5: give a number between"),
    "delta": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--delta", "-1"], "--delta -1"),
    "abbreviation": (["--a", "{0}/base_s0", "--b", "{0}/test_s0", "--prim", "val_loss"], "--prim"),
    "group": (["--runs", "{0}/base_s*"], "--group_by needs"),
    "group column": (["--runs", "{0}/base_s*", "--group_by", "colour"], "--group_by colour: use"),
    "where": (["--runs", "{0}/base_s*", "--group_by", "seed", "--where", "seed"], "column=value"),
    "where empty": (["--runs", "{0}/base_s*", "--group_by", "attn_gate", "--where", "seed=77"], "leaves no run"),
    "baseline": (["--runs", "{0}/*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=const"], "fits 0 arms"),
    "csv": (["--results", "{0}/base_s0/config.json", "--group_by", "seed"], "no rows with a column final_val_loss"),
    "no csv": (["--results", "{0}/none.csv", "--group_by", "seed"], "cannot be read"),
    "where twice": (["--runs", "{0}/base_s*", "--group_by", "seed", "--where", "seed=0,seed=1"], "gives seed twice"),
    "plan tiny": (["--plan", "--noise", "1", "--effect", "1e-200"], "effect 1e-200 is too small"),
    "plan": (["--plan", "--noise", "0.1"], "--effect above 0"),
    "plan noise": (["--plan", "--effect", "0.1"], "--noise above 0"),
    "check": (["--check", "{0}/base_s0", "--against", "{0}/test_s*"], "at least 4"),
    "correlation": (["--plan", "--effect", "1", "--noise", "1", "--correlation", "1"], "--correlation 1"),
}


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory):
    return make_arms(tmp_path_factory.mktemp("runs"), 2, b=GATE)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(two_arms, case):
    """Bad input must not look like a verdict: ValueError (exit 1), and its sentence says what to do."""
    flags, message = BAD[case]
    with pytest.raises(ValueError) as error:
        many(*(flag.format(two_arms) for flag in flags))
    assert message in str(error.value) and "\n" not in str(error.value) and str(error.value).endswith((".", "?"))


def test_exit_statuses_of_the_command(two_arms, tmp_path):
    """0 comparable, 2 not comparable, 1 bad input, as a shell sees them; torch is not imported."""
    def run(*flags):
        done = subprocess.run([sys.executable, str(REPO / "compare_runs.py"), *map(str, flags)], capture_output=True,
                              text=True, env=ENV)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    a, b = two_arms / "base_s*", two_arms / "test_s*"
    assert run("--a", a, "--b", b)[0] == 0
    code, text = run("--a", a, "--b", b, "--treatment", "optimizer")
    assert code == 2 and "not comparable" in text
    code, text = run("--a", "nothing*", "--b", b)
    assert code == 1 and text.startswith("compare_runs.py: --a 'nothing*' matches no folder")
    assert run("--delta", "x")[0] == 1
    (tmp_path / "file").write_text("")
    code, text = run("--a", a, "--b", b, "--out", tmp_path / "file" / "report")
    assert code == 1 and "cannot be written" in text
    imports = "import compare_runs, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", imports], cwd=REPO)
    assert done.returncode == 0


@pytest.mark.slow
def test_twenty_long_runs(tmp_path):
    """20 runs x 20,000 steps, plots and page included: under 1 GB, and little work beside reading the logs."""
    make_run(tmp_path / "one", 0, flags={"max_train_steps": 20_000, "eval_every": 250})
    lines = (tmp_path / "one" / "scalars.jsonl").read_text()
    for arm, gate in (("base", "none"), ("test", "headwise")):
        for seed in range(10):
            lines = lines.replace('"train_loss_opt_step_mean": ', '"train_loss_opt_step_mean": 1', 1)  # no copies
            folder = make_run(tmp_path / f"{arm}_s{seed}", seed, flags={"attn_gate": gate})
            config = json.loads((folder / "config.json").read_text())
            config["flags"] |= {"max_train_steps": 20_000, "eval_every": 250}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "scalars.jsonl").write_text(lines)
    # measured by a small process in between: a child's peak begins with the memory of the process that forked it
    measure = ("import json, resource, subprocess, sys, time; log = open(sys.argv[1]); begun = time.process_time(); "
               "print(len([json.loads(line) for line in log])); parsing = time.process_time() - begun; "
               "code = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode; "
               "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
               "print(json.dumps([code, parsing, used.ru_utime + used.ru_stime, used.ru_maxrss]))")
    done = subprocess.run([sys.executable, "-c", measure, str(folder / "scalars.jsonl"), sys.executable,
                           str(REPO / "compare_runs.py"), "--a", str(tmp_path / "base_s*"), "--b",
                           str(tmp_path / "test_s*"), "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, env=ENV)
    code, parsing, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    megabytes = peak / (2**20 if sys.platform == "darwin" else 1024)  # of the largest of its 3 processes
    print(f"20 runs x 20,000 steps: {cpu / (20 * parsing):.1f} x json's time for 20 such logs ({cpu:.1f} s of CPU), "
          f"largest process {megabytes:.0f} MB")
    assert code == 0, done.stderr
    assert 3 * megabytes < 1000
    assert cpu < 5 * 20 * parsing  # a ratio, as a busy machine slows both; measured 1.8


# ----------------------------------------------------------------------------------------------------------------------
# which checkpoint a score is of


def test_gsm8k_of_another_step(tmp_path):
    """Arms examined at steps 30 and 40 were called better or worse; no run's score of another step is compared."""
    make_arms(tmp_path, 4, b=GATE, gsm8k=0.25)
    for noise, path in zip(NOISE_B, sorted(tmp_path.glob("test_s*/gsm8k_results.json")), strict=False):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 30, "accuracy": 0.5 + noise}))
    _, report = compare(tmp_path, "--no_items", "--primary", "gsm8k_accuracy")
    assert report["verdict"] == "inconclusive"
    assert report["metrics"]["gsm8k_accuracy"]["delta"] == "N/A: no step that all runs scored"
    for path in tmp_path.glob("base_s*/gsm8k_results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 30}))
    _, report = compare(tmp_path, "--no_items", "--primary", "gsm8k_accuracy")
    assert report["verdict"] == "better" and "at step 30" in report["headline"]
    assert report["matchings"][0]["row"]["delta"] == pytest.approx(0.25 + np.mean(NOISE_B[:4]))


def keep_steps(path, steps):
    path.write_text("".join(line for line in path.open() if json.loads(line)["step"] in steps))


def test_a_benchmark_of_an_older_step(tmp_path, capsys):
    """Scores of step 30 beside a val loss of step 40: said in the headline of an A/B and of a stage table. Where the
    arms have no step in common, nobody says that it was not run."""
    make_arms(tmp_path, 3, b=GATE, hellaswag=0.3)
    for path in tmp_path.glob("*/hellaswag_*.jsonl"):
        keep_steps(path, {30})
    _, report = compare(tmp_path)
    told = "hellaswag of step 40: the scores compared are of step 30"
    assert told in report["headline"] and report["steps"]["hellaswag"] == 30
    many("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", "--primary",
         "hellaswag_accuracy_norm")
    assert told in capsys.readouterr().out
    for path in tmp_path.glob("test_s*/hellaswag_*.jsonl"):
        path.write_text(path.read_text().replace('"step": 30,', '"step": 20,'))
    _, report = compare(tmp_path)
    assert "HellaSwag and EWoK N/A: no step that all runs scored" in report["checklist"][0]
    assert any(one.startswith("HellaSwag") and "no step that all runs scored" in one for one in report["not_available"])


def test_few_items_in_a_stage_table(tmp_path, capsys):
    """As in an A/B, arms that answer a few items alike are not called equivalent."""
    make_arms(tmp_path, 4, b=GATE, hellaswag=1.0)
    many("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", "--primary",
         "hellaswag_accuracy")
    text = capsys.readouterr().out
    assert "headwise inconclusive" in text and "equivalent" not in text.splitlines()[0]


def test_an_allowed_copy_is_no_further_run(tmp_path, capsys):
    """A copied folder, let pass, counted as one more independent run in a stage table."""
    make_arms(tmp_path, 4, b=GATE, effect=-0.01)
    allowed = ("--allow", "seed,copied_run")
    flags = ("--runs", tmp_path / "*_s*", "--group_by", "attn_gate", "--baseline", "attn_gate=none", *allowed)
    many(*flags, "--out", tmp_path / "before")
    shutil.copytree(tmp_path / "base_s0", tmp_path / "base_s0copy")
    many(*flags, "--out", tmp_path / "after")
    assert "base_s0copy is not used, as its seed is there twice" in capsys.readouterr().out
    before, after = (json.loads((tmp_path / name / "report.json").read_text())["differences"][0]["row"]
                     for name in ("before", "after"))
    assert (after["n"], after["p"]) == (before["n"], before["p"]) == (4, pytest.approx(before["p"]))
