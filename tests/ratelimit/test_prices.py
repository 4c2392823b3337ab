"""Prices as users write them, and what calls then cost: to the billionth."""

import json
from decimal import ROUND_HALF_UP, Decimal, Inexact, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import ConfigurationError
from mcp_middleware.message import Request, parse
from mcp_middleware.ratelimit.prices import Price, Prices, amount_in_nanos, read_prices
from mcp_middleware.types import Money, Usage


def request(method: str = "tools/call", **params: Any) -> Request:
    made = parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
    assert isinstance(made, Request)
    return made


def call(tool: str) -> Request:
    return request(name=tool, arguments={})


PER_MILLION = st.decimals(0, 1_000_000, places=6)
PER_CALL = st.decimals(0, 1_000_000, places=9)
TOKENS = st.integers(0, 10_000_000)


@given(PER_MILLION, PER_MILLION, PER_CALL, TOKENS, TOKENS)
def test_a_cost_is_the_exact_one_to_the_billionth(
    input_price: Decimal, output_price: Decimal, call_price: Decimal, input_tokens: int, output_tokens: int
) -> None:
    price = Price(input=str(input_price), output=output_price, call=f"{call_price:f}")
    exact = (input_price * input_tokens + output_price * output_tokens).scaleb(-6) + call_price
    assert Decimal(price.nanos(Usage(input_tokens, output_tokens))).scaleb(-9) == exact.quantize(
        Decimal("1e-9"), ROUND_HALF_UP
    )


@given(st.integers(0, 10**15 - 1))
def test_every_billionth_below_a_million_can_be_read_from_an_amount(nanos: int) -> None:
    """Also as the audit trail's report does it: units and billionths apart."""
    amount = Money(nanos, "EUR").amount
    whole = int(amount)
    assert whole * 10**9 + round((amount - whole) * 1e9) == nanos
    assert float(repr(amount)) == amount


@given(PER_MILLION)
def test_a_number_means_what_it_is_written_as(price: Decimal) -> None:
    assert Price(input=float(price)) == Price(input=float(price))
    tokens = Usage(input_tokens=1_000_000)
    assert Price(input=float(price)).nanos(tokens) == Price(input=f"{price:f}").nanos(tokens)


@pytest.mark.parametrize(
    ("option", "usage", "nanos"),
    [
        ({"input": 0.5, "output": 1.5}, Usage(1000, 2000), 3_500_000),
        ({"call": 0.002}, Usage(1000, 2000), 2_000_000),
        ({"call": 0}, Usage(1000, 2000), 0),
        ({"input": "0.000001"}, Usage(499, 0), 0),
        ({"input": "0.000001"}, Usage(500, 0), 1),
        ({"input": 0.1, "output": 0.2}, Usage(1_000_000, 1_000_000), 300_000_000),
        ({"output": 1_000_000}, Usage(0, 10_000_000), 10**16),
    ],
)
def test_what_a_call_costs(option: dict[str, Any], usage: Usage, nanos: int) -> None:
    assert Prices("EUR", [option]).cost(None, call("search"), usage) == Money(nanos, "EUR")


PRICES = Prices(
    "EUR",
    [
        {"servers": ["files"], "tools": ["read_*"], "call": 1},
        {"tools": ["read_*", "Search"], "call": 2},
        Price(servers=["files", "web-?"], call=3),
        {"servers": ["*"], "tools": ["*"], "call": 4},
    ],
)


@pytest.mark.parametrize(
    ("server", "made", "units"),
    [
        ("files", call("read_file"), 1),
        ("web-1", call("read_file"), 2),
        ("web-1", call("Search"), 2),
        ("web-1", call("search"), 3),
        ("web-12", call("search"), 4),
        ("files", request("prompts/get", name="read_file"), 3),
        ("files", request("resources/read", uri="read_file"), 3),
        ("web-12", request("prompts/get", name="read_file"), None),
        ("FILES", call("x\ny"), 4),
        (None, call("read_file"), 2),
        (None, call("search"), None),
    ],
)
def test_the_first_price_that_holds_counts(server: str | None, made: Request, units: int | None) -> None:
    cost = PRICES.cost(server, made, Usage(1, 1))
    assert cost == (None if units is None else Money(units * 10**9, "EUR"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ([], "limiter: prices is []; it must be a mapping with currency, rules"),
        ({"currency": "EUR"}, "limiter: prices: 'rules' is missing"),
        ({"rules": []}, "limiter: prices: 'currency' is missing"),
        (
            {"currency": "EUR", "rules": [], "tool": 1},
            "limiter: prices: 'tool' is not known; allowed are currency, rules",
        ),
        ({"currency": "EUR", "rules": []}, "limiter: prices: rules is []; it must be a list of prices"),
        ({"currency": "EUR", "rules": {"call": 1}}, "it must be a list of prices"),
        (
            {"currency": "EUR", "rules": [7]},
            "rules[0] is 7; it must be a mapping with servers, tools, input, output, call",
        ),
        ({"currency": "EUR", "rules": [{"call": 1}, {}]}, "rules[1]: it prices nothing; give input, output or call"),
        (
            {"currency": "EUR", "rules": [{"calls": 1}]},
            "rules[0]: 'calls' is not known; allowed are servers, tools, in",
        ),
        (
            {"currency": "EUR", "rules": [{"call": 1, "tools": "x"}]},
            "rules[0]: tools is 'x'; it must be a list of globs",
        ),
        ({"currency": "EUR", "rules": [{"call": 1, "tools": []}]}, "rules[0]: tools is []; it must be a list of globs"),
        (
            {"currency": "EUR", "rules": [{"call": 1, "tools": [""]}]},
            "tools has ''; it must be a glob such as 'search*'",
        ),
        ({"currency": "EUR", "rules": [{"call": 1, "servers": [None]}]}, "servers has None; it must be a glob"),
        (
            {"currency": "EUR", "rules": [{"call": 1}, {"call": 1, "servers": ["a*"]}]},
            "limiter: prices: rules[1].servers is ['a*'], and this server has no name; give server",
        ),
        *(
            (
                {"currency": currency, "rules": [{"call": 1}]},
                f"currency is {currency!r}; it must be a code such as 'EUR'",
            )
            for currency in ("", "€", "E R", "=EUR", "EUR\n", "1", "X" * 17, None, 978)
        ),
    ],
)
def test_wrong_prices_are_refused_with_their_place(option: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_prices("limiter: prices", option, server=None)
    assert said in str(refused.value)


WRONG = [-1, -0.1, "-1", "1e3", "", " 1", "1_0", "٣", "0x1", "nan", "inf", float("nan"), float("inf"), 1e300, 10**400]
WRONG += [True, b"1", [1], {}, 1_000_001, "1000000.1", "9" * 10_000, Decimal("1e999999999"), Decimal("1e-999999999")]


@pytest.mark.parametrize("key", ["input", "output", "call"])
@pytest.mark.parametrize("amount", WRONG, ids=range(len(WRONG)))
def test_what_is_no_amount_is_refused(key: str, amount: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^rules\[0\]: {key} is .*; it must be a number from 0 to 1,000,000"):
        Prices("EUR", [{key: amount}])


@pytest.mark.parametrize(("key", "decimals"), [("input", 6), ("output", 6), ("call", 9)])
def test_decimals_that_would_be_rounded_away_are_refused(key: str, decimals: int) -> None:
    Prices("EUR", [{key: "0." + "1" * decimals}])
    with pytest.raises(ConfigurationError, match=f"with at most {decimals} decimals"):
        Prices("EUR", [{key: "0." + "1" * (decimals + 1)}])


def test_an_amount_to_reach_is_above_nothing() -> None:
    assert amount_in_nanos("amount", "50.000000001", most=100) == 50_000_000_001
    for wrong in (0, -1, "0.0", 101):
        with pytest.raises(ConfigurationError, match=r"amount is .*; it must be a number above 0 to 100"):
            amount_in_nanos("amount", wrong, most=100)


def test_an_application_that_rounds_its_own_decimals_rounds_no_price() -> None:
    with localcontext() as context:
        context.prec = 3
        context.traps[Inexact] = True
        price = Price(input="123456.789012", call=Decimal("1234.123456789"))
        assert price.nanos(Usage(1_000_000, 0)) == 123_456_789_012_000 + 1_234_123_456_789
        assert amount_in_nanos("amount", 0.1, most=100) == 100_000_000


def test_no_prices_are_no_prices() -> None:
    assert read_prices("prices", None, server=None) is None
    assert read_prices("prices", PRICES, server="files") is PRICES
