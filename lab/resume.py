"""resume.py owns how a trainer takes up what another process left: flags out of config.json, and a checkpoint's files.

Everything read here is checked against a schema first. What does not fit is one sentence that names file, place and
what to do; under --resume auto the checkpoint before it is taken.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

from lab import disk, flags, runs, schema, tokenizer

# ----------------------------------------------------------------------------------------------------------------------
# flags

FLAGS = {"flags": {schema.ANY_NAME: schema.ANYTHING}, "derived?": [schema.TEXT], "repo_paths?": [schema.TEXT],
         "model?": {}, "benchmarks?": {}}
CONFIG = FLAGS | {"started": schema.TEXT, "code": {"code_sha256": schema.TEXT}, "model": {}, "data": {}}


def portable(values: dict) -> dict:
    """{"flags", "repo_paths"}: flags with the paths inside this repo relative to it, and the names of these flags, so
    that a copy of the repo repeats a run in its own folders."""
    values, names = dict(values), []
    for name, value in values.items():
        if isinstance(value, str) and not runs.has_effect(name) and Path(value).is_absolute():
            if Path(value).is_relative_to(runs.REPO):
                values[name] = Path(value).relative_to(runs.REPO).as_posix()
                names.append(name)
    return {"flags": values, "repo_paths": names}


def take_defaults(parser, argv, skip=()) -> dict | None:
    """Makes the flags of a run the parser's defaults: of the run that --resume continues, else of --config.

    --config may also be plain {flag: value}. Returns config.json, None when there is none. skip: flags that are not
    taken. A value that the command line would refuse is refused."""
    first, _ = parser.parse_known_args(argv)
    if first.resume and not first.out_dir:
        parser.error("--resume needs --out_dir: name the run's folder.")
    if first.resume not in ("", "auto") and not first.resume.isdecimal():
        parser.error(f"--resume {first.resume}: give auto or the number of a checkpointed step.")
    source = first.config
    if source and Path(source).is_dir():
        source = first.config = str(Path(source) / "config.json")
    if first.resume and (Path(first.out_dir) / "config.json").exists():
        source = Path(first.out_dir) / "config.json"
    elif first.resume and not source:
        in_words = parser.error
        parser.error = lambda message: in_words(
            f"{message} ({first.out_dir} has no config.json, so that --resume takes no flags "
            "from it.)")
    if not source:
        return None
    if not Path(source).exists():
        parser.error(f"--config {source} does not exist: name a run, its config.json, or a JSON or YAML file of flags.")
    try:
        record = flags.read_file(source)
        is_plain = isinstance(record, dict) and "flags" not in record and source == first.config
        if not is_plain:
            record = schema.read_json(source, FLAGS, f"name a config.json that {parser.prog} wrote")
    except ValueError as error:
        parser.error(f"{source} is not a run's config.json: {error}")
    if is_plain:
        values = flags.read_values(parser, record, source)
        parser.set_defaults(**{name: value for name, value in values.items() if name not in skip})
        return {"flags": values}
    of_run = dict(record["flags"])
    unknown = sorted(set(of_run) - set(vars(first)))
    if unknown:
        parser.error(f"{source} has unknown flags ({', '.join(unknown)}): pass them by hand.")
    for action in parser._actions:
        value = of_run.get(action.dest, action.default)
        if not is_accepted(action, value):
            parser.error(f"{source} has --{action.dest} {value!r}, which {parser.prog} does not take: "
                         "repair the file, or pass the flags by hand.")
    for name in record.get("repo_paths", ()):
        if isinstance(of_run.get(name), str):
            of_run[name] = str(runs.REPO / of_run[name])
    derived = {*record.get("derived", ()), *derived_of_old(of_run)}
    for name in ("out_dir", "resume", "config", "preset", "dry_run", "name", *derived, *skip):
        of_run.pop(name, None)
    parser.set_defaults(**of_run)
    return record


def derived_of_old(flags: dict) -> list[str]:
    """Of the flags of a run that is older than --mlp, and than a record of what was derived: the width of its MLP where
    it is the default, as another --mlp or --n_embd has its own."""
    is_default = "mlp" not in flags and flags.get("n_inner") == 4 * (flags.get("n_embd") or 0)
    return ["n_inner"] if is_default else []


def is_accepted(action, value) -> bool:
    """Whether the command line could have given a flag this value."""
    if value == action.default and type(value) is type(action.default):
        return True
    if action.nargs == 0:  # a switch
        return isinstance(value, bool)
    if action.nargs in ("*", "+"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        parsed = (action.type or str)(str(value))
    except ValueError:
        return False
    return parsed == value and (action.choices is None or parsed in action.choices)


# ----------------------------------------------------------------------------------------------------------------------
# records

# what a finished run's summary is made of, by "type"
SCALARS = {
    "train": {"train_loss_opt_step_mean": schema.NUMBER},
    "val": {"val_loss": schema.NUMBER_OR_NULL},
    "mechanism": {"layers": [{schema.ANY_NAME: schema.ANYTHING}]},
}

WITH = {"mechanism": "val"}  # recorded with another evaluation


def read_scalars(folder) -> list[dict]:
    """Records of scalars.jsonl. ValueError, with its line, for one that is damaged."""
    path = Path(folder) / "scalars.jsonl"
    records = runs.read_jsonl(path)
    for count, record in enumerate(records, 1):
        of_all = {"type": schema.TEXT, "step": schema.COUNT}
        fault = schema.misfit(record, of_all) or schema.misfit(record, SCALARS.get(record["type"], {}))
        if fault:
            raise ValueError(runs.broken_line(path, count, fault))
    return records


def trim_records(folder: Path, last_step: int, due=()) -> None:
    """Take back what a run recorded after `last_step` (-1: everything), and its evaluations of that step which are
    still `due`, so that a resumed run writes them again.

    Later checkpoints become step_<step>.aside: --keep_last would count them, and delete those that the resumed run
    saves, and the next --resume auto would go on from one whose records are gone. The run deletes them as it passes
    their steps.

    ValueError, before a step is computed, for records that the run could not be finished with."""
    for path in runs.list_checkpoints(folder):
        if runs.step_of(path) > last_step:
            aside = path.with_name(f"{path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    for path in [*folder.glob("*.jsonl"), *folder.glob("exposures/*.jsonl")]:
        runs.rewrite_jsonl(path, lambda step: step > last_step)
    of_last = [record for record in read_scalars(folder) if record["step"] == last_step]
    kept = [record for record in of_last if WITH.get(record["type"], record["type"]) not in due]
    if kept != of_last:
        runs.replace_step(folder / "scalars.jsonl", last_step, kept)
    for path in folder.glob("val_documents_*.npz"):
        if re.fullmatch(r"val_documents_\d+", path.stem) and runs.step_of(path) > last_step:
            path.unlink()
    path = folder / "step_metrics.json"
    with disk.locked(path):
        table = runs.read_step_metrics(folder)
        if table:
            kept = {step: scores for step, scores in table.items() if int(step) <= last_step}
            disk.write_json(path, kept)


# ----------------------------------------------------------------------------------------------------------------------
# a checkpoint


def describe_init(path, condition: str = "") -> tuple[dict, Path]:
    """(what config.json records of the checkpoint that --init names, its folder). ValueError when it has not all tokens
    that its tokenizer has, in a condition if one is given."""
    from model import GPT

    folder, step, source = runs.resolve_checkpoint(path, flag="--init")
    config = GPT.load_config(folder)
    own, what = tokenizer.use_of(folder), "GPT-2's tokenizer"
    if condition:
        what = f"--condition {condition}"
    elif not own.is_gpt2:
        what = f"its tokenizer {own.name}"
    needed = own.vocab_size
    if own.is_gpt2 and condition != "mul_tokens":
        needed = tokenizer.N_GPT2_TOKENS
    if not own.is_gpt2 and condition == "mul_tokens":
        raise ValueError(f"--init {folder} has tokens of {own.condition}, and {what} is of GPT-2's: leave it out.")
    if config.vocab_size < needed:
        advice = "start from a checkpoint with that many"
        if config.vocab_size < tokenizer.N_GPT2_TOKENS:
            advice += f"; {tokenizer.advice_for(config.vocab_size)}"
        raise ValueError(f"--init {folder} has {config.vocab_size:,} tokens and {what} needs {needed:,}: {advice}.")
    condition = None
    if source is not None and (source / "config.json").exists():
        condition = runs.read_config(source).get("data", {}).get("condition")
    init = {
        "path": str(path), "folder": str(folder), "step": step, "condition": condition,
        "run": str(source) if source else None, "model": config.to_dict(),
        "model_sha256": disk.sha256_file(folder / "model.safetensors"),
    }
    return init, folder


def read_tensors(path: Path, device):
    """What torch.save wrote: tensors in lists and dicts. No code in the file is run. ValueError when it is damaged."""
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:  # the file is whole: no reason to fall back to an older checkpoint
        raise
    except Exception as error:  # whatever torch, zip and pickle come up with
        reason = str(error).strip().partition("\n")[0][:100]
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {reason})") from error


def read_checkpoint(folder: Path, model, optimizers: list, state_class) -> tuple:
    """(weights, a state per optimizer, RNG states per rank, the trainer's state) of a checkpoint, each checked against
    what it is for. ValueError names the file and what does not fit."""
    from model import GPT

    device = next(model.parameters()).device
    weights = GPT.load(folder, device).state_dict()
    shapes, own = ({name: tuple(t.shape) for name, t in one.items()} for one in (weights, model.state_dict()))
    if shapes != own:
        names = sorted(name for name in shapes | own if shapes.get(name) != own.get(name))
        raise ValueError(f"{folder} does not belong to this run (other shapes of {', '.join(names[:3])})")
    states = read_tensors(folder / "optimizer.pt", device)
    fault = misfit_of_optimizers(states, optimizers)
    if fault:
        raise ValueError(f"{folder / 'optimizer.pt'} does not belong to this run ({fault})")
    rng_states = read_tensors(folder / "rng.pt", "cpu")
    fault = misfit_of_rng(rng_states)
    if fault:
        raise ValueError(f"{folder / 'rng.pt'} holds no generators' states ({fault})")
    return weights, states, rng_states, read_trainer(folder / "trainer.json", state_class)


def read_trainer(path: Path, state_class):
    """trainer.json as a state. Its fields that an older version did not write keep their defaults."""
    kinds = {"int": schema.COUNT, "float": schema.AMOUNT, "str": schema.TEXT, "list[str]": [schema.TEXT]}
    fields = {field.name: field for field in dataclasses.fields(state_class)}
    shape = {f"{name}?": kinds.get(field.type, schema.ANYTHING) for name, field in fields.items()}
    shape["step"] = schema.COUNT
    values = schema.read_json(path, shape, "take the checkpoint before it")
    step = runs.step_of(path.parent)
    if values["step"] != step:
        raise ValueError(f"{path} is of step {values['step']}, its folder of step {step}")
    return state_class(**{name: value for name, value in values.items() if name in fields})


# settings that not every version of torch has written; a missing one gets its default
NEWER = {"decoupled_weight_decay"}


def misfit_of_optimizers(states, optimizers: list) -> str:
    """What in optimizer.pt does not fit the optimizers; "" when all fits."""
    import torch

    from lab import optim

    if not isinstance(states, list) or len(states) != len(optimizers):
        return f"not a list of {len(optimizers)} states"
    for i, (state, optimizer) in enumerate(zip(states, optimizers, strict=True)):
        groups = {"params": [schema.COUNT], "lr": schema.NUMBER, "initial_lr": schema.NUMBER}
        fault = schema.misfit(state, {"state": {}, "param_groups": [groups]}, f"[{i}]")
        if fault:
            return fault
        own = optimizer.state_dict()["param_groups"]
        if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own]:
            return f"[{i}].param_groups are of other parameters"
        for group, own_group in zip(state["param_groups"], own, strict=True):
            for key, own_value in own_group.items():
                if key in NEWER and key not in group:
                    continue
                if key not in group or not is_like(group[key], own_value):
                    return f"[{i}].param_groups: {key} is {group.get(key, 'missing')!r}"
        if type(optimizer) not in (torch.optim.AdamW, optim.Muon):
            continue  # what another one remembers of a parameter is its own affair
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if state["state"] and set(state["state"]) != set(range(len(params))):
            return f"[{i}].state is not of {len(params)} parameters"
        for number, values in state["state"].items():
            fault = misfit_of_values(values, state["state"][0], params[number], f"[{i}].state[{number}]")
            if fault:
                return fault
    return ""


def is_like(value, own) -> bool:
    """Whether a setting of an optimizer is of its own's type: a list as long, a finite number, or the same."""
    if isinstance(own, (list, tuple)):
        return type(value) is type(own) and len(value) == len(own) and all(map(is_like, value, own))
    if isinstance(own, float):
        return schema.NUMBER[1](value)
    return type(value) is type(own)


def misfit_of_values(values, of_first, parameter, place: str) -> str:
    """What in an optimizer's values of one parameter, such as its momentum, is not of its shape; "" when all fits.
    of_first: the values of the first parameter, which has the same ones."""
    if not isinstance(values, dict) or set(values) != set(of_first or ()):
        return f"{place} does not have the values of the first parameter"
    for key, value in values.items():
        shape = tuple(getattr(value, "shape", ("none",)))
        expected = tuple(parameter.shape)
        if key == "step":
            expected = ()
        if shape != expected:
            return f"{place}: {key} has shape {shape}, not {expected}"
    return ""


def misfit_of_rng(states) -> str:
    import torch

    if not isinstance(states, list) or not states:
        return "not a list"
    for rank, state in enumerate(states):
        try:
            torch.Generator().set_state(state["cpu"])
            if "cuda" in state and state["cuda"].dtype != torch.uint8:
                return f"[{rank}].cuda is not of bytes"
        except (TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
            return f"[{rank}]: {error!r}"[:100]
    return ""
