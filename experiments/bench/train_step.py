"""train_step.py times a training step beside nanoGPT's and build-nanogpt's: forward, backward, clip, optimizer step.

    python experiments/bench/train_step.py --nanogpt ../nanoGPT --build_nanogpt ../build-nanogpt     # 7 to 15 minutes
    python experiments/bench/train_step.py --threads 1 --seq_len 256 --rounds 5                       # ours alone
    python experiments/bench/train_step.py --sweep                                                    # rows per chunk

6 layers, n_embd 384, 6 heads, vocabulary 50,304, the same random tokens for all. Each variant has its own process; all
are alive at once and take their steps in turn, so that a busy machine slows them alike. Each peer runs as its own train
script runs it on a CPU (model, configure_optimizers, gradient clipping at 1.0), in fp32 and, where the CPU multiplies
bf16 natively, under bf16 autocast; nanoGPT ships fp32 there, build-nanogpt bf16. `+alloc` is the same peer with glibc's
allocator told to keep large buffers (as ours is). `ours` is the default, --dtype auto.

Each peer's best with the tuned allocator is compared with `ours`, step by step of the same turn; ratios are medians.
Targets: 1.3 times as fast where the default is bf16, 1.03 times where it is fp32; 40 % of the bf16 rate of the step's
own matrix products (forward and both gradients, by themselves), 60 % of the fp32 one; less peak memory. FLOPs are
counted with causal attention (half of flops_per_token's attention term).
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import flags  # noqa: E402

SHAPE = dict(n_layer=6, n_head=6, n_embd=384, vocab_size=50304)
SPEED, PEAK_SHARE = {"float32": 1.03, "bfloat16": 1.3}, {"float32": 0.60, "bfloat16": 0.40}  # targets


# ----------------------------------------------------------------------------------------------------------------------
# one variant in its own process: reads "k" from stdin, makes k steps, answers with one JSON line


def load_nanogpt(path, seq_len):
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(block_size=seq_len, dropout=0.0, bias=True, **SHAPE))
    return model, model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")


def load_build_nanogpt(path, seq_len):
    """Its script trains when imported, so only the part that defines the model is executed."""
    text = (Path(path) / "train_gpt2.py").read_text()
    text = text[: text.index("import tiktoken")].replace("from hellaswag import", "# from hellaswag import")
    module = types.ModuleType("build_nanogpt_model")
    sys.modules[module.__name__] = module  # where its dataclass looks itself up
    exec(compile(text, "train_gpt2.py", "exec"), module.__dict__)
    module.master_process = False
    model = module.GPT(module.GPTConfig(block_size=seq_len, **SHAPE))
    return model, model.configure_optimizers(weight_decay=0.1, learning_rate=6e-4, device_type="cpu")


def load_ours(seq_len, chunk_rows):
    import model as ours
    from lab import loss, optim

    if chunk_rows:
        loss.CHUNK_ROWS["cpu"] = chunk_rows
    model = ours.GPT(ours.GPTConfig(block_size=seq_len, **SHAPE))
    (optimizer,) = optim.build_optimizers(model, optimizer="adamw", learning_rate=6e-4)
    return model, optimizer


def our_clip_and_step(model, optimizer):
    from lab import gradients

    grad_norm = gradients.total_norm([p.grad for p in model.parameters()])
    gradients.clip_and_step([optimizer], grad_norm, 1.0)


def peers_clip_and_step(model, optimizer):
    import torch

    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def own_products(tokens: int, dtype):
    """(what forms every matrix product of a step of ours but attention's, its FLOPs)"""
    import torch

    C, L, V = (SHAPE[name] for name in ("n_embd", "n_layer", "vocab_size"))
    made, flops = [], 0
    for width, cols, times in ((C, 3 * C, L), (C, C, L), (C, 4 * C, L), (4 * C, C, L), (C, V, 1)):
        shapes = (tokens, width), (cols, width), (tokens, cols)  # input, weight, gradient of the output
        made.append((*(torch.randn(*shape).to(dtype) for shape in shapes), times))
        flops += 6 * tokens * width * cols * times

    def form():
        for x, weight, grad, times in made:
            for _ in range(times):
                x @ weight.t(), grad @ weight, grad.t() @ x
        return torch.zeros(())

    return form, flops


def worker(job: dict):
    """job: variant, threads, seq_len, tokens, path, chunk_rows."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints must not look like an answer
    variant, T = job["variant"], job["seq_len"]
    if variant.startswith("ours") or variant.endswith("+alloc"):
        from lab.processes import tune_allocator

        tune_allocator()
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    dtype = "bfloat16" if "bf16" in variant else "float32"
    if variant.startswith("products"):
        step, _ = own_products(job["tokens"], getattr(torch, dtype))
    else:
        if variant.startswith("ours"):
            model, optimizer = load_ours(T, job["chunk_rows"])
        else:
            load = load_nanogpt if variant.startswith("nanoGPT") else load_build_nanogpt
            model, optimizer = load(job["path"], T)
        if variant.startswith("ours") and variant != "ours, fp32":
            from lab import precision

            dtype, *_ = precision.fastest(torch.device("cpu"), model, job["tokens"])
        context = (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if dtype == "bfloat16" else nullcontext
        run = torch.compile(model) if "compiled" in variant else model
        clip_and_step = our_clip_and_step if variant.startswith("ours") else peers_clip_and_step
        tokens = torch.randint(0, 50257, (job["tokens"] // T, T + 1))

        def step():
            optimizer.zero_grad(set_to_none=True)
            with context():
                loss = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
                loss = loss[1] if isinstance(loss, tuple) else loss
            loss.backward()
            clip_and_step(model, optimizer)
            return loss

    for line in sys.stdin:
        wall, cpu, loss = [], [], 0.0
        for _ in range(int(line)):
            wall_0, cpu_0 = time.perf_counter(), time.process_time()
            loss = step().item()
            wall.append(time.perf_counter() - wall_0)
            cpu.append(time.process_time() - cpu_0)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        answer = dict(wall=wall, cpu=cpu, loss=loss, peak_kib=peak_kib, dtype=dtype)
        print(json.dumps(answer), file=answers, flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# the parent


def measure(variants, threads, seq_len, args):
    """Per variant: wall and CPU seconds of its steps and their medians, peak memory, first loss."""
    workers, times = {}, {v: {"wall": [], "cpu": []} for v in variants}
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    paths = {"nanoGPT": args.nanogpt, "build-nanogpt": args.build_nanogpt}
    try:
        for v in variants:
            chunk = int(v.split()[-1]) if v.startswith("ours, rows") else None
            job = dict(variant=v, threads=threads, seq_len=seq_len, tokens=args.tokens, chunk_rows=chunk,
                       path=paths.get(v.split()[0]))
            workers[v] = subprocess.Popen([sys.executable, __file__, "--worker", json.dumps(job)], env=env, text=True,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def ask(v, steps):
            try:
                print(steps, file=workers[v].stdin, flush=True)
                line = workers[v].stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise SystemExit(f"the worker of {v} stopped:\n{workers[v].stderr.read()[-2000:]}\n"
                                 "check the path given for it and run again")
            return json.loads(line)

        for v in variants:
            times[v]["loss"] = ask(v, 1)["loss"]
            ask(v, 3)  # a tuned allocator page-faults until its fourth step (measured)
        for _ in range(args.rounds):
            for v in variants:
                answer = ask(v, args.steps)
                times[v]["wall"] += answer["wall"]
                times[v]["cpu"] += answer["cpu"]
                times[v] |= {"peak_kib": answer["peak_kib"], "dtype": answer["dtype"]}
    finally:
        for w in workers.values():
            w.kill()
            w.wait()
    for t in times.values():
        t["steps"] = {k: t[k] for k in ("wall", "cpu")}
        t |= {k: statistics.median(steps) for k, steps in t["steps"].items()}
    return times


def times_as_long(one: dict, other: dict, by: str) -> float:
    """Median of the seconds of one's steps over those of the other's of the same turn: what slows the machine for a
    while slows both."""
    return statistics.median(a / b for a, b in zip(one["steps"][by], other["steps"][by], strict=True))


def cpu_entry(name):
    """The first line of /proc/cpuinfo that starts with name; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), "")


def print_table(result: dict, rates: dict, flops: float, title: str, args) -> None:
    base = next(iter(result.values()))
    per = " per CPU-second" * (args.by == "cpu")
    listed = ", ".join(f"{dtype} {rate / 1e9:.0f} GF/s{per}" for dtype, rate in rates.items())
    print(f"\n{title}, the step's own products {listed}")
    print(f"{'':<24}{'dtype':>9}{'s/step':>8}{'CPU s':>8}{'tok/s':>8}{'of them':>9}{'peak MB':>9}{'loss 0':>8}"
          f"{'time / 1st':>12}")
    for v, r in result.items():
        share = flops / r[args.by] / rates[r["dtype"]] if r["dtype"] in rates else float("nan")
        print(f"{v:<24}{r['dtype']:>9}{r['wall']:>8.3f}{r['cpu']:>8.3f}{args.tokens / r['wall']:>8.0f}"
              f"{share:>9.0%}{r['peak_kib'] / 1024:>9.0f}{r['loss']:>8.3f}{times_as_long(r, base, args.by):>11.2f}x",
              flush=True)


def check_targets(result: dict, rates: dict, flops: float, peers, where: str, args) -> list[str]:
    """Prints ours beside each peer's best; returns the targets that are missed."""
    own, missed = result["ours"], []
    for name in peers:
        tuned = [v for v in result if v.split()[0] == name and v.endswith("+alloc")]
        best = min(tuned, key=lambda v: result[v][args.by])
        ratio, target = times_as_long(result[best], own, args.by), SPEED[own["dtype"]]
        print(f"ours is {ratio:.2f} times as fast as {best}, the peer's best (target {target:.2f})")
        if ratio < target:
            missed.append(f"{where}: {ratio:.2f}x {best}")
        missed += [f"{where}: more memory than {v}" for v in tuned if result[v]["peak_kib"] <= own["peak_kib"]]
    share = flops / own[args.by] / rates[own["dtype"]]
    if share < PEAK_SHARE[own["dtype"]]:
        missed.append(f"{where}: {share:.0%} of the products' rate")
    return missed


def main():
    parser = flags.Parser(description=__doc__.split("\n    python")[0],
                          epilog="example: python experiments/bench/train_step.py --nanogpt ../nanoGPT "
                                 "--build_nanogpt ../build-nanogpt --check")
    peers = parser.add_argument_group("peers (left out when no path is given)")
    peers.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    peers.add_argument("--build_nanogpt", metavar="DIR", help="a checkout of build-nanogpt")
    size = parser.add_argument_group("what to measure")
    size.add_argument("--seq_len", type=int, nargs="+", default=[256, 1024], help="tokens per row (default 256 1024)")
    size.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    size.add_argument("--tokens", type=int, default=1024, help="tokens per step, a multiple of seq_len (default 1024)")
    size.add_argument("--rounds", type=int, default=15, help="turns of every variant (default 15)")
    size.add_argument("--steps", type=int, default=1, help="steps per turn (default 1)")
    size.add_argument("--by", choices=("wall", "cpu"), default="wall",
                      help="seconds that the ratios use; cpu where other work shares the cores (default wall)")
    size.add_argument("--compiled", action="store_true", help="also ours under torch.compile (needs a C++ compiler)")
    size.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None,
                      help="also the peers under bf16 autocast, and ours in fp32 (default: where the CPU has bf16)")
    size.add_argument("--shipped", action="store_true", help="also the peers without the tuned allocator")
    size.add_argument("--sweep", action="store_true", help="only ours, with 128 to 1024 rows of logits per chunk")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed (default off)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    flags.check_flags(parser, args, {"a whole number of at least 1": "rounds steps tokens"})
    if args.worker:
        return worker(json.loads(args.worker))
    for T in args.seq_len:
        if args.tokens % T:
            raise SystemExit(f"--tokens {args.tokens} is no multiple of --seq_len {T}; give a multiple of {T}")

    for folder, name in ((args.nanogpt, "model.py"), (args.build_nanogpt, "train_gpt2.py")):
        if folder and not (Path(folder) / name).is_file():
            raise SystemExit(f"{folder} has no {name}; give a checkout of the peer's repository")

    import torch

    import model as ours
    from lab import precision

    native = precision.multiplies_bfloat16(torch.device("cpu"))
    bf16 = native if args.bf16 is None else args.bf16
    print(f"{cpu_entry('model name') or platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"{'native bf16, ' if native else ''}torch {torch.__version__}, {platform.system()}; "
          f"{args.tokens} tokens per step, medians of {args.rounds * args.steps} steps, ratios by {args.by} time")
    missed = []
    peers = {name: path for name, path in (("nanoGPT", args.nanogpt), ("build-nanogpt", args.build_nanogpt)) if path}
    for threads in args.threads:
        for T in args.seq_len:
            variants = [f"ours, rows {n}" for n in (128, 256, 512, 1024) if n <= args.tokens]
            if not args.sweep:
                variants = ["ours"] + ["ours, compiled"] * args.compiled + ["ours, fp32"] * bf16
                for name in peers:
                    for dtype in ["", " bf16"][: 1 + bf16]:
                        variants += [name + dtype] * args.shipped + [f"{name}{dtype} +alloc"]
            result = measure(["products fp32"] + ["products bf16"] * bf16 + variants, threads, T, args)
            products = {r["dtype"]: result.pop(v)[args.by] for v, r in list(result.items()) if v.startswith("products")}
            with torch.device("meta"):
                model = ours.GPT(ours.GPTConfig(block_size=T, **SHAPE))
                _, flops_of_products = own_products(args.tokens, torch.float32)
            rates = {dtype: flops_of_products / seconds for dtype, seconds in products.items()}
            flops = args.tokens * (model.flops_per_token(T) - 6 * SHAPE["n_layer"] * SHAPE["n_embd"] * T)
            print_table(result, rates, flops, f"T = {T}, {threads} thread{'s' * (threads > 1)}", args)
            if not args.sweep:
                missed += check_targets(result, rates, flops, peers, f"T {T}, {threads} thread(s)", args)
    if not args.sweep:
        print("\n" + ("all targets met" if not missed else "missed: " + "; ".join(missed)))
    if missed and args.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
