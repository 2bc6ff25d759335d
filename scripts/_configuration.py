"""Options from a TOML file, and the options of a run written into one.

Keys are names of options, as ``memory-budget`` or ``memory_budget``. Those at the top are for every program that reads the file, those in
a table with a program's name (``[train]``) for that one, and win. A value has the type of its option; ``"None"`` is none, as on the
command line. Relative paths are from the working directory, as on the command line, too.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

#: The programs, whose names tables of a file may have.
PROGRAMS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))
#: Options that a file cannot have: where they are, or what would overwrite files unasked.
COMMAND_LINE_ALONE = ("config", "save_config", "force")
#: Options of how one start of a program talks, which are not written either.
_OF_ONE_START = (*COMMAND_LINE_ALONE, "json", "quiet", "debug")
_NONE = "None"


def read(path: Path, program: str, kind: type) -> dict[str, Any]:
    """Reads the options of a program from a file.

    Args:
        path: The file.
        program: The program's name.
        kind: The dataclass of its options.

    Returns:
        The values that the file has, by the name of the field.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is not TOML, or an option is unknown, given twice, for the command line alone, or of another type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML or of UTF-8
        raise ValueError(f"{path} is no TOML: {error}") from error
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    for name in tables:
        if name not in PROGRAMS:
            raise ValueError(f"{path} has a table [{name}], but no program has this name; {_nearest(name, PROGRAMS)}")
    shared = {key: value for key, value in found.items() if key not in tables}
    values = _values(path, shared, program, kind, "")
    return values | _values(path, tables.get(program, {}), program, kind, f"{program}.")


def _values(path: Path, given: Mapping[str, Any], program: str, kind: type, table: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    # A field whose name Python has taken (from) ends with _.
    names = {field.name.rstrip("_"): field.name for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in COMMAND_LINE_ALONE:
            raise ValueError(f"{path}: {table}{key} is for the command line alone: --{name.replace('_', '-')}")
        if name not in names:
            known = [each.replace("_", "-") for each in names if each not in _OF_ONE_START] + ["json", "quiet", "debug"]
            raise ValueError(f"{path}: {program}.py has no option {table}{key}; {_nearest(key, known)}")
        field = names[name]
        if field in values:
            raise ValueError(f"{path}: {table}{key} is given twice, with - and with _")
        try:
            values[field] = converted(value, hints[field])
        except TypeError as error:
            raise ValueError(f"{path}: {table}{key} must be {error}, but is {value!r}") from None
    return values


def converted(value: Any, kind: Any) -> Any:
    """Returns a value of TOML as an option's type.

    Raises:
        TypeError: It is another type's; the message says in words what was expected.
    """
    if get_origin(kind) is Annotated:
        return converted(value, get_args(kind)[0])
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        if type(None) in members and value == _NONE:
            return None
        for member in members:
            try:
                return converted(value, member)
            except TypeError:
                continue
    elif get_origin(kind) is Literal:
        if any(type(value) is type(member) and value == member for member in members):
            return value
    elif get_origin(kind) is tuple:
        if isinstance(value, list):
            return tuple(converted(each, members[0]) for each in value)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind is Path:
        if isinstance(value, str):
            return Path(value)
    elif type(value) is kind:
        return value
    raise TypeError(_expected(kind))


def _expected(kind: Any) -> str:
    """Says in words what a type takes."""
    members = get_args(kind)
    if get_origin(kind) is Annotated:
        return _expected(members[0])
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_expected(member) for member in members)
    if get_origin(kind) is Literal:
        return " or ".join(f'"{member}"' for member in members)
    if get_origin(kind) is tuple:
        return f"a list, each element {_expected(members[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path in quotes"}
    return words.get(kind, f'"{_NONE}"')


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("_", "-"), known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def written(options: Any, program: str, leave_out: Iterable[str] = ()) -> str:
    """Returns the options of a program as a file that `read` reads.

    What is none by default, and is, is not written.

    Args:
        options: An instance of the dataclass of options.
        program: The program's name.
        leave_out: Further options that are not written.
    """
    table: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in (*_OF_ONE_START, *leave_out) or value is None is field.default:
            continue
        value = _NONE if value is None else str(value) if isinstance(value, Path) else value
        table[field.name.rstrip("_").replace("_", "-")] = list(value) if isinstance(value, tuple) else value
    command = f"python scripts/{program}.py --config FILE"
    return (
        f"# Relative paths are from {Path.cwd()}. Run it again there with: {command}\n{tomli_w.dumps({program: table})}"
    )
