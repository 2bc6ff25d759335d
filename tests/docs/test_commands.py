"""The commands of each page run as they stand, one after the other, and print what the page shows: see `commands`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.commands import SMALLER, Command, commands, file_of, prepare, resumed_by, run
from tests.docs.pages import PAGES, ROOT

#: The pages that newcomers follow; others take as long again, and run with the soak.
FIRST = ("docs/tutorial.md", "docs/differentiation.md", "CONTRIBUTING.md")
WITH_COMMANDS = [page for page in PAGES if any(isinstance(each, Command) for each in commands(page))]


def _mark(page: str) -> pytest.MarkDecorator:
    return pytest.mark.memory if page in FIRST else pytest.mark.soak


@pytest.mark.parametrize("page", [pytest.param(page, marks=_mark(page)) for page in WITH_COMMANDS])
def test_commands_run(page: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    every = commands(page)
    resumed = [resumed_by(each.words) if isinstance(each, Command) else None for each in every]
    for number, each in enumerate(every):
        if not isinstance(each, Command):
            (tmp_path / str(file_of(each))).write_text(each.text)
            continue
        wrong = run(each, tmp_path, {later for later in resumed[number + 1 :] if later})
        assert wrong is None, f"{page}:{each.line}: {each.words}\n{wrong}"


def test_the_commands_of_a_page_are_found() -> None:
    words = [each.words for each in commands("docs/tutorial.md") if isinstance(each, Command)]
    assert words[0] == "make install"
    assert sum("scripts/train.py" in each for each in words) > 10
    assert [file_of(each) for each in commands("docs/tutorial.md") if not isinstance(each, Command)] == ["mine.py"]


def test_a_command_that_fails_or_prints_otherwise_is_told(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    (tmp_path / "prints.py").write_text("print('12 apples')\nprint('3.5 pears')")
    assert "exit code 3" in str(run(Command("python fails.py", (), 1), tmp_path, set()))
    assert run(Command("python prints.py", ("7 apples", "...", "1 pears"), 1), tmp_path, set()) is None
    assert "'1 plums'" in str(run(Command("python prints.py", ("1 plums",), 1), tmp_path, set()))
    assert "no make bread" in str(run(Command("make bread", (), 1), tmp_path, set()))


def test_programs_that_are_made_smaller_exist() -> None:
    there = {path.name for path in (ROOT / "scripts").rglob("*.py")}
    assert {name for name, *_ in SMALLER} <= there


def test_no_two_pages_write_one_file() -> None:
    """Who follows one page after the other in one folder is not told that files exist."""
    written: dict[str, list[str]] = {}
    for page in WITH_COMMANDS:
        for each in commands(page):
            if isinstance(each, Command) and "--resume" not in each.words:
                for name in re.findall(r"--(?:out|html|run-dir|costs-out|svg)[ =](\S+)", each.words):
                    written.setdefault(name, []).append(page)
    assert {name: pages for name, pages in written.items() if len(pages) > 1} == {}
