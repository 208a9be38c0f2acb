"""disk.py owns files that must be whole: checksums, and writes that leave the old content or the new, never half."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path


def hash_file(path):
    """A sha256 object fed with a file, 8 MiB at a time. hashlib releases the GIL, so threads hash side by side."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 23):
            digest.update(block)
    return digest


def sha256_file(path) -> str:
    """Hex sha256 of a file."""
    return hash_file(path).hexdigest()


def fsync_path(path) -> None:
    """Flush a file, or the renames in a folder, to the disk. A file system may refuse this for folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path):
    """Open a new file for bytes. It is synced and takes the place of `path` when the block ends.

    `path` keeps its old content if the block, the disk or the machine fails. An OSError names a file."""
    path = Path(path)
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException as error:
        tmp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno:
            error.filename = str(path)  # a full disk's error has none
        raise
    fsync_path(path.parent)


def write_whole(path, data: bytes) -> None:
    """Replace a file's content, all of it or nothing."""
    with replacing(path) as f:
        f.write(data)


def write_json(path, value) -> None:
    """Replace a file's content by a value as indented JSON, all of it or nothing."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())
