"""Speak to headless Chromium over a pipe: open pages, run JavaScript, press keys, take pictures. Standard library only.

What `tools/look.py` needs of the DevTools protocol, and no more. Nothing waits for a fixed time: `Tab.wait` asks again.
"""

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Chromium reads commands from descriptor 3 and writes answers to 4; this starts it with the pipe's ends there.
START = """import os, sys
os.dup2(int(sys.argv[1]), 100), os.dup2(int(sys.argv[2]), 101)
os.dup2(100, 3), os.dup2(101, 4)
os.execvp(sys.argv[3], sys.argv[3:])"""
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}
SECONDS = 30


class Browser:
    """A running Chromium with an empty profile; use it as a context manager."""

    def __init__(self, executable: str, flags: list[str]):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.send_end = os.pipe()
        self.read_end, theirs_out = os.pipe()
        command = [sys.executable, "-c", START, str(theirs_in), str(theirs_out), executable, *flags]
        command += ["--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in), os.close(theirs_out)
        self.number, self.unread, self.events = 0, b"", []

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.send_end), os.close(self.read_end)
        self.profile.cleanup()

    def call(self, method: str, session: str | None = None, **params) -> dict:
        """Send a command and return its result; what the browser says meanwhile is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.send_end, data) :]
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def read(self) -> dict:
        """Return the next message of the browser."""
        while b"\0" not in self.unread:
            if not select.select([self.read_end], [], [], SECONDS)[0]:
                raise TimeoutError(f"Chromium has said nothing for {SECONDS} seconds")
            data = os.read(self.read_end, 2**20)
            if not data:
                raise OSError("Chromium has ended")
            self.unread += data
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)


class Tab:
    """One page of a browser, as wide as `width` CSS pixels.

    Args:
        browser: a running one.
        width: of the window.
        mode: "light" or "dark", the theme of the book.
        scripts: whether the page may run scripts; `run` works without them too.
    """

    def __init__(self, browser: Browser, *, width: int, height: int = 1000, mode: str = "light", scripts: bool = True):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.target = target
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        store = "".join(f"localStorage.setItem('{key}', '{mode}');" for key in ("mode", "theme"))
        self.call("Page.addScriptToEvaluateOnNewDocument", source=f"try {{ {store} }} catch (e) {{}}")
        if not scripts:
            self.call("Emulation.setScriptExecutionDisabled", value=True)

    def call(self, method: str, **params) -> dict:
        """Send a command about this page."""
        return self.browser.call(method, self.session, **params)

    def open(self, url: str) -> None:
        """Go to an address and wait until the page is there."""
        self.browser.events.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str):
        """Return the value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", expression))
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> bool:
        """Ask until a JavaScript expression is true; return whether it became so in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run(expression):
                return True
            time.sleep(0.05)
        return False

    def press(self, key: str) -> None:
        """Press and release a key, as a reader does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def asked_for(self) -> list[str]:
        """Return the addresses that the page has asked for since it was opened."""
        self.run("0")  # takes in what has been said until now
        events = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return the errors that the page has written to its console."""
        self.run("0")
        found = []
        for event in self.browser.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
        return found

    def picture(self, path: Path) -> None:
        """Write a picture of what the window shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Close the page."""
        self.browser.call("Target.closeTarget", targetId=self.target)
