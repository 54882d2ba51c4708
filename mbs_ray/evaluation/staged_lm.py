"""The model that lm-evaluation-harness calls: it tokenizes requests, and another function scores them.

Not to be imported where lm_eval may be missing.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mbs_ray.errors import InputError
from mbs_ray.evaluation.token_scores import RequestScore

#: Token sequences → what is known of the tokens 2…n of each.
Score = Callable[[Sequence[Sequence[int]]], list[RequestScore]]


class StagedLM(TemplateLM):
    """A model of lm-eval that encodes, truncates and sums as its own ``HFLM`` does for a decoder; ``score`` runs it.

    ``max_length`` are the tokens the model reads at most, by default what ``HFLM`` finds in ``config`` and
    ``tokenizer``. Raises :class:`InputError` for a tokenizer with neither a first nor a last token of a text.
    """

    def __init__(self, tokenizer: Any, config: Any, score: Score, max_length: int | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length or resolve_max_length(config, tokenizer)
        self._score = score
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path}: has neither bos_token nor eos_token, with which a request "
                "without a context begins"
            )

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that a request without a context begins with: the first token of a text, or else the last."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Encode a text, with the special tokens that the tokenizer adds by itself unless the text begins with them."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **given)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Sum log p of all tokens of each text, in windows of ``max_length`` tokens that score every token once."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        answers = iter(self._loglikelihood_tokens([window for own in windows for window in own]))
        return [sum(next(answers)[0] for _ in own) for own in windows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Raise :class:`InputError` naming the tasks: no text is generated."""
        tasks = sorted({request.task_name or "a task" for request in requests})
        raise InputError(f"task {', '.join(tasks)}: wants text generated; only likelihoods of given texts are scored")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        """Score (texts, context, continuation): Σ log p of the continuation's tokens, whether each is the argmax."""
        for texts, context, continuation in requests:
            self._check(texts, context, continuation)
        # The model never reads the last token: it takes max_length besides that.
        scored = self._score(
            [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        )
        answers = []
        for (_, _, continuation), (nll, is_argmax) in zip(requests, scored, strict=True):
            own = slice(-len(continuation), None)
            answers.append((-float(nll[own].sum(dtype="float64")), bool(is_argmax[own].all())))
        return answers

    def _check(self, texts: Any, context: list[int], continuation: list[int]) -> None:
        if context and 0 < len(continuation) <= self.max_length:
            return
        raise InputError(
            f"request {_shown(texts)}: its context has {len(context)} tokens and its continuation "
            f"{len(continuation)}; there must be one at least of each, and at most {self.max_length} of the latter"
        )


def _shown(texts: Any) -> str:
    """Quote the end of a request's context and the beginning of its continuation."""
    if texts is None:
        return "of a text"
    context, continuation = texts
    return f"{context[-40:]!r} + {continuation[:40]!r}"
