"""A model's distribution: which share of its training data each language had."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError, one_line
from mbs_ray.languages.codes import check_code
from mbs_ray.languages.facts import LANGUAGES, PAPER_LANGUAGES, table_order

DISTRIBUTION_FILE = "language_distribution.json"
#: Units of amounts that can be turned into each other.
BYTES, TOKENS = "bytes", "tokens"
BLOOM_ON_THE_HUB = re.compile(r"bigscience/bloomz?(-[\w.-]+)?")


@dataclass(frozen=True)
class Distribution:
    """How much of each language a model was trained on.

    `amounts` maps a language to a positive finite number in `unit` (bytes, tokens); `source` says where from.
    """

    source: str
    unit: str
    amounts: Mapping[str, float]

    def amounts_of(self, languages: Iterable[str]) -> dict[str, float]:
        """Return the amounts of these languages, in their order; InputError for one the distribution lacks."""
        asked = tuple(languages)
        for code in asked:
            if code not in self.amounts:
                raise InputError(
                    f"language {code!r} is not in the distribution ({self.source}): "
                    f"it has {', '.join(table_order(self.amounts))}"
                )
        return {code: self.amounts[code] for code in asked}

    def in_tokens(
        self, languages: Sequence[str], bytes_per_token: Callable[[Sequence[str]], Mapping[str, float]]
    ) -> "Distribution":
        """Return the amounts of these languages in tokens. InputError where they are not in bytes, before any count."""
        if self.unit != BYTES:
            raise InputError(
                f"sampling proportional: unit: tokens needs a distribution in bytes or tokens, and {self.source} has "
                f"{self.unit!r}; take unit: bytes, which takes its amounts as they are"
            )
        amounts = self.amounts_of(languages)
        counted = bytes_per_token(languages)
        tokens = {code: amount / counted[code] for code, amount in amounts.items()}
        return Distribution(f"{self.source}, in tokens", TOKENS, tokens)

    def shares(self, languages: Iterable[str]) -> dict[str, float]:
        """Compute the share of each language among those asked for; they add up to 1."""
        amounts = self.amounts_of(languages)
        total = math.fsum(amounts.values())
        return {code: amount / total for code, amount in amounts.items()}


class UnknownDistributionError(InputError):
    """Nothing says how much of which language a model was trained on."""


ROOTS = Distribution(
    source="ROOTS, arXiv 2211.05100",
    unit=BYTES,
    amounts={code: float(language.roots_bytes) for code, language in LANGUAGES.items()},
)


def parse_languages(asked: str | Iterable[str], distribution: Distribution | None = None) -> tuple[str, ...]:
    """Languages asked for, in table order: "paper" (its 20), "all", a list "en,sw", or the codes themselves.

    "all" are those of the model's distribution. Any well-formed code will do: whether there is text of it, the corpus
    knows. InputError for one that is not well-formed, one named twice, none, and "all" where no distribution is known.
    """
    if asked == "paper":
        return PAPER_LANGUAGES
    if asked == "all":
        if distribution is None:
            raise InputError(
                'languages: "all" are those of the model\'s distribution, and none is known: name them, as en,sw,ta, '
                f"or put {DISTRIBUTION_FILE} beside the checkpoint"
            )
        return table_order(distribution.amounts)
    codes = [code.strip() for code in asked.split(",")] if isinstance(asked, str) else list(asked)
    if not codes or codes == [""]:
        raise InputError('no language asked for: give "paper", "all" or codes, as en,sw,ta')
    for position, code in enumerate(codes):
        check_code(code)
        if code in codes[:position]:
            raise InputError(f"language {code!r} is named twice")
    return table_order(codes)


def languages_of(model: str, asked: str, revision: str | None = None) -> tuple[str, ...]:
    """:func:`parse_languages` for a model that is only looked at; its distribution is read where "all" needs it."""
    if asked != "all":
        return parse_languages(asked)
    try:
        return parse_languages(asked, model_distribution(model, revision=revision))
    except UnknownDistributionError:
        return parse_languages(asked)


def model_distribution(model: str, file: Path | None = None, revision: str | None = None) -> Distribution:
    """Return the distribution of a model; the network is asked only for one that is on the hub, and no BLOOM.

    `file` wins; then `language_distribution.json` in the model's directory; then ROOTS for BLOOM, known by
    its hub id (bigscience/bloom…, bigscience/bloomz…) or the model_type in its directory's config.json; then
    `language_distribution.json` of its hub repository. UnknownDistributionError if none is there, InputError if a file
    is not of the form {"source": text, "unit": text, "languages": {code: amount}} with well-formed codes and positive
    finite amounts.
    """
    if file is not None:
        return _read_distribution(file)
    folder = Path(model).expanduser()
    if (folder / DISTRIBUTION_FILE).is_file():
        return _read_distribution(folder / DISTRIBUTION_FILE)
    config = folder / "config.json"
    if BLOOM_ON_THE_HUB.fullmatch(model) or (config.is_file() and _model_type(config) == "bloom"):
        return ROOTS
    fetched = None if folder.exists() else _from_hub(model, revision)
    if fetched is not None:
        return _read_distribution(fetched)
    raise UnknownDistributionError(
        f"no language distribution known for model {model!r}: give a JSON file "
        '{"source": …, "unit": …, "languages": {code: amount}} as distribution (--distribution), '
        f"or put it beside the checkpoint as {DISTRIBUTION_FILE}"
    )


def _from_hub(model: str, revision: str | None) -> Path | None:
    """Return the file of a hub repository; None where it has none, or is none, or the hub cannot be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model, DISTRIBUTION_FILE, revision=revision))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object")
    return content


def _model_type(config: Path) -> object:
    return _read_json_object(config).get("model_type")


def _read_distribution(path: Path) -> Distribution:
    content = _read_json_object(path)
    for field in ("source", "unit"):
        if not isinstance(content.get(field), str):
            raise InputError(f"{path}: field {field!r} must be a text")
    languages = content.get("languages")
    if not isinstance(languages, dict) or not languages:
        raise InputError(f"{path}: field 'languages' must map at least one language to its amount")
    for code, amount in languages.items():
        check_code(code, str(path))
        if not _is_positive_number(amount):
            raise InputError(f"{path}: field 'languages.{code}' must be a positive finite number, not {amount!r}")
    amounts = {code: float(languages[code]) for code in table_order(languages)}
    return Distribution(source=content["source"], unit=content["unit"], amounts=amounts)


def _is_positive_number(amount: object) -> bool:
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        return False
    try:
        return math.isfinite(float(amount)) and amount > 0
    except OverflowError:
        return False
