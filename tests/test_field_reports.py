"""What the field brings to compare_runs.py and learning_curves.py: strange names, folders, tables and terminals."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ENV, REPO, make_run, run_script, tiny_documents, write_dataset
from test_experiments import load

import compare_runs
from lab import ab_gate, ab_plots, ab_report, results, resume, runs
from lab.tokenizer import BOS_ID

SHORT = {"flags": {"max_train_steps": 10, "eval_every": 5}}  # enough for a report


def make_arms(folder, a="base", b="test", n=2, **changes):
    """(pattern of a, pattern of b): n seeds of two arms with these names; b has another gate."""
    for seed in range(n):
        make_run(folder / f"{a}_s{seed}", seed, loss=0.001 * seed, **SHORT)
        flags = {**SHORT["flags"], "attn_gate": "headwise"}
        make_run(folder / f"{b}_s{seed}", seed, loss=0.0015 * seed, flags=flags, **changes)
    return [[str(folder / f"{arm}_s{seed}") for seed in range(n)] for arm in (a, b)]


def ab(arms, *flags):
    return compare_runs.main(["--a", *arms[0], "--b", *arms[1], "--no_items", *map(str, flags)])


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    return make_arms(tmp_path_factory.mktemp("runs"))


# ----------------------------------------------------------------------------------------------------------------------
# the surroundings: backends, pipes, disks, terminals


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "TkAgg"])
def test_a_notebooks_backend(arms, tmp_path, backend):
    """MPLBACKEND of a notebook, or a backend that is not installed: report, plots and curves were missing."""
    env = {**ENV, "MPLBACKEND": backend}
    done = run_script("compare_runs.py", "--a", *arms[0], "--b", *arms[1], "--no_items", "--out", tmp_path / "r",
                      env=env)
    assert done.returncode == 0 and not done.stderr
    files = {"report.md", "report.html", "report.json", "loss_curves.png", "forest.png"}
    assert files <= set(os.listdir(tmp_path / "r"))
    done = run_script("experiments/learning_curves.py", *arms[0], "--curves", "val_loss", "--out", tmp_path / "c.png",
                      env=env)
    assert done.returncode == 0 and (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_plots_leave_a_notebook_alone(arms, tmp_path):
    """The backend, the figures and the style of a process that calls compare_runs."""
    code = ("import os, sys; os.environ['MPLBACKEND'] = 'svg'\n"
            "import matplotlib.pyplot as plt; plt.rcParams['text.usetex'] = True; plt.figure()\n"
            "import compare_runs, matplotlib; compare_runs.main(sys.argv[1:])\n"
            "assert plt.get_fignums() == [1] and matplotlib.get_backend() == 'svg' and plt.rcParams['text.usetex']\n"
            "assert os.environ['MPLBACKEND'] == 'svg'")
    flags = ["--a", *arms[0], "--b", *arms[1], "--no_items", "--out", str(tmp_path / "r")]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=REPO, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "loss_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("out", [True, False])
def test_a_reader_that_goes_away(arms, tmp_path, out):
    """`compare_runs.py ... | head`: a traceback, and exit status 1, which means bad input."""
    flags = ["--a", *arms[0], "--b", *arms[1], "--no_items"]
    if out:
        flags += ["--out", str(tmp_path / "r")]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, str(REPO / "compare_runs.py"), *flags], stdout=write, stderr=subprocess.PIPE,
                          text=True, env=ENV)
    os.close(write)
    assert done.returncode == 0 and done.stderr == ""
    assert not out or json.loads((tmp_path / "r" / "report.json").read_text())["mode"] == "a/b"
    assert not out or (tmp_path / "r" / "report.md").read_text().startswith("# test against base: ")


def test_a_terminal_without_our_signs(arms):
    """The report's signs (±, ·) on an ASCII terminal: no report, but an error about a codec."""
    done = run_script("compare_runs.py", "--a", *arms[0], "--b", *arms[1], "--no_items",
                      env={**ENV, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.startswith("# test against base: ") and "\\xb1" in done.stdout


def test_a_full_disk_keeps_the_numbers(arms, tmp_path, capsys, monkeypatch):
    """A disk that fills up while the report is written: one sentence, after the numbers."""
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ab_report.disk, "write_whole", full)
    with pytest.raises(ValueError, match=r"--out .* cannot be written \(No space left on device\): choose another"):
        ab(arms, "--out", tmp_path / "r")
    assert capsys.readouterr().out.startswith("# test against base: ")


# ----------------------------------------------------------------------------------------------------------------------
# other people's folders


def test_a_strangers_report_stays(arms, tmp_path, capsys):
    """--out on a folder with other files overwrote a report.md; new, empty and earlier folders of ours are written."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "report.md").write_text("my thesis")
    with pytest.raises(ValueError, match=r"own is not empty and holds no report\.json of compare_runs\.py: choose"):
        ab(arms, "--out", tmp_path / "own")
    (tmp_path / "own" / "report.json").write_text('{"mode": "lighthouse"}')
    with pytest.raises(ValueError, match=r"own is not empty"):
        compare_runs.main(["--plan", "--noise", "0.1", "--effect", "0.1", "--out", str(tmp_path / "own")])
    assert sorted(os.listdir(tmp_path / "own")) == ["report.json", "report.md"] and not capsys.readouterr().out
    assert (tmp_path / "own" / "report.md").read_text() == "my thesis"
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=r"file cannot be written \(Not a directory\)"):
        ab(arms, "--out", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/deep"):
        for _ in range(2):  # the second one replaces the first one's report
            assert ab(arms, "--out", tmp_path / folder) == 0
            assert (tmp_path / folder / "report.md").read_text().startswith("# test against base: ")
    with pytest.raises(ValueError, match="is not empty"):
        ab(arms, "--out", arms[0][0])  # a run's folder


def test_two_comparisons_into_one_folder(tmp_path):
    """One found the other's half-written file in its way, and advised to choose another folder."""
    blocks = [("h1", "How many seeds?"), ("p", "many")]

    def write(many):
        for _ in range(20):
            ab_report.publish(blocks, {"mode": "plan", "seeds": many}, str(tmp_path / "report"), brief=["done"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert sorted(os.listdir(tmp_path / "report")) == ["report.html", "report.json", "report.md"]


# ----------------------------------------------------------------------------------------------------------------------
# names

NAMES = {  # a folder's name -> (its heading in Markdown, in HTML)
    r"$\bad$": (r"\$\\bad\$", r"$\bad$"),
    "$$": (r"\$\$", "$$"),
    "a\nb": (r"a\\nb", r"a\nb"),
    "a|b": ("a|b", "a|b"),
    "<b>x": (r"\<b>x", "&lt;b&gt;x"),
    "*x*": (r"\*x\*", "*x*"),
    "**x**": (r"\*\*x\*\*", "**x**"),
    "`x": (r"\`x", "`x"),
    "_x": (r"\_x", "_x"),
    "&lt;": (r"\&lt;", "&amp;lt;"),
    "[x](y)": (r"[x\](y)", "[x](y)"),
    b"\xff\xfe": (r"\\udcff\\udcfe", r"\udcff\udcfe"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_whole(tmp_path, capsys, monkeypatch, name):
    """An arm with markup in its name: no report, a broken heading, or a plot with another name."""
    only_png = lambda draw: {"png": draw(True)(), "wide": "<svg></svg>", "narrow": "<svg></svg>"}
    monkeypatch.setattr(ab_plots, "picture", only_png)  # the SVGs hold outlines, no names
    in_markdown, in_html = NAMES[name]
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    arms = make_arms(tmp_path, a=name)
    crashed = make_run(tmp_path / f"{name}_s2", 2, finished=False, **SHORT)  # its name comes in a sentence
    assert ab(arms, "--out", tmp_path / "r") == 0
    assert ab([[*arms[0], str(crashed)], arms[1]]) == 2
    told = ab_report.escape_markdown(ab_report.one_line(f"{name}_s2")) + ": ended at step 10 of 10 without a summary"
    assert f"({told})" in capsys.readouterr().out
    assert compare_runs.main(["--runs", *arms[0], *arms[1], "--group_by", "run_id", "--allow", "treatment,attn_gate",
                              "--out", str(tmp_path / "n")]) == 0
    capsys.readouterr()
    text = (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# test against {in_markdown}: n = 2: too few"
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert f"<h1>test against {in_html}: n = 2: too few</h1>" in page
    assert f"<title>test against {in_html}: n = 2: too few</title>" in page
    table = (tmp_path / "n" / "report.md").read_text(encoding="utf-8")
    cell = in_markdown.replace("|", r"\|")
    assert sum(line.startswith((f"| {cell}_s", f"| {cell}\\_s")) for line in table.splitlines()) == 4
    for folder in ("r", "n"):
        assert json.loads((tmp_path / folder / "report.json").read_text())
        assert all(path.stat().st_size > 5000 for path in (tmp_path / folder).glob("*.png"))


def texts_of(draw, monkeypatch):
    """All text of a figure, as it is drawn."""
    from matplotlib.backends import backend_agg

    drawn = []
    write = backend_agg.RendererAgg.draw_text
    monkeypatch.setattr(backend_agg.RendererAgg, "draw_text", lambda self, gc, x, y, s, *rest, **more: (
        drawn.append(s), write(self, gc, x, y, s, *rest, **more))[-1])
    monkeypatch.setattr(backend_agg.RendererAgg, "draw_mathtext", lambda *given, **more: drawn.append("mathematics"))
    assert draw()["png"].startswith(b"\x89PNG")
    return drawn


@pytest.mark.parametrize("name", [r"$\bad$", "$$", "$x$", "_x", "a\nb", os.fsdecode(b"\xff"), "<b>", "*x*", "a\0b"])
def test_plots_write_names_as_they_are(monkeypatch, name):
    """matplotlib reads $...$ as mathematics, leaves names that begin with _ out of a legend, and fails on bytes that
    are no UTF-8."""
    points = [[(0, 3.0), (1, 2.0)], [(0, 3.1), (1, 2.2)]]
    wanted = ab_report.one_line(name)
    drawn = texts_of(lambda: ab_plots.plot_losses({"y": {name: points, "b": points}}, "x"), monkeypatch)
    assert f"{wanted} (2 seeds)" in drawn and "b (2 seeds)" in drawn and "mathematics" not in drawn
    assert wanted in texts_of(lambda: ab_plots.plot_arms({name: [1.0, 2.0], "b": [1.0]}, "x"), monkeypatch)
    row = {"label": name, "delta": 1.0, "low": 0.5, "high": 1.5, "better": -1, "verdict": "worse"}
    drawn = texts_of(lambda: ab_plots.plot_forest({"losses": [row]}), monkeypatch)
    assert f"{wanted} ↓" in drawn and "mathematics" not in drawn


@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_the_axes():
    """Names of 230 characters: matplotlib drew axes of no size."""
    names = [f"{i}{'x' * 230}{i}" for i in range(2)]
    assert ab_plots.plot_losses({"y": {name: [[(0, 3.0), (1, 2.0)]] for name in names}}, "x")
    assert ab_plots.plot_arms({name: [1.0, 2.0] for name in names}, "x")
    assert len({ab_plots.plot_name(name) for name in names}) == 2


def test_text_of_ours_keeps_its_markup():
    """Bold and code of a report's own sentences, and the p values that begin with <."""
    text = "**not comparable** · `base` p < 0.0001 [-1, 2] at muon_lr, **x**"
    assert ab_report.markdown(text) == r"**not comparable** · `base` p < 0.0001 [-1, 2] at muon_lr, \*\*x\*\*"
    assert ab_report.inline(text) == ("<strong>not comparable</strong> · <code>base</code> p &lt; 0.0001 [-1, 2] at "
                                      "muon_lr, **x**")
    question = "**Is it (`crop_fraction`)?** No"
    assert ab_report.markdown(question) == question
    assert ab_report.inline(question) == "<strong>Is it (<code>crop_fraction</code>)?</strong> No"
    assert ab_report.markdown("**x**: torn") == r"\*\*x\*\*: torn"
    assert ab_report.markdown("a\u2028b\rc") == r"a\\u2028b\\rc"


# ----------------------------------------------------------------------------------------------------------------------
# results.csv after a spreadsheet

ROWS = [{"run_id": f"{gate}_s{seed}", "seed": str(seed), "attn_gate": gate, "learning_rate": "0.0036",
         "num_iterations": "1500", "final_val_loss": str(loss + 0.25 * seed), "train_time_ms": "609100.5",
         "notes": "a, comma; and 1,5", "lr2": "0.5"}
        for gate, loss in (("none", 3.5), ("headwise", 3.25)) for seed in (0, 1)]


def save(path, separator=",", comma=False, encoding="utf-8", begin="", end="\n", rows=ROWS):
    """ROWS as a spreadsheet saves them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end)
    writer.writerow(rows[0])
    for row in rows:
        cells = [v.replace(".", ",") if comma and k != "notes" else v for k, v in row.items()]
        writer.writerow(cells)
    path.write_bytes((begin + text.getvalue()).encode(encoding))
    return path


SAVED = {
    "ours": {},
    "European Excel": {"separator": ";", "comma": True, "encoding": "utf-8-sig", "end": "\r\n"},
    "European Excel, ANSI": {"separator": ";", "comma": True, "encoding": "cp1252"},
    "Excel, Unicode text": {"separator": "\t", "comma": True, "encoding": "utf-16"},
    "Excel, sep=": {"separator": ";", "comma": True, "begin": "sep=;\r\n", "end": "\r\n"},
    "LibreOffice, commas": {"comma": True},
    "tabs": {"separator": "\t"},
    "semicolons and points": {"separator": ";"},
    "empty lines": {"end": "\n\n"},
}


@pytest.mark.parametrize("case", SAVED)
def test_results_of_a_spreadsheet(tmp_path, capsys, case):
    """A results.csv saved by a European Excel: losses cut at their comma, or no row found at all."""
    path = save(tmp_path / "results.csv", **SAVED[case])
    assert results.read_results(path) == ROWS
    flags = ("--results", str(path), "--group_by", "attn_gate", "--where", "num_iterations=1500,lr2=0.5",
             "--baseline", "attn_gate=none")
    assert compare_runs.main(list(flags)) == 0
    text = capsys.readouterr().out
    for cells in ("| headwise | 2 | 3.3750 |", "| none | 2 | 3.6250 |"):
        assert f"{cells} 10m 9.1s (hardware not recorded) |" in text
    assert "| attn_gate=headwise | 2 pairs | -0.2500 |" in text


def test_results_that_cannot_be_told(tmp_path):
    """Cells that mean two things, or another one than they seem: a sentence, not a number."""
    path, good = tmp_path / "results.csv", save(tmp_path / "good.csv").read_text()
    header, first, *rest = good.splitlines()
    changed = [dict(ROWS[0], notes="für"), *ROWS[1:]]
    tables = {
        "save it as CSV UTF-8": save(path, ";", True, "cp1252", rows=changed).read_bytes(),
        "decimal commas and decimal points": good.replace("3.5,", '"3,5",').encode(),
        "more cells in line 2 than columns": good.replace('"a, comma; and 1,5"', "a, comma", 1).encode(),
        "repeats its header in line 6": (good + good).encode(),
        "two columns seed": good.replace("lr2", "seed").encode(),
        "cannot be read": "\n".join([header, first.replace('1,5"', '1,5'), *rest]).encode(),
        "no rows with a column final_val_loss": f"{header}\n".encode(),
    }
    tables |= {"is not UTF-8": good.encode("utf-16-le"), "perhaps since a spreadsheet saved it": b"\0" * 99}
    for content in (b"", b"\xef\xbb\xbf", b"\n\n"):
        tables[f"no rows with a column final_val_loss {content[:9]}"] = content
    for wanted, content in tables.items():
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            results.read_results(path)
        assert wanted.split(" b'")[0] in str(error.value) and "\n" not in str(error.value), content
    with pytest.raises(ValueError, match="cannot be read .*Is a directory"):
        results.read_results(tmp_path)


NOTES = ["=1+1", "@SUM(A1)", "+cmd", "-cmd|' /C calc'!A0", "\t=1", " =1", "'=1", "''=1", "plain", "'quoted'", "-3",
         "+0.5e-3", "a\nb", "a, \"b\"; c", "-", "='", "-inf", "+1_0", "für"]


def test_notes_are_no_formulas(tmp_path):
    """A note that a spreadsheet would run; it comes back as it was, also after another run has been added."""
    path = tmp_path / "results.csv"
    for i, notes in enumerate(NOTES):
        results.append_result(path, {"run_id": f"=r{i}", "seed": i, "final_val_loss": -0.5 - i, "notes": notes})
    with path.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        for cell in (row["notes"], row["run_id"]):
            assert cell in ("-3", "+0.5e-3") or not cell.lstrip().startswith(("=", "+", "-", "@")), cell
    assert [row["final_val_loss"] for row in rows] == [str(-0.5 - i) for i in range(len(NOTES))]
    rows = results.read_results(path)
    assert [row["notes"] for row in rows] == NOTES and [row["run_id"] for row in rows] == [f"=r{i}" for i in range(19)]
    results.append_result(path, {"run_id": os.fsdecode(b"\xff_s0"), "final_val_loss": 1.0})
    assert results.read_results(path)[-1]["run_id"] == r"\udcff_s0"


# ----------------------------------------------------------------------------------------------------------------------
# one gate


def curves(*flags):
    return load("learning_curves").main([*map(str, flags), "--curves", "val_loss"])


def val_losses(folder):
    return {step: record["val_loss"] for step, record in runs.read_run(folder)["val"].items()}


def crash(folder, step):
    """Take back what a run did after a step, as if it had been killed there."""
    resume.trim_records(folder, step)
    (folder / "summary.json").unlink()


def test_curves_of_a_crashed_seed(tmp_path, capsys):
    """A whole arm was read at the step where one crashed seed had ended, beside another arm's last step."""
    make_arms(tmp_path, n=3)
    crash(tmp_path / "test_s2", 5)
    assert curves(tmp_path / "*_s*", "--out", tmp_path / "c.png") == 2
    text = capsys.readouterr().out
    losses = [val_losses(tmp_path / f"test_s{seed}") for seed in (0, 1)]
    mean = (losses[0][10] + losses[1][10]) / 2
    assert "| arm | seeds | val loss, nats/token (last) |" in text and f"| test | 2 | {mean:.4f} ± 0.0011 |" in text
    assert "**not comparable** · incomplete (test_s2: ended at step 5 of 10" in text
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert curves(tmp_path / "*_s*", "--allow", "incomplete") == 0  # and the report still says what is missing
    text = capsys.readouterr().out
    assert "**comparable** · what differs is the treatment, attn_gate none / headwise. Missing: test_s2: ended" in text
    for seed in (0, 1):
        crash(tmp_path / f"test_s{seed}", 5)
    assert curves(tmp_path / "*_s*", "--allow", "incomplete") == 0
    text = capsys.readouterr().out  # an arm without a finished run: both arms at the last step that all have
    mean = sum(val_losses(tmp_path / f"base_s{seed}")[5] for seed in range(3)) / 3
    assert "val loss, nats/token (step 5 of 10)" in text and f"| base | 3 | {mean:.4f} ± 0.0010 |" in text


def test_curves_go_through_the_gate(tmp_path, capsys):
    """Arms that differ in a forgotten flag, or in the rule of a benchmark, stood side by side without a word."""
    make_arms(tmp_path)
    for seed in (0, 1):
        make_run(tmp_path / f"wide_s{seed}", seed, flags={**SHORT["flags"], "n_embd": 32, "n_inner": 128})
    assert curves(tmp_path / "base_s*", tmp_path / "test_s*") == 0
    assert "(18 pairs" not in capsys.readouterr().out
    assert curves(tmp_path / "base_s*", tmp_path / "wide_s*") == 2
    assert "**not comparable** · n_embd (16 / 32)" in capsys.readouterr().out
    assert curves(tmp_path / "base_s*", tmp_path / "wide_s*", "--treatment", "size") == 0
    assert "what differs is the treatment, n_embd 16 / 32" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--treatment n_emb: use"):
        curves(tmp_path / "base_s*", tmp_path / "wide_s*", "--treatment", "n_emb")
    scalars = tmp_path / "test_s1" / "scalars.jsonl"
    text = scalars.read_text()
    at = text.rindex('"val_loss": ')
    scalars.write_text(text[:at] + text[at:].replace(text[at:].split(",")[0], '"val_loss": null', 1))
    curves(tmp_path / "base_s*", tmp_path / "test_s*")  # a seed that diverged: no mean of an earlier step
    assert "| test | 2 | N/A: no number of seed 1 |" in capsys.readouterr().out


def test_curves_leave_other_files_alone(arms, tmp_path, capsys, monkeypatch):
    """--out on a text of the user's own; a disk that is full."""
    (tmp_path / "notes.md").write_text("my thesis")
    for path in (tmp_path / "notes.md", tmp_path):
        with pytest.raises(SystemExit, match="exists and is no PNG: choose another file"):
            curves(*arms[0], "--out", path)
    assert (tmp_path / "notes.md").read_text() == "my thesis"
    with pytest.raises(SystemExit, match=r"--out .* cannot be written \(No such file or directory\)"):
        curves(*arms[0], "--out", tmp_path / "none" / "c.png")
    assert capsys.readouterr().out.startswith("| arm | seeds |")
    score_val = load("score_val")
    for content in ("my thesis", "[]", '{"val_loss": 1}'):
        (tmp_path / "v.json").write_text(content)
        with pytest.raises(ValueError, match="v.json exists and is no score of score_val.py: choose another file.$"):
            score_val.check_out(tmp_path / "v.json")
    for path in (tmp_path / "none" / "v.json", tmp_path / "v.json" / "v.json"):  # before hours of scoring
        with pytest.raises(ValueError, match="is no folder: make it, or choose another file.$"):
            score_val.check_out(path)
    for flag in ("--batch_size", "--val_tokens"):
        for value in ("0", "-1"):
            with pytest.raises(SystemExit):
                score_val.main(["--checkpoint", "x", "--data_dir", "y", flag, value])
            assert f"{flag} {value}: give a whole number of at least 1." in capsys.readouterr().err
    (tmp_path / "v.json").write_text('{"fingerprint_tokens": "ab"}')
    score_val.check_out(tmp_path / "v.json")
    score_val.check_out(tmp_path / "new.json")


def test_curves_without_a_common_step(tmp_path, capsys):
    """Arms scored at other steps have no column to stand in together; a folder that is no run is named."""
    make_run(tmp_path / "a_s0", 0, flags={"max_train_steps": 9, "eval_every": 9})
    make_run(tmp_path / "b_s0", 0, flags={"max_train_steps": 10, "eval_every": 10})
    for name in "ab":
        path = tmp_path / f"{name}_s0" / "scalars.jsonl"
        kept = [line for line in path.read_text().splitlines() if '"val"' not in line or '"step": 0,' not in line]
        path.write_text("\n".join(kept) + "\n")
    (tmp_path / "c_s0").mkdir()
    assert curves(tmp_path / "*_s0") == 2
    text = capsys.readouterr().out
    assert "val loss, nats/token (no step that all scored)" in text and "| a | 1 | N/A: no number of seed 0 |" in text
    assert "max_train_steps (9 / 10)" in text and "left out, as they have no config.json: c\\_s0" not in text
    assert "left out, as they have no config.json: c_s0" in text


def test_unverified_data_is_no_proof(tmp_path, capsys):
    """Two different val files passed as an A/A, as --verify_data sizes takes their fingerprints from meta.json."""
    for arm, verify in (("base", "full"), ("test", "sizes")):
        for seed in (0, 1):
            make_run(tmp_path / f"{arm}_s{seed}", seed, flags={**SHORT["flags"], "verify_data": verify})
    both = [[str(tmp_path / f"{arm}_s{seed}") for seed in (0, 1)] for arm in ("base", "test")]
    assert ab(both) == 2
    text = capsys.readouterr().out
    assert "**not comparable** · unverified_data (test_s0, test_s1: --verify_data sizes compared no checksum" in text
    assert "an A/A" not in text
    assert ab([both[1][:1], both[1][1:]], "--allow", "seed") == 2  # also when neither arm verified
    assert ab(both, "--allow", "unverified_data") == 0
    assert "Allowed by --allow: unverified_data: test_s0, test_s1" in capsys.readouterr().out
    assert curves(*both[0], *both[1]) == 2 and "unverified_data (" in capsys.readouterr().out
    path = tmp_path / "results.csv"
    for folder in [*both[0], *both[1]]:
        results.append_result(path, runs.read_run(folder)["summary"]["results_row"])
    table = ("--results", str(path), "--group_by", "run_id", "--allow", "treatment")
    assert compare_runs.main(list(table)) == 2
    assert "**not comparable** · unverified_data (test_s0: --verify_data sizes" in capsys.readouterr().out
    assert results.read_results(path)[2]["verify_data"] == "sizes"


def test_val_files_of_one_fingerprint(tmp_path, capsys):
    """The same with the trainer: of two folders with one meta.json, of which one has another val text, --verify_data
    full refuses the second, and after sizes the gate does not call it an A/A."""
    import shutil

    import train_gpt

    write_dataset(tmp_path / "a", tiny_documents(60, 20, 60))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (val,) = (tmp_path / "b").glob("val_*.bin")
    ids = np.fromfile(val, "<u2")
    starts = [*np.flatnonzero(ids == BOS_ID), len(ids)]
    for start, end in itertools.pairwise(starts):  # within documents, so that their bytes are the same
        ids[start + 1 : end] = ids[start + 1 : end][::-1]
    ids.tofile(val)
    flags = ("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 --total_batch_tokens 64 "
             "--log_every 0 --max_train_steps 4 --eval_every 2 --val_tokens 100 --device cpu --results_csv").split()
    for name, verify in (("a", "sizes"), ("b", "sizes"), ("b", "full")):
        train = ["--data_dir", str(tmp_path / name), "--out_dir", str(tmp_path / f"{name}_s0_{verify}"), *flags, "",
                 "--verify_data", verify]
        if verify == "full":
            with pytest.raises(ValueError, match="checksum"):
                train_gpt.main(train)
            continue
        assert train_gpt.main(train) == 0
    capsys.readouterr()
    assert ab([[str(tmp_path / "a_s0_sizes")], [str(tmp_path / "b_s0_sizes")]], "--allow", "invalid_run") == 2
    text = capsys.readouterr().out
    assert "an A/A" not in text and "unverified_data (a_s0_sizes: --verify_data sizes" in text


def test_a_resume_that_does_not_verify(tmp_path, capsys):
    """A run that verified its data and went on with --verify_data sizes counted as verified."""
    import train_gpt

    write_dataset(tmp_path / "data", tiny_documents(60, 20, 60))
    flags = ["--data_dir", str(tmp_path / "data"), "--out_dir", str(tmp_path / "r"), "--results_csv", "",
             *("--n_layer 1 --n_head 2 --n_embd 16 --seq_len 16 --micro_batch_size 4 --total_batch_tokens 64 "
               "--log_every 0 --max_train_steps 2 --eval_every 2 --val_tokens 100 --device cpu").split()]
    for verify in ("full", "sizes"):
        assert train_gpt.main([*flags, "--resume", "auto", "--verify_data", verify]) == 0
        assert ab_gate.of_run(runs.read_run(tmp_path / "r"))["unverified"] == (verify == "sizes")
        (tmp_path / "r" / "summary.json").unlink()
