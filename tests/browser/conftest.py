"""A browser for the tests of pages, and a page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where it or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in paths.items():
        if path is None:
            pytest.skip(f"{name} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = paths["chromium"]
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--mute-audio",
        "--autoplay-policy=no-user-gesture-required",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=paths["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


class View:
    """A page in the browser.

    Attributes:
        browser: The driver.
    """

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, path: Path | str, width: int = 1200, dark: bool = False) -> None:
        """Opens a file, or an address, in a window of a width in pixels."""
        color = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[color])
        self.resize(width)
        self.browser.get(path if isinstance(path, str) else path.as_uri())

    def resize(self, width: int) -> None:
        """Changes the width of the window."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def command(self, name: str, **arguments: Any) -> None:
        """Sends a command of the browser's protocol."""
        self.browser.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page; an expression gives its value."""
        return self.browser.execute_script(f"return {script}", *arguments)

    def wait(self, condition: str) -> None:
        """Waits until an expression is true; fails after 20 seconds."""
        found = self.browser.execute_async_script(
            f"""const [done] = arguments; const end = performance.now() + 20000;
            const check = () => ({condition}) ? done(true)
              : performance.now() > end ? done(false) : setTimeout(check, 20); check();"""
        )
        assert found, f"{condition}: still false; the page shows: {self.run('tip.innerText')}"

    def pointer(self, selector: str, x: float, y: float = 0.5, kind: str = "mouseMoved") -> None:
        """Moves the mouse to a place in an element, as shares of its size, or presses there."""
        left, top, width, height = self.browser.execute_async_script(
            """const [selector, done] = arguments; const e = document.querySelector(selector);
            const place = () => { const b = e.getBoundingClientRect();
              return [b.left, b.top, b.width, b.height]; };
            const before = place(); e.scrollIntoView({block: "nearest", behavior: "instant"});
            if (String(place()) === String(before)) done(before);
            else requestAnimationFrame(() => setTimeout(() => done(place()), 50));""",
            selector,
        )
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        place = {"x": left + x * width, "y": top + y * height}
        self.command("Input.dispatchMouseEvent", type=kind, **place, **button)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Clicks at a place in an element."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.pointer(selector, x, y, kind)

    def press(self, keys: str) -> None:
        """Types keys to the element that has the focus."""
        self.browser.switch_to.active_element.send_keys(keys)

    def texts(self, selector: str) -> list[str]:
        """Returns the texts of the visible elements."""
        return self.run(
            """[...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())
            .map((e) => e.textContent.trim())""",
            selector,
        )

    def check_fits(self) -> None:
        """Checks that a phone shows the page without scrolling sideways."""
        self.resize(390)
        self.wait("innerWidth === 390")
        wide = """[...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
          e.getBoundingClientRect().right > 391 && !e.closest(".scroll, .contents, .thumbs, svg"))
          .map((e) => e.outerHTML.slice(0, 99))"""
        assert self.run("document.documentElement.scrollWidth") <= 390, self.run(wide)


@pytest.fixture
def view(browser: Any) -> Iterator[View]:
    """A page; fails the test if the browser has reported an error."""
    browser.get_log("browser")
    yield View(browser)
    browser.execute_script("localStorage.clear()")
    assert [entry["message"] for entry in browser.get_log("browser")] == []
