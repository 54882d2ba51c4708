"""Files and folders that appear whole or not at all, our own JSON files, and digests.

The one rule of unfinished names: ``.NAME.MACHINE.PROCESS.UNIQUE.unfinished`` beside the final NAME. It begins with a
dot and ends in no suffix that any reader looks for, so what a killed writer leaves is never taken for a result; its
unique part is no other's on any host. Machine and process say whose it is, so that only what is dead is cleared up.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError, one_line

UNFINISHED = ".unfinished"
#: Bytes of the final name that an unfinished one repeats; a longer name is repeated as its digest.
_LONGEST_NAME = 100
#: Seconds without a change after which nobody writes an unfinished file of another machine any more. No clocks of two
#: hosts differ by that much, and no writer rests that long.
_ABANDONED = 7 * 24 * 3600.0


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield the unfinished file that the body writes; it becomes ``path``, whole or not at all.

    The folder is made if it is missing. After the body the file is on the disk and replaces an earlier one; if anything
    fails (or is interrupted) it is removed and an earlier one stays. Its suffix says nothing: tell the format to
    a writer that would look there. Permissions are those the writer gives.
    """
    unfinished = _begin(path)
    try:
        yield unfinished
        _flush(unfinished)
        unfinished.replace(path)
    except BaseException:
        _remove(unfinished)
        raise
    _flush_folder(path.parent)


@contextmanager
def appearing_first(path: Path) -> Iterator[Path]:
    """Yield the unfinished file that the body writes; it becomes ``path`` if there is none by then.

    Raises FileExistsError where another was first: of all processes of all hosts that try at once, one succeeds.
    """
    unfinished = _begin(path)
    try:
        yield unfinished
        _flush(unfinished)
        _give_name(unfinished, path)
    finally:
        _remove(unfinished)
    _flush_folder(path.parent)


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """Yield the unfinished folder that the body fills; it becomes ``path`` with all its files, or not at all.

    As :func:`appearing`, but no system call replaces a folder that has files: an earlier one is moved aside and
    removed afterwards, and a process killed just between these two renames leaves none. Expects one writer at a time.
    """
    unfinished = _begin(path)
    try:
        unfinished.mkdir()
        yield unfinished
        for one in unfinished.rglob("*"):
            flush = _flush_folder if one.is_dir() else _flush
            flush(one)
        _flush_folder(unfinished)
        _put_in_place(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise
    _flush_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, indented and with sorted keys, so that the file is there whole or not at all."""
    with appearing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


#: What to do about a file of a run or sweep that is damaged, where nothing better can be said.
ANEW = "remove it, and give the mbs command again that wrote it"


@contextmanager
def own_content(path: Path, cure: str = ANEW) -> Iterator[None]:
    """Turn what the body makes of a cut or damaged file into one :class:`InputError` that names it and its cure."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cut or damaged ({one_line(error)}); {cure}") from error


def read_json(path: Path, cure: str = ANEW) -> Any:
    """Read the object or list in a file. Raises :class:`InputError` with the file and, if it is damaged, the cure."""
    with own_content(path, cure):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict | list):
            raise ValueError("neither an object nor a list")
        return content


def read_json_if_there(path: Path, cure: str = ANEW) -> Any | None:
    """Read as :func:`read_json` does; None where there is no such file."""
    return read_json(path, cure) if path.is_file() else None


#: Bytes of a name that every file system takes.
LONGEST_NAME = 255


def short_name(name: str, ending: str = "", longest: int = LONGEST_NAME) -> str:
    """``name + ending`` as the name of a file of at most so many bytes: a longer one's beginning, and a digest."""
    whole = (name + ending).encode()
    if len(whole) <= longest:
        return name + ending
    tail = f"-{digest(name)}{ending}"
    return name.encode()[: longest - len(tail.encode())].decode(errors="ignore") + tail


def digest(*parts: str) -> str:
    """Hash these texts to 16 hex digits."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hash every byte of a file to the 64 hex digits of SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def machine() -> str:
    """Name whatever has one table of processes: this host since it was started, or this container on it.

    The name of the host, and a digest, as hosts of a cluster may share their names.
    """
    boot = table = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    with suppress(OSError):
        # Containers may share name and boot of their host, but each has a table of processes of its own.
        table = str(Path("/proc/self/ns/pid").stat().st_ino)
    return f"{os.uname().nodename}-{digest(boot, table)[:8]}"


def lives(process: int) -> bool:
    """Check whether this machine has a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _begin(path: Path) -> Path:
    """Return a new unfinished name beside ``path``; what dead writers of ``path`` left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beginning = f".{_shown_name(path)}."
    for one in path.parent.iterdir():
        if one.name.startswith(beginning) and one.name.endswith(UNFINISHED) and _is_left(one, path):
            _remove(one)
    return _unfinished(path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{_ours(path)}{os.getpid()}.{uuid.uuid4().hex}{UNFINISHED}")


def _ours(path: Path) -> str:
    """How all unfinished names of ``path`` begin that processes of this machine give."""
    return f".{_shown_name(path)}.{machine()}."


def _shown_name(path: Path) -> str:
    return path.name if len(os.fsencode(path.name)) <= _LONGEST_NAME else digest(path.name)


def _is_left(unfinished: Path, path: Path) -> bool:
    """Check whether nobody writes an unfinished file of ``path`` any more."""
    ours = _ours(path)
    if unfinished.name.startswith(ours):
        process = unfinished.name.removeprefix(ours).partition(".")[0]
        return process.isdecimal() and not lives(int(process))
    try:
        return time.time() - unfinished.stat().st_mtime > _ABANDONED
    except OSError:
        return False


def _give_name(unfinished: Path, path: Path) -> None:
    """Link a file to a name that must be free, where the file system knows links, or copy it to a new file."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if unfinished.stat().st_nlink == 2:
            return  # NFS asks twice where its first answer was lost: the name is taken, by this very file
        if isinstance(error, FileExistsError):
            raise
        with path.open("xb") as file:
            file.write(unfinished.read_bytes())


def _put_in_place(folder: Path, path: Path) -> None:
    """Rename a folder to ``path``, an earlier one out of its way and back again where that fails."""
    aside = _unfinished(path)
    if path.is_dir() and not path.is_symlink():
        path.rename(aside)
    try:
        folder.rename(path)
    except OSError:
        with suppress(OSError):
            aside.rename(path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    """Remove an unfinished file or folder as far as that works: it must not hide why it is removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    """Have a file's content on the disk before it gets its name: after a loss of power it is whole, too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    """Have a folder's names on the disk, where its file system can do that."""
    with suppress(OSError):
        _flush(path)
