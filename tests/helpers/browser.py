"""A real browser, driven as a person would: Debian's Chromium, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from helpers.waiting import HANGS


@contextmanager
def browser() -> Generator[Browser]:
    """A browser. While it runs, this thread has an event loop: keep it within one file of tests."""
    program = shutil.which("chromium")
    assert program is not None, "these tests drive a real browser: apt-get install chromium"
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@dataclass
class Watched:
    """A page, and what it should not have done.

    Attributes:
        complaints: errors and warnings of its console, errors of its scripts.
        hosts: that it asked.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)


@contextmanager
def opened(chromium: Browser, url: str, **options: Any) -> Generator[Watched]:
    """A page of its own at an address; nothing is left of it afterwards."""
    context = chromium.new_context(**options)
    context.set_default_timeout(1e3 * HANGS)
    watched = Watched(context.new_page())
    page = watched.page
    page.on("console", lambda m: watched.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on("request", lambda request: watched.hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    try:
        page.goto(url)
        yield watched
    finally:
        context.close()
