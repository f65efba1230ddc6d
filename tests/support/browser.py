"""A real headless Chromium that tests open pages in, spoken to over a pipe by its own DevTools protocol.

No driver and no library besides Python's own: the protocol over ``--remote-debugging-pipe`` is JSON with a zero byte
after each message, in on descriptor 3 and out on descriptor 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0
ABOVE = 10
"""Descriptors are first moved above those that the browser expects, so that neither hides the other."""


def installed() -> str | None:
    """The browser's path, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser process without a window, a profile of its own in ``folder``, and no way out to any network."""

    def __init__(self, folder: Path) -> None:
        path = installed()
        assert path is not None, "no browser is installed"
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, ABOVE) for one in (to_read, from_write)]

        def place() -> None:
            for wanted, descriptor in zip((3, 4), theirs, strict=True):
                os.dup2(descriptor, wanted)

        self._process = subprocess.Popen(
            [
                path,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-extensions",
                "--no-first-run",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={folder}",
                "--remote-debugging-pipe",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # the two descriptors must survive into the browser; all others are closed on exec by themselves
            close_fds=False,
            preexec_fn=place,
            env={**os.environ, "HOME": str(folder)},
        )
        for descriptor in (to_read, from_write, *theirs):
            os.close(descriptor)
        self._in, self._out = to_write, from_read
        self._rest = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._in)
        os.close(self._out)
        try:
            # a browser whose pipe is closed ends by itself
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def page(self, file: Path, *, width: int, height: int = 900, media: str = "", dark: bool = False) -> Page:
        """Open ``file`` in a window of ``width`` by ``height`` pixels and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        phone = width < 600
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        page.call("Page.navigate", url=file.resolve().as_uri())
        page.wait("Page.loadEventFired")
        return page

    def call(self, method: str, *, session: str | None = None, **values: Any) -> dict[str, Any]:
        """Ask the browser and return its answer; what it tells meanwhile is kept for ``Page.events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if session is not None:
            message["sessionId"] = session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def read(self) -> dict[str, Any]:
        """The browser's next message; events are kept."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert self._process.poll() is None, "the browser has ended"
            assert time.monotonic() < end, "the browser does not answer"
            if select.select([self._out], [], [], 1.0)[0]:
                self._rest += os.read(self._out, 1 << 16)
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message

    def events(self, session: str) -> list[dict[str, Any]]:
        """What was told of one page so far."""
        return [one for one in self._events if one.get("sessionId") == session]


class Page:
    """One open page."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Ask the browser about this page."""
        return self._browser.call(method, session=self._session, **values)

    def wait(self, event: str) -> None:
        """Until the page told ``event``."""
        while not any(one["method"] == event for one in self._browser.events(self._session)):
            self._browser.read()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        """What stands in the console: errors, warnings, and whatever else the page or the browser wrote there."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(one["params"]) for one in self._browser.events(self._session) if one["method"] in kinds]

    @property
    def requests(self) -> list[str]:
        """Every address the page asked for, data within itself left out."""
        asked = [one for one in self._browser.events(self._session) if one["method"] == "Network.requestWillBeSent"]
        addresses = [one["params"]["request"]["url"] for one in asked]
        return [address for address in addresses if not address.startswith("data:")]

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """The page as PNG, for a person to look at."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as a printer would get it."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def close(self) -> None:
        """Let the page go."""
        self._browser.call("Target.closeTarget", targetId=self._target)


def tags(page: Page, names: Sequence[str]) -> list[str]:
    """Which of these elements stand in the page, in its order."""
    wanted = ",".join(names)
    found: list[str] = page.evaluate(f"[...document.querySelectorAll('{wanted}')].map(e => e.tagName.toLowerCase())")
    return found
