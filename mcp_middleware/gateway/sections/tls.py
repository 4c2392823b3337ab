"""``tls``: the certificate to serve https by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_middleware.gateway.scalars import File
from mcp_middleware.gateway.shapes import Key, Section

__all__ = ["TLS", "TLSConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """PEM files."""

    cert: Path
    key: Path


TLS: Final = Section(
    "tls",
    (
        Key("cert", File(), "The certificate chain, in PEM.", required=True),
        Key("key", File(), "Its private key, in PEM.", required=True),
    ),
    lambda values: TLSConfig(**values),
)
