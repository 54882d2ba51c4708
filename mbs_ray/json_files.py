"""The one way to read a JSON file that mbs_ray wrote itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError, one_line

#: What to do about a file of a run or sweep that is damaged, where nothing better can be said.
ANEW = "remove it, and give the mbs command again that wrote it"


@contextmanager
def own_content(path: Path, cure: str = ANEW) -> Iterator[None]:
    """Turn what the body makes of a cut or damaged file into one :class:`InputError` that names it and its cure."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cut or damaged ({one_line(error)}); {cure}") from error


def read_json(path: Path, cure: str = ANEW) -> Any:
    """Read the object or list in a file. Raises :class:`InputError` with the file and, if it is damaged, the cure."""
    with own_content(path, cure):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict | list):
            raise ValueError("neither an object nor a list")
        return content


def read_json_if_there(path: Path, cure: str = ANEW) -> Any | None:
    """Read as :func:`read_json` does; None where there is no such file."""
    return read_json(path, cure) if path.is_file() else None
