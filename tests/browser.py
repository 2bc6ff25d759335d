"""Opens pages in Debian's Chromium without a network, as a reader would, and hears what they ask for and complain about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Opened:
    """A page that is open.

    Attributes:
        page: Playwright's.
        requests: What it asked for, itself left out.
        complaints: What stands in its console, and errors of its scripts.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Browser:
    """A running browser."""

    chromium: Any

    @contextmanager
    def open(self, path: Path, width: int = 1400, *, dark: bool = False, wait: str = "") -> Iterator[Opened]:
        """Opens a file, and fails if it asks for anything else, or complains.

        Args:
            path: The page.
            width: Of the window, in pixels.
            dark: Whether the reader likes it dark.
            wait: A selector of what is there when all is drawn.
        """
        context = self.chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
        )
        context.set_default_timeout(120_000)  # of milliseconds; machines of tests are busy
        opened = Opened(context.new_page())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        try:
            opened.page.goto(path.as_uri())
            if wait:
                opened.page.wait_for_selector(wait)
            yield opened
            assert opened.requests == [path.as_uri()]
            assert opened.complaints == []
        finally:
            context.close()


def running() -> Iterator[Browser]:
    """A browser, ended after its tests; they are skipped, with what to do, where there is none, but not in CI."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[browser]'")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium, which .ci/run installs: apt-get install chromium")
        pytest.skip("needs Chromium: apt-get install chromium")
    # Inside of containers, where tests often run as root, Chromium's own sandbox cannot be set up; it opens our files alone.
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield Browser(chromium)
        chromium.close()
