"""The Python of each page runs, from top to bottom in one namespace, and prints what the page shows behind it."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks

#: Pages whose Python starts Ray, and so runs with the other tests that do.
ELSEWHERE = {
    "README.md": "tests/scripts/test_other_scripts.py",
    "docs/collectives.md": "tests/distributed/collectives/test_ray_backend.py",
}
#: What a block may be. Indented blocks are commands, or for reading: what they hold is no code.
LANGUAGES = {"", "python", "console", "json", "text", "toml"}
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def run(page: str, code: list[Block]) -> list[str]:
    """Runs blocks one after the other; returns how their outputs differ from what is shown."""
    names: dict[str, Any] = {"__name__": "__main__"}  # so that layers are pickled as those of a script are
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wrong = []
    try:
        for block in code:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + block.text, page, "exec"), names)
            if block.output is not None and not checker.check_output(block.output, printed.getvalue(), flags):
                wrong.append(f"{page}:{block.line}\nshown:\n{block.output}\nprinted:\n{printed.getvalue()}")
    finally:
        names.clear()  # its functions name it, so that pullbacks in it would live until the cycle collector comes
    return wrong


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in ELSEWHERE])
def test_code_runs_and_prints_what_is_shown(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = run(page, [block for block in blocks(page) if block.language == "python"])
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    """A block without a known word behind its fence would be run by nobody."""
    unknown = {block.language for block in blocks(page)} - LANGUAGES
    assert not unknown


@pytest.mark.parametrize("page", PAGES)
def test_all_python_is_in_blocks_that_run(page: str) -> None:
    """An indented block, or a fence without a word, would be run by nobody."""
    python = re.compile(r"^(from [\w.]+ )?import |^(class|def) \w+.*:$", re.MULTILINE)
    assert [block.line for block in blocks(page) if block.language in ("", "text") and python.search(block.text)] == []


@pytest.mark.parametrize("page", ELSEWHERE)
def test_code_that_runs_elsewhere_does(page: str) -> None:
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text()


def test_an_output_that_differs_is_told() -> None:
    assert run("page", [Block("python", "print(1)\n", 0, "2\n")]) == ["page:0\nshown:\n2\n\nprinted:\n1\n"]
    assert run("page", [Block("python", "print(1, 2)\n", 0, "1 ...\n"), Block("python", "pass", 3)]) == []
