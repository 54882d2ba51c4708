"""What a set of segments says of its text: how much the vocabulary lacks, how much is not in the normal form NFC."""

from collections.abc import Mapping, Sequence

from mbs_ray.errors import InputError
from mbs_ray.text.token_stream import TokenStream

#: Above this share of a language's bytes that are unknown to the tokenizer, the language is refused.
UNKNOWN_REFUSED = 0.10


def text_counts(segments: Sequence[TokenStream], unknown: int | None) -> dict[str, int]:
    """Of one language's segments: bytes and documents, and how many of them are unknown or not in NFC.

    ``unknown`` is the id that stands for text which the vocabulary lacks.
    """
    sources = {source for segment in segments for source in segment.sources}
    lacking = [(one.token_ids == (-1 if unknown is None else unknown)) & (one.document_index >= 0) for one in segments]
    return {
        "bytes": sum(int(one.bytes.sum()) for one in segments),
        "unknown_tokens": sum(int(where.sum()) for where in lacking),
        "unknown_bytes": sum(int(one.bytes[where].sum()) for one, where in zip(segments, lacking, strict=True)),
        "documents": len(sources),
        "decomposed_documents": sum(not source.composed for source in sources),
    }


def unknown_shares(facts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Share of the bytes that the tokenizer does not know, of each language that has any, from a set's facts."""
    counted = {language: (one.get("unknown_bytes", 0), one.get("bytes", 0)) for language, one in facts.items()}
    return {language: lacking / size for language, (lacking, size) in counted.items() if lacking}


def refuse_markup(language: str, segments: Sequence[TokenStream]) -> None:
    """Raise :class:`InputError` where no segment of a chat corpus has a token of a content that could be scored."""
    if not any((one.document_index[1:] >= 0).any() for one in segments):
        raise InputError(
            f"language {language!r}: its {len(segments)} segments hold nothing but what the chat template writes; "
            "take a larger sequence_length, or chat: packed"
        )


def refuse_unknown(tokenizer: str, facts: Mapping[str, Mapping[str, int]]) -> None:
    """Raise :class:`InputError` naming the languages whose text the vocabulary does not hold."""
    refused = {language: share for language, share in unknown_shares(facts).items() if share > UNKNOWN_REFUSED}
    if refused:
        raise InputError(
            f"tokenizer {tokenizer}: does not know {shares_said(refused)} of the text; what is unknown costs a model "
            "next to nothing, so that such a language would look best: leave it out, or look at its text"
        )


def refuse_foreign_ids(tokenizer: str, segments: Sequence[TokenStream], rows: int | None) -> None:
    """Raise :class:`InputError` for a token id that the model's embedding, of so many rows, does not have."""
    highest = max((int(one.token_ids.max()) for one in segments), default=0)
    if rows is not None and highest >= rows:
        raise InputError(
            f"tokenizer {tokenizer}: gives a token the id {highest}, and the model's embedding has {rows:,} rows; its "
            "files are of another model, or the embedding was not resized with it"
        )


def shares_said(shares: Mapping[str, float]) -> str:
    """``63.1 % of am, 1.2 % of ti``."""
    return ", ".join(f"{100 * share:.1f} % of {language}" for language, share in shares.items())
