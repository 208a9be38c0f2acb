"""snapshots.py owns which code a run is of: its hash, the copy of it in the run's code/, and what is other code now.

    state = code_state()                            # for config.json
    changed_files(run_a / "code", run_b / "code")   # ["model.py +1 -1"]
    other_network(run)                              # ["model.py"]: these weights meet another network here

A change of the code may be the very thing that is tested (compare_runs.py --treatment code).
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from lab import disk

REPO = Path(__file__).resolve().parents[1]
NOT_OF_A_RUN = {"tests"}  # a process of pytest has imported them
# what turns weights and tokens into logits, besides modules of your own
NETWORK = ("model.py", "lab/activations.py", "lab/attention.py", "lab/chunks.py", "lab/memory.py",
           "lab/memory_settings.py")


def code_files() -> list[Path]:
    """What a run's code/ holds: the scripts, lab/ with its data files, and each further module of this repository that
    the process has imported, such as one of your own in any folder."""
    return sorted({*REPO.glob("*.py"), *REPO.glob("lab/*.*"), *imported_files()})


def imported_files() -> set[Path]:
    """The repository's modules that this process has imported; no packages of an environment inside it."""
    top, files = f"{REPO}{os.sep}", set()
    for module in list(sys.modules.values()):
        path = os.path.realpath(getattr(module, "__file__", None) or os.sep)
        # torch names some files that are not there
        if path.startswith(top) and path.endswith(".py") and os.path.isfile(path):
            parts = Path(path).relative_to(REPO).parts
            foreign = any(part.startswith(".") or part == "site-packages" for part in parts)
            if not foreign and parts[0] not in NOT_OF_A_RUN:
                files.add(Path(path))
    return files


def code_state() -> dict:
    """{"git_commit", "git_dirty", "git_diff", "code_sha256"} of the code that runs.

    The hash covers the repo's modules that this process has imported, so that a change to compare_runs.py between two
    runs of train_gpt.py does not make them differ. None: git does not know (a tarball, a clone of another user)."""
    digest = hashlib.sha256()
    for path in sorted(imported_files()):
        name = path.relative_to(REPO).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
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
    """Python files that differ between two copies of the code, with the lines added and removed: "model.py +1 -1"."""
    names = sorted(_modules(a) | _modules(b))
    changes = []
    for name in names:
        before, after = (_lines(folder / name) for folder in (a, b))
        if before != after:
            diff = list(difflib.unified_diff(before, after, n=0, lineterm=""))
            marks = [line[0] for line in diff[2:]]
            changes.append(f"{name} +{marks.count('+')} -{marks.count('-')}")
    return changes


def other_network(run: Path) -> list[str]:
    """The files that make another network of a run's weights here than where it was trained, as far as anybody can
    tell from the code: comments do not count. Empty for a run without a copy of its code."""
    code = Path(run).resolve() / "code"
    if not (code / "model.py").is_file() or code == REPO:
        return []
    own = {name for name in _modules(code) if "/" in name and not name.startswith("lab/")}
    names = sorted({*NETWORK, *own})
    return [name for name in names if _meaning(code / name) != _meaning(REPO / name)]


def warning_of(run: Path) -> str:
    """A sentence where other_network(run) is not empty, else ""."""
    names = other_network(run)
    if not names:
        return ""
    return (f"WARNING: {run} was trained by other code than this, of {', '.join(names)} "
            f"({Path(run) / 'code'}). If the network is another one now, so is what comes out: "
            "the scripts in that folder are the run's own.")


def of_scores(run: Path | None) -> dict:
    """What a record of scores says of the code: {"other_network": "model.py"}, or nothing."""
    if run and (names := other_network(run)):
        return {"other_network": ", ".join(names)}
    return {}


def versions_of(config: dict) -> list[str]:
    """The code_sha256 of a run (its config.json), one for each version of the code that trained it, in order."""
    return [config["code"]["code_sha256"], *config["code"].get("resumed_by", [])]


def record_resumed(run: Path, config: dict, now: str) -> str:
    """Notes in a resumed run's config.json, which is `config`, that code of another code_sha256, `now`, goes on with
    it. Returns a sentence, "" where the code is the same."""
    versions = versions_of(config)
    if versions[-1] == now:
        return ""
    changes = ", ".join(changed_files(Path(run) / "code", REPO)) or "back to what the run began with"
    config["code"]["resumed_by"] = [*versions[1:], now]
    disk.write_json(Path(run) / "config.json", config)
    return (f"WARNING: the code has changed since the run was left ({changes}). What follows is by the new code; "
            "config.json says so, and compare_runs.py tells this run from one of a single code.")


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
    """A file's syntax tree, which has no comments; its text where it is no Python of this version; "" for no file."""
    text = "\n".join(_lines(path))
    try:
        return ast.dump(ast.parse(text))
    except (SyntaxError, ValueError):
        return text
