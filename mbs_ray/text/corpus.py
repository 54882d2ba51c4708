"""Where the text of each language is read from, checked before anything runs."""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from mbs_ray.errors import InputError
from mbs_ray.files import file_digest
from mbs_ray.languages.codes import check_code
from mbs_ray.languages.facts import table_order
from mbs_ray.text.conversations import CHATS, MESSAGES, Chat
from mbs_ray.text.file_facts import FactsCache, FileFacts
from mbs_ray.text.footers import FooterReader
from mbs_ray.text.hub_corpus import KNOWN, OPENING_THREADS, HubCorpus
from mbs_ray.text.parquet_shard import ParquetShard
from mbs_ray.text.shards import Shard
from mbs_ray.text.text_shard import TextShard

COMPRESSED = ("", ".gz", ".zst")
JSON_LINES = tuple(f"{kind}{compressed}" for kind in (".jsonl", ".json") for compressed in COMPRESSED)
SUFFIXES = (".parquet", *JSON_LINES, ".txt")
Location = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class FolderCorpus:
    """A folder of `<language>` + one of SUFFIXES, or of folders `<language>`, or so named, of such files.

    With `chat` the column holds the messages of a conversation.
    """

    folder: str
    text_column: str = "text"
    chat: Chat | None = None

    def shards(self, language: str, cache: FactsCache, footers: FooterReader) -> tuple[Shard, ...]:
        """Return the files of one language that hold something, by name. InputError for none, or a malformed one."""
        try:
            files = self.files(language)
            full = [path for path in files if path.stat().st_size]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
        if not full:
            raise InputError(f"{files[0]}: the file is empty")
        with ThreadPoolExecutor(OPENING_THREADS) as threads:
            opened = tuple(threads.map(lambda path: self._open(path, cache, footers), full))
        if not any(shard.unit_count for shard in opened):
            raise InputError(f"{full[0]}: no rows of language {language!r}")
        return opened

    def files(self, language: str) -> list[Path]:
        """Return the files of one language, by name. InputError for none, and for one that stands there twice."""
        try:
            return self._files(Path(self.folder), language)
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def _files(self, folder: Path, language: str) -> list[Path]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of a corpus")
        found = [path for suffix in ("", *SUFFIXES) if (path := folder / f"{language}{suffix}").exists()]
        if len(found) > 1:
            raise InputError(f"language {language!r}: both {found[0].name} and {found[1].name} in {folder}, keep one")
        if not found or (found == [folder / language] and not found[0].is_dir()):
            raise InputError(f"language {language!r}: no file in {folder}; languages there: {_languages_in(folder)}")
        if found[0].is_file():
            return found
        # What Spark and editors leave beside the shards: _SUCCESS, .part-00000.crc
        files = sorted(path for path in found[0].iterdir() if not path.name.startswith((".", "_")))
        for path in files:
            if not path.name.endswith(SUFFIXES) or path.is_dir():
                raise InputError(f"{path}: not one of {', '.join(SUFFIXES)}")
        if not files:
            raise InputError(f"language {language!r}: no file in {found[0]}")
        return files

    def _open(self, path: Path, cache: FactsCache, footers: FooterReader) -> Shard:
        name, path = path.relative_to(self.folder).as_posix(), path.absolute()
        try:
            column, chat = self.text_column, self.chat is not None
            if chat and path.suffix == ".txt":
                raise InputError(f"{path}: plain text holds no messages; a chat corpus is of parquet or JSON lines")
            if path.suffix != ".parquet":
                return TextShard.open(path, name, None if path.suffix == ".txt" else column, cache, chat)
            facts = cache.of(
                path,
                f"parquet {'messages ' if chat else ''}{column}",
                lambda path: FileFacts(
                    file_digest(path), tuple((0, extent) for extent in footers.extents(str(path), column, chat))
                ),
            )
            identity = (name, str(path.stat().st_size), facts.digest)
            extents = tuple(extent for _, extent in facts.parts)
            return ParquetShard(name, str(path), column, extents, identity, chat=chat)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None


class Place(NamedTuple):
    """A unit or a part of a language as the shard knows it: number of the shard, number in the shard."""

    shard: int
    number: int


@dataclass(frozen=True)
class Corpus:
    """The opened shards of each language; its units, and its parts, are numbered over its shards, in their order."""

    shards: Mapping[str, tuple[Shard, ...]]

    @property
    def identity(self) -> dict[str, list[tuple[str, ...]]]:
        """What the text is, in JSON's types; moving the corpus elsewhere does not change it."""
        return {language: [shard.identity for shard in shards] for language, shards in self.shards.items()}

    def units(self, language: str) -> list[Place]:
        shards = enumerate(self.shards[language])
        return [Place(number, unit) for number, shard in shards for unit in range(shard.unit_count)]

    def extents(self, language: str) -> list[int]:
        """Of each part; see :class:`~mbs_ray.text.shards.Shard`."""
        return [extent for shard in self.shards[language] for extent in shard.extents]


class OpenedCorpora:
    """Opens every corpus once, language by language, however often a command asks for it.

    What was found of its files is kept under `cache` for the next command, if that is given.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = FactsCache(cache)
        self._shards: dict[tuple[str, str], tuple[Shard, ...]] = {}

    def open(self, location: Location, languages: Iterable[str]) -> Corpus:
        """Return the shards of these languages, opened in this process. InputError for what is missing or broken."""
        source = parse_location(location)
        # A code stands in the names of files: one such as "../x" would lead out of the folder.
        codes = table_order(check_code(language) for language in languages)
        with FooterReader() as footers:
            corpus = Corpus({language: self._opened(source, language, footers) for language in codes})
        self._cache.save()
        first_with: dict[object, str] = {}
        for language, identity in corpus.identity.items():
            other = first_with.setdefault(tuple(identity), language)
            if other != language:
                raise InputError(
                    f"languages {other!r} and {language!r} read the same text: "
                    "give the data set's 'config' or 'data_files' for each language"
                )
        return corpus

    def _opened(self, source: FolderCorpus | HubCorpus, language: str, footers: FooterReader) -> tuple[Shard, ...]:
        key = (repr(source), language)
        if key not in self._shards:
            self._shards[key] = source.shards(language, self._cache, footers)
        return self._shards[key]


def open_corpus(location: Location, languages: Iterable[str]) -> Corpus:
    """As :meth:`OpenedCorpora.open`, keeping nothing."""
    return OpenedCorpora().open(location, languages)


def parse_location(location: Location) -> FolderCorpus | HubCorpus:
    """A corpus from a folder's path, or a mapping with `folder` or `dataset` and the fields of its kind.

    A data set of `KNOWN` needs its name only; what is given besides counts. With `chat` the column is `messages`, where
    no `text_column` is given.
    """
    if not isinstance(location, Mapping):
        return FolderCorpus(os.fspath(location))
    kinds = [kind for kind in (FolderCorpus, HubCorpus) if fields(kind)[0].name in location]
    if len(kinds) != 1:
        raise InputError("corpus: give a folder's path, or a mapping with either 'folder' or 'dataset'")
    known = [field.name for field in fields(kinds[0])]
    for field, value in location.items():
        if field not in known:
            raise InputError(f"corpus: unknown field {field!r}; its fields: {', '.join(known)}")
        if field == "config" and isinstance(value, Mapping):
            _check_configs(value)
        elif not isinstance(value, str):
            raise InputError(f"corpus: field {field!r} must be a text, not {value!r}")
        if field == "chat" and value not in CHATS:
            raise InputError(f"corpus: chat {value!r}: there are {' and '.join(CHATS)}")
    if "chat" in location:
        location = {"text_column": MESSAGES, **location}
    if kinds[0] is HubCorpus and location["dataset"] in KNOWN:
        own = {name: value for name, value in location.items() if name != "dataset"}
        return HubCorpus(**{**KNOWN[location["dataset"]], **own})
    return kinds[0](**location)


def _languages_in(folder: Path) -> str:
    names = set()
    for path in folder.iterdir():
        suffix = max((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), key=len, default="")
        if suffix or path.is_dir():
            names.add(path.name.removesuffix(suffix))
    return ", ".join(table_order(name for name in names if not name.startswith("."))) or "none"


def require_languages(location: Location, languages: Iterable[str]) -> None:
    """Raise :class:`InputError` for a language that a folder has no file of, without reading any.

    For what comes before long work; a data set says so once it is opened.
    """
    source = parse_location(location)
    for language in languages:
        if isinstance(source, FolderCorpus):
            source.files(check_code(language))


def _check_configs(configs: Mapping[Any, Any]) -> None:
    for language, config in configs.items():
        check_code(language, "corpus.config")
        if not isinstance(config, str):
            raise InputError(f"corpus: field 'config.{language}' must be a text, not {config!r}")
