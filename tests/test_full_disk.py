"""What is said where a disk is full, and where it is not: a sentence, with the remedy of that error, and nothing half
written."""

import errno
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError

from lab import disk, hf, run_list, runs

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
ADVICE = [(errno.ENOSPC, "free space"), (errno.EDQUOT, "free space"), (errno.EACCES, "give this user access to it"),
          (errno.EPERM, "give this user access to it"), (errno.EROFS, "mount it for writing"),
          (errno.EFBIG, r"allow larger files \(ulimit -f\)"), (errno.EIO, "repair what is named there")]


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


def save_on(folder, write):
    (folder / "ckpt").mkdir()
    with pytest.raises(ValueError) as caught:
        runs.save_checkpoint(folder, 4, write, 0, 1)
    assert list((folder / "ckpt").iterdir()) == []
    return str(caught.value)


@needs_full
def test_torch_on_a_full_disk(tmp_path):
    """Words of torch's own zip writer, "enforce fail at inline_container.cc:664", in the sentence: none."""

    def write(folder):
        (folder / "optimizer.pt").symlink_to("/dev/full")
        torch.save({"m": torch.zeros(100_000)}, folder / "optimizer.pt")

    final = tmp_path / "ckpt" / "step_000004"
    said = save_on(tmp_path, write)
    assert said == f"{final} cannot be saved (the disk did not take all of it): free space, then --resume auto."


@pytest.mark.parametrize("error, words", [
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
     "(No space left on device): free space"),
    (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470"),
     "(the disk did not take all of it): free space"),
    (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
     "(the disk did not take all of it): free space"),
    (PermissionError(errno.EACCES, "Permission denied"), "(Permission denied): give this user access to it"),
    (OSError(errno.EIO, "Input/output error"), "(Input/output error): repair what is named there")])
def test_every_error_of_a_save_has_its_remedy(tmp_path, error, words):
    """"free space" for a folder that may not be written, or a disk that is broken: no."""

    def write(folder):
        raise error

    assert save_on(tmp_path, write).endswith(f"cannot be saved {words}, then --resume auto.")


@pytest.mark.parametrize("code, remedy", ADVICE)
def test_free_space_is_said_of_a_full_disk_alone(tmp_path, monkeypatch, code, remedy):
    """A run's records, a new run, the page of --watch, and an export to Hugging Face."""
    reason = os.strerror(code)
    with pytest.raises(ValueError, match=rf"x.json cannot be written \({reason}\): {remedy}, then run the same"):
        with runs.recording(tmp_path / "x.json"):
            failing(code)()
    with mock.patch.object(disk, "write_whole", failing(code)):
        with pytest.raises(ValueError, match=rf"r cannot be written \({reason}\): {remedy}, or pass another --out_dir"):
            runs.create_run(tmp_path / "r", {"code": {"git_diff": ""}})
        with pytest.raises(ValueError, match=rf"live cannot be written \({reason}\): {remedy}, or choose another"):
            run_list.write_page(tmp_path / "live" / "index.html", b"")
    with pytest.raises(ValueError, match=rf"h cannot be written \({reason}\); {remedy}, or choose another folder"):
        with hf.made_whole(tmp_path / "h"):
            failing(code)()
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("code, remedy", ADVICE)
def test_a_folder_that_cannot_be_held(tmp_path, monkeypatch, code, remedy):
    """A full disk at the very start, where the first bytes are those of .lock: it was "[Errno 28]" and no advice."""
    monkeypatch.setattr(os, "pwrite", failing(code))
    reason = os.strerror(code)
    with pytest.raises(ValueError, match=rf".lock cannot be written \({reason}\): {remedy}, or choose another folder"):
        with disk.hold(tmp_path / "r"):
            pass
    assert not (tmp_path / "r").exists()


def test_the_reason_of_a_copied_folder(tmp_path):
    """shutil.copytree's error is a list; what of it is said is the first file's."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")

    def fail(source, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=fail)
    assert disk.reason_of(caught.value, named=True) == f"No space left on device: '{tmp_path / 'a' / 'x'}'"
    assert disk.remedy_of(caught.value) == "free space"
