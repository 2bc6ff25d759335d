"""Links in the README, CONTRIBUTING, CHANGELOG and the docs lead to files, and to headings that are there."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for target, line in links(page):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or not path.resolve().is_relative_to(ROOT.resolve()):
            wrong.append(f"{page}:{line}: there is no {target}")
        elif anchor and anchor not in anchors(str(path.resolve().relative_to(ROOT.resolve()))):
            wrong.append(f"{page}:{line}: {name or page} has no heading #{anchor}")
    assert not wrong, "\n".join(wrong)


def test_every_page_can_be_found_from_the_index() -> None:
    """By links of links: nothing that is written stays unread."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for target, _ in links(str(path.relative_to(ROOT))):
            name = target.partition("#")[0]
            linked = (path.parent / name).resolve()
            if name.endswith(".md") and "://" not in name and linked.exists():
                waiting.append(linked)
    missing = {ROOT / page for page in PAGES} - seen
    assert not missing


def test_the_readme_leads_to_the_docs() -> None:
    assert "docs/index.md" in {target for target, _ in links("README.md")}
