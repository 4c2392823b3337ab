"""Who asks for tokens: clients of the configuration, clients that registered themselves, and clients whose identifier
is the address of a document that describes them."""

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import unquote_plus, urlsplit

from authlib.oauth2.rfc6749 import ClientMixin, InvalidClientError
from authlib.oauth2.rfc7591 import ClientMetadataClaims, InvalidRedirectURIError
from joserfc.errors import InvalidClaimError, JoseError
from joserfc.jwk import KeySet

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.oauth.http import FetchError, OAuthHTTPClient
from mcp_middleware.oauth.urls import absolute_url, is_loopback

from .requests import Request, quotable

__all__ = ["Client", "ClientMetadata", "by_basic_credentials", "fetch_client", "is_document", "key_set"]

CODE: Final = frozenset({"authorization_code", "refresh_token"})
"""What a client gets that a person uses; all that anybody may register for."""
MACHINE: Final = frozenset(
    {
        "client_credentials",
        "urn:ietf:params:oauth:grant-type:token-exchange",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
    }
)
"""What a client gets that proves who it is."""
SECRET: Final = ("client_secret_basic", "client_secret_post")
CONFIDENTIAL: Final = (*SECRET, "private_key_jwt")
METHODS: Final = ("none", *CONFIDENTIAL)

_KEYS: Final = frozenset({"client_id", "name", "secret", "public_key", "redirect_uris", "scopes", "roles", "serves"})
"""What a client in a file may have."""
_LONGEST: Final = 2000
"""Characters of one text."""
_MOST: Final = 20
"""Texts or keys of one client."""
_TEXTS: Final = frozenset(
    {
        "token_endpoint_auth_method",
        *("client_name", "client_uri", "logo_uri", "tos_uri", "policy_uri", "jwks_uri"),
        *("scope", "software_id", "software_version"),
    }
)
_LISTS: Final = frozenset({"redirect_uris", "grant_types", "response_types", "contacts"})
_RUN_BY_BROWSERS: Final = frozenset(
    {
        *("about", "blob", "data", "file", "filesystem", "ftp", "javascript"),
        *("mailto", "vbscript", "view-source", "ws", "wss"),
    }
)
"""Schemes that are nobody's own."""

Origin = Literal["configuration", "registration", "document"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client(ClientMixin):
    """A client: how it proves itself, and what it may have."""

    client_id: str
    name: str = ""
    methods: tuple[str, ...] = ("none",)
    """How it may prove itself, by the names of RFC 7591 section 2."""
    secret: str | None = field(default=None, repr=False)
    keys: KeySet | None = field(default=None, repr=False)
    """Its public keys, for ``private_key_jwt``."""
    redirect_uris: tuple[str, ...] = ()
    grant_types: frozenset[str] = CODE
    scopes: frozenset[str] | None = None
    """What it may have at most. None: whatever there is."""
    strict: bool = False
    """Whether a scope beyond those is an error. Otherwise it is not granted, and that is all."""
    roles: tuple[str, ...] = ()
    """What its tokens have in ``roles`` when it acts for itself."""
    serves: frozenset[str] | None = frozenset()
    """The resources it is the server of: it may introspect and exchange their tokens. None: all."""
    origin: Origin = "configuration"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Client":
        """A client as a file of clients has it. Raises ConfigurationError."""
        place = f"client {values.get('client_id')!r}"
        unknown = values.keys() - _KEYS
        if unknown:
            names = ", ".join(sorted(map(str, unknown)))
            raise ConfigurationError(f"{place} has {names}; it may have {', '.join(sorted(_KEYS))}")
        for name in ("redirect_uris", "scopes", "roles", "serves"):
            if not _texts(values.get(name, [])):
                raise ConfigurationError(f"{name} of {place} is {values[name]!r}; it must be a list of strings")
        client_id, secret, public_key = values.get("client_id"), values.get("secret"), values.get("public_key")
        if not isinstance(client_id, str) or not _is_name(client_id):
            raise ConfigurationError(f"client_id is {client_id!r}; it must be printable ASCII, and no URL")
        if secret is not None and (not isinstance(secret, str) or not secret or public_key is not None):
            raise ConfigurationError(f"secret of {place} must be a string, and stands in place of a public_key")
        redirect_uris = tuple(values.get("redirect_uris", ()))
        for uri in redirect_uris:
            if not is_redirect_uri(uri):
                raise ConfigurationError(f"a redirect URI of {place} is {uri!r}; {REDIRECT_RULE}")
        proves = secret is not None or public_key is not None
        if not proves and not redirect_uris:
            raise ConfigurationError(f"{place} has neither secret, nor public_key, nor redirect_uris; it needs one")
        try:
            keys = key_set({"keys": [public_key]}) if public_key is not None else None
        except ValueError as error:
            raise ConfigurationError(
                f"public_key of {place} is no key: {error}; it must be a public JSON Web Key"
            ) from None
        return cls(
            client_id=client_id,
            name=str(values.get("name", client_id)),
            methods=SECRET if secret else ("private_key_jwt",) if keys else ("none",),
            secret=secret,
            keys=keys,
            redirect_uris=redirect_uris,
            grant_types=(MACHINE if proves else frozenset()) | (CODE if redirect_uris else frozenset()),
            scopes=frozenset(values["scopes"]) if "scopes" in values else None,
            roles=tuple(values.get("roles", ())),
            serves=frozenset(values["serves"]) if "serves" in values else None if proves else frozenset(),
        )

    @classmethod
    def from_metadata(cls, client_id: str, metadata: Mapping[str, Any], *, origin: Origin, **more: Any) -> "Client":
        """A client by what it says of itself, which has been checked (RFC 7591 section 2)."""
        return cls(
            client_id=client_id,
            name=metadata.get("client_name") or client_id,
            methods=(metadata["token_endpoint_auth_method"],),
            redirect_uris=tuple(metadata["redirect_uris"]),
            grant_types=frozenset(metadata.get("grant_types", ("authorization_code",))) & CODE,
            origin=origin,
            **more,
        )

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        """Where to answer a request that does not say; there is no choosing among several."""
        return self.redirect_uris[0] if len(self.redirect_uris) == 1 else None

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """What is granted of ``scope``, in its order; of nothing in particular, all. None: that must be refused."""
        if not scope:
            return " ".join(sorted(self.scopes or ()))
        asked = list(dict.fromkeys(scope.split()))
        if self.scopes is None:
            return " ".join(asked)
        granted = [name for name in asked if name in self.scopes]
        return None if not granted or (self.strict and granted != asked) else " ".join(granted)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Whether this is one of its addresses: to the letter, but for the port of a loopback one (RFC 8252 7.3)."""
        return any(_same_address(uri, redirect_uri) for uri in self.redirect_uris)

    def check_client_secret(self, client_secret: str) -> bool:
        return self.secret is not None and hmac.compare_digest(self.secret.encode(), client_secret.encode())

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in self.methods

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and "authorization_code" in self.grant_types

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.grant_types

    def is_server_of(self, resource: str) -> bool:
        """Whether it may learn what a token for ``resource`` is, and exchange it."""
        return self.serves is None or resource in self.serves


def by_basic_credentials(query_client: Callable[[str], Client | None], request: Request) -> Client | None:
    """The client that proves itself by HTTP Basic, as RFC 6749 section 2.3.1 has it: both parts encoded as in forms.

    Authlib leaves a ``+`` as it is, and raises for what is no UTF-8.
    """
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    try:
        client_id, separator, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if scheme.lower() != "basic" or not separator:
        return None
    client = query_client(unquote_plus(client_id))
    return client if client is not None and client.check_client_secret(unquote_plus(secret)) else None


REDIRECT_RULE: Final = (
    "it must be an https URL, an http URL of this machine, or one of an application's own scheme, without a fragment"
)


def is_redirect_uri(uri: str) -> bool:
    """Whether anybody may be sent there (RFC 8252 section 7, RFC 9700 section 2.1)."""
    if not uri.isascii() or not uri.isprintable() or len(uri) > _LONGEST or any(c in ' "\\<>^`{|}#' for c in uri):
        return False
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if "@" in parts.netloc:
        return False
    if parts.scheme in ("http", "https"):
        return bool(host) and (parts.scheme == "https" or is_loopback(host or ""))
    return parts.scheme not in _RUN_BY_BROWSERS and ("." in parts.scheme or bool(parts.scheme and host))


def _same_address(registered: str, requested: str) -> bool:
    if registered == requested:
        return True
    if not is_redirect_uri(requested):
        return False
    one, other = urlsplit(registered), urlsplit(requested)
    if one.scheme != "http" or one.hostname != other.hostname or not is_loopback(one.hostname or ""):
        return False
    return one._replace(netloc="") == other._replace(netloc="")


def key_set(document: object) -> KeySet:
    """Public keys as RFC 7517 writes them. Raises ValueError."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not 0 < len(keys) <= _MOST or not all(isinstance(key, dict) for key in keys):
        raise ValueError("there must be a list of keys")
    if any(key.get("kty") not in ("EC", "RSA", "OKP") or "d" in key for key in keys):
        raise ValueError("a key is secret, or of an unknown kind")
    try:
        return KeySet.import_key_set({"keys": keys})
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"a key is malformed ({type(error).__name__})") from None


class ClientMetadata(ClientMetadataClaims):
    """What a client says of itself (RFC 7591 section 2): values of the right kinds first, then what they mean."""

    def validate(self, now: float | None = None, leeway: int = 0) -> None:
        """Raises InvalidClaimError for a member that cannot be, InvalidRedirectURIError for an address."""
        for name, value in self.items():
            texts = [value] if name in _TEXTS else value if name in _LISTS else []
            if not _texts(texts):
                raise InvalidClaimError(quotable(name))
        if "jwks" in self:
            try:
                key_set(self["jwks"])
            except ValueError:
                raise InvalidClaimError("jwks") from None
        super().validate(now, leeway)
        if self["token_endpoint_auth_method"] == "private_key_jwt" and not {"jwks", "jwks_uri"} & self.keys():
            raise InvalidClaimError("jwks")

    def validate_redirect_uris(self) -> None:
        uris = self.get("redirect_uris")
        if not uris or not all(is_redirect_uri(uri) for uri in uris):
            raise InvalidRedirectURIError(description=f"Of redirect_uris there must be one or more; {REDIRECT_RULE}.")


def _texts(value: object) -> bool:
    """Whether this is a list, not too long, of text to be shown: no line breaks, nothing that turns it around."""
    return (
        isinstance(value, list)
        and len(value) <= _MOST
        and all(isinstance(text, str) and len(text) <= _LONGEST and text.isprintable() for text in value)
    )


def _is_name(client_id: str) -> bool:
    """Whether a client of the configuration may be called that."""
    return bool(client_id) and quotable(client_id) == client_id and not is_document(client_id)


def is_document(client_id: str) -> bool:
    """Whether a client is described by the document at this address."""
    return client_id.startswith(("https://", "http://"))


async def fetch_client(http: OAuthHTTPClient, url: str, options: Mapping[str, Any]) -> Client:
    """The client whose identifier is ``url`` (draft-ietf-oauth-client-id-metadata-document). Raises InvalidClientError.

    The document says how the client is called and where it is reached. It holds no secret: everybody can read it.
    """
    try:
        parts = absolute_url("client_id", url)
        if parts.path in ("", "/") or {".", ".."} & set(parts.path.split("/")):
            raise ValueError("client_id must have a path, without dots for segments")
        metadata = ClientMetadata(_object(await http.get(url)), {}, dict(options))
        if metadata.get("client_id") != url:
            raise ValueError("the client_id in the document must be the document's own address")
        if "client_secret" in metadata:
            raise ValueError("the document must have no secret: everybody can read it")
        metadata.setdefault("token_endpoint_auth_method", "none")
        if metadata["token_endpoint_auth_method"] not in ("none", "private_key_jwt"):
            raise ValueError("token_endpoint_auth_method must be none or private_key_jwt")
        metadata.validate()
        keys = metadata.get("jwks")
        if "jwks_uri" in metadata:
            keys = _object(await http.get(metadata["jwks_uri"]))
        keys = key_set(keys) if metadata["token_endpoint_auth_method"] == "private_key_jwt" else None
        return Client.from_metadata(url, metadata, origin="document", keys=keys)
    except (FetchError, JoseError, InvalidRedirectURIError, ValueError) as error:
        reason = getattr(error, "description", "") or str(error)
        raise InvalidClientError(description=quotable(f"The document of the client does not serve: {reason}")) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("what is at the address is no JSON") from None
    if not isinstance(document, dict):
        raise ValueError("what is at the address is no JSON object")
    return document
