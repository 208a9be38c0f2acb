"""snapshots.py owns which code a run is of: its hash, the copy of it in the run's code/, and what is other code now.

    state = code_state()                            # for config.json
    changed_files(run_a / "code", run_b / "code")   # ["model.py +1 -1"]
    other_network(run)                              # ["model.py"]: these weights meet another network here

A change of the code may be the very thing that is tested (compare_runs.py --treatment code).
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from lab import disk

REPO = Path(__file__).resolve().parents[1]
PACKAGES = {"site-packages", "dist-packages"}
NOT_OF_A_RUN = {"tests"}  # a process of pytest has imported them
# what turns weights and tokens into logits, besides modules of your own
NETWORK = ("model.py", "lab/activations.py", "lab/architecture.py", "lab/attention.py", "lab/chunks.py",
           "lab/memory.py", "lab/memory_settings.py")


def code_files() -> list[Path]:
    """What a run's code/ holds: the scripts, lab/ with its data files, and each further module of this repository that
    the process has imported, such as one of your own in any folder."""
    files = {*REPO.glob("*.py"), *REPO.glob("lab/*.*")}
    return sorted({path for path in files if path.is_file()} | imported_files())


def imported_files() -> set[Path]:
    """The repository's modules that this process has imported; no packages of an environment inside it."""
    files = set()
    environment = [Path(folder) for folder in {sys.prefix, sysconfig.get_paths()["stdlib"]}]
    for module in list(sys.modules.values()):
        path = place_of(getattr(module, "__file__", None) or os.sep)
        # torch names some files that are not there
        if path and path.suffix == ".py" and path.is_file():
            parts = path.relative_to(REPO).parts
            foreign = any(part.startswith(".") or part in PACKAGES for part in parts)
            foreign |= any(folder != REPO and path.is_relative_to(folder) for folder in environment)
            if not foreign and parts[0] not in NOT_OF_A_RUN:
                files.add(path)
    return files


def place_of(file: str) -> Path | None:
    """Where a file is in this repository, None outside. One that is imported as a part of it is, wherever it or its
    folder is a link to: its text is the run's code."""
    path = os.path.abspath(file)
    real = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
    if os.path.islink(path):
        real = os.path.realpath(path)
    for place in (path, real):
        folder, name = os.path.split(place)
        inside = _folder_in(REPO, folder)
        if inside:
            return inside / name
    return None


_real = functools.cache(os.path.realpath)  # of a folder, which many files share


@functools.cache
def _folder_in(repo: Path, folder: str) -> Path | None:
    for above in (Path(folder), *Path(folder).parents):
        if os.path.realpath(above) == str(repo):
            return repo / Path(folder).relative_to(above)
    return None


def code_state() -> dict:
    """{"git_commit", "git_dirty", "git_diff", "code_sha256"} of the code that runs.

    The hash covers the repo's modules that this process has imported, so that a change to compare_runs.py between two
    runs of train_gpt.py does not make them differ. git_commit and git_dirty are None where git does not know: a
    tarball, a clone of another user, a run's copy of the code."""
    digest = hashlib.sha256()
    for path in sorted(imported_files()):
        name = path.relative_to(REPO).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    commit = None
    if _git("ls-files", "--", "model.py"):
        commit = _git("rev-parse", "HEAD").strip() or None
    changes = _git("status", "--porcelain", "--", "*.py").strip()
    plain = ("--no-ext-diff", "--no-textconv", "--no-color")
    return {
        "git_commit": commit, "git_dirty": commit and bool(changes),
        "git_diff": _git("diff", *plain, "HEAD", "--", "*.py"), "code_sha256": digest.hexdigest(),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPO), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=30, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


# ----------------------------------------------------------------------------------------------------------------------
# what is other code


def changed_files(a: Path, b: Path) -> list[str]:
    """Python files that differ between two copies of the code, the network's first, with the lines added and removed:
    "model.py +1 -1"."""
    names = sorted(_modules(a) | _modules(b), key=lambda name: (name not in NETWORK, name))
    changes = []
    for name in names:
        before, after = (_lines(folder / name) for folder in (a, b))
        if before != after:
            diff = list(difflib.unified_diff(before, after, n=0, lineterm=""))
            marks = [line[0] for line in diff[2:]]
            changes.append(f"{name} +{marks.count('+')} -{marks.count('-')}")
    return changes


def other_network(run: Path, step: int | None = None) -> list[str]:
    """The files that make another network of a run's weights (of a step; None: its last) here than where they were
    trained, as far as anybody can tell from the code: comments and docstrings do not count. Empty for a run without a
    copy of its code."""
    code = _copy_of(Path(run).resolve(), step)
    if not (code / "model.py").is_file() or code == REPO:
        return []
    own = {name for name in _modules(code) if "/" in name and not name.startswith("lab/")}
    names = sorted({*NETWORK, *own})
    return [name for name in names if _meaning(code / name) != _meaning(REPO / name)]


def warning_of(run: Path, step: int | None) -> str:
    """A sentence where other_network(run, step) is not empty, else ""."""
    names = other_network(run, step)
    if not names:
        return ""
    return (f"WARNING: {run} was trained by other code than this, of {', '.join(names)} "
            f"({_copy_of(Path(run), step)}). If the network is another one now, so is what comes out: "
            "the scripts in that folder are the run's own.")


def of_scores(run: Path | None, step: int | None) -> dict:
    """What a record of scores of a run's step says of the code: {"other_network": "model.py", and the beginning of a
    hash of the network that scored}, or nothing."""
    if run and (names := other_network(run, step)):
        network = hashlib.sha256("".join(_meaning(REPO / name) for name in NETWORK).encode()).hexdigest()
        return {"other_network": f"{', '.join(names)} {network[:12]}"}
    return {}


def record_resumed(run: Path, config: dict, checkpoint: str, now: dict) -> list[str]:
    """Notes that a run (its config.json, `config`) goes on from a checkpoint, "" for none, by the code of code_state()
    `now`.

    Where that is not the code that trained up to there, config.json gets "versions", [{"step", "code_sha256"}], each
    from behind its step on, and a code_sha256 that no run of one code has; code_000004/ is the copy of what goes on
    behind step 4. Versions behind the checkpoint are dropped with what they trained. Returns a line for the log where
    the code is another one."""
    run, code, step = Path(run), config["code"], 0
    if checkpoint:
        step = int(Path(checkpoint).name.removeprefix("step_"))
    versions = code.get("versions") or [{"step": 0, "code_sha256": code["code_sha256"]}]
    kept = [version for version in versions if version["step"] < step]
    is_new = not kept or kept[-1]["code_sha256"] != now["code_sha256"]
    if is_new:
        kept.append({"step": step, "code_sha256": now["code_sha256"]})
    if kept == versions:
        return []
    changes = changed_files(_copy_of(run), REPO)
    for version in versions[1:]:
        if version not in kept:
            shutil.rmtree(run / f"code_{version['step']:06d}", ignore_errors=True)
    config["code"] = {**code, "code_sha256": kept[0]["code_sha256"]}
    config["code"].pop("versions", None)
    if step == 0:
        config["code"] = dict(now)
    if len(kept) > 1:
        every = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
        config["code"] |= {"versions": kept, "code_sha256": every}
    if is_new:
        folder = run / "code"
        if step:
            folder = run / f"code_{step:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        copy_code(folder)
    disk.write_json(run / "config.json", config)
    if not is_new:
        return []
    return [f"WARNING: the code has changed since the run was left ({', '.join(changes) or 'in no line'}). "
            "What follows is by the new code; compare_runs.py will not take the run for one of a single code."]


def copy_code(folder: Path) -> None:
    """Copy code_files() into a new folder. OSError when it cannot be written."""
    for path in code_files():
        copy = folder / path.relative_to(REPO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _copy_of(run: Path, step: int | None = None) -> Path:
    """The copy of the code that trained a run up to a step (None: its last)."""
    copies = {int(path.name.removeprefix("code_")): path for path in run.glob("code_[0-9]*")}
    began = [at for at in copies if step is None or at < step]
    return copies[max(began)] if began else run / "code"


def _modules(code: Path) -> set[str]:
    """Names of the Python files of a copy of the code, or of the repository, as code_files() has them."""
    files = code.rglob("*.py")
    if code == REPO:
        files = (path for path in code_files() if path.suffix == ".py")
    return {path.relative_to(code).as_posix() for path in files if path.is_file()}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _meaning(path: Path) -> str:
    """A file's syntax tree without docstrings; its text where it is no Python of this version; "" for no file."""
    text = "\n".join(_lines(path))
    try:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [part for part in body if not _is_text(part)]
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _is_text(node) -> bool:
    """Whether a statement is a string alone, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
