"""What all programs share: how they print, fail and stop."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Command = TypeVar("Command")

#: Exit codes; docs/snapshots.md says what they mean to who starts programs again.
FAILED, BAD_INPUT, LOST, STOPPED, INTERRUPTED, TERMINATED = 1, 2, 69, 75, 130, 143

#: People read this; it is plain where there is no terminal.
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 110)
errors = Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def measuring() -> Iterator[Callable[[int, int, str], None] | None]:
    """Gives what `measure_times` tells how far it is: a bar on a terminal."""
    if console.quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("measuring step times {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


class Terminated(SystemExit):
    """SIGTERM came."""


def run(
    main: Callable[[Command], dict[str, Any]],
    default: Command | Callable[[list[str]], Command],
    description: str,
    codes: Mapping[type[Exception], int] | None = None,
) -> NoReturn:
    """Reads the options, runs a program, and ends the process with its exit code.

    Args:
        main: Gets the options and returns what `--json` prints as the last line.
        default: The options' defaults; its class says what there is. A function makes them of the arguments.
        description: For `--help`.
        codes: Exit codes of errors that have their own.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # The working directory is where people keep their own models.
        sys.path.insert(1, str(Path.cwd()))
        given = default(sys.argv[1:]) if callable(default) else default
        options = tyro.cli(tyro.conf.FlagCreatePairsOff[type(given)], default=given, description=description)
        result = main(options)
        if getattr(options, "json", False):
            # Not through rich, which would wrap and colour it.
            print(json.dumps(result, allow_nan=False), flush=True)
    except (KeyboardInterrupt, Terminated) as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        told = [
            f"stopped by {'SIGTERM' if isinstance(stop, Terminated) else 'Ctrl-C'}",
            *getattr(stop, "__notes__", []),
        ]
        errors.print("\n".join(told), markup=False)
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)
    except tuple(codes or ()) as error:
        _fail(error, next(code for kind, code in (codes or {}).items() if isinstance(error, kind)))
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        _fail(error, BAD_INPUT)
    except (RuntimeError, MemoryError, OSError) as error:
        _fail(error, FAILED)
    sys.exit(0)


def _fail(error: BaseException, code: int) -> NoReturn:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    asked = code == STOPPED  # which is no error
    message = "\n".join([f"{'' if asked else 'error: '}{error}", *getattr(error, "__notes__", [])])
    errors.print(message, style=None if asked else "red", markup=False)
    sys.exit(code)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated(TERMINATED)


def _require_own_packages() -> None:
    """Ends with a clear message where `distributed` is another package, as Dask's scheduler is."""
    homes = {}
    for name in ("framework", "checkpointing", "distributed"):
        spec = importlib.util.find_spec(name)
        homes[name] = Path(spec.origin).parent.parent if spec and spec.origin else None
    if None in homes.values():
        missing = ", ".join(name for name, home in homes.items() if home is None)
        errors.print(
            f"error: cannot import {missing}; install Retape in this environment: pip install -e .", style="red"
        )
        sys.exit(FAILED)
    if len(set(homes.values())) > 1:
        where = "\n".join(f"  {name}: {home}" for name, home in homes.items())
        errors.print(
            "error: the packages framework, checkpointing and distributed come from different places, so one of them is "
            f"foreign (Dask's scheduler is also named distributed):\n{where}\nUse an environment of Retape's own: make install",
            style="red",
        )
        sys.exit(FAILED)


# At import, since the programs import these packages next.
_require_own_packages()
