"""Every token of a language is as likely as any other to begin a segment, however unevenly its text is cut up.

The corpora are of numbered words, one token each: the first token of a segment says where in the text it begins.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mbs_ray.text import compressed_parts
from tests.support.texts import drawn_here, request, write_jsonl, write_parquet, write_txt

TOKENS = 40_000
LENGTH, SEGMENTS, SEEDS = 8, 250, 3
LEAST_P = 0.01  # by chance one of a hundred such corpora falls below; seeds are fixed

Lengths = Sequence[int]
random = np.random.default_rng(5)
LOG_NORMAL = np.maximum(1, random.lognormal(3.5, 1.2, 2000)).astype(int).tolist()
SHORT_AND_LONG = np.where(random.random(1500) < 0.9, 12, 400).tolist()


@dataclass(frozen=True)
class NumberedText:
    """Documents of so many words, cut to `TOKENS` in all; word k of all is token k. Every third has long words."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Lengths) -> "NumberedText":
        ends = np.minimum(np.cumsum(np.resize(lengths, TOKENS)), TOKENS)
        return cls(tuple(np.diff(ends, prepend=0)[: int(np.argmax(ends == TOKENS)) + 1].tolist()))

    def texts(self) -> list[str]:
        starts = np.cumsum([0, *self.lengths])[:-1].tolist()
        return [
            " ".join(word(token) for token in range(start, start + length))
            for start, length in zip(starts, self.lengths, strict=True)
        ]


def word(token: int) -> str:
    return f"{token:06d}" if token % TOKENS < TOKENS * 2 // 3 else f"{token:018d}"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token k is the word of k; the end token comes after them."""
    folder = tmp_path_factory.mktemp("numbers")
    vocabulary = {word(token): token for token in range(TOKENS)} | {"</s>": TOKENS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="</s>").save_pretrained(folder)
    return folder


def begun_at(folder: Path, tokenizer: Path) -> np.ndarray:
    """The token each segment begins at; of the few that begin between two documents, the one before."""
    begins = []
    for seed in range(SEEDS):
        asked = request(folder, tokenizer, {"en": SEGMENTS}, seed=seed, sequence_length=LENGTH)
        drawn = drawn_here(asked)["en"].segments
        assert len(drawn) == SEGMENTS
        covered = np.concatenate([segment.token_ids[segment.token_ids < TOKENS] for segment in drawn])
        assert len(np.unique(covered)) == len(covered)  # no token twice
        begins += [int(segment.token_ids[0]) for segment in drawn]
    found = np.array(begins)
    assert (found == TOKENS).mean() < 0.05
    return found[found < TOKENS]


def p_values(begins: np.ndarray, lengths: Lengths) -> dict[str, float]:
    """Chi-square over forty equal stretches of the text; documents by length; tenths of the documents of ten tokens."""
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, begins, side="right")
    own = np.asarray(lengths)[document]
    within = (begins - (ends[document] - own)) / own
    tenths = np.histogram(within[own >= 200], np.linspace(0, 1, 11))[0]
    borders = np.unique(np.quantile(np.repeat(lengths, lengths), np.linspace(0, 1, 9)[1:-1]))
    expected = np.bincount(np.searchsorted(borders, lengths), weights=lengths, minlength=len(borders) + 1)
    counted = np.bincount(np.searchsorted(borders, own), minlength=len(expected))
    given = expected > 0
    return {
        "positions": chisquare(np.histogram(begins, 40, (0, TOKENS))[0]).pvalue,
        "documents": chisquare(counted[given], expected[given] * len(begins) / TOKENS).pvalue if given.sum() > 1 else 1,
        "inside": chisquare(tenths).pvalue if tenths.sum() else 1,
    }


def one_gzip(path: Path, texts: list[str]) -> None:
    (path / "en.jsonl.gz").write_bytes(gzip.compress(lines(texts)))


def gzip_members(path: Path, texts: list[str]) -> None:
    """Cut anywhere, into members of very different length."""
    content = lines(texts)
    cuts = [0, 10_000, 200_000, 210_001, 210_500, len(content)]
    pieces = [content[start:stop] for start, stop in pairwise(cuts)]
    (path / "en.json.gz").write_bytes(b"".join(map(gzip.compress, pieces)))


def zstd_frames(path: Path, texts: list[str]) -> None:
    """Some that tell their length, some that do not."""
    content = lines(texts)
    half = len(content) // 2
    streamed = zstandard.ZstdCompressor().compressobj()
    rest = streamed.compress(content[half:]) + streamed.flush()
    frames = [zstandard.compress(content[start : start + 20_001]) for start in range(0, half, 20_001)]
    frames[-1] = zstandard.compress(content[(len(frames) - 1) * 20_001 : half])
    (path / "en.jsonl.zst").write_bytes(b"".join(frames) + rest)


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": row, "text": text}) + "\n" for row, text in enumerate(texts)).encode()


def one_huge_and_many_small(path: Path, texts: list[str]) -> None:
    """Two thirds of the text in a compressed shard, the rest in two hundred of several formats."""
    huge = np.searchsorted(np.cumsum([len(text) for text in texts]), sum(map(len, texts)) * 2 // 3)
    folder = path / "en"
    folder.mkdir()
    (folder / "000.jsonl.gz").write_bytes(gzip.compress(lines(texts[:huge])))
    for number, rows in enumerate(np.array_split(np.arange(huge, len(texts)), 200), start=1):
        some = [texts[row] for row in rows]
        if number % 3 == 0:
            write_jsonl(folder / f"{number:03d}.jsonl", some)
        elif number % 3 == 1:
            write_txt(folder / f"{number:03d}.txt", some)
        else:
            write_parquet(folder / f"{number:03d}.parquet", some, 3)


LAYOUTS: dict[str, Callable[[Path, list[str]], None]] = {
    "txt": lambda path, texts: write_txt(path / "en.txt", texts),
    "jsonl": lambda path, texts: write_jsonl(path / "en.jsonl", texts),
    "parquet": lambda path, texts: write_parquet(path / "en.parquet", texts, 40),
    "one gzip": one_gzip,
    "gzip members": gzip_members,
    "zstd frames": zstd_frames,
    "one huge and 200 small": one_huge_and_many_small,
}


#: The one that mixes formats, and the compression that it lacks.
FAST = ("one huge and 200 small", "zstd frames")


@pytest.mark.parametrize(
    "layout", [pytest.param(layout, marks=() if layout in FAST else pytest.mark.slow) for layout in LAYOUTS]
)
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param(LOG_NORMAL, id="log-normal"),
        pytest.param(SHORT_AND_LONG, id="short and long", marks=pytest.mark.slow),
    ],
)
def test_every_token_is_as_likely_as_any_other(
    tmp_path: Path, numbers: Path, monkeypatch: pytest.MonkeyPatch, layout: str, lengths: Lengths
) -> None:
    monkeypatch.setattr(compressed_parts, "PART_BYTES", 30_000)
    text = NumberedText.of(lengths)
    LAYOUTS[layout](tmp_path, text.texts())
    found = p_values(begun_at(tmp_path, numbers), text.lengths)
    print(layout, {name: round(float(p), 3) for name, p in found.items()})
    assert min(found.values()) > LEAST_P, found
