"""Plain limits on requests, by address and by tool."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.errors import INVALID_PARAMS, ConfigurationError
from mcp_middleware.exchange import Exchange
from mcp_middleware.member import Member
from mcp_middleware.ratelimit import GuardStorage, RequestGuardMiddleware
from mcp_middleware.ratelimit.addresses import address_of, read_networks
from mcp_middleware.testing import FakeClock
from mcp_middleware.types import Principal, Rejection
from tests.core.asgi import Call, rpc
from tests.support import until

from .conftest import Server


class Gate(Member):
    """Stands in the place of the resource server, and of tool authorization: a good token, a bad one, a denied tool."""

    stage = "resource_server"

    async def on_headers(self, exchange: Exchange) -> Rejection | None:
        token = exchange.headers.get(b"authorization")
        if token is None:
            return Rejection(401, INVALID_PARAMS, "no token", "no_token")
        exchange.principal = Principal(None, token.decode(), None)
        return None

    async def on_request(self, exchange: Exchange) -> Rejection | None:
        target = getattr(exchange.message, "target", None)
        return Rejection(403, INVALID_PARAMS, "denied", "not_allowed") if target == "denied" else None


class Guarded:
    """A guard around a gate around a server, and how to call it."""

    def __init__(self, clock: FakeClock, **options: Any) -> None:
        self.server = Server()
        self.storage = options.pop("storage", None) or GuardStorage(
            clock=clock, max_addresses=options.pop("max_addresses", 1000)
        )
        self.guard = RequestGuardMiddleware(Gate(self.server), storage=self.storage, **options)

    async def call(
        self,
        *,
        token: str | None = None,
        address: str = "192.0.2.1",
        tool: str = "t",
        method: str = "POST",
        path: str = "/mcp",
        root: str = "",
        **headers: str,
    ) -> Call:
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            lines["authorization"] = token
        call = Call(self.guard, rpc("tools/call", {"name": tool}), method=method, path=path, headers=lines)
        call.scope["client"] = (address, 5)
        call.scope["root_path"] = root
        return await call.run()


async def test_an_address_that_nobody_authenticates_is_refused_and_others_are_not(clock: FakeClock) -> None:
    guarded = Guarded(clock, addresses="3/minute")
    assert [(await guarded.call()).status for _ in range(5)] == [401, 401, 401, 429, 429]
    clock.advance(20.5)
    refused = await guarded.call(token="good")
    assert (refused.status, refused.headers["retry-after"]) == (429, "40")
    assert refused.headers["ratelimit"] == '"address";r=0;t=40'
    assert refused.headers["ratelimit-policy"] == '"address";q=3;w=60'
    assert refused.json["error"]["data"] == {
        "dimension": "requests",
        "limit": 3,
        "remaining": 0,
        "retryAfterMs": 39_500,
        "of": "address",
    }
    assert (await guarded.call(address="192.0.2.2")).status == 401
    assert (await guarded.call(method="GET", path="/.well-known/oauth-protected-resource")).status == 401
    clock.advance(39)
    assert (await guarded.call()).status == 429
    clock.advance(1)
    assert (await guarded.call()).status == 401


async def test_a_flood_of_tokens_is_counted_whatever_its_path(clock: FakeClock) -> None:
    class Refusing(Gate):
        async def on_headers(self, exchange: Exchange) -> Rejection | None:
            return Rejection(401, INVALID_PARAMS, "a bad token", "bad_token")

    guarded = Guarded(clock, addresses="2/minute")
    guarded.guard = RequestGuardMiddleware(Refusing(guarded.server), addresses="2/minute", storage=guarded.storage)
    place: dict[str, Any] = {"method": "GET", "path": "/.well-known/oauth-protected-resource/mcp"}
    assert [(await guarded.call(**place, token=f"bad {number}")).status for number in range(3)] == [401, 401, 429]
    assert (await guarded.call(**place)).status == 401  # who is refused may still ask where to get a token


@pytest.mark.parametrize(
    ("place", "is_counted"),
    [
        ({"method": "GET", "path": "/.well-known/oauth-protected-resource/mcp"}, False),
        ({"method": "HEAD", "path": "/.well-known/oauth-protected-resource"}, False),
        ({"method": "OPTIONS", "path": "/.well-known/oauth-authorization-server"}, False),
        ({"method": "GET", "path": "/.well-known/openid-configuration"}, False),
        ({"method": "GET", "path": "/app/.well-known/oauth-protected-resource/mcp", "root": "/app"}, False),
        ({"method": "GET", "path": "/.well-known/oauth-protected-resource/mcp", "root": "/app"}, False),
        ({"method": "POST", "path": "/.well-known/oauth-protected-resource/mcp"}, True),
        ({"method": "POST", "path": "/mcp/.well-known/oauth-protected-resource"}, True),
        ({"method": "GET", "path": "/mcp/.well-known/oauth-protected-resource"}, True),
        ({"method": "GET", "path": "/.well-known/other"}, True),
    ],
)
async def test_metadata_alone_is_not_counted(clock: FakeClock, place: dict[str, Any], is_counted: bool) -> None:
    guarded = Guarded(clock, addresses="1/minute")
    guarded.guard = RequestGuardMiddleware(guarded.server, addresses="1/minute", storage=guarded.storage)
    assert [(await guarded.call(**place)).status for _ in range(2)] == [200, 429 if is_counted else 200]


async def test_good_callers_do_not_use_up_their_address(clock: FakeClock) -> None:
    guarded = Guarded(clock, addresses="3/minute")
    assert [(await guarded.call(token=f"agent {number}")).status for number in range(20)] == [200] * 20
    assert [(await guarded.call()).status for _ in range(4)] == [401, 401, 401, 429]


async def test_a_good_call_is_taken_off_while_it_runs(clock: FakeClock) -> None:
    guarded = Guarded(clock, addresses="2/minute")
    guarded.server.gate.clear()
    running = [asyncio.create_task(guarded.call(token=f"agent {number}")) for number in range(9)]
    await guarded.server.entered.wait()
    assert [(await guarded.call()).status for _ in range(3)] == [401, 401, 429]
    clock.advance(60)  # another window, from which nothing is taken back
    assert [(await guarded.call()).status for _ in range(2)] == [401, 401]
    guarded.server.gate.set()
    assert [call.status for call in await asyncio.gather(*running)] == [200] * 9
    assert (await guarded.call()).status == 429


async def test_a_good_call_takes_nothing_off_a_later_window(clock: FakeClock) -> None:
    guarded = Guarded(clock, addresses="2/minute")
    slow = Call(guarded.guard, method="POST", headers={"authorization": "good"}, chunks=[])
    slow.scope["client"] = ("192.0.2.1", 5)
    running = asyncio.create_task(slow.run())  # its token is known, its message is not
    await until(lambda: len(guarded.storage.addresses) == 1)
    clock.advance(60)
    assert [(await guarded.call()).status for _ in range(2)] == [401, 401]
    slow.incoming.put_nowait({"type": "http.request", "body": json.dumps(rpc("tools/call", {"name": "t"})).encode()})
    assert (await running).status == 200
    assert (await guarded.call()).status == 429


async def test_guards_of_one_storage_count_an_address_together_and_tools_apart(clock: FakeClock) -> None:
    first = Guarded(clock, addresses="4/minute", tools={"t": "1/minute"}, server="a")
    others = [
        Guarded(clock, addresses="4/minute", tools={"t": "1/minute"}, server=name, storage=first.storage)
        for name in ("b", "a")
    ]
    assert [(await one.call()).status for one in (first, *others, first)] == [401] * 4
    assert [(await one.call()).status for one in others] == [429, 429]
    clock.advance(60)
    assert [(await one.call(token="good")).status for one in (first, *others)] == [200, 200, 429]


async def test_case_26_a_million_addresses_are_bounded(clock: FakeClock) -> None:
    guarded = Guarded(clock, addresses="3/minute", max_addresses=50)
    for number in range(500):
        await guarded.call(address=f"198.51.{number // 250}.{number % 250}")
    assert len(guarded.storage.addresses) == 50
    for number in range(500):
        await guarded.call(address=f"2001:db8:1:1::{number:x}")
    assert len([key for key in guarded.storage.addresses._windows if "2001:db8:1:1" in key]) == 1


async def test_a_tool_has_so_many_calls_from_everybody_and_only_those_that_reach_it_count(clock: FakeClock) -> None:
    guarded = Guarded(clock, tools={"search_*": "3/minute", "*": "5/minute"})
    assert [(await guarded.call(token="a", tool="denied")).status for _ in range(9)] == [403] * 9
    calls = [("a", "search_web"), ("b", "search_mail"), ("c", "search_web"), ("d", "search_web")]
    assert [(await guarded.call(token=token, tool=tool)).status for token, tool in calls] == [200, 200, 200, 429]
    refused = await guarded.call(token="e", tool="search_mail")
    assert refused.json["error"]["data"]["of"] == "tool"
    assert [(await guarded.call(token="a", tool="read")).status for _ in range(6)] == [200] * 5 + [429]
    assert len(guarded.server.received) == 8
    clock.advance(60)
    assert (await guarded.call(token="a", tool="search_web")).status == 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),  # not a proxy of ours: it may say what it likes
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),  # the first was invented
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["nonsense, 10.0.0.9"], "10.0.0.9"),
        ("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["[2001:db8::1]:443"], "2001:db8::/64"),
        ("fd00::1", ["2001:db8:0:1:2:3:4:5"], "2001:db8:0:1::/64"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("fe80::1%eth0", [], "fe80::/64"),
        (None, ["198.51.100.7"], "unknown"),
        ("testclient", ["198.51.100.7"], "testclient"),
    ],
)
def test_proxies_are_believed_where_they_are_trusted(peer: str | None, forwarded: list[str], expected: str) -> None:
    trusted = read_networks("x", ["::ffff:10.0.0.0/104", "fd00::/8"])
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert address_of(peer, headers, trusted) == expected
    if peer == "10.0.0.1":
        assert address_of(peer, headers, ()) == "10.0.0.1"


@given(st.lists(st.binary(max_size=60)))
def test_whatever_stands_in_the_header_there_is_an_address(values: list[bytes]) -> None:
    trusted = read_networks("x", ["0.0.0.0/0"])
    assert address_of("10.0.0.1", [(b"x-forwarded-for", value) for value in values], trusted)


def test_a_wrong_number_of_addresses_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="GuardStorage: max_addresses is 0; it must be a whole number from 1"):
        GuardStorage(max_addresses=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "limits nothing; give addresses or tools"),
        ({"addresses": "many"}, "addresses: the rate is 'many'"),
        ({"addresses": 7}, "addresses: the rate is 7"),
        ({"tools": ["a"]}, "tools is ['a']; it must be a mapping from globs to rates"),
        ({"tools": {"": "1/day"}}, "tools has the key ''"),
        ({"tools": {"a": "1"}}, "tools['a']: the rate is '1'"),
        ({"addresses": "1/day", "trusted_proxies": "10.0.0.1"}, "trusted_proxies is '10.0.0.1'; it must be a list"),
        ({"addresses": "1/day", "trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies has '10.0.0.1/8'; it must be an"),
        ({"addresses": "1/day", "trusted_proxies": [7]}, "trusted_proxies has 7"),
        ({"addresses": "1/day", "server": 7}, "server is 7; it must be a name"),
        ({"addresses": "1/day", "storage": 7}, "storage is 7; it must be a GuardStorage"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RequestGuardMiddleware(Server(), **options)
    assert str(refused.value).startswith("RequestGuardMiddleware")
    assert said in str(refused.value)
