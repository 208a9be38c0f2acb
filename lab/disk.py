"""disk.py owns files that must be whole: checksums, and writes that leave the old content or the new, never half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
import zipfile
from pathlib import Path

import numpy as np


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


def why_no_folder(path, error: OSError) -> str:
    """Why a folder could not be made: the system's own words for a file in its place or above it confuse."""
    places = (Path(path), *Path(path).absolute().parents)
    place = next(filter(os.path.lexists, places))
    if os.path.isdir(place):
        return error.strerror
    return f"{place} is no folder"


def make_folder(path, flag: str) -> None:
    """Make a folder for results before the work that fills it. ValueError, naming `flag`, when it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be made ({why_no_folder(path, error)}): name another.") from None


def refuse_undecoded(path, flag: str) -> None:
    """ValueError, naming `flag`, for a path that is not UTF-8: safetensors writes such a file and cannot read it."""
    path = str(Path(path).absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{flag} {path!a} is not UTF-8: choose another.") from None


def refuse_bomb(archive: zipfile.ZipFile) -> None:
    """ValueError for a zip or .npz whose files would take far more memory than it takes on disk."""
    unpacked = sum(member.file_size for member in archive.infolist())
    packed = os.path.getsize(archive.filename)
    if unpacked > max(2**28, 200 * packed):
        raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,}")


def read_npz(path: Path, names, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of a .npz by name. ValueError when it is missing or damaged."""
    try:
        with np.load(path) as arrays:
            refuse_bomb(arrays.zip)
            return {name: arrays[name] for name in names}
    except Exception as error:  # zipfile, zlib and numpy have many for a damaged file
        raise ValueError(f"{path} is missing or damaged ({error}): {remedy}.") from error


@contextlib.contextmanager
def replacing(path, tmp=None):
    """Open a new file for bytes. It is synced and takes the place of `path` when the block ends.

    `path` keeps its old content if the block, the disk or the machine fails. An OSError names a file. tmp: the new
    file's name until then, another in each process where several may write it (default: path.tmp)."""
    path = Path(path)
    tmp = Path(tmp or path.with_name(path.name + ".tmp"))
    try:
        tmp.unlink(missing_ok=True)  # of a killed process, or a link
        with open(tmp, "xb") as f:
            yield f
            f.flush()
            with contextlib.suppress(OSError):  # there is none yet, or its rights are not ours to give
                os.chmod(tmp, stat.S_IMODE(os.stat(path).st_mode))
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException as error:
        tmp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno:
            error.filename = str(path)  # a full disk's error has none
        raise
    fsync_path(path.parent)


def share(path) -> None:
    """Give a file the permissions of any new one: safetensors writes files that only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def write_whole(path, data: bytes) -> None:
    """Replace a file's content, all of it or nothing."""
    with replacing(path) as f:
        f.write(data)


def write_json(path, value) -> None:
    """Replace a file's content by a value as indented JSON, all of it or nothing."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


REMEDIES = {
    errno.ENOSPC: "free space", errno.EDQUOT: "free space", errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EACCES: "give this user access to it", errno.EPERM: "give this user access to it",
    errno.EROFS: "mount it for writing"}
TORCH_WRITER = ("inline_container", "PytorchStreamWriter")  # in what torch.save says when a write came to nothing


def is_of_torch(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in TORCH_WRITER)


def code_of(error: BaseException) -> int | None:
    """The errno behind an error: its own, or the one that its text tells of, as the errors of safetensors and
    shutil.copytree do. torch's tell of none: of a file that was just made, that is a full disk."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if is_of_torch(error):
        return getattr(error.__context__, "errno", None) or errno.ENOSPC
    for code in REMEDIES:
        if os.strerror(code) in str(error):
            return code
    return None


def reason_of(error: BaseException, named: bool = False) -> str:
    """Why something could not be written, in the words of the system where it has some. named: with the file that an
    OSError names."""
    if is_of_torch(error):
        return "the disk did not take all of it"
    code, reason = code_of(error), str(error)
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # (source, copy, reason) of each file
        reason = str(error.args[0][0][2])
    elif isinstance(error, OSError) and not named:
        reason = error.strerror or reason
    elif code and not isinstance(error, OSError):
        reason = os.strerror(code)
    return re.sub(r"^\[Errno \d+\] ", "", reason.strip().rstrip("."))


def remedy_of(error: BaseException) -> str:
    """What to do about an error of writing, as the beginning of an advice: only a full disk needs space."""
    return REMEDIES.get(code_of(error), "repair what is named there")


FILE_MANAGERS = {".DS_Store", ".directory"}  # what they leave in a folder that was only looked at


def holds_only(folder, own: dict) -> bool:
    """Whether every file below a folder is one of own {its path in the folder: its bytes, None for any}, or the
    beginning of one, as a kill leaves it; no link is. What a file manager leaves there does not count."""
    folder = Path(folder)
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or name in own or path.name in FILE_MANAGERS):
            return False
        if own.get(name) is not None and not own[name].startswith(path.read_bytes()):
            return False
    return True


def append_line(path, line: bytes) -> None:
    """Append a line to a file, at the start of a line, and sync it."""
    with open(path, "ab+", buffering=0) as f:
        f.seek(0, os.SEEK_END)
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) not in (b"\n", b"\r"):
                line = b"\r\n" + line
        while line:
            line = line[f.write(line) :]
        os.fsync(f.fileno())


@contextlib.contextmanager
def locked(path):
    """Be the only process that rewrites a file until the block ends; others wait.

    The lock is <path>.lock. It goes before it is unlocked, and whoever then gets it asks again, as the next would lock
    a new file. The kernel ends the lock of a process that dies."""
    if os.name != "posix":
        yield
        return
    import fcntl

    lock = Path(f"{path}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(lock)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def hold(folder):
    """Make a folder if it is missing, and be the only process that writes into it until the block ends.

    <folder>/.lock says who holds it: pid, host, since when. The kernel ends the lock with its process, so that a dead
    one of this host holds nothing; the word of another host stands, as not every file system locks across hosts. A
    folder that was made here and stayed empty is removed. ValueError, in one sentence, when it cannot be held. Where
    there are no such locks (Windows), the folder is only made."""
    folder = Path(folder)
    if os.name != "posix":
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    import fcntl

    path, is_new = folder / ".lock", not folder.exists()
    me = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    until = time.monotonic() + 5
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and time.monotonic() < until:
                time.sleep(0.01)
                continue  # the process that had made the folder is removing it
            why = f"{path}: {error.strerror}"
            if not folder.is_dir():
                why = why_no_folder(folder, error)
            raise ValueError(f"{folder} is not writable ({why}): choose another --out_dir.") from error
        is_free, is_there, words, state = True, True, b"no lock", os.fstat(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(state, os.lstat(path))
        except FileNotFoundError:  # the one before has removed it
            is_there = False
        except BlockingIOError:
            is_free = False
        except OSError:  # no locks on this file system: only the words count
            pass
        if stat.S_ISREG(state.st_mode) and state.st_nlink < 2:
            words = os.read(lock, 4096)
        if is_there and (words or is_free or time.monotonic() > until):
            break
        os.close(lock)
        time.sleep(0.01)  # who has just locked it is about to write who it is
    try:
        holder = me
        if words:  # none: killed before it wrote them
            holder = _who(words)
        if holder is None:
            raise ValueError(f"{path} was not written by this lab: delete it, or choose another folder.")
        fault = "{} is held by process {pid} on {host} since {since}".format(folder, **holder)
        if not is_free:
            raise ValueError(f"{fault}: wait until it has ended, or choose another folder.")
        if holder["host"] != me["host"]:
            raise ValueError(f"{fault}: wait until it has ended or, if it is gone, delete {path}.")
        try:
            try:
                os.ftruncate(lock, 0)
                os.pwrite(lock, json.dumps(me).encode(), 0)
            except OSError as error:
                why, remedy = reason_of(error), remedy_of(error)
                raise ValueError(f"{path} cannot be written ({why}): {remedy}, or choose another folder.") from error
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock ends, so that who gets it then finds it gone
    finally:
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def holder(folder) -> tuple[str, dict]:
    """Whether a process holds a folder, by hold's .lock: (state, {"pid", "host", "since"}, or {} where not known).

    free: no lock. held: by a living process of this host. dead: its process has ended without giving it back. unknown:
    of another host, or not readable. Nobody waits for this look: only where a pid lives on as another process the
    kernel is asked for the lock, and it is shared and given back at once."""
    try:
        lock = os.open(Path(folder) / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return "free", {}
    except (OSError, AttributeError):  # Windows has neither such locks nor O_NOFOLLOW
        return "unknown", {}
    try:
        who = None
        with contextlib.suppress(OSError):
            who = _who(os.read(lock, 4096))
        if who is None:
            return "unknown", {}
        if who["host"] != platform.node():
            return "unknown", who
        return ("held" if _is_held(lock, who["pid"]) else "dead"), who
    finally:
        os.close(lock)


def _who(words: bytes) -> dict | None:
    """{"pid", "host", "since"} as hold() writes them into a .lock; None for anything else."""
    with contextlib.suppress(ValueError, RecursionError):
        who = json.loads(words)
        if isinstance(who, dict) and who.keys() == {"pid", "host", "since"} and type(who["pid"]) is int:
            return who
    return None


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # it lives, as another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _is_held(lock: int, pid: int) -> bool:
    import fcntl

    if not is_alive(pid):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or this file system has no locks, and the pid's word stands
        return True
    return False
