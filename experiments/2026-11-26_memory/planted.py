"""Planted pairs: does a memory keep what attention cannot reach?

    python experiments/2026-11-26_memory/planted.py                    # every arm, 3 seeds: about 10 minutes
    python experiments/2026-11-26_memory/planted.py --arms "titan, twice;gpt2" --seeds 0 --steps 50

A sequence lists 8 pairs of a key and a random value, and then asks for the value of every key. Attention sees one
chunk of 16 tokens at a time, so that behind the list only what was written into fast weights can answer. Levels of the
CMS are written by the loss of all tokens, as always; the outer loss is that of the answers alone, for the other tokens
are noise (with theirs, nothing was learned within 300 steps). Guessing answers 1/28 rightly, and a model that knew
which values were listed 1/8. It prints a table, a line per arm.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from scipy import stats  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lab import chunks, memory, processes  # noqa: E402
from lab.loss import head_gradients  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

N_KEYS = N_VALUES = 28
FILLER, VOCABULARY = 60, 64
CHUNK = 16
HALF = 16  # tokens of the list, and of the questions
BATCH, LEARNING_RATE, TEST_BATCHES = 32, 3e-3, 10
TITAN = dict(memory="titan", titan_period=CHUNK)
CMS = dict(memory="hope_attention", cms_periods=(CHUNK, 0))
# per arm: fields of GPTConfig, and what is done to it
ARMS = {
    "titan": (TITAN, {}),
    "titan, twice as wide": (TITAN | dict(titan_width=64), {}),
    "titan, clipped at 0.3": (TITAN | dict(titan_clip=0.3), {}),
    "titan, matrices as the rest of the model": (TITAN, {"scaled": False}),
    "titan, both: as the prototype": (TITAN | dict(titan_clip=0.3), {"scaled": False}),
    "titan, the same at inner_lr 300, unclipped": (
        TITAN | dict(inner_lr=300.0, titan_clip=0.0), {"scaled": False}),
    "titan, trained without writes": (TITAN, {"static": True}),
    "gpt2, titan": (TITAN | dict(arch="gpt2"), {}),
    "gpt2, titan, clipped at 0.3": (TITAN | dict(arch="gpt2", titan_clip=0.3), {}),
    "hope, self-modifier on": (TITAN | CMS | dict(memory="hope", self_modifier="on"), {}),
    "hope_attention, stop": (CMS | dict(write="stop"), {}),
    "hope_attention, through": (CMS | dict(write="through"), {}),
    "transformer, a chunk at a time": ({}, {}),
    "transformer, all in one window": ({}, {"window": 2 * HALF}),
}


def make(settings: dict, seed: int, scaled: bool) -> GPT:
    shape = dict(vocab_size=VOCABULARY, unused_ids=(), block_size=64)
    shape |= dict(n_layer=2, n_head=2, n_embd=64)
    if "memory" in settings:
        shape["memory_layers"] = 1
    config = GPTConfig(**dict(arch="speedrun") | shape | settings)
    if scaled:
        return GPT(config, seed)
    known, memory.SCALED = memory.SCALED, ()
    try:
        return GPT(config, seed)
    finally:
        memory.SCALED = known


def sequences(generator) -> tuple[torch.Tensor, torch.Tensor]:
    """idx (B, 2 HALF): k v k v ... | k v k v ... in another order; bool: where answers are predicted."""
    n = HALF // 2
    keys = torch.stack([torch.randperm(N_KEYS, generator=generator)[:n] for _ in range(BATCH)])
    values = N_KEYS + torch.randint(0, N_VALUES, (BATCH, n), generator=generator)
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(BATCH)])
    listed = torch.stack([keys, values], 2).flatten(1)
    asked = torch.stack([keys.gather(1, order), values.gather(1, order)], 2).flatten(1)
    idx = torch.cat([listed, asked], 1)
    answers = torch.zeros_like(idx, dtype=torch.bool)
    answers[:, HALF::2] = True
    return idx, answers


def logits_of(model, idx, window: int, train: bool, static: bool, alter=None):
    """(B, T, V), of every chunk before it is written."""
    weight = model.transformer["wte"].weight
    targets = chunks.next_tokens(idx)
    if model.config.memory == "none":
        parts = [model.hidden(part) for part in idx.split(window, 1)]
        return torch.cat(parts, 1) @ weight.T
    reading, parts = chunks.Reading(model, train, alter), []
    for start in range(0, idx.size(1), CHUNK):
        part = slice(start, start + CHUNK)
        reading.restart_window()
        states = reading.read(idx[:, part])
        _, signal, _ = head_gradients(
            states.flatten(0, 1), weight, targets[:, part].flatten(),
            model.config.masked_ranges, with_weight=False)
        if static:
            reading.forget_chunk()
        else:
            reading.write(states, signal.view(states.shape))
        parts.append(states)
    return torch.cat(parts, 1) @ weight.T


def run(settings: dict, seed: int, steps: int, bar, scaled=True, static=False, window=CHUNK) -> dict[str, float]:
    """Trains one model; {control: share of right answers} on fresh sequences."""
    model = make(settings, seed, scaled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        idx, answers = sequences(generator)
        logits = logits_of(model, idx, window, True, static)
        loss = F.cross_entropy(logits[answers], idx.roll(-1, 1)[answers])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.update()
    controls = {"adapt": (static, None)}
    if model.config.memory != "none":
        controls["static"] = (True, None)
        controls["random"] = (static, memory.random_steps(torch.Generator().manual_seed(seed)))
        controls["other"] = (static, memory.other_steps)
    shares = {}
    for name, (without, alter) in controls.items():
        fresh, right = torch.Generator().manual_seed(1000 + seed), []
        for _ in range(TEST_BATCHES):
            idx, answers = sequences(fresh)
            with torch.no_grad():
                logits = logits_of(model, idx, window, False, without, alter)
            best = N_KEYS + logits[..., N_KEYS:N_KEYS + N_VALUES].argmax(-1)
            right.append(best[answers] == idx.roll(-1, 1)[answers])
        shares[name] = torch.cat(right).float().mean().item()
    return shares


def interval_of(values: list[float]) -> str:
    """95 % for the mean, by t."""
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    mean = sum(values) / len(values)
    return f"[{mean - half:.3f}, {mean + half:.3f}]"


def main(argv=None) -> int:
    parser = flags.Parser(prog="planted.py", description=__doc__)
    add = parser.add_argument
    add("--arms", default="", help="beginnings of arms, semicolon-separated (default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and sequences (default 0 1 2)")
    add("--steps", type=int, default=300, help="of 32 sequences (default %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    asked = tuple(filter(None, args.arms.split(";")))
    arms = {name: arm for name, arm in ARMS.items() if not asked or name.startswith(asked)}
    print(f"{processes.machine_state(torch.device('cpu'))['hardware']['cpu']}, torch {torch.__version__}, "
          f"{args.steps} steps, {len(args.seeds)} seeds")
    print("| arm | right answers | 95 % interval | no writes | random writes | another sequence's |")
    print("|---|---:|---|---:|---:|---:|")
    with tqdm(total=len(arms) * len(args.seeds) * args.steps, unit="step", disable=None) as bar:
        for name, (settings, how) in arms.items():
            bar.set_postfix_str(name)
            found = [run(settings, seed, args.steps, bar, **how) for seed in args.seeds]
            means = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            interval = ""
            if len(found) > 1:
                interval = interval_of([one["adapt"] for one in found])
            cells = [f"{means[key]:.3f}" if key in means else "" for key in ("static", "random", "other")]
            tqdm.write(f"| {name} | {means['adapt']:.3f} | {interval} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "planted.py")
