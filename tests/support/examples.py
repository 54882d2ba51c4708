"""How many examples a property is tried on: all of them under the profile ``ci``, a third by default."""

from collections.abc import Callable
from typing import Any

from hypothesis import settings


def examples(count: int, **others: Any) -> Callable[[Any], Any]:
    """Settings of a property that is worth so many examples."""
    whole = settings.get_current_profile_name() == "ci"
    return settings(deadline=None, max_examples=count if whole else -(-count // 3), **others)
