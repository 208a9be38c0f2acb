"""flags.py owns how a command line is read: a mistake is one sentence that names what was probably meant, before torch.

    parser = flags.Parser(prog="train_gpt.py", description=__doc__)  # an argparse.ArgumentParser

A script that needs torch says, before it imports anything that does:

    if __name__ == "__main__":
        flags.check_first(__file__)
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import importlib.abc
import importlib.util
import math
import os
import re
import runpy
import sys
import types
from pathlib import Path

from lab import processes, runs, schema, snapshots

# other names that people know a flag by: {name: flags of ours, of which a script has some}
SYNONYMS = {
    "lr": "learning_rate", "max_lr": "learning_rate", "wd": "weight_decay",
    "bs": "micro_batch_size batch_size", "batch": "micro_batch_size batch_size",
    "batch_size": "micro_batch_size total_batch_tokens total_batch_conversations",
    "device_batch_size": "micro_batch_size", "per_device_train_batch_size": "micro_batch_size",
    "grad_accum": "total_batch_tokens", "grad_accum_steps": "total_batch_tokens",
    "gradient_accumulation_steps": "total_batch_tokens total_batch_conversations",
    "steps": "max_train_steps", "max_steps": "max_train_steps", "max_iters": "max_train_steps",
    "num_iterations": "max_train_steps", "iterations": "max_train_steps",
    "num_steps": "max_train_steps", "warmup": "warmup_iters", "warmup_steps": "warmup_iters",
    "warmdown": "warmdown_iters", "data": "data_dir dataset", "dataset": "data_dir data",
    "data_dir": "data dataset",
    "dataset_dir": "data_dir", "input": "data_dir dataset", "train_data": "data_dir data",
    "val_data": "val_data_dir", "out": "out_dir output", "output": "out_dir out",
    "output_dir": "out_dir out", "out_dir": "out output",
    "save_dir": "out_dir out", "run_dir": "out_dir",
    "block_size": "seq_len", "context_length": "seq_len", "sequence_length": "seq_len",
    "ctx": "seq_len", "max_length": "seq_len", "layers": "n_layer", "depth": "n_layer",
    "heads": "n_head", "hidden_size": "n_embd", "d_model": "n_embd", "width": "n_embd",
    "dim": "n_embd", "eval_interval": "eval_every", "val_every": "eval_every",
    "log_interval": "log_every", "save_interval": "save_every", "eval_iters": "val_tokens",
    "gate": "attn_gate", "clip": "grad_clip", "init": "init_from checkpoint run",
    "init_from": "init checkpoint run", "pretrained": "init_from init",
    "model": "checkpoint init_from init run", "ckpt": "checkpoint init_from init run",
    "run": "checkpoint out_dir", "checkpoint": "init_from init run", "n": "max_examples max_docs num_samples",
    "max_tokens": "max_new_tokens", "start": "prompt", "temp": "temperature",
    "limit": "max_examples max_docs", "num_samples": "max_examples", "n_examples": "max_examples",
    "max_items": "max_examples", "workers": "num_workers num_proc jobs",
    "threads": "num_workers num_proc", "gpu": "device", "cuda": "device", "precision": "dtype",
    "bf16": "dtype", "fp16": "dtype", "wandb": "wandb_project", "continue": "resume",
    "epoch": "epochs max_epochs", "num_epochs": "epochs max_epochs",
    "split": "val_fraction val_shards",
    # nanoGPT's
    "min_lr": "learning_rate_decay_frac", "decay_lr": "learning_rate_decay_frac", "lr_decay_iters": "max_train_steps",
    "wandb_log": "wandb_project", "wandb_run_name": "name", "always_save_checkpoint": "save_every",
    # nanochat's and modded-nanogpt's
    "total_batch_size": "total_batch_tokens", "max_seq_len": "seq_len", "eval_tokens": "val_tokens",
    "val_loss_every": "eval_every", "matrix_lr": "muon_lr", "embedding_lr": "learning_rate",
    "final_lr_frac": "learning_rate_decay_frac", "warmdown_ratio": "warmdown_iters",
    "cooldown_frac": "warmdown_iters", "cooldown_iters": "warmdown_iters", "model_tag": "name",
    "resume_from_step": "resume", "device_type": "device", "num_layers": "n_layer", "num_heads": "n_head",
    "model_dim": "n_embd", "head_dim": "n_head", "mlp_ratio": "n_inner",
}
# what people know as a flag, and is a command here
ELSEWHERE = {"eval_only": "python experiments/score_val.py scores a checkpoint."}
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


def did_you_mean(words: list[str]) -> str:
    """The end of a sentence: ": did you mean --x?"; "" without a word."""
    if not words:
        return ""
    return f": did you mean {' or '.join(words)}?"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, without the usage; a flag is never abbreviated.

    checks_more: the script checks the values too, and calls accept() before anything else. further: what is done with
    more values than the one argument without a flag takes, as the end of a sentence."""

    def __init__(self, *args, checks_more=False, further="", **settings):
        settings = {"formatter_class": argparse.RawDescriptionHelpFormatter, **settings}
        super().__init__(*args, allow_abbrev=False, **settings)
        self.checks_more, self.further = checks_more, further

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:]
        if args is not None:
            words = list(args)
        self.refuse_unknown(words)
        parsed, rest = super().parse_known_args(words, namespace)
        if rest and all(map(os.path.exists, rest)):
            self.refuse_several(words, rest)
        if rest and "--config" in self._option_string_actions and os.path.isfile(rest[0]):
            self.error(f"{rest[0]} belongs to no flag: a file of flags comes after --config.")
        if rest:
            self.error(f"{' '.join(rest)} belongs to no flag: quote a value that has spaces; "
                       "--help lists the flags.")
        if not self.checks_more:
            accept()
        return parsed, rest

    def refuse_unknown(self, words: list[str]) -> None:
        """Ends the script when a word that looks like a flag is none. This comes before argparse, which would
        complain about a missing flag where it was only misspelt."""
        known = self._option_string_actions
        written = {option[2:]: option for option in known if option.startswith("--")}
        for action in self._get_positional_actions():
            if action.choices is None:  # no command
                written.setdefault(action.dest, f"{action.metavar or action.dest} without a flag")
        faults = []
        for word in words:
            if word == "--":
                break
            option = word.partition("=")[0]
            is_flag = re.match(r"[-\u2013\u2014]+[A-Za-z]", word) and " " not in option
            is_short = not word.startswith("--") and word[:2] in known
            if not is_flag or option in known or is_short:
                continue
            likely = [written[name] for name in suggest(word, list(written))]
            advice = did_you_mean(likely) or ": --help lists the flags."
            if plain(word) in ELSEWHERE:
                advice = f": {ELSEWHERE[plain(word)]}"
            faults.append(f"{option} is no flag of {self.prog}{advice}")
        if faults:
            self.error(" ".join(faults))

    def refuse_several(self, words: list[str], rest: list[str]) -> None:
        """Ends the script when `rest` are paths beside the one that a flag, or an argument without one, takes: a shell
        makes several of a pattern."""
        at = words.index(rest[0])
        flag = words[max(0, at - 2)]
        positional = [action.metavar or action.dest for action in self._get_positional_actions() if not action.choices]
        name, further = flag, ""
        if flag not in self._option_string_actions and positional:
            name, further = positional[0], self.further
        elif flag not in self._option_string_actions:
            return
        listed = ", ".join(rest[:3])
        if len(rest) > 3:
            listed += f" and {len(rest) - 3} more"
        self.error(f"{name} takes one path, and {listed} came after it, as a pattern gives several: name one{further}.")

    def _check_value(self, action, value):
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        likely = did_you_mean(difflib.get_close_matches(str(value), choices, n=1)) or "."
        name = (action.option_strings or [action.dest])[0]
        one_gpu = re.fullmatch(r"cuda:(\d+)", str(value))
        if one_gpu and "cuda" in choices:
            self.error(f"{name} {value}: pass {name} cuda, and write CUDA_VISIBLE_DEVICES={one_gpu[1]} in front of the "
                       "command, which picks the GPU.")
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
        _Torch.is_over = True
        sys.exit(status)


# ----------------------------------------------------------------------------------------------------------------------
# before torch is imported


class Accepted(BaseException):
    """A command line was read without a fault, while torch was hidden."""


def accept() -> None:
    """Ends check_first's look at the command line. Work must not begin before it: torch is empty."""
    processes.begin()
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

    __ror__ = __or__


class _Anything(metaclass=_AnyType):
    """Stands for whatever a module takes from torch when it is imported: a base class, a decorator, a dtype."""


class _Torch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty torch."""

    is_hidden = False
    is_over = False  # a Parser has ended the script

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
    processes.expect_ctrl_c()
    finder, before = _Torch(), set(sys.modules)
    _Torch.is_hidden, _Torch.is_over = True, False
    sys.meta_path.insert(0, finder)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if _Torch.is_over or error.code == INTERRUPTED:
            raise
    except (Exception, Accepted):
        pass
    finally:
        sys.meta_path.remove(finder)
        _Torch.is_hidden = False
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or os.devnull
            ours = snapshots.place_of(file) and "site-packages" not in file
            if ours or name.split(".")[0] == "torch":
                package, _, room = name.rpartition(".")
                # where `from lab import room` looks first
                vars(sys.modules.get(package, finder)).pop(room, None)
                del sys.modules[name]
        processes.expect_ctrl_c()  # again: torch is imported next


# ----------------------------------------------------------------------------------------------------------------------
# files of flags

BY_HAND = "help config resume preset dry_run".split()  # what a file of flags may not hold


def read_file(path):
    """What a JSON file, or a YAML file by its suffix, holds. ValueError when it cannot be read."""
    if Path(path).suffix.lower() == ".py":
        raise ValueError("it is Python, as nanoGPT's are: write its settings as YAML, a line `flag: value` each.")
    if Path(path).suffix.lower() not in (".yaml", ".yml"):
        return schema.read_json(path, advice="name a file that exists, and repair it")
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}): repair it, or name another file.") from None


def read_values(parser, values: dict, source) -> dict:
    """{flag: value as the command line would have given it} of a plain {flag: value}; ends with a usage error."""
    actions, typed = {action.dest: action for action in parser._actions}, {}
    for key, value in values.items():
        name = plain(str(key))
        if name in BY_HAND:
            parser.error(f"{source} has {key}: give --{name} by hand.")
        if name not in actions:
            advice = did_you_mean(suggest(name, list(actions))) or ": --help lists the flags."
            parser.error(f"{source} has {key}, which is no flag of {parser.prog}{advice}")
        try:
            typed[name] = convert(actions[name], value)
        except (TypeError, ValueError):
            kind = NOUNS.get(getattr(actions[name].type, "__name__", ""), "text")
            if actions[name].nargs == 0:
                kind = "true or false"
            elif actions[name].choices:
                kind = f"one of {', '.join(map(str, actions[name].choices))}"
            parser.error(f"{source} has {key} {value!r}: give {kind}.")
    return typed


def convert(action, value):
    """A value out of JSON or YAML as a flag's. ValueError when it cannot be one."""
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError
        return value
    if action.nargs in ("*", "+") or isinstance(action, argparse._AppendAction):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError
        return items
    if isinstance(value, bool) and action.choices:
        value = "on" if value else "off"  # YAML reads these words as true and false
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    typed = (action.type or str)(str(value))
    if action.choices is not None and typed not in action.choices:
        raise ValueError
    return typed


# ----------------------------------------------------------------------------------------------------------------------
# the flags of all trainers


def make_parser(prog: str, doc: str, **more) -> argparse.ArgumentParser:
    return Parser(prog=prog, description=doc, checks_more=True, **more)


def add_evaluation_arguments(parser, *, eval_every: int):
    """Adds the group "evaluation and samples" and returns it."""
    group = parser.add_argument_group("evaluation and samples")
    add = group.add_argument
    add("--eval_every", type=int, default=eval_every,
        help="steps between val losses; also before the first, after the last (default %(default)s; 0 = off)")
    add("--eval_batch_size", type=int, default=0,
        help="rows per forward pass (0 = --micro_batch_size, on CUDA 4 times as many); no effect on results")
    add("--sample_every", type=int, default=0, help="steps between printed samples (0 = off)")
    add("--sample_tokens", type=int, default=64, help="tokens per sample (default %(default)s)")
    return group


def add_run_arguments(parser, *, name: str, save_every: int):
    """Adds the group "run folder" and returns it. name: what --name consists of when it is not given."""
    group = parser.add_argument_group("run folder")
    add = group.add_argument
    add("--out_dir", help="the run's folder (default experiments/runs/<date>_<name>_s<seed>)")
    add("--name", default="", help=f"name in the default --out_dir (default: {name})")
    add("--config", help="config.json of a run, or JSON or YAML of {flag: value}, whose flags become defaults")
    add("--resume", default="",
        help="auto (newest whole checkpoint, or start) or a step; needs --out_dir ('' = new run)")
    add("--save_every", type=int, default=save_every,
        help="steps between checkpoints (default %(default)s; 0 = only the last)")
    add("--keep_last", type=int, default=2, help="checkpoints kept (default %(default)s; 0 = all)")
    add("--log_every", type=int, default=10,
        help="steps between lines in log.txt (0 = none); scalars.jsonl has every step")
    add("--dry_run", action="store_true", help="say what the run will cost in time, memory and disk, and stop there")
    add("--notes", default="", help="free text for config.json and results.csv")
    add("--wandb_project", default="", help="also show scalars.jsonl in this Weights & Biases project ('' = off)")
    add("--tensorboard", action="store_true", help="also write TensorBoard events into the run's folder")
    return group


def add_machine_arguments(parser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA when there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="autocast; auto = bfloat16 on CUDA that has it natively, and on a CPU that has it natively and at start "
             "measures its products 1.5 times as fast, for a model of 4M parameters or more; else float32")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto = on CUDA only")
    add("--deterministic", action="store_true",
        help="CUDA: slower, deterministic kernels for bit-exact resume (CPU always is)")
    add("--peak_flops", type=float, default=0.0,
        help="FLOP/s per rank that MFU is measured against (0 = data sheet; measured on CPU)")


NEEDS = {
    "a whole number of at least 1": lambda value: value >= 1,
    "0 or more": lambda value: value >= 0,
    "a number above 0": lambda value: 0 < value < math.inf,
    "a share from 0 to 1": lambda value: 0 <= value <= 1,
}
SHARED_FLAGS = {
    "a whole number of at least 1": "sample_tokens",
    "0 or more": "eval_every eval_batch_size sample_every save_every keep_last log_every warmdown_iters grad_clip "
                 "seed peak_flops",
    "a number above 0": "learning_rate",
}


def check_flags(parser, args, names_of: dict[str, str]) -> None:
    """Ends with a usage error when a shared flag, or one of names_of {key of NEEDS: names}, is not what it must be."""
    for table in (SHARED_FLAGS, names_of):
        for need, names in table.items():
            for name in names.split():
                value = getattr(args, name, None)
                if value is None:  # a shared flag that this script does not have
                    continue
                if not NEEDS[need](value):
                    parser.error(f"--{name} {value}: give {need}.")


def fill_in(args, name: str) -> None:
    """Values of shared flags that derive from others; config.json records what the run used."""
    args.name = args.name or name
    folder = f"{datetime.date.today()}_{args.name}_s{args.seed}"
    args.out_dir = args.out_dir or str(runs.REPO / "experiments" / "runs" / folder)
    accept()
