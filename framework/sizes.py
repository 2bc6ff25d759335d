"""Sizes in bytes as people write them: ``64MiB``, ``1.5GB``, ``4096``."""

import re

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Reads a size in bytes.

    Args:
        text: A number with an optional unit: B, kB, MB, GB, TB (powers of 1000) or
            KiB, MiB, GiB, TiB (powers of 1024); case does not matter.

    Returns:
        Whole bytes, rounded down, so that a budget is never read as larger than written.

    Raises:
        ValueError: The text is no size, or is not positive.

    >>> parse_size("64MiB"), parse_size("1.5GB")
    (67108864, 1500000000)
    """
    match = _PATTERN.fullmatch(str(text))
    unit = match.group(2).lower() if match else None
    if match is None or unit not in _UNITS:
        raise ValueError(f"{text!r} is no size in bytes; write for example 64MiB, 1.5GB or 4096")
    whole, _, fraction = match.group(1).partition(".")
    # Integer arithmetic: a float would lose bytes above 2**53.
    numerator = int(whole + fraction) * _UNITS[unit]
    size: int = numerator // 10 ** len(fraction)
    if size <= 0:
        raise ValueError(f"{text!r} is no usable size: a size must be at least one byte")
    return size


def format_size(size: float) -> str:
    """Writes bytes for a person, with binary units.

    >>> format_size(67108864), format_size(1000)
    ('64.0 MiB', '1000 B')
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(round(value, 1)) < 1024 or unit == "TiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit always returns")
