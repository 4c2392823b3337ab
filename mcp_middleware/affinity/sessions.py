"""What a sealed id cannot carry: when a session was last used, whether it was ended, how many its agent has.

One process remembers this for itself, in bounded memory. A session it does not know (after a restart, or opened by
another replica) is learnt when its sealed id comes back; its idle time then starts anew.
"""

from collections import OrderedDict
from itertools import islice
from typing import Final, TypeAlias

from mcp_middleware.exchange import name_session

from .sealing import Session

__all__ = ["Agent", "SessionTable", "Use"]

ENDED_KEPT: Final = 10_000
"""Ended sessions to remember. A server answers 404 to a session that was ended by DELETE, so forgetting the oldest
changes no answer; what is forgotten of an idle one is left to the server's own idle limit."""

Agent: TypeAlias = tuple[str | None, str, str | None]
"""Whose sessions are counted together: ``Principal.key``. Not the client alone, because the users of one desktop client
share its id, and must not use up each other's places."""


class Use:
    """A session that this process remembers."""

    __slots__ = ("agent", "endpoint", "name", "path", "requests", "session", "token", "used")

    def __init__(self, token: bytes, session: Session, *, endpoint: str, path: str, agent: Agent, now: float) -> None:
        self.token = token
        self.session = session
        self.endpoint = endpoint
        self.path = path
        """Where its first request was served, to the letter; only there can a 404 be about the session."""
        self.agent = agent
        self.name = name_session(token)
        self.used = now
        """When its last request began or ended."""
        self.requests = 0
        """Requests under way; an open stream is one."""


class _Count:
    """One agent's sessions."""

    __slots__ = ("opening", "uses")

    def __init__(self) -> None:
        self.uses: set[Use] = set()
        self.opening = 0


class SessionTable:
    """The sessions in use, those that ended, and the count of each agent.

    ``idle``: seconds without a request after which a session is over. ``per_agent``: the most sessions an agent may
    have open. ``max_sessions``: the most to remember; beyond it the least recently used are forgotten, not ended.
    """

    def __init__(self, *, idle: float, per_agent: int | None, max_sessions: int) -> None:
        self._idle = idle
        self._per_agent = per_agent
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

    def is_idle(self, use: Use, now: float) -> bool:
        """Whether the session has gone without a request for too long."""
        return not use.requests and now >= use.used + self._idle

    def reserve(self, agent: Agent, now: float) -> float | None:
        """Room for one more session of ``agent``: None, or the seconds after which there may be some.

        What was reserved ends in ``open`` or in ``release``.
        """
        count = self._counts.get(agent)
        if count is None:
            count = self._counts[agent] = _Count()
        elif self._per_agent is not None and len(count.uses) + count.opening >= self._per_agent:
            wait = self._end_idle(count, now)
            if len(count.uses) + count.opening >= self._per_agent:
                return wait
        count.opening += 1
        self._counts[agent] = count
        return None

    def _end_idle(self, count: _Count, now: float) -> float:
        """End what is over by itself. The seconds until the next one can be: without another request, and if nobody
        ends one by DELETE before."""
        for use in list(count.uses):
            if self.is_idle(use, now) or now >= use.session.expires:
                self.end(use)
        ends = (min(use.session.expires, (now if use.requests else use.used) + self._idle) for use in count.uses)
        return max(0.0, min(ends, default=now) - now)

    def release(self, agent: Agent) -> None:
        """Give back a reservation that opened nothing."""
        count = self._counts[agent]
        count.opening -= 1
        self._drop_if_empty(agent, count)

    def open(self, use: Use) -> None:
        """Remember a session for which ``reserve`` found room."""
        self._counts[use.agent].opening -= 1
        self.learn(use, use.used)

    def learn(self, use: Use, now: float) -> None:
        """Remember a session that came with its sealed id. It counts, but is not refused for it."""
        self._uses[use.token] = use
        count = self._counts.setdefault(use.agent, _Count())
        count.uses.add(use)
        for oldest in list(islice(self._uses.values(), 2)):  # two for one: what has expired cannot pile up
            if len(self._uses) > self._max_sessions or now >= oldest.session.expires:
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
            count = self._counts[known.agent]
            count.uses.discard(known)
            self._drop_if_empty(known.agent, count)

    def _drop_if_empty(self, agent: Agent, count: _Count) -> None:
        if not count.uses and not count.opening:
            self._counts.pop(agent, None)
