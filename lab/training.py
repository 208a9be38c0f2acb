"""training.py owns what the trainers do alike: a run opened, resumed, saved and closed, sums over ranks.

train_gpt.py, sft.py and grpo.py tell the story of a run, in the same order of sections; what does not differ is here.
"Step s" is the state after s optimizer updates. Everything of a step is recorded before the step is saved.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lab import (
    compiling,
    disk,
    estimate,
    gradients,
    kernels,
    optim,
    precision,
    processes,
    resume,
    run_state,
    runs,
    saving,
    schema,
    snapshots,
)
from lab.mirrors import open_mirrors
from model import GPT

EVERY = {"val": "eval"}  # evaluations whose flag, --<name>_every, has another name
INTERRUPTED = "stopped at once; the same command with --out_dir and --resume auto goes on from the last checkpoint."

# ----------------------------------------------------------------------------------------------------------------------
# machine


def prepare_machine(args, device, masks: bool):
    """Tunes the allocator, and picks kernels: for --deterministic, and for masks, whether attention is passed any. The
    dtype follows when the model is there (precision.choose)."""
    processes.tune_allocator()
    if masks:
        kernels.avoid_cudnn()
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        kernels.make_deterministic(device)


def look_ahead(args, reducer, model, optimizers, micro_step, *, micro_steps: int, tokens: int, every: dict,
               scored: dict, sizes=(), advice: str, seconds_before=0.0) -> tuple[estimate.Pace, list[str]]:
    """(how the time that is left is counted, lines on what the run will cost), from one micro-step.

    micro_step(rows): forward and backward. micro_steps: of a rank in a step; tokens: of each; seconds_before: what a
    step takes before them, such as for sampling. every: {evaluation: steps between two}; scored: {evaluation: its
    tokens}. sizes, advice: see estimate."""

    def update() -> None:
        optim.set_learning_rates(optimizers, 0.0)
        grad_norm = reducer.finish()
        if torch.isfinite(grad_norm):  # 0 x inf would not be 0
            gradients.clip_and_step(optimizers, grad_norm, args.grad_clip)

    rows, procs = args.micro_batch_size, reducer.procs
    device = procs.device
    is_compiled = compiling.compiles(args, device)
    cost = estimate.measure(micro_step, update, model, optimizers, rows, device, sizes, is_compiled)
    per_token = estimate.FORWARD_SHARE * cost.micro_step / tokens / procs.world_size
    guesses = {kind: per_token * count for kind, count in scored.items()}
    guesses["step"] = seconds_before + micro_steps * cost.micro_step + cost.update
    guesses["save"] = cost.checkpoint / estimate.SAVE_SPEED
    kinds = [kind for kind, steps in every.items() if steps]
    at_start = [kind for kind in kinds if kind == "val"]
    plan = {**every, "sample": args.sample_every, "save": args.save_every}
    pace = estimate.Pace(args.max_train_steps, plan, [*kinds, "save"], at_start, guesses)
    pace.compile_seconds = cost.compile
    lines = estimate.report(args, cost, pace, device, advice)
    if args.compile == "auto" and device.type == "cuda" and not is_compiled:
        lines.append("WARNING: nothing is compiled, which is slower, as no C compiler is on the PATH: install gcc.")
    return pace, lines


# ----------------------------------------------------------------------------------------------------------------------
# a run


@dataclass
class State:
    """What a checkpoint holds beside weights, optimizers and RNG (trainer.json). A new field is saved and restored."""

    step: int = 0
    tokens_seen: int = 0  # by the network, on all ranks
    trained_seen: int = 0  # those that the loss was taken of
    flops: int = 0
    train_seconds: float = 0.0  # of training steps, over all resumes
    eval_seconds: float = 0.0
    wall_seconds: float = 0.0  # with saves and logs
    compile_seconds: float = 0.0  # before the first step, over all resumes; in none of the others
    due: list[str] = field(default_factory=list)  # evaluations of this step that are not made yet


@dataclass
class Run:
    """A run while it trains: what the loop and its bookkeeping share. open_files adds stop (the request to), exposures
    and bar, and on rank 0 scalars and log_file."""

    script: str  # its name, for messages
    args: argparse.Namespace
    procs: processes.Processes
    record: dict  # config.json
    model: GPT
    optimizers: list
    autocast: precision.Precision  # makes the context of a forward pass
    pace: estimate.Pace

    def __post_init__(self):
        self.folder = Path(self.args.out_dir)
        self.state = State()
        self.saver = saving.Saver(self.procs)
        self.saved_step = -1  # of the newest checkpoint
        self.checked = None, None  # the last checkpoint that check() read, and its content

    def open_files(self, is_new: bool) -> None:
        """Opens the records to append to, takes over the stop signals, starts the clock."""
        args, step = self.args, self.state.step
        self.stop = processes.StopRequest(
            "this step is finished and saved first, an evaluation is left for later")
        self.clock_zero = time.perf_counter() - self.state.wall_seconds
        exposures = self.folder / "exposures"
        # on other nodes too, whose disk may be another
        exposures.mkdir(parents=True, exist_ok=True)
        self.exposures = runs.JsonlWriter(exposures / f"exposures_rank{self.procs.rank:04d}.jsonl")
        hidden = True
        if self.procs.is_main:
            hidden = None  # shown when stderr is a terminal
            try:
                mirrors = open_mirrors(self.folder, self.record, step, args.wandb_project, args.tensorboard)
            except ValueError:
                if is_new:
                    shutil.rmtree(self.folder)  # new and empty; it would block the retry
                raise
            self.scalars = runs.JsonlWriter(self.folder / "scalars.jsonl", mirrors)
            self.log_file = runs.LineWriter(self.folder / "log.txt")
        layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self.bar = tqdm(total=args.max_train_steps, initial=step, dynamic_ncols=True,
                        disable=hidden, bar_format=layout)
        self.pace.start()

    def log(self, message: str) -> None:
        """Prints a line and adds it to log.txt, on rank 0."""
        if self.procs.is_main:
            tqdm.write(message, file=sys.stdout)
            self.log_file.write_line(message)

    def save(self) -> None:
        """Writes a checkpoint of the present step; on CUDA it is whole when finish_saving has returned."""
        self.finish_saving()  # of the one before
        self.state.wall_seconds = time.perf_counter() - self.clock_zero
        rng_states = self.procs.gather(saving.rng_state(self.procs.device))
        self.saver.begin(self.folder, self.state.step, self.args.keep_last, self.model,
                         self.optimizers, rng_states, asdict(self.state))
        self.saved_step = self.state.step
        self.pace.mark("save")
        if self.procs.device.type != "cuda":
            self.finish_saving()

    def finish_saving(self) -> None:
        path = self.saver.finish()
        if path:
            self.log(f"step {runs.step_of(path):6d} | saved {path}")

    def check(self, checkpoint: Path) -> None:
        """ValueError unless a checkpoint is whole and this run's."""
        runs.check_checkpoint(checkpoint)
        self.checked = None, None
        content = resume.read_checkpoint(checkpoint, self.model, self.optimizers, State)
        self.checked = str(checkpoint), content

    def load(self, checkpoint: str) -> None:
        """Continues from a checkpoint that save() wrote."""
        device, (name, content) = self.procs.device, self.checked
        if name != checkpoint:  # rank 0 alone has checked it
            content = resume.read_checkpoint(Path(checkpoint), self.model, self.optimizers, State)
        self.checked = None, None
        weights, states, rng_states, self.state = content
        self.model.load_state_dict(weights)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        # training draws nothing from them; restored, so that code which does stays exact on resume
        if self.procs.rank < len(rng_states):
            own = rng_states[self.procs.rank]
            torch.set_rng_state(own["cpu"])
            if device.type == "cuda" and "cuda" in own:  # not in a checkpoint that was saved on CPU
                torch.cuda.set_rng_state(own["cuda"])
        self.saved_step = self.state.step

    def close(self) -> None:
        self.finish_saving()
        self.bar.close()
        self.exposures.close()
        if self.procs.is_main:
            self.scalars.close()


# ----------------------------------------------------------------------------------------------------------------------
# a run begins: new, or continued from its newest whole checkpoint


def resumed_config(args) -> dict | None:
    """config.json of the run that --resume continues; None for a new run."""
    folder = Path(args.out_dir)
    exists = (folder / "config.json").exists()
    if args.resume and (folder / "summary.json").exists():  # not yet when nothing_to_do looked
        raise ValueError(f"{folder} has just been finished by another process: nothing is left to do.")
    if args.resume and exists:
        advice = "restore it, or choose another --out_dir"
        return schema.read_json(folder / "config.json", resume.CONFIG, advice)
    run_state.refuse_existing(folder)  # create_run would find out only when the data is read
    if args.resume not in ("", "auto"):
        raise ValueError(f"--resume {args.resume}: {folder} is not a run (no config.json); use --resume auto.")
    return None


def nothing_to_do(args, parser, start_flag: str) -> bool:
    """True, and says so, when the run to resume has ended. ValueError when it was asked for something else, such as
    more steps. parser: see changed_flags. start_flag: names the weights that a run starts from."""
    folder = Path(args.out_dir)
    if not (args.resume and (folder / "summary.json").exists()):
        return False
    finished = runs.read_config(folder)
    changed = changed_flags(finished, vars(args), parser)
    if changed:
        raise ValueError(
            f"{folder} is finished, and --resume cannot change a finished run ({', '.join(changed)}): to train its "
            f"weights further, start a new one with {start_flag} {folder}, another --out_dir and another --seed (the "
            "same one reads the same batches again; optimizer and schedule begin anew); to train anew, choose another "
            "--out_dir; to only ask whether it is finished, drop these flags.")
    if args.resume not in ("auto", str(finished["flags"].get("max_train_steps"))):
        raise ValueError(
            f"{folder} is finished, and --resume {args.resume} cannot go back in it: to train on from there, start a "
            f"new run with {start_flag} and that checkpoint; to only ask, pass --resume auto.")
    print(f"{args.out_dir} is already finished (it has a summary.json): nothing to do.")
    return True


def describe(args, procs, model, flops_per_token: int, unused_flags: list[str]) -> dict:
    """The part of config.json that every trainer's run has."""
    peak = args.peak_flops or processes.peak_flops(procs.device)
    return {
        **resume.portable(vars(args)), "unused_flags": unused_flags, "argv": sys.argv,
        "started": runs.now(), "code": snapshots.code_state(),
        **processes.machine_state(procs.device), "world_size": procs.world_size,
        "model": model.config.to_dict(), "parameters": model.num_params(),
        "flops_per_token": flops_per_token, "peak_flops": peak if math.isfinite(peak) else None,
    }


def open_run(run: Run, resumed: dict | None, same: dict, parser) -> None:
    """Makes the run's folder, or continues `resumed`, its config.json, where its newest whole checkpoint ends.

    same: {name, for the message: a tuple of keys of config.json}, whose values must be equal to resume. parser: see
    refuse_changes."""

    def open_folder() -> tuple[str, list[str]]:
        """(the checkpoint or "", lines for the log)"""
        if resumed is None:
            disk.refuse_undecoded(run.folder, "--out_dir")
            run.record["precision"] = run.autocast.record()
            run.record["defaults"] = {flag: parser.get_default(flag) for flag in runs.conditions(run.record["flags"])}
            runs.create_run(run.folder, run.record)
            return "", []
        refuse_changes(resumed, run.record, same, parser)
        messages = []
        checkpoint = runs.find_checkpoint(run.folder, run.args.resume, warn=messages.append, check=run.check)
        if checkpoint is None:
            resume.trim_records(run.folder, -1)
            return "", [*messages, "no checkpoint yet: starting at step 0"]
        resume.trim_records(run.folder, runs.step_of(checkpoint), run.checked[1][-1].due)
        return str(checkpoint), [*messages, f"resumed from {checkpoint}"]

    args, procs = run.args, run.procs
    # nothing here draws from torch's own generator, but dropout in a network of yours would
    torch.manual_seed((args.seed * 2**20 + procs.rank) % 2**63)
    if resumed is not None:
        run.record["started"] = resumed["started"]  # wandb identifies the run by it
    checkpoint, messages = procs.on_main(open_folder)
    if args.eval_every:
        run.state.due = ["val"]
    if checkpoint:
        seen = procs.gather(Path(checkpoint).is_dir())
        if not all(seen):
            raise processes.SharedError(f"rank {seen.index(False)} does not see {checkpoint}: "
                                        "put --out_dir on a disk that all nodes share.")
        run.load(checkpoint)
    if resumed is not None:
        resuming = run.folder, resumed, checkpoint, run.record["code"]
        messages += procs.on_main(lambda: snapshots.record_resumed(*resuming))
        run.record["code"] = resumed["code"]
    # a node with other files, another CPU or another torch would begin with other weights
    procs.share(p.detach() for p in run.model.parameters())
    run.state.compile_seconds += run.pace.compile_seconds
    run.open_files(is_new=resumed is None)
    total = run.record["parameters"]["total"]
    run.log(f"run {run.folder} | {procs.world_size} x {procs.device.type} | {total:,} parameters")
    run.log(str(run.autocast))
    for message in messages:
        run.log(message)


def changed_flags(resumed: dict, flags: dict, parser) -> list[str]:
    """"flag: old -> new" of each flag that differs from those of the run whose config.json is `resumed`, and can change
    its result. parser: its defaults stand for flags that did not exist when the run began, and for those that are not
    derived yet."""
    changed, derived = [], resumed.get("derived", ())
    for flag, value in sorted(runs.conditions(flags).items()):
        default = parser.get_default(flag)
        value_before = resumed["flags"].get(flag, default)
        if value == "auto" or (flag in derived and value == default):  # stands for what the run had
            continue
        if value_before != value:
            changed.append(f"{flag}: {value_before!r} -> {value!r}")
    return changed


def refuse_changes(resumed: dict, record: dict, same: dict, parser) -> None:
    """ValueError when a resumed run would go on with another result. parser: see changed_flags."""
    changed, other = changed_flags(resumed, record["flags"], parser), []
    for name, keys in same.items():
        old, new = resumed, record
        for key in keys:
            old, new = old.get(key, {}), new.get(key, {})
        if old != new:
            other.append(name)
    remedy = "repeat its flags, or start another run from its weights (--init_from, --init)"
    if not changed:
        remedy = "name the files that it began with (--data_dir and the like), or restore them"
    if changed or other:
        raise ValueError(f"--resume would change the run ({', '.join([*changed, *other])}): "
                         f"{remedy}, or choose another --out_dir.")


# ----------------------------------------------------------------------------------------------------------------------
# a step: what follows the backward passes


class Outcome(NamedTuple):
    """Of a step, the same on all ranks."""

    loss: float  # the ranks' added up
    grad_norm: float  # before clipping
    param_norm: float  # after the update
    stopped: bool  # whether any rank was asked to stop
    checksum: int  # the ranks' added up, modulo 2**64


def read_step(run: Run, loss, grad_norm, checksum=0) -> Outcome:
    """Adds up loss and checksum over the ranks: a step's Outcome. Here, once a step, the host waits for the device. A
    checkpoint that was written meanwhile is logged; if that failed, the run ends."""
    procs, device = run.procs, run.procs.device
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    param_norm = gradients.total_norm([p.detach() for p in run.model.parameters() if p.requires_grad])
    halves = divmod(checksum, 2**32)  # float64 adds them up exactly
    of_host = torch.tensor([run.stop.asked, run.saver.is_done(), *halves], dtype=torch.float64)
    loss, *norms = (value.to(device).double().view(1) for value in (loss, grad_norm, param_norm))
    sums = procs.sum(torch.cat([loss, processes.to_device(of_host, device)]))
    loss, asked, saved, high, low, *norms = torch.cat([sums, *norms]).tolist()
    if saved:
        run.finish_saving()
    return Outcome(loss, *norms, asked > 0, (int(high) * 2**32 + int(low)) % 2**64)


def refuse_non_finite(run: Run, outcome: Outcome, what_was_read: str) -> None:
    """Ends a run that has diverged, before anything of the step but a line in log.txt is recorded or saved."""
    loss, norm = outcome.loss, outcome.grad_norm
    if math.isfinite(loss) and math.isfinite(norm):
        return
    fault = (f"step {run.state.step + 1}: loss {loss} and gradient norm {norm} are not finite, on "
             f"{what_was_read}")
    if run.procs.is_main:
        with contextlib.suppress(ValueError):  # a full disk, which is not why the run ends
            run.log_file.write_line(f"{run_state.DIVERGED}{fault}")
    last = (runs.list_checkpoints(run.folder) or ["none"])[-1]
    raise processes.DivergedError(
        f"{fault}; the last good checkpoint is {last}: --resume auto would end here again, so start "
        "another run with a lower --learning_rate or a longer --warmup_iters.")


def finish_step(run: Run, started: float, tokens: int, trained_tokens: int, flops: int) -> float:
    """Counts the step, which read_step has waited for. Returns its seconds."""
    seconds = time.perf_counter() - started
    run.state.step += 1
    run.state.tokens_seen += tokens
    run.state.trained_seen += trained_tokens
    run.state.flops += flops
    run.state.train_seconds += seconds
    return seconds


def record_step(run: Run, outcome: Outcome, *, lr, seconds, tokens, flops, epoch, **more) -> None:
    """The step's line in scalars.jsonl, the progress bar, and every --log_every steps a line in log.txt."""
    args, state = run.args, run.state
    run.pace.mark("step")
    if not run.procs.is_main:
        return
    is_cuda = run.procs.device.type == "cuda"
    peak_memory = torch.cuda.max_memory_allocated() if is_cuda else processes.peak_rss_bytes()
    peak_flops = run.procs.world_size * (run.record["peak_flops"] or math.nan)
    speed = tokens / seconds
    run.scalars.write(
        type="train", step=state.step, timestamp=runs.now(), lr=lr,
        train_loss_opt_step_mean=outcome.loss, grad_norm_l2_preclip=outcome.grad_norm,
        param_norm_l2=outcome.param_norm,
        tokens_seen_global=state.tokens_seen, tokens_per_sec=round(speed, 1),
        mfu=round(flops / seconds / peak_flops, 4), peak_mem_bytes=peak_memory,
        step_seconds=round(seconds, 6), flops_total=state.flops, epoch=round(epoch, 6), **more)
    left = datetime.timedelta(seconds=round(min(run.pace.seconds_left(state.step), 1e10)))  # it can hold 8.6e13
    run.bar.set_postfix_str(f"{left} left, loss {outcome.loss:.4f}, {speed:,.0f} tok/s", refresh=False)
    run.bar.update()
    if is_due(args.log_every, state.step):
        run.log(f"step {state.step:6d}/{args.max_train_steps} | loss {outcome.loss:.4f} | lr {lr:.3e} | "
                f"norm {outcome.grad_norm:.3f} | {speed:,.0f} tok/s | {left} left")


def is_due(every: int, step: int, last: int | None = None) -> bool:
    """Whether what happens `every` steps (0 = never), and after the last one, happens now."""
    return every > 0 and (step % every == 0 or step == last)


def record_samples(run: Run, samples: list[tuple[str, str]]) -> None:
    """Logs (prompt, what the model wrote) of a step, and keeps them in samples.jsonl, which reports quote."""
    step, records = run.state.step, []
    for prompt, text in samples:
        begin = f"{prompt!r} -> " if prompt else ""
        run.log(f"step {step:6d} | sample {begin}{text!r}")
        records.append({"step": step, "prompt": prompt, "text": text})
    runs.replace_step(run.folder / "samples.jsonl", step, records)


def evaluate(run: Run, evaluations: dict) -> None:
    """Makes and records the evaluations that are due. An interrupted one stays due, and a resume makes up for it.

    evaluations: {name: (compute, record)}. compute() returns scores, or None when it was asked to stop; record(scores,
    fields) writes them; fields go beside the scores into scalars.jsonl."""
    state = run.state
    while state.due:
        started = time.perf_counter()
        compute, record = evaluations[state.due[0]]
        run.model.eval()
        with estimate.naming("eval_batch_size", run.args):
            scores = compute()
        if scores is None:
            return
        kind = state.due.pop(0)
        seconds = time.perf_counter() - started
        state.eval_seconds += seconds
        record(scores, {
            "step": state.step, "timestamp": runs.now(), "tokens_seen_global": state.tokens_seen,
            "flops_total": state.flops, "eval_seconds": round(seconds, 3),
            # so far, over all resumes
            "train_seconds": round(state.train_seconds, 3), "eval_seconds_total": round(state.eval_seconds, 3),
            "wall_seconds": round(time.perf_counter() - run.clock_zero, 3)})
        run.pace.mark(kind)


def record_val(run: Run, scores: tuple[dict, dict], fields: dict) -> None:
    """Records a val loss: scores = (fields for scalars.jsonl, arrays per document for val_documents_<step>.npz)."""
    losses, documents = scores
    step = fields["step"]
    keys = [key for key, value in losses.items() if isinstance(value, float)]
    log_scores(run, "val", losses, keys, fields)
    if run.procs.is_main:
        path = run.folder / f"val_documents_{step:06d}.npz"
        with runs.recording(path):
            np.savez_compressed(path, **documents)
        run.scalars.write(type="val", **losses, **fields)
        runs.update_step_metrics(run.folder, step, **losses)


def log_scores(run: Run, name: str, scores: dict, keys, fields: dict) -> None:
    listed = ", ".join(f"{key} {scores[key]:.4f}" for key in keys)
    run.log(f"step {fields['step']:6d} | {name} {listed} | {fields['eval_seconds']:.1f} s")


# ----------------------------------------------------------------------------------------------------------------------
# a run ends


def is_complete(run: Run) -> bool:
    return run.state.step == run.args.max_train_steps and not run.state.due


def leave(run: Run) -> None:
    """Saves a run that was asked to stop and prints how to continue it."""
    if run.saved_step != run.state.step:
        run.save()
        run.finish_saving()
    run.log(f"stopped at step {run.state.step} of {run.args.max_train_steps}, saved; continue with: "
            f"python {run.script} --out_dir {shlex.quote(str(run.folder))} --resume auto")


def final_numbers(run: Run, val_fields: str) -> dict:
    """Numbers of summary.json that every trainer has: last and best losses, cost, epochs."""
    scalars = resume.read_scalars(run.folder)
    trained, vals = ([line for line in scalars if line["type"] == kind] for kind in ("train", "val"))
    # the last 2 %: one step's loss is mostly its batch's noise
    losses = [record["train_loss_opt_step_mean"] for record in trained[-max(1, len(trained) // 50) :]]
    numbers = {"final_train_loss": float(np.mean(losses)) if losses else None}
    for name in val_fields.split():
        numbers[f"final_{name}"] = vals[-1].get(name) if vals else None
    finite = [record["val_loss"] for record in vals if record["val_loss"] is not None]
    numbers["best_val_loss"] = min(finite, default=None)
    milliseconds = 1000 * run.state.train_seconds
    return numbers | {
        "compile_seconds": round(run.state.compile_seconds, 3), "train_time_ms": round(milliseconds),
        "ms_per_step": round(milliseconds / run.args.max_train_steps, 3),
        "tokens_seen": run.state.tokens_seen, "flops_total": run.state.flops,
        "epochs": run.record["data"]["epochs"]}


def write_summary(run: Run, summary: dict) -> None:
    """Logs the warnings and the last line, and writes summary.json, with which the run is finished."""
    state = run.state
    state.wall_seconds = time.perf_counter() - run.clock_zero
    scalars = resume.read_scalars(run.folder)
    steps = {record["step"] for record in scalars if record["type"] == "train"}
    lost = run.args.max_train_steps - len(steps)
    if lost:
        summary["warnings"].append(f"scalars.jsonl lacks {lost} of {run.args.max_train_steps} steps: "
                                   "the final and best losses are those of what is left of it.")
    for warning in summary["warnings"]:
        run.log(f"WARNING: {warning}")
    summary |= {
        "steps": run.args.max_train_steps, "finished": runs.now(),
        "eval_seconds": round(state.eval_seconds, 3), "wall_seconds": round(state.wall_seconds, 3)}
    with runs.recording(run.folder / "summary.json"):
        disk.write_json(run.folder / "summary.json", summary)
    losses = [f"{key} {x:.4f}" for key, x in summary.items() if "_loss" in key and x is not None]
    kinds = [kind for kind in run.pace.at_end if kind != "save"]
    if kinds:
        share = state.eval_seconds / state.wall_seconds
        dearest = max(kinds, key=lambda kind: run.pace.sums[kind][-1])
        flag = f"--{EVERY.get(dearest, dearest)}_every"
        run.log(f"evaluation took {100 * share:.0f} % of the time: a higher {flag} lowers it")
    run.log(f"finished {state.step} steps: {state.train_seconds:.1f} s of training, {state.eval_seconds:.1f} s "
            f"of evaluation, {state.wall_seconds:.1f} s in all | {', '.join(losses)}")
