"""The gateway as an ASGI application: for each server of the configuration the members around a forwarder.

``create_app(config)`` makes it. What outlives a configuration (limits, sessions, the audit trail, connections) is in
``Shared``; what a reload replaces is a ``_Generation``, which ends when its last request has.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from mcp_middleware.errors import UNAVAILABLE, ConfigurationError
from mcp_middleware.exchange import Receive, Scope, Send
from mcp_middleware.member import ASGIApp, Member
from mcp_middleware.resource_server import IssuersVerifier
from mcp_middleware.resource_server.legacy import LEGACY_WELL_KNOWN, issuer_metadata
from mcp_middleware.resource_server.metadata import WELL_KNOWN
from mcp_middleware.responses import rejection_answer, retry_later, send_document
from mcp_middleware.types import Document

from .client import UpstreamClient, UpstreamError
from .config import Config
from .credentials import ServerCredentials
from .edge import AccessLog
from .forwarder import Forwarder
from .sections.servers import ServerConfig
from .shared import Shared
from .stack import credentials, forwarder, stack, verifier
from .upstream import Upstream

__all__ = ["Gateway", "create_app"]

logger = logging.getLogger("mcp_middleware.gateway")

_ENDPOINT: Final = "/mcp"
_FIXED: Final = {
    "listen": ("host", "port"),
    **{key: (key,) for key in ("workers", "replicas", "tls", "state", "tracing", "audit", "access_log")},
}
"""Keys that a running process does not change, with what they are in ``Config``: a reload that asks for it is told."""


def create_app(config: Config, *, access_log: AccessLog | None = None) -> "Gateway":
    """The gateway of ``config``. Opens no socket before it starts, which it does by the ASGI lifespan, or with its
    first request where nobody runs that. Raises ConfigurationError."""
    return Gateway(config, access_log=access_log)


class Gateway:
    """An ASGI application that serves ``/{server}/mcp``, the metadata documents, ``/healthz`` and ``/readyz``."""

    def __init__(self, config: Config, *, access_log: AccessLog | None = None) -> None:
        self._shared = Shared(config, access_log)
        self._generation = _Generation(config, self._shared)
        self._starting = asyncio.Lock()
        self._failed_starts = 0
        self._is_started_by_others = False
        """Somebody starts it, or did: no request has to, and what comes too early waits for that."""
        self._started = False
        self._answered = False
        """Every authorization server has answered once. One that a reload adds takes no gateway out of service."""
        self._bad_reload: str | None = None
        self._retiring: dict[asyncio.Task[None], _Generation] = {}
        """What was served before, until its last request has ended."""

    @property
    def config(self) -> Config:
        """The configuration that is served now."""
        return self._generation.config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # MCP has no websocket transport
            return
        if not self._started and not self._starting.locked():
            await self._start_by_itself()
        path = _normal(scope["path"])
        if path in ("/healthz", "/readyz"):
            await self._answer_health(path, scope["method"], send)
            return
        if not self._started:
            await self._start_by_itself()
            if not self._started:  # nor will it be: the start has failed, or the end has come
                refusal = retry_later(503, UNAVAILABLE, "The gateway has not started", "not_started", seconds=1.0)
                await send_document(rejection_answer(refusal, None, close=True), send)
                return
        generation = self._generation
        app = generation.route(path)
        if app is None:
            await _answer(send, 404, {"error": "not found", "remedy": "MCP servers are at /{server}/mcp"})
            return
        scope["path"] = path
        generation.enter()
        try:
            await app(scope, receive, send)
        except UpstreamError:
            pass  # a stream broke off: it has been logged, recorded, and told the client
        finally:
            generation.leave()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.startup()
        except Exception as error:
            if not isinstance(error, ConfigurationError):
                logger.exception("the gateway did not start")
            await self.shutdown()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start_by_itself(self) -> None:
        """Start with a request, where nobody else does. Of those that wait while a start fails none tries again: they
        would do so one after the other."""
        failed = self._failed_starts
        async with self._starting:
            if not self._is_started_by_others and failed == self._failed_starts:
                await self._start()

    async def startup(self) -> None:
        """Ask the authorization servers, open connections and begin to watch the servers. Does nothing when it has been
        done.

        Raises ConfigurationError where an authorization server contradicts the configuration. One that does not answer
        is asked again, and until it has answered ``readiness`` says so.
        """
        self._is_started_by_others = True
        async with self._starting:
            await self._start()

    async def _start(self) -> None:
        if self._started:
            return
        try:
            await self._generation.start()
            await self._shared.start()
        except Exception:
            self._failed_starts += 1
            raise
        self._started = True

    async def shutdown(self) -> None:
        """Close everything: the audit trail is written to its end, spans and metrics are sent."""
        self.begin_drain()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._generation.aclose(None)
        await self._shared.aclose()
        self._shared.draining.clear()  # it may start again
        self._started = False

    def begin_drain(self) -> None:
        """Be not ready any more, and let streams that would stay open end. Calls under way go on."""
        self._shared.draining.set()

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        if self._retiring:
            await asyncio.wait(self._retiring)
        await self._generation.wait_idle()

    async def reload(self, config: Config) -> None:
        """Serve by another configuration from now on; what is under way ends by the old one.

        Raises ConfigurationError, and changes nothing, where it cannot be served.
        """
        current = self._generation
        config = _with_fixed(config, current.config)
        following = _Generation(config, self._shared, previous=current)
        if self._started:
            try:
                await following.start()
            except BaseException:
                await following.aclose(current)
                raise
            self._note_answers()
        self._generation = following
        self._bad_reload = None
        self._shared.telemetry.count_reload("ok")
        if self._started:
            task = asyncio.create_task(current.aclose(following), name="the configuration before")
            self._retiring[task] = current
            task.add_done_callback(self._retiring.pop)
            for before in self._retiring.values():
                before.end_streams(following)
        logger.info("the configuration was reloaded from %s", config.source)

    def note_bad_reload(self, message: str) -> None:
        """A new configuration was refused: the last good one stays, and says so where people and probes look."""
        self._bad_reload = message.splitlines()[0] if message else "refused"
        self._shared.telemetry.count_reload("refused")
        logger.error("the configuration stays as it was; the new one was refused:\n%s", message)

    async def probe(self, seconds: float) -> None:
        """Ask every instance whether it lives, for at most ``seconds``; ``readiness`` tells the rest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(upstream.probe_all() for upstream in self._generation.upstreams.values()))

    def readiness(self) -> dict[str, Any]:
        """What ``/readyz`` says: whether requests should come here, and how the servers behind are."""
        waiting = self._note_answers()
        document: dict[str, Any] = {
            "status": self._status(),
            "servers": {name: upstream.snapshot() for name, upstream in self._generation.upstreams.items()},
        }
        if waiting:
            document["waiting"] = waiting
        if self._bad_reload is not None:
            document["reload"] = "the last change of the configuration was refused; the log says why"
        return document

    def _status(self) -> str:
        if self._shared.draining.is_set():
            return "draining"
        if not self._started:
            return "starting"
        return "ready" if self._answered else "waiting"

    def _note_answers(self) -> list[str]:
        """What has not been heard of any authorization server yet."""
        waiting = self._generation.waiting() if self._started else []
        self._answered = self._answered or (self._started and not waiting)
        return waiting

    async def _answer_health(self, path: str, method: str, send: Send) -> None:
        if method not in ("GET", "HEAD"):
            await _answer(send, 405, {"error": "use GET"}, ((b"allow", b"GET, HEAD"),))
        elif path == "/healthz":
            await _answer(send, 200, {"status": "alive"})
        else:
            document = self.readiness()
            document["servers"] = {name: _counted(server) for name, server in document["servers"].items()}
            await _answer(send, 200 if document["status"] == "ready" else 503, document)


class _Generation:
    """The stacks of one configuration."""

    def __init__(self, config: Config, shared: Shared, *, previous: "_Generation | None" = None) -> None:
        self.config = config
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._verifier = _verifier(config, previous)
        self._credentials = {
            name: _credentials(config, server, shared, previous) for name, server in config.servers.items()
        }
        self._asked: list[IssuersVerifier | ServerCredentials] = [] if previous is None else previous._asked
        """Of what has to do with authorization servers: what has been started and is in use."""
        self.upstreams = {name: _upstream(server, shared.client, previous) for name, server in config.servers.items()}
        self._forwarders: dict[str, Forwarder] = {}
        self._stacks: dict[str, ASGIApp] = {}
        prefix = unquote(urlsplit(config.public_url).path)
        for name, upstream in self.upstreams.items():
            innermost = self._forwarders[name] = forwarder(config, upstream, shared, self._credentials[name])
            app = stack(innermost, config, name, upstream, shared, self._verifier)
            endpoint = f"/{name}{_ENDPOINT}"
            self._stacks[endpoint] = app
            self._stacks[prefix + endpoint] = app  # a proxy may take the path of the public URL away, or leave it
            if config.auth is not None:  # nobody else answers there, and it would be a second way to the server
                self._stacks[WELL_KNOWN + prefix + endpoint] = app
                if len(config.servers) == 1:
                    self._stacks[WELL_KNOWN] = app
                if config.auth.legacy_metadata and self._repeats_metadata():
                    self._stacks.setdefault(LEGACY_WELL_KNOWN, app)  # one origin, and so one document for all servers

    def _repeats_metadata(self) -> bool:
        """Whether the first issuer's metadata is for us to repeat: not where it is at our own origin itself."""
        return self._verifier is not None and issuer_metadata(self.config.public_url, self._verifier) is not None

    def route(self, path: str) -> ASGIApp | None:
        return self._stacks.get(path)

    def end_streams(self, following: "_Generation") -> None:
        """End the streams to servers that ``following`` may keep from their callers: who may still use one opens its
        streams anew. What a call has begun it may finish."""
        for name, innermost in self._forwarders.items():
            if self._judges_by(name) != following._judges_by(name):
                innermost.end_streams()

    def _judges_by(self, name: str) -> object:
        """What decides who may use a server."""
        policy = self.config.policies.get(name)
        rules = None if policy is None else (policy.rules, policy.default)
        return name in self.config.servers, self.config.auth, rules

    def enter(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def _parts(self) -> "list[IssuersVerifier | ServerCredentials]":
        """What has to do with authorization servers."""
        parts = [self._verifier, *self._credentials.values()]
        return [part for part in parts if part is not None]

    def waiting(self) -> list[str]:
        """A sentence for each authorization server that has not answered yet."""
        verifier = [] if self._verifier is None else list(self._verifier.waiting)
        return verifier + [one.waiting for one in self._credentials.values() if one is not None and one.waiting]

    async def start(self) -> None:
        """Ask the authorization servers that are new, and begin to watch the servers. Raises ConfigurationError, with
        everything that an authorization server contradicts."""
        new = [part for part in self._parts() if part not in self._asked]
        outcomes = await asyncio.gather(*(part.start() for part in new), return_exceptions=True)
        wrong: dict[str, list[str]] = {}
        for outcome in outcomes:
            if isinstance(outcome, ConfigurationError):
                place, _, text = str(outcome).partition(": ")
                wrong.setdefault(text, []).append(place)
        if wrong:  # once, however many servers have their credentials from one that is wrong
            raise ConfigurationError("\n".join(f"{', '.join(places)}: {text}" for text, places in wrong.items()))
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        self._asked = self._parts()
        for upstream in self.upstreams.values():
            await upstream.start()

    async def aclose(self, following: "_Generation | None") -> None:
        """Let go of what ``following`` does not use, once no request does; at once when nothing follows."""
        if following is not None:
            await self.wait_idle()
        for app in set(self._stacks.values()):
            if isinstance(app, Member):
                await app.end_waiting()
        kept = [] if following is None else list(following.upstreams.values())
        for upstream in self.upstreams.values():
            if upstream not in kept:
                await upstream.aclose()
        used = [] if following is None else following._parts()
        for part in self._parts():
            if part not in used:
                await part.aclose()
        self._asked = []  # a gateway that has ended may start again, and ask anew


def _verifier(config: Config, previous: _Generation | None) -> IssuersVerifier | None:
    """One set of issuers and keys for all servers, kept over a reload that does not change it."""
    if config.auth is None:
        return None
    before = None if previous is None else previous.config.auth
    if previous is not None and before is not None and before.issuers == config.auth.issuers:
        return previous._verifier
    return verifier(config, config.auth.issuers)


def _credentials(
    config: Config, server: ServerConfig, shared: Shared, previous: _Generation | None
) -> ServerCredentials | None:
    """The credentials of ``server``, with the tokens that are there where nothing of them changed."""
    before = None if previous is None else previous.config.servers.get(server.name)
    if previous is not None and before is not None:
        same = (before.credentials, before.caller) == (server.credentials, server.caller)
        if same and previous.config.public_url == config.public_url:
            return previous._credentials[server.name]
    return credentials(config, server, shared.http, telemetry=shared.telemetry)


def _upstream(server: ServerConfig, client: UpstreamClient, previous: _Generation | None) -> Upstream:
    """The upstream of ``server``, with what is known of its instances where nothing of it changed."""
    if previous is not None and previous.config.servers.get(server.name) == server:
        return previous.upstreams[server.name]
    return Upstream(server, client)


def _with_fixed(config: Config, current: Config) -> Config:
    """``config`` with what only a restart changes as it is now."""
    changed = [key for key, names in _FIXED.items() if any(getattr(config, n) != getattr(current, n) for n in names)]
    if not changed:
        return config
    logger.warning("these keys change at a restart only, and stay as they are: %s", ", ".join(changed))
    kept = {name: getattr(current, name) for key in changed for name in _FIXED[key]}
    if not {"listen", "tls"}.isdisjoint(changed) and config.public_url == config.own_url():
        kept["public_url"] = current.public_url  # it was not given: it follows from where and how we listen
    return replace(config, **kept)


def _normal(path: str) -> str:
    """``path`` without doubled and final slashes: ``//files/mcp/`` is the same endpoint, under the same rules."""
    if "//" not in path and not path.endswith("/"):
        return path
    return "/" + "/".join(part for part in path.split("/") if part)


def _counted(server: Mapping[str, Any]) -> dict[str, int]:
    """How many instances a server has. Where they are is for the log: anybody can ask."""
    states = [instance["state"] for instance in server["instances"].values()]
    return {"instances": len(states), "usable": len(states) - states.count("ejected")}


async def _answer(
    send: Send, status: int, said: Mapping[str, Any], headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"), *headers)
    await send_document(Document(msgspec.json.encode(said), status, headers), send)
