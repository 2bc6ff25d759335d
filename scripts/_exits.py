"""Exit codes of all programs, and what an error says at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path

import _packages

#: docs/programs.md has them for people, docs/snapshots.md for who starts programs again.
DONE, FAILED, BAD_INPUT, LOST, FAULT, STOPPED = 0, 1, 2, 69, 70, 75
INTERRUPTED, CLOSED, TERMINATED = 130, 141, 143

#: What each means in every program.
MEANINGS = {
    DONE: "done",
    FAILED: "failed: the last lines say why",
    BAD_INPUT: "an option or the data are wrong; nothing was begun",
    FAULT: "a fault of Retape's own; --debug shows where",
    INTERRUPTED: "stopped by Ctrl-C",
    CLOSED: "the reader of the output closed it",
    TERMINATED: "stopped by SIGTERM",
}

#: What is said where nothing can be printed any more, as on a full disk.
NO_OUTPUT = "cannot write the output"
#: Errors that say what somebody gave wrongly, and those that say what went wrong.
GIVEN_WRONGLY = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, IsADirectoryError)  # fmt: skip
WENT_WRONG = (RuntimeError, MemoryError, OSError, ImportError)
#: Of these, some are ours all the same.
_OURS = (RecursionError, NotImplementedError)

_ROOT = Path(__file__).resolve().parents[1]
#: Files of ours; a person may work in the same folder.
_OWN = [_ROOT / name for name in (*_packages.OWN, "scripts")]


class Terminated(SystemExit):
    """SIGTERM came."""


def told(meanings: Mapping[int, str]) -> str:
    """The section of `--help` on exit codes; a program's own meanings come before those of all."""
    every = {**MEANINGS, **meanings}
    return "Exit codes:\n" + "\n".join(f"  {code:>3}  {every[code]}" for code in sorted(every))


def code_of(error: BaseException, codes: Mapping[type[Exception], int]) -> int:
    """Returns the exit code of an error: its own in this program, or what its kind has everywhere."""
    for kind, code in codes.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, _OURS) or (isinstance(error, TypeError) and not _was_raised(error)):
        return FAILED if _foreign_place(error) else FAULT
    if isinstance(error, GIVEN_WRONGLY):
        return BAD_INPUT
    return FAILED if isinstance(error, WENT_WRONG) or _foreign_place(error) else FAULT


def words(error: BaseException, code: int) -> str:
    """Returns what a person reads of an error, in a line or more."""
    if code == STOPPED:  # which is no error
        first = str(error)
    elif code == FAULT:
        first = (
            f"error: {type(error).__name__}: {error}\n"
            f"This is a fault of Retape, at {_place(traceback.extract_tb(error.__traceback__))}, and not of what it was given. "
            "Run it again with --debug, and report what it shows."
        )
    elif isinstance(error, ImportError):
        first = f"error: {error}; python scripts/doctor.py says what is not installed here"
    elif isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        printing = not files and Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent.name == "rich"
        what = f"{NO_OUTPUT}: " if printing else ""
        first = f"error: {what}{error.strerror}{''.join(f': {name}' for name in files)}"
    elif code != FAILED or (isinstance(error, WENT_WRONG) and not isinstance(error, _OURS)):
        first = f"error: {error}" if str(error) else f"error: {type(error).__name__}"
    else:
        first = f"error: {type(error).__name__}: {error}, at {_foreign_place(error)}"
    return "\n".join([first, *getattr(error, "__notes__", [])])


def _was_raised(error: BaseException) -> bool:
    """Whether a program raised an error on purpose, and not Python over what the program did."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and (frames[-1].line or "").lstrip().startswith("raise ")


def _foreign_place(error: BaseException) -> str | None:
    """Where in a file of a person's own an error arose; None where none had a part in it: a model of one's own may be wrong."""
    own = [Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_paths()["stdlib"]), *_OWN]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith("<")
        and not any(Path(frame.filename).resolve().is_relative_to(folder) for folder in own)
    ]
    return _place(theirs) if theirs else None


def _place(frames: list[traceback.FrameSummary]) -> str:
    if not frames:
        return "an unknown place"
    path = Path(frames[-1].filename)
    near = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path
    return f"{near}, line {frames[-1].lineno}"


def let_go_of_output() -> None:
    """Writes out what is still to be printed, if that can be, so that Python does not fail over it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()


def drop_output() -> None:
    """Sends what is still to be printed nowhere."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
