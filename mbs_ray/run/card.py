"""The model card: what a compressed checkpoint is, what each language lost, and how to load it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from mbs_ray.languages.codes import base_language
from mbs_ray.languages.facts import table_order
from mbs_ray.languages.groups import GROUP_WORDS
from mbs_ray.methods import Amounts
from mbs_ray.model.readers import TRANSFORMERS, VLLM

PACKED_FORMAT = "compressed-tensors"
DENSE_FORMAT = "safetensors"


@dataclass(frozen=True)
class EvaluationScores:
    """One evaluation set: perplexity and bits per byte, by language, (dense, compressed).

    The intervals are 95 % intervals (low, high) of the compressed model's perplexity and of its increase over the dense
    one's, the latter also of the ``geomean``; what has none, as in text of one segment, is not among them.
    """

    name: str
    perplexity: dict[str, tuple[float, float]]
    bits_per_byte: dict[str, tuple[float, float]]
    perplexity_interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    increase_interval: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CardFacts:
    """The content of a run's model card; plain values, fit for JSON, and no paths.

    ``base_model`` is a hub id, None for a local checkpoint; ``model`` its name in either case. ``method`` and
    ``sampling`` are the mappings that build them; ``calibration`` is the fingerprint of the calibration set.
    ``weights`` are those of the languages where the statistics are of the dense model. ``fit_to`` says by how much
    linears were led back to the dense model, None where they were not. ``budget`` says what amounts linears were given,
    and what they are on average, None where all are alike. ``groups`` of the languages have means of their own.
    ``top_up`` counts the segments, by language, that the allocation has on top for starved experts of a mixture; None
    where none were sought.
    """

    model: str
    base_model: str | None
    languages: list[str]
    method: dict[str, Any]
    sampling: dict[str, Any]
    allocation: dict[str, int]
    sequence_length: int
    seed: int
    calibration: str
    evaluation: list[EvaluationScores]
    version: str
    weights: dict[str, float] | None = None
    fit_to: str | None = None
    budget: dict[str, Any] | None = None
    groups: dict[str, list[str]] = field(default_factory=dict)
    top_up: dict[str, int] | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CardFacts":
        """Rebuild the facts from the mapping that ``card.json`` holds."""
        evaluation = [EvaluationScores(**scores) for scores in content["evaluation"]]
        return cls(**{**content, "evaluation": evaluation})


def model_card(facts: CardFacts, form: str, reader: str = TRANSFORMERS) -> str:
    """Compose the README.md of a checkpoint in the form ``safetensors`` (dense) or ``compressed-tensors`` (packed).

    ``reader``: who loads the packed one.
    """
    segments = sum(facts.allocation.values())
    header = ["language", "segments"]
    allocation = [[code, f"{facts.allocation[code]:,}"] for code in table_order(facts.allocation)]
    if facts.weights is not None:
        header.append("weight")
        allocation = [[code, count, f"{100 * facts.weights[code]:.3g} %"] for code, count in allocation]
    lines = [
        f"# {facts.model}, compressed with {facts.method['name']}",
        "",
        f"- method: {_spec(facts.method)}",
        f"- sampling: {_spec(facts.sampling)}",
        f"- calibration: {segments:,} segments of {facts.sequence_length:,} tokens, seed {facts.seed}, "
        f"fingerprint `{facts.calibration}`",
        *([_top_up(facts.top_up)] if facts.top_up else []),
        *(["- statistics: second moments of the dense model, languages weighed as below"] if facts.weights else []),
        *([f"- linears fitted to the dense model: strength {facts.fit_to}"] if facts.fit_to else []),
        *([_budget(facts.budget)] if facts.budget else []),
        f"- weights: {_WEIGHTS[form]}",
        f"- made with mbs_ray {facts.version}",
        "",
        "## Calibration segments by language",
        "",
        *_table(header, allocation),
        "",
        *(line for scores in facts.evaluation for line in _evaluation(scores, facts.groups)),
        "## Load",
        "",
        *(_VLLM if form == PACKED_FORMAT and reader == VLLM else _PLAIN),
    ]
    if form == PACKED_FORMAT and reader == TRANSFORMERS:
        lines += ["", "This needs `pip install compressed-tensors`."]
    return _front_matter(facts, form) + "\n".join(lines) + "\n"


_PLAIN = (
    "```python",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
    "```",
)
_VLLM = ("```sh", "vllm serve path/to/this/folder", "```")
_WEIGHTS = {
    DENSE_FORMAT: "safetensors, every weight in the dense model's type",
    PACKED_FORMAT: "compressed-tensors, pack-quantized: integers and their scales",
}


def _front_matter(facts: CardFacts, form: str) -> str:
    # Hub language codes have no script: zh-Hans and zh-Hant are zh there, eng_Latn is en.
    matter: dict[str, Any] = {"language": list(dict.fromkeys(base_language(code) for code in facts.languages))}
    if facts.base_model is not None:
        matter["base_model"] = facts.base_model
    matter["library_name"] = "transformers"
    matter["tags"] = ["mbs_ray", "multilingual-brain-surgeon", facts.method["name"], form]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n\n"


def _spec(spec: Mapping[str, Any]) -> str:
    """Format a spec as ``gptq: bits 4, group_size 32``; a field that is not set is left out."""
    fields = [f"{key} {value}" for key, value in sorted(spec.items()) if key != "name" and value is not None]
    return f"{spec['name']}: {', '.join(fields)}" if fields else str(spec["name"])


def _top_up(segments: Mapping[str, int]) -> str:
    spread = ", ".join(f"{code} {segments[code]:,}" for code in table_order(segments))
    return f"- for experts that too few tokens reach, {sum(segments.values()):,} of the segments: {spread}"


def _budget(budget: Mapping[str, Any]) -> str:
    amounts = Amounts.from_plain(budget["amounts"])
    dealt = f"{amounts.least:g} to {amounts.most:g} by linear, {budget['mean']:.4g} on average"
    return f"- {amounts.field}: {dealt}, rule {budget['rule']}"


def _evaluation(scores: EvaluationScores, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Make a table with a row per language, and the geometric means of the increases, of all and by group."""
    header = ("language", "perplexity dense", "compressed", "increase", "bits per byte dense", "compressed")
    rows = []
    logarithms = {}
    for language in table_order(scores.perplexity):
        (dense, now), (dense_bits, bits) = scores.perplexity[language], scores.bits_per_byte[language]
        # A ratio to an infinite perplexity is 0.
        logarithms[language] = math.log(now / dense) if now / dense else -math.inf
        compressed = _with_interval(now, scores.perplexity_interval.get(language))
        increase = _with_interval(now / dense, scores.increase_interval.get(language))
        rows.append((language, f"{dense:.3f}", compressed, increase, f"{dense_bits:.4f}", f"{bits:.4f}"))

    def mean(row: str, languages: Sequence[str]) -> str:
        own = [logarithms[language] for language in languages]
        total = math.fsum(own) if all(map(math.isfinite, own)) else sum(own)
        return _with_interval(math.exp(total / len(own)), scores.increase_interval.get(row))

    of_groups = [f"- {words}: {mean(group, groups[group])}" for group, words in GROUP_WORDS.items() if group in groups]
    brackets = ["In brackets: 95 % intervals, by a bootstrap over the segments of the text."]
    return [
        f"## Perplexity: {scores.name}",
        "",
        *_table(header, rows),
        "",
        f"Geometric mean of the increase: {mean('geomean', list(logarithms))}. Perplexities compare models on one "
        "language, bits per byte",
        "languages as well.",
        *(["", "Geometric mean of the increase, by group:", "", *of_groups, ""] if of_groups else []),
        *(brackets if scores.increase_interval or scores.perplexity_interval else []),
        "",
    ]


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    """Format a value as ``1.043 (1.021 … 1.066)``, or alone where it has no interval."""
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} … {interval[1]:.3f})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Make a table in Markdown: names in the first column, numbers in the others."""
    return [
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
