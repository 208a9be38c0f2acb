"""memory.py times models with fast weights beside the plain transformer of as many parameters: training, scoring.

    python experiments/bench/memory.py                            # periods 32, 128, 512: about 5 minutes
    python experiments/bench/memory.py --periods 1 --rounds 1     # a write after every token, a demonstration only
    python experiments/bench/memory.py --check

4 layers, the last 2 with memory, sequences of 1,024 tokens, one thread. Every variant takes its step in turn, in one
process, by CPU time, so that a busy machine slows them alike. Ratios are tokens per second over the transformer's,
medians of the rounds, with the lowest and the highest. Targets, at periods of at least 128: `stop` 0.75, `through` 0.65
in training, and 0.5 in scoring with writes over scoring without.
"""

import statistics
import sys
import time
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


def build(arm: str, period: int, args) -> GPT:
    settings = dict(ARMS[arm])
    if settings["memory"] in ("hope_attention", "hope"):
        settings["cms_periods"] = (period, 0)
    if settings["memory"] in ("titan", "hope"):
        settings["titan_period"] = period
    if settings["memory"] != "none":
        settings["memory_layers"] = 2
    shape = dict(vocab_size=args.vocab_size, unused_ids=(), n_layer=4, n_head=args.n_head, n_embd=args.n_embd)
    return GPT(GPTConfig(block_size=1024, arch="speedrun", **shape, **settings))


def train_step(model, idx, targets) -> None:
    model(idx, targets).backward()
    model.zero_grad(set_to_none=True)


def cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(works: dict, base: str, rounds: int) -> dict[str, list[float]]:
    """{name: the base's time over its own, of each round}; every work runs once a round, after a first one."""
    for work in works.values():
        work()
    found = {name: [] for name in works}
    for _ in range(rounds):
        seconds = {name: cpu_seconds(work) for name, work in works.items()}
        for name, own in seconds.items():
            found[name].append(seconds[base] / own)
    return found


def main(argv=None) -> int:
    parser = flags.Parser(prog="memory.py", description=__doc__)
    add = parser.add_argument
    add("--periods", type=int, nargs="+", default=[32, 128, 512],
        help="tokens between writes (default 32 128 512)")
    add("--rounds", type=int, default=5, help="turns of every variant (default %(default)s)")
    add("--n_embd", type=int, default=96, help="width (default %(default)s)")
    add("--n_head", type=int, default=3, help="heads (default %(default)s)")
    add("--vocab_size", type=int, default=2048, help="tokens (default %(default)s)")
    add("--batch", type=int, default=4, help="sequences per step (default %(default)s)")
    add("--check", action="store_true", help="exit with status 1 if a target is missed")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    processes.tune_allocator()
    ids = torch.randint(0, args.vocab_size, (args.batch, 1025), generator=torch.Generator().manual_seed(0))
    idx, targets = ids[:, :-1], ids[:, 1:]
    print(f"{processes.machine_state(torch.device('cpu'))['hardware']['cpu']}, 1 thread, torch {torch.__version__}")
    print("| period | arm | parameters | bytes written per sequence | training | scoring with writes |")
    print("|---:|---|---:|---:|---|---|")
    missed = []
    for period in args.periods:
        models = {arm: build(arm, period, args) for arm in ARMS}
        trained = ratios({arm: lambda m=model: train_step(m, idx, targets) for arm, model in models.items()},
                         "transformer", args.rounds)
        for arm, model in models.items():
            scored = ""
            if model.writes:
                both = {"without": lambda m=model: m.per_token_loss(idx, targets, write=False),
                        "with": lambda m=model: m.per_token_loss(idx, targets)}
                share = statistics.median(ratios(both, "without", args.rounds)["with"])
                scored = f"{share:.2f} of scoring without"
                if period >= 128 and arm in TARGETS and share < SCORING:
                    missed.append(f"scoring with {arm}, period {period}: {share:.2f}")
            own = trained[arm]
            ratio = statistics.median(own)
            size, state = model.num_params()["total"], memory.state_bytes(model.transformer["h"])
            spread = f"{min(own):.2f}-{max(own):.2f}"
            print(f"| {period} | {arm} | {size:,} | {state:,} | {ratio:.2f} ({spread}) | {scored} |",
                  flush=True)
            if period >= 128 and ratio < TARGETS.get(arm, 0):
                missed.append(f"training {arm}, period {period}: {ratio:.2f}")
    print(f"peak memory {processes.peak_rss_bytes() / 2**20:.0f} MiB, all variants in one process")
    for line in missed:
        print(f"missed: {line}")
    return int(args.check and bool(missed))


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "memory.py")
