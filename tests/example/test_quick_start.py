"""The quick start's page, followed to the letter: its files, its commands, its output."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import free_port

PAGE = Path(__file__).parents[2] / "docs" / "quick-start.md"
FILE = re.compile(r'^```\w+ title="(?P<name>[\w.]+)"\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the page's files."""
    for file in FILE.finditer(PAGE.read_text()):
        (tmp_path / file["name"]).write_text(file["text"])
    return tmp_path


def _waiting(output: str) -> str:
    """An output without the seconds to wait, which depend on how fast the machine is."""
    return re.sub(r"fits in \d+ s", "fits in some seconds", output)


def wait_until_listening(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, "the server ended"
        time.sleep(0.05)
    raise AssertionError("the server does not listen")


def test_the_page_does_what_it_says(directory: Path) -> None:
    port = free_port()
    client = directory / "client.py"
    client.write_text(client.read_text().replace("8000", str(port)))
    with subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "server:app", f"--port={port}"],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_until_listening(port, server)
            called, again = (
                subprocess.run(
                    [sys.executable, "client.py"], cwd=directory, capture_output=True, text=True, check=False
                )
                for _ in range(2)
            )
        finally:
            server.terminate()
            server.wait(30)
    assert _waiting(called.stdout) == _waiting((directory / "output.txt").read_text())
    assert called.returncode == 0, called.stderr
    assert again.stdout.startswith("I see nothing: the limit on requests is reached"), again.stderr
    assert again.returncode == 0
    command = [sys.executable, "-m", "mcp_middleware.audit", "audit.db"]
    trail = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout
    for word in ("anonymous", "greet", "forget_everyone", "allowed", "denied", "limited"):
        assert word in trail
