"""Headless Chromium over its DevTools protocol, through a pair of pipes: what no parser of pages can tell."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
)
SECONDS = 60.0
"""How long an answer may take on a busy machine."""


class Page:
    """One tab, with all that its console said and all that it asked for over a network."""

    def __init__(self, into: int, out: int) -> None:
        self.into, self.out = into, out
        self.rest = b""
        self.last = 0
        self.session = ""
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result, after the events that came before it."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while (answer := self.next()).get("id") != self.last:
            self.note(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def next(self) -> dict[str, Any]:
        """Return the next message of the browser."""
        end = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            assert select.select([self.out], [], [], max(0.0, end - time.monotonic()))[0], "the browser says nothing"
            got = os.read(self.out, 1 << 20)
            assert got, "the browser is gone"
            self.rest += got
        message, _, self.rest = self.rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def note(self, event: dict[str, Any]) -> None:
        """Keep what an event says of errors and requests."""
        said = event.get("params", {})
        if event.get("method") in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}:
            self.console.append(json.dumps(said))
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def open(self, url: str) -> None:
        """Go to `url` and wait until it is there."""
        self.call("Page.navigate", url="about:blank")  # so that another hash alone loads the page anew
        self.call("Page.navigate", url=url)
        end = time.monotonic() + SECONDS
        while self.run("document.readyState + location.href").removeprefix("complete") in {"about:blank", ""} or (
            not self.run("document.readyState === 'complete'")
        ):
            assert time.monotonic() < end, f"{url} does not load"
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Return what a piece of JavaScript has for a value."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key such as `Enter` or `Tab`."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Enter": 13, " ": 32, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def look(self, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Be a screen of this size and colour scheme."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """Start a browser with its files in `profile`, and end it."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    high = [os.dup(fd) for fd in (their_in, their_out)]  # neither may be what it is copied to

    def hand_over() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, close_fds=False, preexec_fn=hand_over, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for fd in (their_in, their_out, *high):
        os.close(fd)
    try:
        yield Page(our_out, our_in)
    finally:
        process.terminate()
        process.wait(20)
        os.close(our_out)
        os.close(our_in)
