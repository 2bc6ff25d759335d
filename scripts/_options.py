"""How options are read: those that all programs have, `--help`, and the command line before a file before defaults."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from _configuration import read

Command = TypeVar("Command")
#: Options where nobody names any, or a function that makes them of the command line's words.
Default = Command | Callable[[list[str]], Command]


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of all programs."""

    config: Path | None = None
    """TOML file to take options from; what is given on the command line wins. docs/programs.md says how it is written."""
    save_config: Path | None = None
    """TOML file to write the options into, as they took effect, for a --config of another day."""
    force: bool = False
    """Overwrite existing files."""
    json: bool = False
    """Print the results as one JSON object on the last line."""
    quiet: bool = False
    """Print only errors (and the JSON line)."""
    debug: bool = False
    """Show tracebacks of errors."""


def parse(default: Default[Command], description: str, arguments: list[str]) -> Command:
    """Reads the options of a program.

    Args:
        default: The options' defaults, or a function that makes them of the command line's words.
        description: What `--help` says first.
        arguments: The command line without the program.

    Raises:
        SystemExit: 0 after `--help`, 2 where the command line is wrong.
        ValueError, FileNotFoundError: See `_configuration.read`.
    """
    if {"-h", "--help"} & set(arguments):
        # What a run that is resumed was told changes nothing about what there is.
        plain = default([]) if callable(default) else default
        kind = helped(plain)
        return _through_tyro(kind, kind(), folded(description, shutil.get_terminal_size().columns), arguments, HELP)
    kind = type(default([]) if callable(default) else default)
    path = _named(arguments, "config")
    values = read(Path(path), Path(sys.argv[0]).stem, kind) if path is not None else {}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if isinstance(value, str | Path)]
    given = default([*words, *arguments]) if callable(default) else default
    return _through_tyro(kind, dataclasses.replace(given, **values), description, arguments, ())


def _named(arguments: list[str], name: str) -> str | None:
    """Returns the value of an option on a command line; None where it is not there, or has none, which tyro then says."""
    found = None
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option.replace("_", "-") == f"--{name}":
            found = value if equals else arguments[place + 1] if place + 1 < len(arguments) else None
    return found


#: For `--help` alone. On the command line a flag can be taken back (--no-json), and an option can be None, also where a file or a run
#: that is resumed has set it; to list that for each would double the page.
HELP = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)
#: Where the description comes.
_PLACE = "DESCRIPTION"


def _through_tyro(kind: Any, default: Any, description: str, arguments: list[str], config: Any) -> Any:
    """Parses with tyro; what it prints is plain where the stream is no terminal."""
    texts = {stream: _Text(getattr(sys, stream)) for stream in ("stdout", "stderr")}
    try:
        with contextlib.redirect_stdout(texts["stdout"]), contextlib.redirect_stderr(texts["stderr"]):
            return tyro.cli(kind, default=default, description=_PLACE, args=arguments, config=config)
    finally:
        for stream, text in texts.items():
            if not text.getvalue():
                continue
            told = text.getvalue().replace(_PLACE, description)  # tyro would join lines
            getattr(sys, stream).write("\n".join(line.rstrip() for line in told.split("\n")))
            getattr(sys, stream).flush()


class _Text(io.StringIO):
    """What would be printed, for a stream which may be no terminal: tyro asks standard output alone."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._coloured = stream.isatty() and not os.environ.get("NO_COLOR")
        self._encoding = (getattr(stream, "encoding", None) or "utf-8").lower()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Tyro draws boxes of dashes where it is not UTF-8."""
        return self._encoding

    def isatty(self) -> bool:
        return bool(self._coloured)


def folded(text: str, width: int) -> str:
    """Returns a description with lines of so many characters; examples stay as they are, so that they can be copied.

    Rows of a list, as "  name   what it is", go on below their words.
    """
    lines: list[tuple[str, str]] = []  # what a line begins with, and its words
    for line in text.split("\n"):
        found = re.match(r"\s*(?:\S+\s{2,})?", line)
        head = found.group() if found else ""
        above = lines[-1] if lines else ("", "")
        goes_on = above[1] and not above[1].endswith(":") and not _is_command(above[1]) and not head.strip()
        if line.strip() and goes_on and len(head) == len(above[0]) and not _is_command(line):
            lines[-1] = (above[0], f"{above[1]} {line.strip()}")
        else:
            lines.append((head, line[len(head) :]))
    return "\n".join(
        f"{head}{words}"
        if _is_command(words) or not words
        else textwrap.fill(
            words, max(width, 40), initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
        for head, words in lines
    )


def _is_command(words: str) -> bool:
    return words.lstrip().startswith(("python ", "#"))


def helped(default: Any) -> Any:
    """Makes a dataclass of the same options for `--help`: those of all programs last, and each with its default in words."""
    hints = get_type_hints(type(default), include_extras=True)
    told = documentation(type(default))
    common = {field.name for field in dataclasses.fields(Common)}
    own: list[Any] = []
    last: list[Any] = []
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        words = _turned_off(told[field.name]) if value is True else told[field.name]
        hint = tyro.conf.arg(help=words, help_behavior_hint=_default_in_words(words, value))
        where = last if field.name in common else own
        where.append((field.name, Annotated[hints[field.name], hint], dataclasses.field(default=value)))  # type: ignore[valid-type]
    group = dataclasses.make_dataclass("Common", last, kw_only=True, frozen=True)
    own.append(("common", group, dataclasses.field(default=group())))
    return dataclasses.make_dataclass(type(default).__name__, own, kw_only=True, frozen=True)


def _turned_off(told: str) -> str:
    """What is said of a flag that is on: --help lists what takes it back, and that must not read as what does it."""
    return f"Turn off: {told[0].lower()}{told[1:]}"


def _default_in_words(told: str, value: Any) -> str | Callable[[str], str]:
    if "Default:" in told or told.startswith("Required."):
        return ""
    if value is None:
        return "(default: none)"
    if isinstance(value, bool):
        return "(default: on)" if value else "(default: off)"
    return "(default: none)" if value == () else lambda text: f"(default: {text})"


def documentation(kind: type) -> dict[str, str]:
    """Returns the string below each field of a dataclass and of those above it."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
