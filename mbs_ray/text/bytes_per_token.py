"""How many bytes of a language's text a token stands for, from a sample of it."""

from collections.abc import Iterator, Sequence

from mbs_ray.errors import InputError
from mbs_ray.text.corpus import Corpus, Place
from mbs_ray.text.shards import Document
from mbs_ray.text.tokenization import DocumentTokenizer

#: The sample of a language, in characters, and the units of its corpus that it is spread over.
SAMPLE, UNITS = 2**18, 16


def bytes_per_token(corpus: Corpus, language: str, tokenizer: DocumentTokenizer) -> float:
    """Measure bytes (UTF-8, NFC) over tokens, end tokens included: the first text of units that lie evenly spread.

    The same for the same text and tokenizer. InputError where the language has no text.
    """
    places = corpus.units(language)
    spread = range(len(places))
    if len(places) > UNITS:
        spread = range(len(places) // (2 * UNITS), len(places), len(places) // UNITS)[:UNITS]
    # A document counts in the unit that it begins in: where there are few and long ones, most units have none.
    cut = tokenizer.chat is None
    sample = list(_sample(corpus, language, [places[index] for index in spread], cut))
    for place in places:
        if any(document.text for document in sample):
            break
        sample = list(_sample(corpus, language, [place], cut))
    count = tokens = 0
    for stream in tokenizer.tokenize(sample):
        count += int(stream.bytes.sum(dtype="int64"))
        tokens += len(stream)
    if count == 0:
        raise InputError(f"language {language!r}: the corpus has no text in which to count bytes per token")
    return count / tokens


def _sample(corpus: Corpus, language: str, places: Sequence[Place], cut: bool) -> Iterator[Document]:
    """Yield the first text of each unit; what one lacks, later ones may have more. Conversations are not `cut`."""
    left = SAMPLE
    for number, place in enumerate(places):
        quota = left // (len(places) - number)
        for documents in corpus.shards[language][place.shard].read([place.number]):
            for document in documents:
                text = document.text[:quota] if cut else document.text
                yield document._replace(text=text)
                quota -= len(text)
                left -= len(text)
                if quota <= 0:
                    break
