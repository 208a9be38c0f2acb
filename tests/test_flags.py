"""Command lines: a mistake of any script is one sentence that says what was probably meant, without importing torch."""

import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ENV, REPO

from lab import flags

PARSES = re.compile(r"\bParser\(|make_parser\(|benchmarks\.main\(")
RUN = """
import contextlib, io, runpy, sys, time
for script in sys.argv[1:]:
    sys.argv = [script, "--nothing_like_this", "1"]
    sys.path.insert(0, script.rpartition("/")[0])
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            text.write(status + "\\n")
            status = 1
    sys.path.pop(0)
    print(script, status, "torch" in sys.modules, repr(text.getvalue()), sep="|")
"""


def scripts():
    """Every script of the repo that reads flags."""
    paths = [*REPO.glob("*.py"), *REPO.glob("lab/*.py"), *REPO.glob("experiments/**/*.py")]
    texts = {path: path.read_text() for path in paths if "/runs/" not in str(path)}
    mains = (path for path, text in texts.items() if '\nif __name__ == "__main__":' in text)
    return sorted(path for path in mains if PARSES.search(texts[path]))


def test_every_script_refuses_in_a_sentence_without_torch():
    """Scripts whose wrong flag prints more than a line, exits 0, or imports torch first: none."""
    found = scripts()
    assert len(found) > 25
    command = [sys.executable, "-c", RUN, *map(str, found)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd="/")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(found)
    for line in lines:
        path, status, with_torch, printed = line.split("|", 3)
        name = path.rpartition("/")[2]
        assert status in ("1", "2") and with_torch == "False", line
        assert re.fullmatch(rf"'[\w. -]*{name[:-3]}(\.py)?: --nothing_like_this is no flag of .*\\n'", printed), line


@pytest.mark.parametrize("line, sentence", [
    ("--lr 3", "--lr is no flag of train_gpt.py: did you mean --learning_rate?"),
    ("--data-dir x", "--data-dir is no flag of train_gpt.py: did you mean --data_dir?"),
    ("--data_dir=x --seq-len=3", "--seq-len is no flag of train_gpt.py: did you mean --seq_len?"),
    ("--batch_size 3", "--batch_size is no flag of train_gpt.py: did you mean --micro_batch_size or "
     "--total_batch_tokens?"),
    ("--learnig_rate 3", "--learnig_rate is no flag of train_gpt.py: did you mean --learning_rate?"),
    ("--max_steps 3 --wandb", "--max_steps is no flag of train_gpt.py: did you mean --max_train_steps? "
     "--wandb is no flag of train_gpt.py: did you mean --wandb_project?"),
    ("\u2014seed 3", "\u2014seed is no flag of train_gpt.py: did you mean --seed?"),
    ("-seed 3", "-seed is no flag of train_gpt.py: did you mean --seed?"),
    ("--xyzzy", "--xyzzy is no flag of train_gpt.py: --help lists the flags."),
    ("--out x", "--out is no flag of train_gpt.py: did you mean --out_dir?"),
    ("--min_lr 3", "--min_lr is no flag of train_gpt.py: did you mean --learning_rate_decay_frac?"),
    ("--lr_decay_iters 3", "--lr_decay_iters is no flag of train_gpt.py: did you mean --max_train_steps?"),
    ("--eval_only=True",
     "--eval_only is no flag of train_gpt.py: python experiments/score_val.py scores a checkpoint."),
    ("--device cuda:1", "--device cuda:1: pass --device cuda, and write CUDA_VISIBLE_DEVICES=1 in front of the "
     "command, which picks the GPU."),
    (f"{REPO}/train_gpt.py", f"{REPO}/train_gpt.py belongs to no flag: a file of flags comes after --config."),
    ("--config nowhere.json", "--config nowhere.json does not exist: name a run, its config.json, or a JSON or YAML "
     "file of flags."),
    (f"--config {REPO}/train_gpt.py", f"{REPO}/train_gpt.py is not a run's config.json: it is Python, as nanoGPT's "
     "are: write its settings as YAML, a line `flag: value` each."),
    ("--optimizer muonn", "--optimizer muonn: choose one of adamw, muon, muon_all: did you mean muon?"),
    ("--attn_gate x", "--attn_gate x: choose one of none, headwise, elementwise, const."),
    ("--seed abc", "--seed 'abc': give a whole number."),
    ("--learning_rate 1,5", "--learning_rate '1,5': give a number."),
    ("--seed", "--seed needs a value: write --seed VALUE; --help says which."),
    ("data", "data belongs to no flag: quote a value that has spaces; --help lists the flags."),
    ("", "--data_dir is required: make one with python prepare_fineweb.py --dataset synthetic --max_docs 5000 "
     "--out_dir data/synthetic"),
])
def test_mistakes_of_a_trainer(line, sentence, capsys):
    """What is printed, to the letter; the status is 2."""
    import train_gpt

    with pytest.raises(SystemExit) as end:
        train_gpt.parse_args(line.split())
    assert end.value.code == 2 and capsys.readouterr().err == f"train_gpt.py: {sentence}\n"


def test_a_misspelt_flag_is_told_before_a_missing_one(capsys):
    """The required flag that a misspelt one was meant to be is not what is complained about."""
    parser = flags.Parser(prog="x.py")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("-o", "--output")
    for line, sentence in (("--chekpoint a", "--chekpoint is no flag of x.py: did you mean --checkpoint?"),
                           ("-o a", "--checkpoint is missing: --help says what it is.")):
        with pytest.raises(SystemExit):
            parser.parse_args(line.split())
        assert capsys.readouterr().err == f"x.py: {sentence}\n"
    assert parser.parse_args(["--checkpoint", "-1", "-oa"]).checkpoint == "-1"


@pytest.mark.parametrize("script, line, sentence", [
    ("train_gpt.py", "--data_dir x --micro_batch_size -1", "--micro_batch_size -1: give 0 or more."),
    ("sft.py", "--stage gsm8k", "--init is required: name a run's folder or a checkpoint to start from."),
    ("ewok.py", "--checkpoint x --out y --no_store", "--out and --no_store: give one of them."),
    ("hellaswag.py", "--checkpoint x --show -1", "--show -1: give 0 or more."),
    ("eval_gsm8k.py", "--checkpoint x --top_k 3", "--top_k and --top_p do nothing when greedy: raise --temperature, "
     "or drop them."),
])
def test_wrong_values_are_refused_without_torch(script, line, sentence):
    """Seconds that a user waits for torch before a sentence about a value, or about two flags together: 0."""
    command = [sys.executable, "-X", "importtime", str(REPO / script), *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENV, "PYTHONPATH": str(REPO)})
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines.count(f"{script}: {sentence}") == 1
    assert not any(line.endswith(" torch._C") for line in lines)


@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.2])
def test_ctrl_c_while_torch_is_imported(seconds):
    """A traceback out of an import would say nothing of what was stopped."""
    process = subprocess.Popen([sys.executable, REPO / "train_gpt.py", "--data_dir", "nowhere"], env=ENV, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "torch" not in errors and errors.strip()  # on a slow machine it may be earlier, on a fast one done


def test_help_and_right_flags_are_left_alone():
    """--help exits 0 without torch; flags that are right reach the script, which then imports torch."""
    code = """
import runpy, sys
sys.argv = ["x", *{argv!r}]
try:
    runpy.run_path({path!r}, run_name="__main__")
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    for argv, status, with_torch in ((["--help"], 0, "False"), (["--data_dir", "/none"], 1, "True")):
        command = [sys.executable, "-c", code.format(argv=argv, path=str(REPO / "train_gpt.py"))]
        done = subprocess.run(command, capture_output=True, text=True, env={**ENV, "PYTHONPATH": str(REPO)})
        assert done.returncode == status and with_torch in done.stderr.splitlines(), done.stderr
    assert done.stderr.count("/none does not exist") == 1


@pytest.mark.parametrize("script, line, sentence", [
    ("sample.py", "a_s0 a_s1",
     "RUN takes one path, and a_s1 came after it, as a pattern gives several: name one, and the others after "
     "--compare."),
    ("sample.py", "--prompt x a_s0 a_s1 a_s2 a_s3 a_s4",
     "RUN takes one path, and a_s1, a_s2, a_s3 and 1 more came after it, as a pattern gives several: name one, and the "
     "others after --compare."),
    ("long_context.py", "ppl a_s0 a_s1",
     "checkpoint takes one path, and a_s1 came after it, as a pattern gives several: name one."),
    ("hellaswag.py", "--checkpoint a_s0 a_s1",
     "--checkpoint takes one path, and a_s1 came after it, as a pattern gives several: name one."),
    ("sample.py", "a_s0 --prompt hello world",
     "world belongs to no flag: quote a value that has spaces; --help lists the flags."),
])
def test_a_pattern_of_several_runs(script, line, sentence, tmp_path):
    """What a shell makes of a_s*, where one run is read: what is wrong and what to do."""
    for seed in range(5):
        (tmp_path / f"a_s{seed}").mkdir()
    done = subprocess.run([sys.executable, REPO / script, *line.split()], capture_output=True, text=True, env=ENV,
                          cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.partition(": ")[2] == f"{sentence}\n"


def test_the_other_scripts_name_of_a_flag():
    """compare_runs.py has --out where the others have --out_dir; a command of model.py is not a flag's value."""
    assert flags.suggest("--out_dir", ["out", "a"]) == ["out"]
    done = subprocess.run([sys.executable, REPO / "model.py", "imprt", "a"], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (
        1, "model.py: imprt is no command of model.py: export, import, or flags alone (--help).\n")


@pytest.mark.parametrize("script, flag, meant", [
    ("sample.py", "--checkpoint", "RUN without a flag"), ("sample.py", "--model", "RUN without a flag"),
    ("hellaswag.py", "--data-dir", "--data"), ("sft.py", "--data_dir", "--data"),
    ("prepare_fineweb.py", "--data_dir", "--dataset"),
])
def test_what_another_script_calls_it(script, flag, meant):
    """A flag that only its neighbours have: what stands in its place here is named, an argument without a flag, too."""
    done = subprocess.run([sys.executable, REPO / script, flag, "x"], capture_output=True, text=True, env=ENV)
    assert done.returncode == 2 and done.stderr == f"{script}: {flag} is no flag of {script}: did you mean {meant}?\n"


def test_a_default_is_stated_once():
    """In --help, "(default 1) (default 1.0)" is two answers, and "(default )" is none."""
    command = [sys.executable, REPO / "train_gpt.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    words = " ".join(done.stdout.split())
    assert "(default 128,0; shorter where sequences are) --cms_widths" in words and "(0 = n_embd / 2) --titan" in words
    assert not re.search(r"\(default[^)]*\) \(default|\(default ?\)", words)
