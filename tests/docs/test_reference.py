"""The pages of the API have every public name, once."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.pages import ROOT


@pytest.mark.parametrize("package", ["framework", "checkpointing", "distributed"])
def test_the_api_s_page_has_every_public_name_once(package: str) -> None:
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    lists = re.findall(r"^(?:`\w+`,?\s)+$", page, re.MULTILINE)
    listed = re.findall(r"`(\w+)`", "".join(lists))
    module = importlib.import_module(package)
    assert sorted(listed) == sorted(module.__all__), f"list the names of {package}.__all__ in docs/api/{package}.md"
    undocumented = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
    assert not undocumented
