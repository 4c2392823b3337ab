"""How the demonstration's own processes listen: on a free loopback port that they choose themselves and then print, so
that no port can be lost between its choice and its use."""

import socket
from typing import Any

import uvicorn

__all__ = ["listen", "serve"]


def listen(port: int = 0) -> socket.socket:
    """A listening socket on the loopback address; clients may connect from now on. Port 0 is any free one."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an instance comes back on the port of its predecessor
    bound.bind(("127.0.0.1", port))
    bound.listen(128)
    return bound


def serve(app: Any, bound: socket.socket) -> None:
    """Serve the ASGI application ``app`` until SIGTERM; streams that are open then are given a second."""
    config = uvicorn.Config(app, ws="none", log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[bound])
