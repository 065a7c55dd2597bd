"""A real browser without a window: Chromium, told what to do through its DevTools port."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

PATIENCE = 60.0


def why_no_browser() -> str | None:
    """What is missing, or None."""
    return None if shutil.which("chromium") else "chromium is not installed"


class Browser:
    """One page. A context manager; `profile` is an empty directory."""

    def __init__(self, profile: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._said = (profile / "said").open("wb")
        self._process = subprocess.Popen(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=self._said, stderr=self._said, env={**os.environ, "HOME": str(profile)}, start_new_session=True)
        self._number = 0
        port = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not port.exists() or "\n" not in port.read_text():
            assert self._process.poll() is None, (profile / "said").read_text(errors="replace")
            assert time.monotonic() < end, "chromium did not start"
            time.sleep(0.05)
        self._do(self._connect(port.read_text().split("\n")[0]))

    def _do(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, PATIENCE))

    async def _connect(self, port: str) -> None:
        self._client = aiohttp.ClientSession()
        async with self._client.get(f"http://127.0.0.1:{port}/json/list") as answer:
            [page] = [one for one in await answer.json(content_type=None) if one["type"] == "page"]
        self._socket = await self._client.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, and its result."""
        async def work() -> dict[str, Any]:
            self._number += 1
            await self._socket.send_json({"id": self._number, "method": method, "params": params})
            while True:
                message = await self._socket.receive_json()
                if message.get("id") == self._number:
                    assert "error" not in message, message
                    result: dict[str, Any] = message["result"]
                    return result

        result: dict[str, Any] = self._do(work())
        return result

    def evaluate(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screen(self, width: int, height: int, *, phone: bool) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while self.evaluate("document.readyState + location.href") != f"complete{url}":
            assert time.monotonic() < end, f"{url} was not loaded"
            time.sleep(0.05)

    def text(self) -> str:
        """What a reader sees."""
        return str(self.evaluate("document.body.innerText"))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        async def end() -> None:
            await self._socket.close()
            await self._client.close()

        self._do(end())
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._said.close()
        self._loop.close()
