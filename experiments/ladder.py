"""ladder.py makes the commands of one training at several sizes: deeper and wider, each on more tokens.

    for s in 0 1 2; do
      echo "train_gpt.py --data_dir D --optimizer adamw --out_dir experiments/runs/x_s$s --seed $s ..."
      echo "train_gpt.py --data_dir D --optimizer muon --out_dir experiments/runs/y_s$s --seed $s ..."
    done > arms.txt
    python experiments/ladder.py arms.txt --depths 2 4 8 --tokens_per_parameter 20 > ladder.txt
    python experiments/sweep.py ladder.txt                                  # trains x_d2_s0, x_d4_s0, ...
    python experiments/sizes.py --a 'experiments/runs/x_d*' --b 'experiments/runs/y_d*'      # the effect by size

One number, the depth, sets the size, as in nanochat: a network of depth d has d layers and is 64 d wide. Its heads are
64 wide in all arms; nanochat's and --arch speedrun's own are 128: --head_dim 128. It has about N = 12 d (64 d)^2
parameters beside its embeddings, as Kaplan et al. count them (https://arxiv.org/abs/2001.08361), and reads
--tokens_per_parameter times N tokens; Hoffmann et al. found about 20, with the embeddings counted
(https://arxiv.org/abs/2203.15556). N follows from the depth alone, so all arms with equal --total_batch_tokens read the
same tokens. Warmup, warmdown and a memory's teach schedule keep their shares of the steps. All other flags stay, the
batch and the weight decay among them.

--learning_rate is meant for the command's own --n_embd, and falls as 1 / sqrt(width). That is nanochat's rule for what
AdamW moves there, embeddings and head; that it suits the matrices too is an assumption. Muon's rate stays with
--muon_scale original, whose updates keep their spectral norm at any width, as nanochat's do. The updates of the other
scales grow with sqrt(width), so there --muon_lr falls with --learning_rate.

Prints the commands, for sweep.py or a shell; what each size costs goes to stderr. Nothing is written.
"""

import contextlib
import io
import math
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import branch  # noqa: E402
import sweep  # noqa: E402

import train_gpt  # noqa: E402
from lab import architecture, memory_settings, optim, processes, shards, tokenizer, units  # noqa: E402
from model import GPTConfig  # noqa: E402

OTHER_START = ("init_from", "resume")  # flags of a start that has a size of its own
OF_ONE_WIDTH = ("cms_widths", "titan_width")  # of a memory, where they are given


class Size(NamedTuple):
    """One rung: its flags for the network, and its parameters beside the embeddings (of GPT-2's blocks)."""
    n_layer: int
    n_embd: int
    n_head: int

    @property
    def parameters(self) -> int:
        return 12 * self.n_layer * self.n_embd**2


def sizes_of(args) -> list[Size]:
    """The sizes of --depths. ValueError for a width that heads of --head_dim do not fill."""
    sizes = []
    for depth in sorted(set(args.depths)):
        width = depth * args.width_per_layer
        if width % args.head_dim:
            raise ValueError(f"depth {depth} is {width} wide, which is no multiple of --head_dim {args.head_dim}: "
                             "choose depths, --width_per_layer and --head_dim whose widths are.")
        sizes.append(Size(depth, width, width // args.head_dim))
    return sizes


# ----------------------------------------------------------------------------------------------------------------------
# one command


def read_line(words: list[str], folder: Path):
    """The flags of a command, as train_gpt.py completes them. ValueError for one that has no sizes."""
    if words[0] != "train_gpt.py":
        raise ValueError(f"{words[0]}: only a training from fresh weights has sizes: write train_gpt.py and its flags.")
    names = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    for name in OTHER_START:
        if name in names:
            raise ValueError(f"--{name} starts from a network of one size: leave it out.")
    values = parse(words)
    if values.init_from:  # by a --config
        raise ValueError("its --config has init_from, which starts from a network of one size: leave it out.")
    if re.search(rf"_d{values.n_layer}([_-]s(eed)?\d+)?$", folder.name):
        raise ValueError("it is of a ladder already: give the list that the ladder was made of.")
    for name in OF_ONE_WIDTH:
        if getattr(values, name):
            raise ValueError(f"--{name} is of one width: leave it out, as each size has its default.")
    if values.n_inner != architecture.default_inner(values):
        raise ValueError("--n_inner is of one width: leave it out, as each size has its default.")
    optim.schedule_settings(values)  # refuses a warmup that does not fit, whose share could not be kept
    return values


def parse(words: list[str]):
    """The flags of a command, as train_gpt.py reads them. ValueError, with its sentence, where it refuses them."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return train_gpt.parse_args(words[1:])
    except SystemExit as end:
        if not end.code:
            raise ValueError("it asks for --help: leave that out.") from None
        raise ValueError(printed.getvalue().strip() or str(end)) from None


@contextlib.contextmanager
def named(folder: Path):
    """A ValueError of the block begins with the run whose command it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the command of {branch.place_of(folder)}: {error}") from None


def steps_of(values, size: Size, tokens_per_parameter: float) -> int:
    if not tokens_per_parameter:
        return values.max_train_steps
    tokens = tokens_per_parameter * size.parameters
    steps = round(tokens / values.total_batch_tokens)
    if steps < 1:
        raise ValueError(f"depth {size.n_layer} would read {int(tokens):,} tokens, less than a step of "
                         f"{values.total_batch_tokens:,}: raise --tokens_per_parameter, leave the depth out, or lower "
                         "--total_batch_tokens.")
    return steps


def flags_of(values, size: Size, args) -> dict:
    """What a command's flags become at a size."""
    steps = steps_of(values, size, args.tokens_per_parameter)
    factor = (values.n_embd / size.n_embd) ** args.rate_exponent

    def same_share(count: int) -> int:
        return steps * count // values.max_train_steps  # of whole numbers: 0.29 * 100 is 28.999...

    changed = {"n_layer": size.n_layer, "n_embd": size.n_embd, "n_head": size.n_head, "max_train_steps": steps,
               "warmup_iters": same_share(values.warmup_iters),
               "learning_rate": scaled(values.learning_rate, factor)}
    if values.warmdown_iters or "--warmdown_iters" in optim.SCHEDULES[values.schedule].flags:
        changed["warmdown_iters"] = same_share(values.warmdown_iters)  # a cosine's, which has no effect, must fit, too
    for name in memory_settings.SCHEDULE_NAMES:
        if getattr(values, name):
            changed[name] = max(1, same_share(getattr(values, name)))  # 0 would switch it off
    if "--muon_lr" in optim.OPTIMIZERS[values.optimizer].flags:
        if values.muon_scale == "original":
            factor = 1.0
        changed["muon_lr"] = scaled(values.muon_lr, factor)  # given always: its default falls with --learning_rate
    return changed


def scaled(rate: float, factor: float) -> float:
    """A learning rate at another width, to four digits; unchanged where it does not follow the width."""
    if factor == 1:
        return rate
    return float(f"{rate * factor:.4g}")


def command_of(words: list[str], folder: str, changed: dict) -> str:
    """A command with other values of some flags, which stand at its end."""
    replaced = {f"--{name}" for name in (*changed, "out_dir")}
    kept, is_value = [], False
    for word in words:
        if word.startswith("--"):
            is_value = word in replaced  # then the next word is its value
            if word.split("=")[0] not in replaced:
                kept.append(word)
        elif not is_value:
            kept.append(word)
    for name, value in changed.items():
        kept += [f"--{name}", str(value)]
    return shlex.join(["python", *kept, "--out_dir", folder])


def check_network(values, size: Size) -> None:
    """ValueError for a network that cannot be, as with blocks of memory that are more than its layers: the trainer
    would find that out when this size's turn has come."""
    shape = {name: getattr(values, name) for name in train_gpt.SHAPE if name != "vocab_size"}
    try:
        GPTConfig(**shape, **memory_settings.settings_of(values), block_size=values.seq_len)
    except ValueError as error:
        raise ValueError(f"depth {size.n_layer}: {str(error).removesuffix('.')}.") from None


def check_data(values, size: Size, tokens_per_parameter: float) -> None:
    """ValueError when a size would read more than the data give."""
    if not Path(values.data_dir).exists():  # it may still be prepared, or be on another machine
        return
    tokenizer.use_data(values)
    files, _ = shards.open_dataset(values.data_dir, "train", False, values.vocab_size)
    sequences = files.n_sequences(values.seq_len)
    most = values.max_epochs * sequences * values.seq_len
    tokens = steps_of(values, size, tokens_per_parameter) * values.total_batch_tokens
    if tokens <= most:
        return
    fault = (f"depth {size.n_layer} would read {tokens:,} tokens, and {values.data_dir} gives {int(most):,} at "
             f"--max_epochs {values.max_epochs:g}")
    most_steps = int(most // values.total_batch_tokens)
    if not most_steps:
        raise ValueError(f"{fault}, less than a step of {values.total_batch_tokens:,}: lower --total_batch_tokens, or "
                         "prepare more.")
    if not tokens_per_parameter:
        raise ValueError(f"{fault}: lower the command's --max_train_steps to {most_steps}, or prepare more.")
    ratio = rounded_down(most_steps * values.total_batch_tokens / size.parameters)
    raise ValueError(f"{fault}: pass --tokens_per_parameter {ratio:g}, leave the depth out, or prepare more.")


def rounded_down(number: float) -> float:
    """A number above 0 to three digits; rounded up, a ratio could ask for more than there is."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return math.floor(number / unit) * unit


# ----------------------------------------------------------------------------------------------------------------------
# all of them


def plan(args) -> tuple[list[str], list[str]]:
    """(the commands, a line of words per size). ValueError before anything is printed."""
    lines, commands, table, first = [], [], [], 0.0
    for folder, words in sweep.read_list(args.commands).items():
        with named(folder):
            lines.append((folder, words, read_line(words, folder)))
    for size in reversed(sizes_of(args)):  # the largest, whose ratio suits all, is told first
        for folder, _, values in lines:
            with named(folder):
                check_data(values, size, args.tokens_per_parameter)
    for size in sizes_of(args):
        flops, steps, tokens = 0.0, [], []
        for folder, words, values in lines:
            with named(folder):
                changed = flags_of(values, size, args)
                place = branch.place_of(folder.with_name(branch.name_of_branch(folder, f"d{size.n_layer}")))
                commands.append(command_of(words, place, changed))
                # what the trainer would refuse is refused here
                check_network(parse(shlex.split(commands[-1])[1:]), size)
            steps.append(changed["max_train_steps"])
            tokens.append(steps[-1] * values.total_batch_tokens)
            head = (values.vocab_size or shards.N_GPT2_TOKENS) * size.n_embd
            flops += 6 * (size.parameters + head) * tokens[-1]
        first = first or flops
        table.append(f"depth {size.n_layer}: {size.n_embd} wide, {units.count(size.n_head, 'head')}, "
                     f"{size.parameters / 1e6:.3g} M parameters beside the embeddings, {span(steps, '{}')} "
                     f"{units.noun_of(max(steps), 'step')}, {span([n / 1e6 for n in tokens], '{:.4g}')} M tokens, "
                     f"{flops / first:.3g} x the compute of the first")
    return commands, table


def span(numbers: list, form: str) -> str:
    """"7", or "7 to 9" where the arms differ."""
    ends = form.format(min(numbers)), form.format(max(numbers))
    return " to ".join(dict.fromkeys(ends))


def main(argv=None) -> int:
    args = parse_args(argv)
    commands, table = plan(args)
    print("\n".join(table), file=sys.stderr)
    print("\n".join(commands))
    return 0


def parse_args(argv=None):
    parser = flags.Parser(prog="ladder.py", description=__doc__)
    add = parser.add_argument
    add("commands", help="a file with a training command per line, as for sweep.py, or - for standard input")
    add("--depths", type=int, nargs="+", required=True, metavar="LAYERS", help="the sizes: layers of each")
    add("--width_per_layer", type=int, default=64, help="--n_embd of a size is so many per layer (default %(default)s)")
    add("--head_dim", type=int, default=64,
        help="width of a head, in all arms (default %(default)s; the speedrun's own is 128)")
    add("--tokens_per_parameter", type=float, default=20.0, metavar="RATIO",
        help="training tokens per parameter beside the embeddings (default %(default)g; 0 = each command's own "
             "--max_train_steps at all sizes)")
    add("--rate_exponent", type=float, default=0.5, metavar="P",
        help="learning rates fall as 1 / width^P (default %(default)g; 0 = the same at all sizes)")
    args = parser.parse_args(argv)
    if min(args.depths) < 1:
        parser.error("--depths: give numbers of at least 1.")
    if not all(map(math.isfinite, (args.tokens_per_parameter, args.rate_exponent))):
        parser.error("--tokens_per_parameter and --rate_exponent: give finite numbers.")
    flags.check_flags(parser, args, {
        "a whole number of at least 1": "width_per_layer head_dim",
        "0 or more": "tokens_per_parameter rate_exponent"})
    return args


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "ladder.py")
