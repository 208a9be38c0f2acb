"""evals.py times HellaSwag and EWoK beside build-nanogpt's loop and lm-evaluation-harness, at the same precision.

    python experiments/bench/evals.py --data hellaswag_val.jsonl --build_nanogpt ../build-nanogpt --lm_eval --check
    python experiments/bench/evals.py --n 16 --ewok_n 32              # synthetic items, ours beside the plain loop

The 124M shape (12 layers, 12 heads, 768, vocabulary 50,257) in fp32, with the same random weights in every variant.
Each variant has its own process, so that the peak memory is its own; all are alive at once and score the same items in
turn, so that a busy machine slows them alike. All get the same token ids; encoding is not timed.

    loop           one item at a time: 4 rows padded to the longest, logits of every position, F.cross_entropy, mask,
                   sums, as build-nanogpt evaluates, here with this repo's layers
    build-nanogpt  the same loop with its own GPT class (--build_nanogpt)
    lm-eval        HFLM._loglikelihood_tokens of lm-evaluation-harness on a GPT2LMHeadModel (--lm_eval; pip install
                   'lm-eval[hf]'; not a dependency of ours)
    ours           GPT.score_endings, with glibc's allocator told to keep large buffers, as train_gpt.py does;
                   `one item` with batch_size 1. Peers run as shipped; `+alloc` is the same peer with that allocator
                   (--alloc), printed without a target

EWoK-shaped items (2 contexts x 2 targets, after BOS): four forward passes with logits of every position, one at a time,
against GPT.score_endings.

Zero-shot (--zeroshot): the nine tasks of zeroshot.py by the rule harness, turn by turn a few items of one task: ours
beside lm-eval, which forwards a context once for all of its endings of one token (BoolQ, CommonsenseQA).

Targets: a speed-up of at least 2.5 over the loop, build-nanogpt's model and the better batch size of lm-eval, at
least 2 over four forward passes, at least 2.5 over the zero-shot tasks together, and the same predictions (by sum and
by mean) as each of them, item by item.
`working` is the peak memory above what the loaded model took.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from train_step import cpu_entry  # the neighbour in this folder

from lab import flags  # noqa: E402

SHAPE = dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, block_size=1024)
BOS = 50256
SPEED_HELLASWAG, SPEED_EWOK, SPEED_ZEROSHOT = 2.5, 2.0, 2.5


# ----------------------------------------------------------------------------------------------------------------------
# variants: each is a function of items [(context ids, [ending ids, ...])] to sums of log p, one list per item


def our_model():
    from model import GPT, GPTConfig

    return GPT(GPTConfig(unused_ids=(), **SHAPE), seed=0).eval()


def make_ours(job):
    from lab import inference

    model = our_model()
    return lambda items: [[scores.sum().item() for scores in endings]
                          for endings in inference.score_endings(model, items, job.get("batch_size"))]


def padded_rows(context, endings):
    """tokens (E, T) int64 and mask (E, T) fp32, 1 on the endings."""
    import torch

    T = len(context) + max(map(len, endings))
    tokens, mask = torch.zeros(len(endings), T, dtype=torch.int64), torch.zeros(len(endings), T)
    for row, ending in enumerate(endings):
        stop = len(context) + len(ending)
        tokens[row, :stop] = torch.tensor([*context, *ending])
        mask[row, len(context) : stop] = 1
    return tokens, mask


def load_build_nanogpt(path):
    """Its script trains when imported, so only the part that defines the model is executed."""
    text = (Path(path) / "train_gpt2.py").read_text()
    text = text[: text.index("import tiktoken")].replace("from hellaswag import", "# from hellaswag import")
    module = types.ModuleType("build_nanogpt_model")
    sys.modules[module.__name__] = module  # where its dataclass looks itself up
    exec(compile(text, "train_gpt2.py", "exec"), module.__dict__)
    return module.GPT(module.GPTConfig(**SHAPE)).eval()


def make_loop(job):
    import torch.nn.functional as F

    model = our_model()
    if job["path"]:
        weights = model.state_dict()
        model = load_build_nanogpt(job["path"])
        missing = model.load_state_dict(weights, strict=False).missing_keys
        if set(missing) - {"lm_head.weight"}:
            raise SystemExit(f"build-nanogpt's model has other weights ({missing[:3]}); use another checkout of it")
        logits_of = lambda tokens: model(tokens)[0]
    else:
        logits_of = lambda tokens: F.linear(model.hidden(tokens), model.transformer["wte"].weight)

    def score(items):
        sums = []
        for context, endings in items:
            tokens, mask = padded_rows(context, endings)
            logits = logits_of(tokens)[:, :-1].flatten(0, 1)
            losses = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none").view(len(endings), -1)
            sums.append((-(losses * mask[:, 1:]).sum(1)).tolist())
        return sums

    return score


def make_four_forwards(job):
    import torch
    import torch.nn.functional as F

    model = our_model()

    def score(items):
        sums = []
        for context, endings in items:
            sums.append([])
            for ending in endings:
                tokens = torch.tensor([[*context, *ending]])
                logits = F.linear(model.hidden(tokens[:, :-1]), model.transformer["wte"].weight)[0]
                log_p = logits.log_softmax(-1)[-len(ending) :].gather(1, torch.tensor(ending)[:, None])
                sums[-1].append(log_p.sum().item())
        return sums

    return score


def make_lm_eval(job):
    import tempfile

    from lm_eval.models.huggingface import HFLM
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    from lab.hf import to_hf_state
    from lab.tokenizer import write_hf_tokenizer

    hf = GPT2LMHeadModel(GPT2Config(vocab_size=SHAPE["vocab_size"])).eval()
    hf.load_state_dict(to_hf_state(our_model()))
    with tempfile.TemporaryDirectory() as folder:
        write_hf_tokenizer(folder, mul_tokens=False)
        tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    harness = HFLM(pretrained=hf, tokenizer=tokenizer, batch_size=job["batch_size"], device="cpu")

    def score(items):
        requests = [(("", ""), list(context), list(ending)) for context, endings in items for ending in endings]
        answers = iter(harness._loglikelihood_tokens(requests, disable_tqdm=True))
        return [[next(answers)[0] for _ in endings] for _, endings in items]

    return score


# ----------------------------------------------------------------------------------------------------------------------
# one variant in its own process: reads a JSON list of items per line, answers with one JSON line


def memory(key: str) -> float:
    """MB: VmRSS (now) or VmHWM (the peak) of this process; 0 where /proc is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def worker(job: dict):
    """job: variant, make, threads, and what its make_ function takes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints must not look like an answer
    if job["alloc"]:
        from lab.processes import tune_allocator

        tune_allocator()
    import torch

    torch.set_num_threads(job["threads"])
    with torch.no_grad():
        score = globals()[job["make"]](job)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        except OSError:
            pass
        loaded = memory("VmRSS")
        for line in sys.stdin:
            items = json.loads(line)
            wall, cpu = time.perf_counter(), time.process_time()
            sums = score(items)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(json.dumps(dict(wall=wall, cpu=cpu, sums=sums, loaded=loaded, peak=memory("VmHWM"))), file=answers,
                  flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# the parent


def with_allocators(variants, peers_too):
    """Ours with large buffers kept, peers without; peers_too: each of them once more with."""
    settled = {name: job | {"alloc": name.startswith("ours")} for name, job in variants.items()}
    again = {f"{name} +alloc": job | {"alloc": True} for name, job in settled.items() if not job["alloc"]}
    return settled | (again if peers_too else {})


def take_turns(variants, turns, warm_up, threads):
    """{variant: {wall, cpu: seconds of each turn, sums: of every item, loaded, peak: MB}}."""
    workers, result = {}, {v: dict(wall=[], cpu=[], sums=[]) for v in variants}
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        for v, job in variants.items():
            job = {"path": None, **job, "threads": threads}
            workers[v] = subprocess.Popen([sys.executable, __file__, "--worker", json.dumps(job)], env=env, text=True,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def ask(v, items):
            try:
                print(json.dumps(items), file=workers[v].stdin, flush=True)
                line = workers[v].stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise SystemExit(f"the worker of {v} stopped:\n{workers[v].stderr.read()[-2000:]}\n"
                                 "check that its package or path is right and run again")
            return json.loads(line)

        for v in variants:
            ask(v, warm_up)
        order = random.Random(0)
        for turn in tqdm(turns, desc="turns", disable=None):
            for v in order.sample(list(variants), len(variants)):
                answer = ask(v, turn)
                for key in ("wall", "cpu"):
                    result[v][key].append(answer[key])
                result[v]["sums"] += answer["sums"]
                result[v].update(loaded=answer["loaded"], peak=answer["peak"])
    finally:
        for w in workers.values():
            w.kill()
            w.wait()
    return result


def choices(sums, items):
    """The chosen ending of every item, by sum and by mean per token."""
    best = lambda values: max(range(len(values)), key=values.__getitem__)
    return [(best(s), best([x / len(e) for x, e in zip(s, endings, strict=True)]))
            for s, (_, endings) in zip(sums, items, strict=True)]


def report(title, result, items, per_item, target, by, missed):
    """Prints one table; appends what missed its target. per_item: entries of `items` in one item of the benchmark."""
    n = len(items) // per_item
    print(f"\n{title}\n{'':<22}{'items/s':>9}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'working':>9}{'same':>10}"
          f"{'max diff':>10}{'ours is':>9}{'turns':>13}")
    ours, chosen = result["ours"], choices(result["ours"]["sums"], items)
    for name, r in result.items():
        pairs = zip(r["sums"], ours["sums"], strict=True)
        gap = max(abs(x - y) for s, t in pairs for x, y in zip(s, t, strict=True))
        same = sum(a == b for a, b in zip(choices(r["sums"], items), chosen, strict=True))
        turns = sorted(x / y for x, y in zip(r[by], ours[by], strict=True))
        r["ratio"] = statistics.median(turns)
        print(f"{name:<22}{n / sum(r[by]):>9.2f}{sum(r['wall']):>8.1f}{sum(r['cpu']):>8.1f}{r['peak']:>9.0f}"
              f"{r['peak'] - r['loaded']:>9.0f}{f'{same}/{len(items)}':>10}{gap:>10.1e}{r['ratio']:>8.2f}x"
              f"{f'{turns[0]:.2f}-{turns[-1]:.2f}':>13}", flush=True)
        if same != len(items):
            missed.append(f"{title}: {name} chooses otherwise in {len(items) - same} of {len(items)}")
    shipped = {name: r["ratio"] for name, r in result.items() if not name.endswith("+alloc")}
    peers = {name: ratio for name, ratio in shipped.items() if not name.startswith(("ours", "lm-eval"))}
    harness = {name: ratio for name, ratio in shipped.items() if name.startswith("lm-eval")}
    if harness:  # its better batch size counts
        better = min(harness, key=harness.get)
        peers[better] = harness[better]
    for name, ratio in peers.items():
        print(f"{name}: {ratio:.2f}x, target {target}: {'ok' if ratio >= target else 'MISSED'}")
        if ratio < target:
            missed.append(f"{title}: {ratio:.2f}x {name}")


def zeroshot_items(source, n):
    """{task: [the (context ids, [ending ids, ...]) of each of n items by the rule harness]}."""
    import zeroshot
    from lab import benchmarks

    items_of = {}
    for item in zeroshot.load(source, n):
        asked = zeroshot.questions(item | {"sum": []})
        items_of.setdefault(item["task"], []).extend(benchmarks.encode([asked], bos=False))
    return items_of


def compare_zeroshot(args, missed):
    """Ours beside lm-eval on each task and on all of them."""
    items_of = zeroshot_items(args.zeroshot, args.zeroshot_n)
    places = []  # (task, items) of each turn
    for start in range(0, args.zeroshot_n, args.per_turn):
        places += [(task, items[start : start + args.per_turn]) for task, items in items_of.items()]
    places = [(task, items) for task, items in places if items]
    turns = [[question for item in items for question in item] for _, items in places]
    variants = {"ours": dict(make="make_ours")}
    if args.lm_eval:
        variants |= {f"lm-eval, batch {b}": dict(make="make_lm_eval", batch_size=b) for b in (1, 8)}
    result = take_turns(with_allocators(variants, args.alloc), turns, turns[0], args.threads)

    def chosen(sums):
        best, rest = [], iter(sums)
        for _, items in places:
            for item in items:
                values = sum((next(rest) for _ in item), [])
                best.append(values.index(max(values)))
        return best

    print(f"\nZero-shot, {args.zeroshot}, {args.zeroshot_n} items of each task, {args.by} seconds over ours\n"
          f"{'':<16}{'items':>6}{'tokens':>8}{'ours s':>8}" + "".join(f"{name:>20}" for name in list(result)[1:]))
    seconds = {name: {} for name in result}
    for name, r in result.items():
        for (task, _), value in zip(places, r[args.by], strict=True):
            seconds[name][task] = seconds[name].get(task, 0) + value
    for task, items in items_of.items():
        size = sum(len(context) + sum(map(len, endings)) for item in items for context, endings in item)
        ratios = [seconds[name][task] / seconds["ours"][task] for name in list(result)[1:]]
        print(f"{task:<16}{len(items):>6}{size / len(items):>8.0f}{seconds['ours'][task]:>8.2f}"
              + "".join(f"{ratio:>19.2f}x" for ratio in ratios))
    total = {name: sum(own.values()) for name, own in seconds.items()}
    for name in list(result)[1:]:
        same = sum(a == b for a, b in zip(chosen(result[name]["sums"]), chosen(result["ours"]["sums"]), strict=True))
        n = sum(map(len, items_of.values()))
        gaps = [abs(x - y) for s, t in zip(result[name]["sums"], result["ours"]["sums"], strict=True)
                for x, y in zip(s, t, strict=True)]
        print(f"{name}: {total[name] / total['ours']:.2f}x over all tasks, same choice in {same} of {n}, "
              f"largest difference of a sum {max(gaps):.1e} nats")
        if same != n:
            missed.append(f"zero-shot: {name} chooses otherwise in {n - same} of {n}")
    harness = [total[name] / total["ours"] for name in result if name.startswith("lm-eval") and "+" not in name]
    if harness and min(harness) < SPEED_ZEROSHOT:  # its better batch size counts
        missed.append(f"zero-shot: {min(harness):.2f}x")


def main():
    parser = flags.Parser(description=__doc__.split("\n    python")[0],
                          epilog="example: python experiments/bench/evals.py --data "
                                 "hellaswag_val.jsonl --lm_eval --check")
    data = parser.add_argument_group("items")
    data.add_argument("--data", default=None, metavar="JSONL", help="HellaSwag's jsonl (default: synthetic items)")
    data.add_argument("--n", type=int, default=48, help="HellaSwag items; 0: none (default %(default)s)")
    data.add_argument("--ewok_n", type=int, default=96, help="EWoK-shaped items; 0: none (default %(default)s)")
    data.add_argument("--zeroshot", metavar="DATA", help="items of the zero-shot tasks, as zeroshot.py's --data "
                                                         "(default: left out)")
    data.add_argument("--zeroshot_n", type=int, default=16, help="of each task (default %(default)s)")
    data.add_argument("--per_turn", type=int, default=8, help="HellaSwag items per turn (default %(default)s; EWoK: "
                                                              "twice as many)")
    data.add_argument("--seed", type=int, default=0, help="which items of --data (default %(default)s)")
    peers = parser.add_argument_group("peers")
    peers.add_argument("--build_nanogpt", metavar="DIR", help="a checkout of build-nanogpt (default: left out)")
    peers.add_argument("--lm_eval", action="store_true", help="also lm-evaluation-harness, if installed (default off)")
    peers.add_argument("--alloc", action="store_true", help="also every peer with our allocator settings (default off)")
    how = parser.add_argument_group("measuring")
    how.add_argument("--threads", type=int, default=1, help="(default %(default)s)")
    how.add_argument("--by", choices=("wall", "cpu"), default="wall",
                     help="seconds that the ratios use; cpu where other work shares the cores (default %(default)s)")
    how.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed (default off)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker))
    if min(args.n, args.ewok_n) < 0 or min(args.per_turn, args.zeroshot_n) < 1:
        parser.error("--n and --ewok_n must be >= 0, --per_turn and --zeroshot_n >= 1")
    if args.data and not Path(args.data).is_file():
        raise SystemExit(f"there is no file {args.data}; give HellaSwag's jsonl, or leave --data out")
    if args.build_nanogpt and not (Path(args.build_nanogpt) / "train_gpt2.py").is_file():
        raise SystemExit(f"{args.build_nanogpt} has no train_gpt2.py; give a checkout of build-nanogpt")
    if args.lm_eval and not importlib.util.find_spec("lm_eval"):
        raise SystemExit("lm-evaluation-harness is not installed; run `pip install 'lm-eval[hf]'`, or leave --lm_eval "
                         "out")

    import torch

    from lab.synthetic import ewok_items, hellaswag_items
    from lab.tokenizer import get_tokenizer

    encode = get_tokenizer().encode
    print(f"{cpu_entry('model name') or platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
          f"{torch.__version__}, {platform.system()}; 124M shape, fp32, {args.threads} thread"
          f"{'s' * (args.threads > 1)}; {args.per_turn} HellaSwag items per turn, "
          f"`ours is` and `turns`: median, least and most of the {args.by} times per turn over ours")
    missed = []
    start = random.Random(args.seed)
    if args.n:
        if args.data:
            with open(args.data, encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            rows = start.sample(rows, min(args.n + args.per_turn, len(rows)))
        else:
            rows = hellaswag_items(args.n + args.per_turn, seed=args.seed)
        items = [(encode(row["ctx"]), [encode(" " + ending) for ending in row["endings"]]) for row in rows]
        items, warm_up = items[: args.n], items[-args.per_turn :]
        variants = {"ours": dict(make="make_ours"), "ours, one item": dict(make="make_ours", batch_size=1),
                    "loop": dict(make="make_loop")}
        if args.build_nanogpt:
            variants["build-nanogpt"] = dict(make="make_loop", path=args.build_nanogpt)
        if args.lm_eval:
            variants |= {f"lm-eval, batch {b}": dict(make="make_lm_eval", batch_size=b) for b in (1, 8)}
        turns = [items[i : i + args.per_turn] for i in range(0, len(items), args.per_turn)]
        result = take_turns(with_allocators(variants, args.alloc), turns, warm_up, args.threads)
        tokens = sum(len(context) + sum(map(len, endings)) for context, endings in items) / len(items)
        report(f"HellaSwag{'' if args.data else ', synthetic'}, {len(items)} items of {tokens:.0f} tokens", result,
               items, 1, SPEED_HELLASWAG, args.by, missed)
    if args.ewok_n:
        per_turn = 2 * args.per_turn
        rows = ewok_items(args.ewok_n + per_turn, seed=args.seed)
        items = [([BOS, *encode(row[f"Context{c}"])], [encode(" " + row[f"Target{t}"]) for t in (1, 2)])
                 for row in rows for c in (1, 2)]
        items, warm_up = items[: 2 * args.ewok_n], items[-2 * per_turn :]
        turns = [items[i : i + 2 * per_turn] for i in range(0, len(items), 2 * per_turn)]
        variants = {"ours": dict(make="make_ours"), "ours, one item": dict(make="make_ours", batch_size=2),
                    "four forwards": dict(make="make_four_forwards")}
        result = take_turns(with_allocators(variants, args.alloc), turns, warm_up, args.threads)
        tokens = sum(len(context) + sum(map(len, endings)) for context, endings in items) / args.ewok_n
        report(f"EWoK-shaped, synthetic, {args.ewok_n} items of {tokens:.0f} tokens", result, items, 2, SPEED_EWOK,
               args.by, missed)
    if args.zeroshot:
        compare_zeroshot(args, missed)
    print("\n" + ("all targets met" if not missed else "missed: " + "; ".join(missed)))
    if missed and args.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
