"""Bits per byte of minis, language by language, next to ``xz -9e`` and a byte-trigram model, as Markdown.

Scored are the first 60,000 characters of each language's validation text: by the models as ``mbs evaluate`` does it
(segments of 128 tokens; a segment scores its tokens 2…n, separators of documents are neither scored nor counted), by
the trigram byte by byte. xz compresses the whole validation text. The trigram is fitted on the whole training text
of the language, with interpolated Witten-Bell smoothing (Chen and Goodman 1998, section 2.5), down to a uniform 1/256.
"""

import argparse
import json
import lzma
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.driver.evaluate import TextQuestion, evaluate
from mbs_ray.driver.progress import Progress
from mbs_ray.languages.facts import PAPER_LANGUAGES
from mbs_ray.run.spec import EvaluationSpec

CHARACTERS = 60_000
SEQUENCE_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Bits per byte of minis next to xz -9e and a byte-trigram model, as a Markdown table.",
        epilog="example: python benchmarks/models/mini_bits_per_byte.py "
        "bloom-mini-5m --train train --validation validation",
    )
    parser.add_argument("models", type=Path, nargs="+", help="folders of checkpoints")
    parser.add_argument(
        "--train", type=Path, required=True, help="folder of <language>.parquet the trigram is fitted on"
    )
    parser.add_argument("--validation", type=Path, required=True, help="folder of <language>.parquet that is scored")
    arguments = parser.parse_args()

    scored = {language: beginning(_texts(arguments.validation, language)) for language in PAPER_LANGUAGES}
    columns: dict[str, dict[str, float]] = {"xz -9e": {}, "trigram": {}}
    for language, texts in scored.items():
        columns["xz -9e"][language] = xz_bits_per_byte(_texts(arguments.validation, language))
        columns["trigram"][language] = Trigram(_texts(arguments.train, language)).bits_per_byte(texts)
    for model in arguments.models:
        columns[model.resolve().name] = model_bits_per_byte(model, scored)
    print(markdown(columns, [model.resolve().name for model in arguments.models]))


def beginning(texts: Sequence[str], characters: int = CHARACTERS) -> list[str]:
    """The first documents, as many as have so many characters; the last one is cut."""
    chosen: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        chosen.append(text[:characters])
        characters -= len(chosen[-1])
    return chosen


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """Of the documents joined by newlines, as one file."""
    whole = "\n".join(texts).encode()
    return 8 * len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)) / len(whole)


class Trigram:
    """P(byte | two bytes before), interpolated Witten-Bell: P_n = (count + types · P_{n-1}) / (total + types)."""

    def __init__(self, texts: Sequence[str]) -> None:
        first, second, third = _trigrams(texts)
        self._three = np.bincount((first << 16) | (second << 8) | third, minlength=1 << 24).reshape(1 << 16, 256)
        self._two = np.bincount((second << 8) | third, minlength=1 << 16).reshape(256, 256)
        self._one = np.bincount(third, minlength=256)[None]

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        first, second, third = _trigrams(texts)
        probability = np.full(len(third), 1 / 256)
        for counts, context in (
            (self._one, np.zeros_like(third)),
            (self._two, second),
            (self._three, (first << 8) | second),
        ):
            total, types = counts.sum(axis=1)[context], np.count_nonzero(counts, axis=1)[context]
            seen = total > 0
            mixed = (counts[context, third] + types * probability) / np.maximum(total + types, 1)
            probability = np.where(seen, mixed, probability)
        return float(-np.log2(probability).mean())


def model_bits_per_byte(model: Path, scored: dict[str, list[str]]) -> dict[str, float]:
    """As ``mbs evaluate`` says it, over all of the text."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for language, texts in scored.items():
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (corpus / f"{language}.jsonl").write_text(lines)
        spec = EvaluationSpec(corpus=str(corpus), segments=None, sequence_length=SEQUENCE_LENGTH)
        result = evaluate(
            str(model.resolve()),
            revision=None,
            text=TextQuestion("paper", {"validation": spec}),
            tasks=None,
            compute_dtype="auto",
            cluster=ClusterOptions(stages=1, replicas=1),
            out=Path(folder) / "out",
            progress=Progress(Console(stderr=True)),
        )
    _, scores = result.texts["validation"]
    return {language: score.bits_per_byte for language, score in scores.items()}


def markdown(columns: dict[str, dict[str, float]], models: Sequence[str]) -> str:
    """Languages × columns, and how often each model is below each of the other columns."""
    lines = ["| language | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for language in next(iter(columns.values())):
        cells = [f"{values[language]:.3f}" for values in columns.values()]
        lines.append(f"| {language} | " + " | ".join(cells) + " |")
    for rival in (name for name in columns if name not in models):
        cells = []
        for name, values in columns.items():
            won = sum(value < columns[rival][language] for language, value in values.items())
            cells.append(f"{won} of {len(values)}" if name in models else "")
        lines.append(f"| *below {rival}* | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _texts(corpus: Path, language: str) -> list[str]:
    return pq.read_table(corpus / f"{language}.parquet", columns=["text"]).column("text").to_pylist()


def _trigrams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All bytes with the two before them, as int64; two NULs stand before each document and are not predicted."""
    data = np.frombuffer(b"".join(b"\0\0" + text.encode() for text in texts), dtype=np.uint8).astype(np.int64)
    predicted = data[2:] != 0
    return data[:-2][predicted], data[1:-1][predicted], data[2:][predicted]


if __name__ == "__main__":
    main()
