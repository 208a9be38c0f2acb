"""ab_items.py compares checkpoints item by item and document by document: would others of the kind differ as much?

    rows = documents(pairs, step, alpha=0.05)         # bits/byte of the held-out documents
    rows, reasons = items(pairs, steps, alpha=0.05)   # benchmarks

pairs: runs of arm A and arm B of equal seed. A row has "what", "a", "b", "delta", "low", "high", "n" and "how" (what
the interval is over). Its interval is about these checkpoints; the verdict of a comparison is about seeds.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
from scipy import special

from lab import ab_report, ab_stats, disk, runs, tasks
from lab.ab_numbers import benchmarks_of


def documents(pairs: list[tuple[dict, dict]], step: int | None, alpha: float) -> list[dict] | str:
    """Bits/byte with an interval over documents: a row per view, or why there is none (str)."""
    if step is None:
        return "not run"
    if not pairs:
        return "no pair of equal seed"
    name = f"val_documents_{step:06d}.npz"
    try:
        data = [[read_documents(run["folder"] / name) for run in pair] for pair in pairs]
    except FileNotFoundError:
        return f"no val_documents file of step {step}"
    except ValueError as error:
        return str(error)
    sides = [side for pair in data for side in pair]
    if len({(side["doc_hash"], len(side["stream_nats"])) for side in sides}) > 1:
        return "the runs scored other documents"
    views = [view for view in ("stream", "bos") if all(f"{view}_nats" in side for side in sides)]
    rows = [row for view in views for row in document_row(view, data, alpha)]
    return rows or "no finite number"


def read_documents(path: Path) -> dict:
    """{"stream_nats": (documents,), ..., "doc_hash": bytes}; fine-tuning has no "bos_...". ValueError: damaged."""
    try:
        with np.load(path) as f:
            disk.refuse_bomb(f.zip)
            names = [name for name in ("stream_nats", "stream_bytes", "bos_nats", "bos_bytes")
                     if name.startswith("stream") or "bos_nats" in f]
            table = np.stack([f[name].astype(float) for name in names]).reshape(len(names), -1)
            doc_hash = f["doc_hash"].tobytes() if "doc_hash" in f else b""
        return {**dict(zip(names, table, strict=True)), "doc_hash": doc_hash}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        where, kind = f"{path.parent.name}/{path.name}", type(error).__name__
        raise ValueError(f"{where} is broken ({kind}: {error})") from None


def document_row(view: str, data: list[list[dict]], alpha: float) -> list[dict]:
    """The row of one view, or none when its numbers are not finite. A ratio of sums, mean over pairs; its standard
    error is the jackknife's, which leaves out each document once (a document is a cluster of tokens), with one degree
    of freedom less than the effective number of documents, as a few long ones are most of the text."""
    ratios, residuals = [], []
    for side in (0, 1):
        nats = np.mean([pair[side][f"{view}_nats"] for pair in data], axis=0)
        size = np.mean([pair[side][f"{view}_bytes"] for pair in data], axis=0)
        bits, total = nats / math.log(2), size.sum()
        ratio = float(bits.sum() / total) if total > 0 else math.nan
        ratios.append(ratio)
        residuals.append((bits - ratio * size) / max(total, 1))
    n = int((size > 0).sum())
    if n < 2 or not all(map(math.isfinite, ratios)):
        return []
    delta = ratios[1] - ratios[0]
    share = size / total
    if share.max() >= 1:
        return []
    left_out = (residuals[1] - residuals[0]) / (1 - share)
    error = math.sqrt((n - 1) / n * (left_out**2).sum())
    half = float(special.stdtrit(ab_stats.cluster_df(share), 1 - alpha / 2)) * error
    return [{
        "what": f"Val bits/byte, {view} view", "a": ratios[0], "b": ratios[1], "delta": delta,
        "low": delta - half, "high": delta + half,
        "n": f"{n} documents x {len(data)}", "how": "documents, for these checkpoints",
    }]


def items(pairs: list[tuple[dict, dict]], steps: dict, alpha: float) -> tuple[list[dict], list[str]]:
    """Benchmarks item by item: (a row per metric, reasons for what is missing)."""
    rows, reasons, read = [], [], {}
    described = benchmarks_of([run for pair in pairs for run in pair])

    def tables_of(name: str, step: int) -> list:
        if (name, step) not in read:
            read[name, step] = [[read_items(run, name, step) for run in pair] for pair in pairs]
        return read[name, step]

    for name, benchmark in described.items():
        if "parts" in benchmark and pairs and steps.get(name) is not None:
            # it has no items but those of its tasks
            rows += composite_row(name, described, tables_of, steps[name], reasons, alpha)
        if not benchmark["item_metrics"]:
            continue
        title, step = benchmark["title"], steps.get(name)
        if step is None or not pairs:
            reason = "no pair of equal seed"
            if step is None:
                was_run = any(run["benchmarks"].get(name) for pair in pairs for run in pair)
                reason = "no step that all runs scored" if was_run else "not run"
            reasons.append(f"{title} items: N/A: {reason}")
            continue
        tables = tables_of(name, step)
        ids, most = common_ids(tables)
        if len(ids) < most or not ids:
            end = "the others are left out" if ids else "N/A: not recorded"
            reasons.append(f"{title} items: {len(ids)} of {most} at step {step} are in every run's file; {end}")
        if ids:
            for metric in benchmark["item_metrics"]:
                row = metric_row(metric, benchmark, tables, ids, reasons, alpha)
                named = [key for key, *_ in benchmark["metrics"] if key in (f"{name}_{metric}", f"eval_{metric}")]
                rows += [one | {"key": "".join(named[:1])} for one in row]  # of the score that it explains, if any
    return rows, reasons


def read_items(run: dict, name: str, step: int) -> dict[str, dict]:
    """{item id: record} of one evaluation. A run repeats every item at every evaluation, so other lines are skipped."""
    table = {}
    for record in runs.read_jsonl(run["folder"] / f"{name}_items.jsonl", [], step):
        if record.get("step") == step and "id" in record and isinstance(record.get("credit"), dict):
            table[str(record["id"])] = record
    return table


def common_ids(tables: list) -> tuple[list[str], int]:
    """(the items that every run recorded, the most that one did)."""
    recorded = [set(table) for pair in tables for table in pair]
    return sorted(set.intersection(*recorded)), max(map(len, recorded))


def credits_of(metric: str, what: str, tables: list, ids: list[str],
               reasons: list[str]) -> np.ndarray | None:
    """Credit (2 arms, pairs, items) by one item metric; None, and a reason, when one is no number. what: whose."""

    def credit(record: dict) -> float:
        given = record["credit"]
        return runs.number(given.get(metric, given.get(f"eval_{metric}")))  # EWoK's is eval_...

    credits = np.array([[[credit(pair[side][i]) for i in ids] for pair in tables] for side in (0, 1)])
    bad = int((~np.isfinite(credits)).sum())
    if bad:
        reasons.append(f"{what}: N/A: {bad} of {credits.size} credits are no finite number")
        return None
    return credits


def labels_of(benchmark: dict, table: dict, ids: list[str]) -> tuple[list[str], list[str] | None]:
    """(the items' clusters, their categories or None where the score has none)."""
    clusters, categories = [str(table[i].get(benchmark["cluster"], i)) for i in ids], None
    if benchmark["category"]:
        categories = [str(table[i].get(benchmark["category"])) for i in ids]
    return clusters, categories


def metric_row(metric: str, benchmark: dict, tables: list, ids: list[str], reasons: list[str],
               alpha: float) -> list[dict]:
    """The row of one item metric; none, and a reason, when a credit is no number."""
    title = benchmark["title"]
    credits = credits_of(metric, f"{title} items, {metric}", tables, ids, reasons)
    if credits is None:
        return []
    row = item_row(*credits, *labels_of(benchmark, tables[0][0], ids), alpha)
    return [{"what": f"{title} {metric}", "n": f"{len(ids)} items x {len(tables)}", **row}]


def composite_row(name: str, described: dict, tables_of, step: int, reasons: list[str],
                  alpha: float) -> list[dict]:
    """The row of a score that is the mean over tasks of their centered accuracies (lab/ab_composite.py): credits are
    centered as accuracies are, and the tasks are its categories, in which the bootstrap draws. A task with categories
    of its own, as EWoK's domains, brings each of them with its share of the task's weight."""
    credits, clusters, categories, shares = [], [], [], []
    key, label, *_ = described[name]["metrics"][0]
    for part in described[name]["parts"]:
        own, tables = described[part["benchmark"]], tables_of(part["benchmark"], step)
        ids, metric = common_ids(tables)[0], part["key"].removeprefix(f"{part['benchmark']}_")
        if part["name"]:
            metric = tasks.RULES[0]
            ids = [i for i in ids if tables[0][0][i].get(own["category"]) == part["name"]]
        if not ids:
            reasons.append(f"{label} items: N/A: no items of {part['key']} at step {step} are in every "
                           "run's file")
            return []
        given = credits_of(metric, f"{label} items, {part['key']}", tables, ids, reasons)
        if given is None:
            return []
        texts, kinds = labels_of(own, tables[0][0], ids)
        kinds = kinds or [""] * len(ids)
        credits.append(tasks.centered(given, part["chance"]))
        clusters += [f"{part['key']} {text}" for text in texts]
        categories += [f"{part['key']} {kind}" for kind in kinds]
        shares += [1 / len(set(kinds))] * len(ids)
    # 1 where no task has categories of its own
    weight = np.array(shares) * len(set(categories)) / len(credits)
    a, b = np.concatenate(credits, axis=2) * weight
    row = item_row(a, b, clusters, categories, alpha)
    return [{"what": label, "key": key, "n": f"{len(shares)} items x {a.shape[0]}", **row}]


def item_row(a: np.ndarray, b: np.ndarray, clusters: list, categories: list | None, alpha: float) -> dict:
    """Credit (pairs, items) of both arms as a row; with one pair its items alone, and McNemar's test."""
    row = {"a": mean_credit(a, categories), "b": mean_credit(b, categories)}
    row["delta"] = row["b"] - row["a"]
    try:
        boot = ab_stats.hierarchical_bootstrap(a, b, clusters, categories, alpha=alpha)
    except ValueError as error:  # a single cluster
        return {**row, "low": f"N/A: {error}", "high": "N/A", "how": "N/A"}
    n = boot["n_clusters"]
    row |= {"delta": boot["delta"], "clusters": n, "stats": boot}
    if len(a) > 1:
        row |= {"low": boot["ci_low"], "high": boot["ci_high"], "p": boot["p"]}
        return {**row, "how": f"seeds and {n} clusters of items"}
    test = ab_stats.mcnemar(a[0], b[0])
    row |= {"low": boot["ci_items_low"], "high": boot["ci_items_high"], "p": test["p"]}
    words = f"McNemar {test['b']} against {test['c']} items, which ignores clusters, p {ab_report.form_p(test['p'])}"
    how = f"{n} clusters of items, for these two checkpoints; {words}"
    return {**row, "mcnemar": test, "how": how}


def mean_credit(credit: np.ndarray, categories: list | None) -> float:
    """Mean over items; where there are categories, the mean of their means."""
    if categories is None:
        return float(credit.mean())
    names = np.array(categories)
    means = [float(credit[:, names == name].mean()) for name in set(categories)]
    return statistics.fmean(means)
