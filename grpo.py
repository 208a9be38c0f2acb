"""grpo.py tells one GRPO run: from a fine-tuned checkpoint and problems with known answers to a run's folder.

    python grpo.py --init <sft run> --data gsm8k/train.jsonl --exam_data gsm8k/test.jsonl                 # CPU, 1 GPU
    torchrun --standalone --nproc_per_node=8 grpo.py --init <sft run> --exam_data gsm8k/test.jsonl        # 8 GPUs, hub
    python grpo.py --init <sft run> --data synthetic:2000 --exam_data synthetic:1000 --optimizer muon     # no network
    python grpo.py --out_dir experiments/runs/<run> --resume auto                                         # continue

A step draws --group_size completions of each of --problems_per_step problems from the weights as they are
(lab/rollouts.py), rewards them (lab/rewards.py), and takes --inner_steps updates by the clipped objective with a KL
term to the frozen --init (lab/policy.py). The log-probs of the update come from the same weights, temperature and
precision as the sampling; ratio_off_share is the share of tokens where they differ beyond rounding: a step above 0.1 %
is a warning.
Prompts and answers are read as in the exam (lab/answers.py), and no reward knows the arm.

Writes a run's folder (layout: lab/runs.py). scalars.jsonl has, for every step, reward_mean and reward_sd, exact_share,
flat_groups (share of groups without variance), kl and entropy (nats per token, on the tokens sampled), clip_share,
length_mean and length_max, truncated_share, mul_tokens (per completion), and tokens/s of sampling and of updating.
Loss and gradient norm of a step are means over its --inner_steps updates. The exam, on problems that are never
rewarded, goes into grpo_metrics.jsonl: greedy accuracy, pass@1 and pass@k, majority at k, entropy, with Wilson's
intervals. Memory: weights, gradients and optimizer, and the weights of --init once more.
"""

import argparse
import functools
import math
import time
from pathlib import Path

from lab import flags

if __name__ == "__main__":
    flags.check_first(__file__)

import torch

import eval_gsm8k
from lab import (
    benchmarks,
    compiling,
    data_order,
    decontaminate,
    estimate,
    gradients,
    optim,
    policy,
    precision,
    processes,
    resume,
    rewards,
    rl_exam,
    rollouts,
    runs,
    training,
)
from lab.schema import check
from lab.tokenizer import bos_id, get_tokenizer, use_of
from model import GPT, GPTConfig

LONGEST_WARMUP = 100  # steps
# flags that derive from the model and the data when they have these values; --config and --resume derive them anew
DERIVED = {"max_new_tokens": 0, "warmup_iters": -1}
# how far p of the update / p at sampling may be from 1. float32: 1e-5 measured. bfloat16: a logit from 16 to 32 has
# steps of 0.125, and both are rounded: sd 0.009, 2 of 3.3 million tokens beyond (measured, log of 2026-11-26_grpo)
ROUNDING = {"float32": 1e-3, "bfloat16": 0.25}
MOST_OFF = 1e-3  # share of a step's tokens beyond ROUNDING that is no warning yet
N_ASKED_FIRST = 64  # problems that --init must be able to end its answers to
LOWEST_STOPPED = 0.5  # share of them
FINAL = "reward_mean exact_share kl entropy mul_tokens".split()  # of the last step, in summary.json

# ----------------------------------------------------------------------------------------------------------------------
# flags


def build_parser() -> argparse.ArgumentParser:
    parser = flags.make_parser(
        "grpo.py", __doc__, usage="grpo.py --init CHECKPOINT [flags]   (grpo.py --help lists them)")
    add = parser.add_argument_group("data").add_argument
    add("--stage", choices=("gsm8k", "tinygsm"), default="gsm8k",
        help="fields of the problems: question and answer or code (default %(default)s)")
    add("--init",
        help="fine-tuned weights, also the reference: a run's folder, a checkpoint, "
             "or a GPT.save folder (required)")
    add("--data", nargs="+", default=[], metavar="PATH",
        help="*.jsonl[.gz, .zst], *.parquet, globs, folders (all such files in them), "
             "or synthetic[:N] for gsm8k (default: the stage's hub dataset)")
    add("--max_read", type=int, default=0, help="records read, from the beginning (0 = all)")
    add("--max_examples", type=int, default=0,
        help="problems kept, chosen by hash among those read (0 = all)")
    add("--bad_conversations", choices=("error", "skip"), default="error",
        help="malformed records: stop, or leave out and count (default %(default)s)")
    add("--bos", choices=("on", "off"), default="on",
        help="<|endoftext|> before a problem (default %(default)s)")
    decontaminate.add_argument(parser.add_argument_group("contamination guard"))
    add = parser.add_argument_group("sampling and rewards").add_argument
    add("--problems_per_step", type=int, default=32,
        help="problems per step over all ranks (default %(default)s)")
    add("--group_size", type=int, default=8,
        help="completions per problem (default %(default)s)")
    add("--temperature", type=float, default=1.0,
        help="of sampling and of the policy (default %(default)g)")
    add("--max_new_tokens", type=int, default=0,
        help="of a completion (0 = half of the model's block_size, at most 256)")
    add("--reward", choices=rewards.REWARDS, default="exact",
        help="exact or shaped; random and zero are controls (default %(default)s)")
    add("--truncated", choices=("keep", "mask"), default="keep",
        help="completions without an end: keep their tokens in the loss, or not (default %(default)s)")
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--micro_batch_size", type=int, default=8,
        help="completions per forward pass of an update and rank (default %(default)s); "
             "no effect on results")
    add("--rollout_batch_size", type=int, default=64,
        help="completions sampled at once per rank (default %(default)s); "
             "no effect on results but rounding")
    add("--max_train_steps", type=int, default=200,
        help="steps of sampling and updating (default %(default)s)")
    add("--inner_steps", type=int, default=1,
        help="optimizer updates per step (default %(default)s)")
    add("--normalization", choices=policy.NORMALIZATIONS, default="dr_grpo",
        help="of advantages and loss, see lab/policy.py (default %(default)s)")
    add("--clip", type=float, default=0.2,
        help="of the ratio to the policy that sampled (default %(default)g)")
    add("--kl_coef", type=float, default=0.05,
        help="of the KL term to --init (default %(default)g; 0 = off)")
    add("--seed", type=int, default=0,
        help="of the order of problems and of sampling (default %(default)s)")
    optim.add_arguments(group, learning_rate=1e-5, weight_decay=0.0, longest_warmup=LONGEST_WARMUP)
    add = parser.add_argument_group("exam and samples").add_argument
    add("--eval_every", type=int, default=50,
        help="steps between exams; also before the first, after the last "
             "(default %(default)s; 0 = off)")
    add("--eval_batch_size", type=int, default=0,
        help="problems per forward pass (0 = --micro_batch_size)")
    add("--exam_data", default="",
        help="problems of the exam: jsonl[.gz] file, or synthetic[:N], its test split "
             "('' = the held-out share of --data)")
    add("--exam_problems", type=int, default=0, help="problems asked, spread evenly (0 = all)")
    add("--exam_samples", type=int, default=8,
        help="k of pass@k and majority (default %(default)s; 0 = greedy only)")
    add("--val_fraction", type=float, default=0.02,
        help="share of --data held out for the exam, by hash; without effect with --exam_data "
             "(default %(default)s)")
    add("--sample_every", type=int, default=0,
        help="steps between whole completions in samples.jsonl (0 = off)")
    flags.add_run_arguments(parser, name="grpo, reward, normalization", save_every=50)
    flags.add_machine_arguments(parser)
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Flags, checked. --config, or the run being resumed, supplies the defaults."""
    parser = build_parser()
    # --decontaminate may be repeated: a default would be added to, so it is set afterwards
    config = resume.take_defaults(parser, argv, skip=["decontaminate"])
    args = parser.parse_args(argv)
    if config and not args.decontaminate:
        args.decontaminate = config["flags"].get("decontaminate", [])
    if not args.init:
        parser.error("--init is required: name a run of sft.py, "
                     "or a checkpoint that answers and stops.")
    counts = "max_read max_examples max_new_tokens exam_problems exam_samples"
    flags.check_flags(parser, args, {
        "a whole number of at least 1":
            "micro_batch_size problems_per_step rollout_batch_size max_train_steps inner_steps",
        "0 or more": f"{counts} kl_coef {optim.number_flags()}",
        "a number above 0": "temperature clip",
        "a share from 0 to 1": "val_fraction"})
    if args.group_size < 2:
        parser.error(f"--group_size {args.group_size}: an advantage is a difference within the "
                     "group: give at least 2.")
    if args.eval_every and not args.exam_data and args.val_fraction == 0:
        parser.error("--val_fraction 0 holds out no problem for the exam: give it a share, name the "
                     "exam's problems with --exam_data, or drop the exam with --eval_every 0.")
    args.eval_batch_size = args.eval_batch_size or args.micro_batch_size
    flags.fill_in(args, name=f"grpo_{args.reward}_{args.normalization}")
    return args


# ----------------------------------------------------------------------------------------------------------------------
# data and model


def open_init(args, resumed: dict | None) -> tuple[dict, Path]:
    """(what config.json records of the checkpoint, its folder), which a resumed run needs too, as its reference.
    resumed: config.json of the run that is resumed, None for a new one."""
    if resumed is not None and not Path(args.init).exists():
        own = resumed["flags"].get("init")
        check(args.init != own, f"--init {own}, the reference of this run, is gone: restore it, then --resume auto.")
        raise ValueError(f"--init {args.init} does not exist, and this run began from {own}: leave --init out.")
    init, folder = resume.describe_init(args.init)
    model = GPT.load(folder)
    benchmarks.check_vocabulary(model)
    check(model.attention_only,
          f"--init {folder} has memory beside attention, which would read a completion in other "
          "pieces than it was sampled in: start from a model without.")
    return init, folder


def as_items(problems: list[dict]) -> list[dict]:
    """Problems as eval_gsm8k.evaluate takes them."""
    items = []
    for number, problem in enumerate(problems):
        name = f"{number:05d}-{problem['name'][:8]}"
        item = {"id": name, "cluster": name}
        items.append(item | {key: problem[key] for key in ("question", "gold")})
    return items


def identities(sources: dict[str, list[dict]]) -> set[str]:
    """What tells the sources of a run's problems or conversations apart: a file's bytes, a name on the hub."""
    every = [about for several in sources.values() for about in several]
    files = {about["sha256"] for about in every if about.get("sha256")}
    return files | {about["name"] for about in every if "revision" in about}


def refuse_trained_exam(init: dict, data: dict) -> None:
    """ValueError when the held-out share of --data would ask what a run before trained on: it holds out
    by question and answer, and this one by the question."""
    own = identities(data["record"]["sources"])
    folder, seen = init["run"], set()
    while own and folder and folder not in seen and (Path(folder) / "config.json").exists():
        seen.add(folder)
        config = runs.read_config(folder)
        is_tuned = config["data"].get("format") == "conversations"
        if is_tuned and own & identities(config["data"]["sources"]):
            raise ValueError(f"{folder} was trained on the same --data, so that its held-out share is no exam: "
                             "name other problems with --exam_data, such as GSM8K's test split, or drop the "
                             "exam with --eval_every 0.")
        start = config.get("init")
        folder = start.get("run") if isinstance(start, dict) else None


def load_problems(args, block_size: int, resumed: dict | None = None, init: dict | None = None) -> dict:
    """rollouts.load()'s, and "exam": problems that are never rewarded, as eval_gsm8k.evaluate takes them."""
    val_fraction = args.val_fraction
    if resumed is not None and not resumed["data"]["held_out"]:
        val_fraction = 0.0  # an older run with --eval_every 0 was rewarded for all problems
    data = rollouts.load(args, block_size, val_fraction)
    if init is not None and resumed is None and args.eval_every and not args.exam_data:
        refuse_trained_exam(init, data)
    items = as_items(data["held_out"])
    if args.exam_data:
        try:
            items = eval_gsm8k.load(args.exam_data)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace("--data", "--exam_data")) from None
    asked = {item["question"] for item in items}
    shared = sum(problem["question"] in asked for problem in data["problems"])
    if shared and args.eval_every:
        raise ValueError(f"--exam_data and --data share {shared:,} questions, and an exam asks "
                         "only what is never rewarded: name other problems.")
    data["exam"] = benchmarks.spread_evenly(items, args.exam_problems)
    return data


def time_sampling(model, problem: dict, args, autocast) -> float:
    """Seconds per completion, from a few tokens of one batch; at most, since completions end earlier."""
    few, rows = min(4, args.max_new_tokens), min(args.group_size, args.rollout_batch_size)
    seconds = []
    while len(seconds) < 2:  # the first on a device also loads its kernels
        started = time.perf_counter()
        with autocast():
            rollouts.sample(
                model.eval(), 0, [(0, problem)], group_size=rows, max_new_tokens=few,
                temperature=args.temperature, seed=0, batch_size=rows)
        seconds.append(time.perf_counter() - started)
    return min(seconds) * args.max_new_tokens / few / rows


def show_samples(run: training.Run, groups: list[tuple]) -> None:
    """The first completion of the step's first groups, whole, with its reward."""
    decode = get_tokenizer().decode_generated
    samples = []
    for group in groups[:3]:
        one, value = group.rollouts[0], group.rewards[0]
        samples.append((decode(one.prompt), f"{decode(one.ids)} [reward {value:g}]"))
    training.record_samples(run, samples)
    run.pace.mark("sample")


# ----------------------------------------------------------------------------------------------------------------------
# evaluation

def hold_exam(model, data: dict, args, procs, autocast, stop) -> dict | None:
    """eval_gsm8k.evaluate_samples() of the held-out problems; None when asked to stop."""
    return eval_gsm8k.evaluate_samples(
        model, data["exam"], procs, samples=args.exam_samples,
        sample_temperature=args.temperature, bos=args.bos == "on",
        max_new_tokens=args.max_new_tokens, seed=args.seed, batch_size=args.eval_batch_size,
        autocast=autocast, stop=stop, progress=True)


def refuse_endless(model, data: dict, args, procs, autocast) -> None:
    """ValueError when --init does not end its answers: then there is nothing to reward."""
    items = (data["exam"] or as_items(data["problems"]))[:N_ASKED_FIRST]
    exam = eval_gsm8k.evaluate(
        model.eval(), items, procs, bos=args.bos == "on", max_new_tokens=args.max_new_tokens,
        batch_size=args.eval_batch_size, autocast=autocast)
    stopped = exam["metrics"]["stopped_at_end_of_text"]
    if stopped < LOWEST_STOPPED * len(items):
        raise processes.SharedError(
            f"--init {args.init} ends {stopped} of {len(items)} answers within "
            f"{args.max_new_tokens} tokens, and what does not end cannot be rewarded: "
            "fine-tune it first (sft.py), or raise --max_new_tokens.")


# ----------------------------------------------------------------------------------------------------------------------
# the end


def find_warnings(run: training.Run) -> list[str]:
    """Signs that the run did not do what it says, a sentence each."""
    steps = [record for record in resume.read_scalars(run.folder) if record["type"] == "train"]
    warnings = []
    off = [record["step"] for record in steps if record["ratio_off_share"] > MOST_OFF]
    if off:
        warnings.append(f"in {len(off)} steps, first {off[0]}, the log-probs of updating and "
                        "sampling differ beyond rounding.")
    flat = sum(record["flat_groups"] == 1 for record in steps)
    if 2 * flat > len(steps) and run.args.reward != "zero":
        warnings.append(f"in {flat} of {len(steps)} steps no group had two different rewards: "
                        "they taught nothing.")
    return warnings


def summarise(run: training.Run) -> dict:
    """summary.json: last numbers, cost, warnings."""
    trained = [record for record in resume.read_scalars(run.folder) if record["type"] == "train"]
    last = dict.fromkeys(f"final_{key}" for key in FINAL)
    for record in trained[-1:]:  # none where scalars.jsonl was lost
        last |= {f"final_{key}": record[key] for key in FINAL}
    for exam in runs.read_jsonl(run.folder / "grpo_metrics.jsonl")[-1:]:
        for key, *_ in rl_exam.metrics_of(run.args.exam_samples):
            key = key.removeprefix("grpo_")
            last[f"final_{key}_exam"] = exam[key]
    return {
        **training.final_numbers(run, ""), **last, "condition": run.record["data"]["condition"],
        "completions": run.state.step * run.args.problems_per_step * run.args.group_size,
        "trained_tokens_seen": run.state.trained_seen, "warnings": find_warnings(run),
    }


# ----------------------------------------------------------------------------------------------------------------------
# the run


def train(args, procs) -> int:
    # ------------------------------------------------------------------------------------------------------------------
    # processes
    device = procs.device
    training.prepare_machine(args, device, masks=True)
    args.out_dir = procs.broadcast(args.out_dir)  # its date may differ at midnight
    if procs.on_main(lambda: training.nothing_to_do(args, build_parser(), "--init")):
        return 0
    if not args.dry_run:
        procs.hold(args.out_dir)
    resumed = procs.on_main(lambda: training.resumed_config(args))

    # ------------------------------------------------------------------------------------------------------------------
    # data: rank 0 reads, the other ranks get its problems
    derived = [name for name, unset in DERIVED.items() if getattr(args, name) == unset]
    init, init_folder = procs.on_main(lambda: open_init(args, resumed))
    use_of(init_folder)
    config = GPTConfig.from_dict(init["model"])
    args.max_new_tokens = args.max_new_tokens or min(256, config.block_size // 2)
    data = procs.on_main(lambda: load_problems(args, config.block_size, resumed, init))
    problems, per_step = data["problems"], args.problems_per_step
    n_completions, n_places = per_step * args.group_size, args.max_train_steps * per_step
    optim.fill_in(args, LONGEST_WARMUP)
    schedule = optim.schedule_settings(args)
    plan = rollouts.plan_order(data["fingerprint"], len(problems), n_places, args.seed)

    # ------------------------------------------------------------------------------------------------------------------
    # model, its frozen reference, optimizer
    model, reference = GPT.load(init_folder, device), None
    if args.kl_coef:
        reference = GPT.load(init_folder, device)
        procs.share(p.detach() for p in reference.parameters())  # a node may see another --init
    autocast = precision.choose(args, procs, model, args.micro_batch_size * args.max_new_tokens, resumed)
    reducer = gradients.Reducer(procs, model)
    optimizers = optim.build_optimizers(
        model, **optim.settings(args), rank=procs.rank, world_size=procs.world_size)
    hidden, shape = compiling.compile_training(args, model, rollouts.hidden_states), ()
    if compiling.compiles(args, device):
        width = max(len(problem["prompt"]) for problem in problems) + args.max_new_tokens
        shape = width, args.micro_batch_size  # one, compiled once
    per_completion = policy.NORMALIZATIONS[args.normalization].per_completion
    flops_per_token = model.flops_per_token(config.block_size)
    flops_head = 6 * config.vocab_size * config.n_embd  # the part that only completions pay
    flops_body = flops_per_token - flops_head
    passes = args.inner_steps + (1 + (args.kl_coef > 0)) / 3  # sampling and reference: forward alone

    def compute_gradients(rows, advantages, weights, known: dict) -> tuple[torch.Tensor, dict]:
        """Adds a micro-batch's gradients. known: its log-probs of the first inner step, kept for the others."""
        batch = rollouts.make_batch(rows, *shape)
        with autocast():
            if "reference" not in known:
                known["reference"] = None
                if reference is not None:
                    # not without gradients, for which there are other kernels: the start's KL to itself is exactly 0
                    known["reference"] = rollouts.log_probs(reference, batch, args.temperature, hidden).detach()
            log_p = rollouts.log_probs(model, batch, args.temperature, hidden)
            known.setdefault("old", log_p.detach())
        advantages = advantages.to(device, torch.float32)
        weights = weights.to(device, torch.float32)
        loss, figures = policy.objective(
            log_p, known["old"], known["reference"], batch["owner"].to(device), advantages,
            weights, clip=args.clip, kl_coef=args.kl_coef, per_completion=per_completion)
        off = (log_p.detach().cpu().double() - batch["sampled"]).expm1().abs()
        figures |= {"off": int((off > ROUNDING[args.dtype]).sum()), "off_max": off.max().item()}
        loss.backward()
        return loss.detach(), figures

    # ------------------------------------------------------------------------------------------------------------------
    # what it will cost, from one micro-step and a few tokens, which leave no trace
    longest = max(problems, key=lambda problem: len(problem["prompt"]))
    dummy = rollouts.Rollout(
        0, 0, longest["prompt"], [bos_id()] * args.max_new_tokens, [0.0] * args.max_new_tokens)
    of_rank = math.ceil(n_completions / procs.world_size)
    asked = len(data["exam"]) * (1 + args.exam_samples)
    pace, costs = training.look_ahead(
        args, reducer, model, optimizers,
        lambda n: compute_gradients([dummy] * n, torch.ones(n), torch.ones(n), {}),
        micro_steps=args.inner_steps * math.ceil(of_rank / args.micro_batch_size),
        tokens=args.micro_batch_size * (len(longest["prompt"]) + args.max_new_tokens),
        every={"val": args.eval_every}, scored={"val": asked * args.max_new_tokens},
        sizes=range(1, args.micro_batch_size),
        seconds_before=of_rank * time_sampling(model, longest, args, autocast),
        advice="for a laptop: lower --problems_per_step or --max_train_steps")
    costs[0] += " (at most: completions end before --max_new_tokens)"
    if args.dry_run:
        procs.print("\n".join([str(autocast), *costs]))
        return 0
    if resumed is None:
        refuse_endless(model, data, args, procs, autocast)

    # ------------------------------------------------------------------------------------------------------------------
    # the run's folder: made before anything is computed, or continued from its newest whole checkpoint
    record = training.describe(args, procs, model, flops_per_token, optim.unused_flags(args))
    record |= {"derived": derived, "init": init}
    record["data"] = {
        "fingerprint": data["fingerprint"], "format": "problems", "condition": init["condition"],
        "problems": len(problems), "held_out": len(data["held_out"]),
        "epochs": round(n_places / len(problems), 4), **data["record"]}
    if args.eval_every:
        sha256 = eval_gsm8k.items_sha256(data["exam"])
        record["benchmarks"] = {rl_exam.NAME: rl_exam.describe(data["exam"], args.exam_samples, sha256)}
    same = {"fingerprint of the problems": ("data", "fingerprint"),
            "weights of --init": ("init", "model_sha256"),
            "problems of the exam": ("benchmarks", rl_exam.NAME, "sha256")}
    run = training.Run("grpo.py", args, procs, record, model, optimizers, autocast, pace)
    training.open_run(run, resumed, same, build_parser())
    state = run.state
    run.log(f"init {init['folder']} | model sha256 {init['model_sha256'][:16]}")
    counts = data["record"]["counts"][args.stage].items()
    listed = ", ".join(f"{name} {count:,}" for name, count in counts)
    run.log(f"data {args.stage} | {listed} | {len(problems):,} problems rewarded, "
            f"{len(data['exam']):,} in the exam")
    run.log(f"{args.max_train_steps} steps x {per_step:,} problems x {args.group_size} completions, "
            f"{args.inner_steps} update(s) each | reward {args.reward}, {args.normalization}, "
            f"KL {args.kl_coef:g}, truncated: {args.truncated} | {args.schedule}, "
            f"warmup {args.warmup_iters}")
    for line in costs:
        run.log(line)

    # ------------------------------------------------------------------------------------------------------------------
    # the loop
    last_step = args.max_train_steps
    compute_exam = functools.partial(hold_exam, model, data, args, procs, autocast, run.stop)
    evaluations = {"val": (compute_exam, functools.partial(rl_exam.record, run))}
    training.evaluate(run, evaluations)
    stopped = bool(state.due)
    while state.step < last_step and not stopped:
        started = time.perf_counter()
        multiplier = optim.lr_multiplier(state.step, **schedule)
        optim.set_learning_rates(optimizers, multiplier)
        first = state.step * per_step  # of the step's entries in the plan
        numbers = plan[first : first + per_step].tolist()
        numbered = [(place, problems[number]) for place, number in enumerate(numbers)]
        groups = rollouts.draw_groups(model, state.step + 1, numbered, args, procs, autocast)
        drawn = [one for group in groups for one in group.rollouts]
        values = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
        advantages = policy.advantages_of(values, args.normalization).flatten()
        weights = rollouts.weigh(drawn, args.normalization, args.truncated, args.max_new_tokens)
        sampled = time.perf_counter()

        model.train()
        mine = rollouts.micro_batches(drawn, args.micro_batch_size)[procs.rank :: procs.world_size]
        known, figures, losses, norms = [{} for _ in mine], [], [], []
        for _ in range(args.inner_steps):
            loss = torch.zeros((), device=device)
            for rows, kept in reducer.micro_steps(list(zip(mine, known, strict=True))):
                part, figure = compute_gradients(
                    [drawn[i] for i in rows], advantages[rows], weights[rows], kept)
                loss += part
                figures.append(figure)
            grad_norm = reducer.finish()
            gradients.clip_and_step(optimizers, grad_norm, args.grad_clip)
            outcome = training.read_step(run, loss, grad_norm)
            stopped = stopped or outcome.stopped
            training.refuse_non_finite(run, outcome, f"problems {numbers[:4]}...")
            losses.append(outcome.loss)
            norms.append(outcome.grad_norm)
        completion_tokens = sum(len(one.ids) for one in drawn)
        tokens = completion_tokens + sum(len(one.prompt) - 1 for one in drawn)
        flops = int(passes * (flops_body * tokens + flops_head * completion_tokens))
        seconds = training.finish_step(run, started, tokens, completion_tokens, flops)

        # records. The checksum is of the step's problems, in their order, on every rank
        step = state.step
        names = [int(problem["name"][:15], 16) for _, problem in numbered]
        checksum = data_order.token_checksum(torch.tensor(names)[:, None].numpy(), first)
        run.exposures.write(
            step=step, rank=procs.rank, seed=args.seed, entries=[first, first + per_step],
            problems=numbers[procs.rank :: procs.world_size], checksum=f"{checksum:016x}")
        totals = rollouts.sum_figures(procs, figures, len(mine))
        counted = max(1, sum(len(drawn[i].ids) for i in weights.nonzero()[:, 0]))
        of_updates = started + seconds - sampled
        training.record_step(
            run, outcome._replace(loss=sum(losses) / len(losses), grad_norm=sum(norms) / len(norms)),
            lr=args.learning_rate * multiplier, seconds=seconds, tokens=tokens, flops=flops,
            epoch=step * per_step / len(problems), **rollouts.describe_step(groups),
            kl=totals["kl"] / counted,
            clip_share=totals["clipped"] / counted / args.inner_steps,
            ratio_off_share=totals["off"] / completion_tokens,
            ratio_off_max=totals["off_max"],
            sampling_tokens_per_sec=round(completion_tokens / (sampled - started), 1),
            update_tokens_per_sec=round(completion_tokens * args.inner_steps / of_updates, 1),
            sampling_seconds=round(sampled - started, 6))
        if procs.is_main and training.is_due(args.sample_every, step):
            show_samples(run, groups)
        if training.is_due(args.eval_every, step, last_step):
            state.due = ["val"]
        training.evaluate(run, evaluations)
        stopped = stopped or bool(state.due)
        if stopped or step == last_step or training.is_due(args.save_every, step):
            run.save()

    # ------------------------------------------------------------------------------------------------------------------
    # goodbye
    run.close()
    if not training.is_complete(run):
        training.leave(run)
    elif procs.is_main:
        training.write_summary(run, summarise(run))
    return 0


def main(argv=None) -> int:
    args = parse_args(argv)
    with processes.start_processes(args.device) as procs:
        with estimate.naming("micro_batch_size", args):
            return train(args, procs)


if __name__ == "__main__":
    processes.exit_in_a_sentence(main, "grpo.py", training.INTERRUPTED)
