"""The guess of a tool's next output."""

from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.ratelimit.forecast import Forecast


def test_a_new_tool_has_the_start_and_then_its_own_outputs() -> None:
    forecast = Forecast()
    assert forecast.guess("search", 1000) == 1000
    forecast.add("search", 40)
    assert forecast.guess("search", 1000) == 40
    assert forecast.guess("read", 1000) == 1000


def test_one_long_answer_among_many_does_not_decide() -> None:
    forecast = Forecast()
    for tokens in [50] * 31 + [90_000]:
        forecast.add("search", tokens)
    assert forecast.guess("search", 1000) == 50


def test_a_tool_that_changes_is_followed() -> None:
    forecast = Forecast()
    for tokens in [50] * 100 + [7000] * 32:
        forecast.add("search", tokens)
    assert forecast.guess("search", 1000) == 7000


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=80))
def test_nine_of_ten_of_the_last_answers_were_not_longer(outputs: list[int]) -> None:
    forecast = Forecast()
    for tokens in outputs:
        forecast.add("tool", tokens)
    guess = forecast.guess("tool", 1000)
    last = [min(tokens, 2**32 - 1) for tokens in outputs[-32:]]
    assert guess in last
    assert sum(tokens <= guess for tokens in last) >= 0.9 * len(last)


def test_case_39_a_name_of_megabytes_is_not_kept() -> None:
    forecast = Forecast()
    for number in range(5):
        forecast.add(f"{number}" * 1_000_000, 300)
    assert forecast.guess("0" * 1_000_000, 1000) == 300
    assert len(forecast) == 1


def test_case_26_names_beyond_the_bound_share_one_memory() -> None:
    forecast = Forecast()
    for number in range(3000):
        forecast.add(f"tool-{number}", 10)
    for _ in range(32):
        forecast.add("tool-2999", 700)
    assert forecast.guess("tool-0", 1000) == 10
    assert forecast.guess("tool-2999", 1000) == forecast.guess("never heard of", 1000) == 700
    assert len(forecast) == 1025
