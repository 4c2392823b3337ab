"""A real headless Chromium, driven over its own protocol (Chrome DevTools Protocol)."""

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

__all__ = ["CHROMIUM", "Tab", "tab"]

CHROMIUM = shutil.which("chromium")


class Tab:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}

    async def open(self) -> None:
        """Make a new page to work on."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        await self.call("Page.enable")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params, **self._session}))
        while True:
            message = json.loads(await self._connection.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    async def go(self, url: str) -> None:
        """Open ``url``, and wait until it is there with all that belongs to it."""
        await self.call("Page.navigate", url=url)
        await self._loaded()

    async def _loaded(self) -> None:
        while json.loads(await self._connection.recv()).get("method") != "Page.loadEventFired":
            pass

    async def read(self, expression: str) -> Any:
        """What an expression is, in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.read(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@asynccontextmanager
async def tab(home: Path) -> AsyncIterator[Tab]:
    """A page in a browser of its own, which keeps its things in ``home``."""
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM or "chromium",
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
        *("--remote-debugging-port=0", f"--user-data-dir={home}", "--window-size=900,900", "about:blank"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert browser.stderr is not None
    try:
        async for line in browser.stderr:
            if line.startswith(b"DevTools listening on "):
                break
        drain = asyncio.create_task(browser.stderr.read())
        async with connect(line.split()[-1].decode(), max_size=None) as connection:
            page = Tab(connection)
            await page.open()
            yield page
            await page.call("Target.getTargets")
        browser.terminate()
        await drain
    finally:
        if browser.returncode is None:
            browser.kill()
        await browser.wait()
