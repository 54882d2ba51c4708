"""Documents joined by blank lines into one text, and tokenized as that; each token is then given to its document."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mbs_ray.text.shards import Document, Source
from mbs_ray.text.token_bytes import character_bytes, checked, token_bytes
from mbs_ray.text.token_stream import TokenStream

BLANK_LINE = "\n\n"


def blank_line_streams(tokenizer: Any, documents: Sequence[Document]) -> list[TokenStream]:
    """Tokenize all documents' texts with a blank line after each, into one stream per document.

    One after the other they are the tokens of the joined text, so a token may reach over the end of a document. What
    stands for blank lines alone follows its document and is a separator (`document_index` -1, no bytes). Any other
    token belongs to the first document it has text of; its bytes are those of text, not of blank lines. No special
    tokens are added. A document without text gives an empty stream, and no blank line.
    """
    with_text = [place for place, document in enumerate(documents) if document.text]
    nothing = np.empty(0, np.int32)
    streams = [TokenStream(nothing, nothing, nothing, (Source.of(document),)) for document in documents]
    if not with_text:
        return streams
    texts = [documents[place].text for place in with_text]
    encoded = tokenizer(
        "".join(text + BLANK_LINE for text in texts),
        add_special_tokens=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
    )
    ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 1]
    token_ids = np.asarray(encoded["input_ids"], np.int32)
    if not len(token_ids):
        return streams
    owner, of_text, sizes = _attributed(texts, ends)
    bounds = np.searchsorted(owner, np.arange(len(texts) + 1))
    for number, place in enumerate(with_text):
        own = slice(bounds[number], bounds[number + 1])
        index = np.where(of_text[own], 0, -1).astype(np.int32)
        counted = checked(sizes[own], documents[place].label)
        streams[place] = TokenStream(token_ids[own], index, counted, streams[place].sources)
    return streams


def _attributed(
    texts: Sequence[str], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Of each token: the text it belongs to, in ascending order; whether it has a part of one; bytes of text."""
    # Parts of the joined text: an even one is a text, the odd one after it its blank line.
    lengths = np.array([(len(text), len(BLANK_LINE)) for text in texts]).reshape(-1)
    part = np.repeat(np.arange(len(lengths)), lengths)
    # Each text alone: what begins with a mark does not lose it to the blank line before.
    between = np.zeros(len(BLANK_LINE), np.int64)
    weights = np.concatenate([sizes for text in texts for sizes in (character_bytes(text), between)])
    reached = np.maximum.accumulate(ends)
    last = np.maximum(reached - 1, 0)
    # A token that adds no character to those before it shares the last one.
    first = np.minimum(np.concatenate([[0], reached[:-1]]), last)
    of_text = (part[first] % 2 == 0) | (part[last] > part[first])
    owner = np.where(of_text, (part[first] + 1) // 2, part[first] // 2)
    return owner, of_text, token_bytes(weights, ends)
