"""The pages of documentation and what is in them: code, commands, headings and links."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
#: Every page, by its path from the root.
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if path.is_file()
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: The word behind the fence; empty where there is none, and of indented blocks.
        text: The code.
        line: Its first line, from 0.
        output: The block of text right behind it: what it prints.
    """

    language: str
    text: str
    line: int
    output: str | None = None


def blocks(page: str) -> list[Block]:
    """Returns the blocks of code of a page, each with the output that is shown for it."""
    found: list[Block] = []
    after_code = False
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            language, line = token.info.strip(), (token.map or [0])[0] + (token.type == "fence")
            if language == "text" and after_code and found[-1].language == "python":
                found[-1] = Block("python", found[-1].text, found[-1].line, token.content)
            else:
                found.append(Block(language, token.content, line))
            after_code = True
        elif token.level == 0:
            after_code = False
    return found


@functools.cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def links(page: str) -> Iterator[tuple[str, int]]:
    """Yields where the links and pictures of a page lead, each with its line, from 1."""
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield str(target), (token.map or [0])[0] + 1


def anchors(page: str) -> set[str]:
    """Returns the names of a page's headings, as forges make them of the words."""
    found: set[str] = set()
    pages = tokens(page)
    for token, inline in itertools.pairwise(pages):
        if token.type == "heading_open":
            words = "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = 1
            while (unique := name if number == 1 else f"{name}-{number - 1}") in found:
                number += 1
            found.add(unique)
    return found
