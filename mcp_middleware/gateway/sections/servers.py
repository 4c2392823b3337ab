"""``servers``: the MCP servers behind the gateway."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.gateway.scalars import Duration
from mcp_middleware.gateway.shapes import Key, ListOf, MapOf, Section, Text
from mcp_middleware.gateway.values import FORWARDED, HEADERS, WEB_URL, web_url

from .credentials import CALLER, CREDENTIALS, CallerConfig, GrantConfig, HeaderConfig
from .limits import SERVER_LIMITS

__all__ = ["SERVERS", "ServerConfig"]

_MAX_NAME: Final = 64
_NAME: Final = re.compile(rf"^(?!(healthz|readyz)$)[a-z0-9][a-z0-9_-]{{0,{_MAX_NAME - 1}}}$", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One MCP server, served at ``/{name}/mcp``."""

    name: str
    instances: tuple[str, ...]
    """The URLs of its MCP endpoint, at least one."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to each request: names in lower case, values that may be secrets."""
    forward_headers: tuple[str, ...] = ()
    """Of a caller's own, besides those of the protocol: names in lower case."""
    credentials: HeaderConfig | GrantConfig | None = None
    """What it knows the gateway by."""
    caller: CallerConfig | None = None
    """The signed header that names the caller; None does not."""
    timeout: float = 60.0
    """Seconds until an answer must have begun."""
    stream_idle: float = 300.0
    """Seconds that a stream may be silent."""
    probe_interval: float = 5.0
    """Seconds after which an instance that failed is asked whether it is back."""

    @property
    def fixed_headers(self) -> Mapping[str, str]:
        """The headers that are the same in every request."""
        credential = self.credentials
        return (
            {**self.headers, credential.name: credential.value}
            if isinstance(credential, HeaderConfig)
            else self.headers
        )


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError
    return text


def _instance(text: str) -> str:
    """One spelling for each instance (RFC 3986 section 6.2.3), so that none is there twice."""
    parts = urlsplit(web_url(text))
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = parts.port if parts.port not in (None, 80 if parts.scheme == "http" else 443) else None
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path or '/'}"


def _one_place(given: Collection[str]) -> str | None:
    if ("url" in given) != ("instances" in given):
        return None
    return f"has {'both' if 'url' in given else 'neither'} of url and instances; it must have one of them"


_INSTANCE: Final = replace(WEB_URL, check=_instance, examples=("http://127.0.0.1:9001/mcp",))
_SERVER: Final = Section(
    "servers.<name>",
    (
        Key("url", _INSTANCE, "The URL of its MCP endpoint, where it has one instance. Either this or `instances`."),
        Key(
            "instances",
            ListOf(_INSTANCE),
            "The URLs of several equal instances. A session stays on the one that opened it.",
        ),
        Key(
            "headers",
            HEADERS,
            "Headers that the gateway adds to each request, in place of the caller's own. No credential: give that as "
            "`credentials`.",
            {},
        ),
        Key(
            "forward_headers",
            ListOf(FORWARDED, least=0),
            "Headers of the caller that go on to the server, besides those of the protocol.",
            [],
        ),
        Key("credentials", CREDENTIALS, "What the server knows the gateway by. The caller's token never goes on."),
        Key(
            "caller", CALLER, "A signed header in which the gateway says who calls. Without it the server is not told."
        ),
        Key("limits", SERVER_LIMITS, "What each caller may ask of this server, on top of its own limits."),
        Key("timeout", Duration(), "How long an answer may take to begin; then 504.", "60s"),
        Key("stream_idle", Duration(), "How long a stream may be silent before it is ended.", "5m"),
        Key(
            "probe_interval", Duration(), "How often an instance that was taken out is asked whether it is back.", "5s"
        ),
    ),
    judge=_one_place,
)
SERVERS: Final = MapOf(
    Text(
        "the server's name",
        f"be at most {_MAX_NAME} of a-z, 0-9, - and _, with a letter or digit first, and neither healthz nor readyz",
        _name,
        _NAME.pattern,
        ("search",),
    ),
    _SERVER,
    least=1,
)
