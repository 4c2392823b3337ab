"""What agents have spent in a day or a month, in this process or for all replicas together.

An amount is taken before a call, from all budgets that hold for it or from none, and what the call cost is put in its
place afterwards. Amounts are whole numbers of billionths (``Money``), so nothing is lost by adding. Periods are those
of the calendar in UTC, by the store's clock; a call belongs to the period in which it began.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from mcp_middleware.background import Background
from mcp_middleware.options import whole_number
from mcp_middleware.types import Clock

from .connection import RedisConnection, Script
from .interface import StorageUnavailableError

__all__ = [
    "BudgetStorage",
    "MemoryBudgets",
    "Overspending",
    "Period",
    "RedisBudgets",
    "Spending",
    "Wallet",
    "end_of_period",
]

Period: TypeAlias = Literal["day", "month"]

_SPEND: Final = Script("clock.lua", "sums.lua", "spend.lua")
_SPENT: Final = Script("clock.lua", "sums.lua", "spent.lua")
_LATE: Final = -1
_OVER: Final = -1
_CANDIDATES: Final = 8
"""Longest unused agents looked at for the one to forget when there is no more room."""


class Wallet(NamedTuple):
    """What one agent may spend in one period, in one currency."""

    name: str
    """Names the sum that is kept: a currency and the period. Budgets of one name are one sum."""
    period: Period
    most: int | None
    """Billionths; None only adds up."""


class Spending(msgspec.Struct, eq=False):
    """What was taken for one call. The storage that gave it takes it back once, by ``settle``."""

    key: bytes
    wallets: tuple[Wallet, ...]
    nanos: int
    until: tuple[int, ...]
    """When each wallet's period ends: Unix seconds."""
    spent: tuple[int, ...]
    """What is spent of each, this included."""
    settled: bool = False
    local: bool = False
    """Whether a replica let it through by itself, its store being away."""


class Overspending(NamedTuple):
    """Why a call may not be paid for now, by the wallet that has to be waited for longest."""

    wallet: Wallet
    spent: int
    retry_after_ms: int
    """Until the period ends; at least 1."""
    local: bool = False


class BudgetStorage(Protocol):
    """Keeps what each key has spent, and decides over all wallets in one atomic step."""

    async def spend(self, key: bytes, wallets: tuple[Wallet, ...], nanos: int) -> Spending | Overspending:
        """Take ``nanos`` from every wallet, or from none if one has not enough left. More than a wallet's most is let
        through while nothing is spent: an estimate must not lock a call out for ever. Whoever cancels it gets
        nothing, and what was taken is given back as soon as that is known."""
        ...

    async def settle(self, spending: Spending, nanos: int) -> tuple[int | None, ...]:
        """Put ``nanos`` in place of what was taken; what is spent of each wallet then, None where that period is over.
        Counts once; what was taken stands if it is never called."""
        ...


def end_of_period(period: Period, now: float) -> int:
    """When the day or month of ``now`` ends, in UTC. Unix seconds."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return int((day + timedelta(days=1)).timestamp())
    return int((day.replace(day=1) + timedelta(days=31)).replace(day=1).timestamp())


def _fits(spent: int, wallet: Wallet, nanos: int) -> bool:
    return wallet.most is None or spent + min(nanos, wallet.most) <= wallet.most


def _overspending(
    wallets: Sequence[Wallet], until: Sequence[int], spent: Sequence[int], nanos: int, now: float
) -> Overspending:
    """Of those that have not enough the one whose period ends last."""
    short = [one for one in zip(until, wallets, spent, strict=True) if not _fits(one[2], one[1], nanos)]
    end, wallet, sum_ = max(short, key=lambda one: one[0])
    return Overspending(wallet, sum_, max(1, math.ceil((end - now) * 1000)))


_Sums = dict[str, tuple[int, int]]
"""By a wallet's name: when the period ends, and what was spent in it."""


def _current(sums: _Sums, wallet: Wallet, now: float) -> tuple[int, int]:
    """A clock that went back stays in the period that it had reached."""
    held = sums.get(wallet.name)
    return (end_of_period(wallet.period, now), 0) if held is None or now >= held[0] else held


class MemoryBudgets:
    """A ``BudgetStorage`` for one process and one event loop; a step is atomic because it never awaits.

    ``max_keys``: the most agents to keep; of the eight longest unused the one that spent least is forgotten.
    ``clock``: Unix seconds.
    """

    def __init__(self, *, max_keys: int = 100_000, clock: Clock = time.time) -> None:
        self._max_keys = whole_number("MemoryBudgets: max_keys", max_keys)
        self._clock = clock
        self._sums: OrderedDict[bytes, _Sums] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        """Principals that are kept."""
        return len(self._sums)

    async def spend(self, key: bytes, wallets: tuple[Wallet, ...], nanos: int) -> Spending | Overspending:
        """See ``BudgetStorage.spend``."""
        now = self._clock()
        sums = self._sums.get(key, {})
        held = [_current(sums, wallet, now) for wallet in wallets]
        until, spent = tuple(end for end, _ in held), tuple(sum_ for _, sum_ in held)
        if not all(map(_fits, spent, wallets, [nanos] * len(wallets))):
            return _overspending(wallets, until, spent, nanos, now)
        if key not in self._sums:
            self._sums[key] = sums
            self._make_room()
        self._sums.move_to_end(key)
        after = tuple(sum_ + nanos for sum_ in spent)
        sums.update(zip((wallet.name for wallet in wallets), zip(until, after, strict=True), strict=True))
        return Spending(key, wallets, nanos, until, after)

    async def settle(self, spending: Spending, nanos: int) -> tuple[int | None, ...]:
        """See ``BudgetStorage.settle``."""
        if spending.settled:
            return (None,) * len(spending.wallets)
        spending.settled = True
        sums, now = self._sums.get(spending.key, {}), self._clock()
        left: list[int | None] = []
        for wallet, end in zip(spending.wallets, spending.until, strict=True):
            held = sums.get(wallet.name)
            if held is None or held[0] != end or now >= end:
                left.append(None)
                continue
            spent = held[1] + nanos - spending.nanos
            sums[wallet.name] = (end, spent)
            left.append(spent)
        return tuple(left)

    def _make_room(self) -> None:
        if len(self._sums) > self._max_keys:
            oldest = list(islice(self._sums, _CANDIDATES))[: self._max_keys]
            del self._sums[min(oldest, key=lambda key: sum(spent for _, spent in self._sums[key].values()))]


class _Known:
    """What this replica knows of one agent's wallet."""

    __slots__ = ("life", "owed", "spent", "until")

    def __init__(self) -> None:
        self.until: int | None = None
        self.spent = 0
        """What the store last said."""
        self.life = b""
        """Names the data that it said it of: of other data, it has lost them since."""
        self.owed = 0
        """What was let through, or settled, while the store was away; told to it with the next call."""

    @property
    def told(self) -> tuple[bytes, bytes, bytes]:
        """What the store said, as the scripts read it."""
        return (
            (self.life, b"", b"") if self.until is None else (self.life, b"%d" % self.until, b"%d" % max(0, self.spent))
        )


class _Question(NamedTuple):
    """What one call asks the store to take."""

    key: bytes
    wallets: tuple[Wallet, ...]
    nanos: int
    known: list[_Known]
    told: list[int]
    """What was owed of each, told by this call alone, however many run."""
    sent_at: float


class RedisBudgets:
    """A ``BudgetStorage`` shared by replicas, in one Redis or Valkey.

    While the store is away each of ``replicas`` goes on from what the store last said was spent, and counts for all of
    them. What it let through is told to the store when it is back; a store that lost its data goes on from the replica
    that remembers most (``max_keys`` agents each). ``clock``: Unix seconds, in place of the store's; for tests.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        prefix: bytes,
        replicas: int = 1,
        max_keys: int = 100_000,
        clock: Clock | None = None,
    ) -> None:
        self._connection = connection
        self._prefix = prefix
        self._replicas = replicas
        self._max_keys = max_keys
        self._clock = clock
        self._now = time.time if clock is None else clock
        self._known: OrderedDict[bytes, dict[str, _Known]] = OrderedDict()  # longest unused first
        self.giving_back = Background()
        """Amounts on their way back to the store."""

    async def spend(self, key: bytes, wallets: tuple[Wallet, ...], nanos: int) -> Spending | Overspending:
        """See ``BudgetStorage.spend``."""
        known = self._known_of(key, wallets)
        question = _Question(key, wallets, nanos, known, [one.owed for one in known], time.monotonic())
        arguments: list[bytes] = []
        for wallet, one in zip(wallets, known, strict=True):
            most = b"" if wallet.most is None else b"%d" % wallet.most
            arguments += (wallet.name.encode(), wallet.period.encode(), most, b"%d" % one.owed, *one.told)
            one.owed = 0
        try:
            reply = await self._connection.run(
                _SPEND,
                (self._name(key),),
                lambda node: (
                    self._given_clock(),
                    b"%r" % (node.deadline() if self._clock is None else 0.0),
                    b"%d" % nanos,
                    *arguments,
                ),
                partial(self._give_back, question),
            )
            return self._hear(question, reply)
        except StorageUnavailableError:
            self._owe_again(question)
            return self._spend_locally(key, wallets, known, nanos)

    def _hear(self, question: _Question, reply: Any) -> Spending | Overspending:
        """What the store has answered. Raises StorageUnavailableError where it was too late to do anything."""
        key, wallets, nanos, known, _, sent_at = question
        try:
            outcome, now = int(reply[0]), float(reply[1])
            until, spent = tuple(map(int, reply[3::2])), tuple(map(int, reply[4::2]))
            if outcome != _LATE and not len(until) == len(spent) == len(known):
                raise ValueError
        except (IndexError, TypeError, ValueError):
            raise StorageUnavailableError("the store answered nonsense", sent=True) from None
        if self._clock is None:
            self._connection.node_of(self._name(key)).learn_time(now, sent_at)
        if outcome == _LATE:
            raise StorageUnavailableError("the store came to it too late", sent=False)
        for one, end, sum_ in zip(known, until, spent, strict=True):
            one.life, one.until, one.spent = reply[2], end, sum_
        if outcome:
            return Spending(key, wallets, nanos, until, spent)
        return _overspending(wallets, until, spent, nanos, now)

    def _owe_again(self, question: _Question) -> None:
        """What was not told is owed still."""
        for one, owed in zip(question.known, question.told, strict=True):
            one.owed += owed

    def _give_back(self, question: _Question, reply: Any) -> None:
        """What the store has taken for somebody who was cancelled meanwhile. Nobody else would learn of it."""
        try:
            if isinstance(reply, Exception):
                raise reply
            answer = self._hear(question, _SPEND.read(reply))
        except Exception:
            self._owe_again(question)
        else:
            if isinstance(answer, Spending):
                self.giving_back.start(self.settle(answer, 0), "give an amount back")

    async def settle(self, spending: Spending, nanos: int) -> tuple[int | None, ...]:
        """See ``BudgetStorage.settle``."""
        nothing = (None,) * len(spending.wallets)
        if spending.settled:
            return nothing
        spending.settled = True
        known = self._known_of(spending.key, spending.wallets)
        difference = nanos - spending.nanos
        if spending.local:
            self._owe(known, spending.until, difference)
            return nothing
        sums = (
            part
            for wallet, end, one in zip(spending.wallets, spending.until, known, strict=True)
            for part in (wallet.name.encode(), b"%d" % end, *one.told)
        )
        try:
            reply = await self._connection.run(
                _SPENT,
                (self._name(spending.key),),
                (self._given_clock(), b"%d" % nanos, b"%d" % difference, *sums),
            )
        except StorageUnavailableError as error:
            if not error.sent:  # what may have been counted is not told again
                self._owe(known, spending.until, difference)
            return nothing
        spent = tuple(map(int, reply[1:]))
        for one, end, sum_ in zip(known, spending.until, spent, strict=True):
            if sum_ != _OVER and one.until == end:
                one.life, one.spent = reply[0], sum_
        return tuple(None if sum_ == _OVER else sum_ for sum_ in spent)

    def _spend_locally(
        self, key: bytes, wallets: tuple[Wallet, ...], known: Sequence[_Known], nanos: int
    ) -> Spending | Overspending:
        now = self._now()
        for wallet, one in zip(wallets, known, strict=True):
            if one.until is None or now >= one.until:
                one.until, one.spent, one.owed = end_of_period(wallet.period, now), 0, 0
        until = tuple(one.until or 0 for one in known)
        # The others are taken to let through as much as this one does.
        spent = tuple(one.spent + self._replicas * one.owed for one in known)
        if not all(map(_fits, spent, wallets, [nanos * self._replicas] * len(wallets))):
            return _overspending(wallets, until, spent, nanos * self._replicas, now)._replace(local=True)
        for one in known:
            one.owed += nanos
        return Spending(key, wallets, nanos, until, tuple(one.spent + one.owed for one in known), local=True)

    def _owe(self, known: Sequence[_Known], until: Sequence[int], nanos: int) -> None:
        for one, end in zip(known, until, strict=True):
            if one.until == end:
                one.owed += nanos

    def _known_of(self, key: bytes, wallets: Sequence[Wallet]) -> list[_Known]:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = {}
            if len(self._known) > self._max_keys:
                oldest = list(islice(self._known, _CANDIDATES))[: self._max_keys]
                nothing_owed = (one for one in oldest if not any(wallet.owed for wallet in self._known[one].values()))
                del self._known[next(nothing_owed, oldest[0])]
        else:
            self._known.move_to_end(key)
        return [known.setdefault(wallet.name, _Known()) for wallet in wallets]

    def _name(self, key: bytes) -> bytes:
        return b"%b:budget:{%b}" % (self._prefix, key.hex().encode())

    def _given_clock(self) -> bytes:
        return b"" if self._clock is None else b"%r" % self._clock()
