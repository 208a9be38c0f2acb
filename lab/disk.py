"""disk.py owns files that must be whole: checksums, and writes that leave the old content or the new, never half."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path


def sha256_file(path, digest=None):
    """Hex sha256 of a file, read in 8 MiB pieces (hashlib releases the GIL, so threads hash files side by side).

    With `digest`, a hash object, that object is fed and returned instead."""
    running = digest or hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 23):
            running.update(block)
    if digest is not None:
        return digest
    return running.hexdigest()


def fsync_path(path) -> None:
    """Flush a file, or the renames in a folder, to the disk. Some file systems refuse it for folders: ignored there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path):
    """A new file, open for bytes, that takes the place of `path` when the block ends, after it is on the disk.

    If the block or the disk fails, or the machine does, `path` keeps its old content."""
    path = Path(path)
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_whole(path, data: bytes) -> None:
    """Replace a file's content so that it is the old or the new one, also after a kill or a power failure."""
    with replacing(path) as f:
        f.write(data)


def write_json(path, value) -> None:
    """`write_whole` of a value as indented JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())
