"""Where the text of each language is read from, checked before anything runs."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.languages.codes import check_code
from mbs_ray.languages.facts import table_order
from mbs_ray.text.hub_corpus import KNOWN, HubCorpus
from mbs_ray.text.parquet_shard import ParquetShard
from mbs_ray.text.shards import Shard
from mbs_ray.text.text_shard import TextShard

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
Location = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class FolderCorpus:
    """A folder of `<language>` + one of SUFFIXES, or of folders `<language>` of such files."""

    folder: str
    text_column: str = "text"

    def shards(self, language: str) -> tuple[Shard, ...]:
        """The files of one language, by name. InputError for none, an empty or a malformed one."""
        opened = tuple(self._open(path) for path in self.files(language))
        if not any(shard.unit_count for shard in opened):
            raise InputError(f"{Path(self.folder) / opened[0].name}: no rows of language {language!r}")
        return opened

    def files(self, language: str) -> list[Path]:
        """The files of one language, by name. InputError for none, and for one that stands there twice."""
        folder = Path(self.folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of a corpus")
        found = [path for suffix in SUFFIXES if (path := folder / f"{language}{suffix}").is_file()]
        if (folder / language).is_dir():
            found.append(folder / language)
        if len(found) > 1:
            raise InputError(f"language {language!r}: both {found[0].name} and {found[1].name} in {folder}, keep one")
        if not found:
            raise InputError(f"language {language!r}: no file in {folder}; languages there: {_languages_in(folder)}")
        if found[0].is_file():
            return found
        files = sorted(path for path in found[0].iterdir() if not path.name.startswith((".", "_")))
        for path in files:
            if not path.name.endswith(SUFFIXES):
                raise InputError(f"{path}: not one of {', '.join(SUFFIXES)}")
        if not files:
            raise InputError(f"language {language!r}: no file in {found[0]}")
        return files

    def _open(self, path: Path) -> Shard:
        name = path.relative_to(self.folder).as_posix()
        try:
            if path.stat().st_size == 0:
                raise InputError(f"{path}: the file is empty")
            if path.suffix == ".parquet":
                return ParquetShard.open(path.absolute(), name, self.text_column)
            return TextShard.open(path.absolute(), name, None if path.suffix == ".txt" else self.text_column)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Corpus:
    """The opened shards of each language; its units are numbered over its shards, in their order."""

    shards: Mapping[str, tuple[Shard, ...]]

    @property
    def identity(self) -> dict[str, list[tuple[str, ...]]]:
        """What the text is, in JSON's types; moving the corpus elsewhere does not change it."""
        return {language: [shard.identity for shard in shards] for language, shards in self.shards.items()}

    def unit_count(self, language: str) -> int:
        return sum(shard.unit_count for shard in self.shards[language])

    def locate(self, language: str, unit: int) -> tuple[int, int]:
        """(shard, unit in that shard) of a unit of the language."""
        for position, shard in enumerate(self.shards[language]):
            if unit < shard.unit_count:
                return position, unit
            unit -= shard.unit_count
        raise IndexError(unit)

    def validate(self, language: str, units: Iterable[int]) -> None:
        """Reads these units where only that shows whether they are well-formed. InputError if not."""
        located = sorted(self.locate(language, unit) for unit in units)
        for position, group in groupby(located, key=lambda place: place[0]):
            shard = self.shards[language][position]
            if shard.validated_by_reading:
                for documents in shard.read([unit for _, unit in group]):
                    for _ in documents:
                        pass


def parse_location(location: Location) -> FolderCorpus | HubCorpus:
    """A corpus from a folder's path, or a mapping with `folder` or `dataset` and the fields of its kind.

    A data set of `KNOWN` needs its name only; what is given besides counts.
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
    if kinds[0] is HubCorpus and location["dataset"] in KNOWN:
        own = {name: value for name, value in location.items() if name != "dataset"}
        return HubCorpus(**{**KNOWN[location["dataset"]], **own})
    return kinds[0](**location)


def require_languages(location: Location, languages: Iterable[str]) -> None:
    """Raise :class:`InputError` for a language that a folder has no file of, without reading any.

    For what comes before long work; a data set says so once it is opened.
    """
    source = parse_location(location)
    for language in languages:
        if isinstance(source, FolderCorpus):
            source.files(check_code(language))


def open_corpus(location: Location, languages: Iterable[str]) -> Corpus:
    """Opens the shards of these languages, in this process. InputError for what is missing or broken."""
    source = parse_location(location)
    # A code stands in the names of files: one such as "../x" would lead out of the folder.
    codes = table_order(check_code(language) for language in languages)
    corpus = Corpus({language: source.shards(language) for language in codes})
    first_with: dict[object, str] = {}
    for language, identity in corpus.identity.items():
        other = first_with.setdefault(tuple(identity), language)
        if other != language:
            raise InputError(
                f"languages {other!r} and {language!r} read the same text: "
                "give the data set's 'config' or 'data_files' for each language"
            )
    return corpus


def _check_configs(configs: Mapping[Any, Any]) -> None:
    for language, config in configs.items():
        check_code(language, "corpus.config")
        if not isinstance(config, str):
            raise InputError(f"corpus: field 'config.{language}' must be a text, not {config!r}")


def _languages_in(folder: Path) -> str:
    names = {
        path.name.removesuffix(suffix)
        for path in folder.iterdir()
        for suffix in SUFFIXES
        if path.is_dir() or path.name.endswith(suffix)
    }
    return ", ".join(table_order(name for name in names if not name.startswith("."))) or "none"
