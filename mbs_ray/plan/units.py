"""Sizes as people write and read them."""

import re

from mbs_ray.errors import InputError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?\s*", re.IGNORECASE)


def parse_size(what: str, written: str) -> int:
    """Parse ``80GB`` (10⁹), ``80GiB`` (2³⁰) or plain bytes. Raises :class:`InputError` naming ``what``."""
    match = _WRITTEN.fullmatch(written)
    if match is None or (match[3] and not match[2]):
        raise InputError(f"{what}: {written!r} is no size; write 80GB, 80GiB, 1.5TB or bytes")
    power = " KMGTP".index(match[2].upper()) if match[2] else 0
    unit = 1024**power if match[3] else _UNITS[match[2].upper()]
    return round(float(match[1]) * unit)


def parse_rate(what: str, written: str) -> float:
    """Parse operations or bytes per second: ``300T``, ``2GB/s`` or a plain number."""
    return float(parse_size(what, re.sub(r"(?i)(flops?|/s)", "", written)))


def format_gib(size: float) -> str:
    """Format bytes as ``12.3 GiB``; MiB below one, TiB from a thousand."""
    if size >= 1000 * 2**30:
        return f"{size / 2**40:,.2f} TiB"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def format_operations(count: float) -> str:
    """Format operations as ``12.3 TFLOP``, with the largest unit of which there is one."""
    power = max((one for one in range(1, 6) if count >= 1000**one), default=1)
    return f"{count / 1000**power:,.1f} {'kMGTP'[power - 1]}FLOP"


def duration(seconds: float) -> str:
    """Format seconds as ``4.2 s``, ``3 min 10 s`` or ``5 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
