"""What tests of reports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Browser, running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from running()
