"""grpo.py times a GRPO step: sampling beside updating and beside Hugging Face's generate, memory of the reference.

    python experiments/bench/grpo.py --check                         # 4 layers of width 64, a few minutes
    python experiments/bench/grpo.py --n_layer 12 --n_head 12 --n_embd 768 --problems 4 --rounds 2      # the 124M shape

Random weights in fp32 on a CPU, the same for both; --problems synthetic problems of the prompt template, --group
completions of each, sampled at temperature 1, all of --new tokens (no end of text). Hugging Face's generate gets the
same with left padding and num_return_sequences; it draws other numbers, so tokens are not compared here
(tests/test_generate.py compares greedy ones). Both run in this process and take turns; medians of CPU and wall seconds.
An update is a forward and backward pass of all completions with the KL term, and a Muon step. Peak memory is that of
two processes of their own, with and without the reference. Target: sampling 1.2 times Hugging Face, by CPU time.
"""

import multiprocessing
import os
import statistics
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "experiments" / "bench"))
sys.path.insert(0, str(root))
from lab import flags  # noqa: E402

TARGET = 1.2


def build(args):
    """(model, prompts, problems) of the shape."""
    import torch

    from lab import rollouts, synthetic
    from model import GPT, GPTConfig

    torch.set_num_threads(args.threads)
    model = GPT(GPTConfig(block_size=args.block_size, n_layer=args.n_layer, n_head=args.n_head, n_embd=args.n_embd,
                          padded_vocab_size=50432), seed=0)
    problems = []
    for item in synthetic.gsm8k_items(args.problems):
        problems.append(rollouts.make_problem(item["question"], item["answer"], True))
    return model.eval(), problems


def sample(model, problems, args):
    """Completions of exactly --new tokens, since nothing ends them."""
    from lab import inference

    prompts = [problem["prompt"] for problem in problems for _ in range(args.group)]
    return inference.generate(model, prompts, args.new, stop_ids=(), log_probs=True)


def update(model, reference, problems, completions, args) -> None:
    """Forward, backward and a Muon step of all completions, in micro-batches."""
    import torch

    from lab import optim, policy, rollouts

    drawn = []
    for i, completion in enumerate(completions):
        prompt = problems[i // args.group]["prompt"]
        drawn.append(rollouts.Rollout(i, 0, prompt, completion.ids, completion.log_probs))
    weights = rollouts.weigh(drawn, "dr_grpo", "keep", args.new).float()
    optimizers = optim.build_optimizers(model, optimizer="muon", learning_rate=1e-4, weight_decay=0.0, muon_lr=1e-5,
                                        beta1=0.9, beta2=0.95, muon_scale="sqrt_max")
    for rows in rollouts.micro_batches(drawn, args.micro):
        batch = rollouts.make_batch([drawn[i] for i in rows])
        log_p, known = rollouts.log_probs(model, batch, 1.0), None
        if reference is not None:
            with torch.no_grad():
                known = rollouts.log_probs(reference, batch, 1.0)
        advantages = torch.linspace(-1, 1, len(rows))
        loss, _ = policy.objective(log_p, log_p.detach(), known, batch["owner"], advantages, weights[rows], clip=0.2,
                                   kl_coef=0.05)
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def peak(args, with_reference: bool) -> int:
    """Bytes at the peak of a step, in this process."""
    import copy

    from lab import processes

    model, problems = build(args)
    reference = copy.deepcopy(model) if with_reference else None
    update(model, reference, problems, sample(model, problems, args), args)
    return processes.peak_rss_bytes()


def parse(argv=None):
    parser = flags.Parser(description=__doc__.split("\n    python")[0],
                          epilog="example: python experiments/bench/grpo.py --check")
    add = parser.add_argument
    sizes = {"problems": 16, "group": 8, "new": 32, "micro": 32, "rounds": 5, "threads": 1, "n_layer": 4, "n_head": 4,
             "n_embd": 64, "block_size": 128}
    for name, value in sizes.items():
        add(f"--{name}", type=int, default=value, help="(default %(default)s)")
    add("--check", action="store_true", help="exit with status 1 when the target is missed, by CPU time (default off)")
    args = parser.parse_args(argv)
    if min(getattr(args, name) for name in sizes) < 1:
        parser.error("sizes, rounds and threads start at 1: give larger ones.")
    return args


def main() -> None:
    args = parse()
    import torch
    from generate import cpu_name, load_hugging_face, timed

    from lab import processes, units

    processes.tune_allocator()
    model, problems = build(args)
    peer = load_hugging_face(model)
    width = max(len(problem["prompt"]) for problem in problems)
    rows = [[0] * (width - len(problem["prompt"])) + problem["prompt"] for problem in problems]
    idx = torch.tensor(rows)
    mask = torch.tensor([[0] * (width - len(p["prompt"])) + [1] * len(p["prompt"]) for p in problems])
    reference = build(args)[0]

    def hugging_face():
        return peer.generate(idx, attention_mask=mask, max_new_tokens=args.new, min_new_tokens=args.new, do_sample=True,
                             top_k=0, temperature=1.0, num_return_sequences=args.group, use_cache=True, pad_token_id=0)

    times = {name: [] for name in ("sampling", "Hugging Face", "updating")}
    for turn in range(args.rounds + 1):  # the first is not counted
        completions, *of_ours = timed(lambda: sample(model, problems, args))
        _, *of_theirs = timed(hugging_face)
        _, *of_update = timed(lambda done=completions: update(model, reference, problems, done, args))
        if turn:
            for name, measured in zip(times, (of_ours, of_theirs, of_update), strict=True):
                times[name].append(measured)
    medians = {name: [statistics.median(m[i] for m in own) for i in (0, 1)] for name, own in times.items()}
    n, tokens = len(problems) * args.group, len(problems) * args.group * args.new
    print(f"{cpu_name()}, {os.cpu_count()} cores, {args.threads} thread(s), torch {torch.__version__}; {args.n_layer} "
          f"layers, n_embd {args.n_embd}, vocabulary {model.config.vocab_size}, fp32; {n} completions of {args.new} "
          f"tokens after {width} or fewer; medians of {args.rounds} rounds")
    for name, (wall, cpu) in medians.items():
        print(f"{name:<14}{wall:>9.2f} s{cpu:>9.2f} CPU s{tokens / cpu:>10.0f} tokens per CPU s")
    ratios = [medians["Hugging Face"][i] / medians["sampling"][i] for i in (0, 1)]
    share = medians["sampling"][1] / (medians["sampling"][1] + medians["updating"][1])
    print(f"sampling {ratios[1]:.2f} times Hugging Face by CPU time, {ratios[0]:.2f} by wall; target {TARGET}")
    print(f"of a step {100 * share:.0f} % is sampling, {100 - 100 * share:.0f} % updating (CPU time)")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = [pool.apply(peak, (args, with_reference)) for with_reference in (True, False)]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"peak memory {units.size(peaks[0])} with the reference, {units.size(peaks[1])} without; its weights are "
          f"{units.size(weights)}")
    if args.check and ratios[1] < TARGET:
        sys.exit(f"grpo.py: sampling is {ratios[1]:.2f} times Hugging Face, below {TARGET}")


if __name__ == "__main__":
    main()
