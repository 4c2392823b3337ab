"""Servers that answer with exactly these bytes, for what no framework would send."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RawServer:
    """Sends ``answer`` to whoever connects; remembers what was sent to it and who is connected."""

    def __init__(self) -> None:
        self.port = 0
        self.answer = http_answer(b"{}")
        self.received: list[bytes] = []
        self.reached: list[str] = []
        """The addresses of ours that were connected to."""
        self.hang = asyncio.Event()
        """Set: the connection stays open after the answer."""
        self.drip = False
        """Go on sending a byte at a time."""
        self.asked = asyncio.Event()
        self.accepted: asyncio.Queue[None] = asyncio.Queue()
        self.open = 0
        self.idle = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.idle.clear()
        self.accepted.put_nowait(None)
        self.reached.append(writer.get_extra_info("sockname")[0])
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            self.received.append(head + body)
            self.asked.set()
            writer.write(self.answer)
            await writer.drain()
            while self.drip:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
            if self.hang.is_set():
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open -= 1
            if not self.open:
                self.idle.set()


def http_answer(body: bytes, *, status: str = "200 OK", headers: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status.encode(), size, headers, body)


@asynccontextmanager
async def raw_server(host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    handler = RawServer()
    server = await asyncio.start_server(handler, host, 0, ssl=tls)
    handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        handler.drip = False
        server.close()
        if handler.open:
            await asyncio.wait_for(handler.idle.wait(), 5)
