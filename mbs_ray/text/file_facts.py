"""What is known of a corpus file once its bytes were read: a digest of all of them, kept for the next command."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mbs_ray.files import appearing

#: A file this new may be written again without another time of change: nothing is kept of it.
SETTLED_SECONDS = 2.0

log = logging.getLogger(__name__)


class FileFacts(NamedTuple):
    """Hex SHA-256 of a file's bytes; of each part its offset in the file and its extent.

    See :class:`~mbs_ray.text.shards.Shard`; an offset is 0 where the format finds its parts by itself.
    """

    digest: str
    parts: tuple[tuple[int, int], ...]


class FactsCache:
    """Facts of files by path, size and time of change, in one JSON file per corpus folder under ``folder``.

    A file moved or copied is read once more and has the same digest. Without a folder facts are only kept for this
    process. Safe to ask from several threads.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[Path, dict[str, Any]] = {}
        self._changed: set[Path] = set()

    def of(self, path: Path, key: str, measure: Callable[[Path], FileFacts]) -> FileFacts:
        """What was found of the file before, or ``measure`` finds now; ``key`` says what else the facts depend on."""
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        name = f"{path.name}\n{key}"
        with self._lock:
            known = self._of_folder(path.parent).get(name)
        match known:
            case {"state": found, "digest": str(digest), "parts": list(parts)} if found == state:
                return FileFacts(digest, tuple((offset, extent) for offset, extent in parts))
        facts = measure(path)
        if time.time() - status.st_mtime > SETTLED_SECONDS:
            with self._lock:
                self._known[path.parent][name] = {"state": state, "digest": facts.digest, "parts": list(facts.parts)}
                self._changed.add(path.parent)
        return facts

    def save(self) -> None:
        """Write what was found since the last time. Where that fails the files are only read again another time."""
        if self._folder is None:
            return
        with self._lock:
            changed, self._changed = self._changed, set()
        for parent in sorted(changed):
            stored = self._stored(self._folder, parent)
            try:
                with appearing(stored) as unfinished:
                    unfinished.write_text(json.dumps(self._known[parent]))
            except OSError as error:
                log.warning("%s: cannot be written (%s); the corpus is read again by the next command", stored, error)

    def _of_folder(self, parent: Path) -> dict[str, Any]:
        if parent not in self._known:
            self._known[parent] = {}
            if self._folder is not None and (stored := self._stored(self._folder, parent)).is_file():
                try:
                    content = json.loads(stored.read_text())
                except (OSError, ValueError):
                    content = None
                self._known[parent] = content if isinstance(content, dict) else {}
        return self._known[parent]

    @staticmethod
    def _stored(folder: Path, parent: Path) -> Path:
        return folder / "corpora" / f"{hashlib.sha256(str(parent).encode()).hexdigest()[:24]}.json"
