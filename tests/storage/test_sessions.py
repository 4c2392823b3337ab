"""The table of sessions: places, idle time, and bounded memory, without a server."""

import tracemalloc
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.storage import MemorySessions, sessions
from mcp_middleware.storage.sessions import Agent, SessionTable, Use

ALICE: Agent = ("https://login.example.com", "agent", "alice")
BOB: Agent = ("https://login.example.com", "agent", "bob")
_serial = count()


class Bound:
    """A table and what a member asks it with."""

    def __init__(self, *, idle: float, per_agent: int | None, max_sessions: int) -> None:
        self.table = SessionTable(max_sessions)
        self.idle = idle
        self.per_agent = per_agent

    def __len__(self) -> int:
        return len(self.table)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def reserve(self, agent: Agent, now: float) -> float | None:
        return self.table.reserve(agent, now, idle=self.idle, per_agent=self.per_agent)

    def is_idle(self, use: Use, now: float) -> bool:
        return self.table.is_idle(use, now, self.idle)


def use_of(agent: Agent, now: float, lifetime: float = 1000.0, token: bytes | None = None, path: str = "/mcp") -> Use:
    return Use(
        token or b"token-%d" % next(_serial),
        upstream=b"upstream",
        instance="",
        expires=now + lifetime,
        endpoint=path,
        path=path,
        agent=agent,
        counted=agent,
        now=now,
    )


def opened(table: Bound, agent: Agent, now: float, lifetime: float = 1000.0) -> Use:
    assert table.reserve(agent, now) is None
    use = use_of(agent, now, lifetime)
    table.open(use)
    return use


def make_table(*, idle: float = 100.0, per_agent: int | None = 2, max_sessions: int = 1000) -> Bound:
    return Bound(idle=idle, per_agent=per_agent, max_sessions=max_sessions)


def test_case_22_a_flood_meets_its_cap_and_others_notice_nothing() -> None:
    table = make_table()
    for _ in range(2):
        opened(table, ALICE, 0.0)
    assert all(table.reserve(ALICE, 1.0) == 99.0 for _ in range(1000))
    assert table.reserve(BOB, 1.0) is None


def test_case_22_places_are_reserved_before_the_server_answers() -> None:
    table = make_table()
    assert [table.reserve(ALICE, 0.0) for _ in range(4)] == [None, None, 0.0, 0.0]
    table.release(ALICE)
    assert table.reserve(ALICE, 0.0) is None


def test_case_22_an_ended_session_leaves_room_at_once() -> None:
    table = make_table()
    first = opened(table, ALICE, 0.0)
    opened(table, ALICE, 0.0)
    assert table.reserve(ALICE, 1.0) is not None
    table.end(first)
    assert table.reserve(ALICE, 1.0) is None
    assert table.has_ended(first.name)


def test_case_22_an_idle_session_leaves_room_when_it_was_said() -> None:
    table = make_table()
    opened(table, ALICE, 0.0)
    opened(table, ALICE, 50.0)
    wait = table.reserve(ALICE, 60.0)
    assert wait == 40.0
    assert table.reserve(ALICE, 99.0) == 1.0
    assert table.reserve(ALICE, 60.0 + wait) is None
    assert table.reserve(ALICE, 60.0 + wait) == 50.0


def test_case_22_the_end_of_a_lifetime_leaves_room() -> None:
    table = make_table()
    first, second = (opened(table, ALICE, 0.0, lifetime=30.0) for _ in range(2))
    table.enter(first, 25.0)
    table.enter(second, 25.0)
    assert table.reserve(ALICE, 29.0) == 1.0
    assert table.reserve(ALICE, 30.0) is None


def test_case_22_an_open_stream_keeps_its_place_and_its_end_starts_the_idle_time() -> None:
    table = make_table(per_agent=1)
    use = opened(table, ALICE, 0.0)
    table.enter(use, 0.0)
    assert table.reserve(ALICE, 500.0) == 100.0
    assert not table.is_idle(use, 500.0)
    table.leave(use, 510.0)
    assert not table.is_idle(use, 609.0)
    assert table.is_idle(use, 610.0)
    assert table.reserve(ALICE, 610.0) is None


def test_case_22_a_learnt_session_counts_but_is_not_refused() -> None:
    table = make_table()
    for _ in range(3):
        table.learn(use_of(ALICE, 0.0), 0.0)
    assert len(table) == 3
    assert table.reserve(ALICE, 0.0) == 100.0


def test_case_22_a_learnt_session_that_expires_early_leaves_room_in_time() -> None:
    table = make_table(per_agent=1)
    opened(table, ALICE, 0.0)
    assert table.reserve(ALICE, 0.0) == 100.0
    first = use_of(ALICE, 0.0, lifetime=10.0)
    table.learn(first, 0.0)
    assert table.reserve(ALICE, 0.0) == 10.0


def test_without_a_cap_there_is_always_room() -> None:
    table = make_table(per_agent=None)
    for _ in range(500):
        opened(table, ALICE, 0.0)
    assert table.reserve(ALICE, 0.0) is None


def test_a_session_forgotten_and_learnt_again_ends_once_and_leaves_nothing() -> None:
    """A server's 404 to one request makes the session forgotten while another is still under way."""
    table = make_table(per_agent=1)
    first = opened(table, ALICE, 0.0)
    table.enter(first, 0.0)
    table.forget(first)
    again = use_of(ALICE, 1.0, token=first.token)
    table.learn(again, 1.0)
    table.end(first)
    table.leave(first, 2.0)
    assert len(table) == 0
    assert table.has_ended(first.name)
    assert table.reserve(ALICE, 2.0) is None


def test_the_least_recently_used_are_forgotten_not_ended() -> None:
    table = make_table(per_agent=None, max_sessions=3)
    first, second, third = (opened(table, ALICE, float(now)) for now in range(3))
    table.enter(first, 5.0)
    table.leave(first, 6.0)
    opened(table, BOB, 7.0)
    assert len(table) == 3
    assert table.find(second.token) is None
    assert not table.has_ended(second.name)
    assert table.find(first.token) is first
    assert table.find(third.token) is third


def test_expired_sessions_do_not_pile_up() -> None:
    table = make_table(per_agent=None)
    for now in range(500):
        opened(table, ALICE, float(now), lifetime=10.0)
    assert len(table) <= 11


def test_case_44_sessions_opened_and_ended_leave_a_bounded_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ENDED_KEPT", 100)
    table = make_table()
    ended = []
    for number in range(1000):
        use = opened(table, ("issuer", f"agent-{number}", None), 0.0)
        table.end(use)
        ended.append(use.name)
    assert len(table) == 0
    assert [table.has_ended(name) for name in ended] == [False] * 900 + [True] * 100
    assert not table._counts


def test_a_session_costs_less_than_four_kibibytes() -> None:
    """With the texts of a usual session, and an agent of its own for each."""
    table = make_table(per_agent=None, max_sessions=100_000)
    opened(table, ALICE, 0.0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2000):
            token = b"%0172d" % number
            agent = ("https://login.example.com/" + str(number), f"agent-{number}", f"user-{number}")
            use = Use(
                token,
                upstream=b"%032d" % number,
                instance="http://127.0.0.1:9002/mcp",
                expires=number + 1e6,
                endpoint=f"/servers/{number}/mcp",
                path=f"/servers/{number}/mcp",
                agent=agent,
                counted=(f"/servers/{number}/mcp", *agent),
                now=number + 0.25,
            )
            assert table.reserve(use.counted, 0.0) is None
            table.open(use)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(table) >= 2000
    assert used / 2000 < 4096


class Table(RuleBasedStateMachine):
    """Any order of events: the counts stay those of the sessions in the table, and nobody gets above the cap by
    opening."""

    CAP = 3

    def __init__(self) -> None:
        super().__init__()
        self.table = Bound(idle=50.0, per_agent=self.CAP, max_sessions=8)
        self.now = 0.0
        self.uses: list[Use] = []
        self.reserved: list[Agent] = []

    agents = st.sampled_from([ALICE, BOB, ("other", "agent", "alice")])
    pick = st.integers(0, 10**6)

    @rule(seconds=st.floats(-5, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(agent=agents)
    def reserve(self, agent: Agent) -> None:
        before = sum(use.agent == agent for use in self.table._uses.values()) + self.reserved.count(agent)
        wait = self.table.reserve(agent, self.now)
        if wait is None:
            self.reserved.append(agent)
        else:
            assert before >= self.CAP
            assert wait >= 0

    @precondition(lambda self: self.reserved)
    @rule(pick=pick, lifetime=st.floats(1, 200))
    def open(self, pick: int, lifetime: float) -> None:
        use = use_of(self.reserved.pop(pick % len(self.reserved)), self.now, lifetime)
        self.table.open(use)
        self.table.enter(use, self.now)
        self.uses.append(use)

    @precondition(lambda self: self.reserved)
    @rule(pick=pick)
    def release(self, pick: int) -> None:
        self.table.release(self.reserved.pop(pick % len(self.reserved)))

    @precondition(lambda self: self.uses)
    @rule(pick=pick, what=st.sampled_from(["enter", "leave", "end", "forget", "again"]))
    def touch(self, pick: int, what: str) -> None:
        use = self.uses[pick % len(self.uses)]
        if what == "enter":
            self.table.enter(use, self.now)
        elif what == "leave" and use.requests:
            self.table.leave(use, self.now)
        elif what == "end":
            self.table.end(use)
        elif what == "forget":
            self.table.forget(use)
        elif self.table.find(use.token) is None:
            again = use_of(use.agent, self.now, token=use.token)
            self.table.learn(again, self.now)
            self.uses.append(again)

    @invariant()
    def counts_are_true(self) -> None:
        counted = [use for entry in self.table._counts.values() for use in entry.uses]
        assert sorted(map(id, counted)) == sorted(map(id, self.table._uses.values()))
        assert sum(entry.opening for entry in self.table._counts.values()) == len(self.reserved)
        assert all(entry.uses or entry.opening for entry in self.table._counts.values())
        assert len(self.table) <= 8


Table.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTable = Table.TestCase


@given(st.lists(st.integers(0, 40), max_size=60))
@settings(max_examples=50)
def test_case_22_waiting_as_long_as_told_is_enough(steps: list[int]) -> None:
    table = make_table(idle=100.0, per_agent=3)
    now = 0.0
    for step in steps:
        now += step
        wait = table.reserve(ALICE, now)
        if wait is not None:
            now += wait
            assert table.reserve(ALICE, now) is None
        table.open(use_of(ALICE, now))


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "100", None])
def test_a_wrong_bound_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="MemorySessions: max_sessions is"):
        MemorySessions(max_sessions=value)
