"""files.py and what reads through it: which files a name stands for, text in other encodings, and bombs."""

import gzip
import json
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_prepare
import test_sft
import zstandard
from conftest import ENV, REPO

import eval_gsm8k
import ewok
import hellaswag
from lab import conversations, decontaminate, files, sources, tinygsm
from lab.tokenizer import get_tokenizer

KINDS = tuple(sources.DOCUMENT_READERS)


def write(path, data="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def names_of(folder, *names, kinds=KINDS, **options):
    """What `find` gives for names in a folder, as paths in it."""
    paths = files.find([folder / name for name in names], kinds, "--dataset", **options)
    return [os.path.relpath(path, folder) for path in paths]


def texts_of(tmp_path, *names, flags=()):
    """The documents that prepare_fineweb.py reads, in order."""
    argv = test_prepare.parse("--dataset", *(tmp_path / name for name in names), "--out_dir", "unused", *flags)
    source = sources.open_source(argv)
    batches = [batch for _, batch in sources.read_batches(source)]
    return [document if isinstance(document, str) else document.decode() for batch in batches for document in batch]


# ------------------------------------------------------------------------------------------------------------
# which files


def test_a_folder_is_all_its_documents(tmp_path, capsys):
    """Documents of a folder with 3 .txt, 2 .jsonl of 200 lines each in sub-folders and 1 .parquet of 100 rows: 503;
    `datasets` gave the 3 of one suffix. What is left out is named."""
    corpus = tmp_path / "corpus"
    for i in range(3):
        write(corpus / f"story {i}.TXT", f"story {i}")
    for i in range(2):
        rows = [json.dumps({"text": f"line {i} {j}"}) for j in range(200)]
        write(corpus / "deep" / f"{i}" / "a.jsonl", "\n".join(rows))
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(100)]}), corpus / "rows.parquet")
    write(corpus / "README.md")
    write(corpus / ".hidden" / "b.jsonl")
    write(corpus / ".DS_Store")
    texts = texts_of(tmp_path, "corpus")
    assert len(texts) == len(set(texts)) == 3 + 400 + 100
    noted = capsys.readouterr().err
    assert "README.md" in noted and ".hidden/b.jsonl" in noted and "DS_Store" not in noted and noted.count("\n") == 1
    meta = test_prepare.prepare(corpus, tmp_path / "out", "--val_shards", 0)
    assert meta["docs_processed"] == 503 and len(meta["source"]["files"]) == 6


@pytest.mark.parametrize("names, split, expected", [
    ("latest/a.jsonl test/a.jsonl prod/a.jsonl", "train", "latest/a.jsonl prod/a.jsonl test/a.jsonl"),
    ("latest/a.txt contest.txt retrieval.txt", "train", "contest.txt latest/a.txt retrieval.txt"),
    ("train/a.jsonl test/a.jsonl", "train", "train/a.jsonl"), ("train/a.jsonl test/a.jsonl", "test", "test/a.jsonl"),
    ("data/train-0.parquet data/train-1.parquet data/validation-0.parquet", "train",
     "data/train-0.parquet data/train-1.parquet"),
    ("night_train.txt the_test.txt other.txt", "train", "night_train.txt other.txt the_test.txt"),
    ("testing.txt dev.txt", "train", "dev.txt testing.txt"), ("train/test.txt b.txt", "train", "b.txt train/test.txt"),
    ("train.jsonl val.jsonl", "validation", "val.jsonl"),
    ("train_test.txt train.txt", "train", "train.txt train_test.txt"),
])
def test_splits_are_whole_words(tmp_path, capsys, names, split, expected):
    """Files of a folder that are read: all, unless every one names a split and one of them the wanted one."""
    for name in names.split():
        write(tmp_path / "d" / name)
    assert names_of(tmp_path / "d", ".", split=split) == expected.split()
    left = set(names.split()) - set(expected.split())
    noted = capsys.readouterr().err
    assert all(name in noted for name in left)
    assert not left or "leaves out" in noted


def test_a_split_that_is_not_there(tmp_path):
    """An error about --split never advises one that would read a part."""
    for name in ("latest", "test", "prod"):
        write(tmp_path / name / "a.txt")
    with pytest.raises(ValueError, match="drop --split to read all 3"):
        names_of(tmp_path, ".", split="prod")


def test_a_path_that_exists_is_itself(tmp_path):
    """Files found below names with glob's characters: as many as there are."""
    for name in ("corpus [v1]/a.jsonl", "corpus [v1]/b.jsonl", "corpus v/a.jsonl", "what?.txt", "whats.txt", "*.txt"):
        write(tmp_path / name)
    assert names_of(tmp_path, "corpus [v1]/a.jsonl") == ["corpus [v1]/a.jsonl"]
    assert names_of(tmp_path, "corpus [v1]") == names_of(tmp_path, "corpus [v1]/*.jsonl") == [
        "corpus [v1]/a.jsonl", "corpus [v1]/b.jsonl"]
    assert names_of(tmp_path, "what?.txt") == ["what?.txt"] and names_of(tmp_path, "*.txt") == ["*.txt"]
    assert names_of(tmp_path, "w*.txt") == ["what?.txt", "whats.txt"]


def test_each_file_is_read_once(tmp_path, capsys):
    """Reads of a file that has several names, or is named several times: 1, and a sentence."""
    write(tmp_path / "d" / "a.jsonl")
    write(tmp_path / "d" / "b.jsonl")
    (tmp_path / "d" / "link.jsonl").symlink_to("a.jsonl")
    os.link(tmp_path / "d" / "b.jsonl", tmp_path / "d" / "hard.jsonl")
    (tmp_path / "d" / "loop").symlink_to(".")
    (tmp_path / "d" / "again").symlink_to("../d")
    assert names_of(tmp_path, "d") == ["d/a.jsonl", "d/b.jsonl"]
    assert "d/hard.jsonl, " in (noted := capsys.readouterr().err) and "d/link.jsonl came before" in noted
    (tmp_path / "d" / "loop").unlink()
    (tmp_path / "d" / "again").unlink()
    names = ["d/b.jsonl", "d/b.jsonl", "d/../d/b.jsonl", "d/*.jsonl", "d", "d/**", "d/hard.jsonl"]
    assert names_of(tmp_path, *names) == ["d/b.jsonl", "d/a.jsonl"]
    for name in ("a.txt", "b.txt", "c.txt"):
        write(tmp_path / "copies" / name, "same" if name < "c" else "other")
    assert texts_of(tmp_path, "copies") == ["same", "same", "other"]
    assert "copies/a.txt, " in (noted := capsys.readouterr().err) and "are copies of each other" in noted
    write(tmp_path / "d" / "a.jsonl.gz")
    assert len(names_of(tmp_path, "d")) == 3 and "a.jsonl.gz and the same name unpacked" in capsys.readouterr().err


def test_what_is_no_file_is_a_sentence(tmp_path):
    """Names that stand for nothing to read: an error that names them, from every folder and glob."""
    (tmp_path / "broken.jsonl").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.jsonl")
    write(tmp_path / "other" / "data.csv")
    (tmp_path / "empty").mkdir()
    for name, fault in (("broken.jsonl", "link to nothing"), ("pipe.jsonl", "neither a file nor a folder"),
                        ("other", r"holds no data files .* only data.csv"), ("other/*", "data.csv is none of"),
                        ("empty", "holds no data files"), ("none*", "no such file or glob"), (".", "link to nothing")):
        with pytest.raises((ValueError, FileNotFoundError), match=fault):
            names_of(tmp_path, name)


def test_every_script_finds_alike(tmp_path, capsys, monkeypatch):
    """Rows that sft, tinygsm, the exams and the guard read from a folder: all, each once; or a sentence."""
    chats = [test_sft.chat("Hi", f"Hello {i}") for i in range(30)]
    folder = tmp_path / "chats [1]"
    (folder / "more").mkdir(parents=True)
    test_sft.write_jsonl(folder / "a.jsonl.gz", chats[:10])
    pq.write_table(pa.Table.from_pylist(chats[10:20]), folder / "b.parquet")
    test_sft.write_jsonl(folder / "more" / "c.jsonl", chats[20:])
    (folder / "link.jsonl").symlink_to("more/c.jsonl")
    write(folder / "notes.txt")
    args = test_sft.args_of("--data", folder, folder / "a.jsonl.gz", "--eval_every", 0)
    data = conversations.load(args)
    assert len(data["hash"]) == 30 and len(set(data["hash"].tolist())) == 30
    assert "notes.txt" in capsys.readouterr().err

    program = {"question": "How many?", "code": "def f():\n    a = 2\n    return a * 3"}
    for name in ("a.jsonl", "deep/b.jsonl"):
        (tmp_path / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        test_sft.write_jsonl(tmp_path / "tiny" / name, [program] * 3)
    counts = tinygsm.convert_files([str(tmp_path / "tiny"), str(tmp_path / "tiny" / "a.jsonl")], tmp_path / "o.jsonl")
    assert counts[""] == 6

    exam = [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in range(5)]
    (tmp_path / "exam").mkdir()
    test_sft.write_jsonl(tmp_path / "exam" / "test.jsonl", exam)
    assert len(eval_gsm8k.load(tmp_path / "exam")) == len(eval_gsm8k.load(tmp_path / "exam" / "*.jsonl")) == 5
    test_sft.write_jsonl(tmp_path / "exam" / "train.jsonl", exam)
    for load in (eval_gsm8k.load, hellaswag.load):
        with pytest.raises(FileNotFoundError, match="no such file, but 2 .*test.jsonl.*name one of them"):
            load(tmp_path / "exam")
    with pytest.raises(ValueError, match="exam cannot be read"):
        ewok.load(tmp_path / "exam")

    (tmp_path / "guard").mkdir()
    test_sft.write_jsonl(tmp_path / "guard" / "gsm8k_test.jsonl", exam)
    assert list(decontaminate.find_files([str(tmp_path / "guard")])) == ["gsm8k"]
    assert "has no hellaswag" in capsys.readouterr().err
    for name in ("ewok_1.zip", "ewok_2.zip"):
        write(tmp_path / "guard" / name)
    with pytest.raises(ValueError, match="ewok_1.zip, .*ewok_2.zip: name one, as in ewok=FILE"):
        decontaminate.find_files([str(tmp_path / "guard")])


# ------------------------------------------------------------------------------------------------------------
# text


STORIES = [f"Once upon a time there were {i} cats.\n\nThey slept.\r\n  The end" for i in range(400)]


@pytest.mark.parametrize("border", ["<|endoftext|>", "\n<|endoftext|>\n", "\r\n\r\n<|endoftext|>\r\n"])
def test_stories_between_separators(tmp_path, border, monkeypatch):
    """Documents in a .txt of 400 stories with <|endoftext|> between them: 400, each as it was; and from any start."""
    write(tmp_path / "a.txt", border.join(STORIES))
    write(tmp_path / "b.txt", border.join(["", *STORIES, ""]).encode("utf-8-sig"))
    for name in ("a.txt", "b.txt"):
        assert texts_of(tmp_path, name) == STORIES
    source = sources.open_source(test_prepare.parse("--dataset", tmp_path / "a.txt", "--out_dir", "unused"))
    monkeypatch.setattr(sources, "BATCH_BYTES", 1000)
    for start in (1, 17, 399, 400):
        rest = [document.decode() for _, batch in sources.read_batches(source._replace(counts={}), start)
                for document in batch]
        assert rest == STORIES[start:]


def test_separators_in_a_large_file(tmp_path, monkeypatch):
    """Documents across the blocks in which a file is read, and around one that is too long: all the others."""
    stories = [f"{i} " + "word " * 30_000 for i in range(20)]
    write(tmp_path / "a.txt", "<|endoftext|>".join(stories))
    assert texts_of(tmp_path, "a.txt") == stories
    monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 2**21)
    write(tmp_path / "b.txt", "<|endoftext|>".join([stories[0], "x" * 5_000_000, stories[1], "y" * 3_000_000]))
    texts = texts_of(tmp_path, "b.txt")
    assert texts[::2] == stories[:2] and all(text.startswith("longer than") for text in texts[1::2])


def test_byte_order_marks(tmp_path):
    """U+FEFF in a document from a file that begins with UTF-8's mark: none; UTF-16 is refused by name."""
    line = json.dumps({"text": "Zoë", "messages": test_sft.chat("Hi", "Zoë")["messages"]})
    for name, text in (("a.txt", "Zoë\n"), ("a.jsonl", f"{line}\n\n{line}"), ("blank.jsonl", f"\n{line}\n")):
        write(tmp_path / name, text.encode("utf-8-sig"))
        assert set(texts_of(tmp_path, name)) == {"Zoë" if "jsonl" in name else "Zoë\n"}
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            path = write(tmp_path / encoding / name, text.encode(encoding))
            with pytest.raises(ValueError, match="is UTF-16 or UTF-32, not UTF-8: convert it"):
                texts_of(tmp_path, path)
            if name.endswith("jsonl"):
                with pytest.raises(ValueError, match="is UTF-16 or UTF-32"):
                    conversations.load(test_sft.args_of("--data", path, "--eval_every", 0))
    for packed in (gzip.compress, zstandard.compress):
        suffix = ".gz" if packed is gzip.compress else ".zst"
        path = write(tmp_path / f"b.jsonl{suffix}", packed(b"\xef\xbb\xbf" + line.encode()))
        assert texts_of(tmp_path, path) == ["Zoë"]


def test_other_files_under_a_texts_name(tmp_path):
    """Files whose first bytes say what they are: named, whatever --bad_documents says."""
    line = b'{"text": "a"}\n'
    for name, data, kind in [
        ("a.jsonl", gzip.compress(line), "gzip"), ("b.jsonl", zstandard.compress(line), "zstd"),
        ("c.jsonl.gz", gzip.compress(gzip.compress(line)), "gzip"), ("d.txt", b"PAR1 ...", "parquet"),
        ("e.txt", b"PK\3\4", "zip"), ("f.txt", b"%PDF-1.7\n", "PDF"),
    ]:
        write(tmp_path / name, data)
        with pytest.raises(ValueError, match=f"{name} is an? {kind}.* inside, not text"):
            texts_of(tmp_path, name, flags=["--bad_documents", "skip"])


def test_special_tokens_as_text(tmp_path, capsys):
    """Documents whose <|endoftext|>, </s> or <MUL_6_9_54> is read as ordinary characters: counted and told."""
    texts = ["a<|endoftext|>b", "c\n</s>\nd", "<s>struck</s> out", "6 is <MUL_2_3_6>", "<|endoftext|>", "plain " * 50]
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}) for text in texts * 3))
    meta = test_prepare.prepare(tmp_path / "a.jsonl", tmp_path / "d", "--val_shards", 0)
    assert meta["docs_with_special_texts"] == {"<|endoftext|>": 6, "</s>": 3, "<MUL_": 3}
    assert [get_tokenizer().decode(d) for d in test_prepare.documents_of(tmp_path / "d", "train")] == texts * 3
    assert "WARNING: <|endoftext|> (6 documents), </s>" in capsys.readouterr().out


def test_latin_1_names_its_file(tmp_path):
    """The sentence about bytes that are not UTF-8 names the document and its file."""
    write(tmp_path / "d" / "a.txt", "fine")
    write(tmp_path / "d" / "b.txt", b"caf\xe9")
    message = test_prepare.sentence_of(tmp_path / "d", tmp_path / "out")
    assert "document 1 (counted from 0) is not text or not valid UTF-8, in" in message and "b.txt" in message
    utf16 = ["words of a page".encode(encoding) for encoding in ("utf-16-le", "utf-16-be", "utf-32-le")]
    pq.write_table(pa.table({"text": pa.array([b"fine", *utf16], pa.binary())}), tmp_path / "utf16.parquet")
    message = test_prepare.sentence_of(tmp_path / "utf16.parquet", tmp_path / "out")
    assert "document 1 (counted from 0) is not text or not valid UTF-8, in" in message  # its bytes are UTF-8, too
    table = pa.table({"question": pa.array([b"ok", b"caf\xe9"], pa.binary()), "answer": ["#### 1"] * 2})
    schema = pa.schema([("question", pa.string()), ("answer", pa.string())])
    columns = [pa.Array.from_buffers(pa.string(), 2, table["question"].chunk(0).buffers()), table["answer"].chunk(0)]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), tmp_path / "latin.parquet")
    with pytest.raises(ValueError, match="row 2 is not valid UTF-8"):
        eval_gsm8k.load(tmp_path / "latin.parquet")


@pytest.mark.parametrize("backend", ["tiktoken", "auto"])
def test_half_characters_are_never_tokenised(backend):
    """Texts with a lone surrogate that become tokens, of "?" or U+FFFD: none, from either backend."""
    tokenizer = get_tokenizer(backend)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(ValueError, match="half a character .* at position 2: repair"):
            encode("é \udfff")
    assert tokenizer.decode(tokenizer.encode("é 🙂")) == "é 🙂"


def test_rows_of_the_hub_are_guarded_too(monkeypatch):
    """A disguised question, or half a character, among rows that come from the hub: an error at its record."""
    secret = "How many of the seven purple lanterns were lit when the twelve boats came home last night?"
    table = decontaminate.block_table([decontaminate.question_blocks(secret)])
    monkeypatch.setattr(decontaminate, "gsm8k_test_blocks", lambda: table)
    monkeypatch.setattr(sources, "hub_revision", lambda name: "0123")
    for bad, fault in ((f"**Problem:** {secret}", "holds a question"), ("\ud800", "has half a character")):
        rows = [test_sft.chat("Hi", f"Hello {i}") for i in range(300)] + [test_sft.chat("Hi", "Hello", bad, "5")]
        monkeypatch.setattr(sources, "hub_records", lambda *_, rows=rows: iter(rows))
        with pytest.raises(ValueError, match=f"tulu-3-sft-mixture record 300 {fault}"):
            conversations.load(test_sft.args_of("--eval_every", 0))


def test_programs_about_test_questions(tmp_path, monkeypatch, capsys):
    """Rows of TinyGSM that ask a test question, or hold half a character: dropped, and counted by their reason."""
    secret = "How many of the seven purple lanterns were lit when the twelve boats came home last night?"
    table = decontaminate.block_table([decontaminate.question_blocks(secret)])
    monkeypatch.setattr(decontaminate, "gsm8k_test_blocks", lambda: table)
    code = "def f():\n    a = 2\n    return a * 3"
    rows = [{"question": q, "code": code} for q in ("How many?", f"Q: {secret.upper()}", "Wh\ud800t?")]
    rows.append({"question": "How many?", "code": code.replace("\n", f'\n    """{secret}"""\n', 1)})
    test_sft.write_jsonl(tmp_path / "a.jsonl", rows)
    counts = tinygsm.convert_files([str(tmp_path / "a.jsonl")], tmp_path / "out.jsonl")
    assert counts == {"": 1, "holds a question of GSM8K's test split": 2, "half a character (a lone surrogate)": 1}


# ------------------------------------------------------------------------------------------------------------
# bombs

MEASURED = """
import re, sys, time
from lab import sources
{imports}
started = time.monotonic()
try:
    {code}
except ValueError as error:
    print(error)
print("SECONDS", time.monotonic() - started)
print("PEAK", int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def measured(code, imports=""):
    """(what it prints, seconds, peak in MB) of code in a process of its own."""
    program = MEASURED.format(code=code, imports=imports)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPO, env=ENV)
    assert done.returncode == 0, done.stderr
    text, _, rest = done.stdout.partition("SECONDS")
    return text, float(rest.split()[0]), int(rest.split()[2])


def zip_bomb(path, n_bytes, declared=None):
    """A deflated zip of one jsonl with so many spaces; `declared` writes another size into its headers."""
    options = zipfile.ZIP_DEFLATED, True, 1
    with zipfile.ZipFile(path, "w", *options) as archive, archive.open("a.jsonl", "w") as f:
        for _ in range(n_bytes // 2**20):
            f.write(b" " * 2**20)
    if declared is not None:
        data = path.read_bytes()
        true, false = n_bytes.to_bytes(4, "little"), declared.to_bytes(4, "little")
        path.write_bytes(data.replace(true, false))
    return path


def one_text(path, text, rows):
    """A parquet file with one text in all rows, which it holds once."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows), pa.array([text]))
    pq.write_table(pa.table({"text": column}), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 1e5 and pq.read_schema(path).field("text").type == pa.string()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_bombs(tmp_path):
    """Seconds and memory that small files which unpack to half a gigabyte cost: few, below 500 MB, and a sentence."""
    zip_bomb(tmp_path / "a.zip", 2**29)
    zip_bomb(tmp_path / "liar.zip", 2**29, declared=1000)
    with gzip.open(tmp_path / "spaces.jsonl.gz", "wb", 1) as f:
        f.writelines([b" " * 2**20] * 500)
    with gzip.open(tmp_path / "blank.jsonl.gz", "wb", 1) as f:
        f.writelines([b"\n" * 2**20] * 100)
    row = json.dumps({"question": "How many?", "answer": "#### 1"}).encode() + b"\n"
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(row * 2_000_000))
    one_text(tmp_path / "rows.parquet", "x" * 2**20, 600)
    with gzip.open(tmp_path / "lists.jsonl.gz", "wb", 1) as f:
        f.write(b'{"text": [' + b"[]," * 2**24 + b"0]}")
    benchmark = "for _ in sources.read_benchmark({0!r}): pass"
    for name, code, fault in [
        ("a.zip", "list(sources.read_zip({0!r}, 'NONE'))", "unpacks to 536,870,912 bytes or more"),
        ("liar.zip", "list(sources.read_zip({0!r}, 'NONE'))", "is not a whole zip file"),
        ("spaces.jsonl.gz", "list(sources.read_records({0!r}))", "line 1 of"),
        ("blank.jsonl.gz", "list(sources.read_records({0!r}))", "1,000,001 blank lines in a row"),
        ("lists.jsonl.gz", "print(next(sources.read_records({0!r}))[1])", "more than 1,000,000 lists"),
        ("rows.jsonl.zst", benchmark, "has more than 200,000 rows"), ("rows.parquet", benchmark, "unpacks to"),
    ]:
        path = tmp_path / name
        assert path.stat().st_size < 5e6
        text, seconds, peak = measured(code.format(str(path)))
        assert fault in text and text.count("\n") == 1 and name in text, (name, text)
        assert peak < 400 and seconds < 20, (name, peak, seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_parquet_file_of_one_text(tmp_path):
    """Memory that 600 MB of documents in a file of 100 kB take beside pyarrow's: below 200 MB, as they are one text 300
    times."""
    one_text(tmp_path / "a.parquet", "word " * 400_000, 300)
    code = ("sizes = [list(map(len, batch)) for _, batch in sources.read_batches(source)]; "
            "print(sum(map(len, sizes)), max(map(sum, sizes)))")
    imports = (f"import argparse\nnames = [{str(tmp_path / 'a.parquet')!r}]\nsource = sources.open_source("
               "argparse.Namespace(dataset=names, max_docs=0, split='train', text_field='text', num_proc=1))")
    _, _, before = measured("pass", imports)
    text, _, peak = measured(code, imports)
    assert text.split() == ["300", "2000000"] and peak < before + 200, (before, peak)
