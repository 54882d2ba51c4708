"""Everything about a sweep that can be checked and resolved before any stage works."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import Distribution
from mbs_ray.languages.samplings import Adaptive
from mbs_ray.methods import Amounts
from mbs_ray.model.checkpoint import Checkpoint, open_checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.fingerprint import fingerprint
from mbs_ray.run.microbatch import settled_microbatch
from mbs_ray.run.mixture_checks import check_mixtures
from mbs_ray.run.pilot import check_ramp, pilot_spec
from mbs_ray.run.settled_languages import SettledLanguages, settle_languages
from mbs_ray.run.spec import EvaluationSpec, RunSpec
from mbs_ray.text.corpus import require_languages
from mbs_ray.text.segment_draw import check_request
from mbs_ray.text.segment_request import SegmentRequest, TextSources

#: Evaluation text is drawn with this seed in every run, so that all runs are scored on the same tokens.
EVALUATION_SEED = 0
_LIMITS = ("max_position_embeddings", "n_positions", "seq_length")

NotifyStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Model:
    """An opened checkpoint that can be taken apart into blocks; what is found of it is kept under ``cache``."""

    name: str
    checkpoint: Checkpoint
    decoder: Decoder
    """For names, shapes and the untouched tensors; the stages have decoders of their own."""
    cache: Path

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`~mbs_ray.model.fingerprint.fingerprint`; after :meth:`read_through` it is in the cache."""
        return fingerprint(self.checkpoint, self.decoder.parameter_tensors(), self.cache)

    def read_through(self, notify: NotifyStep) -> None:
        """Read the checkpoint once, where that was not done before, for NaN and for its fingerprint.

        ``notify(what, done, total)`` is called meanwhile. Raises :class:`InputError` naming a tensor with NaN.
        """
        told = partial(notify, f"reading {self.name}")
        fingerprint(self.checkpoint, self.decoder.parameter_tensors(), self.cache, told)

    def check_length(self, field: str, length: int) -> None:
        """Raise :class:`InputError` naming the field if the model takes no segments of this length."""
        limits = [getattr(self.checkpoint.config.get_text_config(), name, None) for name in _LIMITS]
        longest = min((limit for limit in limits if isinstance(limit, int)), default=None)
        if longest is not None and length > longest:
            raise InputError(f"{field}: {length} tokens are more than the {longest} that {self.name} takes")


class CheckedTexts:
    """Checks every distinct request once, however many runs ask for it, and opens each corpus once for all of them.

    What was found of a corpus is kept under ``cache``.
    """

    def __init__(self, cache: Path) -> None:
        self._sources = TextSources(cache)
        self._checked: dict[str, SegmentRequest] = {}

    def bytes_per_token(self, spec: RunSpec, model: Model, languages: Sequence[str]) -> dict[str, float]:
        """Measure the bytes that a token of the model stands for, by language of the run's corpus."""
        return self._sources.bytes_per_token(spec.corpus, str(model.checkpoint.folder), languages)

    def check(self, request: SegmentRequest) -> SegmentRequest:
        """Check a request; return it, or an equal one that was checked before, whose corpus is open already.

        Raises :class:`InputError` where the corpus lacks, or cannot give, what is asked for.
        """
        identity = json.dumps(request.plain(), sort_keys=True, default=str)
        if identity not in self._checked:
            self._checked[identity] = replace(request, sources=self._sources)
            check_request(self._checked[identity])
        return self._checked[identity]


@dataclass(frozen=True)
class PreparedRun:
    """A run whose model, languages, allocation and texts are settled; ``device``, once Ray has told, is its kind.

    ``weights`` of the languages are for dense statistics, None for propagated ones. With dense ones ``calibration``
    and ``allocation`` are those of the pool: equally many segments of each weighted language. ``search`` describes
    the trials by which an adaptive sampling found the weights. ``pilot`` is a run of dense statistics by which amounts
    are tried for the run's budget, ``dealt`` says what amounts were found, and how. ``groups`` of its languages have
    rows of their own in tables. ``top_up`` says which segments ``calibration`` and ``allocation`` have on top for
    starved experts, and for which, once that is known.
    """

    label: str
    column: tuple[str, str]
    spec: RunSpec
    model: Model
    languages: tuple[str, ...]
    allocation: dict[str, int]
    calibration: SegmentRequest
    evaluation: dict[str, SegmentRequest]
    device: str = "cpu"
    weights: dict[str, Fraction] | None = None
    search: Mapping[str, Any] | None = None
    pilot: "PreparedRun | None" = None
    dealt: Mapping[str, Any] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    top_up: Mapping[str, Any] | None = None

    @property
    def adaptive(self) -> Adaptive | None:
        """The sampling of a run whose weights are found by trial; None for any other run."""
        return self.spec.sampling if isinstance(self.spec.sampling, Adaptive) else None

    @property
    def amounts(self) -> Amounts | None:
        """Amounts of the linears; None where all have the method's own, or as long as none were found."""
        return None if self.dealt is None else Amounts.from_plain(self.dealt["amounts"])

    @property
    def shares(self) -> dict[str, float] | None:
        """Weights as plain numbers; None for propagated statistics."""
        return None if self.weights is None else {code: float(one) for code, one in self.weights.items()}

    @property
    def microbatch(self) -> int:
        """Number of segments in one forward on the run's device."""
        return settled_microbatch(self.spec.microbatch, self.spec.sequence_length, self.device, self.model.decoder)

    @property
    def shared_microbatches(self) -> int:
        """Number of microbatches that replicas share at a time: of the calibration set, or of one language's text."""
        together = max if self.weights is not None else sum
        return -(-together(self.allocation.values()) // self.microbatch)


def prepare_runs(
    specs: Sequence[RunSpec], labels: Sequence[str], columns: Sequence[tuple[str, str]], cache: Path
) -> list[PreparedRun]:
    """Check everything a sweep needs but the weights. Raises :class:`InputError` naming the file, field or language.

    That takes a moment; :func:`read_models` may take minutes. What both find is kept under ``cache``.
    """
    models: dict[tuple[str, str | None], Model] = {}
    texts = CheckedTexts(cache)
    prepared = []

    def opened(spec: RunSpec) -> Model:
        key = (spec.model, spec.revision)
        if key not in models:
            models[key] = open_model(spec.model, spec.revision, cache)
        return models[key]

    def in_tokens(spec: RunSpec, distribution: Distribution, languages: Sequence[str]) -> Distribution:
        require_languages(spec.corpus, languages)
        return distribution.in_tokens(languages, lambda codes: texts.bytes_per_token(spec, opened(spec), codes))

    # Languages are checked for all runs before the first checkpoint is opened, but where tokens are counted.
    settled = [settle_languages(spec, in_tokens) for spec in specs]
    for spec, (languages, allocation, *_) in zip(specs, settled, strict=True):
        require_languages(spec.corpus, allocation)
        for one in spec.evaluation.values():
            require_languages(one.corpus, languages)
    for spec, label, column, own in zip(specs, labels, columns, settled, strict=True):
        run = _with_texts(spec, label, column, opened(spec), own, texts)
        _check_method(run)
        if spec.budget is not None and spec.budget.tries:
            tried = pilot_spec(spec, spec.budget)
            pilot = _with_texts(tried, label, column, opened(tried), settle_languages(tried, in_tokens), texts)
            run = replace(run, pilot=pilot)
        prepared.append(run)
    return prepared


def read_models(runs: Sequence[PreparedRun], notify: NotifyStep) -> None:
    """Read each model of the runs once, as :meth:`Model.read_through` does."""
    for model in {id(run.model): run.model for run in runs}.values():
        model.read_through(notify)


def open_model(model: str, revision: str | None, cache: Path) -> Model:
    """Open a checkpoint. Raises :class:`InputError` where it cannot be taken apart into blocks, or lacks a tensor."""
    checkpoint = open_checkpoint(model, revision)
    return Model(Path(model).name, checkpoint, Decoder(checkpoint, torch.float32), cache)


def _with_texts(
    spec: RunSpec,
    label: str,
    column: tuple[str, str],
    model: Model,
    settled: SettledLanguages,
    texts: CheckedTexts,
) -> PreparedRun:
    languages, allocation = settled.languages, settled.allocation
    model.check_length("sequence_length", spec.sequence_length)
    requests = evaluation_requests(spec.evaluation, model, languages, spec.sequence_length)
    evaluation = {name: texts.check(request) for name, request in requests.items()}
    calibration = SegmentRequest(
        corpus=spec.corpus,
        tokenizer=str(model.checkpoint.folder),
        languages=tuple(allocation),
        allocation=allocation,
        sequence_length=spec.sequence_length,
        seed=spec.seed,
        allow_repeat=spec.allow_repeat,
    )
    return PreparedRun(
        label,
        column,
        spec,
        model,
        languages,
        allocation,
        texts.check(calibration),
        evaluation,
        weights=settled.weights,
        groups=settled.groups,
    )


def evaluation_requests(
    sets: Mapping[str, EvaluationSpec], model: Model, languages: tuple[str, ...], sequence_length: int
) -> dict[str, SegmentRequest]:
    """Make the request for the text of each evaluation set; the same for every run of a model."""
    requests = {}
    for name, one in sets.items():
        length = one.sequence_length or sequence_length
        model.check_length(f"evaluation.{name}.sequence_length", length)
        requests[name] = SegmentRequest(
            corpus=one.corpus,
            tokenizer=str(model.checkpoint.folder),
            languages=languages,
            allocation=None,
            at_most=one.segments,
            sequence_length=length,
            seed=EVALUATION_SEED,
            join=one.join,
        )
    return requests


def _check_method(run: PreparedRun) -> None:
    decoder = run.model.decoder
    check_mixtures(run.spec, decoder)
    for index in range(decoder.blocks):
        linears = decoder.linears(index)
        if not linears:
            raise InputError(
                f"{run.model.checkpoint.folder}: block {index} of {run.model.checkpoint.config.model_type} "
                "has no linear, so there is nothing to compress"
            )
        for name, (rows, columns) in linears.items():
            run.spec.method.check(rows, columns, f"block {index} {name}")
    if run.spec.budget is not None:
        check_ramp(run.spec.budget, run.spec.method, decoder)
