"""How many bytes of text each token stands for."""

import numpy as np
import numpy.typing as npt

from mbs_ray.errors import InputError

LARGEST_BYTES = np.iinfo(np.int32).max


def character_bytes(text: str) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each character."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)


def token_bytes(sizes: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bytes each token stands for, from those of each character and the character offsets of the tokens' ends.

    A token gets the bytes up to the largest end so far that none before it had, the last one the rest as well.
    They add up to the text's bytes also where several tokens share a character, or none has the spaces.
    """
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    reached = bytes_before[np.maximum.accumulate(ends)]
    reached[-1] = bytes_before[-1]
    return np.diff(reached, prepend=0)


def checked(sizes: npt.NDArray[np.int64], label: str) -> npt.NDArray[np.int32]:
    """The bytes of a document's tokens. InputError where a token stands for more than a file of segments holds."""
    if (largest := sizes.max(initial=0)) > LARGEST_BYTES:
        raise InputError(f"{label}: one token stands for {largest} bytes of text")
    return sizes.astype(np.int32)
