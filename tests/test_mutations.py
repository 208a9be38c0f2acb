"""Damaged files of every kind that is read: experiments/bench/mutations.py on a few of each."""

import sys

import pytest
from conftest import REPO


@pytest.fixture(scope="module")
def mutations():
    sys.path.insert(0, str(REPO / "experiments" / "bench"))
    import mutations

    yield mutations
    sys.path.remove(str(REPO / "experiments" / "bench"))


def test_damaged_files_are_sentences(mutations, capsys):
    """Tracebacks, and changed contents that a checksum stands for and that are accepted, among 60 damaged files."""
    status = mutations.main(["--files", "60", "--seed", "7", "--show", "--check"])
    assert status == 0, capsys.readouterr().out
