"""The servers' processes: started, pinned to a core, their processor time read, and stopped. Linux only."""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["NGINX", "Server", "announced_port", "free_port", "has_nginx", "nginx", "process", "serving", "wait_for"]

NGINX = "nginx"
"""The name of the one server that is not ours: a plain proxy in front of ``echo``."""

_CONFIGURATION = """
    daemon off;
    master_process off;
    pid {directory}/nginx.pid;
    error_log {directory}/nginx.log warn;
    events {{ worker_connections 256; }}
    http {{
        access_log off;
        client_max_body_size 4m;
        client_body_buffer_size 1m;
        client_body_temp_path {directory}/body;
        proxy_temp_path {directory}/proxy;
        fastcgi_temp_path {directory}/fastcgi;
        uwsgi_temp_path {directory}/uwsgi;
        scgi_temp_path {directory}/scgi;
        keepalive_requests 100000000;
        upstream server {{
            server 127.0.0.1:{upstream};
            keepalive 64;
            keepalive_requests 100000000;
        }}
        server {{
            listen 127.0.0.1:{port};
            location / {{
                proxy_pass http://server;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_buffering off;
            }}
        }}
    }}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that listens, and the processes that work for it."""

    port: int
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """Processor time so far, of all threads (the kernel keeps a clock for every process)."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return _nginx() is not None


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def nginx(directory: Path, port: int, upstream: int) -> list[str]:
    """The command of an nginx that listens on ``port`` and passes everything on to ``upstream``, as a plain proxy."""
    file = directory / "nginx.conf"
    file.write_text(textwrap.dedent(_CONFIGURATION).format(directory=directory, upstream=upstream, port=port))
    return [_nginx() or NGINX, "-c", str(file)]


@contextmanager
def serving(names: Sequence[str], issuer: str, directory: Path) -> Iterator[dict[str, Server]]:
    """Run the servers called ``names`` all at once, so that rounds can go from one to the next.

    They share one core, which only the one under load uses; this process keeps another, where there is one.
    """
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as running:
        os.sched_setaffinity(0, cores[:1])
        python = [name for name in names if name != NGINX]
        started = {name: running.enter_context(process(_command(name, issuer, directory))) for name in python}
        servers = {name: Server(announced_port(server), (server.pid,)) for name, server in started.items()}
        if NGINX in names:
            port = free_port()
            proxy = running.enter_context(process(nginx(directory, port, servers["echo"].port)))
            servers[NGINX] = Server(port, (proxy.pid, *servers["echo"].pids))
        os.sched_setaffinity(0, cores[-1:])
        running.callback(os.sched_setaffinity, 0, cores)
        for server in servers.values():
            wait_for(server.port)
        yield servers


def _command(name: str, issuer: str, directory: Path) -> list[str]:
    own = directory / name
    own.mkdir()
    return [sys.executable, "-m", "benchmarks.servers", name, issuer, str(own)]


@contextmanager
def process(
    command: list[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[str] | int = subprocess.PIPE,
    errors: IO[str] | None = None,
) -> Iterator["subprocess.Popen[str]"]:
    """Run ``command`` until the context ends; what it writes goes to ``output`` and ``errors``."""
    started = subprocess.Popen(command, stdout=output, stderr=errors, text=True, env=environment)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        if started.stdout is not None:
            started.stdout.close()


def announced_port(process: "subprocess.Popen[str]") -> int:
    """The port that a server of ours prints as its first line."""
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise RuntimeError(f"{process.args!r} ended before it served")
    return int(line)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(port: int) -> None:
    """Wait until somebody listens on ``port``."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
