"""Tables in CSV files: a row an example, a column a feature or the target."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from framework.data.examples import Examples
from framework.memory import Array

_DELIMITERS = ",;\t"


def read_csv(path: Path, target: str | None = None) -> Examples:
    """Reads a table of numbers; the target may be words as well.

    Cells are separated by commas, semicolons or tabs, whichever is most frequent in the first line, and may stand in double quotes. The
    first line is a header if it names `target`, or if no cell of it but the target's is a number.

    Args:
        path: The file, UTF-8.
        target: The column to predict, by its name in the header. None: the last one.

    Returns:
        Features (rows, columns - 1), float64, and targets (rows,): whole numbers, numbers or words, whatever all cells are.

    Raises:
        ValueError: A cell is missing or no finite number, or the table is empty or not rectangular; the message names line and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(_DELIMITERS, key=first.count)
            return _read(path, _lines(csv.reader(file, delimiter=delimiter, strict=True)), target)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"table {path} cannot be read as CSV in UTF-8: {error}") from error


def _lines(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each line that is not blank, and its cells without spaces around them."""
    for cells in reader:
        if stripped := [cell.strip() for cell in cells]:
            yield reader.line_num, stripped  # type: ignore[attr-defined]


def _read(path: Path, lines: Iterator[tuple[int, list[str]]], target: str | None) -> Examples:
    number, first = next(lines, (0, []))
    if len(first) < 2:
        raise ValueError(
            f"table {path} needs a column of features and one of targets, but its first line has {len(first)} cells"
        )
    header = _header(path, number, first, target)
    names = header or [f"column {i + 1}" for i in range(len(first))]
    place = names.index(target) if target is not None else len(names) - 1
    features, targets = array("d"), []
    rows = lines if header else _with(number, first, lines)
    for number, cells in rows:
        if len(cells) != len(names):
            raise ValueError(f"table {path}, line {number}: {len(cells)} cells, but the first line has {len(names)}")
        for column, cell in enumerate(cells):
            if column == place:
                if not cell:
                    raise _fault(path, number, column, names, "the target is missing")
                targets.append(cell)
            elif (value := _number(cell)) is None:
                what = f"{cell!r} is no finite number" if cell else "the cell is empty"
                raise _fault(path, number, column, names, what)
            else:
                features.append(value)
    if not targets:
        raise ValueError(f"table {path} has a header but no rows")
    x = np.frombuffer(features, np.float64).reshape(len(targets), len(names) - 1)
    return Examples(str(path), x, _typed(targets), tuple(names[:place] + names[place + 1 :]), names[place])


def _with(number: int, first: list[str], lines: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    yield number, first
    yield from lines


def _header(path: Path, number: int, first: list[str], target: str | None) -> list[str] | None:
    """Returns the first line if it is a header, else None."""
    if target is not None:
        if first.count(target) != 1:
            raise ValueError(
                f"table {path} has no column {target!r} to predict, or several; its first line is: {', '.join(first[:20])}"
            )
    else:
        numbers = [_number(cell) is not None for cell in first[:-1]]
        if all(numbers):
            return None
        if any(numbers):
            column = numbers.index(False)
            raise ValueError(
                f"table {path}, line {number}: column {column + 1} holds {first[column]!r} among numbers, so the line is neither a header "
                "nor an example; mend the cell, or name the target with --target if it is a header"
            )
    if "" in first:
        raise ValueError(
            f"table {path}, line {number}: column {first.index('') + 1} has no name; if it numbers the rows, write the table without it "
            "(index=False), else name it"
        )
    return first


def _number(cell: str) -> float | None:
    """The finite number that a cell holds, if it does."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _typed(cells: list[str]) -> Array:
    """Targets as whole numbers if all are, else as numbers if all are, else as words."""
    numbers = [_number(cell) for cell in cells]
    if any(number is None for number in numbers):
        return np.array(cells)
    values = np.array(numbers, np.float64)
    whole = values.astype(np.int64)
    return whole if (whole == values).all() else values


def _fault(path: Path, line: int, column: int, names: list[str], what: str) -> ValueError:
    name = "" if names[column] == f"column {column + 1}" else f" ({names[column]})"
    return ValueError(
        f"table {path}, line {line}, column {column + 1}{name}: {what}; features are finite numbers, so fill in or leave out "
        "such rows, and write categories as numbers"
    )
