"""ladder.py makes the commands of one training at several sizes: deeper and wider, each on more tokens.

    for s in 0 1 2; do
      echo "train_gpt.py --data_dir D --optimizer adamw --out_dir experiments/runs/x_s$s --seed $s ..."
      echo "train_gpt.py --data_dir D --optimizer muon --out_dir experiments/runs/y_s$s --seed $s ..."
    done > arms.txt
    python experiments/ladder.py arms.txt --depths 2 4 8 --tokens_per_parameter 20 > ladder.txt
    python experiments/sweep.py ladder.txt                                  # trains x_d2_s0, x_d4_s0, ...
    python experiments/sizes.py --a 'experiments/runs/x_d*' --b 'experiments/runs/y_d*'      # the effect by size

One number, the depth, says the size, as in nanochat: a network of depth d has d layers and is 64 d wide, with heads of
64. It has about 12 d (64 d)^2 parameters beside its embeddings, N as Kaplan et al. count it
(https://arxiv.org/abs/2001.08361), and reads --tokens_per_parameter times N tokens; Hoffmann et al. found 20
(https://arxiv.org/abs/2203.15556). N is of the depth alone, so that all arms read the same tokens. Warmup and warmdown
keep their shares of the steps. --learning_rate is that of a command's own --n_embd, and falls with the width as
1 / sqrt(width), which nanochat found for AdamW; Muon's rate stays, as its updates are scaled by the matrices' shapes.

Prints the commands, for sweep.py or a shell; what each size costs goes to stderr. Nothing is written.
"""

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
from lab import architecture, optim, processes, shards, tokenizer, units  # noqa: E402

OTHER_START = ("init_from", "resume")  # flags of a start that has a size of its own


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


def read_line(words: list[str]):
    """The flags of a command, as train_gpt.py completes them. ValueError for one that has no sizes."""
    line = shlex.join(words)
    if words[0] != "train_gpt.py":
        raise ValueError(f"{line}: only a training from fresh weights has sizes: write train_gpt.py and its flags.")
    names = {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    for name in OTHER_START:
        if name in names:
            raise ValueError(f"{line}: --{name} starts from a network of one size: leave it out.")
    values = train_gpt.parse_args(words[1:])
    if values.n_inner != architecture.default_inner(values):
        raise ValueError(f"{line}: --n_inner is of one width: leave it out, as each size has its default.")
    optim.schedule_settings(values)  # refuses a warmup that does not fit, whose share could not be kept
    return values


def steps_of(values, size: Size, tokens_per_parameter: float) -> int:
    if not tokens_per_parameter:
        return values.max_train_steps
    return max(1, round(tokens_per_parameter * size.parameters / values.total_batch_tokens))


def flags_of(values, size: Size, args) -> dict:
    """What a command's flags become at a size."""
    steps = steps_of(values, size, args.tokens_per_parameter)
    share = steps / values.max_train_steps
    rate = values.learning_rate * (values.n_embd / size.n_embd) ** args.rate_exponent
    changed = {"n_layer": size.n_layer, "n_embd": size.n_embd, "n_head": size.n_head, "max_train_steps": steps,
               "warmup_iters": int(share * values.warmup_iters), "learning_rate": float(f"{rate:.4g}")}
    if "--warmdown_iters" in optim.SCHEDULES[values.schedule].flags:
        changed["warmdown_iters"] = int(share * values.warmdown_iters)
    if "--muon_lr" in optim.OPTIMIZERS[values.optimizer].flags:
        changed["muon_lr"] = values.muon_lr  # by default it is a multiple of --learning_rate, and would fall with it
    return changed


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
        kept += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(["python", *kept, "--out_dir", folder])


def check_data(values, steps: int, size: Size) -> None:
    """ValueError when a size would read more than the data give."""
    if not Path(values.data_dir).exists():  # it may still be prepared, or be on another machine
        return
    tokenizer.use_data(values)
    files, _ = shards.open_dataset(values.data_dir, "train", False, values.vocab_size)
    sequences = files.n_sequences(values.seq_len)
    most = values.max_epochs * sequences * values.seq_len
    tokens = steps * values.total_batch_tokens
    if tokens > most:
        ratio = 0.999 * most / size.parameters
        raise ValueError(f"depth {size.n_layer} would read {tokens:,} tokens, and {values.data_dir} gives "
                         f"{int(most):,} at --max_epochs {values.max_epochs:g}: pass --tokens_per_parameter "
                         f"{ratio:.3g}, leave the depth out, or prepare more.")


# ----------------------------------------------------------------------------------------------------------------------
# all of them


def plan(args) -> tuple[list[str], list[str]]:
    """(the commands, a line of words per size). ValueError before anything is printed."""
    lines = [(folder, words, read_line(words)) for folder, words in sweep.read_list(args.commands).items()]
    commands, table, first = [], [], 0.0
    for size in reversed(sizes_of(args)):  # the largest, whose ratio suits all, is told first
        for _, _, values in lines:
            check_data(values, steps_of(values, size, args.tokens_per_parameter), size)
    for size in sizes_of(args):
        flops = 0.0
        for folder, words, values in lines:
            changed = flags_of(values, size, args)
            steps = changed["max_train_steps"]
            place = branch.place_of(folder.with_name(branch.name_of_branch(folder, f"d{size.n_layer}")))
            commands.append(command_of(words, place, changed))
            train_gpt.parse_args(shlex.split(commands[-1])[2:])  # what the trainer would refuse is refused here
            tokens = steps * values.total_batch_tokens
            head = (values.vocab_size or shards.N_GPT2_TOKENS) * size.n_embd
            flops += 6 * (size.parameters + head) * tokens
        first = first or flops
        table.append(f"depth {size.n_layer}: {size.n_embd} wide, {units.count(size.n_head, 'head')}, "
                     f"{size.parameters / 1e6:.3g} M parameters beside the embeddings, {units.count(steps, 'step')}, "
                     f"{tokens / 1e6:.4g} M tokens, {flops / first:.3g} x the compute of the first")
    return commands, table


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
    add("--head_dim", type=int, default=64, help="width of a head (default %(default)s)")
    add("--tokens_per_parameter", type=float, default=20.0, metavar="RATIO",
        help="training tokens per parameter beside the embeddings (default %(default)g; 0 = each command's own "
             "--max_train_steps at all sizes)")
    add("--rate_exponent", type=float, default=0.5, metavar="P",
        help="--learning_rate falls as 1 / width^P (default %(default)g; 0 = the same at all sizes)")
    args = parser.parse_args(argv)
    if min(args.depths) < 1:
        parser.error("--depths: give numbers of at least 1.")
    flags.check_flags(parser, args, {
        "a whole number of at least 1": "width_per_layer head_dim",
        "0 or more": "tokens_per_parameter rate_exponent"})
    return args


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "ladder.py")
