"""What a sealed id cannot carry: when a session was last used, whether it was ended, how many its agent has.

Each process remembers this for itself, in bounded memory: the ``SessionTable``, which answers without waiting. A
session it does not know (after a restart, or opened by another replica) is learnt when its sealed id comes back; its
idle time then starts anew. A ``SessionStore`` adds what replicas tell each other.
"""

import math
from collections import OrderedDict
from itertools import islice
from typing import Final, Protocol, TypeAlias

from mcp_middleware.exchange import name_session
from mcp_middleware.options import whole_number

__all__ = ["Agent", "MemorySessions", "Place", "SessionStore", "SessionTable", "Use"]

ENDED_KEPT: Final = 10_000
"""Ended sessions to remember. A server answers 404 to a session that was ended by DELETE, so forgetting the oldest
changes no answer; what is forgotten of an idle one is left to the server's own idle limit."""

Agent: TypeAlias = tuple[str | None, ...]
"""Whose sessions are counted together: ``Principal.key``, with the endpoint before it where several servers share a
store. Not the client alone, because the users of one desktop client share its id, and must not use up each other's
places."""


class Use:
    """A session that this process remembers."""

    __slots__ = (
        "agent",
        "counted",
        "endpoint",
        "expires",
        "instance",
        "keep_at",
        "name",
        "path",
        "requests",
        "token",
        "upstream",
        "used",
    )

    def __init__(
        self,
        token: bytes,
        *,
        upstream: bytes,
        instance: str,
        expires: float,
        endpoint: str,
        path: str,
        agent: Agent,
        counted: Agent,
        now: float,
    ) -> None:
        self.token = token
        self.upstream = upstream
        """What the server calls it."""
        self.instance = instance
        self.expires = expires
        """When it is over whatever its use, Unix seconds."""
        self.endpoint = endpoint
        self.path = path
        """Where its first request was served, to the letter; only there can a 404 be about the session."""
        self.agent = agent
        self.counted = counted
        """Among whose sessions it counts."""
        self.name = name_session(token)
        self.used = now
        """When its last request began or ended."""
        self.requests = 0
        """Requests under way; an open stream is one."""
        self.keep_at = math.inf
        """When the store is to be told again that it is in use."""


class _Count:
    """One agent's sessions."""

    __slots__ = ("opening", "uses")

    def __init__(self) -> None:
        self.uses: set[Use] = set()
        self.opening = 0


class SessionTable:
    """The sessions in use, those that ended, and the count of each agent.

    ``max_sessions``: the most to remember; beyond it the least recently used are forgotten, not ended. ``idle``, where
    it is asked for: seconds without a request after which a session is over.
    """

    def __init__(self, max_sessions: int = 100_000) -> None:
        self._max_sessions = max_sessions
        self._uses: OrderedDict[bytes, Use] = OrderedDict()  # least recently used first
        self._ended: OrderedDict[str, None] = OrderedDict()  # names, the oldest first
        self._counts: dict[Agent, _Count] = {}

    def __len__(self) -> int:
        """Sessions remembered as in use."""
        return len(self._uses)

    def find(self, token: bytes) -> Use | None:
        """The session of ``token``, if it is remembered as in use."""
        return self._uses.get(token)

    def has_ended(self, name: str) -> bool:
        """Whether the session of that name (``name_session``) is remembered as ended."""
        return name in self._ended

    def of(self, agent: Agent) -> list[Use]:
        """The sessions in use that count as ``agent``'s."""
        count = self._counts.get(agent)
        return [] if count is None else list(count.uses)

    def open_requests(self) -> list[Use]:
        """The sessions of which a request is under way."""
        return [use for use in self._uses.values() if use.requests]

    def is_idle(self, use: Use, now: float, idle: float) -> bool:
        """Whether the session has gone without a request for too long."""
        return not use.requests and now >= use.used + idle

    def reserve(self, agent: Agent, now: float, *, idle: float, per_agent: int | None) -> float | None:
        """Room for one more session of ``agent``: None, or the seconds after which there may be some.

        ``per_agent``: the most sessions an agent may have open. What was reserved ends in ``open`` or in ``release``.
        """
        count = self._counts.get(agent)
        if count is None:
            count = self._counts[agent] = _Count()
        elif per_agent is not None and len(count.uses) + count.opening >= per_agent:
            wait = self._end_idle(count, now, idle)
            if len(count.uses) + count.opening >= per_agent:
                return wait
        count.opening += 1
        self._counts[agent] = count
        return None

    def _end_idle(self, count: _Count, now: float, idle: float) -> float:
        """End what is over by itself. The seconds until the next one can be: without another request, and if nobody
        ends one by DELETE before."""
        for use in list(count.uses):
            if self.is_idle(use, now, idle) or now >= use.expires:
                self.end(use)
        ends = (min(use.expires, (now if use.requests else use.used) + idle) for use in count.uses)
        return max(0.0, min(ends, default=now) - now)

    def release(self, agent: Agent) -> None:
        """Give back a reservation that opened nothing."""
        count = self._counts[agent]
        count.opening -= 1
        self._drop_if_empty(agent, count)

    def open(self, use: Use) -> None:
        """Remember a session for which ``reserve`` found room."""
        self._counts[use.counted].opening -= 1
        self.learn(use, use.used)

    def learn(self, use: Use, now: float) -> None:
        """Remember a session that came with its sealed id. It counts, but is not refused for it."""
        self._uses[use.token] = use
        count = self._counts.setdefault(use.counted, _Count())
        count.uses.add(use)
        for oldest in list(islice(self._uses.values(), 2)):  # two for one: what has expired cannot pile up
            if len(self._uses) > self._max_sessions or now >= oldest.expires:
                self.forget(oldest)
            else:
                break

    def enter(self, use: Use, now: float) -> None:
        """A request of the session begins."""
        use.requests += 1
        use.used = now
        if use.token in self._uses:
            self._uses.move_to_end(use.token)

    def leave(self, use: Use, now: float) -> None:
        """A request of the session has ended."""
        use.requests -= 1
        use.used = now
        if use.token in self._uses:
            self._uses.move_to_end(use.token)

    def end(self, use: Use) -> None:
        """The session is over: remember that, and leave room for another."""
        self.forget(use)
        self._ended[use.name] = None
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def forget(self, use: Use) -> None:
        """Stop counting the session, without calling it ended."""
        known = self._uses.pop(use.token, None)  # not always ``use``: it may have been forgotten and learnt again
        if known is not None:
            count = self._counts[known.counted]
            count.uses.discard(known)
            self._drop_if_empty(known.counted, count)

    def _drop_if_empty(self, agent: Agent, count: _Count) -> None:
        if not count.uses and not count.opening:
            self._counts.pop(agent, None)


class Place:
    """Room for one session that is being opened."""

    __slots__ = ("agent", "name")

    def __init__(self, agent: Agent, name: bytes = b"") -> None:
        self.agent = agent
        self.name = name
        """What the store calls it until the session has a name."""


class SessionStore(Protocol):
    """What session affinity asks where several processes share what they know of sessions.

    ``now`` is the member's clock, Unix seconds; ``idle`` as for ``SessionTable``. A session that is in use is found in
    ``table``, without waiting; the rest is asked when one is opened, ended, or seen here for the first time.
    """

    @property
    def table(self) -> SessionTable:
        """What this process remembers itself."""
        ...

    async def reserve(self, agent: Agent, *, per_agent: int | None, idle: float, now: float) -> Place | float:
        """A place for one more session, or the seconds after which there may be one. It ends in ``opened`` or in
        ``release``. Raises StorageUnavailableError."""
        ...

    async def release(self, place: Place) -> None:
        """Give back a place in which no session was opened."""
        ...

    async def opened(self, place: Place, use: Use, *, idle: float, now: float) -> None:
        """The session of ``place``, which the table knows already."""
        ...

    async def is_over(self, use: Use, *, idle: float, now: float, known: bool) -> bool:
        """Whether a session was ended elsewhere, or, where it is ``known`` here but idle, is idle everywhere."""
        ...

    async def keep(self, use: Use, *, idle: float, now: float) -> None:
        """The session is in use; asked for when ``use.keep_at`` has come."""
        ...

    async def end(self, use: Use, *, idle: float, now: float) -> None:
        """The session is over, as the table knows already."""
        ...

    async def forget(self, use: Use) -> None:
        """The session no longer counts; nobody knows whether it is over."""
        ...

    async def aclose(self) -> None:
        """Let go of connections, when the application shuts down."""
        ...


class MemorySessions:
    """A ``SessionStore`` for one process: its table is all there is to know.

    Several members may share it, and members that replace them. ``max_sessions``: the most sessions to remember; of
    those used least recently beyond it, idle time and count are forgotten while their ids stay good.
    """

    def __init__(self, *, max_sessions: int = 100_000) -> None:
        self.table = SessionTable(whole_number("MemorySessions: max_sessions", max_sessions))

    async def reserve(self, agent: Agent, *, per_agent: int | None, idle: float, now: float) -> Place | float:
        """See ``SessionStore.reserve``."""
        wait = self.table.reserve(agent, now, idle=idle, per_agent=per_agent)
        return Place(agent) if wait is None else wait

    async def release(self, place: Place) -> None:
        """See ``SessionStore.release``."""
        self.table.release(place.agent)

    async def opened(self, place: Place, use: Use, *, idle: float, now: float) -> None:
        """Nobody else has to know."""

    async def is_over(self, use: Use, *, idle: float, now: float, known: bool) -> bool:
        """What is idle here is idle."""
        return known

    async def keep(self, use: Use, *, idle: float, now: float) -> None:
        """Nobody else has to know."""

    async def end(self, use: Use, *, idle: float, now: float) -> None:
        """Nobody else has to know."""

    async def forget(self, use: Use) -> None:
        """Nobody else has to know."""

    async def aclose(self) -> None:
        """Nothing to let go of."""
