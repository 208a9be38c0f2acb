"""continual.py: measures of forgetting with known answers, document 004's list, the protocol, plots, mistakes."""

import json
import math

import pytest
import torch
from conftest import write_jsonl
from test_long_context import save
from test_memory import SMALL, make, tokens

import continual
import long_context
from lab import chunks, forgetting, long_documents
from lab.tokenizer import get_tokenizer
from model import GPT, GPTConfig

NAMES = ["A", "B", "C"]

# ----------------------------------------------------------------------------------------------------------------------
# measures: learners with known answers


class Counts:
    """Predicts the next of 30 ids by counted pairs (add one). forgets: what it learns replaces what it knew."""

    def __init__(self, forgets):
        self.forgets, self.counts = forgets, torch.zeros(30, 30)

    def learn(self, idx, targets):
        if self.forgets:
            self.counts.zero_()
        for row, wanted in zip(idx, targets, strict=True):
            self.counts[row, wanted] += 1  # of equal pairs in a row, one counts

    def score(self, idx, targets):
        p = (self.counts + 1) / (self.counts + 1).sum(1, keepdim=True)
        return [-p[row, wanted].log().mean().item() for row, wanted in zip(idx, targets, strict=True)]


def cycle(k):
    """Segment k: 10 ids of its own in a circle; idx, targets (2, 10)."""
    idx = torch.arange(10 * k, 10 * k + 10).repeat(2, 1)
    return idx, torch.roll(idx, -1, 1)


@pytest.mark.parametrize("forgets", [True, False])
def test_measures_of_learners_with_known_answers(forgets):
    """A segment is learned from ln 30 to ln(32 / 3) nats, whatever came before. One learner keeps all of it: forgetting
    and backward transfer are 0. The other keeps nothing: forgetting is ln 30 - ln(32 / 3)."""
    segments = {name: cycle(k) for k, name in enumerate(NAMES)}
    losses = forgetting.run(lambda: Counts(forgets), segments, segments)
    assert list(losses) == ["before", "A", "A+B", "A+B+C", "B", "C"]
    learned = math.log(30) - math.log(32 / 3)
    result = forgetting.measures(losses, NAMES)
    assert list(result["gain"]) == NAMES
    assert list(result["forgetting"]) == ["A", "B"] and list(result["plasticity"]) == ["B", "C"]
    for name in NAMES:
        assert result["gain"][name]["mean"] == pytest.approx(-learned, abs=1e-6)
    lost = learned * forgets
    for name in ("A", "B"):
        assert result["forgetting"][name]["mean"] == pytest.approx(lost, abs=1e-6)
    for name in ("B", "C"):
        assert result["plasticity"][name]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["backward_transfer"]["mean"] == pytest.approx(-lost, abs=1e-6)
    assert result["backward_transfer"]["n"] == 2


def test_measures_by_hand():
    """Two units, two segments, every stage another loss; a stage that is missing takes its measures along."""
    losses = {
        "before": {"A": [5.0, 6.0], "B": [7.0, 7.5]}, "A": {"A": [4.0, 4.5], "B": [7.2, 7.2]},
        "A+B": {"A": [4.6, 4.9], "B": [6.5, 6.5]}, "B": {"A": [9.0, 9.0], "B": [6.0, 6.25]},
    }
    result = forgetting.measures(losses, ["A", "B"])
    expected = {"gain": {"A": (-1.25, 0.25), "B": (-1.125, 0.125)}, "forgetting": {"A": (0.5, 0.1)},
                "plasticity": {"B": (0.375, 0.125)}}
    for measure, rows in expected.items():
        assert list(result[measure]) == list(rows)
        for name, (mean, se) in rows.items():
            assert result[measure][name]["mean"] == pytest.approx(mean)
            assert result[measure][name]["se"] == pytest.approx(se)
    assert result["backward_transfer"]["mean"] == pytest.approx(-0.5)
    assert forgetting.means(losses)["A+B"] == {"A": pytest.approx(4.75), "B": 6.5}
    del losses["B"]
    result = forgetting.measures(losses, ["A", "B"])
    assert result["gain"]["B"] is None and result["plasticity"]["B"] is None
    assert result["forgetting"]["A"]["mean"] == pytest.approx(0.5)
    del losses["A"]
    result = forgetting.measures(losses, ["A", "B"])
    assert result["forgetting"]["A"] is None and result["backward_transfer"] is None


def test_forgetting_matrix_by_hand():
    """Each loss minus the lowest so far; a missing one is skipped."""
    matrix = forgetting.forgetting_matrix([[3.0, 5.0], [4.0, None], [2.5, 5.5]])
    assert matrix == [[0.0, 0.0], [1.0, None], [0.0, 0.5]]


def steps(model, idx, targets, n=80):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(n):
        model(idx, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_trained_weights_forget():
    """A transformer of one block learns A, and by B alone forgets it: more than a nat each, and it says so."""
    def fresh():
        return GPT(GPTConfig(**{**SMALL, "n_layer": 1, "memory_layers": 0}), seed=0)

    segments = {name: (cycle(k)[0].repeat(1, 3), cycle(k)[1].repeat(1, 3)) for k, name in enumerate("AB")}
    learned = steps(fresh(), *segments["A"])
    models = {"before": fresh(), "A": learned, "B": steps(fresh(), *segments["B"])}
    losses = {}

    def score(stage, model):
        losses[stage] = {name: long_documents.probe(chunks.Reading(model), *pair).mean(1).tolist()
                         for name, pair in segments.items()}

    for stage, model in models.items():
        score(stage, model)
    score("A+B", steps(learned, *segments["B"]))
    result = forgetting.measures(losses, ["A", "B"])
    assert result["gain"]["A"]["mean"] < -1 and result["gain"]["B"]["mean"] < -1
    assert result["forgetting"]["A"]["mean"] > 1 and result["backward_transfer"]["mean"] < -1


# ----------------------------------------------------------------------------------------------------------------------
# fast weights


def test_fast_weights_by_their_definition():
    """A Learner's losses are those of readings that write and probe; a rate of 0 learns and forgets exactly nothing."""
    texts = {name: tokens(2, 150, seed=k) for k, name in enumerate("AB")}
    to_learn = {name: (idx[:, :80], targets[:, :80]) for name, (idx, targets) in texts.items()}
    to_score = {name: (idx[:, 80:], targets[:, 80:]) for name, (idx, targets) in texts.items()}
    model = make("hope_attention")
    losses = forgetting.run(lambda: forgetting.Learner(model, "adapt", ["a", "b"]), to_learn, to_score)
    for stage in ("before", "A", "A+B", "B"):
        reading = chunks.Reading(model)
        for name in filter(None, stage.replace("before", "").split("+")):
            long_documents.read_and_write(reading, *to_learn[name], write_last=True)
        for name in "AB":
            expected = long_documents.probe(reading, *to_score[name]).mean(1).tolist()
            assert losses[stage][name] == pytest.approx(expected, abs=1e-6)
    assert losses["A"]["A"] != losses["before"]["A"] and losses["A+B"]["A"] != losses["A"]["A"]
    model = make("hope_attention", inner_lr=0.0)
    losses = forgetting.run(lambda: forgetting.Learner(model, "adapt", ["a", "b"]), to_learn, to_score)
    result = forgetting.measures(losses, ["A", "B"])
    for found in (*result["gain"].values(), *result["forgetting"].values(), *result["plasticity"].values()):
        assert found["mean"] == found["largest"] == 0


def run(*words):
    return continual.main([str(word) for word in words])


def trained(folder, memory="hope_attention", seed=1, **more):
    """A checkpoint that knows how frequent the synthetic corpus' tokens are, so that it does better than guessing."""
    shape = dict(n_layer=1, n_head=2, n_embd=16, block_size=64, padded_vocab_size=50432, memory=memory, **more)
    if memory != "none":
        shape["cms_periods"] = (16, 0)
    model = GPT(GPTConfig(**shape), seed=seed)
    counts = torch.bincount(torch.tensor(get_tokenizer().encode(long_documents.long_text(7, 2000))), minlength=50432)
    with torch.no_grad():
        model.transformer["wte"].weight[:, 0] = (counts + 0.1).log()
        model.transformer["ln_f"].weight[0] = 0
        model.transformer["ln_f"].bias[0] = 1
    model.save(folder)
    return folder


TWO = ("--segments", "A=synthetic:9", "B=synthetic:9")


def test_fast_record(tmp_path, capsys):
    """The measures follow from the lines of the units; segments of one source share no document."""
    out = tmp_path / "f.json"
    run("fast", trained(tmp_path / "m"), *TWO, "--max_documents", 3, "--learn_tokens", 64, "--score_tokens", 40,
        "--controls", "adapt,random", "--out", out)
    result = json.loads(out.read_text())
    lines = [json.loads(line) for line in (tmp_path / "f_units.jsonl").read_text().splitlines()]
    places = [(control, unit) for control in ("adapt", "random") for unit in range(3)]
    assert [(line["control"], line["unit"]) for line in lines] == places
    for control in ("adapt", "random"):
        units = [line["losses"] for line in lines if line["control"] == control]
        losses = {stage: {name: [unit[stage][name] for unit in units] for name in "AB"} for stage in units[0]}
        expected = forgetting.measures(losses, ["A", "B"])
        assert {key: result["by_control"][control][key] for key in expected} == expected
        assert result["by_control"][control]["losses"] == forgetting.means(losses)
    assert result["forgetting"] == result["by_control"]["adapt"]["forgetting"] and result["control"] == "adapt"
    ids = [one["id"] for documents in result["documents"].values() for one in documents]
    assert len(set(ids)) == 6 and result["units"] == 3
    mean = result["forgetting"]["A"]["mean"]
    assert f"{mean:+.4f}" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# document 004's list


def test_list_is_the_prequential_loss(tmp_path):
    """Every entry has the losses that long_context.py ppl finds for the same documents: nothing is kept between them,
    and no token is scored after it was written."""
    first, second = trained(tmp_path / "a"), trained(tmp_path / "b", seed=2)
    texts = [{"text": long_documents.long_text(100 + i, 201)} for i in range(3)]
    path = write_jsonl(tmp_path / "web.jsonl", texts)
    few = "--max_documents", 2, "--tokens_per_document", 100, "--controls", "adapt"
    run("segments", first, second, "--segments", f"web={path}", "made=synthetic", *few, "--out", tmp_path / "l.json")
    entries = json.loads((tmp_path / "l.json").read_text())
    assert len(entries) == 2 and [entry["checkpoint"] for entry in entries] == [str(first), str(second)]
    for entry, model in zip(entries, (first, second), strict=True):
        for name, data in (("web", path), ("made", "synthetic")):
            words = ["ppl", model, "--data", data, *few, "--out", tmp_path / "p.json"]
            long_context.main([str(word) for word in words])
            loss = json.loads((tmp_path / "p.json").read_text())["loss"]
            assert {control: row[name] for control, row in entry["segment_losses_by_control"].items()} == loss
            assert entry["segment_losses"][name] == loss["adapt"] != loss["static"]
            assert entry["segment_baseline_losses"][name] == loss["static"]
            delta = entry["segment_memorize_delta"][name]
            assert delta == pytest.approx(loss["static"] - loss["adapt"], abs=1e-9)
            assert entry["memorize_stats"][name]["updates"] == 6


def test_a_loss_above_guessing_is_no_result(tmp_path, capsys):
    """Weights four times too large: null, a warning, and the plot goes on without it."""
    out = tmp_path / "l.json"
    run("segments", save(tmp_path / "m"), "--segments", "A=synthetic", "--max_documents", 2,
        "--tokens_per_document", 100, "--out", out)
    entry = json.loads(out.read_text())[0]
    assert entry["segment_losses"] == entry["segment_memorize_delta"] == {"A": None}
    assert "above ln(50,349) = 10.83" in capsys.readouterr().err
    run("plot", out)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_list_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Stopped in its second batch, the same command computes the rest and ends with the same numbers."""
    command = ["segments", trained(tmp_path / "m"), "--segments", "A=synthetic", "--max_documents", 2,
               "--tokens_per_document", 100]
    run(*command, "--out", tmp_path / "whole.json")
    computed, original = [], long_documents.losses

    def count(*args):
        computed.append(args[1])
        if len(computed) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(long_documents, "losses", count)
    with pytest.raises(KeyboardInterrupt, match="same command again"):
        run(*command, "--out", tmp_path / "parts.json")
    run(*command, "--out", tmp_path / "parts.json")
    assert computed == ["static", "adapt", "adapt", "random", "other"]
    whole, parts = (json.loads((tmp_path / f"{name}.json").read_text())[0] for name in ("whole", "parts"))
    assert whole["segment_losses_by_control"] == parts["segment_losses_by_control"]


@pytest.mark.parametrize("words", [["segments", "--tokens_per_document", 40],
                                   ["fast", "--learn_tokens", 32, "--score_tokens", 8]])
def test_a_memory_that_never_wrote_is_said_to_be_so(tmp_path, capsys, words):
    """An inner_lr of 0: under every control that should write, a note; none of a model that writes."""
    command, *few = words
    for rate, n in ((0.0, 3), (0.25, 0)):
        model = trained(tmp_path / f"{rate}", inner_lr=rate)
        run(command, model, *TWO, "--max_documents", 2, *few, "--no_store")
        assert capsys.readouterr().err.count("nothing was written: the model's inner_lr") == n


# ----------------------------------------------------------------------------------------------------------------------
# slow weights


def test_slow_record(tmp_path):
    """Checkpoints as stages: the measures of their static losses, as far as there are stages for them."""
    models = {"before": trained(tmp_path / "0", "none"), "A": trained(tmp_path / "1", "none", seed=2),
              "A+B": trained(tmp_path / "2", "none", seed=3)}
    stages = [f"{stage}={folder}" for stage, folder in models.items()]
    run("slow", "--stages", *stages, *TWO, "--max_documents", 3, "--tokens_per_document", 100,
        "--out", tmp_path / "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    losses = {}
    segments = forgetting.load_segments({"A": "synthetic:9", "B": "synthetic:9"}, 3, 100)
    for stage, folder in models.items():
        model = GPT.load(folder)
        losses[stage] = {name: long_documents.losses(model, "static", documents)[0].double().mean(1).tolist()
                         for name, documents in segments.items()}
    expected = forgetting.measures(losses, ["A", "B"])
    assert result["forgetting"]["A"]["mean"] == pytest.approx(expected["forgetting"]["A"]["mean"], abs=1e-9)
    assert result["gain"]["A"]["se"] == pytest.approx(expected["gain"]["A"]["se"], abs=1e-9)
    assert result["plasticity"]["B"] is None and result["gain"]["B"] is None
    assert result["losses"] == {stage: {name: pytest.approx(sum(values) / 3) for name, values in row.items()}
                                for stage, row in losses.items()}


# ----------------------------------------------------------------------------------------------------------------------
# plots


def test_plot_draws_all_segments_and_the_matrix(tmp_path):
    """Of a list: every segment at every checkpoint, and what it has lost since its best. Of a protocol: every stage,
    minus before, with those of a segment alone apart."""
    entries = [{"checkpoint": f"ckpt/step_{i}", "run": None, "guessing_loss": 10.8, "segment_losses": losses}
               for i, losses in enumerate([{"w": 4.0, "x": 5.0, "y": 6.0, "z": None}, {"w": 4.5, "x": 4.0, "y": 6.0,
                                                                                     "z": 7.0}])]
    picture = forgetting.picture_of(entries, "l.json")
    assert picture.names == list("wxyz") and picture.rows == ["step_0", "step_1"] and picture.joined == 2
    assert picture.losses == [[4.0, 5.0, 6.0, None], [4.5, 4.0, 6.0, 7.0]]
    assert picture.matrix == [[0.0, 0.0, 0.0, None], [0.5, 0.0, 0.0, 0.0]]
    losses = {"B": {"A": 5.0, "B": 2.0}, "before": {"A": 5.0, "B": 6.0}, "A": {"A": 3.0, "B": 5.5},
              "A+B": {"A": 4.0, "B": 2.5}}
    protocol = {"order": ["A", "B"], "losses": losses, "guessing_loss": 10.8, "weights": "fast"}
    picture = forgetting.picture_of(protocol, "f.json")
    assert picture.rows == ["before", "A", "A+B", "B"] and picture.joined == 3
    assert picture.matrix == [[0.0, 0.0], [-2.0, -0.5], [-1.0, -3.5], [0.0, -4.0]]
    for name, result in (("l", entries), ("f", protocol)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    run("plot", tmp_path / "l.json", tmp_path / "f.json", "--out", tmp_path / "plots")
    for name in "lf":
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("result", [
    [{"checkpoint": "c", "guessing_loss": 10.8, "segment_losses": {}}],
    {"order": [], "losses": {}, "guessing_loss": 10.8, "weights": "fast"},
    {"order": ["A"], "losses": {}, "guessing_loss": 10.8, "weights": "fast"},
    {"order": ["A"], "losses": {"other": {"A": 1.0}}, "guessing_loss": 10.8, "weights": "slow"}])
def test_a_plot_of_no_losses_is_a_sentence(tmp_path, result):
    """Nothing to draw: no picture, and no traceback."""
    (tmp_path / "r.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"r\.json holds no losses to draw: name another"):
        run("plot", tmp_path / "r.json")
    assert not (tmp_path / "r.png").exists()


def test_plot_holds_every_line_and_number(monkeypatch):
    """Drawn: a line and a legend entry per segment, a number per cell."""
    from lab import ab_plots

    kept, original = [], ab_plots.canvas

    def canvas(*args, **options):
        axes, save = original(*args, **options)
        kept.append(axes)
        return axes, save

    monkeypatch.setattr(ab_plots, "canvas", canvas)
    picture = forgetting.Picture(["1", "2"], ["w", "x", "y"], [[1.0, 2.0, 3.0], [1.5, 2.5, 2.0]],
                                 [[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]], 2, "forgetting", 10.8)
    forgetting.draw(picture)
    lines, cells = kept[0]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in lines.get_lines() if len(line.get_ydata())}
    assert drawn == {"w": [1.0, 1.5], "x": [2.0, 2.5], "y": [3.0, 2.0]}
    assert [text.get_text() for text in lines.get_legend().get_texts()] == ["w", "x", "y"]
    assert [text.get_text() for text in cells.texts] == ["+0.000"] * 3 + ["+0.500", "+0.500", "+0.000"]


# ----------------------------------------------------------------------------------------------------------------------
# mistakes


def test_mistakes_are_a_sentence(tmp_path, capsys):
    model, plain = trained(tmp_path / "m"), trained(tmp_path / "p", "none")
    (tmp_path / "other.json").write_text('{"ppl": 3}')
    text = {"text": long_documents.long_text(1, 201)}
    one, same = (write_jsonl(tmp_path / f"{name}.jsonl", [text]) for name in ("one", "same"))
    small = ["--tokens_per_document", 100]
    for words, sentence in [
        (["fast", plain, *TWO], "nothing to forget"),
        (["fast", model, *TWO, "--learn_tokens", 100], "no multiple of the model's longest period, 16"),
        (["fast", model, "--segments", "A=synthetic"], "at least 2"),
        (["fast", model, "--segments", "synthetic", "B=x"], "write NAME=synthetic"),
        (["fast", model, "--segments", "A=x", "A=y"], "A twice"),
        (["segments", model, "--segments", f"A={one}", f"B={same}", *small], "both hold the document"),
        (["segments", model, "--segments", f"A={one}", f"B={one}", *small], "1 documents that are long enough, for 2"),
        (["segments", model, "--segments", "A=nowhere.jsonl"], "no such file"),
        (["slow", "--stages", f"C={plain}", *TWO], "the stages are before, A, A+B, B"),
        (["slow", "--stages", f"A={plain}", f"A+B={tmp_path / 'gone'}", "--segments", "A=synthetic", "B=synthetic",
          *small, "--max_documents", 2], "--stages"),
        (["segments", model, "--segments", f"A={one}", "--text_column", "body"], "another --segments"),
        (["segments", model, "--segments", f"A={one}", "--one_per", "book"], "column 'book': pass --one_per with"),
        (["segments", model, "--segments", "A=synthetic:1", *small], "raise --max_documents, or leave it out"),
        (["segments", model, "--segments", f"A={one}"], "lower --tokens_per_document, or name another --segments"),
        (["fast", model, "--segments", f"A={one}", f"B={one}"], "lower --learn_tokens or --score_tokens"),
        (["fast", model, *TWO, "--controls", "static"], "under --controls static nothing is written"),
        (["plot", tmp_path / "other.json"], "no result of continual.py"),
        (["plot", tmp_path / "gone.json"], "cannot be read"),
    ]:
        with pytest.raises((ValueError, OSError)) as caught:
            run(*words)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
    capsys.readouterr()
    for words, sentence in [
        ([], "give one of segments"), (["fast", model], "--segments is missing"), (["plot"], "results is missing"),
        (["segments", model, *TWO, "--max_documents", "0"], "at least 1"),
        (["fast", model, *TWO, "--score_tokens", "0"], "at least 1"), (["slow", *TWO], "--stages is missing"),
    ]:
        with pytest.raises(SystemExit) as end:
            run(*words)
        text = capsys.readouterr().err
        assert end.value.code == 2 and sentence in text and text.count("\n") == 1, text
