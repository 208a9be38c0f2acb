"""generate.py times generation with a KV cache beside nanoGPT's generate (no cache) and Hugging Face's (its cache).

    python experiments/bench/generate.py --nanogpt ../nanoGPT --check       # about 15 minutes, most of them nanoGPT's
    python experiments/bench/generate.py --batch 1 16 --rounds 5             # beside Hugging Face alone

The 124M shape in fp32 on a CPU, the same weights for all, greedy, prompts of 64 tokens and 48 new ones, eos disabled.
All run in this process and take turns, so that a busy machine slows them alike; a turn is a whole generate() call,
which for ours includes the packing of its weights. nanoGPT samples from its top 1, which is greedy. Weights are random,
with the blocks scaled up, because a tied model as initialised repeats its last token. All tokens must be the same, but
for ties: where the first two tokens that differ in a row have logits within 1e-4 of each other (about one random choice
in 10,000), the rest of the row is not compared, and the table counts it as a tie.

Targets: 3.5 times nanoGPT at B = 1 and 20 times at B = 16; 1.2 times Hugging Face at B = 16 and 64. Reads nothing but
the peer's folder, writes nothing.
"""

import importlib.util
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

TARGETS = {("nanoGPT", 1): 3.5, ("nanoGPT", 16): 20.0, ("Hugging Face", 16): 1.2, ("Hugging Face", 64): 1.2}


def build(args):
    """A model of ours whose text does not repeat itself, so that equal tokens prove something."""
    import torch

    from model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=args.vocab_size, block_size=1024, n_layer=args.n_layer, n_head=args.n_head,
                          n_embd=args.n_embd, unused_ids=()))
    with torch.no_grad():
        for name, p in model.transformer["h"].named_parameters():
            if p.dim() == 2:
                p.mul_(3 if "c_proj" in name else 2)
    return model


def load_nanogpt(path, model):
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    c = model.config
    peer = module.GPT(module.GPTConfig(block_size=c.block_size, vocab_size=c.vocab_size, n_layer=c.n_layer,
                                       n_head=c.n_head, n_embd=c.n_embd, dropout=0.0, bias=True))
    state = model.state_dict()
    peer.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]}, strict=True)
    return peer.eval()


def load_hugging_face(model):
    from transformers import GPT2Config, GPT2LMHeadModel

    from lab.hf import to_hf_state

    c = model.config
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd,
                                      n_layer=c.n_layer, n_head=c.n_head, resid_pdrop=0.0, embd_pdrop=0.0,
                                      attn_pdrop=0.0, bos_token_id=None, eos_token_id=None))
    peer.load_state_dict(to_hf_state(model))
    return peer.eval()


def compare(model, prompts, mine, theirs):
    """(rows that are the same, rows that differ from a tie on, rows that differ)"""
    import torch

    same = ties = 0
    for prompt, a, b in zip(prompts, mine, theirs, strict=True):
        if a == b:
            same += 1
        elif len(a) == len(b):
            i = next(i for i in range(len(a)) if a[i] != b[i])
            with torch.no_grad():
                logits = model(torch.tensor([prompt + a[:i]]))[0, -1]
            ties += abs(logits[a[i]] - logits[b[i]]).item() < 1e-4
    return same, ties, len(prompts) - same - ties


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def timed(f):
    """(result, wall seconds, CPU seconds)"""
    wall, cpu = time.perf_counter(), time.process_time()
    out = f()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = flags.Parser(description=__doc__.split("\n    python")[0],
                          epilog="example: python experiments/bench/generate.py --nanogpt ../nanoGPT")
    peers = parser.add_argument_group("peers")
    peers.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT (default: left out)")
    peers.add_argument("--nanogpt_batch", type=int, nargs="*", default=[1, 16], metavar="B",
                       help="prompts at once for nanoGPT, among --batch (default 1 16; it takes minutes at 16)")
    peers.add_argument("--nanogpt_rounds", type=int, default=3,
                       help="turns of nanoGPT, at most --rounds (default %(default)s)")
    size = parser.add_argument_group("what to measure")
    size.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], metavar="B",
                      help="prompts at once (default 1 4 16 64)")
    size.add_argument("--prompt", type=int, default=64, help="tokens of a prompt (default %(default)s)")
    size.add_argument("--new", type=int, default=48, help="new tokens (default %(default)s)")
    size.add_argument("--rounds", type=int, default=5, help="turns of every variant (default %(default)s)")
    size.add_argument("--threads", type=int, default=1, help="(default %(default)s)")
    shape = parser.add_argument_group("shape (default: the 124M one)")
    for name, value in (("n_layer", 12), ("n_head", 12), ("n_embd", 768), ("vocab_size", 50304)):
        shape.add_argument(f"--{name}", type=int, default=value, help="(default %(default)s)")
    parser.add_argument("--check", action="store_true",
                        help="exit with status 1 if tokens differ or a target is missed, by CPU time (default off)")
    args = parser.parse_args()
    flags.check_flags(parser, args, {"a whole number of at least 1": "rounds threads"})
    if args.nanogpt and not (Path(args.nanogpt) / "model.py").is_file():
        raise SystemExit(f"generate.py: {args.nanogpt} has no model.py; pass a checkout of nanoGPT with --nanogpt")
    if min(args.prompt, args.new, args.rounds, args.threads, args.nanogpt_rounds, *args.batch) < 1:
        raise SystemExit("generate.py: sizes, rounds and threads start at 1; give larger ones")
    if args.prompt + args.new > 1024:
        raise SystemExit(f"generate.py: --prompt {args.prompt} plus --new {args.new} is more than the 1024 positions; "
                         "give less")

    import torch

    torch.set_num_threads(args.threads)
    from lab import inference

    model = build(args)
    hf = load_hugging_face(model)
    nano = load_nanogpt(args.nanogpt, model) if args.nanogpt else None
    print(f"{cpu_name()}, {os.cpu_count()} cores, {args.threads} thread(s), torch {torch.__version__}, "
          f"{platform.system()}; {args.n_layer} layers, n_embd {args.n_embd}, vocabulary {args.vocab_size}, fp32; "
          f"prompt {args.prompt} + {args.new} new, greedy; medians of the rounds")
    print(f"{'B':>4} {'variant':<14}{'rounds':>7}{'s':>9}{'CPU s':>9}{'tok/s':>9}{'ours, wall':>12}{'ours, CPU':>11}"
          f"{'target':>14}  rows")
    missed = []
    for B in args.batch:
        numbers = random.Random(B)
        prompts = [[numbers.randrange(args.vocab_size) for _ in range(args.prompt)] for _ in range(B)]
        idx = torch.tensor(prompts)

        def ours(prompts=prompts):
            return [c.ids for c in inference.generate(model, prompts, args.new, temperature=0)]

        def hugging_face(idx=idx):
            out = hf.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=args.new,
                              min_new_tokens=args.new, do_sample=False, use_cache=True, pad_token_id=0)
            return out[:, args.prompt:].tolist()

        def nanogpt(idx=idx):
            return nano.generate(idx, args.new, top_k=1)[:, args.prompt:].tolist()

        variants = {"ours": ours, "Hugging Face": hugging_face}
        if nano is not None and B in args.nanogpt_batch:
            variants["nanoGPT"] = nanogpt
        times, tokens = {v: [] for v in variants}, {}
        for turn in range(args.rounds + 1):  # the first is not counted
            for v, f in variants.items():
                if v == "nanoGPT" and not (1 <= turn <= args.nanogpt_rounds):  # it needs no warm-up
                    continue
                tokens[v], *t = timed(f)
                times[v] += [t] if turn else []
        wall, cpu = ({v: statistics.median(x[i] for x in t) for v, t in times.items()} for i in (0, 1))
        for v in variants:
            same, ties, different = compare(model, prompts, tokens["ours"], tokens[v])
            ratio, target = cpu[v] / cpu["ours"], TARGETS.get((v, B))
            if different:
                missed.append(f"B = {B}: {v} gives other tokens in {different} of {B} rows")
            if target and ratio < target:
                missed.append(f"B = {B}: {ratio:.2f}x {v}")
            verdict = f"{target:.1f} {'ok' if ratio >= target else 'MISSED'}" if target else ""
            rows = f"{same} same" + f", {ties} tie" * (ties > 0) + f", {different} DIFFER" * (different > 0)
            print(f"{B:>4} {v:<14}{len(times[v]):>7}{wall[v]:>9.3f}{cpu[v]:>9.3f}{B * args.new / wall[v]:>9.1f}"
                  f"{wall[v] / wall['ours']:>11.2f}x{ratio:>10.2f}x{verdict:>14}  {rows}", flush=True)
    print("\n" + ("; ".join(["missed", *missed]) if missed else "all targets measured here met"))
    if missed and args.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
