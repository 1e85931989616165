"""A headless Chromium without network, driven through its driver's WebDriver protocol (a W3C standard)."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

DRIVER = shutil.which("chromedriver")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


class Browser:
    """One window; ``address``: of the session at its driver."""

    def __init__(self, address: str):
        self.address = address

    def call(self, path: str, **body: Any) -> Any:
        """Send a command of the protocol, and return its value."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        try:
            with urlopen(Request(self.address + path, data, kind), timeout=60) as reply:
                return json.load(reply)["value"]
        except HTTPError as refusal:
            raise AssertionError(f"{path}: {json.load(refusal)['value']['message']}") from refusal

    def open(self, file: Path, width: int = 1280) -> None:
        """Open a file in a window of this width, with the network off."""
        self.call("/goog/cdp/execute", cmd="Network.enable", params={})
        off = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("/goog/cdp/execute", cmd="Network.emulateNetworkConditions", params=off)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)
        self.call("/url", url=file.resolve().as_uri())

    def js(self, code: str, *values: Any) -> Any:
        """Run JavaScript in the page and return its result."""
        return self.call("/execute/sync", script=code, args=list(values))

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element that the selector finds, of those with this text."""
        found = "return [...document.querySelectorAll(arguments[0])]"
        code = f"{found}.find(e => e.innerText.includes(arguments[1]))"
        (element,) = self.until(lambda: self.js(code, selector, text)).values()
        self.call(f"/element/{element}/click")

    def until(self, ask: Callable[[], Any]) -> Any:
        """Return the first answer that is true; AssertionError if there is none within ten seconds."""
        for _ in range(100):
            if answer := ask():
                return answer
            time.sleep(0.1)
        raise AssertionError("the page does not get there")

    def complaints(self) -> list[str]:
        """Return what the page has written to its console."""
        return [entry["message"] for entry in self.call("/se/log", type="browser")]


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser and its driver, and end both."""
    assert DRIVER
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout
        port = next(filter(None, (re.search(r"on port (\d+)\.", line) for line in driver.stdout)))[1]
        options = {"goog:chromeOptions": {"args": ARGUMENTS}, "goog:loggingPrefs": {"browser": "ALL"}}
        root = Browser(f"http://127.0.0.1:{port}/session")
        session = root.call("", capabilities={"alwaysMatch": options})["sessionId"]
        yield Browser(f"{root.address}/{session}")
        urlopen(Request(f"{root.address}/{session}", method="DELETE"), timeout=60)
    finally:
        driver.terminate()
        driver.wait()
