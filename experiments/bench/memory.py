"""memory.py times models with fast weights beside the plain transformer of as many parameters: training, scoring.

    python experiments/bench/memory.py                     # periods 1, 8, 32, 128, 512: about 15 minutes
    python experiments/bench/memory.py --periods 128 512 --check

4 layers, the last 2 with memory, sequences of 1,024 tokens, one thread. Every variant takes its step in turn, in one
process, by CPU time, so that a busy machine slows them alike. Ratios are tokens per second over the transformer's,
medians of the rounds, with the lowest and the highest. A period whose rounds would take longer than --seconds gets
fewer of them; below 32 tokens, a step is one sequence. Peak memory is that of a process that trains one variant alone.
Targets, at periods of at least 128: `stop` 0.75, `through` 0.65 in training, and 0.5 in scoring with writes over
scoring without. A write after every token is a demonstration only.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import torch  # noqa: E402

from lab import memory, processes  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

ARMS = {
    "transformer": dict(memory="none"),
    "off": dict(memory="hope_attention", write="off"),
    "stop": dict(memory="hope_attention", write="stop"),
    "through": dict(memory="hope_attention", write="through"),
    "titan": dict(memory="titan"),
    "hope": dict(memory="hope", write="stop", self_modifier="on"),
}
TARGETS = {"stop": 0.75, "through": 0.65}
SCORING = 0.5
SHORT = 32  # tokens: with shorter periods a step is one sequence


def build(arm: str, period: int, args) -> GPT:
    settings = dict(ARMS[arm])
    if settings["memory"] in ("hope_attention", "hope"):
        settings["cms_periods"] = (period, 0)
    if settings["memory"] in ("titan", "hope"):
        settings["titan_period"] = period
    if settings["memory"] != "none":
        settings["memory_layers"] = 2
    shape = dict(vocab_size=args.vocab_size, unused_ids=(), n_layer=4, n_head=args.n_head, n_embd=args.n_embd)
    return GPT(GPTConfig(block_size=args.seq_len, arch="speedrun", **shape, **settings))


def train_step(model, idx, targets) -> None:
    model(idx, targets).backward()
    model.zero_grad(set_to_none=True)


def cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(works: dict, base: str, args) -> dict[str, list[float]]:
    """{name: the base's time over its own, of each round}; every work runs once a round. A first round, in which memory
    is taken, counts only where there is time for no other."""
    works[base]()  # torch's own start is not its time
    turns = [{name: cpu_seconds(work) for name, work in works.items()}]
    once = sum(turns[0].values())
    more = min(args.rounds, int(args.seconds / once))
    for _ in range(more):
        turns.append({name: cpu_seconds(work) for name, work in works.items()})
    counted = turns[1:] or turns
    return {name: [turn[base] / turn[name] for turn in counted] for name in works}


def rows_of(args, period: int) -> tuple[torch.Tensor, torch.Tensor]:
    """idx, targets (B, T)"""
    rows = args.batch
    if period < SHORT:
        rows = 1
    ids = torch.randint(0, args.vocab_size, (rows, args.seq_len + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def prepare() -> None:
    torch.set_num_threads(1)
    processes.tune_allocator()


def peak_bytes(arm: str, period: int, args: argparse.Namespace) -> int:
    """Of a process that has only trained this variant, which takes more than to score it."""
    prepare()
    model, (idx, targets) = build(arm, period, args), rows_of(args, period)
    train_step(model, idx, targets)
    return processes.peak_rss_bytes()


def peaks(period: int, args) -> dict[str, int]:
    """{arm: its peak_bytes}, each in a new process."""
    new = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, new, max_tasks_per_child=1) as pool:
        return {arm: pool.submit(peak_bytes, arm, period, args).result() for arm in ARMS}


def main(argv=None) -> int:
    parser = flags.Parser(prog="memory.py", description=__doc__)
    add = parser.add_argument
    add("--periods", type=int, nargs="+", default=[1, 8, 32, 128, 512],
        help="tokens between writes (default 1 8 32 128 512)")
    add("--rounds", type=int, default=5, help="turns of every variant (default %(default)s)")
    add("--seconds", type=float, default=60, help="of CPU for a period's rounds, of which there is one at least "
                                                  "(default %(default)g)")
    add("--peaks", choices=("on", "off"), default="on",
        help="peak memory, for which every variant starts a process (default on)")
    add("--n_embd", type=int, default=96, help="width (default %(default)s)")
    add("--n_head", type=int, default=3, help="heads (default %(default)s)")
    add("--vocab_size", type=int, default=2048, help="tokens (default %(default)s)")
    add("--seq_len", type=int, default=1024, help="tokens per sequence (default %(default)s)")
    add("--batch", type=int, default=4,
        help="sequences per step, with periods of at least 32 (default %(default)s)")
    add("--check", action="store_true", help="exit with status 1 if a target is missed")
    args = parser.parse_args(argv)
    prepare()
    print(f"{processes.machine_state(torch.device('cpu'))['hardware']['cpu']}, 1 thread, torch {torch.__version__}")
    print("| period | arm | parameters | bytes written per sequence | training | scoring with writes | peak MiB |")
    print("|---:|---|---:|---:|---|---|---:|")
    missed = []
    for period in args.periods:
        idx, targets = rows_of(args, period)
        peak = dict.fromkeys(ARMS, 0)
        if args.peaks == "on":
            peak = peaks(period, args)
        models = {arm: build(arm, period, args) for arm in ARMS}
        steps = {arm: partial(train_step, model, idx, targets) for arm, model in models.items()}
        trained = ratios(steps, "transformer", args)
        for arm, model in models.items():
            scored = ""
            if model.writes:
                score = partial(model.per_token_loss, idx, targets)
                both = {"without": partial(score, write=False), "with": score}
                share = statistics.median(ratios(both, "without", args)["with"])
                scored = f"{share:.2f} of scoring without"
                if period >= 128 and arm in TARGETS and share < SCORING:
                    missed.append(f"scoring with {arm}, period {period}: {share:.2f}")
            own = trained[arm]
            ratio = statistics.median(own)
            size, state = model.num_params()["total"], memory.state_bytes(model.transformer["h"])
            spread = f"{min(own):.2f}-{max(own):.2f}"
            memory_used = ""
            if peak[arm]:
                memory_used = f"{peak[arm] / 2**20:,.0f}"
            print(f"| {period} | {arm} | {size:,} | {state:,} | {ratio:.3f} ({spread}) | {scored} | {memory_used} |",
                  flush=True)
            if period >= 128 and ratio < TARGETS.get(arm, 0):
                missed.append(f"training {arm}, period {period}: {ratio:.2f}")
    for line in missed:
        print(f"missed: {line}")
    return int(args.check and bool(missed))


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "memory.py")
