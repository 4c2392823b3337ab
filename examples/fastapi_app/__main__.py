"""Run the whole example: ``python -m examples.fastapi_app`` (``--serve`` leaves the servers up).

It starts the authorization server and the app as processes of their own, lets two agents call the two MCP servers,
tells what happened, and prints the audit trail that came of it.
"""

import argparse
import asyncio
import json
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .agent import Agent
from .story import Story

START_SECONDS = 30.0
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def register(issuer: str, clients_file: Path) -> dict[str, Agent]:
    """Make credentials for the two agents, and write down what the authorization server must know of them."""
    secret = secrets.token_urlsafe(32)
    key = ec.generate_private_key(ec.SECP256R1())
    private_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    scopes = ["mcp:use", "files:read", "notes:read", "notes:write"]
    clients: list[dict[str, Any]] = [
        {"client_id": "reporter", "scopes": scopes, "secret": secret},
        {
            "client_id": "archivist",
            "scopes": ["mcp:use"],
            "roles": ["admin"],
            "public_key": jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True),
        },
    ]
    clients_file.touch(mode=0o600)
    clients_file.write_text(json.dumps(clients))
    return {
        "reporter": Agent("reporter", issuer, secret=secret),
        "archivist": Agent("archivist", issuer, private_key=private_key),
    }


@contextmanager
def process(module: str, *arguments: str, ready: str, log: Path) -> Iterator[None]:
    """Run a module until the end of the block; it is up once ``ready`` answers."""
    command = [sys.executable, "-m", module, *arguments]
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as running:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(ready):
                if running.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{module} did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as response:  # noqa: S310 - our own loopback URL
            return bool(response.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False


def main() -> int:
    """Run the example; 0 if everything went as the story has it."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave the servers up afterwards, until Ctrl-C")
    parser.add_argument("--port", type=int, help="the app's port (default: a free one)")
    parser.add_argument("--issuer-port", type=int, help="the authorization server's port (default: a free one)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are ended with us
    issuer_port, port = options.issuer_port or free_port(), options.port or free_port()
    issuer, origin = f"http://127.0.0.1:{issuer_port}", f"http://127.0.0.1:{port}"
    files, notes = f"{origin}/files/mcp", f"{origin}/notes/mcp"
    print("Two MCP servers in one FastAPI app, governed by mcp-middleware, and two agents that call them.\n")
    print(f"  files   {files}   FastMCP")
    print(f"  notes   {notes}   the official SDK")
    print(f"  issuer  {issuer}             an authorization server for development only")
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        trail, clients = home / "audit.db", home / "clients.json"
        agents = register(issuer, clients)
        authorization_server = process(
            "examples.authorization_server",  # stands in for your identity provider; for development only
            *(f"--port={issuer_port}", f"--clients={clients}", f"--resource={files}", f"--resource={notes}"),
            ready=f"{issuer}/jwks",
            log=home / "authorization_server.log",
        )
        app = process(
            f"{__package__}.app",
            *(f"--port={port}", f"--issuer={issuer}", f"--audit={trail}"),
            ready=f"{origin}/",
            log=home / "app.log",
        )
        with authorization_server:
            with app:
                story = Story(agents, files=files, notes=notes)
                asyncio.run(story.tell())
                if options.serve:
                    serve(agents, home)
            print_trail(trail)
            if story.surprises:
                print((home / "app.log").read_text(), file=sys.stderr)
    return 1 if story.surprises else 0


def print_trail(trail: Path) -> None:
    """What the audit log has of all this, by the package's own command."""
    command = ["-m", "mcp_middleware.audit", str(trail)]
    print(f"\nThe audit trail: python {' '.join(command[:-1])} {trail.name}\n", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def serve(agents: dict[str, Agent], home: Path) -> None:
    """Wait for Ctrl-C."""
    print(f"\nThe servers stay up until Ctrl-C; their logs and the audit trail are in {home}")
    reporter = agents["reporter"]
    print(f"An agent to try with: client_id {reporter.client_id}, client_secret {reporter.secret}", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
