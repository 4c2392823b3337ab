"""An issuer on loopback: a key, its JWKS and metadata over HTTP, and the token the load carries."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import get_default_algorithms

__all__ = ["AGENT", "RESOURCE", "SCOPE", "Issuer", "issuer"]

AGENT = "benchmark"
RESOURCE = "https://mcp.example.com/mcp"
SCOPE = "mcp:use"


class Issuer:
    """Who signs, and where its keys are."""

    def __init__(self, url: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, algorithm: str) -> None:
        self.url = url
        self._key = key
        self._algorithm = algorithm

    def token(self, subject: str = "alice") -> str:
        """An access token for an hour (RFC 9068)."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": RESOURCE,
            "sub": subject,
            "client_id": AGENT,
            "scope": SCOPE,
            "iat": now,
            "exp": now + 3600,
            "jti": "benchmark",
        }
        return jwt.encode(claims, self._key, self._algorithm, headers={"kid": "1", "typ": "at+jwt"})

    def jwks(self) -> bytes:
        """The key as it is published."""
        public = get_default_algorithms()[self._algorithm].to_jwk(self._key.public_key(), as_dict=True)
        public.pop("key_ops", None)
        return json.dumps({"keys": [{**public, "kid": "1", "use": "sig", "alg": self._algorithm}]}).encode()


@contextmanager
def issuer(algorithm: Literal["ES256", "RS256"] = "ES256") -> Iterator[Issuer]:
    """An issuer while the context lasts."""
    es256 = algorithm == "ES256"
    key = ec.generate_private_key(ec.SECP256R1()) if es256 else rsa.generate_private_key(65537, 2048)
    documents: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = documents.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    metadata = {"issuer": url, "jwks_uri": f"{url}/jwks"}
    issued_by = Issuer(url, key, algorithm)
    documents["/jwks"] = issued_by.jwks()
    documents["/.well-known/oauth-authorization-server"] = json.dumps(metadata).encode()
    documents["/.well-known/openid-configuration"] = json.dumps(metadata).encode()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield issued_by
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
