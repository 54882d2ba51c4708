"""What a sampling's shares are taken of, without a run: for ``mbs allocate``."""

from collections.abc import Mapping, Sequence

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import Distribution
from mbs_ray.languages.sampling_registry import counts_tokens
from mbs_ray.languages.samplings import Sampling
from mbs_ray.text.segment_request import TextSources


def in_unit_of(
    sampling: Sampling, known: Distribution | None, model: str, languages: Sequence[str], corpus: str | None
) -> Distribution | None:
    """Return the distribution, in tokens of the model's tokenizer where the sampling wants them, counted in the corpus.

    InputError where there is no corpus to count in.
    """
    if known is None or not counts_tokens(sampling, known):
        return known

    def bytes_per_token(codes: Sequence[str]) -> Mapping[str, float]:
        if corpus is None:
            raise InputError("sampling proportional: unit: tokens counts in text of each language: give --corpus")
        return TextSources().bytes_per_token(corpus, model, codes)

    return known.in_tokens(languages, bytes_per_token)
