"""probes.py owns the arithmetic probes: 281 sums and products, answered in writing and by rank.

81 products of digits, 100 two-digit x one-digit products, 100 sums of two-digit numbers, each asked as `6*9=` (plain,
for a base model) and as `What is 6*9?` in the template (chat, for a fine-tuned one). Two scores: the first number that
the model writes before a newline, where an expression is skipped together with its `=` (the answer in `6*9=54` is 54,
not 6, in every arm); and the rank of the right result by summed log-prob among all results of its family (the 81
products have 36). Ties count as if broken at random. Prompts hold no multiplication token in any arm, so an arm that
was trained on those has seldom seen `6*9=`.
"""

import contextlib
import hashlib
import itertools
import math
import time

from inject_mul import MulExpressionInjector
from lab import benchmarks, inference, processes
from lab.answers import SCORER, answer_text, first_number, render_prompt
from lab.benchmarks import mean, shares
from lab.tokenizer import MulFactTokens, get_tokenizer

NEW_TOKENS = 16  # room for " 6 * 9 = 54" written out
FORMS = ("plain", "chat")
FAMILIES = {  # (sign, first operands, second operands, how many probes)
    "products": ("*", range(1, 10), range(1, 10), 81),
    "two_digit_by_digit": ("*", range(10, 100), range(2, 10), 100),
    "additions": ("+", range(10, 100), range(10, 100), 100),
}


def draw(seed: int = 0) -> list[dict]:
    """The 281 probes {"id", "family", "cluster", "sum" (`6*9`), "answer"}.

    The hundreds are those whose hash of (seed, family, sum) is smallest: drawn without replacement, separately in each
    family, and the same on every platform. No probe is in two families. cluster: 6*9 and 9*6 are one. No two additions
    are the same sum turned round."""

    def hash_of(probe):
        return hashlib.sha256(f"{seed}/{probe['family']}/{probe['sum']}".encode()).digest()

    items = []
    for family, (sign, first, second, n) in FAMILIES.items():
        candidates, clusters = [], set()
        for a, b in itertools.product(first, second):
            text, answer = f"{a}{sign}{b}", {"*": a * b, "+": a + b}[sign]
            cluster = f"{family}/{min(a, b)}{sign}{max(a, b)}"
            candidates.append({"id": f"{family}/{text}", "family": family, "cluster": cluster,
                               "sum": text, "answer": answer})
        if n < len(candidates):
            candidates.sort(key=hash_of)
        drawn = []
        for probe in candidates:
            if family != "additions" or probe["cluster"] not in clusters:
                drawn.append(probe)
                clusters.add(probe["cluster"])
        items += drawn[:n]
    return items


def prompt_of(probe: dict, form: str) -> tuple[str, str]:
    """(prompt, what an answer begins with) in one of FORMS."""
    if form == "plain":
        return f"{probe['sum']}=", ""
    return render_prompt(f"What is {probe['sum']}?"), " "


def evaluate(model, procs=None, *, forms=FORMS, bos: bool = True, seed: int = 0, batch_size: int = 64,
             autocast=contextlib.nullcontext, done=None, save=None, stop=None, progress: bool = False) -> dict | None:
    """{"metrics": {form: {family: {...}}, and the settings}, "items": [record per form and probe]}, the same on every
    rank and for any number of ranks; None when a rank's stop.asked is true before its last batch. Greedy. seed: of the
    set of probes. done, save: as in eval_gsm8k.evaluate.

    With a vocabulary that has the multiplication tokens, products also have the rank of their own token among the 45
    in the answer's place (`token_*`), which means nothing in an arm that never saw them."""
    begun = time.perf_counter()
    model, procs = getattr(model, "_orig_mod", model), procs or processes.Processes()
    benchmarks.check_vocabulary(model)
    tokenizer, items = get_tokenizer(), draw(seed)
    results_of = {}
    for family in FAMILIES:
        results_of[family] = sorted({item["answer"] for item in items if item["family"] == family})
    has_facts = tokenizer.first_mul_id < tokenizer.vocab_size <= model.config.vocab_size
    facts = MulFactTokens.tokens if has_facts else []
    questions = [(form, item, *prompt_of(item, form)) for form in forms for item in items]
    names, done = [f"{form}/{item['id']}" for form, item, *_ in questions], done or {}
    prompts = [benchmarks.encode_prompt(prompt, bos) for _, _, prompt, _ in questions]
    needed, limit = max(map(len, prompts)) + NEW_TOKENS, model.config.block_size
    if needed > limit:
        raise ValueError(f"the probes need {needed} tokens, but the model's block_size is {limit}: pass --probes off, "
                         "or evaluate a model with a longer block_size.")

    def answer(batch):
        if all(names[i] in done for i in batch):
            return [done[names[i]] for i in batch]
        trees = []
        for i in batch:
            _, item, _, lead = questions[i]
            endings = [tokenizer.encode(f"{lead}{result}") for result in results_of[item["family"]]]
            if item["family"] == "products":
                endings += [tokenizer.encode(lead + fact, mul_tokens=True) for fact in facts]
            trees.append((prompts[i], endings))
        with autocast():
            scores = inference.score_endings(model, trees)
            completions = inference.generate(
                model, [prompts[i] for i in batch], NEW_TOKENS, temperature=0.0, row_ids=batch,
                stop_ids=(tokenizer.bos_id,), stop_strings=("\n",), decode=tokenizer.decode_generated)
        records = []
        for i, (written, stopped, _), endings in zip(batch, completions, scores, strict=True):
            form, item, _, _ = questions[i]
            text = tokenizer.decode_generated(written)
            sums = [math.fsum(tokens.tolist()) for tokens in endings]
            record = {"id": names[i], "form": form}
            record |= {key: item[key] for key in ("family", "cluster", "answer")}
            record |= {"completion": text, "stopped": stopped}
            records.append(record | mark(item, text, sums, results_of[item["family"]], facts))
        if save is not None:
            save(records)
        return records

    batches = benchmarks.make_batches(prompts, [NEW_TOKENS] * len(prompts), batch_size)
    known = {i for i, name in enumerate(names) if name in done}
    records = benchmarks.write_answers(procs, batches, len(questions), answer, "probes", progress, stop, known)
    if records is None:
        return None
    metrics = {form: {} for form in forms}
    for form in forms:
        for family in FAMILIES:
            own = [record for record in records if (record["form"], record["family"]) == (form, family)]
            metrics[form][family] = summarise(own, len(results_of[family]), len(facts))
    metrics["prompts"] = {form: prompt_of({"sum": "6*9"}, form)[0] for form in forms}
    metrics |= {"seed": seed, "bos": bos, "max_new_tokens": NEW_TOKENS, "scorer": f"{SCORER} bos={int(bos)}"}
    metrics["seconds"] = round(time.perf_counter() - begun, 3)
    return {"metrics": metrics, "items": records}


def mark(item: dict, completion: str, scores: list[float], results: list[int], facts: list[str]) -> dict:
    """What is right in one probe. scores: summed log-probs of the family's results, then of the facts' tokens if the
    probe is a product."""
    benchmarks.refuse_broken(scores, f"probe {item['id']}")
    given = first_number(MulExpressionInjector().expand(completion))
    of_results, of_facts = scores[: len(results)], scores[len(results) :]
    right = results.index(item["answer"])
    rank, reciprocal, top1, tied = rank_of(of_results, right)
    credit = {"accuracy": float(given == item["answer"]), "mrr": reciprocal, "top1": top1}
    record = {"given": answer_text(given), "rank": rank, "tied": tied,
              "log_prob": round(scores[right], 6),
              "best": results[of_results.index(max(of_results))], "credit": credit}
    if of_facts:
        a, b = sorted(map(int, item["sum"].split("*")))
        own = facts.index(f"<MUL_{a}_{b}_{a * b}>")
        record["token_rank"], credit["token_mrr"], credit["token_top1"], _ = rank_of(of_facts, own)
    return record


def rank_of(scores: list[float], right: int) -> tuple[float, float, float, int]:
    """(rank, reciprocal rank, share of first places, ties) of scores[right]; rank 1 is the largest. The first three are
    means over all orders of the tied scores, whose number, scores[right] included, is the last."""
    before = sum(score > scores[right] for score in scores)
    tied = scores.count(scores[right])
    reciprocal = math.fsum(1 / (before + j) for j in range(1, tied + 1)) / tied
    first = 1 / tied if before == 0 else 0.0
    return before + (tied + 1) / 2, reciprocal, first, tied


def chance(n: int) -> dict:
    """What a random order of n candidates scores."""
    return {"chance_mrr": math.fsum(1 / j for j in range(1, n + 1)) / n, "chance_top1": 1 / n}


def summarise(records: list[dict], n_results: int, n_facts: int) -> dict:
    """The metrics of one family in one form."""
    credit = {name: [record["credit"][name] for record in records] for name in records[0]["credit"]}
    no_answer = [record["given"] is None for record in records]
    ranks = [record["rank"] for record in records]
    ties = sum(record["tied"] > 1 for record in records)
    metrics = {"correct": int(sum(credit["accuracy"])), "total": len(records)}
    metrics |= shares(accuracy=credit["accuracy"], no_answer=no_answer, top1=credit["top1"])
    metrics |= {"mrr": mean(credit["mrr"]), "mean_rank": mean(ranks), "ties": ties}
    metrics |= {"candidates": n_results} | chance(n_results)
    if "token_mrr" in credit:
        ranks = [record["token_rank"] for record in records]
        token = shares(top1=credit["token_top1"])
        token |= {"mrr": mean(credit["token_mrr"]), "mean_rank": mean(ranks)}
        metrics["token"] = token | {"candidates": n_facts} | chance(n_facts)
    return metrics


def table(metrics: dict) -> str:
    lines = []
    for form in FORMS:
        for family, m in metrics[form].items():
            low, high = m["accuracy_interval"]
            lines.append(f"{form:<5} {family:<18} {m['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  "
                         f"mrr {m['mrr']:.3f} (chance {m['chance_mrr']:.3f})  "
                         f"first {m['top1']:.3f} (chance {m['chance_top1']:.3f})")
    return "\n".join(lines)
