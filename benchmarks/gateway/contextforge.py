"""ContextForge, the one other gateway in Python: installed into an environment of its own when it is asked for.

It is set up for speed: no rate limits, no user interface, no plugins, errors only in its log, SQLite, one worker; and
with stateful sessions, as the others have them. Its caller's token is signed with its own secret, and calls go to a
virtual server with the one tool, which is how its documentation shows it.
"""

import json
import os
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from .wire import Endpoint

__all__ = ["CONFIGURATION", "VERSION", "ContextForge", "install"]

VERSION = "1.1.0"
CONFIGURATION = {
    "CACHE_TYPE": "memory",
    "JSON_RESPONSE_ENABLED": "true",
    "LOG_LEVEL": "ERROR",
    "MCPGATEWAY_ADMIN_API_ENABLED": "true",
    "MCPGATEWAY_UI_ENABLED": "false",
    "OBSERVABILITY_ENABLED": "false",
    "PLUGINS_ENABLED": "false",
    "RATE_LIMITING_ENABLED": "false",
    "SSRF_ALLOW_LOCALHOST": "true",
    "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
    "TOOL_RATE_LIMIT": "1000000",
    "USE_STATEFUL_SESSIONS": "true",
}
_ENVIRONMENT = Path(".cache/contextforge")
_PYTHONS = ("python3.13", "python3.12", "python3")
"""What it can run on."""
_ADMIN = "admin@example.com"


def install(python: str | None) -> None:
    """Make its environment, unless it is there. Raises RuntimeError where that cannot be done."""
    if (_ENVIRONMENT / "bin" / "mcpgateway").exists():
        return
    for candidate in [python] if python else _PYTHONS:
        found = shutil.which(candidate)
        if found is None:
            continue
        made = subprocess.run([found, "-m", "venv", "--clear", str(_ENVIRONMENT)], capture_output=True, text=True)
        if made.returncode:
            continue
        pip = [str(_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        ended = subprocess.run([*pip, f"mcp-contextforge-gateway=={VERSION}"], capture_output=True, text=True)
        if ended.returncode == 0:
            return
    raise RuntimeError(
        f"mcp-contextforge-gateway {VERSION} could not be installed; it needs Python 3.12 or 3.13 with pip"
    )


@dataclass(frozen=True, slots=True)
class ContextForge:
    """One that is to listen on ``port``, with its files in ``directory``."""

    port: int
    directory: Path
    secret: str

    @staticmethod
    def at(port: int, directory: Path) -> "ContextForge":
        return ContextForge(port, directory, secrets.token_urlsafe(48))

    def command(self) -> list[str]:
        program = str((_ENVIRONMENT / "bin" / "mcpgateway").absolute())
        return [program, "mcpgateway.main:app", "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error"]

    def environment(self) -> Mapping[str, str]:
        own = {
            "AUTH_ENCRYPTION_SECRET": self.secret,
            "DEFAULT_USER_PASSWORD": self.secret,
            "DATABASE_URL": f"sqlite:///{self.directory}/contextforge.db",
            "JWT_SECRET_KEY": self.secret,
            "PLATFORM_ADMIN_EMAIL": _ADMIN,
            "PLATFORM_ADMIN_PASSWORD": self.secret,
        }
        return {**os.environ, **CONFIGURATION, **own}

    def register(self, url: str, wait: Callable[[], None]) -> Endpoint:
        """Tell it of the server at ``url``, once it serves; until then ``wait`` again and again."""
        token = self._token()
        while not self._is_healthy():
            wait()
        server = {"name": "echo", "url": url, "transport": "STREAMABLEHTTP"}
        self._ask("/gateways", token, server)
        tools = self._ask("/tools", token)
        tool = next(one for one in tools if one["originalName"] == "echo")
        made = self._ask("/servers", token, {"server": {"name": "echo", "associated_tools": [tool["id"]]}})
        return Endpoint(self.port, f"/servers/{made['id']}/mcp", token=token, tool=tool["name"])

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return True
        except OSError:
            return False

    def _token(self) -> str:
        now = int(time.time())
        claims = {
            "sub": _ADMIN,
            "iss": "mcpgateway",
            "aud": "mcpgateway-api",
            "iat": now,
            "exp": now + 3600,
            "jti": secrets.token_hex(16),
            "is_admin": True,
            "teams": None,
            "token_use": "api",
            "user": {"email": _ADMIN, "full_name": "Admin", "is_admin": True, "auth_provider": "local"},
        }
        return jwt.encode(claims, self.secret, "HS256")

    def _ask(self, path: str, token: str, body: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"ContextForge answered {error.code} for {path}: {error.read()[:500]!r}") from None
