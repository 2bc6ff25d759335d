"""Looks at everything that Retape needs here, and says what to do where something is missing or odd.

Machine, cores, BLAS, memory and container, shared memory, disk, limits, packages and Ray: each line is ok, a warning or an error, with the
remedy below it.

Examples:
  python scripts/doctor.py
  python scripts/doctor.py --start-ray
  python scripts/doctor.py --runs /data/runs --strict --quiet
  python scripts/doctor.py --json | tail -n 1

With --json the last line has the worst level, how many findings have which level, and the findings: group, name, level, told,
remedy and data, sizes in bytes and times in seconds. With --quiet only errors are shown, and with --strict --quiet warnings, too.
"""

# ruff: noqa: E402  (some things are looked at before others are imported)
from __future__ import annotations

import json
import sys

import _packages

#: Looked at first: what this program itself imports may be somebody else's.
HOMES = _packages.homes()
if _packages.clash(HOMES) is not None:
    sys.path.insert(0, str(_packages.ROOT))
if (_told := _packages.fault()) is not None:  # then there is nothing that could look any further
    print(f"error    packages  {_told}")
    if "--json" in sys.argv:
        finding = {"group": "packages", "name": "packages", "level": "error", "told": _told, "remedy": "", "data": {}}
        print(json.dumps({"worst": "error", "ok": 0, "warnings": 0, "errors": 1, "findings": [finding]}))
    sys.exit(1)

from dataclasses import asdict, dataclass
from pathlib import Path

import _console
from _console import console, errors, waiting
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distributed.doctor import LEVELS, Finding, Surroundings, examine, worst

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
MEANINGS = {
    0: "nothing is wrong; there may be warnings",
    1: "there are errors, or with --strict warnings",
}


@dataclass(frozen=True, kw_only=True)
class Doctor(_console.Common):
    runs: Path = Path("runs")
    """Folder where runs are written: its disk is looked at."""
    start_ray: bool = False
    """Also start Ray, let a worker answer, and end it, which takes some seconds."""
    strict: bool = False
    """Let warnings count as errors."""


def main(options: Doctor) -> _console.Ended:
    root = _packages.ROOT
    surroundings = Surroundings(
        runs=options.runs,
        homes=HOMES,
        source=root if (root / "distributed").is_dir() else None,
        constraints=root / "constraints.txt",
        start_ray=options.start_ray,
    )
    counts_as_error = ("error", "warning") if options.strict else ("error",)
    found: list[Finding] = []
    with waiting() as say:
        for finding in examine(surroundings, tell=lambda words: say(f"looking at {words}")):
            if not found or finding.group != found[-1].group:
                console.print(Text(finding.group, style="bold"))
            found.append(finding)
            draw(finding, errors if options.quiet and finding.level in counts_as_error else console)
    count = {level: sum(finding.level == level for finding in found) for level in LEVELS}
    console.print(f"\n{count['ok']} ok, {_count(count['warning'], 'warning')}, {_count(count['error'], 'error')}")
    told = {"worst": worst(found), "ok": count["ok"], "warnings": count["warning"], "errors": count["error"]}
    code = _console.FAILED if worst(found) in counts_as_error else _console.DONE
    return _console.Ended({**told, "findings": [asdict(finding) for finding in found]}, code)


def draw(finding: Finding, where: Console) -> None:
    """Prints a finding, and what to do about it below; a terminal has long lines folded under their beginning, a pipe has them whole."""
    remedy = f"→ {finding.remedy}" if finding.remedy else ""
    head = Text.assemble("  ", (f"{finding.level:<8}", _STYLES[finding.level]), f" {finding.name:<16} ")
    if not where.is_terminal:
        where.print(head + Text(finding.told))
        if remedy:
            where.print(Text(" " * head.cell_len + remedy))
        return
    drawn = Table.grid()
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    drawn.add_row(head, Text(finding.told))
    if remedy:
        drawn.add_row("", Text(remedy))
    where.print(drawn, soft_wrap=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


if __name__ == "__main__":
    _console.run(main, Doctor(), __doc__ or "", meanings=MEANINGS)
