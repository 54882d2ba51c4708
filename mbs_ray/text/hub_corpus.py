"""Corpora that are Hugging Face datasets, streamed through `datasets`.

A unit is one shard of the stream: a row group where the files are parquet (`reshard`), else a whole file:
prefer parquet. `datasets` refuses script datasets; their `refs/convert/parquet` revisions work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mbs_ray.errors import InputError
from mbs_ray.languages.facts import LANGUAGES
from mbs_ray.text.shards import Document, file_digest

PLACE = "{language}"
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
    `data_files` may hold as well.
    """

    dataset: str
    revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    config: str | Mapping[str, str] | None = None
    data_files: str | None = None

    def shards(self, language: str) -> tuple["StreamShard", ...]:
        """The stream of one language, in one shard. InputError names language and dataset."""
        data_files = self.data_files.replace(PLACE, language) if self.data_files else None
        config = self._config(language)
        where = f"language {language!r}: dataset {self.dataset}" + (f"/{config}" if config else "")
        try:
            builder = datasets.load_dataset_builder(
                self.dataset, name=config, revision=self.revision, data_files=data_files
            )
            stream = builder.as_streaming_dataset(split=self.split).reshard()
            first = next(iter(stream), None)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{where}: {_first_line(error)}") from None
        if first is None:
            raise InputError(f"{where}: split {self.split!r} is empty")
        if self.text_column not in first:
            raise InputError(f"{where}: no column {self.text_column!r}; its columns: {', '.join(first)}")
        files = [
            identity
            for split, listed in sorted((builder.config.data_files or {}).items(), key=lambda item: str(item[0]))
            for identity in (str(split), *map(_file_identity, listed), *_origin(listed))
        ]
        identity = (self.dataset, str(self.revision), str(config), self.split, *files)
        name = f"{config or Path(data_files or self.dataset).name}:{self.split}"
        return (StreamShard(name, self.text_column, stream.num_shards, identity, stream),)

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
    name: str
    text_column: str
    unit_count: int
    identity: tuple[str, ...]
    stream: datasets.IterableDataset
    validated_by_reading = False

    def read(self, units: Sequence[int]) -> Iterator[Iterator[Document]]:
        for unit in units:
            yield self._documents(unit)

    def _documents(self, unit: int) -> Iterator[Document]:
        stream = self.stream.shard(num_shards=self.unit_count, index=unit)
        where = f"{self.name}[{unit}]"
        try:
            for row, record in enumerate(stream):
                text = record[self.text_column]
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise InputError(f"{where}: row {row} has no text in column {self.text_column!r}")
                yield Document(f"{where}#{row}", text, len(text.encode()))
        except InputError:
            raise
        except (OSError, LookupError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{where}: cannot be read ({_first_line(error)})") from None


def _file_identity(file: str) -> str:
    """A local file by its content, wherever it lies; a remote one by its address, which holds the commit."""
    path = Path(file)
    return f"{path.name} {file_digest(path)}" if path.is_file() else file


def _origin(files: Any) -> list[str]:
    """Commit or entity tag of each remote file; of a local one it is only the time of modification."""
    origins = getattr(files, "origin_metadata", [])
    return [str(origin) for file, origin in zip(files, origins, strict=False) if not Path(file).is_file()]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
