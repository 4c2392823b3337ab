"""A server's own credential, per upstream: never the caller's token (F1).

A credential gives the headers of a request to one server. ``StaticHeader`` has them fixed, ``ClientCredentials`` and
``TokenExchange`` get a token of an authorization server, ``CallerSigner`` says beside them who calls.
"""

from .grants import ClientCredentials, TokenExchange
from .interface import Caller, Credential, CredentialRefusedError, CredentialUnavailableError
from .signer import CallerSigner
from .static import StaticHeader

__all__ = [
    "Caller",
    "CallerSigner",
    "ClientCredentials",
    "Credential",
    "CredentialRefusedError",
    "CredentialUnavailableError",
    "StaticHeader",
    "TokenExchange",
]
