"""Small corpora in every format, and drawing them in this process: the reference for what Ray gives."""

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mbs_ray.text.here import gather_here
from mbs_ray.text.language_draw import LanguageSegments
from mbs_ray.text.segment_draw import fill, finished, language_draws, recipe_of
from mbs_ray.text.segment_request import SegmentRequest

WORDS = {
    "en": ["the", "river", "was", "high", "that", "spring", "and", "nobody", "crossed", "it", "before", "noon"],
    "hi": ["उस", "वसंत", "में", "नदी", "चढ़ी", "हुई", "थी", "और", "दोपहर", "से", "पहले", "कोई", "पार", "नहीं", "करता"],
    "sw": ["mto", "ulikuwa", "umejaa", "msimu", "huo", "na", "hakuna", "aliyeuvuka", "kabla", "ya", "saa", "sita"],
    "zh-Hans": [*"那年春天河水很高中午以前没有人过河😀"],
}


def some_texts(language: str, count: int, words: int = 60, seed: int = 0) -> list[str]:
    """Documents of random words, all different, some of two lines."""
    random = np.random.default_rng([seed, len(language), count])
    texts = []
    for number in range(count):
        drawn = random.choice(WORDS[language], size=int(random.integers(words // 2, words * 3 // 2)))
        texts.append(f"{number} {' '.join(drawn)}" + ("\n" + " ".join(drawn[:3]) if number % 3 == 0 else ""))
    return texts


def write_parquet(path: Path, texts: Sequence[str | None], group: int, column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=group)


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content[:1000]) + gzip.compress(content[1000:])
    elif path.suffix == ".zst":
        content = zstandard.compress(content[:1000]) + zstandard.compress(content[1000:])
    path.write_bytes(content)


def write_txt(path: Path, texts: Sequence[str]) -> None:
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def request(corpus: object, tokenizer: Path, allocation: Mapping[str, int], **options: object) -> SegmentRequest:
    return SegmentRequest(
        **{  # type: ignore[arg-type]
            "corpus": corpus,
            "tokenizer": str(tokenizer),
            "languages": tuple(allocation),
            "allocation": allocation,
            "sequence_length": 32,
            **options,
        }
    )


def drawn_here(asked: SegmentRequest) -> dict[str, LanguageSegments]:
    """The segments of a request, drawn in this process, before they are written."""
    draws = language_draws(asked)
    fill(draws, partial(gather_here, asked.opened.shards, recipe_of(asked)), None)
    return finished(asked, draws)


def rows_of(drawn: LanguageSegments) -> list[tuple[int, ...]]:
    return [tuple(segment.token_ids.tolist()) for segment in drawn.segments]
