"""long_prompts.py measures what a long prompt takes in memory and time: lab/needles.py reading 2,048 to 65,536 tokens.

    python experiments/bench/long_prompts.py                       # 12 layers of width 384: about 10 minutes
    python experiments/bench/long_prompts.py --n_embd 768 --check  # the 124M shape: about an hour on one thread

One thread, block_size 1,024, the last 3 of 12 blocks with CMS levels that are written every 128 tokens, random weights
and tokens. Every length is read in a process of its own, whose peak memory it prints. Attention never keeps more than
one window and what is written has the size of the weights, so memory must not grow with the prompt. Target, with
--check: the longest prompt takes at most 1.1 times the memory of the shortest one.
"""

import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from lab import flags  # noqa: E402

if __name__ == "__main__":
    flags.check_first(__file__)

import torch  # noqa: E402

from lab import memory, needles, processes  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

LENGTHS = (2048, 16_384, 65_536)
TARGET = 1.1


def read(length: int, args) -> None:
    """Prints the peak memory (MiB), the seconds and the updates of one prompt."""
    torch.set_num_threads(1)
    shape = dict(n_layer=12, n_head=args.n_embd // 64, n_embd=args.n_embd, block_size=1024)
    model = GPT(GPTConfig(memory=args.memory, padded_vocab_size=50432, **shape), seed=0)
    ids = torch.randint(0, 50_000, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt = needles.Prompt(ids, [[i, i + 1] for i in range(needles.N_CANDIDATES)], 0, 0.0, 0)
    before, begun = processes.peak_rss_bytes(), time.perf_counter()
    control = "static" if args.memory == "none" else "adapt"
    record = needles.score(model, control, [prompt])[0]
    seconds, peak = time.perf_counter() - begun, processes.peak_rss_bytes()
    state = memory.state_bytes(model.transformer["h"])
    window = 2 * 4 * shape["n_layer"] * shape["block_size"] * args.n_embd
    sizes = [round(size / 2**20) for size in (peak, before, state, window)]
    size = model.num_params()["total"]
    print(length, *sizes, round(seconds, 1), round(record["updates"]), size)


def main(argv=None) -> int:
    parser = flags.Parser(prog="long_prompts.py", description=__doc__)
    add = parser.add_argument
    add("--n_embd", type=int, default=384, help="channels, a multiple of 64 (default 384)")
    add("--memory", choices=("none", "titan", "hope_attention", "hope"), default="hope_attention",
        help="of the model (default hope_attention)")
    add("--check", action="store_true", help="exit with 1 when the target is missed")
    add("--length", type=int, default=0,
        help="read one prompt of so many tokens in this process (0 = all lengths)")
    args = parser.parse_args(argv)
    if args.length:
        read(args.length, args)
        return 0
    hardware = processes.machine_state(torch.device("cpu"))["hardware"]
    print(f"{hardware['cpu']}, {hardware['system']}, torch {torch.__version__}, one thread")
    print(f"{args.memory}, 12 layers of width {args.n_embd}, block_size 1,024")
    print(f"{'tokens':>7} {'peak MiB':>9} {'before':>7} {'seconds':>8} {'updates':>8}")
    peaks, script = [], Path(__file__).resolve()
    for length in LENGTHS:
        command = [sys.executable, str(script), "--length", str(length), "--memory", args.memory]
        command += ["--n_embd", str(args.n_embd)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
        tokens, peak, before, state, window, seconds, updates, size = done.stdout.split()
        peaks.append(float(peak))
        print(f"{tokens:>7} {peak:>9} {before:>7} {seconds:>8} {updates:>8}", flush=True)
    print(f"{int(size):,} parameters; keys and values of a window {window} MiB, "
          f"what is written, and its sums, {state} MiB")
    ratio = peaks[-1] / peaks[0]
    print(f"{LENGTHS[-1]:,} tokens over {LENGTHS[0]:,}: {ratio:.2f}x the memory (target at most {TARGET})")
    return int(args.check and ratio > TARGET)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "long_prompts.py")
