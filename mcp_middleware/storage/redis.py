"""Buckets that several replicas share, in one Redis (6.2 or newer) or Valkey.

Each step is one Lua script on the keys of one agent, so it is atomic, takes one round trip, and works in a cluster: the
part of a key in braces decides where it lives. Time is the store's, whatever the replicas' clocks say.
"""

import math
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from mcp_middleware.background import Background
from mcp_middleware.options import seconds, whole_number
from mcp_middleware.types import Clock

from .bucket import AT_ONCE, Levels, Limit, Limits, Shortage, full, longest, refill, remaining, settle, take, takeable
from .budgets import RedisBudgets
from .connection import RedisConnection, Script, Word, connection_of, prefix_of
from .interface import Reservation, StorageUnavailableError, check_tokens
from .open_requests import HELD, OpenRequests, new_place

__all__ = ["RedisStorage"]

_pack = msgspec.msgpack.Encoder().encode
"""What the scripts of a call are asked, and so they answer: numbers by their bits, which nobody has to write out."""
_Found: TypeAlias = tuple[float, float, float, tuple[tuple[float, float, int], ...]]
"""Of a pair of buckets: its levels, their time and the turns."""
_RESERVE: Final = Script(
    "clock.lua", "bucket.lua", "turns.lua", "open.lua", "reserve.lua", packed=tuple[int, float, int, list[_Found]]
)
_SETTLE: Final = Script("clock.lua", "bucket.lua", "settle.lua", packed=list[tuple[float, float] | bool] | None)
_LATE: Final = -1

_CANDIDATES: Final = 8
"""Longest unused principals looked at for one of which nothing is owed to the store."""


class _Known:
    """What this replica knows of one pair of buckets."""

    __slots__ = ("away_since", "heard", "levels", "owed_requests", "owed_tokens", "share", "start")

    def __init__(self) -> None:
        self.levels: Levels | None = None
        """What the store last said of them, at a moment of this replica's clock."""
        self.heard: tuple[RedisConnection, int] | None = None
        """Which node said so, and how often that had been lost before."""
        self.away_since: float | None = None
        """Since when the store has been away, once this replica has done something by itself that it was not told."""
        self.share: Levels | None = None
        """This replica's share, while the store is away."""
        self.start: tuple[float, float] = (0.0, 0.0)
        """What the share began with."""
        self.owed_requests = 0.0
        self.owed_tokens = 0.0
        """What was let through, or settled, while the store was away; told to it with the next reservation."""


class _Asked(NamedTuple):
    """One pair of buckets as the scripts are asked about it."""

    part: str | None
    name: str
    limits: Limits
    figures: tuple[float, ...]


class _Principal:
    """What this replica knows of one principal."""

    __slots__ = ("_asked", "_limits", "is_open", "name", "own", "parts")

    def __init__(self, name: bytes) -> None:
        self.name = name
        """What the store calls its buckets."""
        self._limits: Limits | None = None
        self._asked: tuple[_Asked, ...] = ()
        self.own = _Known()
        self.parts: dict[str, _Known] = {}
        self.is_open = 0
        """Its requests that this replica has let through and that have not ended, where their number is limited."""

    def asked(self, limits: Limits) -> tuple[_Asked, ...]:
        """The pairs of buckets that ``limits`` name; found anew where they are others than in the last call."""
        if limits is not self._limits:
            self._limits, self._asked = limits, _asked(limits)
        return self._asked

    def pair(self, part: str | None) -> _Known:
        if part is None:
            return self.own
        known = self.parts.get(part)
        if known is None:
            known = self.parts[part] = _Known()
        return known

    @property
    def is_dispensable(self) -> bool:
        """Whether nothing would be forgotten in the principal's favour."""
        pairs = (self.own, *self.parts.values())
        return not self.is_open and not any(pair.owed_requests or pair.owed_tokens > 0 for pair in pairs)


_Absence: TypeAlias = tuple[float | None, Levels, tuple[float, float]]
"""Of a pair of buckets: since when the store was away, the share, and what that began with."""


_Told: TypeAlias = tuple[_Known, float, float, _Absence | None]
"""What the store is told of a pair of buckets, by one call alone, however many run: requests and tokens that are owed,
and what is to be remembered of an outage should it not be heard."""


class _Question(NamedTuple):
    """What one call asks the store to reserve."""

    key: bytes
    limits: Limits
    tokens: float
    principal: _Principal
    asked: tuple[_Asked, ...]
    told: list[_Told]
    place: bytes
    words: list[Any]
    """As the script reads them."""
    sent_at: float


class RedisStorage:
    """A ``LimitStorage`` shared by replicas: the same figures as ``MemoryStorage`` gives, for all of them together.

    ``connection``: a ``RedisConnection``, or the URL of one. ``replicas``: how many processes share it. While the store
    is away, each lets through its share, one ``replicas``-th of the limits, starting from what the store last said was
    left. What has become of its share is told to the store when it is back, so nobody gets a burst twice, and a store
    that lost its data (restarted, flushed, or evicting) starts from what the replicas remember. ``prefix``: before
    every key. ``reservation_lifetime``: seconds within which a request must be settled; later its estimate stands.
    ``max_keys``: principals to remember; of those beyond it a share is full when the store goes away. ``clock``:
    seconds, in place of the store's; for tests.

    Raises ConfigurationError for a wrong option.
    """

    def __init__(
        self,
        connection: RedisConnection | str,
        *,
        replicas: int = 1,
        prefix: str = "mcp_middleware",
        reservation_lifetime: float = 3600.0,
        max_keys: int = 100_000,
        clock: Clock | None = None,
    ) -> None:
        self._connection = connection_of(connection)
        self._prefix = prefix_of("RedisStorage", prefix)
        self._replicas = whole_number("RedisStorage: replicas", replicas)
        self._lifetime = seconds("RedisStorage: reservation_lifetime", reservation_lifetime)
        self._max_keys = whole_number("RedisStorage: max_keys", max_keys)
        self._clock = clock
        self._now = time.monotonic if clock is None else clock
        self._id = os.urandom(8).hex()
        """Which replica this is."""
        self._known: OrderedDict[bytes, _Principal] = OrderedDict()  # longest unused first
        self._share = lru_cache(1024)(self._find_share)
        self._open = OpenRequests(self._connection, self._prefix, clock)
        self._giving_back = Background()
        self.budgets = RedisBudgets(
            self._connection, prefix=self._prefix, replicas=replicas, max_keys=max_keys, clock=clock
        )

    async def reserve(self, key: bytes, limits: Limits, tokens: float) -> Reservation | Shortage:
        """See ``LimitStorage.reserve``."""
        check_tokens(tokens)
        question = self._ask(key, limits, float(tokens))  # MessagePack has no whole numbers of any size
        principal, most = question.principal, limits.concurrency
        try:
            reply = await self._connection.run(
                _RESERVE,
                (principal.name,) if most is None else (principal.name, self._open.name_of(key)),
                partial(self._packed, question.words),
                partial(self._give_back, question),
            )
            return self._hear(question, reply)
        except StorageUnavailableError as error:
            self._owe_again(question)
            return self._reserve_locally(question, is_told=error.sent)

    def _ask(self, key: bytes, limits: Limits, tokens: float) -> _Question:
        principal = self._known_of(key)
        asked = principal.asked(limits)
        told: list[_Told] = []
        pairs: list[Any] = []
        node = self._connection.node_of(principal.name)
        for one in asked:
            known = principal.pair(one.part)
            since, outage, absence = self._away(known), None, None
            if since is not None:
                outage, absence = self._outage(known, one.limits, node, since)
            requests_owed, tokens_owed = self._owed(known, one.limits)
            told.append((known, requests_owed, tokens_owed, absence))
            requests, left = self._start(known, one.limits, since)
            pairs += (one.name, *one.figures, requests_owed, tokens_owed, requests, left, outage)
            known.owed_requests = known.owed_tokens = 0.0
            if absence is not None:
                known.away_since = known.share = None
                known.heard = (node, node.losses)
        most = limits.concurrency
        place, room = (b"", None) if most is None else (new_place(), float(most))
        who = (self._id, float(self._replicas))
        words = [0.0, self._given_clock(), tokens, room, place.decode(), HELD, *who, len(asked), *pairs]
        return _Question(key, limits, tokens, principal, asked, told, place, words, time.monotonic())

    def _hear(self, question: _Question, reply: Any) -> Reservation | Shortage:
        """What the store has answered. Raises StorageUnavailableError where it was too late to do anything."""
        key, limits, tokens, principal, asked, told, place, _, sent_at = question
        outcome, now, is_open, there = reply
        node = self._connection.node_of(principal.name)
        if self._clock is None:
            node.learn_time(now, sent_at)
        if outcome == _LATE:
            raise StorageUnavailableError("the store came to it too late", sent=False)
        if len(there) != len(asked):
            raise StorageUnavailableError("the store answered nonsense", sent=True)
        here, most = self._now(), limits.concurrency
        taken: list[tuple[float, float, float]] = []
        for one, (known, *_), (requests, left, at, *_) in zip(asked, told, there, strict=True):
            # As the store has them; nothing that was taken here meanwhile is missing, for it was taken there.
            known.levels = (requests, left, here - (now - at))
            known.share = known.away_since = None
            known.heard = (node, node.losses)
            taken.append((takeable(one.limits, tokens), *remaining((requests, left, at), one.limits)))
        if outcome:
            own, *parts = taken
            reservation = Reservation(key, limits, *own, now + self._lifetime, tuple(parts))
            if most is None:
                return reservation
            is_over = principal.is_open > is_open and principal.is_open >= most
            if principal.is_open > is_open:  # the store has lost its data
                self._open.say_again()
            reservation.remaining_concurrency = most - max(is_open, principal.is_open) - 1
            self._opened(principal, reservation, place, is_told=True)
            if not is_over:
                return reservation
            self._settle_later(reservation)
            return Shortage("concurrency", most, 0, AT_ONCE)
        shortages: list[Shortage] = []
        for one, (requests, left, at, turns) in zip(asked, there, strict=True):
            answer = take((requests, left, at), one.limits, tokens, now, turns)
            if isinstance(answer, Shortage):
                shortages.append(replace(answer, part=one.part))
        if most is not None and is_open >= most:
            shortages.append(Shortage("concurrency", most, 0, AT_ONCE))
        pairs = [
            (one.limits, (requests, left, at), turns)
            for one, (requests, left, at, turns) in zip(asked, there, strict=True)
        ]
        return longest(shortages, pairs, tokens, now)

    def _owe_again(self, question: _Question) -> None:
        """What was not told is owed still."""
        for known, owed_requests, owed_tokens, absence in question.told:
            known.owed_requests += owed_requests
            known.owed_tokens += owed_tokens
            if absence is not None:
                known.away_since, known.share, known.start = absence

    def _give_back(self, question: _Question, reply: Any) -> None:
        """What the store has taken for somebody who was cancelled meanwhile. Nobody else would learn of it."""
        try:
            if isinstance(reply, Exception):
                raise reply
            answer = self._hear(question, _RESERVE.read(reply))
        except Exception:
            self._owe_again(question)
            if question.place:
                self._open.free_later(question.key, question.place)
        else:
            if isinstance(answer, Reservation):
                self._settle_later(answer)

    def _settle_later(self, reservation: Reservation) -> None:
        self._giving_back.start(self.settle(reservation, 0, requests=0), "give a reservation back")

    async def top_up(self, reservation: Reservation, tokens: float) -> float:
        """See ``LimitStorage.top_up``."""
        check_tokens(tokens)
        tokens = float(tokens)
        if reservation.expires_at == -math.inf:
            return math.inf
        before = (reservation.tokens, *(taken for taken, *_ in reservation.parts))
        left = await self._settle(reservation, tokens, [0.0] * len(before), reservation.expires_at)
        reservation.tokens += tokens
        reservation.parts = tuple((taken + tokens, requests, rest) for taken, requests, rest in reservation.parts)
        return left

    async def settle(self, reservation: Reservation, tokens: float | None, *, requests: int = 1) -> float:
        """See ``LimitStorage.settle``."""
        if tokens is not None:
            check_tokens(tokens)
            tokens = float(tokens)
        expires_at, reservation.expires_at = reservation.expires_at, -math.inf
        place, reservation.place = reservation.place, b""
        if place:
            principal = self._known_of(reservation.key)
            principal.is_open = max(0, principal.is_open - 1)
            if not self._open.remove(place):
                place = b""
        if expires_at == -math.inf:
            tokens = None
        if tokens is None and not place:
            return math.inf
        taken = [reservation.tokens, *(taken for taken, *_ in reservation.parts)]
        return await self._settle(reservation, tokens, taken, expires_at, place, requests)

    async def _settle(
        self,
        reservation: Reservation,
        tokens: float | None,
        taken: list[float],
        expires_at: float,
        place: bytes = b"",
        requests: int = 1,
    ) -> float:
        key, left = reservation.key, math.inf
        principal = self._known_of(key)
        asked = principal.asked(reservation.limits)
        pairs: list[Any] = []
        is_away = reservation.local
        for one, was in zip(asked, taken, strict=True):
            known = principal.pair(one.part)
            is_away = is_away or self._away(known) is not None
            pairs += (one.name, *one.figures, was, *self._start(known, one.limits, None))
        if is_away:  # what the store was not told of an outage yet, it is told with the next reservation, this too
            if tokens is not None and (not reservation.local or self._now() < expires_at):
                left = self._settle_locally(principal, asked, taken, tokens, requests)
            tokens = None
            if not place:
                return left
        words = [0.0, self._given_clock(), expires_at, tokens, place.decode(), 1 - requests, len(asked), *pairs]
        try:
            levels = await self._connection.run(
                _SETTLE,
                (principal.name, self._open.name_of(key)) if place else (principal.name,),
                partial(self._packed, words),
            )
        except BaseException as error:
            if place:
                self._open.free_later(key, place)
            if not isinstance(error, StorageUnavailableError):
                raise
            if not error.sent and tokens is not None:  # what may have been counted is not told again
                self._settle_locally(principal, asked, taken, tokens, requests)
            return left
        if levels is None:  # it came to it too late
            return left if tokens is None else self._settle_locally(principal, asked, taken, tokens, requests)
        for one, there in zip(asked, levels, strict=False):
            known = principal.pair(one.part)
            if there and known.levels is not None:
                known.levels = (*there, self._now())
                if one.limits.tokens is not None:
                    left = min(left, there[1])
        return left

    async def aclose(self) -> None:
        """Disconnect; a ``RedisConnection`` that others share connects anew when they use it."""
        await self._giving_back.finish()
        await self.budgets.giving_back.finish()
        # Before the open requests: who is told so may want to have said later what it could not say.
        await self._connection.aclose()
        await self._open.aclose()

    def _given_clock(self) -> Word:
        return "" if self._clock is None else self._clock()

    def _packed(self, words: list[Any], node: RedisConnection) -> tuple[bytes]:
        """What a script is asked, with the deadline at first: one after the other, so that it need not make a table."""
        if self._clock is None:
            words[0] = node.deadline()
        packed = _pack(words)
        return (packed[1:] if len(words) < 16 else packed[3:],)  # without the head of a list

    def _start(self, known: _Known, limits: Limits, since: float | None) -> tuple[float, float]:
        """The levels to start from should the store have lost the buckets: of now, or of ``since`` it went away."""
        if known.levels is None:
            return (math.inf, math.inf)
        requests, tokens, _ = refill(known.levels, limits, self._now() if since is None else since)
        return (requests, tokens)

    def _away(self, known: _Known) -> float | None:
        """Since when the store was away, if it has not been told of that; None if it was not."""
        if known.away_since is not None or known.heard is None:
            return known.away_since
        node, losses = known.heard
        return None if node.losses == losses else self._here(node.lost_at)

    def _here(self, moment: float) -> float:
        """A moment of the monotonic clock by this storage's own; one that a test gives stands still meanwhile."""
        return moment if self._clock is None else self._now()

    def _outage(
        self, known: _Known, limits: Limits, node: RedisConnection, since: float
    ) -> tuple[tuple[float, ...], _Absence]:
        """What the store is told of an outage: how long ago that began and ended, and by what its share has changed in
        it. And what is to be remembered should it not be heard."""
        now = self._now()
        back = max(since, self._here(node.back_at)) if node.is_up else now
        share = self._share_of(known, limits, now, node)
        here = self._share(limits)
        requests, tokens, _ = refill(share, here, back)
        # What began without a limit, or with more than there may be now, began full.
        most_requests, most_tokens, _ = full(here, back)
        change = (
            0.0 if limits.requests is None else requests - min(known.start[0], most_requests),
            0.0 if limits.tokens is None else tokens - min(known.start[1], most_tokens),
        )
        absence = (known.away_since, share, known.start)
        return (now - since, now - back, *change), absence

    def _known_of(self, key: bytes) -> _Principal:
        principal = self._known.get(key)
        if principal is None:
            principal = self._known[key] = _Principal(b"%b:limit:{%b}" % (self._prefix, key.hex().encode()))
            if len(self._known) > self._max_keys:
                oldest = list(islice(self._known, _CANDIDATES))[: self._max_keys]
                del self._known[next((one for one in oldest if self._known[one].is_dispensable), oldest[0])]
        else:
            self._known.move_to_end(key)
        return principal

    def _opened(self, principal: _Principal, reservation: Reservation, place: bytes, *, is_told: bool) -> None:
        reservation.place = place
        principal.is_open += 1
        self._open.add(place, reservation.key, is_told=is_told)

    def _reserve_locally(self, question: _Question, *, is_told: bool) -> Reservation | Shortage:
        key, limits, tokens, principal, asked, _, place, *_ = question
        now, node = self._now(), self._connection.node_of(principal.name)
        after: list[tuple[_Asked, Levels]] = []
        shortages: list[Shortage] = []
        for one in asked:
            known, here = principal.pair(one.part), self._share(one.limits)
            answer = take(self._share_of(known, one.limits, now, node), here, tokens, now)
            if isinstance(answer, Shortage):
                shortages.append(replace(answer, part=one.part, local=True))
            else:
                after.append((one, answer))
        if limits.concurrency is not None:
            most = max(1, limits.concurrency // self._replicas)
            if principal.is_open >= most:
                shortages.append(Shortage("concurrency", most, 0, AT_ONCE, local=True))
        if shortages:
            if place and is_told:
                self._open.free_later(key, place)
            return max(shortages, key=lambda one: one.retry_after_ms)
        taken: list[tuple[float, float, float]] = []
        for one, levels in after:
            known, cost = principal.pair(one.part), takeable(self._share(one.limits), tokens)
            known.share = levels
            if one.limits.requests is not None:
                known.owed_requests += 1
            if one.limits.tokens is not None:
                known.owed_tokens += cost
            taken.append((cost, *remaining(levels, one.limits)))
        own, *parts = taken
        reservation = Reservation(key, limits, *own, now + self._lifetime, tuple(parts), local=True)
        if limits.concurrency is not None:
            self._opened(principal, reservation, place, is_told=is_told)
            reservation.remaining_concurrency = max(1, limits.concurrency // self._replicas) - principal.is_open
        return reservation

    def _settle_locally(
        self,
        principal: _Principal,
        asked: Sequence[_Asked],
        taken: Sequence[float],
        tokens: float,
        requests: int,
    ) -> float:
        now, left, node = self._now(), math.inf, self._connection.node_of(principal.name)
        for one, was in zip(asked, taken, strict=True):
            known = principal.pair(one.part)
            share = self._share_of(known, one.limits, now, node)
            known.share = settle(share, self._share(one.limits), was, tokens, now, requests=requests)
            if one.limits.tokens is not None:
                known.owed_tokens += tokens - was
            if one.limits.requests is not None:
                known.owed_requests += requests - 1
            left = min(left, remaining(known.share, one.limits)[1])
        return left

    def _share_of(self, known: _Known, limits: Limits, now: float, node: RedisConnection) -> Levels:
        """This replica's share of what the store last said was left, less what it has let through of it. What flows
        back while the store is away flows into the shares."""
        if known.away_since is None:
            since = self._away(known)
            if since is not None or not node.is_up:
                known.away_since, known.share = now if since is None else since, None
        if known.share is None:
            here, at = self._share(limits), now if known.away_since is None else known.away_since
            requests, left, _ = full(here, at)
            if known.levels is not None:
                requests, left = (level / self._replicas for level in refill(known.levels, limits, at)[:2])
            known.start = (requests, left)
            known.share = settle((requests - known.owed_requests, left, at), here, 0, known.owed_tokens, at)
        return known.share

    def _owed(self, known: _Known, limits: Limits) -> tuple[float, float]:
        """What the store is to be told of what was let through: what has not flowed back into the share since. Into the
        store's own bucket it has flowed back too."""
        requests, tokens = known.owed_requests, known.owed_tokens
        if known.share is not None:
            here = self._share(limits)
            requests_there, tokens_there, _ = refill(known.share, here, self._now())
            if here.requests is not None:
                requests = min(requests, here.requests.capacity - requests_there)
            if here.tokens is not None:
                tokens = min(tokens, here.tokens.capacity - tokens_there)
        return (requests, tokens)

    def _find_share(self, limits: Limits) -> Limits:
        """One replica's part of the limits; of a small one a whole unit is left."""

        def part(limit: Limit | None) -> Limit | None:
            if limit is None:
                return None
            return Limit(max(1.0, limit.capacity / self._replicas), max(1e-9, limit.rate / self._replicas))

        parts = tuple((name, self._find_share(figures)) for name, figures in limits.parts)
        return Limits(part(limits.requests), part(limits.tokens), limits.concurrency, parts)


@lru_cache(1024)
def _asked(limits: Limits) -> tuple[_Asked, ...]:
    """The principal's own pair of buckets, and those of the parts."""
    parts = (_Asked(part, f"{part}:", figures, _figures(figures)) for part, figures in limits.parts)
    return (_Asked(None, "", limits, _figures(limits)), *parts)


def _figures(limits: Limits) -> tuple[float, ...]:
    """The limits as the scripts read them."""
    pairs = (
        (0.0, 0.0) if limit is None else (limit.capacity, limit.rate) for limit in (limits.requests, limits.tokens)
    )
    return tuple(figure for pair in pairs for figure in pair)
