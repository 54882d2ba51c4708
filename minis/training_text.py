"""The text of a training: tokenizer, token streams of the languages, and the segments drawn from them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mbs_ray.errors import InputError
from mbs_ray.files import appearing
from mbs_ray.languages.distribution import ROOTS
from mbs_ray.languages.facts import PAPER_LANGUAGES

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"
TOKENIZER_BYTES = 8e6


def shares(exponent: float) -> dict[str, float]:
    """Compute language → share of the segments drawn, ∝ (ROOTS bytes) ** exponent, for the paper's 20 languages."""
    tempered = {language: size**exponent for language, size in ROOTS.amounts_of(PAPER_LANGUAGES).items()}
    total = sum(tempered.values())
    return {language: value / total for language, value in tempered.items()}


def read_texts(corpus: Path, language: str) -> list[str]:
    """Read the documents of a language. Raises :class:`InputError` naming the file where they cannot be read."""
    path = corpus / f"{language}.parquet"
    if not path.is_file():
        raise InputError(f"{path}: no such file; CORPUS needs one for each of {', '.join(PAPER_LANGUAGES)}")
    try:
        column = pq.read_table(path, columns=["text"]).column("text")
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(f"{path}: not a parquet file with a column 'text' ({' '.join(str(error).split())})") from error
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise InputError(f"{path}: column 'text' must hold strings, not {column.type}")
    if not len(column) or column.null_count:
        raise InputError(f"{path}: {len(column)} rows, {column.null_count} of them without text; leave those out")
    return column.to_pylist()


def make_tokenizer(corpus: Path, shares: Mapping[str, float], vocabulary: int, path: Path) -> Tokenizer:
    """Open the byte-level BPE in ``path``; if it is not there, train it on a sample of the languages by ``shares``."""
    if path.is_file():
        return _open_tokenizer(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BLOOM_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample: list[str] = []
    for language, share in shares.items():
        budget = int(TOKENIZER_BYTES * share)
        for text in read_texts(corpus, language):
            if budget <= 0:
                break
            sample.append(text)
            budget -= len(text.encode())
    tokenizer.train_from_iterator(sample, trainer)
    with appearing(path) as unfinished:
        tokenizer.save(str(unfinished))
    return tokenizer


def _open_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: not a tokenizer.json ({error})") from error
    if [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] != list(range(len(SPECIAL_TOKENS))):
        raise InputError(f"{path}: the first tokens must be {' '.join(SPECIAL_TOKENS)}")
    return tokenizer


def token_stream(corpus: Path, language: str, tokenizer: Tokenizer, cache: Path) -> np.ndarray:
    """Encode all documents of a language, each followed by ``</s>``, as one uint16 array, kept under ``cache``."""
    stored = cache / f"{language}.npy"
    if not stored.is_file():
        end = SPECIAL_TOKENS.index("</s>")
        texts = read_texts(corpus, language)
        ids: list[int] = []
        for start in range(0, len(texts), 256):
            for encoded in tokenizer.encode_batch(texts[start : start + 256]):
                ids += encoded.ids
                ids.append(end)
        # An open file, because NumPy gives every path the suffix .npy.
        with appearing(stored) as unfinished, unfinished.open("wb") as file:
            np.save(file, np.array(ids, dtype=np.uint16))
    return np.load(stored)


class SegmentDraw:
    """Batches of segments, each fixed by seed, step and the segments drawn before.

    Languages are drawn with their shares; within a language every segment once per epoch, in a new random
    order and at a new offset. Raises :class:`InputError` naming a language with too little text.
    """

    def __init__(
        self, streams: Mapping[str, np.ndarray], shares: Mapping[str, float], batch: int, length: int, seed: int
    ) -> None:
        self._streams, self._shares = streams, shares
        self._batch, self._length, self._seed = batch, length, seed
        for language, stream in streams.items():
            if len(stream) < 2 * length:
                raise InputError(
                    f"language {language!r}: its text gives {len(stream)} tokens, fewer than two segments of "
                    f"{length}: give more text or a shorter --sequence-length"
                )

    def batch(self, step: int, drawn: dict[str, int]) -> torch.Tensor:
        """Draw the token ids of a step, int64 (batch, length), and count the segments by language in ``drawn``."""
        languages = list(self._shares)
        generator = np.random.default_rng([self._seed, step])
        rows = []
        for index in generator.choice(len(languages), self._batch, p=list(self._shares.values())):
            language = languages[index]
            rows.append(self._segment(self._streams[language], drawn[language], [self._seed, 1, int(index)]))
            drawn[language] += 1
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _segment(self, stream: np.ndarray, drawn: int, seed: list[int]) -> np.ndarray:
        # An epoch cuts the stream, from a random offset below one length, into whole segments: one fewer than fit, so
        # that every offset leaves room. All is seeded by language and epoch, so that a count of draws is all it takes.
        count = len(stream) // self._length - 1
        epoch, position = divmod(drawn, count)
        generator = np.random.default_rng([*seed, epoch])
        offset = int(generator.integers(self._length))
        start = int(generator.permutation(count)[position]) * self._length + offset
        return stream[start : start + self._length]
