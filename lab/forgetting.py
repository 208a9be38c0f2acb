"""forgetting.py owns what learning one segment after another does to the earlier ones: the protocol and its measures.

Segments A, B, C, ... are texts of several kinds. Of each, some is learned and some more (A2, B2, C2) is only scored,
before and after. The stages are "before", then what was learned so far, "A", "A+B", "A+B+C", and each later segment
alone, "B", "C". With L(A2 | A+B) the loss on A2, nats per token, at stage "A+B":

    gain                L(A2 | A) - L(A2 | before); L(B2 | B) - L(B2 | before)    below 0: learning a segment helps it
    forgetting          L(A2 | A+B+C) - L(A2 | A)                                 above 0: later segments undo that
    plasticity          L(B2 | A+B) - L(B2 | B)                                   above 0: earlier ones stand in its way
    backward_transfer   mean over the earlier segments of -forgetting             above 0: later segments help
                        (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)

Each is paired over units, such as documents, which gives its standard error. What learns is fast weights (Learner), or
slow ones: then the stages are checkpoints.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import chunks, long_documents
from lab.long_documents import CONTROLS, effect
from lab.schema import ANY_NAME, NUMBER, NUMBER_OR_NULL, TEXT, TEXT_OR_NULL, check, misfit

BEFORE = "before"

# ----------------------------------------------------------------------------------------------------------------------
# the protocol


def path_of(names: list[str]) -> list[str]:
    """The stages of learning one segment after another: A, A+B, A+B+C."""
    return ["+".join(names[: i + 1]) for i in range(len(names))]


def stages_of(names: list[str]) -> list[str]:
    return [BEFORE, *path_of(names), *names[1:]]


class Learner:
    """The fast weights of a batch of sequences. control: see long_documents.CONTROLS; keys: of the sequences."""

    def __init__(self, model, control: str, keys: list[str]):
        self.reading = chunks.Reading(model, alter=CONTROLS[control](keys))

    def learn(self, idx, targets) -> None:
        long_documents.read_and_write(self.reading, idx, targets, write_last=True)

    def score(self, idx, targets) -> list[float]:
        """The mean loss of each sequence, by what was learned so far."""
        return long_documents.probe(self.reading, idx, targets).cpu().double().mean(1).tolist()  # MPS has no float64


def run(new_learner, to_learn: dict, to_score: dict) -> dict[str, dict[str, list[float]]]:
    """{stage: {segment: loss of each unit}}. new_learner(): one that has learned nothing. to_learn, to_score: {segment:
    (idx, targets)}, the same segments in order."""
    names, losses = list(to_learn), {}

    def score(stage: str, learner) -> None:
        losses[stage] = {name: learner.score(*to_score[name]) for name in names}

    learner = new_learner()
    score(BEFORE, learner)
    for stage, name in zip(path_of(names), names, strict=True):
        learner.learn(*to_learn[name])
        score(stage, learner)
    for name in names[1:]:
        learner = new_learner()
        learner.learn(*to_learn[name])
        score(name, learner)
    return losses


# ----------------------------------------------------------------------------------------------------------------------
# its measures


def measures(losses: dict[str, dict[str, list[float]]], names: list[str]) -> dict:
    """gain, forgetting and plasticity {segment: effect}, and backward_transfer, of run()'s losses. What needs a stage
    that is missing is None."""
    path = path_of(names)

    def minus(stage: str, other: str, name: str):
        if stage not in losses or other not in losses:
            return None
        return [a - b for a, b in zip(losses[stage][name], losses[other][name], strict=True)]

    table = {"gain": {}, "forgetting": {}, "plasticity": {}}
    undone = []
    for i, name in enumerate(names):
        table["gain"][name] = minus(name, BEFORE, name)
        if i < len(names) - 1:
            table["forgetting"][name] = minus(path[-1], path[i], name)
            undone.append(table["forgetting"][name])
        if i > 0:
            table["plasticity"][name] = minus(path[i], name, name)
    result = {"backward_transfer": None}
    for measure, rows in table.items():
        result[measure] = dict.fromkeys(rows)
        for name, row in rows.items():
            if row is not None:
                result[measure][name] = effect(row)
    if None not in undone:
        helped = [-float(np.mean(unit)) for unit in zip(*undone, strict=True)]
        result["backward_transfer"] = effect(helped)
    return result


def means(losses: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """{stage: {segment: mean loss}}."""
    return {stage: {name: float(np.mean(values)) for name, values in row.items()}
            for stage, row in losses.items()}


def forgetting_matrix(losses: list[list[float | None]]) -> list[list[float | None]]:
    """Of losses [checkpoint][segment]: each minus the lowest so far (Chaudhry et al. 2018, arXiv:1801.10112). 0: no
    earlier checkpoint was better. None where there is no loss."""
    matrix, lowest = [], [math.inf] * len(losses[0])
    for row in losses:
        for k, loss in enumerate(row):
            if loss is not None:
                lowest[k] = min(lowest[k], loss)
        matrix.append(difference(row, lowest))
    return matrix


def difference(row: list, other: list) -> list:
    """None where one of them is."""
    return [None if None in pair else pair[0] - pair[1] for pair in zip(row, other, strict=True)]


# ----------------------------------------------------------------------------------------------------------------------
# segments


def parse_named(values: list[str], flag: str) -> dict[str, str]:
    """{name: what follows} of NAME=VALUE words, in their order. ValueError for anything else."""
    named = {}
    for value in values:
        name, equals, rest = value.partition("=")
        check(equals and name and rest, f"{flag} {value}: write NAME={value}, with a name for it.")
        check(name not in named, f"{flag} has {name} twice: give each its own name.")
        named[name] = rest
    return named


def load_segments(sources: dict[str, str], n: int, length: int, **options) -> dict[str, list]:
    """{name: n documents of 1 + length tokens}, or fewer, as many of each, where a source has no more. Segments of the
    same source take turns, so that none shares a document. options: of long_documents.load. ValueError when two
    segments hold the same document."""
    chosen = {}
    for source in dict.fromkeys(sources.values()):
        names = [name for name, other in sources.items() if other == source]
        documents, _ = long_documents.load(source, n * len(names), length, **options)
        check(len(documents) >= len(names),
              f"{source} has {len(documents)} documents that are long enough, for {len(names)} "
              "segments: name another file, or shorten what is read.")
        for i, name in enumerate(names):
            chosen[name] = documents[i :: len(names)]
    seen = {}
    for name, documents in chosen.items():
        for one in documents:
            other = seen.setdefault(one.sha256, name)
            check(other == name,
                  f"the segments {other} and {name} both hold the document {one.id}: separate them.")
    least = min(map(len, chosen.values()))
    return {name: chosen[name][:least] for name in sources}


# ----------------------------------------------------------------------------------------------------------------------
# plots

LOSSES = {ANY_NAME: NUMBER_OR_NULL}
LIST = [{"checkpoint": TEXT, "run?": TEXT_OR_NULL, "segment_losses": LOSSES, "guessing_loss": NUMBER}]
PROTOCOL = {"order": [TEXT], "losses": {ANY_NAME: {ANY_NAME: NUMBER}}, "guessing_loss": NUMBER, "weights": TEXT}


class Picture(NamedTuple):
    rows: list[str]  # stages or checkpoints
    names: list[str]  # segments
    losses: list[list[float | None]]  # [row][segment]
    matrix: list[list[float | None]]  # the same, as differences
    joined: int  # how many of the rows follow each other
    title: str  # of the matrix
    guessing: float  # ln of the vocabulary


def picture_of(result, path) -> Picture:
    """What there is to draw of a result. ValueError for anything else."""
    schema = LIST if isinstance(result, list) else PROTOCOL
    fault = misfit(result, schema)
    check(not fault and result, f"{path} is no result of continual.py ({fault or 'it is empty'}): name one.")
    no_losses = f"{path} holds no losses to draw: name another result of continual.py."
    if isinstance(result, dict):
        names, losses = result["order"], result["losses"]
        known = [stage for stage in stages_of(names) if stage in losses]
        check(names and known, no_losses)
        rows = [[losses[stage].get(name) for name in names] for stage in known]
        matrix, title = forgetting_matrix(rows), "loss\nminus the lowest so far"
        if BEFORE in losses:
            matrix, title = [difference(row, rows[0]) for row in rows], f"loss\nminus that at stage {BEFORE}"
        joined = sum(stage in (BEFORE, *path_of(names)) for stage in known)
        return Picture(known, names, rows, matrix, joined, title, result["guessing_loss"])
    names = list(dict.fromkeys(name for entry in result for name in entry["segment_losses"]))
    check(names, no_losses)
    rows = [[entry["segment_losses"].get(name) for name in names] for entry in result]
    labels = [label_of(entry) for entry in result]
    if len(set(labels)) < len(labels):
        labels = [f"{i + 1}: {label}" for i, label in enumerate(labels)]
    title = "forgetting: loss\nminus the lowest so far"
    return Picture(labels, names, rows, forgetting_matrix(rows), len(rows), title, result[0]["guessing_loss"])


def label_of(entry: dict) -> str:
    if entry.get("run") is None:
        return Path(entry["checkpoint"]).name
    return f"{Path(entry['run']).name}, step {entry.get('step')}"


def draw(picture: Picture) -> bytes:
    """A PNG: every segment's loss over the rows, and the matrix with its numbers."""
    from lab import ab_plots

    n, m, joined = len(picture.rows), len(picture.names), picture.joined
    losses, matrix = np.array(picture.losses, float), np.array(picture.matrix, float)  # None: nan
    width, height = 6 + 0.6 * n + 0.9 * m, max(4, 1.5 + 0.45 * n)
    (lines, cells), save = ab_plots.canvas(width, height, [3, 2], across=True)
    for k, name in enumerate(picture.names):
        colour, style, marker = ab_plots.style_of(k)
        values, look = losses[:, k], dict(color=colour, marker=marker)
        lines.plot(range(joined), values[:joined], linestyle=style, label=name, **look)
        lines.plot(range(joined, n), values[joined:], linestyle="none", **look)
    if np.nanmax(losses, initial=0) > 0.8 * picture.guessing:
        lines.axhline(picture.guessing, color=ab_plots.GREY, linestyle=":", label="guessing")
    lines.set(ylabel="nats per token", title=f"loss\n(guessing has {picture.guessing:.2f})")
    lines.set_xticks(range(n), picture.rows, rotation=30, ha="right")
    lines.legend()
    most = np.nanmax(np.abs(matrix), initial=1e-9)
    cells.grid(False)
    cells.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", alpha=0.6)
    for (i, k), value in np.ndenumerate(matrix):
        cells.text(k, i, f"{value:+.3f}", ha="center", va="center")
    cells.set_xticks(range(m), picture.names, rotation=30, ha="right")
    cells.set_yticks(range(n), picture.rows)
    cells.set_title(picture.title)
    return save("png")
