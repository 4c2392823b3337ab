"""The lifespan of a mounted application: a server runs it for the outermost one alone, so whoever mounts one runs it.

``async with lifespan_of(mounted):`` in the lifespan of the outer application starts the mounted one with everything
round it, members included; a framework's own short cut (``app.lifespan``, ``router.lifespan_context``) leaves out what
is wrapped round that application, and a member would not be closed.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from .member import ASGIApp

__all__ = ["lifespan_of"]


@asynccontextmanager
async def lifespan_of(app: ASGIApp) -> AsyncIterator[None]:
    """Start ``app``, and shut it down at the end (ASGI, lifespan protocol). Raises RuntimeError where it fails to."""
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
