"""Limits as users write them."""

import tracemalloc
from typing import Any

import pytest

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.ratelimit import AgentLimits, Rate, RateLimitMiddleware
from mcp_middleware.ratelimit.prices import Price, Prices
from mcp_middleware.ratelimit.rate import Rates, read_agent_limits, read_rate
from mcp_middleware.ratelimit.rules import Rules
from mcp_middleware.types import Usage

from .test_prices import call


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("not called")


@pytest.mark.parametrize(
    ("option", "capacity", "rate"),
    [
        ("60/minute", 60, 1),
        ("100 per 2 hours", 100, 100 / 7200),
        ("1/day", 1, 1 / 86_400),
        (Rate("60/minute", burst=10), 10, 1),
        ({"rate": "50000/minute", "burst": 100_000}, 100_000, 50_000 / 60),
        ({"rate": "10/second"}, 10, 10),
    ],
)
def test_a_rate_is_a_bucket(option: Any, capacity: float, rate: float) -> None:
    read = read_rate("requests", option)
    assert read is not None
    assert read.limit.capacity == capacity
    assert read.limit.rate == pytest.approx(rate)


@pytest.mark.parametrize(
    "option",
    [
        *("", "60", "60/min", "-60/minute", "0/minute", "60 per 0 minutes", "6e1/minute", "0.5/second"),
        *("60/minute;10/second", "60/minute, 5/second", "60/minute\n5/second", "unlimited", "default"),
        *("9" * 400 + "/minute", "1 per 9999999999 years", {"rate": "60/minute", "burst": 10**400}),
        *(60, 60.0, True, b"60/minute", ["60/minute"]),
        *({}, {"rate": None}, {"burst": 10}, {"rate": "60/minute", "brust": 10}),
        *({"rate": "60/minute", "burst": burst} for burst in (0, -1, 1.5, True, "10")),
    ],
)
def test_a_wrong_rate_is_refused_with_its_place(option: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^RateLimitMiddleware: tokens: ") as refused:
        RateLimitMiddleware(app, tokens=option)
    assert any(word in str(refused.value) for word in ("must be", "is missing", "is not known"))


EVERYBODY = Rates(Rate("60/minute"), Rate("1000/minute"), 5)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({}, EVERYBODY),
        ({"requests": "600/minute"}, EVERYBODY._replace(requests=Rate("600/minute"))),
        ({"tokens": None}, EVERYBODY._replace(tokens=None)),
        ({"tokens": {"rate": "5/second"}}, EVERYBODY._replace(tokens=Rate("5/second"))),
        (AgentLimits(tokens=Rate("1/hour")), EVERYBODY._replace(tokens=Rate("1/hour"))),
        ({"concurrency": 9}, EVERYBODY._replace(concurrency=9)),
        ({"concurrency": None}, EVERYBODY._replace(concurrency=None)),
        (AgentLimits(requests=None), EVERYBODY._replace(requests=None)),
    ],
)
def test_what_an_agent_is_not_given_is_as_for_everybody(option: Any, expected: Rates) -> None:
    assert read_agent_limits("agents['a']", option, EVERYBODY) == expected


@pytest.mark.parametrize(
    ("agents", "said"),
    [
        ([], "agents is []"),
        ({"": {}}, "agents has the key ''"),
        ({3: {}}, "agents has the key 3"),
        ({"batch-*": "600/minute"}, "agents['batch-*'] is '600/minute'; it must be a mapping"),
        (
            {"batch-*": {"request": "600/minute"}},
            "agents['batch-*']: 'request' is not known; allowed are requests, tokens",
        ),
        ({"batch-*": {"tokens": "many"}}, "agents['batch-*'].tokens: the rate is 'many'"),
        ({"batch-*": AgentLimits(requests="many")}, "agents['batch-*'].requests: the rate is 'many'"),
        ({"batch-*": {"requests": "default"}}, "agents['batch-*'].requests: the rate is 'default'"),
        ({"batch-*": {"concurrency": "default"}}, "agents['batch-*'].concurrency is 'default'; it must be"),
    ],
)
def test_wrong_limits_of_agents_are_refused_with_their_place(agents: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RateLimitMiddleware(app, requests="60/minute", agents=agents)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "limits nothing"),
        ({"agents": {"a*": {}}}, "limits nothing"),
        ({"agents": {"a*": {"tokens": None}, "b": {}}}, "limits nothing"),
        ({"requests": "1/second", "storage": object()}, "storage is"),
        ({"tokens": "1/second", "counter": "o200k_base"}, "counter is 'o200k_base'; it must have a method 'count'"),
        ({"tokens": "1/second", "counter": [1]}, "counter is [1]; it must have a method 'count'"),
        ({"requests": "1/second", "forecast": object()}, "forecast is"),
        ({"requests": "1/second", "mode": "on"}, "mode is 'on'; it must be 'enforce', 'shadow' or 'off'"),
        ({"requests": "1/second", "refuse_with": "text"}, "refuse_with is 'text'; it must be 'error' or"),
        ({"requests": "1/second", "cut_streams": "yes"}, "cut_streams is 'yes'; it must be True or False"),
        ({"requests": "1/second", "meter_provider": 7}, "meter_provider is 7"),
        ({"requests": "1/second", "image_tokens": -1}, "image_tokens is -1"),
        ({"requests": "1/second", "audio_tokens": "7"}, "audio_tokens is '7'"),
        ({"concurrency": 0}, "concurrency is 0; it must be a whole number from 1, or None for any number"),
        ({"concurrency": True}, "concurrency is True"),
        ({"agents": {"a": {"concurrency": 0}}}, "agents['a'].concurrency is 0"),
        ({"tools": ["a"]}, "tools is ['a']; it must be a mapping from globs to limits"),
        ({"tools": {"": {"requests": "1/day"}}}, "tools has the key ''; it must be a glob of tool names"),
        ({"tools": {"\ud800": {"requests": "1/day"}}}, "tools has the key '\\ud800'; it must be a glob of tool names"),
        ({"tools": {"a": {}}}, "tools['a'] limits nothing"),
        ({"tools": {"a": {"requests": "often"}}}, "tools['a'].requests: the rate is 'often'"),
        ({"tools": {"a": {"concurrency": 1}}}, "tools['a']: 'concurrency' is not known"),
        ({"tools": {"a": "1/day"}}, "tools['a'] is '1/day'; it must be a mapping"),
        ({"server_limits": {"requests": "1/day"}}, "server_limits needs server"),
        ({"server": "", "server_limits": {"requests": "1/day"}}, "server is ''"),
        ({"server": "a", "server_limits": {"requests": None}}, "server_limits limits nothing"),
        ({"server": "a"}, "limits nothing"),
        ({"requests": "1/second", "counter": len}, "counter is"),
        ({"requests": "1/second", "initial_output_tokens": -1}, "initial_output_tokens is -1"),
        ({"requests": "1/second", "initial_output_tokens": 1.5}, "initial_output_tokens is 1.5"),
        ({"requests": "1/second", "initial_output_tokens": True}, "initial_output_tokens is True"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RateLimitMiddleware(app, **options)
    assert said in str(refused.value)


def test_case_39_invented_names_of_megabytes_are_not_kept() -> None:
    rules = Rules("limiter", tools={"*a*b*c": {"requests": "1/day"}})
    prices = Prices("EUR", [Price(tools=["*a*b*c"], call=1)])
    principal = (None, "agent", None)
    tracemalloc.start()
    try:
        for number in range(30):
            name = f"{number}" + "ab" * 100_000
            assert rules.find(principal, name)[1] is rules.find(principal, None)[1]
            assert prices.cost(None, call(name), Usage(1, 1)) is None
            assert rules.find(principal, name + "c")[1] is not rules.find(principal, None)[1]
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
