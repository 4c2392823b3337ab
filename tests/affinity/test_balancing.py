"""The breaker's table, rule by rule, and what holds whatever happens."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.affinity.balancing import CALM, EJECTION, MAX_EJECTION, THRESHOLD, Balancer
from mcp_middleware.testing import FakeClock

RETRY = 5.0


def balancer(*names: str) -> tuple[Balancer, FakeClock]:
    clock = FakeClock()
    return Balancer(names, retry=RETRY, clock=clock), clock


def eject(subject: Balancer, name: str) -> None:
    for _ in range(THRESHOLD):
        subject.fail(name)


def test_the_least_busy_is_chosen() -> None:
    subject, _ = balancer("a", "b", "c")
    for name in ("a", "a", "b", "c", "c"):
        subject.enter(name)
    assert [subject.choose() for _ in range(4)] == ["b"] * 4
    subject.leave("a")
    subject.leave("a")
    assert subject.choose() == "a"


def test_equally_busy_instances_take_turns() -> None:
    subject, _ = balancer("a", "b", "c")
    assert Counter(subject.choose() for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_what_was_tried_is_not_chosen() -> None:
    subject, _ = balancer("a", "b")
    assert {subject.choose({"a"}) for _ in range(4)} == {"b"}
    assert subject.choose({"a", "b"}) is None


def test_failures_in_a_row_eject_and_a_success_between_does_not() -> None:
    subject, _ = balancer("a", "b")
    for _ in range(THRESHOLD - 1):
        assert not subject.fail("a")
    subject.succeed("a")
    for _ in range(THRESHOLD - 1):
        assert not subject.fail("a")
    assert subject.is_usable("a")
    assert subject.fail("a")
    assert not subject.is_usable("a")
    assert {subject.choose() for _ in range(4)} == {"b"}


def test_a_failed_probe_ejects_at_once() -> None:
    subject, _ = balancer("a")
    assert subject.fail("a", conclusive=True)
    assert subject.choose() is None
    assert subject.state("a") == "ejected"


def test_a_trial_is_one_request_until_it_has_ended() -> None:
    subject, clock = balancer("a")
    eject(subject, "a")
    assert subject.wait() == EJECTION
    clock.advance(EJECTION)
    assert subject.state("a") == "trial"
    assert subject.wait() == 0.0
    assert subject.choose() == "a"
    assert subject.choose() is None
    assert subject.is_usable("a"), "a session may go there"
    assert subject.succeed("a")
    assert subject.choose() == "a"


def test_a_failed_trial_waits_for_the_next() -> None:
    subject, clock = balancer("a")
    eject(subject, "a")
    clock.advance(EJECTION)
    assert subject.choose() == "a"
    assert not subject.fail("a")
    assert subject.state("a") == "ejected"
    assert subject.wait() == RETRY
    clock.advance(RETRY)
    assert subject.choose() == "a"


def test_no_request_is_the_trial_while_another_instance_is_healthy() -> None:
    subject, clock = balancer("a", "b")
    eject(subject, "a")
    clock.advance(EJECTION)
    for _ in range(5):
        subject.enter("b")
        assert subject.choose() == "b"
    assert subject.due() == ["a"]
    subject.succeed("a")
    assert subject.choose() == "a"


def test_an_answer_from_before_the_ejection_does_not_readmit() -> None:
    subject, _ = balancer("a")
    eject(subject, "a")
    assert not subject.succeed("a")
    assert subject.state("a") == "ejected"


def test_a_flapping_instance_is_away_longer_each_time_up_to_a_cap() -> None:
    subject, clock = balancer("a", "b")
    eject(subject, "a")
    seconds = []
    for _ in range(12):
        seconds.append(subject.next_due())
        clock.advance(subject.next_due())
        assert subject.succeed("a")
        assert subject.fail("a"), "back for less than CALM, one failure is enough"
    assert seconds[:4] == [EJECTION, EJECTION * 2, EJECTION * 4, EJECTION * 8]
    assert seconds[-1] == MAX_EJECTION
    clock.advance(MAX_EJECTION)
    subject.succeed("a")
    clock.advance(CALM)
    assert not subject.fail("a"), "its past is forgotten"
    eject(subject, "a")
    assert subject.next_due() == EJECTION


def test_a_suspect_is_probed_and_stays_in_use() -> None:
    subject, _ = balancer("a")
    subject.suspect("a")
    assert subject.due() == ["a"]
    assert subject.next_due() == 0.0
    assert subject.choose() == "a"
    assert not subject.fail("a"), "a probe that was slow"
    assert subject.due() == ["a"], "is asked again"
    subject.succeed("a")
    assert subject.due() == []
    assert subject.next_due() == math.inf


def test_an_unknown_name_is_not_usable() -> None:
    subject, _ = balancer("a")
    assert not subject.is_usable("b")


steps = st.lists(
    st.tuples(
        st.sampled_from(["succeed", "fail", "probe failed", "suspect", "advance", "choose", "leave"]),
        st.sampled_from("abc"),
    ),
    max_size=200,
)


@given(steps)
def test_whatever_happens_only_usable_instances_are_chosen_and_all_can_come_back(taken: list[tuple[str, str]]) -> None:
    subject, clock = balancer("a", "b", "c")
    running: Counter[str] = Counter()
    for step, name in taken:
        if step == "succeed":
            subject.succeed(name)
        elif step == "fail":
            subject.fail(name)
        elif step == "probe failed":
            subject.fail(name, conclusive=True)
        elif step == "suspect":
            subject.suspect(name)
        elif step == "advance":
            clock.advance(0.7)
        elif step == "leave":
            if running[name]:
                running[name] -= 1
                subject.leave(name)
        else:
            chosen = subject.choose()
            healthy = [one for one in "abc" if subject.state(one) == "healthy"]
            if healthy:
                assert chosen in healthy
                assert running[chosen] == min(running[one] for one in healthy)
            elif chosen is not None:
                assert subject.is_usable(chosen)
            if chosen is not None:
                running[chosen] += 1
                subject.enter(chosen)
        assert {one: subject.in_flight(one) for one in "abc"} == {one: running[one] for one in "abc"}
        assert 0.0 <= subject.wait() <= MAX_EJECTION
    clock.advance(MAX_EJECTION + RETRY)
    for name in "abc":
        assert subject.is_usable(name)
        subject.succeed(name)
        assert subject.state(name) == "healthy"
