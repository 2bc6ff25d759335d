"""Ctrl-C and SIGTERM at moments when they would leave something half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Stopped(Exception):  # noqa: N818  (nothing has failed)
    """A run was asked to stop, and has stopped after a step.

    Attributes:
        step: How many steps are done.
        folder: The run's folder, where its last snapshot is; None for a run without one, of which nothing is left.
    """

    def __init__(self, step: int, steps: int, folder: Path | None) -> None:
        super().__init__(step, steps, folder)
        self.step, self.folder = step, folder

    def __str__(self) -> str:
        step, steps, folder = self.args
        saved = "without a run folder nothing was saved" if folder is None else f"its state is saved in {folder}"
        return f"stopped after step {step} of {steps}; {saved}"


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
