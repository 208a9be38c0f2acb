"""What a researcher adds: an optimizer, a schedule, a field of the configuration with its flag."""

import dataclasses
import json
import os
import signal
import sys

import pytest
import torch
from conftest import REPO, exact, make_run, records, tiny_documents, weights, write_dataset, write_jsonl

import compare_runs
import train_gpt
from experiments import keep_results
from lab import ab_fields, architecture, optim, runs, training
from model import GPT, GPTConfig

TINY = ("--seq_len 16 --n_layer 1 --n_head 2 --n_embd 16 --micro_batch_size 4 --total_batch_tokens 64 --dtype float32 "
        "--max_train_steps 6 --save_every 3 --keep_last 0 --warmup_iters 1 --eval_every 0 --log_every 0 "
        "--results_csv").split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, tiny_documents(60, 20, 60))
    return folder


def train(data, out, *flags):
    train_gpt.main(["--data_dir", str(data), "--out_dir", str(out), *TINY, "", *flags])


def resumed_from_three(out):
    """The weights of step 6, trained again from step 3."""
    before = weights(out)
    (out / "summary.json").unlink()
    for path in runs.list_checkpoints(out)[1:]:
        path.rename(path.with_name("gone"))
    train_gpt.main(["--out_dir", str(out), "--resume", "auto"])
    return before, weights(out)


def test_a_flag_of_two_definitions_is_refused(monkeypatch):
    """Lion's own --beta2 became AdamW's default, and with it the baseline's."""
    lion = optim.Choice(optim.adamw, optim.ADAMW_FLAGS | {"--beta2": dict(type=float, default=0.99)})
    monkeypatch.setitem(optim.OPTIMIZERS, "lion", lion)
    with pytest.raises(ValueError, match=r"--beta2 is defined twice.*--lion_beta2"):
        train_gpt.build_parser()


def test_an_optimizer_whose_state_has_other_shapes_resumes(monkeypatch, data, tmp_path):
    """Adafactor remembers a row and a column of a matrix: its checkpoints were refused. It sets no initial_lr."""
    def adafactor(params, rank, world_size, learning_rate):
        return [torch.optim.Adafactor(params.values(), lr=learning_rate)]

    flags = {"--learning_rate": optim.ADAMW_FLAGS["--learning_rate"]}
    monkeypatch.setitem(optim.OPTIMIZERS, "adafactor", optim.Choice(adafactor, flags))
    train(data, tmp_path / "run", "--optimizer", "adafactor")
    before, after = resumed_from_three(tmp_path / "run")
    assert before == after


def test_a_schedule_gets_its_own_flag(monkeypatch, data, tmp_path):
    """Else the flag would be in config.json and do nothing; what is not a function of these ends before the run."""
    def square(step, max_steps, warmup, warmdown, decay_frac, height):
        return height if step > 3 else 1.0

    monkeypatch.setitem(optim.SCHEDULES, "square", optim.Choice(square, {"--height": dict(type=float, default=0.5)}))
    train(data, tmp_path / "run", "--schedule", "square", "--height", "0.25", "--learning_rate", "0.008")
    assert [record["lr"] for record in records(tmp_path / "run")][2:] == pytest.approx([0.008] * 2 + [0.002] * 2)
    monkeypatch.setitem(optim.SCHEDULES, "square", optim.Choice(lambda step: 1.0, {}))
    with pytest.raises(TypeError):
        train(data, tmp_path / "other", "--schedule", "square")
    assert not (tmp_path / "other").exists()


@dataclasses.dataclass
class Longer(GPTConfig):
    window: str = "all"


def test_a_new_field_takes_its_default_in_older_files(tmp_path):
    """Every older checkpoint was locked out, with the advice to train anew."""
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16), seed=0).save(tmp_path / "old")
    old = json.loads((tmp_path / "old" / "model.json").read_text())["config"]
    assert Longer.from_dict(old).window == "all"
    with pytest.raises(ValueError, match=r"lacks entries \(n_head\)"):
        Longer.from_dict({key: value for key, value in old.items() if key != "n_head"})
    with pytest.raises(ValueError, match=r"unknown entries \(window\)"):
        GPTConfig.from_dict(old | {"window": "near"})


def test_an_own_arm_is_in_the_run_s_name_and_defaults_are_recorded(monkeypatch, data, tmp_path):
    """Two arms of one day had one folder. compare_runs.py fills in what an older run does not record."""
    build = train_gpt.build_parser

    def with_window():
        parser = build()
        parser.add_argument("--window", choices=("all", "near"), default="all")
        return parser

    monkeypatch.setattr(train_gpt, "build_parser", with_window)
    monkeypatch.setattr(train_gpt, "SHAPE", [*train_gpt.SHAPE, "window"])
    names = [train_gpt.parse_args(["--data_dir", str(data), *flags]).name for flags in ((), ("--window", "near"))]
    assert names == [f"{data.name}_adamw", f"{data.name}_near_adamw"]
    monkeypatch.setattr(train_gpt, "SHAPE", train_gpt.SHAPE[:-1])
    train(data, tmp_path / "run")
    defaults = runs.read_config(tmp_path / "run")["defaults"]
    assert defaults["window"] == "all" and defaults["beta2"] == 0.95 and "out_dir" not in defaults


def test_dropout_is_repeated_by_the_seed(monkeypatch, data, tmp_path):
    """It drew from a generator that nobody had seeded: two runs of one seed differed, and so did their pairs. A resumed
    run goes on with the draws of one that was never stopped."""
    embed = GPT.embed

    def with_dropout(self, *args, **options):
        x, rope = embed(self, *args, **options)
        return torch.nn.functional.dropout(x, 0.2, self.training), rope

    monkeypatch.setattr(GPT, "embed", with_dropout)
    for name, seed in {"one": 0, "again": 0, "other": 1}.items():
        torch.rand(7)  # whatever else the process has drawn
        train(data, tmp_path / name, "--seed", str(seed))
    assert exact(tmp_path / "one") == exact(tmp_path / "again") != exact(tmp_path / "other")
    before, after = resumed_from_three(tmp_path / "one")
    assert before == after


def test_another_network_has_no_export(monkeypatch, tmp_path):
    """It ended in an AttributeError of a norm without a bias, or in transformers' own words."""
    pytest.importorskip("transformers")
    from lab import hf

    monkeypatch.setitem(architecture.NORMS, "layernorm", lambda width, bias: torch.nn.RMSNorm(width))
    network = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16), seed=0)
    with pytest.raises(ValueError, match=r"not GPT-2's, by transformer\.h\.0\.ln_1\.bias.*cannot be it"):
        hf.export_hf(network, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_memory_has_no_memory_layers():
    """`--memory none --memory_layers 2` built a transformer that lacks two MLPs, and no report said so."""
    shape = dict(n_layer=3, n_head=2, n_embd=16, block_size=16)
    plain, asked = (GPT(GPTConfig(**shape, memory_layers=n), seed=0) for n in (0, 2))
    assert asked.config.memory_layers == 0 and asked.num_params() == plain.num_params()


LOOP = """for s in 1 2 3; do echo "begin $s"; {python} {script}; echo "status $?"; done; echo "end of loop" """
RUN = """
import sys, time
sys.path.insert(0, {repo!r})
from lab import processes
def main():
    stop = processes.StopRequest()
    print("at work", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    print("saved", flush=True)
    return 0
processes.exit_in_a_sentence(main, "run.py")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals")
def test_ctrl_c_ends_a_shell_s_loop(tmp_path):
    """The README's loop over seeds went on with the next seed, as an interrupted run that has saved itself exits 0."""
    import pty

    (tmp_path / "run.py").write_text(RUN.format(repo=str(REPO)))
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("RANK", None)
        loop = LOOP.format(python=sys.executable, script=tmp_path / "run.py")
        os.execvp("bash", ["bash", "-c", loop])
    said, is_asked = b"", False
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if b"at work" in said and not is_asked:
            is_asked = os.write(terminal, b"\x03") == 1
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert b"saved" in said and b"begin 2" not in said and b"end of loop" not in said, said.decode()
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT


# ----------------------------------------------------------------------------------------------------------------------
# a scalar of one's own


def with_field(tmp_path, **values):
    """Four pairs whose train records hold my_field = value(step), of the arms named."""
    for arm in ("base", "test"):
        for seed in range(4):
            path = make_run(tmp_path / f"{arm}_s{seed}", seed) / "scalars.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                if line["type"] == "train" and arm in values:
                    line |= values[arm](line["step"] + seed / 100)
            write_jsonl(path, lines)


def compare(tmp_path, *flags):
    argv = ["--a", str(tmp_path / "base_s*"), "--b", str(tmp_path / "test_s*"), "--no_items", *flags]
    return compare_runs.main(argv)


def test_a_field_of_the_train_records_has_a_row_and_a_curve(tmp_path, capsys):
    """It stood in scalars.jsonl and in no report. 40 steps: the last tenth is the mean of 37 to 40."""
    with_field(tmp_path, base=lambda x: {"my_field": x}, test=lambda x: {"my_field": 2 * x, "name": "text"})
    assert compare(tmp_path, "--out", str(tmp_path / "out"), "--print", "full") == 0
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.startswith("| my_field (mean of the last tenth)")]
    assert "| 38.515 ± 0.01291 | 77.03 ± 0.02582 | +38.515 |" in row and row.endswith("| described |")
    assert (tmp_path / "out" / "fields_1.png").exists() and "| name" not in text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    row = report["metrics"]["my_field"]
    assert row["delta"] == pytest.approx(38.515) and row["tests"] == 0 and "my_field" not in report["headline"]
    assert compare_runs.main(["--aa", str(tmp_path / "base_s*")]) == 0
    assert "| my_field (mean of the last tenth) | 38.515 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="my_field is described in the report .* never tested: use one of val_loss"):
        compare(tmp_path, "--primary", "my_field")


def test_a_field_that_is_not_everywhere(tmp_path, capsys):
    """A field of every tenth step, or of one arm alone, is no damage; NaN is. One named as another row changes none."""
    def sparse(x):
        if int(x) % 10:
            return {}
        return {"every_ten": x, "epochs": 7.0, "bad": None if x >= 40 else 1.0}

    with_field(tmp_path, test=sparse)
    assert compare(tmp_path) == 0
    text = capsys.readouterr().out
    (row,) = [line for line in text.splitlines() if line.startswith("| every_ten ")]
    assert "| N/A: not recorded | 40.015 ± 0.01291 |" in row
    assert "test_s0: scalars.jsonl: bad is no finite number at 1 steps, first at step 40" in text
    assert "every_ten is no finite" not in text and "| Epochs |" in text and "epochs (mean" not in text


def test_what_every_trainer_logs_is_no_field_of_ones_own(monkeypatch, data, tmp_path):
    """Rows of --a and --b that nobody asked for: none; what record_step is given beside: all. An archive keeps it."""
    record = training.record_step
    train(data, tmp_path / "plain")
    assert ab_fields.fields_of([runs.read_run(tmp_path / "plain")]) == []
    monkeypatch.setattr(training, "record_step", lambda *args, **more: record(*args, **more, my_field=0.5))
    train(data, tmp_path / "run")
    run = runs.read_run(tmp_path / "run")
    assert ab_fields.fields_of([run]) == ["my_field"] and ab_fields.score(run, "my_field", 6) == 0.5
    keep_results.keep(tmp_path / "run", tmp_path / "kept", [])
    kept = records(tmp_path / "kept")
    assert set(kept[0]) == {"type", *runs.TRAIN_FIELDS, "my_field"}
