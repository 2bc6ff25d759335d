"""What all programs share: how they start, print, fail and stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import _packages

if (_told := _packages.fault()) is not None:  # at import, since the programs import these packages next
    sys.exit(f"error: {_told}")

import _exits
from _configuration import written
from _exits import BAD_INPUT, CLOSED, DONE, FAILED, FAULT, INTERRUPTED, LOST, STOPPED, TERMINATED, Terminated
from _options import Command, Common, Default, parse
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from framework.durable import ASIDE, write_all, written_aside

__all__ = [
    "BAD_INPUT",
    "DONE",
    "FAILED",
    "FAULT",
    "INTERRUPTED",
    "LOST",
    "STOPPED",
    "TERMINATED",
    "Common",
    "Ended",
    "Terminated",
    "bar",
    "console",
    "errors",
    "fact",
    "measuring",
    "require_new",
    "run",
    "show",
    "waiting",
    "write",
]


class _Console(Console):
    """One whose output may be closed by the reader: rich itself would end the program with an error's code."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _streams() -> None:
    """Makes sure that there is somewhere to print, and that no character is an error where the encoding lacks it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        with suppress(AttributeError):  # a test's
            getattr(sys, name).reconfigure(errors="replace")


_streams()
#: People read this; it is plain where there is no terminal.
console = _Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 110)
errors = _Console(stderr=True, soft_wrap=True, highlight=False)


def fact(name: str, words: str) -> None:
    """Prints what is told of something: its name, and words that on a terminal go on below each other, not below the name."""
    lines = [words]
    if console.is_terminal:
        lines = textwrap.wrap(words, max(20, console.width - 14), break_long_words=False, break_on_hyphens=False)
    console.print(Text.assemble((f"{name:>12}", "bold"), "  ", f"\n{'':14}".join(lines)))


@contextmanager
def waiting(words: str = "") -> Iterator[Callable[[str], None]]:
    """Shows on a terminal that something runs, and gives what changes its words. Elsewhere it does nothing.

    Rich would start its thread there, too: two such threads that are there at once, by chance, take 8 MiB more of address space for a stack.
    """
    if console.quiet or not console.is_terminal:
        yield lambda words: None
        return
    with console.status(words) as status:
        yield status.update


@contextmanager
def bar(words: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """Gives what is told how far something is: done, of how much, and the present part's name. A bar on a terminal, else nothing."""
    if console.quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn(f"{words} {{task.completed}}/{{task.total}}"),
        BarColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task("", total=None, visible=False)
        yield lambda done, total, name: drawn.update(task, completed=done, total=total, description=name, visible=True)


def measuring() -> AbstractContextManager[Callable[[int, int, str], None] | None]:
    """Gives what `measure_times` tells how far it is."""
    return bar("measuring step times")


@dataclass(frozen=True)
class Ended:
    """What a program returns that is through, and whose exit code says what it found.

    Attributes:
        result: What `--json` prints.
        code: The exit code.
    """

    result: dict[str, Any]
    code: int


def run(
    main: Callable[[Command], dict[str, Any] | Ended],
    default: Default[Command],
    description: str,
    codes: Mapping[type[Exception], int] | None = None,
    meanings: Mapping[int, str] | None = None,
) -> NoReturn:
    """Reads the options, runs a program, and ends the process with its exit code.

    Args:
        main: Gets the options and returns what `--json` prints as the last line.
        default: The options' defaults; its class says what there is. A function makes them of the arguments.
        description: For `--help`.
        codes: Exit codes of errors that have their own.
        meanings: What exit codes mean, for `--help`, where that is not what they mean everywhere.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    debug, code = "--debug" in sys.argv, DONE
    try:
        # The working directory is where people keep their own models.
        sys.path.insert(1, str(Path.cwd()))
        options = parse(default, f"{description.rstrip()}\n\n{_exits.told(meanings or {})}\n", sys.argv[1:])
        debug = getattr(options, "debug", debug)
        code = _run(main, options)
    except (KeyboardInterrupt, Terminated) as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        told = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        _say("\n".join([f"stopped by {told}", *getattr(stop, "__notes__", [])]), None)
        code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        _exits.drop_output()
        code = CLOSED
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code = _exits.code_of(error, codes or {})
        _say(_exits.words(error, code), None if code == STOPPED else "red")
    _exits.let_go_of_output()
    sys.exit(code)


def _run(main: Callable[[Command], dict[str, Any] | Ended], options: Command) -> int:
    """Runs a program with its options, saves them if that is asked for, and returns its exit code."""
    common = options if isinstance(options, Common) else Common()
    console.quiet = common.quiet
    require_new({"--save-config": common.save_config}, common.force)
    try:
        found = main(options)
    except _exits.GIVEN_WRONGLY:
        raise  # such options are not worth keeping
    except BaseException:
        _save(options, common)
        raise
    _save(options, common)
    ended = found if isinstance(found, Ended) else Ended(found, DONE)
    if common.json:
        # Not through rich, which would wrap and colour it.
        show(json.dumps(ended.result, allow_nan=False) + "\n")
    show("")
    return ended.code


def show(text: str) -> None:
    """Prints a text as it is, at once.

    Raises:
        OSError: It cannot be printed.
    """
    try:
        if text:
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"{_exits.NO_OUTPUT}: {error.strerror}") from error


def _save(options: Any, common: Common) -> None:
    if common.save_config is not None:
        write(common.save_config, written(options, Path(sys.argv[0]).stem))


def _say(message: str, style: str | None) -> None:
    with suppress(OSError):  # nobody is there to be told
        errors.print(message, style=style, markup=False)


#: What Ctrl-C and SIGTERM have raised.
_raised: list[BaseException] = []


def _interrupt(number: int, frame: object) -> NoReturn:
    _raised.append(KeyboardInterrupt())
    raise _raised[-1]


def _terminate(number: int, frame: object) -> NoReturn:
    _raised.append(Terminated(TERMINATED))
    raise _raised[-1]


def end_if_asked() -> None:
    """Raises again what Ctrl-C or SIGTERM has raised where Python ignores exceptions: in finalizers and callbacks of weak references, which imports
    have, too. A program that runs for long calls it now and then.
    """
    if _raised:
        raise _raised[0]


def require_new(files: Mapping[str, Path | None], force: bool) -> None:
    """Checks files that a program will write, before any work.

    Args:
        files: By the option that names them.
        force: Whether those that exist are overwritten.

    Raises:
        FileExistsError: One exists, and is not to be overwritten.
        FileNotFoundError, PermissionError: There is no such folder, or it cannot be written to.
        ValueError: It is a folder, or two options name one file.
    """
    named: dict[Path, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file with {option}")
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; name another file with {option}, or overwrite it with --force")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(
                f"the folder {path.parent.absolute()} is not writable; name another file with {option}"
            )
        if (other := named.setdefault(path.absolute(), option)) != option:
            raise ValueError(f"{other} and {option} name the same file {path}; name two")


def write(path: Path, content: str | Callable[[Path], object]) -> None:
    """Writes a file and says so; it appears whole or not at all.

    Args:
        path: The file.
        content: Its text, or a function that writes it under the path that it gets.

    Raises:
        OSError: It could not be written; the message names it.
    """
    try:
        with written_aside(path) as descriptor:
            if callable(content):
                content(path.with_name(path.name + ASIDE))
            else:
                write_all(descriptor, content.encode())
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    console.print(f"wrote {path}", markup=False)


def _stop_at_once(number: int, frame: object) -> None:
    os.write(2, b"stopped by Ctrl-C\n")
    os._exit(INTERRUPTED)


if Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent == Path(__file__).resolve().parent:
    # While a program still imports there is nothing to clean up, and a traceback through imports helps nobody.
    signal.signal(signal.SIGINT, _stop_at_once)
