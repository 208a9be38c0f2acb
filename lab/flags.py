"""flags.py owns how a command line is read: a mistake is one sentence that names what was probably meant, before torch.

    parser = flags.Parser(prog="train_gpt.py", description=__doc__)  # an argparse.ArgumentParser

A script that needs torch says, before it imports anything that does:

    if __name__ == "__main__":
        flags.check_first(__file__)
"""

from __future__ import annotations

import argparse
import difflib
import importlib.abc
import importlib.util
import os
import re
import runpy
import sys
import types
from pathlib import Path

from lab import processes

# other names that people know a flag by: {name: flags of ours, of which a script has some}
SYNONYMS = {
    "lr": "learning_rate", "max_lr": "learning_rate", "wd": "weight_decay",
    "bs": "micro_batch_size batch_size", "batch": "micro_batch_size batch_size",
    "batch_size": "micro_batch_size total_batch_tokens total_batch_conversations",
    "device_batch_size": "micro_batch_size", "per_device_train_batch_size": "micro_batch_size",
    "grad_accum": "total_batch_tokens", "grad_accum_steps": "total_batch_tokens",
    "gradient_accumulation_steps": "total_batch_tokens total_batch_conversations",
    "steps": "max_train_steps", "max_steps": "max_train_steps", "max_iters": "max_train_steps",
    "num_iterations": "max_train_steps", "iterations": "max_train_steps", "num_steps": "max_train_steps",
    "warmup": "warmup_iters", "warmup_steps": "warmup_iters", "warmdown": "warmdown_iters",
    "data": "data_dir dataset", "dataset": "data_dir data", "dataset_dir": "data_dir", "input": "data_dir dataset",
    "train_data": "data_dir data", "val_data": "val_data_dir",
    "out": "out_dir output", "output": "out_dir out", "output_dir": "out_dir out", "save_dir": "out_dir out",
    "run_dir": "out_dir", "block_size": "seq_len", "context_length": "seq_len", "sequence_length": "seq_len",
    "ctx": "seq_len", "max_length": "seq_len", "layers": "n_layer", "depth": "n_layer", "heads": "n_head",
    "hidden_size": "n_embd", "d_model": "n_embd", "width": "n_embd", "dim": "n_embd",
    "eval_interval": "eval_every", "val_every": "eval_every", "log_interval": "log_every",
    "save_interval": "save_every", "eval_iters": "val_tokens", "gate": "attn_gate", "clip": "grad_clip",
    "init": "init_from checkpoint", "init_from": "init", "pretrained": "init_from init",
    "model": "checkpoint init_from init", "ckpt": "checkpoint init_from init", "run": "checkpoint out_dir",
    "checkpoint": "init_from init", "n": "max_examples max_docs num_samples",
    "limit": "max_examples max_docs", "max_tokens": "max_new_tokens", "start": "prompt", "temp": "temperature",
    "num_samples": "max_examples", "n_examples": "max_examples", "max_items": "max_examples",
    "workers": "num_workers num_proc jobs", "threads": "num_workers num_proc", "gpu": "device", "cuda": "device",
    "precision": "dtype", "bf16": "dtype", "fp16": "dtype", "wandb": "wandb_project", "continue": "resume",
    "epoch": "epochs max_epochs", "num_epochs": "epochs max_epochs", "split": "val_fraction val_shards",
}
INTERRUPTED = 130  # the exit status after ctrl-C
NOUNS = {"int": "a whole number", "float": "a number"}
# argparse's words: what to say in their place
NEEDS_VALUE = re.compile(r"expected (one argument|at least one argument|\d+ arguments)")
WRONG_KIND = re.compile(r"invalid (\w+) value: (.*)", re.DOTALL)


def plain(word: str) -> str:
    """A flag's name as we would write it, without its hyphens and its value."""
    return word.partition("=")[0].strip("-\u2013\u2014").lower().replace("-", "_")


def suggest(word: str, names: list[str]) -> list[str]:
    """Up to three of names that `word` may stand for, the likeliest first."""
    name, likely = plain(word), []
    likely += [known for known in names if known.lower() == name]
    likely += [known for known in SYNONYMS.get(name, "").split() if known in names]
    if not likely:
        likely = difflib.get_close_matches(name, names, n=2, cutoff=0.7)
    if not likely:
        words = set(name.split("_"))
        likely = [known for known in names if words <= set(known.split("_"))]
    return likely[:3]


def did_you_mean(names: list[str], prefix: str = "") -> str:
    """The end of a sentence: ": did you mean --x?"; "" without a name."""
    if not names:
        return ""
    return f": did you mean {' or '.join(prefix + name for name in names)}?"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, without the usage; a flag is never abbreviated.

    checks_more: the script looks at the values, too, and then calls accept()."""

    def __init__(self, *args, checks_more=False, **settings):
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, **settings}
        super().__init__(*args, allow_abbrev=False, **settings)
        self.checks_more = checks_more

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:]
        if args is not None:
            words = list(args)
        self.refuse_unknown(words)
        parsed, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"{' '.join(rest)} belongs to no flag: quote a value that has spaces; "
                       "--help lists the flags.")
        if not self.checks_more:
            accept()
        return parsed, rest

    def refuse_unknown(self, words: list[str]) -> None:
        """Ends the script when a word that looks like a flag is none. Said first: a flag that seems missing is most
        often one that was misspelt."""
        known = self._option_string_actions
        names = [option[2:] for option in known if option.startswith("--")]
        faults = []
        for word in words:
            if word == "--":
                break
            option = word.partition("=")[0]
            is_flag = re.match(r"[-\u2013\u2014]+[A-Za-z]", word) and " " not in option
            is_short = not word.startswith("--") and word[:2] in known
            if not is_flag or option in known or is_short:
                continue
            advice = did_you_mean(suggest(word, names), "--") or ": --help lists the flags."
            faults.append(f"{option} is no flag of {self.prog}{advice}")
        if faults:
            self.error(" ".join(faults))

    def _check_value(self, action, value):
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        likely = did_you_mean(difflib.get_close_matches(str(value), choices, n=1)) or "."
        name = (action.option_strings or [action.dest])[0]
        self.error(f"{name} {value}: choose one of {', '.join(choices)}{likely}")

    def sentence(self, message: str) -> str:
        """An error of argparse in our words."""
        match = re.match(r"argument (\S+?)(?:/\S+)?: (.*)", message, re.DOTALL)
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            return f"{missing} is missing: --help says what it is."
        if match is None:
            return message
        name, fault = match.groups()
        kind = WRONG_KIND.match(fault)
        if kind:
            return f"{name} {kind[2]}: give {NOUNS.get(kind[1], kind[1])}."
        if NEEDS_VALUE.match(fault):
            return f"{name} needs a value: write {name} VALUE; --help says which."
        return f"{name}: {fault}"

    def error(self, message: str):
        """Prints one sentence, on rank 0 alone, and exits with status 2."""
        processes.leave_to_main()
        self.exit(2, f"{self.prog}: {self.sentence(message)}\n")

    def exit(self, status=0, message=None):
        if message:
            self._print_message(message, sys.stderr)
        raise Exit(status)


# ----------------------------------------------------------------------------------------------------------------------
# before torch is imported


class Exit(SystemExit):
    """How a Parser ends a script."""


class Accepted(BaseException):
    """A command line was read without a fault, while torch was hidden."""


def accept() -> None:
    """Ends check_first's look at the command line; nothing otherwise."""
    if _Torch.is_hidden:
        raise Accepted


class _AnyType(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything

    def __call__(cls, *_, **__):
        return _Anything

    def __or__(cls, other):
        return _Anything

    __ror__ = __getitem__ = __or__


class _Anything(metaclass=_AnyType):
    """Stands for whatever a module takes from torch when it is imported: a base class, a decorator, a dtype."""


class _Torch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty torch."""

    is_hidden = False

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = _Anything.__class__.__getattr__.__get__(_Anything)
        return module

    def exec_module(self, module):
        pass


def check_first(script: str) -> None:
    """Ends a script in a sentence when its command line is wrong, or prints its --help, before torch is imported.

    The script is run with an empty torch until it has read its command line, and what it imported of this repo is
    forgotten again. Whatever else happens on the way decides nothing: the script then runs as always."""
    if _Torch.is_hidden or "torch" in sys.modules:
        return
    finder, before = _Torch(), set(sys.modules)
    root = Path(__file__).resolve().parents[1]
    _Torch.is_hidden = True
    sys.meta_path.insert(0, finder)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if isinstance(error, Exit) or error.code == INTERRUPTED:
            raise
    except (Exception, Accepted):
        pass
    finally:
        sys.meta_path.remove(finder)
        _Torch.is_hidden = False
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or os.devnull
            ours = Path(file).resolve().is_relative_to(root) and "site-packages" not in file
            if ours or name.split(".")[0] == "torch":
                del sys.modules[name]
