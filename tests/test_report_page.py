"""The page that one shows a colleague: its first screen, its plots, what it says without hashes, and five lines."""

import json
import re
import types
import urllib.parse

import numpy as np
import pytest
from conftest import base_loss, make_run

import compare_runs
from lab import ab_curves, ab_numbers, ab_page, ab_plots, ab_report, runs, shards, training

SHORT = {"max_train_steps": 20, "eval_every": 5}
NAMES = "baseline_adamw_trapezoid_x", "bos_rows_requeue_trapezoid"  # 26 characters each
STREAM = {"dataset": "edu_web", "tokens": 11_700_000, "overflow": None}
ROWS = {"dataset": "edu_web", "tokens": 11_400_000, "overflow": "requeue", "format": "bos_row_packed_bestfit",
        "fingerprint": "e" * 64, "crop_fraction": 0.0}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(folder of the runs, what was printed, the page, report.md, report.json) of 3 + 3 runs with samples."""
    folder = tmp_path_factory.mktemp("page")
    for name, data, loss in ((NAMES[0], STREAM, 0.0), (NAMES[1], ROWS, -0.05)):
        for seed in range(3):
            run = make_run(folder / "runs" / f"{name}_s{seed}", seed, loss=loss + 0.001 * seed * (loss < 0),
                           flags=SHORT, data=data, hellaswag=0.4)
            samples = [{"step": step, "prompt": "", "text": f" {name}\nat {step}"} for step in (10, 20)]
            runs.replace_step(run / "samples.jsonl", 20, samples)
    out = folder / "report"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(ab_report, "show", printed.append)
        patterns = [str(folder / "runs" / f"{name}_s*") for name in NAMES]
        assert compare_runs.main(["--a", patterns[0], "--b", patterns[1], "--no_items", "--out", str(out)]) == 0
    page, text = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    return folder, printed, page, text, json.loads((out / "report.json").read_text())


def test_five_lines(report, capsys):
    """Lines that a terminal shows after --out: the verdict, three rows, the path. --print full shows all."""
    folder, printed, _, text, _ = report
    (lines,) = (told.splitlines() for told in printed)
    assert len(lines) == 5 and lines[0].startswith(f"{NAMES[1]} against {NAMES[0]}: better · B is better than A: ")
    assert [line.split("  ")[1] for line in lines[1:4]] == [
        "Val loss", "HellaSwag accuracy_norm", "Tokens/sec (reported)"]
    a = base_loss(20, 20)
    assert f"{a:.4f} → {a - 0.049:.4f}" in lines[1] and lines[1].endswith("  better")
    assert lines[4] == f"report: {folder / 'report' / 'report.html'}"
    patterns = [str(folder / "runs" / f"{name}_s*") for name in NAMES]
    two = ["--a", patterns[0], "--b", patterns[1], "--no_items"]
    assert compare_runs.main([*two, "--print", "short"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:4]
    assert compare_runs.main(two) == 0 and "## Interpretation checklist" in capsys.readouterr().out
    assert "## Interpretation checklist" in text


def test_first_screen(report):
    """What stands before the tables, in this order: verdict, what was compared in words, curves, three rows."""
    _, _, page, text, record = report
    first = text.split("## Result")[0].splitlines()
    facts = [line.split("** · ")[0].removeprefix("- **") for line in first if line.startswith("- **")]
    assert facts == ["Arms", "Changed", "Data", "Model", "Training", "Seeds", "Date", "Hardware"]
    compared = record["compared"]
    assert compared["Changed"] == "rows: stream → BOS rows, requeue"
    assert compared["Data"] == "edu_web, 11.7M / 11.4M tokens, 12 held-out documents"
    assert compared["Model"] == "gpt2, 809k parameters, 1 layer of width 16"
    assert compared["Training"] == "20 steps, 5.12k tokens, 0.5 epochs, adamw, learning rate 0.0006"
    assert compared["Seeds"] == "3 seeds per arm (0, 1, 2)" and compared["Date"] == "2026-11-21"
    assert compared["Hardware"] == "CPU EPYC, 1 thread"
    parts = ("**better** · ", "- **Changed**", "(loss_curves.png)", "| Val loss |", "## Result")
    order = [text.index(part) for part in parts]
    assert order == sorted(order) and len([line for line in first if line.startswith("| ")]) == 4
    places = [page.index(part) for part in ('class="verdict', "<dl>", "<figure>", 'class="key"', "<h2>Result")]
    assert places == sorted(places)


def test_words_instead_of_signs(report):
    """Occurrences of None, of hashes, and of units after a p: 0."""
    _, _, page, text, _ = report
    for written in (text, re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)):
        assert not re.search(r"\bNone\b|\bnan\b|\binf\b", written)
        assert not re.search(r"\b[0-9a-f]{8,}(…|\b)", written.replace("11700000", ""))
        assert not re.search(r"\bp (< )?[\d.]+\d (nats|bits|in)\b", written)


def test_page_is_small_and_whole(report):
    """Bytes of the page: under 1.5 MB. Every plot has a wide and a narrow drawing, no name occurs twice, colours follow
    the screen and paper, and every plot has a text for those who do not see it."""
    _, _, page, _, _ = report
    assert len(page.encode()) < 1.5e6
    figures = re.findall(r"<figure>(.*?)</figure>", page, flags=re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        assert figure.count('<div class="wide"><svg role="img" aria-label="') == 1
        assert figure.count('<div class="narrow"><svg role="img" aria-label="') == 1
        assert "var(--ink)" in figure and "#1b1b1b" not in figure
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names)) and set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page))
    assert {a or b for a, b in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)} <= set(names)
    css = page.split("<style>")[1].split("</style>")[0]
    assert "screen and (prefers-color-scheme: dark)" in css and "@media print" in css


def test_last_screen(report):
    """Samples of both arms from one step and seed, commands that repeat the report and the runs, and links to what is
    there."""
    folder, _, page, text, _ = report
    last = text.split(f"## {ab_page.LAST}")[1]
    for arm, name in zip("AB", NAMES, strict=True):
        assert f"{arm}: {name}, seed 0, step 20\n\n> {name} ⏎ at 20\n" in last and f"{name} ⏎ at 10" not in last
    commands = last.replace(" \\\n   ", "")
    assert "python compare_runs.py --a " in commands and " --no_items " in commands
    assert commands.count("python train_gpt.py --config ") == 2
    links = [urllib.parse.unquote(link) for link in re.findall(r'<a href="([^"]*)"', page)]
    assert len(links) == 8 and all((folder / "report" / link).exists() for link in links)
    assert re.findall(r"\]\(([^)]*_s2)\)", last) == [f"../runs/{name}_s2" for name in NAMES]


def test_many_arms_begin_with_the_best(tmp_path, capsys):
    """Three best arms of four, the curves of all, and five lines."""
    for i, gate in enumerate(("none", "headwise", "elementwise", "const")):
        for seed in range(3):
            make_run(tmp_path / f"{gate}_s{seed}", seed, loss=-0.01 * i + 0.001 * seed * i,
                     flags={**SHORT, "attn_gate": gate})
    assert compare_runs.main(["--runs", str(tmp_path / "*_s*"), "--group_by", "attn_gate", "--baseline",
                              "attn_gate=none", "--out", str(tmp_path / "r")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and [line.split()[0] for line in lines[1:4]] == ["const", "elementwise", "headwise"]
    text = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    first = text.split("## Every arm")[0]
    assert "- **Changed** · attn_gate: const, elementwise, headwise, none" in first
    assert "(loss_curves.png)" in first and first.count("\n| ") == 4


# ----------------------------------------------------------------------------------------------------------------------
# plots and words


def test_curves_say_what_they_leave_out(monkeypatch):
    """Points of a curve that a plot hides without a word: 0. A steep beginning is cut and told; a flat one is shown."""
    panels, canvas = [], ab_plots.canvas
    monkeypatch.setattr(ab_plots, "canvas", lambda *size, **more: [panels.append(new := canvas(*size, **more)), new][1])
    flat = [[(step, 3.0 - step / 100) for step in range(0, 101, 10)]]
    steep = [[(step, 3.0 + 8.0 / (1 + step)) for step in range(0, 101, 10)]]
    ab_plots.plot_losses({"flat": {"a": flat}, "steep": {"a": steep}}, "steps")
    for axes, _ in panels:
        told = [[text.get_text() for text in axis.texts] for axis in axes]
        assert told[0] == [] and told[1] == ["outside: 11 at 0 … 3.727 at 10"]
        low, high = axes[0].get_ylim()
        assert low < 2 and high > 3
    assert len(panels) == 2


def test_every_evaluation_is_a_marker(tmp_path):
    """Evaluations of a run, step 0 among them, that the curve leaves out: 0."""
    arm = [runs.read_run(make_run(tmp_path / f"a_s{seed}", seed, loss=seed, flags=SHORT)) for seed in range(2)]
    panels = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ab_plots, "plot_losses", lambda drawn, *rest, **more: panels.update(drawn))
        ab_curves.loss_curves({"a": arm}, "val_loss", other_tokens=False)
    val, train = panels.values()
    assert [point[0] for point in val["a"][1]] == [0, 5, 10, 15, 20]
    assert [point[1] for point in val["a"][1]] == pytest.approx([1 + base_loss(s, 20) for s in (0, 5, 10, 15, 20)])
    assert [point[0] for point in train["a"][0]] == list(range(1, 21))


def test_train_curve_is_means_over_equal_spans(tmp_path):
    """The train loss of a long run is drawn as means over spans of steps; a loss that is no number is left out."""
    step = np.arange(1.0, 801.0)
    loss = step.copy()
    loss[0] = np.nan
    run = {"train": {"step": step, "train_loss_opt_step_mean": loss}}
    (points,) = ab_curves.train_points([run])
    assert len(points) == ab_curves.BINS and points[0] == [3, 3] and points[1] == [6.5, 6.5]
    assert points[-1] == [798.5, 798.5]
    assert ab_curves.train_points([{"train": {"step": step[:0], "train_loss_opt_step_mean": step[:0]}}]) == []


def test_arms_of_a_plot_differ():
    """Arms that a reader in grey cannot tell apart, of 40: none."""
    styles = [ab_plots.style_of(i) for i in range(40)]
    assert len({(colour, str(line), marker) for colour, line, marker in styles}) == 40


@pytest.mark.parametrize(("meta", "name"), [
    ({"dataset": "/home/me/edu_web.parquet", "source": {"kind": "local"}}, "edu_web"),
    ({"dataset": "docs.jsonl.gz", "source": {"kind": "local"}}, "docs"),
    ({"dataset": "corpus/*.parquet", "source": {"kind": "local"}}, "corpus"),
    ({"dataset": "/mnt/corpus/**/*.jsonl.gz", "source": {"kind": "local"}}, "corpus"),
    ({"dataset": "corpus/web_*.txt", "source": {"kind": "local"}}, "web_*"),
    ({"dataset": "*.parquet", "source": {"kind": "local"}}, "*.parquet"),
    ({"dataset": "my_texts/", "source": {"kind": "local"}}, "my_texts"),
    ({"dataset": "a/web.txt b/books.txt", "source": {"kind": "local"}, "dataset_name": "web + books"}, "web + books"),
    ({"dataset": "HuggingFaceFW/fineweb-edu", "source": {"kind": "hub"}}, "HuggingFaceFW/fineweb-edu"),
    ({"dataset": "synthetic"}, "synthetic"), ({}, None),
])
def test_datasets_have_names(meta, name):
    """A path of someone's machine in a record or a report: none."""
    assert shards.dataset_name(meta) == name


@pytest.mark.parametrize("seeds, words", [
    ({"A": ["2", "10", "2"], "B": ["10", "2"]}, "2 seeds per arm (2, 10)"),
    ({"A": ["", "", ""], "B": ["", "", ""]}, "3 runs of unknown seed per arm"),
    ({"A": ["0", ""], "B": ["1"]}, "A: 0 and 1 run of unknown seed; B: 1"),
])
def test_seeds_in_words(seeds, words):
    """Three logs, whose seeds nobody recorded, are not "1 seed (not recorded)"."""
    assert ab_page.seeds_of(seeds) == words


def test_stand_ins_are_named(tmp_path):
    """Scores on synthetic items that stand under the name of the real benchmark, of an older run or a newer one: 0."""
    titles = {"older": "HellaSwag", "newer": "HellaSwag (synthetic, 60 items)"}
    for name, title in titles.items():
        described = {"hellaswag": {"title": title, "items": 60, "sha256": "0" * 64, "item_metrics": [],
                                   "metrics": [["hellaswag_accuracy_norm", "HellaSwag accuracy_norm", 1, ".4f"]]}}
        run = make_run(tmp_path / name, flags={**SHORT, "hellaswag_data": "synthetic:60"}, hellaswag=0.4,
                       config={"benchmarks": described})
        label = ab_numbers.metrics_of([runs.read_run(run)])["hellaswag_accuracy_norm"].label
        assert label == "HellaSwag (synthetic, 60 items) accuracy_norm"


def test_samples_are_recorded(tmp_path):
    """Samples that stand in log.txt alone, where no report finds them: none. A step that is repeated is there once."""
    told = []
    run = types.SimpleNamespace(folder=tmp_path, log=told.append, state=types.SimpleNamespace(step=7))
    for text in ("first", "second"):
        training.record_samples(run, [("", text), ("2 + 2 =", " 4")])
    records = runs.read_jsonl(tmp_path / "samples.jsonl")
    assert records == [{"step": 7, "prompt": "", "text": "second"}, {"step": 7, "prompt": "2 + 2 =", "text": " 4"}]
    assert told[:2] == ["step      7 | sample 'first'", "step      7 | sample '2 + 2 =' -> ' 4'"]
    assert [ab_page.sample_in_words(sample) for sample in records] == ["second", "2 + 2 = …  4"]


def test_commands_stay_in_their_lines():
    """A command is one that a shell reads as the same words."""
    import shlex

    command = ["python", "train_gpt.py", "--notes", "two words", *(f"--flag{i}=value{i}" for i in range(30))]
    written = ab_page.shell(command)
    assert max(map(len, written.splitlines())) < 110 and shlex.split(written.replace("\\\n", " ")) == command
