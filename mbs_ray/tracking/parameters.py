"""Parameters of a run for MLflow: flat, within MLflow's limits, and without secrets."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.run.journal import check_name
from mbs_ray.text.redaction import without_secrets

_LOG = logging.getLogger(__name__)

_LONGEST_VALUE = 6000
# "token" is a secret, "tokens" and "tokenizer" are not.
_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|credential|(api|access|private)[_-]?key|token(?![si])", re.IGNORECASE
)


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested mappings to dotted names with values as text; names that look like a secret are left out.

    Raises InputError for a name that MLflow would refuse and for two values of one name.
    """
    flat: dict[str, str] = {}
    for key, value in _leaves(params, ""):
        check_name(key)
        if key in flat:
            raise InputError(f"parameter {key!r} is given twice; rename one of the two")
        if looks_secret(key):
            _LOG.info("parameter %s is not logged: its name looks like a secret", key)
        else:
            flat[key] = without_secrets(str(value))[:_LONGEST_VALUE]
    return flat


def looks_secret(key: str) -> bool:
    """Return whether a value of this name may be a password, a token or a key."""
    return _SECRET.search(key) is not None


def _leaves(params: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
