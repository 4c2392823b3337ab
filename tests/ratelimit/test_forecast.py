"""The guess of a tool's next output."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.ratelimit.forecast import Forecast

AGENT = "agent"


def test_a_new_tool_has_the_start_and_then_its_own_outputs() -> None:
    forecast = Forecast()
    assert forecast.guess(AGENT, "search", 1000) == 1000
    forecast.add(AGENT, "search", 40)
    assert forecast.guess(AGENT, "search", 1000) == 40
    assert forecast.guess(AGENT, "read", 1000) == 1000


def test_one_long_answer_among_many_does_not_decide() -> None:
    forecast = Forecast()
    for tokens in [50] * 31 + [90_000]:
        forecast.add(AGENT, "search", tokens)
    assert forecast.guess(AGENT, "search", 1000) == 50


def test_a_tool_that_changes_is_followed() -> None:
    forecast = Forecast()
    for tokens in [50] * 100 + [7000] * 32:
        forecast.add(AGENT, "search", tokens)
    assert forecast.guess(AGENT, "search", 1000) == 7000


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=80))
def test_nine_of_ten_of_the_last_answers_were_not_longer(outputs: list[int]) -> None:
    forecast = Forecast()
    for tokens in outputs:
        forecast.add(AGENT, "tool", tokens)
    guess = forecast.guess(AGENT, "tool", 1000)
    last = [min(tokens, 2**32 - 1) for tokens in outputs[-32:]]
    assert guess in last
    assert sum(tokens <= guess for tokens in last) >= 0.9 * len(last)


def test_case_39_a_name_of_megabytes_is_not_kept() -> None:
    forecast = Forecast()
    for number in range(5):
        forecast.add(AGENT, f"{number}" * 1_000_000, 300)
    assert forecast.guess(AGENT, "0" * 1_000_000, 1000) == 300
    assert len(forecast) == 1


def test_case_26_names_beyond_the_bound_share_one_memory() -> None:
    forecast = Forecast()
    for number in range(3000):
        forecast.add(AGENT, f"tool-{number}", 10)
    for _ in range(32):
        forecast.add(AGENT, "tool-2999", 700)
    assert forecast.guess(AGENT, "tool-0", 1000) == 10
    assert forecast.guess(AGENT, "tool-2999", 1000) == forecast.guess(AGENT, "never heard of", 1000) == 700
    assert len(forecast) == 1025


def test_case_31_one_callers_answers_are_not_what_others_are_expected_to_get() -> None:
    forecast = Forecast()
    for number in range(9):
        forecast.add(number, "read", 3)
    for _ in range(100):
        forecast.add(AGENT, "read", 60_000)
    assert [forecast.guess(number, "read", 1000) for number in range(9)] == [3] * 9
    assert forecast.guess("new", "read", 1000) == 3
    assert forecast.guess(AGENT, "read", 1000) == 60_000


@given(others=st.lists(st.integers(0, 5000), max_size=40), before=st.integers(0, 40), times=st.integers(1, 40))
def test_case_31_nobody_alone_makes_a_newcomers_guess_large(others: list[int], before: int, times: int) -> None:
    forecast = Forecast()
    for number, tokens in enumerate(others):
        if number == before:
            for _ in range(times):
                forecast.add(AGENT, "read", 10**6)
        forecast.add(number, "read", tokens)
        forecast.add(AGENT, "read", 10**6)
    assert forecast.guess("new", "read", 1000) <= max(1000, *others, 0)


def test_what_most_callers_got_at_first_is_what_a_newcomer_is_expected_to_get() -> None:
    forecast = Forecast()
    for number in range(100):
        forecast.add(number, "read", 50)
    for number in range(100, 132):
        forecast.add(number, "read", 7000)
    assert forecast.guess("new", "read", 1000) == 7000
    assert forecast.guess(99, "read", 1000) == 50


def test_case_26_invented_callers_take_bounded_memory_and_those_who_come_back_are_kept() -> None:
    forecast = Forecast()
    for _ in range(32):
        forecast.add(AGENT, "read", 9)
    tracemalloc.start()
    try:
        for number in range(30_000):
            for _ in range(2):
                forecast.add(number, "read", 700)
            if number % 5000 == 0:
                forecast.add(AGENT, "read", 9)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 8192 * 200
    assert forecast.guess(AGENT, "read", 1000) == 9
    assert forecast.guess(0, "read", 1000) == 700, "forgotten, and expected to get what others got"


def test_case_26_nobody_alone_has_others_forgotten() -> None:
    forecast = Forecast()
    forecast.add("other", "read", 9)
    for number in range(20_000):
        forecast.add(AGENT, f"tool-{number}", 700)
    assert forecast.guess("other", "read", 1000) == 9
