"""train_step.py times a training step beside nanoGPT's and build-nanogpt's: forward, backward, clip, optimizer step.

    python experiments/bench/train_step.py --nanogpt ../nanoGPT --build_nanogpt ../build-nanogpt     # about 15 minutes
    python experiments/bench/train_step.py --threads 1 --seq_len 256 --rounds 5                       # ours alone
    python experiments/bench/train_step.py --sweep                                                    # rows per chunk

6 layers, n_embd 384, 6 heads, vocabulary 50,304, the same random tokens for all. Each variant has its own process; all
are alive at once and take their steps in turn, so that a busy machine slows them alike. Each peer runs as its own train
script runs it on a CPU: model, configure_optimizers, gradient clipping at 1.0; nanoGPT in fp32, build-nanogpt
under bf16 autocast. `+alloc` is the same peer with glibc's allocator told to keep large buffers (as ours is).

`speed-up` compares at the peer's precision: with nanoGPT ours in fp32; with build-nanogpt, which is bf16 as shipped,
ours under the same autocast (train_gpt.py --dtype bfloat16) where the CPU multiplies bf16 natively and is about twice
as fast for it. On other CPUs bf16 is several times slower than fp32, so ours stays in fp32 there. `ours fp32` always
compares ours in fp32, our default on a CPU, with the peer at its own precision.

Targets: a speed-up of at least 1.25 over both peers as shipped and 1.03 over the +alloc ones, 60 % of the fp32 GEMM
peak measured in the same minutes, and less peak memory. FLOPs are counted with causal attention (half of
flops_per_token's attention term).
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
SPEED_SHIPPED, SPEED_ALLOC, PEAK_SHARE = 1.25, 1.03, 0.60


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
    import torch

    import model as ours
    from lab import loss

    if chunk_rows:
        loss.CHUNK_ROWS["cpu"] = chunk_rows
    model = ours.GPT(ours.GPTConfig(block_size=seq_len, **SHAPE))
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)


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
    if variant == "gemm":
        a, b, out = (torch.randn(2048, 2048) for _ in range(3))
        step = lambda: torch.mm(a, b, out=out).sum()
    else:
        if variant.startswith("ours"):
            model, optimizer = load_ours(T, job["chunk_rows"])
        else:
            load = load_nanogpt if variant.startswith("nanoGPT") else load_build_nanogpt
            model, optimizer = load(job["path"], T)
        bf16 = variant.startswith("build") or variant.endswith("bf16")
        context = (lambda: torch.autocast("cpu", dtype=torch.bfloat16)) if bf16 else nullcontext
        run = torch.compile(model) if "compiled" in variant else model
        tokens = torch.randint(0, 50257, (job["tokens"] // T, T + 1))

        def step():
            optimizer.zero_grad(set_to_none=True)
            with context():
                loss = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
                loss = loss[1] if isinstance(loss, tuple) else loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss

    for line in sys.stdin:
        wall, cpu, loss = [], [], 0.0
        for _ in range(int(line)):
            wall_0, cpu_0 = time.perf_counter(), time.process_time()
            loss = step().item()
            wall.append(time.perf_counter() - wall_0)
            cpu.append(time.process_time() - cpu_0)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        print(json.dumps(dict(wall=wall, cpu=cpu, loss=loss, peak_kib=peak_kib)), file=answers, flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# the parent


def measure(variants, threads, seq_len, args):
    """Medians per variant: wall and CPU seconds per step, peak memory, first loss."""
    workers, times = {}, {v: {"wall": [], "cpu": []} for v in variants}
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    paths = {"nanoGPT": args.nanogpt, "build-nanogpt": args.build_nanogpt}
    try:
        for v in variants:
            chunk = int(v.split()[-1]) if v.startswith("ours, rows") else None
            job = dict(variant=v, threads=threads, seq_len=seq_len, tokens=args.tokens, chunk_rows=chunk,
                       path=paths.get(v.removesuffix(" +alloc")))
            workers[v] = subprocess.Popen([sys.executable, __file__, "--worker", json.dumps(job)], env=env, text=True,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def ask(v, steps):
            print(steps, file=workers[v].stdin, flush=True)
            line = workers[v].stdout.readline()
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
                times[v]["peak_kib"] = answer["peak_kib"]
    finally:
        for w in workers.values():
            w.kill()
            w.wait()
    return {v: {**t, **{k: statistics.median(t[k]) for k in ("wall", "cpu")}} for v, t in times.items()}


def cpu_entry(name):
    """The first line of /proc/cpuinfo that starts with name; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), "")


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
    size.add_argument("--rounds", type=int, default=7, help="turns of every variant (default 7)")
    size.add_argument("--steps", type=int, default=1, help="steps per turn (default 1)")
    size.add_argument("--by", choices=("wall", "cpu"), default="wall",
                      help="seconds that the ratios use; cpu where other work shares the cores (default wall)")
    size.add_argument("--compiled", action="store_true", help="also ours under torch.compile (needs a C++ compiler)")
    size.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None,
                      help="also ours under bf16 autocast, as build-nanogpt runs (default: where the CPU has bf16)")
    size.add_argument("--sweep", action="store_true", help="only ours, with 128 to 1024 rows of logits per chunk")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed (default off)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker))
    for T in args.seq_len:
        if args.tokens % T:
            raise SystemExit(f"--tokens {args.tokens} is no multiple of --seq_len {T}; give a multiple of {T}")

    import torch

    import model as ours

    native = {"avx512_bf16", "amx_bf16"} & set(cpu_entry("flags").split())
    bf16 = bool(native) if args.bf16 is None else args.bf16
    print(f"{cpu_entry('model name') or platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"{'native bf16, ' if native else ''}torch {torch.__version__}, {platform.system()}; "
          f"{args.tokens} tokens per step, medians of {args.rounds * args.steps} steps, ratios by {args.by} time")
    missed = []
    for threads in args.threads:
        for T in args.seq_len:
            if args.sweep:
                variants = ["gemm", *(f"ours, rows {n}" for n in (128, 256, 512, 1024) if n <= args.tokens)]
            else:
                variants = ["gemm", "ours"] + ["ours, compiled"] * args.compiled + ["ours, bf16"] * bf16
                for name, path in (("nanoGPT", args.nanogpt), ("build-nanogpt", args.build_nanogpt)):
                    variants += [name, f"{name} +alloc"] if path else []
            result = measure(variants, threads, T, args)
            gemm = 2 * 2048**3 / result.pop("gemm")[args.by]
            with torch.device("meta"):
                model = ours.GPT(ours.GPTConfig(block_size=T, **SHAPE))
            flops = args.tokens * (model.flops_per_token(T) - 6 * SHAPE["n_layer"] * SHAPE["n_embd"] * T)
            base = result[next(iter(result))]
            print(f"\nT = {T}, {threads} thread{'s' * (threads > 1)}, fp32 GEMM {gemm / 1e9:.0f} GF/s"
                  f"{' per CPU-second' * (args.by == 'cpu')}")
            print(f"{'':<22}{'s/step':>8}{'CPU s':>8}{'tok/s':>8}{'of GEMM':>9}{'peak MB':>9}{'loss 0':>8}"
                  f"{'speed-up':>10}{'target':>13}{'ours fp32':>12}")
            for v, r in result.items():
                target = None if v.startswith("ours") else SPEED_ALLOC if v.endswith("+alloc") else SPEED_SHIPPED
                mine = result.get("ours, bf16", base) if v.startswith("build") else base
                ratio = r[args.by] / (mine[args.by] if target else base[args.by])
                verdict = "" if target is None else f"{target:.2f} {'ok' if ratio >= target else 'MISSED'}"
                fp32 = "" if target is None else f"{r[args.by] / base[args.by]:.2f}x"
                if target and ratio < target:
                    missed.append(f"T {T}, {threads} thread(s): {ratio:.2f}x {v}")
                if target and r["peak_kib"] <= base["peak_kib"]:
                    missed.append(f"T {T}, {threads} thread(s): more memory than {v}")
                print(f"{v:<22}{r['wall']:>8.3f}{r['cpu']:>8.3f}{args.tokens / r['wall']:>8.0f}"
                      f"{flops / r[args.by] / gemm:>9.0%}{r['peak_kib'] / 1024:>9.0f}{r['loss']:>8.3f}{ratio:>9.2f}x"
                      f"{verdict:>13}{fp32:>12}", flush=True)
            if not args.sweep and flops / base[args.by] / gemm < PEAK_SHARE:
                missed.append(f"T {T}, {threads} thread(s): {flops / base[args.by] / gemm:.0%} of the GEMM peak")
    if not args.sweep:
        print("\n" + ("all targets met" if not missed else "missed: " + "; ".join(missed)))
    if missed and args.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
