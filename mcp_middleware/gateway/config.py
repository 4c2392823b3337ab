"""What the gateway's file says, as typed values. Reading it opens no socket and no database, and changes nothing.

Everything wrong is reported at once, each with its line, its value and what is allowed. Values that came from the
environment or from a secret's file are never part of an error, a repr or a log line.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcp_middleware.authorization import Policy
from mcp_middleware.errors import ConfigurationError
from mcp_middleware.nodes import Node, read_file, read_mapping
from mcp_middleware.oauth.urls import is_loopback
from mcp_middleware.ratelimit import ExactCounter
from mcp_middleware.resource_server.scopes import ScopeHierarchy

from .dangers import counted, dangers, is_readable_on_the_way
from .keys import FILE, Config, url_of
from .sections.audit import AuditConfig
from .sections.credentials import GrantConfig, HeaderConfig
from .sections.limits import LimitsConfig
from .sections.prices import unmatched_globs
from .sections.servers import ServerConfig
from .sections.sessions import SessionsConfig
from .source import INVALID, Reading, with_environment

__all__ = ["Config", "ConfigErrors", "from_mapping", "load"]


class ConfigErrors(ConfigurationError):  # noqa: N818 - it is several
    """Everything that is wrong with a configuration: one line each, in the order of the file."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def load(path: str | os.PathLike[str], *, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a YAML file. Relative paths in it start where the file is.

    Raises ConfigErrors, a ConfigurationError.
    """
    reading = Reading(environ, Path(path).absolute().parent if isinstance(path, str | os.PathLike) else Path())
    try:
        root = read_file(path, what="the configuration", problems=reading.problems)
    except ConfigurationError as error:
        raise ConfigErrors(tuple(str(error).splitlines())) from None
    return _read(root, str(path), reading)


def from_mapping(
    mapping: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ, source: str = "configuration"
) -> Config:
    """The configuration in Python values of the file's form. Relative paths in it start at the current directory.

    ``source`` is its name in errors. Raises ConfigErrors, a ConfigurationError.
    """
    try:
        root = read_mapping(mapping, source=source)
    except ConfigurationError as error:
        raise ConfigErrors(tuple(str(error).splitlines())) from None
    return _read(root, source, Reading(environ, Path.cwd()))


def _read(root: Node, source: str, reading: Reading) -> Config:
    root = with_environment(root, "", reading)
    values = FILE.values(root, "", reading)
    if values is INVALID:
        raise ConfigErrors(_in_order(reading.problems, source))
    parts = _Parts(root, values, reading)
    config = parts.config(source)
    if reading.problems or config is None:
        raise ConfigErrors(_in_order(reading.problems, source))
    return config


def _in_order(problems: list[str], source: str) -> tuple[str, ...]:
    """Problems as the lines of the file come, those of other files last."""

    def place(problem: str) -> tuple[bool, int]:
        match = re.match(r":(\d+): ", problem.removeprefix(source))
        return not problem.startswith(source), int(match[1]) if match else 0

    return tuple(sorted(dict.fromkeys(problems), key=place))


class _Parts:
    """The sections of a file, checked against each other. A value that is wrong by itself is INVALID, and no reason to
    find fault with another."""

    def __init__(self, root: Node, values: Mapping[str, Any], reading: Reading) -> None:
        self.root = root
        self.values = values
        self.reading = reading

    def node(self, *keys: str) -> Node:
        """The node at a key, or the nearest around it that is there."""
        node = self.root
        for key in keys:
            node = node.members.get(key, node)
        return node

    def config(self, source: str) -> Config | None:
        """The configuration; None where something is wrong, which has been noted."""
        values = dict(self.values)
        listen = values.pop("listen")
        del values["access"], values["allow_unauthenticated"]
        values |= {
            "servers": self.servers(),
            "policies": self.policies(),
            "public_url": self.public_url(),
            "auth": self.auth(),
            "limits": self.limits(),
            "prices": self.prices(),
            "budgets": self.budgets(),
            "audit": self.audit(),
        }
        self.judge_workers(values["limits"], values["budgets"])
        if self.reading.problems:
            return None
        config = Config(source=source, host=listen[0], port=listen[1], **values, files=tuple(self.reading.files))
        return replace(config, warnings=tuple(dangers(config, self.root.members)))

    def servers(self) -> Any:
        found = self.values["servers"]
        if found is INVALID:
            return INVALID
        servers: dict[str, ServerConfig] = {}
        for name, given in found.items():
            given = dict(given)
            url, instances, _ = given.pop("url"), given.pop("instances"), given.pop("limits")
            servers[name] = server = ServerConfig(name=name, instances=instances or (url,), **given)
            self._judge_headers(server)
            if self.values["auth"] == "off":
                self._judge_without_auth(server)
        return servers

    def _judge_headers(self, server: ServerConfig) -> None:
        """Each header is set in one place."""
        path, grant = f"servers.{server.name}", server.credentials
        taken = dict.fromkeys(server.headers, "headers")
        if grant is None and "authorization" in taken and "credentials" in self.node("servers", server.name).members:
            node = self.node("servers", server.name, "headers")
            self.reading.at(node, f"{path}.headers has authorization, and {path}.credentials is of type none; keep one")
        also = []
        if grant is not None:
            also.append(("credentials", grant.name if isinstance(grant, HeaderConfig) else "authorization"))
        if server.caller is not None:
            also.append(("caller", server.caller.header))
        for key, header in also:
            if header in taken:
                node = self.node("servers", server.name, key)
                self.reading.at(node, f"{path}.{key} and {path}.{taken[header]} both set the header {header}; keep one")
            taken.setdefault(header, key)

    def _judge_without_auth(self, server: ServerConfig) -> None:
        """There is nobody to name, and no token of theirs."""
        path, grant = f"servers.{server.name}", server.credentials
        if isinstance(grant, GrantConfig) and grant.type == "token_exchange":
            node = self.node("servers", server.name, "credentials", "type")
            self.reading.wrong(
                node, f"{path}.credentials.type", "be another, since auth is off: there are no tokens to exchange"
            )
        if server.caller is not None:
            node = self.node("servers", server.name, "caller")
            self.reading.at(node, f"{path}.caller is of no use where auth is off: all callers are one; leave it out")

    def policies(self) -> Any:
        access = self.values["access"]
        servers = self.root.members.get("servers")
        names = tuple(servers.members) if servers else ()
        if access is None:
            return dict.fromkeys(names)
        if access is INVALID:
            return INVALID
        prefix = "access."
        try:
            if not isinstance(access, Node):
                prefix = ""
                self.reading.files.append(access["file"])
                access = read_file(access["file"], what="the policy")
            return Policy.for_servers(access, names, inside=prefix)
        except ConfigurationError as error:
            self.reading.problems += str(error).splitlines()
            return INVALID

    def public_url(self) -> Any:
        url, listen, tls = (self.values[key] for key in ("public_url", "listen", "tls"))
        if url is INVALID or listen is INVALID:
            return INVALID
        host, port = listen
        node = self.node("public_url")
        if url is None:
            if not is_loopback(host) or not port:
                return self.reading.at(
                    node, "public_url is missing; it must be the URL that clients know the gateway by"
                )
            return url_of(host, port, tls=tls is not None)
        if is_readable_on_the_way(url) and self.values["auth"] != "off":
            return self.reading.wrong(node, "public_url", "be https: it is what access tokens are for (RFC 9728)")
        return url

    def auth(self) -> Any:
        auth = self.values["auth"]
        if auth is INVALID:
            return INVALID
        if auth == "off":
            listen, allowed = self.values["listen"], self.values["allow_unauthenticated"]
            if listen is not INVALID and allowed is False and not is_loopback(listen[0]):
                self.reading.at(
                    self.node("auth"),
                    "auth is off, and listen is an address that other machines reach; it must be a mapping with "
                    f"issuers, or listen be 127.0.0.1:{listen[1]}, or allow_unauthenticated be true",
                )
            return None
        names = [issuer.issuer for issuer in auth.issuers]
        if len(set(names)) < len(names):
            return self.reading.at(self.node("auth", "issuers"), "auth.issuers has an issuer twice; keep one")
        try:
            ScopeHierarchy(auth.implied_scopes)
        except ConfigurationError as error:
            return self.reading.at(self.node("auth", "implied_scopes"), f"auth.{error}")
        return auth

    def limits(self) -> Any:
        limits, servers = self.values["limits"], self.values["servers"]
        if limits is INVALID or servers is INVALID:
            return INVALID
        own = {name: server["limits"] for name, server in servers.items() if server["limits"] is not None}
        if limits is None:
            return LimitsConfig(servers=own) if own else None
        limits = replace(limits, servers=own)
        if limits.limit_nothing and limits.mode != "off" and self.values["prices"] is None:
            remedy = "give requests, tokens, concurrency, agents or tools"
            return self.reading.at(self.node("limits"), f"limits limits nothing; {remedy}")
        if limits.counter != "estimate":
            try:
                ExactCounter(limits.counter)
            except ConfigurationError as error:
                return self.reading.at(
                    self.node("limits", "counter"), f"limits.counter is {limits.counter!r}; {error}, or leave it out"
                )
        return limits

    def prices(self) -> Any:
        prices, servers = self.values["prices"], self.values["servers"]
        if prices is None or prices is INVALID or servers is INVALID:
            return prices
        for number, glob in unmatched_globs(prices, tuple(servers)):
            node = self.node("prices", "rules").items[number].members["servers"]
            self.reading.at(
                node,
                f"prices.rules[{number}].servers has the glob {glob!r}, which matches no server; the servers are "
                + ", ".join(servers),
            )
        return prices

    def budgets(self) -> Any:
        budgets = self.values["budgets"]
        if budgets is None or budgets is INVALID:
            return () if budgets is None else INVALID
        if self.values["prices"] is None:
            self.reading.at(self.node("budgets"), "budgets is of no use without prices, by which calls are paid for")
        return budgets

    def audit(self) -> Any:
        audit = self.values["audit"]
        if isinstance(audit, AuditConfig) and audit.sqlite == audit.jsonl:
            return self.reading.at(self.node("audit"), "audit.sqlite and audit.jsonl are the same file; give two")
        return audit

    def judge_workers(self, limits: Any, budgets: Any) -> None:
        """Several workers count together or not at all."""
        workers, state, sessions = (self.values[key] for key in ("workers", "state", "sessions"))
        if workers is INVALID or workers == 1:
            return
        node = self.node("workers")
        if isinstance(sessions, SessionsConfig) and not sessions.keys:
            must = "be 1, or sessions.keys be given: each worker would make a key of its own"
            self.reading.wrong(node, "workers", must)
        if state != "memory":
            return
        counts = counted(
            LimitsConfig() if limits is INVALID else limits,
            budgets,
            SessionsConfig(per_agent=None) if sessions is INVALID else sessions,
        )
        if counts:
            off = " and ".join(dict.fromkeys("limits.mode" if key in ("limits", "budgets") else key for key in counts))
            must = f"be 1, or state be a Redis URL, or {off} be off: each worker would count by itself"
            self.reading.wrong(node, "workers", must)
