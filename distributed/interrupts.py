"""Ctrl-C and SIGTERM at moments when they would leave something half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C and SIGTERM inside the block."""
    with _handled(signal.SIG_IGN):
        yield


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Delivers the first Ctrl-C or SIGTERM that comes inside the block at its end; a second one at once."""
    came: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def defer(number: int, frame: FrameType | None) -> None:
        if came:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        came.append(number)

    with _handled(defer):
        yield
    for number in came[:1]:
        signal.raise_signal(number)


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # the main thread alone gets signals
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
