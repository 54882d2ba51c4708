"""How many bytes of text each token stands for: in the normal form NFC, whatever a tokenizer makes of the text."""

import sys
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

from mbs_ray.errors import InputError

LARGEST_BYTES = np.iinfo(np.int32).max


def character_bytes(text: str) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each character in NFC; where several become one, all its bytes are those of the first of them."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    if unicodedata.is_normalized("NFC", text):
        return sizes
    first = ~np.isin(code_points, _joining())
    first[0] = True
    starts = np.flatnonzero(first).tolist()
    for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
        composed = unicodedata.normalize("NFC", text[start:stop])
        if composed != text[start:stop]:
            sizes[start:stop] = 0
            sizes[start] = len(composed.encode())
    return sizes


@cache
def _joining() -> npt.NDArray[np.uint32]:
    """Characters that may become one with those before them, or change places with them, in NFC."""
    # The second of any two that NFC joins; those of Hangul's vowels and final consonants are joined by rule.
    found = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    decomposed = {}
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.combining(character):
            found.add(number)
        if (parts := unicodedata.decomposition(character)) and not parts.startswith("<"):
            first, *rest = (int(part, 16) for part in parts.split())
            decomposed[number] = first
            found.update(rest)
    # A character that itself begins with one of these when it is taken apart.
    while further := {number for number, first in decomposed.items() if first in found and number not in found}:
        found |= further
    return np.array(sorted(found), np.uint32)


def token_bytes(sizes: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Count the bytes each token stands for, from each character's bytes and the character offsets of token ends.

    A token gets the bytes up to the largest end so far that none before it had, the last one the rest as well.
    They add up to the text's bytes also where several tokens share a character, or none has the spaces.
    """
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    reached = bytes_before[np.maximum.accumulate(ends)]
    reached[-1] = bytes_before[-1]
    return np.diff(reached, prepend=0)


def checked(sizes: npt.NDArray[np.int64], label: str) -> npt.NDArray[np.int32]:
    """Return the bytes of a document's tokens. InputError where one stands for more than a file of segments holds."""
    if (largest := sizes.max(initial=0)) > LARGEST_BYTES:
        raise InputError(f"{label}: one token stands for {largest} bytes of text")
    return sizes.astype(np.int32)
