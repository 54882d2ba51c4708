"""How many bytes of a language's text a token stands for, from a sample of it."""

from collections.abc import Iterator

from mbs_ray.errors import InputError
from mbs_ray.text.corpus import Corpus
from mbs_ray.text.shards import Document
from mbs_ray.text.tokenization import DocumentTokenizer

#: The sample of a language, in characters, and the units of its corpus that it is spread over.
SAMPLE, UNITS = 2**18, 16


def bytes_per_token(corpus: Corpus, language: str, tokenizer: DocumentTokenizer) -> float:
    """Measure bytes (UTF-8, NFC) over tokens, end tokens included: the first text of units that lie evenly spread.

    The same for the same text and tokenizer. InputError where the language has no text.
    """
    count = tokens = 0
    for stream in tokenizer.tokenize(list(_sample(corpus, language))):
        count += int(stream.bytes.sum(dtype="int64"))
        tokens += len(stream)
    if count == 0:
        raise InputError(f"language {language!r}: the corpus has no text in which to count bytes per token")
    return count / tokens


def _sample(corpus: Corpus, language: str) -> Iterator[Document]:
    places, shards = corpus.units(language), corpus.shards[language]
    chosen = (
        range(len(places)) if len(places) <= UNITS else [(2 * i + 1) * len(places) // (2 * UNITS) for i in range(UNITS)]
    )
    for index in chosen:
        left = SAMPLE // len(chosen)
        for documents in shards[places[index].shard].read([places[index].number]):
            for document in documents:
                yield document._replace(text=document.text[:left])
                left -= len(document.text)
                if left <= 0:
                    break
