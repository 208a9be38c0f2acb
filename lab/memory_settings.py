"""memory_settings.py owns how a memory (lab/memory.py) is configured: fields of GPTConfig, flags, rules."""

import math
from dataclasses import dataclass

from lab.schema import check

MEMORIES = ("none", "titan", "hope_attention", "hope")
WITH_TITAN, WITH_CMS = ("titan", "hope"), ("hope_attention", "hope")


@dataclass
class Settings:
    """Fields of model.GPTConfig; older configurations, of models without memory, lack them. See HELP."""

    memory: str = "none"
    memory_layers: int = 0
    write: str = "stop"
    cms_periods: tuple[int, ...] = ()
    cms_widths: tuple[int, ...] = ()
    titan_width: int = 0
    titan_period: int = 0
    titan_clip: float = 1.0
    self_modifier: str = "off"
    inner_lr: float = 1.0
    inner_lr_learned: bool = False
    inner_optimizer: str = "sgd"
    inner_clip: float = 0.3
    inner_decay: float = 0.0
    teach_scale: tuple[float, ...] = (1.0,)
    teach_clip: float = 0.0
    surprise_threshold: float = 0.0


CHOICES = dict(
    memory=MEMORIES,
    write=("off", "stop", "through"),
    self_modifier=("off", "frozen", "on"),
    inner_optimizer=("sgd", "momentum", "rank1"))
HELP = {
    "--memory": "fast weights in the last blocks",
    "--memory_layers": "blocks that have them (0 = the last quarter)",
    "--write": "CMS levels in training: not written; written; written, with gradients through the writes",
    "--cms_periods": "tokens between the writes of each level, 0 = never (default 128,0; shorter where sequences are)",
    "--cms_widths": "of the levels (default: as large a model as one without memory, half of the channels "
               "for the written levels, half for the one that is never written)",
    "--titan_width": "of the Titans memory (0 = n_embd / 2)",
    "--titan_period": "tokens between its writes (0 = the smallest of --cms_periods)",
    "--titan_clip": "largest L2 norm of a write of the Titans memory before inner_lr (0 = off)",
    "--self_modifier": "HOPE: the Titans memory's values come through a level that is written",
    "--inner_lr": "learning rate of the writes",
    "--inner_lr_learned": "train a factor on inner_lr for each level (CMS: with --write through)",
    "--inner_optimizer": "of the writes; rank1 leaves out the direction of the mean input",
    "--inner_clip": "largest L2 norm of a write of a CMS level before inner_lr (0 = off)",
    "--inner_decay": "share that a write forgets of the earlier ones",
    "--teach_scale": "factor on the teach signal, or one per written level (default 1)",
    "--teach_clip": "largest L2 norm of a token's teach signal (0 = off)",
    "--surprise_threshold": "tokens whose teach signal has a smaller norm are not written",
}
SCHEDULE_HELP = {
    "--teach_warmup_iters": "steps of linear warmup of the teach scale (0 = off)",
    "--teach_decay_start": "step from which it falls (0 = never)",
    "--teach_decay_iters": "steps in which it falls to 0",
}
NAMES = [flag.removeprefix("--") for flag in HELP]
SCHEDULE_NAMES = [flag.removeprefix("--") for flag in SCHEDULE_HELP]
# Document 004 as it was run, with its sign repaired: its writes are too small to show.
PRESETS = {"original": dict(memory="hope_attention", write="off", inner_lr=3.75e-6)}


def add_arguments(group) -> None:
    """Adds the flags of HELP and SCHEDULE_HELP to a parser's group."""
    for flag, text in HELP.items():
        name = flag.removeprefix("--")
        default = getattr(Settings, name)
        if isinstance(default, bool):
            group.add_argument(flag, action="store_true", help=text)
            continue
        if isinstance(default, tuple):  # kept as text, which config.json and a results.csv can hold
            default = as_text(default)
        stated = " (default %(default)s)"
        if "(default" in text or (not default and "(0 = " in text):
            stated = ""
        choices = CHOICES.get(name)
        if name == "memory":
            choices = (*choices, *PRESETS)
        group.add_argument(flag, type=type(default), choices=choices, default=default,
                           help=text + stated)
    for flag, text in SCHEDULE_HELP.items():
        group.add_argument(flag, type=int, default=0, help=text)


def fill_in(args) -> None:
    """Puts the flags that a preset's name stands for into args; a flag that was given stays."""
    for name, value in PRESETS.get(args.memory, {}).items():
        if name == "memory" or getattr(args, name) == getattr(Settings, name):
            setattr(args, name, value)


def as_text(numbers) -> str:
    return ",".join(map(str, numbers))


def settings_of(args) -> dict:
    """The fields of Settings from a trainer's flags. ValueError for lists that are not numbers."""
    values = {name: getattr(args, name) for name in NAMES}
    for name, kind in (("cms_periods", int), ("cms_widths", int), ("teach_scale", float)):
        try:
            values[name] = tuple(kind(part) for part in values[name].split(",") if part.strip())
        except ValueError:
            raise ValueError(f"--{name} {values[name]} is not a comma-separated list of numbers; "
                             f"give one such as {as_text((kind(128), kind(0)))}") from None
    return values


def flags_of(config: dict) -> dict:
    """Flags for the fields of Settings in a model's configuration (GPTConfig.to_dict)."""
    flags = {name: config[name] for name in NAMES if name in config}
    lists = {name: as_text(value) for name, value in flags.items() if isinstance(value, (list, tuple))}
    return flags | lists


def unused_flags(c) -> list[str]:
    """Flags that a model of configuration c does not use."""
    if c.memory == "none":
        return [name for name in NAMES if name != "memory"] + SCHEDULE_NAMES
    unused = []
    if c.memory not in WITH_TITAN:
        unused += ["titan_width", "titan_period", "titan_clip"]
    if c.memory != "hope":
        unused.append("self_modifier")
    if c.memory not in WITH_CMS:
        unused += ["write", "inner_clip", "teach_scale", "teach_clip", "surprise_threshold", *SCHEDULE_NAMES]
    return unused


def teach_factor(args, step: int) -> float:
    """What the teach scale is multiplied by at optimizer step `step`, from 0: linear up, 1, linear down to 0."""
    factor = 1.0
    if step < args.teach_warmup_iters:
        factor = (step + 1) / args.teach_warmup_iters
    if args.teach_decay_start and step >= args.teach_decay_start:
        gone = step - args.teach_decay_start
        factor *= max(0.0, 1 - gone / max(args.teach_decay_iters, 1))
    return factor


def checked(name: str, value):
    """A setting's value, of the type of its default; ValueError for another type."""
    default = getattr(Settings, name)
    if isinstance(default, tuple):
        numbers = (int, float) if default else (int,)
        is_list = isinstance(value, (list, tuple)) and all(type(one) in numbers for one in value)
        check(is_list, f"{name} is {value!r:.60}; give a list of numbers")
        return tuple(value)
    kinds = {float: (int, float)}.get(type(default), (type(default),))
    check(type(value) in kinds, f"{name} is {value!r:.60}; give a value like {default!r}")
    return value


def complete_shape(c) -> None:
    """Fills in what a GPTConfig's 0 and () leave open of blocks, periods and the Titans memory, in place; ValueError
    for what no model can have."""
    for name in NAMES:
        setattr(c, name, checked(name, getattr(c, name)))
    for name, known in CHOICES.items():
        value = getattr(c, name)
        check(value in known, f"unknown {name} {value!r}; use one of {', '.join(known)}")
    if c.memory == "none":
        c.memory_layers = 0  # else as many blocks would have an empty memory in place of their MLP
        return
    c.memory_layers = c.memory_layers or max(1, c.n_layer // 4)
    check(1 <= c.memory_layers <= c.n_layer,
          f"memory_layers {c.memory_layers} but {c.n_layer} blocks; give a number from 1 to that")
    _complete_periods(c)


def complete_rates(c) -> None:
    """The same of widths and of what decides how much is written."""
    check(len(c.cms_widths) == len(c.cms_periods) and min(c.cms_widths) >= 1,
          f"cms_widths {c.cms_widths} do not fit cms_periods {c.cms_periods}; "
          "give one of at least 1 per level")
    n_written = sum(map(bool, c.cms_periods))
    if len(c.teach_scale) == 1:
        c.teach_scale *= max(n_written, 1)
    check(len(c.teach_scale) == max(n_written, 1),
          f"{len(c.teach_scale)} values of teach_scale for {n_written} written levels; "
          "give one, or one each")
    for name in "inner_lr inner_clip titan_clip teach_clip surprise_threshold titan_width".split():
        check(0 <= getattr(c, name) < math.inf, f"{name} {getattr(c, name)}; give 0 or more")
    check(all(0 <= scale < math.inf for scale in c.teach_scale),
          f"teach_scale {c.teach_scale}; give 0 or more")
    check(0 <= c.inner_decay < 1, f"inner_decay {c.inner_decay}; give a share from 0 to below 1")
    learned = c.inner_lr_learned and c.memory in WITH_CMS
    check(not learned or c.write == "through",
          f"inner_lr_learned needs gradients through the writes, but write is {c.write}; "
          "use write through")
    check(c.write != "through" or c.inner_optimizer != "rank1",
          "inner_optimizer rank1 has no gradient through its writes; use write stop")
    check(c.self_modifier == "off" or c.memory == "hope",
          f"self_modifier {c.self_modifier} is a part of memory hope; "
          f"leave it out with memory {c.memory}")


def _complete_periods(c) -> None:
    if c.memory in WITH_CMS:
        c.cms_periods = c.cms_periods or (default_period(c), 0)
        check(any(c.cms_periods),
              f"cms_periods {c.cms_periods} write no level; give one above 0, such as 128,0")
    else:
        c.cms_periods = c.cms_periods or (0,)
        check(not any(c.cms_periods),
              "memory titan writes no CMS level; leave cms_periods out or use memory hope")
    check(min(c.cms_periods) >= 0, f"cms_periods {c.cms_periods}; give 0 or more per level")
    if c.memory in WITH_TITAN:
        c.titan_width = c.titan_width or max(1, c.n_embd // 2)
        c.titan_period = c.titan_period or min(filter(None, c.cms_periods), default=default_period(c))
    for period in written_periods(c):
        check(period % chunk_size(c) == 0,
              f"a period of {period} tokens is no multiple of the smallest one, {chunk_size(c)}; "
              "change cms_periods or titan_period")
        check(period < c.block_size,
              f"what is written every {period} tokens is never read in sequences of {c.block_size}; "
              "lower cms_periods or titan_period, or read longer sequences")


def default_period(c) -> int:
    """128 tokens, or the largest power of two that divides a sequence and still leaves something to read it."""
    powers = (128, 64, 32, 16, 8, 4, 2)
    return next((period for period in powers if period < c.block_size and c.block_size % period == 0), 1)


def check_rows(c, seq_len: int) -> None:
    """ValueError when training a model of configuration c on rows of seq_len tokens would leave some of what it reads
    unwritten, or what it writes unread."""
    if not written_periods(c):
        return
    size = chunk_size(c)
    check(seq_len % size == 0,
          f"rows of {seq_len} tokens are no multiple of the smallest period, {size}; "
          f"change --cms_periods or --titan_period, or pass --seq_len {max(2, seq_len // size) * size}")
    longest = max(written_periods(c))
    check(longest < seq_len,
          f"what is written every {longest} tokens is never read in rows of {seq_len}; "
          "lower --cms_periods or --titan_period, or raise --seq_len")


def schedule_warning(c, args) -> str:
    """What is wrong with a teach schedule that ends at 0 before the run does; "" where nothing is."""
    if c.memory not in WITH_CMS or c.write == "off":
        return ""
    total, n = args.max_train_steps, 0
    while n < total and teach_factor(args, total - 1 - n) == 0:
        n += 1
    if n == 0:
        return ""
    return (f"the teach schedule ends at 0, so the last {n} steps train a static model: "
            "raise --teach_decay_start or --teach_decay_iters")


def written_periods(c) -> list[int]:
    """Of everything that is written, in tokens; empty without memory."""
    periods = [period for period in c.cms_periods if period]
    if c.memory in WITH_TITAN:
        periods.append(c.titan_period)
    return periods


def chunk_size(c) -> int:
    """Tokens that are read at a time: the smallest period."""
    return min(written_periods(c))


def writes(c) -> bool:
    """Whether reading a sequence writes. The Titans memory is a recurrent layer, which always does."""
    return c.memory in WITH_TITAN or (c.memory in WITH_CMS and c.write != "off")
