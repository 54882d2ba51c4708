"""Corpora that are Hugging Face datasets, streamed through `datasets`.

`datasets` finds the files. Those of parquet are then read as in a folder, the text column alone; others through its
stream, in which a unit is a whole file: prefer parquet. It refuses script datasets; their `refs/convert/parquet`
revisions work.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import datasets
import pyarrow as pa
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from datasets.utils.file_utils import xgetsize, xopen

from mbs_ray.errors import InputError
from mbs_ray.files import file_digest
from mbs_ray.languages.facts import LANGUAGES
from mbs_ray.text.conversations import Chat, MalformedConversationError, conversation_text
from mbs_ray.text.file_facts import FactsCache, FileFacts
from mbs_ray.text.footers import FooterReader
from mbs_ray.text.parquet_shard import ParquetShard, row_group_extents
from mbs_ray.text.redaction import without_secrets
from mbs_ray.text.shards import Addressed, Document, Shard, Wanted

PLACE = "{language}"
OPENING_THREADS = 16
#: Files whose text has no more bytes than they have; of all others it is taken to be packed 16 to 1 at most.
PLAIN_SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".tsv")
PACKING = 16
#: What `datasets` and the libraries under it raise for data that they cannot read.
READING_ERRORS = (
    OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, EOFError, pa.ArrowException,
    datasets.exceptions.DatasetsError,
)  # fmt: skip
#: Data sets that need no more than their name: the evaluation text of the paper (arXiv 2404.04748), without its script.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "xlsum": {
        "dataset": "csebuetnlp/xlsum",
        "revision": "refs/convert/parquet",
        "split": "validation",
        "config": {code: language.xlsum for code, language in LANGUAGES.items() if language.xlsum},
    }
}


@dataclass(frozen=True)
class HubCorpus:
    """A dataset by name (or a builder of `datasets` such as "parquet" with `data_files`), streamed.

    `config` names the configuration of each language: a mapping, or a pattern with "{language}", which
    `data_files` may hold as well. With `chat` the column holds the messages of a conversation.
    """

    dataset: str
    revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    config: str | Mapping[str, str] | None = None
    data_files: str | None = None
    chat: Chat | None = None

    def shards(self, language: str, cache: FactsCache, footers: FooterReader) -> tuple[Shard, ...]:
        """Return the files of one language, or one stream of them. InputError names language and dataset."""
        data_files = self.data_files.replace(PLACE, language) if self.data_files else None
        config = self._config(language)
        where = f"language {language!r}: dataset {self.dataset}" + (f"/{config}" if config else "")
        # What errors and the files of segments call its documents.
        name = f"{config or Path(without_secrets(data_files or self.dataset)).name}:{self.split}"
        identity = (self.dataset, str(self.revision), str(config), self.split)
        try:
            builder = datasets.load_dataset_builder(
                self.dataset, name=config, revision=self.revision, data_files=data_files
            )
            files = _files(builder, cache)
            if isinstance(builder.config, ParquetConfig):
                return self._parquet_shards(where, name, identity, files, footers)
            stream = builder.as_streaming_dataset(split=self.split).reshard()
            first = next(iter(stream), None)
        except InputError:
            raise
        except READING_ERRORS as error:
            raise InputError(f"{where}: {_first_line(error)}") from None
        if first is None:
            raise InputError(f"{where}: split {self.split!r} is empty")
        if self.text_column not in first:
            raise InputError(f"{where}: no column {self.text_column!r}; its columns: {', '.join(first)}")
        listed = [one for split in files for one in (split, *(part for file in files[split] for part in file.identity))]
        own = self._of_split(files)
        shard = StreamShard(name, self.text_column, (), (*identity, *listed), stream, self.chat is not None)
        return (replace(shard, extents=_extents(shard, [file.location for file in own])),)

    def _parquet_shards(
        self,
        where: str,
        name: str,
        identity: tuple[str, ...],
        files: Mapping[str, list["_File"]],
        footers: FooterReader,
    ) -> tuple[ParquetShard, ...]:
        """One shard per file, read here: the text column alone, whatever the files hold besides."""
        own = self._of_split(files)
        if not own:
            raise InputError(f"{where}: no split {self.split!r}; there are {', '.join(files)}")

        def opened(number: int) -> ParquetShard:
            location, chat = own[number].location, self.chat is not None
            if Path(location).is_file():
                opener, extents = None, footers.extents(location, self.text_column, chat)
            else:
                opener, extents = _open_remote, row_group_extents(location, self.text_column, _open_remote, chat)
            place = f"{name}[{number}]"
            told = (*identity, *own[number].identity)
            return ParquetShard(place, location, self.text_column, extents, told, opener, chat)

        with ThreadPoolExecutor(OPENING_THREADS) as threads:
            shards = tuple(threads.map(opened, range(len(own))))
        if not any(shard.extents for shard in shards):
            raise InputError(f"{where}: split {self.split!r} is empty")
        return shards

    def _of_split(self, files: Mapping[str, list["_File"]]) -> list["_File"]:
        names = list(files) if self.split == "all" else self.split.split("+")
        return [file for name in names for file in files.get(name, [])]

    def _config(self, language: str) -> str | None:
        if self.config is None:
            return None
        if isinstance(self.config, str):
            return self.config.replace(PLACE, language)
        if language not in self.config:
            raise InputError(
                f"language {language!r}: no config of dataset {self.dataset} is given for it, "
                f"only for {', '.join(self.config)}"
            )
        return self.config[language]


@dataclass(frozen=True)
class StreamShard:
    """A stream of records. A unit, and a part, is what it can be cut into: a file, mostly.

    Every text has as many addresses as bytes and one.
    """

    name: str
    text_column: str
    extents: tuple[int, ...]
    identity: tuple[str, ...]
    stream: datasets.IterableDataset
    chat: bool = False

    @property
    def unit_count(self) -> int:
        return int(self.stream.num_shards)

    def spot_bytes(self, part: int, wanted: int) -> int:
        return self.extents[part]

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        for unit in units:
            yield self._documents(unit)

    def addressed(self, part: int, wanted: Wanted) -> Iterator[Addressed]:
        begin = 0
        for document in self._documents(part):
            end = begin + document.size + 1
            if end > wanted.start:
                yield Addressed(begin, end, document)
            begin = end

    def _documents(self, unit: int) -> Iterator[Document]:
        stream = self.stream.shard(num_shards=self.unit_count, index=unit)
        where = f"{self.name}[{unit}]"
        try:
            for row, record in enumerate(stream):
                text = record[self.text_column]
                if self.chat:
                    if (found := conversation_text(text, self.text_column)) is not None:
                        yield Document(f"{where}#{row}", *found)
                    continue
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise InputError(f"{where}: row {row} has no text in column {self.text_column!r}")
                yield Document(f"{where}#{row}", text, len(text.encode()))
        except InputError:
            raise
        except MalformedConversationError as error:
            raise InputError(f"{where}: row {row} {error}") from None
        except UnicodeEncodeError:
            raise InputError(f"{where}: row {row} holds half of a surrogate pair") from None
        except READING_ERRORS as error:
            raise InputError(
                f"{where}: cannot be read, column {self.text_column!r} or another ({_first_line(error)})"
            ) from None


def _open_remote(location: str) -> BinaryIO:
    return xopen(location, "rb")


class _File(NamedTuple):
    """A file of a dataset: where it lies, and what tells it from others."""

    location: str
    identity: tuple[str, ...]


def _files(builder: datasets.DatasetBuilder, cache: FactsCache) -> dict[str, list[_File]]:
    """Return the files of each split. A local one is known by its content, wherever it lies.

    A remote one by its address, which holds the commit, and by its entity tag.
    """
    found = {}
    for split, listed in sorted((builder.config.data_files or {}).items(), key=lambda item: str(item[0])):
        origins = getattr(listed, "origin_metadata", None) or [""] * len(listed)
        found[str(split)] = [_file(str(file), str(origin), cache) for file, origin in zip(listed, origins, strict=True)]
    return found


def _file(location: str, origin: str, cache: FactsCache) -> _File:
    path = Path(location)
    if not path.is_file():
        return _File(location, (location, origin))
    facts = cache.of(path.absolute(), "bytes", lambda path: FileFacts(file_digest(path), ()))
    return _File(location, (f"{path.name} {facts.digest}",))


def _extents(shard: StreamShard, locations: Sequence[str]) -> tuple[int, ...]:
    """No less than the bytes of text of each unit: a file's size, or counted where that does not tell."""
    if shard.unit_count != len(locations):
        units = range(shard.unit_count)
        return tuple(sum(one.size + 1 for one in shard._documents(unit)) for unit in units)
    packed = [1 if Path(location).suffix in PLAIN_SUFFIXES else PACKING for location in locations]
    return tuple((xgetsize(file) + 1) * factor for file, factor in zip(locations, packed, strict=True))


def _first_line(error: BaseException) -> str:
    return without_secrets(str(error).strip().partition("\n")[0])
