"""What the gateway serves https by."""

import ssl
from pathlib import Path

from mcp_middleware.errors import ConfigurationError

from .sections.tls import TLSConfig

__all__ = ["Certificate"]


class Certificate:
    """Certificate and key, which may be renewed while their context is in use. Raises ConfigurationError where the
    files hold nothing that can be used."""

    def __init__(self, config: TLSConfig) -> None:
        self._config = config
        self.context = self._load(_context())

    def renew(self) -> None:
        """Use what the files hold now for new connections. Raises ConfigurationError, and changes nothing, where they
        hold nothing that can be used: OpenSSL would keep half of it."""
        self._load(_context())
        self._load(self.context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        cert, key = self._config.cert, self._config.key
        try:
            context.load_cert_chain(cert, key, password=lambda: _no_password(key))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigurationError(
                f"tls.cert is {str(cert)!r} and tls.key is {str(key)!r}; they must be a certificate chain and its key "
                f"in PEM ({reason})"
            ) from None
        return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password(key: Path) -> str:
    raise ValueError(f"{key} is encrypted; a process that starts by itself cannot ask for its password")
