"""Session ids on their way out and in (2025-11-25, transports, "Session Management").

The server's own id never leaves: the answer to ``initialize`` carries it sealed. What comes in is opened, judged, and
handed on as the server knows it. Every id that is not the caller's own live session is answered alike, so that nobody
learns which ids exist.
"""

import logging
import time
from collections.abc import Sequence
from typing import ClassVar, Final, cast

from mcp_middleware.errors import HEADER_MISMATCH, INVALID_REQUEST, RATE_LIMITED, UNAVAILABLE, ConfigurationError
from mcp_middleware.exchange import Exchange, name_session
from mcp_middleware.member import ASGIApp, Bounds, Member
from mcp_middleware.message import Request
from mcp_middleware.options import seconds, whole_number
from mcp_middleware.responses import retry_later
from mcp_middleware.revision import LEGACY_VERSIONS, SESSION_HEADER, VERSION_HEADER
from mcp_middleware.storage import Agent, MemorySessions, Place, SessionStore, StorageUnavailableError, Use
from mcp_middleware.types import Clock, Headers, Instances, Rejection

from .sealing import MAX_UPSTREAM_BYTES, KeyRing, Session, bind_caller

__all__ = ["INSTANCE_DOWN", "SessionAffinityMiddleware"]

logger = logging.getLogger("mcp_middleware.affinity")

_LEGACY_VERSIONS: Final = frozenset(version.encode() for version in LEGACY_VERSIONS)
_VISIBLE_ASCII: Final = bytes(range(0x21, 0x7F))
_HERE: Final = "SessionAffinityMiddleware"
_MAX_INSTANCE: Final = 64
INSTANCE_DOWN: Final = "session_instance_down"
"""The reason of a 404 for a session whose instance is dead, also where a forwarder finds that out."""
_STORE_RETRY: Final = 2
"""Seconds after which a store that was away is asked again at the latest."""


class _Opening:
    """An ``initialize`` under way: a place for the session it may open, and then that session."""

    __slots__ = ("endpoint", "place", "use")

    def __init__(self, place: Place, endpoint: str) -> None:
        self.place = place
        self.endpoint = endpoint
        self.use: Use | None = None


class _Closing:
    """The last request of a session: the server ended it, or no longer knows it."""

    __slots__ = ("ended", "use")

    def __init__(self, use: Use, *, ended: bool) -> None:
        self.use = use
        self.ended = ended


class SessionAffinityMiddleware(Member):
    """Seals session ids and binds them to the caller, the endpoint and the instance that opened them.

    Args:
        app: the ASGI application.
        keys: 32 random bytes each, in base64; the first seals, all open, so that keys can be replaced in turn.
        idle: seconds without a request after which a session is over.
        lifetime: seconds after which it is over in any case.
        per_agent: the most sessions one principal (issuer, client, subject) may have open, or None for no limit;
            callers whom nobody authenticated are one.
        instance: the name of the process that owns the sessions it opens; an id of another name is unknown here.
        instances: the instances of the server behind a gateway, which sends each request where ``exchange.instance``
            says: a session's to the instance that opened it, any other to the one that is least busy. A session whose
            instance cannot be used is unknown, so that its client starts anew.
        max_sessions: the most sessions to remember; of those used least recently beyond it, idle time and count are
            forgotten while their ids stay good.
        store: where that is kept instead, shared by several members (``MemorySessions``) or replicas
            (``RedisSessions``); each endpoint then has a count of its own.
        clock: Unix seconds.
        bounds: what one request may take.

    Raises:
        ConfigurationError: an option has a value that is not allowed; it never shows a key.
    """

    stage: ClassVar[str] = "affinity"

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str | bytes],
        idle: float = 1800.0,
        lifetime: float = 43_200.0,
        per_agent: int | None = 100,
        instance: str = "",
        instances: Instances | None = None,
        max_sessions: int = 100_000,
        store: SessionStore | None = None,
        clock: Clock = time.time,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(app, bounds=bounds)
        self._keys = KeyRing(keys)
        self._lifetime = seconds(f"{_HERE}: lifetime", lifetime)
        self._instance = _instance(instance)
        self._instances = _instances(instances, instance)
        self._clock = clock
        self._idle = seconds(f"{_HERE}: idle", idle)
        self._per_agent = whole_number(f"{_HERE}: per_agent", per_agent) if per_agent is not None else None
        self._shared = store is not None
        own = MemorySessions(max_sessions=whole_number(f"{_HERE}: max_sessions", max_sessions))
        self._store: SessionStore = own if store is None else _store(store)
        self._sessions = self._store.table

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        """Turn the caller's id into the server's, or refuse it."""
        if self._instances is None:
            exchange.instance = self._instance or None
        presented = exchange.headers.get(SESSION_HEADER)
        is_legacy = _is_legacy(exchange)
        initializes = isinstance(exchange.message, Request) and exchange.message.method == "initialize"
        if is_legacy and not initializes and presented is not None:
            return await self._resume(exchange, presented)
        if presented is not None:
            exchange.set_header(SESSION_HEADER, None)  # modern: means nothing; initialize: never adopted
        refused = await self._reserve(exchange) if is_legacy and initializes else None
        if refused is None and self._instances is not None:
            exchange.instance = self._instances.choose()
        return refused

    async def _resume(self, exchange: Exchange, presented: bytes) -> Rejection | None:
        """Send a request of a session where that lives, or refuse what is none of the caller's."""
        if SESSION_HEADER in exchange.repeated:
            text = "the mcp-session-id header appears more than once"
            return Rejection(400, HEADER_MISMATCH, text, "session_repeated")
        now = self._clock()
        found = self._find(exchange, presented, now)
        if isinstance(found, Use) and (
            self._sessions.find(presented) is not found or self._sessions.is_idle(found, now, self._idle)
        ):
            found = await self._look_up(found, now)
        if isinstance(found, Use) and self._instances is not None:
            if self._instances.is_usable(found.instance):
                exchange.instance = found.instance
            else:  # its place is free for the one that the client opens now
                await self._let_go(found)
                found = INSTANCE_DOWN
        if isinstance(found, str):
            return Rejection(404, INVALID_REQUEST, "Session not found", found)
        self._sessions.enter(found, now)
        exchange.state[self] = found
        exchange.set_header(SESSION_HEADER, found.upstream)
        return None

    def _find(self, exchange: Exchange, token: bytes, now: float) -> Use | str:
        """The caller's session, which the table may not know yet, or the reason why ``token`` is none."""
        endpoint, agent = _endpoint(exchange), exchange.caller.key
        use = self._sessions.find(token)
        if use is None or use.endpoint != endpoint or use.agent != agent:
            session = self._keys.unseal(token, endpoint)
            if session is None:
                return "session_unknown"
            exchange.session = name_session(token)
            if self._instances is None and session.instance != self._instance:
                return "session_elsewhere"
            if session.caller != bind_caller(agent):
                return "session_foreign"
            use = self._use(token, session, endpoint, exchange, now)
        exchange.session = use.name
        return use if now < use.expires else "session_expired"

    async def _look_up(self, use: Use, now: float) -> Use | str:
        """Ask the store for a session that this process sees for the first time, or has not seen for long."""
        known = self._sessions.find(use.token) is use
        if not known and self._sessions.has_ended(use.name):
            return "session_ended"
        if await self._store.is_over(use, idle=self._idle, now=now, known=known):
            self._sessions.end(use)
            if not known:
                return "session_ended"
            await self._store.end(use, idle=self._idle, now=now)
            return "session_idle"
        learnt = self._sessions.find(use.token)  # perhaps by another request, meanwhile
        if learnt is not None:
            return learnt
        self._sessions.learn(use, now)
        return use

    def _use(self, token: bytes, session: Session, endpoint: str, exchange: Exchange, now: float) -> Use:
        agent = exchange.caller.key
        return Use(
            token,
            upstream=session.upstream,
            instance=session.instance,
            expires=session.expires,
            endpoint=endpoint,
            path=exchange.path,
            agent=agent,
            counted=self._counted(endpoint, agent),
            now=now,
        )

    def _counted(self, endpoint: str, agent: Agent) -> Agent:
        """Several servers share a store, and one's sessions take no places from another's. Where there is no more than
        one server, whatever paths it answers, its callers have no more places by inventing paths."""
        return (endpoint, *agent) if self._shared else agent

    async def _reserve(self, exchange: Exchange) -> Rejection | None:
        endpoint = _endpoint(exchange)
        counted = self._counted(endpoint, exchange.caller.key)
        try:
            place = await self._take_place(counted)
            if not isinstance(place, Place) and await self._leave_dead_instances(counted):
                place = await self._take_place(counted)
        except StorageUnavailableError:
            text = "Sessions cannot be opened now"
            return retry_later(503, UNAVAILABLE, text, "session_store_down", seconds=_STORE_RETRY)
        if isinstance(place, Place):
            exchange.state[self] = _Opening(place, endpoint)
            return None
        text = "Too many open sessions; end one with DELETE, or wait until one has been idle long enough"
        return retry_later(429, RATE_LIMITED, text, "session_limit", seconds=place)

    async def _take_place(self, agent: Agent) -> Place | float:
        now = self._clock()
        return await self._store.reserve(agent, per_agent=self._per_agent, idle=self._idle, now=now)

    async def _leave_dead_instances(self, agent: Agent) -> bool:
        """Let sessions go that no request can reach, of a client that did not wait to be told so; whether any were."""
        if self._instances is None:
            return False
        lost = [use for use in self._sessions.of(agent) if not self._instances.is_usable(use.instance)]
        for use in lost:
            await self._let_go(use)
        return bool(lost)

    async def _let_go(self, use: Use) -> None:
        """Stop counting a session that no request can reach."""
        self._sessions.forget(use)
        await self._store.forget(use)

    def on_response_start(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Put the caller's id in place of the server's, and note a session that has ended or is not known any more."""
        upstream = [value for name, value in headers if name.lower() == SESSION_HEADER]
        held = exchange.state.get(self)
        if isinstance(held, _Opening) and upstream and 200 <= status < 300:
            held.use = self._open(exchange, held, upstream)
        use: Use | None = held if isinstance(held, Use) else held.use if isinstance(held, _Opening) else None
        if upstream:
            headers[:] = [line for line in headers if line[0].lower() != SESSION_HEADER]
            if use is not None:
                headers.append((SESSION_HEADER, use.token))
        if not isinstance(held, Use) or _is_others(exchange.rejection):
            return
        # On the same endpoint with a slash more, a 404 may be the router's and say nothing about the session.
        lost = status == 404 and exchange.path == held.path
        if exchange.http_method == "DELETE" and (lost or 200 <= status < 300):
            self._sessions.end(held)
            exchange.state[self] = _Closing(held, ended=True)
        elif lost:
            self._sessions.forget(held)  # the next answer is the server's as well
            exchange.state[self] = _Closing(held, ended=False)

    def _open(self, exchange: Exchange, opening: _Opening, upstream: list[bytes]) -> Use | None:
        """The new session, remembered as in use by this request; without one where the server's id is not fit."""
        value = upstream[0]
        if len(upstream) > 1 or not 0 < len(value) <= MAX_UPSTREAM_BYTES or value.translate(None, _VISIBLE_ASCII):
            logger.error(
                "the server's session id was withheld: it must be one of 1 to %d visible ASCII characters",
                MAX_UPSTREAM_BYTES,
            )
            return None
        now = self._clock()
        # As it is now: who forwarded the request may have found the chosen instance dead, and taken another.
        instance = self._instance if self._instances is None else exchange.instance or ""
        session = Session(instance, value, bind_caller(exchange.caller.key), now, now + self._lifetime)
        token = self._keys.seal(session, opening.endpoint)
        use = self._use(token, session, opening.endpoint, exchange, now)
        self._sessions.open(use)
        self._sessions.enter(use, now)
        exchange.session = use.name
        return use

    async def on_finish(self, exchange: Exchange) -> None:
        """Start the idle time, or give back the place of a session that was not opened; tell the store."""
        held = exchange.state.pop(self, None)
        now = self._clock()
        if isinstance(held, Use):
            self._sessions.leave(held, now)
            if now >= held.keep_at:
                await self._store.keep(held, idle=self._idle, now=now)
        elif isinstance(held, _Opening):
            if held.use is None:
                await self._store.release(held.place)
            else:
                self._sessions.leave(held.use, now)
                await self._store.opened(held.place, held.use, idle=self._idle, now=now)
                if exchange.answer is not None and exchange.answer.error is not None:
                    # Refused after all: servers that stream name a session before they know.
                    self._sessions.end(held.use)
                    await self._store.end(held.use, idle=self._idle, now=now)
        elif isinstance(held, _Closing):
            self._sessions.leave(held.use, now)
            if held.ended:
                await self._store.end(held.use, idle=self._idle, now=now)
            else:
                await self._store.forget(held.use)

    async def aclose(self) -> None:
        """Close the store."""
        await self._store.aclose()


def _is_others(rejection: Rejection | None) -> bool:
    """Whether a member further in refused, for a reason that says nothing about the session."""
    return rejection is not None and rejection.reason != INSTANCE_DOWN


def _is_legacy(exchange: Exchange) -> bool:
    """A message's era is known; of a GET or DELETE its version header tells, as for messages without one."""
    if exchange.message is not None:
        return exchange.era == "legacy"
    version = exchange.headers.get(VERSION_HEADER)
    return version is None or version in _LEGACY_VERSIONS


def _endpoint(exchange: Exchange) -> str:
    """Where a session lives: the path from the origin, whichever framework mounted us, without a trailing slash."""
    root: str = exchange.scope.get("root_path", "")
    path = exchange.path if exchange.path.startswith(root) else root + exchange.path
    return path.rstrip("/")


def _instances(value: object, instance: str) -> Instances | None:
    if value is None:
        return None
    if not all(callable(getattr(value, name, None)) for name in ("choose", "is_usable")):
        raise ConfigurationError(f"{_HERE}: instances is {value!r}; it must have the methods 'choose' and 'is_usable'")
    if instance:
        raise ConfigurationError(
            f"{_HERE}: instance and instances are both given; instance is for a server in this "
            "process, instances for those behind a gateway"
        )
    return cast(Instances, value)


def _store(value: SessionStore) -> SessionStore:
    if not callable(getattr(value, "is_over", None)):
        raise ConfigurationError(f"{_HERE}: store is {value!r}; it must be a SessionStore, such as MemorySessions")
    return value


def _instance(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_INSTANCE or not all("!" <= char <= "~" for char in value):
        raise ConfigurationError(
            f"{_HERE}: instance is {value!r}; it must be at most {_MAX_INSTANCE} visible ASCII "
            "characters, without spaces"
        )
    return value
