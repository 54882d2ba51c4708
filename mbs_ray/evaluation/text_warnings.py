"""What is to be said beside numbers of text that a tokenizer does not know, or that costs it more than it should."""

from collections.abc import Iterable, Iterator, Mapping

from mbs_ray.text.text_counts import shares_said, unknown_shares

#: In the metadata of a file of token scores: the shares of unknown text, by language, where there is any.
UNKNOWN_KEY = b"mbs_ray.unknown"
#: Above this share of a language's bytes that are unknown to the tokenizer, it is said wherever numbers are.
UNKNOWN_SAID = 0.01
_MOSTLY = 0.5


def unknown_warning(shares: Mapping[str, float]) -> str | None:
    """What is to be said beside numbers of languages with such unknown shares; None where there is nothing to say."""
    said = {language: share for language, share in shares.items() if share > UNKNOWN_SAID}
    if not said:
        return None
    return f"unknown to the tokenizer: {shares_said(said)} (bytes); perplexity and bits per byte flatter there"


def text_warnings(drawn: Iterable[Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    """What is to be said once of all sets that were drawn, from the facts of each."""
    unknown: dict[str, float] = {}
    decomposed: dict[str, None] = {}
    for facts in drawn:
        for language, share in unknown_shares(facts).items():
            unknown[language] = max(share, unknown.get(language, 0.0))
        for language, one in facts.items():
            if one.get("decomposed_documents", 0) > _MOSTLY * one.get("documents", 0):
                decomposed[language] = None
    if said := unknown_warning(unknown):
        yield said
    if decomposed:
        yield (
            f"text of {', '.join(decomposed)} is mostly not in the normal form NFC: a tokenizer that does not "
            "normalize takes 1.2 to 3.4 times the tokens for it; bytes are counted in NFC whatever it does"
        )
