"""An issuer on loopback: a key, its JWKS and metadata over HTTP, and the token the load carries."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["AGENT", "RESOURCE", "SCOPE", "Issuer", "issuer"]

AGENT = "benchmark"
RESOURCE = "https://mcp.example.com/mcp"
SCOPE = "mcp:use"


class Issuer:
    """Who signs, and where its keys are."""

    def __init__(self, url: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.url = url
        self._key = key

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
        return jwt.encode(claims, self._key, "ES256", headers={"kid": "1", "typ": "at+jwt"})


@contextmanager
def issuer() -> Iterator[Issuer]:
    """An issuer while the context lasts."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
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
    documents["/jwks"] = json.dumps({"keys": [{**public, "kid": "1", "use": "sig", "alg": "ES256"}]}).encode()
    documents["/.well-known/oauth-authorization-server"] = json.dumps(metadata).encode()
    documents["/.well-known/openid-configuration"] = json.dumps(metadata).encode()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Issuer(url, key)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
