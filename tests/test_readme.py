"""The README's commands: each names a script that exists and flags that the script knows."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = {"python", "bash", "torchrun"}


def commands() -> list[str]:
    """Every command of the README: lines of its ```bash blocks, and code spans that begin with a launcher."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    candidates = [line.partition("   #")[0].strip() for line in lines] + spans
    return [c.replace("\\|", "|") for c in dict.fromkeys(candidates) if is_command(c)]


def is_command(text: str) -> bool:
    words = re.sub(r"^([A-Z_]+=\S+ )+", "", text).split()
    return len(words) > 1 and words[0] in LAUNCHERS


def split_command(command: str) -> tuple[str, list[str]]:
    """(script, its arguments) of `[VAR=value] launcher [launcher's flags] script arguments`."""
    words = shlex.split(command.replace("<", "").replace(">", ""))
    while "=" in words[0]:
        words.pop(0)
    words.pop(0)
    if words[0] == "-m":
        return words[1].replace(".", "/") + ".py", words[2:]
    while words[0].startswith("-"):
        words.pop(0)
    return words[0], words[1:]


def help_of(script: str, arguments: list[str], capsys, monkeypatch) -> str:
    """What `python script [subcommand] --help` prints, in this process."""
    path = ROOT / script
    if path.parent.name == "lab":
        module = importlib.import_module(f"lab.{path.stem}")
    else:
        monkeypatch.syspath_prepend(str(path.parent))
        module = importlib.import_module(path.stem)
    subcommand = [word for word in arguments[:1] if word in ("export", "import")]
    monkeypatch.setattr(sys, "argv", [script, *subcommand, "--help"])
    with pytest.raises(SystemExit) as exit_:
        module.main()
    assert not exit_.value.code
    return capsys.readouterr().out


def test_readme_has_its_commands():
    """The two set-up commands are there, and the parser of this test finds the others."""
    found = commands()
    assert "bash experiments/quickstart.sh" in found and "bash tests/run.sh" in found
    assert sum(c.startswith("python ") for c in found) >= 10


@pytest.mark.parametrize("command", commands())
def test_command_is_known(command, capsys, monkeypatch):
    """A reader who copies the command meets no missing file and no unknown flag."""
    script, arguments = split_command(command)
    assert (ROOT / script).is_file(), f"{script} does not exist"
    if script.endswith(".sh"):
        return
    text = help_of(script, arguments, capsys, monkeypatch)
    flags = [word.partition("=")[0] for word in arguments if re.match(r"--[a-z]", word)]
    unknown = [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", text)]
    assert not unknown, f"{script} has no {', '.join(unknown)}"
