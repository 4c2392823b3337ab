"""Run it: ``python -m examples.authorization_server --resource URL``.

It prints what to write into a gateway's configuration, and a client to try with. SIGHUP makes it sign with a new key;
the next one makes it forget the old.
"""

import argparse
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus

import uvicorn
from joserfc.jwk import KeySet

from mcp_middleware.errors import ConfigurationError

from .app import create_app
from .clients import Client, key_set
from .server import USERS, AuthorizationServer
from .tokens import User

T = TypeVar("T")

_SCOPE: Final = "mcp:use"
"""What the documentation's gateways ask of every token."""

BANNER = """\
######################################################################
#  DEVELOPMENT ONLY. Whoever reaches this authorization server can   #
#  sign in as anybody. Never deploy it.                              #
######################################################################

Issuer     {issuer}
Resources  {resources}
Users      {users}

gateway.yaml:

  auth:
    issuers:
      - issuer: {issuer}
        # for opaque tokens, and to see revocation at once (it is asked about every request):
        # introspection: {{client_id: gateway, client_secret: "{gateway}", cache: off}}

A client of its own, with a token for {resource}:

  client_id machine
  client_secret {machine}

  TOKEN=$(curl -s {issuer}/token -u machine:{machine} \\
    -d grant_type=client_credentials -d scope={scope} -d resource={resource} \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["access_token"])')

What a token is:

  curl -s {issuer}/introspect -u gateway:{gateway} -d token=$TOKEN

Clients that people use register themselves; give them the URL of the MCP server, and nothing else.
A new key: kill -HUP {pid}    The end of the old one: the same again    The end: Ctrl-C
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what it names is read. Ends the process with a sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--port", type=int, default=9000, help="where to listen on 127.0.0.1 (default: 9000)")
    parser.add_argument(
        "--resource", action="append", required=True, metavar="URL", help="what tokens may be for; repeatable"
    )
    parser.add_argument("--clients", type=Path, metavar="FILE", help="clients to know, a list in JSON (see README.md)")
    parser.add_argument("--user", action="append", metavar="NAME[=ROLE,...]", help="who can sign in; repeatable")
    parser.add_argument(
        "--scope", action="append", metavar="NAME[=WHAT]", help="a scope, and what it is for (default: any will do)"
    )
    parser.add_argument("--form", choices=["jwt", "opaque"], default="jwt", help="the form of tokens (default: jwt)")
    parser.add_argument("--algorithm", choices=["ES256", "RS256"], default="ES256", help="default: ES256")
    parser.add_argument("--lifetime", type=int, default=600, metavar="SECONDS", help="of access tokens (default: 600)")
    parser.add_argument(
        "--registered-scope-binds", action="store_true", help="refuse what a client did not register for: no step-up"
    )
    parser.add_argument(
        "--trust", action="append", metavar="ISSUER=FILE", help="redeem identity assertions, by the issuer's JWKS"
    )
    options = parser.parse_args(arguments)
    try:
        options.server = _server(options)
    except ConfigurationError as error:
        parser.error(str(error))
    return options


def _server(options: argparse.Namespace) -> AuthorizationServer:
    """The server that the command line asks for. Raises ConfigurationError."""
    if not 0 < options.port < 65536:
        raise ConfigurationError(f"--port is {options.port}; it must be from 1 to 65535")
    if options.lifetime < 1:
        raise ConfigurationError(f"--lifetime is {options.lifetime}; it must be a second or more")
    users = [_user(text) for text in options.user] if options.user else USERS
    scopes = dict(text.partition("=")[::2] for text in options.scope) if options.scope else None
    return AuthorizationServer(
        f"http://127.0.0.1:{options.port}",
        resources=options.resource,
        clients=_read(options.clients, _clients) if options.clients is not None else (),
        users=users,
        scopes=scopes,
        algorithm=options.algorithm,
        form=options.form,
        lifetime=options.lifetime,
        registered_scope_binds=options.registered_scope_binds,
        identity_providers=dict(_trusted(text) for text in options.trust or ()),
    )


def _user(text: str) -> User:
    name, _, roles = text.partition("=")
    if not name:
        raise ConfigurationError(f"--user is {text!r}; it must be NAME or NAME=ROLE,ROLE")
    return User(name, name.capitalize(), tuple(roles.split(",")) if roles else ())


def _trusted(text: str) -> tuple[str, KeySet]:
    issuer, _, file = text.partition("=")
    if not issuer or not file:
        raise ConfigurationError(f"--trust is {text!r}; it must be ISSUER=FILE")
    return issuer, _read(Path(file), key_set)


def _clients(document: Any) -> list[Client]:
    if not isinstance(document, list) or not all(isinstance(values, Mapping) for values in document):
        raise ValueError("it must be a list of objects, one for each client")
    return [Client.from_dict(values) for values in document]


def _read(path: Path, meaning: Callable[[Any], T]) -> T:
    """What a file of JSON means. Raises ConfigurationError."""
    try:
        return meaning(json.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is wrong: {error}") from None


def _ready_client(server: AuthorizationServer, client_id: str) -> str:
    """The secret of a client made for the occasion; one that the file has stays as it is."""
    known = server.query_client(client_id)
    if known is None:
        known = Client.from_dict({"client_id": client_id, "secret": secrets.token_urlsafe(24)})
        server.add_client(known)
    return known.secret or "<secret>"


def _turn_keys(server: AuthorizationServer) -> str:
    """Rotate keys, or end a rotation; what was done."""
    if server.keys.rotating:
        server.keys.remove_old()
        return "The old key is gone: tokens that it signed are refused as soon as their readers notice."
    server.keys.rotate()
    return "Tokens are signed with a new key. The old one is published still, until the next SIGHUP."


def main() -> None:
    """Serve until interrupted."""
    options = parse()
    server: AuthorizationServer = options.server
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", options.port))
        bound.listen()  # who reads what is printed next may connect at once
    except OSError as error:
        sys.exit(f"port {options.port} cannot be had: {error.strerror}; choose another one with --port")
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: print(_turn_keys(server), flush=True))
    print(
        BANNER.format(
            issuer=server.issuer,
            resources="\n           ".join(server.resources),
            resource=server.resources[0],
            users=", ".join(
                user.subject + (f" ({', '.join(user.roles)})" if user.roles else "") for user in server.users.values()
            ),
            machine=_ready_client(server, "machine"),
            gateway=_ready_client(server, "gateway"),
            scope=quote_plus(" ".join(server.scopes or [_SCOPE]), safe=":"),
            pid=os.getpid(),
        ),
        flush=True,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(create_app(server), log_level="warning")).run(sockets=[bound])


if __name__ == "__main__":
    main()
