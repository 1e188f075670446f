"""A real headless browser, driven by playwright: the Chromium that the system has, none is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")  # as in the Makefile
DESK, PHONE = (1280, 900), (390, 844)


def program() -> str | None:
    """The browser of this system, if it has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Seen:
    """An opened page, every address that it asked for, and every error that it made."""

    page: Any
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def shot(self, path: Path) -> Path:
        """A picture of the whole page."""
        self.page.screenshot(path=path, full_page=True)
        return path

    @property
    def overflows(self) -> int:
        """Pixels by which the page is wider than its window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(script))


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program(), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def look(browser: Any, path: Path, size: tuple[int, int], scheme: str = "light") -> Seen:
    """Open a file in a window of this size; a phone's window also has a phone's pixels and touch. Scheme: or "dark"."""
    phone = size == PHONE
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, device_scale_factor=2 if phone else 1, is_mobile=phone,
        has_touch=phone, color_scheme=scheme,
    )  # fmt: skip
    seen = Seen(context.new_page())
    seen.page.on("request", lambda request: seen.asked.append(request.url))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    seen.page.goto(path.resolve().as_uri())
    return seen
