"""DEVELOPMENT ONLY: an authorization server for one machine, on Authlib, to try what needs one.

In production this is your identity provider: Keycloak, Entra ID, Auth0, Okta, ... mcp-middleware is never one, and
nothing of this package is in it. It stays on a loopback address, asks nobody for a password and forgets everything
when it ends.

``server.py``     the server: who it knows, what it issues, and what it publishes of itself
``grants.py``     how a client comes to a token; one class a grant
``endpoints.py``  introspection, revocation, registration
``clients.py``    who asks: configured, registered by themselves, or described by a document of their own
``tokens.py``     what is issued: keys, tokens, and the authorization they stand on
``requests.py``   what a request says, read once and strictly
``app.py``        the routes, and the consent of a person; ``pages.py`` and ``style.css`` are what it looks like
``__main__.py``   ``python -m examples.authorization_server``
"""

from .app import create_app
from .clients import Client
from .server import AuthorizationServer
from .tokens import User

__all__ = ["AuthorizationServer", "Client", "User", "create_app"]
