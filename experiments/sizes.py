"""sizes.py tells how the effect of a treatment changes with the size of the network.

    python experiments/sizes.py --a 'experiments/runs/stream_d*' --b 'experiments/runs/rows_d*' --out report

Each arm is given with its runs of all sizes (--n_layer, --n_embd), as experiments/ladder.py makes them. At every size
that both arms have they are compared as by compare_runs.py: the gate, then the difference of the primary metric at the
runs' ends, with interval and p. One more test asks whether the effect changes as the network grows: a line over log2 of
the baseline's parameters without embeddings is fitted to each seed's differences, and the seeds' slopes, a change per
doubling, are tested against 0. It takes pairs of equal seed at all sizes. All these tests are corrected together, by
Holm.

As ladder.py makes them, larger networks also read more tokens at a lower learning rate, so a trend is that of the whole
recipe. The line is a description: do not read it beyond the largest network. A treatment that was tuned at one size may
lose at another because its settings are no longer the best there. An effect in nats may shrink only because all losses
are lower in larger networks.

Exit status as of compare_runs.py: 0 comparable at all sizes, 2 not comparable at some, 1 bad input.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import lengths  # noqa: E402

from lab import memory_settings, processes, runs, units  # noqa: E402

SHAPE = ("n_layer", "n_embd")
FOLLOW = ("n_head", "n_inner", "max_train_steps", "warmup_iters", "warmdown_iters", "learning_rate", "muon_lr",
          "memory_layers", "cms_widths", "titan_width",  # a memory's defaults follow the network's shape
          *memory_settings.SCHEDULE_NAMES)


def shape_of(run: dict) -> tuple:
    """(n_layer, n_embd) of a run."""
    shape = tuple(run["config"].get("model", {}).get(name) for name in SHAPE)
    if not all(isinstance(value, int) for value in shape):
        raise ValueError(f"{run['name']} does not record its n_layer and n_embd: name runs of train_gpt.py.")
    return shape


def about_size(members: list[dict]) -> dict:
    """What a size of the baseline is: its parameters without the embeddings, and its training."""
    run = members[0]
    n_layer, n_embd = shape_of(run)
    parameters = runs.number(run["config"].get("parameters", {}).get("non_embedding"))
    if not parameters > 0:  # or NaN
        raise ValueError(f"{run['name']} does not record its parameters: name runs of train_gpt.py.")
    return {"x": parameters, "parameters": parameters, "n_layer": n_layer, "n_embd": n_embd,
            "steps": lengths.steps_of(run), "tokens": lengths.tokens_of(run)}


SIZE = lengths.Axis(
    one="size", many="sizes", more="The larger the network", unit="the parameters",
    changes=frozenset({*SHAPE, *FOLLOW}), key=shape_of,
    label=lambda shape: f"{units.count(shape[0], 'layer')} x {shape[1]}",
    about=about_size, figures=("n_layer", "n_embd", "parameters", "steps", "tokens"),
    columns=(
        ("Layers x width", "left", lambda one: f"{one['n_layer']} x {one['n_embd']}"),
        ("Parameters", "right", lambda one: f"{one['parameters'] / 1e6:,.3g} M"), lengths.STEPS, lengths.TOKENS),
    advice="train the same sizes, as experiments/ladder.py makes them",
    xlabel="parameters beside the embeddings (log scale)", tick=lambda parameters: f"{parameters / 1e6:.3g} M")


def main(argv=None) -> int:
    return lengths.main(argv, SIZE, "sizes.py", __doc__)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "sizes.py")
