"""The lifespan of a mounted app. A server runs it for the outermost app alone; whoever mounts one must run it too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

__all__ = ["running"]


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """Start ``app`` and everything around it, and shut it down at the end (ASGI, lifespan protocol)."""
    to_app: asyncio.Queue[Any] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, to_app.get, from_app.put))

    async def turn(step: str) -> None:
        await to_app.put({"type": f"lifespan.{step}"})
        answer = asyncio.create_task(from_app.get())
        await asyncio.wait({task, answer}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await task  # it ended without an answer: by its own error, if it has one
            raise RuntimeError(f"a mounted app ended at its {step}")
        event = answer.result()
        if event["type"] != f"lifespan.{step}.complete":
            raise RuntimeError(f"a mounted app failed at its {step}: {event.get('message', '')}")

    try:
        await turn("startup")
        try:
            yield
        finally:
            await turn("shutdown")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
