"""The house: what lies where, who imports whom, and that it works installed and from any folder."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENV, REPO, run_script, tiny_documents, write_dataset

BENCHMARKS = "hellaswag ewok zeroshot".split()
SCRIPTS = "prepare_fineweb prepare_bos_rows inject_mul model train_gpt eval_gsm8k sft grpo sample compare_runs".split()
SCRIPTS += [*BENCHMARKS, "long_context", "continual", "train_tokenizer"]
LIBRARIES = {"model", "inject_mul"}  # the scripts that others may import
WITHOUT_TORCH = "flags runs results processes disk shards sources terminal files decontaminate tinygsm".split()
WITHOUT_TORCH += ["logs", "parts", "tokenizing", "pretokenized", "run_*", "ab_*"]
# python model.py export|import runs hf, which needs the network: the one circle, closed only by the command line
BY_COMMAND = {("model", "lab.hf")}


def tracked(pattern=""):
    """Files of the repo that git knows, or will know: those of this commit and new ones."""
    command = ["git", "-C", str(REPO), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git repository")
    names = [Path(name) for name in done.stdout.split("\0") if name and (REPO / name).exists()]
    return [name for name in names if name.match(pattern or "*")]


def modules():
    """{module: its file}: the scripts and the rooms of lab/."""
    paths = {path.stem: path for path in REPO.glob("*.py")}
    rooms = {f"lab.{path.stem}": path for path in REPO.glob("lab/*.py") if path.stem != "__init__"}
    return paths | rooms


def imports(path):
    """Names of the repo's modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


# ----------------------------------------------------------------------------------------------------------------------
# what lies where


def test_top_level():
    """The top folder, which a newcomer opens first, holds the scripts and nothing unexpected."""
    top = {name.parts[0] for name in tracked()} - {".gitignore", ".ci"}
    scripts = {f"{name}.py" for name in SCRIPTS}
    assert top == scripts | {"README.md", "pyproject.toml", "LICENSE", "lab", "tests", "experiments"}


def test_shelf_is_flat():
    """lab/ has no folders, and its __init__.py is empty, so importing one room runs no other."""
    rooms = [name for name in tracked() if name.parts[0] == "lab"]
    assert rooms and all(len(name.parts) == 2 for name in rooms)
    assert (REPO / "lab" / "__init__.py").read_text() == ""


def test_pyproject_names_every_script():
    """Scripts that an installed copy would lack: none."""
    text = (REPO / "pyproject.toml").read_text()
    listed = text.split("py-modules = [")[1].split("]")[0]
    assert sorted(json.loads(f"[{listed.strip().rstrip(',')}]")) == sorted(SCRIPTS)


# ----------------------------------------------------------------------------------------------------------------------
# who imports whom


def test_imports_run_downhill():
    """Imports that the design forbids: none. Scripts import rooms and the two libraries. Beyond that, the script that
    packs rows and the one that learns tokens read documents as prepare_fineweb.py does, and trainers hold exams."""
    allowed = {"prepare_bos_rows": {"prepare_fineweb"}, "train_gpt": set(BENCHMARKS), "grpo": {"eval_gsm8k"},
               "train_tokenizer": {"prepare_fineweb"}}
    wrong = []
    for name, path in modules().items():
        imported = imports(path)
        wrong += [f"{name} imports {other}" for other in imported if other.split(".")[0] in ("tests", "experiments")]
        scripts = imported & set(SCRIPTS) - LIBRARIES - allowed.get(name, set())
        wrong += [f"{name} imports {other}" for other in scripts]
    assert not wrong


def test_no_circle():
    """Circles of imports, those inside functions included: none."""
    known = modules()
    graph = {}
    for name, path in known.items():
        graph[name] = {other for other in imports(path) if other in known and (name, other) not in BY_COMMAND}
    while graph:
        leaves = {name for name, others in graph.items() if not others}
        assert leaves, f"these import each other: {graph}"
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}


NO_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""


def test_no_torch_where_none_is_needed():
    """Seconds that a comparison or a preparation would wait for torch: 0."""
    rooms = sorted({path.stem for pattern in WITHOUT_TORCH for path in REPO.glob(f"lab/{pattern}.py")})
    names = "compare_runs sample prepare_fineweb prepare_bos_rows train_tokenizer inject_mul".split()
    names += [f"lab.{room}" for room in rooms]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *names], cwd=REPO, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


IMPORT_ALL = """
import importlib, os, socket, sys, threading
def refuse(*_, **__):
    raise OSError("network at import")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
import torch
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
assert threading.active_count() == 1, threading.enumerate()
assert os.listdir() == [], os.listdir()
"""


def test_import_has_no_side_effect(tmp_path):
    """Connections, files, threads, process groups or printed lines that importing makes: none."""
    command = [sys.executable, "-c", IMPORT_ALL, str(REPO), *modules()]
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr


# ----------------------------------------------------------------------------------------------------------------------
# it works from anywhere

RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import train_gpt
train_gpt.main(sys.argv[2:])
for module in list(sys.modules.values()):
    path = Path(getattr(module, "__file__", None) or "/").resolve()
    if path.is_relative_to(sys.argv[1]) and "site-packages" not in path.parts:
        print("imported", path)
"""


def test_code_holds_every_imported_file(tmp_path):
    """Lines of code that made a run and cannot be read beside it: 0; and it runs there."""
    write_dataset(tmp_path / "data", tiny_documents(40, 5, 60))
    flags = (
        "--data_dir data --out_dir run --n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 "
        "--total_batch_tokens 64 --max_train_steps 2 --eval_every 2 --val_tokens 100 --device cpu --hellaswag_every 2 "
        "--hellaswag_data synthetic:8 --ewok_every 2 --ewok_data synthetic:8 --sample_every 2 --results_csv"
    )
    command = [sys.executable, "-c", RUN, str(REPO), *flags.split(), ""]
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [Path(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("imported ")]
    assert len(files) > 8
    code = tmp_path / "run" / "code"
    for path in files:
        assert (code / path.relative_to(REPO)).read_bytes() == path.read_bytes()
    for name in tracked():
        if name.parts[0] == "lab":
            assert (code / name).exists(), name
    again = [sys.executable, str(code / "train_gpt.py"), "--config", "run/config.json", "--out_dir", "again"]
    done = subprocess.run([*again, "--device", "cpu"], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "again" / "summary.json").exists(), done.stderr


def test_trainer_flags_are_those_of_the_parser():
    """Flags that the gate would take for somebody's own column of results.csv, or the reverse: none."""
    import train_gpt
    from lab import results, runs

    options = {action.dest for action in train_gpt.build_parser()._actions} - {"help"}
    assert {name for name in options if results.trainer_flags().fullmatch(name)} == options
    assert {name for name in options if results.is_condition(name)} == set(runs.conditions(dict.fromkeys(options)))
    # these are of the other trainers
    assert runs.NO_EFFECT <= options | {"data", "decontaminate", "rollout_batch_size"}
    for stranger in ("mood", "final_val_loss", "run_id", "parameters", "gpu_name", "n_gpus", "date", "n", "kind"):
        assert not results.is_condition(stranger)
    assert results.is_condition("num_iterations") and not results.is_condition("device_batch_size")


@pytest.mark.slow
def test_installed(tmp_path):
    """Commands that fail after `pip install .`, from another folder: none."""
    pytest.importorskip("setuptools", "77", reason="building needs setuptools >= 77")
    source, target, elsewhere = tmp_path / "source", tmp_path / "target", tmp_path / "elsewhere"
    for name in tracked():  # building writes beside the sources
        if name.parts[0] not in ("tests", "experiments"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, source / name)
    elsewhere.mkdir()
    command = [sys.executable, *"-m pip install -q --no-deps --no-build-isolation --no-index --target".split(), target]
    done = subprocess.run([*map(str, command), str(source)], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    for name in tracked():
        if name.parts[0] == "lab" or name.as_posix() in {f"{script}.py" for script in SCRIPTS}:
            assert (target / name).exists(), f"{name} is not installed"
    env = {**ENV, "PYTHONPATH": str(target)}
    for name in ("train_gpt", "compare_runs"):
        done = subprocess.run([sys.executable, "-m", name, "--help"], cwd=elsewhere, env=env, capture_output=True)
        assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("name", ["train_gpt", "sft", "grpo", "compare_runs", "prepare_bos_rows", "train_tokenizer"])
def test_help_from_another_folder(tmp_path, name):
    """Scripts that only start in the repo's folder: none."""
    env = {k: v for k, v in ENV.items() if k != "PYTHONPATH"}
    done = run_script(f"{name}.py", "--help", cwd=tmp_path, env=env)
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr


# ----------------------------------------------------------------------------------------------------------------------
# how it reads

BOOLS = (ast.Compare, ast.BoolOp)
LISTS = (ast.List, ast.ListComp, ast.Tuple, ast.Constant, ast.JoinedStr)
CHANGES = {"append", "extend", "add", "update", "insert", "pop", "remove", "clear", "discard", "setdefault", "write"}


def is_bool(node):
    """Whether the form of an expression shows that its value is a bool."""
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("bool", "isinstance", "any", "all", "callable")
    return isinstance(node, BOOLS)


def is_text_or_list(node):
    return isinstance(node, LISTS) and not isinstance(getattr(node, "value", ""), (int, float))


def changes_something(node):
    return any(
        isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in CHANGES
        for part in ast.walk(node)
    )


def riddles(tree):
    """(line, what) of expressions that use a trick where a statement would be plain."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                if is_text_or_list(one) and is_bool(other):
                    yield node.lineno, "list * bool"
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.BoolOp, ast.IfExp, ast.ListComp, ast.Lambda)):
            yield node.lineno, "an expression for its side effect"
        if isinstance(node, ast.Lambda) and changes_something(node.body):
            yield node.lineno, "a lambda for its side effect"


@pytest.mark.parametrize("code, what", [
    ("names += [x] * (x is not None)", "list * bool"), ("'s' * (n > 1)", "list * bool"),
    ("f'{x}' * bool(x)", "list * bool"), ("(not x) * [1]", "list * bool"), ("x or f()", "an expression"),
    ("run(lambda: a.append(1) or a)", "a lambda"), ("[f(x) for x in y]", "an expression"), ("[0] * n", None),
    ("2 * (a == b)", None), ("'-' * 20", None), ("sort(key=lambda x: x or 0)", None),
])
def test_riddles_are_recognised(code, what):
    """The check below catches each of these riddles, and nothing else."""
    messages = [message for _, message in riddles(ast.parse(code))]
    assert len(messages) == (what is not None) and all(message.startswith(what) for message in messages)


def test_no_riddles():
    """`list * bool`, and expressions or lambdas for a side effect: none."""
    lines = []
    for path in modules().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lines += [f"{path.name}:{line}: {what}" for line, what in riddles(tree)]
    assert not lines, "\n".join(lines)


def test_no_formatter_comments():
    """Comments for a formatter: none, as no formatter runs here."""
    assert [path.name for path in modules().values() if "# fmt:" in path.read_text(encoding="utf-8")] == []
