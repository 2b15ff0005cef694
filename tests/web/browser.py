"""A headless Chromium that is told what to do over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

DEADLINE = 60.0
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    *("--remote-debugging-port=0", "--hide-scrollbars"),
)


class Browser:
    """One page of one Chromium."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.said: list[str] = []  # what the page complains of
        self._reading: asyncio.Task[None] | None = None
        self._process = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = profile / "DevToolsActivePort"
            deadline = time.monotonic() + DEADLINE
            while not (port_file.exists() and "\n" in port_file.read_text()):
                assert time.monotonic() < deadline, "Chromium does not start"
                assert self._process.poll() is None, "Chromium ended"
                time.sleep(0.02)
            self._run(self._connect(int(port_file.read_text().split()[0])))
            for domain in ("Page", "Runtime", "Log", "Performance"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, and all that belongs to it."""
        if self._reading:
            self._run(self._disconnect())
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Return the answer to a command of the protocol."""
        return self._run(self._call(method, parameters))

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until an expression is true, and return it."""
        deadline = time.monotonic() + DEADLINE
        while not (value := self.ask(condition)):
            assert time.monotonic() < deadline, f"never true: {condition}\n{self.text()}\n{self.said}"
            time.sleep(0.05)
        return value

    def text(self, selector: str = "body") -> str:
        """Return the text that is seen of an element."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str, text: str = "", modifiers: int = 0) -> None:
        """Press a key of the keyboard."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        about: dict[str, Any] = {"key": key, "code": key, "modifiers": modifiers}
        about["windowsVirtualKeyCode"] = codes.get(key, 0)
        typed = {"text": "\r" if key == "Enter" else text} if text or key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int) -> None:
        """Make the window so large (CSS pixels)."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Have the system prefer `dark` or `light` colours."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def metric(self, name: str) -> float:
        """Return a figure of `Performance.getMetrics`."""
        found = self.call("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in found if each["name"] == name))

    def shot(self, file: Path) -> None:
        """Write a picture of the window."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            pages = [each for each in await answer.json() if each["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        self._reading = asyncio.create_task(self._read())

    async def _disconnect(self) -> None:
        assert self._reading
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()
        await self._session.close()

    async def _call(self, method: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        future = self._answers[self._number] = self._loop.create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        return await future

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if future := self._answers.pop(told.get("id"), None):
                if "error" in told:
                    future.set_exception(RuntimeError(str(told["error"])))
                else:
                    future.set_result(told["result"])
            elif told.get("method") == "Runtime.exceptionThrown":
                self.said.append(str(told["params"]["exceptionDetails"]))
            elif told.get("method") == "Log.entryAdded":
                entry = told["params"]["entry"]
                if entry["level"] == "error":
                    self.said.append(f"{entry['text']} {entry.get('url', '')}")
