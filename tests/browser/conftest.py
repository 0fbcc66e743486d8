"""A real Chromium without a head, the console on a real port, and what a person would see wrong there."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.console.conftest import Owner, ada, bob, doubtful, staff, tested

__all__ = ["ada", "bob", "doubtful", "staff", "tested"]

CHROMIUM = Path("/usr/bin/chromium")
SECONDS = 60
SHOTS = Path(__file__).parents[2] / "var" / "screenshots"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(
            f"NO BROWSER: {CHROMIUM} is not there; install Debian's chromium to run the browser tests"
        )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("NO BROWSER: playwright is not installed; the browser tests need it")
    with pytest.MonkeyPatch.context() as patch:
        # Playwright keeps a loop of its own in this thread, which Django takes for an asynchronous caller.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
            yield browser
            browser.close()


class Visitor:
    """Somebody at a browser; `complaints` is what the browser held against our pages.

    Nothing is asked for anywhere else but at `leads_to`, where one is given.
    """

    def __init__(
        self, chromium: Any, url: str, owner: Owner | None, *, leads_to: str = "", **options: Any
    ) -> None:
        self._known = tuple(filter(None, (url, "data:", leads_to)))
        self.complaints: list[str] = []
        self._context = chromium.new_context(base_url=url, **options)
        self._context.set_default_timeout(SECONDS * 1000)
        if owner is not None:
            session = owner.client.cookies[settings.SESSION_COOKIE_NAME].value
            cookie = {"name": settings.SESSION_COOKIE_NAME, "value": session, "url": url}
            self._context.add_cookies([cookie])
        self.page = self._context.new_page()
        self.page.on("console", lambda said: self._complain(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda problem: self._complain(str(problem)))
        self.page.on("request", self._watch)

    def _complain(self, text: str) -> None:
        # A form that was not accepted is an answer, not a fault.
        if "status of 422" not in text and "status of 409" not in text:
            self.complaints.append(text)

    def _watch(self, request: Any) -> None:
        if not request.url.startswith(self._known):
            self.complaints.append(f"asked for {request.url}")

    def see(self, path: str) -> Any:
        self.page.goto(path)
        return self.page

    def shoot(self, name: str) -> None:
        """Keeps a picture where GOBII_SCREENSHOTS is set."""
        if os.environ.get("GOBII_SCREENSHOTS"):
            SHOTS.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)

    def leave(self) -> None:
        self._context.close()


Arrive = Callable[..., Visitor]


@pytest.fixture
def arrive(chromium: Any, live_server: Any) -> Iterator[Arrive]:
    """Opens the browser for somebody; afterwards nothing may have been held against any page."""
    visitors: list[Visitor] = []

    def open_for(owner: Owner | None, **options: Any) -> Visitor:
        visitors.append(Visitor(chromium, live_server.url, owner, **options))
        return visitors[-1]

    yield open_for
    for visitor in visitors:
        visitor.leave()
    assert [text for visitor in visitors for text in visitor.complaints] == []
