"""The lease of a folder: one command at a time works on it, and every other is told which."""

import getpass
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mbs_ray.errors import InputError, LeaseLostError
from mbs_ray.files import appearing, appearing_first, lives, machine

LEASE = "lease.json"
#: Seconds between two signs of life of an owner.
BEAT_SECONDS = 10.0
#: Seconds without a sign of life after which an owner counts as dead.
SILENT_SECONDS = 120.0
#: Seconds for which a change of owners, which takes a moment, may be under way.
_CHANGING_SECONDS = 10.0


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease: ``started`` is when the process was, by its machine's count; ``since`` in UTC."""

    user: str
    host: str
    machine: str
    process: int
    started: str | None
    since: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def here(cls) -> "Owner":
        """Describe this process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        return cls(_user(), os.uname().nodename, machine(), os.getpid(), _started(os.getpid()), since)

    def __str__(self) -> str:
        return f"{self.user} on {self.host} (process {self.process}), since {self.since} UTC"

    @property
    def is_gone(self) -> bool:
        """Whether this is a process of this machine that has ended; of other machines nothing is known."""
        if self.machine != machine():
            return False
        started = _started(self.process)
        return not lives(self.process) or (started is not None and started != self.started)


class Lease:
    """A lease that this process holds, with a thread that gives signs of life until :meth:`release`."""

    def __init__(self, path: Path, owner: Owner, beat: float = BEAT_SECONDS) -> None:
        self.path, self.owner, self._beat = path, owner, beat
        # Of the file that was made, whatever bears its name later: a sign of life is never given to another's lease.
        self._file = os.open(path, os.O_RDONLY)
        self._lost = ""
        self._looked = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._give_signs, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise :class:`LeaseLostError` where another took over; to be called before something is written."""
        if time.monotonic() - self._looked > 2 * self._beat:
            self._look()  # the process was stopped for a while, and its thread with it
        if self._lost:
            raise LeaseLostError(self._lost)

    def release(self) -> None:
        """End the lease, where it is still this one's."""
        self._over.set()
        self._thread.join(self._beat)  # which a server that is away may hold up
        with suppress(OSError, InputError, _ChangedError), _changing(self.path, self.owner):
            self.path.unlink()

    def _give_signs(self) -> None:
        while not self._over.wait(self._beat) and not self._lost:
            with suppress(OSError):  # a server that is away; what it tells once it is back counts
                os.utime(self._file)
            self._look()
        os.close(self._file)

    def _look(self) -> None:
        try:
            owner = _read(self.path)
        except (OSError, InputError):
            return
        if owner is None:
            self._lost = f"{self.path} is gone: this command no longer owns {self.path.parent} and stops"
        elif owner.token != self.owner.token:
            self._lost = f"{self.path.parent} was taken over by {owner}: this command stops"
        self._looked = time.monotonic()


@contextmanager
def leased(
    folder: Path,
    take_over: bool = False,
    say: Callable[[str], None] = lambda line: None,
    beat: float = BEAT_SECONDS,
    silent: float = SILENT_SECONDS,
) -> Iterator[Lease]:
    """Hold the lease of a folder, which is made where it is missing, and removed again where it stays empty.

    Raises :class:`InputError` with one line where another process holds it. An owner that has ended on this machine
    is replaced, and ``say`` told so; any other only with ``take_over``, and after ``silent`` seconds without a sign of
    life. What bears the lease are calls that are one step for NFS too; clocks of two hosts are never compared.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    path = folder / LEASE
    lease = Lease(path, _take(path, take_over, say, silent), beat)
    try:
        yield lease
    finally:
        lease.release()
        for one in missing:
            with suppress(OSError):
                one.rmdir()


def _take(path: Path, take_over: bool, say: Callable[[str], None], silent: float) -> Owner:
    """Become the owner, or raise :class:`InputError` that says who is."""
    while True:
        own = Owner.here()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with appearing_first(path) as unfinished:
                _write(unfinished, own)
                now = unfinished.stat().st_mtime_ns
            return own
        except FileNotFoundError:
            continue  # another has removed the folder that it had made
        except FileExistsError:
            before = _read(path)
        if before is None:
            continue  # it ended just now
        if not before.is_gone:
            if not take_over:
                raise InputError(_refusal(path, before, now))
            say(f"{path.parent}: held by {before}; watching for {silent:.0f} s whether it lives")
            _refuse_living(path, before, silent)
        with suppress(_ChangedError), _changing(path, before):
            with appearing(path) as unfinished:
                _write(unfinished, own)
            say(f"{path.parent}: taken over from {before}, which is dead")
            return own


def _refusal(path: Path, owner: Owner, now: int) -> str:
    """Say who holds the lease; ``now`` by the clock that also stamps the signs of life, that of the file system."""
    quiet = max(0.0, now - _sign(path)) / 1e9
    return (
        f"{path.parent}: held by {owner}, last sign of life {quiet:.0f} s ago; wait until it ends, or, if it is dead, "
        "give the same command with --take-over"
    )


def _refuse_living(path: Path, owner: Owner, silent: float) -> None:
    """Raise :class:`InputError` where the owner gives a sign of life within ``silent`` seconds."""
    first, end = _sign(path), time.monotonic() + silent
    while time.monotonic() < end and not owner.is_gone:
        time.sleep(min(0.5, silent / 10))
        now = _read(path)
        if now is None or now.token != owner.token:
            return  # it is over, or another's
        if _sign(path) != first:
            raise InputError(f"{path.parent}: held by {owner}, which lives; stop it there, or wait until it ends")


def _sign(path: Path) -> int:
    """Return when the owner last gave a sign of life, by the clock of the file system; 0 where there is no lease."""
    try:
        # Only a file that is opened is sure to be looked at anew on NFS.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


class _ChangedError(Exception):
    """The lease is another by now."""


@contextmanager
def _changing(path: Path, owner: Owner) -> Iterator[None]:
    """Let one process at a time end or replace the lease of this owner. Raises _ChangedError where it is over."""
    gate, end = path.with_name(f".{path.name}.{owner.token}"), time.monotonic() + _CHANGING_SECONDS
    while True:
        try:
            gate.mkdir()
            break
        except FileExistsError:
            if time.monotonic() > end:
                raise InputError(
                    f"{gate}: was left by a command that was killed in a bad moment; remove this folder"
                ) from None
            time.sleep(0.05)
    try:
        now = _read(path)
        if now is None or now.token != owner.token:
            raise _ChangedError
        yield
    finally:
        with suppress(OSError):
            gate.rmdir()


def _write(file: Path, owner: Owner) -> None:
    file.write_text(json.dumps(asdict(owner), indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> Owner | None:
    """Read who holds a lease; None where nobody does."""
    end = time.monotonic() + 1.0
    while True:
        try:
            return Owner(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            # Where the file system has no links it is empty for a moment.
            if time.monotonic() > end:
                raise InputError(f"{path}: is damaged; remove it, if no command works on this folder") from error
            time.sleep(0.05)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _started(process: int) -> str | None:
    """Return when a process was started, in ticks of its machine; empty where it has ended, None where unknown."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no Linux, or processes of others are hidden
        return None
    return "" if fields[0] in "ZX" else fields[19]  # a zombie is dead
