"""``python -m tests.audit.doomed TRAIL SEEN``: a server under the audit log, made to be killed.

It writes the id of every call it sees into SEEN, at once, and prints its port when it listens.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import MutableMapping
from typing import Any

import uvicorn

from mcp_middleware.audit import AuditLogMiddleware, SQLiteSink


def main(trail: str, seen: str) -> None:
    """Serve until killed."""
    file = os.open(seen, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        event: MutableMapping[str, Any] = await receive()
        call = json.loads(event["body"])["id"]
        os.write(file, f"{call}\n".encode())
        await asyncio.sleep(0.003)  # so that there are calls under way at every moment
        body = json.dumps({"jsonrpc": "2.0", "id": call, "result": {"content": []}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    listening = socket.create_server(("127.0.0.1", 0))
    app = AuditLogMiddleware(server, sink=SQLiteSink(trail), server="doomed")
    config = uvicorn.Config(app, log_level="error", lifespan="off", http="httptools")
    print(listening.getsockname()[1], flush=True)
    asyncio.run(uvicorn.Server(config).serve([listening]))


if __name__ == "__main__":
    main(*sys.argv[1:])
