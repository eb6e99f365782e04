"""Chromium, driven over a report that lies in files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import need_program

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--allow-file-access-from-files=false", "--window-size=1300,1000",
)  # fmt: skip


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Path:
    """The report folder of the store that STRATASCOPE_TEST_STORE names, else of the session's demo."""
    given = os.environ.get("STRATASCOPE_TEST_STORE")
    return Path(given or request.getfixturevalue("demo_store")) / "report"


class Browser:
    """A page of a report in Chromium."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, path: Path, *, width: int = 1300, height: int = 1000, scheme: str = "light", media: str = ""
    ) -> None:
        """Show the file `path` at this size and in this scheme of colours."""
        self.resize(width, height)
        self.scheme(scheme, media)
        self.driver.get(path.as_uri())

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, scheme: str, media: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the JavaScript `script` returns."""
        return self.driver.execute_script(script, *arguments)

    def one(self, selector: str) -> Any:
        """The first element that `selector` finds, scrolled into view."""
        found = self.driver.find_element("css selector", selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        return found

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """Wait until `true()` is so; fails after half a minute with `what`."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            found = true()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"in vain: {what}")

    def complaints(self) -> list[str]:
        """The errors in the console since it was last asked."""
        return [item["message"] for item in self.driver.get_log("browser") if item["level"] == "SEVERE"]

    def requests(self) -> set[str]:
        """The addresses that pages have asked for since it was last asked."""
        messages = (json.loads(item["message"])["message"] for item in self.driver.get_log("performance"))
        return {
            item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"
        }


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    place = need_program("chromedriver", package="chromium-driver")
    need_program("chromium", package="chromium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(place))
    yield started
    started.quit()


@pytest.fixture
def browser(driver: Any, report: Path) -> Browser:
    """Chromium that has forgotten who reads, and whose logs are empty."""
    found = Browser(driver)
    found.open(report / "index.html")
    found.run("localStorage.clear()")
    found.complaints()
    found.requests()
    return found
