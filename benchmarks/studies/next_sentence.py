"""``python -m benchmarks.studies.next_sentence FOLDER``: two tasks in five languages, from the package's parallel text.

``next_sentence``: a document up to a sentence, and which of four sentences is the next. ``sentence_end``: a document up
to the middle of a sentence, and which of four endings it has. The wrong answers come from other documents, from
sentences in the same place (last, or not), those nearest in length. Question n is the same in every language, wrong
answers included. FOLDER then goes to ``mbs evaluate SWEEP --tasks next_sentence,sentence_end --include-path FOLDER``.
"""

import argparse
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

#: English of a third of BLOOM's training text, and four that lose much, in scripts of their own and in Latin.
LANGUAGES = ("en", "hi", "ta", "ur", "sw")
NEXT, END = "next_sentence", "sentence_end"
WRONG, SEED = 3, 0
#: A full stop of any of the scripts, quotation marks that close with it, and the space before the next sentence.
_STOP = re.compile(r"(?<=[.!?।۔؟])([\"”’»]*)\s+")

#: Language → text of it.
Parallel = Mapping[str, str]


@dataclass(frozen=True)
class Piece:
    """What a question asks for: the text of a place in a document, and all that comes before it there."""

    document: int
    last: bool
    before: Parallel
    text: Parallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, questions in write_tasks(folder).items():
        print(f"{name}: {questions} questions in each of {', '.join(LANGUAGES)}")


def write_tasks(folder: Path, languages: Sequence[str] = LANGUAGES) -> dict[str, int]:
    """Write data and task files of both tasks, a task per language and a group of all; count the questions of each."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = parallel_documents(languages)
    counts = {}
    for name, pieces in {NEXT: list(sentences(texts)), END: list(sentence_ends(texts))}.items():
        asked = questions(pieces)
        counts[name] = len(asked)
        for language in languages:
            data = folder / f"{name}_{language}.jsonl"
            lines = [json.dumps(one[language], ensure_ascii=False) + "\n" for one in asked]
            data.write_text("".join(lines), encoding="utf-8")
            _write_yaml(folder / f"{name}_{language}.yaml", _task(f"{name}_{language}", data))
        group = {"group": name, "task": [f"{name}_{language}" for language in languages]}
        _write_yaml(folder / f"{name}.yaml", group)
    return counts


def parallel_documents(languages: Sequence[str]) -> list[list[Parallel]]:
    """Read the evaluation text: documents of sentences. Raises ValueError where languages differ in their number."""
    folder = files("mbs_ray") / "mini" / "text" / "evaluation"
    split = {}
    for language in languages:
        whole = (folder / f"{language}.txt").read_text(encoding="utf-8")
        documents = [one.strip() for one in whole.split("\n\n") if one.strip()]
        split[language] = [_STOP.sub(r"\1\n", one).split("\n") for one in documents]
    if len({tuple(len(document) for document in own) for own in split.values()}) != 1:
        raise ValueError(f"{', '.join(languages)}: documents have not the same number of sentences in all languages")
    return [
        [dict(zip(languages, sentence, strict=True)) for sentence in zip(*document, strict=True)]
        for document in zip(*split.values(), strict=True)
    ]


def sentences(documents: Sequence[Sequence[Parallel]]) -> Iterator[Piece]:
    """Yield every sentence but the first of each document."""
    for number, document in enumerate(documents):
        for place in range(1, len(document)):
            yield Piece(number, place == len(document) - 1, _joined(document[:place]), document[place])


def sentence_ends(documents: Sequence[Sequence[Parallel]]) -> Iterator[Piece]:
    """Yield the second half, by words, of every sentence."""
    for number, document in enumerate(documents):
        for place, sentence in enumerate(document):
            words = {language: text.split() for language, text in sentence.items()}
            first = {language: " ".join(own[: len(own) // 2]) for language, own in words.items()}
            second = {language: " ".join(own[len(own) // 2 :]) for language, own in words.items()}
            yield Piece(number, place == len(document) - 1, _joined([*document[:place], first]), second)


def questions(pieces: Sequence[Piece]) -> list[dict[str, dict[str, Any]]]:
    """Make the question of each piece, by language: ``question``, four ``answers``, ``label`` of the right one."""
    found = []
    for number, piece in enumerate(pieces):
        order = [piece, *_nearest(piece, pieces)]
        random.Random(f"{SEED} {number}").shuffle(order)
        found.append(
            {
                language: {
                    "question": piece.before[language],
                    "answers": [one.text[language] for one in order],
                    "label": order.index(piece),
                }
                for language in piece.text
            }
        )
    return found


def _nearest(piece: Piece, pieces: Sequence[Piece]) -> list[Piece]:
    """Choose pieces of other documents, one of each, that stand in the same place and are nearest in length."""
    best: dict[int, Piece] = {}
    for one in sorted(pieces, key=lambda other: _distance(piece, other)):
        if one.document != piece.document and one.last == piece.last:
            best.setdefault(one.document, one)
    return list(best.values())[:WRONG]


def _distance(one: Piece, other: Piece) -> float:
    """Sum over languages how many times as long, in bytes and on a logarithmic scale, one is as the other."""
    return math.fsum(
        abs(math.log(len(other.text[language].encode()) / len(text.encode()))) for language, text in one.text.items()
    )


def _joined(parts: Sequence[Parallel]) -> Parallel:
    return {language: " ".join(part[language] for part in parts) for language in parts[0]}


def _task(name: str, data: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "answers",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), allow_unicode=True, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
