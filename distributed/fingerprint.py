"""The fingerprint of a process: all that the bits of its results depend on besides the program and the data.

Products, exponentials and sums have other last bits with another NumPy, another BLAS or core type of it, other CPU features, and another
number of threads. So workers compare fingerprints before they train together, and a resumed run compares its own with the snapshot's.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_info


class FingerprintMismatch(RuntimeError):  # noqa: N818  (the name that callers act on)
    """Processes would not compute the same bits; the message names who differs, and in what."""


#: What a process computes with, in words by name.
Fingerprint = dict[str, str]


def fingerprint(threads: int) -> Fingerprint:
    """Returns the fingerprint of this process.

    Args:
        threads: BLAS threads of its products.
    """
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return {
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "numpy": np.__version__,
        "blas": _blas(),
        "cpu_features": " ".join(sorted({*simd.get("baseline", []), *simd.get("found", [])})),
        "threads": str(threads),
    }


def _blas() -> str:
    """NumPy's BLAS: library, version, and the core type that it has chosen its kernels for."""
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    own = [library for library in found if "numpy" in library["filepath"]]  # others may have brought theirs
    words = {
        " ".join(str(library.get(key) or "") for key in ("internal_api", "version", "architecture")).strip()
        for library in own or found
    }
    return ", ".join(sorted(words)) or "unknown"


def differences(prints: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns what differs between fingerprints of named processes, a line for each entry.

    >>> differences({"rank 0": {"numpy": "2.1", "threads": "1"}, "rank 1": {"numpy": "2.2", "threads": "1"}})
    ["numpy: '2.1' on rank 0; '2.2' on rank 1"]
    """
    told = []
    for entry in sorted({entry for each in prints.values() for entry in each}):
        who: dict[str | None, list[str]] = {}
        for name, each in prints.items():
            who.setdefault(each.get(entry), []).append(name)
        if len(who) > 1:
            values = _without_common_words([value or "" for value in who]) if entry == "cpu_features" else list(who)
            told.append(
                f"{entry}: " + "; ".join(f"{v!r} on {', '.join(n)}" for v, n in zip(values, who.values(), strict=True))
            )
    return told


def _without_common_words(values: Sequence[str]) -> list[str]:
    """Of lists of words what not all have: there are dozens of CPU features."""
    common = set.intersection(*(set(value.split()) for value in values))
    return [" ".join(word for word in value.split() if word not in common) for value in values]


def require_equal(prints: Sequence[Mapping[str, str]], allowed: bool) -> bool:
    """Compares the fingerprints of all ranks.

    Args:
        prints: By rank.
        allowed: Whether they may differ.

    Returns:
        Whether they are equal.

    Raises:
        FingerprintMismatch: They differ, and may not.
    """
    told = differences({f"rank {rank}": each for rank, each in enumerate(prints)})
    if told and not allowed:
        raise FingerprintMismatch(
            "\n  ".join(
                [
                    "the workers would not compute the same bits:",
                    *told,
                    "take workers on equal machines, or allow it with --allow-mixed-cpus: then the same run may have other bits "
                    "on another day",
                ]
            )
        )
    return not told
