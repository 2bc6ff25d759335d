"""`train.py --watch`: a run that another process makes, drawn live in a terminal, or as plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _console import console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distributed.run_state import RankState, RunState, WatchedRun
from framework import format_size

#: Seconds between two looks.
_EVERY = 0.5
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {
    "running": "cyan",
    "starting": "cyan",
    "finished": "green",
    "ended": "green",
    "failed": "red",
    "gone": "red",
}
#: Seconds without a step after which a run is said to be silent; of slow steps three.
_SILENT = 30.0


def watch(path: Path) -> RunState:
    """Shows a run until it is over, and returns its last state.

    Raises:
        FileNotFoundError: There is no run.
    """
    run = WatchedRun(path)
    if console.quiet:
        return _until_over(run, lambda state: None)
    if not console.is_terminal:
        return _until_over(run, _Lines().tell)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        return _until_over(run, lambda state: live.update(drawn(state, console.width), refresh=True))


def _until_over(run: WatchedRun, show: Callable[[RunState], None]) -> RunState:
    while True:
        state = run.state()
        show(state)
        if state.over:
            return state
        time.sleep(_EVERY)


class _Lines:
    """Tells a run in lines: when its status changes, each twentieth of its steps, and validations."""

    def __init__(self) -> None:
        self._status, self._step, self._validated = "", -1, None

    def tell(self, state: RunState) -> None:
        every = max(1, state.steps // 20)
        new = state.status != self._status
        if new or state.step // every > self._step // every or state.validation_step != self._validated:
            for words in (line(state), *(told_rank(rank) for rank in state.ranks if new and state.over)):
                console.print(words, markup=False)
        if new and state.over:
            for name, value in ending(state):
                console.print(f"{name}  {value}", markup=False)
        self._status, self._step, self._validated = state.status, state.step, state.validation_step


def line(state: RunState) -> str:
    """A run in one line."""
    parts = [f"{state.status}  step {state.step}/{state.steps}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.4f}")
    parts += [words for words in (told_validation(state), told_speed(state), told_memory(state)) if words]
    return "  ".join(parts)


def drawn(state: RunState, width: int) -> RenderableType:
    """A run as it is drawn in a terminal of so many columns."""
    # Not to the last column: what a terminal echoes of Ctrl-C would begin another line, which is drawn over wrongly.
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.width = width - 3
    rows.add_column(justify="right", style="bold", no_wrap=True)
    rows.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    head = Text.assemble((state.status, _COLOURS.get(state.status, "yellow")), "  ", state.path)
    if state.resumed:
        head.append(f"  resumed {state.resumed} time{'s' if state.resumed > 1 else ''}")
    rows.add_row(state.model, head)
    rows.add_row("step", _bar(f"{state.step}/{state.steps}", state.step, state.steps, told_eta(state)))
    if state.loss is not None:
        curve = sparkline(state.losses, max(10, min(60, width - 40)))
        rows.add_row("loss", Text.assemble(f"{state.loss:.4f}  ", (curve, "cyan")))
    if words := told_validation(state):
        rows.add_row("validation", words.removeprefix("validation "))
    if words := told_speed(state):
        rows.add_row("speed", words)
    if state.peak_bytes is not None:
        limit = state.budget_bytes
        rows.add_row("memory", _bar(told_memory(state), state.peak_bytes, limit) if limit else told_memory(state))
    if state.rss_peak_bytes is not None:
        limit = state.process_budget_bytes
        told = f"{format_size(state.rss_peak_bytes)}{f' of {format_size(limit)}' if limit else ''} resident at the peak"
        rows.add_row("process", _bar(told, state.rss_peak_bytes, limit) if limit else told)
    for rank in state.ranks:
        colour = _COLOURS.get(rank.state, "yellow")
        rows.add_row(f"rank {rank.rank}", Text.assemble((rank.state, colour), f"  {told_rank(rank, short=True)}"))
    if state.snapshots:
        rows.add_row(
            "snapshots", ", ".join(f"step {s.step} {told_seconds(s.age_seconds)} ago" for s in state.snapshots)
        )
    place = max(len(str(cell)) for cell in rows.columns[0].cells) + 2
    parts: list[RenderableType] = [rows]
    for name, value in ending(state) if state.over else ():
        # A command or a file is copied whole: where it has no room beside its name, it has a line to itself.
        gap = "  " if place + len(value) < width else "\n"
        parts.append(Text(f"{name:>{place - 2}}{gap}{value}"))
    return Group(*parts)


def ending(state: RunState) -> list[tuple[str, str]]:
    """What is told of a run that is over: a name and a value each."""
    told = [("why", state.failure)] if state.failure else []
    if state.status == "gone":
        told.append(("why", f"its process is no more and has not said why; the logs are in {state.path}/logs"))
    if state.status != "finished" and state.snapshots:
        told.append(("go on", f"python scripts/train.py --resume {state.path}"))
    return [*told, *([("report", state.report)] if state.report else [])]


def told_validation(state: RunState) -> str:
    if state.validation_loss is None:
        return ""
    right = "" if state.validation_accuracy is None else f" ({state.validation_accuracy:.1%} right)"
    return f"validation {state.validation_loss:.4f}{right} at step {state.validation_step}"


def told_speed(state: RunState) -> str:
    if state.tokens_per_second is None or state.step_seconds is None:
        return ""
    told = f"{state.tokens_per_second:,.0f} targets/s, {state.step_seconds * 1e3:,.0f} ms a step"
    silent = state.age_seconds is not None and state.age_seconds > max(_SILENT, 3 * state.step_seconds)
    return f"{told}; no step for {told_seconds(state.age_seconds or 0)}" if silent and not state.over else told


def told_memory(state: RunState) -> str:
    if state.live_bytes is None or state.peak_bytes is None:
        return ""
    limit = f" of {format_size(state.budget_bytes)}" if state.budget_bytes else ""
    return f"live {format_size(state.live_bytes)}, peak {format_size(state.peak_bytes)}{limit}"


def told_eta(state: RunState) -> str:
    return f"{told_seconds(state.eta_seconds)} left" if state.eta_seconds is not None else ""


def told_rank(rank: RankState, short: bool = False) -> str:
    where = f"process {rank.process}" + (f" on {rank.node}" if rank.node else "") if rank.process is not None else ""
    warned = f"{rank.warnings} warning{'s' if rank.warnings > 1 else ''}" if rank.warnings else ""
    said = rank.said.removeprefix("end: ").partition(", parameters")[0] if rank.state in ("failed", "ended") else ""
    told = ", ".join(part for part in (where, warned, said) if part)
    return told if short else f"rank {rank.rank}  {rank.state}{f'  {told}' if told else ''}"


def told_seconds(seconds: float) -> str:
    """A time in words.

    >>> told_seconds(7.4), told_seconds(95), told_seconds(3700)
    ('7 s', '1:35', '1:01:40')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as a line of bars, the last `width` of means of them.

    >>> sparkline([1.0, 2.0, 4.0, 8.0], 4)
    '▁▂▄█'
    """
    each = max(1, -(-len(values) // width))
    means = [sum(values[i : i + each]) / len(values[i : i + each]) for i in range(0, len(values), each)]
    least, most = min(means), max(means)
    scale = (len(_BARS) - 1) / (most - least) if most > least else 0.0
    return "".join(_BARS[round((value - least) * scale)] for value in means)


def _bar(words: str, done: int, total: int, after: str = "") -> Table:
    """Words, and a bar beside them."""
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_row(words, ProgressBar(total=total, completed=min(done, total)), after or f"{done / max(1, total):.0%}")
    return row
