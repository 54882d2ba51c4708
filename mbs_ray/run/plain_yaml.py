"""YAML as people write it: safe-loaded, with numbers such as ``3e-1``, which YAML 1.1 takes for a text."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2 (its section 10.3.2)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """What a text in YAML says. Raises yaml.YAMLError where it is none."""
    # Safe: the class is PyYAML's SafeLoader but for one more way to write a number.
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:
        # PyYAML makes dates and numbers of texts that look like some, and lets the errors of that through.
        raise yaml.YAMLError(str(error)) from None
